"""Writes the Markdown files, and each Markdown cell of a notebook that has a link, into a folder, for a link checker.

A file is named after its place, so that the checker's report names notebook and cell.

python .ci/links.py FOLDER
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
PLACES = ["*.md", ".ci/*.md", "tools/*.md", "benchmarks/**/*.md", "nbs/**/*.md", "nbs/**/*.ipynb"]
for file in sorted(file for place in PLACES for file in ROOT.glob(place)):
    name = "_".join(file.relative_to(ROOT).parts)
    texts = {name: file.read_text(encoding="utf-8")}
    if file.suffix == ".ipynb":
        cells = enumerate(json.loads(texts[name])["cells"])
        texts = {f"{name}, cell {i}": "".join(cell["source"]) for i, cell in cells if cell["cell_type"] == "markdown"}
    for place, text in texts.items():
        if "http" in text:
            (folder / f"{place}.md").write_text(text, encoding="utf-8")
