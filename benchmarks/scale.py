"""How the cost of each part of a run before its second step grows with the rows: CPU seconds, and memory.

    OMP_NUM_THREADS=1 python benchmarks/scale.py --folder WORK [--sizes 100 1000 10000 100000] [--parts read encode]

The rows are chats of one question and one answer, 20 words in all, made here from a fixed seed; one in fifty repeats an
earlier row with a word changed. Each part runs in a process of its own, forked after the imports, on the result of the
part before it, which it maps from a file. CPU seconds are those of all threads. Memory is the most that the part took
beyond what the process held before: of the pages that belong to no file (RssAnon), and of all resident pages (VmHWM);
the system may take pages of a mapped file back at any time. Linux only.

With --ids, the first part is to make encoded rows of 20 to 40 tokens, 10,000,000 in a minute; --parts then names those
that follow. The points are kept in scale.json beside this script, and one that was killed goes on with the missing
ones; --code names the version of the package that PYTHONPATH points to, such as "before". At the end it prints the
table and makes scale.png.
"""

import argparse
import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, List, Value, load_from_disk
from datasets.arrow_writer import ArrowWriter
from memory_watch import held, watch

from ft_notebooks import fit, sft_trainer, split, tiny_model, tiny_tokenizer
from ft_notebooks.checkpointing.row_order import set_order
from ft_notebooks.core.fingerprints import data_fingerprint
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.data.deduplication import distinct_rows
from ft_notebooks.data.read import read_chats
from ft_notebooks.data.repetition import repetition_line

SIZES = [100, 1_000, 10_000, 100_000, 1_000_000]
WORDS = 5_000


def write_rows(path: Path, rows: int, seed: int = 0) -> None:
    rng = random.Random(seed)
    words = [f"w{number:x}" for number in range(WORDS)]
    earlier = []
    with path.open("w") as file:
        for number in range(rows):
            said = rng.choices(words, k=20)
            if number % 50 == 7:
                earlier = said
            if number % 50 == 49:
                said = [*earlier]
                said[rng.randrange(20)] = rng.choice(words)
            question = {"role": "user", "content": " ".join(said[:12])}
            answer = {"role": "assistant", "content": " ".join(said[12:])}
            file.write(json.dumps({"messages": [question, answer]}) + "\n")


class Measured:
    "A block whose CPU seconds and memory are measured."

    seconds = anon = resident = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        anon, resident = held("RssAnon", "VmRSS")
        with watch("RssAnon", seconds=0.01) as peak:
            start = time.process_time()
            yield
            self.seconds = time.process_time() - start
        self.anon = (peak[0] - anon) / 2**20
        self.resident = (held("VmHWM")[0] - resident) / 2**20


def write_ids(folder: Path, rows: int) -> None:
    "Encoded rows of 20 to 40 random tokens, of which the last third is trained, without a text."
    rng = np.random.default_rng(0)
    kind = Features(input_ids=List(Value("int32")), labels=List(Value("int32")))
    with ArrowWriter(features=kind, path=str(folder / "ids.arrow")) as writer:
        for start in range(0, rows, 10_000):
            counts = rng.integers(20, 41, min(10_000, rows - start))
            stops = counts.cumsum()
            ids = rng.integers(10, 200, stops[-1], dtype=np.int32)
            from_end = np.repeat(stops, counts) - np.arange(len(ids))
            labels = np.where(from_end <= np.repeat(counts // 3, counts), ids, -100).astype(np.int32)
            lists = [pa.ListArray.from_arrays(np.append(0, stops).astype(np.int32), part) for part in (ids, labels)]
            writer.write_table(pa.table(dict(zip(kind, lists)), kind.arrow_schema))
        writer.finalize()


def rows_of(folder: Path, name: str) -> Dataset:
    file = folder / f"{name}.arrow"
    return Dataset.from_file(str(file)) if file.exists() else load_from_disk(folder / name)


def trainer_of(folder: Path, **more):
    run = str(folder / f"run-{os.getpid()}")
    rows = rows_of(folder, "ids")
    return sft_trainer(tiny_model(), tiny_tokenizer(), rows, output_dir=run, max_steps=1, **more)


def read(folder: Path, block) -> None:
    with block():
        rows = read_chats(folder / "rows.jsonl")
    rows.save_to_disk(folder / "chats")


def read_parquet(folder: Path, block) -> None:
    path = folder / "rows.parquet"
    rows_of(folder, "chats").to_parquet(path)
    with block():
        read_chats(path)
    path.unlink()


def encode(folder: Path, block) -> None:
    chats = rows_of(folder, "chats")
    tok = tiny_tokenizer()
    with block():
        rows, _ = encode_chats(tok, chats)
    rows.save_to_disk(folder / "ids")


def of_chats(function: Callable) -> Callable:
    def part(folder: Path, block) -> None:
        chats = rows_of(folder, "chats")
        with block():
            function(chats)

    return part


def fingerprint(folder: Path, block) -> None:
    rows = rows_of(folder, "ids")
    with block():
        data_fingerprint(rows)


def plan(folder: Path, block) -> None:
    with block():
        trainer_of(folder)


def order(strategy: str) -> Callable:
    def part(folder: Path, block) -> None:
        trainer = trainer_of(folder, train_sampling_strategy=strategy)
        with block():
            loader = trainer.get_train_dataloader()
            set_order(loader, trainer.args, 0)
            batches = loader.batch_sampler
            next(islice(batches, len(batches) // 2, None))  # as a resumed run skips those before

    return part


def first_step(folder: Path, block) -> None:
    trainer = trainer_of(folder)
    with block():
        fit(trainer)


PARTS = {
    "read JSON Lines": read,
    "read Parquet": read_parquet,
    "repetition": of_chats(repetition_line),
    "split": of_chats(lambda chats: split(chats, 0.1)),
    "split, equal prompts": of_chats(lambda chats: split(chats, 0.1, near=None)),
    "distinct rows": of_chats(distinct_rows),
    "encode": encode,
    "trainer with its plan": plan,
    "fingerprint": fingerprint,
    "order, resumed halfway": order("random"),
    "order by length, resumed halfway": order("group_by_length"),
    "fit to step 1": first_step,
}


def _child(part: str, folder: Path, pipe) -> None:
    datasets.disable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    torch.set_num_threads(1)
    block = Measured()
    PARTS[part](folder, block)
    pipe.send([block.seconds, block.anon, block.resident])


def measured(part: str, folder: Path, rows: int) -> dict:
    "CPU seconds, and MB of RssAnon and of VmHWM, of one part."
    processes = multiprocessing.get_context("fork")
    ours, theirs = processes.Pipe(duplex=False)
    child = processes.Process(target=_child, args=(part, folder, theirs))
    child.start()
    theirs.close()
    try:
        cpu, anon, resident = ours.recv()
    except EOFError:
        raise SystemExit(f"{part}, {rows:,} rows: the process ended with an error") from None
    child.join()
    memory = {"anon_mb": round(anon, 1), "all_mb": round(resident, 1)}
    return {"part": part, "rows": rows, "cpu_s": round(cpu, 3), **memory}


def table(points: list[dict]) -> str:
    sizes = sorted({point["rows"] for point in points})
    lines = ["| part | " + " | ".join(f"{size:,}" for size in sizes) + " |", "|---" * (len(sizes) + 1) + "|"]
    for part in PARTS:
        cells = {point["rows"]: point for point in points if point["part"] == part}
        shown = [f"{cells[s]['cpu_s']:.2f} s, {cells[s]['anon_mb']:,.0f} MB" if s in cells else "–" for s in sizes]
        lines.append(f"| {part} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


SHOWN = {  # part -> colour, legible on white and on #111
    "encode": "#3b8fd6",
    "split": "#d97b12",
    "read JSON Lines": "#2f9e6e",
    "repetition": "#b06ab3",
    "trainer with its plan": "#8a8a8a",
    "fingerprint": "#c0504d",
}


def draw(points: list[dict], before: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    grey = "#7f7f7f"
    for name in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"):
        plt.rcParams[name] = grey
    fig, axes = plt.subplots(1, 2, figsize=(9, 4), dpi=110)
    for ax, key, label in zip(axes, ("cpu_s", "anon_mb"), ("CPU seconds", "RssAnon, MB")):
        for part, color in SHOWN.items():
            for some, style in ((before, ":"), (points, "-")):
                line = sorted((p["rows"], max(p[key], 0.01)) for p in some if p["part"] == part and p["rows"] >= 1000)
                if line:
                    shown = {"label": part} if style == "-" else {}
                    ax.loglog(*zip(*line), style, color=color, marker="o", markersize=3, **shown)
        ax.set(xlabel="rows", ylabel=label)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8, labelcolor=grey)
    fig.suptitle("solid: now; dotted: before", fontsize=9)
    fig.tight_layout()
    fig.savefig(path, transparent=True, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the rows and what is made of them")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--ids", action="store_true", help="begin with encoded rows, in a folder of their own")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="PART")
    parser.add_argument("--kept", type=Path, default=HERE / "scale.json", help="the file of the points")
    parser.add_argument("--code", default="now", help='which version of the package is measured, such as "before"')
    args = parser.parse_args()
    points = json.loads(args.kept.read_text()) if args.kept.exists() else []
    for size in args.sizes:
        folder = args.folder.absolute() / str(size)
        folder.mkdir(parents=True, exist_ok=True)
        if args.ids and not (folder / "ids.arrow").exists():
            write_ids(folder, size)
        if not args.ids and not (folder / "rows.jsonl").exists():
            write_rows(folder / "rows.jsonl", size)
        for part in args.parts:
            if any((point["part"], point["rows"], point["code"]) == (part, size, args.code) for point in points):
                continue
            points.append({**measured(part, folder, size), "code": args.code})
            print(json.dumps(points[-1]), flush=True)
            args.kept.write_text("[\n" + ",\n".join(map(json.dumps, points)) + "\n]\n")
    by_code = {code: [point for point in points if point["code"] == code] for code in ("before", "now")}
    print(table(by_code[args.code]))
    draw(by_code["now"], by_code["before"], args.kept.with_suffix(".png"))


if __name__ == "__main__":
    main()
