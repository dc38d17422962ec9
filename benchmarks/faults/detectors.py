"The detectors: each looks at a planted run in a forked process, and returns what it said"

import contextlib
import io
import json
import logging
import os
import re
import resource
import signal
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import datasets
import torch
import transformers
import trl
from good import Case
from matplotlib.figure import Figure
from peft import LoraConfig
from scripts import given, ours, plain
from transformers import AutoTokenizer
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)  # fmt: skip

from ft_notebooks.cli.commands import main
from ft_notebooks.cli.settings import read_settings
from ft_notebooks.evaluation.metrics import find_scorers
from ft_notebooks.training.gradient_flow import check_trained
from ft_notebooks.training.nan_guard import find_spikes
from ft_notebooks.training.preflight import add_guards, check_start
from ft_notebooks.training.stage import Stage

with contextlib.suppress(ImportError):  # before the forks, so that none of them imports it
    import ft_notebooks.cli.doctor
    import ft_notebooks.doctor.diagnosis  # noqa: F401

LIMIT = 120  # seconds for one look
LEVELS = ("note", "question", "warning", "error")


@dataclass
class Said:
    "What a detector said of a run."

    found: bool = False  # whether it says at all that something is wrong
    findings: list[tuple[str, str]] = field(default_factory=list)  # level and text of each
    seconds: float = 0.0  # of CPU
    failed: str = ""  # why the detector could not look
    losses: list[float] = field(default_factory=list)


def forked(look: Callable[[], Said], limit: int = LIMIT) -> Said:
    "The function's result, computed in a fork, with what it printed thrown away; the fork is ended after the limit."
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            os.setsid()
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nowhere, stream)
            torch.set_num_threads(1)
            signal.alarm(limit)
            said = look()
        except BaseException:
            said = Said(failed=traceback.format_exc()[-1500:])
        used = resource.getrusage(resource.RUSAGE_SELF)
        said.seconds = used.ru_utime + used.ru_stime
        with os.fdopen(writing, "w") as out:
            json.dump(asdict(said), out)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    os.waitpid(child, 0)
    if not text:
        return Said(failed=f"it did not end within {limit} s, or it crashed", seconds=float(limit))
    said = Said(**json.loads(text))
    said.findings = [tuple(found) for found in said.findings]
    return said


@contextlib.contextmanager
def in_folder(case: Case):
    "The case's folder is the working directory, and its machine is in place."
    before = os.getcwd()
    os.chdir(case.folder)
    try:
        with case.machine():
            yield
    finally:
        os.chdir(before)


def captured(act: Callable[[], object]) -> tuple[int, str, str]:
    "Exit status, stdout and stderr of a command's function."
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            act()
        except SystemExit as e:
            status = e.code if isinstance(e.code, int) else 1
        except Exception as e:  # what a user would see as a traceback
            status = 1
            err.write(f"\ntraceback: {type(e).__name__}: {e}")
    return status, out.getvalue(), err.getvalue()


def plain_lines(text: str) -> list[str]:
    "Lines without numbers, by which those of a good run are recognised."
    return [re.sub(r"[\d.,%\[\]]+", "#", line.strip()) for line in re.split(r"[\r\n]", text) if line.strip()]


def short_run(case: Case) -> list[str]:
    "The command of a run of some steps."
    argv = [*case.argv(), "--set", "evaluation.max_new_tokens=8"]
    limit = {"sft": "5", "dpo": "4", "reward": "4", "kto": "4", "pretrain": "4"}.get(case.stage)
    if limit and f"{case.stage}.num_train_epochs" in case.settings and case.settings[
        f"{case.stage}.num_train_epochs"
    ] == "1":  # fmt: skip
        argv += ["--set", f"{case.stage}.max_steps={limit}"]
    return argv


# 1: the doctor


def doctor(case: Case, quick: bool = False) -> Said:
    "`ft doctor --json`; a script's model, tokenizer and rows are given to `diagnose`."
    with in_folder(case):
        if case.script is not None:
            return _diagnosed(case)
        stage = ["--stage", case.stage]
        argv = case.argv("doctor")
        status, out, err = captured(lambda: main([*argv, *stage, "--json", *["--quick"] * quick]))
    try:
        found = json.loads(out)["findings"]
    except (ValueError, KeyError):
        return Said(status != 0, [("error", err[-1500:])] if status else [], failed="" if status else "no JSON")
    findings = [(one["level"], _text_of(one)) for one in found]
    if status == 2 and err:
        findings.append(("error", err[-1500:]))
    return Said(bool(above_notes(findings)), findings)


def _text_of(one: dict) -> str:
    said = " | ".join(str(one.get(key) or "") for key in ("code", "message", "where", "why"))
    raised = one["code"] in (
        "rows-unreadable",
        "model-unusable",
        "step-fails",
    )  # an error, whose last clause is the cure
    return f"{said} | {one['cure']}" if raised else said


def _diagnosed(case: Case) -> Said:
    from ft_notebooks.doctor.diagnosis import diagnose

    it = given(case, case.stage)
    case.script(it)
    try:
        found = diagnose_script(diagnose, it)
    except Exception as e:
        return Said(True, [("error", f"{type(e).__name__}: {e}")])
    findings = [(one.level, _text_of(asdict(one))) for one in found]
    return Said(bool(above_notes(findings)), findings)


def diagnose_script(diagnose, it):
    "`diagnose` of what a script gives to a trainer."
    return diagnose(it.model, it.tok, it.rows, it.held, stage=it.stage, **it.config, **it.arguments)


def above_notes(findings: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [found for found in findings if found[0] not in ("note", "question")]


# 2: the errors and guards of `ft`


def commands(case: Case) -> Said:
    "`ft sft` and its siblings; exit status, messages, and the findings that they print."
    with in_folder(case):
        if case.script is not None:
            return _guarded(case)
        Stage.describe = lambda *args: ""  # which shows what was planted, and is no message
        Figure.savefig = lambda self, *args, **kwargs: None  # a picture is no message either, and takes a second
        status, out, err = captured(lambda: main(short_run(case)))
    findings = [("error", err[-2000:])] if status else []
    findings += [("warning", line) for line in out.splitlines()] if not status else []
    return Said(status != 0, findings)


def _guarded(case: Case) -> Said:
    "A script's model and rows in our trainer; a trainer with its own optimizer or loss as a plain one with our guards."
    it = given(case, case.stage)
    case.script(it)
    logging.disable(logging.NOTSET)
    try:
        if {"optimizers", "compute_loss_func"} & set(it.arguments):
            check_start(it.model, it.tok, it.arguments)
            trainer = add_guards(plain(it, "runs/own"))
            check_trained(trainer.model, own_optimizer=True)
        else:
            trainer = ours(it, "runs/own")
        trainer.train()
    except Exception as e:
        kind = "" if isinstance(e, (ValueError, OSError)) else f"traceback: {type(e).__name__}: "
        return Said(True, [("error", f"{kind}{e}")])
    return Said(losses=losses(trainer))


# 3: TRL's own errors and warnings


class _Records(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record):
        with contextlib.suppress(Exception):
            self.said.append(f"{record.name}: {record.getMessage()}")


@contextlib.contextmanager
def recorded():
    "What the libraries log and warn."
    records = _Records()
    names = ("", "trl", "transformers", "peft", "accelerate", "datasets", "torch")
    logging.disable(logging.NOTSET)
    transformers.logging.set_verbosity_warning()
    datasets.logging.set_verbosity_warning()
    for name in names:
        logging.getLogger(name).addHandler(records)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            yield records.said
        finally:
            records.said += [f"{type(w.message).__name__}: {w.message}" for w in warned]
            for name in names:
                logging.getLogger(name).removeHandler(records)


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def library(case: Case) -> Said:
    "The plain trainer of TRL on the same rows, folder and settings, as a script would use it."
    said = Said()
    with in_folder(case), recorded() as lines:
        try:
            trainer = _trl_trainer(case)
            trainer.train()
            trainer.save_model("runs/trl")
            said.losses = losses(trainer)
        except Exception as e:
            said.findings.append(("error", f"{type(e).__name__}: {e}"))
    said.findings += [("warning", line) for line in dict.fromkeys(lines)]
    return said


CLASSES = {
    "sft": (SFTTrainer, SFTConfig), "dpo": (DPOTrainer, DPOConfig), "reward": (RewardTrainer, RewardConfig),
    "grpo": (GRPOTrainer, GRPOConfig), "kto": (KTOTrainer, KTOConfig), "pretrain": (SFTTrainer, SFTConfig),
}  # fmt: skip


def _split(case: Case):
    kind = {"jsonl": "json", "json": "json", "csv": "csv", "txt": "text"}[case.data.rpartition(".")[2]]
    rows = datasets.load_dataset(kind, data_files=case.data, cache_dir="cache", split="train")
    share = case.settings.get("data.eval")
    if share in (None, "none") or share.startswith("last"):
        return rows, None
    parts = rows.train_test_split(float(share), seed=0)
    return parts["train"], parts["test"]


def _adapter(case: Case, given: dict) -> LoraConfig | None:
    if case.settings.get("model.method") == "full":
        return None
    task = {"reward": "SEQ_CLS"}.get(case.stage, "CAUSAL_LM")
    return LoraConfig(**{"task_type": task, "target_modules": "all-linear"} | given)


def _reward(text: str):
    name = text.rpartition(":")[0] if re.search(r":[\d.]+$", text) else text
    if Path(name).is_dir():
        return name
    [(_, scorer)] = find_scorers([name]).items()

    def reward(prompts, completions, **columns):
        keys = {key: values for key, values in columns.items() if isinstance(values, list)}
        rows = [{key: values[i] for key, values in keys.items()} for i in range(len(completions))]
        texts = [said if isinstance(said, str) else said[0]["content"] for said in completions]
        return [scorer(text, row.get("expected", ""), row) for text, row in zip(texts, rows)]

    reward.__name__ = str(name).rpartition(":")[2]
    return reward


def _trl_trainer(case: Case):
    if case.script is not None:
        it = given(case, case.stage)
        case.script(it)
        return plain(it, "runs/trl")
    trainer, config = CLASSES[case.stage]
    own = read_settings(None, [f"{key}={value}" for key, value in case.settings.items()])
    fields = {key: value for key, value in own[case.stage].items() if key in config.__dataclass_fields__}
    fixed = {"use_cpu": True, "bf16": False, "logging_steps": 1, "report_to": "none", "disable_tqdm": True}
    fixed |= {"gradient_checkpointing": False, "save_strategy": "no", "per_device_train_batch_size": 8}
    if fields.get("num_train_epochs") == 1:
        fields["max_steps"] = 9 if case.stage == "sft" else 6
    if size := own[case.stage].get("effective_batch"):
        fixed["per_device_train_batch_size"] = size
    more = {}
    if case.stage == "grpo":
        count = own["grpo"]["generations"]
        fixed |= {"num_generations": count, "per_device_train_batch_size": count * own["grpo"]["prompts_a_step"]}
        more["reward_funcs"] = [_reward(text) for text in case.reward]
    train, held = _split(case)
    name = own["model"]["name"]
    tok = AutoTokenizer.from_pretrained(name)
    if Path(name, "adapter_config.json").is_file():
        from peft import AutoPeftModelForCausalLM

        model, adapter = AutoPeftModelForCausalLM.from_pretrained(name, is_trainable=True), None
    else:
        model, adapter = name, _adapter(case, own["lora"])
    args = config("runs/trl", **fixed | fields)
    return trainer(
        model=model, args=args, processing_class=tok, train_dataset=train, eval_dataset=held, peft_config=adapter,
        **more,
    )  # fmt: skip


# 4: the loss curve alone


def curve_fault(curve: list[float]) -> str:
    """The rule: a loss is not finite; all are 0; `find_spikes` names a step; or the mean of the last third is a tenth
    above that of the first. Nine steps are too few to tell a slow fall from none: good runs go up by 2 %.
    """
    if not all(map(_finite, curve)):
        return "not finite"
    if not curve:
        return ""
    if all(loss == 0 for loss in curve):
        return "exactly 0"
    spikes = find_spikes([{"step": i, "loss": loss} for i, loss in enumerate(curve)], window=8)
    if spikes:
        return f"a spike at step {spikes[0]}"
    third = max(1, len(curve) // 3)
    first, last = statistics.fmean(curve[:third]), statistics.fmean(curve[-third:])
    return f"it rises: {first:.4g}, {last:.4g}" if last > first + 0.1 * abs(first) else ""


def _finite(loss: float) -> bool:
    return loss == loss and abs(loss) != float("inf")


__all__ = ["LEVELS", "commands", "curve_fault", "doctor", "forked", "library", "plain_lines", "sys", "time", "trl"]
