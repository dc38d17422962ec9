"A model that is changed in memory before training, or after its trainer was made: refused, with a cure that works."

import json
import threading
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from small_runs import ROWS, TOK, on_notes
from transformers import AutoModelForCausalLM, TrainerCallback

from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.lora.adapter import add_adapter, load_adapter, lora_config, merge_adapter
from ft_notebooks.lora.unsaved_weights import changed_in_memory
from ft_notebooks.sft.trainer import sft_trainer
from ft_notebooks.tokenization.padding import add_pad_token, load_tokenizer
from ft_notebooks.training.run import fit

FIELDS = {"bf16": False, "effective_batch": 4, "learning_rate": 1e-2, "max_steps": 1, "save_steps": 1}
FIELDS |= {"report_to": "none", "disable_tqdm": True}
DIFFERS = "of the base differs from .*model.safetensors.* Save base and tokenizer with save_pretrained"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(folder)
    TOK.save_pretrained(folder)
    return folder


def adapted(model, **fields):
    return add_adapter(model, lora_config(model, r=4, **fields))


def supervised(folder, model, tok=TOK, **fields):
    return sft_trainer(model, tok, ROWS, output_dir=str(folder), **FIELDS | fields)


def edit(model):
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "up_proj" in name and "lora" not in name).mul_(2)


def other_template(trainer):
    trainer.processing_class.chat_template = TOK.chat_template.replace("assistant", "model")


@pytest.mark.whole
@pytest.mark.parametrize(
    "change, said",
    [
        (lambda trainer: trainer.model.merge_adapter(), "the adapter is merged into its base.*model.unmerge_adapter()"),
        (lambda trainer: trainer.model.requires_grad_(True), "weights of the base train beside the adapter"),
        (lambda trainer: trainer.model.resize_token_embeddings(300), DIFFERS),
        (lambda trainer: edit(trainer.model), DIFFERS),
        (other_template, "template changed after the trainer was made.* make the trainer again"),
    ],
)
def test_what_is_changed_after_the_trainer_was_made_ends_the_run_before_step_1(base, tmp_path, change, said):
    trainer = supervised(tmp_path / "run", adapted(load_model(base, 32)), tok=tiny_tokenizer())
    change(trainer)
    with pytest.raises(ValueError, match=said):
        fit(trainer)
    assert trainer.state.global_step == 0 and not any((tmp_path / "run").glob("[cmt]*.json"))
    fit(supervised(tmp_path / "run", adapted(load_model(base, 32))))  # the folder is as good as new


@pytest.mark.parametrize("change, said", [(edit, "model.weights"), (other_template, "template")])
def test_a_model_without_an_adapter_is_the_one_that_the_trainer_was_made_with(tmp_path, change, said):
    trainer = supervised(tmp_path / "run", tiny_model(), tok=tiny_tokenizer())
    change(trainer if change is other_template else trainer.model)
    with pytest.raises(ValueError, match=f"{said} changed after the trainer was made"):
        fit(trainer)


def resized(model):
    model.resize_token_embeddings(300)
    return model


def merged(model):
    return merge_adapter(adapted(model, init_lora_weights=False))


def edited(model):
    edit(model)
    return model


@pytest.mark.whole
@pytest.mark.parametrize(
    ("change", "fields"),
    [(resized, {"trainable_token_indices": [5]}), (merged, {}), (edited, {"modules_to_save": ["lm_head"]})],
)
def test_an_adapter_on_a_changed_base_is_refused_and_trains_on_the_saved_one(base, tmp_path, change, fields):
    changed = change(load_model(base, 32))
    trainer = supervised(tmp_path / "run", adapted(changed, **fields))
    with pytest.raises(ValueError, match=DIFFERS):
        fit(trainer)
    change(load_model(base, 32)).save_pretrained(tmp_path / "saved")
    TOK.save_pretrained(tmp_path / "saved")
    fit(again := supervised(tmp_path / "run", adapted(load_model(tmp_path / "saved", 32), **fields)))
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(load_adapter(tmp_path / "run")(ids).logits, again.model.eval()(ids).logits)


@pytest.mark.whole
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_a_base_that_is_as_it_was_loaded_trains_in_every_number_of_bits(base, tmp_path, bits):
    model = adapted(load_model(base, bits))
    assert changed_in_memory(model) is None
    fit(supervised(tmp_path / "run", model))


@pytest.mark.whole
def test_an_adapter_that_changes_its_base_again_when_it_is_loaded_may(base, tmp_path):
    fit(supervised(tmp_path / "run", adapted(load_model(base, 32), init_lora_weights="pissa")))
    load_adapter(tmp_path / "run")


def test_a_base_from_the_hub_is_compared_with_its_file_in_the_cache(base, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--me--tiny"
    (cached / "snapshots").mkdir(parents=True)
    (cached / "snapshots" / ("a" * 40)).symlink_to(base)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    model = adapted(AutoModelForCausalLM.from_pretrained(base))
    model.get_base_model().name_or_path = "me/tiny"
    assert changed_in_memory(model) is None
    edit(model)
    assert changed_in_memory(model)[0].endswith("up_proj.weight")


@pytest.mark.whole
def test_a_pad_token_that_was_added_is_trained_on_as_its_message_says(tmp_path):
    model, tok = tiny_model(), tiny_tokenizer()
    tok.pad_token = None
    add_pad_token(tok, model, "<fill>")
    model.save_pretrained(tmp_path / "base")
    tok.save_pretrained(tmp_path / "base")
    tok = load_tokenizer(tmp_path / "base")
    fit(supervised(tmp_path / "run", adapted(load_model(tmp_path / "base", 32)), tok))
    load_adapter(tmp_path / "run")


@pytest.mark.whole
def test_a_second_trainer_in_another_thread_is_refused_while_the_first_trains(tmp_path):
    said, second = [], supervised(tmp_path, on_notes())

    class Meanwhile(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            def start():
                try:
                    fit(second)
                except ValueError as error:
                    said.append(str(error))

            (thread := threading.Thread(target=start)).start()
            thread.join()

    fit(supervised(tmp_path, on_notes(), callbacks=[Meanwhile()]))
    assert len(said) == 1 and all("is being trained by process" in one for one in said)
    assert second.state.global_step == 0


@pytest.mark.numbers
@pytest.mark.bfloat16
@pytest.mark.parametrize("make", [tiny_model, on_notes])
def test_the_model_in_memory_answers_after_the_run_as_the_one_that_was_saved(base, tmp_path, make):
    trainer = supervised(tmp_path / "run", make(), bf16=True)
    fit(trainer)
    ids = torch.tensor([[5, 6, 7]])
    found = trainer.model.eval()(ids).logits
    with torch.no_grad():
        weights = {name: p.clone() for name, p in trainer.model.named_parameters()}
    fresh = make()
    fresh.load_state_dict(weights, strict=False)
    assert torch.equal(found, fresh.eval()(ids).logits)


@pytest.mark.whole
def test_a_run_that_trains_in_16_bits_is_resumed_as_before(tmp_path):
    class Stops(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1 and not Path(args.output_dir, "checkpoint-1").exists():
                raise InterruptedError

    whole = supervised(tmp_path / "whole", on_notes(), bf16=True, max_steps=3)
    fit(whole)
    trainer = supervised(tmp_path / "run", on_notes(), bf16=True, max_steps=3, callbacks=[Stops()])
    with pytest.raises(InterruptedError):
        fit(trainer)
    fit(supervised(tmp_path / "run", on_notes(), bf16=True, max_steps=3))
    logs = [json.loads((tmp_path / name / "complete.json").read_text())["files"] for name in ("run", "whole")]
    assert logs[0]["adapter_model.safetensors"] == logs[1]["adapter_model.safetensors"]
