"""The open-ended task from base model to reward model: replies to customers in a house style.

A program checks the five lines of the rubric, and readers who overlook faults choose between two replies. Each seed has
its own training mails, its own readers and its own samples; the test mails are the same. All parts of a seed start from
its SFT adapter.

    python benchmarks/course/replies.py                     # all points, about 25 minutes on one core
    python benchmarks/course/replies.py --only "seed=0"     # this one again
"""

import copy
import random
import tempfile

import torch
from common import excerpt, excerpt_settings, measure, score, train
from datasets import Dataset

from ft_notebooks import (
    add_adapter,
    dpo_trainer,
    generate,
    load_model,
    load_reward_model,
    load_tokenizer,
    lora_config,
    merge_adapter,
    perplexity,
    reward_scores,
    reward_trainer,
    smollm2,
)
from ft_notebooks.course.reply_task import customer_mails, rubric
from ft_notebooks.evaluation.runner import interval
from ft_notebooks.rlhf import evaluate_reward

TOKENS = 50  # of a reply at most
SETTINGS = {
    "model": "SmolLM2-135M-Instruct, float32, LoRA r=16 on all linear layers",
    "sft": {"rows": 128, "learning_rate": 1e-3, "effective_batch": 8, "num_train_epochs": 1},
    "pairs": {
        "mails": 96,
        "samples": 4,
        "temperature": 1.0,
        "held_out": 32,
        "of": "the SFT model's samples, two by two",
    },
    "dpo": {
        "learning_rate": 2e-4,
        "effective_batch": 8,
        "num_train_epochs": 1,
        "beta": 0.1,
        "loss_type": ["sigmoid", "sft"],
        "loss_weights": [1.0, 1.0],
    },
    "reward": {"learning_rate": 5e-4, "effective_batch": 8, "num_train_epochs": 1},
    "test": "40 mails with other names, machines, complaints and forms; greedy",
    "best_of": [1, 2, 4, 8, 16],
    "readers": "overlook each fault with probability 1/4; of two alike they choose the longer reply",
    **excerpt_settings(),
}
TEST = customer_mails(40, part="test")
NEW = customer_mails(40, part="new problems")


def chosen_reply(replies: tuple[str, str], chat: list[dict], draw: random.Random) -> int:
    """The place of the reply that a reader in a hurry prefers: that with fewer faults; of two alike the longer one.

    He overlooks each fault with probability 1/4, so two readers, and one reader on two days, do not always agree.
    """
    seen = [sum(not ok and draw.random() > 0.25 for ok in rubric(reply, chat).values()) for reply in replies]
    if seen[0] == seen[1]:
        return int(len(replies[1]) > len(replies[0]))
    return int(seen[1] < seen[0])


def asked(rows) -> list:  # without the replies
    return [row["messages"][:-1] for row in rows]


def fulfilled(replies: list[str], rows) -> list[float]:  # 1 for each reply that fulfils the whole rubric
    return [float(all(rubric(reply, row["messages"]).values())) for reply, row in zip(replies, rows)]


def scored(model, tok, name: str, chats: list, rows=TEST) -> dict:
    "The share of test mails whose reply fulfils the rubric, with its interval; each line; perplexity on other text."
    replies = generate(model, tok, chats, max_new_tokens=TOKENS, batch_size=20, progress=False)
    lines = [rubric(reply.strip(), row["messages"]) for reply, row in zip(replies, rows)]
    found = score(interval(fulfilled([reply.strip() for reply in replies], rows)), name)
    found[f"{name}_lines"] = {line: sum(one[line] for one in lines) for line in lines[0]}
    found[f"{name}_words"] = round(sum(len(reply.split()) for reply in replies) / len(replies), 1)
    return found | {f"{name}_replies": replies[:5]}


def sampled(model, tok, chats: list, n: int, seed: int) -> list[list[str]]:
    "n replies to each chat at temperature 1."
    torch.manual_seed(seed)
    left, found = copy.copy(tok), []
    left.padding_side = "left"
    for start in range(0, len(chats), 8):
        part = chats[start : start + 8]
        given = dict(add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True)
        batch = left.apply_chat_template(part, **given)
        with torch.no_grad():
            out = model.generate(
                **batch, do_sample=True, top_k=0, top_p=1.0, temperature=1.0, num_return_sequences=n,
                max_new_tokens=TOKENS,
            )  # fmt: skip
        texts = tok.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        found += [[text.strip() for text in texts[i : i + n]] for i in range(0, len(texts), n)]
    return found


def compared(rows, samples: list[list[str]], seed: int) -> tuple[list[dict], dict]:
    "Pairs as one reader chose them, and how often a second reader, and the rubric, agree with him."
    first, second = random.Random(f"first {seed}"), random.Random(f"second {seed}")
    pairs, agree, meant = [], [], []
    for row, texts in zip(rows, samples):
        for two in zip(texts[::2], texts[1::2]):
            if two[0] == two[1]:
                continue
            chosen = chosen_reply(two, row["messages"], first)
            agree.append(float(chosen == chosen_reply(two, row["messages"], second)))
            faults = [sum(not ok for ok in rubric(text, row["messages"]).values()) for text in two]
            if faults[0] != faults[1]:
                meant.append(float(faults[chosen] < faults[1 - chosen]))
            better = None if faults[0] == faults[1] else two[faults[1] < faults[0]]
            texts_of = {"chosen": two[chosen], "rejected": two[1 - chosen]}
            answers = {name: [{"role": "assistant", "content": text}] for name, text in texts_of.items()}
            pairs.append({"prompt": row["messages"][:-1], **answers, "better": better})
    return pairs, score(interval(agree), "readers_agree") | score(interval(meant), "reader_as_rubric")


def as_meant(pairs: list[dict]) -> list[dict]:
    "The pairs in which one reply has fewer faults, with this one as the chosen one."
    found = []
    for pair in pairs:
        if pair["better"] is None:
            continue
        right = pair["chosen"][0]["content"] == pair["better"]
        chosen, rejected = ("chosen", "rejected") if right else ("rejected", "chosen")
        found.append({"prompt": pair["prompt"], "chosen": pair[chosen], "rejected": pair[rejected]})
    return found


def without(pairs: list[dict]) -> list[dict]:
    return [{name: pair[name] for name in ("prompt", "chosen", "rejected")} for pair in pairs]


def best_of(rater, tok, samples: list[list[str]], sizes: list[int]) -> dict:
    "For each n: the mean score of the best of n replies, the share that fulfils the rubric, and its words."
    chats = [
        chat + [{"role": "assistant", "content": text}] for chat, texts in zip(asked(TEST), samples) for text in texts
    ]
    scores = torch.tensor(reward_scores(rater, tok, chats)).view(len(samples), -1)
    found = []
    for n in sizes:
        chosen = scores[:, :n].argmax(1).tolist()
        replies = [texts[i] for texts, i in zip(samples, chosen)]
        share = score(interval(fulfilled(replies, TEST)), "fulfilled")
        words = sum(len(reply.split()) for reply in replies) / len(replies)
        found.append(
            {"n": n, "score": round(scores[:, :n].amax(1).mean().item(), 3), **share, "words": round(words, 1)}
        )
    return {"best_of": found, "best_of_replies": replies[:5]}


def run(point: dict, quick: bool) -> dict:
    seed = point["seed"]
    tok, base = load_tokenizer(smollm2()), load_model(smollm2(), bits=32)
    general = excerpt(tok, 1 if quick else 8)
    found = {}
    if point["part"] == "base":
        shots = [message for row in customer_mails(3, seed=99) for message in row["messages"][1:]]
        found |= scored(base, tok, "base", asked(TEST))
        found |= scored(base, tok, "three_examples", [[chat[0], *shots, *chat[1:]] for chat in asked(TEST)])
        return found | {"base_perplexity": round(perplexity(base, tok, general, batch_size=1), 3)}
    rows = 16 if quick else SETTINGS["sft"]["rows"]
    given = {name: value for name, value in SETTINGS["sft"].items() if name != "rows"}
    model = add_adapter(base, lora_config(base, r=16), seed=seed)
    if "256 rows" in point["part"]:
        manual = "no manual" not in point["part"]
        train(model, tok, customer_mails(2 * rows, seed=seed, manual=manual), seed=seed, **given)
        model = merge_adapter(model)
        found |= scored(model, tok, "sft", asked(customer_mails(40, part="test", manual=manual)))
        if manual:
            found |= scored(model, tok, "new_problems", asked(NEW), NEW)
        return found | {"sft_perplexity": round(perplexity(model, tok, general, batch_size=1), 3)}
    train(model, tok, customer_mails(rows, seed=seed), seed=seed, **given)
    sft = merge_adapter(copy.deepcopy(model))
    found |= scored(sft, tok, "sft", asked(TEST))
    found["sft_perplexity"] = round(perplexity(sft, tok, general, batch_size=1), 3)

    mails = customer_mails(8 if quick else SETTINGS["pairs"]["mails"], seed=100 + seed)
    pairs, agreed = compared(mails, sampled(sft, tok, asked(mails), SETTINGS["pairs"]["samples"], seed), seed)
    found |= agreed
    known, held = pairs[: -SETTINGS["pairs"]["held_out"]], pairs[-SETTINGS["pairs"]["held_out"] :]
    if quick:
        known, held = pairs[:8], pairs[8:]
    found |= {"pairs": len(known), "held_out": len(held)}

    with tempfile.TemporaryDirectory() as folder:
        sft.save_pretrained(f"{folder}/sft")
        tok.save_pretrained(f"{folder}/sft")
        rater = load_reward_model(f"{folder}/sft", tok, seed=seed, bits=32)
        rater = add_adapter(rater, lora_config(rater, r=16), seed=seed)
        reward_trainer(
            rater, tok, without(known), output_dir=f"{folder}/reward", save_strategy="no", seed=seed, disable_tqdm=True,
            **SETTINGS["reward"],
        ).train()  # fmt: skip
        found |= score(evaluate_reward(rater, tok, without(held))["accuracy"], "reward_as_reader")
        found |= score(evaluate_reward(rater, tok, as_meant(held))["accuracy"], "reward_as_rubric")
        test_samples = sampled(sft, tok, asked(TEST), 2 if quick else 16, 1000 + seed)
        found |= best_of(rater, tok, test_samples, [1, 2] if quick else SETTINGS["best_of"])
        trainer = dpo_trainer(
            model, tok, Dataset.from_list(without(known)), output_dir=f"{folder}/dpo", save_strategy="no", seed=seed,
            disable_tqdm=True, **SETTINGS["dpo"],
        )  # fmt: skip
        trainer.train()
    model = merge_adapter(model)
    found |= scored(model, tok, "dpo", asked(TEST))
    return found | {"dpo_perplexity": round(perplexity(model, tok, general, batch_size=1), 3)}


if __name__ == "__main__":
    points = [{"part": "base", "seed": 0}, {"part": "256 rows, no manual", "seed": 0}]
    points += [{"part": part, "seed": seed} for part in ("256 rows", "all") for seed in range(3)]
    measure(__file__, points, run, SETTINGS, __doc__)
