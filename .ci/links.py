"""Writes the Markdown cells of all notebooks, and the Markdown files, into a folder, for a link checker.

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
    name = file.relative_to(ROOT)
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    (folder / f"{'_'.join(name.parts)}.md").write_text(text, encoding="utf-8")
