"""The text of an issue about a red leg: which sentences became false, and which versions changed.

python tools/broken_claims.py REPORT.xml ... [--versions GREEN.txt FREEZE.txt] [--claims FILE.json]

REPORT.xml is pytest's or .ci/cells.py's; GREEN.txt and FREEZE.txt are as of `pip freeze`. .ci/issue opens the issue.
"""

import argparse
import json
import re
from pathlib import Path
from xml.etree import ElementTree

from claims import ledger, notebooks

ROOT = Path(__file__).resolve().parents[1]


def failures(reports):
    "Of each failing test its name, its error, and the notebook and cell that failed, where it ran one"
    for case in (case for report in reports for case in ElementTree.parse(report).iter("testcase")):
        known = {p.get("name"): p.get("value") for p in case.iter("property")}
        for failed in [child for child in case if child.tag in ("failure", "error")][:1]:
            error = known.get("error") or failed.text or failed.get("message") or ""
            name = f"{case.get('classname')}::{case.get('name')}"
            yield name, error, known.get("notebook"), int(known.get("cell", -1))


def last_lines(traceback):
    "The line of the cell that failed, where the traceback has it, and the error's type and message"
    code = re.findall(r'  File "<ipython.*\n +(.*)', traceback)[:1]
    _, last, said = traceback.rpartition('\n  File "')
    lines = re.findall(r"^\S.*", "  " + said if last else said, re.M) or [""]
    return [*code, lines[0 if last else -1][:300]]


def around(notebook, cell):
    "The paragraphs before and behind the cell, quoted"
    cells = json.loads((ROOT / notebook).read_text(encoding="utf-8"))["cells"]
    text = ["".join(c["source"]) if c["cell_type"] == "markdown" else "" for c in cells]
    before, behind = ("\n\n".join(filter(None, part)) for part in (text[:cell], text[cell:]))
    return "> " + "\n> \n> ".join([before.split("\n\n")[-1], behind.split("\n\n")[0]])


def versions(file):
    found = re.findall(r"^([\w.-]+) ?(?:==|@) ?(\S+)", Path(file).read_text(), re.M)
    return {re.sub(r"[-_.]+", "-", name).lower(): v.rpartition("@")[2].partition("+")[0][:20] for name, v in found}


def issue(failed, claims, before, now):
    cells, others = {}, {}
    for name, error, notebook, cell in failed:
        if told := [c for c in claims if (c["notebook"], c["cell"]) == (notebook, cell)]:
            unread = sum(c["notebook"] == notebook and c["cell"] > cell for c in claims)
            cells[notebook, cell] = told, last_lines(error), unread
        else:
            where = f" ({notebook}, cell {cell})" if notebook else ""
            others[name] = f"- `{name}`{where}: `{last_lines(error)[-1]}`"
    yield "## Sentences that became false, or are no longer proved" if cells else "No listed sentence became false."
    for (notebook, cell), (told, lines, unread) in sorted(cells.items()):
        yield from (f"\n> {claim['sentence']}" for claim in told)
        yield from [f'\n`{notebook}`, section "{told[0]["section"]}", cell {cell}:\n```', *lines, "```"]
        yield f"Before and behind the cell stands:\n\n{around(notebook, cell)}"
        yield f"\nThe notebook ended there; sentences behind it that were not checked: {unread}."
    none = "None. If nothing failed above either, the leg ended before or beside the tests: see its log."
    yield from ["\n## Failing tests that prove no sentence of the list\n", *(others.values() or [none])]
    if changed := [(n, before[n], now[n]) for n in sorted(before.keys() & now.keys()) if before[n] != now[n]]:
        yield "\n## Versions that changed\n\n| package | when it was last green | now |\n|---|---|---|"
        yield from (f"| {' | '.join(row)} |" for row in changed)
    elif now:
        yield "\nNo version changed since the leg was last green: look for a change of the repository or the machine."


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("reports", nargs="*")
    parser.add_argument("--claims", type=Path, help="default: those of the notebooks as they are")
    parser.add_argument("--versions", nargs=2, type=versions, default=({}, {}))
    args = parser.parse_args()
    failed = [*failures(args.reports)]
    broken = {ROOT / notebook for _, _, notebook, _ in failed if notebook}
    chosen = [notebook for notebook in notebooks() if notebook in broken]
    claims = json.loads(args.claims.read_text(encoding="utf-8")) if args.claims else ledger(chosen)
    print(*issue(failed, claims, *args.versions), sep="\n")
