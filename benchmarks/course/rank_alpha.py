"""Rank and alpha of LoRA: what the rank changes, and whether alpha and the learning rate can be exchanged.

Each point trains an adapter on SmolLM2-135M-Instruct on the same 128 notes for 8 steps of 16, with the default settings
of `sft_trainer` but the rate. Four series: ranks with alpha = 2r at one rate; ranks with alpha 32 at the same rate;
alphas at r=16 and one rate; and alphas at r=16 whose rate is divided by as much as alpha is multiplied.
"""

import gc
import math

import torch
from common import measure, score, train

from ft_notebooks import (
    add_adapter,
    appointments,
    load_model,
    load_tokenizer,
    lora_config,
    perplexity,
    smollm2,
)
from ft_notebooks.evaluation import interval
from ft_notebooks.evaluation.likelihood import forced_match

torch.set_float32_matmul_precision("medium")  # on a CPU without AMX: oneDNN's float32, twice as fast, as exact
RATE = 1e-3
SETTINGS = {
    "model": "SmolLM2-135M-Instruct, bfloat16 weights",
    "notes": 128, "steps": 8, "effective_batch": 16, "schedule": "linear to 0, no warm-up",
    "validation": "32 notes of appointments(part='validation'): mean loss of the answers' tokens, in nats",
    "exact_match": "50 notes of appointments(part='test'), teacher-forced (forced_match), 95 % Wilson interval",
    "update": "the median over all adapted matrices of |alpha/r BA| / |W| after training (Frobenius norms)",
}  # fmt: skip


def update_size(model) -> float:
    "The median size of the adapter's updates, relative to the weights that they are added to."
    sizes = [
        (module.get_delta_weight("default").float().norm() / module.get_base_layer().weight.float().norm()).item()
        for module in model.modules()
        if hasattr(module, "lora_A")
    ]
    return float(f"{torch.tensor(sizes).median().item():.4g}")


def run(point: dict, quick: bool) -> dict:
    gc.collect()
    tok, model, seed = load_tokenizer(smollm2()), load_model(smollm2()), point["seed"]
    model = add_adapter(model, lora_config(model, r=point["r"], lora_alpha=point["alpha"]), seed=seed)
    steps = 2 if quick else 8
    losses = train(model, tok, appointments(128, seed=seed), learning_rate=point["rate"], max_steps=steps, seed=seed)
    validation = appointments(8 if quick else 32, part="validation")
    test = appointments(8 if quick else 50, part="test")
    return {
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "validation_loss": round(math.log(perplexity(model, tok, validation)), 5),
        **score(interval(forced_match(model, tok, test)), "exact_match"),
        "update": update_size(model),
        "losses": [round(loss, 5) for loss in losses],
    }


def points() -> list[dict]:
    ranks = [(r, 2 * r, RATE) for r in (1, 4, 16, 64)]
    one_alpha = [(r, 32, RATE) for r in (1, 4, 64)]
    alphas = [(16, alpha, RATE) for alpha in (8, 16, 64, 128)]
    exchanged = [(16, alpha, RATE * 32 / alpha) for alpha in (8, 128)]
    settings = [*ranks, *one_alpha, *alphas, *exchanged]
    return [{"r": r, "alpha": a, "rate": rate, "seed": seed} for seed in (0, 1) for r, a, rate in settings]


if __name__ == "__main__":
    measure(__file__, points(), run, SETTINGS, __doc__)
