"""A user's own script: what it gives to a trainer, right once and with one fault each

The faults of this group are in no file. `ours` gives the same model, rows and arguments to `sft_trainer` and its
siblings, `plain` to TRL's trainers.
"""

# ruff: noqa: E501 (the table has a line for each)

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, get_peft_model
from plant import Fault
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.data.read import read_chats, read_preferences
from ft_notebooks.dpo.trainer import dpo_trainer
from ft_notebooks.rlhf.reward_model import load_reward_model
from ft_notebooks.rlhf.reward_training import reward_trainer
from ft_notebooks.sft.trainer import sft_trainer


@dataclass
class Given:
    "What a script gives to a trainer."

    stage: str
    model: Any
    tok: Any
    rows: Any
    held: Any = None
    config: dict = field(default_factory=dict)  # fields of the trainer's config
    arguments: dict = field(default_factory=dict)  # of its constructor


def lora(**fields) -> LoraConfig:
    return LoraConfig(**{"r": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | fields)


def given(case, stage: str = "sft") -> Given:
    "The right script."
    tok = AutoTokenizer.from_pretrained(case.model)
    if stage == "reward":
        model = load_reward_model(case.model, tok, bits=32, seed=0)
        model = get_peft_model(model, lora(task_type="SEQ_CLS"))
    else:
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(case.model, dtype=torch.float32), lora())
    rows = read_chats(case.file) if stage == "sft" else read_preferences(case.file)
    config = {"learning_rate": 1e-3, "max_steps": 5}
    parts = len(rows) - 6
    return Given(stage, model, tok, rows.select(range(parts)), rows.select(range(parts, len(rows))), config)


TRAINERS = {
    "sft": (SFTTrainer, SFTConfig, sft_trainer),
    "dpo": (DPOTrainer, DPOConfig, dpo_trainer),
    "reward": (RewardTrainer, RewardConfig, reward_trainer),
}


def encoded(it: Given, rows):
    "Rows with labels on the answers alone, as a right script makes them for TRL; pairs stay as they are."
    is_chats = isinstance(rows, Dataset) and "messages" in rows.column_names
    return encode_chats(it.tok, rows, None)[0].select_columns(["input_ids", "labels"]) if is_chats else rows


def plain(it: Given, folder: str):
    "TRL's own trainer."
    trainer, config, _ = TRAINERS[it.stage]
    fixed = {"use_cpu": True, "bf16": False, "report_to": "none", "logging_steps": 1, "save_strategy": "no"}
    fixed |= {"gradient_checkpointing": False, "per_device_train_batch_size": 8, "disable_tqdm": True, "seed": 0}
    args, rows, held = config(folder, **fixed | it.config), encoded(it, it.rows), encoded(it, it.held)
    return trainer(
        model=it.model, args=args, processing_class=it.tok, train_dataset=rows, eval_dataset=held, **it.arguments
    )


def ours(it: Given, folder: str):
    fixed = {"bf16": False, "effective_batch": 8, "disable_tqdm": True, "seed": 0}
    make = TRAINERS[it.stage][2]
    return make(it.model, it.tok, it.rows, it.held, output_dir=folder, **fixed | it.config | it.arguments)


def mapped(change: Callable[[dict], dict]):
    def plant(it: Given):
        it.rows = Dataset.from_list([change(dict(row)) for row in encoded(it, it.rows)])

    return plant


def shifted_labels(row):
    "The script shifts the labels, and the model does so again."
    return {**row, "labels": [*row["labels"][1:], -100]}


def no_end(row):
    "The end of the answer is masked, as a collator does where the padding is the end of text."
    return {**row, "labels": [-100 if label == 2 else label for label in row["labels"]]}


def all_tokens(row):
    return {**row, "labels": list(row["input_ids"])}


def prompt_alone(row):
    "The mask is the wrong way round."
    return {**row, "labels": [id if label == -100 else -100 for id, label in zip(row["input_ids"], row["labels"])]}


def padded(row):
    missing = 400 - len(row["input_ids"])
    return {"input_ids": row["input_ids"] + [0] * missing, "labels": row["labels"] + [0] * missing}


def nothing(row):
    return {**row, "labels": [-100] * len(row["labels"])}


def other_ids(row):
    def another(id):
        return id if id < 3 else 3 + (id + 50) % 256

    return {k: [another(id) for id in row[k]] for k in ("input_ids", "labels")}


def with_other_labels(row):
    "The labels are of a tokenizer with other ids."
    return {**row, "labels": [label if label < 3 else 3 + (label + 50) % 256 for label in row["labels"]]}


def base_trains_too(it: Given):
    for name, parameter in it.model.named_parameters():
        if "norm" in name or "lm_head" in name:
            parameter.requires_grad_(True)


def embedding_trains_too(it: Given):
    it.model.get_input_embeddings().weight.requires_grad_(True)


def frozen_adapter(it: Given):
    for parameter in it.model.parameters():
        parameter.requires_grad_(False)


def half_precision(it: Given):
    it.model = it.model.unload().to(torch.float16)
    for parameter in it.model.parameters():
        parameter.requires_grad_(True)


def other_optimizer(it: Given):
    "An optimizer that was made before the adapter."
    old = [torch.nn.Parameter(p.detach().clone()) for p in it.model.parameters() if p.requires_grad]
    it.arguments["optimizers"] = (torch.optim.AdamW(old, lr=1e-3), None)


def part_of_the_optimizer(it: Given):
    "An optimizer of the first layer alone."
    trained = [p for name, p in it.model.named_parameters() if p.requires_grad and ".layers.0." in name]
    it.arguments["optimizers"] = (torch.optim.AdamW(trained, lr=1e-3), None)


def no_rate(it: Given):
    trained = [p for p in it.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    it.arguments["optimizers"] = (optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0))


def swapped(it: Given):
    it.model, it.tok = it.tok, it.model


def on_meta(it: Given):
    with torch.device("meta"):
        it.model = AutoModelForCausalLM.from_config(it.model.unload().config)


def data_parallel(it: Given):
    it.model = torch.nn.DataParallel(it.model.unload())


def dict_of_sets(it: Given):
    it.rows = DatasetDict(train=it.rows)


def generator(it: Given):
    rows = it.rows
    it.rows = (row for row in rows)


def held_is_trained(it: Given):
    it.held = it.rows.select(range(6))


def added_token(it: Given):
    it.tok.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|tool|>"]})


def two_adapters(it: Given):
    "The second adapter is active, and the first one is what is loaded later."
    it.model.add_adapter("second", lora())
    it.model.set_adapter("second")


def head_without_task(it: Given):
    it.model = get_peft_model(it.model.unload(), lora(task_type=None, target_modules=["q_proj", "v_proj"]))


def changed_in_memory(it: Given):
    "The policy was trained in memory; TRL loads its reference from the folder that it came from."
    it.model = it.model.unload()
    for parameter in it.model.parameters():
        parameter.requires_grad_(True)
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))


def two_labels(it: Given):
    from transformers import AutoModelForSequenceClassification

    name = it.model.config._name_or_path
    it.model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2, pad_token_id=0)
    it.arguments["peft_config"] = lora(task_type="SEQ_CLS")


def other_pad(it: Given):
    it.model.config.pad_token_id = 100


def sums_not_means(outputs, labels, num_items_in_batch=None):
    "A loss of the user's that is a mean of each micro-batch, whatever the accumulation."
    logits = outputs.logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100)


def own_loss(it: Given):
    it.arguments["compute_loss_func"] = sums_not_means
    it.config |= {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2}


def cut(it: Given):
    it.config["max_length"] = 128


USE = "library use"
SCRIPTS: list[tuple[Fault, Callable[[Given], object]]] = [
    (Fault("labels that were shifted before", USE, None, r"shift|label.*(differ|not the|belong|input_ids)|input_ids.*label"), mapped(shifted_labels)),
    (Fault("labels without the end of the answer", USE, None, r"end-of-turn|end of|im_end|stop|no-end"), mapped(no_end)),
    (Fault("labels on all tokens", USE, None, r"(?=.*label)(?=.*(all tokens|every token|prompt|user|whole))"), mapped(all_tokens)),
    (Fault("labels on the prompt alone", USE, None, r"(?=.*label)(?=.*(prompt|user|answer|end))"), mapped(prompt_alone)),
    (Fault("padding among the labels", USE, None, r"pad"), mapped(padded)),
    (Fault("no labels", USE, None, r"no(ne)?.*label|nothing.*train|label to train"), mapped(nothing)),
    (Fault("rows of another tokenizer", USE, None, r"(loss|perplexity|nats).*(vocabulary|ordinary|chance|guess|ln )|another tokenizer|decod"), mapped(other_ids)),
    (Fault("labels of another tokenizer", USE, None, r"label.*(differ|not the|input_ids)|input_ids.*label|another tokenizer|(loss|nats).*(vocabulary|ln )"), mapped(with_other_labels)),
    (Fault("weights of the base train beside the adapter", USE, None, r"base|saved|save_pretrained|lost|modules_to_save|adapter-lost"), base_trains_too),
    (Fault("the embedding trains beside the adapter", USE, None, r"embed|base|saved|save_pretrained|lost|modules_to_save|adapter-lost"), embedding_trains_too),
    (Fault("nothing is trainable", USE, None, r"trainable|requires_grad|does not require grad|frozen"), frozen_adapter),
    (Fault("trained weights in 16 bits", USE, None, r"float16|16 bits|fp16"), half_precision),
    (Fault("an optimizer of other parameters", USE, None, r"optimizer|not in|mov|chang|gradient"), other_optimizer),
    (Fault("an optimizer of a part", USE, None, r"optimizer|not in|mov|chang|gradient"), part_of_the_optimizer),
    (Fault("a schedule that is zero", USE, None, r"learning.rate|schedul|mov|nothing (has )?chang"), no_rate),
    (Fault("model and tokenizer exchanged", USE, None, r"(model|tokenizer).*(must|give|is a|swap|exchang|order|type)"), swapped),
    (Fault("a model without values, on meta", USE, None, r"meta"), on_meta),
    (Fault("a model in DataParallel", USE, None, r"DataParallel"), data_parallel),
    (Fault("a DatasetDict as the rows", USE, None, r"DatasetDict|split|dict"), dict_of_sets),
    (Fault("a generator as the rows", USE, None, r"generator|list"), generator),
    (Fault("evaluated on rows that are trained", USE, None, r"(held|eval).*(train|both|leak|same|contain)|leak"), held_is_trained),
    (Fault("a token added without a row for it", USE, None, r"vocabulary|embedding|259|tool"), added_token),
    (Fault("two adapters, and the second is trained", USE, None, r"second|two adapters|active"), two_adapters),
    (Fault("max_length cuts the answers", USE, None, r"cut|max_length|truncat"), cut),
    (Fault("DPO: a policy that was changed in memory", USE, None, r"referenc|margin", "dpo"), changed_in_memory),
    (Fault("DPO: a token added without a row for it", USE, None, r"vocabulary|embedding|259|tool", "dpo"), added_token),
    (Fault("reward: an adapter without its task", USE, None, r"head|score|task_type|modules_to_save", "reward"), head_without_task),
    (Fault("reward: a head with two labels", USE, None, r"num_labels|label|head|score", "reward"), two_labels),
    (Fault("reward: another padding in the configuration", USE, None, r"pad", "reward"), other_pad),
    (Fault("a loss of one's own that is a mean of each micro-batch", USE, None, r"num_items|accumul|mean|micro-batch", unknowable="the function is the user's, and it is right for one micro-batch; the lesson on batches compares the losses of two splits"), own_loss),
]  # fmt: skip
HOLDOUTS = {
    "labels on the prompt alone", "labels of another tokenizer", "the embedding trains beside the adapter",
    "an optimizer of a part", "two adapters, and the second is trained",
    "DPO: a token added without a row for it",
}  # fmt: skip


def _planted(fault: Fault, change: Callable[[Given], object]) -> Fault:
    return replace(fault, plant=lambda case: setattr(case, "script", change), holdout=fault.name in HOLDOUTS)


FAULTS = [_planted(fault, change) for fault, change in SCRIPTS]
