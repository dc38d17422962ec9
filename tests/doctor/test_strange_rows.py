"What ft doctor says of rows that are cut, and how little it renders of a very long one."

import contextlib
import json
from pathlib import Path

import pytest

from ft_notebooks.cli.commands import main
from ft_notebooks.course.example_task import appointments
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.tokenization import token_view


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_tokenizer().save_pretrained("tiny")
    tiny_model().save_pretrained("tiny")
    return tmp_path


def doctor(capsys, *words):
    with contextlib.suppress(SystemExit):
        main(["doctor", "rows.jsonl", "--quick", "--set", "model.name=tiny", *words])
    return capsys.readouterr().out


def test_cut_rows_are_no_fault_of_the_template(here, capsys):
    rows = appointments(12)
    rows.to_json("rows.jsonl")
    limit = min(len(tiny_tokenizer().apply_chat_template(chat)["input_ids"]) for chat in rows["messages"]) - 4
    given = ["--set", f"sft.max_length={limit}", "--set", "data.allow_cut=1"]
    found = {one["code"]: one for one in json.loads(doctor(capsys, *given, "--json"))["findings"]}
    assert "12 of 12 rows are longer than max_length" in found["rows-not-encoded"]["message"]
    assert "the chat template cannot write the rows" not in " ".join(doctor(capsys, *given).split())


@pytest.mark.whole
def test_of_a_long_row_start_and_end_are_rendered_once(here, capsys, monkeypatch):
    rows = list(appointments(3)["messages"])
    rows[0][0]["content"] = "many words " * 20_000
    Path("rows.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in rows))
    shown, show_tokens = [], token_view.show_tokens

    def counted(tok, row, *more):
        shown.append(len(row["input_ids"]))
        return show_tokens(tok, {key: value[:1] + value[-20:] for key, value in row.items()}, *more)

    monkeypatch.setattr(token_view, "show_tokens", counted)
    assert "What is trained, on three rows:" in doctor(capsys)
    assert len(shown) == 3 and max(shown) == 10_000
