"""The ledger of claims: which sentence of which notebook is shown by which cell

python tools/claims.py                        # writes docs/claims.json, which the site shows
python tools/claims.py --check                # writes nothing, and fails for a figure of the course that nothing shows
python tools/claims.py --check nbs/10_sft.ipynb

A cell is a proof where it asserts something, expects an error, or reads a measurement. Its claim is the sentence before
it; where the cell is folded, which comes after a result, the sentence after it. A sentence with a figure that no code,
output or measurement of its notebook holds is "cited" where it names its source, else "not asserted"; a section without
a proof is "explained" only; a cell for a GPU that no card has run is "not run yet". When a proof was last run stands in
docs/proofs.json, which a green run of the tests writes, never this tool; docs/claims.json has it with each claim.
"""

import argparse
import ast
import json
import re
import sys
from collections import Counter
from pathlib import Path

from course_pages import BETWEEN, NBS, POINTS_BACK, is_hidden, parsed, read

ROOT = NBS.parent
CLAIMS = ROOT / "docs" / "claims.json"
PROOFS = ROOT / "docs" / "proofs.json"
EXPLAINED = 114  # sections that explain and prove nothing: as many as there are, and no more
NOT_PROSE = re.compile(r"^```.*?^```|^#.*?$|^\|.*?$|^!\[.*?$|^\*[^*\n]+\*$|<!--.*?-->", re.M | re.S)
LIBRARIES = {"accelerate", "bitsandbytes", "datasets", "gguf", "lm_eval", "openai", "peft", "sklearn", "tokenizers"}
LIBRARIES |= {"transformers", "trl", "xllamacpp"}
GUIDES = "## What guides say"
NO_CLAIMS = {"Exercises", "What to remember", "Where this lives", "Use", "What you can do now"}
ONLY_LINKS = re.compile(r"\[[^]]*\]\([^)]*\)|[\s,.]|\band\b")
COMPARES = re.compile(r"\b(assert_\w+|allclose|isclose|equal|\w*close)\(|==")
MEASUREMENTS = sorted((ROOT / "ft_notebooks" / "course" / "measurements").glob("*.json"))
FIGURE = re.compile(r"(?<![\w.#])\d[\d,_]*(?<![,_])(?:\.\d+)?(?!\w)")
NAMED = "TRL|transformers|bitsandbytes|PEFT|[Tt]orch|PyTorch|Python|Accelerate|datasets|vLLM|CUDA|Llama|Qwen|Gemma|Phi"
NO_FIGURE = re.compile(  # code, formulas, links, numbers of lessons, exercises, issues and versions
    r"`[^`]*`|\$[^$]*\$|\]\([^)]*\)|https?://\S+"
    r"|([Ll]essons?|[Ii]ssues?|discussion|[Ee]xercise|Port) \d[\d.]*((, | and | to )\d+)*"
    r"|\*\*\d+\.\d.*?\*\*|\b(" + NAMED + r")[ -]?\d+(\.\d+)*\b|\b[A-Z]\w+-\d{3,}\b|\b\w+'s \d+ million"
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
        parts = BETWEEN.split(words)
        for i in reversed(range(1, len(parts))):
            if parts[i - 1].endswith("et al.") or parts[i].startswith("(20"):  # a source, which ends no sentence
                parts[i - 1 : i + 1] = [f"{parts[i - 1]} {parts[i]}"]
        found += [part for part in parts if len(part.split()) > 2]
    return [part for part in found if not part.startswith("*Not") and re.sub(ONLY_LINKS, "", part)]


def alone(said):
    "Sentences that can be read alone: none that asks, and each that points back behind the one that it points to."
    whole = []
    for i, sentence in enumerate(said):
        needs_more = len(sentence.split()) < 6 or POINTS_BACK.match(sentence) or sentence[0].islower()
        whole.append(f"{said[i - 1]} {sentence}" if needs_more and i else sentence)
    return [sentence for sentence in whole if not re.search(r"\?\W*$", sentence)]


def plain(sentence):
    "Without the marks of Markdown, and closed where the cell that follows says the rest."
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", sentence)
    text = re.sub(r"\*+([^*`]+)\*+", r"\1", text).strip().removesuffix(":")
    return text if text.endswith((".", "!", "?", ".)", '."')) else f"{text}."


def library_names(cells):
    "What a notebook imports from the libraries that it compares with."
    names = set()
    for cell in cells:
        if cell.cell_type != "code" or "import" not in cell.source:
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
    if not (names and COMPARES.search(code)):
        return "assertion"
    used = {node.id for node in parsed(code) if isinstance(node, ast.Name)}
    return "library" if used & names else "assertion"


def words(text):
    "What a sentence and a cell can share: names, words and numbers, the short ones left out."
    return {word for word in re.findall(r"\d[\d,.]*\d|\d|[a-z]{3,}", text.lower().replace(",", ""))}


def nearest(code, said, default):
    "Of the sentences beside a cell the one that shares the most with its code, and the default where none shares more."
    own = words(code)

    def shared(sentence):  # a number such as 1,024 says more than a word
        return sum(3 if len(word) > 2 and word[0].isdigit() else 1 for word in words(sentence) & own)

    return max([default, *said], key=shared) if said else default


def claims(notebook):
    "Each proof of a notebook with its sentence; `sentence` is empty where no prose stands beside it."
    cells = read(notebook)
    names = library_names(cells)
    place = notebook.relative_to(ROOT).as_posix()
    section, said, found = "", [], []
    for i, cell in enumerate(cells):
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#+ (.+)$", cell.source, re.M)
            section = headings[-1] if headings else section
            said = alone(sentences(cell.source)) or said
            continue
        how = kind(cell.source, names)
        if how is None or "#| export" in cell.source:
            continue
        after = next((c.source for c in cells[i + 1 :] if c.cell_type == "markdown"), "")
        behind = alone(sentences(after)) if is_hidden(cell) and not re.match(r"\s*#", after) else []
        default = behind[0] if behind else (said or [""])[-1]
        one = {"id": f"{notebook.stem}#{cell.id}", "notebook": place, "cell": i, "section": section}
        if how == "measurement":  # the records have the command, the seeds, the machine and the versions
            names_read = re.findall(r"\bmeasured\(['\"](\w+)['\"]", cell.source)
            one["records"] = [f"ft_notebooks/course/measurements/{name}.json" for name in names_read]
        found.append({**one, "sentence": plain(nearest(cell.source, said + behind, default)), "kind": how})
    return found


def corrected(notebook):
    "The rows of the table of what guides say, each with what is true."
    place = notebook.relative_to(ROOT).as_posix()
    heading, lines = "", []
    for i, cell in enumerate(read(notebook)):
        for line in cell.source.splitlines() if cell.cell_type == "markdown" else []:
            if line.startswith("## "):
                heading = line
            elif heading == GUIDES and line.startswith("|"):
                lines.append((i, line.strip("|")))
    found = []
    for i, row in lines[2:]:  # below the table's head
        claim, truth = (part.strip() for part in re.split(r"(?<!\\)\|", row, maxsplit=1))
        one = {"notebook": place, "cell": i, "section": "What guides say", "sentence": claim}
        found.append({**one, "verdict": truth, "kind": "guides say"})
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
            bare = NO_FIGURE.sub("", sentence)
            missing = [figure for figure in FIGURE.findall(bare) if not stands_there(figure, known)]
            if missing:
                source = "http" in cell.source or re.search(r"\b20[12]\d\b", sentence)
                place = notebook.relative_to(ROOT).as_posix()
                one = {"id": f"{notebook.stem}#{cell.id}", "notebook": place, "cell": i, "figures": missing}
                found.append({**one, "sentence": plain(sentence), "kind": "cited" if source else "not asserted"})
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


def waits_for_gpu(source, outputs):
    return bool(re.search(r"^#\s*\|\s*gpu\b", source, re.M)) and not outputs


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
            found.append(
                {"notebook": place, "cell": i, "section": heading, "sentence": plain(said[0]), "kind": "explained"}
            )
    for i, cell in enumerate(cells):
        if cell.cell_type == "code" and waits_for_gpu(cell.source, cell.outputs):
            said = [
                sentence for above in cells[:i] if above.cell_type == "markdown" for sentence in sentences(above.source)
            ]
            found.append(
                {"notebook": place, "cell": i, "section": "", "sentence": plain(said[-1]), "kind": "not run yet"}
            )
    return found


def found_in(notebook):
    return claims(notebook) + corrected(notebook) + unproved(notebook) + without_proof(notebook)


def ledger(chosen):
    return [one for notebook in chosen for one in found_in(notebook)]


def proofs():
    return json.loads(PROOFS.read_text(encoding="utf-8")) if PROOFS.exists() else {"runs": {}, "notebooks": {}}


def last_proof(notebook):
    "When the tests last ran a notebook, and with what; None where they have not."
    all_proofs = proofs()
    one = all_proofs["notebooks"].get(notebook.relative_to(ROOT / "nbs").with_suffix("").as_posix())
    return one and one | all_proofs["runs"][one["run"]]


def with_proofs(found):
    "Each with its notebook's last green run: day, seconds, device, versions; what waits for a GPU has none."
    last = {name: last_proof(ROOT / name) for name in {claim["notebook"] for claim in found}}
    return [{**one, "proof": None if one["kind"] == "not run yet" else last[one["notebook"]]} for one in found]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all")
    parser.add_argument("--check", action="store_true", help="write nothing, and fail for a figure that nothing shows")
    asked = parser.parse_args()
    found = ledger([notebook.resolve() for notebook in asked.notebooks] or notebooks())
    print(len(found), "claims:", dict(Counter(claim["kind"] for claim in found)))
    if not asked.check:
        CLAIMS.parent.mkdir(exist_ok=True)
        CLAIMS.write_text(json.dumps(with_proofs(found), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    wrong = [claim for claim in found if claim["kind"] == "not asserted"]
    for one in wrong:
        print(f"{one['notebook']}, cell {one['cell']}: nothing there holds {', '.join(one['figures'])}")
        print(f"  {one['sentence']}")
    explained = [claim for claim in found if claim["kind"] == "explained"]
    if asked.check and len(explained) > EXPLAINED:
        for one in explained:
            print(f"{one['notebook']}, cell {one['cell']}, {one['section']}: no cell proves\n  {one['sentence']}")
        sys.exit(f"{len(explained)} sections prove nothing, at most {EXPLAINED}: assert what the new one says")
    if wrong and asked.check:
        sys.exit("assert the figure in the next cell, name its source, or leave it out")


if __name__ == "__main__":
    main()
