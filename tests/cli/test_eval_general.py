"`ft eval RUN --general`: what a run has forgotten, beside its base."

import json
from pathlib import Path

import pytest

from ft_notebooks.cli.commands import main
from ft_notebooks.runs import forgetting

pytestmark = pytest.mark.whole


def test_a_run_is_asked_general_questions_beside_its_base_and_the_last_line_is_the_verdict(here, capsys, monkeypatch):
    for name in ("general_questions", "general_texts"):
        rows = getattr(forgetting, name)().select(range(4))
        monkeypatch.setattr(forgetting, name, lambda rows=rows: rows)
    main(["sft", "notes.jsonl", *"--set model.name=tiny --set sft.bf16=false --set sft.max_steps=1".split()])
    main(["eval", "runs/sft", "--general", "--set", "evaluation.max_new_tokens=1"])
    said = capsys.readouterr().out.strip().splitlines()
    assert said[-1] == "these questions do not decide it: base has only 0% of 4 right"
    scores = json.loads(Path("runs/sft/general/report.json").read_text())
    assert list(scores) == ["base", "sft"]
    assert {name: one["n"] for name, one in scores["sft"].items()} == {"general_questions": 4, "bits_per_byte": 4}


def test_a_model_without_a_base_beside_it_is_refused(here, capsys):
    with pytest.raises(SystemExit) as end:
        main(["eval", "tiny", "--general"])
    assert end.value.code == 2 and "compares a run with the model before training" in capsys.readouterr().err
