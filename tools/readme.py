"""Make README.md from nbs/index.ipynb: prose as it stands, code and text outputs fenced, `#| hide` cells left out.

And nbs/package/README.md, the list of the package's notebooks, from their titles and the packages' docstrings; and the
glossary, the page on what guides say and the list of questions, from the notebooks. Lessons get a badge and an install
cell for Colab where pyproject.toml names the repository's address.
"""

import argparse
import ast
import difflib
import os
import re
import sys
import tomllib
from pathlib import Path

from course_pages import as_notebook, glossary, is_hidden, lessons, questions, read, title, what_guides_say, with_colab

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REPOSITORY = PROJECT["project"].get("urls", {}).get("Repository", "")
NOTE = "<!-- made from nbs/index.ipynb by tools/readme.py: edit the notebook -->"
PACKAGE_HEAD = """<!-- made from the notebooks in this folder by tools/readme.py: edit their titles -->

# The package, notebook by notebook

![The packages in six layers, and what flows from rows and a model to a server](architecture.svg)

Each notebook is the source of the module of the same name in `ft_notebooks/`, and shows that it does what it says.
A package imports only from those above it on this page, `sft`, `dpo` and `rlhf` not from each other. The
[course](../index.ipynb) uses them as your script would."""


def from_root(link):  # `](10_sft.ipynb)` leads somewhere from nbs/, `](nbs/10_sft.ipynb)` from the repository's root
    target, mark, anchor = link[1].partition("#")
    if not target or not (ROOT / "nbs" / target).exists():
        return link[0]
    return f"]({os.path.relpath(ROOT / 'nbs' / target, ROOT)}{mark}{anchor})"


def fence(kind, text):
    return f"```{kind}\n{text.strip()}\n```"


def readme():
    parts = [NOTE]
    for cell in read(ROOT / "nbs" / "index.ipynb"):
        if cell.cell_type == "markdown":
            parts.append(re.sub(r"\]\(([^)\s]+)\)", from_root, cell.source))
        if cell.cell_type != "code" or is_hidden(cell):
            continue
        parts.append(fence("python", re.sub(r"^#\s*\|.*\n?", "", cell.source, flags=re.M)))
        texts = ["".join(out.get("text") or out.get("data", {}).get("text/plain", "")) for out in cell.outputs]
        parts.extend(fence("text", text) for text in texts if text.strip())
    return "\n\n".join(parts) + "\n"


def words_of(face):
    "What a package's `__init__.py` says: its `__doc__`, where the docstring is the question of a lesson."
    for node in face.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__doc__":
            return node.value.value
    return ast.get_docstring(face)


def package_readme():
    layers = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    parts = [PACKAGE_HEAD]
    for package in [name.strip() for layer in reversed(layers) for name in layer.split("|")]:
        face = ast.parse((ROOT / "ft_notebooks" / package / "__init__.py").read_text(encoding="utf-8"))
        notebooks = sorted((ROOT / "nbs" / "package" / package).glob("*.ipynb"))
        lines = [f"- [{package}.{nb.stem}]({package}/{nb.name}): {title(nb)}" for nb in notebooks]
        parts += [f"## {package}", words_of(face), "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if a page is not current")
    check = parser.parse_args().check
    if not (ROOT / "nbs" / "index.ipynb").exists():
        sys.exit("nbs/index.ipynb is missing, and README.md is made from it")
    pages = {
        "README.md": readme(),
        "nbs/package/README.md": package_readme(),
        "nbs/glossary.ipynb": as_notebook(glossary()),
        "nbs/what_guides_say.ipynb": as_notebook(what_guides_say()),
        "nbs/questions.ipynb": as_notebook(questions()),
        **{f"nbs/{nb.name}": with_colab(nb, REPOSITORY) for nb in lessons()},
    }
    stale = []
    for name, new in pages.items():
        file = ROOT / name
        old = file.read_text(encoding="utf-8") if file.exists() else ""
        if old == new:
            continue
        if not check:
            file.write_text(new, encoding="utf-8")
            continue
        stale.append(name)
        print(*difflib.unified_diff(old.splitlines(), new.splitlines(), name, "as made", lineterm=""), sep="\n")
    if stale:
        sys.exit(f"{' and '.join(stale)} not current: run python tools/readme.py")


if __name__ == "__main__":
    main()
