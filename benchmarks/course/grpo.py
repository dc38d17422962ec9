"""What does GRPO add to half-trained SFT? Nine steps on the built-in task with the reward `exact_match`, three seeds.

The start is the checkpoint of the course's SFT stage after 4 of its 8 steps, which gives some right answers and some
wrong ones. Each step samples six answers to each of four notes. The scores are greedy, on the test part's notes.

    python benchmarks/course/grpo.py
"""

import tempfile
import time
from pathlib import Path

from common import measure, score

from ft_notebooks import appointments, evaluate, load_adapter, load_tokenizer
from ft_notebooks.course.demo_task import course_stage
from ft_notebooks.rlhf.grpo import grpo_trainer

COURSE = Path(__file__).parents[2] / "nbs" / "runs" / "course"
GRPO = {
    "prompts_a_step": 4,
    "generations": 6,
    "max_completion_length": 40,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "constant",
    "max_steps": 9,
}
LOGGED = ("reward", "reward_std", "frac_reward_zero_std", "entropy", "completions/mean_length", "grad_norm", "loss")
SETTINGS = {
    "model": "SmolLM2-135M-Instruct with the course's SFT adapter after 4 of 8 steps",
    "reward": "exact_match",
    **GRPO,
    "notes": "64 of the training part, another draw for each seed",
    "scores": "greedy, 40 tokens at most, on the test part: 50 notes with new words, and 30 in new phrases",
    "cpu_seconds": "of the process, for the nine steps",
}


def scores(model, tok, n: int, name: str) -> dict:
    found = {}
    for count, new in ((50, False), (30, True)):
        notes = appointments(min(n, count), part="test", new_phrases=new)
        key = "new_phrases" if new else "exact_match"
        given = {"max_new_tokens": 40, "batch_size": 50, "likelihood": False}
        found |= score(evaluate(model, tok, notes, "exact_match", **given).scores["exact_match"], f"{key}_{name}")
    return found


def run(point: dict, quick: bool) -> dict:
    start = course_stage("sft", COURSE) / "checkpoint-4"
    tok, model = load_tokenizer(start.parent), load_adapter(start, bits=16, trainable=True)
    before = scores(model, tok, 4 if quick else 50, "before")
    notes = appointments(64, seed=100 + point["seed"])
    with tempfile.TemporaryDirectory() as folder:
        given = GRPO | {"max_steps": 1 if quick else GRPO["max_steps"], "seed": point["seed"], "save_strategy": "no"}
        trainer = grpo_trainer(model, tok, notes, "exact_match", output_dir=folder, **given)
        begun = time.process_time()
        trainer.train()
        seconds = time.process_time() - begun
    log = [{key.removeprefix("completions/"): round(entry[key], 4) for key in LOGGED if key in entry}
           for entry in trainer.state.log_history if "reward" in entry]  # fmt: skip
    after = scores(trainer.model, tok, 4 if quick else 50, "after")
    return {**before, **after, "cpu_seconds": round(seconds), "log": log}


if __name__ == "__main__":
    measure(__file__, [{"seed": seed} for seed in range(3)], run, SETTINGS, __doc__)
