"""`grpo_trainer` beside `trl.GRPOTrainer` with the same arguments: CPU seconds of a step, sampling and update apart.

    OMP_NUM_THREADS=1 python benchmarks/grpo_speed.py
    OMP_NUM_THREADS=1 python benchmarks/grpo_speed.py --prompts 4 --generations 6 --steps 2 --rounds 2 --bits 32

SmolLM2 with an adapter of rank 16 on all linear layers, notes of the built-in task, answers of at most 40 tokens. The
two trainers take turns in one process, each with its own model, on the same notes in the same order and with the same
random numbers. Sampling ends where the first reward is asked for. Both have the micro-batch that `grpo_trainer` chose
(all answers of a step), no activation checkpointing and no other setting that would cost TRL time. In 32 bits rewards,
gradient norms and lengths must be the same within rounding, and the exit status is 1 if they are not; 16 bits round
each their own way, so that other tokens are sampled. Printed are the medians, and their ratios within a round.
"""

import argparse
import contextlib
import copy
import io
import statistics
import sys
import tempfile
import time

import torch
from transformers import TrainerCallback
from trl import GRPOTrainer

from ft_notebooks import add_adapter, appointments, exact_match, load_model, load_tokenizer, lora_config, smollm2
from ft_notebooks.checkpointing.resume import exact_resume
from ft_notebooks.rlhf.grpo import grpo_trainer


def reward(generated: str, expected: str, example: dict) -> float:
    "Right, or longer: an untrained model is never right, and without a spread nothing would be updated."
    return exact_match(generated, expected, example) + len(generated) / 500


def policy(bits: int):
    torch.manual_seed(0)
    model = load_model(smollm2(), bits=bits)
    return add_adapter(model, lora_config(model, r=16))


class Clock(TrainerCallback):
    "CPU seconds from the beginning of a step to its first reward, and from there to its end."

    def __init__(self):
        self.sampling: list[float] = []
        self.update: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun, self.rewarded = time.process_time(), None

    def on_step_end(self, args, state, control, **kwargs):
        self.sampling.append(self.rewarded - self.begun)
        self.update.append(time.process_time() - self.rewarded)

    def reward(self, generated: str, expected: str, example: dict) -> float:
        self.rewarded = self.rewarded or time.process_time()
        return reward(generated, expected, example)

    def of_trl(self, completions, expected, **columns) -> list[float]:
        return [self.reward(one[0]["content"], text, {}) for one, text in zip(completions, expected)]


def run(kind: str, args, tok, folder: str) -> dict:
    given = {"prompts_a_step": args.prompts, "generations": args.generations, "max_completion_length": 40}
    given |= {"max_steps": args.steps, "learning_rate": 1e-4, "save_strategy": "no", "disable_tqdm": True}
    clock = Clock()
    with contextlib.redirect_stdout(io.StringIO()):
        rows, given = appointments(64, seed=args.seed), given | {"bf16": args.bits == 16, "output_dir": folder}
        trainer = grpo_trainer(policy(args.bits), tok, rows, {"reward": clock.reward}, **given)
        if kind == "trl":
            model, fields = policy(args.bits), copy.deepcopy(trainer.args)
            model.get_base_model().generation_config.eos_token_id = trainer.eos_token_ids
            dataset = trainer.train_dataset
            trainer = exact_resume(GRPOTrainer(model, clock.of_trl, fields, dataset, processing_class=tok))
        trainer.add_callback(clock)
        torch.manual_seed(0)
        trainer.train()
    history = [entry for entry in trainer.state.log_history if "reward" in entry]
    log = [(entry["reward"], entry["grad_norm"], entry["completions/mean_length"]) for entry in history]
    return {"sampling": statistics.mean(clock.sampling), "update": statistics.mean(clock.update), "log": log}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("prompts", 4), ("generations", 6), ("steps", 2), ("rounds", 2), ("bits", 32)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args, tok = parser.parse_args(), load_tokenizer(smollm2())
    found: dict[str, list[dict]] = {"trl": [], "ours": []}
    for args.seed in range(args.rounds):
        for kind in found:
            with tempfile.TemporaryDirectory() as folder:
                found[kind].append(run(kind, args, tok, folder))
    print("| trainer | sampling, s | update, s | step, s |\n|---|---|---|---|")
    for kind, name in (("trl", "`trl.GRPOTrainer`"), ("ours", "`grpo_trainer`")):
        parts = [statistics.median(row[part] for row in found[kind]) for part in ("sampling", "update")]
        print(f"| {name} | {parts[0]:.1f} | {parts[1]:.1f} | {sum(parts):.1f} |")
    pairs = list(zip(found["trl"], found["ours"]))
    update = statistics.median(one["update"] / other["update"] for one, other in pairs)
    sampling = statistics.median(one["sampling"] / other["sampling"] for one, other in pairs)
    whole = statistics.median(sum(one[k] for k in ("sampling", "update")) / sum(o[k] for k in ("sampling", "update"))
                              for one, o in pairs)  # fmt: skip
    print(f"| TRL / ours | {sampling:.1f}x | {update:.1f}x | {whole:.1f}x |")
    same = args.bits < 32 or all(abs(a - b) <= 1e-2 * max(1, abs(a)) for one, other in pairs
                                 for x, y in zip(one["log"], other["log"]) for a, b in zip(x, y))  # fmt: skip
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
