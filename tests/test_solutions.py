"An exercise can be failed: without an answer it is not right, and its solution makes it right."

import importlib
import json
import re
from pathlib import Path

import pytest
from notebook_runs import check_run, imported  # noqa: F401

from ft_notebooks.exercises import check

pytestmark = pytest.mark.whole

ROOT = Path(__file__).resolve().parents[1]
SOLUTIONS = sorted((ROOT / "nbs" / "solutions").glob("[0-9]*.ipynb"))


def code(notebook):
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def number(source):  # of the exercise, or None
    named = re.match(r"# Exercise (\d)", source)
    return named and named[1]


def is_red(source, names):
    try:
        exec(source, dict(names))
    except (AssertionError, TypeError, ValueError, AttributeError):  # what an answer of None leads to
        return True
    return False


SECOND = [nb for nb in SOLUTIONS if "ft_notebooks.exercises" in "".join(code(nb))]  # which end in `check`


@pytest.mark.parametrize("solution", SECOND, ids=lambda nb: nb.stem)
def test_the_solutions_of_a_lesson_run(solution, imported, real_model, tmp_path, monkeypatch, record_property):  # noqa: F811
    if real_model is None and re.search("smollm2|course_stage", "".join(code(solution))):
        pytest.skip("needs the real model")
    check_run(solution, real_model, tmp_path, monkeypatch, record_property)


@pytest.mark.parametrize("solution", SECOND, ids=lambda nb: nb.stem)
def test_without_an_answer_an_exercise_is_not_right(solution):
    for name in importlib.import_module(f"ft_notebooks.exercises.lesson_{solution.name[:2]}").EXERCISES:
        reply = check(name, None)
        assert not reply and str(reply) == f"{name} waits for your answer."


@pytest.mark.parametrize("solution", [nb for nb in SOLUTIONS if nb not in SECOND], ids=lambda nb: nb.stem)
def test_an_exercise_is_red_without_its_solution_and_green_with_it(solution, real_model):
    if real_model is None and "smollm2" in "".join(code(solution)):
        pytest.skip("needs the real model")
    empty = {number(source): source for source in code(ROOT / "nbs" / solution.name) if number(source)}
    assert empty
    names = {}
    for source in code(solution):
        exec(source, names)  # the setup, or a solution with its asserts, which must hold
        if asked := empty.pop(number(source), None):
            red = re.sub(r"^# (assert )", r"\1", asked, flags=re.M)
            assert red != asked and is_red(red, names), f"the asserts of this cell hold without an answer:\n{red}"
    assert not empty, f"without a solution: {[*empty]}"


def test_the_check_sees_an_exercise_whose_asserts_always_hold():
    assert is_red("answer = None\nassert answer == 3", {}) and not is_red("answer = None\nassert True", {})
    with pytest.raises(NameError):  # a cell that fails for another reason proves nothing
        is_red("answer = None\nassert answer == nowhere", {})
