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
MOST_RED = 0  # cells of the committed table that are WRONG or ERROR

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
import run, architectures
from case import Case
from cells import CELLS, Cell, Unsupported
from ft_notebooks.loading.example_models import tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.tokenization.chat_template import ChatTemplate

run.prepare()

def beyond(it): return float("nan"), ""
def within(it): return 0.5, "a remark"
def ours(it):
    tok = tiny_tokenizer()
    tok.chat_template = None
    ChatTemplate(tok)
def foreign(it): int("x")
def absent(it): raise Unsupported("no such part")

class OneKind(Case):
    "An adapter on one kind of layer."
    def adapted(self, bits=32, r=8):
        model = self.load(bits)
        return add_adapter(model, lora_config(model, r=r, target_modules=["q_proj"]))
class Another(Case):
    "A model of other weights."
    def load(self, bits=32): return architectures.small_model(self.family, seed=1)
class Faster(Case):
    "A reference with another learning rate."
    def plain_trainer(self, ours, name, model=None):
        plain = super().plain_trainer(ours, name, model)
        plain.args.learning_rate *= 1.5
        return plain

def show(name, cell, kind=Case):
    found = run.outcome(cell, kind(run.family_of("Llama"), pathlib.Path(kind.__name__).absolute()))
    print("outcome", name, found.outcome)

for measure in (beyond, within, ours, foreign, absent):
    show(measure.__name__, Cell("", "", "", 1.0, measure, lambda family: True))
for kind, name in ((OneKind, "targets"), (Another, "load"), (Faster, "sft")):
    show(name, CELLS[name], kind)
"""


def test_an_outcome_follows_from_the_bound_and_from_who_raised_and_a_cell_sees_what_it_is_there_for():
    script = SCRIPT.format(folder=str(FOLDER))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    found = dict(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("outcome "))
    right = {"beyond": "WRONG", "within": "proved", "ours": "refused", "foreign": "ERROR", "absent": "unsupported"}
    assert found == right | dict.fromkeys(("targets", "load", "sft"), "WRONG"), done.stderr[-2000:]
