"""How long `load_model` takes, and how much memory, at each width, beside `from_pretrained` with the same arguments.

    OMP_NUM_THREADS=1 python benchmarks/load.py [ROUNDS] [FOLDER]        # 3 rounds of SmolLM2 by default

Each load runs in a process of its own; the rounds are interleaved, and the file is in the page cache. `load_model`
first looks at the file's header and rehearses the load, and sees to what bitsandbytes does with gradients. Memory is
the peak while loading and what is held afterwards, without what the imports take: of all resident pages (RSS), and of
those that belong to no file (RssAnon). The pages of the mapped file are in the first alone. Linux only.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

from ft_notebooks.loading.example_models import smollm2

LOADERS = {
    "load_model": """
from ft_notebooks.loading.quantized_loading import load_model
def load(name, bits):
    return load_model(name, bits)""",
    "from_pretrained": """
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
def load(name, bits):
    more = {}
    if bits == 4:
        more["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)
    if bits == 8:
        more["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32 if bits == 32 else torch.bfloat16, **more)""",
}
LOAD = """
import json, sys, time
import bitsandbytes, transformers.models.llama.modeling_llama
from memory_watch import held, watch
{loader}
transformers.logging.disable_progress_bar()
before = held("VmRSS", "RssAnon")
with watch("VmRSS", "RssAnon") as peak:
    start, cpu = time.perf_counter(), time.process_time()
    model = load(sys.argv[1], int(sys.argv[2]))
    seconds = time.perf_counter() - start, time.process_time() - cpu
after = held("VmRSS", "RssAnon")
print(json.dumps([*seconds, *((p - b) / 2**20 for p, b in zip([*peak, *after], before * 2))]))
"""


def measure(loader: str, folder: str, bits: int) -> list[float]:
    run = [sys.executable, "-c", LOAD.format(loader=LOADERS[loader]), folder, str(bits)]
    done = subprocess.run(
        run, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )  # memory_watch is here
    return json.loads(done.stdout.splitlines()[-1])


def main(rounds: int = 3, folder: str | None = None) -> None:
    folder = str(Path(folder or smollm2()).resolve())
    found = {(bits, loader): [] for bits in (32, 16, 8, 4) for loader in LOADERS}
    for _ in range(rounds):
        for (bits, loader), rows in found.items():
            rows.append(measure(loader, folder, bits))
    print("| bits | loader | wall s | CPU s | peak RSS MB | peak RssAnon MB | held RSS MB | held RssAnon MB |")
    print("|---|---|---|---|---|---|---|---|")
    for (bits, loader), rows in found.items():
        wall, cpu, *memory = (statistics.median(column) for column in zip(*rows))
        print(f"| {bits} | {loader} | {wall:.2f} | {cpu:.2f} | " + " | ".join(f"{m:.0f}" for m in memory) + " |")


if __name__ == "__main__":
    main(*(int(a) if a.isdigit() else a for a in sys.argv[1:]))
