"A run that has finished and is started again: nothing is trained, written or forgotten."

import contextlib
import io
import json

import datasets
import pytest
import torch
from small_runs import ROWS, TOK, on_notes, sft
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, TrainerCallback
from trl import SFTTrainer

from ft_notebooks.checkpointing.integrity import last_good_checkpoint
from ft_notebooks.checkpointing.resume import exact_resume
from ft_notebooks.data.preference_encoding import encode_pairs
from ft_notebooks.dpo.trainer import dpo_trainer
from ft_notebooks.loading.example_models import tiny_model
from ft_notebooks.sft.trainer import sft_trainer

pytestmark = pytest.mark.whole

NAMES = ["Ann", "Bob", "Cid", "Dora", "Eve", "Finn", "Gus", "Hal"]
PAIRS = [{"prompt": f"I am {name}", "chosen": f"hello {name}", "rejected": f"go away {name}"} for name in NAMES]
FIXED = {
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "effective_batch": 4,
    "lr_scheduler_type": "constant",
}
FIXED |= {"learning_rate": 1e-3, "save_steps": 2}
BEST = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_steps": 1,
    "metric_for_best_model": "loss",
    "greater_is_better": True,
}


def plain(*args, **kwargs):
    return exact_resume(SFTTrainer(*args, **kwargs))


class Seen(TrainerCallback):
    "What a user's callback is told of."

    def __init__(self):
        self.events = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.events.append(("begin", state.global_step))

    def on_step_begin(self, args, state, control, **kwargs):
        self.events.append(("step", state.global_step))

    def on_train_end(self, args, state, control, **kwargs):
        self.events.append(("end", state.global_step))


def supervised(folder, model=on_notes, callbacks=(), **fields):
    with contextlib.redirect_stdout(io.StringIO()):
        given = {**FIXED, "eval_dataset": ROWS.select(range(2)), **fields}
        return sft_trainer(model(), TOK, ROWS, output_dir=str(folder), callbacks=list(callbacks), **given)


def preferences(folder, model=on_notes, callbacks=(), **fields):
    with contextlib.redirect_stdout(io.StringIO()):
        rows = encode_pairs(TOK, PAIRS)[0]
        return dpo_trainer(
            model(),
            TOK,
            rows,
            rows.select(range(2)),
            output_dir=str(folder),
            callbacks=list(callbacks),
            **{**FIXED, **fields},
        )


def held(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def alike(one, other):
    return one.keys() == other.keys() and all(torch.equal(p, other[name]) for name, p in one.items())


def files(run):
    return {str(p.relative_to(run)): (p.stat().st_mtime_ns, p.stat().st_size) for p in run.rglob("*")}


def twice(make, run, **fields):
    "The run, and its second start: both trainers, and what the second one returned; the second changes no file."
    with contextlib.redirect_stdout(io.StringIO()):
        (first := make(run, **fields)).train()
        before, again = files(run), make(run, **fields)
        seen = Seen()
        again.add_callback(seen)
        output = again.train(last_good_checkpoint(run))
    assert files(run) == before
    step = first.state.global_step
    assert seen.events == [("begin", step), ("end", step)]
    assert (
        output.global_step == again.state.global_step == step and output.metrics["train_loss"] == output.training_loss
    )
    return first, again, output


@pytest.fixture(scope="module", autouse=True)
def quiet():
    datasets.disable_progress_bars()


@pytest.mark.parametrize(("make", "model"), [(supervised, on_notes), (supervised, tiny_model), (preferences, on_notes)])
def test_a_finished_run_that_is_started_again_changes_nothing(make, model, tmp_path):
    first, again, _ = twice(make, tmp_path, model=model, max_steps=3)
    assert alike(held(again), held(first))
    logged = [entry for entry in again.state.log_history if "train_runtime" not in entry]
    assert logged == [entry for entry in first.state.log_history if "train_runtime" not in entry]


@pytest.mark.parametrize(
    "fields",
    [
        {"num_train_epochs": 1.5},
        {"num_train_epochs": 1, "save_strategy": "epoch", "logging_strategy": "epoch"},
        {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True},
    ],
)
def test_a_run_is_finished_by_its_epochs_too_and_whenever_it_logs_and_evaluates(fields, tmp_path):
    first, again, _ = twice(supervised, tmp_path, **fields)
    assert alike(held(again), held(first)) and again.args.eval_on_start == bool(fields.get("eval_on_start"))


def early(folder, patience=2, **fields):
    stops = EarlyStoppingCallback(early_stopping_patience=patience)
    return supervised(
        folder, callbacks=[stops], max_steps=9, restore_callback_states_from_checkpoint=True, **{**BEST, **fields}
    )


def test_a_run_that_early_stopping_has_ended_is_finished_and_holds_its_best_weights_again(tmp_path):
    first, again, _ = twice(early, tmp_path, load_best_model_at_end=True)
    assert first.state.global_step == 3 and first.state.best_global_step == 1 and alike(held(again), held(first))


def test_more_patience_lets_a_run_go_on_that_early_stopping_has_ended(tmp_path):
    with contextlib.redirect_stdout(io.StringIO()):
        early(tmp_path).train()
        (again := early(tmp_path, patience=4)).train(last_good_checkpoint(tmp_path))
    assert again.state.global_step > 3


def test_a_run_that_a_callback_has_stopped_is_not_finished(tmp_path):
    class Stops(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = control.should_save = True

    with contextlib.redirect_stdout(io.StringIO()):
        supervised(tmp_path, callbacks=[Stops()], max_steps=3).train()
        (again := supervised(tmp_path, max_steps=3)).train(last_good_checkpoint(tmp_path))
    assert again.state.global_step == 3 and last_good_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")


def test_more_steps_let_a_finished_run_go_on_as_if_there_had_been_more_from_the_start(tmp_path):
    given = {"kind": plain, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    with contextlib.redirect_stdout(io.StringIO()):
        (whole := sft(tmp_path / "whole", max_steps=5, **given)).train()
        sft(tmp_path / "parts", max_steps=3, **given).train()
        (parts := sft(tmp_path / "parts", max_steps=5, **given)).train(last_good_checkpoint(tmp_path / "parts"))
    assert parts.state.global_step == 5 and alike(held(parts), held(whole))


def test_fewer_steps_than_are_trained_already_take_none(tmp_path):
    given = {"kind": plain, "save_strategy": "steps", "save_steps": 2}
    with contextlib.redirect_stdout(io.StringIO()):
        (first := sft(tmp_path, max_steps=5, **given)).train()
        before = files(tmp_path)
        (again := sft(tmp_path, max_steps=3, **given)).train(last_good_checkpoint(tmp_path))
    assert again.state.global_step == 5 and alike(held(again), held(first)) and files(tmp_path) == before


def test_a_stream_of_rows_ends_too(tmp_path):
    given = {
        "kind": plain,
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 3,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    with contextlib.redirect_stdout(io.StringIO()):
        (first := sft(tmp_path, rows=ROWS.to_iterable_dataset(), **given)).train()
        before = files(tmp_path)
        (again := sft(tmp_path, rows=ROWS.to_iterable_dataset(), **given)).train(last_good_checkpoint(tmp_path))
    assert again.state.global_step == 3 and alike(held(again), held(first)) and files(tmp_path) == before


def test_a_trainer_that_has_loaded_a_finished_run_begins_anew_only_with_untrained_weights(tmp_path):
    with contextlib.redirect_stdout(io.StringIO()):
        supervised(tmp_path, max_steps=3).train()
        trainer = supervised(tmp_path, max_steps=3)
        at_start = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        trainer.train(last_good_checkpoint(tmp_path))
        seen = Seen()
        trainer.add_callback(seen)
        with pytest.raises(ValueError, match="would start from weights that SFTTrainer has trained"):
            trainer.train()
        assert not any(event == "step" for event, _ in seen.events)
        trainer.model.load_state_dict(at_start)
        del trainer.model.trained_in  # as on a model that was loaded again
        trainer.train()
    assert [step for event, step in seen.events if event == "step"] == [0, 1, 2]


def test_the_end_of_a_run_that_was_killed_after_its_last_checkpoint_is_made_up_for(tmp_path):
    from ft_notebooks.training.run_report import SamplesCallback

    class Dies(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    def listens():
        return SamplesCallback(TOK, [[{"role": "user", "content": "hello"}]], max_new_tokens=3)

    with contextlib.redirect_stdout(io.StringIO()):
        (whole := supervised(tmp_path / "whole", callbacks=[listens()], max_steps=3)).train()
        with pytest.raises(KeyboardInterrupt):
            supervised(tmp_path / "killed", callbacks=[listens(), Dies()], max_steps=3).train()
        (again := supervised(tmp_path / "killed", callbacks=[listens()], max_steps=3)).train(
            last_good_checkpoint(tmp_path / "killed")
        )
    texts = [(tmp_path / name / "samples.jsonl").read_text(encoding="utf-8") for name in ("whole", "killed")]
    assert alike(held(again), held(whole)) and texts[0] == texts[1]
    assert {json.loads(line)["step"] for line in texts[0].splitlines()} == {0, 3}


PLAIN = {"save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant"}


@pytest.mark.parametrize(
    "fields",
    [
        {"num_train_epochs": 1, "max_steps": -1},
        {"max_steps": 3, "save_strategy": "epoch", "logging_strategy": "epoch"},
        {"max_steps": 3, "train_sampling_strategy": "group_by_length"},
        {"max_steps": 3, "dataloader_num_workers": 1},
    ],
)
def test_a_plain_trainer_of_a_finished_run_changes_nothing_either(fields, tmp_path):
    def make(run, **fields):
        return sft(run, kind=plain, **PLAIN | fields)

    first, again, _ = twice(make, tmp_path, **fields)
    assert alike(held(again), held(first)) and again.state.log_history[:-1] == first.state.log_history[:-1]


def test_a_step_beyond_the_end_is_an_error_where_the_loader_cannot_be_emptied(tmp_path):
    class Batches:
        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            return iter([[(row + self.epoch) % 8, row + 8] for row in range(8)])

        def __len__(self):
            return 8

    class Own(SFTTrainer):
        def get_train_dataloader(self):
            return DataLoader(self.train_dataset, batch_sampler=Batches(), collate_fn=self.data_collator)

    def make():
        return sft(tmp_path, kind=lambda *args, **kwargs: exact_resume(Own(*args, **kwargs)), max_steps=3, **PLAIN)

    with contextlib.redirect_stdout(io.StringIO()):
        make().train()
        before = files(tmp_path)
        with pytest.raises(ValueError, match="the run has ended at step 3"):
            make().train(last_good_checkpoint(tmp_path))
    assert files(tmp_path) == before
