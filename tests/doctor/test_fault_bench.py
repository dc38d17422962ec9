"""The fault bench: its lists are in order, and `ft doctor` names the cause of the faults of a sixth of a tenth.

All of it: `python benchmarks/faults/run.py`
"""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "faults"))

import run as bench  # noqa: E402
from plant import GROUPS  # noqa: E402

pytestmark = pytest.mark.whole

SEED = 52
STEPS = 60  # of the tiny base, whose loss on ordinary text is then far enough from that of a guess


@pytest.fixture(scope="module")
def looks(tmp_path_factory):
    return bench.Bench(tmp_path_factory.mktemp("bench"), ("doctor",), STEPS, ("data",))


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


def test_the_doctor_names_the_cause_of_a_few_faults_and_raises_nothing_else(looks):
    "Each plant changes exactly one part, which the bench asserts."
    records = [record for one in bench.chosen(None, SEED)[::6] for record in looks.look(one)]
    assert {r["kind"] for r in records} == {"fault", "benign"}

    def is_wrong(r):
        return r["failed"] or (r["found"] if r["kind"] == "benign" else r["knowable"] and not r["right"])

    wrong = [f"{r['name']}: {r['said']} {r['failed']}" for r in records if is_wrong(r)]
    assert not wrong, "\n".join(wrong)


def test_a_detector_that_says_nothing_or_another_cause_misses():
    fault = next(one for one in bench.FAULTS if one.name == "a rate of 0.1")
    said = {
        text: bench.detectors.Said(bool(text), [("error", text)] * bool(text))
        for text in ("", "rows-repeat", "learning_rate=0.1")
    }
    judged = {text: bench.record(fault, "doctor", one, set()) for text, one in said.items()}
    assert [(r["found"], r["right"]) for r in judged.values()] == [(False, False), (True, False), (True, True)]
    assert (
        bench.record(fault, "doctor", bench.detectors.Said(False, [("note", "learning_rate")]), set())["found"] is False
    )
