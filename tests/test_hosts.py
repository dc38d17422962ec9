"Several hosts as network namespaces of this machine: `ft sft` on all of them learns what it learns on one."

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from ranks_of import ended, enter, forget_processes, forked, torchrun
from safetensors.torch import load_file
from transformers import TrainerCallback

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
        appointments(22).to_json("notes.jsonl")
        yield folder


def sft(run, *settings):
    fixed = ("model.name=tiny", "model.bits=32", "lora.lora_dropout=0", "data.eval=none")
    fixed += ("sft.bf16=false", "sft.effective_batch=6", "sft.num_train_epochs=2", "sft.save_steps=2")
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


def on_hosts(n, run, *settings, job=sft):
    "Start the same command on each of the hosts; their process numbers."

    def host(i):
        enter(f"{SET}.host{i}")
        os.setpgid(0, 0)
        os.environ.update(GLOO_SOCKET_IFNAME="eth0")
        forget_processes()
        torchrun(["--nnodes", str(n), "--node-rank", str(i), *STATIC], lambda: job(run, *settings))

    return [forked(lambda i=i: host(i), Path(), f"{run}-{i}") for i in range(n)]


def log(run):
    return {file.name: file.read_text() for file in Path().glob(f"{run}-*.log")}


def test_three_hosts_learn_what_one_process_learns(hosts, here, alone):
    assert ended(on_hosts(3, "three")) == [0, 0, 0], log("three")
    assert same(learned("three"), alone)


class Waits(TrainerCallback):
    "After the third step, until the test has done what it does to a host."

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            Path(f"{args.output_dir}-there-{args.process_index}").touch()
            until(f"{args.output_dir}-go")


def until(*files):
    deadline = time.monotonic() + 60
    while not all(Path(file).exists() for file in files):
        assert time.monotonic() < deadline, files
        time.sleep(0.02)


def waiting(run, *settings):
    watch = ft_notebooks.sft.watch
    ft_notebooks.sft.watch = lambda trainer: (trainer.add_callback(Waits()), watch(trainer))[1]
    sft(run, *settings)


def cut(pids):
    for i in range(2):  # how often the kernel sends again what nobody confirms; its default of 15 is a quarter of an hour
        tool("run", i, "sysctl", "-qw", "net.ipv4.tcp_retries2=3")
    tool("cut", 1)


def killed(pids):
    os.killpg(pids[1], signal.SIGKILL)


@pytest.mark.parametrize(
    ("run", "action", "codes", "said"),
    [("cut", cut, [1, 1], "Connection timed out|No route to host"), ("killed", killed, [1, -9], "Connection .* by peer")],
)
def test_a_host_that_is_cut_off_or_killed_ends_the_run_everywhere_and_it_goes_on(hosts, here, alone, run, action, codes, said):
    pids = on_hosts(2, run, job=waiting)
    until(*(f"{run}-there-{i}" for i in range(2)))
    action(pids)
    Path(f"{run}-go").touch()
    found = ended(pids, 50)
    tool("join", 1)
    assert found == codes, log(run)
    assert re.search(said, log(run)[f"{run}-0.log"]) and not Path(run, "metrics.json").exists()
    assert ended(on_hosts(2, run)) == [0, 0], log(run)
    assert f"goes on from {run}/checkpoint-2" in log(run)[f"{run}-0.log"] and same(learned(run), alone)
