"Edges of `ft_notebooks.runs.tuning`, and a run that takes over what it found."

import hashlib
import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from ft_notebooks.cli.arguments import parser
from ft_notebooks.cli.console import command_settings
from ft_notebooks.core.model_parts import base_model
from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.runs import tuning
from ft_notebooks.runs.trial import CHECKPOINTING, Equality, Outcome, Trial
from ft_notebooks.runs.tuning import Candidate, as_one, tune
from ft_notebooks.sft.stage import SFTStage
from ft_notebooks.sft.trainer import sft_trainer
from ft_notebooks.training.run import fit
from ft_notebooks.training.tuned_settings import WAYS, Tuned, tuned_for


def adapted():
    return add_adapter(tiny_model(), lora_config(tiny_model(), r=4), seed=0)


def rows(n=4):
    return encode_chats(tiny_tokenizer(), appointments(n))[0]


def trial(**given):
    return Trial(adapted(), tiny_tokenizer(), rows(), batch=2, given={"bf16": False, **given})


@pytest.fixture
def counted(monkeypatch):
    """A search whose times are counted, and whose candidates are all equal: `counted(times)` with the saved seconds of
    each set of ways.
    """

    def counted(saved, wrong=()):
        class Equal:
            outcome = Outcome([], {}, [9.0, 9.0], 100, 0)

            def __init__(self, trial):
                pass

            def fault(self, chosen):
                return ("not equal: planted" if set(chosen.ways) in wrong else ""), self.outcome

        monkeypatch.setattr(tuning, "Equality", Equal)
        monkeypatch.setattr(
            tuning, "_seconds", lambda trial, chosen: 20.0 - saved(set(chosen.ways) if chosen else set())
        )
        monkeypatch.setattr(Trial, "run", lambda *args, **kwargs: Equal.outcome)
        tried = [Candidate(name, ways=(name,)) for name in "abc"]
        return tune(trial(), tried)

    return counted


def on(record):
    return [verdict["name"] for verdict in record["candidates"] if verdict["on"]]


def test_each_is_kept_that_makes_the_others_faster(counted):
    record = counted(lambda ways: 3 * len(ways))
    assert on(record) == ["a", "b", "c"] and record["ways"] == ("a", "b", "c")
    assert record["ratios"] == [11 / 20] * 6 and len(record["path"]) == 4  # two added, two left out for a trial


def test_what_is_no_faster_beside_another_is_off(counted):
    record = counted(lambda ways: 3 * bool(ways))
    assert on(record) == ["a"]
    assert record["candidates"][1]["why"] == "not faster: 1.00 (1.00 to 1.00, 1 pair) beside a"


def test_what_is_idle_in_the_end_is_left_out(counted):
    "c, added last, takes away what a has brought."
    record = counted(lambda ways: 2 * ("b" in ways) + (6 if ways >= {"b", "c"} else 3 * ("a" in ways) + ("c" in ways)))
    assert on(record) == ["b", "c"]
    assert record["path"][-2]["tried"] == "a" and record["path"][-2]["ratios"] == [1.0]
    assert record["candidates"][0]["why"] == "not faster: 1.00 (1.00 to 1.00, 1 pair) beside b, c"


def test_what_is_slower_alone_may_be_on_beside_another(counted):
    record = counted(lambda ways: 3 * ("a" in ways) + (2 if ways >= {"a", "b"} else -1 if "b" in ways else 0))
    assert on(record) == ["a", "b"] and record["candidates"][1]["ratios"] == [21 / 20]


def test_two_that_are_equal_alone_and_wrong_together_are_not_both_on(counted):
    record = counted(len, wrong=[{"a", "b"}])
    assert on(record) == ["a", "c"] and record["candidates"][1]["why"] == "not equal: planted"


def test_nothing_is_on_where_nothing_is_faster(counted):
    record = counted(lambda ways: 0)
    assert on(record) == [] and record["ways"] == () and "tuned" not in record["speed"]
    assert record["settings"][CHECKPOINTING] is True  # TRL's default
    json.dumps(record, default=str)


def test_one_faster_pair_of_six_is_not_enough(monkeypatch):
    times = iter([10, 9, 9, 10, 10, 11])  # in the order of the calls, which is reversed in each second round
    monkeypatch.setattr(tuning, "_seconds", lambda trial, chosen: next(times))
    assert tuning.race(None, None, {"a": Tuned({})}) == {"a": [0.9, 0.9, 1.1]}


def test_a_field_that_the_user_has_set_is_not_tried():
    own = trial(optim="adafactor", max_steps=7)
    search = SimpleNamespace(trial=own, verdicts={})
    tuning._Search._alone(search, Candidate("AdamW of 8 bits", {"optim": "adamw_bnb_8bit"}))
    assert search.verdicts["AdamW of 8 bits"]["why"] == "not tried: you have set optim"
    assert "optim" not in as_one(own, []).settings and "max_steps" not in own.given


def test_of_two_micro_batches_the_later_counts():
    one, two = (Candidate(f"{n}", {"per_device_train_batch_size": n}) for n in (1, 2))
    assert as_one(trial(), [one, two]).settings["per_device_train_batch_size"] == 2
    assert as_one(trial(), [two, one]).settings["per_device_train_batch_size"] == 1


@pytest.mark.parametrize("slow", range(6))
def test_a_pair_that_is_not_faster_puts_a_candidate_off(slow):
    search = SimpleNamespace(rounds=6, verdicts={"a": {}})
    ratios = [0.9] * 6
    assert tuning._Search._judge(search, Candidate("a"), "", ratios, "alone")
    ratios[slow] = 1.0
    assert not tuning._Search._judge(search, Candidate("a"), "", ratios, "alone")
    assert search.verdicts["a"] == {"on": False, "why": f"not faster: {tuning.interval_words(ratios)} alone"}


@pytest.mark.parametrize("card", [True, False])
def test_what_needs_a_card_is_tried_where_there_is_one(monkeypatch, card):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card)
    (paged,) = (one for one in tuning.CANDIDATES if one.name == "paged AdamW")
    assert paged.why_not(None) == (None if card else "it needs a CUDA card")


def test_switches_of_liger_are_joined():
    joined = as_one(trial(), [tuning._liger("rope"), tuning._liger("swiglu")])
    config = joined.settings["liger_kernel_config"]
    assert config == {"rope": True, "rms_norm": False, "swiglu": True, "cross_entropy": False}


def test_packing_that_puts_more_rows_into_a_step_is_found():
    "Four short rows fill one packed row: a step has the right gradient for its rows, but takes four in place of two."
    packed = as_one(trial(), [Candidate("packing", {"packing": True, "padding_free": True}, ("attention",))])
    assert "per_device_train_batch_size" not in packed.settings
    assert Equality(trial()).fault(packed)[0].startswith("not equal: the mean loss of pass 1 is ")


@contextmanager
def stale(model):
    "Inside the block the last layer adds to a later step's output what it saw in an earlier one."
    seen = []

    def add(module, args, out):
        seen.append(out.detach().mean())
        return out if len(seen) < 3 else 1.05 * out

    with base_model(model).model.norm.register_forward_hook(add):
        yield


def test_a_fault_that_begins_after_the_first_step_is_found(monkeypatch):
    monkeypatch.setitem(WAYS, "stale", stale)
    equality = Equality(trial())
    for chosen in (Tuned({}, ("stale",)), Tuned({"optim": "sgd"})):
        why, _ = equality.fault(chosen)
        assert why.startswith("not equal: the mean loss of pass "), chosen


def test_a_trial_leaves_weights_and_random_numbers_as_they_were():
    own = trial()
    before = [p.clone() for p in own.model.parameters()]
    random = torch.get_rng_state()
    own.run(None, own.both, num_train_epochs=1)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(p, q) for p, q in zip(own.model.parameters(), before))
    assert all(p.grad is None for p in own.model.parameters())


class Stops(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise RuntimeError("the session ended")


@pytest.fixture
def tuned(tmp_path):
    "A file for the run of `train`; written again with other ways, it is another file."

    def write(*ways, **settings):
        made_for = tuned_for(adapted(), [len(ids) for ids in rows(16)["input_ids"]], 4)
        settings = {CHECKPOINTING: False, "padding_free": False, **settings}
        file = tmp_path / f"{'-'.join(ways)}.json"
        file.write_text(json.dumps({"said": f"on: {ways}", "settings": settings, "ways": ways, "made_for": made_for}))
        return file

    return write


def train(folder, tuned=None, callbacks=(), **more):
    how = {"bf16": False, "max_steps": 6, "save_steps": 2, "disable_tqdm": True, "effective_batch": 4, **more}
    trainer = sft_trainer(
        adapted(), tiny_tokenizer(), rows(16), output_dir=folder, tuned=tuned, callbacks=list(callbacks), **how
    )
    fit(trainer)
    return load_file(folder / "adapter_model.safetensors")


def test_a_killed_run_with_a_file_resumes_to_the_same_weights(tmp_path, tuned, capsys):
    file = tuned("lora", "head")
    whole = train(tmp_path / "whole", file)
    with pytest.raises(RuntimeError, match="the session ended"):
        train(tmp_path / "parts", file, [Stops()])
    parts = train(tmp_path / "parts", file)
    assert all(torch.equal(parts[name], weight) for name, weight in whole.items())
    said = capsys.readouterr().out
    assert f"{file}: on: ('lora', 'head')" in said
    manifest = json.loads((tmp_path / "parts/manifest.json").read_text())
    assert manifest["run"]["tuned"] == f"sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}"
    used = {"attention": "ft tune has it off", "lora": None, "norm": "ft tune has it off", "head": None}
    assert manifest["recorded"]["optimizations"] == used


def test_another_file_or_none_is_another_run(tmp_path, tuned):
    train(tmp_path / "run", tuned("lora"))
    for other, now in ((tuned("norm"), "is 'sha256 "), (None, "is not set")):
        with pytest.raises(ValueError, match=f"holds a different run: .*tuned was 'sha256 [0-9a-f]+', {now}") as e:
            train(tmp_path / "run", other, **({} if other else {CHECKPOINTING: False, "padding_free": False}))
        assert "give the file of ft tune with which the run was started" in str(e.value)


def test_a_file_of_another_run_is_refused_before_a_step(tmp_path, tuned):
    with pytest.raises(ValueError, match="was made for effective_batch=4, and this run has effective_batch=8; run ft"):
        train(tmp_path / "run", tuned("lora"), effective_batch=8)
    with pytest.raises(ValueError, match="sets padding_free, and so do you"):
        train(tmp_path / "run", tuned("lora"), padding_free=True)
    assert not (tmp_path / "run").exists()


def test_the_command_gives_the_file_to_the_stage(tmp_path, tuned, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = parser().parse_args(["sft", "notes.jsonl", "--tuned", "missing.json"])
    stage = SFTStage(command_settings(args))
    assert stage.given["tuned"] == "missing.json" and "tuned" not in stage.fields
    with pytest.raises(ValueError, match="tuned: there is no file missing.json; ft tune DATA writes one"):
        stage.check()
    SFTStage({"sft": {"tuned": str(tuned("lora"))}}).check()
