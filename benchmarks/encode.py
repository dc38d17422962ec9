"""`encode_chats` against what `SFTTrainer` does to the same rows before it trains, in one process, in turns.

    python benchmarks/encode.py [rows] [turns]

The template is Qwen2.5's, for which TRL has a training twin; the tokenizer is SmolLM2's. TRL gets the tokenizer threads
that it asks for, and so do we. Rows are built anew for each measurement, so nothing comes from a cache.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import datasets
import trl
from datasets import Dataset

from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.loading.example_models import smollm2, tiny_model
from ft_notebooks.tokenization.padding import IGNORE, load_tokenizer


def chats(n: int, turns: int) -> list[dict]:
    "Notes of the built-in task, each with more turns of the same kind behind it."
    rows = []
    for system, note, answer in appointments(n)["messages"]:
        more = [{"role": "user", "content": "Once more: " + note["content"]}, answer] * (turns - 1)
        rows.append({"messages": [system, note, answer, *more]})
    return rows


def main(n: int = 1000, turns: int = 1) -> None:
    datasets.disable_progress_bars()
    tok, rows = load_tokenizer(smollm2()), chats(n, turns)
    tok.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja").read_text()
    with tempfile.TemporaryDirectory() as folder:
        args = trl.SFTConfig(
            folder,
            use_cpu=True,
            bf16=False,
            report_to="none",
            assistant_only_loss=True,
            max_length=None,
            disable_tqdm=True,
        )
        trainer = trl.SFTTrainer(tiny_model(), args, train_dataset=Dataset.from_list(rows[:2]), processing_class=tok)
        times = {"SFTTrainer": [], "encode_chats": []}
        for _ in range(5):
            dataset, start = Dataset.from_list(rows), time.perf_counter()
            theirs = trainer._prepare_dataset(dataset, tok, args, False, None, "train")
            times["SFTTrainer"].append(time.perf_counter() - start)
            dataset, start = Dataset.from_list(rows), time.perf_counter()
            ours, account = encode_chats(tok, dataset)
            times["encode_chats"].append(time.perf_counter() - start)
    assert ours["input_ids"] == theirs["input_ids"], "not the same work"
    trained = sum(label != IGNORE for row in theirs["labels"] for label in row)
    print(
        f"{n} rows, {turns} answers each, {account['tokens']:,} tokens, {account['trained_tokens']:,} trained "
        f"({trained:,} by TRL)"
    )
    for name, seconds in times.items():
        print(f"{name:13} {statistics.median(seconds):.2f} s  (of 5: {min(seconds):.2f} to {max(seconds):.2f})")
    ratios = [b / a for a, b in zip(*times.values())]
    print(f"encode_chats / SFTTrainer: {statistics.median(ratios):.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
