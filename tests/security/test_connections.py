"What a run sends to the network: every look-up of a name and every connection is counted, in a process of its own."

import json
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
GUARDED = """
import importlib, json, os, socket, sys

def told(host):
    with open(told.file, "a") as file:
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
told.file = "imports.txt"

import huggingface_hub.constants
import torch
import ft_notebooks.cli.evaluation, ft_notebooks.cli.training, ft_notebooks.sft.trainer
from ft_notebooks.cli.commands import main
from ft_notebooks.loading.example_models import tiny_model
from ft_notebooks.loading.memory_estimate import estimate_memory

estimate_memory(tiny_model(), length=8, device="cpu", dtype=None)  # nothing here has run a backward pass before
for name, given, commands in json.loads(sys.argv[1]):
    if (child := os.fork()) == 0:
        told.file = f"{name}.txt"
        os.environ.update(given)
        constants = importlib.reload(huggingface_hub.constants)  # all that reads the switches
        assert name == "defaults" or constants.HF_HUB_OFFLINE or constants.HF_HUB_DISABLE_TELEMETRY
        torch.set_num_threads(1)
        for command in commands:
            main(command)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, name
"""
QUIET = (
    "CI",
    "HF_HUB_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY",
    "DO_NOT_TRACK",
    "TRANSFORMERS_OFFLINE",
    "HF_DATASETS_OFFLINE",
)


SWITCHES = ["HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"]
TRAINED = ["HF_HUB_OFFLINE", "DO_NOT_TRACK"]  # the other two set one constant of huggingface_hub


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """The hosts that the imports, `ft sft` and `ft eval` with the defaults, and `ft sft` with a switch ask for.

    A process of its own imports without a switch, and forks for each: what read one when it was imported is not quiet.
    """
    folder = tmp_path_factory.mktemp("guarded")
    tiny_model().save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    appointments(12).to_json(folder / "notes.jsonl")
    words = "--set model.name=tiny --set sft.bf16=false --set sft.max_steps=1 --set data.eval=last:2".split()
    runs = [("defaults", {}, [["sft", "notes.jsonl", "--output", "defaults", *words], ["eval", "defaults"]])]
    for name in SWITCHES:
        trains = [["sft", "notes.jsonl", "--output", name, *words]]
        runs.append((name, {name: "1"}, trains if name in TRAINED else []))
    known = {key: value for key, value in os.environ.items() if key not in QUIET}
    path = os.pathsep.join([str(Path(__file__).parents[2]), known.get("PYTHONPATH", "")])
    ran = [sys.executable, "-c", GUARDED, json.dumps(runs)]
    done = subprocess.run(
        ran, cwd=folder, env={**known, "PYTHONPATH": path}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = {name: folder / f"{name}.txt" for name in ("imports", "defaults", *SWITCHES)}
    return {name: set(file.read_text().split()) if file.exists() else set() for name, file in found.items()}


def test_a_run_with_defaults_asks_for_the_hub_alone(hosts):
    assert hosts["defaults"] == {"huggingface.co"}
    assert hosts["imports"] <= {"huggingface.co"}  # bitsandbytes fetches its kernel for a CPU with bfloat16


def test_a_process_that_has_simulated_a_step_can_still_be_forked(hosts):
    assert "defaults" in hosts  # each fork has run a backward pass, as tests, launchers and data loaders need it


@pytest.mark.parametrize("variable", TRAINED)
def test_a_run_that_is_told_to_be_quiet_asks_for_nothing(hosts, variable):
    assert hosts[variable] == set()


def test_the_table_of_the_recipe_names_these_switches_and_this_host():
    recipe = nbformat.read(Path(__file__).parents[2] / "nbs" / "recipes" / "reproducibility.ipynb", 4)
    [cell] = [cell.source for cell in recipe.cells if "## What leaves my machine when I train?" in cell.source]
    rows = [line.strip("|").split("|") for line in cell.splitlines() if line.startswith("| ")]
    [(what, where, off)] = [row for row in rows if "one line of statistics" in row[0]]
    assert "huggingface.co" in where and re.findall(r"`(\w+)=1`", off) == SWITCHES
    assert [row for row in rows[1:] if not row[2].strip()] == [] and len(rows) == 9
