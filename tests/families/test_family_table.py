"""A twentieth of the cells of benchmarks/families gives what the committed table says

All of it: `python benchmarks/families/run.py`
"""

import json
import os
import runpy
import sys
from pathlib import Path

import pytest
from small_runs import forked

from ft_notebooks.loading.example_models import tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.tokenization.chat_template import ChatTemplate

FOLDER = Path(__file__).parents[2] / "benchmarks" / "families"
SEED = 38
MOST_RED = 0  # cells of the committed table that are WRONG or ERROR

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def committed():
    return json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))["rows"]


def forked_beside(function):
    "Calls a function in a fork that imports the modules of `FOLDER`; other benchmarks have some of the same names."

    def child():
        for file in FOLDER.glob("*.py"):
            sys.modules.pop(file.stem, None)
        sys.path.insert(0, str(FOLDER))
        function()

    return forked(child)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    "A twentieth of the table, or a tenth where what is slow is tested."
    file = tmp_path_factory.mktemp("families") / "records"
    share = "0.1" if "slow" in os.environ.get("NB_FLAGS", "").split() else "0.05"

    def run():
        sys.argv = ["run.py", "--share", share, "--seed", str(SEED), "--to", str(file)]
        runpy.run_path(str(FOLDER / "run.py"), run_name="__main__")

    forked_beside(run)
    assert file.is_file()
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_part_of_the_table_is_what_it_says(drawn, committed):
    "Also where a red cell is green by now: run the benchmark again, which writes the table."
    known = {(row["family"], row["cell"]): row["outcome"] for row in committed}
    changed = []
    for row in drawn:
        before = known.get((row["family"], row["cell"]))
        if row["outcome"] != before:
            changed.append(f"{row['family']}, {row['cell']}: {before} before, now {row['outcome']}: {row['said']}")
    assert len(drawn) > 40 and not changed, "\n".join(changed)


def test_red_cells_become_fewer(committed):
    red = [row for row in committed if row["outcome"] in ("WRONG", "ERROR")]
    assert len(red) <= MOST_RED and all(row["said"] for row in red)


def shown():
    "The outcomes of cells that are made to fail, by name."
    import architectures
    import run
    from case import Case
    from cells import CELLS, Cell, Unsupported

    run.prepare()

    def beyond(it):
        return float("nan"), ""

    def within(it):
        return 0.5, "a remark"

    def ours(it):
        tok = tiny_tokenizer()
        tok.chat_template = None
        ChatTemplate(tok)

    def foreign(it):
        int("x")

    def absent(it):
        raise Unsupported("no such part")

    class OneKind(Case):
        "An adapter on one kind of layer."

        def adapted(self, bits=32, r=8):
            model = self.load(bits)
            return add_adapter(model, lora_config(model, r=r, target_modules=["q_proj"]))

    class Another(Case):
        "A model of other weights."

        def load(self, bits=32):
            return architectures.small_model(self.family, seed=1)

    class Faster(Case):
        "A reference with another learning rate."

        def plain_trainer(self, ours, name, model=None):
            plain = super().plain_trainer(ours, name, model)
            plain.args.learning_rate *= 1.5
            return plain

    def outcome(cell, kind=Case):
        return run.outcome(cell, kind(run.family_of("Llama"), Path(kind.__name__).absolute())).outcome

    measures = (beyond, within, ours, foreign, absent)
    plain = {one.__name__: outcome(Cell("", "", "", 1.0, one, lambda family: True)) for one in measures}
    kinds = {"targets": OneKind, "load": Another, "sft": Faster}
    return plain | {name: outcome(CELLS[name], kind) for name, kind in kinds.items()}


def test_an_outcome_follows_from_the_bound_and_from_who_raised_and_a_cell_sees_what_it_is_there_for(tmp_path):
    file = tmp_path / "outcomes.json"
    assert forked_beside(lambda: file.write_text(json.dumps(shown()))) == 0
    right = {"beyond": "WRONG", "within": "proved", "ours": "refused", "foreign": "ERROR", "absent": "unsupported"}
    assert json.loads(file.read_text()) == right | dict.fromkeys(("targets", "load", "sft"), "WRONG")
