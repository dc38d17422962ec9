"""Make README.md from nbs/index.ipynb: prose as it stands, code and text outputs fenced, `#| hide` cells left out."""

import argparse
import difflib
import os
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
NOTE = "<!-- made from nbs/index.ipynb by tools/readme.py: edit the notebook -->"


def from_root(link):  # `](07_sft.ipynb)` leads somewhere from nbs/, `](nbs/07_sft.ipynb)` from the repository's root
    target, mark, anchor = link[1].partition("#")
    if not target or not (ROOT / "nbs" / target).exists():
        return link[0]
    return f"]({os.path.relpath(ROOT / 'nbs' / target, ROOT)}{mark}{anchor})"


def fence(kind, text):
    return f"```{kind}\n{text.strip()}\n```"


def readme():
    parts = [NOTE]
    for cell in nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(re.sub(r"\]\(([^)\s]+)\)", from_root, cell.source))
        if cell.cell_type != "code" or re.search(r"^#\s*\|\s*hide\b", cell.source, flags=re.M):
            continue
        parts.append(fence("python", re.sub(r"^#\s*\|.*\n?", "", cell.source, flags=re.M)))
        texts = [out.get("text") or out.get("data", {}).get("text/plain", "") for out in cell.outputs]
        parts.extend(fence("text", text) for text in texts if text.strip())
    return "\n\n".join(parts) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if README.md is not current")
    check = parser.parse_args().check
    if not (ROOT / "nbs" / "index.ipynb").exists():
        sys.exit("nbs/index.ipynb is missing, and README.md is made from it")
    new, file = readme(), ROOT / "README.md"
    if not check:
        file.write_text(new, encoding="utf-8")
        return
    old = file.read_text(encoding="utf-8") if file.exists() else ""
    diff = difflib.unified_diff(old.splitlines(), new.splitlines(), "README.md", "nbs/index.ipynb", lineterm="")
    print(*diff, sep="\n", end="" if old == new else "\n")
    if old != new:
        sys.exit("README.md is not current: run python tools/readme.py")


if __name__ == "__main__":
    main()
