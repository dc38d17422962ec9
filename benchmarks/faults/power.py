"""The smallest fault that each instrument names, and how often instruments speak of rows in order

python benchmarks/faults/power.py               # the table, false alarms, and fault_power.png: some CPU minutes
python benchmarks/faults/power.py --only heaps  # some instruments, without figure and false alarms
"""

# ruff: noqa: E501 (the table has a line for each)

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kinds import (
    CHATS,
    PAIRS,
    TEAMS,
    judged,
    lines,
    notes,
    notices,
    options,
    ordered,
    orders,
    said,
    talks,
    tickets,
    trips,
)  # fmt: skip

from ft_notebooks.doctor.unusual_rows import INSTRUMENTS
from ft_notebooks.instruments import copying, evidence, fit, labels, pair_features, pairs
from ft_notebooks.instruments.evidence import Anomaly
from ft_notebooks.instruments.pairs import Pairs
from ft_notebooks.instruments.texts import Texts, sampled_rows

SIZES = (100, 1_000, 10_000)
SEEDS = 3
SHARES = sorted(2 ** (-step / 2) for step in range(20))  # of the rows, from 0.0014 to 1
IN_ORDER = 25  # draws of each kind
LEVELS = ("warning", "note", "question")
PICTURE = Path(__file__).parents[1] / "fault_power.png"


# Faults: row i of rows in order, spoiled.


def answer(change):
    return lambda rows, i: [*rows[i][:-1], {**rows[i][-1], "content": change(rows[i][-1]["content"])}]


def late(text):
    known = json.loads(text)
    hour, minute = map(int, known["time"].split(":"))
    return json.dumps(known | {"time": f"{hour:02d}:{(minute + 25) % 60:02d}"})


def exchanged_texts(rows, i):
    *before, asked, told = rows[i]
    return [*before, {**asked, "content": told["content"]}, {**told, "content": asked["content"]}]


def rejected(change):
    return lambda rows, i: {**rows[i], "rejected": said("", change(rows[i]["chosen"][0]["content"]))[1:]}


def exchanged(rows, i, names=("chosen", "rejected")):
    return {**rows[i], names[0]: rows[i][names[1]], names[1]: rows[i][names[0]]}


def exchanged_cities(text):
    known = json.loads(text)
    return json.dumps({"from": known["to"], "to": known["from"]})


def other_team(text):
    return next(team for team in TEAMS if team != text)


# Parts of instruments, each with a fault of its own.


def displaced_by_size(texts):
    return fit.displaced(texts, fit.WordFit(texts), fit.SizeFit(texts))


def exchanged_slots(texts):
    return [one for one in copying.copied_values(texts) if one.code == "values-exchanged"]


def exchanged_labels(texts):
    return [one for one in labels.strange_labels(texts) if one.code == "labels-exchanged"]


@dataclass(frozen=True)
class Fault:
    "What an instrument is for."

    find: Callable
    name: str
    kind: Callable
    spoiled: Callable  # (rows, i) -> row
    at_end: bool = False  # in the last rows, not scattered
    every: bool = False  # all rows are read, not a sample

    def planted(self, n: int, count: int, seed: int) -> tuple[Texts | Pairs, set[int]]:
        "What is read of n rows, `count` of them faulty, and the numbers of these."
        numbers = list(range(n)) if self.every else sampled_rows(n)
        rows = self.kind(len(numbers), seed)
        faulty = set(range(n - count, n) if self.at_end else random.Random(seed).sample(range(n), count))
        read = [self.spoiled(rows, i) if row in faulty else rows[i] for i, row in enumerate(numbers)]
        return (Pairs if isinstance(rows[0], dict) else Texts)(read, numbers), faulty

    def found(self, texts: Texts | Pairs, faulty: set[int]) -> list[Anomaly]:
        is_split = self.find is evidence.held_out_rows
        return self.find(texts, sorted(faulty)) if is_split else self.find(texts)

    def is_named(self, n: int, count: int, seed: int) -> bool:
        "Whether one anomaly names some rows, at least half of them faulty."
        texts, faulty = self.planted(n, count, seed)
        found = self.found(texts, faulty)
        return any(one.rows and len(faulty & {*one.rows}) >= len(one.rows) / 2 for one in found)

    def smallest(self, n: int) -> int | None:
        "The fewest faulty rows that are named in all seeds."
        counts = sorted({max(2, round(share * n)) for share in SHARES})
        return next((count for count in counts if all(self.is_named(n, count, seed) for seed in range(SEEDS))), None)


PLANTS = {
    "copied_values": ("times 25 minutes late", notes, answer(late)),
    "fit_of_answers": ("answers one row late", notes, lambda rows, i: [*rows[i][:-1], rows[i - 1][-1]], True),
    "repeated_text": ("one answer filled down", notes, lambda rows, i: [*rows[i][:-1], rows[0][-1]], True),
    "exchanged_roles": ("question and answer exchanged", orders, exchanged_texts),
    "turn_order": ("the newest turn first", talks, lambda rows, i: rows[i][4:] + rows[i][2:4] + rows[i][:2]),
    "option_marks": ("the letter of the next option", options, answer(lambda text: "BCDA"["ABCD".index(text[0])] + text[1:])),
    "strange_labels": ("the other label", tickets, answer(other_team)),
    "heaps": ("answers cut after 60 characters", notices, answer(lambda text: text[:60])),
    "answers_change": ("JSON without spaces, in a block", notes, answer(lambda text: text.replace('": ', '":')), True),
    "unshown_systems": ("a pirate's system message", notes, lambda rows, i: [{"role": "system", "content": "You are a pirate."}, *rows[i][1:]]),
    "added_pieces": ("an offer of more help", orders, answer(lambda text: f"{text} Let me know if you need anything else!")),
    "leftover_marks": ("<br> after the first word", orders, answer(lambda text: text.replace(" ", "<br> ", 1))),
    "unusual_forms": ("JSON in a code fence", notes, answer(lambda text: f"```json\n{text}\n```")),
    "questions_to_the_user": ("lower case", orders, answer(str.lower)),
}  # fmt: skip
OF_CHATS = [
    Fault(displaced_by_size, "translations one row late", lines, lambda rows, i: [*rows[i][:-1], rows[i - 1][-1]], True),
    Fault(exchanged_slots, "departure and arrival exchanged", trips, answer(exchanged_cities)),
    Fault(exchanged_labels, "the other label", tickets, answer(other_team), True),
]  # fmt: skip
OTHERS = [
    Fault(evidence.held_out_rows, "held-out JSON without spaces", notes, answer(lambda text: text.replace('": ', '":'))),
    Fault(pairs.contradicted_scores, "scores exchanged", judged, lambda rows, i: exchanged(rows, i, ("chosen_score", "rejected_score")), every=True),
    Fault(pairs.contradictory_pairs, "the pair before, exchanged", judged, lambda rows, i: exchanged(rows, i - 1), every=True),
    Fault(pairs.same_answers, "the same answer in lower case", judged, rejected(str.lower), every=True),
    Fault(pairs.answers_elsewhere, "rejected answers of another row", judged, lambda rows, i: {**rows[i], "rejected": rows[i - 7]["rejected"]}),
    Fault(pairs.exchanged_pairs, "chosen and rejected exchanged", ordered, exchanged),
    Fault(pair_features.deciding_feature, "rejected answers begin politely", judged, rejected(lambda text: f"Certainly: {text}")),
]  # fmt: skip
OF_TEXTS = [one for one in INSTRUMENTS if one.numbered]  # held-out rows are read with their numbers
FAULTS = [Fault(one.measure, *PLANTS[one.code]) for one in OF_TEXTS if one.code in PLANTS] + OF_CHATS + OTHERS


def false_alarms(n: int) -> Counter:
    "Of files in order with n rows, how many there are and how many get a finding of each level, with their names."
    found = Counter()
    of_chats = [one.measure for one in OF_TEXTS]
    of_pairs = [fault.find for fault in OTHERS[1:]]
    for kind in (*CHATS, *PAIRS):
        for seed in range(100, 100 + IN_ORDER):
            rows = kind(n, seed)
            measures, read = (of_pairs, Pairs(rows)) if kind in PAIRS else (of_chats, Texts(rows))
            anomalies = [one for measure in measures for one in measure(read)]
            if kind in CHATS:
                anomalies += evidence.held_out_rows(read, random.Random(seed).sample(range(n), n // 5))
            found["files"] += 1
            found.update({one.level for one in anomalies})
            found.update({f"{one.code} ({kind.__name__})" for one in anomalies})
    return found


def draw(table: dict[str, list[int | None]], file: Path) -> None:
    "By instrument the smallest share of faulty rows, a mark for each size of the file."
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = sorted(table, key=lambda name: table[name][1] or SIZES[1], reverse=True)
    figure, axes = pyplot.subplots(figsize=(9, 6.5))
    for place, (n, marker) in enumerate(zip(SIZES, "osD")):
        named = [(100 * table[name][place] / n, y) for y, name in enumerate(names) if table[name][place]]
        axes.scatter(*zip(*named), s=34, marker=marker, color=f"C{place}", label=f"{n:,} rows", zorder=3 - 0.1 * place)
    axes.set_xscale("log")
    axes.set_xticks([0.02, 0.1, 0.5, 1, 3, 10, 30, 100], ["0.02", "0.1", "0.5", "1", "3", "10", "30", "100"])
    axes.set_yticks(range(len(names)), names)
    axes.grid(alpha=0.3)
    axes.set_xlabel("smallest share of faulty rows that is named, %")
    axes.legend(loc="lower right")
    figure.savefig(file, dpi=110, bbox_inches="tight", metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of instruments")
    only = parser.parse_args().only
    print("| instrument | fault | 100 | 1,000 | 10,000 | CPU s at 1,000 |\n|---|---|---|---|---|---|")
    table = {}
    for fault in FAULTS:
        name = fault.find.__name__
        if only and name not in only:
            continue
        table[name] = [fault.smallest(n) for n in SIZES]
        planted = fault.planted(1_000, 30, seed=0)
        start = time.process_time()
        fault.found(*planted)
        seconds = time.process_time() - start
        counts = " | ".join(f"{count:,}" if count else "–" for count in table[name])
        print(f"| `{name}` | {fault.name} | {counts} | {seconds:.2f} |", flush=True)
    if only:
        return
    draw(table, PICTURE)
    for n in SIZES[0], 300:
        found = false_alarms(n)
        levels = ", ".join(f"{level} {found.pop(level, 0) / found['files']:.1%}" for level in LEVELS)
        print(f"\n{found.pop('files')} files in order of {n} rows: {levels}; {dict(found)}")


if __name__ == "__main__":
    main()
