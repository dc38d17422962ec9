"Replies to answers and guesses: right, a slip, hint after hint, and what a restart or a full disk changes."

import subprocess
import sys
import types

import pytest

from ft_notebooks.exercises import replies


def even(answer):
    yield answer() % 2, "It is odd."


PLANTED = {
    "7.1": {"answer": {"A", "B"}, "slips": [({"B"}, "That is the first step.")], "hints": ["one", "two", "three"]},
    "7.2": {"answer": 0.47, "within": 0.01, "hints": ["one", "two", "three"]},
    "7.3": {"faults": even, "hints": ["one", "two", "three"]},
    "7.4": {"faults": lambda answer: [], "keys": ("r", "bytes"), "hints": ["one", "two", "three"]},
}


EXERCISES_OF = replies._exercises


@pytest.fixture(autouse=True)
def planted(monkeypatch, tmp_path):
    monkeypatch.setenv("FT_TRIES", str(tmp_path / "cache" / "tries.json"))
    monkeypatch.setattr(replies, "_IN_MEMORY", {})
    monkeypatch.setattr(replies, "_exercises", lambda exercise: PLANTED)


def test_a_right_answer_is_right_in_any_order_and_case_and_within_its_share():
    assert replies.check("7.1", {"b", "A"})
    assert str(replies.check("7.1", {"A", "B"})) == "✓ 7.1 is right, at the first try."
    assert replies.check("7.2", 0.474) and not replies.check("7.2", 0.48)


@pytest.mark.parametrize("answer", [None, ...])
def test_without_an_answer_nothing_is_counted(answer):
    reply = replies.check("7.1", answer)
    assert not reply and str(reply) == "7.1 waits for your answer." == reply._repr_markdown_()
    assert str(replies.check("7.1", {"A"})).startswith("✗ 7.1, try 1: not yet. *Hint:* one")


def test_each_new_wrong_answer_gives_the_next_hint_and_a_slip_its_sentence():
    told = [str(replies.check("7.1", wrong)) for wrong in ({"A"}, {"a"}, {"B"}, {"C"}, {"D"})]
    assert [text.rpartition(" ")[2] for text in told] == ["one", "one", "two", "three", "three"]
    assert told[2] == "✗ 7.1, try 2: not yet. That is the first step. *Hint:* two"
    assert str(replies.check("7.1", {"A", "B"})) == "✓ 7.1 is right, at try 5."
    assert not any("A" in text and "B" in text for text in told)


def test_the_reader_s_code_that_stops_is_told_its_error():
    def broken():
        raise KeyError("loss")

    assert str(replies.check("7.3", broken)) == "✗ 7.3, try 1: not yet. It stops with KeyError: 'loss'. *Hint:* one"
    assert str(replies.check("7.3", lambda: 3)) == "✗ 7.3, try 2: not yet. It is odd. *Hint:* two"
    assert replies.check("7.3", lambda: 4)


def test_what_a_dict_lacks_is_told_before_the_rule_looks_at_it():
    told = [str(replies.check("7.4", wrong)) for wrong in ({"r": 16}, 7)]
    assert told[0] == "✗ 7.4, try 1: not yet. Your dict has no bytes. *Hint:* one"
    assert "Your dict has no r, bytes." in told[1] and replies.check("7.4", {"r": 16, "bytes": 9})


def test_the_same_function_written_again_is_the_same_try_in_another_process_too():
    code = "from ft_notebooks.exercises import replies; replies._exercises = lambda e: {'7.3': {"
    code += "'faults': lambda f: [(True, 'no')], 'hints': ['one', 'two']}}; "
    code += "print(replies.check('7.3', lambda: [x for x in range(3)]))"
    told = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)]
    assert told == ["✗ 7.3, try 1: not yet. no *Hint:* one\n"] * 2


def test_the_count_survives_a_restart(monkeypatch):
    replies.check("7.2", 1)
    monkeypatch.setattr(replies, "_IN_MEMORY", {})
    assert str(replies.check("7.2", 2)).endswith("two")


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_a_broken_file_of_counts_starts_anew(content, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "tries.json").write_text(content)
    assert str(replies.check("7.2", 1)).endswith("one") and str(replies.check("7.2", 2)).endswith("two")


def test_where_the_file_cannot_be_written_the_count_is_kept_in_memory(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FT_TRIES", str(tmp_path / "file" / "tries.json"))  # a folder that cannot be made
    assert str(replies.check("7.2", 1)).endswith("one") and str(replies.check("7.2", 2)).endswith("two")


def test_an_exercise_that_is_not_there_names_those_that_are():
    with pytest.raises(ValueError, match="there is no exercise '7.9'; there are 7.1, 7.2, 7.3, 7.4"):
        replies.check("7.9", 1)


@pytest.fixture
def lesson_07(monkeypatch, tmp_path):
    "A lesson's module, which is all that is there."
    module = types.ModuleType("ft_notebooks.exercises.lesson_07")
    module.EXERCISES = PLANTED
    (tmp_path / "lesson_07.py").write_text("")
    monkeypatch.setattr(replies, "_exercises", EXERCISES_OF)
    monkeypatch.setattr(replies, "files", lambda package: tmp_path)
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_a_lesson_s_module_is_found_by_its_number(lesson_07):
    assert replies.check("7.1", {"A", "B"})
    for exercise in ("8.1", "seven", 8.1):
        with pytest.raises(ValueError, match="these lessons have exercises: 7$"):
            replies.check(exercise, 1)


@pytest.mark.parametrize(
    "guess, result, told",
    [
        (33_792, 884_736, "You guessed 33,792. It is 884,736."),
        (None, 884_736, "No guess yet.\n\nIt is 884,736."),
        (884_736, 884_736.0, "You guessed 884,736, and you are right."),
        (0.47, 0.46995, "You guessed 0.47, and you are right."),
        ("b", {"B"}, "You guessed B, and you are right."),
        ({"W", "A"}, {"B"}, "You guessed A, W. It is B."),
        (False, True, "You guessed False. It is True."),
    ],
)
def test_a_guess_is_put_beside_the_result(guess, result, told):
    reply = replies.compare_guess(guess, result)
    assert str(reply) == told == reply._repr_markdown_() and bool(reply) == ("right" in told)
