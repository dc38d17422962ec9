"What must be the same in every process: one that has imported nothing yet, and whose strings have other hashes."

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTES = """
from ft_notebooks.data.example_task import appointments
print(appointments(20, seed=3)[:])
"""
READ = """
from ft_notebooks.data.read import read_chats
print(read_chats("a.jsonl")[0]["messages"][1]["content"])
"""
GROUPS = """
import random
from datasets import Dataset
from ft_notebooks.data.deduplication import overlap, split
rng = random.Random(3)
texts = [[f"w{rng.randrange(900)}" for _ in range(40)] for _ in range(100)]
texts += [t[:7] + ["new"] + t[8:] for t in texts[:60]]
rows = [[dict(role="user", content=" ".join(t)), dict(role="assistant", content="ok")] for t in texts]
d = Dataset.from_dict({"messages": rows})
sides = split(d, 0.3, 1)
print(sides["test"][:], sides["test"].info.description)
print(overlap(d.select(range(100)), d.select(range(100, 160))))
"""
ADAPTER = """
from peft import get_peft_model
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.loading.example_models import tiny_model
models = [add(tiny_model(), lora_config(tiny_model())) for add in (add_adapter, get_peft_model)]
print(*(sum(p.double().sum().item() for n, p in m.named_parameters() if "lora_A" in n) for m in models))
"""
EACH = {"notes": NOTES, "read": READ, "groups": GROUPS, "adapter": ADAPTER}
RUN = """
import contextlib, io, json, sys
said = {}
for name, code in json.load(sys.stdin).items():
    with contextlib.redirect_stdout(io.StringIO()) as text:
        exec(code, {})
    said[name] = text.getvalue()
print(json.dumps(said))
"""


def here(name):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        exec(EACH[name], {})
    return text.getvalue()


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    "What each code prints there; the file that is read is edited after it has been read here."
    with contextlib.chdir(tmp_path_factory.mktemp("there")):
        for answer in ("first", "second", "third"):
            Path("a.jsonl").write_text(json.dumps({"instruction": "Say it.", "output": answer}))
            assert answer == "third" or here("read") == f"{answer}\n"
        env = {**os.environ, "PYTHONHASHSEED": "12345"}
        command, codes = [sys.executable, "-c", RUN], json.dumps(EACH)
        run = subprocess.run(command, input=codes, capture_output=True, text=True, env=env)
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout.splitlines()[-1])


def test_the_notes_of_the_example_task(there):
    assert there["notes"] == here("notes")


def test_an_edited_file_is_read_anew(there):
    assert there["read"] == "third\n"


def test_the_groups_of_near_duplicates(there):
    assert there["groups"] == here("groups") and "60 are near-duplicates" in there["groups"]


def test_an_adapter_s_first_weights_but_not_those_of_the_bare_library(there):
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        (ours, bare), (theirs, other) = here("adapter").split(), there["adapter"].split()
    assert ours == theirs and bare != other
