"""What does a tool add in GRPO? Sums of two prices, with `Calculator.add` and without it, three seeds.

Both ways begin with the same short SFT, half of whose chats call the calculator and half of which answer at once:
SmolLM2-135M calls no tool untrained. Scores are greedy, on questions that neither part of the training has.

    python benchmarks/course/grpo_tools.py                       # all points
    python benchmarks/course/grpo_tools.py --only "way=tool"     # these again
"""

import tempfile
import time
from functools import cache

import torch
from common import WITH_TOOLS, measure, score, train
from transformers.utils import get_json_schema

from ft_notebooks import add_adapter, load_model, load_tokenizer, lora_config, smollm2
from ft_notebooks.course.sums_task import Calculator, sum_rows, with_tools
from ft_notebooks.evaluation.answer_format import number_match
from ft_notebooks.evaluation.runner import interval
from ft_notebooks.inference.generation import answers
from ft_notebooks.rlhf.grpo import grpo_trainer
from ft_notebooks.rlhf.rewards import read_prompts, score_answers
from ft_notebooks.rlhf.tool_use import tool_answers

SFT = {"effective_batch": 8, "max_steps": 3, "learning_rate": 1e-3}
GRPO = {
    "prompts_a_step": 4,
    "generations": 4,
    "max_completion_length": 80,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "constant",
    "max_steps": 3,
}
LOGGED = ("reward", "reward_std", "entropy", "completions/mean_length", "tools/call_frequency")
SETTINGS = {
    "model": WITH_TOOLS,
    "sft": {**SFT, "chats": "12 with a call and 12 without, another draw for each seed"},
    "reward": "number_match",
    **GRPO,
    "questions": "24 for GRPO, another draw for each seed; 20 held out, the same for all",
    "scores": "greedy, 40 tokens at most in a turn",
    "cpu_seconds": "of the process, for the steps of GRPO",
}


def sum_chats(n: int, seed: int, calls: bool = True) -> list[dict]:
    "The questions with their answers, as a teacher would show them: with a call of `Calculator.add` and its reply."
    chats = []
    for row in sum_rows(n, seed):
        answer = {"role": "assistant", "content": f"Both cost {row['expected']} euros."}
        if not calls:
            chats.append({"messages": [*row["prompt"], answer]})
            continue
        function = {"name": "add", "arguments": {"a": row["a"], "b": row["b"]}}
        call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        reply = {"role": "tool", "name": "add", "content": row["expected"]}
        tools = [get_json_schema(Calculator().add)]
        chats.append({"messages": [*row["prompt"], call, reply, answer], "tools": tools})
    return chats


@cache
def start(seed: int) -> tuple:
    "The tokenizer, and the adapter's weights after SFT."
    tok = with_tools(load_tokenizer(smollm2()))
    model = adapter(seed)
    chats = [chat for pair in zip(sum_chats(12, 10 + seed), sum_chats(12, 20 + seed, calls=False)) for chat in pair]
    train(model, tok, chats, seed=seed, train_sampling_strategy="sequential", **SFT)
    return tok, {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def adapter(seed: int):
    model = load_model(smollm2(), bits=16)
    return add_adapter(model, lora_config(model, r=16), seed)


def scores(model, tok, way: str, n: int, name: str) -> dict:
    "The share of right answers and, with the tool, the share that calls it."
    rows = read_prompts(sum_rows(n, seed=30))
    if way == "none":
        found = answers(model, tok, rows["prompt"][:], 40, progress=False)
    else:
        found = tool_answers(model, tok, rows, Calculator, 40)
    kept = score(interval(score_answers("number_match", number_match, rows, found)), f"right_{name}")
    if way == "tool":
        kept |= score(interval([float(bool(answer["calls"])) for answer in found]), f"calls_{name}")
    return kept


def run(point: dict, quick: bool) -> dict:
    seed = point["seed"]
    tok, weights = start(seed)
    model = adapter(seed)
    model.load_state_dict(weights, strict=False)
    n = 4 if quick else 20
    before = scores(model, tok, point["way"], n, "before")
    given = GRPO | ({"max_steps": 1} if quick else {}) | {"seed": seed, "save_strategy": "no"}
    if point["way"] == "tool":
        given["environment"] = Calculator
    torch.manual_seed(seed)
    refused = {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = grpo_trainer(model, tok, sum_rows(24, 40 + seed), "number_match", output_dir=folder, **given)
        begun = time.process_time()
        try:
            trainer.train()
        except ValueError as error:  # the first answers all earn the same
            refused = {"refused": str(error)[:120]}
        seconds = time.process_time() - begun
    log = [{key.rpartition("/")[2]: round(entry[key], 4) for key in LOGGED if key in entry}
           for entry in trainer.state.log_history if "reward" in entry]  # fmt: skip
    after = scores(trainer.model, tok, point["way"], n, "after")
    return {**before, **after, **refused, "cpu_seconds": round(seconds), "log": log}


if __name__ == "__main__":
    points = [{"way": way, "seed": seed} for seed in range(3) for way in ("tool", "none")]
    measure(__file__, points, run, SETTINGS, __doc__)
