"The hardest rows after a short run, on the tiny model."

import copy
import random

import pytest
import torch
from datasets import Dataset

from ft_notebooks.core.random_state import get_random_state
from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.doctor import short_run
from ft_notebooks.doctor.context import Context
from ft_notebooks.doctor.findings import Unavailable
from ft_notebooks.doctor.probe import Probed
from ft_notebooks.doctor.report import not_looked_at
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer

TOK = tiny_tokenizer()
FIXED = {"use_cpu": True, "bf16": False, "fp16": False, "learning_rate": 1e-2}


def with_nonsense(n):
    "Notes, every sixth of which has an answer of random letters; and which these are."
    rows = appointments(n, seed=0).to_list()
    rng = random.Random(0)
    bad = range(3, n, 6)
    for i in bad:
        rows[i]["messages"][-1]["content"] = "".join(rng.choices("qxzkvjwy#%&", k=20))
    return Dataset.from_list(rows), {*bad}


def run_of(rows, model=None, seconds=1e-9, data={}, **load):
    "A run whose probe has measured this time for a token."
    probed = Probed(losses=[1.0], rate=1e-2, fall=0.1, seconds=seconds, trained=["w"], apart=0.0)
    own = model or tiny_model()
    parts = {"whole": lambda: rows, "tok": lambda: TOK, "model": lambda: own, "name": lambda: None}
    parts["probed"] = lambda: probed
    return Context("sft", {"sft": FIXED, "data": data}, parts | load, rows)


def is_same_state(one, other):
    return str(one[:2]) == str(other[:2]) and torch.equal(one[2], other[2])


@pytest.mark.whole
def test_planted_rows_are_named_nothing_changes_and_a_loaded_model_is_loaded_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows, bad = with_nonsense(120)
    model = tiny_model()
    weights = copy.deepcopy(model.state_dict())
    grown = {name: p.requires_grad for name, p in model.named_parameters()}
    before = get_random_state()
    [note] = short_run.hardest_rows(run_of(rows, model))
    assert note.level == "note" and {*note.rows} <= bad and not {*note.usual} & bad
    assert is_same_state(before, get_random_state()) and not [*tmp_path.iterdir()]
    assert all(torch.equal(weights[name], now) for name, now in model.state_dict().items())
    assert grown == {name: p.requires_grad for name, p in model.named_parameters()}
    torch.manual_seed(5)  # another random state gives the same note
    loaded = []

    def load():
        loaded.append(tiny_model())
        return loaded[-1]

    run = run_of(rows, name=lambda: "folder")
    run.load["model"] = load
    run.require("model")
    assert [note] == short_run.hardest_rows(run) and len(loaded) == 2  # again, since the probe has trained the first


def test_a_step_that_costs_too_much_is_left_out_and_said(monkeypatch):
    taken = []

    def losses_after(run, steps, trained, scored):
        taken.append(steps)
        return torch.arange(len(scored)).double().numpy()

    monkeypatch.setattr(short_run, "losses_after", losses_after)
    rows = with_nonsense(120)[0]
    size = sum(map(len, encode_chats(TOK, rows)[0]["input_ids"])) / len(rows)
    for tokens in (1_000, 24, 12, 6):  # rows whose training takes 40 seconds
        run = run_of(rows, seconds=short_run._SECONDS / (tokens * short_run._BATCH + short_run._SCORED / 2) / size)
        notes = short_run.hardest_rows(run)
        assert bool(notes) != bool(run.unseen)
    assert taken == [24, 24, 12]
    assert any("hardest" in clause for clause in not_looked_at(run))


def test_it_is_skipped_where_it_cannot_say_anything(monkeypatch):
    monkeypatch.setattr(short_run, "losses_after", lambda *_: pytest.fail("a short run has begun"))
    rows = with_nonsense(120)[0]
    assert short_run.hardest_rows(run_of(rows.select(range(99)))) == []
    assert short_run.hardest_rows(run_of(rows, data={"intended": "highest-losses"})) == []
    with pytest.raises(Unavailable):  # token ids have no texts
        short_run.hardest_rows(run_of(encode_chats(TOK, rows)[0]))
    wrong = run_of(rows)
    wrong.reported.add("weights-damaged")
    with pytest.raises(Unavailable):
        short_run.hardest_rows(wrong)
    assert "prompts" not in short_run.SHORT_RUN.rows and "pairs" not in short_run.SHORT_RUN.rows
    assert short_run.SHORT_RUN.part == 5  # which --quick leaves out
