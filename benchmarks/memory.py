"""The memory that `estimate_memory` predicts beside the rise of a process's peak while SmolLM2 is trained on a CPU.

    python benchmarks/memory.py                       # the table below, every run in a process of its own
    python benchmarks/memory.py lora 4 256            # one line: method, rows of a micro-batch, tokens of a row

The estimate is of TRL's own step: so `sft_trainer` trains with its optimizations off. What it takes with them
is the last column.

Linux only: the peak is VmHWM of /proc/self/status, set back after the model was loaded.
"""

import contextlib
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

CASES = [(method, *shape) for method in ("full", "lora", "qlora") for shape in ((1, 1024), (4, 256), (8, 512))]


def settle() -> int:
    "Give back what was freed, forget the peak, and return what is left."
    from memory_watch import held

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return held("VmRSS")[0]


def train(model, tok, batch: int, length: int, optimizations: bool) -> None:
    "Two steps of two micro-batches, every token a label."
    from datasets import Dataset

    from ft_notebooks.sft.trainer import sft_trainer

    ids = [[7 + (row + position) % 200 for position in range(length)] for row in range(4 * batch)]
    plain = contextlib.ExitStack()
    if not optimizations:
        plain.enter_context(patch("ft_notebooks.sft.trainer.speed_up", lambda model: contextlib.nullcontext()))
        plain.enter_context(patch("ft_notebooks.sft.trainer.LabelHead", lambda model, **_: model))
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(None),
        plain,
    ):
        sft_trainer(
            model,
            tok,
            Dataset.from_dict({"input_ids": ids, "labels": ids}),
            output_dir=folder,
            effective_batch=2 * batch,
            per_device_train_batch_size=batch,
            padding_free=optimizations and batch > 1,
            max_steps=2,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ).train()


def measure(method: str, batch: int, length: int, optimizations: bool) -> dict[str, int]:  # bytes
    import torch
    from memory_watch import held

    from ft_notebooks.core.device import hardware
    from ft_notebooks.loading.example_models import smollm2, tiny_model, tiny_tokenizer
    from ft_notebooks.loading.memory_estimate import estimate_memory
    from ft_notebooks.loading.quantized_loading import load_model
    from ft_notebooks.lora.adapter import add_adapter, lora_config
    from ft_notebooks.tokenization.padding import load_tokenizer

    def adapted(model):
        return model if method == "full" else add_adapter(model, lora_config(model))

    train(adapted(tiny_model()), tiny_tokenizer(), 1, 16, optimizations)  # everything is imported and warm
    dtype = torch.bfloat16 if hardware().bf16 else None
    guess = estimate_memory(smollm2(), method, batch=batch, length=length, device="cpu", dtype=dtype)
    before = settle()
    model = adapted(load_model(smollm2(), bits={"full": 32, "lora": 16, "qlora": 4}[method]))
    loaded = settle() - before
    train(model, load_tokenizer(smollm2()), batch, length, optimizations)
    return {**vars(guess), "estimate": guess.total, "loaded": loaded, "peak": held("VmHWM")[0] - before}


def run(
    case: tuple[str, int, int], optimizations=False, python: str = sys.executable, env: dict | None = None
) -> dict[str, int]:
    "`measure` in a process of its own."
    command = [python, __file__, "--measure", *map(str, case), str(int(optimizations))]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main(cases: list[tuple[str, int, int]]) -> None:
    parts = "weights adapter gradients optimizer copies activations logits working estimate peak".split()
    print(f"| method | batch x length | {' | '.join(parts)} | peak / estimate | peak with optimizations |")
    print("|---" * (len(parts) + 4) + "|")
    for case in cases:
        got, fast = run(case), run(case, optimizations=True)
        sizes = " | ".join(f"{got[part] / 1e6:,.0f}" for part in parts)
        ratio = got["peak"] / got["estimate"]
        print(f"| {case[0]} | {case[1]} x {case[2]} | {sizes} | {ratio:.2f} | {fast['peak'] / 1e6:,.0f} |", flush=True)


if __name__ == "__main__":
    measured, *words = sys.argv[1:] if sys.argv[1:2] == ["--measure"] else ["", *sys.argv[1:]]
    case = (words[0], int(words[1]), int(words[2])) if words else None
    if measured:
        print(json.dumps(measure(*case, optimizations=words[3] == "1")))
    else:
        main([case] if case else CASES)
