"""Each load and each save of a run made to fail, with errors of all kinds: what is complete stays, bit for bit, and the
same command then resumes from it and ends at the same weights.

`python tests/checkpointing/test_error_injection.py` prints the table of all errors: file, moment, error, what stays.
"""

import contextlib
import errno
import gc
import hashlib
import io
import itertools
import pickle
import shutil
import tempfile
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerState
from transformers.utils.logging import set_verbosity_error

from ft_notebooks.checkpointing.integrity import checkpoint_fault, last_good_checkpoint
from ft_notebooks.checkpointing.run_manifest import run_folder
from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.sft.trainer import sft_trainer
from ft_notebooks.training.run import fit

pytestmark = pytest.mark.whole

STEPS = 3  # with a checkpoint after each; two are kept

ERRORS = {
    "OutOfMemoryError": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "RuntimeError": lambda: RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    "ENOSPC": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "EIO": lambda: OSError(errno.EIO, "Input/output error"),
    "PermissionError": lambda: PermissionError(errno.EACCES, "Permission denied"),
    "SafetensorError": lambda: SafetensorError("Error while serializing: I/O error: File too large (os error 27)"),
    "UnpicklingError": lambda: pickle.UnpicklingError("Weights only load failed"),
    "MemoryError": MemoryError,
    "Exception": lambda: Exception("No space left on device (os error 28)"),  # as tokenizers raises it
    "KeyboardInterrupt": KeyboardInterrupt,
    "ValueError": lambda: ValueError("loaded state dict contains a parameter group that doesn't match"),
    "RecursionError": lambda: RecursionError("maximum recursion depth exceeded"),
    "EOFError": lambda: EOFError("Ran out of input"),
}
READS = ("EIO", "PermissionError", "KeyboardInterrupt")  # what can end the reading of a text
LOADS = {name: [*ERRORS] for name in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")}
LOADS |= {"trainer_state.json": [*ERRORS], "complete.json": READS, "manifest.json": READS, "run.json": READS}
SAVES = ("adapter_model.safetensors", "tokenizer.json", "training_args.bin", "optimizer.pt", "scheduler.pt")
SAVES += ("rng_state.pth", "trainer_state.json", "README.md", "complete.json")
MODEL = ("adapter_model.safetensors", "tokenizer.json", "training_args.bin", "complete.json")


CASES = {("a load on resume", file): errors for file, errors in LOADS.items()}
CASES |= {("the first save", file): [*ERRORS] for file in SAVES}
CASES |= {("a later save", file): [*ERRORS] for file in SAVES}
CASES |= {
    ("a later save", "rotation"): ["MemoryError", "KeyboardInterrupt"]
}  # it ignores that a file cannot be removed
CASES |= {("the model", file): [*ERRORS] for file in MODEL}


def torn(path, error):
    "What a write leaves that fails half way, and its error."
    if Path(path).parent.is_dir():
        Path(path).write_bytes(b"half of")
    raise error


@contextlib.contextmanager
def failing(moment: str, file: str, error: BaseException):
    "Each read, or each write, of a file of this name raises the error."
    load, save, read, write, remove = torch.load, torch.save, Path.read_text, Path.write_text, shutil.rmtree

    def is_it(path):
        return Path(path).name == file or Path(path).name.startswith(f".{file}.")

    def loads(path, *args, **given):
        return torn_load(error) if is_it(path) else load(path, *args, **given)

    def torn_load(error):
        raise error

    def saves(what, path, *args, **given):
        return torn(path, error) if is_it(path) else save(what, path, *args, **given)

    def reads(path, *args, **given):
        return torn_load(error) if is_it(path) else read(path, *args, **given)

    def writes(path, *args, **given):
        return torn(path, error) if is_it(path) else write(path, *args, **given)

    def removes(path, *args, **given):
        return torn_load(error) if "checkpoint-" in Path(path).name else remove(path, *args, **given)

    def into_folder(thing, folder, *args, **given):
        return torn(Path(folder, file), error)

    loading = moment == "a load on resume"
    if file.endswith((".pt", ".pth", ".bin")):
        patched = patch("torch.load", loads) if loading else patch("torch.save", saves)
    elif file == "adapter_model.safetensors":
        name = "utils.save_and_load.safe_load_file" if loading else "peft_model.safe_save_file"
        patched = patch(f"peft.{name}", side_effect=error)
    elif file == "tokenizer.json":
        patched = patch.object(PreTrainedTokenizerBase, "save_pretrained", into_folder)
    elif file == "trainer_state.json":
        patched = patch.object(TrainerState, "load_from_json" if loading else "save_to_json", side_effect=error)
    elif file == "rotation":
        patched = patch("shutil.rmtree", removes)
    else:
        patched = patch.object(Path, "read_text", reads) if loading else patch.object(Path, "write_text", writes)
    with patched:
        yield


class Stops(TrainerCallback):
    "Ends the run before a step, as a kill does."

    before = 0

    def on_step_begin(self, args, state, control, **kwargs):
        if self.before and state.global_step + 1 == self.before:
            raise RuntimeError("killed")


class Runs:
    "One trainer for all cases, each in a copy of a run's folder."

    def __init__(self, folder):
        set_verbosity_error()
        torch.set_num_threads(1)
        self.folder, self.count, self.stops = Path(folder), itertools.count(), Stops()
        tok, model = tiny_tokenizer(), tiny_model()
        model = add_adapter(model, lora_config(model, r=2, lora_dropout=0.1))
        rows = encode_chats(tok, appointments(8))[0]
        quiet = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}
        fields = {"max_steps": STEPS, "save_steps": 1, "save_total_limit": 2, "logging_steps": 1, "learning_rate": 1e-2}
        self.trainer = sft_trainer(
            model, tok, rows, output_dir=self.folder, effective_batch=2, callbacks=[self.stops], **quiet, **fields
        )
        self.start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        self.begun = {}
        for name, before in {"the first save": 1, "a later save": 3, "the model": 0}.items():
            self.begun[name], self.stops.before = self.folder / name, before
            with contextlib.suppress(RuntimeError), contextlib.redirect_stdout(None):
                self.fit(self.begun[name])
        self.stops.before = 0
        self.weights = self.saved(self.begun["the model"])
        for file in self.begun["the model"].glob("[!c]*.*"):
            if file.suffix not in (".json", ".jsonl"):
                file.unlink()
        (self.begun["the model"] / "complete.json").unlink()
        self.begun["a load on resume"] = self.begun["a later save"]

    def fit(self, run):
        "The same command: a new start of the run in its folder."
        trainer = self.trainer
        trainer.args.output_dir, trainer.optimizer, trainer.lr_scheduler = str(run), None, None
        for name, p in trainer.model.named_parameters():
            if p.requires_grad:
                p.data.copy_(self.start[name])
        run_folder(run, {"seed": 0})
        torch.manual_seed(0)  # as in a new process
        vars(trainer.model).pop("trained_in", None)
        fit(trainer)

    def saved(self, run):
        return hashlib.sha256((run / "adapter_model.safetensors").read_bytes()).hexdigest()

    def case(self, moment, file, error, again=True):
        "What the error was, which complete checkpoints stayed, and from which the same command resumed."
        run = Path(shutil.copytree(self.begun[moment], self.folder / str(next(self.count))))
        before = complete(run)
        raised = None
        try:
            with failing(moment, file, ERRORS[error]()):
                self.fit(run)
        except BaseException as e:
            raised = e
        after, good = complete(run), last_good_checkpoint(run)
        partial = [p.name for p in run.glob("checkpoint-*") if p.name not in after]
        row = {"raised": raised, "before": before, "after": after, "good": good and Path(good).name, "partial": partial}
        if again:
            with contextlib.redirect_stdout(io.StringIO()) as said:
                self.fit(run)
            row["resumes"] = good is None or f"goes on from {good}" in said.getvalue()
            row["same"] = self.saved(run) == self.weights and [*complete(run)][-2:] == ["checkpoint-2", "checkpoint-3"]
        shutil.rmtree(run)
        return row


def complete(run) -> dict[str, dict[str, str]]:
    "The SHA-256 of every file of each checkpoint that is complete."
    folders = [folder for folder in sorted(run.glob("checkpoint-*")) if checkpoint_fault(folder) is None]
    return {p.name: {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in p.iterdir()} for p in folders}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("runs"))


def check(row, moment, file, error):
    where = (moment, file, error, row)
    for name, files in row["before"].items():  # rotation alone deletes, and only when a newer one is complete
        assert row["after"].get(name, files) == files, where
        assert name in row["after"] or len(row["after"]) == 2, where
    assert row["good"] == max([*row["before"], *row["after"]], default=None), where
    assert row["raised"] is not None and (error == "KeyboardInterrupt" or not row["partial"]), where
    if isinstance(row["raised"], KeyboardInterrupt) or file == "rotation":
        return
    said = str(row["raised"])
    assert isinstance(row["raised"], ValueError | OSError) and "again" in said and "[Errno" not in said, where
    if moment == "a load on resume":
        assert file in said or "checkpoint-2 could not be loaded" in said, where  # torch's errors name no file
        assert f"{file} cannot be read" in said or "checkpoint-2 is complete and is kept" in said, where
    else:
        assert ("no space is left on the disk" in said) == (error in ("ENOSPC", "Exception")), where
        assert "which is complete" in said or "it starts from scratch" in said, where


@pytest.mark.parametrize("moment, file", CASES)
def test_what_is_complete_stays_whatever_fails_and_the_same_command_resumes_from_it(runs, moment, file):
    errors = CASES[moment, file]
    first = 2 * [*CASES].index((moment, file))  # two of them (of a first save one), others for each file
    errors = [errors[(first + n) % len(errors)] for n in range(1 if moment == "the first save" else 2)]
    for error in errors:
        again = error == errors[-1] and moment != "the first save"
        row = runs.case(moment, file, error, again)
        check(row, moment, file, error)
        assert not again or row["resumes"] and row["same"], (moment, file, error, row)


def table(runs) -> None:
    for (moment, file), errors in CASES.items():
        stays: dict[str, list[str]] = {}
        for error in errors:
            row = runs.case(moment, file, error)
            try:
                check(row, moment, file, error)
                bad = "" if row["resumes"] and row["same"] else " BUT the same command does not resume"
            except AssertionError:
                bad = f" BUT {row}"
            left = f" and partial {', '.join(row['partial'])}" if row["partial"] else ""
            stays.setdefault(f"{', '.join(row['after']) or 'nothing yet'}{left}{bad}", []).append(error)
        for left, errors in stays.items():
            print(f"| {moment} | {file} | {', '.join(errors)} | {left} |", flush=True)


if __name__ == "__main__":
    gc.collect()
    gc.freeze()
    with tempfile.TemporaryDirectory() as folder:
        table(Runs(folder))
