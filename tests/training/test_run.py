"Edges of `ft_notebooks.training.run`: kills, signals, DPO's second adapter, other threads, and a second call."

import math
import os
import random
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import small_runs
import torch
from peft import get_peft_model_state_dict
from ranks_of import ranks
from safetensors.torch import load_file
from small_runs import ROWS, TOK, forked, on_notes
from transformers import Trainer, TrainerCallback

import ft_notebooks
from ft_notebooks.checkpointing.graceful_stop import save_on_signals
from ft_notebooks.checkpointing.integrity import checkpoint_fault, last_good_checkpoint
from ft_notebooks.checkpointing.run_manifest import run_folder
from ft_notebooks.core.arguments import ArgumentError
from ft_notebooks.core.errors import Stopped
from ft_notebooks.core.seams import attention_of
from ft_notebooks.data.preference_encoding import encode_pairs
from ft_notebooks.dpo.trainer import dpo_trainer
from ft_notebooks.loading.example_models import tiny_model
from ft_notebooks.sft.trainer import sft_trainer
from ft_notebooks.tokenization.padding import pad_batch
from ft_notebooks.training import run as module
from ft_notebooks.training.run import fit
from ft_notebooks.training.run_report import SamplesCallback

pytestmark = pytest.mark.whole

FIELDS = {"bf16": False, "effective_batch": 4, "learning_rate": 1e-2, "max_steps": 6, "save_steps": 2}
FIELDS |= {"report_to": "none", "disable_tqdm": True}
NAMES = ["Ann", "Bob", "Cid", "Dora", "Eve", "Finn", "Gus", "Hal"]
PAIRS = [{"prompt": f"I am {name}", "chosen": f"hello {name}", "rejected": f"go away {name}"} for name in NAMES]


def supervised(folder, make=on_notes, **fields):
    return sft_trainer(make(), TOK, ROWS, output_dir=str(folder), **FIELDS | fields)


def preferences(folder, make=on_notes, **fields):
    return dpo_trainer(make(), TOK, encode_pairs(TOK, PAIRS)[0], output_dir=str(folder), **FIELDS | fields)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    fit(supervised(folder := tmp_path_factory.mktemp("finished") / "run"))
    return folder


@pytest.fixture
def run(finished, tmp_path):
    "A copy of a finished run."
    return Path(shutil.copytree(finished, tmp_path / "run"))


def files(run):
    return {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in run.rglob("*")}


def saved(run):
    [file] = run.glob("*.safetensors")
    return load_file(file)


def alike(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(("make", "attention"), [(supervised, "documents"), (preferences, "shared")])
def test_a_training_computes_by_the_faster_attention_and_restores_the_model(make, attention, tmp_path):
    seen = []

    class Looks(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            seen.append(attention_of(model))

    trainer = make(tmp_path, max_steps=1, callbacks=[Looks()])
    trainer.train()
    assert seen == [attention] and attention_of(trainer.model) == "sdpa"


@pytest.mark.parametrize("make", [supervised, preferences])
def test_an_evaluation_that_runs_out_of_memory_says_which_batch_is_smaller(make, tmp_path):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainer = make(tmp_path, eval_dataset=ROWS if make is supervised else PAIRS)
    trainer.model.register_forward_pre_hook(full)
    with pytest.raises(ValueError, match="out of memory in the evaluation .*per_device_eval_batch_size=4 .it is 8"):
        trainer.evaluate()


@pytest.mark.parametrize("make", [supervised, preferences])
def test_a_training_starts_from_no_checkpoint_that_is_not_complete(make, tmp_path):
    trainer = make(tmp_path)
    torn = tmp_path / "checkpoint-1"
    torn.mkdir()
    for start, said in ((str(torn), "checkpoint-1"), (True, "holds no complete checkpoint")):
        with pytest.raises(ValueError, match=said):
            trainer.train(start)


@pytest.mark.parametrize(("make", "model"), [(preferences, on_notes), (supervised, tiny_model)])
def test_a_run_is_saved_as_it_is_in_memory_and_a_second_start_loads_the_same(make, model, tmp_path):
    first = make(tmp_path, model)
    assert fit(first).global_step == 6
    before, again = files(tmp_path), make(tmp_path, model)
    assert fit(again).global_step == 6 and files(tmp_path) == before
    found = [{name: p.detach() for name, p in trainer.model.named_parameters()} for trainer in (first, again)]
    assert alike(*found)
    if model is on_notes:
        assert alike(saved(tmp_path), get_peft_model_state_dict(again.model))
        assert [*again.model.peft_config] == ["default"] and not (tmp_path / "ref").exists()
    assert (tmp_path / "tokenizer.json").is_file()


def test_a_second_call_on_the_same_trainer_changes_nothing(tmp_path):
    trainer = preferences(tmp_path)
    fit(trainer)
    before, weights = files(tmp_path), {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    assert math.isnan(fit(trainer).training_loss)  # no step, no loss
    assert files(tmp_path) == before and alike(weights, dict(trainer.model.named_parameters()))


def test_a_run_killed_while_its_model_is_saved_saves_it_again(tmp_path):
    def child():
        trainer = supervised(tmp_path / "killed")
        save = trainer.save_model

        def torn(folder=None, *args, **kwargs):
            save(folder, *args, **kwargs)
            if folder is not None and Path(folder) == tmp_path / "killed/.model":
                Path(folder, "adapter_model.safetensors").write_bytes(b"torn")
                os.kill(os.getpid(), signal.SIGKILL)

        trainer.save_model = torn
        fit(trainer)

    assert forked(child) == -signal.SIGKILL
    assert Path(tmp_path, "killed/.model/adapter_model.safetensors").read_bytes() == b"torn"
    fit(supervised(tmp_path / "killed"))
    fit(supervised(tmp_path / "whole"))
    assert alike(saved(tmp_path / "killed"), saved(tmp_path / "whole"))


def test_the_hub_gets_the_model_from_its_place_with_the_card_of_the_run(tmp_path, monkeypatch):
    trainer, pushed = supervised(tmp_path), []
    trainer.args.push_to_hub = True  # the hub's repository is made at the start, which needs a network
    monkeypatch.setattr(trainer, "push_to_hub", lambda **given: pushed.append(sorted(files(tmp_path))))
    module._save(trainer)
    assert len(pushed) == 1 and not (tmp_path / ".model").exists()
    assert any("adapter_model.safetensors" in str(name) for name in pushed[0]) and trainer.args.push_to_hub


@pytest.mark.parametrize(("make", "model"), [(preferences, on_notes), (supervised, tiny_model)])
def test_the_card_of_a_run_says_what_was_trained_and_no_local_path(make, model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "my base")
    based = model()
    (based.get_base_model() if model is on_notes else based).name_or_path = str(tmp_path / "my base")
    fit(trainer := make(tmp_path / "run", lambda: based))
    card = (tmp_path / "run/README.md").read_text()
    for said in ("| base | my base |", "| steps | 6 |", "| rows a step | 4 |", "0.01, linear", "Licence: not stated"):
        assert said in card
    assert "None" not in card and str(tmp_path) not in card and "](" not in card
    trainer.create_model_card(model_name="run")  # as a push does
    assert (tmp_path / "run/README.md").read_text() == card


def test_every_file_of_a_run_has_the_permissions_that_the_umask_gives(finished):
    modes = {oct(file.stat().st_mode & 0o777) for file in finished.rglob("*") if file.is_file()}
    umask = os.umask(0)
    os.umask(umask)
    assert modes == {oct(0o666 & ~umask)}


def test_a_run_that_each_host_would_save_is_refused(tmp_path):
    trainer = supervised(tmp_path)
    trainer.args.save_on_each_node = True
    with pytest.raises(ValueError, match="save_on_each_node=True: fit keeps one run in a folder that all hosts share"):
        fit(trainer)


def test_a_saved_file_that_is_lost_is_saved_again_and_what_others_write_beside_it_is_no_loss(run):
    (run / "notes.txt").write_text("mine")
    before = files(run)
    fit(supervised(run))
    assert files(run) == before
    (run / "adapter_config.json").unlink()
    fit(supervised(run))
    assert (run / "adapter_config.json").is_file() and (run / "notes.txt").read_text() == "mine"


class TermInTheSecond(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3 and args.process_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def test_two_processes_are_stopped_by_a_signal_to_one_go_on_together_and_then_change_nothing(tmp_path):
    run = tmp_path / "run"

    def start(rank, *callbacks):
        try:
            return fit(supervised(run, callbacks=list(callbacks))).global_step
        except Stopped as stop:
            return stop.signal, stop.checkpoint, stop.step

    stopped = ranks(2, lambda rank: start(rank, TermInTheSecond()), tmp_path / "stopped")
    assert stopped == [(signal.SIGTERM, str(run / "checkpoint-4"), 4)] * 2 and not (run / "complete.json").exists()
    assert ranks(2, start, tmp_path / "goes on") == [6, 6]
    before = files(run)
    assert ranks(2, start, tmp_path / "again") == [6, 6] and files(run) == before


def test_outside_of_the_main_thread_it_trains_without_hearing_signals(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "save_on_signals", lambda trainer: pytest.fail("Python handles no signals here"))
    thread = threading.Thread(target=lambda: fit(supervised(tmp_path, max_steps=1)))
    thread.start()
    thread.join()
    assert (tmp_path / "complete.json").is_file() and save_on_signals is not module.save_on_signals


def test_an_interruption_names_the_checkpoint_or_says_that_there_is_none(tmp_path, monkeypatch):
    class Impatient(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                raise KeyboardInterrupt

    with pytest.raises(Stopped, match="no checkpoint is saved yet") as stopped:
        fit(supervised(tmp_path, callbacks=[Impatient()]))
    assert (stopped.value.signal, stopped.value.checkpoint, stopped.value.step) == (signal.SIGINT, None, 0)


@pytest.mark.parametrize("fields", [{"save_strategy": "no"}, {"save_only_model": True}])
def test_a_run_that_would_leave_no_checkpoint_is_refused_before_it_starts(tmp_path, fields):
    [(name, value)] = fields.items()
    with pytest.raises(ValueError, match=f"{name}={value!r} leaves no checkpoint for fit"):
        fit(supervised(tmp_path, **fields))
    assert not [*tmp_path.glob("*.safetensors")]


def test_another_run_is_refused_in_its_folder(run):
    before = files(run)
    with pytest.raises(ValueError, match="holds a different run: learning_rate was 0.01, is 0.02"):
        fit(supervised(run, learning_rate=0.02))
    assert files(run) == before


def test_of_two_trainers_made_before_either_ran_the_second_leaves_the_folder_as_it_is(tmp_path):
    chats = [[{"role": "user", "content": "hi"}]]
    one, other = (
        supervised(tmp_path, learning_rate=rate, callbacks=[SamplesCallback(TOK, chats, 2)]) for rate in (0.01, 0.02)
    )
    fit(one)
    for checkpoint in tmp_path.glob("checkpoint-*"):  # so that the model alone is there
        shutil.rmtree(checkpoint)
    before = files(tmp_path)
    with pytest.raises(ValueError, match="holds a different run: learning_rate was 0.01, is 0.02"):
        fit(other)
    assert files(tmp_path) == before


def test_a_dpo_trainer_without_its_second_adapter_says_so_and_computes_no_other_reference(tmp_path):
    trainer = preferences(tmp_path, max_steps=2, precompute_ref_log_probs=False)
    fit(trainer)
    trainer.eval_dataset = encode_pairs(TOK, PAIRS)[0]
    with pytest.raises(ValueError, match="the reference adapter no longer exists"):
        trainer.evaluate()


def test_it_is_one_of_the_names_at_the_root():
    assert ft_notebooks.fit is fit


@pytest.mark.parametrize("given", [tiny_model(), "runs/sft", None])
def test_what_is_no_trainer_is_refused(given):
    with pytest.raises(
        ArgumentError, match="fit: trainer must be a transformers.Trainer, got .*; make one: sft_trainer"
    ):
        fit(given)


def test_what_others_write_beside_the_model_is_no_part_of_it(tmp_path, monkeypatch):
    save = module._save_apart

    def saved_beside_a_log(trainer, folder):
        save(trainer, folder)
        (tmp_path / "run.log").write_text("a line")
        (tmp_path / ".part.1234").write_text("of another file")

    monkeypatch.setattr(module, "_save_apart", saved_beside_a_log)
    fit(supervised(tmp_path))
    (tmp_path / "run.log").write_text("a line, and another")
    before = files(tmp_path)
    assert "run.log" not in (tmp_path / "complete.json").read_text() and not (tmp_path / ".model").exists()
    fit(supervised(tmp_path))
    assert files(tmp_path) == before


class Deletes(TrainerCallback):
    "Removes the run's folder, or a record in it, at the end of a step."

    def __init__(self, at, what="."):
        self.at, self.what = at, what

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.at:
            gone = Path(args.output_dir, self.what)
            shutil.rmtree(gone) if gone.is_dir() else gone.unlink()


@pytest.mark.parametrize("what, lost", [(".", "manifest.json and run.json"), ("manifest.json", "manifest.json")])
def test_a_folder_that_is_deleted_during_training_ends_the_run_with_the_weights_kept(what, lost, tmp_path):
    run_folder(tmp_path / "run", {"a": 1})
    gone = f"run was deleted, emptied or moved during training: {lost} and earlier checkpoints are gone.* Kept: .*-4"
    with pytest.raises(ValueError, match=gone):
        fit(supervised(tmp_path / "run", callbacks=[Deletes(3, what)]))
    assert checkpoint_fault(tmp_path / "run/checkpoint-4") is None
    with pytest.raises(ValueError, match="but no manifest.json, so it cannot be compared"):
        supervised(tmp_path / "run")


def test_a_folder_that_is_deleted_after_the_last_checkpoint_still_gets_the_model(tmp_path):
    class DeletesAtTheEnd(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            shutil.rmtree(args.output_dir)

    with pytest.raises(ValueError, match=f"Kept: {tmp_path / 'run'}, with the weights of step 6; move it away"):
        fit(trainer := supervised(tmp_path / "run", callbacks=[DeletesAtTheEnd()]))
    assert alike(saved(tmp_path / "run"), get_peft_model_state_dict(trainer.model))


def test_all_processes_notice_that_the_folder_was_deleted(tmp_path):
    def start(rank):
        try:
            return fit(supervised(tmp_path / "run", callbacks=[Deletes(3)] if rank == 0 else [])).global_step
        except ValueError as error:
            return str(error)

    said = ranks(2, start, tmp_path / "ranks")
    assert len(said) == 2 and all("deleted, emptied or moved during training" in one for one in said)


@pytest.mark.parametrize(("step", "accumulation"), [(2, 1), (4, 2)])  # within an epoch, and at the end of one
def test_a_collator_that_draws_random_numbers_draws_the_same_after_a_kill(tmp_path, step, accumulation):
    def noisy(rows):
        batch = pad_batch(rows, 0)
        hidden = torch.rand(batch["input_ids"].shape) < 0.1
        batch["input_ids"][hidden] = random.randrange(5, 200) + int(np.random.randint(3))
        return batch

    class Killed(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step + 1:
                raise InterruptedError

    def make(folder, *callbacks):
        args = small_runs.arguments(folder, eval_strategy="no", save_steps=2, gradient_accumulation_steps=accumulation)
        data = {"train_dataset": small_runs.rows()[:7], "data_collator": noisy}
        return Trainer(small_runs.adapted(), args, callbacks=list(callbacks), **data)

    fit(whole := make(tmp_path / "whole"))
    with pytest.raises(InterruptedError):
        fit(make(tmp_path / "killed", Killed()))
    fit(again := make(tmp_path / "killed"))
    assert torch.equal(small_runs.weights(again), small_runs.weights(whole))


def test_a_checkpoint_that_was_renamed_and_marked_again_is_not_resumed_from(run):
    last = run / "checkpoint-6"
    marker = last / "complete.json"
    marker.write_text(marker.read_text().replace('"step": 6', '"step": 9'))
    last.rename(run / "checkpoint-9")
    assert "trainer_state.json is of step 6, and complete.json of step 9" in checkpoint_fault(run / "checkpoint-9")
    assert last_good_checkpoint(run) == str(run / "checkpoint-4")


@pytest.mark.parametrize("name", ["", " ", None, 3, "a\0b", "a\udce9b", "x" * 231])
def test_a_folder_that_no_run_can_have_is_refused_when_the_trainer_is_made(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="output_dir: .*(names no folder|is not valid UTF-8|longer than 230 bytes)"):
        sft_trainer(on_notes(), TOK, ROWS, output_dir=name, **FIELDS)
    assert not [*tmp_path.iterdir()]
