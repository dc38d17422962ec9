"The right reference: whole runs, kills, what comes back, and what the guard hears."

import contextlib
import inspect
import io
import json
import os
import shutil
import signal
import socket
from pathlib import Path

import datasets
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from small_runs import HANGS, ROUNDED, DiesAt, forked, only_rounded
from transformers import Trainer
from trl import DPOTrainer

from ft_notebooks.checkpointing.integrity import last_good_checkpoint
from ft_notebooks.checkpointing.run_manifest import ManifestCallback
from ft_notebooks.core.seams import attention_of
from ft_notebooks.data.preference_encoding import encode_pairs
from ft_notebooks.dpo.loss import pair_logps
from ft_notebooks.dpo.over_optimization import CollapseCallback, plot_collapse
from ft_notebooks.dpo.reference import _log_probs, with_reference
from ft_notebooks.dpo.trainer import dpo_trainer
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.lora.adapter import add_adapter, load_adapter, lora_config

TOK = tiny_tokenizer()
PAIRS = [
    {
        "prompt": [{"role": "user", "content": f"I am {name}"}],
        "chosen": [{"role": "assistant", "content": f"hello {name}"}],
        "rejected": [{"role": "assistant", "content": f"go away {name}"}],
    }
    for name in ["Ann", "Bob", "Cid", "Dora", "Eve", "Finn", "Gus", "Hal"]
]
FIXED = {
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "effective_batch": 4,
    "max_steps": 4,
    "learning_rate": 1e-3,
}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def rows():
    return encode_pairs(TOK, PAIRS)[0]


def made(model, rows, output_dir, *, guard="brief", callbacks=(), **given):
    "With a guard that asks two questions at the begin and the end alone, or one that asks as often as in any run."
    if guard == "brief" and isinstance(rows, datasets.Dataset):
        callbacks = [CollapseCallback(TOK, rows.select(range(2)), every=99, max_new_tokens=3), *callbacks]
    given |= {"callbacks": list(callbacks)} if callbacks else {}
    with contextlib.redirect_stdout(io.StringIO()):
        return dpo_trainer(model, TOK, rows, output_dir=str(output_dir), **(FIXED | {"save_steps": 2} | given))


def moved(model):
    draw = torch.Generator().manual_seed(1)
    for p in (p for p in model.parameters() if p.requires_grad):
        p.data += 0.02 * torch.randn(p.shape, generator=draw)
    return model


def adapted():
    return moved(add_adapter(tiny_model(), lora_config(tiny_model(), r=4, lora_dropout=0.3)))


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


# the reference


@pytest.mark.numbers
def test_a_run_with_another_reference_ends_before_its_first_step(rows, tmp_path):
    trainer = made(tiny_model(), rows, tmp_path, ref_model=tiny_model(seed=1))
    before = weights(trainer)
    with pytest.raises(ValueError, match="before step 1 policy and reference are not the same model.*leave it out"):
        trainer.train()
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert not (tmp_path / ".reference" / "start.json").exists() and not (tmp_path / "collapse.jsonl").exists()


def test_weights_that_change_after_the_trainer_was_made_are_refused(rows, tmp_path):
    trainer = made(tiny_model(), rows, tmp_path)
    trainer.remove_callback(ManifestCallback)  # which would see it first
    moved(trainer.model)
    with pytest.raises(ValueError, match="make a new one with dpo_trainer"):
        trainer.train()


def test_a_shift_of_both_answers_alike_is_seen_though_the_margin_is_zero(rows, tmp_path):
    trainer = made(tiny_model(), rows, tmp_path)
    shifted = {
        name: [value + 1 for value in trainer.train_dataset[name]]
        for name in ("ref_chosen_logps", "ref_rejected_logps")
    }
    kept = trainer.train_dataset.remove_columns(list(shifted))
    trainer.train_dataset = datasets.concatenate_datasets([kept, datasets.Dataset.from_dict(shifted)], axis=1)
    with pytest.raises(ValueError, match="not the same model"):
        trainer.train()


@pytest.mark.whole
def test_an_adapter_that_takes_from_its_base_is_refused_in_both_ways(rows, tmp_path):
    pissa = LoraConfig(r=4, target_modules="all-linear", init_lora_weights="pissa", task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="a second time"):
        made(get_peft_model(tiny_model(), pissa), rows, tmp_path / "a")
    with pytest.raises(ValueError, match="init_lora_weights"):
        made(tiny_model(), rows, tmp_path / "b", peft_config=pissa).train()


@pytest.mark.numbers
@pytest.mark.bfloat16
@pytest.mark.whole
def test_an_adapter_on_four_bits_is_not_rounded_and_is_its_reference(rows, tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    model = moved(add_adapter(load_model(tmp_path / "base", bits=4), lora_config(tiny_model(), r=4)))
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer = made(model, rows, tmp_path / "run")
    for name, p in before.items():
        now = trainer.model.get_parameter(name)
        assert now.dtype == torch.float32 and torch.equal(now, p)
        assert torch.equal(now, trainer.model.get_parameter(name.replace(".default.", ".ref.")))


def test_an_adapter_of_another_name_or_one_named_ref_is_refused(rows, tmp_path):
    named = get_peft_model(tiny_model(), lora_config(tiny_model(), r=4), adapter_name="mine")
    with pytest.raises(ValueError, match="has the name 'mine'.*make it without adapter_name"):
        made(named, rows, tmp_path)
    both = adapted()
    both.add_adapter("ref", both.peft_config["default"])
    with pytest.raises(ValueError, match="named 'ref'"):
        made(both, rows, tmp_path)


@pytest.mark.numbers
@pytest.mark.whole
def test_the_reference_of_an_evaluation_is_that_of_the_start(rows, tmp_path):
    trainer = made(
        tiny_model(), rows, tmp_path, eval_dataset={"a": rows.select(range(3)), "b": rows.select(range(3, 8))}
    )
    kept = torch.tensor([trainer.eval_dataset["b"][name][:] for name in ("ref_chosen_logps", "ref_rejected_logps")]).T
    assert torch.allclose(kept, pair_logps(tiny_model(), rows.select(range(3, 8))), atol=1e-3)
    trainer.train()
    assert {"eval_a_loss", "eval_b_loss"} <= trainer.evaluate().keys() and trainer.state.log_history[-1][
        "eval_rewards/margins"
    ] > 0


def test_trls_constructor_computes_nothing_and_keeps_nothing(rows, tmp_path, monkeypatch):
    "It is given a row of its own; a reference that it kept in a cache could be another trainer's"
    model, seen = tiny_model(), []
    model.get_input_embeddings().register_forward_hook(lambda *args: seen.append(args))

    class Made(Exception):
        pass

    def stop(trainer):
        raise Made

    monkeypatch.setattr("ft_notebooks.dpo.trainer.SharedPrompt", stop)
    with pytest.raises(Made):
        made(model, rows, tmp_path, eval_dataset=rows)
    assert not seen and not (tmp_path / ".reference").exists()


@pytest.mark.numbers
@pytest.mark.whole
def test_the_rows_the_settings_and_the_weights_are_those_that_were_given(rows, tmp_path):
    model = moved(tiny_model())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = made(model, rows, tmp_path, eval_dataset={"a": rows.select(range(3)), "b": rows})
    columns = ["prompt_ids", "chosen_ids", "rejected_ids"]
    assert trainer.train_dataset.select_columns(columns).to_list() == rows.to_list()
    assert {name: len(part) for name, part in trainer.eval_dataset.items()} == {"a": 3, "b": 8}
    assert trainer.ref_model is None and trainer.model is model and trainer.args.precompute_ref_log_probs
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    trainer.train()
    saved = json.loads((tmp_path / "checkpoint-4" / "config.json").read_text())
    assert "pairs" not in str(saved) and attention_of(trainer.model) == "sdpa"
    assert not any("forward" in vars(module) for module in model.modules() if module is not model)


@pytest.mark.numbers
@pytest.mark.whole
@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_other_pairs_are_evaluated_as_the_trainers_eval_dataset(rows, tmp_path, kind):
    model = adapted() if kind == "adapter" else tiny_model()
    given = {"precompute_ref_log_probs": False} if kind == "adapter" else {}
    trainer = made(model, rows.select(range(4)), tmp_path, eval_dataset=rows.select(range(4, 8)), **given)
    first = trainer.evaluate()
    trainer.eval_dataset = rows.select(range(4, 8))  # without the reference's columns
    assert trainer.evaluate()["eval_loss"] == pytest.approx(first["eval_loss"], abs=1e-5)
    with pytest.raises(KeyError, match="chosen"):  # TRL encodes what it is given there
        trainer.evaluate(rows.select(range(4, 8)))
    assert trainer.evaluate(datasets.Dataset.from_list(PAIRS))["eval_rewards/margins"] == pytest.approx(0, abs=1e-4)
    trainer.train()
    if kind == "adapter":
        assert trainer.evaluate()["eval_rewards/margins"] != 0
    else:
        with pytest.raises(ValueError, match="the reference, this model before step 1, no longer exists"):
            trainer.evaluate()


@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
def test_a_trl_that_names_its_rows_otherwise_is_refused(rows, tmp_path, monkeypatch, name):
    there = DPOTrainer.__init__

    def renamed(self, *args, **kwargs):
        there(self, *args, **kwargs)
        delattr(self, name)

    monkeypatch.setattr(DPOTrainer, "__init__", renamed)
    with pytest.raises(
        RuntimeError, match=rf"trl [\d.]+ and transformers [\d.]+ have no DPOTrainer.{name}, by which the pairs are"
    ):
        made(tiny_model(), rows, tmp_path, guard="usual", eval_dataset=rows)


@pytest.mark.numbers
@pytest.mark.whole
def test_answers_of_which_only_the_common_length_counts_have_a_margin_of_zero(rows, tmp_path):
    trainer = made(adapted(), rows, tmp_path, ld_alpha=0.5, precompute_ref_log_probs=False)
    policy, reference = _log_probs(trainer, trainer.train_dataset)
    assert torch.allclose(policy, reference, atol=1e-4) and (policy - pair_logps(adapted(), rows)).abs().max() > 1e-2
    trainer.train()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_hidden_layers": 3}, "not the same model.*leave it out"),
        ({"vocab_size": 100}, "token"),
    ],
)
def test_a_reference_of_another_size_is_refused(rows, tmp_path, sizes, message):
    config = tiny_model().config
    for name, value in sizes.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        made(tiny_model(), rows, tmp_path, ref_model=type(tiny_model())(config)).train()


def test_a_copy_that_is_not_the_adapter_is_refused(rows, tmp_path):
    trainer = made(adapted(), rows, tmp_path, precompute_ref_log_probs=False)
    trainer.remove_callback(ManifestCallback)
    for name, p in trainer.model.named_parameters():
        p.data += 0.02 * (".ref." in name)
    with pytest.raises(ValueError, match="the weights have changed since the trainer was made"):
        trainer.train()


@pytest.mark.numbers
@pytest.mark.whole
@pytest.mark.parametrize("fields", [{"modules_to_save": ["embed_tokens"]}, {"trainable_token_indices": [5]}])
def test_an_adapter_that_also_holds_whole_modules_tokens_or_lengths_is_its_own_reference(rows, tmp_path, fields):
    model = moved(
        get_peft_model(tiny_model(), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **fields))
    )
    trainer = made(model, rows, tmp_path)
    policy, reference = _log_probs(trainer, trainer.train_dataset)
    assert torch.allclose(policy, pair_logps(model, rows).double(), atol=1e-4) and torch.allclose(
        policy, reference, atol=1e-4
    )
    assert (policy - pair_logps(tiny_model(), rows)).abs().max() > 1e-3


def test_pairs_that_do_not_fit_are_named_with_their_dataset_and_where_to_allow_them(rows, tmp_path):
    with pytest.raises(
        ValueError,
        match="^eval_dataset: 8 of 8 pairs do not fit into max_length=10.*allow_long=.*arguments of encode_pairs",
    ):
        made(
            tiny_model(),
            rows.map(lambda row: {key: row[key][:4] for key in row}),
            tmp_path,
            eval_dataset=PAIRS,
            max_length=10,
        )
    with pytest.raises(ValueError, match=r"eval_dataset\['b'\]: row 0 has .* tokens, and max_length=10 would cut it"):
        short = rows.map(lambda row: {key: row[key][:4] for key in row})
        made(tiny_model(), short, tmp_path, eval_dataset={"a": short, "b": rows}, max_length=10)
    with pytest.raises(ValueError, match="train_dataset: it has no rows"):
        made(tiny_model(), [], tmp_path)


@pytest.mark.whole
def test_what_is_left_out_is_counted_and_what_is_odd_is_said(rows, tmp_path, capsys):
    equal = {**PAIRS[0], "rejected": PAIRS[0]["chosen"]}
    many = [
        {**pair, "prompt": [{"role": "user", "content": f"{i} {pair['prompt'][0]['content']}"}]}
        for i in range(13)
        for pair in PAIRS
    ]
    dpo_trainer(tiny_model(), TOK, [*many, equal], output_dir=str(tmp_path), **FIXED)
    said = capsys.readouterr().out
    assert "1 of 105 pairs left out, 1 with two equal answers" in said
    assert "the chosen answer is the shorter one" in said and "reference computed once, before step 1" in said


@pytest.mark.parametrize(
    ("given", "adapter", "once"),
    [
        ({"num_train_epochs": 1}, False, True),
        ({"num_train_epochs": 1}, True, False),
        ({}, True, True),
        ({"max_steps": 2}, True, False),
        ({"max_steps": 2, "precompute_ref_log_probs": True}, True, True),
    ],
)
def test_the_reference_is_computed_before_where_it_is_needed_or_pays(rows, tmp_path, given, adapter, once):
    trainer = made(adapted() if adapter else tiny_model(), rows, tmp_path, **({"max_steps": -1} | given))
    assert trainer.args.precompute_ref_log_probs is once
    assert ("ref_chosen_logps" in trainer.train_dataset.column_names) is once


@pytest.mark.whole
def test_a_hinge_whose_margins_are_all_wide_enough_is_no_fault(rows, tmp_path):
    trainer = made(tiny_model(), rows, tmp_path, loss_type="hinge", learning_rate=1e-2, max_steps=8, save_strategy="no")
    next(c for c in trainer.callback_handler.callbacks if isinstance(c, CollapseCallback)).stop = False
    trainer.train()
    assert any(entry.get("grad_norm") == 0 for entry in trainer.state.log_history)


def test_a_loss_that_sorts_pairs_needs_the_whole_step_in_one_micro_batch(rows, tmp_path):
    with pytest.raises(ValueError, match="here 2 of a step's 4"):
        made(tiny_model(), rows, tmp_path, loss_type=["aot", "sft"], per_device_train_batch_size=2)
    trainer = made(tiny_model(), rows, tmp_path, loss_type=["aot", "sft"], per_device_train_batch_size=4)
    assert trainer.loss_types == ["aot", "sft"]


@pytest.mark.parametrize(
    "given",
    [
        {"loss_weights": [-1.0]},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [0, 1]},
        {"loss_type": ["sft", "sft"]},
    ],
)
def test_losses_that_would_not_compare_the_two_answers_are_refused(rows, tmp_path, given):
    with pytest.raises(ValueError, match="would not compare the answers of a pair"):
        made(tiny_model(), rows, tmp_path, **given)


def test_one_loss_may_have_a_weight(rows, tmp_path):
    assert made(tiny_model(), rows, tmp_path, loss_weights=[0.5]).loss_weights == [0.5]


# what comes back


@pytest.mark.whole
@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_a_killed_run_goes_on_to_the_same_weights(rows, tmp_path, kind):
    def model():
        return adapted() if kind == "adapter" else moved(tiny_model())

    given = {"precompute_ref_log_probs": False} if kind == "adapter" else {}
    (whole := made(model(), rows, tmp_path / "whole", **given)).train()
    assert forked(lambda: made(model(), rows, tmp_path / "parts", callbacks=[DiesAt(3)], **given).train()) == 9
    parts = made(model(), rows, tmp_path / "parts", **given)
    parts.train(last_good_checkpoint(tmp_path / "parts"))
    assert parts.state.global_step == 4 and weights(parts).keys() == weights(whole).keys()
    assert all(torch.equal(p, weights(whole)[name]) for name, p in weights(parts).items())
    looks = [(tmp_path / name / "collapse.jsonl").read_text() for name in ("whole", "parts")]
    assert looks[0] == looks[1]


@pytest.fixture(scope="module")
def half(rows, tmp_path_factory):
    folder, given = tmp_path_factory.mktemp("half"), {"max_steps": 2, "save_steps": 1}
    made(adapted(), rows, folder, precompute_ref_log_probs=False, **given).train()
    return folder, given


@pytest.mark.whole
def test_a_run_that_resumes_with_another_reference_or_a_damaged_record_of_it_is_refused_with_the_cure(
    half, rows, tmp_path
):
    folder, given = half
    shutil.copytree(folder, run := tmp_path / "run")
    file, kept = run / ".reference" / "start.json", json.loads((folder / ".reference/start.json").read_text())
    trainer = made(adapted(), rows, run, precompute_ref_log_probs=False, **given)
    changed = "the reference has changed since the run started"
    cure = f"{file} is missing or damaged.*restore it, or start the run again in a different folder"
    unknown = "start.json is missing or damaged .*, so the reference at the run's start is unknown"
    damaged = ("", "[[1, 2", '{"a": 1}', "3", "[[1.0, 2.0]]", '[["a", "b"]]')
    for content in (json.dumps([[x + 0.5 for x in row] for row in kept]), *damaged, None):
        file.write_text(content, encoding="utf-8") if content is not None else file.unlink()
        message = unknown if content is None else cure if content in damaged else changed
        with pytest.raises(ValueError, match=message):
            trainer.train(str(run / "checkpoint-1"))


DAMAGED = {
    "shorter": (lambda kept: {name: x[:5] for name, x in kept.items()}, "is damaged: .* for each of 8 rows"),
    "a table": (lambda kept: {name: x[:, None].contiguous() for name, x in kept.items()}, "is damaged"),
    "other columns": (lambda kept: {"logps": kept["ref_chosen_logps"]}, "is damaged"),
    "a NaN": (
        lambda kept: {**kept, "ref_rejected_logps": torch.tensor([-1.0, float("nan")] * 4)},
        "is damaged: it must hold ref_chosen_logps and ref_rejected_logps as finite numbers",
    ),
    "another value": (
        lambda kept: {**kept, "ref_rejected_logps": kept["ref_rejected_logps"] + 1},
        "ref_rejected_logps of row .* now",
    ),
}


@pytest.fixture(scope="module")
def computed(rows, tmp_path_factory):
    made(tiny_model(), rows, folder := tmp_path_factory.mktemp("computed"))
    return folder / ".reference"


@pytest.fixture
def kept(computed, tmp_path):
    "The file with the reference of the tiny model, in a folder of the test's own."
    [file] = shutil.copytree(computed, tmp_path / ".reference").glob("*.safetensors")
    return file


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_kept_reference_that_is_not_these_rows_is_named_with_the_cure(rows, kept, tmp_path, damage):
    change, message = DAMAGED[damage]
    save_file(change(load_file(kept)), kept)
    with pytest.raises(ValueError, match=f"{kept}.*{message}.*[Rr]emove the file"):
        made(tiny_model(), rows, tmp_path)


@pytest.mark.whole
def test_a_kept_reference_that_is_torn_is_named_with_the_cure(rows, kept, tmp_path):
    for content in (b"", b"half", kept.read_bytes()[:-9]):
        kept.write_bytes(content)
        with pytest.raises(ValueError, match=f"{kept} cannot be read.*[Rr]emove the file"):
            made(tiny_model(), rows, tmp_path)
    kept.unlink()
    made(tiny_model(), rows, tmp_path)


def test_a_reference_that_is_not_a_number_is_not_kept(rows, tmp_path):
    model = tiny_model()
    model.get_output_embeddings().weight.data[rows[3]["chosen_ids"][0]] = float("nan")
    with pytest.raises(ValueError, match="the reference's log-probability of row 0 .counted from 0. is nan"):
        made(model, rows, tmp_path)
    assert not list((tmp_path / ".reference").glob("*"))


@pytest.mark.whole
def test_what_is_kept_is_not_used_for_other_rows_weights_or_precision(rows, tmp_path):
    for model, data, given in [
        (tiny_model(), rows, {}),
        (tiny_model(), rows.select(range(4, 8)), {}),
        (tiny_model(seed=1), rows, {}),
        (tiny_model(), rows, {"ld_alpha": 0.5}),
        (tiny_model(), rows, {}),
    ]:
        made(model, data, tmp_path, **given)
    assert len(list((tmp_path / ".reference").glob("*.safetensors"))) == 4


def test_what_is_kept_is_one_file_a_precision(rows, tmp_path):
    trainer = made(tiny_model(), rows, tmp_path)
    for name in ("bf16", "fp16"):
        setattr(trainer.args, name, True)
        with_reference(trainer, rows, 4)
        setattr(trainer.args, name, False)
    assert len(list((tmp_path / ".reference").glob("*.safetensors"))) == 3


# what is saved


def names(folder):
    return {p.name for p in Path(folder).iterdir()}


@pytest.mark.whole
def test_a_script_saves_the_trained_adapter_alone_and_a_checkpoint_the_reference_too(rows, tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    model = moved(add_adapter(load_model(tmp_path / "base", bits=32), lora_config(tiny_model(), r=4)))
    (trainer := made(model, rows, tmp_path / "run", precompute_ref_log_probs=False)).train()
    before = weights(trainer)
    trainer.save_model(str(tmp_path / "adapter"))
    assert "ref" not in names(tmp_path / "adapter") and "ref" in names(tmp_path / "run" / "checkpoint-4")
    assert all(".ref" not in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    expected = pair_logps(trainer.model, rows)
    base = load_model(tmp_path / "base", bits=32)
    for loaded in (
        load_adapter(tmp_path / "adapter", 32),
        PeftModel.from_pretrained(base, tmp_path / "adapter").eval(),
    ):
        assert list(loaded.peft_config) == ["default"] and torch.equal(pair_logps(loaded, rows), expected)
    trainer.train(str(tmp_path / "run" / "checkpoint-2"))  # the trainer is as it was
    assert trainer.state.global_step == 4 and all(torch.equal(p, before[name]) for name, p in weights(trainer).items())


def test_the_run_s_own_folder_which_a_push_uploads_holds_the_trained_adapter_alone(rows, tmp_path):
    trainer = made(adapted(), rows, tmp_path, precompute_ref_log_probs=False)
    assert "self.save_model(_internal_call=True)" in inspect.getsource(Trainer.push_to_hub)
    trainer.save_model(_internal_call=True)
    assert "ref" not in names(tmp_path) and "adapter_model.safetensors" in names(tmp_path)
    trainer.save_model()
    assert "ref" not in names(tmp_path)


@pytest.mark.whole
def test_a_save_that_fails_leaves_the_trainer_its_reference(rows, tmp_path):
    trainer = made(adapted(), rows, tmp_path / "run", precompute_ref_log_probs=False)
    (tmp_path / "file").touch()
    with pytest.raises((OSError, ValueError)):
        trainer.save_model(str(tmp_path / "file"))
    trainer.train()
    assert "ref" in names(tmp_path / "run" / "checkpoint-4")


@pytest.mark.whole
def test_an_adapter_that_the_trainer_made_and_a_full_model_are_saved_as_by_trl(rows, tmp_path):
    for name, given in {"adapter": {"peft_config": lora_config(tiny_model(), r=4)}, "full": {}}.items():
        trainer = made(tiny_model(), rows, tmp_path / name / "run", **given)
        trainer.save_model(str(tmp_path / name / "ours"))
        DPOTrainer.save_model(trainer, str(tmp_path / name / "theirs"))
        assert names(tmp_path / name / "ours") == names(tmp_path / name / "theirs")


# the guard


@pytest.mark.whole
def test_the_guard_ends_a_run_after_a_save(rows, tmp_path, monkeypatch):
    ends = iter([8, 8, 4, 3, 0])
    monkeypatch.setattr(
        "ft_notebooks.dpo.over_optimization.greedy_answers",
        lambda *a: [([1], n < at) for at in [next(ends)] for n in range(8)],
    )
    trainer = made(tiny_model(), rows, tmp_path, guard="usual", save_steps=50)
    with pytest.raises(ValueError, match="at step 3 38% of the answers end.*100% at the start.*checkpoint-3"):
        trainer.train()
    assert Path(last_good_checkpoint(tmp_path)) == tmp_path / "checkpoint-3"


@pytest.mark.whole
def test_half_of_the_answers_is_not_less_than_half_and_none_at_the_start_is_no_fall(rows, tmp_path, monkeypatch):
    for name, counts in {"half": [8, 4, 4, 4, 4], "none": [0, 0, 0, 0, 0]}.items():
        ends = iter(counts)
        monkeypatch.setattr(
            "ft_notebooks.dpo.over_optimization.greedy_answers",
            lambda *a: [([1], n < at) for at in [next(ends)] for n in range(8)],
        )
        made(tiny_model(), rows, tmp_path / name, guard="usual").train()


@pytest.mark.whole
def test_a_guard_that_was_not_there_at_the_start_is_refused(rows, tmp_path):
    made(tiny_model(), rows, tmp_path).train()
    (tmp_path / "collapse.jsonl").unlink()
    with pytest.raises(ValueError, match="started without CollapseCallback"):
        made(tiny_model(), rows, tmp_path).train(str(tmp_path / "checkpoint-2"))


@pytest.mark.whole
def test_an_own_guard_takes_the_place_of_ours_and_its_score_is_written(rows, tmp_path):
    own = CollapseCallback(TOK, rows, every=3, scorer=lambda answers, some: len(answers))
    trainer = made(tiny_model(), rows, tmp_path, guard="own", callbacks=[own])
    assert sum(isinstance(c, CollapseCallback) for c in trainer.callback_handler.callbacks) == 1
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "collapse.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 3, 4] and all(line["score"] == 8 for line in lines)
    assert load_file(tmp_path / ".reference" / "chosen.safetensors")["log_probs"].shape == (64, len(TOK))


def test_a_guard_without_rows_and_a_figure_without_looks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got no rows"):
        CollapseCallback(TOK, [])
    with pytest.raises(ValueError, match="no collapse.jsonl"):
        plot_collapse(tmp_path)


# two processes


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def two_steps(kind, rows, folder):
    "Of four pairs each, out of seven that are seen in another order in the second epoch"
    given = {"precompute_ref_log_probs": False} if kind == "adapter" else {}
    model = (
        moved(add_adapter(tiny_model(), lora_config(tiny_model(), r=4))) if kind == "adapter" else moved(tiny_model())
    )
    given |= {"max_steps": 2, "save_strategy": "no", "dataloader_drop_last": True}
    given |= {"ddp_backend": "gloo"} if "RANK" in os.environ else {}
    trainer = made(model, rows.select(range(7)), folder, **given)
    trainer.train()
    return trainer


def one_of_two(rank, port, rows, folder, monkeypatch):
    from accelerate.state import AcceleratorState, GradientState, PartialState

    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    GradientState._reset_state()
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "LOCAL_WORLD_SIZE": 2,
        "MASTER_PORT": port,
        "MASTER_ADDR": "127.0.0.1",
    }
    os.environ.update({name: str(value) for name, value in place.items()})
    signal.alarm(HANGS)  # rather than wait for each other for ever
    written = []
    monkeypatch.setattr(
        "ft_notebooks.dpo.reference.save_file", lambda kept, file: (written.append(file), save_file(kept, file))
    )
    for kind in ("adapter", "full", "full"):
        trainer = two_steps(kind, rows, folder / kind)
        found = weights(trainer) | {"losses": torch.tensor(losses(trainer)), "written": torch.tensor(len(written))}
        save_file({name: x.contiguous() for name, x in found.items()}, folder / f"{kind}-{rank}.safetensors")


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_two_processes_lose_and_learn_as_one_does_and_the_first_writes_the_reference_once(rows, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        if not (pid := os.fork()):
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    one_of_two(rank, port, rows, tmp_path, monkeypatch)
                os._exit(0)
            except BaseException:
                import traceback

                (tmp_path / f"error-{rank}").write_text(traceback.format_exc())
            os._exit(1)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert codes == [0, 0], [file.read_text() for file in tmp_path.glob("error-*")]
    for kind in ("adapter", "full"):
        alone = two_steps(kind, rows, tmp_path / f"{kind}-alone")
        first, second = (load_file(tmp_path / f"{kind}-{rank}.safetensors") for rank in range(2))
        assert torch.allclose(first["losses"], torch.tensor(losses(alone)), atol=ROUNDED) and len(losses(alone)) == 2
        for name, p in weights(alone).items():
            assert torch.equal(first[name], second[name])
        far = torch.cat([(first[name] - p).abs().flatten() for name, p in weights(alone).items()])
        assert only_rounded(far, 2 * 2 * alone.args.learning_rate)
        assert [first["written"].item(), second["written"].item()] == ([1, 0] if kind == "full" else [0, 0])
