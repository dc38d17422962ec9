"""Edges of loading: machines that are not here, arguments that raise, and a kernel without a backward pass."""

import copy
import io
import os
import shutil

import bitsandbytes as bnb
import pytest
import torch
import transformers
from architectures import family_of
from peft import PeftModel
from transformers import GPT2Config, GPT2LMHeadModel

from ft_notebooks.core.device import Hardware
from ft_notebooks.loading import quantized_loading
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.loading.memory_estimate import weight_bytes
from ft_notebooks.loading.model_files import check_checkpoint
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.lora.adapter import add_adapter, load_adapter, lora_config
from ft_notebooks.tokenization.padding import load_tokenizer
from ft_notebooks.tokenization.rendering import at_most

T4 = Hardware("cpu", torch.float16, False, "sdpa", 0)  # its dtypes, on a device that every test machine has
OLD = Hardware("cpu", torch.float32, False, "sdpa", 0)  # a CPU without bf16 instructions


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture
def no_weights(monkeypatch):
    "Reading weights is an error: what must be refused is refused before. A rehearsal on `meta` reads none."
    whole = quantized_loading.AutoModelForCausalLM.from_pretrained

    def read(*args, **kwargs):
        assert kwargs["device_map"] == {"": "meta"}, "weights were read"
        return whole(*args, **kwargs)

    monkeypatch.setattr(quantized_loading.AutoModelForCausalLM, "from_pretrained", read)


@pytest.fixture
def asked(monkeypatch):
    "What `from_pretrained` is asked for in earnest; nothing is loaded."
    seen = {}

    def from_pretrained(name, **kwargs):
        if kwargs["device_map"] == {"": "meta"}:
            return tiny_model(), {"missing_keys": set(), "mismatched_keys": set(), "unexpected_keys": set()}
        seen.update(kwargs)
        return tiny_model()

    monkeypatch.setattr(quantized_loading.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    return seen


def machine(monkeypatch, *fields):
    monkeypatch.setattr(quantized_loading, "hardware", lambda: Hardware(*fields))


# load_model


def test_a_card_without_bfloat16_gets_float16(saved, monkeypatch):
    monkeypatch.setattr(quantized_loading, "hardware", lambda: T4)
    assert load_model(saved).dtype == torch.float16
    assert load_model(saved, bits=32).dtype == torch.float32


def test_a_cpu_without_the_instructions_stores_16_bits_where_it_is_asked_to(saved, monkeypatch):
    monkeypatch.setattr(quantized_loading, "hardware", lambda: OLD)
    assert load_model(saved).dtype == torch.float32 and load_model(saved, bits=16).dtype == torch.bfloat16


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
@pytest.mark.parametrize("device", ["cuda:1", "mps", "cpu"])
def test_a_card_and_a_quantised_model_get_a_map_of_one_device(saved, monkeypatch, asked, device, bits):
    machine(monkeypatch, device, torch.bfloat16, True, "sdpa", 0)
    load_model(saved, bits)
    assert asked["device_map"] == ({"": device} if bits < 16 or device == "cuda:1" else None)


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
@pytest.mark.parametrize("hw", [T4, OLD, Hardware("cpu", torch.bfloat16, True, "sdpa", 0)])
def test_the_numbers_follow_from_bits_and_the_machine(saved, monkeypatch, asked, hw, bits):
    monkeypatch.setattr(quantized_loading, "hardware", lambda: hw)
    load_model(saved, bits)
    sixteen = torch.float16 if hw is T4 else torch.bfloat16
    assert asked["dtype"] == (torch.float32 if bits == 32 else sixteen)
    config = asked["quantization_config"]
    if bits >= 16:
        assert config is None
        return
    assert (config.load_in_4bit, config.load_in_8bit) == (bits == 4, bits == 8)
    if bits == 4:
        found = (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant, config.bnb_4bit_compute_dtype)
        assert found == ("nf4", True, hw.dtype)


@pytest.mark.parametrize("hw", [T4, OLD])
@pytest.mark.parametrize("bits", [8, 4])
def test_on_any_machine_a_quantised_model_runs_and_its_adapter_gets_gradient(saved, monkeypatch, hw, bits):
    monkeypatch.setattr(quantized_loading, "hardware", lambda: hw)
    model = load_model(saved, bits)
    assert model.lm_head.weight.dtype == (torch.float16 if hw is T4 else torch.bfloat16)
    for gradient in gradients(with_adapter(model)).values():
        assert gradient.isfinite().all() and gradient.any()


def test_a_path_and_a_string_are_the_same(saved):
    assert torch.equal(load_model(saved).lm_head.weight, load_model(str(saved)).lm_head.weight)


def test_arguments_of_from_pretrained_pass_through(saved):
    assert load_model(saved, attn_implementation="eager").config._attn_implementation == "eager"
    assert load_model(saved, attn_implementation={"": "eager"}).config._attn_implementation == "eager"
    assert load_model(saved, attn_implementation=None).config._attn_implementation == "sdpa"
    assert load_model(saved, 16, trust_remote_code=False).dtype != torch.float32


@pytest.mark.parametrize("answer", [False, None, 0])
def test_a_no_to_remote_code_stays_a_no(saved, asked, answer):  # None would make transformers ask at the terminal
    load_model(saved, trust_remote_code=answer)
    assert asked["trust_remote_code"] is False


@pytest.mark.parametrize("bits", [3, 0, 2, 5, 64, -4, "16", False, 16.5])
def test_other_bits_are_refused(saved, no_weights, bits):
    with pytest.raises(ValueError, match=f"bits must be .*, got {bits!r}"):
        load_model(saved, bits)


@pytest.mark.parametrize(
    "argument",
    [
        "dtype",
        "torch_dtype",
        "use_safetensors",
        "quantization_config",
        "load_in_4bit",
        "load_in_8bit",
        "output_loading_info",
    ],
)
def test_arguments_that_bits_decides_are_refused(saved, no_weights, argument):
    with pytest.raises(ValueError, match=f"^{argument} follows from bits=16"):
        load_model(saved, 16, **{argument: None})


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_loading_leaves_the_random_state_alone(saved, bits):
    before = torch.get_rng_state()
    load_model(saved, bits)
    assert torch.equal(torch.get_rng_state(), before)


# attention


@pytest.mark.parametrize("wanted", ["flash_attention_2", "flash_attention_3", "flash_attention_9", "flash"])
@pytest.mark.parametrize(
    "device, bf16, bits, installed",
    [
        ("cpu", True, 16, True),
        ("mps", False, 16, True),
        ("cuda:0", False, 16, True),
        ("cuda:0", True, 32, True),
        ("cuda:0", True, 16, False),
    ],
)
def test_flash_attention_that_cannot_run_is_refused(
    saved, monkeypatch, no_weights, wanted, device, bf16, bits, installed
):
    for n in (2, 3):
        monkeypatch.setattr(transformers.utils, f"is_flash_attn_{n}_available", lambda: installed)
    machine(monkeypatch, device, torch.float16, bf16, "sdpa", 0)
    with pytest.raises(ValueError, match=f"{wanted!r} needs its package.*bits={bits}.*'sdpa' works everywhere"):
        load_model(saved, bits, attn_implementation=wanted)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_flash_attention_that_can_run_is_asked_for(saved, monkeypatch, asked, bits):
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: True)
    machine(monkeypatch, "cuda:0", torch.bfloat16, True, "sdpa", 0)
    load_model(saved, bits, attn_implementation="flash_attention_2")
    assert asked["attn_implementation"] == "flash_attention_2"


def test_a_class_without_attention_gets_no_line_about_it(tmp_path, capsys):
    family_of("mamba2").save_pretrained(tmp_path)
    assert load_model(tmp_path, 32) and capsys.readouterr().out == ""


def test_a_class_without_sdpa_gets_what_it_has_and_a_line_says_so(tmp_path, capsys):
    model = family_of("gpt_oss")
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, 32)
    assert loaded.config._attn_implementation == "eager" and torch.equal(loaded(IDS).logits, model(IDS).logits)
    [line] = capsys.readouterr().out.splitlines()
    assert f"{type(model).__name__} computes attention by 'eager', not by 'sdpa'" in line
    assert load_model(tmp_path, 32, attn_implementation="eager") and capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="does not support an attention implementation"):
        load_model(tmp_path, 32, attn_implementation="sdpa")


def test_a_compiled_kernel_from_the_hub_is_refused(saved, no_weights):
    with pytest.raises(ValueError, match="compiled code from the hub"):
        load_model(saved, attn_implementation="kernels-community/flash-attn2")


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_experts_that_stay_in_16_bits_are_told_with_their_bytes(kind, bits, tmp_path, capsys):
    family_of(kind).save_pretrained(tmp_path)
    model = load_model(tmp_path, bits)
    size = sum(p.nbytes for p in model.parameters() if p.ndim == 3)
    assert size > weight_bytes(tmp_path, bits) / 4
    [line] = capsys.readouterr().out.splitlines()
    assert f"bits={bits} leaves the experts in 16 bits, {size:,} of {weight_bytes(tmp_path, bits):,} bytes" in line
    assert load_model(tmp_path, 16) and capsys.readouterr().out == ""


def test_a_model_without_experts_leaves_none(saved, tmp_path, capsys):
    load_model(saved, 4)
    family_of("lfm2").save_pretrained(tmp_path)  # its convolutions have three dimensions too
    load_model(tmp_path, 4)
    assert capsys.readouterr().out == ""


# devices

SEVERAL = [
    "auto",
    "balanced",
    "balanced_low_0",
    "sequential",
    {"model": 0, "lm_head": 1},
    {"model": "cuda:0", "lm_head": "cpu"},
]


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("device_map", SEVERAL)
@pytest.mark.parametrize("launcher", [{"WORLD_SIZE": "2"}, {"LOCAL_RANK": "0"}, {"WORLD_SIZE": "8", "LOCAL_RANK": "3"}])
def test_under_a_launcher_a_map_over_several_devices_is_refused(
    saved, monkeypatch, no_weights, launcher, device_map, bits
):
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="distributes one model over several cards.*leave device_map out"):
        load_model(saved, bits, device_map=device_map)


@pytest.mark.parametrize(
    "device_map", ["cpu", {"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}, torch.device("cpu"), None]
)
def test_under_a_launcher_a_map_to_one_device_is_taken(saved, monkeypatch, device_map):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert load_model(saved, device_map=device_map).device.type == "cpu"


@pytest.mark.parametrize("bits", [8, 4])
def test_a_device_that_bitsandbytes_lacks_is_refused_with_the_cure(saved, monkeypatch, no_weights, bits):
    monkeypatch.setattr(bnb, "supported_torch_devices", {"cpu", "cuda"})
    machine(monkeypatch, "mps", torch.float32, False, "sdpa", 0)
    with pytest.raises(ValueError, match=f"bits={bits}: bitsandbytes .* has no kernels for 'mps'; .*bits=16"):
        load_model(saved, bits)


# the kernel without a backward pass

IDS = torch.tensor([tiny_tokenizer()("the quick brown fox jumps over the lazy dog").input_ids])


def with_adapter(model):
    model = add_adapter(model, lora_config(model))
    for name, p in model.named_parameters():  # B away from zero, so that A gets gradient too
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.02, generator=torch.Generator().manual_seed(0))
    return model


def gradients(model, training=True):
    model.train(training).zero_grad()
    model(IDS, labels=IDS).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def look(model):
    "What an evaluation and a generation do, and code that flips modes."
    with torch.no_grad():
        model.eval()(IDS)
        model.train()(IDS)
    model.eval().generate(input_ids=IDS, max_new_tokens=3, do_sample=False, pad_token_id=0)
    with torch.inference_mode():
        model.eval()(IDS)


def reloaded(model, saved, folder, bits):
    "Its adapter written and read, onto a base that was looked at before."
    model.save_pretrained(folder)
    base = load_model(saved, bits)
    look(base)
    return PeftModel.from_pretrained(base, folder, is_trainable=True)


def pickled(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.numbers
@pytest.mark.whole
@pytest.mark.parametrize("bits, training", [(16, True), (8, True), (8, False), (4, True), (4, False)])
def test_gradients_are_the_same_before_and_after_evaluation_and_generation(saved, tmp_path, bits, training):
    model = with_adapter(load_model(saved, bits))
    before = gradients(model, training)
    assert len(before) == 28 and all(gradient.any() for gradient in before.values())
    ways = {
        "looked at": lambda: model,
        "copied": lambda: copy.deepcopy(model),
        "pickled": lambda: pickled(model),
        "adapter reloaded": lambda: reloaded(model, saved, tmp_path / "adapter", bits),
        "load_adapter": lambda: load_adapter(tmp_path / "adapter", bits, trainable=True),
    }
    for way, made in ways.items():
        found = made()
        look(found)
        after = gradients(found, training)
        assert all(torch.equal(before[name], after[name]) for name in before), way


def test_the_kernel_is_ruled_out_on_every_layer_on_a_cpu_that_has_it(saved, monkeypatch):
    monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: True)  # so that this is tested on a CPU without it
    layers = [module for module in load_model(saved, 4).modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert bnb.nn.Linear4bit(64, 64).support_avx512bf16_for_cpu
    assert [layer.support_avx512bf16_for_cpu for layer in layers] == 14 * [False]


@pytest.mark.numbers
@pytest.mark.parametrize("bits", [8, 4])
def test_saying_does_not_change_what_is_said(saved, bits):
    model = load_model(saved, bits)
    with torch.no_grad():
        before = model.eval()(IDS).logits
        look(model)
        assert torch.equal(model.eval()(IDS).logits, before)


@pytest.mark.numbers
@pytest.mark.bfloat16
def test_four_bits_are_those_of_the_checkpoint_whatever_ran_before(saved, tmp_path):
    model = load_model(saved, bits=4)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    look(model)
    after = model.state_dict()  # a packed layer would be unpacked here, and its scales rounded a second time
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


# weight_bytes, whose judge is the loaded model


def bytes_held(model):
    return sum({p.data_ptr(): p.nbytes for p in model.parameters()}.values())


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


def test_four_bit_rows_that_this_machine_misreads_are_refused(tmp_path, monkeypatch):
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=96,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        dtype="float32",
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)

    def misread(codes, state):
        return torch.full(tuple(state.shape), float(state.shape[0] > 1 and state.shape[-1] % 64 > 0))

    monkeypatch.setattr(bnb.functional, "dequantize_4bit", misread)
    with pytest.raises(ValueError, match="misreads rows of 96 weights on this machine.*take bits=8 or bits=16"):
        load_model(tmp_path, bits=4)
    assert load_model(tmp_path, bits=8).is_loaded_in_8bit


@pytest.mark.parametrize(
    "name, bits, said",
    [
        ("a/b", "4", "bits must be 4, 8, 16 or 32, got '4'"),
        ("a/b", 3, "bits must be 4, 8, 16 or 32, got 3"),
        ("./none", 16, "./none does not exist; a path must lead to a folder"),
        (tiny_model(), 16, "name must be a folder or a name on the hub, got LlamaForCausalLM; a model that is loaded"),
        (tiny_tokenizer(), 16, "name must be a folder or a name on the hub, got .*Token"),
        (None, 16, "name must be a folder or a name on the hub, got None"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_slip_is_named_with_what_was_given(name, bits, said):
    with pytest.raises(ValueError, match=said):
        load_model(name, bits)


@pytest.mark.parametrize("ends", ['[5, "x"]', '"x"', "[null]"])
def test_ends_that_are_no_token_ids_are_refused(saved, tmp_path, ends):
    shutil.copytree(saved, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(f'{{"eos_token_id": {ends}}}')
    with pytest.raises(ValueError, match="generation_config.json.*eos_token_id"):
        load_model(tmp_path / "model", 32)


NAMES = ["config", "generation_config", "tokenizer", "tokenizer_config", "adapter_config", "model.safetensors.index"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("load", [load_model, load_tokenizer, load_adapter, check_checkpoint])
def test_a_pipe_in_place_of_a_file_is_named_and_not_waited_for(saved, tmp_path, name, load):
    shutil.copytree(saved, tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "adapter_model.safetensors").touch()
    (tmp_path / "model" / f"{name}.json").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "model" / f"{name}.json")
    with at_most(20, "loading", "the pipe"), pytest.raises(ValueError, match=rf"{name}.json is a pipe|has no"):
        load(tmp_path / "model")
