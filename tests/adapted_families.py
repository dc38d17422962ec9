"Tiny models of many families, for tests of adapters."

import re

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.pytorch_utils import Conv1D

from ft_notebooks.loading.example_models import tiny_tokenizer

IDS = torch.tensor([tiny_tokenizer()("to be or not to be, that is the question").input_ids])
MANY = torch.randint(5, 250, (4, 40), generator=torch.Generator().manual_seed(0))
TEXT = {
    "vocab_size": 259, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.08, "pad_token_id": 0,
    "bos_token_id": None, "eos_token_id": 2,
}  # fmt: skip
HEAD = {"head_dim": 16}
MIXTURE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
MIXTURE |= {"shared_expert_intermediate_size": 64}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_shared_experts": 1}
ROUTED |= {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
LATENT = {"num_key_value_heads": 4, "q_lora_rank": 64, "kv_lora_rank": 64, "qk_rope_head_dim": 8}
LATENT |= {"qk_nope_head_dim": 16, "v_head_dim": 16}
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16}
LINEAR |= {"linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"]}
WINDOW = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA4 = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 259, "global_head_dim": 16}
MAMBA = {"mamba_n_heads": 8, "mamba_d_state": 16, "mamba_d_head": 16, "mamba_chunk_size": 16}
FAMILIES = {
    "llama": {}, "gpt2": {}, "qwen2": {}, "qwen3": HEAD, "smollm3": {}, "phi3": {}, "olmo2": {}, "mistral": {},
    "glm4": HEAD, "granite": {}, "bloom": {}, "gemma3_text": HEAD | WINDOW, "gemma4_text": HEAD | WINDOW | GEMMA4,
    "mixtral": MIXTURE, "qwen2_moe": MIXTURE, "qwen3_moe": HEAD | MIXTURE, "olmoe": MIXTURE, "granitemoe": MIXTURE,
    "phimoe": MIXTURE, "jetmoe": MIXTURE, "gpt_oss": HEAD | WINDOW | MIXTURE,
    "afmoe": HEAD | MIXTURE | {"num_dense_layers": 1, "num_shared_experts": 1},
    "llama4_text": HEAD | MIXTURE | {"intermediate_size_mlp": 128, "interleave_moe_layer_step": 2},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_intermediate_size": 64},
    "glm4_moe": HEAD | ROUTED, "dots1": HEAD | ROUTED, "deepseek_v3": LATENT | ROUTED, "qwen3_5_text": HEAD | LINEAR,
    "qwen3_5_moe_text": HEAD | LINEAR | MIXTURE, "qwen3_next": HEAD | LINEAR | MIXTURE,
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": MIXTURE | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "granitemoehybrid": MIXTURE | MAMBA | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 64},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 128}, "mamba": {"state_size": 16, "num_key_value_heads": None},
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "chunk_size": 16},
}  # fmt: skip
VISION = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
VISION |= {"patch_size": 4}
QWEN_VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
QWEN_VISION |= {"num_position_embeddings": 16, "patch_size": 4}
WRAPPERS = {
    "gemma3": {"text_config": TEXT | HEAD | WINDOW, "vision_config": VISION | {"image_size": 8},
               "mm_tokens_per_image": 4},
    "gemma4": {"text_config": TEXT | HEAD | WINDOW | GEMMA4, "audio_config": None,
               "vision_config": VISION | {"num_key_value_heads": 4, "head_dim": 16, "position_embedding_size": 16}},
    "qwen3_5": {"text_config": TEXT | HEAD | LINEAR, "vision_config": QWEN_VISION},
    "qwen3_5_moe": {"text_config": TEXT | HEAD | LINEAR | MIXTURE, "vision_config": QWEN_VISION},
    "qwen3_vl": {"text_config": TEXT | HEAD, "vision_config": QWEN_VISION | {"deepstack_visual_indexes": [0]}},
    "llava": {"text_config": TEXT | {"model_type": "llama"}, "vision_config": VISION | {"image_size": 8}},
}  # fmt: skip


def config_of(kind):
    fields = WRAPPERS.get(kind) or TEXT | FAMILIES[kind]
    config = AutoConfig.for_model(kind, **fields)
    for part in (config, config.get_text_config()):
        part.dtype = "float32"
    return config


def made(kind, cls=None):
    "A tiny model with random weights, the norms too"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = (cls or (AutoModelForImageTextToText if kind in WRAPPERS else AutoModelForCausalLM)).from_config(
            config_of(kind), dtype=torch.float32
        )
        for name, p in model.named_parameters():
            if p.ndim == 1 and not re.search("A_log|dt_bias", name):
                p.data += 0.05 * torch.randn_like(p)
    return model.eval()


def shaken(model, std=0.05):
    "With an adapter that is not zero any more"
    with torch.no_grad():
        for i, (name, p) in enumerate(model.named_parameters()):
            if "lora_B" in name:
                p.normal_(std=std, generator=torch.Generator().manual_seed(i))
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS.to(model.device), use_cache=False).logits.float()


def layers(model):
    "The parameters that have an adapter, by their names in the base"
    found = set()
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, BaseTunerLayer):
            found.add(f"{name.replace('.base_layer', '')}.{getattr(module, 'parameter_name', 'weight')}")
    return found


def text_matrices(model):
    "By hand: each weight of a linear layer, and each tensor of experts, outside of towers, head and embeddings"
    head, found = model.get_output_embeddings(), set()
    for name, module in model.named_modules():
        if module is not head and not re.search("vision|visual|audio|projector", name):
            if isinstance(module, (torch.nn.Linear, Conv1D)):
                found.add(f"{name}.weight")
            if "Experts" in type(module).__name__:
                found |= {f"{name}.{key}" for key, p in module.named_parameters(recurse=False) if p.ndim == 3}
    return found
