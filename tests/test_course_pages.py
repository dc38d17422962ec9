"""The pages that tools/readme.py makes of the lessons: a glossary, what guides say, and the cells for Colab. And what
tools/prose.py warns of.
"""

import base64
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
sys.path.append(str(ROOT / "tools"))

import course_pages  # noqa: E402
import prose  # noqa: E402


def text(notebook, kind="markdown"):
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in found if cell["cell_type"] == kind)


@pytest.fixture(scope="module")
def entries():  # term -> its entry
    found = re.findall(r"^\*\*([^*]+)\*\*: (.+)$", text(NBS / "glossary.ipynb"), flags=re.M)
    return {term.casefold(): entry for term, entry in found}


def test_the_glossary_has_each_term_once_and_in_order(entries):
    terms = re.findall(r"^\*\*([^*]+)\*\*: ", text(NBS / "glossary.ipynb"), flags=re.M)
    assert [term.casefold() for term in terms] == sorted(entries) and len(terms) == len(entries)


def test_an_entry_of_the_glossary_is_a_sentence_of_the_lesson_that_it_links_to(entries):
    for term, entry in entries.items():
        if term in course_pages.SEE:
            continue
        sentence, lesson, file = re.fullmatch(r"(.+)\. \(\[lesson (\d+)\]\((\w+\.ipynb)\)\)", entry).groups()
        assert file.startswith(f"{int(lesson):02}_")
        told = re.sub(r"\s+", " ", text(NBS / file).replace("**", "")).casefold()
        assert re.sub(r"\s+", " ", sentence).casefold() in told, term


@pytest.mark.parametrize(("text", "written"), [("vLLM is", "vLLM is"), ("lm_eval", "lm_eval"), ("a token", "A token")])
def test_a_name_keeps_its_small_letter(text, written):
    assert course_pages.with_capital(text) == written


def test_another_name_leads_to_an_entry_or_to_a_lesson(entries):
    for name, seen in course_pages.SEE.items():
        assert entries[name] == f"see {seen}."
        link = re.fullmatch(r"\[lesson (\d+)\]\((\w+\.ipynb)\)", seen)
        assert seen in entries or link and link[2].startswith(f"{int(link[1]):02}_") and (NBS / link[2]).is_file()


@pytest.mark.parametrize(
    ("line", "term", "definition"),
    [
        ("One. A **token** is a piece. Two.", "token", "A token is a piece."),
        ("It has parts. Such a part is called a **shard**.", "shard", "It has parts. Such a part is called a shard."),
        ("- the **state**: what is kept.", "state", "what is kept."),
        ("| **fit**: too close | fewer epochs |", "fit", "too close."),
        ("**2. The goal has a solution.** The **policy** is the model.", "policy", "The policy is the model."),
    ],
)
def test_a_definition_is_the_sentence_around_a_term_in_bold(line, term, definition):
    assert list(course_pages.definitions(line)) == [(term, definition)]


def test_bold_sentences_and_questions_are_no_terms():
    assert list(course_pages.definitions("**May I merge?** Yes. **1.** Count. **The loss falls.**")) == []


def test_the_page_on_guides_has_each_row_of_each_table_and_its_links_lead_somewhere():
    page = text(NBS / "what_guides_say.ipynb")
    notebooks = [nb for nb in NBS.rglob("*.ipynb") if not any(part[0] == "." for part in nb.relative_to(ROOT).parts)]
    tables = {
        nb: course_pages.guides_table(nb) for nb in notebooks if nb.name not in ("index.ipynb", "what_guides_say.ipynb")
    }
    claims = [row for rows in tables.values() for row in rows]
    assert len(claims) > 150 and all(row in page for row in claims)
    assert len([line for line in page.splitlines() if line.startswith("|") and "---" not in line]) == len(claims) + len(
        [rows for rows in tables.values() if rows]
    )
    for target in re.findall(r"\]\(([\w./]+)\)", page):
        assert (NBS / target).is_file(), target
    for row in claims:  # a | in a cell must be escaped, or the table breaks
        assert len(re.split(r"(?<!\\)\|", row)) == 4, row


def test_with_an_address_a_lesson_starts_with_its_badge_and_an_install_cell_and_without_one_it_has_none():
    lesson, address = NBS / "10_sft.ipynb", "https://github.com/some/where"
    badge, install, *rest = json.loads(course_pages.with_colab(lesson, address))["cells"]
    link = "https://colab.research.google.com/github/some/where/blob/main/nbs/10_sft.ipynb"
    assert link in "".join(badge["source"])
    flag, uninstall, pip, report = "".join(install["source"]).splitlines()
    assert (flag, uninstall, report) == ("#| hub", "%pip uninstall -qy torchao", "!ft gpu --quick")
    assert pip == f'%pip install -q "ft-notebooks[lessons] @ git+{address}" "huggingface-hub<2"'
    plain = json.loads(course_pages.with_colab(lesson, ""))
    assert rest == plain["cells"] and not any(cell["id"].startswith("colab-") for cell in rest)


@pytest.mark.parametrize(
    ("text", "warns"),
    [("its gradient is none", True), ("if there is none", False), ("who listens", True), ("rank 0 listens on", False)],
)
def test_a_word_to_replace_is_seen_and_its_other_meanings_are_not(text, warns):
    assert bool(list(prose.words_to_replace(text))) == warns


USED_BEFORE = {  # in passing, each with a link, an explanation beside it, or the lesson that defines it
    "layer", "tokenizer", "perplexity", "rank", "alpha", "target modules", "judge", "reinforcement learning", "GRPO",
    "singular value",
}  # fmt: skip


def test_a_term_is_defined_where_the_course_first_has_it():
    known = [f"define {term} here, in bold" for term in USED_BEFORE] + [f"defines {term}" for term in USED_BEFORE]
    assert [found for found in prose.undefined_terms() if not found.endswith(tuple(known))] == []


def test_a_term_that_is_used_before_its_definition_is_named_with_notebook_cell_and_words(tmp_path, monkeypatch):
    cells = [{"cell_type": "code", "source": "x"}, {"cell_type": "markdown", "source": "# A\n\nIts logits grow."}]
    (tmp_path / "00_a.ipynb").write_text(json.dumps({"cells": cells}))
    monkeypatch.setattr(prose, "lessons", lambda: [tmp_path / "00_a.ipynb"])
    found = [one for one in prose.undefined_terms() if "logits" in one]
    assert found == ["nbs/00_a.ipynb, cell 1: …   Its logits grow.…: define logits here, in bold"]


def test_the_picture_of_the_index_is_the_first_drawing_of_lesson_0():
    cells = json.loads((NBS / "00_first_fine_tune.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    drawn = [data["image/png"] for data in outputs if "image/png" in data]
    assert (NBS / "before_and_after.png").read_bytes() == base64.b64decode("".join(drawn[0]))
