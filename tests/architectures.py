"Small models of many architectures, with random weights."

import torch
from transformers import AutoConfig, AutoModelForCausalLM

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
