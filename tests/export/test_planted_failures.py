"""The ways in which an export goes wrong, most of them in silence, and what finds each: the table FAILURES below.

A row plants one failure. "write": `write_gguf` or `write_lora_gguf` refuses it. "read": `file_findings` finds it in the
file. "run": `check_export` finds it, with llama.cpp. Of what is no failure the file is written, and nothing is found.
"""

import json
import random
import re
import shutil
from contextlib import ExitStack, nullcontext
from pathlib import Path
from unittest.mock import patch

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ft_notebooks.core.random_state import keep_random_state
from ft_notebooks.course.example_task import appointments
from ft_notebooks.export import check, gguf_writer
from ft_notebooks.export.check import check_export, file_findings
from ft_notebooks.export.gguf_writer import TYPES, write_gguf
from ft_notebooks.export.lora_gguf import write_lora_gguf
from ft_notebooks.export.parity import PROSE
from ft_notebooks.export.run_export import run_model
from ft_notebooks.export.token_suite import token_strings
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.lora.adapter import add_adapter, lora_config, merge_adapter

pytestmark = pytest.mark.whole

KINDS = ("tensors", "settings", "vocabulary", "eos", "bos", "template", "tokens", "parity", "score")


class Made:
    "The export of one tiny run: a plant changes a part of it, and writes the file."

    def __init__(self, run: Path, merged: Path, tmp: Path):
        self.run, self.base, self.merged, self.tmp = run, run.parent / "base", merged, tmp
        self.folder, self.file, self.type, self.model = merged, tmp / "m.gguf", "f32", None

    def own_folder(self, model=None, tok=None) -> Path:
        "A folder that may be changed: of the model, or a copy of the present one."
        before, self.folder = self.folder, self.tmp / f"folder{len([*self.tmp.iterdir()])}"
        if model is None:
            shutil.copytree(before, self.folder)
        else:
            model.save_pretrained(self.folder)
            (tok or tiny_tokenizer()).save_pretrained(self.folder)
        return self.folder

    def write(self) -> None:
        write_gguf(self.folder, self.file, self.type if self.type in TYPES else "f32")

    def findings(self, by: str, row: str) -> list[str]:
        if by == "read":
            return file_findings(self.folder, self.file, self.type)
        model, rows = self.model or run_model(self.run), appointments(4, part="validation")
        each = 1 if row[0] in "08" else 16  # of five hundred strings, where no tokenizer is wrong
        prose = PROSE if row == "0" else PROSE[:48]
        with (
            patch.object(check, "token_strings", lambda *of: token_strings(*of)[::each]),
            patch.object(check, "PROSE", prose),
        ):
            found = check_export(model, self.folder, self.file, self.type, rows, max_new_tokens=8, allow=KINDS)
        return found["allowed"]


@pytest.fixture
def made(tiny_run, tiny_merged, tmp_path):
    return Made(tiny_run, tiny_merged, tmp_path)


# The program that writes the file is wrong


def right(made):
    made.write()


def written(type="f32", **calls):
    "Replaces what the writer calls: `name=change(right)`, a method of gguf.GGUFWriter or a function of our module."

    def plant(made):
        made.type = type
        with ExitStack() as stack:
            for name, change in calls.items():
                part = gguf.GGUFWriter if name.startswith("add_") else gguf_writer
                stack.enter_context(patch.object(part, name, change(getattr(part, name))))
            made.write()

    return plant


def value(other):
    return lambda add: lambda self, _: add(self, other)


def nothing(function):
    return lambda *_: None


def not_reordered(order):
    return lambda config, key, weight: weight


def scaled_twice(method):
    def add(self, theta):
        method(self, theta)
        self.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        self.add_rope_scaling_factor(2.0)

    return add


def without_one(tensors):
    return lambda *of: (found for found in tensors(*of) if found[0] != "blk.1.ffn_up.weight")


def with_the_head(tensors):
    def found(*of):
        for name, data, raw in tensors(*of):
            yield name, data, raw
            if name == "token_embd.weight":
                yield "output.weight", data, raw

    return found


def as_text(add):
    return lambda self, types: add(self, [gguf.TokenType.NORMAL] * len(types))


def as_type(name):
    "The matrices in another type, whatever becomes of their values."

    def encoded(_):
        def encode(key, weight, type):
            raw = gguf.GGMLQuantizationType[name if weight.ndim > 1 else "F32"]
            with np.errstate(over="ignore"):
                return gguf.quants.quantize(weight, raw), raw

        return encode

    return encoded


def rope_e5(plant):
    def planted(made):
        made.own_folder(configured(rope_parameters=theta(1e5)))
        plant(made)

    return planted


def rule(name):
    "A tokenizer with SmolLM2's rule and three merges, in a file that names another rule; None: no name."

    def plant(made):
        found, tiny = json.loads(tiny_tokenizer().backend_tokenizer.to_str()), tiny_tokenizer()
        merges = [("1", "2"), ("Ċ", "Ċ"), (".", "Ċ")]  # of digits, of line breaks, of a line break after a full stop
        found["model"]["merges"] = [list(pair) for pair in merges]
        found["model"]["vocab"] |= {"".join(pair): len(tiny) + i for i, pair in enumerate(merges)}
        gpt2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        digits = {"type": "Digits", "individual_digits": True}
        found["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, gpt2]}
        own = Tokenizer.from_str(json.dumps(found))
        tok = PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<|im_end|>", pad_token="<pad>")
        tok.chat_template, made.model = tiny.chat_template, configured(vocab_size=len(tok))
        made.own_folder(made.model, tok)
        written(add_tokenizer_pre=value(name) if name else nothing)(made)

    return plant


# The disk is


def cut(made):
    made.write()
    made.file.write_bytes(made.file.read_bytes()[:-1000])


def flipped(made):
    made.write()
    start = min(tensor.data_offset for tensor in gguf.GGUFReader(made.file).tensors)
    content, draw = bytearray(made.file.read_bytes()), random.Random(0)
    for _ in range(50):
        content[draw.randrange(start, len(content))] ^= 1 << draw.randrange(8)
    made.file.write_bytes(content)


def cut_folder(made):
    file = made.own_folder() / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    made.write()


# The folder is: what merged the run, or saved the model


def edited(name, **changes):
    "Other values in a JSON file."

    def plant(made):
        file = made.own_folder() / f"{name}.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
        made.write()

    return plant


untied = edited("config", tie_word_embeddings=False)


def another_end(made):
    edited("tokenizer_config", eos_token="<|im_start|>")(made)
    edited("config", eos_token_id=1)(made)
    edited("generation_config", eos_token_id=1)(made)


def no_template(made):
    (made.own_folder() / "chat_template.jinja").unlink()
    made.write()


def weights(change, then=right):
    "Other tensors in the folder."

    def plant(made):
        file = made.own_folder() / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, {"format": "pt"})
        then(made)

    return plant


def without_norm(tensors):
    del tensors["model.norm.weight"]


def more_rows(tensors):
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.zeros(64, 64)])


def huge(tensors):
    tensors["model.embed_tokens.weight"] *= 2**20


def overflow(type, **calls):
    return weights(huge, written(type, **calls))


def another_head(tensors):
    tensors["lm_head.weight"] = -tensors["model.embed_tokens.weight"]


def the_base(made):
    write_gguf(made.base, made.file)


def the_base_and_its_folder(made):
    made.folder = made.base
    made.write()


def the_adapter(made):
    made.folder = made.run
    made.write()


def merged_in_bf16(made):
    made.own_folder(merge_adapter(run_model(made.run)).to(torch.bfloat16))
    made.write()


def of_strength(scale):
    def plant(made):
        model = run_model(made.run)
        for layer in model.modules():
            if hasattr(layer, "lora_A"):
                layer.scaling = {name: scale * value for name, value in layer.scaling.items()}
        made.own_folder(merge_adapter(model))
        made.write()

    return plant


def lora_file(**fields):
    def plant(made):
        model = load_model(made.base, 32)
        add_adapter(model, lora_config(model, init_lora_weights=False, **fields)).save_pretrained(made.tmp / "lora")
        write_lora_gguf(made.tmp / "lora", made.file)

    return plant


# The model is not a plain Llama


def configured(**fields):
    "The tiny model with other fields in its configuration."
    config = tiny_model().config
    for name, field in fields.items():
        setattr(config, name, field)
    with keep_random_state(0):
        return LlamaForCausalLM(config).eval()


def theta(base):
    return {"rope_type": "default", "rope_theta": base}


def tied(plant):
    def planted(made):
        made.model = configured(tie_word_embeddings=True)
        made.own_folder(made.model)
        plant(made)

    return planted


def own_head(plant):
    "A head in the folder that is not the embedding, where config.json says that they are one; transformers takes it."

    def reference(made):
        made.model = load_model(made.folder, 32)
        plant(made)

    return tied(weights(another_head, reference))


def padded(made):
    made.model = merge_adapter(run_model(made.run))
    made.model.resize_token_embeddings(259 + 64, mean_resizing=False)
    made.own_folder(made.model)
    made.write()


ROPES = {
    "linear": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 512},
    "llama3": dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64),
}


def rope(kind, plant):
    def planted(made):
        made.model = configured(rope_parameters=theta(1e4) | {"rope_type": kind} | ROPES[kind])
        made.own_folder(made.model)
        plant(made)

    return planted


def converted(**changes):
    "As llama.cpp's converter writes rope types: fields for linear and yarn, a tensor of factors for llama3."

    def plant(made):
        rope = made.model.config.rope_parameters | changes

        def with_fields(add):
            def add_config(writer, *of):
                add(writer, *of)
                if rope["rope_type"] != "llama3":
                    writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
                    writer.add_rope_scaling_factor(rope["factor"])
                if rope["rope_type"] == "yarn":
                    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])

            return add_config

        def with_factors(tensors):
            def found(*of):
                yield from tensors(*of)
                if rope["rope_type"] == "llama3":
                    rotary = made.model.model.rotary_emb.inv_freq
                    factors = rope["rope_theta"] ** -(torch.arange(0, 16, 2) / 16) / rotary
                    yield "rope_freqs.weight", factors.numpy(), gguf.GGMLQuantizationType.F32

            return found

        written(check_family=nothing, _add_config=with_fields, gguf_tensors=with_factors)(made)

    return plant


LLAMA2 = "{% for message in messages %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endfor %}"

# fmt: off
FAILURES = [
    # its row, what is planted, where it is found, the kinds of findings or a part of the error, how it is planted
    ("0",   "nothing",                       "run",   "",                 right),
    ("1",   "base converted, not the run",   "run",   "tensors parity",   the_base),
    ("1",   "base in the folder, too",       "run",   "parity",           the_base_and_its_folder),
    ("1b",  "adapter converted",             "write", "ft export",        the_adapter),
    ("2",   "merged in bfloat16",            "run",   "parity",           merged_in_bf16),
    ("3",   "tied head written twice",       "read",  "tensors",          tied(written(gguf_tensors=with_the_head))),
    ("3b",  "own head in a tied model",      "write", "set tie_word",     own_head(right)),
    ("3b",  "the same, untied",              "run",   "",                 own_head(untied)),
    ("3c",  "tensor lost in the file",       "read",  "tensors",          written(gguf_tensors=without_one)),
    ("3c",  "the same, run",                 "run",   "lacks.*1.ffn_up",  written(gguf_tensors=without_one)),
    ("3d",  "tensor lost in the folder",     "write", "lacks 1.*norm",    weights(without_norm)),
    ("4",   "more rows than config.json",    "write", "323 x 64.*259",    weights(more_rows)),
    ("4b",  "more rows than tokens",         "run",   "",                 padded),
    ("5",   "another end in all files",      "read",  "eos",              another_end),
    ("6",   "no template in the file",       "read",  "template",         written(add_chat_template=nothing)),
    ("6",   "no template in the folder",     "write", "no chat template", no_template),
    ("6b",  "another template",              "run",   "template",         written(add_chat_template=value(LLAMA2))),
    ("7",   "rope theta in the file",        "read",  "settings",         written(add_rope_freq_base=value(1e3))),
    ("7",   "rope theta in the folder",      "run",   "parity",           edited("config", rope_parameters=theta(1e3))),
    ("7",   "rope theta lost",               "read",  "settings",         rope_e5(written(add_rope_freq_base=nothing))),
    ("7b",  "rope scaling where none is",    "read",  "settings",         written(add_rope_freq_base=scaled_twice)),
    ("7b",  "rope scaling, other factor",    "read",  "settings",         rope("linear", converted(factor=4.0))),
    ("7b",  "rope scaling lost",             "read",  "settings",         rope("yarn", written(check_family=nothing))),
    ("7c",  "rope linear",                   "write", "give --converter", rope("linear", right)),
    ("7c",  "rope yarn",                     "write", "give --converter", rope("yarn", right)),
    ("7c",  "rope llama3",                   "write", "give --converter", rope("llama3", right)),
    ("7c",  "rope linear by a converter",    "run",   "",                 rope("linear", converted())),
    ("7c",  "rope yarn by a converter",      "run",   "",                 rope("yarn", converted())),
    ("7c",  "rope llama3 by a converter",    "run",   "",                 rope("llama3", converted())),
    ("8",   "the tokenizer's rule",          "run",   "",                 rule("smollm")),
    ("8",   "rule default",                  "run",   "tokens",           rule("default")),
    ("8",   "no rule",                       "run",   "tokens",           rule(None)),
    ("8b",  "rule qwen2",                    "run",   "tokens",           rule("qwen2")),
    ("8c",  "special tokens typed as text",  "run",   "tokens",           written(add_token_types=as_text)),
    ("8d",  "BOS doubled",                   "read",  "bos",              written(add_add_bos_token=value(True))),
    ("9",   "overflow in float16",           "write", "choose bf16",      overflow("f16")),
    ("9",   "overflow by a converter",       "read",  "choose bf16",      overflow("f16", _encoded=as_type("F16"))),
    ("9",   "overflow, then quantized",      "read",  "tensors",          overflow("q6_k", _encoded=as_type("F16"))),
    ("10",  "four bits",                     "run",   "parity",           written("q4_0", _encoded=as_type("Q4_0"))),
    ("11",  "folder cut short",              "write", "cut short",        cut_folder),
    ("11b", "file cut short",                "read",  "cut short",        cut),
    ("11c", "50 bits flipped",               "read",  "tensors",          flipped),
    ("12",  "LoRA at half strength",         "run",   "parity",           of_strength(0.5)),
    ("12",  "LoRA at double strength",       "run",   "parity",           of_strength(2.0)),
    ("12b", "rsLoRA as a GGUF adapter",      "write", "rslora.*merge it", lora_file(use_rslora=True)),
    ("12b", "DoRA as a GGUF adapter",        "write", "dora.*merge it",   lora_file(use_dora=True)),
    ("13",  "RMS epsilon",                   "read",  "settings",         written(add_layer_norm_rms_eps=value(1e-5))),
    ("14",  "queries, keys not reordered",   "run",   "tensors parity",   written(llama_cpp_order=not_reordered)),
]
# fmt: on


@pytest.mark.parametrize(("row", "planted", "by", "expected", "plant"), FAILURES)
def test_what_is_planted_is_found_and_what_is_right_is_not(made, row, planted, by, expected, plant):
    is_error = not {*expected.split()} <= {*KINDS}
    with pytest.raises(ValueError) if is_error else nullcontext() as error:
        plant(made)
        assert by != "write", "nothing was refused"
        findings = made.findings(by, row)
    if is_error:
        assert re.search(expected, str(error.value), re.DOTALL), error.value
        assert made.file.exists() == (by != "write")
    else:
        assert " ".join(dict.fromkeys(finding.split(":")[0] for finding in findings)) == expected, findings


def test_every_row_of_the_list_is_planted():
    letters = {1: " b", 3: " bcd", 4: " b", 6: " b", 7: " bc", 8: " bcd", 11: " bc", 12: " b"}
    rows = [f"{number}{letter}".strip() for number in range(1, 15) for letter in letters.get(number, " ")]
    assert list(dict.fromkeys(row for row, *_ in FAILURES)) == ["0", *rows]
