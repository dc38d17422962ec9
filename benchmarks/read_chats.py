"""How long `read_chats` takes, and how much memory, beside `datasets.load_dataset` on the same file.

    python benchmarks/read_chats.py [ROWS ...]        # 100000 1000000 by default; about 0.7 KB a row

Each reading runs in a process of its own, with an empty cache. Memory is the peak while reading, without what the
imports take: of all resident pages (RSS), and of those that belong to no file (RssAnon). The pages of a mapped file are
in the first alone; the system may take them back at any time. Linux only.
"""

import json
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


def main(sizes):
    print(
        f"{'file':>8} {'rows':>9} {'MB':>6}   {'reader':12} {'seconds':>8} {'CPU s':>7} {'RSS MB':>8} "
        f"{'RssAnon MB':>11}"
    )
    for rows in sizes:
        with tempfile.TemporaryDirectory() as tmp:
            for suffix in (".jsonl", ".json", ".csv", ".parquet"):
                path = Path(tmp, f"chats{suffix}")
                write(path, rows)
                for name, reader in READERS.items():
                    with tempfile.TemporaryDirectory() as cache:
                        code = READ.replace("{reader}", reader)
                        run = [sys.executable, "-c", code, path, cache]
                        run = subprocess.run(run, capture_output=True, text=True, cwd=HERE)
                    if run.returncode:
                        print(f"{suffix:>8} {rows:9,} {'':6}   {name:12} {run.stderr.strip().splitlines()[-1][:80]}")
                        continue
                    read, wall, cpu, rss, anon = map(float, run.stdout.split())
                    assert read == rows
                    size = path.stat().st_size / 1e6
                    print(
                        f"{suffix:>8} {rows:9,} {size:6.0f}   {name:12} {wall:8.1f} {cpu:7.1f} {rss:8.0f} {anon:11.0f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [100_000, 1_000_000])
