"What a run sends to the network: every look-up of a name and every connection is counted, in a process of its own."

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from ft_notebooks.course.example_task import appointments
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.whole
GUARD = """
import os, socket

def told(host):
    with open(os.environ["TOLD"], "a") as file:
        print(host, file=file)
    raise OSError("no network in this test")

def looked_up(host, *rest, **more):
    told(host)

def connected(self, address):
    if self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost"):
        return connect(self, address)
    told(address[0])

connect, socket.socket.connect, socket.getaddrinfo = socket.socket.connect, connected, looked_up
socket.socket.connect_ex = connected
"""
QUIET = (
    "CI",
    "HF_HUB_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY",
    "DO_NOT_TRACK",
    "TRANSFORMERS_OFFLINE",
    "HF_DATASETS_OFFLINE",
)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    "`hosts(**environment)`: the hosts that `ft sft` and `ft eval` ask for, with a model and rows from the disk."
    folder = tmp_path_factory.mktemp("guarded")
    tiny_model().save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    appointments(12).to_json(folder / "notes.jsonl")
    (folder / "guard").mkdir()
    (folder / "guard" / "sitecustomize.py").write_text(GUARD)
    words = "--set model.name=tiny --set sft.bf16=false --set sft.max_steps=1 --set data.eval=last:2".split()

    def run(name, evaluated=False, **given):
        told = folder / f"{name}.txt"
        known = {key: value for key, value in os.environ.items() if key not in QUIET}
        path = os.pathsep.join([str(folder / "guard"), str(Path(__file__).parents[2]), known.get("PYTHONPATH", "")])
        env = {**known, "PYTHONPATH": path, "TOLD": str(told), **given}
        for command in [["sft", "notes.jsonl", "--output", name, *words], ["eval", name]][: 1 + evaluated]:
            ran = [sys.executable, "-m", "ft_notebooks.cli", *command]
            done = subprocess.run(ran, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr[-2000:]
        return set(told.read_text().split()) if told.exists() else set()

    return run


def test_a_run_with_defaults_asks_for_the_hub_alone(hosts):
    assert hosts("defaults", evaluated=True) == {"huggingface.co"}


SWITCHES = ["HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"]


@pytest.mark.parametrize("variable", SWITCHES)
def test_a_run_that_is_told_to_be_quiet_asks_for_nothing(hosts, variable):
    assert hosts(variable.lower(), **{variable: "1"}) == set()


def test_the_table_of_the_recipe_names_these_switches_and_this_host():
    recipe = nbformat.read(Path(__file__).parents[2] / "nbs" / "recipes" / "reproducibility.ipynb", 4)
    [cell] = [cell.source for cell in recipe.cells if "## What leaves my machine when I train?" in cell.source]
    rows = [line.strip("|").split("|") for line in cell.splitlines() if line.startswith("| ")]
    [(what, where, off)] = [row for row in rows if "one line of statistics" in row[0]]
    assert "huggingface.co" in where and re.findall(r"`(\w+)=1`", off) == SWITCHES
    assert [row for row in rows[1:] if not row[2].strip()] == [] and len(rows) == 8
