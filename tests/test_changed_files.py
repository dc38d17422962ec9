"A finished run whose files have changed since it was saved: every way to load it is an error that names the file."

import json
import re
import shutil

import pytest

from ft_notebooks.checkpointing.integrity import mark_checkpoint
from ft_notebooks.cli.commands import main
from ft_notebooks.export.run_export import run_model
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.lora.adapter import add_adapter, load_adapter, lora_config
from ft_notebooks.lora.merging import merge_folder
from ft_notebooks.rlhf.reward_model import load_reward_model
from ft_notebooks.tokenization.padding import load_tokenizer

pytestmark = pytest.mark.whole

ASK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
PAIR = {"prompt": "hi", "chosen": "yes", "rejected": "no"}


def finished(folder, base, command="sft"):
    "A finished run in a folder that holds its model and tokenizer."
    tiny_tokenizer().save_pretrained(folder)
    mark_checkpoint(folder, 3)
    (folder / "run.json").write_text(json.dumps({"command": command, "model.name": str(base), "model.bits": 32}))
    (folder / "metrics.json").write_text(json.dumps({"data": {}, "system": None, "history": []}))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "An adapter's run, a full run and a reward model's run, and files with rows."
    folder = tmp_path_factory.mktemp("whole")
    tiny_model().save_pretrained(folder / "base")
    add_adapter(load_model(folder / "base", 32), lora_config(tiny_model())).save_pretrained(folder / "adapter")
    tiny_model().save_pretrained(folder / "full")
    tok = tiny_tokenizer()
    tok.save_pretrained(folder / "base")
    load_reward_model(folder / "base", tok, seed=0).save_pretrained(folder / "reward")
    for name, command in (("adapter", "sft"), ("full", "sft"), ("reward", "reward")):
        finished(folder / name, folder / "base", command)
    (folder / "rows.jsonl").write_text(f"{json.dumps({'messages': ASK})}\n" * 3)
    (folder / "pairs.jsonl").write_text("".join(json.dumps({**PAIR, "prompt": text}) + "\n" for text in "abcdefgh"))
    return folder


@pytest.fixture
def runs(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def flip(file):
    "Flips one bit of one byte in the middle of the file."
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


TOK = tiny_tokenizer()
LOADERS = {
    "load_adapter": (load_adapter, "adapter"),
    "load_adapter to train": (lambda run: load_adapter(run, trainable=True), "adapter"),
    "merge_folder": (merge_folder, "adapter"),
    "export": (run_model, "adapter"),
    "load_model": (load_model, "full"),
    "export of a full run": (run_model, "full"),
    "load_reward_model": (lambda run: load_reward_model(run, TOK), "reward"),
}


@pytest.mark.parametrize(("load", "name"), LOADERS.values(), ids=LOADERS)
def test_a_flipped_bit_in_the_weights_is_an_error_of_each_way_to_load(runs, load, name):
    load(runs / name)
    [file] = (runs / name).glob("*model.safetensors")
    flip(file)
    shutil.rmtree(runs / name / "merged", ignore_errors=True)
    with pytest.raises(
        ValueError, match=rf"{name}: {file.name} has changed .*SHA-256 [0-9a-f]{{12}}, was [0-9a-f]{{12}}"
    ):
        load(runs / name)


COMMANDS = {
    "eval": ["eval", "runs/adapter", "runs/rows.jsonl"],
    "eval of a full run": ["eval", "runs/full", "runs/rows.jsonl"],
    "merge": ["merge", "runs/adapter"],
    "chat": ["chat", "runs/adapter"],
    "serve": ["serve", "runs/adapter", "--port", "0"],
    "sft": ["sft", "runs/rows.jsonl", "--set", "model.name=runs/adapter", "--set", "data.eval=none"],
    "dpo": ["dpo", "runs/pairs.jsonl", "--set", "model.name=runs/adapter", "--set", "data.eval=none"],
    "reward": ["reward", "runs/pairs.jsonl", "--set", "model.name=runs/adapter", "--set", "data.eval=none"],
    "a reward": ["grpo", "runs/pairs.jsonl", "--reward", "runs/reward", "--set", "model.name=runs/base",
                 "--set", "data.eval=none"],
}  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_flipped_bit_in_the_weights_ends_each_command(runs, capsys, words):
    for file in runs.glob("*/*model.safetensors"):
        if file.parent.name != "base":
            flip(file)
    with pytest.raises(SystemExit) as end:
        main(words)
    *phases, said = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and all(line.endswith(" ...") for line in phases)
    assert re.search(r"model.safetensors has changed since it was saved \(SHA-256 ", said)


def test_the_doctor_finds_it(runs, capsys):
    flip(runs / "adapter" / "adapter_model.safetensors")
    with pytest.raises(SystemExit):
        main(["doctor", "runs/rows.jsonl", "--set", "model.name=runs/adapter", "--set", "data.eval=none"])
    assert "adapter_model.safetensors has changed since" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "adapter_config.json"]
)
def test_tokenizer_template_and_config_count_too(runs, name):
    file = runs / "adapter" / name
    text = file.read_text()
    file.write_text(text.replace("<|im_start|>", "<|im_begin|>").replace('"lora_alpha": 32', '"lora_alpha": 64'))
    assert file.read_text() != text or name == "tokenizer_config.json"
    if name == "tokenizer_config.json":
        file.write_text(text + " ")
    with pytest.raises(ValueError, match=f"{name} has "):
        load_adapter(runs / "adapter")
    if name != "adapter_config.json":
        with pytest.raises(ValueError, match=f"{name} has "):
            load_tokenizer(runs / "adapter")
    file.unlink()
    with pytest.raises(ValueError, match=f"{name}"):
        load_adapter(runs / "adapter")


def test_what_a_user_may_edit_does_not_count(runs):
    (runs / "full" / "generation_config.json").write_text("{}")
    (runs / "adapter" / "README.md").write_text("# My model")
    (runs / "adapter" / "notes.txt").touch()
    assert load_model(runs / "full") and load_adapter(runs / "adapter") and load_tokenizer(runs / "adapter")


def test_the_error_names_the_newest_checkpoint_that_is_whole(runs):
    run = runs / "adapter"
    for step in (2, 4, 10):
        shutil.copytree(runs.parent / "runs" / "adapter", runs.parent / "copy", dirs_exist_ok=True)
        (runs.parent / "copy").rename(run / f"checkpoint-{step}")
        shutil.rmtree(run / f"checkpoint-{step}" / "checkpoint-2", ignore_errors=True)
    flip(run / "checkpoint-10" / "adapter_model.safetensors")
    flip(run / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="; use .*adapter/checkpoint-4, which is as it was saved"):
        load_adapter(run)
    assert load_adapter(run / "checkpoint-4")


def test_a_folder_without_a_marker_is_loaded_as_it_is(runs):
    flip(runs / "adapter" / "adapter_model.safetensors")
    (runs / "adapter" / "complete.json").unlink()
    assert load_adapter(runs / "adapter")
