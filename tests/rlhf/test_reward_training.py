"Runs of a reward model: several processes, a kill, margins, heads that would be lost, and bases of other kinds."

import contextlib
import io
import json
import math

import datasets
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from ranks_of import ranks
from small_runs import ROUNDED, DiesAt, forked, only_rounded
from transformers import TrainerCallback
from trl import RewardTrainer

from ft_notebooks.checkpointing.integrity import last_good_checkpoint
from ft_notebooks.data.preference_encoding import encode_pairs
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.rlhf.reward_model import load_reward_model
from ft_notebooks.rlhf.reward_scoring import score_ids
from ft_notebooks.rlhf.reward_statistics import pair_statistics
from ft_notebooks.rlhf.reward_training import reward_trainer
from ft_notebooks.training.nan_guard import BadStep
from ft_notebooks.training.run import fit

TOK = tiny_tokenizer()
NAMES = ["Ann", "Bob", "Cid", "Dora", "Eve", "Finn", "Gus", "Hal", "Ines", "Jo", "Kim", "Lou", "Mo"]
ENDS = [("!" * (n % 4), "." * (n % 3)) for n in range(13)]  # so that either answer may be the longer one
PAIRS = [
    {"prompt": f"I am {name}", "chosen": f"hello there {name}{one}", "rejected": f"go away now {name}{other}"}
    for name, (one, other) in zip(NAMES, ENDS)
]
HEAD = "base_model.model.score.modules_to_save.default.weight"
FIXED = {
    "bf16": False, "report_to": "none", "disable_tqdm": True, "effective_batch": 4, "save_strategy": "no",
    "max_steps": 4, "learning_rate": 1e-3, "warmup_steps": 0, "logging_steps": 1,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quiet():
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(folder)
    return folder


def new(base, **given):
    return load_reward_model(base, TOK, **({"seed": 0} | given))


def adapted(base, **fields):
    model = new(base)
    return add_adapter(model, lora_config(model, **({"r": 4} | fields)))


def made(model, folder, data=PAIRS, held=None, **given):
    with contextlib.redirect_stdout(io.StringIO()):
        return reward_trainer(model, TOK, data, held, output_dir=str(folder), **(FIXED | given))


def quietly(run, *args):
    with contextlib.redirect_stdout(io.StringIO()):
        return run(*args)


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def check_reloaded(folder, trainer):
    "The model in the folder has the head and the scores of the run; scores to rounding, as memory is laid out anew."
    again, ids = load_reward_model(folder, TOK), [row["chosen_ids"] for row in trainer.train_dataset]
    heads = [p.cpu() for model in (again, trainer.model) for name, p in model.named_parameters() if "score" in name]
    assert torch.equal(heads[len(heads) // 2 - 1], heads[-1])  # the last of each is the one that was trained
    scores = [torch.tensor(score_ids(model, TOK, ids)) for model in (again, trainer.model)]
    assert (scores[0] - scores[1]).abs().max() < ROUNDED
    return again


def logged(trainer, key):
    return torch.tensor([entry[key] for entry in trainer.state.log_history if key in entry])


# processes and kills


def trained(base, folder):
    "An epoch of 13 pairs in steps of 4, of which the last has one; and an evaluation of 5 pairs, two at a time."
    fields = {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    margins = [{**pair, "margin": 0.1 * n} for n, pair in enumerate(PAIRS)]
    trainer = made(adapted(base), folder, margins, margins[:5], center_rewards_coefficient=0.01, **fields)
    quietly(trainer.train)
    found = quietly(trainer.evaluate)
    kept = {key: value for key, value in found.items() if "runtime" not in key and "second" not in key}
    learned = torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])
    return {"loss": logged(trainer, "loss"), "weights": learned, "found": kept}


@pytest.mark.whole
def test_two_processes_log_learn_and_evaluate_what_one_does(base, tmp_path):
    one = trained(base, tmp_path / "one")
    two = ranks(2, lambda rank: trained(base, tmp_path / "two"), tmp_path / "two")
    assert torch.equal(two[0]["weights"], two[1]["weights"])
    assert (two[0]["loss"] - one["loss"]).abs().max() < ROUNDED
    steps = len(one["loss"])
    assert only_rounded((two[0]["weights"] - one["weights"]).abs(), 2 * 1e-3 * steps)
    assert two[0]["found"].keys() == one["found"].keys() and one["found"]["eval_shorter_pairs"] > 0
    for key in ("eval_accuracy", "eval_accuracy_low", "eval_ties", "eval_shorter_pairs", "eval_shorter_accuracy"):
        assert two[0]["found"][key] == two[1]["found"][key] == one["found"][key], key
    for key in ("eval_loss", "eval_margin", "eval_mean_reward"):
        assert abs(two[0]["found"][key] - one["found"][key]) < ROUNDED * 10, key


@pytest.mark.whole
def test_a_run_that_is_killed_and_resumed_has_the_weights_and_the_scores_of_one_that_was_not(base, tmp_path):
    def run(folder, *callbacks):
        fields = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "disable_dropout": False}
        trainer = made(adapted(base, lora_dropout=0.2), folder, callbacks=list(callbacks), **fields)
        quietly(fit, trainer)
        return trainer

    whole = run(tmp_path / "whole")
    assert forked(lambda: run(tmp_path / "killed", DiesAt(3))) == 9
    assert last_good_checkpoint(tmp_path / "killed").endswith("checkpoint-2")
    again = run(tmp_path / "killed")
    one, other = weights(whole), weights(again)
    assert all(torch.equal(one[name], other[name]) for name in one)
    check_reloaded(tmp_path / "killed", again)


@pytest.mark.whole
def test_a_finished_run_of_another_head_is_another_run(base, tmp_path):
    quietly(fit, made(adapted(base), tmp_path, save_strategy="steps", max_steps=1))
    other = load_reward_model(base, TOK, seed=1)
    with pytest.raises(ValueError, match="holds a different run: model.weights was"):
        made(add_adapter(other, lora_config(other, r=4)), tmp_path, save_strategy="steps", max_steps=1)


@pytest.mark.whole
def test_a_weight_that_is_nan_stops_the_run_and_names_the_answers(base, tmp_path):
    class BreaksAWeight(TrainerCallback):
        def on_step_begin(self, args, state, control, model, **kwargs):
            model.get_input_embeddings().weight.data[TOK("K").input_ids[0]] = math.nan

    trainer = made(adapted(base), tmp_path, max_steps=-1, num_train_epochs=1)
    trainer.add_callback(BreaksAWeight())
    with pytest.raises(BadStep, match="the loss is not finite") as stopped:
        quietly(trainer.train)
    odd = ["".join(part["text"] for part in row["parts"]) for row in stopped.value.report["rows"] if row["odd"]]
    assert len(odd) == 2 and all("I am Kim" in text for text in odd)


# margins


@pytest.mark.whole
def test_a_margin_counts_from_a_list_a_file_a_dataset_and_encoded_rows(base, tmp_path):
    rows = [{**pair, "margin": 0.25} for pair in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    encoded = encode_pairs(TOK, PAIRS)[0].add_column("margin", [0.25] * len(PAIRS))
    for data in (rows, tmp_path / "pairs.jsonl", Dataset.from_list(rows), encoded):
        trainer = made(new(base), tmp_path / "run", data)
        assert trainer.train_dataset["margin"][:] == [0.25] * len(PAIRS)
    assert "margin" not in made(new(base), tmp_path / "run").train_dataset.column_names


@pytest.mark.parametrize("margin", [math.nan, math.inf, None])
def test_a_margin_that_is_no_number_names_its_row(base, tmp_path, margin):
    data = encode_pairs(TOK, PAIRS)[0].select(range(2)).add_column("margin", [0.1, margin])
    with pytest.raises(ValueError, match="row 1 .counted from 0. has the margin"):
        made(new(base), tmp_path, data, effective_batch=1)


def test_margins_beside_pairs_that_are_left_out_are_refused(base, tmp_path):
    rows = [{**pair, "margin": 0.1} for pair in PAIRS] * 10
    rows[3] = {**rows[3], "chosen": rows[3]["rejected"]}
    with pytest.raises(ValueError, match="1 of 130 pairs are left out, and the margins would not fit"):
        made(new(base), tmp_path, rows)


def test_pairs_that_are_left_out_are_counted(base, tmp_path, capsys):
    long = {"prompt": "x", "chosen": "y" * 300, "rejected": "z"}
    reward_trainer(new(base), TOK, [*PAIRS * 8, long], output_dir=str(tmp_path), max_length=100, **FIXED)
    assert "1 of 105 pairs left out, 0 with two equal answers" in capsys.readouterr().out


# heads


@pytest.mark.numbers
@pytest.mark.whole
def test_an_adapter_by_peft_config_trains_and_saves_its_head(base, tmp_path):
    trainer = made(new(base), tmp_path, peft_config=lora_config(new(base), r=4), save_strategy="steps")
    before = weights(trainer)
    quietly(fit, trainer)
    assert not torch.equal(trainer.model.get_parameter(HEAD), before[HEAD])
    check_reloaded(tmp_path, trainer)


@pytest.mark.numbers
@pytest.mark.bfloat16
@pytest.mark.whole
def test_a_head_trains_in_float32_on_a_base_in_16_bits_and_under_autocast(base, tmp_path):
    model = new(base, bits=16)
    trainer = made(add_adapter(model, lora_config(model, r=4)), tmp_path, bf16=True, save_strategy="steps")
    batch = trainer.data_collator(list(trainer.train_dataset))
    batch = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    with torch.no_grad(), trainer.compute_loss_context_manager():
        scores = trainer.model(**batch).logits
    assert scores.dtype == torch.float32 and not torch.equal(scores, scores.bfloat16().float())
    quietly(fit, trainer)
    again = load_reward_model(tmp_path, TOK)
    assert again.get_base_model().model.norm.weight.dtype == torch.bfloat16  # as in the run's manifest
    assert torch.equal(again.get_parameter(HEAD), trainer.model.get_parameter(HEAD).cpu())


def test_a_plain_model_of_transformers_gets_an_exact_head(base, tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.config.pad_token_id = 7
    trainer = made(model, tmp_path)
    assert isinstance(trainer, RewardTrainer) and type(trainer.model.score).__name__ == "ScoreHead"
    assert trainer.model.config.pad_token_id == TOK.pad_token_id


@pytest.mark.whole
def test_the_adapter_of_an_sft_run_goes_on_as_a_reward_model_and_is_loaded_again(base, tmp_path):
    from ft_notebooks.loading.quantized_loading import load_model

    language = add_adapter(load_model(base, 32), lora_config(tiny_model(), r=4))
    for p in (p for p in language.parameters() if p.requires_grad):
        p.data += 0.02
    language.save_pretrained(tmp_path / "sft")
    trainer = made(load_reward_model(tmp_path / "sft", TOK, seed=0), tmp_path / "reward", save_strategy="steps")
    before = weights(trainer)
    quietly(fit, trainer)
    moved = {name.split(".")[-3] for name, p in weights(trainer).items() if not torch.equal(p, before[name])}
    assert moved == {"lora_A", "lora_B", "modules_to_save"}
    check_reloaded(tmp_path / "reward", trainer)


def test_an_adapter_that_has_trained_the_head_of_a_language_model_is_to_be_merged_first(base, tmp_path):
    from ft_notebooks.loading.quantized_loading import load_model

    language = load_model(base, 32)
    add_adapter(language, lora_config(language, target_modules=["q_proj", "lm_head"])).save_pretrained(tmp_path / "sft")
    with pytest.raises(ValueError, match="which a reward model lacks; merge it with merge_folder"):
        load_reward_model(tmp_path / "sft", TOK, seed=0)


def test_an_adapter_on_a_reward_model_is_loaded_onto_it(base, tmp_path):
    new(base).save_pretrained(tmp_path / "full")
    model = load_reward_model(tmp_path / "full", TOK)
    trainer = made(add_adapter(model, lora_config(model, r=4)), tmp_path / "run", save_strategy="steps")
    quietly(fit, trainer)
    check_reloaded(tmp_path / "run", trainer)


def test_a_config_without_the_head_is_refused_before_the_model_is_wrapped(base, tmp_path):
    model = new(base)
    with pytest.raises(ValueError, match="so the head would be neither trained nor saved"):
        made(model, tmp_path, peft_config=LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert not isinstance(model, PeftModel) and "lora" not in str(model)


def test_several_evaluations_have_their_own_names(base, tmp_path):
    trainer = made(new(base), tmp_path, PAIRS, {"one": PAIRS[:4], "two": PAIRS[4:6]})
    found = quietly(trainer.evaluate)
    assert {"eval_one_accuracy", "eval_two_accuracy", "eval_two_loss"} <= found.keys()


def test_the_best_checkpoint_may_be_chosen_by_the_accuracy_over_rows(base, tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_accuracy", "save_steps": 2}
    steps = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps"}
    trainer = made(adapted(base), tmp_path, PAIRS, PAIRS[:5], **best, **steps)
    quietly(fit, trainer)
    assert trainer.state.best_metric == max(logged(trainer, "eval_accuracy").tolist())


# statistics


def test_one_pair_equal_pairs_and_margins_beyond_what_exp_can_hold_have_statistics():
    one = pair_statistics([[2.0, 1.0]], [[3, 3]])
    assert one["accuracy"]["value"] == 1 and one["length_correlation"] is None and one["same_length"]["n"] == 1
    far = pair_statistics([[1e5, -1e5], [-1e5, 1e5]], [[1, 2], [2, 1]])
    assert far["accuracy"]["value"] == 0.5 and math.isfinite(far["loss"]) and far["calibration_error"] == 0.5
    same = pair_statistics([[1.0, 1.0]] * 3, [[1, 2]] * 3)
    assert same["ties"] == 3 and same["accuracy"]["value"] == 0 and same["length_correlation"] is None
    assert math.isclose(same["loss"], math.log(2))


@pytest.mark.parametrize("scores", [[], [1.0, 2.0], [[1.0, 2.0, 3.0]]])
def test_scores_of_another_shape_are_no_pairs(scores):
    with pytest.raises(ValueError, match="needs N pairs"):
        pair_statistics(scores, scores)
