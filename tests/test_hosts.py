"Several hosts as network namespaces of this machine: `ft sft` on all of them learns what it learns on one."

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from ranks_of import ended, enter, forget_processes, forked, torchrun
from safetensors.torch import load_file

import ft_notebooks.dpo  # what a process needs that is forked from this one
import ft_notebooks.sft
from ft_notebooks.cli import main
from ft_notebooks.data import appointments
from ft_notebooks.models import tiny_model, tiny_tokenizer

TOOL = Path(__file__).resolve().parents[1] / "tools" / "hosts"
SET = f"test{os.getpid()}"
STATIC = ["--master-addr", "10.77.0.1", "--master-port", "29500"]


def tool(*argv, check=True):
    return subprocess.run([TOOL, *map(str, argv)], env={**os.environ, "HOSTS": SET}, check=check, capture_output=True, text=True)


@pytest.fixture(scope="module")
def hosts():
    try:
        found = tool("up", 3, check=False)
        if found.returncode:
            pytest.skip(f"no network namespaces here: {(found.stderr.strip() or 'ip is missing').splitlines()[-1]}")
        yield SET
    finally:
        tool("down", check=False)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk")  # which the hosts share
    with contextlib.chdir(folder):
        tiny_tokenizer().save_pretrained("tiny")
        tiny_model().save_pretrained("tiny")
        appointments(24).to_json("notes.jsonl")
        yield folder


def sft(run, *settings):
    fixed = ("model.name=tiny", "model.bits=32", "sft.bf16=false", "sft.effective_batch=6", "lora.lora_dropout=0", "data.eval=none")
    given = [part for setting in (*fixed, *settings) for part in ("--set", setting)]
    main(["sft", "notes.jsonl", "--output", str(run), *given])


@pytest.fixture(scope="module")
def alone(here):
    "The run of one process, which the others are forked from: what it has estimated and imported is theirs too."
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        sft("alone")
    return learned("alone")


def learned(run):
    history = json.loads(Path(run, "metrics.json").read_text())["history"]
    return [entry["loss"] for entry in history if "loss" in entry], load_file(Path(run, "adapter_model.safetensors"))


def same(found, wanted):
    (losses, weights), (their_losses, their_weights) = found, wanted
    return torch.allclose(torch.tensor(losses), torch.tensor(their_losses), atol=1e-5) and all(
        torch.allclose(weights[name], p, atol=1e-5) for name, p in their_weights.items()
    )


def on_hosts(n, run, *settings, job=sft, launch=STATIC):
    "Start the same command on each of the hosts; their process numbers."

    def host(i):
        enter(f"{SET}.host{i}")
        os.setpgid(0, 0)
        os.environ.update(GLOO_SOCKET_IFNAME="eth0")
        forget_processes()
        torchrun(["--nnodes", str(n), "--node-rank", str(i), *launch], lambda: job(run, *settings))

    return [forked(lambda i=i: host(i), Path(), f"{run}-{i}") for i in range(n)]


def log(run):
    return {file.name: file.read_text()[-3000:] for file in Path().glob(f"{run}-*.log")}


C10D = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "10.77.0.1:29500", "--rdzv-id", "job"]


@pytest.mark.parametrize(("n", "launch"), [(2, STATIC), (3, STATIC)])
def test_two_and_three_hosts_learn_what_one_process_learns(hosts, here, alone, n, launch):
    assert ended(on_hosts(n, f"on-{n}", launch=launch)) == [0] * n, log(f"on-{n}")
    assert same(learned(f"on-{n}"), alone)
