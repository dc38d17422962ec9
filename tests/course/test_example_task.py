"The example task: which notes there are, and that they are the same everywhere."

import random
import re

import pytest

from ft_notebooks.course import example_task
from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.read import read_chats


def test_appointments_disturb_nobody_elses_random_numbers():
    random.seed(0)
    expected = random.random()
    random.seed(0)
    appointments(10, seed=7)
    assert random.random() == expected


def test_appointments_are_what_read_chats_reads():
    notes = appointments(30, part="validation", new_phrases=True)
    again = read_chats(notes)
    assert again[:] == notes[:] and again.features == notes.features


def test_the_parts_are_as_large_as_promised_and_their_words_differ():
    sizes = {
        part: (len(example_task._ACTIVITIES[part].split("|")), len(example_task._NAMES[part].split("|")))
        for part in example_task._NAMES
    }
    assert sizes["train"] >= (24, 24) and sizes["validation"] >= (10, 10) and sizes["test"] >= (10, 10)
    assert [len(example_task._PHRASES[part]) for part in ("train", "validation", "test")] == [16, 6, 6]
    for lists in (example_task._ACTIVITIES, example_task._NAMES):
        every = [entry for part in lists.values() for entry in part.split("|")]
        assert len(every) == len(set(every))
    assert all(
        re.findall(r"{(\w+)}", phrase).count(key) == 1
        for part in example_task._PHRASES.values() for phrase in part for key in ("event", "day", "time")
    )  # fmt: skip


def test_all_the_notes_that_there_are_can_be_had_and_all_differ(monkeypatch):
    monkeypatch.setattr(example_task, "_TIMES", ("09:00",))
    monkeypatch.setattr(example_task, "_DAYS", ("Monday", "Sunday"))
    monkeypatch.setattr(example_task, "_NAMES", {part: "Ann|Bo|Cy" for part in example_task._NAMES})
    for part, new, total in (("train", False, 108 * 3 * 2 * 16), ("test", True, 30 * 3 * 2 * 6)):
        notes = {row[1]["content"] for row in appointments(total, part=part, new_phrases=new)["messages"]}
        assert len(notes) == total
        with pytest.raises(ValueError, match=f"between 1 and {total}, the number of different notes, got {total + 1}"):
            appointments(total + 1, part=part, new_phrases=new)


@pytest.mark.parametrize(
    "args, words",
    [
        (dict(n=0), "n must be between 1 and"),
        (dict(n=1, part="dev"), r"part must be one of \['train', 'validation', 'test'\], got 'dev'"),
        (dict(n=1, new_phrases=True), 'needs part="validation" or part="test"'),
    ],
)
def test_appointments_refuse_what_cannot_be(args, words):
    with pytest.raises(ValueError, match=words):
        appointments(**args)
