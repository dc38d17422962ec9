"""Plants faults and benign variations in a good run, and counts what five detectors find

python benchmarks/faults/run.py                       # all: faults.json, and the tables
python benchmarks/faults/run.py --only "rope theta"   # those whose name contains the text, with what was said
python benchmarks/faults/run.py --tenth 0 --detectors doctor
"""

import argparse
import gc
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "tests")]

import benign
import data_faults
import detectors
import estimates
import model_faults
import rl_faults
import scripts
import settings_faults
import stage_faults
from detectors import LEVELS
from good import Case, good_case, train_base
from plant import GROUPS, Benign, Fault

from ft_notebooks.loading.quantized_loading import load_model

FAULTS: list[Fault] = [
    *data_faults.FAULTS, *model_faults.FAULTS, *settings_faults.FAULTS, *scripts.FAULTS, *rl_faults.FAULTS,
    *stage_faults.FAULTS,
]  # fmt: skip
BENIGN: list[Benign] = [*benign.BENIGN, *stage_faults.BENIGN]
DETECTORS = ("doctor", "ft", "trl", "loss curve", "traincheck")
RESULT = Path(__file__).parent / "faults.json"
PICTURE = Path(__file__).parents[1] / "fault_bench.png"


def made(one: Fault | Benign, base: Path, folder: Path) -> tuple[Case, Case]:
    "The case with its change, and the good one beside it."
    cases = []
    for name in ("good", "planted"):
        case = good_case(base, folder / name, one.stage)
        if one.start == "adapter":
            model_faults.adapter(case)
        if one.start == "tools":
            stage_faults.call_tools(case)
        cases.append(case)
    good, planted = cases
    one.plant(planted)
    return planted, good


class Bench:
    "A base, the good runs of each stage as every detector sees them, and the records."

    def __init__(self, folder: Path, names: tuple[str, ...], steps: int | None = None, quick: tuple[str, ...] = ()):
        self.folder, self.names, self.records, self.good = folder, names, [], {}
        self.quick = quick  # groups whose faults the doctor finds without the model
        os.environ.setdefault(estimates.FOLDER, str(folder / "estimates"))
        Path(os.environ[estimates.FOLDER]).mkdir(exist_ok=True)
        estimates.share()  # of memory, which are the same for most cases
        train_base(folder / "base", **{"steps": steps} if steps else {})
        load_model(folder / "base", 32)  # what transformers compiles once, for all forks
        gc.collect()
        gc.freeze()  # a trainer begins with gc.collect(), which would look at half a million objects of the libraries

    def said(self, case: Case, quick: bool = False) -> dict[str, detectors.Said]:
        "What each detector says of a case."
        found = {}
        if "doctor" in self.names:
            found["doctor"] = detectors.forked(lambda: detectors.doctor(case, quick))
        if "ft" in self.names:
            found["ft"] = detectors.forked(lambda: detectors.commands(case))
        if {"trl", "loss curve"} & {*self.names}:
            found["trl"] = detectors.forked(lambda: detectors.library(case))
            fault = "" if case.stage == "grpo" else detectors.curve_fault(found["trl"].losses)
            found["loss curve"] = detectors.Said(bool(fault), [("warning", fault)] if fault else [])
            found["loss curve"].seconds = found["trl"].seconds
        return {name: said for name, said in found.items() if name in self.names}

    def usual(self, case: Case, kind: str) -> dict[str, set[str]]:
        "What the detectors that judge by lines say of the good run."
        if kind not in self.good:
            said = self.said(case)
            self.good[kind] = {
                name: {line for _, text in one.findings for line in detectors.plain_lines(text)}
                for name, one in said.items()
            }
            self.good[kind, "said"] = said
        return self.good[kind]

    def look(self, one: Fault | Benign) -> list[dict]:
        place = Path(tempfile.mkdtemp(dir=self.folder))
        case, good = made(one, self.folder / "base", place)
        changed, parts = case.changed(good), getattr(one, "parts", 1)
        assert len(changed) == parts, (one.name, changed)
        kind = f"{one.stage} {one.start} {case.script is not None}"
        if case.script is not None:
            good.script = benign.nothing_else
        quick = isinstance(one, Fault) and one.group in self.quick
        said = self.said(case, quick)
        if isinstance(one, Benign) or case.script is None:
            said_alone = {"doctor"} & {*said}  # it says nothing of a good run; where it does, that is a false alarm
        else:
            said_alone = set()
        usual = self.usual(good, kind) if {*said} - said_alone else {}
        found = [record(one, name, s, set() if name in said_alone else usual[name]) for name, s in said.items()]
        shutil.rmtree(place)
        self.records += found
        return found


def record(one: Fault | Benign, name: str, said: detectors.Said, usual: set[str]) -> dict:
    "One line of the result."
    new = said.findings
    if name != "loss curve":
        new = [(level, text) for level, text in new if not set(detectors.plain_lines(text)) <= usual]
        new.sort(key=lambda found: -LEVELS.index(found[0]))
    found = said.found if name in ("ft", "loss curve") else bool(detectors.above_notes(new))
    right = None
    if isinstance(one, Fault):
        counted = LEVELS[LEVELS.index(one.least) :] if name == "doctor" else LEVELS
        right = any(level in counted and names_cause(one, text) for level, text in new)
        if name == "doctor":
            found = any(level in counted for level, _ in new)
        if name == "ft":
            found = found or right
        if name == "loss curve":
            right = False  # a curve names no cause
        right = right and found
    kind = "fault" if isinstance(one, Fault) else "benign"
    own = {"group": one.group, "holdout": one.holdout, "knowable": not one.unknowable} if kind == "fault" else {}
    return {
        "name": one.name, "kind": kind, "stage": one.stage, **own, "detector": name, "found": found, "right": right,
        "seconds": round(said.seconds, 2), "failed": said.failed[-300:],
        "said": [f"{level}: {text[:300]}" for level, text in new][:6],
    }  # fmt: skip


def judged(one: dict) -> dict:
    "A record, with what was said judged again by the present patterns."
    fault = next((fault for fault in FAULTS if fault.name == one["name"]), None)
    if fault is None or one["detector"] == "loss curve":
        return one
    counted = LEVELS[LEVELS.index(fault.least) :] if one["detector"] == "doctor" else LEVELS
    texts = [text for level, _, text in (said.partition(": ") for said in one["said"]) if level in counted]
    found = bool(texts) if one["detector"] == "doctor" else one["found"]
    is_cut = any(len(text) >= 290 and not NO_CAUSE.search(text) for text in texts)  # in the file
    right = any(names_cause(fault, text) for text in texts) or (one["right"] and is_cut)
    return {**one, "found": found, "right": found and right}


NO_CAUSE = re.compile(r"could-not-look|Column '\w+' doesn't exist|traceback: ")  # an error from inside names none


def names_cause(fault: Fault, text: str) -> bool:
    return not NO_CAUSE.search(text) and re.search(fault.cause, text, re.IGNORECASE | re.DOTALL) is not None


def chosen(only: str | None, tenth: int | None) -> list[Fault | Benign]:
    every = [*FAULTS, *BENIGN]
    if only:
        words = [word.strip().lower() for word in only.split("|")]
        return [one for one in every if any(w in one.name.lower() or w == getattr(one, "group", "") for w in words)]
    if tenth is not None:
        draw = random.Random(tenth)
        return draw.sample(FAULTS, len(FAULTS) // 10) + draw.sample(BENIGN, len(BENIGN) // 10)
    return every


def counted(records: list[dict], name: str, key: str) -> str:
    "How many records of a detector have a value that is true."
    mine = [r for r in records if r["detector"] == name]
    return str(sum(bool(r[key]) for r in mine)) if mine else "–"


def table(records: list[dict]) -> str:
    "By group as Markdown: the faults whose right cause a detector names and, in brackets, those that it finds."
    names = [name for name in DETECTORS if any(r["detector"] == name for r in records)]
    faults = [r for r in records if r["kind"] == "fault" and r["knowable"]]
    harmless = [r for r in records if r["kind"] == "benign"]
    parts = {group: [r for r in faults if r["group"] == group] for group in GROUPS}
    parts |= {"**all**": faults, "first instances": [r for r in faults if not r["holdout"]]}
    parts |= {"held-out instances": [r for r in faults if r["holdout"]]}
    lines = ["| group | faults | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for title, part in parts.items():
        cells = [f"{counted(part, name, 'right')} ({counted(part, name, 'found')})" for name in names]
        lines.append(f"| {title} | {len({r['name'] for r in part})} | " + " | ".join(cells) + " |")
    alarms = [counted(harmless, name, "found") for name in names]
    lines.append(f"| false alarms | {len({r['name'] for r in harmless})} | " + " | ".join(alarms) + " |")
    seconds = [sorted(r["seconds"] for r in records if r["detector"] == name) for name in names]
    cells = [f"{each[len(each) // 2]:.1f} (at most {each[-1]:.1f})" for each in seconds]
    return "\n".join([*lines, "| CPU seconds a look, median | | " + " | ".join(cells) + " |"])


def draw(records: list[dict], file: Path) -> None:
    "By group and detector: the share of faults whose cause is named, and lighter what is only found."
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in DETECTORS if any(r["detector"] == name for r in records)]
    faults = [r for r in records if r["kind"] == "fault" and r["knowable"]]
    figure, axes = pyplot.subplots(figsize=(9, 3.6))
    for n, name in enumerate(names):
        for key, alpha in (("found", 0.35), ("right", 1.0)):
            shares = []
            for group in GROUPS:
                mine = [r for r in faults if r["group"] == group and r["detector"] == name]
                shares.append(100 * sum(bool(r[key]) for r in mine) / max(len(mine), 1))
            places = [g + (n - (len(names) - 1) / 2) * 0.8 / len(names) for g in range(len(GROUPS))]
            label = name if key == "right" else None
            axes.bar(places, shares, 0.75 / len(names), color=f"C{n}", alpha=alpha, label=label)
    axes.set_xticks(range(len(GROUPS)), [group.replace(" ", "\n", 1) for group in GROUPS])
    axes.set_ylabel("% of the faults")
    axes.set_title("cause named (dark), only found (light)", fontsize=10, loc="left")
    axes.legend(fontsize=8, ncols=len(names), loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110, bbox_inches="tight", metadata={"Software": None})


def missed(records: list[dict], name: str, holdouts: bool) -> str:
    "The faults that a detector misses or misnames, and its false alarms, as Markdown; of held-out ones their number."
    mine = [r for r in records if r["detector"] == name]
    faults, lines = [r for r in mine if r["kind"] == "fault" and r["knowable"]], []
    for title, part in {
        "not found": [r for r in faults if not r["found"]],
        "found, another cause named": [r for r in faults if r["found"] and not r["right"]],
        "false alarms": [r for r in mine if r["kind"] == "benign" and r["found"]],
        "could not look": [r for r in mine if r["failed"]],
    }.items():
        shown = [r for r in part if holdouts or not r.get("holdout")]
        hidden = [r["group"] for r in part if r not in shown]
        lines.append(f"## {name}: {title} ({len(part)})\n")
        for r in shown:
            lines.append(f"- {r['name']} ({r.get('group', 'benign')}, {r['stage']}) {r['failed']}")
            first = {text.partition(" | ")[0]: text for text in reversed(r["said"])}  # one of each code
            lines += [f"    - {text}" for text in reversed(first.values()) if not text.startswith("note")]
        counts = ", ".join(f"{hidden.count(group)} of {group}" for group in GROUPS if group in hidden)
        lines += [f"- held-out instances, not listed: {counts}"] * bool(hidden) + [""]
    return "\n".join(lines)


def merged(file: Path, records: list[dict]) -> list[dict]:
    "The records of a file, with new ones in their place, in the order of the lists."
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    found = {(r["name"], r["detector"]): r for r in [*known, *records]}
    order = {one.name: i for i, one in enumerate([*FAULTS, *BENIGN])}
    kept = [r for r in found.values() if r["name"] in order]
    return sorted(kept, key=lambda r: (order[r["name"]], DETECTORS.index(r["detector"])))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", metavar="TEXT", help="part of a name, or a group; several are separated by |")
    options.add_argument("--tenth", metavar="SEED", type=int)
    options.add_argument("--detectors", metavar="NAMES", default="doctor,ft,trl,loss curve")
    options.add_argument("--json", metavar="FILE", type=Path, default=RESULT, help="records are put into it")
    options.add_argument("--rest", action="store_true", help="only what the file has no record of")
    options.add_argument("--missed", metavar="FILE", type=Path, help="Markdown: what each detector missed")
    options.add_argument("--holdouts", action="store_true", help="list held-out instances there, too")
    options.add_argument("--table", action="store_true", help="only print, and draw, the table of the records")
    args = options.parse_args()
    if args.table:
        records = [judged(r) for r in json.loads(args.json.read_text(encoding="utf-8"))]
        print(table(records))
        draw(records, PICTURE)
        if args.missed:
            write_missed(args, records)
        return
    names = tuple(name for name in DETECTORS if name in args.detectors.split(","))
    ones, start, records = chosen(args.only, args.tenth), time.monotonic(), []
    if args.rest and args.json.is_file():
        known = {(r["name"], r["detector"]) for r in json.loads(args.json.read_text(encoding="utf-8"))}
        ones = [one for one in ones if not {(one.name, name) for name in names} <= known]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), names)
        for i, one in enumerate(ones):
            for r in bench.look(one):
                mark = "found" * r["found"] + ", right" * bool(r["right"]) or "-"
                print(f"{i + 1}/{len(ones)} {r['name']}: {r['detector']}: {mark} {r['failed'][-200:]}", flush=True)
                if args.only:
                    print("\n".join(f"    {text}" for text in r["said"]))
            records = bench.records
            if args.json != RESULT or not args.only and args.tenth is None:
                lines = (json.dumps(one, ensure_ascii=False) for one in merged(args.json, records))
                args.json.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    print(table(records))
    print(f"{time.monotonic() - start:.0f} s")
    if args.missed:
        write_missed(args, records)


def write_missed(args, records: list[dict]) -> None:
    names = [name for name in args.detectors.split(",") if any(r["detector"] == name for r in records)]
    args.missed.write_text("\n".join(missed(records, name, args.holdouts) for name in names), encoding="utf-8")


if __name__ == "__main__":
    main()
