"Roles, turns, repetition, samples, blocks, questions: faults are named, rows in order are not"

import random

import numpy as np
import pytest

from ft_notebooks.course.example_task import appointments
from ft_notebooks.instruments.evidence import ALPHA, answers_change, held_out_rows
from ft_notebooks.instruments.forms import questions_to_the_user
from ft_notebooks.instruments.repetition import repeated_text, unshown_systems
from ft_notebooks.instruments.texts import Texts
from ft_notebooks.instruments.turns import exchanged_roles, second_heap, turn_order

INSTRUMENTS = [exchanged_roles, turn_order, repeated_text, unshown_systems, answers_change, questions_to_the_user]
BAD = set(range(0, 150, 12))


def notes(n=150):
    return [row["messages"] for row in appointments(n)]


def said(*texts, system=None):
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}] * bool(system) + turns


def tickets(n=150):
    draw = random.Random(1)
    things = "lamp kettle chair mirror camera".split()
    about = {
        "billing": "I was charged twice for the {}",
        "shipping": "Where is my {}?",
        "broken": "My {} does not work",
    }
    labels = [draw.choice(list(about)) for _ in range(n)]
    return [said(about[label].format(draw.choice(things)) + f" ({draw.random():.3f})", label) for label in labels]


def code(n=150):
    draw = random.Random(2)
    names = [f"{draw.choice(['sort', 'count', 'find'])}_{i}" for i in range(n)]
    return [said(f"Write {name}(x), plus {i}.", f"def {name}(x):\n    return x + {i}") for i, name in enumerate(names)]


def talks(n=150):
    draw = random.Random(3)
    found = []
    for i in range(n):
        thing = draw.choice(["lamp", "kettle", "chair"])
        end = draw.choice(["Thanks, bye!", "And the price?", "It works now."])
        found.append(
            said(f"Hi, my {thing} {i} is lost.", f"Which {thing}?", f"Number {i}. {end}", f"Done: {thing} {i}.")
        )
    return found


def changed(chats, rows, change):
    return Texts(
        [[*chat[:-1], {**chat[-1], "content": change(chat)}] if i in rows else chat for i, chat in enumerate(chats)]
    )


@pytest.mark.parametrize("kind", [notes, tickets, code, talks])
@pytest.mark.parametrize("find", INSTRUMENTS)
def test_rows_in_order_raise_nothing(kind, find):
    assert find(Texts(kind())) == []


@pytest.mark.parametrize("kind", [notes, tickets, code, talks])
def test_a_random_split_raises_nothing(kind):
    assert held_out_rows(Texts(kind()), random.Random(0).sample(range(150), 30)) == []


@pytest.mark.parametrize("kind", [notes, tickets, code])
def test_exchanged_question_and_answer_are_found(kind):
    chats = kind()
    for i in BAD:
        first, last = chats[i][-2:]
        chats[i] = [*chats[i][:-2], {**first, "content": last["content"]}, {**last, "content": first["content"]}]
    (found,) = exchanged_roles(Texts(chats))
    assert set(found.rows) == BAD and found.level == "warning" and found.chance < ALPHA


def test_the_newest_turn_first_is_found_in_some_talks_and_in_all():
    chats = talks()
    some = [chat[2:] + chat[:2] if i in BAD else chat for i, chat in enumerate(chats)]
    assert set(turn_order(Texts(some))[0].rows) == BAD
    assert len(turn_order(Texts([chat[2:] + chat[:2] for chat in chats]))[0].rows) > 75


def test_a_filled_down_answer_is_found_and_sorted_labels_are_not():
    chats = notes()
    (found,) = repeated_text(changed(chats, range(50, 56), lambda chat: chats[50][-1]["content"]))
    assert found.rows == list(range(50, 56))
    assert repeated_text(Texts(sorted(tickets(), key=lambda chat: chat[-1]["content"]))) == []


def test_labels_in_half_of_a_file_are_not_filled_down():
    for seed in range(5):
        draw = random.Random(seed)
        labels = [said(f"Which of two? {i}", draw.choice(["left", "left", "left", "right"])) for i in range(300)]
        assert repeated_text(Texts(notes(700) + labels)) == []


def test_a_system_message_that_no_row_follows_is_found():
    chats = notes()
    other = range(5, 150, 12)
    for i in other:
        chats[i] = [{"role": "system", "content": "You are a pirate."}, *chats[i][1:]]
    assert unshown_systems(Texts(chats))[0].rows == list(other)


def cut(chat):
    return chat[-1]["content"].rstrip('"}')


def test_held_out_rows_of_another_form_and_a_block_of_it_are_found():
    held = random.Random(0).sample(range(150), 30)
    (found,) = held_out_rows(changed(notes(), held, cut), held)
    assert found.level == "warning" and set(found.rows) == set(held)
    (block,) = answers_change(changed(notes(), range(60, 90), cut))
    assert len(set(block.rows) & set(range(60, 90))) > 0.6 * len(block.rows)


def test_a_property_of_all_answers_is_a_question_unless_it_is_asked_for():
    chats = [said(f"Where is Omar's chair {i}?", f"The chair {i} of Omar stands in room {7 * i}.") for i in range(60)]
    lower = changed(chats, range(60), lambda chat: chat[-1]["content"].lower()).chats
    assert "all-lower-case" in [question.code for question in questions_to_the_user(Texts(lower))]
    asked = [[{"role": "system", "content": "Use lower case."}, *chat] for chat in lower]
    assert questions_to_the_user(Texts(asked)) == []


def test_one_heap_is_seldom_called_two():
    draw = np.random.default_rng(1)
    for middle in (0, 0.5, 1, 2, 4):
        chances = np.array([second_heap(draw.normal(middle, 2, 80))[1] for _ in range(300)])
        assert np.mean(chances < 0.05) <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5


def test_shuffled_answers_change_nowhere():
    alarms = [bool(answers_change(Texts(random.Random(i).sample(code(80), 80)))) for i in range(5)]
    assert sum(alarms) <= 1


STRANGE = {
    "no row": [],
    "one row": [said("a", "b")],
    "equal rows": [said("a", "b")] * 70,
    "empty texts": [said("", "")] * 70,
    "surrogates": [said(f"\ud800{i}", "\u202e\x00 \U0001f600") for i in range(70)],
    "long texts": [said("a " * 9_000 + str(i), "b " * 9_000 + str(i)) for i in range(30)],
    "no question": [said("", f"answer {i}")[1:] for i in range(70)],
    "talks without text": [said("", "", "", "")] * 70,
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_rows_do_no_harm(name):
    for find in INSTRUMENTS:
        find(Texts(STRANGE[name]))
    held_out_rows(Texts(STRANGE[name]), range(0, 70, 3))
