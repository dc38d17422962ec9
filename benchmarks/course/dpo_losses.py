"""Which loss for pairs? TRL's losses on one task: one start, the same pairs, as many steps, each at its own setting.

The tiny model puts the letters of a word in order, each once. After SFT it mostly writes "abc", and seldom "a-b-c", as
the pairs prefer. Each loss has its rate from a grid on validation words. Then three seeds, with right labels and with a
quarter of them exchanged, on test words: a model may learn the form and forget the order. Two minutes of one core.

    python benchmarks/course/dpo_losses.py                      # all points, the grid first
    python benchmarks/course/dpo_losses.py --only "part=test"   # these again
"""

import gc
import json
import random
import tempfile
import time
from functools import cache

from common import measure, results, score, train
from datasets import Dataset, disable_progress_bars
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from ft_notebooks import generate, tiny_model, tiny_tokenizer
from ft_notebooks.data import encode_pairs
from ft_notebooks.dpo import pair_logps
from ft_notebooks.evaluation.runner import interval

TRAINERS = {"dpo": (DPOTrainer, DPOConfig), "cpo": (CPOTrainer, CPOConfig), "orpo": (ORPOTrainer, ORPOConfig)}
LOSSES = {  # the trainer and its settings; beta is TRL's 0.1, or higher where it counts nats a token (SimPO: 2)
    "sft": ("dpo", {"loss_type": ["sft"]}),
    "sigmoid": ("dpo", {"loss_type": ["sigmoid"]}),
    "sigmoid + sft": ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]}),
    "hinge": ("dpo", {"loss_type": ["hinge"]}),
    "robust": ("dpo", {"loss_type": ["robust"], "label_smoothing": 0.25}),
    "apo_zero": ("dpo", {"loss_type": ["apo_zero"]}),
    "ipo": ("dpo", {"loss_type": ["ipo"]}),
    "sigmoid_norm": ("dpo", {"loss_type": ["sigmoid_norm"], "beta": 5.0}),
    "simpo": ("cpo", {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0}),
    "cpo": ("cpo", {"loss_type": "sigmoid", "cpo_alpha": 1.0}),
    "orpo": ("orpo", {}),
}
RATES = (3e-5, 1e-4, 3e-4)
SETTINGS = {
    "model": "tiny_model(), all weights, float32",
    "task": "5 to 10 letters of a to l; right: each once, in order, with hyphens between them",
    "sft": {"rows": 6400, "with_hyphens": 0.3, "effective_batch": 32, "learning_rate": 2e-3, "num_train_epochs": 1},
    "pairs": "one word in both forms; the one with hyphens is chosen, or in the first `flipped` of the pairs rejected",
    "training": {"pairs": 160, "pairs_a_step": 8, "steps": 20, "schedule": "constant"},
    "losses": LOSSES,
    "beta": 0.1,
    "rates": RATES,
    "grid": "pairs of seed 9 with right labels, 200 validation words; the best rate by `right` serves the test, with "
    "both kinds of labels",
    "test": "300 words, greedy, 24 tokens at most; letters: right but for the form; length: characters; the changes of "
    "the log-probabilities of 100 held-out pairs, with right labels, in nats",
    "cpu_seconds": "of the 20 steps",
    "reference_texts": "answers that went through the reference; TRL's trainers compute them in each step",
}
WORDS = {"validation": 200, "test": 300}
LETTERS = "abcdefghijkl"
TOK = tiny_tokenizer()


def words(n: int, seed: str) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(LETTERS, k=draw.randint(5, 10))) for _ in range(n)]


def ordered(word: str) -> str:
    return "".join(sorted(set(word)))


def asked(word: str) -> list[dict]:
    return [{"role": "user", "content": word}]


def said(letters: str) -> list[dict]:
    return [{"role": "assistant", "content": letters}]


def pairs(n: int, seed: str, flipped: float = 0.0) -> list[dict]:
    rows = []
    for word in words(n, seed):
        answers = {"chosen": said("-".join(ordered(word))), "rejected": said(ordered(word))}
        if len(rows) < flipped * n:
            answers = {"chosen": answers["rejected"], "rejected": answers["chosen"]}
        rows.append({"prompt": asked(word), **answers})
    return rows


def as_text(pair: dict) -> dict[str, str]:
    "The pair as text, to which all trainers add the end token, and nothing else."
    prompt = TOK.apply_chat_template(pair["prompt"], add_generation_prompt=True, tokenize=False)
    return {"prompt": prompt, "chosen": pair["chosen"][0]["content"], "rejected": pair["rejected"][0]["content"]}


@cache
def sft_weights() -> dict:
    given = dict(SETTINGS["sft"])
    share = given.pop("with_hyphens")
    rows = []
    for i, word in enumerate(words(given.pop("rows"), "sft")):
        letters = "-".join(ordered(word)) if i % 10 < 10 * share else ordered(word)
        rows.append({"messages": asked(word) + said(letters)})
    model = tiny_model()
    train(model, TOK, Dataset.from_list(rows), seed=0, disable_tqdm=True, **given)
    return model.state_dict()


def start():
    "A new model each time: TRL's trainers change `forward`, and a deep copy would share the changed one."
    model = tiny_model()
    model.load_state_dict(sft_weights())
    return model


def trained(point: dict, rate: float, steps: int) -> tuple:
    "The model, the CPU seconds of its training, and the texts that its reference computed."
    kind, given = LOSSES[point["loss"]]
    trainer_of, config_of = TRAINERS[kind]
    model, models, through = start(), {}, []
    if kind == "dpo":
        models["ref_model"] = start()
        models["ref_model"].register_forward_pre_hook(lambda *given: through.append(given[2]), with_kwargs=True)
    rows = pairs(SETTINGS["training"]["pairs"], f"pairs {point['seed']}", point["flipped"])
    with tempfile.TemporaryDirectory() as folder:
        args = config_of(
            output_dir=folder, learning_rate=rate, max_steps=steps, seed=point["seed"],
            per_device_train_batch_size=SETTINGS["training"]["pairs_a_step"], lr_scheduler_type="constant",
            bf16=False, gradient_checkpointing=False, save_strategy="no", report_to="none", disable_tqdm=True, **given,
        )  # fmt: skip
        texts = Dataset.from_list(list(map(as_text, rows)))
        trainer = trainer_of(model=model, args=args, train_dataset=texts, processing_class=TOK, **models)
        begin = time.process_time()
        trainer.train()
        seconds = time.process_time() - begin
    return model.eval(), seconds, sum(len(given["input_ids"]) for given in through)


@cache
def held_out(part: str) -> tuple:
    "Pairs with right labels, and the log-probabilities of their answers before training."
    rows = encode_pairs(TOK, pairs(100, f"{part} pairs"))[0]
    return rows, pair_logps(start(), rows, 100)


def measured(model, part: str) -> dict:
    "The answers to the words of a part, and what has become of its pairs."
    asked_for = words(WORDS[part], part)
    answers = generate(model, TOK, list(map(asked, asked_for)), max_new_tokens=24, batch_size=100, progress=False)
    right = [float(answer == "-".join(ordered(word))) for answer, word in zip(answers, asked_for)]
    letters = [float(answer.replace("-", "") == ordered(word)) for answer, word in zip(answers, asked_for)]
    rows, then = held_out(part)
    now = pair_logps(model, rows, 100)
    change = now - then
    return {
        **score(interval(right), "right"),
        **score(interval(letters), "letters"),
        "length": round(sum(map(len, answers)) / len(answers), 2),
        **score(interval((change[:, 0] > change[:, 1]).double().tolist()), "reward_accuracy"),
        "likelier": round((now[:, 0] > now[:, 1]).double().mean().item(), 2),
        "chosen_change": round(change[:, 0].mean().item(), 2),
        "rejected_change": round(change[:, 1].mean().item(), 2),
        "answer": answers[0],
        "by_word": "".join(str(int(one)) for one in right),
    }


def best_rate(loss: str) -> float:
    "The rate of the grid's best point; the first one where it has not been measured (--quick)."
    file = results(__file__)
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    grid = [row for row in rows if row["part"] == "validation" and row["loss"] == loss]
    return max(grid, key=lambda row: row["right"])["rate"] if grid else RATES[0]


def run(point: dict, quick: bool) -> dict:
    if point["loss"] == "start":
        return measured(start(), "test")
    rate = point.get("rate") or best_rate(point["loss"])
    model, seconds, through = trained(point, rate, 2 if quick else SETTINGS["training"]["steps"])
    found = measured(model, point["part"])
    if point["part"] == "validation":
        return {name: found[name] for name in ("right", "letters", "chosen_change", "rejected_change")}
    return {"rate": rate, **found, "cpu_seconds": round(seconds, 2), "reference_texts": through}


if __name__ == "__main__":
    points = [
        {"part": "validation", "loss": loss, "flipped": 0.0, "seed": 9, "rate": rate}
        for loss in LOSSES
        for rate in RATES
    ]
    points.append({"part": "test", "loss": "start", "flipped": 0.0, "seed": 0})
    points += [
        {"part": "test", "loss": loss, "flipped": flipped, "seed": seed}
        for flipped in (0.0, 0.25)
        for loss in LOSSES
        for seed in range(3)
    ]
    disable_progress_bars()
    gc.freeze()  # the collection after each run skips what was imported
    measure(__file__, points, run, SETTINGS, __doc__)
