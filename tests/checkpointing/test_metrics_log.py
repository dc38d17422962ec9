"Edges of `ft_notebooks.checkpointing.metrics_log`: kills anywhere, other numbers, ways to batch, other processes."

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from small_runs import CHATS, adapted, arguments, forked, lines, rows, timeless, trainer, weights
from transformers import TrainerCallback, TrainerControl, TrainerState
from trl import SFTConfig, SFTTrainer

from ft_notebooks.checkpointing import metrics_log
from ft_notebooks.checkpointing.metrics_log import MetricsCallback
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.training.run_report import SamplesCallback


@pytest.mark.parametrize(
    ("written", "whole"),
    [(b"", []), (b'{"a": 1}\n', [{"a": 1}]), (b'{"a": 1}\n{"a": 2', [{"a": 1}]), (b'{"a": "\xc3', []), (b"{", [])],
)
def test_a_last_line_that_is_torn_anywhere_does_not_count(tmp_path, written, whole):
    (tmp_path / "lines").write_bytes(written)
    assert metrics_log.read_entries(tmp_path / "lines") == whole


def test_a_file_that_is_torn_elsewhere_is_an_error(tmp_path):
    (tmp_path / "lines").write_text('{"a": \n{"a": 2}\n')
    with pytest.raises(ValueError, match="lines"):
        metrics_log.read_entries(tmp_path / "lines")


def test_the_speed_leaves_out_an_evaluation_and_what_follows_it_until_the_next_step(tmp_path, monkeypatch):
    now, callback, args, control = [0.0], MetricsCallback(), arguments(tmp_path), TrainerControl()
    monkeypatch.setattr(metrics_log.time, "monotonic", lambda: now[0])
    state = TrainerState(log_history=[{"loss": 1.0, "step": 2}])

    def at(second, what):
        now[0] = second
        getattr(callback, what)(args, state, control)

    callback.on_train_begin(args, state, control)
    at(0, "on_step_begin"), at(3, "on_step_end"), at(50, "on_evaluate"), at(55, "on_save")
    at(80, "on_step_begin"), at(82, "on_step_end"), at(83, "on_step_begin"), at(85, "on_step_end")
    state.num_input_tokens_seen = 80
    callback.on_log(args, state, control, logs=(logs := {}))
    assert logs == {"tokens_per_second": 80 / (3 + 5)}  # from one step to the next it goes on


class Die(TrainerCallback):
    "SIGKILL at the end of a step; or in the middle of the line that the step writes"

    def __init__(self, step, torn):
        self.step, self.torn = step, torn

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and not self.torn:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_log(self, args, state, control, **kwargs):
        if state.global_step == self.step and self.torn:
            file = Path(args.output_dir) / "metrics.jsonl"
            file.write_bytes(file.read_bytes()[:-9])
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    done = trainer(folder, MetricsCallback(), SamplesCallback(tiny_tokenizer(), CHATS, 4), model=adapted())
    done.train()
    return folder, done


@pytest.mark.whole
@pytest.mark.parametrize(("step", "torn"), [(1, False), (5, False), (9, True)])
def test_a_run_killed_anywhere_and_resumed_ends_with_the_files_of_the_run_that_went_through(
    tmp_path, whole, step, torn
):
    def run(*callbacks):
        return trainer(
            tmp_path, MetricsCallback(), SamplesCallback(tiny_tokenizer(), CHATS, 4), *callbacks, model=adapted()
        )

    assert forked(lambda: run(Die(step, torn)).train()) == -signal.SIGKILL
    written = len(metrics_log.read_entries(tmp_path / "metrics.jsonl"))
    at = (step - 1) // 3 * 3  # the last checkpoint
    assert written >= step - 1 + (step - 1) // 3  # more than the checkpoint holds
    again = run()
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}") if at else None)
    folder, done = whole
    assert timeless(lines(tmp_path / "metrics.jsonl")) == timeless(lines(folder / "metrics.jsonl"))
    assert (tmp_path / "samples.jsonl").read_bytes() == (folder / "samples.jsonl").read_bytes()
    assert torch.equal(weights(again), weights(done))


def test_the_file_is_the_history_but_for_the_summary(whole):
    folder, done = whole
    assert lines(folder / "metrics.jsonl") == done.state.log_history[:-1]
    assert all(entry["tokens_per_second"] > 0 for entry in done.state.log_history if "loss" in entry)
    assert [entry["step"] for entry in lines(folder / "metrics.jsonl")] == [1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9]


def test_what_is_logged_before_and_after_a_run_is_no_part_of_it(tmp_path):
    run = trainer(tmp_path, MetricsCallback(), save_strategy="no", max_steps=3)
    run.evaluate()
    assert not (tmp_path / "metrics.jsonl").exists()
    run.train()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    run.evaluate()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before and len(before.splitlines()) == 4
    run.train()  # a new run
    assert len((tmp_path / "metrics.jsonl").read_bytes().splitlines()) == 4


def test_numpy_numbers_and_letters_of_all_kinds_are_written(tmp_path):
    found = {"accuracy": np.float32(0.5), "right": np.int64(3)}
    trainer(tmp_path, MetricsCallback(), compute_metrics=lambda _: found, save_strategy="no", max_steps=3).train()
    entry = lines(tmp_path / "metrics.jsonl")[-1]
    assert (entry["eval_accuracy"], entry["eval_right"]) == (0.5, 3)
    assert metrics_log.entries_text([{"answer": "naïve 🙂\n"}]) == '{"answer": "naïve 🙂\\n"}\n'


@pytest.mark.parametrize("counting", ["no", "all"])
def test_without_a_count_of_real_tokens_no_speed_is_claimed(tmp_path, counting):
    run = trainer(tmp_path, MetricsCallback(), save_strategy="no", max_steps=2)
    run.args.include_num_input_tokens_seen = counting
    run.train()
    assert not any("tokens_per_second" in entry for entry in run.state.log_history)


@pytest.mark.parametrize(
    "settings",
    [{}, {"padding_free": True, "max_length": None, "pad_to_multiple_of": 64}, {"packing": True, "max_length": 64}],
)
def test_tokens_are_counted_without_padding_however_rows_are_batched(tmp_path, settings):
    fixed = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    counted = {"include_num_input_tokens_seen": "non_padding", **settings}
    args = SFTConfig(tmp_path, per_device_train_batch_size=8, num_train_epochs=1, logging_steps=1, **fixed, **counted)
    run = SFTTrainer(
        tiny_model(),
        args,
        train_dataset=Dataset.from_list(rows()),
        processing_class=tiny_tokenizer(),
        callbacks=[MetricsCallback()],
    )
    run.train()
    entry = lines(tmp_path / "metrics.jsonl")[-1]
    assert entry["num_input_tokens_seen"] == entry["num_tokens"] == sum(len(row["input_ids"]) for row in rows())
    assert entry["tokens_per_second"] > 0


def test_a_log_after_the_save_of_an_epoch_s_last_step_has_the_speed_of_the_epoch(tmp_path):
    settings = {
        "logging_strategy": "epoch",
        "save_steps": 4,
        "eval_strategy": "no",
        "max_steps": -1,
        "num_train_epochs": 2,
    }
    run = trainer(tmp_path, MetricsCallback(), **settings)
    run.train()
    assert [entry["step"] for entry in lines(tmp_path / "metrics.jsonl") if entry["tokens_per_second"] > 0] == [4, 8]


def test_the_first_speed_of_a_resumed_run_is_of_its_own_tokens(tmp_path, monkeypatch):
    now, callback, args, control = [0.0], MetricsCallback(), arguments(tmp_path), TrainerControl()
    monkeypatch.setattr(metrics_log.time, "monotonic", lambda: now[0])
    state = TrainerState(global_step=5, num_input_tokens_seen=1000, log_history=[])
    callback.on_train_begin(args, state, control)
    callback.on_step_begin(args, state, control)
    now[0], state.num_input_tokens_seen = 2.0, 1060
    callback.on_step_end(args, state, control)
    state.log_history.append({"loss": 1.0, "step": 6})
    callback.on_log(args, state, control, logs=(logs := {}))
    assert logs == {"tokens_per_second": 30.0}  # for the callbacks after it
    assert lines(tmp_path / "metrics.jsonl") == [{"loss": 1.0, "step": 6, "tokens_per_second": 30.0}]


def test_only_the_first_process_writes(tmp_path):
    state, control, callback = (
        TrainerState(is_world_process_zero=False, max_steps=3),
        TrainerControl(),
        MetricsCallback(),
    )
    callback.on_train_begin(arguments(tmp_path), state, control)
    state.log_history = [{"loss": 1.0, "step": 0}]
    callback.on_log(arguments(tmp_path), state, control, logs={"loss": 1.0})
    callback.on_train_end(arguments(tmp_path), state, control)
    assert not list(tmp_path.iterdir())
