"`ft` where stdout, stderr and stdin are not UTF-8: no character ends a command, and no file depends on the locale."

import codecs
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ft_notebooks.cli import model_choice
from ft_notebooks.cli.commands import main
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[1]
ASCII = {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}  # the locale of a cron job or container
ANSWER = "naïve – 漢字 ✓"

COMMANDS = """
import os
import sys
from ft_notebooks.cli.commands import main

quick = [x for s in {settings} for x in ("--set", s)]
assert sys.stdout.encoding != "utf-8"
for name, argv in {{
    "sft": ["sft", os.fsdecode("chats-é.jsonl".encode()), *quick]
    + ["--set", "sft.max_steps=1", "--set", "sft.effective_batch=4"],
    "eval": ["eval", "runs/sft", "--set", "evaluation.max_new_tokens=3"],
    "dpo": ["dpo", "pairs.jsonl", *quick, "--set", "dpo.max_steps=1", "--set", "dpo.effective_batch=4"],
    "chat": ["chat", "runs/sft", "--set", "evaluation.max_new_tokens=3"],
}}.items():
    print("==" + name, flush=True)
    main(argv)
"""


def run(command, folder, **given):
    environment = {**{k: v for k, v in os.environ.items() if k != "PYTHONIOENCODING"}, **ASCII, **given.pop("env", {})}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, **given)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    "What each command said on a tiny model, with data that are not ASCII, and the folder."
    folder = tmp_path_factory.mktemp("ascii")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    tiny_model().save_pretrained(folder / "tiny")
    system, asked = {"role": "system", "content": "Réponds en français."}, {"role": "user", "content": "Où es-tu ?"}
    answers = [{"role": "assistant", "content": f"{ANSWER} {i * i * 37}"} for i in range(24)]
    users = [{**asked, "content": f"{asked['content']} {'abcdefghijklmnopqrstuvwxyz'[i] * 9}"} for i in range(24)]
    chats = [{"messages": [system, user, answer]} for user, answer in zip(users, answers)]
    pairs = [
        {"prompt": [system, user], "chosen": [a], "rejected": [{**a, "content": "–"}]}
        for user, a in zip(users, answers)
    ]
    for name, rows in {"chats-é": chats, "pairs": pairs}.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    settings = ["model.name=tiny", "model.bits=32", "data.eval=last:4", "sft.bf16=false", "dpo.bf16=false"]
    script = folder / "script.py"
    script.write_text(COMMANDS.format(settings=settings), encoding="utf-8")
    typed = "déjà vu ?\n".encode() + b"\xff\xfe\n"  # the second is no text in any encoding
    done = run([sys.executable, script.name], folder, input=typed, timeout=500)
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-4000:])
    parts = done.stdout.decode("ascii").split("==")[1:]
    return {part.partition("\n")[0]: part for part in parts}, folder


def test_help_is_shown(tmp_path):
    for words in (["--help"], ["sft", "--help"]):
        done = run([sys.executable, "-m", "ft_notebooks.cli", *words], tmp_path, env={"PYTHONPATH": str(ROOT)})
        assert done.returncode == 0 and b"usage: ft" in done.stdout and not done.stderr


def test_what_the_encoding_has_no_character_for_is_shown_as_an_escape(ran):
    said, _ = ran
    assert "\\xabna\\xefve \\u2013 \\u6f22" in said["sft"] and "The run is in runs/sft" in said["sft"]
    assert "\\xabna\\xefve" in said["dpo"] and "The run is in runs/dpo" in said["dpo"]
    assert "report" in said["eval"]


def test_a_new_process_chooses_its_threads_and_says_how_many_and_why(ran):
    said, _ = ran
    assert re.search(r"^1 thread \(\d+ CPUs?, OMP_NUM_THREADS=1\)$", said["sft"], flags=re.M)


def test_what_is_typed_is_read_as_utf_8(ran):
    said, _ = ran
    assert "system: R\\xe9ponds en fran\\xe7ais." in said["chat"]
    assert said["chat"].count("> ") == 3 and "codec" not in said["chat"] and "surrogates" not in said["chat"]


def test_the_files_are_utf_8(ran):
    _, folder = ran
    checked = [
        p for p in (folder / "runs").rglob("*") if p.suffix in (".json", ".jsonl", ".md", ".html", ".jinja", ".ini")
    ]
    texts = {p: p.read_text(encoding="utf-8") for p in checked}
    assert len(checked) > 20
    for kind in ("md", "html"):
        assert any(ANSWER in text for p, text in texts.items() if p.name == f"report.{kind}"), kind


def test_a_question_is_the_same_in_every_locale(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(model_choice, "known_run", lambda run: (run, {"model.bits": 32}))
    monkeypatch.setattr(model_choice, "load_folder", lambda folder, bits: None)
    monkeypatch.setattr("ft_notebooks.cli.model_choice.load_tokenizer", lambda folder: None)
    monkeypatch.setattr(model_choice, "_answer", lambda model, tok, messages, n: asked.append(messages) or messages)
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


@pytest.mark.parametrize("name, stream, raw", streams())
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
