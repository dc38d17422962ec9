"GRPO with an environment: what is trained, what ends a run, what resumes, and what a run says of its tools."

import contextlib
import io
import json
import os
import random
import signal
import threading
import time

import datasets
import pytest
import torch
from datasets import Dataset
from ranks_of import ranks
from small_runs import ROUNDED, forked, only_rounded
from transformers import TrainerCallback
from trl import GRPOTrainer

from ft_notebooks.checkpointing.integrity import last_good_checkpoint
from ft_notebooks.course.sums_task import Calculator, sum_rows, with_tools
from ft_notebooks.inference.generation import encode_prompts
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.rlhf.environments import guarded_environment
from ft_notebooks.rlhf.grpo import grpo_trainer, rloo_trainer
from ft_notebooks.rlhf.reward_choice import measure_rewards
from ft_notebooks.rlhf.rewards import read_prompts
from ft_notebooks.rlhf.tool_use import tool_answers, tool_lines
from ft_notebooks.training.run import fit

FIXED = {
    "bf16": False, "disable_tqdm": True, "save_steps": 2, "max_steps": 4, "learning_rate": 1e-3,
    "prompts_a_step": 2, "generations": 4, "max_completion_length": 160,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quiet():
    datasets.disable_progress_bars()


def tokenizer():
    return with_tools(tiny_tokenizer())


def calling():
    "A tokenizer with which the text between a vowel and the next full stop is a call: the tiny model makes some."
    tok = tokenizer()
    call = {"type": "function", "function": {"name": "say", "arguments": {"text": "{content}"}}}
    fields = {
        "tool_calls": {"open_pattern": "[aeiou]", "close_pattern": r"\.|<\|im_end\|>|$", "content": "text",
                       "repeats": True, "transform": call},
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    }  # fmt: skip
    tok.response_template = {"defaults": {"role": "assistant"}, "start_anchor": "<|im_start|>assistant\n", "fields": fields}
    return tok


class Echo:
    "Replies with a random number, and counts its calls."

    def __init__(self):
        self.count = 0

    def reset(self, expected):
        return f" ({len(expected)} digits)"

    def say(self, text: str) -> str:
        """
        Say a text.

        Args:
            text: It.
        """
        self.count += 1
        return f"{len(text)} {random.random():.3f}"

    def get_reward(self):
        return self.count / 4


def letters(generated, expected, example):
    return sum("a" <= letter <= "z" for letter in generated[:16]) / 16


def made(folder, *callbacks, tok=None, kind=Echo, rows=6, rewards=letters, model=None, **given):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        trainer = grpo_trainer(
            model or tiny_model(), tok or calling(), sum_rows(rows), rewards, output_dir=str(folder), environment=kind,
            callbacks=list(callbacks), **FIXED | given,
        )  # fmt: skip
    trainer.said = said
    return trainer


def fitted(folder, *callbacks, **given):
    trainer = made(folder, *callbacks, **given)
    with contextlib.redirect_stdout(trainer.said):
        fit(trainer)
    return trainer


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


class KilledAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.whole
def test_a_run_with_tools_that_is_killed_goes_on_to_the_same_weights(tmp_path):
    whole = fitted(tmp_path / "whole")
    assert forked(lambda: fitted(tmp_path / "parts", KilledAt(3))) == -signal.SIGKILL
    assert last_good_checkpoint(tmp_path / "parts").endswith("checkpoint-2")
    parts = fitted(tmp_path / "parts")
    one, other = weights(whole), weights(parts)
    assert all(torch.equal(p, other[name]) for name, p in one.items())
    keys = ("reward", "grad_norm", "tools/call_frequency", "rewards/Echo/mean")
    logs = [[[e[k] for k in keys] for e in t.state.log_history if "grad_norm" in e] for t in (whole, parts)]
    assert logs[0] == logs[1] and len(logs[0]) == 4
    assert all(0 < entry[2] for entry in logs[0])
