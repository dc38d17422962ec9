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


@pytest.mark.parametrize("solution", SOLUTIONS, ids=lambda nb: nb.stem)
def test_the_solutions_of_a_lesson_run(solution, imported, real_model, tmp_path, monkeypatch, record_property):  # noqa: F811
    if real_model is None and re.search("smollm2|course_stage", "".join(code(solution))):
        pytest.skip("needs the real model")
    check_run(solution, real_model, tmp_path, monkeypatch, record_property)


@pytest.mark.parametrize("solution", SOLUTIONS, ids=lambda nb: nb.stem)
def test_without_an_answer_an_exercise_is_not_right(solution):
    for name in importlib.import_module(f"ft_notebooks.exercises.lesson_{solution.name[:2]}").EXERCISES:
        reply = check(name, None)
        assert not reply and str(reply) == f"{name} waits for your answer."
