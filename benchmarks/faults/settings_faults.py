"Faults of settings, and of the machine"

# ruff: noqa: E501 (the table has a line for each)

import contextlib
import shutil
from unittest.mock import patch

from good import Case
from plant import Fault, setting


def words(*added: str):
    def plant(case: Case):
        case.words += added

    return plant


@contextlib.contextmanager
def full_disk():
    usage = type(shutil.disk_usage("/"))
    with patch.object(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 40_000, 40_000)):
        yield


def on_full_disk(case: Case):
    case.machine = full_disk


def output_is_a_file(case: Case):
    (case.folder / "runs").write_text("not a folder")


def another_run(case: Case):
    "The output folder holds something else."
    (case.folder / "runs" / case.stage).mkdir(parents=True)
    (case.folder / "runs" / case.stage / "thesis.tex").write_text("mine")


FAULTS = [
    Fault("a rate of 0.1", "settings and machine", setting(sft__learning_rate=0.1), r"learning.rate|worse than|perplexity.*(worse|higher)"),
    Fault("a rate of 5", "settings and machine", setting(sft__learning_rate=5), r"learning.rate|worse than|perplexity.*(worse|higher)", holdout=True),
    Fault("a rate of 1e-12", "settings and machine", setting(sft__learning_rate=1e-12), r"learning.rate|nothing (has )?chang|nothing.*(learn|mov)", holdout=True),
    Fault("a rate of 0", "settings and machine", setting(sft__learning_rate=0), r"learning.rate|nothing (has )?chang|nothing.*(learn|mov)", holdout=True),
    Fault("a warm-up of 100,000 steps", "settings and machine", setting(sft__warmup_steps=100_000), r"warm-?up"),
    Fault("a warm-up of all steps", "settings and machine", setting(sft__warmup_ratio=1.0), r"warm-?up", holdout=True),
    Fault("betas of 0.9999999", "settings and machine", setting(sft__adam_beta1=0.9999999), r"beta"),
    Fault("an epsilon of 1000", "settings and machine", setting(sft__adam_epsilon=1e3), r"epsilon|nothing (has )?chang", holdout=True),
    Fault("weight decay of 100", "settings and machine", setting(sft__weight_decay=100), r"weight.decay"),
    Fault("label smoothing of 0.9", "settings and machine", setting(sft__label_smoothing_factor=0.9), r"label.smoothing"),
    Fault("LoRA dropout of 0.99", "settings and machine", setting(lora__lora_dropout=0.99), r"dropout"),
    Fault("LoRA alpha of -1", "settings and machine", setting(lora__lora_alpha=-1), r"alpha"),
    Fault("LoRA alpha of 0", "settings and machine", setting(lora__lora_alpha=0), r"alpha|nothing (has )?chang|no gradient|zero", holdout=True),
    Fault("LoRA alpha of 100,000", "settings and machine", setting(lora__lora_alpha=100_000), r"alpha|scal", holdout=True),
    Fault("NEFTune of 100,000", "settings and machine", setting(sft__neftune_noise_alpha=1e5), r"neftune"),
    Fault("rank 4,096 of matrices with 64 rows", "settings and machine", setting(lora__r=4096), r"rank|\br\b|lora\.r|4,?096"),
    Fault("layers that the model does not have", "settings and machine", setting(lora__target_modules="query_key_value"), r"query_key_value|target_modules"),
    Fault("LoRA on one layer that does not exist", "settings and machine", setting(lora__layers_to_transform="[7]"), r"layers_to_transform|layer|target_modules|\b7\b", holdout=True),
    Fault("no step", "settings and machine", setting(sft__num_train_epochs=0), r"epoch|step"),
    Fault("batches larger than the data", "settings and machine", setting(sft__effective_batch=512), r"effective_batch|batch|one step|1 step|steps?"),
    Fault("an answer is cut at 64 tokens", "settings and machine", setting(sft__max_length=64), r"cut|max_length"),
    Fault("gradients clipped to nothing", "settings and machine", setting(sft__max_grad_norm=1e-14), r"max_grad_norm|clip", holdout=True),
    Fault("SGD with the rate of Adam", "settings and machine", setting(sft__optim="sgd"), r"sgd|optim\b|hardly-learns|learning_rate|nothing (has )?chang", holdout=True),
    Fault("nothing is held out", "settings and machine", setting(data__eval=None), r"held.out|data\.eval|eval|held-out", least="note"),
    Fault("99 of 100 rows held out", "settings and machine", setting(data__eval=0.99), r"held.out|data\.eval|eval|train on|held-out", holdout=True),
    Fault("a model's folder that does not exist", "settings and machine", setting(model__name="./modle"), r"modle.*(no such|not|exist)|no such folder"),
    Fault("sft.lr", "settings and machine", setting(sft__lr=1e-4), r"learning_rate"),
    Fault("a flag of other programs: --epochs", "settings and machine", words("--epochs", "3"), r"num_train_epochs"),
    Fault("a flag of other programs: --lr", "settings and machine", words("--lr", "1e-4"), r"learning_rate", holdout=True),
    Fault("a flag of other programs: --batch-size", "settings and machine", words("--batch-size", "4"), r"effective_batch|per_device_train_batch_size", holdout=True),
    Fault("a number that is a word", "settings and machine", setting(sft__num_train_epochs="three"), r"num_train_epochs.*number"),
    Fault("4 bits and all weights trained", "settings and machine", setting(model__method="full", model__bits=4), r"bits.*(full|all weights|every weight|adapter|lora)|(full|every weight).*bits|quantized", holdout=True),
    Fault("FSDP asked for without a launcher", "settings and machine", setting(sft__fsdp="full_shard"), r"fsdp|launch"),
    Fault("an evaluation without held-out rows", "settings and machine", lambda case: case.set(data__eval="none"), r"held.out|data\.eval|eval", least="note", holdout=True),
    Fault("a disk without space", "settings and machine", on_full_disk, r"disk"),
    Fault("the output folder is a file", "settings and machine", output_is_a_file, r"runs|not a (folder|directory)|File exists|folder"),
    Fault("the output folder holds something else", "settings and machine", another_run, r"thesis|holds|not empty|other files|another"),
    Fault("DPO: beta of 0", "settings and machine", setting(dpo__beta=0), r"beta", stage="dpo"),
    Fault("DPO: a rate of SFT from scratch", "settings and machine", setting(dpo__learning_rate=0.05), r"learning.rate|worse|collaps", stage="dpo", holdout=True),
    Fault("DPO: beta of 500", "settings and machine", setting(dpo__beta=500), r"beta", stage="dpo", holdout=True),
    Fault("DPO: pairs longer than max_length", "settings and machine", setting(dpo__max_length=100), r"max_length|longer|left out|allow_long", stage="dpo"),
    Fault("DPO: dropout while answers are compared", "settings and machine", setting(lora__lora_dropout=0.95), r"dropout", stage="dpo", holdout=True),
]  # fmt: skip
