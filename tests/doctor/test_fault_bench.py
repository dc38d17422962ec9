"""The fault bench: its lists are in order, the good runs raise nothing, and `ft doctor` finds the faults of a tenth.

All of it: `python benchmarks/faults/run.py`
"""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "faults"))

import run as bench  # noqa: E402
from plant import GROUPS  # noqa: E402

SEED = 0
STEPS = 60  # of the tiny base, whose loss on ordinary text is then far enough from that of a guess


@pytest.fixture(scope="module")
def looks(tmp_path_factory):
    return bench.Bench(tmp_path_factory.mktemp("bench"), ("doctor",), STEPS)


def test_each_fault_has_a_group_a_cause_and_a_name_of_its_own():
    names = [one.name for one in [*bench.FAULTS, *bench.BENIGN]]
    assert len(set(names)) == len(names)
    known = [fault for fault in bench.FAULTS if not fault.unknowable]
    assert len(known) >= 60 and len(bench.BENIGN) >= 25
    assert {fault.group for fault in bench.FAULTS} == {*GROUPS}
    for group in GROUPS:
        assert {fault.holdout for fault in known if fault.group == group} == {True, False}
    for fault in bench.FAULTS:
        assert re.compile(fault.cause) and fault.least in ("note", "warning")
        assert not re.search(fault.cause, "", re.I), fault.name  # else anything would name the cause


def test_each_plant_changes_exactly_one_part(looks, tmp_path):
    for i, one in enumerate([*bench.FAULTS, *bench.BENIGN]):
        case, good = bench.made(one, looks.folder / "base", tmp_path / str(i))
        assert len(case.changed(good)) == getattr(one, "parts", 1), (one.name, case.changed(good))


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward", "grpo"])
def test_a_good_run_raises_nothing(looks, tmp_path, stage):
    case = bench.good_case(looks.folder / "base", tmp_path / "run", stage)
    said = looks.said(case)["doctor"]
    assert not said.found and not said.failed, said


def test_the_doctor_finds_the_faults_of_a_tenth_and_nothing_else(looks):
    records = [record for one in bench.chosen(None, SEED) for record in looks.look(one)]
    wrong = [
        r for r in records if r["failed"] or (r["found"] if r["kind"] == "benign" else r["knowable"] and not r["right"])
    ]
    assert not wrong, "\n".join(f"{r['name']}: {r['said']} {r['failed']}" for r in wrong)
