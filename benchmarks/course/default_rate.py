"""Which learning rate suits one epoch of SFT with the package's other defaults, by the number of optimizer steps?

Each point trains SmolLM2-135M-Instruct as `ft sft` does (LoRA on a bfloat16 base, or all weights in float32; one epoch
in steps of 16 rows, AdamW, no warm-up, a rate that falls linearly to 0) and measures held-out rows before and after.
The rows are a file of instructions with "instruction", "input" and "output": chapter 7 of rasbt/LLMs-from-scratch has
1,100 of them (instruction-data.json, Apache-2.0).

    python benchmarks/course/default_rate.py --data instruction-data.json    # all points
"""

import argparse
import functools
import gc
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import excerpt, excerpt_settings, measure
from datasets import Dataset

from ft_notebooks import add_adapter, load_model, load_tokenizer, lora_config, sft_trainer, smollm2
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.evaluation.likelihood import row_losses
from ft_notebooks.training.nan_guard import BadStep

torch.set_float32_matmul_precision("medium")  # on a CPU without AMX: oneDNN's float32, twice as fast, as exact
BITS = {"lora": 16, "full": 32}  # of a weight of the base
MOST_TOKENS = 256  # of a row; longer rows are left out
HELD_OUT = 110  # the file's last rows
SETTINGS = {
    "model": "SmolLM2-135M-Instruct", "bits": BITS, "effective_batch": 16, "epochs": 1, "adapter": "lora_config(model)",
    "schedule": "linear to 0, no warm-up",
    "data": "instruction-data.json of rasbt/LLMs-from-scratch: rows of at most 256 tokens, drawn by the seed from all "
    "but the last 110, which are held out",
    "loss": "mean loss of the held-out answers' tokens, in nats",
    "gain": "mean over held-out rows of the fall of a row's own mean loss, with an interval of 1.96 standard errors",
    "english": "mean loss of the excerpt's first 1,024 tokens: what a fine-tune does to other text",
    **excerpt_settings(),
}  # fmt: skip


def instructions(file: str, tok) -> tuple[Dataset, Dataset]:
    "Chats of an instruction and its answer, to train on and held out."
    chats = []
    for row in json.loads(Path(file).read_text(encoding="utf-8")):
        asked = "\n\n".join(part for part in (row["instruction"], row["input"]) if part)
        chat = [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]
        chats.append({"messages": chat})
    rows = Dataset.from_list(chats)
    lengths = map(len, encode_chats(tok, rows)[0]["input_ids"])
    rows = rows.select([n for n, length in enumerate(lengths) if length <= MOST_TOKENS])
    known = len(rows) - HELD_OUT
    return rows.select(range(known)), rows.select(range(known, len(rows)))


def loaded(method: str, seed: int):
    "The model to train: all its weights, or an adapter with `ft`'s settings."
    model = load_model(smollm2(), bits=BITS[method])
    return add_adapter(model, lora_config(model), seed=seed) if method == "lora" else model


def losses(model, tok, held_out) -> tuple[dict, np.ndarray]:
    "The mean loss of all answers' tokens and of other text, and each held-out row's own mean loss, in nats."
    sums, counts = row_losses(model, tok, held_out)
    english, tokens = row_losses(model, tok, excerpt(tok, 2), batch_size=1)
    found = {"loss": sums.sum() / counts.sum(), "english": english.sum() / tokens.sum()}
    return {name: round(value, 4) for name, value in found.items()}, sums / counts


@functools.cache
def before(method: str, file: str, quick: bool) -> tuple[dict, np.ndarray]:
    "What `losses` finds before training: the same for all points of a method."
    tok = load_tokenizer(smollm2())
    held_out = instructions(file, tok)[1]
    return losses(loaded(method, 0), tok, held_out.select(range(8)) if quick else held_out)


def run(file: str, point: dict, quick: bool) -> dict:
    gc.collect()
    was, own_before = before(point["method"], file, quick)
    tok, model = load_tokenizer(smollm2()), loaded(point["method"], point["seed"])
    known, held_out = instructions(file, tok)
    rows = known.shuffle(seed=point["seed"]).select(range(16 if quick else point["rows"]))
    with tempfile.TemporaryDirectory() as folder:
        trainer = sft_trainer(
            model, tok, rows, output_dir=folder, learning_rate=point["rate"], num_train_epochs=1, seed=point["seed"],
            save_strategy="no",
        )  # fmt: skip
        try:
            trainer.train()
        except BadStep as error:  # a loss or gradient is NaN
            return {"steps": trainer.state.global_step, "stopped": error.report["fault"], "loss": None}
    now, own = losses(model, tok, held_out.select(range(8)) if quick else held_out)
    gain = own_before - own
    half = 1.96 * gain.std(ddof=1) / len(gain) ** 0.5
    log = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "steps": trainer.state.global_step,
        **{f"{name}_before": value for name, value in was.items()},
        **now,
        "gain": round(gain.mean(), 4),
        "gain_low": round(gain.mean() - half, 4),
        "gain_high": round(gain.mean() + half, 4),
        "worse_rows": int((gain < 0).sum()),
        "highest_step_loss": round(max(log), 4),
        "last_step_loss": round(log[-1], 4),
    }


def points() -> list[dict]:
    grids = [  # method, rows, rates, seeds
        ("lora", [64, 180], [2e-4, 5e-4, 1e-3, 2e-3], [0]),
        ("lora", [500], [2e-4, 5e-4, 1e-3], [0]),
        ("lora", [180], [2e-4, 5e-4, 1e-3], [1]),
        ("full", [64], [2e-5, 1e-4], [0]),
        ("lora", [64], [2e-4, 5e-4, 1e-3, 2e-3], [1, 2]),
        ("lora", [180], [2e-4, 5e-4, 1e-3], [2]),
        ("lora", [990], [5e-4, 1e-3, 2e-4], [0]),
    ]
    return [
        {"method": method, "rows": rows, "rate": rate, "seed": seed}
        for method, sizes, rates, seeds in grids
        for seed, rows, rate in itertools.product(seeds, sizes, rates)
    ]


if __name__ == "__main__":
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--data", metavar="FILE", default="instruction-data.json", help="the instructions, as JSON")
    data = options.parse_known_args()[0].data
    measure(__file__, points(), functools.partial(run, data), SETTINGS, __doc__, options)
