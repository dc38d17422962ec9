"A run that stops at NaN names two commands, and each leads to a finished run."

import json
import shlex
from pathlib import Path

import pytest
import torch

from ft_notebooks.cli.commands import main
from ft_notebooks.course.example_task import appointments
from ft_notebooks.loading.example_models import tiny_tokenizer
from ft_notebooks.sft.stage import SFTStage

pytestmark = pytest.mark.whole
SETTINGS = "--set model.name=tiny --set sft.bf16=false --set sft.effective_batch=4 --set lora.r=4".split()


@pytest.fixture
def stopped(here, monkeypatch, capsys):
    "`stopped(*words)`: the lines of the error of a run whose model overflows at the letter # of row 17, once."
    rows = appointments(24)["messages"][:]
    rows[17][1]["content"] += " #"
    Path("my notes.jsonl").write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    bad, overflows, load = torch.tensor(tiny_tokenizer()("#").input_ids), [True], SFTStage.load

    def overflowing(self, tok):
        model = load(self, tok)

        def hook(layer, args, out):
            return (
                out.masked_fill(torch.isin(args[0], bad)[..., None], torch.inf)
                if overflows[0] and torch.is_grad_enabled()
                else out
            )

        model.get_input_embeddings().register_forward_hook(hook)
        return model

    monkeypatch.setattr(SFTStage, "load", overflowing)

    def run(*words):
        with pytest.raises(SystemExit) as end:
            main(["sft", "my notes.jsonl", *SETTINGS, *words])
        assert end.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        return lines, overflows

    return run


def follow(line):
    "Runs the commands of a line as a shell would, in order, each of which must succeed."
    for command in line.split(" && "):
        word, *words = shlex.split(command)
        assert word == "ft"
        try:
            main(words)
        except SystemExit as end:
            assert not end.code


def test_the_row_that_is_named_is_dropped_and_the_run_goes_on_from_its_checkpoint(stopped):
    lines, _ = stopped("--set", "data.eval=last:4")
    print("\n".join(lines))
    at = next(n for n, line in enumerate(lines) if line.startswith("To go on without the odd rows of my notes.jsonl"))
    assert "--show 17 --drop 'my notes-without-17.jsonl' && ft sft" in lines[at + 1]
    assert "model.name=runs/sft/checkpoint-" in lines[at + 1] and "lora.r" not in lines[at + 1]
    follow(lines[at + 1])
    assert Path("runs/sft-2/metrics.json").is_file()
    kept = [json.loads(line)["messages"] for line in Path("my notes-without-17.jsonl").read_text().splitlines()]
    assert len(kept) == 23 and "#" not in str(kept)


def test_with_a_lower_rate_the_run_goes_on_too_where_the_rows_are_all_alike(stopped):
    lines, overflows = stopped("--set", "sft.learning_rate=0.01")
    at = next(n for n, line in enumerate(lines) if line.startswith("To go on with a lower rate"))
    assert "sft.learning_rate=0.001" in lines[at + 1] and "sft.learning_rate=0.01 " not in lines[at + 1] + " "
    overflows[0] = False  # as where the rate was the cause
    follow(lines[at + 1])
    manifest = json.loads(Path("runs/sft-2/manifest.json").read_text())
    assert manifest["run"]["learning_rate"] == 0.001 and manifest["run"]["adapter.r"] == 4
    assert Path("runs/sft-2/metrics.json").is_file()
