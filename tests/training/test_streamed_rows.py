"A stream given to a trainer: the run of the same rows in memory, resumed exactly, and shared by processes"

import contextlib
import io
from itertools import pairwise

import pytest
import torch
from datasets import Dataset, IterableDataset
from ranks_of import ranks
from small_runs import TOK

from ft_notebooks.checkpointing.row_order import set_order
from ft_notebooks.core.arguments import ArgumentError
from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.loading.example_models import tiny_model
from ft_notebooks.sft.trainer import sft_trainer
from ft_notebooks.training.run import fit

ROWS = appointments(22)
FIXED = {"bf16": False, "report_to": "none", "disable_tqdm": True, "effective_batch": 4, "learning_rate": 1e-3}


def made(rows, run, **more):
    with contextlib.redirect_stdout(io.StringIO()):
        return sft_trainer(tiny_model(), TOK, rows, output_dir=str(run), **{**FIXED, **more})


def trained(rows, run, **more):
    trainer = made(rows, run, **more)
    with contextlib.redirect_stdout(io.StringIO()):
        fit(trainer)
    return trainer.model.state_dict()


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def rows_of(batch):
    "The token ids of each row of a batch without padding."
    [ids], ends = batch["input_ids"].tolist(), batch["cu_seq_lens_q"].tolist()
    return [tuple(ids[start:end]) for start, end in pairwise(ends)]


class Stop(Exception):
    "Stands for a kill between two steps."


@pytest.mark.whole
def test_a_run_on_a_stream_is_that_on_its_rows_and_resumes_exactly(tmp_path):
    stream = ROWS.to_iterable_dataset()
    whole = trained(ROWS, tmp_path / "rows", max_steps=6, save_steps=2)
    assert equal(trained(stream, tmp_path / "stream", max_steps=6, save_steps=2), whole)
    killed = made(stream, tmp_path / "killed", max_steps=6, save_steps=2)
    step = killed.training_step

    def stopping(*args, **kwargs):
        if killed.state.global_step == 3:
            raise Stop
        return step(*args, **kwargs)

    killed.training_step = stopping
    with pytest.raises(Stop), contextlib.redirect_stdout(io.StringIO()):
        fit(killed)
    assert (tmp_path / "killed" / "checkpoint-2").is_dir()
    assert equal(trained(ROWS.to_iterable_dataset(), tmp_path / "killed", max_steps=6, save_steps=2), whole)


@pytest.mark.whole
def test_a_stream_in_another_order_does_not_go_on_with_the_run(tmp_path):
    trained(ROWS.to_iterable_dataset().shuffle(seed=0), tmp_path, max_steps=2, save_steps=1)
    with pytest.raises(ValueError, match="use the same rows in the same order"):
        made(ROWS.to_iterable_dataset().shuffle(seed=1), tmp_path, max_steps=2, save_steps=1)


def test_a_stream_of_encoded_rows_is_refused_with_what_to_write(tmp_path):
    ids, _ = encode_chats(TOK, ROWS)
    named = ids.to_iterable_dataset()
    unnamed = IterableDataset.from_generator(lambda: iter(ids))
    for stream in (named, unnamed):
        with pytest.raises(ArgumentError, match=r"rows = Dataset.from_generator\(lambda: stream\), and give rows"):
            made(stream, tmp_path)
    rows = Dataset.from_generator(lambda: named, cache_dir=str(tmp_path / "kept"))
    assert made(rows, tmp_path / "run").train_dataset["labels"][:] == ids["labels"][:]


@pytest.mark.whole
def test_each_process_reads_its_part_of_a_step_and_together_they_read_what_one_does(tmp_path):
    def read(rank):
        trainer = made(ROWS.to_iterable_dataset(), tmp_path / "run", num_train_epochs=1, save_strategy="no")
        loader = trainer.get_train_dataloader()
        set_order(loader, trainer.args, 0)
        return [rows_of(batch) for batch in loader]

    [alone] = ranks(1, read, tmp_path / "one")
    first, second = ranks(2, read, tmp_path / "two")
    for whole, one, other in list(zip(alone, first, second, strict=True))[:-1]:  # the last step repeats rows
        assert len(one) == len(other) == 2 and sorted(one + other) == sorted(whole)
    assert {*sum(first + second, [])} == {*sum(alone, [])} and len({*sum(alone, [])}) == 22
