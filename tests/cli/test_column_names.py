"Columns by other names, from the command line to the page of the report."

import json
from pathlib import Path

import pytest

from ft_notebooks.cli.commands import main
from ft_notebooks.cli.settings import read_settings
from ft_notebooks.course.example_task import appointments
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.runs.stages import stage_class

NAMES = ["--set", "data.prompt=question", "--set", "data.completion=answer"]
SHORT = ["--set", "evaluation.max_new_tokens=3"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    "A folder with a tiny model, and notes under names of their own, beside a column that has one of ours."
    monkeypatch.chdir(tmp_path)
    tiny_tokenizer().save_pretrained("tiny")
    tiny_model().save_pretrained("tiny")
    for name, n, seed in (("notes.jsonl", 24, 0), ("held.jsonl", 3, 7)):
        chats = appointments(n, seed=seed)["messages"]
        rows = [{"question": chat[:-1], "answer": chat[-1]["content"], "prompt": n} for n, chat in enumerate(chats)]
        Path(name).write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def quick(*settings):
    given = ["model.name=tiny", "model.bits=32", "sft.max_steps=1", "sft.effective_batch=2", *settings]
    return [word for setting in given for word in ("--set", setting)]


@pytest.mark.whole
def test_named_columns_are_trained_on_held_out_and_evaluated(here, monkeypatch):
    main(["sft", "notes.jsonl", *NAMES, *quick("data.eval=held.jsonl")])
    monkeypatch.chdir(here.parent)  # the run knows its file and the names of its columns
    main(["eval", str(here / "runs/sft"), *SHORT])
    assert json.loads((here / "runs/sft/eval/report.json").read_text())["sft"]["exact_match"]["n"] == 3
    main(["eval", str(here / "runs/sft"), str(here / "held.jsonl"), *NAMES, *SHORT])


def test_a_file_whose_columns_have_other_names_is_refused_with_the_settings_that_name_them(here, capsys):
    rows = [{"question": f"{n}?", "answer": f"{n}!"} for n in range(3)]
    Path("faq.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SystemExit):
        main(["sft", "faq.jsonl", *quick()])
    said = capsys.readouterr().err
    assert "faq.jsonl:1: the row has the keys ['question', 'answer']; it must be " in said
    assert "--set data.prompt=question --set data.completion=answer" in said
    assert "(3 times: also at faq.jsonl:2, faq.jsonl:3)" in said
    with pytest.raises(SystemExit):
        main(["sft", "faq.jsonl", "--set", "data.prompt=question", "--set", "data.completion=reply", *quick()])
    assert 'faq.jsonl:1: the row has no "reply", which was named as its "completion"' in capsys.readouterr().err


def test_each_stage_takes_its_own_names_from_settings_for_both():
    def renamed(stage, *names):
        return stage_class(stage)(read_settings(None, [f"data.{name}={name}_" for name in names])).renamed

    both = ("prompt", "completion", "chosen", "rejected")
    assert renamed("sft", *both) == {"prompt": "prompt_", "completion": "completion_"}
    assert renamed("dpo", *both) == {"prompt": "prompt_", "chosen": "chosen_", "rejected": "rejected_"}
    assert renamed("sft", "messages") == {"messages": "messages_"}
