"Slips in the arguments of the trainers: each is what was meant, or an error that says what to give instead."

import contextlib
import io
import json

import datasets
import pytest
import torch
from transformers import LlamaForCausalLM

from ft_notebooks.core.arguments import ArgumentError
from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.data.preference_encoding import encode_pairs
from ft_notebooks.dpo.trainer import dpo_trainer
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.sft.trainer import sft_trainer
from ft_notebooks.training.preflight import add_guards

TOK = tiny_tokenizer()
CHATS = appointments(4)["messages"]
SFT = [{"messages": chat} for chat in CHATS]
DPO = [
    {"prompt": chat[:-1], "chosen": chat[-1:], "rejected": [{"role": "assistant", "content": "no"}]} for chat in CHATS
]
MAKERS = {"sft_trainer": (sft_trainer, SFT), "dpo_trainer": (dpo_trainer, DPO)}


@pytest.fixture(params=MAKERS)
def maker(request, tmp_path):
    "The function, its rows, and what it makes of arguments and fields"
    make, rows = MAKERS[request.param]
    fixed = {"bf16": False, "report_to": "none", "disable_tqdm": True, "effective_batch": 2}

    def made(*args, **given):
        with contextlib.redirect_stdout(io.StringIO()):
            return make(*args, output_dir=str(tmp_path / "run"), **(fixed | given))

    return request.param, datasets.Dataset.from_list(rows), made


def empty():
    with torch.device("meta"):
        return LlamaForCausalLM(tiny_model().config)


def only(rows):
    yield from rows


def encoded_stream():
    return datasets.Dataset.from_dict({"input_ids": [[1]]}).to_iterable_dataset()


SLIPS = {  # the arguments, from the rows; the argument that the error is about, and a part of its cure
    "swapped": (lambda rows: (TOK, tiny_model(), rows), "model", "the order is"),
    "rows before the tokenizer": (lambda rows: (tiny_model(), rows, TOK), "tok", "the order is"),
    "a name": (lambda rows: ("smollm2", TOK, rows), "model", "load_model"),
    "on the device meta": (lambda rows: (empty(), TOK, rows), "model", "is on the device meta"),
    "wrapped": (lambda rows: (torch.nn.DataParallel(tiny_model()), TOK, rows), "model", "model.module"),
    "a part of a model": (lambda rows: (torch.nn.Linear(2, 2), TOK, rows), "model", "as transformers loads it"),
    "a generator": (lambda rows: (tiny_model(), TOK, only(rows)), "train_dataset", "list(rows)"),
    "a DatasetDict": (lambda rows: (tiny_model(), TOK, datasets.DatasetDict(train=rows)), "train_dataset", "'train'"),
    "encoded and streamed": (lambda rows: (tiny_model(), TOK, encoded_stream()), "train_dataset", "from_generator"),
    "an evaluation by a number": (lambda rows: (tiny_model(), TOK, rows, 5), "eval_dataset", "Dataset"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_names_the_function_the_argument_and_the_cure(maker, slip):
    name, rows, made = maker
    arguments, argument, cure = SLIPS[slip]
    with pytest.raises(ArgumentError) as caught:
        made(*arguments(rows))
    assert (caught.value.where, caught.value.name) == (name, argument)
    assert cure in caught.value.cure and str(caught.value).startswith(f"{name}: {argument} must be ")


@pytest.mark.parametrize(
    "short, meant",
    [("lr", "learning_rate"), ("epochs", "num_train_epochs"), ("batch_size", "effective_batch")],
)
def test_a_name_of_another_library_says_which_field_is_meant(maker, short, meant):
    _, rows, made = maker
    with pytest.raises(ValueError, match=f"^'{short}' is neither .*; did you mean '{meant}'"):
        made(tiny_model(), TOK, rows, **{short: 1})


def test_an_evaluation_that_is_asked_for_needs_rows(maker):
    _, rows, made = maker
    with pytest.raises(ValueError, match="eval_dataset"):
        made(tiny_model(), TOK, rows, eval_strategy="steps")


@pytest.mark.whole
def test_a_path_a_list_and_a_dataset_are_the_same_rows(maker, tmp_path):
    _, rows, made = maker
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows.to_list()))
    trainers = [made(tiny_model(), TOK, given, given) for given in (rows, rows.to_list(), file, str(file))]
    for trainer in trainers[1:]:
        assert trainer.train_dataset.to_list() == trainers[0].train_dataset.to_list()
        assert trainer.eval_dataset.to_list() == trainers[0].eval_dataset.to_list()


def test_a_list_of_encoded_rows_is_taken_as_it_is(tmp_path):
    encoded = encode_chats(TOK, datasets.Dataset.from_list(SFT))[0].to_list()
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = sft_trainer(tiny_model(), TOK, encoded, output_dir=str(tmp_path), effective_batch=2, bf16=False)
    assert [row["input_ids"] for row in trainer.train_dataset] == [row["input_ids"] for row in encoded]


def test_the_reference_model_of_a_preference_run_is_checked_too(tmp_path):
    pairs = encode_pairs(TOK, DPO)[0]
    with pytest.raises(ArgumentError, match="model must be a transformers.PreTrainedModel"):
        dpo_trainer(tiny_model(), TOK, pairs, output_dir=str(tmp_path), effective_batch=2, ref_model="smollm2")


def test_guards_are_added_to_a_trainer_only():
    with pytest.raises(ArgumentError, match="add_guards: trainer must be a transformers.Trainer, got Llama"):
        add_guards(tiny_model())
