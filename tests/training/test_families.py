"The families that people fine-tune, each as a tiny model: losses, gradients, layouts and what a run leaves behind."

import math

import pytest
import torch
from small_runs import ROUNDED
from tiny_families import family
from transformers import TrainerCallback
from trl import SFTTrainer

from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.dpo.trainer import dpo_trainer
from ft_notebooks.loading.example_models import tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.rlhf.grpo import grpo_trainer
from ft_notebooks.sft.trainer import sft_trainer
from ft_notebooks.tokenization.padding import IGNORE
from ft_notebooks.training.kernel_patching import optimizations, speed_up
from ft_notebooks.training.run import fit
from ft_notebooks.training.shared_prompt import why_not_shared

TOK = tiny_tokenizer()
ROWS = encode_chats(TOK, appointments(4))[0]
EXACT = {"bf16": False, "disable_tqdm": True, "use_cpu": True, "report_to": "none", "logging_steps": 1}
HYBRIDS = ["qwen3_5_text", "qwen3_next", "lfm2", "lfm2_moe", "granitemoehybrid", "falcon_h1"]
BALANCED = ["qwen3_moe", "mixtral", "gpt_oss"]  # with an auxiliary loss


def adapted(name: str, **fields):
    model = family(name, **fields)
    targets = ["in_proj"] if name == "falcon_h1" else None  # PEFT refuses its `out_proj`
    return add_adapter(model, lora_config(model, **({"target_modules": targets} if targets else {})))


@pytest.fixture
def sft(tmp_path):
    def sft(model, folder="run", eval_dataset=None, **settings):
        settings = {"effective_batch": 4, "max_steps": 1, **EXACT, **settings}
        return sft_trainer(model, TOK, ROWS, eval_dataset, output_dir=tmp_path / folder, **settings)

    return sft


class Gradients(TrainerCallback):
    "The gradient of each step, before it is clipped."

    def __init__(self):
        self.found = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        grads = [p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None]
        self.found.append(torch.cat(grads).clone())


def trained(trainer):
    "The losses of the run, and its first gradient."
    trainer.add_callback(seen := Gradients())
    fit(trainer)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], seen.found[0]


# norms


@pytest.mark.parametrize("name", ["qwen3_5_text", "qwen3_next", "granitemoehybrid", "falcon_h1"])
def test_a_norm_with_a_gate_keeps_its_own_forward(name):
    model = family(name).eval().requires_grad_(False)
    gated = [m for m in model.modules() if "Gated" in type(m).__name__ and "Norm" in type(m).__name__]
    optimizations(model)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        plain = model(input_ids=ids, use_cache=False).logits
        with speed_up(model):
            assert not any("forward" in vars(norm) for norm in gated)
            assert torch.allclose(model(input_ids=ids, use_cache=False).logits, plain, atol=1e-5)


# rows without padding


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_hybrid_is_trained_with_padding_and_the_plan_says_why(sft, name, capsys):
    trainer = sft(adapted(name))
    assert not trainer.args.padding_free
    assert "padded, since" in capsys.readouterr().out
    losses, _ = trained(trainer)
    assert math.isfinite(losses[0])


@pytest.mark.parametrize("how", [{"packing": True, "max_length": 600}, {"padding_free": True}])
@pytest.mark.parametrize("name", ["qwen3_5_text", "lfm2", "granitemoehybrid"])
def test_a_hybrid_asked_to_pack_is_refused_before_step_1(sft, name, how):
    with pytest.raises(ValueError, match=rf"cannot keep documents.*{next(iter(how))}"):
        sft(adapted(name), **how)


# shared prompts


@pytest.mark.parametrize("name", [*HYBRIDS, "mamba2"])
def test_a_prompt_is_not_shared_where_an_answer_would_see_the_other_one_in_16_bits_too(name):
    "Falcon-H1's convolution and state change little, 4% of full attention: less than attention rounds in 16 bits."
    assert "of the change" in why_not_shared(family(name).bfloat16())


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "mixtral", "deepseek_v3", "glm4_moe"])
def test_a_prompt_is_shared_in_16_bits_where_only_rounding_differs(name):
    assert why_not_shared(family(name).bfloat16()) is None
