"What all prompts begin with is computed once: the same answers, for every kind of model that it is done for."

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from ft_notebooks.inference.prefix_cache import Prefix, shared_prefix
from ft_notebooks.loading.example_models import tiny_model
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.tokenization.padding import pad_batch

SHARED = [3 + i * 7 % 50 for i in range(40)]
PROMPTS = [
    SHARED + own for own in ([60], [61, 62, 63] * 5, [64] * 60, [65, 66], [67] * 3, [68, 60] * 4, [69] * 9, [70, 71])
]


def small(kind, **fields):
    sizes = {
        "vocab_size": 99,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    fixed = {
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.2,
        "max_position_embeddings": 256,
    }
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **sizes | fixed | fields), dtype=torch.float32
    ).eval()


def said(model, inputs):
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0, max_new_tokens=10)
    return model.generate(**inputs)


def whole(prompts):
    return {name: rows for name, rows in pad_batch(prompts, 0, side="left").items() if name != "labels"}


SAME = {
    "llama": {},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "gemma": {"head_dim": 8, "num_key_value_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gpt_neox": {},
    "phi": {},
    "phi3": {},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 64},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256},
    "falcon": {"alibi": True},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 32},
    "olmo2": {},
    "mistral": {"num_key_value_heads": 2, "sliding_window": None},
    "granite": {},
    "stablelm": {"num_key_value_heads": 4},
    "gpt_bigcode": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
    "codegen": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 8},
}


ALIKE = {"qwen2", "qwen3", "phi", "phi3", "olmo2", "mistral", "granite", "stablelm", "gemma"}  # to llama's cache


@pytest.mark.numbers
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in ALIKE else kind for kind in SAME]
)
def test_the_ids_are_those_of_whole_prompts(kind):
    model = small(kind, **SAME[kind])
    prefix = shared_prefix(model, PROMPTS)
    assert prefix and prefix.ids == SHARED
    for some in (PROMPTS, PROMPTS[:1], PROMPTS[2:0:-1]):
        assert torch.equal(said(model, prefix.inputs(some, 0)), said(model, whole(some)))


NOT = {
    "mistral": {"sliding_window": 64, "num_key_value_heads": 2},
    "gemma2": {"head_dim": 8, "num_key_value_heads": 2, "sliding_window": 8},
    "qwen3_next": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "mamba": {"state_size": 4},
    "lfm2": {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
}


@pytest.mark.parametrize("kind", NOT)
def test_windows_states_and_mixtures_of_them_are_computed_whole(kind):
    assert shared_prefix(small(kind, **NOT[kind]), PROMPTS) is None


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    ],
)
def test_a_rotation_that_follows_the_length_is_computed_whole(rope):
    assert shared_prefix(small("llama", rope_parameters={"rope_theta": 10000.0, **rope}), PROMPTS) is None


@pytest.mark.numbers
@pytest.mark.parametrize("fields", [{}, {"use_dora": True}, {"target_modules": ["q_proj", "embed_tokens"]}])
def test_an_adapters_ids_are_those_of_whole_prompts(fields):
    model = small("llama")
    model = add_adapter(model, lora_config(model, init_lora_weights=False, **fields)).eval()
    prefix = shared_prefix(model, PROMPTS)
    expected = said(model.get_base_model(), whole(PROMPTS))
    assert torch.equal(model.generate(**prefix.inputs(PROMPTS, 0)), expected)


@pytest.mark.parametrize(
    "config",
    [
        PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
        PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
        LoraConfig(alora_invocation_tokens=[60], task_type="CAUSAL_LM", target_modules="all-linear"),
    ],
    ids=["prefix tuning", "prompt tuning", "activated lora"],
)
def test_an_adapter_that_counts_tokens_is_computed_whole(config):
    assert shared_prefix(get_peft_model(small("llama"), config).eval(), PROMPTS) is None


@pytest.mark.numbers
def test_a_prefix_serves_many_batches_and_stays_as_it_is():
    model = small("llama")
    prefix = shared_prefix(model, PROMPTS)
    before = [layer.keys.clone() for layer in prefix.cache.layers]
    first, again = (said(model, prefix.inputs(PROMPTS, 0)) for _ in range(2))
    assert torch.equal(first, again) and all(map(torch.equal, before, (layer.keys for layer in prefix.cache.layers)))


@pytest.mark.numbers
def test_prompts_that_are_all_the_same_keep_one_id_of_their_own():
    model = small("llama")
    prefix = shared_prefix(model, [SHARED] * 9)
    assert prefix.ids == SHARED[:-1]
    assert torch.equal(said(model, prefix.inputs([SHARED] * 9, 0)), said(model, whole([SHARED] * 9)))


@pytest.mark.parametrize("prompts", [[], [SHARED * 9], [[]] * 9, [[5]] * 999, [[5] * 300, [6] * 300]])
def test_prompts_that_share_nothing_or_too_little_are_computed_whole(prompts):
    assert shared_prefix(small("llama"), prompts) is None


def test_a_prefix_shows_its_ids_and_not_its_numbers():
    assert repr(Prefix([1, 2], "cache", object())) == "Prefix(ids=[1, 2], name='cache')"


def test_the_head_is_asked_for_one_token_of_the_prefix():
    model, seen = tiny_model(), []
    model.lm_head.register_forward_hook(lambda module, given, out: seen.append(out.shape[1]))
    assert shared_prefix(model, PROMPTS) and seen == [1]
