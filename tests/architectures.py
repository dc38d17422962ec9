"Small models of many architectures, with random weights."

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from ft_notebooks.loading.example_models import tiny_tokenizer

SMALL = {
    "vocab_size": len(tiny_tokenizer()),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SMALL |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "pad_token_id": 0}
RIGHT = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": 128},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "phi3": {},
    "olmo2": {},
    "mixtral": {"num_local_experts": 4},
}
WRONG = {
    "gemma2": ({"attn_logit_softcapping": 50.0, "query_pre_attn_scalar": 8}, "does not support softcap"),
    "gemma3_text": ({"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}, "Gemma3"),
    "gpt_oss": ({"num_local_experts": 4, "layer_types": ["full_attention"] * 2}, "does not support s_aux"),
    "falcon_mamba": ({"state_size": 4}, "FalconMamba"),
    "bloom": ({"n_layer": 2, "n_head": 4}, "Bloom"),
}


def model_of(kind, fields, attention=None):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SMALL | {"bos_token_id": 1, "eos_token_id": 2} | fields)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


WIDE = SMALL | {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}  # rows of 64 weights, which 4 bits need
WIDE |= {"initializer_range": 0.08, "bos_token_id": None, "eos_token_id": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16}
LINEAR |= {"linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"]}
WINDOW = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA4 = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": WIDE["vocab_size"], "global_head_dim": 16}
VISION = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
PATCHES = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
PATCHES |= {"num_position_embeddings": 16, "patch_size": 4}
IMAGES = {"image_token_id": 259, "video_token_id": 260, "vision_start_token_id": 261, "vision_end_token_id": 262}
WRAPPERS = {  # kind: the fields of the text part, of the vision part, and of the whole
    "qwen3_5": (LINEAR, PATCHES, IMAGES),
    "qwen3_5_moe": (LINEAR | EXPERTS | {"shared_expert_intermediate_size": 64}, PATCHES, IMAGES),
    "gemma3": (WINDOW, VISION | {"image_size": 8, "patch_size": 4}, {"mm_tokens_per_image": 4}),
    "gemma4": (
        WINDOW | GEMMA4,
        VISION | {"num_key_value_heads": 2, "head_dim": 32, "patch_size": 8, "position_embedding_size": 16},
        {"audio_config": None},
    ),
    "llava": ({"model_type": "llama"}, VISION | {"model_type": "clip_vision_model", "image_size": 8}, {}),
}


def wrapper_of(kind, text=None, **whole):
    "A wrapper of several media around a text model, in float32."
    torch.manual_seed(0)
    own, vision, fields = WRAPPERS[kind]
    parts = {
        "text_config": WIDE | own | (text or {}),
        "vision_config": vision | {"patch_size": vision.get("patch_size", 4)},
    }
    config = AutoConfig.for_model(kind, **parts | fields | whole)
    return AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()


FAMILIES = {  # what differs from Llama: no sdpa, experts, states beside keys and values
    "gpt_oss": WINDOW | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen3_moe": EXPERTS,
    "qwen3_next": LINEAR | EXPERTS | {"shared_expert_intermediate_size": 64},
    "qwen3_5_text": LINEAR,
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 8,
        "mamba_d_state": 16,
        "mamba_d_head": 16,
        "mamba_chunk_size": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 64,
    },
    "falcon_h1": {
        "mamba_d_ssm": 128,
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "mamba_chunk_size": 16,
    },
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "chunk_size": 16},
}
HYBRIDS = ["qwen3_next", "qwen3_5_text", "lfm2", "granitemoehybrid", "falcon_h1", "mamba2"]


def family_of(kind, **fields):
    "A small model in float32, whose attention is its class's default."
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **WIDE | FAMILIES[kind] | fields)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
