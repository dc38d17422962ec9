"""What does a model forget while it learns a task, and what lessens it?

Before and after SFT on 192 notes: the task's exact match on held-out notes; perplexity on general English, which is
4,096 tokens of the help texts of Python itself (`pydoc_data.topics`); and 60 small tasks of the package reasoning-gym
(`pip install reasoning-gym`), scored by its own verifiers. The runs differ in what is trained (a LoRA adapter or all
weights), in the learning rate, in the number of steps, and in a quarter of general chats mixed into the notes.

    python benchmarks/course/forgetting.py                                    # all points
    python benchmarks/course/forgetting.py --only "run=lora_1e-3 seed=0"      # this one again
"""

import random
import re
from importlib import metadata
from pydoc_data.topics import topics

import reasoning_gym
from common import EXCERPT, excerpt, excerpt_settings, measure, score, train
from datasets import Dataset, concatenate_datasets

from ft_notebooks import (
    add_adapter,
    appointments,
    evaluate,
    generate,
    load_model,
    load_tokenizer,
    lora_config,
    merge_adapter,
    perplexity,
    smollm2,
)
from ft_notebooks.evaluation.runner import interval

RUNS = {  # name -> bits, rate, epochs over 192 examples in steps of 8, and general chats among the examples
    "base": {"bits": 16},
    "lora_1e-3": {"bits": 16, "learning_rate": 1e-3, "epochs": 1, "general": 0},
    "lora_1e-4": {"bits": 16, "learning_rate": 1e-4, "epochs": 1, "general": 0},
    "lora_1e-3_mixed": {"bits": 16, "learning_rate": 1e-3, "epochs": 1, "general": 48},
    "full_2e-5": {"bits": 32, "learning_rate": 2e-5, "epochs": 1, "general": 0},
    "full_2e-4": {"bits": 32, "learning_rate": 2e-4, "epochs": 1, "general": 0},
    "lora_1e-3_longer": {"bits": 16, "learning_rate": 1e-3, "epochs": 3, "general": 0},
    "lora_1e-4_longer": {"bits": 16, "learning_rate": 1e-4, "epochs": 3, "general": 0},
}
OVERLAP = ("dynamic-features", "exceptions", "naming")  # topics that repeat parts of the excerpt
TASKS = {  # name -> rows, settings; of these the base model solves some
    "products": (24, {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}),
    "ransom_note": (
        20,
        {"min_note_length": 1, "max_note_length": 3, "min_magazine_length": 2, "max_magazine_length": 5},
    ),
    "gcd": (16, {"max_value": 20}),
}


def general_chats(n: int, seed: int) -> Dataset:
    "Chats that ask to continue 60 words of a help text, and continue it by the next 60."
    words = [text.split() for name, text in topics.items() if name not in EXCERPT + OVERLAP]
    places = [(text, start) for text in words for start in range(0, len(text) - 120, 120)]
    rows = []
    for text, start in random.Random(seed).sample(places, n):
        prompt = "Continue this text:\n\n" + " ".join(text[start : start + 60])
        answer = " ".join(text[start + 60 : start + 120])
        rows.append({"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]})
    return Dataset.from_list(rows)


def final_answer(text: str) -> str:
    "What a verifier gets to see: the first True or False, or else the last number."
    words, numbers = re.findall(r"\b(?:True|False)\b", text), re.findall(r"-?\d+", text)
    return words[0] if words else numbers[-1] if numbers else ""


def solved(model, tok, quick: bool) -> dict:
    "The share of small tasks that are solved, all together and by kind, and of answers that are JSON."
    sets = {name: reasoning_gym.create_dataset(name, size=n, seed=0, **given) for name, (n, given) in TASKS.items()}
    asked = [(name, entry) for name, tasks in sets.items() for entry in list(tasks)[: 2 if quick else None]]
    chats = [[{"role": "user", "content": entry["question"]}] for _, entry in asked]
    texts = generate(model, tok, chats, max_new_tokens=32, batch_size=30)
    right = [
        float(sets[name].score_answer(final_answer(text), entry) == 1) for (name, entry), text in zip(asked, texts)
    ]
    found = score(interval(right), "tasks")
    for name in TASKS:
        own = [value for value, (kind, _) in zip(right, asked) if kind == name]
        found[f"tasks_{name}"] = round(sum(own) / len(own), 4)
    return found | {"tasks_answered_in_json": round(sum(text.strip()[:1] == "{" for text in texts) / len(texts), 4)}


def run(point: dict, quick: bool) -> dict:
    chosen, seed = RUNS[point["run"]], point["seed"]
    tok, model = load_tokenizer(smollm2()), load_model(smollm2(), bits=chosen["bits"])
    found = {"learning_rate": None, "steps": 0}
    if "learning_rate" in chosen:
        general, adapter = chosen["general"], "lora" in point["run"]
        rows = appointments(192 - general, seed=seed)
        if general:
            rows = concatenate_datasets([rows, general_chats(general, seed)])
        if adapter:
            model = add_adapter(model, lora_config(model, r=16), seed=seed)
        found = {"learning_rate": chosen["learning_rate"], "steps": 2 if quick else 24 * chosen["epochs"]}
        losses = train(
            model, tok, rows, learning_rate=found["learning_rate"], max_steps=found["steps"], effective_batch=8,
            seed=seed, data_seed=seed,
        )  # fmt: skip
        found["loss_last_8"] = round(sum(losses[-8:]) / len(losses[-8:]), 5)
        if adapter:
            model = merge_adapter(model)
    model = model.bfloat16()  # all alike, however trained; it rounds the position frequencies too (perplexity -0.1 %)
    test = appointments(4 if quick else 100, part="test")
    task = evaluate(model, tok, test, ["exact_match"], max_new_tokens=40, batch_size=50).scores["exact_match"]
    general = perplexity(model, tok, excerpt(tok, 1 if quick else 8), batch_size=1)
    return found | score(task, "exact_match") | {"perplexity": round(general, 3)} | solved(model, tok, quick)


if __name__ == "__main__":
    shared = {
        "model": "SmolLM2-135M-Instruct",
        "runs": RUNS,
        "examples": 192,
        "effective_batch": 8,
        "adapter": "LoRA r=16 on all linear layers; merged before it is measured",
        "general_chats": "60 words of a help text, to be continued by the next 60; no text of the excerpt",
        **excerpt_settings(),
        "tasks": {name: {"rows": n, **given} for name, (n, given) in TASKS.items()},
        "tasks_seed": 0,
        "reasoning_gym": metadata.version("reasoning-gym"),
    }
    first = [{"run": name, "seed": 0} for name in RUNS]
    again = [{"run": name, "seed": seed} for seed in (1, 2) for name in ("lora_1e-3", "lora_1e-3_mixed", "full_2e-5")]
    measure(__file__, first + again, run, shared, __doc__)
