"The package's computations on a device without hardware: as on the CPU, and no tensor is left behind on the CPU."

import pytest
import torch
from another_device import There, another_device, moved
from datasets import Dataset
from torch.testing import assert_close

from ft_notebooks.course.example_task import appointments
from ft_notebooks.dpo.trainer import dpo_trainer
from ft_notebooks.evaluation.likelihood import perplexity
from ft_notebooks.inference.generation import generate
from ft_notebooks.kernels import shared_rows
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.rlhf.reward_model import load_reward_model
from ft_notebooks.rlhf.reward_training import reward_trainer
from ft_notebooks.sft.trainer import sft_trainer

TOK, CHATS = tiny_tokenizer(), appointments(4)
WRONG = [{"role": "assistant", "content": "I do not know."}]
PAIRS = Dataset.from_list([{"prompt": c[:-1], "chosen": c[-1:], "rejected": WRONG} for c in CHATS["messages"]])


def adapted():
    model = tiny_model()
    return add_adapter(model, lora_config(model))


def reward_model(folder):
    tiny_model().save_pretrained(folder / "base")
    TOK.save_pretrained(folder / "base")
    return load_reward_model(folder / "base", TOK, seed=0)


TRAINERS = {
    "SFT": lambda folder, **more: sft_trainer(adapted(), TOK, CHATS, **more),
    "SFT with padding": lambda folder, **more: sft_trainer(adapted(), TOK, CHATS, padding_free=False, **more),
    "SFT of all weights": lambda folder, **more: sft_trainer(tiny_model(), TOK, CHATS, **more),
    "SFT, checkpointed": lambda folder, **more: sft_trainer(adapted(), TOK, CHATS, gradient_checkpointing=True, **more),
    "DPO": lambda folder, **more: dpo_trainer(adapted(), TOK, PAIRS, **more),
    "DPO of all weights": lambda folder, **more: dpo_trainer(tiny_model(), TOK, PAIRS, **more),
    "reward": lambda folder, **more: reward_trainer(reward_model(folder), TOK, PAIRS, **more),
}


def loss_and_gradients(trainer, batch):
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss, {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.numbers
@pytest.mark.bfloat16
@pytest.mark.parametrize("name", TRAINERS)
def test_a_training_step_on_another_device_is_the_same(name, tmp_path):
    settings = {"output_dir": str(tmp_path / "run"), "max_steps": 1, "effective_batch": 4, "bf16": False}
    trainer = TRAINERS[name](tmp_path, **settings)
    batch = next(iter(trainer.get_train_dataloader()))
    loss, gradients = loss_and_gradients(trainer, batch)
    references = [model for model in [getattr(trainer, "ref_model", None)] if model is not None]
    for model in [trainer.model, *references]:
        moved(model)
    with another_device():
        there = {key: There(part) if torch.is_tensor(part) else part for key, part in batch.items()}
        loss_there, gradients_there = loss_and_gradients(trainer, there)
    assert_close(loss_there.held, loss, rtol=1e-5, atol=0)
    assert gradients_there.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert_close(gradients_there[name].held, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.numbers
def test_answers_and_perplexity_on_another_device_are_the_same():
    model, prompts = tiny_model().eval(), [chat[:-1] for chat in CHATS["messages"]]
    answers, number = generate(model, TOK, prompts, 8, progress=False), perplexity(model, TOK, CHATS)
    moved(model)
    with another_device():
        assert generate(model, TOK, prompts, 8, progress=False) == answers
        assert perplexity(model, TOK, CHATS) == pytest.approx(number, rel=1e-5)


def test_a_mask_that_is_left_on_the_cpu_is_found(tmp_path, monkeypatch):
    ones = torch.ones
    monkeypatch.setattr(shared_rows.torch, "ones", lambda *sizes, device=None, **kwargs: ones(*sizes, **kwargs))
    with pytest.raises(RuntimeError, match="mixes a tensor of the device with one of the CPU"):
        test_a_training_step_on_another_device_is_the_same("DPO", tmp_path)


def test_a_batch_that_is_not_moved_is_found():
    model = moved(tiny_model())
    with another_device(), pytest.raises(RuntimeError, match="embedding.* mixes a tensor"):
        model(torch.arange(8)[None])
