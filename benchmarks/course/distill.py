"""On-policy distillation against SFT on the teacher's answers at equal compute, and against the teacher itself.

The task is the course's notes. Nothing larger than SmolLM2-135M is at hand, so the teacher is the same model after SFT
on 512 notes; the student is SmolLM2-135M with a fresh adapter, and has 64 prompts. "sft" trains on the teacher's greedy
answers to them for as many CPU seconds as the run of distillation with the same seed took.

    python benchmarks/course/distill.py                    # all points
    python benchmarks/course/distill.py --only "way=sft"   # these again
"""

import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import torch
from common import measure, score
from transformers import TrainerCallback

from ft_notebooks import (
    add_adapter,
    appointments,
    fit,
    generate,
    load_adapter,
    load_model,
    load_tokenizer,
    lora_config,
    sft_trainer,
    smollm2,
)  # fmt: skip
from ft_notebooks.core.files import read_record
from ft_notebooks.rlhf import distill_trainer
from ft_notebooks.rlhf.reward_choice import measure_rewards
from ft_notebooks.rlhf.rewards import read_prompts
from ft_notebooks.rlhf.teachers import Closeness

QUICK = "--quick" in sys.argv  # a teacher of two steps
TEACHER = Path(tempfile.gettempdir(), "ft-distill-teacher-quick" if QUICK else "ft-distill-teacher")
WAYS = {  # lmbda and beta
    "reverse KL": (1.0, 1.0),
    "JSD, half of the rows the teacher's": (0.5, 0.5),
}
STEPS = 8
LONGEST = 48  # tokens of an answer; the teacher's own have eight fewer
SETTINGS = {
    "teacher": "SmolLM2-135M-Instruct, LoRA r=16 on 512 notes, one epoch of 16 rows a step at 5e-4",
    "student": "SmolLM2-135M-Instruct, a fresh adapter, r=16, float32",
    "rows": "64 prompts, other notes for each seed",
    "steps": "8 of 8 rows, one epoch; sft: steps of 8 rows until the CPU seconds of 'reverse KL' are used up",
    "learning_rate": 1e-3,
    "schedule": "constant",
    "max_completion_length": LONGEST,
    "held_out": "40 notes, the same for all: exact_match of greedy answers; nats_from_teacher: KL(student || teacher) "
    "a token of the student's greedy answers",
    "ways": {name: f"lmbda={lmbda:g}, beta={beta:g}" for name, (lmbda, beta) in WAYS.items()},
}


def fresh(seed: int):
    base = load_model(smollm2(), bits=32)
    return add_adapter(base, lora_config(base), seed)


@cache
def teacher():
    "The tokenizer and the teacher, which is trained once and kept."
    tok = load_tokenizer(smollm2())
    if not (TEACHER / "complete.json").is_file():
        how = {"output_dir": str(TEACHER), "num_train_epochs": 1, "learning_rate": 5e-4, "bf16": False}
        fit(sft_trainer(fresh(0), tok, appointments(32 if QUICK else 512, seed=1000), **how))
    return tok, load_adapter(TEACHER, bits=32)


@cache
def answers(seed: int) -> list[dict]:
    "The prompts of a seed with the teacher's greedy answers."
    tok, model = teacher()
    chats = [row["messages"][:-1] for row in appointments(64, seed=2000 + seed)]
    said = generate(model, tok, chats, LONGEST - 8, progress=False)
    return [{"messages": [*chat, {"role": "assistant", "content": text}]} for chat, text in zip(chats, said)]


class Budget(TrainerCallback):
    "Ends a run when it has used so many CPU seconds."

    def __init__(self, seconds: float):
        self.seconds = seconds

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= time.process_time() - self.start >= self.seconds


spent: dict[int, float] = {}  # CPU seconds of the run of distillation, by seed


def budget(seed: int) -> float:
    if seed not in spent:
        file = Path(__file__).parents[2] / "ft_notebooks/course/measurements/distill.json"
        rows = read_record(file)["rows"]
        spent[seed] = next(row["cpu_seconds"] for row in rows if (row["way"], row["seed"]) == ("reverse KL", seed))
    return spent[seed]


def trained(way: str, seed: int, folder: str, steps: int):
    "The student after its run, and the steps and CPU seconds of it."
    tok, model = teacher()
    rows = answers(seed)
    how = {
        "output_dir": folder, "effective_batch": 8, "learning_rate": 1e-3, "lr_scheduler_type": "constant",
        "save_strategy": "no", "seed": seed, "bf16": False, "max_steps": steps,
    }  # fmt: skip
    if way == "sft":
        how |= {"max_steps": 10_000, "callbacks": [Budget(1 if QUICK else budget(seed))]}
        trainer = sft_trainer(fresh(seed), tok, rows, **how)
    else:
        lmbda, beta = WAYS[way]
        how |= {"lmbda": lmbda, "beta": beta, "max_completion_length": LONGEST}
        trainer = distill_trainer(fresh(seed), tok, rows, model, **how)
    start = time.process_time()
    trainer.train()
    spent[seed] = time.process_time() - start if way == "reverse KL" else spent.get(seed, 0)
    return trainer.model, trainer.state.global_step, time.process_time() - start


def scores(model, quick: bool) -> dict:
    "The scores on the held-out notes, and the divergence from the teacher."
    tok, own = teacher()
    rows = read_prompts(appointments(4 if quick else 40, seed=3000))
    far = {} if model is own else {"nats_from_teacher": Closeness(model, own, tok)}
    found = measure_rewards(model, tok, rows, far, LONGEST)
    return {name: value for key, one in found.items() for name, value in score(one, key).items()}


def run(point: dict, quick: bool) -> dict:
    torch.manual_seed(point.get("seed", 0))
    if point["way"] == "teacher":
        return scores(teacher()[1], quick)
    if point["way"] == "base":
        return scores(load_model(smollm2(), bits=32), quick)
    with tempfile.TemporaryDirectory() as folder:
        model, steps, seconds = trained(point["way"], point["seed"], folder, 1 if quick else STEPS)
        return {**scores(model, quick), "steps": steps, "cpu_seconds": round(seconds, 1)}


if __name__ == "__main__":
    points = [{"way": "teacher"}, {"way": "base"}]
    points += [{"way": way, "seed": seed} for way in ("reverse KL", "sft", *list(WAYS)[1:]) for seed in range(3)]
    measure(__file__, points, run, SETTINGS, __doc__)
