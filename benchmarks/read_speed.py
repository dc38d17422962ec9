"""How long `read_chats` takes, and how much memory, beside `datasets.load_dataset` on the same file.

    python benchmarks/read_speed.py [--rows 100000] [--rounds 3] [--kinds jsonl json csv parquet]

Each reading runs in a process of its own, with an empty cache, and the readers take turns; about 0.7 KB a row. The CPU
seconds are those of all threads, and of the rounds the median. Memory is the peak while reading, without what the
imports take: of all resident pages (RSS), and of those that belong to no file (RssAnon). The pages of a mapped file are
in the first alone; the system may take them back at any time. Linux only.

`--old FOLDER` measures the package in that folder beside, as "before": git worktree add FOLDER COMMIT.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent  # of memory_watch
READERS = {
    "read_chats": "from ft_notebooks.data.read import read_chats as read",
    "load_dataset": """
from datasets import load_dataset
def read(path):
    kind = path.rpartition(".")[2].replace("jsonl", "json")
    return load_dataset(kind, data_files=path, split="train")""",
}
READ = """
import datasets, sys, time
from memory_watch import held, watch
datasets.disable_progress_bars()
datasets.config.HF_DATASETS_CACHE = sys.argv[2]
{reader}
before = held("VmRSS", "RssAnon")
with watch("VmRSS", "RssAnon", seconds=0.01) as peak:
    start, cpu = time.perf_counter(), time.process_time()
    rows = len(read(sys.argv[1]))
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
print(rows, wall, cpu, *[(p - b) / 2**20 for p, b in zip(peak, before)])
"""


def row(n):
    return {
        "messages": [
            {"role": "user", "content": f"{n} " + "word " * 50},
            {"role": "assistant", "content": "answer " * 55},
        ]
    }


def write(path, rows):
    with open(path, "w") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row(n)) + "\n" for n in range(rows))
        elif path.suffix == ".json":
            file.write("[\n" + ",\n".join(json.dumps(row(n)) for n in range(rows)) + "\n]")
        elif path.suffix == ".csv":
            file.write("prompt,completion\n")
            for n in range(rows):
                question, answer = row(n)["messages"]
                file.write(f'"{question["content"]}","{answer["content"]}"\n')
    if path.suffix == ".parquet":
        from datasets import Dataset, disable_progress_bars

        disable_progress_bars()
        Dataset.from_json(str(path.with_suffix(".jsonl")), cache_dir=str(path.parent / "made")).to_parquet(path)


def reading(reader, path, package):
    "Rows, seconds, CPU seconds, and the peak of RSS and RssAnon in MB of one reading."
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-c", READ.replace("{reader}", READERS[reader]), path, cache]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(HERE)])}
        run = subprocess.run(command, capture_output=True, text=True, cwd=cache, env=env)
    if run.returncode:
        sys.exit(f"{path}, {reader}: {run.stderr.strip().splitlines()[-1]}")
    return [float(number) for number in run.stdout.split()]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=["jsonl", "json", "csv", "parquet"])
    parser.add_argument("--old")
    args = parser.parse_args()
    readers = {"load_dataset": ("load_dataset", HERE.parent), "read_chats": ("read_chats", HERE.parent)}
    if args.old:
        readers["read_chats before"] = ("read_chats", args.old)
    print(
        "| file | rows | MB | reader | CPU s | load_dataset | RSS MB | RssAnon MB |\n|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as tmp:
        for kind in ["jsonl", *(kind for kind in args.kinds if kind != "jsonl")]:  # Parquet is made of JSON Lines
            path = Path(tmp, f"chats.{kind}")
            write(path, args.rows)
            if kind not in args.kinds:
                continue
            found = {name: [] for name in readers}
            for _ in range(args.rounds):
                for name, reader in readers.items():
                    found[name].append(reading(reader[0], path, reader[1]))
                    assert found[name][-1][0] == args.rows
            medians = {name: [statistics.median(column) for column in zip(*rounds)] for name, rounds in found.items()}
            size = path.stat().st_size / 1e6
            for name, (_, _, cpu, rss, anon) in medians.items():
                times = cpu / medians["load_dataset"][2]
                print(
                    f"| .{kind} | {args.rows:,} | {size:.0f} | {name} | {cpu:.2f} | {times:.1f} x "
                    f"| {rss:,.0f} | {anon:,.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
