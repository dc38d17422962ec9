"Operations, bytes and seconds on paper: against torch's own counter, and at their edges."

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

from ft_notebooks.distributed.throughput import A100, H100, Step, flops_per_token, step_time
from ft_notebooks.loading.example_models import tiny_model
from ft_notebooks.loading.memory_estimate import weight_bytes

SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
CONFIGS = [
    LlamaConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=True),
    Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=16),  # heads that are wider together than the model
    GPT2Config(vocab_size=100, n_embd=32, n_layer=3, n_head=4),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_operations_are_those_that_torch_counts(config):
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    model.enable_input_require_grads()
    ids = torch.arange(24)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    assert flops_per_token(config, 24) == pytest.approx(counter.get_total_flops() / 24, rel=2e-3)


def test_an_adapter_of_a_higher_rank_costs_more_and_a_frozen_base_less():
    config = tiny_model().config
    costs = [flops_per_token(config, 64, "lora", r=r) for r in (1, 8, 16)]
    assert costs == sorted(costs) and costs[0] < flops_per_token(config, 64)
    assert flops_per_token(config, 64, "qlora") == costs[-1]


def test_machines_that_are_not_full_count_as_machines():
    config, slow = tiny_model().config, replace(H100, network=1e9)
    eight, nine, sixteen = (step_time(config, slow, n).traffic for n in (8, 9, 16))
    assert eight < nine == sixteen  # half of the bytes come over the network in both


def test_a_base_in_four_bits_is_gathered_in_four_bits():
    config = CONFIGS[0]
    lora, qlora = (step_time(config, A100, 8, method=method).traffic for method in ("lora", "qlora"))
    difference = 2 * (weight_bytes(config, 16) - weight_bytes(config, 4)) * 7 / 8 / A100.link
    assert lora - qlora == pytest.approx(difference)


def test_gradients_in_16_bits_take_half_the_time():
    config = tiny_model().config
    one, two = (step_time(config, H100, 16, "ddp", gradient_bytes=n).traffic for n in (2, 4))
    assert 2 * one == two


def test_a_band_goes_from_the_sum_to_the_larger():
    assert Step(tokens=12, compute=3.0, traffic=1.0).tokens_per_second == (3.0, 4.0)
    assert Step(tokens=12, compute=1.0, traffic=3.0).tokens_per_second == (3.0, 4.0)


@pytest.mark.parametrize(
    "wrong", [{"strategy": "fsdp"}, {"gpus": 0}, {"efficiency": 0}, {"efficiency": 1.1}, {"method": "dora"}]
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        step_time(**{"config": tiny_model().config, "machine": H100, "gpus": 8} | wrong)
