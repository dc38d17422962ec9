"""The processes of one run, forked from one that has imported everything: what a launcher starts, without seconds of
imports.
"""

import ctypes
import gc
import json
import os
import platform
import signal
import socket
import sys
import traceback
from pathlib import Path

import torch
from safetensors.torch import load_file
from small_runs import HANGS, ended

import ft_notebooks.dpo.trainer  # what a process needs that is forked from this one
import ft_notebooks.sft.trainer
import ft_notebooks.training.run
from ft_notebooks.cli.commands import main
from ft_notebooks.course.example_task import appointments
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def forget_processes():
    "What accelerate has found out in this process about the others, so that it looks again."
    from accelerate.state import AcceleratorState, GradientState, PartialState

    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    GradientState._reset_state()


def enter(space):
    "Move this process into a host that `tools/hosts` has made: its network, and its name."
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{space}") as file:
        if libc.setns(file.fileno(), 0x40000000) or libc.unshare(0x04000000):
            raise OSError(ctypes.get_errno(), f"cannot enter {space}")
    socket.sethostname(space.rpartition(".")[2])
    platform._uname_cache = None  # where it has remembered another


def forked(function, folder, name):
    "Start `function` in a process of its own; its result, or the traceback, and what it said are files in `folder`."
    sys.stdout.flush(), sys.stderr.flush()
    if pid := os.fork():
        return pid
    gc.freeze()  # what was there before is no garbage: looking for it would copy every page of memory
    try:
        signal.alarm(HANGS)  # rather than wait for each other for ever
        said = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(said, stream)
        sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
        torch.save(function(), folder / f"{name}.pt")
        os._exit(0)
    except SystemExit as e:
        os._exit(e.code if isinstance(e.code, int) else 1)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(1)


def place(rank, n, port, address="127.0.0.1"):
    "Give this process its place among `n`, as a launcher does."
    forget_processes()
    found = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": n,
        "LOCAL_WORLD_SIZE": n,
        "MASTER_PORT": port,
        "MASTER_ADDR": address,
    }
    os.environ.update({name: str(value) for name, value in found.items()})


def started(n, job, folder):
    "`job(rank)` in `n` processes of one run; their process numbers."
    Path(folder).mkdir(parents=True, exist_ok=True)
    port = free_port()
    return [forked(lambda rank=rank: (place(rank, n, port), job(rank))[1], folder, f"rank{rank}") for rank in range(n)]


def ranks(n, job, folder) -> list:
    "What `job(rank)` returns in each of `n` processes of one run."
    folder = Path(folder)
    codes = ended(started(n, job, folder))
    said = "\n".join(f"{file.name}:\n{file.read_text()[-2000:]}" for file in sorted(folder.glob("rank*.log")))
    assert codes == [0] * n, f"{codes}\n{said}"
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(n)]


def torchrun(argv, job):
    "`torchrun` with its own arguments, the processes that it starts being forks that run `job`."
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    def spoken():
        forget_processes()
        try:
            return job()
        except Exception:
            # as a script does; the launcher shows the error of the process that ended first, and that may be another
            traceback.print_exc()
            raise

    config, _, _ = config_from_args(parse_args(["--start-method", "fork", "--monitor-interval", "0.1", *argv, "job"]))
    return elastic_launch(config, spoken)()


def make_inputs():
    "A model and 22 conversations in this folder; steps of 6 leave 4 of them for the last."
    tiny_tokenizer().save_pretrained("tiny")
    tiny_model().save_pretrained("tiny")
    appointments(22).to_json("notes.jsonl")


def ft_sft(run, *settings, data="notes.jsonl"):
    "`ft sft` on them: two epochs of four steps, a checkpoint every two."
    fixed = ("model.name=tiny", "model.bits=32", "lora.lora_dropout=0", "data.eval=none")
    fixed += ("sft.bf16=false", "sft.effective_batch=6", "sft.num_train_epochs=2", "sft.save_steps=2")
    given = [part for setting in (*fixed, *settings) for part in ("--set", setting)]
    main(["sft", data, "--output", str(run), *given])


def with_callback(job, callback):
    "`job`, in a process of its own, whose trainer has one more callback."

    def changed(*args):
        watch = ft_notebooks.training.run.watch
        ft_notebooks.training.run.watch = lambda trainer: (trainer.add_callback(callback), watch(trainer))[1]
        return job(*args)

    return changed


def learned(run):
    "The losses of a run and its weights."
    history = json.loads(Path(run, "metrics.json").read_text())["history"]
    losses = torch.tensor([entry["loss"] for entry in history if "loss" in entry])
    return {"losses": losses, **load_file(Path(run, "adapter_model.safetensors"))}


def same(found, wanted):
    return all(torch.allclose(found[name], value, atol=1e-5) for name, value in wanted.items())


def log(name):
    "What the processes of that name said."
    return {file.name: file.read_text() for file in Path().glob(f"{name}-*.log")}
