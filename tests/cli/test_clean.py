"`ft clean RUN`: afterwards a finished run evaluates and merges, and a stopped one resumes to the same weights."

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback

from ft_notebooks.cli.commands import main
from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.read import read_chats
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.runs.pipeline import train_run

pytestmark = pytest.mark.whole


SETTINGS = "--set model.name=tiny --set sft.bf16=false --set sft.max_steps=6 --set sft.save_steps=2".split()
SETTINGS += "--set sft.save_total_limit=3 --set data.eval=last:4 --set evaluation.max_new_tokens=2".split()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A folder with a finished run, which has been evaluated."
    with contextlib.chdir(folder := tmp_path_factory.mktemp("made")):
        tiny_tokenizer().save_pretrained("tiny")
        tiny_model().save_pretrained("tiny")
        appointments(12).to_json("notes.jsonl")
        main(["sft", "notes.jsonl", *SETTINGS])
        main(["eval", "runs/sft", *SETTINGS[-2:]])
    return folder


class Ends(TrainerCallback):
    "A session that ends in step 5."

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise RuntimeError("the session has ended")


def names(run):
    return {path.relative_to(run).as_posix() for path in Path(run).rglob("*") if path.is_file()}


def test_a_run_that_failed_keeps_the_checkpoints_that_its_message_names(made, monkeypatch, capsys):
    shutil.copytree(made / "runs", "runs")
    shutil.rmtree("runs/sft/eval")
    file = Path("runs/sft/metrics.json")
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"failed": "runs/sft/checkpoint-2 is the best checkpoint"})
    )
    capsys.readouterr()
    main(["clean", "runs/sft", "--yes"])
    assert "nothing that may go" in capsys.readouterr().out and Path("runs/sft/checkpoint-2").is_dir()
    shutil.rmtree("runs")
    with pytest.raises(SystemExit) as end:
        main(["clean", "runs/sft"])
    assert end.value.code == 2 and not Path("runs").exists()


def test_a_finished_run_is_evaluated_and_merged_after_it_was_cleaned(made, monkeypatch, capsys):
    monkeypatch.chdir(made)
    before = names("runs/sft")
    main(["clean", "runs/sft"])
    said = capsys.readouterr().out
    assert "Nothing is deleted" in said and names("runs/sft") == before
    assert all(
        part in said for part in ("checkpoint-2: an older", "checkpoint-4: an older", "answers of an evaluation")
    )
    main(["clean", "runs/sft", "--yes"])
    gone = before - names("runs/sft")
    assert gone and all(name.startswith(("checkpoint-2/", "checkpoint-4/", "eval/")) for name in gone)
    assert "eval/report.html" in names("runs/sft") and "checkpoint-6/optimizer.pt" in names("runs/sft")
    main(["clean", "runs/sft", "--yes", "--last-checkpoint"])
    assert not list(Path("runs/sft").glob("checkpoint-*"))
    main(["eval", "runs/sft", *SETTINGS[-2:]])
    main(["merge", "runs/sft"])
    capsys.readouterr()
    main(["sft", "notes.jsonl", *SETTINGS])
    assert "is finished" in capsys.readouterr().out


def test_a_stopped_run_keeps_what_it_goes_on_from_and_ends_with_the_same_weights(here, capsys):
    settings = {"model": {"name": "tiny"}, "data": {"eval": "none"}, "lora": {}}
    settings["sft"] = {"bf16": False, "max_steps": 6, "save_steps": 2, "save_total_limit": 3}
    rows = read_chats("notes.jsonl")
    train_run(rows, None, settings, "whole")
    with pytest.raises(RuntimeError):
        train_run(rows, None, settings, "stopped", guards=lambda tok, ids: [Ends()])
    main(["clean", "stopped", "--yes"])
    assert [path.name for path in Path("stopped").glob("checkpoint-*")] == ["checkpoint-4"]
    with pytest.raises(SystemExit) as end:
        main(["clean", "stopped", "--yes", "--last-checkpoint"])
    assert end.value.code == 2 and "is what it goes on from" in capsys.readouterr().err
    train_run(rows, None, settings, "stopped")
    one, other = (load_file(f"{run}/adapter_model.safetensors") for run in ("whole", "stopped"))
    assert all((one[name] == other[name]).all() for name in one)
