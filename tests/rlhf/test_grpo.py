"GRPO and RLOO: the same as TRL's where the answers are given; weights of rewards, evaluation, reward models."

import contextlib
import copy
import io
import math
import os
import random

import datasets
import pytest
import torch
from torch.testing import assert_close
from trl import GRPOTrainer, RLOOTrainer
from trl.trainer.utils import add_fused_lm_head

from ft_notebooks.checkpointing.resume import exact_resume
from ft_notebooks.inference.generation import encode_prompts
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.rlhf.grpo import grpo_trainer, rloo_trainer
from ft_notebooks.rlhf.reward_model import load_reward_model
from ft_notebooks.rlhf.reward_scoring import reward_scores
from ft_notebooks.rlhf.reward_training import reward_trainer
from ft_notebooks.training.run import fit

TOK = tiny_tokenizer()
WORDS = ["a", "be", "cat", "dove", "eagle", "ferret and fox", "goose"]
PROMPTS = [{"prompt": [{"role": "user", "content": f"Say {word}."}], "word": word} for word in WORDS]
FIXED = {
    "bf16": False, "disable_tqdm": True, "save_strategy": "no", "max_steps": 2, "learning_rate": 1e-3,
    "prompts_a_step": 4, "generations": 4, "max_completion_length": 12,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quiet():
    datasets.disable_progress_bars()


def lowercase(generated, expected, example):
    return sum("a" <= letter <= "z" for letter in generated[:16]) / 16


def given_answers(prompts, trainer):
    "Answers that depend on the prompt, the step and the place in the group alone; every third one is cut."
    asked, said, times = encode_prompts(tiny_model(), TOK, prompts, 12), [], {}
    for prompt in prompts:
        text = prompt[-1]["content"]
        n = times[text] = times.get(text, -1) + 1
        ids = TOK(f"{text[4 : 5 + 2 * n]}{trainer.state.global_step}A")["input_ids"][:11]
        said.append(ids if n % 3 == 2 else [*ids, TOK.eos_token_id])
    return {"prompt_ids": asked, "completion_ids": said, "logprobs": None}


def made(folder, model=None, data=PROMPTS, rewards=lowercase, held=None, make=grpo_trainer, **given):
    with contextlib.redirect_stdout(io.StringIO()):
        return make(model or tiny_model(), TOK, data, rewards, held, output_dir=str(folder), **FIXED | given)


def quietly(run, *args):
    with contextlib.redirect_stdout(io.StringIO()):
        return run(*args)


def trls(folder, ours, kind=GRPOTrainer, **given):
    "TRL's trainer with the arguments, the rows and the answers of ours."
    args = copy.deepcopy(ours.args)
    args.output_dir = str(folder)
    model = tiny_model()
    model.generation_config.eos_token_id = ours.eos_token_ids
    args.beta, beta = 0.0, args.beta
    trainer = kind(
        model, lambda completions, **_: [lowercase(c[0]["content"], "", {}) for c in completions], args,
        ours.train_dataset, processing_class=TOK, **given,
    )  # fmt: skip
    if beta:  # its own reference would be loaded from the hub, by the name of the model
        trainer.beta, trainer.ref_model = beta, tiny_model().eval()
        add_fused_lm_head(trainer.ref_model, temperature=args.temperature, outputs=("log_probs", "entropy"))
    return exact_resume(trainer)


def logged(trainer):
    kept = ("loss", "grad_norm", "reward", "entropy", "kl", "clip_ratio/region_mean")
    return [{key: e[key] for key in kept if key in e} for e in trainer.state.log_history if "grad_norm" in e]


# the same as TRL's


@pytest.mark.numbers
@pytest.mark.parametrize(
    "fields",
    [
        {"loss_type": "grpo", "mask_truncated_completions": True, "temperature": 0.7, "scale_rewards": "batch"},
        {"loss_type": "dr_grpo", "top_entropy_quantile": 0.5, "beta": 0.1, "num_iterations": 2},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "num_iterations": 2},
        {"loss_type": "dapo", "entropy_coef": 0.5, "scale_rewards": "none", "gradient_checkpointing": True},
    ],
    ids=str,
)
def test_micro_batches_of_several_groups_learn_what_trl_learns_from_the_same_answers(tmp_path, fields):
    batch = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "rollout_func": given_answers}
    ours = made(tmp_path / "ours", **batch, **fields)
    theirs = trls(tmp_path / "theirs", ours, rollout_func=given_answers)
    assert ours.shares and len(theirs.train_dataset) == 8
    for trainer in (ours, theirs):
        torch.manual_seed(0)
        quietly(trainer.train)
    assert len(logged(ours)) == 2
    for one, other in zip(logged(ours), logged(theirs), strict=True):
        assert_close(one, other, rtol=2e-3, atol=2e-5)
    assert all(entry["grad_norm"] > 1e-3 for entry in logged(ours))


@pytest.mark.numbers
def test_rloo_learns_what_trl_learns_from_the_answers_of_the_same_random_numbers(tmp_path):
    batch = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_iterations": 2}
    fields = {"beta": 0.05, "temperature": 0.7, "normalize_advantages": True, "reward_clip_range": (0.05, 0.5)}
    ours = made(tmp_path / "ours", make=rloo_trainer, **batch, **fields)
    theirs = trls(tmp_path / "theirs", ours, RLOOTrainer)
    for trainer in (ours, theirs):
        torch.manual_seed(0)
        quietly(trainer.train)
    assert ours.shares and len(logged(ours)) == 2
    for one, other in zip(logged(ours), logged(theirs), strict=True):
        assert_close(one, other, rtol=2e-3, atol=2e-5)
    assert all(entry["grad_norm"] > 1e-3 for entry in logged(ours))


# rewards


@pytest.mark.numbers
def test_weights_count_and_each_reward_has_its_own_name_in_the_log(tmp_path):
    given = {"reward_weights": [1.0, -0.5], "max_steps": 1, "rollout_func": given_answers}
    trainer = made(tmp_path, rewards={"letters": lowercase, "size": "length"}, **given)
    quietly(trainer.train)
    [entry] = [e for e in trainer.state.log_history if "reward" in e]
    assert entry["reward"] == pytest.approx(entry["rewards/letters/mean"] - 0.5 * entry["rewards/size/mean"], abs=1e-5)


@pytest.mark.numbers
def test_a_reward_that_seeds_edits_its_row_and_changes_the_folder_changes_no_step(tmp_path):
    rows = [{**row, "seen": []} for row in PROMPTS]

    def careless(generated, expected, example):
        random.seed(0), torch.manual_seed(0), os.chdir(tmp_path)
        example["seen"].append(generated)
        return lowercase(generated, expected, example) + len(example["seen"])

    def plain(generated, expected, example):
        return lowercase(generated, expected, example) + 1

    before, ends = os.getcwd(), []
    for name, reward in (("careless", careless), ("plain", plain)):
        trainer = made(tmp_path / name, data=rows, rewards={"reward": reward})
        quietly(trainer.train)
        ends.append({key: value.clone() for key, value in trainer.model.state_dict().items()})
    assert os.getcwd() == before
    assert_close(*ends, rtol=0, atol=0)


@pytest.mark.numbers
def test_an_evaluation_during_the_run_is_logged_and_changes_no_weight(tmp_path):
    plain, watched = (
        made(tmp_path / str(n), max_steps=3, num_iterations=1, **fields)
        for n, fields in enumerate((
            {}, {"held": PROMPTS[:3], "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4},
        ))
    )  # fmt: skip
    for trainer in (plain, watched):
        torch.manual_seed(0)
        quietly(trainer.train)
    assert len([e for e in watched.state.log_history if "eval_reward" in e]) == 3
    assert logged(plain) == logged(watched)
    for one, other in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.numbers
@pytest.mark.bfloat16
@pytest.mark.whole
def test_a_reward_model_that_was_trained_rewards_what_it_has_learned_to_like(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    model = load_reward_model(tmp_path / "base", TOK, seed=0)
    pairs = [{"prompt": f"Say {n}.", "chosen": "yes " * (1 + n % 3), "rejected": "1" * (1 + n % 5)} for n in range(16)]
    run = {"output_dir": str(tmp_path / "reward"), "bf16": False, "disable_tqdm": True, "learning_rate": 1e-2}
    judged = quietly(lambda: reward_trainer(
        add_adapter(model, lora_config(model)), TOK, pairs, effective_batch=8, max_steps=6, **run
    ))  # fmt: skip
    quietly(fit, judged)
    judge = load_reward_model(tmp_path / "reward", TOK)
    asked = [{"role": "user", "content": "Say 20."}]
    like, other = reward_scores(
        judge, TOK, [[*asked, {"role": "assistant", "content": t}] for t in ("yes yes ", "111")]
    )
    assert like > other
    policy = add_adapter(tiny_model(), lora_config(tiny_model(), r=4))
    trainer = made(tmp_path / "grpo", policy, rewards=judge, save_strategy="steps")
    before = {name: p.detach().clone() for name, p in judge.named_parameters()}
    quietly(fit, trainer)
    rewards = [e["rewards/reward_model/mean"] for e in trainer.state.log_history if "reward" in e]
    assert len(rewards) == 2 and all(map(math.isfinite, rewards)) and logged(trainer)[0]["grad_norm"] > 0
    assert all(torch.equal(p, before[name]) for name, p in judge.named_parameters())


def reward_of(text):
    return eval(f"lambda generated, expected, example: {text}")


@pytest.mark.whole
def test_a_run_with_another_reward_is_another_run(tmp_path):
    first = {"r": reward_of("len(generated) % 7")}
    fit(made(tmp_path, rewards=first, save_strategy="steps", max_steps=1))
    made(tmp_path, rewards={"r": reward_of("len(generated) % 7")}, save_strategy="steps", max_steps=1)
    others = reward_of("len(generated) % 8"), reward_of("len(generated) % 7 + (expected in {'a', 'b'})"), "length"
    for other in others:
        with pytest.raises(ValueError, match="holds a different run: reward.r was '[0-9a-f]{16}', is '"):
            made(tmp_path, rewards={"r": other}, save_strategy="steps", max_steps=1)
