"""What `ft tune` finds for LoRA on SmolLM2-135M, with 64 notes of `appointments` and the settings of `ft sft`.

The row is the record that `ft tune` writes: each candidate with its ratios of time, its memory and its verdict, TRL's
configuration, and the speeds before and after. `announced` is what the command says before it begins.
"""

import time

from common import measure

from ft_notebooks import add_adapter, appointments, encode_chats, load_model, load_tokenizer, lora_config, smollm2
from ft_notebooks.runs import Trial, candidates, tune
from ft_notebooks.runs.tuning import announce


def run(point: dict, quick: bool) -> dict:
    tok = load_tokenizer(smollm2())
    model = load_model(smollm2())
    rows, _ = encode_chats(tok, appointments(point["rows"]))
    trial = Trial(add_adapter(model, lora_config(model), seed=0), tok, rows, batch=16)
    tried = [c for c in candidates(trial) if not quick or c.name == "head at trained tokens"]
    announced = announce(trial, tried)
    print(announced, flush=True)
    start, cpu = time.perf_counter(), time.process_time()
    record = tune(trial, tried, command="ft tune notes.jsonl --set model.name=SmolLM2")
    took = {"minutes": (time.perf_counter() - start) / 60, "cpu_minutes": (time.process_time() - cpu) / 60}
    return {"announced": announced, **took, **record}


if __name__ == "__main__":
    from ft_notebooks.core.progress import show_phases

    with show_phases():
        measure(__file__, [{"rows": 64}], run, {"adapter": "LoRA r=16", "effective_batch": 16}, __doc__)
