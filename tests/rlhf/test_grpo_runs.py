"GRPO runs that are killed, and runs of several processes."

import contextlib
import io
import json
import signal
from pathlib import Path

import datasets
import pytest
import torch
from ranks_of import ranks
from small_runs import ROUNDED, killed_at, only_rounded
from transformers import TrainerCallback

from ft_notebooks.checkpointing.integrity import last_good_checkpoint
from ft_notebooks.cli.commands import main
from ft_notebooks.inference.generation import encode_prompts
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.rlhf.grpo import grpo_trainer, rloo_trainer
from ft_notebooks.rlhf.reward_hacking import RewardHackingCallback
from ft_notebooks.training.run import fit

pytestmark = pytest.mark.whole

TOK = tiny_tokenizer()
PROMPTS = [{"prompt": [{"role": "user", "content": f"Say {word}."}], "expected": word} for word in "abcdefgh"]
FIXED = {
    "bf16": False, "disable_tqdm": True, "save_steps": 2, "max_steps": 4, "learning_rate": 1e-3, "beta": 0.05,
    "num_iterations": 2, "prompts_a_step": 2, "generations": 4, "max_completion_length": 12,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quiet():
    datasets.disable_progress_bars()


def lowercase(generated, expected, example):
    return sum("a" <= letter <= "z" for letter in generated[:16]) / 16


def policy(kind):
    return (
        add_adapter(tiny_model(), lora_config(tiny_model(), r=4, lora_dropout=0.3))
        if kind == "adapter"
        else tiny_model()
    )


def trained(folder, kind, **given):
    "A run whose held-out prompts are looked at every two steps."
    watched = RewardHackingCallback(
        TOK, datasets.Dataset.from_list(PROMPTS[6:]), ["length", "stop_rate"], 2, stop=False
    )
    with contextlib.redirect_stdout(io.StringIO()):
        make = rloo_trainer if kind == "rloo" else grpo_trainer
        trainer = make(
            policy(kind), TOK, PROMPTS[:6], lowercase, output_dir=str(folder), callbacks=[watched],
            **FIXED | given,
        )  # fmt: skip
        fit(trainer)
    return trainer


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if ".ref." not in name}


@pytest.mark.parametrize("kind", ["adapter", "rloo"])
def test_a_run_that_is_killed_goes_on_to_the_same_weights_rewards_and_looks(tmp_path, kind):
    whole = trained(tmp_path / "whole", kind)
    assert killed_at(3, lambda: trained(tmp_path / "parts", kind)) == -signal.SIGKILL
    assert last_good_checkpoint(tmp_path / "parts").endswith("checkpoint-2")
    looks = (tmp_path / "parts" / "held_out.jsonl").read_text()
    assert [json.loads(line)["step"] for line in looks.splitlines()] == [0, 2]
    parts = trained(tmp_path / "parts", kind)
    one, other = weights(whole), weights(parts)
    assert one.keys() == other.keys() and all(torch.equal(p, other[name]) for name, p in one.items())
    keys = ("reward", "grad_norm", "kl", "entropy")
    logs = [[[e.get(k) for k in keys] for e in t.state.log_history if "kl" in e] for t in (whole, parts)]
    steps = 2 if kind == "rloo" else 4  # `trl.RLOOTrainer` logs the KL where it samples
    assert logs[0] == logs[1] and len(logs[0]) == steps and logs[0][0][2] == pytest.approx(0, abs=1e-6)
    now = (tmp_path / "parts" / "held_out.jsonl").read_text()
    assert now.startswith(looks) and now == (tmp_path / "whole" / "held_out.jsonl").read_text()


def test_a_run_that_was_started_without_the_callback_has_no_start_values(tmp_path):
    each = {"num_iterations": 1, "save_steps": 1}
    with contextlib.redirect_stdout(io.StringIO()):
        made = grpo_trainer(policy("full"), TOK, PROMPTS[:6], lowercase, output_dir=str(tmp_path), **FIXED | each)
        made.add_callback(Stops())
        with pytest.raises(KeyboardInterrupt):
            fit(made)
    with pytest.raises(ValueError, match="started without RewardHackingCallback, so its start values are unknown"):
        trained(tmp_path, "full", **each)


class Stops(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise KeyboardInterrupt


def given_answers(prompts, trainer):
    "Answers that depend on the prompt, the step and the place in the group alone."
    asked, said, times = encode_prompts(tiny_model(), TOK, prompts, 12), [], {}
    for prompt in prompts:
        text = prompt[-1]["content"]
        n = times[text] = times.get(text, -1) + 1
        ids = TOK(f"{text[: 2 + 2 * n]}{trainer.state.global_step}A")["input_ids"][:11]
        said.append(ids if n % 3 == 2 else [*ids, TOK.eos_token_id])
    return {"prompt_ids": asked, "completion_ids": said, "logprobs": None}


def learned(folder, kind):
    trainer = trained(folder, kind, rollout_func=given_answers)
    logs = [
        [e.get(k, -1.0) for k in ("loss", "reward", "reward_std", "kl")] for e in trainer.state.log_history if "kl" in e
    ]
    return {"weights": torch.cat([p.flatten() for p in weights(trainer).values()]), "logs": torch.tensor(logs)}


def test_two_processes_learn_from_given_answers_what_one_does(tmp_path):
    one = learned(tmp_path / "one", "full")
    two = ranks(2, lambda rank: learned(tmp_path / "two", "full"), tmp_path / "ranks")
    assert torch.equal(two[0]["weights"], two[1]["weights"])
    assert (two[0]["logs"] - one["logs"]).abs().max() < ROUNDED
    assert only_rounded((two[0]["weights"] - one["weights"]).abs(), 2 * 1e-3 * 4)
    looks = [[json.loads(line)["step"] for line in (tmp_path / run / "held_out.jsonl").read_text().splitlines()]
             for run in ("one", "two")]  # fmt: skip
    assert looks[0] == looks[1] == [0, 2, 4]


def test_ft_grpo_in_two_processes_is_one_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("tiny")
    TOK.save_pretrained("tiny")
    chats = [[*row["prompt"], {"role": "assistant", "content": row["expected"]}] for row in PROMPTS]
    Path("chats.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    fields = {"bf16": "false", "max_steps": 1, "prompts_a_step": 2, "generations": 4, "max_completion_length": 12}
    given = ["model.name=tiny", "model.bits=32", "data.eval=last:2", *(f"grpo.{k}={v}" for k, v in fields.items())]
    words = ["grpo", "chats.jsonl", "--reward", "length", *(x for setting in given for x in ("--set", setting))]
    ranks(2, lambda rank: main(words), tmp_path / "ranks")
    metrics = json.loads(Path("runs/grpo/metrics.json").read_text())
    assert [*metrics["rewards"]] == ["exact_match", "length"] and metrics["rewards_before"]["length"]["n"] == 2
    assert [json.loads(line)["step"] for line in Path("runs/grpo/held_out.jsonl").read_text().splitlines()] == [0, 1]
    said = [(tmp_path / "ranks" / f"rank{rank}.log").read_text() for rank in (0, 1)]
    assert "before step 1, 8 answers to 2 prompts" in said[0] and "before step 1" not in said[1]
