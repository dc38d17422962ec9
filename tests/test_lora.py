"""Edges of LoRA: seeds across processes, quantised bases, adapters on disk."""

import json
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from ft_notebooks.loading import load_model
from ft_notebooks.lora import add_adapter, load_adapter, lora_config, merge_adapter
from ft_notebooks.models import tiny_model, tiny_tokenizer

IDS = torch.tensor([tiny_tokenizer()("abc, abd").input_ids])


def with_adapter(base=None, seed=0, **fields):
    "An adapter that is not zero any more"
    base = base or tiny_model()
    model = add_adapter(base, lora_config(base, **fields), seed)
    with torch.no_grad():
        for i, (name, p) in enumerate(model.named_parameters()):
            if "lora_B" in name:
                p.normal_(std=0.05, generator=torch.Generator().manual_seed(i))
    return model


@pytest.fixture
def saved(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    model = with_adapter(load_model(tmp_path / "base", bits=32, device_map=None))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path, model


def logits(model):
    with torch.no_grad():
        return model(IDS.to(model.device)).logits.cpu()


# lora_config


def test_fields_are_those_of_loraconfig():
    config = lora_config(tiny_model(), r=8, use_rslora=True, lora_alpha=3, lora_dropout=0.1)
    assert isinstance(config, LoraConfig)
    assert (config.r, config.use_rslora, config.lora_alpha, config.lora_dropout) == (8, True, 3, 0.1)


@pytest.mark.parametrize("r", [0, -4])
def test_a_rank_below_one_is_refused(r):
    with pytest.raises(ValueError, match=f"r must be at least 1, got {r}"):
        lora_config(tiny_model(), r=r)


@pytest.mark.parametrize("field, near", [("lora_alfa", "lora_alpha"), ("target_module", "target_modules")])
def test_an_unknown_field_names_the_nearest(field, near):
    with pytest.raises(ValueError, match=f"no field '{field}'; the nearest is '{near}'"):
        lora_config(tiny_model(), **{field: 1})


@pytest.mark.parametrize("targets", [["self_attn.q_proj"], {"q_proj", "down_proj"}, ("q_proj",), r".*\.0\..*q_proj"])
def test_target_modules_of_all_forms_that_peft_takes_are_taken(targets):
    model = add_adapter(tiny_model(), lora_config(tiny_model(), target_modules=targets))
    assert model.get_nb_trainable_parameters()[0] > 0


# add_adapter


def test_the_head_and_the_embedding_are_left_out():
    model = add_adapter(tiny_model(), lora_config(tiny_model()))
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(names) == 2 * 2 * 7  # A and B, two layers, seven matrices each
    assert not [name for name in names if "lm_head" in name or "embed" in name]


def test_another_process_draws_the_same_adapter_and_the_bare_library_does_not():
    code = """
from peft import get_peft_model
from ft_notebooks.lora import add_adapter, lora_config
from ft_notebooks.models import tiny_model
models = [add(tiny_model(), lora_config(tiny_model())) for add in (add_adapter, get_peft_model)]
sums = [sum(p.double().sum().item() for n, p in m.named_parameters() if "lora_A" in n) for m in models]
"""
    here = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exec(code, here)
    there = subprocess.run([sys.executable, "-c", code + "print(*sums)"], capture_output=True, text=True, check=True)
    ours, bare = map(float, there.stdout.split())
    assert ours == here["sums"][0]
    assert bare != here["sums"][1]


def test_the_random_state_that_the_caller_has_does_not_matter():
    torch.manual_seed(1)
    first = add_adapter(tiny_model(), lora_config(tiny_model()))
    torch.manual_seed(2)
    second = add_adapter(tiny_model(), lora_config(tiny_model()))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters()))
    assert torch.initial_seed() == 2


def test_one_config_serves_two_models():
    first, second = tiny_model(), tiny_model()
    first.name_or_path, second.name_or_path = "first", "second"
    config = lora_config(first)
    adapted = [add_adapter(model, config) for model in (first, second)]
    assert [model.peft_config["default"].base_model_name_or_path for model in adapted] == ["first", "second"]
    assert (config.base_model_name_or_path, config.target_modules) == (None, "all-linear")


def test_an_adapter_without_a_peft_model_around_it_is_seen_too():
    model = inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), tiny_model())
    with pytest.raises(ValueError, match="has an adapter already"):
        add_adapter(model, lora_config(tiny_model()))


def test_a_merged_model_takes_a_new_adapter():
    plain = merge_adapter(with_adapter())
    assert add_adapter(plain, lora_config(plain)).get_nb_trainable_parameters()[0] > 0


# merge_adapter


@pytest.mark.parametrize("fields", [{}, {"use_dora": True}, {"use_rslora": True}, {"target_modules": ["q_proj"]}])
def test_merging_changes_no_logit(fields):
    model = with_adapter(**fields).eval()
    expected = logits(model)
    assert (expected - logits(tiny_model())).abs().max() > 0.1
    merged = merge_adapter(model)
    assert_close(logits(merged), expected, atol=1e-5, rtol=0)


def test_what_is_merged_is_plain():
    merged, plain = merge_adapter(with_adapter()), tiny_model()
    assert type(merged) is type(plain) and not isinstance(merged, PeftModel)
    assert [(n, p.shape, p.requires_grad) for n, p in merged.named_parameters()] == [
        (n, p.shape, p.requires_grad) for n, p in plain.named_parameters()
    ]
    assert not merged.training


def test_what_is_merged_can_be_saved_and_loaded(tmp_path):
    model = with_adapter()
    expected = logits(model)
    merge_adapter(model).save_pretrained(tmp_path)
    assert_close(logits(load_model(tmp_path, bits=32)), expected, atol=1e-5, rtol=0)


def test_a_model_without_adapter_cannot_be_merged():
    with pytest.raises(ValueError, match="takes a peft.PeftModel, got a LlamaForCausalLM"):
        merge_adapter(tiny_model())


def test_weights_that_are_not_finite_are_not_merged():
    model = with_adapter()
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_B" in n)[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaNs"):
        merge_adapter(model)


def test_a_quantised_base_is_refused_and_the_cure_it_names_works(saved):
    folder, _ = saved
    pytest.importorskip("bitsandbytes")

    def quantised():
        nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        return AutoModelForCausalLM.from_pretrained(folder / "base", quantization_config=nf4, dtype=torch.float32)

    model = with_adapter(quantised())
    expected = logits(model)
    with pytest.raises(ValueError, match="the base is quantised.*dequantize"):
        merge_adapter(model)
    assert torch.equal(logits(model), expected)  # refused before anything was changed
    model.save_pretrained(folder / "on four bits")

    def error(base):
        merged = merge_adapter(PeftModel.from_pretrained(base, folder / "on four bits"))
        return (logits(merged) - expected).abs().max().item()

    # the base that it was trained on, and the one that was quantised; on some CPUs bitsandbytes multiplies in bfloat16
    assert error(quantised().dequantize()) < 0.05 < 0.2 < error(load_model(folder / "base", bits=32))


# load_adapter


def test_the_adapter_comes_back_on_its_base(saved):
    folder, model = saved
    assert torch.equal(logits(load_adapter(folder / "adapter", bits=32)), logits(model))
    assert load_adapter(str(folder / "adapter")).get_base_model().dtype != torch.float32


def test_it_is_frozen_or_trains_as_it_was_told(saved):
    folder, model = saved
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    for wish in (True, False):
        loaded = load_adapter(folder / "adapter", trainable=wish)
        assert [n for n, p in loaded.named_parameters() if p.requires_grad] == (trainable if wish else [])
        assert not loaded.training


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_without_adapter_says_what_is_missing(saved, file):
    folder, _ = saved
    (folder / "adapter" / file).unlink()
    with pytest.raises(ValueError, match=f"has no {file}"):
        load_adapter(folder / "adapter")


def test_a_base_that_is_gone_is_named_with_the_file_that_names_it(saved):
    folder, _ = saved
    (folder / "base").rename(folder / "moved")
    with pytest.raises(ValueError, match=f"adapter_config.json: .* is '{folder / 'base'}'.*does not exist"):
        load_adapter(folder / "adapter")
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(folder / "moved")  # the cure that the message names
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    load_adapter(folder / "adapter")


def test_a_base_that_was_never_saved_is_said_so(tmp_path):
    with_adapter().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the base was never saved"):
        load_adapter(tmp_path)
