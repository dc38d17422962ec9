"Edges of `checkpointing.environment`: loops over one model, deleted folders, later stages, and what the record says."

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from small_runs import ROWS, TOK, on_notes
from transformers import TrainerCallback

from ft_notebooks.core.errors import Stopped
from ft_notebooks.data.preference_encoding import encode_pairs
from ft_notebooks.dpo.trainer import dpo_trainer
from ft_notebooks.loading.example_models import tiny_model
from ft_notebooks.lora.adapter import add_adapter, load_adapter, lora_config, merge_adapter
from ft_notebooks.sft.trainer import sft_trainer
from ft_notebooks.training.run import fit

pytestmark = pytest.mark.whole

FIELDS = {"bf16": False, "effective_batch": 4, "learning_rate": 1e-2, "max_steps": 1, "save_steps": 1}
FIELDS |= {"report_to": "none", "disable_tqdm": True}
NAMES = ["Ann", "Bob", "Cid", "Dora"]
PAIRS = [{"prompt": f"I am {name}", "chosen": f"hello {name}", "rejected": f"go away {name}"} for name in NAMES]
TRAINED = "would start from weights that SFTTrainer has trained in .*first.*load the model again"


def supervised(folder, model, **fields):
    return sft_trainer(model, TOK, ROWS, output_dir=str(folder), **FIELDS | fields)


def preferences(folder, model):
    return dpo_trainer(model, TOK, encode_pairs(TOK, PAIRS)[0], output_dir=str(folder), **FIELDS)


def start(folder):
    return json.loads(Path(folder, "manifest.json").read_text())["recorded"]["start"]


def test_a_loop_over_rates_with_one_model_ends_at_its_second_run(tmp_path):
    model = on_notes()
    fit(supervised(tmp_path / "first", model))
    second = supervised(tmp_path / "second", model, learning_rate=2e-2)
    with pytest.raises(ValueError, match=TRAINED):
        fit(second)
    with pytest.raises(ValueError, match=TRAINED):
        second.train()
    assert not [*(tmp_path / "second").glob("checkpoint-*")]


def test_a_trainer_whose_folder_was_deleted_does_not_train_its_weights_again(tmp_path):
    fit(trainer := supervised(tmp_path / "first", on_notes()))
    shutil.rmtree(tmp_path / "first")
    with pytest.raises(ValueError, match=TRAINED):
        fit(trainer)


def test_a_start_that_is_refused_renames_no_checkpoint(tmp_path):
    fit(trainer := supervised(tmp_path / "first", on_notes()))
    before = {p.name for p in (tmp_path / "first").iterdir()}
    with pytest.raises(ValueError, match=TRAINED):
        trainer.train()
    trainer.args.learning_rate = 2e-2
    with pytest.raises(ValueError, match=TRAINED):
        trainer.train()
    assert {p.name for p in (tmp_path / "first").iterdir()} == before and "checkpoint-1" in before


def test_a_run_that_was_interrupted_before_its_first_checkpoint_starts_from_a_new_model(tmp_path):
    class Impatient(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    with pytest.raises(Stopped):
        fit(trainer := supervised(tmp_path / "first", on_notes(), callbacks=[Impatient()]))
    with pytest.raises(ValueError, match=TRAINED):
        fit(trainer)


def test_a_model_that_a_resumed_or_finished_run_has_loaded_is_trained_too(tmp_path):
    fit(supervised(tmp_path / "first", on_notes()))
    fit(supervised(tmp_path / "first", model := on_notes()))
    with pytest.raises(ValueError, match=TRAINED):
        fit(supervised(tmp_path / "second", model))


def test_weights_that_are_at_their_start_again_may_be_trained(tmp_path):
    model = on_notes()
    at_start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit(supervised(tmp_path / "first", model))
    model.load_state_dict(at_start)
    fit(supervised(tmp_path / "second", model))
    assert start(tmp_path / "first") == start(tmp_path / "second") == "a new adapter"


def test_the_next_stage_may_go_on_with_the_same_model_and_its_record_says_so(tmp_path):
    model = on_notes()
    fit(supervised(tmp_path / "sft", model))
    fit(preferences(tmp_path / "dpo", model))
    assert start(tmp_path / "dpo") == f"what SFTTrainer has trained in {tmp_path / 'sft'}"
    with pytest.raises(ValueError, match="that DPOTrainer has trained"):
        fit(preferences(tmp_path / "again", model))
    with pytest.raises(ValueError, match="that SFTTrainer has trained"):
        fit(supervised(tmp_path / "sft again", model))


def test_an_adapter_that_is_given_as_trained_is_trained_further_and_the_record_names_its_folder(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    TOK.save_pretrained(tmp_path / "base")
    base = type(tiny_model()).from_pretrained(tmp_path / "base")
    fit(supervised(tmp_path / "first", add_adapter(base, lora_config(base, r=4))))
    model = load_adapter(tmp_path / "first", trainable=True)
    fit(supervised(tmp_path / "second", model))
    assert start(tmp_path / "second") == f"the adapter of {tmp_path / 'first'}"


def test_an_adapter_that_others_have_trained_is_told_and_recorded(tmp_path, capsys):
    model = on_notes()
    with torch.no_grad():
        [p.add_(0.01) for name, p in model.named_parameters() if "lora_B" in name]
    fit(supervised(tmp_path, model))
    assert start(tmp_path) == "an adapter that is trained already" in capsys.readouterr().out


def test_a_pissa_adapter_is_new_although_its_b_is_not_zero(tmp_path):
    model = add_adapter(tiny_model(), lora_config(tiny_model(), init_lora_weights="pissa"))
    fit(supervised(tmp_path, model))
    assert start(tmp_path) == "a new adapter"


def test_a_new_adapter_on_the_merged_model_and_an_adapter_on_the_unloaded_base_are_new_runs(tmp_path):
    model = on_notes()
    fit(supervised(tmp_path / "first", model))
    base = merge_adapter(model)
    fit(supervised(tmp_path / "second", add_adapter(base, lora_config(base, r=4))))
    assert isinstance(model, PeftModel)
    for name in ("third", "fourth"):
        fit(supervised(tmp_path / name, tiny_model(), peft_config=lora_config(tiny_model(), r=4)))
