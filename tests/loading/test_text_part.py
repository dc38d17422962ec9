"The text part of a wrapper of several media is loaded on purpose: the same logits, its own names, and a line about it."

import json
import shutil

import pytest
import torch
from architectures import WRAPPERS, wrapper_of
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ft_notebooks.loading.memory_estimate import estimate_memory, weight_bytes
from ft_notebooks.loading.model_files import check_checkpoint, read_config
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.loading.text_part import renamed

IDS = torch.tensor([[2, *range(3, 60)]])


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "Folder of a kind of wrapper, saved by its own class."
    root = tmp_path_factory.mktemp("wrappers")

    def folder(kind):
        if not (root / kind).exists():
            wrapper_of(kind).save_pretrained(root / kind)
        return root / kind

    return folder


@pytest.mark.parametrize("kind", WRAPPERS)
def test_the_text_part_has_the_logits_of_the_wrapper_and_says_what_is_left_out(kind, saved, capfd):
    whole = wrapper_of(kind)
    model = load_model(saved(kind), 32)
    assert torch.equal(logits(model), logits(whole))
    assert not [name for name, _ in model.named_modules() if "vis" in name]
    size, all_of_it = (sum(p.numel() for p in each.parameters()) for each in (model, whole))
    [line] = capfd.readouterr().out.splitlines()
    assert type(whole).__name__ in line and f"{size:,} parameters" in line
    assert sum(model.wrapper.left_out.values()) == all_of_it - size
    for part, parameters in model.wrapper.left_out.items():
        assert f"{part} ({parameters:,})" in line


@pytest.mark.parametrize("kind", WRAPPERS)
def test_the_model_knows_the_names_of_its_weights_in_the_published_class_and_in_the_files(kind, saved):
    whole, wrapper = wrapper_of(kind), load_model(saved(kind), 32).wrapper
    assert wrapper.architecture == type(whole).__name__
    parameters, files = dict(whole.named_parameters()), load_file(saved(kind) / "model.safetensors")
    for name, p in load_model(saved(kind), 32).named_parameters():
        assert torch.equal(parameters[renamed(name, wrapper.published)], p)
        if ".experts." not in name:  # which files hold one by one
            assert torch.equal(files[renamed(name, wrapper.stored)], p)


def test_a_model_without_a_wrapper_says_nothing(saved, tmp_path, capfd):
    load_model(saved("gemma3"), 32).save_pretrained(tmp_path)
    capfd.readouterr()
    assert load_model(tmp_path, 32).wrapper is None and capfd.readouterr().out == ""


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_saved_text_part_is_an_ordinary_model(kind, saved, tmp_path):
    model = load_model(saved(kind), 32)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [type(model).__name__]
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "language_model" in name]
    assert torch.equal(logits(load_model(tmp_path, 32)), logits(model))


@pytest.mark.parametrize("kind, bits", [*((kind, 4) for kind in WRAPPERS), ("gemma3", 8), ("gemma3", 16)])
def test_fewer_bits_are_those_of_the_text_part_alone(kind, bits, saved, tmp_path):
    load_model(saved(kind), 32).save_pretrained(tmp_path)
    assert torch.equal(logits(load_model(saved(kind), bits)), logits(load_model(tmp_path, bits)))
    assert weight_bytes(saved(kind), bits) == weight_bytes(tmp_path, bits)


def test_memory_is_that_of_the_text_part(saved, tmp_path):
    load_model(saved("llava"), 32).save_pretrained(tmp_path)
    here, there = (estimate_memory(folder, length=32, device="cpu") for folder in (saved("llava"), tmp_path))
    assert here == there == estimate_memory(wrapper_of("llava").config, length=32, device="cpu")


@pytest.mark.parametrize("text, whole", [(True, False), (False, True)])
@pytest.mark.parametrize("kind", WRAPPERS)
def test_the_wrapper_says_whether_the_head_is_the_embedding(kind, text, whole, tmp_path):
    wrapper = wrapper_of(kind, {"tie_word_embeddings": text}, tie_word_embeddings=whole)
    wrapper.save_pretrained(tmp_path)
    assert torch.equal(logits(load_model(tmp_path, 32)), logits(wrapper))


def test_a_name_on_the_hub_works_as_a_folder_does(saved, tmp_path):
    commit = "0123456789" * 4
    repository = tmp_path / "models--an-owner--a-model"
    shutil.copytree(saved("gemma3"), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    model = load_model("an-owner/a-model", 32, cache_dir=tmp_path, local_files_only=True)
    assert model.hub_commit == commit and torch.equal(logits(model), logits(wrapper_of("gemma3")))


def test_several_files_are_read_as_one(tmp_path):
    wrapper_of("gemma3").save_pretrained(tmp_path, max_shard_size="100KB")
    assert len([*tmp_path.glob("*.safetensors")]) > 1
    assert torch.equal(logits(load_model(tmp_path, 32)), logits(wrapper_of("gemma3")))


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_text_weight_that_is_missing_is_refused(kind, saved, tmp_path):
    shutil.copytree(saved(kind), tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(
        name for name in weights if name.endswith("layers.1.mlp.down_proj.weight") or "1.mlp.gate.weight" in name
    )
    save_file(
        {name: w for name, w in weights.items() if name != lost}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match=r"would be random: 1 \(model.layers.1.mlp"):
        load_model(tmp_path, 32)


@pytest.mark.parametrize("kind", ["qwen3_5", "gemma3"])
def test_a_text_weight_that_nothing_describes_is_refused(kind, saved, tmp_path):
    shutil.copytree(saved(kind), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"] |= {"num_hidden_layers": 1, "layer_types": config["text_config"]["layer_types"][:1]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="would stay unused: .*layers.1."):
        load_model(tmp_path, 32)


@pytest.mark.parametrize(
    "kind, saved_as, said",
    [
        ("gemma3", "Gemma3ForSequenceClassification", "was saved as Gemma3ForSequenceClassification, and would be"),
        ("gemma3", "BertForMaskedLM", "was saved as BertForMaskedLM, and would be loaded as Gemma3ForCausalLM"),
        ("qwen3_vl", "Qwen3VLForConditionalGeneration", "transformers has no class for its text part alone"),
    ],
)
def test_what_is_no_wrapper_of_a_text_model_is_refused_by_name(kind, saved_as, said, saved, tmp_path):
    shutil.copytree(saved("gemma3"), tmp_path, dirs_exist_ok=True)
    config = {"model_type": kind, "architectures": [saved_as]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said):
        read_config(check_checkpoint(tmp_path))
