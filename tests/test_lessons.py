"The form of the course: what a reader may rely on in every lesson of nbs/."

import importlib
import json
import re
from pathlib import Path

import lesson_rules as rules
import pytest

ROOT = Path(__file__).resolve().parents[1]
LESSONS = sorted(ROOT.glob("nbs/[0-9][0-9]_*.ipynb"))
SOLUTIONS = ROOT / "nbs" / "solutions"
HEAD = re.compile(
    r"# \d+ · [^\n]+\n\n> [^\n]+\?[^\n]*\n\n\*\d+ minutes to read, (?:about )?\d+ minutes? to run on two CPU cores[^*]*"
    r"You need [^*]+\. (?:Before: [^*]+\. )?Next: [^*]+\.\*"
)


def cells(nb, kind=None):
    found = json.loads(nb.read_text(encoding="utf-8"))["cells"]
    return [{**c, "source": "".join(c["source"])} for c in found if kind in (None, c["cell_type"])]


each_lesson = pytest.mark.parametrize("nb", LESSONS, ids=lambda nb: nb.stem)


def prose(nb):
    return rules.prose(cells(nb))


def test_the_lessons_follow_each_other():
    assert [int(nb.name[:2]) for nb in LESSONS] == list(range(len(LESSONS)))


@each_lesson
def test_a_lesson_says_first_what_it_asks_how_long_it_takes_and_what_it_needs(nb):
    head = cells(nb, "markdown")[0]["source"]
    assert HEAD.match(head), head
    assert head.startswith(f"# {int(nb.name[:2])} · ")
    here = LESSONS.index(nb)
    beside = LESSONS[max(here - 1, 0) : here] + LESSONS[here + 1 : here + 2]
    linked = re.findall(r"\]\((\d\d_\w+\.ipynb)\)", head.split("\n\n")[2])
    assert linked == [lesson.name for lesson in beside]


@each_lesson
def test_the_lessons_before_and_after_are_called_by_their_titles(nb):
    head = prose(nb).split("\n\n")[2]
    links = re.findall(r"\[(\d+) ([^\]]+)\]\((\d\d_\w+\.ipynb)\)", head)
    assert len(links) == head.count("](")
    for number, title, file in links:
        assert cells(ROOT / "nbs" / file, "markdown")[0]["source"].startswith(f"# {number} · {title}\n")


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
    assert len(re.findall(r"\]\(package/[\w/]+\.ipynb\)", last)) >= 3


@each_lesson
def test_a_lesson_has_the_form_of_the_course(nb):
    assert [*rules.wrong_lesson(cells(nb), nb.name)] == []


@each_lesson
def test_each_exercise_has_hints_that_do_not_give_it_away_and_a_solution(nb):
    number = int(nb.name[:2])
    lesson = importlib.import_module(f"ft_notebooks.exercises.lesson_{number:02}")
    assert [*rules.wrong_hints(lesson.EXERCISES, number)] == []
    assert [*rules.wrong_solutions(cells(SOLUTIONS / nb.name), number)] == []


# the rules can be broken: a lesson in their form, and each fault planted in it


def markdown(source):
    return {"cell_type": "markdown", "source": source, "metadata": {}}


def code(source, folded=False, page="", words=""):
    metadata = {"jupyter": {"source_hidden": True}} if folded else {}
    outputs = [{"data": {"text/html": [page], "text/plain": [words]}}] if page else []
    return {"cell_type": "code", "source": source, "metadata": metadata, "outputs": outputs}


PAGE = (
    '<div class="ft-drawing"><img data-live=\'&lt;svg viewBox="0 0 380 90"&gt;&lt;text font-size="12"&gt;a\'{}></div>'
)
TOLD = "A layer. The input passes through the frozen matrix."
ASKED = "\n\n".join(f"**7.{i} Name.** A question." for i in range(1, 5))


@pytest.fixture
def good():
    text = (
        "word " * 1200 + "\n\n**Your guess.** One?\n\n**Your guess.** Two?\n\n## What to remember\n\n" + "- one\n" * 5
    )
    end = f"## Exercises\n\n{ASKED}\n\n[Solutions](solutions/07_x.ipynb)"
    return [
        markdown(text),
        code("from ft_notebooks.exercises import check, compare_guess"),
        {**code("guess = None\ncompare_guess(guess, 3)"), "metadata": {"jupyter": {"outputs_hidden": True}}},
        {**code("compare_guess(None, 4)"), "metadata": {"jupyter": {"outputs_hidden": True}}},
        code("#| hide\nassert True\nlayer()", True, PAGE.format(""), TOLD),
        code("%%capture\n#| hide\nimport this", True),
        code("#| hide\nlayer()", True, PAGE.format(""), TOLD),
        code("#| hide\nexplore(draw, a=[1])", True, PAGE.format(" data-frames='x'"), TOLD),
        markdown(end),
        *(code(f'answer = None\ncheck("7.{i}", answer)') for i in range(1, 5)),
    ]


def test_a_lesson_in_the_form_is_right(good):
    assert [*rules.wrong_lesson(good, "07_x.ipynb")] == []


@pytest.mark.parametrize(
    "place, change, told",
    [
        (0, {"source": "**Your guess.** " * 2 + "## What to remember\n" + "- one\n" * 5}, "words of prose"),
        (0, {"source": "word " * 1300 + "## What to remember\n" + "- one\n" * 5}, "0 guesses are asked for"),
        (0, {"source": "**Your guess.** " * 700 + "## What to remember\n- one\n"}, "five bullets"),
        (2, {"source": "\n".join("abcdefghi")}, "1 to 8 lines"),
        (2, {"source": "assert True\ncompare_guess(1, 2)"}, "an assert stands in a visible cell"),
        (2, {"source": "#| hide\ncompare_guess(1, 2)"}, "must be folded"),
        (3, {"source": "4"}, "1 compared"),
        (3, {"metadata": {}}, "its saved output tells"),
        (4, {"source": "layer()"}, "must begin with #| hide"),
        (4, {"outputs": []}, "1 cells have a Drawing"),
        (4, code("", page=PAGE.format(""), words="A layer. Layer."), "must say in words"),
        (4, code("", page=PAGE.format("").replace("380", "400"), words=TOLD), "400"),
        (4, code("", page=PAGE.format("").replace('"12"', '"9"'), words=TOLD), "smaller than 11"),
        (7, {"outputs": []}, "no cell has the output of explore"),
        (8, {"source": f"## Exercises\n\n{ASKED[:60]}\n\n[Solutions](solutions/07_x.ipynb)"}, "the exercises are"),
        (8, {"source": f"## Exercises\n\n{ASKED}"}, "link to the solutions"),
        (10, {"source": 'check("7.1", None)'}, "the cells check"),
    ],
)
def test_a_fault_in_a_lesson_is_seen(good, place, change, told):
    good[place] = {**good[place], **change}
    assert any(told in problem for problem in rules.wrong_lesson(good, "07_x.ipynb"))


def test_too_many_cells_are_seen(good):
    assert any("visible code cells" in problem for problem in rules.wrong_visible_cells(good + [code("1")] * 20))


HINTS = ["Think of a table.", "How many columns has it?", "Multiply both."]
RULES = {f"7.{i}": {"faults": list, "hints": HINTS} for i in range(1, 5)}


@pytest.mark.parametrize(
    "exercise, told",
    [
        ({"answer": 33_792, "hints": [*HINTS, "It is 33,792."]}, "gives the answer away"),
        ({"answer": 0.47, "hints": [*HINTS, "Try 0.47!"]}, "gives the answer away"),
        ({"answer": "Sunday", "hints": [*HINTS, "The sunday."]}, "gives the answer away"),
        ({"answer": {"A", "B"}, "hints": [*HINTS, "Take A, B"]}, "gives the answer away"),
        ({"answer": "is", "hints": [*HINTS, "Is it `is`?"]}, "gives the answer away"),
        ({"answer": 12, "slips": [(3, "It is 12.")], "hints": HINTS}, "gives the answer away"),
        ({"answer": 12, "hints": HINTS[:2]}, "fewer than 3 hints"),
        ({"hints": HINTS}, "an answer or a rule"),
        ({"answer": 12, "with_in": 0.1, "hints": HINTS}, "with_in"),
    ],
)
def test_a_fault_in_the_hints_is_seen(exercise, told):
    assert [*rules.wrong_hints(RULES | {"7.2": {"answer": 33_792, "hints": HINTS}}, 7)] == []
    assert not rules.gives_away("It is short.", "is") and not rules.gives_away("Add 3 to it.", 3)
    assert any(told in problem for problem in rules.wrong_hints(RULES | {"7.2": exercise}, 7))
    assert any("not ['7.1'" in problem for problem in rules.wrong_hints({"7.1": RULES["7.1"]}, 7))


def test_a_solution_without_a_right_and_a_wrong_answer_is_seen():
    whole = [code(f'assert check("7.{i}", 1)\nassert not check("7.{i}", 2)') for i in range(1, 5)]
    assert [*rules.wrong_solutions(whole, 7)] == []
    whole[1]["source"] = 'assert check("7.2", 1)'
    assert [*rules.wrong_solutions(whole, 7)] == ['no cell has: assert not check("7.2", ...) with a wrong answer']
    whole[1]["source"] = 'check("7.2", 1)\nassert not check("7.2", 2)'
    assert [*rules.wrong_solutions(whole, 7)] == ['no cell has: assert check("7.2", ...) with a right answer']
