"Each family of models as a tiny one of its own configuration class, with random weights"

from dataclasses import dataclass, field, fields, is_dataclass

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

ROWS = 288  # of the embedding: the byte tokenizer's 259, room for a template's tokens, a multiple of 32
IMAGE = 280  # the first of some ids that only a wrapper's images use
SIZES = {  # a family takes those fields that its configuration has; each `in_features` is a multiple of 64, for 4 bits
    "vocab_size": ROWS, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048,
    "initializer_range": 0.08, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2, "sliding_window": 16,
    # experts
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64, "n_shared_experts": 1,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_dense_layers": 1, "shared_intermediate_size": 64,
    # linear attention and state spaces
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "mamba_n_heads": 8, "mamba_d_state": 16, "mamba_d_head": 16, "mamba_chunk_size": 16, "mamba_d_ssm": 128,
    # compressed keys and values
    "q_lora_rank": 64, "kv_lora_rank": 64, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16,
}  # fmt: skip
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}
COMPRESSED = {"num_key_value_heads": 4, "head_dim": 16, "qk_head_dim": 32}
QWEN_IMAGES = {
    "image_token_id": IMAGE, "video_token_id": IMAGE + 1,
    "vision_start_token_id": IMAGE + 2, "vision_end_token_id": IMAGE + 3,
    "vision_config": {
        "depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
        "num_position_embeddings": 16, "patch_size": 8,
    },
}  # fmt: skip
SIGLIP = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
GEMMA3_IMAGES = {
    "image_token_index": IMAGE, "boi_token_index": IMAGE + 1, "eoi_token_index": IMAGE + 2,
    "mm_tokens_per_image": 4, "vision_config": {**SIGLIP, "image_size": 16, "patch_size": 8},
}  # fmt: skip
KIMI = {**LINEAR, **COMPRESSED, "linear_head_dim": 16, "linear_num_heads": 4}
GEMMA4 = {
    **SLIDING, "hidden_size_per_layer_input": 64, "vocab_size_per_layer_input": ROWS, "global_head_dim": 16,
}  # fmt: skip
GEMMA4_IMAGES = {
    "audio_config": None,
    "vision_config": {
        **SIGLIP, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "patch_size": 8,
        "position_embedding_size": 16,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    "A row of the table."

    name: str
    kind: str  # transformers' name of the configuration class: its `model_type`
    template: str = "chatml"  # a key of `templates.TEMPLATES`
    fields: dict = field(default_factory=dict)  # of the text model, where `SIZES` does not do
    wrapper: dict | None = None  # of a class that wraps the text model: its other fields, such as its vision tower


FAMILIES = {
    family.name: family
    for family in (
        Family("Llama", "llama", "llama3"),
        Family("Mistral", "mistral", "mistral"),
        Family("Ministral 3", "ministral3", "mistral"),
        Family("Mixtral", "mixtral", "mistral", {"sliding_window": None}),
        Family("Qwen2.5", "qwen2", "qwen2_5"),
        Family("Qwen3", "qwen3", "qwen3"),
        Family("Qwen3-MoE", "qwen3_moe", "qwen3"),
        Family("Qwen3-Next", "qwen3_next", "qwen3_instruct", LINEAR),
        Family("Qwen3.5 text", "qwen3_5_text", "qwen3_5", LINEAR),
        Family("Qwen3.5", "qwen3_5", "qwen3_5", LINEAR, QWEN_IMAGES),
        Family("Qwen3.5-MoE text", "qwen3_5_moe_text", "qwen3_5", LINEAR),
        Family("Qwen3.5-MoE", "qwen3_5_moe", "qwen3_5", LINEAR, QWEN_IMAGES),
        Family("Gemma 3 text", "gemma3_text", "gemma3", SLIDING),
        Family("Gemma 3", "gemma3", "gemma3", SLIDING, GEMMA3_IMAGES),
        Family("Gemma 4 text", "gemma4_text", "gemma4", GEMMA4),
        Family("Gemma 4", "gemma4", "gemma4", GEMMA4, GEMMA4_IMAGES),
        Family("gpt-oss", "gpt_oss", "gptoss", SLIDING),
        Family("LFM2", "lfm2", "lfm2", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
        Family("LFM2-MoE", "lfm2_moe", "lfm2", {"layer_types": ["conv", "full_attention"]}),
        Family("LFM3", "lfm3", "lfm2", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
        Family("SmolLM3", "smollm3", "smollm3"),
        Family("Phi-3", "phi3", "phi3"),
        Family("OLMo2", "olmo2", "olmo2"),
        Family("OLMo3", "olmo3", "olmo2", SLIDING),
        Family("OLMoE", "olmoe", "olmo2"),
        Family("OLMo-Hybrid", "olmo_hybrid", "olmo2", LINEAR),
        Family("GLM4", "glm4", "glm4"),
        Family("GLM4-MoE", "glm4_moe", "glm4_moe"),
        Family("GLM4-MoE-Lite", "glm4_moe_lite", "glm4_moe", COMPRESSED),
        Family("Granite", "granite", "granite"),
        Family("GraniteMoeHybrid", "granitemoehybrid", "granite", {"layer_types": ["mamba", "attention"]}),
        Family("DeepSeek-V3", "deepseek_v3", "deepseek_v3", COMPRESSED),
        Family("DeepSeek-V3.2", "deepseek_v32", "deepseek_v3", COMPRESSED | {"index_n_heads": 2, "index_head_dim": 64}),
        Family("Kimi-Linear", "kimi_linear", "chatml", KIMI),
        Family("MiniMax-M2", "minimax_m2", "chatml"),
        Family("ERNIE 4.5", "ernie4_5", "chatml"),
        Family("ERNIE 4.5-MoE", "ernie4_5_moe", "chatml"),
        Family("EXAONE 4", "exaone4", "chatml", SLIDING),
        Family("Seed-OSS", "seed_oss", "chatml", {"attention_dropout": 0.0, "residual_dropout": 0.0}),
        Family("Hunyuan", "hunyuan_v1_dense", "chatml"),
        Family("Apertus", "apertus", "chatml"),
        Family("AFMoE", "afmoe", "chatml"),
        Family("dots.llm1", "dots1", "chatml"),
        Family("Laguna", "laguna", "chatml"),
        Family("Mellum", "mellum", "chatml"),
        Family("Hunyuan V3", "hy_v3", "chatml"),
        Family(
            "Nemotron-H", "nemotron_h", "nemotron_3",
            {"mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 1, "chunk_size": 16},
        ),
        Family("Bamba", "bamba", "chatml", {"attn_layer_indices": [1]}),
        Family("Falcon-H1", "falcon_h1", "chatml"),
        Family(
            "Mamba2", "mamba2", "chatml",
            {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "chunk_size": 16},
        ),
    )
}  # fmt: skip


def family_of(name: str) -> Family:
    "The family of the table by either of its names; any other text model of transformers with the usual small sizes."
    for family in FAMILIES.values():
        if name.lower() in (family.name.lower(), family.kind):
            return family
    return Family(name, name)


def why_not_here(family: Family) -> str | None:
    "Why the installed transformers has no such family; None if it has."
    if family.kind not in CONFIG_MAPPING:
        return f"this transformers has no {family.kind}"
    if CONFIG_MAPPING[family.kind] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return f"this transformers generates no text with {family.kind}"
    return None


def _has(config: type[PreTrainedConfig]) -> set[str]:
    names = {one.name for one in fields(config)} if is_dataclass(config) else set(config.__init__.__annotations__)
    return names | set(config.attribute_map)


def small_config(family: Family) -> PreTrainedConfig:
    "The configuration, in float32."
    kind = CONFIG_MAPPING[family.kind]
    text = kind.sub_configs["text_config"] if family.wrapper is not None else kind
    known = _has(text)
    own = {name: value for name, value in SIZES.items() if name in known} | family.fields
    given = own if family.wrapper is None else {"text_config": own, **family.wrapper}
    config = AutoConfig.for_model(family.kind, **given)
    for part in (config, config.get_text_config()):
        part.dtype = "float32"
    return config


def small_model(family: Family, seed: int = 0) -> PreTrainedModel:
    """The model in `eval()` mode, with the class that its folder on the hub is saved with.

    No weight keeps a value under which a fault would not show: norms are not all 1, projections not all 0.
    """
    made = AutoModelForCausalLM if family.wrapper is None else AutoModelForImageTextToText
    torch.manual_seed(seed)
    model = made.from_config(small_config(family), dtype=torch.float32)
    noise = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2 and not weight.any():
                weight.normal_(std=0.08, generator=noise)
            elif weight.ndim == 1 and not name.endswith(("A_log", "dt_bias")):
                weight.add_(torch.randn(weight.shape, generator=noise), alpha=0.05)
    model.generation_config.eos_token_id = SIZES["eos_token_id"]
    model.generation_config.pad_token_id = SIZES["pad_token_id"]
    model.generation_config.bos_token_id = None
    return model.eval()
