"Paths that hold no file, and folders that hold files of others: each is named, and nothing is opened or replaced."

import json
import os
import re
import socket
from pathlib import Path

import pytest

from ft_notebooks.cli.arguments import parser
from ft_notebooks.cli.commands import main
from ft_notebooks.evaluation.report import report_card
from ft_notebooks.evaluation.runner import Evaluation
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer

ASK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


@pytest.fixture
def here(tmp_path, monkeypatch):
    "A folder with a model, rows, and one path of each kind."
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    Path("rows.jsonl").write_text(f"{json.dumps({'messages': ASK})}\n" * 4)
    for suffix in ("jsonl", "py"):
        os.mkfifo(f"pipe.{suffix}")
        Path(f"link.{suffix}").symlink_to("nowhere")
        Path(f"folder.{suffix}").mkdir()
        Path(f"device.{suffix}").symlink_to("/dev/zero")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"socket.{suffix}")
    return tmp_path


KINDS = {"pipe": "a pipe", "link": "a link to nowhere", "device": "a device", "socket": "a socket", "folder": "folder"}
PLACES = {
    "data": ["sft", "{}"],
    "data.eval": ["sft", "rows.jsonl", "--set", "data.eval={}", "--set", "model.name=model"],
    "settings": ["sft", "rows.jsonl", "--settings", "{}"],
    "score": ["eval", "model", "rows.jsonl", "--score", "{}:f"],
    "reward": ["grpo", "rows.jsonl", "--reward", "{}:f", "--set", "model.name=model"],
    "model": ["eval", "{}", "rows.jsonl"],
    "base": ["sft", "rows.jsonl", "--set", "model.name={}"],
    "output of a report": ["eval", "model", "rows.jsonl", "--output", "{}"],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_a_path_that_holds_no_file_is_named(here, capsys, place, kind):
    if kind == "folder" and place in ("output of a report", "model", "base"):
        pytest.skip("a folder is what belongs there")
    file = f"{kind}.{'py' if place == 'reward' else 'jsonl'}"
    with pytest.raises(SystemExit) as end:
        main([word.format(file) for word in PLACES[place]])
    lines = capsys.readouterr().err.splitlines()
    [said] = [line for line in lines if line and not line.endswith(" ...")]  # those are phases
    assert end.value.code == 2 and file in said
    assert re.search(KINDS[kind], said, flags=re.I) or "directory" in said.lower(), said


def test_the_standard_input_as_a_pipe_is_one(here, capsys):
    reading, _ = os.pipe()
    with pytest.raises(SystemExit):
        main(["sft", f"/dev/fd/{reading}"])
    assert "it is a pipe, not a file; write what it holds to a file" in capsys.readouterr().err


def test_a_file_that_may_not_be_read_is_named(here, capsys, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ft_notebooks.data.readers.jsonl_rows", denied)  # the superuser may read everything
    with pytest.raises(SystemExit):
        main(["sft", "rows.jsonl"])
    assert "rows.jsonl: not read: Permission denied; check the file and its permissions" in capsys.readouterr().err


SCORE = {"exact_match": {"value": 1.0, "low": 0.8, "high": 1.0, "n": 1}}
ROWS = [{"prompt": ASK[:1], "expected": "yes", "generated": "yes", "exact_match": 1.0}]


@pytest.mark.parametrize("name", ["report.md", "report.html", "report.json", "scores.png", "contamination.json"])
def test_eval_replaces_no_file_of_others(here, capsys, name):
    Path(name).write_text('{"mine": {}, "own": {"a": 1}}')
    with pytest.raises(SystemExit) as end:
        main(["eval", "model", "rows.jsonl", "--output", "."])
    said = capsys.readouterr()
    assert end.value.code == 2 and f"{name}, which no earlier report has written; name another folder" in said.err
    assert "conversations" not in said.out and Path(name).read_text() == '{"mine": {}, "own": {"a": 1}}'


def test_tasks_replace_no_file_of_others(here, capsys):
    Path("tasks.json").write_text('{"mine": 1}')
    with pytest.raises(SystemExit):
        main(["eval", "model", "--tasks", "arc_easy", "--output", "."])
    assert "tasks.json is of another program" in capsys.readouterr().err
    assert Path("tasks.json").read_text() == '{"mine": 1}'


def test_a_report_replaces_an_earlier_one_and_the_figures_of_its_run(here):
    Path("run.json").write_text('{"command": "sft", "model.name": "tiny"}')
    Path("loss.png").write_text("of the run")
    for _ in range(2):
        report_card({"base": Evaluation(SCORE, ROWS)}, ".")
    Path("report.json").unlink()
    with pytest.raises(ValueError, match="holds report.html and report.md and scores.png, which no earlier report"):
        report_card({"base": Evaluation(SCORE, ROWS)}, ".")


@pytest.mark.parametrize("mine, json", [("report.md", "report.json"), ("loss.png", "run.json")])
@pytest.mark.parametrize("text", ['{"results": {}}', "{}", '{"a": {"b": {"value": 1}}}'])
def test_a_record_of_another_program_makes_no_file_replaceable(here, mine, json, text):
    Path(mine).write_text("mine")
    Path(json).write_text(text)
    with pytest.raises(ValueError, match=f"{mine}.*, which no earlier report has written"):
        report_card({"base": Evaluation(SCORE, ROWS)}, ".")
    assert Path(mine).read_text() == "mine"


def test_a_report_of_nothing_says_so(here):
    with pytest.raises(
        ValueError, match="report_card: evaluations is empty, so there is nothing to show; pass {'base'"
    ):
        report_card({}, "card")


def test_a_job_that_was_edited_is_not_replaced(here, capsys):
    words = ["launch", "--processes", "2", "--slurm", "--", "sft", "rows.jsonl"]
    main(words)
    main(words)
    with Path("runs/job.sh").open("a") as job:
        job.write("#SBATCH --partition=mine\n")
    with pytest.raises(SystemExit):
        main(words)
    assert "runs/job.sh exists and differs" in capsys.readouterr().err
    assert Path("runs/job.sh").read_text().endswith("--partition=mine\n")


def test_the_home_folder_is_meant_where_the_shell_leaves_its_sign(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    args = parser().parse_args(["sft", "~/a.jsonl", "--output=~/x", "--settings=~/s.ini"])
    assert (args.data, args.output, args.settings) == ("/home/me/a.jsonl", "/home/me/x", "/home/me/s.ini")
    assert parser().parse_args(["eval", "owner/name~1"]).run == "owner/name~1"
