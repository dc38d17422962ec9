"A property of settings, labels, pairs and rewards: a run that breaks it, and its neighbour that does not."

import functools
import random
import re

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq

from ft_notebooks.course.demo_task import demo_pairs
from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.doctor.context import Context
from ft_notebooks.doctor.diagnosis import checks
from ft_notebooks.doctor.probe import probe_run
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.rlhf.rewards import reward_functions

# ruff: noqa: E501 (the tables have a line for each)

NOTES, TOK = appointments(60), tiny_tokenizer()
CHECKS = {one.code: one for one in checks()}


def levels(code, rows=NOTES, held=None, stage="sft", model=None, rewards=None, lora={}, data={}, **given):
    "The levels of what one check finds."
    rows = Dataset.from_list(rows) if isinstance(rows, list) else rows
    pairs = {"prompt", "chosen", "rejected"} & {*rows.column_names}
    whole = rows.select_columns(sorted(pairs)) if len(pairs) == 3 else rows
    kept = (
        tiny_model()
        if model is None
        else model()
        if callable(model) and not isinstance(model, torch.nn.Module)
        else model
    )
    load = {
        "whole": lambda: whole,
        "name": lambda: None,
        "model": lambda: kept,
        "tok": lambda: TOK,
        "parts": lambda: (whole, held),
    }
    if rewards is not None:
        load["rewards"] = lambda: {one.__name__: one.score for one in reward_functions(rewards, kept, TOK)}
    run = Context(stage, {stage: given, "lora": lora, "data": data}, load, rows)
    load["probed"] = lambda: probe_run(run)
    return [found.level for found in CHECKS[code].findings(run)]


def adapted(**config):
    return functools.partial(lambda: add_adapter(tiny_model(), lora_config(tiny_model(), **config)))


BATCH = {"effective_batch": 4}
CPU = {"use_cpu": True, "bf16": False, "fp16": False, "learning_rate": 1e-2}
SETTINGS = [  # code, what breaks it, its level, what does not
    ("rows-never-seen", {"max_steps": 5, "num_train_epochs": 2, **BATCH}, "warning", {"max_steps": 30, "num_train_epochs": 2, **BATCH}),
    ("rows-never-seen", {"max_steps": 5, **BATCH}, "note", {"num_train_epochs": 0.5, **BATCH}),
    ("rows-never-seen", {"max_steps": 1000, **BATCH}, "warning", {"max_steps": 100, **BATCH}),
    ("rate-never-reached", {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 20}, **BATCH}, "warning", {"lr_scheduler_type": "cosine", **BATCH}),
    ("setting-extreme", {"lora": {"lora_dropout": 0.4}}, "warning", {"lora": {"lora_dropout": 0.1}}),
    ("setting-extreme", {"stage": "dpo", "beta": 3}, "warning", {"stage": "dpo", "beta": 1}),
    ("setting-extreme", {"stage": "grpo", "beta": 2}, "warning", {"stage": "dpo", "beta": 2}),
    ("rows-never-seen", {"effective_batch": 61}, "note", {"effective_batch": 30}),
    ("rows-never-seen", {"rows": NOTES.select(range(12))}, "note", {"rows": NOTES.select(range(32))}),
    ("setting-extreme", {"packing": True, "packing_strategy": "wrapped"}, "warning", {"packing": True, "packing_strategy": "bfd"}),
    ("setting-extreme", {"train_sampling_strategy": "sequential"}, "note", {"train_sampling_strategy": "random"}),
]  # fmt: skip


def whole_table(code, broken, level, benign):
    assert levels(code, **broken) == [level] and levels(code, **benign) == []


@pytest.mark.parametrize(
    ("code", "broken", "level", "benign"), SETTINGS, ids=lambda one: one if isinstance(one, str) else ""
)
def test_a_setting_is_found_and_its_neighbour_is_not(code, broken, level, benign):
    whole_table(code, broken, level, benign)


ENCODED = encode_chats(TOK, NOTES)[0].to_list()
OPEN = TOK("<|im_start|>assistant\n").input_ids


def encoded(change):
    return Dataset.from_list(
        [dict(zip(("input_ids", "labels"), change(row["input_ids"], row["labels"]))) for row in ENCODED]
    )


def late(tokens):
    "Rows whose first labels are missing."

    def change(ids, labels):
        first = next(n for n, label in enumerate(labels) if label != -100)
        return ids, [-100 if n < first + tokens else label for n, label in enumerate(labels)]

    return encoded(change)


def whole_labels(rows):
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)
    return {"input_ids": ids, "labels": ids}


RIGHT = encoded(lambda ids, labels: (ids, labels))
ALL = encoded(lambda ids, labels: (ids, ids))
LABELS = [
    ("labels-differ", {"rows": encoded(lambda ids, labels: (ids + OPEN, labels + OPEN))}, "warning", {"rows": encoded(lambda ids, labels: (ids + OPEN, labels + [-100] * len(OPEN)))}),
    ("labels-differ", {"rows": late(25)}, "warning", {"rows": RIGHT}),
    ("labels-differ", {"rows": encoded(lambda ids, labels: (ids, [-100 if label != -100 else i for i, label in zip(ids, labels)]))}, "error", {"rows": RIGHT}),
    ("labels-differ", {"rows": encoded(lambda ids, labels: (ids[:-9], labels[:-9]))}, "error", {"rows": RIGHT}),
    ("labels-differ", {"rows": RIGHT, "data_collator": whole_labels}, "error", {"rows": RIGHT, "data_collator": DataCollatorForSeq2Seq(TOK, label_pad_token_id=-100)}),
    ("labels-differ", {"rows": RIGHT, "held": ALL}, "warning", {"rows": RIGHT, "held": RIGHT}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "broken", "level", "benign"), LABELS, ids=lambda one: one if isinstance(one, str) else ""
)
def test_a_label_is_found_and_its_neighbour_is_not(code, broken, level, benign):
    whole_table(code, broken, level, benign)


ORDERS = demo_pairs(60, 0).to_list()  # the same answer with its keys in two orders
PAIRS = [
    {**row, "rejected": [{"role": "assistant", "content": re.sub(r"\d\d:\d\d", f"{n % 24:02d}:11", row["chosen"][-1]["content"])}]}
    for n, row in enumerate(ORDERS)
]  # fmt: skip


def pairs(chosen=None, rejected=None, share=1.0, **columns):
    "The pairs with the texts of a side changed in a share of the rows."
    found = []
    for n, row in enumerate(PAIRS):
        texts = {side: row[side][-1]["content"] for side in ("chosen", "rejected")}
        for side, change in (("chosen", chosen), ("rejected", rejected)):
            if change and n < share * len(PAIRS):
                row = {**row, side: [{"role": "assistant", "content": change(texts, n)}]}
        found.append({**row, **{name: value(n) for name, value in columns.items()}})
    return found


def other_row(step):
    return lambda texts, n: PAIRS[(n + step) % len(PAIRS)]["rejected"][-1]["content"]


SCORES = {"chosen_score": lambda n: 1.0, "rejected_score": lambda n: 2.0}
PREFERENCES = [
    ("feature-decides", {"rows": pairs(chosen=lambda both, n: f"Of course: {both['chosen']}")}, "warning", {"rows": pairs(chosen=lambda both, n: f"Of course: {both['chosen']}", share=0.6)}),
    ("feature-decides", {"rows": pairs(rejected=lambda both, n: "I cannot help with this.")}, "warning", {"rows": pairs(rejected=lambda both, n: "I cannot help with this.", share=0.5)}),
    ("feature-decides", {"rows": pairs(rejected=lambda both, n: both["rejected"].upper())}, "warning", {"rows": ORDERS}),
    ("feature-decides", {"rows": pairs(rejected=lambda both, n: both["rejected"][: 30 + n % 7])}, "warning", {"rows": PAIRS}),
    ("pairs-same", {"rows": pairs(rejected=lambda both, n: both["chosen"] + "\n", share=0.2)}, "warning", {"rows": pairs(rejected=lambda both, n: both["chosen"] + "\n", share=0.05)}),
    ("answers-elsewhere", {"rows": pairs(rejected=other_row(11))}, "warning", {"rows": PAIRS}),
    ("scores-contradict", {"rows": pairs(**SCORES)}, "error", {"rows": pairs(**SCORES), "data": {"chosen": "rejected", "rejected": "chosen"}}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "broken", "level", "benign"), PREFERENCES, ids=lambda one: one if isinstance(one, str) else ""
)
def test_pairs_are_found_and_their_neighbours_are_not(code, broken, level, benign):
    assert levels(code, **{"stage": "dpo", **broken})[:1] == [level]
    assert {*levels(code, **{"stage": "dpo", **benign})} <= {"note", "question"}


def near(generated, expected, example):
    return sum(a == b for a, b in zip(generated, expected)) / max(len(generated), len(expected), 1)


def far(generated, expected, example):
    return 1 - near(generated, expected, example)


def within(generated, expected, example):
    return float(generated.strip() in expected)


def length(generated, expected, example):
    return len(generated.split())


def brief(generated, expected, example):
    return -len(generated)


def is_json(generated, expected, example):
    return float(generated.startswith("{") and generated.strip().endswith("}"))


HALF = [row if n % 2 else {"messages": row["messages"][:-1]} for n, row in enumerate(NOTES)]


def drawn(generated, expected, example):
    return random.random()


REWARDS = [
    ("reward-flat", {"rewards": drawn}, "warning", {"rewards": near}),
    ("reward-misleads", {"rewards": far}, "error", {"rewards": near}),
    ("reward-misleads", {"rewards": near, "reward_weights": [-1.0]}, "error", {"rewards": near, "reward_weights": [0.5]}),
    ("reward-misleads", {"rewards": within}, "warning", {"rewards": [within, near], "reward_weights": [0.0, 1.0]}),
    ("reward-misleads", {"rewards": length}, "warning", {"rewards": [near, length], "reward_weights": [1.0, 1e-4]}),
    ("reward-misleads", {"rewards": [near, brief]}, "warning", {"rewards": [near, brief], "reward_weights": [1.0, 1e-3]}),
    ("reward-misleads", {"rewards": is_json}, "warning", {"rewards": [is_json, near]}),
    ("reward-flat", {"rewards": near, "rows": HALF}, "warning", {"rewards": is_json, "rows": HALF}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "broken", "level", "benign"), REWARDS, ids=lambda one: one if isinstance(one, str) else ""
)
def test_a_reward_is_found_and_its_neighbour_is_not(code, broken, level, benign):
    whole_table(code, {"stage": "grpo", **broken}, level, {"stage": "grpo", **benign})
