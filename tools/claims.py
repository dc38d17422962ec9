"""The ledger of claims: which sentence of which notebook is shown by which cell

python tools/claims.py                        # writes docs/claims.json, which the site shows
python tools/claims.py --check                # writes nothing, and fails for a figure of the course that nothing shows
python tools/claims.py --check nbs/10_sft.ipynb

A cell is a proof where it asserts something, expects an error, or reads a measurement. Its claim is the sentence before
it; where the cell is folded, which comes after a result, the sentence after it. A sentence with a figure that no code,
output or measurement of its notebook holds is "cited" where it names its source, else "not asserted"; a section without
a proof is "explained" only; a cell for a GPU that no card has run is "not run yet". When a proof was last run stands in docs/proofs.json, which a green run of the
tests writes, never this tool.
"""

import argparse
import ast
import json
import re
import sys
from collections import Counter
from pathlib import Path

from course_pages import BETWEEN, NBS, is_hidden, parsed, read

ROOT = NBS.parent
CLAIMS = ROOT / "docs" / "claims.json"
NOT_PROSE = re.compile(r"^```.*?^```|^#.*?$|^\|.*?$|^!\[.*?$|^\*[^*\n]+\*$|<!--.*?-->", re.M | re.S)
LIBRARIES = {"accelerate", "bitsandbytes", "datasets", "gguf", "lm_eval", "openai", "peft", "sklearn", "tokenizers"}
LIBRARIES |= {"transformers", "trl", "xllamacpp"}
NO_CLAIMS = {"Exercises", "What to remember", "Where this lives", "Use", "What you can do now"}
COMPARES = re.compile(r"\b(assert_\w+|allclose|isclose|equal|\w*close)\(|==")
MEASUREMENTS = sorted((ROOT / "ft_notebooks" / "course" / "measurements").glob("*.json"))
FIGURE = re.compile(r"(?<![\w.#])\d[\d,_]*(?<![,_])(?:\.\d+)?(?!\w)")
NO_FIGURE = re.compile(  # code, formulas, links, numbers of lessons, exercises, issues and versions
    r"`[^`]*`|\$[^$]*\$|\]\([^)]*\)|https?://\S+|([Ll]essons?|[Ii]ssues?|discussion|[Ee]xercise|Port) \d[\d.]*((, | and | to )\d+)*"
    r"|\*\*\d+\.\d.*?\*\*|\b[A-Za-z]\w+[ -]\d+\.\d+\b|\b[A-Z]\w+-\d{3,}\b|\b\w+'s \d+ million"
)


def notebooks():
    "Lessons, recipes, and the package's own; solutions claim nothing new."
    folders = ("[0-9]*.ipynb", "recipes/*.ipynb", "package/*/*.ipynb")
    return [notebook for pattern in folders for notebook in sorted(NBS.glob(pattern))]


def sentences(text):
    "Those of a Markdown cell, without its headings, tables, code and pictures."
    found = []
    for paragraph in re.split(r"\n\s*\n|\n(?=- |\d+\. )", NOT_PROSE.sub("", text)):
        words = " ".join(paragraph.split()).removeprefix("> ").removeprefix("- ")
        found += [sentence for sentence in BETWEEN.split(words) if len(sentence.split()) > 2]
    return [sentence for sentence in found if not sentence.startswith(("*Not", "["))]


def library_names(cells):
    "What a notebook imports from the libraries that it compares with."
    names = set()
    for cell in cells:
        if cell.cell_type != "code":
            continue
        for node in parsed(cell.source):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
                names |= {alias.asname or alias.name for alias in node.names}
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names} & LIBRARIES
    return names


def kind(code, names):
    "What makes a cell a proof, or None."
    if re.search(r"\b(measured|measurement)\(", code):
        return "measurement"
    if re.search(r"\bexpect_fail\(|\braises\(|\bassertLogs\(", code):
        return "error"
    if not re.search(r"^\s*assert\b|\bassert_\w+\(|\btest_\w+\(", code, re.M):
        return None
    used = {node.id for node in parsed(code) if isinstance(node, ast.Name)}
    return "library" if used & names and COMPARES.search(code) else "assertion"


def claims(notebook):
    "Each proof of a notebook with its sentence; `sentence` is empty where no prose stands beside it."
    cells = read(notebook)
    names = library_names(cells)
    section, before, found = "", "", []
    for i, cell in enumerate(cells):
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#+ (.+)$", cell.source, re.M)
            section = headings[-1] if headings else section
            before = (sentences(cell.source) or [before])[-1]
            continue
        how = kind(cell.source, names)
        if how is None or "#| export" in cell.source:
            continue
        after = next((c.source for c in cells[i + 1 :] if c.cell_type == "markdown"), "")
        folded = is_hidden(cell) and not re.match(r"\s*#", after)
        sentence = (sentences(after) or [before])[0] if folded else before
        place = notebook.relative_to(ROOT).as_posix()
        one = {"id": f"{notebook.stem}#{cell.id}", "notebook": place, "cell": i, "section": section}
        found.append({**one, "sentence": sentence, "kind": how})
    return found


def texts(cells):
    "All that the code of a notebook says and prints, and the measurements that it reads."
    code = [cell for cell in cells if cell.cell_type == "code"]
    parts = [cell.source for cell in code]
    for cell in code:
        for output in cell.outputs:
            parts.append("".join(output.get("text", "")))
            parts += ["".join(text) for mime, text in output.get("data", {}).items() if mime != "image/png"]
    read_there = "\n".join(parts)
    if "measured(" in read_there:
        parts += [file.read_text(encoding="utf-8") for file in MEASUREMENTS]
    if any("benchmarks/" in cell.source for cell in cells):
        parts.append((ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8"))
    return "\n".join(parts)


def figures(text):
    return {float(figure.replace(",", "").replace("_", "")) for figure in FIGURE.findall(text)}


def stands_there(figure, known):
    "A figure of prose is known as it stands, rounded, as a per cent, or as one of the counts up to twelve."
    value = float(figure.replace(",", ""))
    half = 0.5001 * 10.0 ** -len(figure.partition(".")[2])
    return value in range(13) or any(
        abs(value - scale * number) <= half for number in known for scale in (0.01, 1, 100)
    )


def unproved(notebook):
    "The sentences with a figure that stands in no code and no output of their notebook."
    cells = read(notebook)
    known = figures(texts(cells))
    exercises = next((i for i, cell in enumerate(cells) if "\n## Exercises" in "\n" + cell.source), len(cells))
    found = []
    for i, cell in enumerate(cells[:exercises]):
        if cell.cell_type != "markdown":
            continue
        for sentence in sentences(re.sub(r"^> .*$", "", cell.source, flags=re.M)):  # without quoted error messages
            plain = NO_FIGURE.sub("", sentence)
            missing = [figure for figure in FIGURE.findall(plain) if not stands_there(figure, known)]
            if missing:
                source = "http" in cell.source or re.search(r"\b20[12]\d\b", sentence)
                place = notebook.relative_to(ROOT).as_posix()
                one = {"id": f"{notebook.stem}#{cell.id}", "notebook": place, "cell": i, "figures": missing}
                found.append({**one, "sentence": sentence, "kind": "cited" if source else "not asserted"})
    return found


def sections(cells):
    "Each section from its `##` heading on: the number of its first cell, its heading and its cells."
    found = []
    for i, cell in enumerate(cells):
        heading = re.match(r"##? (.+)", cell.source) if cell.cell_type == "markdown" else None
        if heading:
            found.append((i, heading[1], []))
        if found:
            found[-1][2].append(cell)
    return found


def without_proof(notebook):
    "The sections that explain and prove nothing, and the cells that wait for a GPU."
    cells = read(notebook)
    names = library_names(cells)
    place = notebook.relative_to(ROOT).as_posix()
    found = []
    for i, heading, inside in sections(cells)[1:]:
        said = [sentence for cell in inside if cell.cell_type == "markdown" for sentence in sentences(cell.source)]
        proofs = [cell for cell in inside if cell.cell_type == "code" and kind(cell.source, names)]
        if said and not proofs and heading not in NO_CLAIMS:
            found.append({"notebook": place, "cell": i, "section": heading, "sentence": said[0], "kind": "explained"})
    for i, cell in enumerate(cells):
        if cell.cell_type == "code" and re.search(r"^#\s*\|\s*gpu\b", cell.source, re.M) and not cell.outputs:
            said = [
                sentence for above in cells[:i] if above.cell_type == "markdown" for sentence in sentences(above.source)
            ]
            found.append({"notebook": place, "cell": i, "section": "", "sentence": said[-1], "kind": "not run yet"})
    return found


def ledger(chosen):
    return [one for notebook in chosen for one in claims(notebook) + unproved(notebook) + without_proof(notebook)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all")
    parser.add_argument("--check", action="store_true", help="write nothing, and fail for a figure that nothing shows")
    asked = parser.parse_args()
    found = ledger([notebook.resolve() for notebook in asked.notebooks] or notebooks())
    print(len(found), "claims:", dict(Counter(claim["kind"] for claim in found)))
    if not asked.check:
        CLAIMS.parent.mkdir(exist_ok=True)
        CLAIMS.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    wrong = [claim for claim in found if claim["kind"] == "not asserted" and "/package/" not in claim["notebook"]]
    for one in wrong:
        print(
            f"{one['notebook']}, cell {one['cell']}: {', '.join(one['figures'])} stands in no code, output or measurement:"
        )
        print(f"  {one['sentence']}")
    if wrong and asked.check:
        sys.exit("assert the figure in the next cell, name its source, or leave it out")


if __name__ == "__main__":
    main()
