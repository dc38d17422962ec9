"ft serve on a run: its checked export is made once, kept, and made again when it is not of the run as it is now"

import json
import socket
from pathlib import Path

import pytest
from small_exports import on_few_texts

from ft_notebooks.checkpointing.integrity import mark_checkpoint
from ft_notebooks.cli import model_export
from ft_notebooks.cli.commands import main
from ft_notebooks.course.example_task import appointments
from ft_notebooks.inference.endpoint import _served_lines
from ft_notebooks.inference.llama_cpp import llama_server
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.whole

FILE = Path("runs/tiny/gguf-f16/model-f16.gguf")
SETTINGS = {"model.name": "tiny", "model.method": "full", "sft.max_steps": 2, "data.eval": "last:4"}


@pytest.fixture
def served(tmp_path, monkeypatch):
    "What `ft serve` would serve: files, their adapters; the working folder has a model and rows."
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("tiny")
    tiny_tokenizer().save_pretrained("tiny")
    Path("rows.jsonl").write_text("\n".join(json.dumps(row) for row in appointments(12)))
    files = []
    on_few_texts(monkeypatch)
    monkeypatch.setattr(model_export, "serve", lambda file, adapters, *where: files.append((Path(file), adapters)))
    return files


def fails(words, capsys):
    "What the command says when it ends with exit code 2."
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    return capsys.readouterr().err


def test_a_run_s_export_is_made_once_and_never_served_when_it_is_not_of_the_run(served, capsys):
    words = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    main(["sft", "rows.jsonl", "--output", "runs/tiny", *words])
    said = []
    for _ in range(2):
        capsys.readouterr()
        main(["serve", "runs/tiny"])
        said.append(f"exporting it to {FILE}" in capsys.readouterr().out)
    assert said == [True, False] and served == [(FILE.resolve(), [])] * 2
    whole = FILE.read_bytes()
    FILE.write_bytes(whole[:-1] + b"!")
    assert "is not the export of runs/tiny as it is now; remove it" in fails(["serve", "runs/tiny"], capsys)
    FILE.write_bytes(whole)
    tiny_model(seed=1).save_pretrained("runs/tiny")
    mark_checkpoint(Path("runs/tiny"), 2, [Path("runs/tiny/model.safetensors")])
    assert "is not the export of runs/tiny as it is now; remove it" in fails(["serve", "runs/tiny"], capsys)
    assert FILE.read_bytes() == whole
    assert "--adapter is for a file" in fails(["serve", "runs/tiny", "--adapter", "a.gguf"], capsys)


def test_a_plain_model_is_an_error_whose_cure_is_a_command(served, capsys):
    said = fails(["serve", "tiny"], capsys)
    command = said.partition('python -c "')[2].rpartition('"')[0]
    exec(command, {})
    with llama_server("tiny.gguf") as server:
        assert server.token_ids("hi") == tiny_tokenizer()("hi").input_ids


@pytest.mark.parametrize("where, told", [({"host": "0.0.0.0"}, "needs a key"), ({"port": "70000"}, "is not a port")])
def test_an_address_that_cannot_be_is_told_before_anything_is_exported(served, capsys, where, told):
    assert told in fails(["serve", "tiny", *(f"--{name}={value}" for name, value in where.items())], capsys)


def test_a_port_that_another_program_has_is_named_with_the_cure(served, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = fails(["serve", "tiny", f"--port={port}"], capsys)
    assert f"port {port} of 127.0.0.1 cannot be used" in said and "give another --port, 0 for a free one" in said


def test_the_address_stands_in_one_line_that_a_client_takes():
    [line] = [
        line for line in _served_lines("m.gguf", [], "http://127.0.0.1:8080", None, True).splitlines() if "/v1" in line
    ]
    assert line.split() == ["address", "http://127.0.0.1:8080/v1,", "model=m"]


def test_a_file_is_served_with_its_adapters_in_their_order(served):
    main(["serve", "base.gguf", "--adapter", "b.gguf", "--adapter", "a.gguf"])
    assert served == [(Path("base.gguf"), ["b.gguf", "a.gguf"])]
