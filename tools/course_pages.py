"""The glossary, the page on what guides say and the list of questions, all made from the notebooks; tools/readme.py
writes them.
"""

import ast
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

NBS = Path(__file__).resolve().parents[1] / "nbs"
GLOSSARY_HEAD = """# Glossary

> What does this word mean, and which lesson explains it?

Each entry is the sentence of the course that defines the term, where the term stands in bold.
<!-- made from the lessons by tools/readme.py: edit the lesson -->"""
GUIDES_HEAD = """# What guides say, and what is true

> Which sentences of guides, documentation and forum posts are wrong, and what shows it?

Each table is taken from the notebook that its heading links to, which has the cell that shows it.
<!-- made from the notebooks by tools/readme.py: edit the tables in them -->"""
QUESTIONS_HEAD = """# Questions

> How do I …?

By what you want to do, by theme, and by error message at the end. Each question leads to a short answer with a cell
that runs. (JupyterLab shows the head of a notebook that it opens; a second click then goes to the answer.)
<!-- made from nbs/recipes and tools/tasks.md by tools/readme.py: edit these -->"""
SEE = {  # another name -> the term whose entry tells what it is, or the lesson
    "gradient checkpointing": "activation checkpointing",
    "mixed precision": "autocast",
    "out of memory": "[lesson 6](06_quantized_loading.ipynb)",
}
EXAMPLES = {"appointments", "measured", "smollm2", "tiny_model", "tiny_tokenizer"}  # no answer to a question
TASKS = Path(__file__).with_name("tasks.md")
BOLD = re.compile(r"\*\*([^*]+)\*\*")
BETWEEN = re.compile(r"(?<=[.?!])(?<!\*\*\d\.)\*{0,2}\s+(?=[A-Z*`$(])")  # two sentences; not after a number as in **2.
POINTS_BACK = re.compile(
    r"\W*(This|These|Such|Each of them|Its|Before|The usual|So the)\b"
)  # a sentence that needs the one before it


def read(notebook):
    "The cells of a notebook, each source as one text. (Importing nbformat takes longer than all that is done here.)"
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [SimpleNamespace(**{**cell, "source": "".join(cell["source"])}) for cell in cells]


def written(cells, metadata):
    "The text of a notebook, as nbformat writes it."
    plain = [{**vars(cell), "source": cell.source.splitlines(keepends=True)} for cell in cells]
    whole = {"cells": plain, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, ensure_ascii=False, indent=1, sort_keys=True, separators=(",", ": ")) + "\n"


def markdown_cell(text, id):
    return SimpleNamespace(cell_type="markdown", id=id, metadata={}, source=text)


def code_cell(text, id):
    return SimpleNamespace(cell_type="code", execution_count=None, id=id, metadata={}, outputs=[], source=text)


def title(notebook):
    sources = (cell.source for cell in read(notebook) if cell.cell_type == "markdown")
    return next(source for source in sources if source.startswith("# ")).splitlines()[0].removeprefix("# ")


def lessons():
    return sorted(NBS.glob("[0-9][0-9]_*.ipynb"))


def prose(notebook):
    return "\n\n".join(cell.source for cell in read(notebook) if cell.cell_type == "markdown")


def is_term(bold):
    "Not a bold sentence, question or number."
    return len(bold.split()) <= 4 and bold[-1] not in ".?:"


def definitions(text):
    "Each term that stands in bold, with the sentence around it, and the one before where it needs that."
    for line in re.sub(r"^```.*?^```", "", text, flags=re.M | re.S).splitlines():  # without fenced code
        cells = re.split(r"(?<!\\)\|", line) if line.startswith("|") else [line.removeprefix("- ")]
        for sentences in map(BETWEEN.split, map(str.strip, cells)):
            for i, sentence in enumerate(sentences):
                for term in filter(is_term, BOLD.findall(sentence)):
                    found = " ".join(sentences[i - 1 : i + 1] if i and POINTS_BACK.match(sentence) else [sentence])
                    found = re.sub(rf"^(the )?\*\*{re.escape(term)}\*\*: ", "", found)
                    yield term, found.replace("**", "").replace(r"\|", "|").rstrip(":.") + "."


def with_capital(text):  # not where it begins with a name such as vLLM
    return text if re.match(r"\w+[A-Z_]", text) else text[0].upper() + text[1:]


def glossary():
    entries = {}
    for notebook in lessons():
        for term, sentence in definitions(prose(notebook)):
            text = f"**{with_capital(term)}**: {with_capital(sentence)}"
            entries.setdefault(term.casefold(), f"{text} ([lesson {int(notebook.name[:2])}]({notebook.name}))")
    for name, seen in SEE.items():
        entries.setdefault(name, f"**{name.capitalize()}**: see {seen}.")
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


def is_hidden(cell):
    return re.search(r"^#\s*\|\s*hide\b", cell.source, flags=re.M)


def parsed(code):
    "The syntax tree of a cell, each line of which for IPython or the shell does nothing."
    plain = re.sub(r"^(\s*)(?:\w+\s*=\s*)?[%!].*", r"\1pass", code, flags=re.M)
    return ast.walk(ast.parse("" if code.startswith("%%") and not code.startswith(("%%capture", "%%time")) else plain))


def recipes(notebook):
    "The recipes of a notebook: the question, its error messages, and the names and commands that its answer uses."
    cells, found = read(notebook), []
    imports = [n for c in cells if c.cell_type == "code" for n in parsed(c.source) if isinstance(n, ast.ImportFrom)]
    from_us = [node for node in imports if (node.module or "").split(".")[0] == "ft_notebooks"]
    ours = {name.name for node in from_us for name in node.names} - EXAMPLES
    for cell in cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            question, _, answer = cell.source.removeprefix("## ").partition("\n")
            quotes = re.findall(r"^> .+(?:\n>.*)*", re.sub(r"^```.*?^```", "", answer, flags=re.M | re.S), flags=re.M)
            errors = [" ".join(re.sub(r"^> ?", "", quote, flags=re.M).split()) for quote in quotes]
            found.append(SimpleNamespace(question=question.strip(), errors=errors, uses=[], shown=[]))
        elif cell.cell_type == "code" and found and not is_hidden(cell):
            names = [node for node in parsed(cell.source) if isinstance(node, ast.Name) and node.id in ours]
            names = [node.id for node in sorted(names, key=lambda node: (node.lineno, node.col_offset))]
            found[-1].uses += re.findall(r"(?<=!)ft \w+", cell.source) + names
            found[-1].shown.append(cell.source)
    return found


def anchor(heading):
    "What JupyterLab makes of a heading: its text without marks, with - for each space."
    return re.sub(r"[`*]", "", heading).replace(" ", "-")


def as_code(text):
    fence = "``" if "`" in text else "`"
    space = " " if "`" in text else ""  # which Markdown leaves out again
    return f"{fence}{space}{text}{space}{fence}".replace("|", "\\|")  # in a cell of a table


def questions():
    parts, errors, links = [], [], {}
    for notebook in sorted(NBS.glob("recipes/*.ipynb")):
        name, rows = notebook.relative_to(NBS).as_posix(), []
        for recipe in recipes(notebook):
            link = f"[{recipe.question}]({name}#{anchor(recipe.question)})".replace("|", "\\|")
            links[recipe.question] = link
            rows.append(f"| {link} | {', '.join(map(as_code, list(dict.fromkeys(recipe.uses))[:4]))} |")
            errors += [f"| {as_code(error)} | {link} |" for error in recipe.errors]
        parts.append(f"## [{title(notebook)}]({name})\n\n| question | uses |\n|---|---|\n" + "\n".join(rows))
    found = "\n".join(sorted(errors, key=str.casefold))
    errors = f"## By error message\n\n| message | answer |\n|---|---|\n{found}"
    return [QUESTIONS_HEAD, tasks(links), *parts, errors]


def tasks(links):
    "The table of tools/tasks.md, with a link to each question of a recipe (`links`) or to the page that it names."
    _, _, *rows = TASKS.read_text(encoding="utf-8").splitlines()
    linked = []
    for row in rows:
        wish, function, command, answer = (cell.strip() for cell in row.strip("|").split("|"))
        page = NBS / f"{answer}.ipynb"
        if answer not in links and not page.is_file():
            raise ValueError(f"{TASKS.name}: {answer!r} is neither a question of nbs/recipes nor a page of nbs")
        link = links.get(answer) or f"[{title(page)}]({page.name})"
        linked.append(f"| {wish} | {link} | {function} | {command} |")
    head = "| I want to … | explained in | function | command |\n|---|---|---|---|"
    return "\n".join(["## By what you want to do\n", head, *linked])


def as_notebook(sources):
    "The text of a notebook of markdown cells, as nbdev-clean leaves it."
    cells = [markdown_cell(text, id=f"made-{number:03}") for number, text in enumerate(sources)]
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    return written(cells, {"kernelspec": kernel})


def with_colab(notebook, repository):
    """The text of a lesson: with a badge and an install cell where the project has a public address, else without.

    The cell carries `hub`, so that tests, which have no network, leave it out.
    """
    metadata = json.loads(notebook.read_text(encoding="utf-8"))["metadata"]
    cells = [cell for cell in read(notebook) if not cell.id.startswith("colab-")]
    if repository:
        path = f"{repository.removeprefix('https://github.com/')}/blob/main/nbs/{notebook.name}"
        badge = f"[Open in Colab](https://colab.research.google.com/github/{path})"
        page = re.search(r"^```\n(%pip uninstall.*?)\n```", prose(NBS / "colab.ipynb"), flags=re.M | re.S)
        install = page[1].replace("ft_notebooks.zip[lessons]", f"ft-notebooks[lessons] @ git+{repository}")
        cells[:0] = [markdown_cell(badge, id="colab-badge"), code_cell(f"#| hub\n{install}", id="colab-install")]
    return written(cells, metadata)
