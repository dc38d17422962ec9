"""Schedules of the learning rate: constant, a line to 0, warm-up, and warm-up with cosine decay, at a good rate and at
three times that.

Each point trains LoRA (r=16) on SmolLM2-135M-Instruct for 24 steps of 8 notes, every note once, and measures the loss
on held-out notes every 4 steps.
"""

import gc
import tempfile

import torch
from common import measure

from ft_notebooks import (
    add_adapter,
    appointments,
    load_model,
    load_tokenizer,
    lora_config,
    sft_trainer,
    smollm2,
)

torch.set_float32_matmul_precision("medium")  # on a CPU without AMX: oneDNN's float32, twice as fast, as exact
SCHEDULES = {  # fields of SFTConfig
    "constant": {"lr_scheduler_type": "constant"},
    "line": {"lr_scheduler_type": "linear"},
    "warm-up": {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5},
    "warm-up and cosine": {"lr_scheduler_type": "cosine", "warmup_steps": 5},
}
RATES = [2e-3, 6e-3]
SETTINGS = {
    "model": "SmolLM2-135M-Instruct, bfloat16 weights", "r": 16, "lora_alpha": 32,
    "notes": 192, "steps": 24, "effective_batch": 8, "schedules": SCHEDULES,
    "eval_loss": "32 notes of appointments(part='validation'): mean loss of the answers' tokens, in nats",
}  # fmt: skip


def run(point: dict, quick: bool) -> dict:
    gc.collect()
    tok, model, seed = load_tokenizer(smollm2()), load_model(smollm2()), point["seed"]
    model = add_adapter(model, lora_config(model, r=16), seed=seed)
    steps = 4 if quick else SETTINGS["steps"]
    rows, held_out = appointments(SETTINGS["notes"], seed=seed), appointments(32, part="validation")
    with tempfile.TemporaryDirectory() as folder:
        trainer = sft_trainer(
            model, tok, rows, held_out, output_dir=folder, learning_rate=point["rate"], max_steps=steps, seed=seed,
            effective_batch=SETTINGS["effective_batch"], save_strategy="no", eval_strategy="steps", eval_steps=4,
            **SCHEDULES[point["schedule"]],
        )  # fmt: skip
        trainer.train()
    log = trainer.state.log_history
    evaluated = [(e["step"], round(e["eval_loss"], 5)) for e in log if "eval_loss" in e]
    return {
        "eval_loss": evaluated[-1][1],
        "eval_steps": [step for step, _ in evaluated],
        "eval_losses": [loss for _, loss in evaluated],
        "losses": [round(e["loss"], 5) for e in log if "loss" in e],
        "grad_norms": [round(e["grad_norm"], 4) for e in log if "loss" in e],
        "rates": [float(f"{e['learning_rate']:.4g}") for e in log if "loss" in e],
    }


def points() -> list[dict]:
    return [
        {"schedule": schedule, "rate": rate, "seed": seed}
        for seed in (0, 1)
        for rate in RATES
        for schedule in SCHEDULES
    ]


if __name__ == "__main__":
    measure(__file__, points(), run, SETTINGS, __doc__)
