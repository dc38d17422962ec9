"""Edges of `ft_notebooks.checkpointing.best_checkpoint`: settings that are let through, every kind of early stopping,
adapters.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import adapted, arguments, rows, trainer
from transformers import EarlyStoppingCallback, Trainer

from ft_notebooks.checkpointing.best_checkpoint import check_checkpoint_choice
from ft_notebooks.checkpointing.integrity import last_good_checkpoint
from ft_notebooks.checkpointing.resume import ResumableTrainer
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
        ([EarlyStoppingCallback], PATIENT | {"metric_for_best_model": None}, "give metric_for_best_model='loss'"),
        ([EarlyStoppingCallback], PATIENT | {"restore_callback_states_from_checkpoint": False}, "forget its patience"),
    ],
)
def test_each_condition_is_refused_alone_and_let_through_without_it(tmp_path, callbacks, settings, message):
    with pytest.raises(ValueError, match=message):
        check_checkpoint_choice(arguments(tmp_path, **settings), callbacks)
    cured = PATIENT | {"eval_strategy": "steps", "save_strategy": "steps", "save_steps": 3}
    check_checkpoint_choice(arguments(tmp_path, **settings | cured), callbacks)


@pytest.mark.parametrize("steps", [6, 7])
def test_a_run_that_saves_the_best_ends_with_its_last_step_saved_too(tmp_path, steps):
    class Mine(ResumableTrainer, Trainer):
        pass

    best = {"save_strategy": "best", "metric_for_best_model": "loss", "greater_is_better": False, "save_total_limit": 2}
    args = arguments(tmp_path, **best, eval_steps=2, max_steps=steps, learning_rate=0.3)  # it gets worse at once
    run = Mine(tiny_model(), args, lambda batch: pad_batch(batch, 0), rows()[:7], rows()[7:])
    run.train()
    assert run.state.best_global_step < steps and last_good_checkpoint(tmp_path).endswith(f"checkpoint-{steps}")
    assert Path(run.state.best_model_checkpoint, "complete.json").is_file()
