"""The text of an issue about a red leg: which sentences became false, and which versions changed.

python tools/broken_claims.py REPORT.xml ... [--before GREEN.txt] [--now FREEZE.txt] [--claims docs/claims.json]

REPORT.xml is pytest's (--junitxml) or .ci/cells.py's. GREEN.txt and FREEZE.txt are lists of NAME==VERSION, as of
`pip freeze`. .ci/issue opens the issue.
"""

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]


def failures(reports):
    "Of each failing test its name, its error, and the notebook and cell that failed, where it ran one"
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            if (failed := case.find("failure")) is None and (failed := case.find("error")) is None:
                continue
            known = {p.get("name"): p.get("value") for p in case.iter("property")}
            name = f"{case.get('classname', '')}::{case.get('name')}"
            error = known.get("error") or failed.text or failed.get("message") or ""
            yield name, error, known.get("notebook"), int(known["cell"]) if "cell" in known else None


def last_line(traceback):
    "The line of the cell that failed, if the traceback has it, and the error's type and message"
    code = re.search(r'  File "<ipython.*\n\s+(.*)', traceback)
    last = traceback[max(traceback.rfind('\n  File "'), 0) :]
    said = re.findall(r"^\S.*", last, re.M) or [""]
    return [code[1]] * bool(code) + [said[0] if 'File "' in last else said[-1]]


def versions(file):
    found = re.findall(r"^([\w.-]+) ?(?:==|@) ?(\S+)", Path(file).read_text(), re.M)
    return {re.sub(r"[-_.]+", "-", name).lower(): v.rpartition("@")[2].partition("+")[0][:20] for name, v in found}


def issue(failed, claims, before, now):
    cells, others = defaultdict(list), []
    for name, error, notebook, cell in failed:
        here = [c for c in claims if c["notebook"] == notebook]
        told = [c for c in here if c["cell"] == cell]
        if told:
            cells[notebook, cell] = [told, error, sum(c["cell"] > cell for c in here)]
        else:
            place = f" ({notebook}, cell {cell})" * (cell is not None)
            others.append(f"- `{name}`{place}: `{last_line(error)[-1][:300]}`")
    if cells:
        yield "## Sentences that became false, or are no longer proved"
    for (notebook, cell), (told, error, behind) in sorted(cells.items()):
        yield from [f"\n> {c['sentence']}" for c in told]
        yield f"\n`{notebook}`, section \"{told[0]['section']}\", cell {cell}:"
        yield "\n".join(["```", *last_line(error), "```"])
        if behind:
            yield f"The notebook ended there: {behind} sentences behind it were not checked."
    if others:
        yield "\n".join(["\n## Failing tests that prove no sentence of the list", *dict.fromkeys(others)])
    if not (cells or others):
        yield "No test failed: the leg ended before or beside the tests. Its log says where."
    if changed := [(n, before[n], now[n]) for n in sorted(before.keys() & now.keys()) if before[n] != now[n]]:
        yield "\n## Versions that changed\n\n| package | when it was last green | now |\n|---|---|---|"
        yield "\n".join(f"| {' | '.join(row)} |" for row in changed)
    elif now:
        yield "\nNo version changed since the leg was last green: look for a change of the repository or the machine."


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="*")
    parser.add_argument("--claims", default=ROOT / "docs" / "claims.json")
    parser.add_argument("--before")
    parser.add_argument("--now")
    args = parser.parse_args()
    claims = json.loads(Path(args.claims).read_text(encoding="utf-8"))
    print("\n".join(issue(failures(args.reports), claims, *(versions(file) if file else {} for file in (args.before, args.now)))))
