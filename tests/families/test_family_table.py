"""A tenth of the cells of benchmarks/families gives what the committed table says

All of it: `python benchmarks/families/run.py`
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "families"
SEED = 38
MOST_RED = 999  # cells of the committed table that are WRONG or ERROR; they may only become fewer

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def committed():
    return json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))["rows"]


@pytest.fixture(scope="module")
def tenth(tmp_path_factory):
    "In a process of its own, since other benchmarks have modules of the same names."
    file = tmp_path_factory.mktemp("families") / "records"
    drawn = ["--share", "0.1", "--seed", str(SEED), "--to", str(file)]
    done = subprocess.run([sys.executable, str(FOLDER / "run.py"), *drawn], capture_output=True, text=True)
    assert file.is_file(), done.stderr[-2000:]
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_tenth_of_the_table_is_what_it_says(tenth, committed):
    "Also where a red cell is green by now: run the benchmark again, which writes the table."
    known = {(row["family"], row["cell"]): row["outcome"] for row in committed}
    changed = []
    for row in tenth:
        before = known.get((row["family"], row["cell"]))
        if row["outcome"] != before:
            changed.append(f"{row['family']}, {row['cell']}: {before} before, now {row['outcome']}: {row['said']}")
    assert len(tenth) > 80 and not changed, "\n".join(changed)


def test_red_cells_become_fewer(committed):
    red = [row for row in committed if row["outcome"] in ("WRONG", "ERROR")]
    assert len(red) <= MOST_RED and all(row["said"] for row in red)


SCRIPT = """
import sys, pathlib
sys.path.insert(0, {folder!r})
import run, case, cells
from ft_notebooks.tokenization.chat_template import ChatTemplate
from ft_notebooks.loading.example_models import tiny_tokenizer

def beyond(it): return float("nan"), ""
def within(it): return 0.5, "a remark"
def ours(it):
    tok = tiny_tokenizer()
    tok.chat_template = None
    ChatTemplate(tok)
def foreign(it): int("x")
def absent(it): raise cells.Unsupported("no such part")

for measure in (beyond, within, ours, foreign, absent):
    cell = cells.Cell(measure.__name__, "", "", 1.0, measure, lambda family: True)
    print(measure.__name__, run.outcome(cell, case.Case(run.family_of("Llama"), pathlib.Path("x"))).outcome)
"""


def test_an_outcome_follows_from_the_bound_and_from_who_raised():
    script = SCRIPT.format(folder=str(FOLDER))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    found = dict(line.split() for line in done.stdout.splitlines() if line)
    right = {"beyond": "WRONG", "within": "proved", "ours": "refused", "foreign": "ERROR", "absent": "unsupported"}
    assert found == right, done.stderr[-2000:]
