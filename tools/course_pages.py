"""The glossary and the page on what guides say, both made from the notebooks; tools/readme.py writes them."""

import os
import re
from pathlib import Path

import nbformat

NBS = Path(__file__).resolve().parents[1] / "nbs"
GLOSSARY_HEAD = """# Glossary

> What does this word mean, and which lesson explains it?

Each entry is the sentence of the course that defines the term, where the term stands in bold.
<!-- made from the lessons by tools/readme.py: edit the lesson -->"""
GUIDES_HEAD = """# What guides say, and what is true

> Which sentences of guides, documentation and forum posts are wrong, and what shows it?

Each table is taken from the notebook that its heading links to, which has the cell that shows it.
<!-- made from the notebooks by tools/readme.py: edit the tables in them -->"""
BOLD = re.compile(r"\*\*([^*]+)\*\*")
BETWEEN = re.compile(r"(?<=[.?!])(?<!\*\*\d\.)\*{0,2}\s+(?=[A-Z*`$(])")  # two sentences; not after a number as in **2.
POINTS_BACK = re.compile(
    r"\W*(This|These|Such|Each of them|Its|Before|The usual|So the)\b"
)  # a sentence that needs the one before it


def title(notebook):
    sources = (cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "markdown")
    return next(source for source in sources if source.startswith("# ")).splitlines()[0].removeprefix("# ")


def lessons():
    return sorted(NBS.glob("[0-9][0-9]_*.ipynb"))


def prose(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def is_term(bold):
    "Not a bold sentence, question or number."
    return len(bold.split()) <= 4 and bold[-1] not in ".?:"


def definitions(text):
    "Each term that stands in bold, with the sentence around it, and the one before where it needs that."
    for line in text.splitlines():
        cells = re.split(r"(?<!\\)\|", line) if line.startswith("|") else [line.removeprefix("- ")]
        for sentences in map(BETWEEN.split, map(str.strip, cells)):
            for i, sentence in enumerate(sentences):
                for term in filter(is_term, BOLD.findall(sentence)):
                    found = " ".join(sentences[i - 1 : i + 1] if i and POINTS_BACK.match(sentence) else [sentence])
                    found = re.sub(rf"^(the )?\*\*{re.escape(term)}\*\*: ", "", found)
                    yield term, found.replace("**", "").replace(r"\|", "|").rstrip(":.") + "."


def glossary():
    entries = {}
    for notebook in lessons():
        for term, sentence in definitions(prose(notebook)):
            text = f"**{term[0].upper()}{term[1:]}**: {sentence[0].upper()}{sentence[1:]}"
            entries.setdefault(term.casefold(), f"{text} ([lesson {int(notebook.name[:2])}]({notebook.name}))")
    return [GLOSSARY_HEAD, "\n\n".join(entry for _, entry in sorted(entries.items()))]


def guides_table(notebook):
    "The rows of the table under the heading; [] where a notebook has none."
    below = prose(notebook).partition("\n## What guides say")[2].partition("\n## ")[0]
    rows = [line for line in below.splitlines() if line.startswith("|")][2:]
    folder = os.path.relpath(notebook.parent, NBS)
    return [re.sub(r"\]\(([\w./]+\.ipynb)", lambda m: f"]({os.path.normpath(f'{folder}/{m[1]}')}", row) for row in rows]


def what_guides_say():
    packages = sorted(NBS.glob("package/*/*.ipynb"))
    parts = []
    for notebook in [*lessons(), *packages]:
        if notebook == packages[0]:
            parts.append("# In the package\n\nFiner points, each shown by a notebook of the package.")
        if rows := guides_table(notebook):
            name = notebook.relative_to(NBS)
            parts.append(f"## [{title(notebook)}]({name})\n\n| claim | what is true |\n|---|---|\n" + "\n".join(rows))
    return [GUIDES_HEAD, *parts]


def as_notebook(sources):
    "The text of a notebook of markdown cells, as nbdev-clean leaves it."
    cells = [nbformat.v4.new_markdown_cell(text, id=f"made-{number:03}") for number, text in enumerate(sources)]
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    return nbformat.writes(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})) + "\n"


def with_colab(notebook, repository):
    """The text of a lesson: with a badge and an install cell where the project has a public address, else without.

    The cell carries `hub`, so that tests, which have no network, leave it out.
    """
    found = nbformat.read(notebook, as_version=4)
    found.cells = [cell for cell in found.cells if not cell.id.startswith("colab-")]
    if repository:
        path = f"{repository.removeprefix('https://github.com/')}/blob/main/nbs/{notebook.name}"
        badge = f"[Open in Colab](https://colab.research.google.com/github/{path})"
        install = f'#| hub\n%pip install -q "ft-notebooks[lessons] @ git+{repository}"'
        found.cells[:0] = [
            nbformat.v4.new_markdown_cell(badge, id="colab-badge"),
            nbformat.v4.new_code_cell(install, id="colab-install"),
        ]
    return nbformat.writes(found) + "\n"
