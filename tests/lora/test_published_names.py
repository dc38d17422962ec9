"The adapter of a text model for the published vision-language class, and back."

import json
import shutil

import pytest
import torch
from adapted_families import WRAPPERS, layers, logits, made, shaken
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from ft_notebooks.cli.training import _check_model
from ft_notebooks.doctor.context import Context, existing
from ft_notebooks.export.lora_gguf import write_lora_gguf
from ft_notebooks.loading.example_models import tiny_model
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.lora.adapter import add_adapter, load_adapter, lora_config
from ft_notebooks.lora.published_names import served_name, unserved_names, write_published

pytestmark = pytest.mark.filterwarnings("ignore")
WITH_TEXT_CLASS = [kind for kind in WRAPPERS if kind not in ("qwen3_vl", "llava")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "`trained(kind, **fields)`: a folder with a wrapper and the adapter of its text part, and its logits"
    made_before = {}

    def make(kind, **fields):
        if (key := repr((kind, fields))) not in made_before:
            folder = tmp_path_factory.mktemp("trained")
            made(kind).save_pretrained(folder / "base")
            base = load_model(folder / "base", 32)
            adapted = shaken(add_adapter(base, lora_config(base, r=4, **fields)))
            adapted.save_pretrained(folder / "adapter")
            made_before[key] = folder, logits(adapted), layers(adapted)
        return made_before[key]

    return make


def published(folder):
    return AutoModelForImageTextToText.from_pretrained(folder / "base").eval()


CHANGED = {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}}


@pytest.mark.numbers
@pytest.mark.parametrize("kind, fields", [(kind, CHANGED if kind == "qwen3_5" else {}) for kind in WITH_TEXT_CLASS])
def test_peft_computes_on_the_published_class_what_the_text_model_computes(trained, tmp_path, kind, fields):
    folder, expected, _ = trained(kind, **fields)
    with torch.no_grad():
        assert (logits(published(folder)) - expected).abs().max() > 0.1
    write_published(folder / "adapter", tmp_path / "served")
    assert len(unserved_names(folder / "adapter")) == len(load_file(folder / "adapter/adapter_model.safetensors"))
    assert unserved_names(tmp_path / "served") == []
    whole = PeftModel.from_pretrained(published(folder), tmp_path / "served").eval()
    assert (logits(whole) - expected).abs().max() < 1e-5
    assert not [name for name in layers(whole) if "visi" in name or "visual" in name]
    assert torch.equal(logits(load_adapter(tmp_path / "served", 32)), expected)


@pytest.mark.numbers
@pytest.mark.parametrize("kind, how", [("qwen3_5", "pattern"), ("gemma3", "leaves")])
def test_an_adapter_that_was_trained_on_the_published_class_is_loaded(trained, tmp_path, kind, how):
    folder, _, _ = trained(kind)
    names = r".*language_model.*\.(q_proj|up_proj)" if how == "pattern" else ["gate_proj", "k_proj"]
    whole = published(folder)
    if how == "leaves":
        names = LoraConfig(target_modules=names, exclude_modules=r".*(vision|visual).*")
    else:
        names = LoraConfig(target_modules=names)
    names.task_type = "CAUSAL_LM"
    whole = shaken(get_peft_model(whole, names))
    whole.save_pretrained(tmp_path / "adapter")
    assert (logits(load_adapter(tmp_path / "adapter", 32)) - logits(whole)).abs().max() < 1e-5


def test_an_adapter_of_another_part_is_refused_with_the_counts(trained, tmp_path):
    folder, _, _ = trained("qwen3_5")
    whole = get_peft_model(published(folder), LoraConfig(target_modules=["q_proj", "qkv"], task_type="CAUSAL_LM"))
    whole.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="2 of 4 tensors of .* belong to parts of Qwen3_5ForConditionalGeneration"):
        load_adapter(tmp_path / "adapter", 32)


def test_names_that_match_nothing_are_refused_with_the_counts(trained, tmp_path):
    folder, _, _ = trained("qwen3_5")
    shutil.copytree(folder / "adapter", tmp_path / "adapter")
    file, config = tmp_path / "adapter/adapter_model.safetensors", tmp_path / "adapter/adapter_config.json"
    tensors = {name.replace("model.layers", "model.blocks"): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": ["q_proj"]}))
    with pytest.raises(ValueError, match=f"in which 0 of {len(tensors)} tensors match a module: "):
        load_adapter(tmp_path / "adapter", 32)


def test_what_is_published_as_it_is_has_its_names_already(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    base = load_model(tmp_path / "base", 32)
    add_adapter(base, lora_config(base, r=2)).save_pretrained(tmp_path / "adapter")
    assert unserved_names(tmp_path / "adapter") == []
    write_published(tmp_path / "adapter", tmp_path / "served")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "served" / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()


def test_nothing_is_overwritten(trained, tmp_path):
    folder, _, _ = trained("qwen3_5")
    (tmp_path / "served").write_text("mine")
    with pytest.raises(ValueError, match="served is there already"):
        write_published(folder / "adapter", tmp_path / "served")
    assert (tmp_path / "served").read_text() == "mine"


@pytest.mark.parametrize(
    "name, served",
    [
        ("model.language_model.layers.0.mlp.up_proj.lora_A.weight", "language_model.model.layers.0.mlp.up_proj"),
        ("model.layers.0.mlp.up_proj.lora_B.weight", "model.layers.0.mlp.up_proj"),
        ("lm_head.lora_A.weight", "language_model.lm_head"),
        ("model.language_model.layers.0.experts.base_layer.lora_A.weight", "language_model.model.layers.0.experts"),
    ],
)
def test_the_rule_of_vllm(name, served):
    assert served_name(f"base_model.model.{name}", is_wrapper=True) == served


def test_each_program_accepts_the_adapter_under_published_names(trained, tmp_path):
    folder, _, _ = trained("qwen3_5")
    write_published(folder / "adapter", tmp_path / "served")
    context = Context("sft", {}, {"name": lambda: str(tmp_path / "served")})
    assert existing(str(tmp_path / "served")) and context.folder == folder / "base"
    _check_model({"name": str(tmp_path / "served"), "method": "lora"}, tmp_path / "run")
    with pytest.raises(ValueError, match="qwen3_5_text is not one of llama"):
        write_lora_gguf(tmp_path / "served", tmp_path / "adapter.gguf")


def test_peft_does_not_warn_of_another_base(trained, tmp_path, recwarn):
    folder, _, _ = trained("qwen3_5")
    write_published(folder / "adapter", tmp_path / "served")
    load_adapter(tmp_path / "served", 32)
    assert not [str(w.message) for w in recwarn if "was renamed" in str(w.message)]


def test_what_is_no_lora_is_refused_without_counts(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    get_peft_model(load_model(tmp_path / "base", 32), IA3Config(task_type="CAUSAL_LM")).save_pretrained(
        tmp_path / "ia3"
    )
    file = tmp_path / "ia3/adapter_model.safetensors"
    save_file({name.replace("layers.0", "layers.9"): tensor for name, tensor in load_file(file).items()}, file)
    with pytest.raises(ValueError, match="does not fit its base .*base: it lacks "):
        load_adapter(tmp_path / "ia3", 32)
