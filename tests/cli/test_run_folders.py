"What other people and programs have written stays: in a run's folder, beside it and in the environment."

import contextlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from safetensors.torch import load_file, save_file
from small_runs import ROWS, TOK, forked, on_notes

from ft_notebooks.checkpointing import run_lock
from ft_notebooks.checkpointing.integrity import holds_only_saved, mark_checkpoint
from ft_notebooks.cli import chat_and_merge, commands, evaluation
from ft_notebooks.cli.commands import main
from ft_notebooks.core.progress import is_first
from ft_notebooks.course.example_task import appointments
from ft_notebooks.loading.example_models import tiny_model
from ft_notebooks.sft.trainer import sft_trainer
from ft_notebooks.training.run import fit

pytestmark = pytest.mark.whole

QUICK = "--set model.name=tiny --set sft.max_steps=1 --set sft.effective_batch=4 --set model.bits=32".split()
SHORT = ["--set", "evaluation.max_new_tokens=3"]


def supervised(folder):
    fields = {"bf16": False, "effective_batch": 4, "max_steps": 2, "report_to": "none", "disable_tqdm": True}
    return sft_trainer(on_notes(), TOK, ROWS, output_dir=str(folder), logging_steps=1, **fields)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A finished run of `ft sft`, which tests copy."
    with contextlib.chdir(tmp_path_factory.mktemp("made")):
        TOK.save_pretrained("tiny")
        tiny_model().save_pretrained("tiny")
        appointments(12).to_json("notes.jsonl")
        main(["sft", "notes.jsonl", *QUICK, "--output", "run"])
        return Path("run").resolve()


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as e:
        main([*argv])
    assert e.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def foreign(monkeypatch):
    "A lock file that only its owner may write to, for a process of root too."

    def denied(self, **given):
        raise PermissionError(13, "Permission denied", self.lock_file)

    monkeypatch.setattr(FileLock, "acquire", denied)


@pytest.mark.parametrize("finished", [False, True])
def test_only_a_finished_run_goes_on_without_its_lock(tmp_path, foreign, finished):
    if finished:
        mark_checkpoint(tmp_path, 1)
        with run_lock.lock_run(tmp_path):  # a folder in which nothing can be written
            pass
    else:
        cannot = "running.lock cannot be opened, so another user may be training"
        with pytest.raises(ValueError, match=cannot), run_lock.lock_run(tmp_path):
            pass


@pytest.mark.parametrize(
    "rank, world, first", [("1", None, True), ("1", "1", True), ("1", "2", False), ("0", "2", True)]
)
def test_a_rank_counts_only_among_several_processes(monkeypatch, rank, world, first):
    monkeypatch.setenv("RANK", rank)
    if world:
        monkeypatch.setenv("WORLD_SIZE", world)
    assert is_first() == first


def test_a_rank_that_was_left_hides_no_lock_and_no_output(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with run_lock.lock_run(tmp_path):
        assert (tmp_path / ".running.lock").exists()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert "LOCAL_RANK is set and WORLD_SIZE is not, as a launcher sets both: unset LOCAL_RANK" in refused(
        capsys, "sft", "missing.jsonl"
    )


@pytest.mark.parametrize("name", [".notes", "sub/.notes", "link", "notes"])
def test_a_checkpoint_with_a_file_of_the_user_is_not_one_that_rotation_removes(tmp_path, name):
    (tmp_path / "model.safetensors").write_text("weights")
    mark_checkpoint(tmp_path, 1)
    assert holds_only_saved(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / name).symlink_to("elsewhere") if name == "link" else (tmp_path / name).write_text("mine")
    assert not holds_only_saved(tmp_path)


def test_a_card_that_the_user_has_edited_stays(tmp_path, capsys):
    fit(supervised(tmp_path / "run"))
    card = tmp_path / "run/README.md"
    ours = card.read_text()
    assert "| steps | 2 |" in ours
    (tmp_path / "run/complete.json").unlink()  # killed before its model was complete
    fit(supervised(tmp_path / "run"))
    assert card.read_text() == ours and "was edited" not in capsys.readouterr().out
    card.write_text(ours + "My notes: row 17 was wrong\n")
    (tmp_path / "run/complete.json").unlink()
    fit(supervised(tmp_path / "run"))
    assert card.read_text() == ours + "My notes: row 17 was wrong\n"
    assert capsys.readouterr().out.count("README.md was edited since the run wrote it, and is left as it is") == 1


def test_each_launch_has_a_file_of_its_own_and_replaces_none(here, capsys):
    def launched(*words):
        main(["launch", *words, "--slurm", "--", "sft", "notes.jsonl", *QUICK])
        Path("runs/job.sh").unlink()

    Path("runs").mkdir()
    Path("runs/accelerate.yaml").write_text("# mine")
    for words in (["--processes", "8", "--strategy", "fsdp2"], ["--processes", "8", "--machines", "2"]):
        launched(*words)
        launched(*words)
    launched("--processes", "8")
    files = {file.name: file.read_text() for file in Path("runs").iterdir()}
    assert files.pop("accelerate.yaml") == "# mine"
    assert sorted(files) == ["accelerate-ddp-8-on-2.yaml", "accelerate-ddp-8.yaml", "accelerate-fsdp2-8.yaml"]
    Path("runs/accelerate-ddp-8.yaml").write_text("# mine")
    said = refused(capsys, "launch", "--processes", "8", "--slurm", "--", "sft", "notes.jsonl")
    assert "accelerate-ddp-8.yaml exists and differs" in said
    assert Path("runs/accelerate-ddp-8.yaml").read_text() == "# mine"


def _pairs():
    rows = [json.loads(line)["messages"] for line in Path("notes.jsonl").read_text().splitlines()]
    wrong = [{"role": "assistant", "content": "none"}]
    pairs = [{"prompt": row[:-1], "chosen": row[-1:], "rejected": wrong} for row in rows]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return "pairs.jsonl"


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_start_that_was_replaced_is_no_column(here, made, capsys, monkeypatch, stage):
    monkeypatch.setattr(evaluation, "_report", lambda *given: "")
    shutil.copytree(made, "first")
    data = "notes.jsonl" if stage == "sft" else _pairs()
    options = [word.replace("sft.", f"{stage}.").replace("=tiny", "=first") for word in QUICK]
    main([stage, data, *options, "--output", "second"])
    capsys.readouterr()
    name = "start" if stage == "sft" else "sft"
    main(["eval", "second", "notes.jsonl", *SHORT])
    whole = capsys.readouterr().out
    assert f"{name}: 12 conversations" in whole and "left out" not in whole
    weights = {key: tensor + 0.01 for key, tensor in load_file("first/adapter_model.safetensors").items()}
    save_file(weights, "first/adapter_model.safetensors", metadata={"format": "pt"})
    main(["eval", "second", "notes.jsonl", *SHORT])
    said = capsys.readouterr().out
    assert "first is left out: it holds other weights than those from which" in said
    assert f"{name}: 12 conversations" not in said and "base: 12 conversations" in said


@pytest.mark.parametrize("how", ["backend", "usetex", "drawing"])
def test_a_figure_that_cannot_be_drawn_ends_no_run(tmp_path, capsys, monkeypatch, how):
    import matplotlib

    from ft_notebooks.training import run

    if how == "drawing":
        monkeypatch.setattr(run, "plot_history", lambda *given, **more: 1 / 0)
    if how == "usetex":
        monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    if how == "backend":
        monkeypatch.setattr("matplotlib.pyplot._backend_mod", None)
        monkeypatch.setitem(matplotlib.rcParams, "backend", "module://nowhere")
    fit(supervised(tmp_path / "run"))
    assert (tmp_path / "run/complete.json").is_file()
    assert (tmp_path / "run/loss.png").is_file() == (how != "drawing")
    assert ("loss.png was not drawn: " in capsys.readouterr().out) == (how == "drawing")


def test_a_run_that_is_finished_once_more_records_no_time_and_no_loss_of_no_step(here):
    argv = ["sft", "notes.jsonl", *QUICK, "--output", "run"]
    main(argv)
    first = json.loads(Path("run/metrics.json").read_text())["history"]
    assert any("train_loss" in entry for entry in first)
    Path("run/metrics.json").unlink()
    main(argv)
    again = json.loads(Path("run/metrics.json").read_text())["history"]
    assert again == [entry for entry in first if "train_loss" not in entry]
    assert any("loss" in entry for entry in again)


def test_a_run_with_other_settings_is_not_advised_away_and_a_moved_model_has_a_cure(here, capsys):
    main(["sft", "notes.jsonl", *QUICK, "--output", "run"])
    said = refused(capsys, "sft", "notes.jsonl", *QUICK, "--set", "sft.logging_steps=5", "--output", "run")
    assert "Use the old values to resume that run, or choose a different folder" in said and "remove" not in said
    Path("run/metrics.json").unlink()
    old = Path("tiny").resolve()
    Path("tiny").rename("moved")
    argv = ["sft", "notes.jsonl", *QUICK, "--set", "model.name=moved", "--output", "run"]
    assert "if it is the same model at another place, write its new name into run.json" in refused(capsys, *argv)
    record = Path("run/run.json")
    record.write_text(record.read_text().replace(str(old), str(Path("moved").resolve())))
    main(argv)
    assert Path("run/metrics.json").is_file()


def test_the_cure_for_a_base_that_has_moved_leads_to_the_end(here, capsys):
    main(["sft", "notes.jsonl", *QUICK, "--output", "run"])
    old = str(Path("tiny").resolve())
    Path("tiny").rename("moved")
    said = refused(capsys, "eval", "run", "notes.jsonl", *SHORT)
    assert "write its new path there and remove" in said
    config = Path("run/adapter_config.json")
    config.write_text(config.read_text().replace(old, str(Path("moved").resolve())))
    Path("run/complete.json").unlink()
    main(["eval", "run", "notes.jsonl", *SHORT])


@pytest.mark.parametrize("output", ["empty", "link", ".", "mount"])
def test_merge_writes_into_an_empty_folder_or_says_at_once_why_not(here, made, capsys, monkeypatch, output):
    from ft_notebooks.lora import merging

    place = Path("empty").resolve()
    place.mkdir()
    if output == "link":
        Path("link").symlink_to("empty")
    run = str(made)
    if output in ("empty", "link"):
        main(["merge", run, "--output", output])
        assert (place / "config.json").is_file() and Path(output, "model.safetensors").is_file()
        return
    monkeypatch.setattr(merging, "load_adapter", lambda *given: pytest.fail("began the work"))
    monkeypatch.chdir(place if output == "." else place.parent)
    if output == "mount":
        monkeypatch.setattr(Path, "is_mount", lambda path: path == place)
    said = refused(capsys, "merge", run, "--output", "." if output == "." else "empty")
    assert "which cannot be replaced; name a new folder in it" in said and place.is_dir()


def test_ctrl_c_in_a_chat_speaks_of_no_saved_state(here, tmp_path):
    said = tmp_path / "said"

    def child():
        sys.stderr = said.open("w")
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job of a shell ignores
        chat_and_merge.chat_command = lambda args: os.kill(os.getpid(), signal.SIGINT)
        try:
            commands.main(["chat", "tiny"])
        except SystemExit as e:
            sys.stderr.flush()
            os._exit(e.code)

    assert forked(child) == 130
    assert said.read_text().splitlines()[-1] == "ft chat: stopped"
