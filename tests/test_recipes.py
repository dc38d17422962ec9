"The recipes of nbs/recipes, and the page of their questions that tools/readme.py makes."

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
sys.path.append(str(ROOT / "tools"))

import course_pages  # noqa: E402

from ft_notebooks.cli.arguments import parser  # noqa: E402

NOTEBOOKS = sorted(NBS.glob("recipes/*.ipynb"))
PAGE = course_pages.prose(NBS / "questions.ipynb")
BOOK = r"\]\(\.\./(?:\d\d_\w+|colab|package/\w+/\w+)\.ipynb\)"  # a link to what proves it


def sections(notebook):
    "The cells of each recipe, from its heading to the next."
    found = []
    for cell in course_pages.read(notebook):
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            found.append([])
        if found:
            found[-1].append(cell)
    return found


def test_there_are_recipes_and_no_question_is_asked_twice():
    asked = [recipe.question.casefold() for notebook in NOTEBOOKS for recipe in course_pages.recipes(notebook)]
    assert len(asked) > 15 and sorted(asked) == sorted(set(asked))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_recipe_has_a_short_cell_says_when_not_and_links_to_a_proof(notebook):
    text = course_pages.prose(notebook)
    assert len(re.findall(r"^## ", text, flags=re.M)) == len(sections(notebook)), "a heading must begin its cell"
    for cells in sections(notebook):
        heading = cells[0].source.splitlines()[0]
        shown = [c.source for c in cells if c.cell_type == "code" and not course_pages.is_hidden(c)]
        lines = [len(list(filter(str.strip, source.splitlines()))) for source in shown]
        assert max(lines, default=0) <= 6, f"{heading}: a visible cell has at most 6 lines, without empty ones"
        told = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        fewest = 0 if "not run here" in told.casefold() else 1
        assert fewest <= len(shown) <= 2, f"{heading}: one visible cell or two; none where commands are not run here"
        assert "*Not when*" in told or "*Not supported*" in told, heading
        assert re.search(BOOK, told), heading


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_what_a_reader_need_not_see_is_folded(notebook):
    hidden = [cell for cell in course_pages.read(notebook) if cell.cell_type == "code" and course_pages.is_hidden(cell)]
    assert hidden and all(cell.metadata.get("jupyter", {}).get("source_hidden") for cell in hidden)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_the_page_has_each_question_and_each_message_with_a_link_to_a_heading_that_is_there(notebook):
    name = notebook.relative_to(NBS).as_posix()
    for recipe in course_pages.recipes(notebook):
        link = f"[{recipe.question}]({name}#{course_pages.anchor(recipe.question)})".replace("|", r"\|")
        assert f"\n| {link} | " in PAGE
        for error in recipe.errors:
            assert f"\n| {course_pages.as_code(error)} | {link} |" in PAGE
    there = {course_pages.anchor(line[3:]) for line in course_pages.prose(notebook).splitlines() if line[:3] == "## "}
    linked = set(re.findall(rf"\]\({re.escape(name)}#(.+?)\) \|", PAGE.replace(r"\|", "|")))
    assert linked == there


def test_the_messages_are_sorted():
    rows = [line for line in PAGE.partition("## By error message")[2].splitlines() if line.startswith("| `")]
    assert rows and rows == sorted(rows, key=str.casefold)


def notebook_of(tmp_path, *cells):
    whole = [{"cell_type": kind, "source": source, "id": str(n)} for n, (kind, source) in enumerate(cells)]
    file = tmp_path / "some.ipynb"
    file.write_text(json.dumps({"cells": whole}), encoding="utf-8")
    return file


def test_a_recipe_is_read_with_its_messages_and_what_its_visible_cell_uses(tmp_path):
    code = "from ft_notebooks import fit, split\nimport json"
    shown = "!ft sft rows.jsonl\nsaid = !ft eval runs/sft\nfit(json.loads('split'))  # split\nfit(trainer)"
    told = "## May I `fit`?\n\n> ValueError: a\n> | b\n\n> no\n\nYes.\n\n```\n> c\n```"
    cells = ("code", code), ("markdown", told), ("code", shown), ("code", "#| hide\nsplit()")
    (recipe,) = course_pages.recipes(notebook_of(tmp_path, *cells))
    assert (recipe.question, recipe.errors) == ("May I `fit`?", ["ValueError: a | b", "no"])
    assert recipe.uses == ["ft sft", "ft eval", "fit", "fit"] and recipe.shown == [shown]
    assert course_pages.anchor(recipe.question) == "May-I-fit?"


def test_each_function_and_command_of_the_table_of_tasks_is_there():
    rows = course_pages.TASKS.read_text(encoding="utf-8").splitlines()[2:]
    names = {name for row in rows for name in re.findall(r"`([^`]+)`", "|".join(row.split("|")[:4]))}
    commands = {name.split()[1] for name in names if name.startswith("ft ")}
    (known,) = (action.choices for action in parser()._actions if action.dest == "command")
    assert commands <= set(known) and len(commands) > 10
    for name in names:
        if not name.startswith("ft "):
            module, _, function = f"ft_notebooks.{name.partition('(')[0].removeprefix('ft_notebooks.')}".rpartition(".")
            assert hasattr(importlib.import_module(module), function), name


def test_a_task_whose_answer_is_gone_is_an_error():
    links = {recipe.question: "[a](b)" for notebook in NOTEBOOKS for recipe in course_pages.recipes(notebook)}
    links.pop("How do I merge after QLoRA?")
    with pytest.raises(ValueError, match="'How do I merge after QLoRA.' is neither a question of nbs/recipes"):
        course_pages.tasks(links)


def test_the_index_links_to_the_page():
    assert "](questions.ipynb)" in course_pages.prose(NBS / "index.ipynb")
