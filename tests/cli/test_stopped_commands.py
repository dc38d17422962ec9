"Commands that a signal ends while they write: what they say, what stays, and what the next command removes."

import os
import re
import signal
import sys
from pathlib import Path

import pytest
from small_runs import forked

from ft_notebooks.cli import commands
from ft_notebooks.core import files
from ft_notebooks.core.files import atomic_path
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.lora.adapter import add_adapter, lora_config

pytestmark = pytest.mark.whole

MOMENTS = {  # where the command is when the signal comes: the function that it is about to call
    "loading": "ft_notebooks.lora.merging.load_adapter",
    "weights are written": "shutil.copymode",
    "checking": "ft_notebooks.lora.merging.check_merged",
    "renaming": "os.replace",
}


@pytest.fixture
def run(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "base")
    add_adapter(load_model(tmp_path / "base", 32), lora_config(model)).save_pretrained(tmp_path / "run")
    tiny_tokenizer().save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def merged(run, number=None, moment=None, patch=None):
    "The exit code and stderr of `ft merge`, which sends itself the signal at the moment."
    said = run.parent / "said"

    def child():
        sys.stdout = sys.stderr = said.open("w")
        if moment:
            holder, _, name = moment.rpartition(".")
            holder = __import__(holder, fromlist=["x"])
            goes_on = getattr(holder, name)

            def strikes(*args, **kwargs):
                os.kill(os.getpid(), number)
                return goes_on(*args, **kwargs)

            setattr(holder, name, strikes)
        code = 0
        try:
            commands.main(["merge", str(run), "--set", "model.bits=32"])
        except SystemExit as e:
            code = e.code
        sys.stderr.flush()
        os._exit(code)

    return forked(child), said.read_text()


def hidden(run):
    return sorted(p.name for p in run.iterdir() if p.name[0] == ".")


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_sigterm_ends_a_merge_with_a_line_and_leaves_nothing(run, moment):
    before = sorted(run.iterdir())
    code, said = merged(run, signal.SIGTERM, moment)
    assert code == 143
    assert said.splitlines()[-1] == f"ft merge: stopped by SIGTERM; nothing was written to {run / 'merged'}"
    assert "Traceback" not in said and sorted(run.iterdir()) == before


def test_what_a_killed_merge_leaves_is_removed_by_the_next(run):
    assert merged(run, signal.SIGKILL, MOMENTS["weights are written"])[0] == -signal.SIGKILL
    [left] = hidden(run)
    assert re.fullmatch(r"\.merged\.[0-9a-f]{8}\.\d+", left) and (run / left / "model.safetensors").is_file()
    assert merged(run)[0] == 0
    assert not hidden(run) and (run / "merged" / "model.safetensors").is_file()


@pytest.mark.parametrize("command", ["eval", "export", "serve", "chat"])
def test_sigterm_ends_other_commands_with_143(monkeypatch, capsys, command):
    monkeypatch.setattr(commands, "_function", lambda args: lambda args: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        commands.main([command, "run"])
    assert end.value.code == 143 and signal.getsignal(signal.SIGTERM) is before
    more = "" if command in ("chat", "serve") else "; the same command continues from what is saved, or begins again"
    assert capsys.readouterr().err.splitlines()[-1] == f"ft {command}: stopped by SIGTERM{more}"


def test_a_second_sigterm_does_not_end_the_removal(tmp_path, monkeypatch):
    def call(args):
        with atomic_path(tmp_path / "folder") as part:
            part.mkdir()
            os.kill(os.getpid(), signal.SIGTERM)

    remove = files._remove
    monkeypatch.setattr(files, "_remove", lambda part: (os.kill(os.getpid(), signal.SIGTERM), remove(part))
                        if part.exists() else None)  # fmt: skip
    monkeypatch.setattr(commands, "_function", lambda args: call)
    with pytest.raises(SystemExit) as end:
        commands.main(["merge", "run"])
    assert end.value.code == 143 and not [*tmp_path.iterdir()]


def test_only_what_a_process_of_this_machine_left_that_is_gone_is_removed(tmp_path):
    here, gone = files._here(), 2**22 + 1  # above the highest process id of Linux
    stays = [f".a.{here}.{os.getppid()}", f".a.{here}.1", f".a.00000000.{gone}", f".a.{gone}", f".a.{here}.x", "a"]
    goes = [f".a.{here}.{gone}", f".other.name.{here}.{gone}", f".a.{here}.{os.getpid()}"]
    for name in stays + goes:
        (tmp_path / name).write_text("x")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    (tmp_path / f".link.{here}.{gone}").symlink_to(outside)
    with atomic_path(tmp_path / "a") as part:
        part.write_text("new")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*stays, "outside"])
    assert (outside / "file").exists() and Path(tmp_path / "a").read_text() == "new"


def test_a_container_with_the_same_host_name_is_another_machine(monkeypatch):
    here = files._here()
    monkeypatch.setattr(os, "readlink", lambda path: "pid:[1]")
    assert files._here() != here
