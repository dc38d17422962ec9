"""The site: the course, the recipes, the reference and the ledger of claims, from what the notebooks have saved

pip install -e '.[site]'; python tools/site         # build/site/index.html, which needs no server and no network
SITE_REPOSITORY=https://github.com/NAME/PROJECT python tools/site   # with links to Colab and to the page's source

Nothing runs: what a page shows is what the last run of its notebook has saved, and the line at its head says when the
tests ran it last (docs/proofs.json).
"""

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LINKED = (
    "nbs/*.png", "nbs/package/*.svg", "benchmarks/**/*.png", "benchmarks/**/*.py", "tests/*.py", ".ci/*", "LICENSE",
    "CITATION.cff",
)  # fmt: skip
SOURCE, OUT = ROOT / "build" / "site-source", ROOT / "build" / "site"
sys.path[:0] = [str(HERE), str(HERE.parent)]

import site_parts
from claims import ledger, notebooks


def copied(pattern):
    "Files of the project, each at its own place below SOURCE, so that links between pages stay as they are."
    for file in sorted(ROOT.glob(pattern)):
        target = SOURCE / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def write(name, text):
    target = SOURCE / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")


def pages():
    "All sources of Sphinx."
    for pattern in LINKED:
        copied(pattern)
    for paper in [*ROOT.glob("*.md"), ROOT / "benchmarks" / "README.md", ROOT / "nbs" / "package" / "README.md"]:
        write(paper.relative_to(ROOT), site_parts.with_links(paper.read_text(encoding="utf-8")))
    folders = ("nbs/*.ipynb", "nbs/recipes/*.ipynb", "nbs/solutions/*.ipynb", "nbs/package/*/*.ipynb")
    for notebook in [notebook for folder in folders for notebook in sorted(ROOT.glob(folder))]:
        write(notebook.relative_to(ROOT), site_parts.page(notebook))
    (SOURCE / "nbs" / "index.ipynb").unlink()  # README is made from it
    write("index.md", site_parts.first_page())
    (SOURCE / "README.md").unlink()
    write("solutions.md", site_parts.solutions_page())
    write("claims.md", site_parts.ledger_page(ledger(notebooks())))
    for name, text in site_parts.reference():
        write(name, text)
    for name, content in site_parts.cards():
        (SOURCE / "cards").mkdir(exist_ok=True)
        (SOURCE / name).write_bytes(content)


def main():
    for folder in (SOURCE, OUT):
        shutil.rmtree(folder, ignore_errors=True)
    pages()
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-n",
        "-c",
        HERE,
        "-d",
        ROOT / "build" / "site-doctrees",
        "-j",
        "auto",
        SOURCE,
        OUT,
    ]
    sys.exit(subprocess.run([*map(str, command), *sys.argv[1:]]).returncode)


if __name__ == "__main__":
    main()
