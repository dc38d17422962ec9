"""DPO with `SharedPrompt` beside `trl.DPOTrainer`: CPU seconds a pair, the reference counted, at one epoch, and the
memory.

    OMP_NUM_THREADS=1 python benchmarks/dpo_speed.py                     # made pairs with prompts of 512 tokens
    OMP_NUM_THREADS=1 python benchmarks/dpo_speed.py --data pairs.json  # and those of a file
    python benchmarks/dpo_speed.py --pairs 32 --batch 8 --rounds 3 --variants trl,all

SmolLM2, an adapter of rank 16 on all linear layers, steps of BATCH pairs, of the made ones a quarter, on the same pairs
in the same order. The variants take turns, each run in a process of its own, forked with everything imported and
nothing loaded; a round has pairs of its own. After one pair that is not counted, the CPU seconds of the process are (on
a GPU the seconds), from the first step's beginning to the last one's end, and of a reference computed before the
training those too: what an epoch costs. The peak is of the process's memory (VmHWM; on a GPU what CUDA allocated), less
what it held at the fork. Ratios are formed within a round; printed are the medians.

The numbers of the first step, loss, log-probabilities, entropy and gradient norm, must be those of the first variant
within what 16 bits round; the exit status is 1 if they are not. Printed is the table of README.md. The CUDA path has
not been run on a GPU yet.
"""

import argparse
import contextlib
import functools
import io
import multiprocessing
import random
import statistics
import sys
import tempfile
import time

import datasets
import torch
from memory_watch import held
from peft import LoraConfig
from transformers import TrainerCallback
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer

from ft_notebooks.core.device import hardware
from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.read import read_preferences
from ft_notebooks.dpo.reference import with_reference
from ft_notebooks.dpo.shared_prompt import SharedPrompt
from ft_notebooks.loading.example_models import smollm2
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.tokenization.padding import load_tokenizer

CUDA = torch.cuda.is_available()
BF16 = hardware().bf16


class Shared(DPOTrainer):
    def __init__(self, *args, off=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.prompts = SharedPrompt(self, off)

    def train(self, *args, **kwargs):
        with self.prompts.used():
            return super().train(*args, **kwargs)

    def compute_loss(self, model, inputs, *args, **kwargs):
        return self.prompts.loss(super().compute_loss, model, inputs, *args, **kwargs)


VARIANTS = {  # name -> what the table says, the optimizations left out (None: TRL's own trainer), fields of DPOConfig
    "trl": ("`DPOTrainer`, its defaults", None, {}),
    "trl-once": ("the same, `precompute_ref_log_probs=True`", None, {"precompute_ref_log_probs": True}),
    "trl-kept": ("`DPOTrainer`, `gradient_checkpointing=False`", None, {"gradient_checkpointing": False}),
    "share": (
        "the prompt shared, one row without padding",
        ("lora", "norm", "head"),
        {"gradient_checkpointing": False},
    ),
    "head": ("and the head where an answer is", ("lora", "norm"), {"gradient_checkpointing": False}),
    "all": ("and one node for each LoRA layer and norm", (), {"gradient_checkpointing": False}),
    "all-once": (
        "all, the reference computed before",
        (),
        {"gradient_checkpointing": False, "precompute_ref_log_probs": True},
    ),
    "padded": ("all but the shared row", ("share",), {"gradient_checkpointing": False}),
}


def clock() -> float:
    if CUDA:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class Steps(TrainerCallback):
    "When the training's steps began and ended."

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = vars(self).get("began") or clock()

    def on_step_end(self, args, state, control, **kwargs):
        self.ended = clock()


def made(tok, n: int, seed: int, tokens: int = 512) -> datasets.Dataset:
    "Pairs whose prompt has about so many tokens: many notes, of which one is asked for; rejected is another's answer."
    notes, draw, rows = appointments(4000, seed).to_list(), random.Random(seed), []
    for _ in range(n):
        some, text = draw.sample(notes, 60), ""
        for number, note in enumerate(some, 1):
            longer = text + f"{number}. {note['messages'][1]['content']}\n"
            if len(tok(longer)["input_ids"]) > tokens - 30:
                break
            text = longer
        wanted, other = draw.sample(some[: number - 1], 2)
        question = text + f"Write note {some.index(wanted) + 1} as one line of JSON: event, day, time."
        rows.append(
            {
                "prompt": [{"role": "user", "content": question}],
                "chosen": wanted["messages"][2:],
                "rejected": other["messages"][2:],
            }
        )
    return datasets.Dataset.from_list(rows)


def trainer_of(name: str, tok, rows, batch: int, folder: str):
    _, off, fields = VARIANTS[name]
    once = off is not None and fields.get("precompute_ref_log_probs")  # by the package, in shared rows
    args = DPOConfig(
        folder,
        per_device_train_batch_size=batch,
        num_train_epochs=1,
        logging_steps=1,
        learning_rate=1e-4,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not CUDA,
        max_length=None,
        dataloader_pin_memory=CUDA,
        bf16=BF16,
        **(fields | {"precompute_ref_log_probs": False} if once else fields),
    )
    kind = DPOTrainer if off is None else functools.partial(Shared, off=off)
    torch.manual_seed(0)
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = kind(
        load_model(smollm2(), bits=16 if BF16 else 32),
        args=args,
        train_dataset=rows,
        processing_class=tok,
        peft_config=adapter,
    )
    if once:
        pairs = trainer.train_dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
        with trainer.prompts.used():
            trainer.train_dataset = with_reference(trainer, pairs, batch)
    return trainer


def run(name: str, tok, rows, batch: int) -> dict:
    "Seconds of the clock for each pair, by part, the peak of the memory, and the log of the first step."
    start, reference, inner, steps = held("VmHWM")[0], [0.0], DPOTrainer.compute_ref_log_probs, Steps()

    def counted(self, *args):
        began = clock()
        found = inner(self, *args)
        reference[0] += clock() - began
        return found

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        DPOTrainer.compute_ref_log_probs = counted
        trainer = trainer_of(name, tok, rows, batch, folder)
        DPOTrainer.compute_ref_log_probs = inner  # what is computed in a step is counted with it
        prompts = getattr(trainer, "prompts", None)
        trainer.add_callback(steps)
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        with prompts.used() if prompts else contextlib.nullcontext():
            trainer.training_step(trainer.model, trainer.data_collator([trainer.train_dataset[0]]))  # what is done once
        trainer.model.zero_grad()
        trainer.log({})  # its metrics are not those of a step
        trainer.train()
    if prompts and "share" not in prompts.off:
        assert prompts.not_shared is None, prompts.not_shared
    first = next(log for log in trainer.state.log_history if "loss" in log)
    peak = torch.cuda.max_memory_allocated() if CUDA else held("VmHWM")[0] - start
    parts = {"reference": reference[0] / len(rows), "training": (steps.ended - steps.began) / len(rows)}
    return parts | {"peak": peak, "first": first}


def reported(answers, *given) -> None:
    try:
        answers.put(run(*given))
    except BaseException as problem:
        answers.put(f"{type(problem).__name__}: {problem}")
        raise


def alone(*given) -> dict:
    "What `run` finds in a process of its own."
    context = multiprocessing.get_context("spawn" if CUDA else "fork")
    answers = context.Queue()
    process = context.Process(target=reported, args=(answers, *given))
    process.start()
    found = answers.get()
    process.join()
    if isinstance(found, str):
        raise SystemExit(found)
    return found


def differences(first: dict, other: dict) -> dict[str, float]:
    "How far the first step's numbers are apart, as a share of what 16 bits may round."
    # bfloat16 alone moved answers of 34 nats behind prompts of 512 tokens by up to 0.64 from float32
    allowed = {
        "loss": 0.01,
        "logps/chosen": 1.0,
        "logps/rejected": 1.0,
        "grad_norm": 0.05 * first["grad_norm"],
        "entropy": 0.03,
    }
    return {name: abs(first[name] - other[name]) / room for name, room in allowed.items()}


def tokens(tok, rows) -> str:
    texts = [
        [tok.apply_chat_template(row["prompt"] + row[k], return_dict=False) for k in ("chosen", "rejected")]
        for row in rows
    ]
    alike = [next((i for i, (a, b) in enumerate(zip(*pair)) if a != b), min(map(len, pair))) for pair in texts]
    every, once = (
        sum(len(a) + len(b) for a, b in texts),
        sum(len(a) + len(b) - max(n - 1, 0) - 2 for (a, b), n in zip(texts, alike)),
    )
    return f"{every / len(rows):.0f} tokens a pair, {once / len(rows):.0f} in a shared row"


def measure(title: str, draw, tok, names, batch: int, rounds: int) -> bool:
    found, right = {name: [] for name in names}, True
    for turn in range(rounds):
        rows = draw(turn)
        for name in names:
            found[name].append(alone(name, tok, rows, batch))
            seconds = found[name][-1]["training"] + found[name][-1]["reference"]
            print(f"  {title}, round {turn}: {name} {seconds:.2f} s a pair", file=sys.stderr, flush=True)
        for name in names:
            apart = differences(found[names[0]][turn]["first"], found[name][turn]["first"])
            if max(apart.values()) > 1:
                right = False
                print(f"NOT EQUAL: {name}, round {turn}: {apart}, {found[name][turn]['first']}", file=sys.stderr)
    total = {name: [run["reference"] + run["training"] for run in runs] for name, runs in found.items()}

    def ratio(base: str, name: str) -> str:
        return f"{statistics.median(a / b for a, b in zip(total[base], total[name])):.1f}x" if base in total else ""

    print(f"\n{title}: {tokens(tok, draw(0))}; {batch} pairs a step, {len(draw(0))} pairs a round, rounds: {rounds}\n")
    print(
        "| trainer | reference before, s | training, s | s a pair | TRL's defaults / this | TRL's reference before / "
        "this | peak MB |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in names:
        parts = [statistics.median(run[part] for run in found[name]) for part in ("reference", "training")]
        cells = [
            f"{parts[0]:.2f}" if parts[0] else "in the step",
            f"{parts[1]:.2f}",
            f"{statistics.median(total[name]):.2f}",
        ]
        cells += [
            ratio("trl", name),
            ratio("trl-once", name),
            f"{statistics.median(run['peak'] for run in found[name]) / 1e6:,.0f}",
        ]
        print(f"| {VARIANTS[name][0]} | " + " | ".join(cells) + " |")
    largest = max(max(differences(found[names[0]][0]["first"], found[name][0]["first"]).values()) for name in names)
    losses = [f"{found[name][0]['first']['loss']:.4f}" for name in names]
    print(
        f"\nfirst step: losses {', '.join(losses)}; the largest difference is {largest:.0%} of what 16 bits may round",
        flush=True,
    )
    return right


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="pairs, as read_preferences takes them, beside the made ones")
    parser.add_argument("--pairs", type=int, default=16, help="pairs of a round; of made ones a quarter")
    parser.add_argument("--batch", type=int, default=8, help="pairs of a step; of made ones a quarter")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a made prompt; 0 leaves the made pairs out")
    parser.add_argument(
        "--variants",
        default=",".join(VARIANTS),
        help=f"of {', '.join(VARIANTS)}; the first is what others are compared with",
    )
    args = parser.parse_args()
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    tok, names, right = load_tokenizer(smollm2()), args.variants.split(","), True
    print(f"{torch.get_num_threads()} thread(s), {'CUDA' if CUDA else 'CPU'}")
    if args.data:
        pairs = read_preferences(args.data)
        own = [pairs.shuffle(seed=turn).select(range(args.pairs)) for turn in range(args.rounds)]
        right &= measure("pairs of a file", own.__getitem__, tok, names, args.batch, args.rounds)
    if args.prompt:
        long = [made(tok, max(args.pairs // 4, 1), turn, args.prompt) for turn in range(args.rounds)]
        right &= measure(
            f"made pairs, prompts of {args.prompt} tokens",
            long.__getitem__,
            tok,
            names,
            max(args.batch // 4, 1),
            args.rounds,
        )
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
