"What `check_adapter` counts, and what it finds."

import copy

import pytest
import torch
from adapted_families import IDS, made, shaken
from peft import IA3Config, get_peft_model
from peft.tuners.lora import Linear, ParamWrapper

from ft_notebooks.loading.example_models import tiny_model
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.lora import adapter, unsaved_weights
from ft_notebooks.lora.adapter import add_adapter, load_adapter, lora_config, merge_adapter
from ft_notebooks.lora.adapter_check import check_adapter
from ft_notebooks.lora.tensor_check import AdapterCounts, adapted_layers

pytestmark = pytest.mark.filterwarnings("ignore")


def adapted(kind="llama", **fields):
    model = made(kind)
    return shaken(add_adapter(model, lora_config(model, r=4, **fields)))


@pytest.mark.parametrize("kind, n", [("llama", 14), ("qwen3_moe", 12), ("deepseek_v3", 18), ("gpt2", 8)])
def test_every_target_of_a_trained_adapter_changes(kind, n):
    model = adapted(kind)
    before = copy.deepcopy(model.state_dict())
    assert check_adapter(model) == AdapterCounts(n, n, n) and str(check_adapter(model)) == f"{n} of {n} targets changed"
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_embedding_and_head_are_counted(target):
    model = adapted(target_modules=["q_proj", target])
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_embedding" in name:
                p.normal_()
    assert check_adapter(model) == AdapterCounts(3, 3, 3)


def no_merge(layer, safe_merge=False, adapter_names=None):
    layer.merged_adapters.append("default")


@pytest.mark.parametrize("kind, owner, lost", [("llama", Linear, "14 of 14"), ("qwen3_moe", ParamWrapper, "4 of 12")])
def test_a_merge_that_leaves_layers_as_they_were_is_an_error(monkeypatch, kind, owner, lost):
    model = adapted(kind)
    monkeypatch.setattr(owner, "merge", no_merge)
    with pytest.raises(ValueError, match=f"the merge left {lost} targets as they were"):
        check_adapter(model)
    with pytest.raises(ValueError, match=f"the merge left {lost} targets as they were"):
        merge_adapter(model)


def test_one_expert_that_is_dropped_is_an_error(monkeypatch):
    model, delta = adapted("qwen3_moe"), ParamWrapper.get_delta_weight

    def first_only(layer, *args):
        change = delta(layer, *args)
        change[1:] = 0
        return change

    def merge(layer, safe_merge=False, adapter_names=None):
        layer.get_param().data += first_only(layer, "default")
        layer.merged_adapters.append("default")

    monkeypatch.setattr(ParamWrapper, "merge", merge)
    with pytest.raises(ValueError, match=r"the merge left 4 of 12 targets .*experts.*: 3\)"):
        merge_adapter(model)


def test_an_expert_that_no_token_chose_is_none():
    model = adapted("qwen3_moe")
    layer = model.get_base_model().model.layers[0].mlp.experts
    with torch.no_grad():
        layer.lora_B["default"].weight.view(layer.out_features, -1, 4)[..., 2] = 0
    assert check_adapter(model) == AdapterCounts(12, 12, 12)
    merge_adapter(model)


def test_a_change_below_the_dtype_of_the_base_is_counted_and_no_error():
    model = add_adapter(made("llama").bfloat16(), lora_config(made("llama"), r=4))
    assert check_adapter(shaken(model, std=1e-7)).changed < 14
    merge_adapter(model)


@pytest.mark.parametrize("bits", [4, 8])
def test_on_a_quantised_base_nothing_is_merged(tmp_path, monkeypatch, bits):
    made("llama").save_pretrained(tmp_path)
    base = load_model(tmp_path, bits)
    model = shaken(add_adapter(base, lora_config(base, r=4)))
    for kind in {type(layer) for layer in adapted_layers(model).values()}:
        monkeypatch.setattr(kind, "merge", None)
    assert (
        check_adapter(model) == AdapterCounts(14, 14, None) and str(check_adapter(model)) == "14 of 14 targets trained"
    )


def test_a_tensor_that_was_not_loaded_is_an_error(tmp_path, monkeypatch):
    tiny_model().save_pretrained(tmp_path / "base")
    base = load_model(tmp_path / "base", 32)
    shaken(add_adapter(base, lora_config(base, r=4))).save_pretrained(tmp_path / "adapter")
    assert str(check_adapter(tmp_path / "adapter")) == "14 of 14 targets changed"
    load = adapter.PeftModel.from_pretrained

    def forgets_one(*args, **kwargs):
        model = load(*args, **kwargs)
        model.get_base_model().model.layers[1].mlp.up_proj.lora_B["default"].weight.data.zero_()
        return model

    monkeypatch.setattr(adapter.PeftModel, "from_pretrained", forgets_one)
    for use in (load_adapter, check_adapter):
        with pytest.raises(ValueError, match="27 of 28 tensors of the adapter came from .*up_proj.lora_B.* did not"):
            use(tmp_path / "adapter")


def test_what_has_no_lora_is_refused():
    for model in (tiny_model(), get_peft_model(tiny_model(), IA3Config(task_type="CAUSAL_LM"))):
        with pytest.raises(ValueError, match="check_adapter takes a model with a LoRA adapter, or its folder"):
            check_adapter(model)


def test_after_one_step_of_training_each_layer_is_trained():
    model = add_adapter(made("glm4_moe"), lora_config(made("glm4_moe"), r=4))
    with pytest.raises(ValueError, match="16 of 16 targets have not been trained, their B is zero"):
        check_adapter(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    assert check_adapter(model).changed == 16


def test_a_layer_that_peft_would_not_load_again_is_not_trained(monkeypatch):
    model = adapted()
    unsaved_weights.check_saved(model)

    def renamed(model, config, state):  # as peft 0.21 does with the shared experts of Laguna
        return {name.replace("up_proj.", "up_proj.."): tensor for name, tensor in state.items()}

    monkeypatch.setattr(unsaved_weights, "convert_peft_adapter_state_dict_for_transformers", renamed)
    with pytest.raises(ValueError, match="4 of 28 tensors .*up_proj.* exclude_modules="):
        unsaved_weights.check_saved(model)
