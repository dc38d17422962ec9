"""Edges of `ft_notebooks.checkpointing.checkpoint_saving`: settings that are let through, every kind of early stopping,
adapters.
"""

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import adapted, arguments, rows, trainer, weights
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from ft_notebooks.checkpointing.checkpoint_saving import check_checkpoint_choice
from ft_notebooks.checkpointing.graceful_stop import save_on_signals
from ft_notebooks.checkpointing.integrity import last_good_checkpoint
from ft_notebooks.checkpointing.resume import exact_resume
from ft_notebooks.loading.example_models import tiny_model
from ft_notebooks.tokenization.padding import pad_batch


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_strategy": "epoch", "save_strategy": "epoch"},
        {"eval_steps": 0.2, "save_steps": 0.2},
        {"save_strategy": "best", "save_steps": 7},
        {"eval_steps": 4, "save_steps": 4},
    ],
)
def test_settings_that_keep_the_best_are_let_through(tmp_path, settings):
    check_checkpoint_choice(arguments(tmp_path, load_best_model_at_end=True, **settings), None)


def test_steps_that_differ_are_no_matter_where_the_best_is_not_asked_for(tmp_path):
    check_checkpoint_choice(arguments(tmp_path, eval_steps=2, save_steps=7))


@pytest.mark.parametrize("kind", [EarlyStoppingCallback, type("Mine", (EarlyStoppingCallback,), {})])
def test_every_kind_of_early_stopping_is_seen_as_a_class_and_as_an_object(tmp_path, kind):
    for callback in (kind, kind(3)):
        with pytest.raises(ValueError, match="restore_callback_states_from_checkpoint=True"):
            check_checkpoint_choice(arguments(tmp_path, metric_for_best_model="loss"), [callback])


@pytest.mark.whole
def test_the_adapter_that_is_left_is_that_of_the_best_checkpoint(tmp_path):
    settings = {
        "max_steps": 24,
        "eval_steps": 4,
        "save_steps": 4,
        "load_best_model_at_end": True,
        "learning_rate": 3e-2,
    }
    run = trainer(tmp_path, model=adapted(), **settings)
    check_checkpoint_choice(run.args)
    run.train()
    best = load_file(Path(run.state.best_model_checkpoint) / "adapter_model.safetensors")
    own = {name.replace(".default", ""): p for name, p in run.model.named_parameters() if "lora_" in name}
    assert run.state.best_global_step < 24 and own.keys() == best.keys()
    assert all(torch.equal(p, best[name]) for name, p in own.items())


PATIENT = {"metric_for_best_model": "loss", "restore_callback_states_from_checkpoint": True}


@pytest.mark.parametrize(
    ("callbacks", "settings", "message"),
    [
        ([], {"load_best_model_at_end": True, "eval_steps": 3, "save_steps": 6}, "eval_steps=3 and save_steps=6"),
        ([], {"eval_strategy": "no", "save_strategy": "best", **PATIENT}, "save_strategy='best' needs evaluations"),
        ([EarlyStoppingCallback], {"eval_strategy": "no", **PATIENT}, "EarlyStoppingCallback needs evaluations"),
        ([EarlyStoppingCallback], PATIENT | {"metric_for_best_model": None}, "set metric_for_best_model='loss'"),
        ([EarlyStoppingCallback], PATIENT | {"restore_callback_states_from_checkpoint": False}, "lose its count"),
    ],
)
def test_each_condition_is_refused_alone_and_let_through_without_it(tmp_path, callbacks, settings, message):
    with pytest.raises(ValueError, match=message):
        check_checkpoint_choice(arguments(tmp_path, **settings), callbacks)
    cured = PATIENT | {"eval_strategy": "steps", "save_strategy": "steps", "save_steps": 3}
    check_checkpoint_choice(arguments(tmp_path, **settings | cured), callbacks)


BEST = {"save_strategy": "best", "metric_for_best_model": "loss", "greater_is_better": False, "save_total_limit": 2}


def gets_worse(folder, **settings):
    "A plain trainer, four steps an epoch; by steps its loss rises, from epoch to epoch it falls."
    args = arguments(folder, **{**BEST, "learning_rate": 0.3, **settings})
    return exact_resume(Trainer(tiny_model(), args, lambda batch: pad_batch(batch, 0), rows()[:7], rows()[7:]))


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_steps": 2, "max_steps": 6},
        {"eval_steps": 2, "max_steps": 7},
        {"eval_steps": 2, "max_steps": 7, "eval_delay": 8},
        {"eval_strategy": "epoch", "greater_is_better": True, "max_steps": 8},
        {"eval_strategy": "epoch", "greater_is_better": True, "max_steps": 7},
        {"eval_strategy": "epoch", "greater_is_better": True, "max_steps": 7, "eval_delay": 3},
    ],
)
def test_a_run_that_saves_the_best_ends_with_its_last_step_saved_too(tmp_path, settings):
    (run := gets_worse(tmp_path, **settings)).train()
    steps = settings["max_steps"]
    assert last_good_checkpoint(tmp_path).endswith(f"checkpoint-{steps}")
    if "eval_delay" not in settings:
        assert run.state.best_global_step < steps and Path(run.state.best_model_checkpoint, "complete.json").is_file()


def evaluated(run):
    return {entry["step"]: entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry}


@pytest.mark.whole
def test_the_evaluations_of_a_run_that_saves_the_best_are_those_of_any_run(tmp_path):
    settings = {"eval_strategy": "epoch", "logging_strategy": "epoch", "max_steps": 10}
    (best := gets_worse(tmp_path / "best", **settings)).train()
    (other := gets_worse(tmp_path / "other", **settings | {"save_strategy": "epoch"})).train()
    assert evaluated(best) == evaluated(other) and list(evaluated(best)) == [4, 8, 10]
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (best, other)]
    assert losses[0] == losses[1] and len(losses[0]) == 3


@pytest.mark.whole
@pytest.mark.parametrize("settings", [{"eval_steps": 1}, {"eval_strategy": "epoch"}])
def test_the_end_by_early_stopping_is_saved_too(tmp_path, settings):
    fields = settings | {"max_steps": 40, "restore_callback_states_from_checkpoint": True}
    for _ in range(2):
        run = gets_worse(tmp_path, **fields)
        run.add_callback(EarlyStoppingCallback(2, early_stopping_threshold=1e9))  # a fall of the loss that cannot be
        run.train(last_good_checkpoint(tmp_path))
        step = run.state.global_step
        assert step < 40 and last_good_checkpoint(tmp_path).endswith(f"checkpoint-{step}")
        assert list(evaluated(run))[-1] == step  # the second start takes no step


@pytest.mark.whole
@pytest.mark.parametrize("settings", [{"eval_steps": 1}, {"eval_strategy": "epoch"}])
@pytest.mark.parametrize("step", [6, 8])
def test_a_signal_saves_a_step_that_is_not_the_best_and_the_run_goes_on_from_there(tmp_path, settings, step):
    class Gets(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step - 1:
                signal.raise_signal(signal.SIGTERM)

    fields = settings | {"max_steps": 10}
    (whole := gets_worse(tmp_path / "whole", **fields)).train()
    run = gets_worse(tmp_path / "run", **fields)
    run.add_callback(Gets())
    with save_on_signals(run) as stop:
        run.train()
    assert stop.signal is signal.SIGTERM and last_good_checkpoint(tmp_path / "run").endswith(f"checkpoint-{step}")
    (again := gets_worse(tmp_path / "run", **fields)).train(last_good_checkpoint(tmp_path / "run"))
    assert torch.equal(weights(again), weights(whole)) and evaluated(again) == evaluated(whole)


def test_a_run_after_one_that_an_error_has_ended_keeps_to_the_same_limit(tmp_path):
    class Stumbles(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise RuntimeError("once")

    run, stumbles = (
        gets_worse(tmp_path, **BEST | {"save_strategy": "steps", "save_steps": 1, "max_steps": 6}),
        Stumbles(),
    )
    run.add_callback(stumbles)
    with pytest.raises(RuntimeError, match="once"):
        run.train()
    run.remove_callback(stumbles)
    run.train(last_good_checkpoint(tmp_path))
    best = run.state.best_global_step
    assert run.args.save_total_limit == 2 and len(list(tmp_path.glob("checkpoint-*"))) == 2
    assert {f"checkpoint-{step}" for step in {best, 6}} <= {p.name for p in tmp_path.glob("checkpoint-*")}
