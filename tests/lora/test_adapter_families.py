"Adapters in other families than Llama's: what is adapted, trained, saved, loaded and merged."

import re
import warnings

import pytest
import torch
from adapted_families import FAMILIES, IDS, MANY, WRAPPERS, layers, logits, made, shaken, text_matrices
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForSeq2SeqLM, Gemma3nTextConfig
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextAltUp

from ft_notebooks.loading.example_models import tiny_model
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.lora.adapter import add_adapter, load_adapter, lora_config, merge_adapter
from ft_notebooks.lora.default_targets import unadapted
from ft_notebooks.lora.tensor_check import adapted_layers

pytestmark = pytest.mark.filterwarnings("ignore")
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
@pytest.mark.parametrize(
    "kind, bits", [("deepseek_v3", 4), ("glm4_moe", 32), ("qwen3_next", 4), ("mixtral", 32), ("phimoe", 4)]
)
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


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
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


def test_without_target_modules_peft_chooses_or_only_the_named_parameters_are_adapted():
    model = made("llama")
    chosen = {name.split(".")[-2] for name in layers(add_adapter(model, lora_config(model, target_modules=None)))}
    assert chosen == {"q_proj", "v_proj"}
    mixture = made("qwen3_moe")
    named = lora_config(mixture, target_modules=[], target_parameters=["experts.down_proj"])
    assert {name.split(".")[-1] for name in layers(add_adapter(mixture, named))} == {"down_proj"}


def test_a_weight_that_another_method_reads_has_no_adapter_and_one_whose_kind_is_asked_for_has():
    small = {"num_layers": 1, "num_heads": 2, "d_kv": 8, "d_model": 16, "d_ff": 16, "vocab_size": 259}
    assert unadapted(AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **small))) == {}
    altup = torch.nn.ModuleDict({"altup": Gemma3nTextAltUp(Gemma3nTextConfig(hidden_size=16))})
    reads = [name for name, reason in unadapted(altup).items() if reason.startswith("read without a call")]
    assert reads == ["altup.correction_coefs.weight", "altup.prediction_coefs.weight"]
