"""Every file of a run on a disk that is full, and every record of a run that was tampered with: one sentence that names
the file, and the disk or the damage.
"""

import errno
import json
import shutil
import weakref
from pathlib import Path

import pytest

from ft_notebooks.checkpointing import checkpoint_saving
from ft_notebooks.checkpointing.finished_runs import known_run
from ft_notebooks.checkpointing.integrity import checkpoint_fault, mark_checkpoint
from ft_notebooks.checkpointing.metrics_log import append_entries, read_entries
from ft_notebooks.checkpointing.run_lock import lock_run
from ft_notebooks.checkpointing.run_manifest import check_folder, check_manifest, run_folder
from ft_notebooks.cli.commands import init_command
from ft_notebooks.core.errors import DiskFull, why_full
from ft_notebooks.core.files import atomic_path, write_atomically
from ft_notebooks.data import read
from ft_notebooks.evaluation.html_page import write_files
from ft_notebooks.inference.answer_cache import AnswerFile
from ft_notebooks.lora.adapter_folder import trained_bits
from ft_notebooks.lora.merging import whole_folder
from ft_notebooks.training.progress_and_plots import logged_history

NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


def a_folder(place: Path) -> None:
    with whole_folder(place) as part:
        (part / "model.safetensors").write_bytes(b"1")
        raise Exception("No space left on device (os error 28)")  # as tokenizers raises it


def a_picture(place: Path) -> None:
    with atomic_path(place):
        raise NO_SPACE


def a_lock(place: Path) -> None:
    with lock_run(place.parent):
        pass


WRITES = {
    "run.json": lambda place: run_folder(place.parent, {"seed": 0}),
    "metrics.json": lambda place: write_atomically(place, "{}"),
    "metrics.jsonl": lambda place: append_entries(place, [{"step": 1}]),
    "answers.jsonl": lambda place: AnswerFile(place, {"model": "m"}),
    "report.html": lambda place: write_files(place.parent, {place.name: b"page"}),
    "merged": a_folder,
    "loss.png": a_picture,
    ".running.json": a_lock,
}


@pytest.fixture
def full_disk(monkeypatch):
    "A disk on which nothing more can be written."

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, _):
            raise NO_SPACE

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    opened = Path.open

    def opens(path, mode="r", *args, **given):
        file = opened(path, mode, *args, **given)
        return Full(file) if set(mode) & set("wax+") else file

    monkeypatch.setattr(Path, "open", opens)


@pytest.mark.parametrize("name", WRITES)
def test_each_file_of_a_run_on_a_full_disk_is_named_with_the_disk_and_leaves_nothing_behind(tmp_path, full_disk, name):
    place = tmp_path / name
    with pytest.raises(DiskFull) as failed:
        WRITES[name](place)
    said = str(failed.value)
    assert said.startswith(f"{place} could not be written: no space is left on the disk /"), said
    assert said.endswith("free space there, and run the same command again") and "[Errno" not in said
    left = [p for p in tmp_path.glob("*") if p.suffix != ".jsonl" and p.name != ".running.lock"]
    assert left == []


def test_a_full_disk_leaves_no_empty_settings(tmp_path, full_disk, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DiskFull, match="settings.ini could not be written: no space is left"):
        init_command(None)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_a_failed_save_still_holds_open_takes_no_space_when_it_is_counted(tmp_path, monkeypatch):
    opened = []

    def disk_of(folder):
        assert opened[0]() is None
        return tmp_path, 100

    def save():
        file = open(tmp_path / "optimizer.pt", "wb")
        opened.append(weakref.ref(file))
        raise NO_SPACE

    monkeypatch.setattr(checkpoint_saving, "disk_of", disk_of)
    monkeypatch.setattr(checkpoint_saving, "_checkpoint_bytes", lambda trainer: 300)
    with pytest.raises(DiskFull, match="free 200 bytes"):
        with checkpoint_saving.explain_save_error(None, tmp_path / "run" / "checkpoint-1", is_new=True):
            save()


def test_a_lock_that_cannot_be_removed_hides_no_error(tmp_path, monkeypatch):
    def denied(path, missing_ok=False):
        raise PermissionError(13, "Permission denied")

    with pytest.raises(ValueError, match="the real one"), lock_run(tmp_path):
        monkeypatch.setattr(Path, "unlink", denied)
        raise ValueError("the real one")
    monkeypatch.undo()
    with lock_run(tmp_path):  # it is free again
        assert (tmp_path / ".running.json").is_file()


def test_rows_that_do_not_fit_into_the_cache_name_its_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(read.datasets.config, "HF_DATASETS_CACHE", str(tmp_path))

    def tables():
        raise NO_SPACE
        yield

    with pytest.raises(DiskFull, match="ft_notebooks could not be written: no space is left on the disk"):
        read._on_disk(tables(), read.pa.schema([("a", read.pa.int64())]))
    assert list((tmp_path / "ft_notebooks").iterdir()) == []


@pytest.mark.parametrize("error", [ValueError("a row"), KeyError("a"), Exception("os error 280"), OSError(5, "I/O")])
def test_no_other_error_counts_as_a_full_disk_even_when_it_is_full(tmp_path, monkeypatch, error):
    free = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    assert not why_full(error, tmp_path / "x")
    assert why_full(RuntimeError("unexpected pos 576 vs 534"), tmp_path / "x")  # torch.save


DEEP = "[" * 100_000 + "]" * 100_000
DAMAGED = {"nested": DEEP, "nested in a value": '{"a": ' + DEEP + "}", "text": "{", "a list": "[1]", "a number": "3"}


def a_run(folder: Path) -> Path:
    "The records of a finished run."
    (folder / "checkpoint-2").mkdir()
    for name in ("trainer_state.json", "optimizer.pt"):
        (folder / "checkpoint-2" / name).write_text("{}")
    mark_checkpoint(folder / "checkpoint-2", 2)
    (folder / "run.json").write_text(json.dumps({"command": "sft", "model.name": "m", "model.bits": 16}))
    (folder / "metrics.json").write_text(json.dumps({"data": {}, "system": None, "history": []}))
    (folder / "manifest.json").write_text(json.dumps({"run": {"model.dtypes": []}, "recorded": {"versions": {}}}))
    (folder / "adapter_config.json").write_text("{}")
    return folder


RECORDS = {
    "run.json": [known_run, lambda run: check_folder(run, {"seed": 1})],
    "metrics.json": [known_run],
    "manifest.json": [lambda run: check_manifest(run, {"run": {}, "recorded": {"versions": {}}}), trained_bits],
    "metrics.jsonl": [lambda run: read_entries(run / "metrics.jsonl"), logged_history],
    "checkpoint-2/trainer_state.json": [logged_history],
    "answers.jsonl": [lambda run: AnswerFile(run / "answers.jsonl", {})],
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", RECORDS)
def test_a_record_that_was_tampered_with_is_one_sentence_that_names_it(tmp_path, name, damage):
    for reads in RECORDS[name]:
        run = tmp_path / str(RECORDS[name].index(reads))
        run.mkdir()
        (a_run(run) / name).write_text(DAMAGED[damage] + "\n")
        if name.startswith("checkpoint-2"):
            mark_checkpoint(run / "checkpoint-2", 2)
        if name.endswith(".jsonl") and not DAMAGED[damage].startswith(("{", "[[")):
            continue  # a value that is no object is not damage of a log
        try:
            reads(run)
        except ValueError as error:
            assert Path(name).name in str(error) and "\n" not in str(error)
        else:
            assert reads is trained_bits  # a manifest of another program


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_marker_that_was_tampered_with_is_a_fault(tmp_path, damage):
    run = a_run(tmp_path)
    (run / "checkpoint-2" / "complete.json").write_text(DAMAGED[damage])
    assert "complete.json cannot be read" in checkpoint_fault(run / "checkpoint-2")
    for name in ("optimizer.pt\0", "a" * 300):
        (run / "checkpoint-2" / "complete.json").write_text(
            json.dumps({"step": 2, "files": {name: {"size": 2, "sha256": ""}}})
        )
        assert checkpoint_fault(run / "checkpoint-2")
