"The language of the notebooks: words that made the first version hard to read, and what stands in their place."

import json
import re
from pathlib import Path

import pytest

NBS = Path(__file__).resolve().parents[1] / "nbs"
NOTEBOOKS = sorted(p for p in NBS.rglob("*.ipynb") if not any(part[0] == "." for part in p.relative_to(NBS).parts))
INSTEAD = {  # pattern -> what to write; in prose, docstrings, comments and messages alike
    r"\bis no number\b|(?<!there )\bis none\b": "NaN, or what is missing",
    r"\b(?:is|are) refused\b|(?<!model )(?<!it )\b(?:is|are) told\b|\b(?:it|what) is said\b": "raises, checks, logs",
    r"\bheard\b|\blistens?\b(?! on)|must not be heard": "sampled outputs, generates",
    r"\boracles?\b": "reference implementation",
    r"\blevers?\b": "optimizations",
    r"\bdials?\b": "setting",
    r"\bforetells?\b": "predicts",
    r"\bthe say of\b": "weight",
    r"\broom\b": "budget, free space, the most new tokens",
    r"\banew\b": "again from scratch",
    r"\banother one\b": "a different one, or name the thing",
    r"(?:^|\. )Guides say\b": "the question; the table of claims stands at the end",
}
THAT_OF = 24  # of all notebooks; each is a comparison whose noun would have to be said twice


def texts(notebook):
    return ["".join(cell["source"]) for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]]


@pytest.mark.parametrize(("pattern", "instead"), INSTEAD.items(), ids=INSTEAD.values())
def test_the_notebooks_use_the_terms_of_the_field(pattern, instead):
    found = []
    for notebook in NOTEBOOKS:
        for text in texts(notebook):
            for match in re.finditer(pattern, text, flags=re.M):
                around = text[max(0, match.start() - 40) : match.end() + 40].replace("\n", " ")
                found.append(f"{notebook.relative_to(NBS)}: …{around}…")
    assert not found, f"write {instead}:\n" + "\n".join(found)


def test_that_of_does_not_stand_for_a_noun_everywhere():
    count = sum(len(re.findall(r"\bthat of\b", text)) for notebook in NOTEBOOKS for text in texts(notebook))
    assert count <= THAT_OF, f"{count} times; name the thing instead"


def test_twin_is_said_of_the_training_twins_of_trl_alone():
    lessons = [notebook for notebook in NOTEBOOKS if notebook.parent == NBS]
    assert not [notebook.name for notebook in lessons for text in texts(notebook) if re.search(r"\btwins?\b", text)]


def test_the_check_sees_a_word_and_leaves_its_other_meanings():
    seen = {
        pattern: [re.search(pattern, text) is not None for text in pair]
        for pattern, pair in {
            next(p for p in INSTEAD if "is none" in p): ("its gradient is none", "if there is none"),
            next(p for p in INSTEAD if "listens" in p): ("who listens", "rank 0 listens on a port"),
        }.items()
    }
    assert all(found == [True, False] for found in seen.values())
