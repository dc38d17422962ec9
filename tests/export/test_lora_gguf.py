"Adapters that a GGUF adapter cannot hold, and those that look odd and can be written"

import json
import math

import gguf
import pytest
import torch
from peft import IA3Config, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GemmaConfig, GemmaForCausalLM

from ft_notebooks.core.fingerprints import weights_fingerprint
from ft_notebooks.export.lora_gguf import write_lora_gguf
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.lora.adapter import add_adapter, lora_config

pytestmark = pytest.mark.whole


@pytest.fixture
def base(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapter(base, **fields):
    model = load_model(base, 32)
    run = base.parent / "run"
    add_adapter(model, lora_config(model, r=4, init_lora_weights=False, **fields)).save_pretrained(run)
    return run


def edited(run, **changes):
    file = run / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def manifest(run, base, dtype="float32", **quantised):
    "As a run writes it, for the weights that the base has now."
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_model(base, 32), str(run))
    found = {"model.dtypes": [dtype], **weights_fingerprint(model)}
    if quantised:
        found["model.config.quantization_config"] = quantised
    (run / "manifest.json").write_text(json.dumps({"run": found, "recorded": {}}))


@pytest.mark.parametrize(
    "fields",
    [
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [5, 6]},
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"q_proj": 1}},
        {"bias": "lora_only"},
        {"target_parameters": ["q_proj.weight"], "target_modules": ["v_proj"]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_the_format_cannot_hold_is_an_error_that_names_it(base, fields):
    run = adapter(base, **fields)
    with pytest.raises(ValueError, match=f"{next(iter(fields))}=.*merge it into its base instead: ft (export|merge)"):
        write_lora_gguf(run, run / "lora.gguf")
    assert not [*run.glob("*.gguf*"), *run.glob(".*gguf*")]


def test_an_adapter_of_another_kind_is_an_error(base):
    model = load_model(base, 32)
    config = IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(base.parent / "ia3")
    with pytest.raises(ValueError, match="is a IA3 adapter"):
        write_lora_gguf(base.parent / "ia3", base.parent / "lora.gguf")


def test_a_folder_without_an_adapter_is_an_error(base):
    for folder in (base, base.parent / "nothing"):
        with pytest.raises(ValueError, match="has no adapter_config.json"):
            write_lora_gguf(folder, base.parent / "lora.gguf")


def test_a_base_whose_weights_have_changed_since_training_is_an_error(base):
    run = adapter(base)
    manifest(run, base)
    write_lora_gguf(run, run / "lora.gguf")
    tiny_model(seed=1).save_pretrained(base)
    with pytest.raises(ValueError, match="has changed since training: its weights have the fingerprint"):
        write_lora_gguf(run, run / "again.gguf")
    assert not (run / "again.gguf").exists()


def test_an_adapter_of_a_quantised_base_is_an_error_before_the_base_is_loaded(base):
    run = adapter(base)
    manifest(run, base, load_in_4bit=True)
    with pytest.raises(ValueError, match="on a base in 4 bits"):
        write_lora_gguf(run, run / "lora.gguf")


def test_a_base_that_the_manifest_knows_in_a_type_of_another_machine_is_not_compared(base):
    run = adapter(base)
    manifest(run, base, dtype="float16")
    tiny_model(seed=1).save_pretrained(base)
    write_lora_gguf(run, run / "lora.gguf")


def test_a_family_that_is_not_covered_is_an_error(tmp_path):
    config = GemmaConfig(
        vocab_size=259, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, pad_token_id=0, eos_token_id=2, bos_token_id=None,
    )  # fmt: skip
    GemmaForCausalLM(config).save_pretrained(tmp_path / "gemma")
    run = adapter(tmp_path / "gemma")
    with pytest.raises(ValueError, match="gemma is not one of llama, qwen2, qwen3"):
        write_lora_gguf(run, run / "lora.gguf")


def test_weights_that_are_not_finite_are_an_error_and_leave_the_old_file(base):
    run = adapter(base)
    write_lora_gguf(run, run / "lora.gguf")
    before = (run / "lora.gguf").read_bytes()
    tensors = load_file(run / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = math.nan
    save_file(tensors, run / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="is not finite, so the training has failed"):
        write_lora_gguf(run, run / "lora.gguf")
    assert (run / "lora.gguf").read_bytes() == before


def test_some_layers_alone_and_16_bits_are_written_in_float32(base):
    run = adapter(base, layers_to_transform=[1], target_modules=["v_proj"])
    tensors = load_file(run / "adapter_model.safetensors")
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(half, run / "adapter_model.safetensors", {"format": "pt"})
    write_lora_gguf(run, run / "lora.gguf")
    found = {t.name: torch.tensor(t.data) for t in gguf.GGUFReader(run / "lora.gguf").tensors}
    assert {*found} == {"blk.1.attn_v.weight.lora_a", "blk.1.attn_v.weight.lora_b"}
    [b] = [tensor for name, tensor in half.items() if "lora_B" in name]
    assert torch.equal(found["blk.1.attn_v.weight.lora_b"], b.float())


def test_a_field_of_a_later_peft_is_an_error_unless_it_is_off(base):
    run = adapter(base)
    edited(run, use_later_lora=False, later_config=None)
    write_lora_gguf(run, run / "lora.gguf")
    edited(run, use_later_lora=True)
    with pytest.raises(ValueError, match="use_later_lora=True, which a GGUF adapter cannot hold"):
        write_lora_gguf(run, run / "again.gguf")
