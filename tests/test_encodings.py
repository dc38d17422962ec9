"""`ft` where stdout, stderr and stdin are not UTF-8: no character ends a command, and no file depends on the locale.

What a whole command does there is in test_another_process.py, whose process has the locale C.
"""

import codecs
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ft_notebooks.cli import chat_and_merge
from ft_notebooks.cli.commands import main

pytestmark = pytest.mark.whole

ROOT = Path(__file__).resolve().parents[1]
ASCII = {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}  # the locale of a cron job or container


def run(command, folder, **given):
    environment = {**{k: v for k, v in os.environ.items() if k != "PYTHONIOENCODING"}, **ASCII, **given.pop("env", {})}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, **given)


def test_help_is_shown(tmp_path):
    for words in (["-m", "ft_notebooks.cli", "--help"], [Path(sys.executable).with_name("ft"), "sft", "--help"]):
        done = run([sys.executable, *words], tmp_path, env={"PYTHONPATH": str(ROOT)})
        assert done.returncode == 0 and b"usage: ft" in done.stdout and not done.stderr


def test_a_question_is_the_same_in_every_locale(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(chat_and_merge, "answering_run", lambda run: (run, {"model.bits": 32}))
    monkeypatch.setattr(chat_and_merge, "load_folder", lambda folder, bits: None)
    monkeypatch.setattr("ft_notebooks.cli.chat_and_merge.load_tokenizer", lambda folder: None)
    monkeypatch.setattr(chat_and_merge, "_answer", lambda model, tok, messages, *_: asked.append(messages) or messages)
    typed = {"ascii": "é\n".encode(), "utf-8": "é\n".encode(), "latin-1": b"\xe9\n"}
    for encoding, text in typed.items():
        for errors in ("strict", "surrogateescape"):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), encoding=encoding, errors=errors))
            main(["chat", "runs/sft", "--system", os.fsdecode("é".encode())])
    escaped = "é".encode().decode("ascii", "surrogateescape")  # as Python reads an argument in the locale C
    monkeypatch.setattr(sys, "stdin", io.StringIO("é\n"))
    main(["chat", "runs/sft", "--system", escaped])
    assert len(asked) == 7 and all([m["content"] for m in messages] == ["é", "é"] for messages in asked)


def streams():
    raw = io.BytesIO()
    yield "text", io.TextIOWrapper(raw, encoding="ascii", errors="strict"), raw
    raw = io.BytesIO()
    yield "codec", codecs.getwriter("ascii")(raw), raw
    raw = io.BytesIO()
    yield "chosen", io.TextIOWrapper(raw, encoding="ascii", errors="replace"), raw


@pytest.mark.parametrize("name, stream, raw", list(streams()))
def test_any_stream_takes_what_is_said_and_an_error_handler_that_was_chosen_stays(
    name, stream, raw, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    with pytest.raises(SystemExit):
        main(["sft", "«.jsonl"])
    stream.flush()
    assert (b"?.jsonl" if name == "chosen" else b"\\xab.jsonl") in raw.getvalue()


def test_a_process_without_streams_can_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    main(["init"])
    assert Path("settings.ini").is_file()


def test_no_text_file_of_the_package_depends_on_the_locale():
    words = ["ruff", "check", "--isolated", "--preview", "--select", "PLW1514", "ft_notebooks"]
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
