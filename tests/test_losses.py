"""Edges of `ft_notebooks.losses`, and two processes that stop as one.

`python tests/test_losses.py FOLDER` is what the last test runs: two ranks, forked from a process that has imported everything.
"""

import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.utils import gather_object
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from ft_notebooks import losses
from ft_notebooks.data import appointments
from ft_notebooks.footprint import estimate_memory
from ft_notebooks.lora import add_adapter, lora_config
from ft_notebooks.losses import GuardedTrainer, find_spikes
from ft_notebooks.masks import encode_chats
from ft_notebooks.models import tiny_model, tiny_tokenizer
from ft_notebooks.resume import ResumableTrainer, last_good_checkpoint

datasets.disable_progress_bars()
warnings.filterwarnings("ignore", category=FutureWarning)
TOK = tiny_tokenizer()
ROWS = encode_chats(TOK, appointments(16))[0]
QUIET = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "activation_checkpointing": False}


class Guarded(ResumableTrainer, GuardedTrainer, SFTTrainer):
    pass


def adapted():
    return add_adapter(tiny_model(), lora_config(tiny_model(), r=4, lora_dropout=0.1))


def make(folder, model=None, rows=ROWS, kind=Guarded, callbacks=(), **fields):
    "Sixteen rows, four a step: four steps are an epoch"
    batch = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "save_strategy": "no", "logging_steps": 1}
    args = SFTConfig(str(folder), **(QUIET | batch | {"max_steps": 8, "learning_rate": 1e-2} | fields))
    return kind(model or adapted(), args, train_dataset=rows, processing_class=TOK, callbacks=list(callbacks))


def train(trainer, **arguments):
    with contextlib.redirect_stdout(None):
        trainer.train(**arguments)
    return trainer


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


def fault(model, when, forward=1.0, backward=1.0):
    "A hook on the last norm, which acts where `when(ids)` is true of a row's ids"
    seen = []
    decoder = model.get_base_model().get_decoder() if hasattr(model, "get_base_model") else model.get_decoder()
    decoder.embed_tokens.register_forward_pre_hook(lambda layer, args: seen.__setitem__(slice(None), [args[0]]))

    def act(layer, args, output):
        hit = torch.tensor([when(ids.tolist()) for ids in seen[0]])
        return torch.where(hit[:, None, None], Fault.apply(output, forward, backward), output) if hit.any() else output

    return decoder.norm.register_forward_hook(act)


# what a row is


def test_left_padding_is_taken_off():
    batch = {"input_ids": torch.tensor([[0, 0, 5, 6]]), "labels": torch.tensor([[-100, -100, -100, 6]])}
    (ids, labels), = losses._rows(batch | {"attention_mask": torch.tensor([[0, 0, 1, 1]])})
    assert ids.tolist() == [5, 6] and labels.tolist() == [-100, 6]


def test_a_batch_without_a_mask_is_taken_as_it_is():
    (ids, labels), = losses._rows({"input_ids": torch.tensor([[5, 6]])})
    assert ids.tolist() == labels.tolist() == [5, 6]


def test_preferences_are_trained_on_their_completions():
    pair = {"prompt_ids": [5, 6], "chosen_ids": [7, 8], "rejected_ids": [9]}
    batch = DataCollatorForPreference(pad_token_id=0)([pair])
    found = [(ids.tolist(), labels.tolist()) for ids, labels in losses._rows(batch)]
    assert found == [([5, 6, 7, 8], [-100, -100, 7, 8]), ([5, 6, 9], [-100, -100, 9])]


def test_a_row_is_found_behind_a_shuffle_and_not_in_columns_of_another_kind():
    shuffled = ROWS.shuffle(seed=0)
    assert all(losses._place(shuffled, shuffled[i]["input_ids"]) == i for i in (0, 7, 15))
    assert losses._place(datasets.Dataset.from_dict({"text": ["a"]}), [1]) is None and losses._place(None, [1]) is None


def test_lengths_are_those_of_all_columns_of_ids():
    pairs = datasets.Dataset.from_dict({"prompt_ids": [[1], [1, 2]], "chosen_ids": [[1, 2, 3], [1]], "n": [5, 6]})
    assert losses._lengths(pairs).tolist() == [4, 3] and losses._lengths(pairs.select([1])).tolist() == [3]
    assert losses._lengths(pairs.select([])) is None and losses._lengths(pairs.to_iterable_dataset()) is None


# what stops a run


@pytest.mark.parametrize("layout", [{}, {"padding_free": True, "max_length": None}, {"packing": True, "max_length": 600}])
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


def test_a_step_whose_checkpoint_is_there_is_not_saved_again(tmp_path):
    trainer = make(tmp_path, save_strategy="steps", save_steps=2, max_steps=8)
    count = []
    fault(trainer.model, lambda ids: trainer.state.global_step == 2, forward=math.inf)
    save = trainer._save_checkpoint
    trainer._save_checkpoint = lambda *args, **kwargs: (count.append(trainer.state.global_step), save(*args, **kwargs))
    assert str(tmp_path / "checkpoint-2") in stopped(trainer, "step 3 is not taken")
    assert count == [2]


@pytest.mark.parametrize(("step", "order"), [(3, "group_by_length"), (4, "random")])  # 4: the first step of the second epoch
def test_the_checkpoint_of_a_stop_goes_on_to_the_same_weights(tmp_path, step, order):
    trainer = make(tmp_path / "run", train_sampling_strategy=order)
    hook = fault(trainer.model, lambda ids: trainer.state.global_step == step, forward=math.nan)
    stopped(trainer, f"step {step + 1} is not taken")
    hook.remove()
    good = last_good_checkpoint(tmp_path / "run")
    assert good.endswith(f"checkpoint-{step}")
    on = train(make(tmp_path / "run", train_sampling_strategy=order), resume_from_checkpoint=good)
    whole = train(make(tmp_path / "whole", train_sampling_strategy=order))
    assert torch.equal(flat(on.model), flat(whole.model))


def test_what_a_scaler_leaves_out_counts_only_in_a_row(tmp_path):
    trainer, inf, one = make(tmp_path), torch.tensor(math.inf), torch.tensor(1.0)
    trainer._begin()
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")

    def judge(norm):
        trainer._losses, trainer._norm, trainer._items = [one], norm, one
        trainer._judge()

    for norm in [*[inf] * 9, one, *[inf] * 9]:
        judge(norm)
    with pytest.raises(ValueError, match="the gradient is not finite"):
        trainer._batches = []
        judge(inf)


def test_no_gradient_is_no_fault_where_none_is_kept(tmp_path):
    trainer = make(tmp_path)
    trainer._begin()
    trainer._losses, trainer._norm, trainer._items, trainer._batches = [torch.tensor(1.0)], torch.tensor(0.0), None, []
    trainer._judge()
    next(p for p in trainer.model.parameters() if p.requires_grad).grad = torch.zeros(4, 64)
    trainer._losses = [torch.tensor(1.0)]
    with pytest.raises(ValueError, match="the gradient is exactly 0"):
        trainer._judge()


def test_a_stop_leaves_no_trace_in_a_run_that_begins_again(tmp_path):
    (tmp_path / "stopped.json").write_text("{}")
    train(make(tmp_path, max_steps=1))
    assert not (tmp_path / "stopped.json").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_strict_json_has_words_for_what_is_no_number(value):
    assert losses._strict({"a": [value, 1.5, None, {"b": value}]}) == {"a": [str(value), 1.5, None, {"b": str(value)}]}


def test_preferences_are_guarded_too(tmp_path):
    class Mine(GuardedTrainer, DPOTrainer):
        pass

    chats = appointments(8)["messages"]
    pairs = [{"prompt": m[:-1], "chosen": m[-1:], "rejected": [m[-1] | {"content": "no"}]} for m in chats]
    batch = {"per_device_train_batch_size": 2, "max_steps": 4, "save_strategy": "no", "learning_rate": 1e-3}
    given = {"train_dataset": datasets.Dataset.from_list(pairs), "processing_class": TOK}
    train(Mine(adapted(), args=DPOConfig(str(tmp_path), **QUIET, **batch), **given))
    trainer = Mine(adapted(), args=DPOConfig(str(tmp_path), **QUIET, **batch), **given)
    word = TOK(chats[3][1]["content"]).input_ids
    fault(trainer.model, lambda ids: any(ids[i : i + len(word)] == word for i in range(len(ids))), forward=math.nan)
    stopped(trainer, "since the loss is not finite")
    odd = [row for row in report(trainer)["rows"] if row["loss"] == "nan"]
    assert len(odd) == 2 and all(chats[3][1]["content"] in "".join(p["text"] for p in row["parts"]) for row in odd)


# memory


def test_transformers_may_find_the_batch_size_itself(tmp_path):
    trainer = make(tmp_path, auto_find_batch_size=True, per_device_train_batch_size=4, gradient_accumulation_steps=1, max_steps=2)

    def forward(layer, args):
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    trainer.model.get_input_embeddings().register_forward_pre_hook(forward)
    assert train(trainer).state.global_step == 2 and trainer._train_batch_size <= 2


def test_a_rehearsal_holds_what_a_later_step_holds(tmp_path):
    trainer = make(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
    trainer.rehearse, held = True, []
    later = losses._as_later
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "_as_later", lambda trainer: held.append(later(trainer)) or held[-1])
        train(trainer)
        again = make(tmp_path, max_steps=3)
        again.rehearse = True
        train(again, resume_from_checkpoint=last_good_checkpoint(tmp_path))
    states = [t for state in trainer.optimizer.state.values() for t in state.values() if t.dim()]
    assert sum(t.nbytes for t in held[0]) == sum(t.nbytes for t in states) and held[1] == []  # read from the checkpoint


def test_what_is_advised_fits_by_the_estimate_and_the_next_larger_does_not(tmp_path):
    ends = {"padding_free": True, "max_length": None}
    trainer = make(tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=1, **ends)
    lengths = sorted(map(len, ROWS["input_ids"]), reverse=True)
    tokens = {n: sum(lengths[:n]) for n in (2, 4)}
    config, adapter = trainer.model.get_base_model().config, trainer.model.peft_config["default"]
    fixed = {"bits": 32, "adapter": adapter, "device": "cpu", "dtype": None, "checkpointing": False}
    two, four = (estimate_memory(config, "lora", length=int(n), **fixed).total for n in tokens.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "_room", lambda device: (two + four) / 2 / 0.9)
        assert "per_device_train_batch_size=2, gradient_accumulation_steps=4 (they are 8 and 1)" in losses._advice(trainer)


def test_where_there_is_no_estimate_half_is_advised(tmp_path):
    trainer = make(tmp_path, model=tiny_model())
    trainer.model.get_input_embeddings().requires_grad_(False)
    assert "try per_device_train_batch_size=1 and twice the accumulation; memory is not estimated" in losses._advice(trainer)


def test_few_labels_are_not_refused_for_what_all_labels_would_take(tmp_path):
    trainer, asked = make(tmp_path), []

    def peak(tokens, labelled=1.0):
        asked.append(labelled)
        return 2e9 * labelled

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "_peak_of", lambda trainer: peak)
        patch.setattr(losses, "_room", lambda device: 1e9)
        worst = losses._worst(trainer)
        losses._check_room(trainer, *worst)
    labels = [label for i in worst[0] for label in ROWS[i]["labels"][1:]]
    assert asked == [1.0, pytest.approx(sum(label != -100 for label in labels) / len(labels))] and asked[1] < 0.5


def test_rows_end_to_end_take_their_sum_and_padded_ones_the_longest():
    lengths, fixed = np.array([100, 10, 10, 10]), {"rows": 4, "steps": 1, "checkpointing": True, "adapter": False}
    advised = [losses._cures(lambda tokens, **changes: tokens, 120, lengths, flat=flat, **fixed)[0] for flat in (True, False)]
    assert [said.split(",")[0] for said in advised] == ["per_device_train_batch_size=2", "per_device_train_batch_size=1"]


# spikes


def test_a_loss_that_hardly_moves_has_no_spike_in_a_tenth_more():
    history = [{"step": i, "loss": 1.1 if i == 30 else 1.0 + i % 2 / 1000} for i in range(60)]
    assert find_spikes(history) == []


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
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def one_rank(folder, rank):
    torch.set_num_threads(1)
    healthy = [train(make(folder / f"healthy-{kind.__name__}", kind=kind, max_steps=4)) for kind in (SFTTrainer, Guarded)]
    same = torch.equal(flat(healthy[0].model), flat(healthy[1].model))
    trainer = make(folder / "run")
    fault(trainer.model, lambda ids: rank == 1 and trainer.state.global_step == 2, forward=math.inf)
    said = stopped(trainer, "step 3 is not taken")
    facts = [torch.tensor(1.0)] * 4, torch.tensor(1.0), torch.tensor(8), torch.device("cpu")
    begin = time.perf_counter()
    for _ in range(200):
        losses._facts(*facts)
    cost = (time.perf_counter() - begin) / 200
    notes = gather_object([{"said": said, "same": same, "step": trainer.state.global_step, "cost": cost}])
    if rank == 0:
        (folder / "notes.json").write_text(json.dumps(notes))


def test_two_processes_stop_as_one_though_one_alone_has_the_row(tmp_path):
    run = subprocess.run([sys.executable, __file__, tmp_path], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    first, second = json.loads((tmp_path / "notes.json").read_text())
    assert first["said"] == second["said"] and first["step"] == second["step"] == 2 and first["same"] and second["same"]
    stop = json.loads((tmp_path / "run" / "stopped.json").read_text())
    assert stop["process"] == 1 and stop["rows"] and all(row["loss"] != row["loss"] or isinstance(row["loss"], str) for row in stop["rows"])
    assert last_good_checkpoint(tmp_path / "run").endswith("checkpoint-2")


if __name__ == "__main__":
    sys.exit(any(two_ranks(Path(sys.argv[1]))))
