"What a new user meets in the first hour: words at once, whole commands, and no traceback, whatever happens."

import json
import logging
import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from small_runs import forked

import ft_notebooks.runs.pipeline
from ft_notebooks.cli.arguments import parser
from ft_notebooks.cli.commands import main
from ft_notebooks.course.example_task import appointments
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.whole

QUICK = [
    part
    for setting in ("model.name=tiny", "model.bits=32", "sft.bf16=false", "sft.max_steps=2", "sft.save_steps=1")
    for part in ("--set", setting)
]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    tiny_model().save_pretrained(folder / "tiny")
    appointments(24).to_json(folder / "my notes.jsonl")
    return folder


@pytest.fixture
def here(start, tmp_path, monkeypatch):
    shutil.copytree(start, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def failed(*argv):
    with pytest.raises(SystemExit) as e:
        main([*argv])
    return e.value.code


def test_a_run_whose_reader_has_gone_trains_to_its_end(here):
    def unread():
        for number in (1, 2):
            reading, writing = os.pipe()
            os.close(reading)
            os.dup2(writing, number)
        sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
        sys.stderr = sys.__stderr__ = os.fdopen(2, "w", closefd=False)
        main(["sft", "my notes.jsonl", *QUICK])

    forked(unread)
    assert Path("runs/sft/metrics.json").is_file()


def test_the_plan_is_printed_before_step_1_and_kept_beside_the_identity_of_the_run(here, capsys):
    main(["sft", "my notes.jsonl", "--output", "runs/it's one", *QUICK, "--set", "sft.effective_batch=12"])
    out, err = capsys.readouterr()
    lines = [*out.splitlines()]
    assert "plan: 24 rows × 1 epoch = 2 steps of 12 (micro-batch 12 × 1), learning rate 5e-4, LoRA r=16" in lines
    assert json.loads(Path("runs/it's one/metrics.json").read_text())["plan"]["learning_rate"] == 5e-4
    assert not [key for key in json.loads(Path("runs/it's one/run.json").read_text()) if "plan" in key]
    said = [line for line in err.splitlines() if line.endswith(" ...")]
    assert said[0] == "ft sft: loading the libraries ..." and "training ..." in said and "saving the model ..." in said
    for command in lines[-1].partition("Next: ")[2].split(", or "):
        words = shlex.split(command.removesuffix(" DATA"))
        assert parser().parse_args(words[1:]).run == "runs/it's one"


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_an_unexpected_error_is_one_line_and_its_traceback_stays_with_the_run(here, capsys, monkeypatch, error):
    class Broken(ft_notebooks.runs.pipeline.PlanCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise error("shapes\ndiffer")

    with monkeypatch.context() as patched:
        patched.setattr(ft_notebooks.runs.pipeline, "PlanCallback", Broken)
        assert failed("sft", "my notes.jsonl", *QUICK, "--quiet") == 1
    *bar, said = capsys.readouterr().err.splitlines()
    assert "traceback is in runs/sft/traceback.txt" in said and all("step/s]" in line for line in bar)
    assert "on_step_end" in Path("runs/sft/traceback.txt").read_text()
    if error is RuntimeError:
        main(["sft", "my notes.jsonl", *QUICK, "--quiet"])  # the file is in nobody's way
        assert Path("runs/sft/metrics.json").is_file()


def test_a_process_of_several_keeps_a_traceback_of_its_own(here, monkeypatch):
    from ft_notebooks.cli.guards import unexpected

    Path("run.json").write_text("{}")
    monkeypatch.setenv("RANK", "3")
    assert "is in traceback-3.txt;" in unexpected(RuntimeError("x"), ".") and Path("traceback-3.txt").is_file()


def test_errors_advise_a_command_to_paste(here, capsys):
    Path("one.jsonl").write_text(Path("my notes.jsonl").read_text().splitlines(keepends=True)[0] * 3)
    assert failed("sft", "one.jsonl", *QUICK, "--set", "data.eval=0.5") == 2
    command = capsys.readouterr().err.rpartition(": ft ")[2].strip()
    args = parser().parse_args(shlex.split(command))
    assert args.data == "one.jsonl" and "data.eval=none" in args.set and "data.eval=0.5" not in args.set
    assert "model.name=tiny" in args.set


def test_the_doctor_says_what_it_does_and_gives_its_cures_as_commands(here, capsys):
    settings = [*QUICK[:6], "--set", "sft.weight_decay=100"]
    assert failed("doctor", "my notes.jsonl", "--quick", *settings) == 1
    out, err = capsys.readouterr()
    lines = [line.strip() for line in out.splitlines()]
    commands = [line for line in lines if line.startswith("ft sft ")]
    assert f"{shlex.join(['ft', 'sft', 'my notes.jsonl', *QUICK[:6]])}" in commands  # without the weight decay
    assert any(line.endswith(" --set data.eval=0.1") for line in commands)
    assert all(parser().parse_args(shlex.split(line)[1:]) for line in commands)
    assert "reading the rows ..." in err and "checking 24 rows ..." in err and "looking" not in err


def test_the_doctor_with_json_writes_one_object_to_stdout_and_nothing_else(here, capsys):
    failed("doctor", "my notes.jsonl", "--quick", "--json", *QUICK[:6], "--set", "sft.weight_decay=100")
    assert json.loads(capsys.readouterr().out)["findings"]


def test_the_doctor_knows_the_plan(here, capsys):
    failed("doctor", "my notes.jsonl", *QUICK[:6], "--set", "data.eval=0.2")  # the weights are random
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("plan: ")]
    assert "steps of 16, learning rate 5e-4, LoRA r=16, less than a minute" in line


def test_ft_alone_shows_the_first_commands(capsys):
    assert failed() == 2
    out, err = capsys.readouterr()
    assert "ft doctor DATA" in out and "ft sft DATA" in out and not err


def test_one_message_of_bitsandbytes_is_not_shown_and_others_are():
    kept = logging.getLogger("bitsandbytes.backends.cpu.ops").filter
    message = "Failed to load CPU gemm_4bit_forward from kernels-community: %s."
    assert not kept(logging.makeLogRecord({"msg": message})) and kept(logging.makeLogRecord({"msg": "other"}))
