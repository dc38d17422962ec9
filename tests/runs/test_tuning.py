"Edges of `ft_notebooks.runs.tuning`, and a run that takes over what it found."

import hashlib
import json
import re
import shlex
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, TrainerCallback

from ft_notebooks.cli.arguments import parser
from ft_notebooks.cli.console import command_settings
from ft_notebooks.core.model_parts import base_model
from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.runs import trial as one_trial
from ft_notebooks.runs import tuning
from ft_notebooks.runs.trial import CHECKPOINTING, Equality, Outcome, Trial, passes_fault, run_trial, step_fault
from ft_notebooks.runs.tuning import CANDIDATES, Candidate, as_one, tune, why_untried
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

    def counted(saved, wrong=(), tried=None):
        def run(trial, chosen, rows, **how):
            seconds = 20.0 - saved(set(chosen.ways) if chosen else set())
            return Outcome([], {}, [9.0, seconds, seconds], 100, 0)

        def fault(equality, chosen):
            return ("not equal: planted" if set(chosen.ways) in wrong else ""), run(None, chosen, None)

        monkeypatch.setattr(tuning, "Equality", lambda trial: SimpleNamespace(trial=trial))
        monkeypatch.setattr(tuning, "step_fault", fault)
        monkeypatch.setattr(tuning, "passes_fault", lambda equality, outcome: "")
        monkeypatch.setattr(tuning, "run_trial", run)
        monkeypatch.setattr(tuning, "best_rate", lambda: 1e9)
        return tune(trial(), tried or [Candidate(name, ways=(name,)) for name in "abc"])

    return counted


def on(record):
    return [verdict["name"] for verdict in record["candidates"] if verdict["on"]]


def test_each_is_kept_that_makes_the_others_faster(counted):
    record = counted(lambda ways: 3 * len(ways))
    assert on(record) == ["a", "b", "c"] and record["ways"] == ("a", "b", "c")
    assert record["ratios"] == [11 / 20] * 6
    assert [one.get("tried") for one in record["path"]] == ["b", "c", None]  # two added, each left out


def test_what_is_no_faster_beside_another_is_off(counted):
    record = counted(lambda ways: 3 * bool(ways))
    assert on(record) == ["a"]
    assert record["candidates"][1]["why"] == "not faster: 1.00 (1.00 to 1.00, 1 pair) beside a"


def test_what_is_idle_in_the_end_is_left_out(counted):
    "c, added last, takes away what a has brought."
    record = counted(lambda ways: 2 * ("b" in ways) + (6 if ways >= {"b", "c"} else 3 * ("a" in ways) + ("c" in ways)))
    assert on(record) == ["b", "c"]
    first, last = record["path"][-2:]
    assert first["left out of"] == ["a", "b", "c"] and first["found"]["a"]["ratios"] == [1.0]
    assert last["left out of"] == ["b", "c"] and len(last["found"]["b"]["ratios"]) == 6
    assert record["candidates"][0]["why"] == "not faster: 1.00 (1.00 to 1.00, 1 pair) beside b, c"


def test_what_three_pairs_let_pass_six_may_not(counted, monkeypatch):
    monkeypatch.setattr(tuning, "added", lambda search, equal: equal[:1])
    record = counted(lambda ways: 0)
    assert on(record) == [] and record["ratios"] == []


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
    times = iter(
        [10.0, 9.0, 9.0, 10.0, 10.0, 11.0]
    )  # in the order of the calls, which is reversed in each second round
    monkeypatch.setattr(tuning, "run_trial", lambda *args, **how: Outcome([], {}, [0.0, next(times)]))
    monkeypatch.setattr(tuning, "passes_fault", lambda equality, outcome: "")
    found = tuning.race(SimpleNamespace(trial=trial()), None, {"a": Tuned({})}, 6)
    assert found["a"]["ratios"] == [0.9, 0.9, 1.1]
    assert tuning._slow(found["a"], 6, "alone") == "not faster: 0.90 (0.90 to 1.10, 3 pairs) alone"


def test_a_field_that_the_user_has_set_is_not_tried():
    own = trial(optim="adafactor", max_steps=7)
    why = why_untried(own, Candidate("AdamW of 8 bits", {"optim": "adamw_bnb_8bit"}))
    assert why == "not tried: you have set optim"
    assert "optim" not in as_one(own, []).settings and "max_steps" not in own.given


def test_what_another_makes_needless_is_not_tried(counted):
    record = counted(lambda ways: 0, tried=[Candidate("a"), Candidate("b", unless="a"), Candidate("c", unless="gone")])
    assert record["candidates"][1]["why"] == "not tried: a fits, and computes less"
    assert record["candidates"][2]["why"].startswith("not faster: ")


def test_of_two_micro_batches_the_later_counts():
    one, two = (Candidate(f"{n}", {"per_device_train_batch_size": n}) for n in (1, 2))
    assert as_one(trial(), [one, two]).settings["per_device_train_batch_size"] == 2
    assert as_one(trial(), [two, one]).settings["per_device_train_batch_size"] == 1


@pytest.mark.parametrize("slow", range(6))
def test_a_pair_that_is_not_faster_puts_a_candidate_off(slow):
    ratios = [0.9] * 6
    assert tuning._slow({"why": "", "ratios": ratios}, 6, "alone") == ""
    ratios[slow] = 1.0
    slow_alone = f"not faster: {tuning.interval_words(ratios)} alone"
    assert tuning._slow({"why": "", "ratios": ratios}, 6, "alone") == slow_alone


@pytest.mark.parametrize("card", [True, False])
def test_what_needs_a_card_is_tried_where_there_is_one(monkeypatch, card):
    own = trial()
    monkeypatch.setattr(tuning, "hardware", lambda: SimpleNamespace(device="cuda:0" if card else "cpu"))
    whys = {one.name: why_untried(own, one) for one in CANDIDATES}
    assert whys["paged AdamW"] == ("" if card else "not tried: it needs a CUDA card")
    assert whys["activations in RAM"] == whys["Liger's norm"] == whys["paged AdamW"]


def test_the_memory_of_a_card_is_what_its_allocator_says(monkeypatch):
    monkeypatch.setattr(one_trial, "hardware", lambda: SimpleNamespace(device="cuda:0"))
    for name, given in {"empty_cache": None, "reset_peak_memory_stats": None, "max_memory_allocated": 7}.items():
        monkeypatch.setattr(torch.accelerator, name, lambda given=given: given)
    monkeypatch.setattr(torch.accelerator, "max_memory_reserved", lambda: 9)
    with one_trial._peak_of(None) as found:
        pass
    assert found == {"peak": 7, "reserved": 9}


def test_the_operations_are_those_that_torch_counts_on_the_meta_device():
    "torch counts all of attention's products, the formula the half that a causal mask leaves."
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_model().config, attn_implementation="eager")
        model = get_peft_model(model, lora_config(model, r=4))
    model.enable_input_require_grads()
    ids = torch.zeros(1, 50, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(ids).logits.sum().backward()
    config = model.config
    half = 6 * 50 * 50 * config.hidden_size * config.num_hidden_layers
    found = tuning.operations(SimpleNamespace(model=model, both={"input_ids": [range(50)]}, tokens=50))
    assert found == counter.get_total_flops() - half


def test_switches_of_liger_are_joined():
    joined = as_one(trial(), [tuning._liger("rope"), tuning._liger("swiglu")])
    config = joined.settings["liger_kernel_config"]
    assert config == {"rope": True, "rms_norm": False, "swiglu": True, "cross_entropy": False}


def test_packing_that_puts_more_rows_into_a_step_is_found():
    "Four short rows fill one packed row: a step has the right gradient for its rows, but takes four in place of two."
    packed = as_one(trial(), [Candidate("packing", {"packing": True, "padding_free": True}, ("attention",))])
    assert "per_device_train_batch_size" not in packed.settings
    equality = Equality(trial())
    outcome = run_trial(equality.trial, packed, equality.trial.both, num_train_epochs=2)
    assert passes_fault(equality, outcome).startswith("not equal: the mean loss of pass 1 is ")


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
        assert step_fault(equality, chosen)[0] == ""
        why = passes_fault(equality, run_trial(equality.trial, chosen, equality.trial.both, num_train_epochs=2))
        assert why.startswith("not equal: the mean loss of pass "), chosen


def test_a_trial_leaves_weights_and_random_numbers_as_they_were():
    own = trial()
    before = [p.clone() for p in own.model.parameters()]
    random = torch.get_rng_state()
    run_trial(own, None, own.both, num_train_epochs=1)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(p, q) for p, q in zip(own.model.parameters(), before))
    assert all(p.grad is None for p in own.model.parameters())


def test_the_check_of_a_card_runs_ft_tune_and_shows_the_share_of_its_peak():
    script = (Path(__file__).parents[2] / ".ci/gpu").read_text()
    (words,) = re.findall(r"^tune=[(](.*)[)]$", script, flags=re.M)
    args = parser().parse_args(shlex.split(words))
    assert (args.data, args.output) == ("gpu_check/notes.jsonl", "gpu_check/tune")
    assert 'grep -e "of the device\'s peak" -e "share ="' in script and tuning.FORMULA.startswith("share =")


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


def test_with_one_thread_another_programs_share_of_the_cpu_is_not_counted(monkeypatch):
    monkeypatch.setattr(one_trial, "perf_counter", lambda: 10.0)
    monkeypatch.setattr(one_trial, "process_time", lambda: 3.0)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for threads, want in ((1, 3.0), (2, 10.0)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert one_trial._now() == want
