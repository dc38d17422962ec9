"""Edges of loading: folders that must be refused, machines that are not here, and bytes."""

import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import psutil
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from ft_notebooks import loading
from ft_notebooks.loading import Hardware, hardware, load_model, weight_bytes
from ft_notebooks.models import tiny_model

T4 = Hardware("cpu", torch.float16, False, "sdpa", 0)  # its dtypes, on a device that every test machine has


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture
def no_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def no_weights(monkeypatch):
    "Reading weights is an error: what must be refused is refused before."

    def read(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", read)


def bytes_held(model):
    return sum({p.data_ptr(): p.nbytes for p in model.parameters()}.values())


# hardware


@pytest.mark.parametrize("local_rank, cards, expected", [("0", 4, "cuda:0"), ("3", 4, "cuda:3"), ("3", 1, "cuda:0")])
def test_each_process_has_the_card_of_its_local_rank(monkeypatch, local_rank, cards, expected):
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    sizes = {index: (index + 1) * 2**30 for index in range(cards)}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(total_memory=sizes[i]))
    hw = hardware()
    assert hw.device == expected
    assert hw.memory == sizes[int(expected[-1])]


def test_apples_device_computes_in_float32(monkeypatch, no_card):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"bf16": True}, raising=False)
    hw = hardware()
    assert (hw.device, hw.dtype, hw.bf16) == ("mps", torch.float32, False)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the fall-back reads /proc/cpuinfo")
def test_the_kernel_and_torch_agree_on_bf16_instructions(monkeypatch, no_card):
    if not hasattr(torch.cpu, "get_capabilities"):
        pytest.skip("this torch has no get_capabilities to compare with")
    by_torch = hardware().bf16
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert hardware().bf16 == by_torch


@pytest.mark.parametrize("line, expected", [("flags : fpu avx512f avx512_bf16", True), ("flags : fpu avx512f", False)])
def test_without_torchs_function_the_flags_of_cpuinfo_decide(monkeypatch, no_card, tmp_path, line, expected):
    (tmp_path / "cpuinfo").write_text(line)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    instead = {"/proc/cpuinfo": tmp_path / "cpuinfo"}
    monkeypatch.setattr(loading, "Path", lambda first, *rest: Path(instead.get(first, first), *rest))
    assert hardware().bf16 is expected


@pytest.mark.parametrize(
    "line, file, text, expected",
    [
        ("0::/job", "job/memory.max", "1000", 1000),  # version 2, own limit
        ("0::/job/step", "job/memory.max", "1000", 1000),  # version 2, the parent's limit
        ("0::/", "memory.max", "max", None),  # version 2, no limit
        ("4:memory:/job", "memory/job/memory.limit_in_bytes", "2000\n", 2000),  # version 1
        ("4:memory:/job", "memory/job/memory.limit_in_bytes", str(2**63 - 4096), None),  # version 1, no limit
        ("5:cpu:/job", "cpu/job/memory.limit_in_bytes", "3000", None),  # another controller
    ],
)
def test_memory_is_what_the_control_group_allows(monkeypatch, no_card, tmp_path, line, file, text, expected):
    (tmp_path / "cgroup").write_text(line)
    (tmp_path / "fs" / file).parent.mkdir(parents=True)
    (tmp_path / "fs" / file).write_text(text)
    instead = {"/proc/self/cgroup": tmp_path / "cgroup", "/sys/fs/cgroup": tmp_path / "fs"}
    monkeypatch.setattr(loading, "Path", lambda first, *rest: Path(instead.get(first, first), *rest))
    assert hardware().memory == (expected or psutil.virtual_memory().total)


# load_model


def test_a_card_without_bfloat16_gets_float16(saved, monkeypatch):
    monkeypatch.setattr(loading, "hardware", lambda: T4)
    assert load_model(saved).dtype == torch.float16
    assert load_model(saved, bits=32).dtype == torch.float32


def test_a_cpu_without_the_instructions_still_stores_16_bits(saved, monkeypatch):
    monkeypatch.setattr(loading, "hardware", lambda: Hardware("cpu", torch.float32, False, "sdpa", 0))
    assert load_model(saved).dtype == torch.bfloat16


@pytest.mark.parametrize("device, expected", [("cuda:1", {"": "cuda:1"}), ("mps", None), ("cpu", None)])
def test_only_a_card_gets_a_device_map(saved, monkeypatch, device, expected):
    monkeypatch.setattr(loading, "hardware", lambda: Hardware(device, torch.bfloat16, True, "sdpa", 0))
    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", lambda name, **kwargs: kwargs)
    assert load_model(saved)["device_map"] == expected


def test_a_path_and_a_string_are_the_same(saved):
    assert torch.equal(load_model(saved).lm_head.weight, load_model(str(saved)).lm_head.weight)


def test_arguments_of_from_pretrained_pass_through(saved):
    assert load_model(saved, attn_implementation="eager").config._attn_implementation == "eager"
    assert load_model(saved, trust_remote_code=False).dtype != torch.float32


@pytest.mark.parametrize("answer", [False, None, 0])
def test_a_no_to_remote_code_stays_a_no(saved, monkeypatch, answer):  # None would make transformers ask at the terminal
    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", lambda name, **kwargs: kwargs)
    assert load_model(saved, trust_remote_code=answer)["trust_remote_code"] is False


@pytest.mark.parametrize("bits", [8, 4, 0, "16", None, 16.5])
def test_other_bits_are_refused(saved, no_weights, bits):
    for function in (load_model, weight_bytes):
        with pytest.raises(ValueError, match=f"bits must be 16 or 32, got {bits!r}"):
            function(saved, bits)


@pytest.mark.parametrize("argument", ["dtype", "torch_dtype", "use_safetensors", "quantization_config"])
def test_arguments_that_bits_decides_are_refused(saved, no_weights, argument):
    with pytest.raises(ValueError, match=f"^{argument} follows from bits=16"):
        load_model(saved, **{argument: None})


REFUSED = {  # files in the folder -> what the message must say: what is wrong, and the cure
    (): "has no config.json",
    ("model.safetensors",): "has no config.json",
    ("config.json",): "has no safetensors",
    ("config.json", "training_args.bin", "optimizer.pt"): "has no safetensors",
    ("tiny.Q4_1.gguf",): "only a GGUF.*gguf_file= 'tiny.Q4_1.gguf'",
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
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").touch()
    (tmp_path / "model.gguf").touch()
    load_model(tmp_path)


@pytest.mark.parametrize("name", ["./x", "/no/x", "~/no such x", "a/b/c", "..", "runs/", Path("x"), "C:\\models", ""])
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
    load_model("~/tiny")
    assert weight_bytes("~/tiny") == weight_bytes(saved)


def test_code_that_comes_with_a_known_architecture_is_not_run_either(saved, tmp_path):
    config = json.loads((saved / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'I was here')!r}, 'w')")
    assert type(load_model(tmp_path)) is type(tiny_model())  # transformers' own class
    weight_bytes(tmp_path)
    assert not (tmp_path / "I was here").exists()


def test_a_quantised_checkpoint_is_refused(saved, tmp_path, no_weights):
    config = json.loads((saved / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    for function in (load_model, weight_bytes):
        with pytest.raises(ValueError, match="stored quantised"):
            function(tmp_path)


def test_loading_leaves_the_random_state_alone(saved):
    before = torch.get_rng_state()
    load_model(saved)
    weight_bytes(saved)
    assert torch.equal(torch.get_rng_state(), before)


# weight_bytes


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("tied", [True, False])
def test_the_bytes_of_another_architecture_are_predicted_too(tmp_path, bits, tied):
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=2, n_head=2, tie_word_embeddings=tied)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    assert weight_bytes(config, bits) == weight_bytes(tmp_path, bits) == bytes_held(load_model(tmp_path, bits))


def test_predicting_allocates_nothing():
    config = tiny_model().config
    config.num_hidden_layers = 3
    config.hidden_size, config.intermediate_size = 2**14, 2**17  # 80 GB in 32 bits
    assert weight_bytes(config, 32) > 70e9
