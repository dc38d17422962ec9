"""What does GRPO do at three rates, where a program checks the answer and several answers are right?

Two numbers are to be combined to a target, as in TinyZero: the task `countdown` of the package reasoning-gym
(`pip install -e '.[course]'`), whose verifier accepts each expression that is right. Short SFT on tasks with one
expression each, then GRPO on other tasks, which have no answer but the verifier's score, with the rate of `grpo.py` and
two lower ones.
The scores are greedy, on tasks that neither has seen: `solved` by the verifier, `exact_match` with the one expression
that the task names. One seed.

    python benchmarks/course/grpo_verifier.py
"""

import json
import tempfile
import time
from importlib import metadata

import reasoning_gym
from common import measure, score, train
from datasets import Dataset

from ft_notebooks import add_adapter, evaluate, load_model, load_tokenizer, lora_config, smollm2
from ft_notebooks.rlhf.grpo import grpo_trainer

TASK = {"min_numbers": 2, "max_numbers": 2, "min_value": 1, "max_value": 30, "min_target": 1, "max_target": 99}
SYSTEM = "Combine the two numbers to the target by + - * or /. Answer with the expression alone."
SIZES = {"sft": 160, "grpo": 128, "test": 100}
SFT = {"learning_rate": 1e-3, "max_steps": 10, "effective_batch": 16}
GRPO = {
    "prompts_a_step": 6,
    "generations": 8,
    "max_completion_length": 12,
    "lr_scheduler_type": "constant",
    "max_steps": 16,
}
LOGGED = ("reward", "reward_std", "frac_reward_zero_std", "entropy", "completions/mean_length")
VERIFIER = reasoning_gym.create_dataset("countdown", size=1, seed=0, **TASK)
SETTINGS = {
    "model": "SmolLM2-135M-Instruct",
    "task": {"countdown": TASK, "system": SYSTEM, "reasoning_gym": metadata.version("reasoning-gym")},
    "rows": {**SIZES, "draws": "the same for each seed; no task of one part is in another"},
    "adapter": "LoRA r=16 on all linear layers",
    "sft": SFT,
    "grpo": {**GRPO, "reward": "1 where the verifier accepts the answer, else 0"},
    "scores": "greedy, 12 tokens at most, on the test part",
    "cpu_seconds": "of the process, for the steps of GRPO",
}


def solved(generated: str, expected: str, example: dict) -> float:
    "Whether the verifier accepts the answer."
    return float(VERIFIER.score_answer(generated.strip(), {"metadata": json.loads(example["task"])}) == 1)


def tasks() -> dict[str, list[dict]]:
    "The rows of each part: a conversation, and the task for the verifier."
    found, known = {name: [] for name in SIZES}, set()
    drawn = iter(reasoning_gym.create_dataset("countdown", size=4 * sum(SIZES.values()), seed=1, **TASK))
    for name, size in SIZES.items():
        while len(found[name]) < size:
            entry = next(drawn)
            numbers, target = entry["metadata"]["numbers"], entry["metadata"]["target"]
            if (key := (*sorted(numbers), target)) in known:
                continue
            known.add(key)
            asked = f"Numbers: {', '.join(map(str, numbers))}. Target: {target}."
            chat = [("system", SYSTEM), ("user", asked), ("assistant", entry["answer"])]
            messages = [{"role": role, "content": text} for role, text in chat]
            found[name].append({"messages": messages, "task": json.dumps({"numbers": numbers, "target": target})})
    return found


def scores(model, tok, rows: list[dict], name: str) -> dict:
    given = {"max_new_tokens": 12, "batch_size": 50, "likelihood": False}
    found = evaluate(model, tok, Dataset.from_list(rows), {"solved": solved, "exact_match": "exact_match"}, **given)
    return score(found.scores["solved"], f"solved_{name}") | score(found.scores["exact_match"], f"exact_match_{name}")


def run(point: dict, quick: bool) -> dict:
    rows, seed = tasks(), point["seed"]
    tok, model = load_tokenizer(smollm2()), load_model(smollm2(), bits=16)
    model = add_adapter(model, lora_config(model, r=16), seed=seed)
    steps = {"max_steps": 1} if quick else {}
    chats = Dataset.from_list([{"messages": row["messages"]} for row in rows["sft"]])
    train(model, tok, chats, **SFT | steps, seed=seed, data_seed=seed)
    test = rows["test"][: 4 if quick else None]
    before = scores(model, tok, test, "before")
    asked = [{"prompt": row["messages"][:-1], "expected": "", "task": row["task"]} for row in rows["grpo"]]
    with tempfile.TemporaryDirectory() as folder:
        given = (
            GRPO
            | steps
            | {"learning_rate": point["learning_rate"], "seed": seed, "save_strategy": "no", "output_dir": folder}
        )
        trainer = grpo_trainer(model, tok, asked, {"solved": solved}, **given)
        begun = time.process_time()
        trainer.train()
        seconds = time.process_time() - begun
    log = [{key.removeprefix("completions/"): round(entry[key], 4) for key in LOGGED if key in entry}
           for entry in trainer.state.log_history if "reward" in entry]  # fmt: skip
    return {**before, **scores(trainer.model, tok, test, "after"), "cpu_seconds": round(seconds), "log": log}


if __name__ == "__main__":
    measure(__file__, [{"seed": 0, "learning_rate": rate} for rate in (3e-4, 1e-4, 5e-5)], run, SETTINGS, __doc__)
