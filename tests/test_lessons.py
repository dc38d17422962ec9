"The form of the course: what a reader may rely on in every lesson of nbs/."

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LESSONS = sorted(ROOT.glob("nbs/[0-9][0-9]_*.ipynb"))
SOLUTIONS = ROOT / "nbs" / "solutions"
HEAD = re.compile(
    r"# \d+ · [^\n]+\n\n> [^\n]+\?[^\n]*\n\n\*\d+ minutes to read, (?:about )?\d+ minutes? to run on two CPU cores[^*]*"
    r"You need [^*]+\. (?:Before: [^*]+\. )?Next: [^*]+\.\*"
)
each_lesson = pytest.mark.parametrize("nb", LESSONS, ids=lambda nb: nb.stem)


def cells(nb, kind=None):
    found = json.loads(nb.read_text(encoding="utf-8"))["cells"]
    return [{**c, "source": "".join(c["source"])} for c in found if kind in (None, c["cell_type"])]


def prose(nb):
    return "\n\n".join(cell["source"] for cell in cells(nb, "markdown"))


def exercises(nb):
    "Number -> the asserts of its empty cell, which are comments."
    found = {}
    for cell in cells(nb, "code"):
        if named := re.match(r"# Exercise (\d)", cell["source"]):
            found[int(named[1])] = re.findall(r"^# (assert .*)$", cell["source"], flags=re.M)
    return found


def test_the_lessons_follow_each_other():
    assert [int(nb.name[:2]) for nb in LESSONS] == list(range(16))


@each_lesson
def test_a_lesson_says_first_what_it_asks_how_long_it_takes_and_what_it_needs(nb):
    head = cells(nb, "markdown")[0]["source"]
    assert HEAD.match(head), head
    assert head.startswith(f"# {int(nb.name[:2])} · ")
    numbers = [int(number) for number in re.findall(r"\]\((\d\d)_\w+\.ipynb\)", head.split("\n\n")[2])]
    there = [int(lesson.name[:2]) for lesson in sorted(ROOT.glob("nbs/[0-9][0-9]_*.ipynb"))]  # some are to come
    here = there.index(int(nb.name[:2]))
    assert numbers == there[max(here - 1, 0) : here] + there[here + 1 : here + 2], numbers


@each_lesson
def test_a_lesson_needs_no_flag_but_a_card_or_the_hub(nb):
    found = {flag for cell in cells(nb, "code") for flag in re.findall(r"^#\s*\|\s*(\w+)", cell["source"], flags=re.M)}
    assert found <= {"default_exp", "export", "hide", "gpu", "hub"}, found


@each_lesson
def test_a_lesson_has_a_drawing_what_to_remember_exercises_and_links_to_the_package(nb):
    text = prose(nb)
    assert any("image/png" in out.get("data", {}) for cell in cells(nb, "code") for out in cell["outputs"])
    for heading in ("## What to remember", "## Exercises", "## Where this lives in the package"):
        assert heading in text, heading
    last = text.partition("## Where this lives in the package")[2]
    assert len(re.findall(r"\]\(package/[\w/]+\.ipynb\)", last)) >= (1 if nb.name.startswith("00") else 3)


@each_lesson
def test_each_exercise_has_a_solution_with_the_same_asserts(nb):
    asked, solution = exercises(nb), SOLUTIONS / nb.name
    assert list(asked) == [1, 2] and all(asked.values()), asked
    assert f"](solutions/{nb.name})" in prose(nb)
    solved = {}
    for cell in cells(solution, "code"):
        if named := re.match(r"# Exercise (\d)", cell["source"]):
            solved[int(named[1])] = re.findall(r"^(assert .*)$", cell["source"], flags=re.M)
    assert solved == asked
