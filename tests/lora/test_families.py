"Adapters in other families than Llama's: what is adapted, trained, saved, loaded and merged."

import re
import warnings

import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.pytorch_utils import Conv1D

from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.lora.adapter import add_adapter, load_adapter, lora_config, merge_adapter
from ft_notebooks.lora.default_targets import unadapted
from ft_notebooks.lora.tensor_check import adapted_layers

pytestmark = pytest.mark.filterwarnings("ignore")
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


ROUTER = re.compile(r"router|mlp\.gate\.|feed_forward\.gate\.")


@pytest.mark.parametrize("kind", [*FAMILIES, *WRAPPERS])
def test_each_linear_layer_and_expert_of_the_text_part_has_an_adapter_or_a_reason(kind):
    model = made(kind)
    wanted, left = text_matrices(model), unadapted(model)
    adapted = layers(add_adapter(model, lora_config(model, r=4)))
    assert adapted and adapted | left.keys() >= wanted and not adapted & left.keys()
    assert not [name for name in adapted if re.search("vision|visual|audio|projector", name) or ROUTER.search(name)]
    reasons = {name: why for name, why in left.items() if name in wanted}
    read = re.compile(r"mamba\.out_proj|mixer\.(out_proj|x_proj|dt_proj)")  # by a kernel
    assert all(ROUTER.search(name) or read.search(name) for name in reasons), reasons


@pytest.mark.numbers
@pytest.mark.parametrize("kind", [*FAMILIES, *WRAPPERS])
def test_each_tensor_of_the_adapter_has_a_gradient_and_each_target_changes_in_the_merge(kind):
    model = made(kind).train()
    adapted = add_adapter(model, lora_config(model, r=2))
    adapted(input_ids=MANY, labels=MANY, use_cache=False).loss.backward()
    assert not [n for n, p in adapted.named_parameters() if "lora_B" in n and (p.grad is None or not p.grad.any())]
    before = {
        name: layer.get_base_layer().get_parameter(name.split(".")[-1]).clone()
        for name, layer in adapted_layers(adapted).items()
    }
    expected = logits(shaken(adapted))
    merged = merge_adapter(adapted)
    assert not [name for name, old in before.items() if torch.equal(merged.get_parameter(name), old)]
    assert (logits(merged) - expected).abs().max() < 1e-4


@pytest.mark.numbers
@pytest.mark.parametrize("bits", [32, 4])
@pytest.mark.parametrize("kind", ["deepseek_v3", "glm4_moe", "qwen3_next", "mixtral", "phimoe"])
def test_what_is_adapted_learns_and_is_the_same_after_loading_and_merging(kind, bits, tmp_path):
    base = made(kind)
    base.save_pretrained(tmp_path / "base")
    model = load_model(tmp_path / "base", bits)
    adapted = add_adapter(model, lora_config(model, r=4))
    adapted(input_ids=IDS.to(model.device), labels=IDS.to(model.device)).loss.backward()
    without = [n for n, p in adapted.named_parameters() if "lora_B" in n and (p.grad is None or not p.grad.any())]
    assert not without
    shaken(adapted).save_pretrained(tmp_path / "adapter")
    expected = logits(adapted)
    assert torch.equal(logits(load_adapter(tmp_path / "adapter", bits)), expected)
    merged = merge_adapter(adapted, torch.float32)
    off = (logits(merged) - expected).abs()
    assert (
        off.max() < 1e-4 if bits == 32 else off.mean() < 0.02
    )  # rounding sends a token to other experts here and there


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_peft_warns_of_nothing(kind, tmp_path):
    base = made(kind)
    base.save_pretrained(tmp_path / "base")
    base = load_model(tmp_path / "base", 32)
    names = ["o_proj", *(["w1", "w2", "w3"] if kind == "mixtral" else ["gate_proj", "up_proj", "down_proj"])]
    v4 = LoraConfig(target_modules=names, task_type="CAUSAL_LM")  # translated by PEFT, with a rank of its own
    for config in (lora_config(base, r=2), v4):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = add_adapter(load_model(tmp_path / "base", 32), config)
        model.save_pretrained(tmp_path / "adapter")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_adapter(tmp_path / "adapter", 32)


def test_what_a_list_of_names_means_is_adapted_too():
    model = made("qwen3_next")
    names = ["q_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = layers(add_adapter(model, lora_config(model, r=2, target_modules=names)))
    assert {f"model.layers.0.mlp.shared_expert.{name}.weight" for name in names[1:]} <= adapted
    assert {"model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"} <= adapted


def test_an_expert_has_a_rank_of_its_own_and_a_name_that_is_none_is_an_error():
    model = made("gpt_oss")
    config = lora_config(model, r=4, rank_pattern={"experts.down_proj": 2})
    ranks = {name: layer.r["default"] for name, layer in adapted_layers(add_adapter(model, config)).items()}
    assert {rank for name, rank in ranks.items() if "experts.down_proj" in name} == {2} < {*ranks.values()} == {2, 4}
    raw = LoraConfig(target_modules=["q_proj"], rank_pattern={"q-proj": 4}, task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="rank_pattern: the model has no module 'q-proj'"):
        add_adapter(made("llama"), raw)


def test_what_gets_no_adapter_is_said_in_one_line(capsys):
    lora_config(made("qwen3_next"))
    assert capsys.readouterr().out == (
        "without an adapter by default: 1 neither linear layers nor experts, 2 choosing experts or tokens; "
        "ft_notebooks.lora.unadapted(model) lists them\n"
    )
    lora_config(made("qwen3_next"), target_modules=["q_proj"])
    lora_config(tiny_model())
    assert capsys.readouterr().out == ""
