"""A step of QLoRA (`bits=4`) against a step of LoRA on a bfloat16 base, both through `sft_trainer`, in turns on one
CPU.

    OMP_NUM_THREADS=1 python benchmarks/qlora_step.py [ROUNDS] [STEPS] [BATCH]        # 5 rounds of 4 steps of 4 rows

The model is SmolLM2, the rows are of the built-in task, the adapter is `lora_config`'s. Both models stay loaded; a
round
is STEPS steps of one and then STEPS of the other, on the same rows. The first step of a run is left out. The time is
CPU
seconds of this process. Then one step of each is profiled, and QLoRA is trained twice, once with an evaluation after
each
step: the losses must be equal to the last bit. Last, what this costs where a CPU has `avx512_bf16`: 20 tokens generated
by the model as `load_model` gives it, and with bitsandbytes' faster kernel, after which no gradient passes.
"""

import statistics
import sys
import tempfile
import time

import torch
from bitsandbytes.functional import has_avx512bf16
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from ft_notebooks.core.device import hardware
from ft_notebooks.data.example_task import appointments
from ft_notebooks.loading.example_models import smollm2
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.sft.trainer import sft_trainer
from ft_notebooks.tokenization.padding import load_tokenizer

WIDTHS = {"LoRA, bits=16": 16, "QLoRA, bits=4": 4}


class Clock(TrainerCallback):
    "CPU seconds of every optimizer step but the first."

    def __init__(self):
        self.steps = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(time.process_time() - self.start)


def adapted(bits: int):
    model = load_model(smollm2(), bits)
    return add_adapter(model, lora_config(model))


def run(model, tok, rows, steps: int, batch: int, **overrides):
    clock, folder = Clock(), tempfile.TemporaryDirectory()
    settings = {"max_steps": steps, "save_strategy": "no", "disable_tqdm": True, "callbacks": [clock], **overrides}
    trainer = sft_trainer(model, tok, rows, rows, output_dir=folder.name, effective_batch=batch, **settings)
    trainer.train()
    folder.cleanup()
    return clock.steps[1:], [log["loss"] for log in trainer.state.log_history if "loss" in log]


def profiled(model, tok, rows, batch: int) -> dict[str, float]:
    "Share of one step's CPU time, by operation, the five largest and those of bitsandbytes."
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run(model, tok, rows, 1, batch)
    total = sum(event.self_cpu_time_total for event in found.key_averages())
    shares = {event.key: event.self_cpu_time_total / total for event in found.key_averages()}
    largest = sorted(shares, key=shares.get, reverse=True)[:5]
    return {key: share for key, share in shares.items() if key in largest or "bitsandbytes" in key and share > 0.001}


def generation(tok, packed: bool) -> float:
    "CPU seconds for 20 tokens of one text, in four bits."
    model, text = load_model(smollm2(), 4), tok("Once upon a time there was", return_tensors="pt")
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = packed
    model.generate(**text, max_new_tokens=2, do_sample=False)
    start = time.process_time()
    model.generate(**text, max_new_tokens=20, do_sample=False)
    return time.process_time() - start


def main(rounds: int = 5, steps: int = 4, batch: int = 4) -> None:
    tok, rows = load_tokenizer(smollm2()), appointments(batch * steps)
    models = {name: adapted(bits) for name, bits in WIDTHS.items()}
    seconds = {name: [] for name in WIDTHS}
    for _ in range(rounds):
        for name, model in models.items():
            seconds[name].append(statistics.median(run(model, tok, rows, steps, batch)[0]))
    hw = hardware()
    print(f"{hw.device}, bf16 instructions: {hw.bf16}, {torch.get_num_threads()} thread(s), {batch} rows a step")
    for name, times in seconds.items():
        print(f"{name:14} {statistics.median(times):.2f} CPU s a step  ({min(times):.2f} to {max(times):.2f})")
    ratios = [four / sixteen for sixteen, four in zip(*seconds.values())]
    print(f"QLoRA / LoRA: {statistics.median(ratios):.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")
    for name, model in models.items():
        shares = sorted(profiled(model, tok, rows, batch).items(), key=lambda item: -item[1])
        print(f"{name:14} " + ", ".join(f"{key} {share:.1%}" for key, share in shares))
    plain = run(adapted(4), tok, rows, steps, batch)[1]
    looked = run(adapted(4), tok, rows, steps, batch, eval_strategy="steps", eval_steps=1)[1]
    assert plain == looked, (plain, looked)
    print(f"losses with an evaluation after each step are those without: {[round(loss, 4) for loss in looked]}")
    if has_avx512bf16():
        for name, packed in (("as load_model gives it", False), ("with the kernel without backward", True)):
            print(f"20 tokens, {name}: {statistics.median(generation(tok, packed) for _ in range(rounds)):.2f} CPU s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
