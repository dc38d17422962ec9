"Whether documents in one row are apart, on architectures whose attention differs."

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ft_notebooks.kernels.patching import speed_up
from ft_notebooks.kernels.shared_prompt import why_not_shared
from ft_notebooks.loading.example_models import tiny_model
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.sft.packing_check import check_apart, document_leak

SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SMALL |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256}
KINDS = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "phi3": {"pad_token_id": 0},
    "olmo2": {},
}


def model_of(kind, attention):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SMALL, **{"bos_token_id": 1, "eos_token_id": 2, **KINDS[kind]})
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


@pytest.mark.numbers
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_apart_and_a_mask_of_ones_joins_them(kind, attention):
    model = model_of(kind, attention)
    check_apart(model)
    assert document_leak(model) < 1e-3 < 0.3 < document_leak(model, attention_mask=torch.ones(1, 24))


def test_a_leak_that_is_not_a_number_is_refused():
    model = tiny_model()
    torch.nn.init.constant_(model.get_output_embeddings().weight, float("nan"))
    with pytest.raises(ValueError, match="lets a document attend"):
        check_apart(model)


def test_a_model_whose_context_changes_nothing_is_told_apart_from_a_leak():
    "A model of single tokens: with no attention at all, there is nothing to leak."
    model = tiny_model()
    for layer in model.get_decoder().layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    check_apart(model)


def test_mode_weights_and_random_numbers_are_as_before_even_if_the_forward_fails():
    model, state = tiny_model().train(), torch.get_rng_state()
    with pytest.raises(TypeError):
        document_leak(model, no_such_argument_of_any_layer=1, input_ids="not a tensor")
    assert model.training and torch.equal(torch.get_rng_state(), state)


def test_rounding_in_8_bits_is_no_leak(tmp_path):
    "A column with an outlier is computed in 16 bits, in all rows, so a text's rounding depends on the others."
    torch.manual_seed(6)
    shape = {**SMALL, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "head_dim": 32}
    config = AutoConfig.for_model("llama", **shape, bos_token_id=1, eos_token_id=2, initializer_range=0.08)
    model = AutoModelForCausalLM.from_config(config)
    for layer in model.model.layers:
        layer.input_layernorm.weight.data[:6] = layer.post_attention_layernorm.weight.data[:6] = 2.5
    model.save_pretrained(tmp_path)
    rounded = load_model(tmp_path, 8)
    with speed_up(rounded):
        assert 0.02 < document_leak(rounded) < 0.05 < 0.5 < document_leak(rounded, use_cache=True)
        check_apart(rounded)
        assert why_not_shared(rounded) is None


def out_of_memory(*args, **kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("check", [check_apart, why_not_shared])
def test_too_little_memory_is_no_leak(check):
    model = tiny_model()
    model.model.forward = out_of_memory
    with pytest.raises(torch.OutOfMemoryError):
        check(model)
