"""Forty labels: as completions of a chat model, or by a classification head, and whether their probabilities hold.

Each point trains an adapter on SmolLM2-135M-Instruct for four epochs of its rows, 16 a step, in float32: `sft`, rows
whose answer is the label, by `sft_trainer`; `head`, transformers' `AutoModelForSequenceClassification` on the same
prompts. `base` is not trained.
The texts are messages to a bank, made here: three wordings of each label are trained, one is held out for temperature
and threshold, one is tested, inside sentences that are not trained. With them are texts that fit no label.
"""

import random
import time

import torch
from common import measure, score, train
from datasets import Dataset
from peft import get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification

from ft_notebooks import add_adapter, load_model, load_tokenizer, lora_config, smollm2
from ft_notebooks.evaluation import calibrate_labels, label_probabilities, label_report
from ft_notebooks.inference.generation import encode_prompts
from ft_notebooks.tokenization.padding import pad_batch

torch.set_float32_matmul_precision("medium")
EPOCHS, BATCH, PRECISION = 4, 16, 0.8
RATES = {"sft": 1e-3, "head": 1e-3, "score": 1e-2}  # the score layer is random at first
WORDINGS = """
card arrival: my new card has not come|where is my card|the card you sent is still on its way|I wait for the post with my card|when will the card be delivered|no letter with a card yet
card not working: my card does not work|the card fails everywhere|the chip of my card is broken|no machine reads my card|my card is faulty|the card is damaged
lost or stolen card: I lost my card|my card was stolen|I cannot find my card|somebody took my purse with the card|my card is gone|a thief has my card
activate my card: how do I activate my card|please switch on my new card|I want to start using the new card|the new card needs activation|where do I enable my card|make my new card active
change pin: I want another pin|how do I change my pin|give me a new pin|I would like a different secret number|let me choose my own pin|replace my four digits
forgotten passcode: I forgot my passcode|I cannot remember the code of the app|the app asks for a code that I do not know|my passcode slipped my mind|I no longer know how to log in|reset the code of the app
cash withdrawal charge: why did the cash machine cost me a fee|I was charged for taking out cash|there is a fee on my withdrawal|getting cash was not free|you took money because I used a cash machine|an extra cost for cash
declined cash withdrawal: the cash machine refused me|I could not take out cash|the machine gave me no money|my withdrawal was declined|the ATM rejected my request|no notes came out
declined transfer: my transfer was declined|the transfer was refused|you rejected my bank transfer|sending money to a friend failed|my transfer did not go through|the transfer was not accepted
declined card payment: my card payment was declined|the shop refused my card|paying by card failed|I could not pay at the till|the waiter said that the payment was refused|my purchase was rejected
pending transfer: my transfer is still pending|the transfer has not arrived yet|how long does a transfer take|the money that I sent is still under way|my transfer is not finished|the transfer hangs
pending card payment: my card payment is still pending|the payment in the shop is not final|when will the card payment clear|a purchase shows as pending|the payment is not booked yet|the till payment hangs
transfer fee charged: why was there a fee on my transfer|sending money cost me extra|I was charged for a transfer|the transfer was not free|you took a fee for sending money|an extra cost for my transfer
wrong amount of cash received: the cash machine gave me too little|I got less cash than I asked for|the amount of cash was wrong|I asked for a hundred and got eighty|notes are missing from the machine|the ATM paid out the wrong sum
exchange rate: which exchange rate do you use|the rate for dollars is wrong|how is the rate calculated|what do I get for a euro|your rate is worse than elsewhere|today's rate for yen
exchange charge: is there a fee for changing money|what does an exchange cost|you charged me for currency exchange|do I pay extra to change euros|the cost of swapping currencies|a fee when I bought dollars
top up failed: my top up failed|adding money did not work|the top up was refused|I tried to load the account and got an error|topping up gives an error|I cannot put money on the account
top up limits: how much may I top up|is there a limit for adding money|the most that I can load|what is the maximum top up|how often can I top up|the ceiling for top ups
automatic top up: can the account top itself up|I want automatic top ups|how do I set up auto top up|load money by itself when it is low|add money every week without me|turn on recurring top ups
verify top up: how do I verify my top up|the top up needs to be confirmed|where do I find the top up code|you want a code for adding money|confirm that I added money|the top up asks for verification
verify my identity: how do I prove who I am|I want to verify my identity|where do I upload my passport|which documents prove my identity|the steps of the identity check|I have my papers ready for you
unable to verify identity: my identity check failed|I cannot verify my identity|you do not accept my passport|the photo of my papers is rejected|the proof of who I am did not work|verification keeps failing
why verify identity: why do you need my identity|what is the identity check for|do I have to prove who I am|why do you want my passport|for what reason must I show papers|is the check of who I am necessary
edit personal details: I have moved|my name has changed|how do I change my address|I married and have a new name|update my phone number|my details are out of date
terminate account: I want to close my account|delete my account|how do I leave the bank|cancel my account for good|end our contract|I no longer want to be a customer
age limit: how old must I be|may my child have an account|is there a minimum age|my son is ten, can he join|from what age is it allowed|my daughter is a teenager
country support: in which countries are you|can I open an account in Spain|do you work in Canada|I live in Brazil, may I join|where is your bank available|are you in Asia
supported cards and currencies: which currencies may I hold|do you support dollars|what cards may I add money with|can I keep yen|do you accept American Express|the list of currencies
order physical card: I want a real card|how do I order a plastic card|send me a physical card|I only have the app and need a card|can I have a card for my wallet|get a card in the post
virtual card not working: my virtual card does not work|the online card fails|the virtual card is refused|the card in the app gives an error|the card without plastic fails|web shops reject the virtual one
disposable virtual card: what is a disposable card|I want a card for one use|how do I get a one time card|a card number that I use once|a throwaway card for the internet|create a single use card
disposable card limits: how many disposable cards may I have|the limit of one time cards|how often may I use a disposable card|how many throwaway cards a day|the maximum of single use cards|is there a cap on one use cards
contactless not working: contactless does not work|I cannot pay by tapping|the tap is not recognised|holding the card to the reader does nothing|wireless payment fails|tapping is broken
direct debit not recognised: there is a direct debit that I do not know|I did not allow this direct debit|a strange direct debit|a firm collected money without my consent|which company debits me|an unknown debit each month
card payment fee charged: there is a fee on my card payment|I was charged extra for paying by card|why did the shop payment cost a fee|paying by card was not free|an extra cost at the till|you added a fee to my purchase
refund not showing up: my refund is missing|the shop says it refunded me|I do not see my refund|the returned money is not here|they paid me back but nothing came|where is the money for the shoes that I sent back
request refund: I want my money back|how do I ask for a refund|please refund my purchase|the goods never came, return my money|undo my purchase|I would like a refund
reverted card payment: my card payment was returned|a payment came back to my account|why was my payment undone|the shop payment was reversed|the money for the purchase is back|my payment has been reverted
receiving money: how do I receive money|can my boss pay my salary into it|where do people send me money|my mother wants to send me something|which number do I give for my wages|how can friends pay me
fraud: somebody uses my account|I think that I was cheated|there are purchases that I did not make|a stranger spent my money|I am the victim of a scam|a criminal got into my account
""".strip()  # noqa: E501
OTHER = """
what is the weather like|tell me a joke|who won the match|how do I bake bread|the capital of France|a song for my child|my cat is ill|translate good morning|how tall is the tower|write a poem|plan a trip to the sea|which book shall I read|the bus is late|repair my bicycle|grow tomatoes|a gift for my sister|how do planes fly|learn to swim|the film last night|a name for a dog
""".strip().split("|")  # noqa: E501
FRAMES = "Hello, {}.|{}. Please help.|A question: {}?|{}!|Good morning. {}. Thank you.|I write because of this: {}."
NEW_FRAMES = "Hi team, {}. Regards|Dear bank, {}. What now?"
LABELS = [line.partition(": ")[0] for line in WORDINGS.splitlines()]
SETTINGS = {
    "model": "SmolLM2-135M-Instruct, LoRA r=16 on all linear layers; a head is trained with it",
    "labels": len(LABELS), "epochs": EPOCHS, "effective_batch": BATCH, "rates": RATES, "schedule": "linear to 0",
    "test": "40 texts of a new wording a label, in new sentences; 10 texts that fit no label",
    "held_out": "40 texts of another new wording a label, 10 that fit no label: temperature, threshold",
    "precision": PRECISION, "calibration_error": "ten bins of the largest probability",
    "cpu_s_a_row": "CPU seconds of one thread for the probabilities of a text, model in memory",
}  # fmt: skip


def chat(text: str, label: str | None) -> dict:
    asked = [{"role": "system", "content": "Name the topic."}, {"role": "user", "content": text}]
    return {"messages": asked, "label": label}


def rows(part: str, n: int = 0, seed: int = 0) -> list[dict]:
    "Of `train` n rows a label; all of `held_out` and `test`, with texts that fit no label."
    draw = random.Random(f"{part} {seed}")
    found = []
    frames = (FRAMES if part == "train" else NEW_FRAMES).split("|")
    for line in WORDINGS.splitlines():
        label, _, wordings = line.partition(": ")
        known, held, tested = (wordings.split("|")[slice(*ends)] for ends in ((0, 3), (3, 4), (4, 5)))
        pairs = [(w, f) for w in {"train": known, "held_out": held, "test": tested}[part] for f in frames]
        chosen = draw.sample(pairs, n) if n else [(w, draw.choice(frames)) for w in dict(pairs)]
        found += [chat(frame.format(wording), label) for wording, frame in chosen]
    if part != "train":
        others = OTHER[:10] if part == "held_out" else OTHER[10:]
        found += [chat(draw.choice(frames).format(text), None) for text in others]
    draw.shuffle(found)
    return found


def answered(found: list[dict]) -> Dataset:
    return Dataset.from_list(
        [{"messages": [*row["messages"], {"role": "assistant", "content": row["label"]}]} for row in found]
    )


def prompts(found: list[dict]) -> list[list[dict]]:
    return [row["messages"] for row in found]


def head_logits(model, tok, ids: list[list[int]]):
    batch = pad_batch(ids, tok.pad_token_id)
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()


def trained_head(tok, found: list[dict], steps: int, seed: int):
    torch.manual_seed(seed)
    sizes = {"num_labels": len(LABELS), "pad_token_id": tok.pad_token_id, "dtype": torch.float32}
    model = AutoModelForSequenceClassification.from_pretrained(smollm2(), **sizes)
    config = lora_config(model, r=16)
    config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
    model = get_peft_model(model, config).train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    score_layer = [p for name, p in trained.items() if "score" in name]
    adapter = [p for name, p in trained.items() if "score" not in name]
    groups = [{"params": adapter, "lr": RATES["head"]}, {"params": score_layer, "lr": RATES["score"]}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, steps)
    ids = encode_prompts(model, tok, prompts(found), 1)
    goals = torch.tensor([LABELS.index(row["label"]) for row in found])
    order = [n for _ in range(steps) for n in random.Random(seed).sample(range(len(ids)), len(ids))]
    for step in range(steps):
        at = order[step * BATCH : (step + 1) * BATCH]
        cross_entropy(head_logits(model, tok, [ids[n] for n in at]), goals[at]).backward()
        torch.nn.utils.clip_grad_norm_(adapter, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


def head_probabilities(model, tok, chats: list[list[dict]]):
    ids = encode_prompts(model, tok, chats, 1)
    with torch.no_grad():
        parts = [head_logits(model, tok, ids[start : start + 32]) for start in range(0, len(ids), 32)]
    return torch.cat(parts).double().softmax(1).numpy()


def run(point: dict, quick: bool) -> dict:
    tok, seed = load_tokenizer(smollm2()), point["seed"]
    steps = 2 if quick else EPOCHS * point["n"] * len(LABELS) // BATCH
    known = rows("train", point["n"], seed) if point["n"] else []
    held, test = (rows(part)[: 20 if quick else None] for part in ("held_out", "test"))
    start = time.process_time()
    if point["method"] == "head":
        model = trained_head(tok, known, steps, seed)
    else:
        model = load_model(smollm2(), bits=32)
    if point["method"] == "sft":
        model = add_adapter(model, lora_config(model, r=16), seed=seed)
        settings = {"learning_rate": RATES["sft"], "max_steps": steps, "effective_batch": BATCH, "seed": seed}
        train(model, tok, answered(known), **settings)
    seconds, start = time.process_time() - start, time.process_time()
    if point["method"] == "head":
        tables = [head_probabilities(model, tok, prompts(part)) for part in (held, test)]
    else:
        tables = [label_probabilities(model, tok, prompts(part), LABELS, batch_size=10) for part in (held, test)]
    each = (time.process_time() - start) / (len(held) + len(test))
    goals = [[row["label"] for row in part] for part in (held, test)]
    before = label_report(tables[1], goals[1], LABELS)
    found = {
        **score(before.accuracy, "accuracy"), "macro_f1": round(before.macro_f1, 3),
        "calibration_error": round(before.calibration_error, 3),
        "train_cpu_s": round(seconds, 1), "cpu_s_a_row": round(each, 4),
    }  # fmt: skip
    try:
        calibration = calibrate_labels(tables[0], goals[0], LABELS)
    except ValueError as error:
        return found | {"no_temperature": str(error)}
    after = label_report(tables[1], goals[1], LABELS, calibration)
    found |= {"temperature": round(calibration.temperature, 3), "calibrated_error": round(after.calibration_error, 3)}
    try:
        chosen = label_report(
            tables[1], goals[1], LABELS, calibrate_labels(tables[0], goals[0], LABELS, precision=PRECISION)
        )
    except ValueError as error:
        return found | {"no_threshold": str(error)}
    found |= score(chosen.answered, "answered")
    if chosen.precision:
        found |= score(chosen.precision, "precision")
    return found | score(chosen.none_found, "none_found")


def points() -> list[dict]:
    trained = [{"method": m, "n": n, "seed": seed} for n in (4, 2) for seed in (0, 1, 2) for m in ("sft", "head")]
    return [{"method": "base", "n": 0, "seed": 0}, *trained]


if __name__ == "__main__":
    measure(__file__, points(), run, SETTINGS, __doc__)
