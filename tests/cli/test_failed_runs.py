"Runs that waste a day without an error: they end as failed, are refused early, or say what has happened."

import json
import os
from datetime import date
from pathlib import Path
from unittest.mock import patch

import pytest
from transformers import AutoTokenizer

from ft_notebooks.checkpointing.run_lock import lock_run
from ft_notebooks.cli.commands import main
from ft_notebooks.loading.example_models import CHATML, tiny_model
from ft_notebooks.sft import stage
from ft_notebooks.sft.stage import SFTStage

pytestmark = pytest.mark.whole

QUICK = "--set model.name=tiny --set sft.bf16=false --set model.bits=32 --set sft.max_steps=1".split()
SHORT = ["--set", "evaluation.max_new_tokens=3"]


def ended(code, *argv):
    with pytest.raises(SystemExit) as e:
        main(["sft", "notes.jsonl", *QUICK, "--set", "sft.effective_batch=4", *argv])
    assert e.value.code == code


def test_a_run_that_ends_worse_than_it_began_fails_now_and_when_it_is_started_again(here, capsys, monkeypatch):
    found = iter([{"perplexity": 10.0}, {"perplexity": 11.0}])
    monkeypatch.setattr(SFTStage, "measure", lambda *args: next(found))
    for _ in range(2):
        ended(1, "--set", "data.eval=0.25")
        said = capsys.readouterr()
        assert "the run has failed: the perplexity of the held-out rows was 10 before and is 11 after" in said.err
        assert "Next:" not in said.out + said.err
    assert "failed" in json.loads(Path("runs/sft/metrics.json").read_text())
    main(["eval", "runs/sft", *SHORT])
    monkeypatch.setattr("builtins.input", lambda prompt: (_ for _ in ()).throw(EOFError))
    main(["chat", "runs/sft"])
    assert capsys.readouterr().out.count("runs/sft: the run has failed: the perplexity") == 2


def test_nothing_is_scored_or_kept_with_a_base_that_has_been_replaced(here, capsys):
    main(["sft", "notes.jsonl", *QUICK, "--set", "sft.effective_batch=4"])
    tiny_model(seed=7).save_pretrained("tiny")
    with pytest.raises(SystemExit) as e:
        main(["eval", "runs/sft", "notes.jsonl", *SHORT])
    assert e.value.code == 2 and "has changed since training" in capsys.readouterr().err
    assert not list(Path("runs/sft/eval").glob("*"))
    tiny_model().save_pretrained("tiny")
    main(["eval", "runs/sft", "notes.jsonl", *SHORT])
    assert list(json.loads(Path("runs/sft/eval/report.json").read_text())) == ["base", "sft"]


def test_the_date_of_a_template_is_that_of_the_first_start(here, capsys):
    tok = AutoTokenizer.from_pretrained("tiny")
    tok.chat_template = "{{ strftime_now('%Y-%m-%d') + eos_token }}" + CHATML
    tok.save_pretrained("tiny")
    for day in ("2026-01-31", "2027-02-01"):  # the second call finds the finished run
        with patch("ft_notebooks.runs.pipeline.date", wraps=date) as clock:
            clock.today.return_value = date.fromisoformat(day)
            main(["sft", "notes.jsonl", *QUICK, "--set", "sft.effective_batch=4"])
        assert "2026-01-31 is written into this run's template" in capsys.readouterr().out
    tok.chat_template = "{{ strftime_now('%H:%M') + eos_token }}" + CHATML
    tok.save_pretrained("tiny")
    main(["sft", "notes.jsonl", *QUICK, "--set", "sft.effective_batch=4", "--output", "runs/time"])
    assert "writes the date and the time of day: " in capsys.readouterr().out
    run = AutoTokenizer.from_pretrained("runs/sft")
    assert "2026-01-31" in run.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)


def test_what_needs_no_row_is_checked_before_a_row_is_read(here, capsys, monkeypatch):
    monkeypatch.setattr(stage, "read_chats", lambda *args, **names: pytest.fail("rows were read first"))
    Path("runs/sft").mkdir(parents=True)
    Path("runs/sft/thesis.txt").write_text("mine")
    ended(2)
    assert "runs/sft is not empty and holds no run.json" in capsys.readouterr().err
    Path("notes.txt").write_text("mine")
    ended(2, "--output", "notes.txt/run")
    said = capsys.readouterr().err
    assert "notes.txt is a file, so no folder can be made there; choose a different folder: ft sft notes.jsonl" in said
    ended(2, "--set", "model.name=owner/modle", "--output", "runs/typo")
    said = capsys.readouterr().err
    assert "owner/modle: there is no such folder here, and the hub gave no config.json: HF_HUB_OFFLINE is set" in said
    ended(2, "--set", "model.name=no/such/folder")
    assert "there is no such folder" in capsys.readouterr().err


def test_a_folder_in_which_another_process_trains_is_refused(here, capsys):
    with lock_run("runs/sft"):
        if (child := os.fork()) == 0:
            code = 1
            try:
                ended(2)
                code = 0 if "is being trained by process" in capsys.readouterr().err else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
