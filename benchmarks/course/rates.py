"""Learning rates for LoRA and for all weights: which are too low, which suit, which destroy the model, and why the
best rates differ.

Each point trains SmolLM2-135M-Instruct on the same 128 notes for 8 steps of 16, with the default settings of
`sft_trainer`: AdamW, no warm-up, and a rate that falls linearly to 0. Both methods start from the same float32 weights.
Beside the scores each point has the size of the change after 1 step and after 8: of the weight matrices, and of the
logits on held-out notes. A point with `method=base` is the model before training.
"""

import gc
import math
import statistics
import tempfile

import torch
from common import measure, score
from transformers import TrainerCallback

from ft_notebooks import (
    add_adapter,
    appointments,
    load_model,
    load_tokenizer,
    lora_config,
    perplexity,
    sft_trainer,
    smollm2,
)
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.evaluation import interval
from ft_notebooks.evaluation.likelihood import forced_match
from ft_notebooks.tokenization.padding import IGNORE, pad_batch
from ft_notebooks.training.nan_guard import BadStep

RATES = {
    "lora": [3e-6, 3e-5, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
    "all_weights": [3e-7, 3e-6, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3],
}
SECOND_SEED = {"lora": [3e-4, 1e-3, 3e-3], "all_weights": [3e-5, 1e-4, 3e-4]}  # around the best rates
torch.set_float32_matmul_precision("medium")  # on a CPU without AMX: oneDNN's float32, twice as fast, as exact
MATRICES = "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
SETTINGS = {
    "model": "SmolLM2-135M-Instruct, float32 weights, computed in bfloat16 while training",
    "notes": 128, "steps": 8, "effective_batch": 16, "r": 16, "lora_alpha": 32, "schedule": "linear to 0, no warm-up",
    "validation": "64 notes of appointments(part='validation'): mean loss of the answers' tokens, in nats",
    "exact_match": "100 notes of appointments(part='test'), teacher-forced (forced_match), 95 % Wilson interval",
    "change": "after step 1 and after the last: median over all layers of |W - W0| / |W0| (Frobenius norms), by kind "
    "of matrix",
    "logits": "16 validation notes, at the answers' tokens: root mean square of the change of the centred logits, and "
    "the mean KL divergence from the model before training, in nats; the logits before are computed in float32 and "
    "those after in bfloat16, whose rounding alone is about 0.044 and 0.0006",
}  # fmt: skip


def matrices(model) -> dict[str, torch.Tensor]:
    "The weight matrices of all layers, float32, with the adapter's part added where there is one."
    found = {}
    for name, module in model.named_modules():
        if name.endswith(MATRICES):
            weight = module.get_base_layer().weight if hasattr(module, "lora_A") else module.weight
            update = module.get_delta_weight("default") if hasattr(module, "lora_A") else 0
            found[name] = (weight + update).detach().clone()
    return found


@torch.no_grad()
def answer_logits(model, batch) -> torch.Tensor:  # [N, V] at the positions that predict the answers' tokens
    labelled = batch["labels"][:, 1:] != IGNORE
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    model.eval()
    logits = model(**inputs).logits[:, :-1][labelled].float()
    model.train()
    return logits


def change(before, after, logits_before, logits_after) -> dict:
    "How far the weights and the logits have moved."
    relative = {name: ((after[name] - w).norm() / w.norm()).item() for name, w in before.items()}
    kinds = {kind: statistics.median(v for name, v in relative.items() if name.endswith(kind)) for kind in MATRICES}
    moved = logits_after - logits_before
    p, q = logits_before.log_softmax(-1), logits_after.log_softmax(-1)
    return {
        "matrices": {kind: float(f"{value:.4g}") for kind, value in kinds.items()},
        "all": float(f"{statistics.median(relative.values()):.4g}"),
        "logits": float(f"{(moved - moved.mean(-1, keepdim=True)).square().mean().sqrt():.4g}"),
        "kl": float(f"{(p.exp() * (p - q)).sum(-1).mean():.4g}"),
    }


class Changes(TrainerCallback):
    "Measures the change after the first and the last step."

    def __init__(self, model, batch):
        self.batch, self.found = batch, {}
        self.before = matrices(model), answer_logits(model, batch)

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step in (1, state.max_steps):
            after = matrices(model), answer_logits(model, self.batch)
            self.found[f"step {state.global_step}"] = change(self.before[0], after[0], self.before[1], after[1])


def scores(model, tok, quick) -> dict:
    validation = appointments(8 if quick else 64, part="validation")
    test = appointments(8 if quick else 100, part="test")
    return {
        "validation_loss": round(math.log(perplexity(model, tok, validation)), 5),
        **score(interval(forced_match(model, tok, test)), "exact_match"),
    }


def run(point: dict, quick: bool) -> dict:
    gc.collect()
    tok, model = load_tokenizer(smollm2()), load_model(smollm2(), bits=32)
    if point["method"] == "base":
        return scores(model, tok, quick)
    seed = point["seed"]
    if point["method"] == "lora":
        model = add_adapter(model, lora_config(model, r=16), seed=seed)
    held_out = encode_chats(tok, appointments(16, part="validation"))[0]
    changes = Changes(model, pad_batch(list(held_out), tok.pad_token_id))
    with tempfile.TemporaryDirectory() as folder:
        trainer = sft_trainer(
            model, tok, appointments(128, seed=seed), output_dir=folder, learning_rate=point["rate"],
            max_steps=2 if quick else 8, seed=seed, save_strategy="no", callbacks=[changes],
        )  # fmt: skip
        try:
            trainer.train()
            stopped = None
        except BadStep as error:  # a loss or gradient is NaN
            stopped = error.report["fault"]
    log = [
        {"step": e["step"], "loss": round(e["loss"], 5), "grad_norm": round(e["grad_norm"], 4)}
        for e in trainer.state.log_history
        if "loss" in e
    ]
    try:
        found = scores(model, tok, quick)
    except ValueError:  # the weights are not finite
        found = {"validation_loss": None, "exact_match": None}
    return {**found, "stopped": stopped, "log": log, "change": changes.found}


def points() -> list[dict]:
    first = [{"method": method, "rate": rate, "seed": 0} for method, rates in RATES.items() for rate in rates]
    second = [{"method": method, "rate": rate, "seed": 1} for method, rates in SECOND_SEED.items() for rate in rates]
    return [{"method": "base"}, *first, *second]


if __name__ == "__main__":
    measure(__file__, points(), run, SETTINGS, __doc__)
