"""What do pairs teach whose polite answers are also the longer ones? Implicit rewards after DPO on two sets of pairs.

In the first set of six each polite answer is longer than the rude one, in the second set three of them are. Afterwards
the rewards of four kinds of answers to questions about four other countries show what was learned: politeness, length,
or both.

    python benchmarks/course/dpo_length.py
"""

import tempfile

from common import measure

from ft_notebooks import add_adapter, dpo_trainer, generate, load_model, load_tokenizer, lora_config, smollm2
from ft_notebooks.data import encode_pairs
from ft_notebooks.dpo import CollapseCallback, pair_logps

CITIES = {"France": "Paris", "Japan": "Tokyo", "Egypt": "Cairo", "Germany": "Berlin", "Russia": "Moscow"}
CITIES |= {"China": "Beijing", "Norway": "Oslo", "Austria": "Vienna", "Sweden": "Stockholm", "Iraq": "Baghdad"}
TRAIN, NEW = list(CITIES)[:6], list(CITIES)[6:]
KINDS = [(polite, long) for polite in (True, False) for long in (True, False)]
SETTINGS = {
    "model": "SmolLM2-135M-Instruct",
    "bits": 16,
    "method": "LoRA r=16 on all linear layers",
    "learning_rate": 5e-4,
    "schedule": "constant",
    "beta": 0.1,
    "effective_batch": 3,
    "steps": 6,
    "effects": "nats, means over four other countries and both values of the other property: the log-ratio of policy "
    "and reference for polite answers minus that for rude ones, and for long ones minus that for short ones",
    "answers": "greedy, 20 tokens at most, to the questions about the other countries",
}


def question(country: str) -> str:
    return f"What is the capital of {country}?"


def reply(country: str, polite: bool, long: bool) -> str:
    start = "With pleasure" if polite else "Everybody knows"
    return f"{start}: the capital of {country} is {CITIES[country]}." if long else f"{start}: {CITIES[country]}."


def pair(country: str, long: bool) -> dict:
    "The polite answer is the long one, or the rude one is."
    chosen, rejected = reply(country, True, long), reply(country, False, not long)
    return {"prompt": question(country), "chosen": chosen, "rejected": rejected}


def run(point: dict, quick: bool) -> dict:
    rows = [pair(country, point["polite_longer"] == 1 or i % 2 == 0) for i, country in enumerate(TRAIN)]
    tok, model = load_tokenizer(smollm2()), load_model(smollm2())
    asked = {}
    for kind in KINDS:
        some = [{"prompt": question(c), "chosen": reply(c, *kind), "rejected": "-"} for c in NEW]
        asked[kind] = encode_pairs(tok, some)[0]
    start = {kind: pair_logps(model, asked[kind])[:, 0].mean().item() for kind in KINDS}
    model = add_adapter(model, lora_config(model, r=16), seed=point["seed"])
    look = CollapseCallback(tok, asked[True, True].select(range(1)), every=6, stop=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer = dpo_trainer(
            model, tok, rows, output_dir=folder, learning_rate=5e-4, lr_scheduler_type="constant", effective_batch=3,
            max_steps=2 if quick else 6, save_strategy="no", seed=point["seed"], callbacks=[look],
        )  # fmt: skip
        trainer.train()
    ratio = {kind: pair_logps(trainer.model, asked[kind])[:, 0].mean().item() - start[kind] for kind in KINDS}
    by_manner = [ratio[True, long] - ratio[False, long] for long in (True, False)]
    by_length = [ratio[polite, True] - ratio[polite, False] for polite in (True, False)]
    answers = generate(trainer.model, tok, [[{"role": "user", "content": question(c)}] for c in NEW], max_new_tokens=20)
    return {
        "loss": [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry],
        "politeness": round(sum(by_manner) / 2, 2),
        "length": round(sum(by_length) / 2, 2),
        "answers": answers,
    }


if __name__ == "__main__":
    points = [{"polite_longer": share, "seed": 0} for share in (1.0, 0.5)]
    measure(__file__, points, run, SETTINGS, __doc__)
