"""Which folders are refused, with which cure, and that no weight is read before."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    CLIPConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    T5Config,
)

from ft_notebooks.core import hub_access
from ft_notebooks.loading import quantized_loading
from ft_notebooks.loading.example_models import tiny_model
from ft_notebooks.loading.model_files import check_checkpoint, check_weights, hub_commit, read_config
from ft_notebooks.loading.quantized_loading import load_model

COMMIT = "c0ffee" + 34 * "0"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "shards"
    tiny_model().save_pretrained(folder, max_shard_size="200KB")
    return folder


@pytest.fixture
def no_weights(monkeypatch):
    "Reading weights is an error: what must be refused is refused before. A rehearsal on `meta` reads none."
    whole = AutoModelForCausalLM.from_pretrained

    def read(*args, **kwargs):
        assert kwargs["device_map"] == {"": "meta"}, "weights were read"
        return whole(*args, **kwargs)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", read)


def refused(folder, *words):
    "`load_model` refuses the folder, names it, and says all of `words`."
    with pytest.raises(ValueError) as error:
        load_model(folder)
    for word in (str(folder), *words):
        assert word in str(error.value)


# the kind of folder

REFUSED = {  # files in the folder -> what the message must say: what is wrong, and the cure
    (): "has no config.json",
    ("model.safetensors",): "has no config.json",
    ("config.json",): "has no safetensors",
    ("config.json", "training_args.bin", "optimizer.pt"): "has no safetensors",
    ("tiny.Q4_1.gguf",): "only a GGUF.*gguf_file='tiny.Q4_1.gguf'.*gguf_tokenizer.*save_pretrained",
    ("a{b}.gguf",): "gguf_file='a{b}.gguf'",
    ("config.json", "tiny.gguf"): "only a GGUF",
    ("config.json", "pytorch_model.bin"): "only pickled weights.*use_safetensors=False",
    ("config.json", "pytorch_model-00001-of-00002.bin"): "only pickled weights",
    ("adapter_config.json", "adapter_model.safetensors"): "holds an adapter.*PeftModel.from_pretrained",
    ("config.json", "model.safetensors", "adapter_config.json"): "holds an adapter",
}


@pytest.mark.parametrize("files", REFUSED)
def test_a_folder_that_is_no_model_is_refused_with_the_cure(tmp_path, no_weights, files):
    for file in files:
        (tmp_path / file).write_text("{}")
    with pytest.raises(ValueError, match=REFUSED[files]) as error:
        load_model(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_beside_safetensors_other_formats_do_no_harm(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    (tmp_path / "pytorch_model.bin").touch()
    (tmp_path / "model.gguf").touch()
    load_model(tmp_path)


@pytest.mark.parametrize("name", ["./x", "/no/x", "~/no such x", "a/b/c", "..", "runs/", Path("x"), "C:\\models"])
def test_a_path_that_leads_nowhere_is_called_a_path(tmp_path, monkeypatch, no_weights, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="does not exist; a path|has no config.json"):
        load_model(name)


@pytest.mark.parametrize("name", ["runs/demo", "no-such-model"])
def test_a_name_that_could_be_either_is_said_to_be_neither(monkeypatch, no_weights, name):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=f"^{name}: there is no such folder here, and the hub gave no config.json"):
        load_model(name)


def test_a_home_folder_is_expanded(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    assert check_checkpoint("~/tiny") == str(saved)
    load_model("~/tiny")


# whole files


def test_a_shard_that_is_missing_is_named(shards, tmp_path, no_weights):
    folder = Path(shutil.copytree(shards, tmp_path / "m"))
    second = sorted(folder.glob("*.safetensors"))[1]
    second.unlink()
    refused(folder, "lacks 1 of its 3 files", second.name)


def test_shards_without_their_index_are_refused(shards, tmp_path, no_weights):
    folder = Path(shutil.copytree(shards, tmp_path / "m"))
    (folder / "model.safetensors.index.json").unlink()
    refused(folder, "no model.safetensors.index.json")


def test_an_index_without_any_shard_is_refused(shards, tmp_path, no_weights):
    folder = Path(shutil.copytree(shards, tmp_path / "m"))
    for file in folder.glob("*.safetensors"):
        file.unlink()
    refused(folder, "lacks 3 of its 3 files")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}'])
def test_an_index_that_is_none_is_refused(shards, tmp_path, no_weights, text):
    folder = Path(shutil.copytree(shards, tmp_path / "m"))
    (folder / "model.safetensors.index.json").write_text(text)
    refused(folder, "model.safetensors.index.json", "does not map")


def test_a_stale_index_beside_a_whole_file_does_no_harm(saved, shards, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "m"))
    shutil.copy(shards / "model.safetensors.index.json", folder)
    load_model(folder)  # transformers takes model.safetensors first


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 1000, -1])
def test_a_file_that_is_cut_short_is_named(saved, tmp_path, no_weights, keep):
    folder = Path(shutil.copytree(saved, tmp_path / "m"))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(folder, str(file), "cut short or damaged", "copy it again")


@pytest.mark.parametrize("content", [b"\xff" * 1000, b"<!DOCTYPE html><html>Access denied</html>", 100 * b"{}"])
def test_a_file_that_is_something_else_is_named(saved, tmp_path, no_weights, content):
    folder = Path(shutil.copytree(saved, tmp_path / "m"))
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, "model.safetensors", "cut short or damaged")


def test_a_pointer_of_git_lfs_is_called_one(saved, tmp_path, no_weights):
    folder = Path(shutil.copytree(saved, tmp_path / "m"))
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    refused(folder, "git lfs pull")


# the configuration


def write_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"model_type": "nonesuch"}, ["`nonesuch`", "does not recognize this architecture", "pip install --upgrade"]),
        ({"model_type": None}, ["model type"]),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            ["LlamaForSequenceClassification", "'LlamaForCausalLM'"],
        ),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            ["stored quantized", "load the original model"],
        ),
        ({"quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}}, ["stored quantized"]),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused(saved, tmp_path, no_weights, fields, words):
    folder = Path(shutil.copytree(saved, tmp_path / "m"))
    write_config(folder, **fields)
    refused(folder, *words)


@pytest.mark.parametrize("config", [CLIPConfig(), T5Config()])
def test_a_model_that_does_not_continue_text_is_refused(saved, tmp_path, no_weights, config):
    folder = Path(shutil.copytree(saved, tmp_path / "m"))
    config.save_pretrained(folder)
    refused(folder, f"is a {config.model_type} model, which does not generate text")


def test_a_reward_model_with_tied_weights_is_no_language_model(tmp_path, no_weights):
    config = tiny_model().config  # all weights of a language model are in its file
    config.tie_word_embeddings = True
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    refused(tmp_path, "was saved as LlamaForSequenceClassification")


def test_a_configuration_that_names_no_architecture_is_taken_at_its_type(saved, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "m"))
    write_config(folder, architectures=None)
    assert type(load_model(folder)) is type(tiny_model())


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_torn_configuration_is_not_called_a_missing_folder(saved, tmp_path, no_weights, text):
    folder = Path(shutil.copytree(saved, tmp_path / "m"))
    (folder / "config.json").write_text(text)
    refused(folder, "config.json")


def test_code_that_comes_with_a_known_architecture_is_not_run_either(saved, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "m"))
    write_config(folder, auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"})
    (folder / "evil.py").write_text(f"open({str(folder / 'I was here')!r}, 'w')")
    assert type(load_model(folder)) is type(tiny_model())  # transformers' own class
    assert not (folder / "I was here").exists()


# the commit


@pytest.fixture
def hub(saved, tmp_path):
    "A cache as the hub's client leaves it: two commits of `an-owner/a-model`, of which `main` is the first."
    repo = tmp_path / "hub" / "models--an-owner--a-model"
    for commit in (COMMIT, COMMIT[::-1]):
        shutil.copytree(saved, repo / "snapshots" / commit)
    write_config(repo / "snapshots" / COMMIT[::-1], rms_norm_eps=0.25)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "refs" / "v2").write_text(COMMIT[::-1])
    return {"cache_dir": tmp_path / "hub", "local_files_only": True}


@pytest.mark.parametrize("revision", [None, "main", COMMIT, "v2", COMMIT[::-1]])
def test_the_commit_of_a_revision_is_recorded(hub, revision):
    expected = COMMIT[::-1] if revision in ("v2", COMMIT[::-1]) else COMMIT
    config = read_config("an-owner/a-model", revision, **hub)
    assert hub_commit("an-owner/a-model", revision, **hub) == expected
    assert config.rms_norm_eps == (0.25 if expected != COMMIT else tiny_model().config.rms_norm_eps)
    assert load_model("an-owner/a-model", revision=revision, **hub).hub_commit == expected


def test_a_branch_that_moves_while_a_model_loads_does_not_mix_two_commits(hub, monkeypatch):
    def moved(*args, **kwargs):
        (hub["cache_dir"] / "models--an-owner--a-model" / "refs" / "main").write_text(COMMIT[::-1])
        return check_weights(*args, **kwargs)

    monkeypatch.setattr(quantized_loading, "check_weights", moved)
    model = load_model("an-owner/a-model", **hub)
    assert model.hub_commit == COMMIT and model.config.rms_norm_eps == tiny_model().config.rms_norm_eps
    assert load_model("an-owner/a-model", **hub).hub_commit == COMMIT[::-1]


def test_the_environment_names_the_cache_too(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub["cache_dir"]))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert load_model("an-owner/a-model").hub_commit == COMMIT


def test_a_file_that_is_in_no_commits_folder_is_refused(hub, saved, monkeypatch, no_weights):
    monkeypatch.setattr(hub_access, "cached_file", lambda *args, **kwargs: str(saved / "config.json"))
    with pytest.raises(OSError, match="^an-owner/a-model: .*config.json is in no commit's folder"):
        load_model("an-owner/a-model", **hub)


def test_what_is_asked_to_be_downloaded_again_is_downloaded_once(hub, monkeypatch):
    asked, real = [], hub_access.cached_file
    monkeypatch.setattr(
        hub_access, "cached_file", lambda *a, **k: asked.append(k.pop("force_download")) or real(*a, **k)
    )
    monkeypatch.setattr(quantized_loading, "check_weights", lambda *args, **kwargs: None)
    load_model("an-owner/a-model", force_download=True, **hub)
    assert asked == [True, False]


def test_an_adapter_on_the_hub_is_no_model_either(hub, no_weights):
    folder = hub["cache_dir"] / "models--an-owner--a-model" / "snapshots" / COMMIT
    get_peft_model(tiny_model(), LoraConfig(target_modules="all-linear")).save_pretrained(folder)
    with pytest.raises(ValueError, match="^an-owner/a-model holds an adapter; load its base"):
        load_model("an-owner/a-model", **hub)


def test_what_the_hub_gives_is_checked_as_a_folder_is(hub, saved):
    folder = hub["cache_dir"] / "models--an-owner--a-model" / "snapshots" / COMMIT
    weights = load_file(saved / "model.safetensors")
    whole = {"lm_head.weight": weights["lm_head.weight"].to(torch.int8)}
    save_file(weights | whole, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lm_head.weight holds numbers of the type I8"):
        load_model("an-owner/a-model", **hub)
    write_config(folder, attn_implementation="owner/kernel")
    for load in (load_model, read_config):
        with pytest.raises(ValueError, match="config.json: attn_implementation is 'owner/kernel'"):
            load("an-owner/a-model", **hub)


def test_a_folder_has_no_commit_and_a_saved_model_forgets_it(hub, saved, tmp_path):
    assert load_model(saved).hub_commit is None
    load_model("an-owner/a-model", **hub).save_pretrained(tmp_path / "again")
    assert COMMIT not in (tmp_path / "again" / "config.json").read_text()


# all weights


@pytest.mark.parametrize("lost", ["lm_head.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_weight_that_is_missing_is_named_and_not_made_up(saved, tmp_path, no_weights, lost):
    folder = Path(shutil.copytree(saved, tmp_path / "m"))
    weights = load_file(folder / "model.safetensors")
    del weights[lost]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, f"would be random: 1 ({lost})")


@pytest.mark.parametrize("fields", [{"num_hidden_layers": 3}, {"intermediate_size": 96}, {"vocab_size": 300}])
def test_a_configuration_of_another_size_is_refused(saved, tmp_path, no_weights, fields):
    folder = Path(shutil.copytree(saved, tmp_path / "m"))
    write_config(folder, **fields)
    refused(folder, "and would be random")


def test_the_user_cannot_ask_for_made_up_weights(saved, tmp_path, no_weights):
    folder = Path(shutil.copytree(saved, tmp_path / "m"))
    write_config(folder, vocab_size=300)
    with pytest.raises(ValueError, match="would be random"):
        load_model(folder, ignore_mismatched_sizes=True)


@pytest.mark.parametrize("tied", [True, False])
def test_another_architecture_is_whole_when_it_is(tmp_path, tied):
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=2, n_head=2, tie_word_embeddings=tied)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    check_weights(check_checkpoint(tmp_path))


def test_weights_that_the_model_has_no_use_for_do_no_harm(saved, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "m"))
    more = load_file(folder / "model.safetensors") | {"score.weight": torch.ones(1, 64)}
    save_file(more, folder / "model.safetensors", metadata={"format": "pt"})
    check_weights(folder)


def test_a_rehearsal_leaves_the_random_state_and_the_memory_alone(saved):
    before, memory = torch.get_rng_state(), psutil.Process().memory_info().rss
    check_weights(saved)
    assert torch.equal(torch.get_rng_state(), before)
    assert psutil.Process().memory_info().rss - memory < 50e6


def test_the_cure_for_code_in_a_folder_is_one_that_works_here(saved, tmp_path, no_weights):
    shutil.copytree(saved, tmp_path / "own")
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}
    (tmp_path / "own/config.json").write_text(json.dumps(config))
    (tmp_path / "own/own.py").write_text("raise SystemExit")
    refused(tmp_path / "own", "needs Python code from its own folder", "which is never run here", "in a script")


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_called_empty(name, no_weights):
    with pytest.raises(ValueError, match="the name of the model is empty"):
        load_model(name)


@pytest.mark.whole
def test_threads_that_load_at_once_wait_for_one_another(tmp_path):
    config = tiny_model().config
    config.tie_word_embeddings = True
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with ThreadPoolExecutor(4) as threads:
        models = list(threads.map(lambda _: load_model(tmp_path, bits=32), range(12)))
    weights = [model.get_output_embeddings().weight for model in models]
    assert all(torch.equal(weight, weights[0]) for weight in weights)
