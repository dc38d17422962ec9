"""Greedy answers of `ft_notebooks.inference.generation` beside a guide's loop: generated tokens a CPU second, with one
optimization more at a time.

    OMP_NUM_THREADS=1 python benchmarks/eval_speed.py                    # 64 notes of the built-in task
    OMP_NUM_THREADS=1 python benchmarks/eval_speed.py --data chats.json  # and 64 chats of a file that read_chats takes
    python benchmarks/eval_speed.py --prompts 8 --rounds 1 --variants loop,ours-fp32,ours

SmolLM2 with an adapter of rank 16 on all linear layers, whose weights are drawn, at most 48 tokens an answer. The
guide's loop is repaired just enough to run: one prompt at a time, float32, the adapter not merged. The variants take
turns, each in a process of its own, forked with everything imported and nothing loaded; a round has prompts of its own.
Two prompts are answered first, which are not counted; then the CPU seconds of the process are (on a GPU the seconds)
those of the answers, and of the merge where there is one. Ratios are formed within a round; printed are the medians.

What is generated in float32 must be what the loop says, text for text; the exit status is 1 if it is not. Printed is
the table of README.md. The CUDA path has not been run on a GPU yet.
"""

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass

import datasets
import torch
from transformers import GenerationConfig
from transformers.utils import logging

from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.read import read_chats
from ft_notebooks.evaluation.likelihood import last_turns
from ft_notebooks.inference.generation import answers
from ft_notebooks.loading.example_models import smollm2
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.lora.adapter import add_adapter, load_adapter, lora_config, merge_adapter
from ft_notebooks.tokenization.padding import load_tokenizer

CUDA = torch.cuda.is_available()
NEW = 48  # tokens of an answer, at most


@dataclass
class Variant:
    title: str
    bits: int = 16
    merged: bool = True
    size: int = 32  # prompts at a time
    ours: bool = False  # `answers`; else transformers' `generate`, padded on the left
    sort: bool = False  # the longest first
    stop: bool = True  # at the token that ends an answer


VARIANTS = {
    "loop": Variant("the guide's loop: one by one, float32, adapter not merged", 32, False, 1),
    "loop-merged": Variant("the same, adapter merged", 32, True, 1),
    "loop-bf16": Variant("and bfloat16", size=1),
    "batch-8": Variant("and 8 at a time", size=8),
    "batch-32": Variant("32 at a time"),
    "sorted": Variant("and the longest first", sort=True),
    "ours": Variant("and the shared prefix once: `answers`", ours=True),
    "no-stop": Variant("the longest first, but always 48 tokens", sort=True, stop=False),
    "ours-adapter": Variant("`answers`, adapter not merged", merged=False, ours=True),
    "ours-fp32": Variant("`answers` in float32", 32, ours=True),
}


def clock() -> float:
    if CUDA:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def make_adapter(folder: str) -> None:
    "An adapter that changes what is said, though not beyond words."
    model = load_model(smollm2(), bits=32)
    model = add_adapter(model, lora_config(model, r=16))
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.002)
    model.save_pretrained(folder)


def looped(model, tok, chats) -> list[tuple[str, int]]:
    "What guides have: (text, tokens generated) of each prompt, one at a time."
    found = []
    for chat in chats:
        inputs = tok.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True).to(
            model.device
        )
        out = model.generate(**inputs, do_sample=False, max_new_tokens=NEW)[0, inputs["input_ids"].shape[1] :]
        found.append((tok.decode(out, skip_special_tokens=True), len(out)))
    return found


def batched(model, tok, chats, size: int, sort: bool, stop: bool) -> list[tuple[str, int]]:
    "The same, some at a time; tokens after an answer's end are not counted."
    texts = [tok.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    order = sorted(range(len(texts)), key=lambda n: -len(texts[n])) if sort else range(len(texts))
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=NEW,
        pad_token_id=tok.pad_token_id,
        eos_token_id=tok.eos_token_id if stop else None,
    )
    found = {}
    for at in range(0, len(order), size):
        rows = order[at : at + size]
        inputs = tok(
            [texts[n] for n in rows], return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        )
        model.generation_config = config
        out = model.generate(**inputs.to(model.device))[:, inputs["input_ids"].shape[1] :].tolist()
        for n, ids in zip(rows, out):
            length = ids.index(tok.eos_token_id) + 1 if tok.eos_token_id in ids else len(ids)
            found[n] = tok.decode(ids[:length], skip_special_tokens=True), length
    return [found[n] for n in range(len(texts))]


def say(variant: Variant, model, tok, chats) -> list[tuple[str, int]]:
    if variant.ours:
        return [
            (said["text"], said["tokens"]) for said in answers(model, tok, chats, NEW, variant.size, progress=False)
        ]
    if variant.size == 1:
        return looped(model, tok, chats)
    return batched(model, tok, chats, variant.size, variant.sort, variant.stop)


@torch.no_grad()
def run(name: str, tok, chats, folder: str) -> dict:
    "Seconds of the clock, those of the merge apart, and what was said."
    variant = VARIANTS[name]
    model = load_adapter(folder, bits=variant.bits)
    began = clock()
    if variant.merged:
        model = merge_adapter(model)
    merge = clock() - began
    say(variant, model, tok, chats[:2])
    began = clock()
    said = say(variant, model, tok, chats)
    return {"merge": merge, "seconds": clock() - began, "said": said}


def reported(found, work, *given) -> None:
    try:
        found.put(work(*given))
    except BaseException as problem:
        found.put(f"{type(problem).__name__}: {problem}")
        raise


def alone(work, *given):
    "What a function finds in a process of its own."
    context = multiprocessing.get_context("spawn" if CUDA else "fork")
    found = context.Queue()
    process = context.Process(target=reported, args=(found, work, *given))
    process.start()
    result = found.get()
    process.join()
    if isinstance(result, str):
        raise SystemExit(result)
    return result


def speed(run: dict) -> float:
    return sum(tokens for _, tokens in run["said"]) / (run["merge"] + run["seconds"])


def equal(run: dict, other: dict) -> int:
    return sum(a == b for (a, _), (b, _) in zip(run["said"], other["said"], strict=True))


def measure(title: str, draw, tok, names: list[str], rounds: int, folder: str) -> bool:
    found, right = {name: [] for name in names}, True
    for turn in range(rounds):
        chats = draw(turn)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(alone(run, name, tok, chats, folder))
            print(
                f"  {title}, round {turn}: {name} {speed(found[name][-1]):.0f} tokens a second",
                file=sys.stderr,
                flush=True,
            )
    base = names[0]
    same = {name: sum(equal(*pair) for pair in zip(found[base], found[name])) for name in names}
    asked = rounds * len(draw(0))
    print(f"\n{title}: {len(draw(0))} prompts a round, at most {NEW} tokens an answer, rounds: {rounds}\n")
    print(
        "| answers | tokens a round | merge, s | all, s | tokens a CPU second | this / the loop | answers equal to the "
        "loop's |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in names:
        runs = found[name]
        ratio = statistics.median(speed(one) / speed(other) for one, other in zip(runs, found[base]))
        tokens = statistics.median(sum(count for _, count in one["said"]) for one in runs)
        merge, seconds = (
            statistics.median(part) for part in ([r["merge"] for r in runs], [r["merge"] + r["seconds"] for r in runs])
        )
        cells = [f"{tokens:,.0f}", f"{merge:.2f}" if VARIANTS[name].merged else "", f"{seconds:.1f}"]
        cells += [f"{statistics.median(map(speed, runs)):.0f}", f"{ratio:.1f}x", f"{same[name]} of {asked}"]
        print(f"| {VARIANTS[name].title} | " + " | ".join(cells) + " |", flush=True)
        if VARIANTS[name].bits == VARIANTS[base].bits == 32 and same[name] != asked:
            right = False
            print(f"NOT EQUAL: {name} says something else in {asked - same[name]} answers", file=sys.stderr)
    return right


def asked(dataset, n: int, seed: int) -> list[list[dict]]:
    "Conversations of a data set up to where the assistant speaks last, n drawn."
    dataset = dataset.shuffle(seed=seed).select(range(min(n, len(dataset))))
    return [[*chat[:turn]] for chat, turn in zip(dataset["messages"], last_turns(dataset))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="chats, as read_chats takes them, beside the notes of the built-in task")
    parser.add_argument("--prompts", type=int, default=64, help="prompts of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--notes", type=int, default=1, help="0 leaves the built-in task out")
    parser.add_argument(
        "--variants",
        default=",".join(VARIANTS),
        help=f"of {', '.join(VARIANTS)}; the first is what others are compared with",
    )
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of transformers about itself
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    tok, names, right = load_tokenizer(smollm2()), args.variants.split(","), True
    print(f"{torch.get_num_threads()} thread(s), {'CUDA' if CUDA else 'CPU'}")
    with tempfile.TemporaryDirectory() as folder:
        alone(make_adapter, folder)
        if args.data:
            chats = read_chats(args.data)
            right &= measure(
                "chats of a file", lambda turn: asked(chats, args.prompts, turn), tok, names, args.rounds, folder
            )
        if args.notes:
            drawn = {turn: asked(appointments(args.prompts, turn), args.prompts, turn) for turn in range(args.rounds)}
            right &= measure("notes of the built-in task", drawn.__getitem__, tok, names, args.rounds, folder)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
