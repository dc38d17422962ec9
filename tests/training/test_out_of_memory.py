"Edges of `ft_notebooks.training.out_of_memory`."

import re
import warnings
from functools import partial
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from small_runs import ROWS, sft, train
from trl import SFTConfig, SFTTrainer

from ft_notebooks.checkpointing.integrity import last_good_checkpoint
from ft_notebooks.checkpointing.resume import exact_resume
from ft_notebooks.loading.example_models import tiny_model
from ft_notebooks.loading.memory_estimate import estimate_memory
from ft_notebooks.loading.training_memory import NotEstimated
from ft_notebooks.training import out_of_memory
from ft_notebooks.training.out_of_memory import MemoryCheck, explain_out_of_memory

datasets.disable_progress_bars()
warnings.filterwarnings("ignore", category=FutureWarning)


def mine(*args, rehearse=None, **kwargs):
    trainer = exact_resume(SFTTrainer(*args, **kwargs))
    trainer.add_callback(MemoryCheck(trainer, rehearse))
    return trainer


make = partial(sft, kind=mine)


def test_lengths_are_those_of_all_columns_of_ids():
    pairs = datasets.Dataset.from_dict({"prompt_ids": [[1], [1, 2]], "chosen_ids": [[1, 2, 3], [1]], "n": [5, 6]})

    def worst(data):
        args = SimpleNamespace(per_device_train_batch_size=1)
        return out_of_memory._largest_micro_batch(SimpleNamespace(train_dataset=data, args=args))

    rows, lengths = worst(pairs)
    assert rows == [0] and lengths.tolist() == [4, 3] and worst(pairs.select([1]))[1].tolist() == [3]
    assert worst(pairs.select([])) is None and worst(pairs.to_iterable_dataset()) is None


def test_transformers_may_find_the_batch_size_itself(tmp_path):
    trainer = make(
        tmp_path, auto_find_batch_size=True, per_device_train_batch_size=4, gradient_accumulation_steps=1, max_steps=2
    )

    def forward(layer, args):
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    trainer.model.get_input_embeddings().register_forward_pre_hook(forward)
    assert train(trainer).state.global_step == 2 and trainer._train_batch_size <= 2


@pytest.mark.whole
def test_a_trial_step_holds_what_a_later_step_holds(tmp_path):
    rehearsed, held = partial(sft, kind=partial(mine, rehearse=True)), []
    trainer = rehearsed(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
    later = out_of_memory._allocate_as_later
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(out_of_memory, "_allocate_as_later", lambda trainer: held.append(later(trainer)) or held[-1])
        train(trainer)
        again = rehearsed(tmp_path, max_steps=3)
        train(again, resume_from_checkpoint=last_good_checkpoint(tmp_path))
    states = [t for state in trainer.optimizer.state.values() for t in state.values() if t.dim()]
    assert sum(t.nbytes for t in held[0]) == sum(t.nbytes for t in states) and held[1] == []  # read from the checkpoint


def test_gradients_of_the_micro_batches_before_are_there_only_where_there_are_some(tmp_path):
    for parts in (1, 2):
        trainer = make(tmp_path, gradient_accumulation_steps=parts)
        trainer.create_optimizer()
        out_of_memory._allocate_as_later(trainer)
        assert all((p.grad is not None) == (parts > 1) for p in trainer.model.parameters() if p.requires_grad)
        assert not any(p.grad is not None for p in trainer.model.parameters() if not p.requires_grad)


@pytest.mark.whole
def test_what_is_advised_fits_by_the_estimate_and_the_next_larger_does_not(tmp_path):
    ends = {"padding_free": True, "max_length": None}
    trainer = make(tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=1, **ends)
    lengths = sorted(map(len, ROWS["input_ids"]), reverse=True)
    tokens = {n: sum(lengths[:n]) for n in (2, 4)}
    config, adapter = trainer.model.get_base_model().config, trainer.model.peft_config["default"]
    fixed = {"bits": 32, "adapter": adapter, "device": "cpu", "dtype": None, "checkpointing": False}
    two, four = (estimate_memory(config, "lora", length=int(n), **fixed).total for n in tokens.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(out_of_memory, "available_memory", lambda device: four / 0.95)  # a tenth is kept free
        assert (
            "per_device_train_batch_size=2, gradient_accumulation_steps=4 (they are 8 and 1)"
            in out_of_memory._advice(trainer)
        )


def test_where_there_is_no_estimate_half_is_advised(tmp_path):
    trainer = make(tmp_path, model=tiny_model())
    trainer.model.get_input_embeddings().requires_grad_(False)
    assert (
        "try per_device_train_batch_size=1 and twice the accumulation; memory is not estimated"
        in out_of_memory._advice(trainer)
    )


def test_checkpointing_is_advised_by_a_name_that_the_installed_config_has(tmp_path):
    trainer = make(tmp_path, model=tiny_model(), per_device_train_batch_size=1)
    trainer.model.get_input_embeddings().requires_grad_(False)
    name, value = re.search(r"try (\w+)=(\w+); memory is not estimated", out_of_memory._advice(trainer)).groups()
    assert name.endswith("_checkpointing") and getattr(
        SFTConfig(tmp_path, use_cpu=True, bf16=False, **{name: value == "True"}), name
    )


def test_a_gpu_runs_the_trial_step_and_a_cpu_only_by_request(tmp_path, monkeypatch):
    trainer = make(tmp_path, max_steps=1)
    trainer.create_optimizer()
    worst = out_of_memory._largest_micro_batch(trainer)
    monkeypatch.setattr(out_of_memory, "_check_memory", lambda trainer, *worst: checked.append(worst[0]))
    checked, tried = [], []
    monkeypatch.setattr(
        trainer, "training_step", lambda model, batch, items: tried.append((batch["input_ids"].shape, items))
    )
    cpu, gpu = (
        SimpleNamespace(device=torch.device(kind), optim="adamw_torch") for kind in ("cpu", "meta")
    )  # no CPU either
    for args, rehearse, expected in [
        (cpu, None, (1, 0)),
        (cpu, True, (1, 1)),
        (gpu, None, (0, 1)),
        (gpu, False, (0, 0)),
    ]:
        check = MemoryCheck(trainer, rehearse)
        checked.clear(), tried.clear()
        check.on_train_begin(args, trainer.state, trainer.control)
        assert (len(checked), len(tried)) == expected, (args, rehearse)
    check = MemoryCheck(trainer, rehearse=True)
    check.on_train_begin(cpu, trainer.state, trainer.control)
    labels = [label for i in worst[0] for label in ROWS[i]["labels"][1:]]
    assert tried == [((2, max(map(len, ROWS["input_ids"]))), sum(label != -100 for label in labels))]
    for optim in ("lomo", "galore_adamw_layerwise"):  # these would take the step in the backward pass
        tried.clear()
        check.on_train_begin(SimpleNamespace(device=torch.device("meta"), optim=optim), trainer.state, trainer.control)
        assert not tried


def test_rows_that_are_not_known_beforehand_get_no_trial_step_and_half_is_advised(tmp_path):
    kind = partial(mine, rehearse=True)
    trainer = sft(tmp_path, kind=kind, rows=ROWS.to_iterable_dataset(), max_steps=1)
    assert train(trainer).state.global_step == 1
    assert (
        "per_device_train_batch_size=1 and twice the accumulation; memory is not estimated, as the rows are not"
        in out_of_memory._advice(trainer)
    )


@pytest.mark.whole
def test_an_error_says_where_to_go_on_from(tmp_path):
    trainer = make(tmp_path, save_strategy="steps", save_steps=2)

    def forward(layer, args):
        if trainer.state.global_step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it")

    trainer.model.get_input_embeddings().register_forward_pre_hook(forward)
    with (
        pytest.raises(
            ValueError, match=r"out of memory in step 4 \(CUDA out of memory. Tried to allocate 2.00 GiB.\): "
        ) as error,
        explain_out_of_memory(trainer),
    ):
        train(trainer)
    assert str(error.value).endswith(
        f". The last complete checkpoint is {tmp_path / 'checkpoint-2'}: resume from there"
    )


def test_the_error_of_an_evaluation_that_keeps_all_logits_says_how_to_keep_token_ids(tmp_path):
    trainer, error = make(tmp_path), torch.OutOfMemoryError("CUDA out of memory.")
    assert "per_device_eval_batch_size=4 (it is 8)" in out_of_memory._in_evaluation(trainer, error)
    assert "compute_metrics" not in out_of_memory._in_evaluation(trainer, error)
    trainer.compute_metrics = len
    assert "preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1)" in out_of_memory._in_evaluation(
        trainer, error
    )
    trainer.preprocess_logits_for_metrics, trainer.args.per_device_eval_batch_size = max, 1
    assert out_of_memory._in_evaluation(trainer, error).endswith(": a smaller max_length for eval_dataset")


def test_an_error_says_whether_it_came_in_the_trial_step(tmp_path):
    trainer, error = make(tmp_path), torch.OutOfMemoryError("CUDA out of memory.")
    assert out_of_memory._in_training(trainer, error).startswith("out of memory in step 1 (")
    assert out_of_memory._in_training(trainer, error, trial=True).startswith(
        "out of memory in the trial step, before step 1 ("
    )


def test_few_labels_do_not_raise_for_what_all_labels_would_take(tmp_path):
    trainer, asked = make(tmp_path), []

    def peak(tokens, labelled=1.0):
        asked.append(labelled)
        return 2e9 * labelled

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(out_of_memory, "step_memory", lambda model, fields: peak)
        patch.setattr(out_of_memory, "available_memory", lambda device: 1e9)
        worst = out_of_memory._largest_micro_batch(trainer)
        out_of_memory._check_memory(trainer, *worst)
    labels = [label for i in worst[0] for label in ROWS[i]["labels"][1:]]
    assert asked == [1.0, pytest.approx(sum(label != -100 for label in labels) / len(labels))] and asked[1] < 0.5


def test_an_estimate_that_fails_ends_no_run_and_says_so(tmp_path, monkeypatch, capsys):
    trainer = make(tmp_path)

    def peak(tokens, **changes):
        raise NotEstimated("trl 9 has no tile")

    monkeypatch.setattr(out_of_memory, "step_memory", lambda model, fields: peak)
    out_of_memory._check_memory(trainer, *out_of_memory._largest_micro_batch(trainer))
    assert "memory is not checked before step 1, as trl 9 has no tile" in capsys.readouterr().out
    assert out_of_memory._advice(trainer).endswith("; memory is not estimated, as trl 9 has no tile")


def test_rows_end_to_end_take_their_sum_and_padded_ones_the_longest():
    lengths, fixed = np.array([100, 10, 10, 10]), {"rows": 4, "steps": 1, "checkpointing": True, "adapter": False}
    advised = [
        out_of_memory._fitting_settings(lambda tokens, **changes: tokens, 120, lengths, flat=flat, **fixed)[0]
        for flat in (True, False)
    ]
    assert [said.split(",")[0] for said in advised] == [
        "per_device_train_batch_size=2",
        "per_device_train_batch_size=1",
    ]
