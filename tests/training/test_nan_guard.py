"Edges of `ft_notebooks.training.nan_guard`, and two processes that stop as one."

import json
import math
import os
import socket
import sys
import traceback
import warnings
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import gather_object
from safetensors.torch import load_file
from small_runs import QUIET, ROWS, TOK, on_notes, sft, train
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTTrainer

from ft_notebooks.checkpointing.integrity import last_good_checkpoint
from ft_notebooks.checkpointing.resume import exact_resume
from ft_notebooks.course.demo_task import DEMO
from ft_notebooks.course.example_task import appointments
from ft_notebooks.sft.trainer import sft_trainer
from ft_notebooks.training import nan_guard
from ft_notebooks.training.nan_guard import BadStep, NaNGuard, find_spikes

datasets.disable_progress_bars()
warnings.filterwarnings("ignore", category=FutureWarning)


def guarded(*args, kind=SFTTrainer, **kwargs):
    "TRL's own trainer with the callbacks"
    trainer = exact_resume(kind(*args, **kwargs))
    trainer.add_callback(NaNGuard(trainer))
    return trainer


make = partial(sft, kind=guarded)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def report(trainer):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(Path(trainer.args.output_dir, "stopped.json").read_text(), parse_constant=refuse)


def stopped(trainer, match):
    with pytest.raises(ValueError, match=match) as error:
        train(trainer)
    return str(error.value)


class Fault(torch.autograd.Function):
    "Multiplies by `forward`, and the gradient by `backward`"

    @staticmethod
    def forward(ctx, x, forward, backward):
        ctx.backward_factor = backward
        return x * forward

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.backward_factor, None, None


class Before(TrainerCallback):
    "Calls the function before each step, with the steps that lie behind it, and hears what is saved"

    def __init__(self, function):
        self.function, self.saved = function, []

    def on_save(self, args, state, control, **kwargs):
        self.saved.append(state.global_step)

    def on_step_begin(self, args, state, control, **kwargs):
        self.function(state.global_step)


def fault(model, when, forward=1.0, backward=1.0):
    "A hook on the last norm, which acts where `when(ids)` is true of a row's ids"
    seen = []
    decoder = model.get_base_model().get_decoder() if hasattr(model, "get_base_model") else model.get_decoder()
    decoder.embed_tokens.register_forward_pre_hook(lambda layer, args: seen.__setitem__(slice(None), [args[0]]))

    def act(layer, args, output):
        hit = torch.tensor([when(ids.tolist()) for ids in seen[0]])
        return torch.where(hit[:, None, None], Fault.apply(output, forward, backward), output) if hit.any() else output

    return decoder.norm.register_forward_hook(act)


# what stops a run


@pytest.mark.numbers
@pytest.mark.parametrize(
    "layout", [{}, {"padding_free": True, "max_length": None}, {"packing": True, "max_length": 600}]
)
def test_a_gradient_that_is_no_number_names_its_row(tmp_path, layout):
    row = ROWS[5]["input_ids"]
    text = TOK.decode(row[:-1])

    def when(ids):
        return any(ids[i : i + len(row)] == row for i in range(len(ids)))

    trainer = make(tmp_path, **layout)
    fault(trainer.model, when, backward=math.nan)
    said = stopped(trainer, "is not taken, since the gradient is not finite")
    odd = [r for r in report(trainer)["rows"] if r["gradient"] == "nan"]
    assert len(odd) == 1 and math.isfinite(odd[0]["loss"]) and "gradient nan" in said
    assert "".join(part["text"] for part in odd[0]["parts"]).startswith(text)
    assert odd[0]["index"] == (None if "packing" in layout else 5)
    assert all(map(math.isfinite, report(trainer)["losses"])) and flat(trainer.model).isfinite().all()


@pytest.mark.whole
def test_a_damaged_embedding_names_the_rows_with_its_token_and_is_not_saved(tmp_path):
    token = TOK("W").input_ids[0]
    holds = {i for i, ids in enumerate(ROWS["input_ids"]) if token in ids}
    assert 0 < len(holds) < len(ROWS)
    trainer = make(tmp_path, train_sampling_strategy="sequential", per_device_train_batch_size=4)
    trainer.train_dataset = ROWS.select(sorted(range(16), key=lambda i: i in holds))  # the damage shows late
    trainer.model.get_input_embeddings().weight.data[token] = math.nan
    stopped(trainer, "since the loss is not finite")
    rows = report(trainer)["rows"]
    assert trainer.state.global_step > 0 and not list(tmp_path.glob("checkpoint-*"))
    bad = {i for i, row in enumerate(rows) if row["loss"] == "nan"}
    assert bad and bad == {i for i, row in enumerate(rows) if "W" in "".join(p["text"] for p in row["parts"])}


@pytest.mark.whole
def test_a_step_whose_checkpoint_is_there_is_not_saved_again(tmp_path):
    trainer = make(tmp_path, save_strategy="steps", save_steps=2, max_steps=8)
    count = []
    fault(trainer.model, lambda ids: trainer.state.global_step == 2, forward=math.inf)
    save = trainer._save_checkpoint
    trainer._save_checkpoint = lambda *args, **kwargs: (count.append(trainer.state.global_step), save(*args, **kwargs))
    assert str(tmp_path / "checkpoint-2") in stopped(trainer, "step 3 is not taken")
    assert count == [2]


@pytest.mark.whole
def test_the_checkpoint_of_a_stop_goes_on_to_the_same_weights(tmp_path):
    step, order = 4, "group_by_length"  # the first step of the second epoch
    trainer = make(tmp_path / "run", train_sampling_strategy=order)
    hook = fault(trainer.model, lambda ids: trainer.state.global_step == step, forward=math.nan)
    stopped(trainer, f"step {step + 1} is not taken")
    hook.remove()
    good = last_good_checkpoint(tmp_path / "run")
    assert good.endswith(f"checkpoint-{step}")
    on = train(make(tmp_path / "run", train_sampling_strategy=order), resume_from_checkpoint=good)
    whole = train(make(tmp_path / "whole", train_sampling_strategy=order))
    assert torch.equal(flat(on.model), flat(whole.model))


def judged(trainer, norm, skipped=0):
    return nan_guard._check(trainer, [torch.tensor(1.0)], torch.tensor(1), norm, skipped)


def test_what_a_scaler_leaves_out_counts_only_in_a_row(tmp_path):
    trainer, inf, one, faults, skipped = make(tmp_path), torch.tensor(math.inf), torch.tensor(1.0), [], 0
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    for norm in [*[inf] * 9, one, *[inf] * 10]:
        fault, skipped = judged(trainer, norm, skipped)
        faults.append(fault)
    assert faults[:-1] == [None] * 19 and faults[-1] == "the gradient is not finite"


def test_no_gradient_is_no_fault_where_none_is_kept(tmp_path):
    trainer = make(tmp_path)
    trainer.model_wrapped = trainer.model
    assert judged(trainer, nan_guard._norm(trainer)) == (None, 0)
    weight = next(p for p in trainer.model.parameters() if p.requires_grad)
    weight.grad = torch.zeros_like(weight)
    assert judged(trainer, nan_guard._norm(trainer)) == ("the gradient is exactly 0", 0)


@pytest.mark.parametrize("allowed", [True, False])
def test_a_gradient_of_zero_is_allowed_by_request_alone(tmp_path, allowed):
    trainer = sft(tmp_path, kind=SFTTrainer, max_steps=1)
    trainer.add_callback(NaNGuard(trainer, allow_zero_gradient=allowed))
    fault(trainer.model, lambda ids: True, backward=0.0)
    if allowed:
        assert train(trainer).state.global_step == 1
    else:
        stopped(trainer, "since the gradient is exactly 0")


def test_without_the_rows_and_losses_a_run_stops_all_the_same(tmp_path):
    trainer = make(tmp_path, max_steps=2)
    del trainer.compute_loss  # as if a release did not call it
    fault(trainer.model, lambda ids: trainer.state.global_step == 1, forward=math.nan)
    before = []
    trainer.add_callback(Before(lambda step: before.append(flat(trainer.model).clone())))
    said = stopped(trainer, "step 2 is not taken, since the gradient is not finite")
    assert report(trainer)["rows"] == [] and "The rows" not in said and torch.equal(flat(trainer.model), before[1])


def test_an_error_says_three_rows_and_counts_the_others_and_where_to_go_on_from():
    def row(index, odd):
        place = {"index": index, "micro_batch": 1, "row": 0, "tokens": 9, "trained": 4, "loss": 2.0, "gradient": None}
        return place | {"odd": odd, "parts": [{"trained": False, "text": "a" * 400}]}

    report = {"fault": "F", "cure": "C", "file": "run/stopped.json", "checkpoint": "run/checkpoint-4"}
    rows = [row(i, i != 2) for i in range(6)]
    first, *lines = str(BadStep(report | {"step": 5, "rows": rows})).split("\n")
    assert first.startswith(
        "step 5 is not taken, since F; the weights are those of step 4, the last checkpoint is run/checkpoint-4."
    )
    assert "stop again. What to do: C. The rows (in full in run/stopped.json):" in first
    places = [
        f"  micro-batch 2, row 1 (row {i} of train_dataset): 9 tokens, 4 trained, loss 2: '{'a' * 300}'"
        for i in (0, 1, 3)
    ]
    assert lines == [*places, "  and 2 more"]
    report |= {"step": 1, "checkpoint": None, "rows": [row(None, False)]}
    first, line = str(BadStep(report)).split("\n")
    assert "; no step was taken before, there is no checkpoint." in first and "micro-batch 2, row 1: 9 tokens" in line


@pytest.mark.numbers
def test_what_is_left_of_a_stop_is_the_weights_before_it_no_gradient_and_the_random_numbers_that_were_next(tmp_path):
    trainer, seen = make(tmp_path), {}
    hook = fault(trainer.model, lambda ids: trainer.state.global_step == 2, forward=math.nan)
    trainer.add_callback(
        before := Before(lambda step: seen.__setitem__(step, (flat(trainer.model).clone(), torch.get_rng_state())))
    )
    said = stopped(trainer, "step 3 is not taken")
    hook.remove()
    folder = tmp_path / "checkpoint-2"
    assert before.saved == [2]
    assert f"the last checkpoint is {folder}" in said and last_good_checkpoint(tmp_path) == str(folder)
    assert torch.equal(flat(trainer.model), seen[2][0]) and all(p.grad is None for p in trainer.model.parameters())
    saved = load_file(folder / "adapter_model.safetensors")
    assert torch.equal(torch.cat([t.flatten() for t in saved.values()]).sort()[0], seen[2][0].sort()[0])
    assert torch.equal(torch.load(folder / "rng_state.pth", weights_only=False)["cpu"], seen[2][1])


def test_a_stop_leaves_no_trace_in_a_run_that_begins_again(tmp_path):
    (tmp_path / "stopped.json").write_text("{}")
    train(make(tmp_path, max_steps=1))
    assert not (tmp_path / "stopped.json").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_strict_json_has_words_for_what_is_no_number(value):
    strict = json.loads(nan_guard._json({"a": [value, 1.5, None, {"b": value}]}))
    assert strict == {"a": [str(value), 1.5, None, {"b": str(value)}]}


@pytest.mark.whole
def test_preferences_are_guarded_too(tmp_path):
    mine = partial(guarded, kind=DPOTrainer)
    chats = appointments(8)["messages"]
    pairs = [{"prompt": m[:-1], "chosen": m[-1:], "rejected": [m[-1] | {"content": "no"}]} for m in chats]
    batch = {"per_device_train_batch_size": 2, "max_steps": 4, "save_strategy": "no", "learning_rate": 1e-3}
    given = {"train_dataset": datasets.Dataset.from_list(pairs), "processing_class": TOK}
    train(mine(on_notes(), args=DPOConfig(str(tmp_path), **QUIET, **batch), **given))
    trainer = mine(on_notes(), args=DPOConfig(str(tmp_path), **QUIET, **batch), **given)
    word = TOK(chats[3][1]["content"]).input_ids
    fault(trainer.model, lambda ids: any(ids[i : i + len(word)] == word for i in range(len(ids))), forward=math.nan)
    stopped(trainer, "since the loss is not finite")
    odd = [row for row in report(trainer)["rows"] if row["loss"] == "nan"]
    assert len(odd) == 2 and all(chats[3][1]["content"] in "".join(p["text"] for p in row["parts"]) for row in odd)


# what must not stop a run


@pytest.mark.whole
def test_a_run_like_the_demos_stops_nowhere_and_has_no_spike(tmp_path):
    fields = DEMO | {
        "max_steps": 16,
        "save_strategy": "no",
    }  # longer than the demo: the first eight losses are compared with none
    trainer = sft_trainer(on_notes(), TOK, appointments(64), output_dir=str(tmp_path), disable_tqdm=True, **fields)
    assert any(isinstance(callback, NaNGuard) for callback in trainer.callback_handler.callbacks)
    train(trainer)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.state.global_step == len(history) == 16 and history[-1]["loss"] < history[0]["loss"]
    assert find_spikes(history) == [] and not (tmp_path / "stopped.json").exists()


# spikes


def test_a_loss_that_hardly_moves_has_no_spike_in_a_tenth_more():
    history = [{"step": i, "loss": 1.1 if i == 30 else 1.0 + i % 2 / 1000} for i in range(60)]
    assert find_spikes(history) == []


@pytest.mark.parametrize(("value", "found"), [(2.0, []), (5.0, [60])])
def test_where_the_loss_jumps_all_the_time_a_spike_has_to_be_larger(value, found):
    jumps = [0.6, 1.2, 0.8, 1.4, 1.0]
    assert find_spikes([{"step": i, "loss": value if i == 60 else jumps[i % 5]} for i in range(100)]) == found


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_spikes_do_not_depend_on_the_unit(scale):
    noise = np.random.default_rng(1).normal(1, 0.1, 100)
    noise[60] = 4
    assert find_spikes([{"step": i, "loss": float(scale * x)} for i, x in enumerate(noise)]) == [60]


def test_a_loss_that_stays_higher_is_a_spike_only_until_it_is_usual():
    history = [{"step": i, "loss": 1.0 if i < 40 else 3.0} for i in range(80)]
    found = find_spikes(history, window=16)
    assert found == list(range(40, 48))


def test_a_nan_is_a_spike_and_spoils_no_judgement_of_others():
    history = [{"step": i, "loss": math.nan if i == 30 else 1.0} for i in range(60)]
    assert find_spikes(history) == [30]


# two processes


def two_ranks(folder):
    "Each trains on half of the rows; the loss of a row of the second is no number"
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    children = []
    for rank in (0, 1):
        if not (pid := os.fork()):
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in ranks.items()}, MASTER_ADDR="localhost")
            code = 1
            try:
                one_rank(folder, rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def one_rank(folder, rank):
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    GradientState._reset_state()
    torch.set_num_threads(1)
    healthy = [
        train(make(folder / f"healthy-{kind.__name__}", kind=kind, max_steps=2)) for kind in (SFTTrainer, guarded)
    ]
    same = torch.equal(flat(healthy[0].model), flat(healthy[1].model))
    trainer = make(folder / "run")
    fault(trainer.model, lambda ids: rank == 1 and trainer.state.global_step == 2, forward=math.inf)
    said = stopped(trainer, "step 3 is not taken")
    notes = gather_object([{"said": said, "same": same, "step": trainer.state.global_step}])
    if rank == 0:
        (folder / "notes.json").write_text(json.dumps(notes))


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_two_processes_stop_as_one_though_one_alone_has_the_row(tmp_path):
    assert two_ranks(tmp_path) == [0, 0]
    first, second = json.loads((tmp_path / "notes.json").read_text())
    assert first["said"] == second["said"] and first["step"] == second["step"] == 2 and first["same"] and second["same"]
    stop = json.loads((tmp_path / "run" / "stopped.json").read_text())
    assert (
        stop["process"] == 1
        and stop["rows"]
        and all(row["loss"] != row["loss"] or isinstance(row["loss"], str) for row in stop["rows"])
    )
    assert last_good_checkpoint(tmp_path / "run").endswith("checkpoint-2")
