"Faults of preference pairs are found with their rows, pairs in order stay silent, and chance alone alarms rarely."

# ruff: noqa: E501 (the table has a line for each)

import json
import random

import pytest

from ft_notebooks.course.demo_task import demo_pairs
from ft_notebooks.course.example_task import appointments
from ft_notebooks.instruments.pair_features import deciding_feature
from ft_notebooks.instruments.pairs import (
    Pairs,
    answers_elsewhere,
    contradicted_scores,
    contradictory_pairs,
    exchanged_pairs,
    same_answers,
)

INSTRUMENTS = (
    answers_elsewhere,
    contradicted_scores,
    contradictory_pairs,
    deciding_feature,
    exchanged_pairs,
    same_answers,
)


def row(prompt, chosen, rejected, **columns):
    asked = [{"role": "user", "content": prompt}]
    sides = {"chosen": chosen, "rejected": rejected}
    return {"prompt": asked, **columns} | {k: [{"role": "assistant", "content": v}] for k, v in sides.items()}


def wrong_times(n=200):
    draw = random.Random(0)
    found = []
    for messages in appointments(n, seed=1)["messages"]:
        known = json.loads(messages[-1]["content"])
        wrong = known | {"time": f"{draw.randrange(24):02d}:{draw.randrange(4) * 15:02d}"}
        found.append(row(messages[-2]["content"], messages[-1]["content"], json.dumps(wrong)))
    return [one for one in found if one["chosen"] != one["rejected"]]


def sums(n=200):
    draw = random.Random(1)
    found = []
    for _ in range(n):
        a, b, wrong = draw.randrange(100, 999), draw.randrange(100, 999), draw.choice((-10, -1, 1, 10))
        found.append(row(f"Add {a} and {b}.", f"{a} + {b} = {a + b}.", f"{a} + {b} = {a + b + wrong}."))
    return found


def labels(n=200):
    draw = random.Random(2)
    found = []
    for _ in range(n):
        word, right, other = draw.choice(("bill", "refund", "login")), *draw.sample(("billing", "refund", "login"), 2)
        found.append(row(f"Sort into a queue: my {word} number {draw.randrange(10**6)}", right, other))
    return found


def brief(n=200):
    "The shorter answer is preferred."
    found = []
    for messages in appointments(n, seed=3)["messages"]:
        known = json.loads(messages[-1]["content"])
        long = f"This note says that there is {known['event']}, and that it is on {known['day']} at {known['time']}."
        found.append(row(messages[-2]["content"], f"{known['event']}, {known['day']}", long))
    return found


def refusals(n=200):
    "Where the question is harmful the refusal is chosen, and elsewhere it is rejected."
    draw = random.Random(4)
    found = []
    for i in range(n):
        thing = draw.choice(("car", "house", "bike", "phone", "boat", "watch"))
        no = draw.choice(("I will not help with that.", "That would harm somebody, so no."))
        yes = f"First look at the {thing}, then {draw.choice(('take a tool', 'ask a friend', 'wait'))}."
        asked = draw.choice(("steal a", "break a")) if i % 2 else draw.choice(("clean a", "sell a"))
        found.append(row(f"How do I {asked} {thing}?", *((no, yes) if i % 2 else (yes, no))))
    return found


def scored(n=200):
    return [one | {"chosen_score": 4 + i % 3, "rejected_score": 1 + i % 4} for i, one in enumerate(wrong_times(n))]


def ranked(n=200):
    return [one | {"chosen_rank": 1, "rejected_rank": 2, "length_chosen": i % 7, "length_rejected": 3}
            for i, one in enumerate(wrong_times(n))]  # fmt: skip


def two_sources(n=200):
    return [*brief(n // 2), *({**one, "chosen": one["rejected"], "rejected": one["chosen"]} for one in sums(n // 2))]


def key_orders(n=200):
    return demo_pairs(n, 0).to_list()


BENIGN = [wrong_times, sums, labels, brief, refusals, scored, ranked, two_sources, key_orders]


def warnings(rows):
    return [one for look in INSTRUMENTS for one in look(Pairs(rows)) if one.level == "warning"]


@pytest.mark.parametrize("kind", BENIGN, ids=lambda kind: kind.__name__)
def test_pairs_in_order_get_no_warning(kind):
    assert warnings(kind()) == []


def text_of(one, side):
    return one[side][0]["content"]


def changed(side, change):
    return lambda rows, at: [
        {**one, side: [{"role": "assistant", "content": change(text_of(one, side))}]} if i in at else one
        for i, one in enumerate(rows)
    ]


def swapped(rows, at):
    return [{**one, "chosen": one["rejected"], "rejected": one["chosen"]} if i in at else one
            for i, one in enumerate(rows)]  # fmt: skip


def moved(side, lag):
    return lambda rows, at: [
        {**one, side: rows[(i + lag) % len(rows)][side]} if i in at else one for i, one in enumerate(rows)
    ]


def misjudged(rows, at):
    return [one | {"chosen_score": 1, "rejected_score": 5} if i in at else one for i, one in enumerate(rows)]


def some(share, block, n=200):
    count = int(share * n)
    return set(range(60, 60 + count)) if block else set(random.Random(5).sample(range(n), count))


FINDS = {
    "feature-decides": deciding_feature,
    "answer-empty": same_answers,
    "pairs-same": same_answers,
    "scores-contradict": contradicted_scores,
    "answers-elsewhere": answers_elsewhere,
    "pairs-exchanged": exchanged_pairs,
}
FAULTS = [
    ("begun", wrong_times, changed("chosen", lambda text: f"Sure, here it is: {text}"), False, "feature-decides", 0.1),
    ("ended", wrong_times, changed("rejected", lambda text: f"{text} Made by model b."), False, "feature-decides", 0.1),
    ("cut", wrong_times, changed("rejected", lambda text: text[:40]), False, "feature-decides", 0.1),
    ("shouted", wrong_times, changed("rejected", str.upper), False, "feature-decides", 0.1),
    ("refused", sums, changed("rejected", lambda text: "I cannot say."), False, "feature-decides", 0.1),
    ("emptied", sums, changed("rejected", lambda text: ""), False, "answer-empty", 0.04),
    ("spaced", key_orders, lambda rows, at: [
        one | {"rejected": [{"role": "assistant", "content": text_of(one, "chosen") + " "}]} if i in at else one
        for i, one in enumerate(rows)], False, "pairs-same", 0.04),
    ("scores", scored, misjudged, False, "scores-contradict", 0.1),
    ("rejected moved", wrong_times, moved("rejected", 7), True, "answers-elsewhere", 0.1),
    ("chosen moved", wrong_times, moved("chosen", 1), True, "answers-elsewhere", 0.1),
    ("prompts moved", sums, moved("prompt", 3), True, "answers-elsewhere", 0.1),
    ("exchanged block", key_orders, swapped, True, "pairs-exchanged", 0.1),
    ("exchanged pairs", key_orders, swapped, False, "pairs-exchanged", 0.1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "plant", "block", "code", "least"), [one[1:] for one in FAULTS], ids=[one[0] for one in FAULTS]
)
def test_a_fault_is_found_and_its_rows_are_named(kind, plant, block, code, least):
    for share in (0.5, least):
        rows = kind()
        bad = {i for i in some(share, block) if i < len(rows)}
        found = [one for one in FINDS[code](Pairs(plant(rows, bad))) if one.code == code]
        if share == 0.5 and code == "pairs-exchanged" and not block:
            assert not found  # half of the pairs, scattered: no side is the usual one
            continue
        right = [one for one in found if len({*one.rows} & bad) >= 0.6 * len(one.rows)]
        assert right and max(len({*one.rows} & bad) for one in right) > 0.3 * len(bad), (share, found)


def test_exchanged_pairs_of_another_kind_of_prompt_are_a_note():
    [found] = exchanged_pairs(Pairs(two_sources()))
    assert found.level == "note" and "their prompts are of another kind" in found.message


def test_a_ring_of_three_answers_contradicts_and_an_order_does_not():
    chain = [row("q", "a", "b"), row("q", "b", "c"), row("q", "a", "c"), row("other", "c", "a")]
    assert contradictory_pairs(Pairs(chain)) == []
    [ring] = contradictory_pairs(Pairs([*chain, row("q", "c", "a")], numbers=[10, 20, 30, 40, 50]))
    assert {*ring.rows} == {10, 20, 30, 50}


def test_by_chance_alone_hardly_a_file_has_an_alarm():
    "Each pair's sides are drawn: neither is favored, so that what is said is a false alarm (0.002 for an instrument)."
    draw = random.Random(6)
    words = "note day time room call lunch tax dentist school garden train boat".split()
    alarms = 0
    for _ in range(20):
        rows = [row(*(" ".join(draw.choices(words, k=draw.randrange(3, 9))) for _ in range(3))) for _ in range(60)]
        alarms += sum(len(look(Pairs(rows))) for look in (answers_elsewhere, deciding_feature, exchanged_pairs))
    assert alarms <= 1


@pytest.mark.parametrize("texts", [("", "", ""), ("é\u0000\u200b🙂", "日本", "اب"), ("a", "x " * 3_000, "y " * 3_000)])
@pytest.mark.parametrize("n", [1, 50])
def test_odd_texts_raise_nothing(texts, n):
    for look in INSTRUMENTS:
        look(Pairs([row(*texts, score_chosen="nan", score_rejected=None)] * n))
    assert all(look(Pairs([])) == [] for look in INSTRUMENTS)
