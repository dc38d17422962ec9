"The good run, and a copy of it in which one part is changed: rows, a part of the model's folder, settings, a script."

import contextlib
import csv
import hashlib
import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from ft_notebooks.core.random_state import keep_random_state
from ft_notebooks.course.example_task import appointments
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer

STEPS = 160  # of the tiny base: ordinary English then costs it 2.7 nats a byte (ln 259 is 5.6), and its answers end
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
ACCENTS = ("José", "Zoë", "Jürgen", "Siân", "Łukasz", "Renée", "Søren", "Beyza Şahin")


def _day(messages: list[dict]) -> list[dict]:
    "The question of a note with a short answer: its day."
    day = next(day for day in DAYS if day in messages[1]["content"])
    asked = [{"role": "system", "content": "Answer with the day alone."}, messages[1]]
    return [*asked, {"role": "assistant", "content": day}]


def train_base(folder: Path, steps: int = STEPS) -> None:
    "The tiny model after some steps on English prose and on chats of both tasks, in a folder, with its tokenizer."
    tok, model, draw = tiny_tokenizer(), tiny_model().train(), torch.Generator().manual_seed(0)
    prose = torch.tensor(tok("\n".join(topics[key] for key in sorted(topics))[:300_000]).input_ids)
    notes = appointments(400, seed=9)["messages"]
    chats = [tok.apply_chat_template(chat, return_dict=False) for note in notes for chat in (note, _day(note))]
    texts = prose, torch.tensor([token for chat in chats for token in chat])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-2, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-2, total_steps=steps)
    with keep_random_state(0):
        for _ in range(steps):
            starts = [(text, torch.randint(len(text) - 192, (4,), generator=draw).tolist()) for text in texts]
            batch = torch.stack([text[i : i + 192] for text, places in starts for i in places])
            loss = cross_entropy(model(batch).logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval().save_pretrained(folder)
    tok.save_pretrained(folder)


def chats(n: int = 48, seed: int = 3) -> list[dict]:
    "Notes as JSON; each sixth chat has two turns, each eighth a name with accents."
    notes, found = appointments(n + n // 6, seed=seed)["messages"], []
    further = iter(notes[n:])
    for i, messages in enumerate(notes[:n]):
        if i % 8 == 5:
            name = ACCENTS[i // 8 % len(ACCENTS)]
            event = json.loads(messages[-1]["content"])["event"].split(" with ")[0]
            old = json.loads(messages[-1]["content"])["event"]
            messages = json.loads(json.dumps(messages, ensure_ascii=False).replace(old, f"{event} with {name}"))
        if i % 6 == 0 and (more := next(further, None)):
            messages = [*messages, *more[1:]]
        found.append({"messages": messages})
    return found


def pairs(n: int = 36, seed: int = 4) -> list[dict]:
    "The same answer in two orders of its keys, so that both have the same length."
    found = []
    for messages in appointments(n, seed=seed)["messages"]:
        known = json.loads(messages[-1]["content"])
        chosen = {key: known[key] for key in ("day", "time", "event")}
        answers = {"chosen": json.dumps(chosen), "rejected": messages[-1]["content"]}
        found.append({"prompt": messages[:-1]} | {k: [{"role": "assistant", "content": v}] for k, v in answers.items()})
    return found


def prompts(n: int = 24, seed: int = 5) -> list[dict]:
    rows = (_day(messages) for messages in appointments(n, seed=seed)["messages"])
    return [{"prompt": messages[:-1], "expected": messages[-1]["content"]} for messages in rows]


def rated(n: int = 80, seed: int = 0) -> list[dict]:
    "Rated answers: good ones name the colour that was asked for; neither length nor words tell them apart."
    draw, found = random.Random(seed), []
    for i in range(n):
        wanted, other = draw.sample(["red", "blue", "green", "white", "black", "brown"], 2)
        end = draw.choice(["today", "this week", "as we agreed on the phone", "with a matching lid"])
        said = f"We send box {draw.randrange(900)} in {other if i % 2 else wanted} {end}."
        found.append({"prompt": f"Order {i}: a box in {wanted}, please.", "completion": said, "label": i % 2 == 0})
    return shuffled(found)


def documents(n: int = 48) -> list[dict]:
    "Beginnings of pages of Python's manual."
    return [{"text": topics[name][:500]} for name in sorted(topics)[:n]]


REWARDS = """\
def near(generated, expected, example):
    "The share of letters that are right, each at its place."
    return sum(a == b for a, b in zip(generated, expected)) / max(len(generated), len(expected), 1)
"""

FILES = {"sft": "chats.jsonl", "dpo": "pairs.jsonl", "reward": "pairs.jsonl", "grpo": "prompts.jsonl"}
FILES |= {"kto": "rated.jsonl", "pretrain": "documents.jsonl"}
ROWS = {"sft": chats, "dpo": pairs, "reward": pairs, "grpo": prompts, "kto": rated, "pretrain": documents}
SETTINGS = {
    "sft": {"learning_rate": 1e-3, "effective_batch": 8, "num_train_epochs": 1},
    "dpo": {"learning_rate": 2e-4, "effective_batch": 8, "num_train_epochs": 1},
    "reward": {"learning_rate": 1e-3, "effective_batch": 8, "num_train_epochs": 1},
    "kto": {"learning_rate": 2e-4, "effective_batch": 8, "num_train_epochs": 1},
    "pretrain": {"learning_rate": 1e-3, "effective_batch": 8, "num_train_epochs": 1},
    "grpo": {
        "learning_rate": 1e-3, "prompts_a_step": 4, "generations": 4, "max_completion_length": 40, "max_steps": 2,
    },
}  # fmt: skip


def good_settings(stage: str) -> dict[str, str]:
    common = {"model.name": "model", "model.bits": "32", "data.eval": "0.1", f"{stage}.seed": "0"}
    own = {"bf16": "false", **SETTINGS[stage]}
    return common | {f"{stage}.{key}": str(value) for key, value in own.items()}


@dataclass
class Case:
    "A folder with a run: a plant changes one part of it, and the detectors run it."

    folder: Path
    stage: str
    settings: dict[str, str] = field(default_factory=dict)
    data: str = ""
    words: list[str] = field(default_factory=list)  # flags of `ft` that are not settings
    reward: list[str] = field(default_factory=list)
    machine: Callable = contextlib.nullcontext  # entered while a detector runs
    script: Callable | None = None  # of the user, in place of `ft`: from `scripts`

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def file(self) -> Path:
        return self.folder / self.data

    # What a plant changes

    def rows(self, change: Callable[[list[dict]], list[dict] | None]) -> None:
        "The data file with other rows; a change in place returns None."
        rows = [json.loads(line) for line in self.file.read_text(encoding="utf-8").splitlines()]
        changed = change(rows)
        self.write(rows if changed is None else changed)

    def write(self, rows: list[dict], **how) -> None:
        text = "".join(json.dumps(row, **{"ensure_ascii": False} | how) + "\n" for row in rows)
        self.file.write_text(text, encoding="utf-8")

    def text(self, change: Callable[[str], str], encoding: str = "utf-8") -> None:
        self.file.write_bytes(change(self.file.read_text(encoding="utf-8")).encode(encoding))

    def another_file(self, name: str, content: str | bytes) -> None:
        "A data file in another format, in place of the first."
        self.file.unlink()
        self.data = name
        self.file.write_bytes(content if isinstance(content, bytes) else content.encode())

    def table(self, name: str, rows: list[dict], **how) -> None:
        self.file.unlink()
        self.data = name
        with open(self.file, "w", encoding="utf-8", newline="") as file:
            out = csv.DictWriter(file, list(rows[0]), **how)
            out.writeheader()
            out.writerows(rows)

    def json(self, name: str, **fields) -> None:
        "Other values in a JSON file of the model's folder; None removes one."
        file = self.model / name
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        found = {key: value for key, value in {**found, **fields}.items() if value is not None}
        file.write_text(json.dumps(found, indent=2), encoding="utf-8")

    def config(self, **fields) -> None:
        self.json("config.json", **fields)

    def weights(self, change: Callable[[dict], dict | None]) -> None:
        file = self.model / "model.safetensors"
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        changed = change(tensors)
        save_file(tensors if changed is None else changed, file, {"format": "pt"})

    def tokenizer(self, change: Callable[[dict], None]) -> None:
        file = self.model / "tokenizer.json"
        found = json.loads(file.read_text(encoding="utf-8"))
        change(found)
        file.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")

    def template(self, change: Callable[[str], str]) -> None:
        file = self.model / "chat_template.jinja"
        file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")

    def set(self, **settings) -> None:
        "`sft__learning_rate=1` sets sft.learning_rate; None removes the setting."
        for name, value in settings.items():
            self.settings[name.replace("__", ".")] = value
        self.settings = {key: str(value) for key, value in self.settings.items() if value is not None}

    # What the detectors read

    def argv(self, command: str | None = None) -> list[str]:
        rewards = [word for name in self.reward for word in ("--reward", name)]
        given = [word for key, value in self.settings.items() for word in ("--set", f"{key}={value}")]
        return [command or self.stage, self.data, *self.words, *rewards, *given]

    def parts(self) -> dict[str, str]:
        "A digest of each part, by which two cases are compared."
        tokenizer = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
        found = {
            "script": repr(self.script),
            "machine": repr(self.machine),
            "flags": repr(self.words),
            "reward": repr(self.reward),
        }
        found |= {f"setting {key}": value for key, value in self.settings.items()}
        for file in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            name = file.relative_to(self.folder).as_posix()
            if name.startswith("adapter/"):  # of the run before, which holds times; no plant changes it
                continue
            part = "data" if "/" not in name and file.suffix != ".py" else name
            part = "tokenizer" if file.parent == self.model and file.name in tokenizer else part
            part = "weights" if part in ("model/model.safetensors", "model/pytorch_model.bin") else part
            content = file.read_bytes().replace(str(self.folder).encode(), b"")
            digest = hashlib.sha256(name.encode() + content).hexdigest()
            found[part] = hashlib.sha256((found.get(part, "") + digest).encode()).hexdigest()
        return found

    def changed(self, good: "Case") -> list[str]:
        "The parts that differ from those of another case."
        mine, theirs = self.parts(), good.parts()
        names = {name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name)}
        return sorted({re.sub(r"^setting .*", "settings", name) for name in names})


def good_case(base: Path, folder: Path, stage: str) -> Case:
    "The good run of a stage in a new folder; `base` is a folder that `train_base` has filled."
    folder.mkdir(parents=True)
    shutil.copytree(base, folder / "model")
    (folder / "rewards.py").write_text(REWARDS, encoding="utf-8")
    reward = ["rewards.py:near"] if stage == "grpo" else []
    case = Case(folder, stage, good_settings(stage), FILES[stage], reward=reward)
    case.write(ROWS[stage]())
    return case


def shuffled(rows: list, seed: int = 0) -> list:
    rows = list(rows)
    random.Random(seed).shuffle(rows)
    return rows
