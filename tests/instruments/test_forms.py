"A minority of another form is named; what the prompt asks for, chance and strange texts are not."

import json

import numpy as np
import pytest

from ft_notebooks.course.example_task import appointments
from ft_notebooks.instruments.forms import shape, unusual_forms
from ft_notebooks.instruments.texts import Texts


def notes(n=300, seed=0):
    return list(appointments(n, seed=seed)["messages"])


def drawn(n, count, seed=0):
    return np.random.default_rng(seed).choice(n, count, replace=False).tolist()


def spoiled(chats, rows, change, asked=""):
    out = list(chats)
    for row in rows:
        *before, user, answer = chats[row]
        question = {**user, "content": user["content"] + asked}
        out[row] = [*before, question, {**answer, "content": change(answer["content"])}]
    return out


def with_key(answer, old, new):
    return json.dumps({new if key == old else key: value for key, value in json.loads(answer).items()})


CHANGES = {
    "prose": lambda answer: "; ".join(f"{key} {value}" for key, value in json.loads(answer).items()),
    "renamed key": lambda answer: with_key(answer, "time", "at"),
    "dropped key": lambda answer: json.dumps({**dict(list(json.loads(answer).items())[:2])}),
    "other time": lambda answer: json.dumps({**json.loads(answer), "time": "9:30 am"}),
    "indented": lambda answer: json.dumps(json.loads(answer), indent=2),
    "trailing newline": lambda answer: answer + "\n",
    "a time before": lambda answer: "09:15 " + answer,
    "Cyrillic letters": lambda answer: answer.replace("e", "е"),
    "speaker": lambda answer: "Assistant: " + answer,
}


@pytest.mark.parametrize(("change", "count"), [*((name, 12) for name in CHANGES), ("prose", 90)])
def test_the_answers_of_another_form_are_named(change, count):
    bad = drawn(300, count)
    [found] = unusual_forms(Texts(spoiled(notes(), bad, CHANGES[change])))
    assert set(found.rows) == set(bad) and found.level == "note" and not set(found.usual) & set(bad)
    assert f"{count} of 300 answers" in found.message and set(found.marks) == set(bad)


def test_two_forms_are_one_note_with_three_rows_of_each():
    fenced, spoken = np.split(np.array(drawn(300, 40)), 2)
    chats = spoiled(spoiled(notes(), fenced, lambda text: f"```\n{text}\n```"), spoken, lambda text: f"It is {text}")
    [found] = unusual_forms(Texts(chats))
    assert set(found.rows) == {*fenced.tolist(), *spoken.tolist()} and found.message.count("(rows ") >= 2


def test_a_form_that_the_prompt_asks_for_is_none():
    chats = spoiled(notes(), drawn(300, 40), lambda text: f"```\n{text}\n```", asked=" In a fence, please.")
    assert unusual_forms(Texts(chats)) == []


def test_half_of_the_answers_in_each_of_two_forms_are_named_as_one_form():
    bad = drawn(300, 150)
    [found] = unusual_forms(Texts(spoiled(notes(), bad, lambda text: json.dumps(json.loads(text), indent=2))))
    assert set(found.rows) == set(bad) or not set(found.rows) & set(bad)


def test_a_single_accident_of_wording_is_no_form():
    bad = drawn(300, 40)
    chats = [[user, {**answer, "content": "It is noted."}] for _, user, answer in notes()]
    assert unusual_forms(Texts(spoiled(chats, bad, lambda text: "It is noted!"))) == []


def test_files_in_order_are_silent():
    assert not any(unusual_forms(Texts(notes(150, seed))) for seed in range(4))  # chance of a failure: 4 ALPHA


STRANGE = [
    "",
    " ",
    "\x00",
    "é" * 20_000,
    "\ud83d",
    "{" * 3_000,
    '{"a": ' * 500,
    "a\n" * 5_000,
    "日本語。" * 50,
    "[1, 2]",
    '{"": null}',
    "```",
]


def test_any_text_has_a_shape_and_any_file_is_read():
    assert all(isinstance(mark, str) for text in STRANGE for mark in shape(text).values())
    chats = [[{"role": "user", "content": text}, {"role": "assistant", "content": text}] for text in STRANGE]
    for rows in (chats, chats[:1], [], chats * 5, chats[:1] * 100):
        unusual_forms(Texts(rows))


@pytest.mark.parametrize("text", [" " * 800 + "x", "\n" * 1_000 + "x", "x" + " " * 1_000 + "y", "\u3000" * 1_000 + "x"])
def test_white_space_is_read_at_once(text):
    assert not any(name in shape(text) for name in ("say everything twice", "show a list"))


def test_what_is_said_twice():
    said = "It is noted."
    for text in (said + said, f" {said}\n\n{said} ", f"{said}   {said}"):
        assert shape(text)["say everything twice"] == said
    assert not any("say everything twice" in shape(text) for text in (said, said + said + said, "ha ha", ""))
