"One family's tiny model in a folder, and what the cells compute of it by hand"

import dataclasses
import functools
import json
import signal
from collections.abc import Iterable
from pathlib import Path

import torch
import trl
from architectures import Family, small_model
from datasets import Dataset
from peft import PeftModel
from templates import template_tokenizer
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.loading.example_models import tiny_tokenizer
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.sft.trainer import sft_trainer
from ft_notebooks.tokenization.padding import IGNORE
from ft_notebooks.training.run import fit

SETTINGS = {  # of each run: two micro-batches of two rows a step, float32; rows in an order that TRL can repeat
    "per_device_train_batch_size": 2, "effective_batch": 4, "logging_steps": 1, "save_steps": 10, "seed": 0,
    "bf16": False, "report_to": "none", "train_sampling_strategy": "random",
}  # fmt: skip


class Watch(TrainerCallback):
    "The gradient of each step by tensor; stops the run by SIGTERM after the step `stop`."

    def __init__(self, stop: int | None = None):
        self.steps: list[dict[str, Tensor]] = []
        self.stop = stop

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        zero = torch.zeros(())
        self.steps.append({name: zero if p.grad is None else p.grad.clone() for name, p in trained.items()})

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.stop:
            signal.raise_signal(signal.SIGTERM)


@dataclasses.dataclass
class Run:
    "A finished run of three steps."

    trainer: trl.SFTTrainer
    watch: Watch
    folder: Path

    @property
    def losses(self) -> list[float]:
        return losses(self.trainer)


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def logits(model: PreTrainedModel, ids: list[int]) -> Tensor:  # [T, V]
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def far(found: Tensor, expected: Tensor) -> float:
    "The largest difference."
    return (found - expected).abs().max().item()


def furthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    "The largest difference of gradients, as a share of the tensor's largest one."
    assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())[:4]
    return max(far(found[name], g) / max(g.abs().max().item(), 1e-4) for name, g in expected.items())


def label_log_probs(model: PreTrainedModel, row: dict) -> Tensor:  # [N]
    "The log-probability of each label, by a forward pass of the row alone."
    labels = torch.tensor(row["labels"][1:])
    said = logits(model, row["input_ids"])[:-1].log_softmax(-1)
    trained = labels != IGNORE
    return said[trained].gather(-1, labels[trained, None])[:, 0]


def mean_loss(model: PreTrainedModel, rows: Iterable[dict]) -> float:
    "The mean over all labels of all rows."
    return -torch.cat([label_log_probs(model, row) for row in rows]).mean().item()


def moved(model: PeftModel, seed: int = 3, size: float = 0.05) -> PeftModel:
    "The same, with B drawn at random in place, so that the adapter changes each layer."
    draw = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data = size * torch.randn(p.shape, generator=draw)
    return model


def chat(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@dataclasses.dataclass
class Case:
    "What a cell is given; a model that is trained or merged is loaded anew by each cell."

    family: Family
    folder: Path  # Of this family, empty at first
    templates: Path | None = None  # Published tokenizers, as in `template_tokenizer`

    @functools.cached_property
    def tok(self):
        "The tokenizer of all cells that compute: bytes and ChatML."
        return tiny_tokenizer()

    @functools.cached_property
    def family_tok(self):
        "The family's template, for the cells that render."
        return template_tokenizer(self.family.template, self.templates)

    @functools.cached_property
    def made(self) -> PreTrainedModel:
        "The model as transformers made it."
        return small_model(self.family)

    @functools.cached_property
    def base(self) -> Path:
        "Its folder."
        folder = self.folder / "base"
        self.made.save_pretrained(folder)
        self.tok.save_pretrained(folder)
        return folder

    @functools.cached_property
    def chats(self) -> Dataset:
        "Twelve of about 70 tokens: the event of a note, and its day."
        answers = [json.loads(messages[-1]["content"]) for messages in appointments(12)["messages"]]
        return Dataset.from_list([{"messages": chat(answer["event"], answer["day"])} for answer in answers])

    @functools.cached_property
    def rows(self) -> Dataset:
        return encode_chats(self.tok, self.chats)[0]

    @property
    def ids(self) -> list[int]:
        return self.rows[0]["input_ids"]

    def load(self, bits: int = 32) -> PreTrainedModel:
        return load_model(self.base, bits)

    def load_plain(self, folder: Path) -> PreTrainedModel:
        "Another folder of this case, in float32."
        return load_model(folder, 32)

    def adapted(self, bits: int = 32, r: int = 8) -> PeftModel:
        model = self.load(bits)
        return add_adapter(model, lora_config(model, r=r))

    def trainer(self, name: str, model=None, rows=None, eval_dataset=None, **settings):
        "Our SFT trainer, not yet started."
        given = SETTINGS | {"max_steps": 3, "output_dir": str(self.folder / name)} | settings
        model = self.adapted() if model is None else model
        return sft_trainer(model, self.tok, self.rows if rows is None else rows, eval_dataset, **given)

    def plain_trainer(self, ours, name: str, model=None):
        "TRL's own trainer with the settings of ours, on padded rows in the same order."
        args = dataclasses.replace(
            ours.args, output_dir=str(self.folder / name), save_strategy="no", padding_free=False, max_length=None
        )
        model = self.adapted() if model is None else model
        return trl.SFTTrainer(model=model, args=args, train_dataset=ours.train_dataset, processing_class=self.tok)

    @functools.cached_property
    def run(self) -> Run:
        "Three steps with the default settings."
        trainer = self.trainer("run")
        watch = Watch()
        trainer.add_callback(watch)
        fit(trainer)
        return Run(trainer, watch, self.folder / "run")

    def far_adapter(self) -> PeftModel:
        "An adapter that changes each layer, in `eval()` mode."
        return moved(self.adapted()).eval()
