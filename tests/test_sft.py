"Edges of `ft_notebooks.sft`."

import pytest
import torch
import trl.trainer.utils
from datasets import Dataset
from trl import SFTTrainer

from ft_notebooks.data import appointments
from ft_notebooks.lora import add_adapter, lora_config
from ft_notebooks.models import tiny_model, tiny_tokenizer
from ft_notebooks.sft import sft_trainer

EXACT = {"bf16": False, "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}


@pytest.fixture
def build(tmp_path):
    def build(model=None, data=None, **overrides):
        data = appointments(8) if data is None else data
        return sft_trainer(model or tiny_model(), tiny_tokenizer(), data, output_dir=tmp_path, **{**EXACT, **overrides})

    return build


def test_an_adapter_gets_a_higher_learning_rate_than_a_whole_model_and_a_given_one_rules(build):
    adapted = add_adapter(tiny_model(), lora_config(tiny_model()))
    assert build(adapted).args.learning_rate == 2e-4
    assert build().args.learning_rate == 2e-5
    assert build(peft_config=lora_config(tiny_model())).args.learning_rate == 2e-4
    assert build(learning_rate=1e-3).args.learning_rate == 1e-3


def test_a_batch_size_of_the_users_own_keeps_the_product(build):
    args = build(per_device_train_batch_size=2, effective_batch=8).args
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 4)
    args = build(per_device_train_batch_size=2, gradient_accumulation_steps=3, effective_batch=6).args
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 3)


def test_trl_still_has_the_switch_for_the_head_and_it_is_back_after_a_step_that_failed(build):
    switch = trl.trainer.utils._use_triton
    trainer = build()
    with pytest.raises(ValueError):
        trainer.compute_loss(trainer.model, {})
    assert trl.trainer.utils._use_triton is switch


def test_columns_that_are_neither_chats_nor_labels_are_refused(build):
    with pytest.raises(ValueError, match=r"train_dataset has the columns \['text'\]"):
        build(data=Dataset.from_list([{"text": "hi"}]))
    with pytest.raises(ValueError, match="eval_dataset has the columns"):
        build(eval_dataset=Dataset.from_list([{"input_ids": [1, 2]}]))


def test_an_adapter_loaded_frozen_is_refused(build, tmp_path):
    from peft import PeftModel

    add_adapter(tiny_model(), lora_config(tiny_model())).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="is_trainable=True"):
        build(PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter"))
    build(PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter", is_trainable=True))


def test_the_metrics_that_trl_logs_are_all_there(build):
    trainer = build(max_steps=1)
    assert isinstance(trainer, SFTTrainer)
    trainer.train()
    first = trainer.state.log_history[0]
    assert {"loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens"} <= set(first)


def test_packed_rows_have_the_loss_of_the_same_rows_apart(build):
    packed, apart = build(packing=True, max_length=4096, effective_batch=1), build(effective_batch=8, per_device_train_batch_size=8)
    batches = [next(iter(trainer.get_train_dataloader())) for trainer in (packed, apart)]
    assert batches[0]["input_ids"].shape[0] == 1 and batches[1]["input_ids"].shape[0] == 8
    model = packed.model
    torch.testing.assert_close(*(packed.compute_loss(model, dict(batch)) for batch in batches))
