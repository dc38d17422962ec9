"The command line as a person meets it: real processes, mistakes, and a kill in the middle."

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ft_notebooks.cli import SETTINGS_INI, main
from ft_notebooks.data import appointments
from ft_notebooks.models import tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[1]
FT = str(Path(sys.executable).with_name("ft"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_tokenizer().save_pretrained("tiny")
    tiny_model().save_pretrained("tiny")
    appointments(24).to_json("notes.jsonl")
    return tmp_path


def refused(capsys, *argv):
    "What `ft` said on stderr when it refused."
    with pytest.raises(SystemExit) as e:
        main(list(argv))
    assert e.value.code == 2
    return capsys.readouterr().err


def test_the_projects_settings_are_those_that_init_writes(here, capsys):
    main(["init"])
    assert (here / "settings.ini").read_text() == SETTINGS_INI == (ROOT / "settings.ini").read_text()
    assert "is there already" in refused(capsys, "init")


MESSAGES = '{"messages": [%s]}'
USER, ASSISTANT = '{"role": "user", "content": "hi"}', '{"role": "assistant", "content": "yo"}'
GOOD = MESSAGES % f"{USER}, {ASSISTANT}"


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.jsonl", f"{GOOD}\n{{oops\n", ["a.jsonl:2", "JSON"]),
        ("a.jsonl", f'{GOOD}\n{{"question": "x"}}\n', ["a.jsonl:2", "question", "instruction"]),
        ("a.jsonl", "", ["a.jsonl: no rows"]),
        ("a.jsonl", MESSAGES % f'{USER}, {{"role": "assistant"}}', ["a.jsonl:1", "content"]),
        ("a.jsonl", MESSAGES % f'{USER}, {{"role": "gpt", "content": "yo"}}', ["a.jsonl:1", "gpt", "assistant"]),
        ("a.jsonl", MESSAGES % USER, ["a.jsonl:1", "assistant"]),
        ("a.jsonl", MESSAGES % f"{USER}, {ASSISTANT}, {USER}", ["a.jsonl:1", "user"]),
        ("a.jsonl", GOOD.encode() + b"\n\xff\xfe\n", ["a.jsonl:2", "UTF-8"]),
        ("a.csv", "question,answer", ["a.csv", ".jsonl"]),
        ("a.json", f"[\n{GOOD},\n{{}}\n]", ["a.json:3"]),
    ],
)
def test_bad_data_is_refused_by_file_and_line_before_a_model_is_looked_for(here, capsys, monkeypatch, name, content, said):
    monkeypatch.setattr("ft_notebooks.cli._model_settings", lambda settings: pytest.fail("a model was looked for"))
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    text = refused(capsys, "sft", name)
    assert all(part in text for part in said) and "Traceback" not in text


@pytest.mark.parametrize("target, said", [(".", "folder"), ("nowhere.jsonl", "nowhere.jsonl")])
def test_a_folder_and_a_missing_file_are_refused(here, capsys, target, said):
    assert said in refused(capsys, "sft", target)


@pytest.mark.parametrize(
    "setting, said",
    [
        ("sft.learnin_rate=1", "did you mean 'learning_rate'?"),
        ("sft.learning_rate=fast", "'fast' is not of the type float"),
        ("data.eval=last:24", "write last:N with N from 1 to 23"),
        ("data.eval=", "data.eval is empty"),
        ("data.eval=notes.jsonl", "every row is held out"),
        ("sft.max_steps=0", "max_steps must be more than 0"),
        ("sft.eval_strategy=bogus", "[sft] bogus is not a valid"),
        ("sft.save_strategy=no", "keeps a checkpoint"),
        ("data.eval=1.5", "share must be between 0 and 1"),
        ("data.eval=nowhere.jsonl", "nowhere.jsonl"),
        ("sft.max_length=50", "would lose its end"),
        ("sft.per_device_train_batch_size=3", "not effective_batch=16"),
        ("model.name=nowhere/at/all", "there is no such folder"),
        ("lora.target_modules=q_prj", "the nearest is 'q_proj'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(here, capsys, setting, said):
    argv = ["sft", "notes.jsonl", "--set", "model.name=tiny", "--set", "sft.bf16=false", "--set", setting]
    assert said in refused(capsys, *argv)
    assert not list(Path("runs").rglob("checkpoint-*"))


def test_a_model_that_speaks_is_no_run_and_an_unfinished_run_says_so(here, capsys):
    assert "no such folder" in refused(capsys, "eval", "runs/sft", "notes.jsonl")
    Path("half").mkdir()
    Path("half/run.json").write_text('{"command": "sft"}')
    assert "has not finished" in refused(capsys, "chat", "half")
    assert "kept no rows" in refused(capsys, "eval", "tiny")


def test_chat_answers_starts_anew_and_ends(here, capsys, monkeypatch):
    lines = iter(["hi", "", "<|im_end|>", "again"])

    def typed(prompt):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    main(["chat", "tiny", "--system", "Be brief.", "--set", "evaluation.max_new_tokens=3"])
    out = capsys.readouterr().out
    assert "system: Be brief." in out and "message 2 (user) holds '<|im_end|>'" in out


def sft(run, *more):
    settings = [
        "model.name=tiny", "model.bits=32", "sft.bf16=false", "sft.max_steps=12", "sft.save_steps=2", "sft.seed=3",
        "lora.lora_dropout=0.1", "effective_batch=4",
    ]  # fmt: skip
    settings[-1] = "sft.effective_batch=4"
    command = [FT, "sft", "notes.jsonl", "--output", run]
    return command + [part for setting in settings for part in ("--set", setting)] + list(more)


def test_a_run_killed_in_the_middle_ends_with_the_weights_of_one_that_was_not(here):
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(sft("whole"), env=env, check=True, capture_output=True)
    killed = subprocess.Popen(sft("killed"), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while killed.poll() is None and not Path("killed/checkpoint-4").exists():
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not Path("killed/metrics.json").exists()
    again = subprocess.run(sft("killed"), env=env, check=True, capture_output=True, text=True)
    assert "goes on from" in again.stdout
    files = [Path(run, "adapter_model.safetensors").read_bytes() for run in ("whole", "killed")]
    assert files[0] == files[1]
    assert Path("killed/checkpoint-12/trainer_state.json").is_file()


def test_the_rows_kept_aside_are_found_again_or_refused(here, capsys):
    argv = ["--set", "model.name=tiny", "--set", "sft.bf16=false", "--set", "sft.max_steps=1", "--set", "data.eval=0.2"]
    main(["sft", "notes.jsonl", *argv])
    lines = Path("notes.jsonl").read_text().splitlines()
    Path("notes.jsonl").write_text("\n".join(lines[5:] + lines[:5]))
    assert "is no longer what runs/sft was trained with" in refused(capsys, "eval", "runs/sft")


def test_full_fine_tuning_saves_a_model_that_eval_and_plain_transformers_load(here):
    from transformers import AutoModelForCausalLM

    argv = ["--set", "model.name=tiny", "--set", "model.method=full", "--set", "sft.bf16=false", "--set", "sft.max_steps=2"]
    main(["sft", "notes.jsonl", *argv, "--set", "data.eval=0.2"])
    assert AutoModelForCausalLM.from_pretrained("runs/sft").num_parameters() == tiny_model().num_parameters()
    main(["eval", "runs/sft", "--set", "evaluation.max_new_tokens=3"])
    report = json.loads(Path("runs/sft/eval/report.json").read_text())
    assert list(report) == ["base", "sft"] and report["sft"]["perplexity"]["n"] == 5
