"What careless users do with commands: each ends with a clear line, the right exit code, and nothing lost."

import errno
import os
import shlex
import sys
from pathlib import Path

import pytest
from small_runs import forked

from ft_notebooks.cli.commands import main
from ft_notebooks.data.example_task import appointments
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer

TINY = ["--set", "model.name=tiny", "--set", "model.bits=32"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_tokenizer().save_pretrained("tiny")
    tiny_model().save_pretrained("tiny")
    appointments(24).to_json("rows.jsonl")
    return tmp_path


@pytest.mark.parametrize("words", [["--help"], ["init"], ["doctor", "rows.jsonl", "--quick", "--json", *TINY]])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EBADF])
def test_output_that_cannot_be_written_is_an_error(here, words, number):
    def unwritable():
        os.dup2(os.open("/dev/full" if number == errno.ENOSPC else "/dev/null", os.O_WRONLY), 1)
        sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False) if number == errno.ENOSPC else None
        sys.stderr = sys.__stderr__ = open("said", "w")
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 1

    assert forked(unwritable) == 0
    *_, said = Path("said").read_text().splitlines()
    assert said == f"ft: what it printed is lost ({os.strerror(number)}); write stdout to a different place"
