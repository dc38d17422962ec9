"""The CPU seconds of `ft_notebooks.data.deduplication.split`, beside a plain loop over datasketch and a comparison of
all pairs.

    OMP_NUM_THREADS=1 python benchmarks/split.py [rows ...]      # default: 1000 10000 50000

The rows are made here, from a fixed seed: 50 to 350 words each, drawn as often as words of a language are (Zipf). One
in ten is an edited copy of an earlier row (1 % of its words changed); half of the rows stand under a long instruction.
Each method must find the copies; what it called alike beside them is counted too. The plain loop is what the
documentation of datasketch (`pip install datasketch`) shows: shingles by hand, `MinHash.update_batch`,
`MinHashLSH(threshold=0.8)`, no check.
"""

import random
import resource
import sys
import time
from itertools import accumulate, combinations

import numpy as np
from datasets import Dataset
from datasketch import MinHash, MinHashLSH

from ft_notebooks.data.deduplication import _groups, split
from ft_notebooks.data.repetition import RowTexts

FORM = " ".join(f"Rule {i}: mind case {i}." for i in range(25))
ALL_PAIRS = 1000  # rows, above which comparing all pairs takes minutes


def made(n: int, seed: int = 0) -> tuple[Dataset, set[tuple[int, int]]]:
    "Rows, and the pairs (copied, copy)."
    rng, words = random.Random(seed), [f"word{i}" for i in range(30_000)]
    weights = list(accumulate(1 / (i + 1) for i in range(len(words))))
    texts, copies = [], set()
    for i in range(n):
        if i > 10 and rng.random() < 0.1:
            j = rng.randrange(i)
            text = [rng.choice(words) if rng.random() < 0.01 else word for word in texts[j]]
            copies.add((j, i))
        else:
            text = rng.choices(words, cum_weights=weights, k=rng.randint(50, 350))
        texts.append(text)
    turns = (((FORM + " ") * (i % 2) + " ".join(text[:-5]), " ".join(text[-5:])) for i, text in enumerate(texts))
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in turns]
    return Dataset.from_list(rows), copies


def shingled(dataset: Dataset) -> list[set[bytes]]:
    rows = [text.encode().split(b" ") for text in RowTexts(dataset).wholes.to_pylist()]
    return [set(map(b" ".join, zip(row, row[1:], row[2:]))) for row in rows]


def plain_datasketch(dataset: Dataset) -> set[tuple[int, int]]:
    lsh, pairs = MinHashLSH(threshold=0.8, num_perm=128), set()
    for i, runs in enumerate(shingled(dataset)):
        sketch = MinHash(num_perm=128)
        sketch.update_batch(runs)
        pairs |= {(j, i) for j in lsh.query(sketch)}
        lsh.insert(i, sketch)
    return pairs


def all_pairs(dataset: Dataset) -> set[tuple[int, int]]:
    runs = shingled(dataset)
    return {
        (j, i)
        for i, a in enumerate(runs)
        for j, b in enumerate(runs[:i])
        if len(a & b) >= 0.8 * (len(a) + len(b) - len(a & b))
    }


def ours(dataset: Dataset) -> set[tuple[int, int]]:
    groups, _ = _groups(dataset, 0.8)
    rows = [np.flatnonzero(groups == group).tolist() for group in np.flatnonzero(np.bincount(groups) > 1)]
    return {pair for group in rows for pair in combinations(group, 2)}


if __name__ == "__main__":
    print(f"{'rows':>7} {'method':<22} {'CPU s':>8} {'copies found':>16} {'pairs in all':>24}")
    for n in map(int, sys.argv[1:] or (1000, 10_000, 50_000)):
        dataset, copies = made(n)
        for name, method in (
            ("split's groups", ours),
            ("plain datasketch", plain_datasketch),
            ("all pairs", all_pairs),
        ):
            if method is all_pairs and n > ALL_PAIRS:
                continue
            start = time.process_time()
            found = method(dataset)
            seconds = time.process_time() - start
            print(
                f"{n:>7} {name:<22} {seconds:>8.1f} {len(found & copies):>7} of {len(copies):>5} {len(found):>18}",
                flush=True,
            )
        start = time.process_time()
        sides = split(dataset, 0.1)
        print(
            f"{n:>7} {'split, whole':<22} {time.process_time() - start:>8.1f}  {sides['test'].info.description}",
            flush=True,
        )
    print(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")
