"""When each notebook was last proved: docs/proofs.json, from a run of the tests

NB_FLAGS=smol pytest --junitxml=REPORT.xml; python tools/proofs.py REPORT.xml

Only a notebook whose test passed gets a new date, so nothing but a green run can write one; a notebook that is gone
loses its own. Run it in the environment that ran the tests: the versions are those that are installed.
"""

import argparse
import json
import platform
import re
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NBS, PROOFS = ROOT / "nbs", ROOT / "docs" / "proofs.json"
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "tokenizers")


def device():
    "The kind of processor, without the machine's name, and the cards."
    import torch

    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(cards) or f"CPU with {torch.backends.cpu.get_cpu_capability()}"


def passed(report):
    "By notebook, as its test names it: the seconds, the day, and whether its slow cells ran, too."
    found = {}
    for suite in ElementTree.parse(report).iter("testsuite"):
        day = suite.get("timestamp", "")[:10]
        for case in suite.iter("testcase"):
            name = re.fullmatch(r"test_runs\[(.+)\]", case.get("name"))
            outcomes = {child.tag for child in case} & {"failure", "error", "skipped"}
            flags = [p.get("value").split() for p in case.iter("property") if p.get("name") == "flags"]
            if name and not outcomes:
                slow = {"slow": True} if any("slow" in words for words in flags) else {}
                found[name[1]] = {"run": day, "seconds": round(float(case.get("time")), 1), **slow}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="what pytest --junitxml wrote")
    found = passed(parser.parse_args().report)
    proofs = json.loads(PROOFS.read_text(encoding="utf-8")) if PROOFS.exists() else {"runs": {}, "notebooks": {}}
    known = proofs["notebooks"] | found
    proofs["notebooks"] = {name: one for name, one in known.items() if (NBS / f"{name}.ipynb").exists()}
    versions = {library: version(library) for library in LIBRARIES}
    now = {"python": platform.python_version(), "device": device(), "versions": versions}
    proofs["runs"] |= {one["run"]: now for one in found.values()}
    kept = {one["run"] for one in proofs["notebooks"].values()}
    proofs["runs"] = {day: run for day, run in proofs["runs"].items() if day in kept}
    PROOFS.parent.mkdir(exist_ok=True)
    PROOFS.write_text(json.dumps(proofs, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{len(found)} notebooks proved; {PROOFS.name} has {len(proofs['notebooks'])}")


if __name__ == "__main__":
    main()
