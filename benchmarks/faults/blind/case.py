"A case of a blind list: data, a folder or settings as a user would bring them, and what is wrong with them."

import csv
import json
import os
import random
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

AREAS = ("rows", "pairs", "rewards", "folder", "settings")


@dataclass(frozen=True)
class BlindCase:
    "One fault, or, without a cause, one set of files that is in order."

    name: str
    area: str  # One of `AREAS`
    kind: str  # Of the data, such as "translation"
    make: Callable[[Path], list[str]]  # Writes the files into an empty folder; returns the words after `ft doctor`
    cause: str = ""  # What is wrong, in a sentence; empty: nothing is
    rows: Callable[[Path], Collection[int]] | None = None  # Numbers of the faulty rows, from 0; None: all, or none

    def __post_init__(self) -> None:
        if self.area not in AREAS:
            raise ValueError(f"{self.name}: the area must be one of {', '.join(AREAS)}, got {self.area!r}")


def small_model(folder: Path) -> Path:
    "A copy of the tiny trained model that the runner has made beside the case, as `folder`/model."
    shutil.copytree(folder.parent / "base", folder / "model")
    return folder / "model"


def public(name: str, source: str) -> Path:
    "A file of a public set, in the folder that PUBLIC_SETS names; it is never part of this project."
    file = Path(os.environ.get("PUBLIC_SETS", "public_sets"), name)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: not there; take it from {source}, or set PUBLIC_SETS to its folder")
    return file


Row = dict
Built = tuple[list[Row], list[int]]  # The rows, and the numbers of the faulty ones


def some(n: int, share: float, seed: int) -> list[int]:
    "The sorted numbers of a share of n rows."
    return sorted(random.Random(seed).sample(range(n), round(n * share)))


def chat(user: str, answer: str, system: str = "") -> Row:
    "One question with one answer, as messages."
    head = [{"role": "system", "content": system}] if system else []
    return {"messages": [*head, {"role": "user", "content": user}, {"role": "assistant", "content": answer}]}


def as_json(value: object) -> str:
    "JSON on one line, in the letters of its language."
    return json.dumps(value, ensure_ascii=False)


def write(file: Path, rows: list[Row]) -> None:
    "Rows as JSON, JSON Lines or CSV, by the end of the name."
    if file.suffix == ".csv":
        with file.open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif file.suffix == ".jsonl":
        file.write_text("".join(as_json(row) + "\n" for row in rows), encoding="utf-8")
    else:
        file.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")


def text_file(name: str, text: str) -> Callable[[Path], object]:
    "What writes one file of text beside the rows."
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


class BlindList:
    "The cases of a list whose rows are built by functions, and the public sets that they are taken from."

    def __init__(self, name: str, sources: dict[str, str]):  # The stem of a file after "list_NAME_": its source
        self.name = name
        self.sources = sources
        self.cases: list[BlindCase] = []
        self.load = cache(self._load)

    def _load(self, stem: str) -> list:
        "The rows of one public set."
        language = stem.removeprefix("tatoeba_")
        tatoeba = f"github.com/facebookresearch/LASER, data/tatoeba/v1/tatoeba.{language}-eng.*"
        file = public(f"list_{self.name}_{stem}.json", self.sources.get(stem, tatoeba))
        return json.loads(file.read_text(encoding="utf-8"))

    def sampled(self, stem: str, n: int, seed: int, keep: Callable = lambda row: True) -> list:
        "Up to n rows of a public set, in random order."
        rows = [row for row in self.load(stem) if keep(row)]
        random.Random(seed).shuffle(rows)
        return rows[:n]

    def case(
        self,
        name: str,
        area: str,
        kind: str,
        file: str,
        cause: str = "",
        words: tuple[str, ...] = (),
        part: bool = False,
        extra: Callable[[Path], object] = lambda folder: None,
    ) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
        "Adds a case whose rows are those of the function below it; `extra` writes what lies beside them."

        def add(build: Callable[[], Built]) -> Callable[[], Built]:
            def make(folder: Path) -> list[str]:
                write(folder / file, build()[0])
                extra(folder)
                return [file, *words]

            bad = (lambda folder: build()[1]) if part else None
            self.cases.append(BlindCase(name, area, kind, make, cause, bad))
            return build

        return add
