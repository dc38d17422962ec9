"""How many ranks the update of a full fine-tune has, and how many of them the model needs.

Each point trains all weights of SmolLM2-135M-Instruct, and takes the update W - W0 of each weight matrix apart by its
singular value decomposition. Then each update is cut to its first ranks and added to the weights before training; what
is no such matrix (embeddings, norms) goes back to its value before training, as LoRA would leave it.
"""

import gc
import math
import statistics
import tempfile

import torch
from common import measure, score

from ft_notebooks import appointments, load_model, load_tokenizer, perplexity, sft_trainer, smollm2
from ft_notebooks.evaluation import interval
from ft_notebooks.evaluation.likelihood import forced_match

torch.set_float32_matmul_precision("medium")  # on a CPU without AMX: oneDNN's float32, twice as fast, as exact
MATRICES = "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
SHOWN = [f"model.layers.15.{name}" for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")]
RANKS = [1, 2, 4, 8, 16, 64]
SETTINGS = {
    "model": "SmolLM2-135M-Instruct, float32 weights, computed in bfloat16 while training",
    "learning_rate": 1e-4, "schedule": "linear to 0, no warm-up", "effective_batch": 16, "epochs": 1,
    "ranks_for_share": "the fewest singular values whose squares are this share of the sum of all squares: median over "
    "the layers, by kind of matrix; 'noise': of a matrix of independent normal numbers of the same shape",
    "singular_values": "of the update of three matrices of layer 15, the largest first",
    "cut": "the model whose updates of the layers' matrices have this rank; 'all': those updates whole, the rest as "
    "before training; 'trained': the model as it was trained",
    "validation_loss": "32 notes of appointments(part='validation'): mean loss of the answers' tokens, in nats",
    "exact_match": "50 notes of appointments(part='test'), teacher-forced (forced_match), 95 % Wilson interval",
}  # fmt: skip


def ranks_for(values: torch.Tensor, part: float) -> int:
    "The fewest singular values that hold this part of the sum of squares."
    shares = values.square().cumsum(0) / values.square().sum()
    return int((shares < part).sum()) + 1


def medians(spectra: dict[str, torch.Tensor]) -> dict:
    "Ranks for 50, 90 and 99 % by kind of matrix, and the share of the first 16."
    found = {}
    for kind in MATRICES:
        own = [values for name, values in spectra.items() if name.endswith(kind)]
        found[kind] = {f"{p:.0%}": statistics.median(ranks_for(s, p) for s in own) for p in (0.5, 0.9, 0.99)}
        share = statistics.median((s[:16].square().sum() / s.square().sum()).item() for s in own)
        found[kind]["share of 16"] = round(share, 3)
    return found


def scores(model, tok, quick) -> dict:
    validation = appointments(8 if quick else 32, part="validation")
    test = appointments(8 if quick else 50, part="test")
    return {
        "validation_loss": round(math.log(perplexity(model, tok, validation)), 5),
        **score(interval(forced_match(model, tok, test)), "exact_match"),
    }


def trained(tok, point, quick):
    "The model after its steps, every note seen once."
    model, steps, seed = load_model(smollm2(), bits=32), 2 if quick else point["steps"], point["seed"]
    with tempfile.TemporaryDirectory() as folder:
        trainer = sft_trainer(
            model, tok, appointments(16 * steps, seed=seed), output_dir=folder, seed=seed, max_steps=steps,
            learning_rate=SETTINGS["learning_rate"], save_strategy="no",
        )  # fmt: skip
        trainer.train()
    return model


@torch.no_grad()
def run(point: dict, quick: bool) -> dict:
    gc.collect()
    tok, before = load_tokenizer(smollm2()), dict(load_model(smollm2(), bits=32).named_parameters())
    with torch.enable_grad():
        model = trained(tok, point, quick)
    cut = [{"rank": "trained", **scores(model, tok, quick)}]
    updates, parts, noise = {}, {}, {}
    for name, module in model.named_modules():
        if name.endswith(MATRICES):
            updates[name] = module.weight - before[f"{name}.weight"]
            parts[name] = torch.linalg.svd(updates[name], full_matrices=False)
            if name.startswith("model.layers.0."):
                random = torch.randn(module.weight.shape, generator=torch.Generator().manual_seed(0))
                noise[name] = torch.linalg.svdvals(random)
    model.load_state_dict(before, strict=False)
    for rank in [*RANKS, "all"]:
        for name, (u, s, v) in parts.items():
            update = updates[name] if rank == "all" else (u[:, :rank] * s[:rank]) @ v[:rank]
            model.get_submodule(name).weight.copy_(before[f"{name}.weight"] + update)
        cut.append({"rank": rank, **scores(model, tok, quick)})
    spectra = {name: s for name, (_, s, _) in parts.items()}
    return {
        "cut": cut,
        "ranks_for_share": medians(spectra),
        "noise": medians(noise),
        "singular_values": {name: [float(f"{v:.3g}") for v in spectra[name].tolist()] for name in SHOWN},
    }


def points() -> list[dict]:
    return [{"steps": 8, "seed": 0}, {"steps": 32, "seed": 0}]


if __name__ == "__main__":
    measure(__file__, points(), run, SETTINGS, __doc__)
