"Tiny models of the families that people fine-tune, from their own configuration classes, with random weights."

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from ft_notebooks.loading.example_models import tiny_tokenizer

V = len(tiny_tokenizer())
SHAPE = {
    "vocab_size": V,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.08,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
}
HEADS = {"head_dim": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SHARED = {"shared_expert_intermediate_size": 32}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1}
ROUTED |= {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
LATENT = {"num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 8}
LATENT |= {"qk_nope_head_dim": 16, "v_head_dim": 16}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
WINDOW = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": V, "global_head_dim": 16}
MAMBA = {"mamba_n_heads": 8, "mamba_d_state": 16, "mamba_d_head": 16, "mamba_chunk_size": 16}
IMAGE = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
IMAGE |= {"num_key_value_heads": 4, "head_dim": 16, "patch_size": 8, "position_embedding_size": 16}
FAMILIES = {
    "llama": {},
    "qwen3_moe": {**HEADS, **EXPERTS},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "deepseek_v3": {**ROUTED, **LATENT},
    "glm4_moe": {**HEADS, **ROUTED},
    "gpt_oss": {**HEADS, **WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_5_text": {**HEADS, **LINEAR},
    "qwen3_next": {**HEADS, **LINEAR, **EXPERTS, **SHARED},
    "gemma3_text": {**HEADS, **WINDOW},
    "gemma4_text": {**HEADS, **WINDOW, **PER_LAYER},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 32},
    "lfm2_moe": {**EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "granitemoehybrid": {
        **MAMBA,
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 64,
    },
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 128},
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "chunk_size": 16},
}
WRAPPERS = {  # what images and texts go into; the text model is the same
    "gemma4": {
        "text_config": {**SHAPE, **FAMILIES["gemma4_text"]},
        "vision_config": IMAGE,
        "audio_config": None,
    },
}


def family(name: str, **fields) -> PreTrainedModel:
    "A tiny model in float32; its weights are random, norms and zeros too, which hide faults."
    torch.manual_seed(0)
    if name in WRAPPERS:
        config = AutoConfig.for_model(name, **WRAPPERS[name])
        config.get_text_config().dtype = torch.float32
        made = AutoModelForImageTextToText
    else:
        config = AutoConfig.for_model(name, **{**SHAPE, **FAMILIES[name], **fields})
        made = AutoModelForCausalLM
    model = made.from_config(config, dtype=torch.float32)
    for name, p in model.named_parameters():
        if p.ndim >= 2 and not p.any():
            torch.nn.init.normal_(p, std=0.08)
        elif p.ndim == 1 and "A_log" not in name and "dt_bias" not in name:
            p.data += 0.05 * torch.randn_like(p)
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 0
    return model
