"""Real kills: of a run at any moment, of a save after each of its files, and what is left on the disk then.

`python tests/test_resume.py` prints the table of kills. Runs are forked from one process of one thread that has imported
everything and made the trainer, so that a kill costs about a second.
"""

import ctypes
import gc
import hashlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import pytest

STEPS, SAVE = 8, 2
ROOT = Path(__file__).resolve().parents[1]

# ---- what runs in the process that forks


def make(run, ranks=1, callbacks=(), **fields):
    import torch
    from trl import SFTConfig, SFTTrainer

    from ft_notebooks.data import appointments
    from ft_notebooks.lora import add_adapter, lora_config
    from ft_notebooks.masks import encode_chats
    from ft_notebooks.models import tiny_model, tiny_tokenizer
    from ft_notebooks.resume import ResumableTrainer

    class Mine(ResumableTrainer, SFTTrainer):
        pass

    torch.set_num_threads(1)
    tok, model = tiny_tokenizer(), tiny_model()
    model = add_adapter(model, lora_config(model, r=4, lora_dropout=0.1))
    fields = {
        "max_steps": STEPS,
        "save_steps": SAVE,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "packing": True,
        "max_length": 512,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        **fields,
    }
    quiet = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "activation_checkpointing": False}
    return Mine(
        model,
        SFTConfig(output_dir=str(run), **quiet, **fields),
        train_dataset=encode_chats(tok, appointments(12))[0],
        processing_class=tok,
        callbacks=list(callbacks),
    )


def weights(trainer):
    values = b"".join(p.detach().numpy().tobytes() for p in trainer.model.parameters() if p.requires_grad)
    return hashlib.sha256(values).hexdigest()


def forked(job, wait=True):
    "`job` in a child that ends with it; how it ended: 0, 1 if it raised, or minus the signal."
    sys.stdout.flush()
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if wait else pid
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where the trainer prints what it logs
        job()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def train(trainer, run, **around):
    "To the end from the last whole checkpoint, with nothing else left of the first process, and its weights noted."
    import torch

    from ft_notebooks.resume import last_good_checkpoint

    run.mkdir(exist_ok=True)
    trainer.args.output_dir = str(run)
    start = last_good_checkpoint(run)
    if start:
        torch.manual_seed(7)
        for p in trainer.model.parameters():
            if p.requires_grad:
                torch.nn.init.normal_(p.data)
    trainer.train(resume_from_checkpoint=start)
    note(trainer, run, start=start and Path(start).name)


def note(trainer, run, **more):
    more |= {"step": trainer.state.global_step, "weights": weights(trainer)}
    (run / f"note-{trainer.args.process_index}.json").write_text(json.dumps(more))


def noted(run, rank=0):
    return json.loads((run / f"note-{rank}.json").read_text())


def aside(run):
    return sorted(p.name for p in run.glob("*-checkpoint-*"))


CHANGES = {"mkdir", "open", "serialize_file", "save", "write_end_of_file", "replace", "unlink", "rmdir"}  # C functions


class Watch:
    "Of one save, what changes in the run's checkpoints, in its order; the process is killed right after change `kill_at`."

    def __init__(self, trainer, kill_at=None, step=2 * SAVE):
        self.trainer, self.kill_at, self.step, self.seen = trainer, kill_at, step, []
        self.save, trainer._save_checkpoint = trainer._save_checkpoint, self

    def __call__(self, model, trial):
        if self.trainer.state.global_step == self.step:
            self.there = self.files()
            sys.setprofile(self.look)
        self.save(model, trial)
        sys.setprofile(None)

    def files(self):
        run = Path(self.trainer.args.output_dir)
        return {str(p.relative_to(run)).partition(".json.")[0] for p in run.glob("checkpoint-*/**/*")}

    def look(self, frame, event, function):
        if event == "c_return" and function.__name__ in CHANGES:
            now = self.files()
            self.seen += [("-", name) for name in self.there - now] + [("+", name) for name in now - self.there]
            self.there = now
            if self.kill_at is not None and len(self.seen) > self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kill_at(pid, seconds):
    "From outside, once the process has computed for so long."
    while not os.waitpid(pid, os.WNOHANG)[0]:
        if cpu_seconds(pid) >= seconds:
            os.kill(pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.002)
    return 0


def left_behind(run):
    def state(folder):
        return "whole" if (folder / "complete.json").exists() else "torn"

    found = sorted(run.glob("checkpoint-*"), key=lambda p: int(p.name[11:]))
    return ", ".join(f"{p.name[11:]} {state(p)}" for p in found) or "nothing"


def again(trainer, run, row, whole):
    "The same command once more, and what came of it."
    code = forked(lambda: train(trainer, run))
    end = noted(run) if code == 0 else {}
    return {**row, "exit again": code, "from": end.get("start"), "aside": aside(run), "same": end.get("weights") == whole}


def kills(trainer, tmp):
    "The table: every change of a save with save_total_limit=1, every third with 2, and moments spread over the run."
    forked(lambda: train(trainer, tmp / "whole"))
    whole, rows = noted(tmp / "whole")["weights"], []

    def record(run):
        trainer.args.output_dir = str(run)
        watch = Watch(trainer)
        train(trainer, run)
        (run / "seen.json").write_text(json.dumps([sign + name for sign, name in watch.seen]))

    def killed(run, at):
        trainer.args.output_dir = str(run)
        Watch(trainer, at)
        train(trainer, run)

    for limit in (1, 2):
        trainer.args.save_total_limit = limit
        forked(lambda: record(tmp / f"seen-{limit}"))
        seen = json.loads((tmp / f"seen-{limit}" / "seen.json").read_text())
        removed = [i for i, change in enumerate(seen) if change[0] == "-" and change != "-checkpoint-4/.complete"]
        points = [i for i in range(len(seen)) if i not in removed[1:-1]] + removed[len(removed) // 2 : len(removed) // 2 + 1]
        for at in sorted(set(points))[:: 1 if limit == 1 else 3]:
            code = forked(lambda: killed(run, at)) if (run := tmp / f"inside-{limit}-{at}") else None
            row = {"where": f"in the save of 4, after {seen[at]}", "limit": limit, "exit": code, "left": left_behind(run)}
            rows.append(again(trainer, run, row, whole))
    started = time.process_time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    forked(lambda: train(trainer, tmp / "timed"))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime - started[1].ru_utime - started[1].ru_stime
    for i in range(SPREAD):
        run = tmp / f"spread-{i}"
        code = kill_at(forked(lambda: train(trainer, run), wait=False), 0.8 * seconds * (i + 0.5) / SPREAD)
        row = {"where": f"after {0.8 * (i + 0.5) / SPREAD:.0%} of the run's time", "limit": 2, "exit": code, "left": left_behind(run)}
        rows.append(again(trainer, run, row, whole))
    trainer.args.save_total_limit = None
    return rows


def tampered(trainer, tmp):
    forked(lambda: train(trainer, tmp / "run"))
    whole, file = noted(tmp / "run")["weights"], tmp / "run" / "checkpoint-8" / "optimizer.pt"
    with file.open("r+b") as f:
        f.seek(1000)
        byte = f.read(1)
        f.seek(1000)
        f.write(bytes([byte[0] ^ 1]))
    return again(trainer, tmp / "run", {}, whole)


def waits(step, heard):
    "In the middle of a step the process says where it is, and waits until it has the signal."
    from transformers import TrainerCallback

    class Waits(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step - 1:
                Path(args.output_dir, f"at-{args.process_index}").touch()
                end = time.monotonic() + 60
                while not heard() and time.monotonic() < end:
                    time.sleep(0.005)

    return Waits()


def send(pid, number, run, rank=0):
    "The signal, in the middle of the step in which the process waits for it."
    while not (run / f"at-{rank}").exists() and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.005)
    os.kill(pid, number)


def listening(trainer, run, step=None, rank=0):
    from ft_notebooks.resume import save_on_signals

    with save_on_signals(trainer) as stop:
        if step and trainer.args.process_index == rank:
            trainer.add_callback(waits(step, lambda: stop.heard))
        train(trainer, run)
    note(trainer, run, signal=stop.signal and stop.signal.name, **{"start": noted(run, trainer.args.process_index)["start"]})


def signals(trainer, tmp):
    forked(lambda: train(trainer, tmp / "whole"))
    whole, rows = noted(tmp / "whole")["weights"], {}
    for number in (signal.SIGTERM, signal.SIGINT):
        for step in (5, 3, 8):  # within an epoch, its last step, the last of all
            run = tmp / f"{number.name}-{step}"
            pid = forked(lambda: listening(trainer, run, step), wait=False)
            send(pid, number, run)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            stopped = noted(run) if (run / "note-0.json").exists() else {}
            row = {"exit": code, "signal": stopped.get("signal"), "step": stopped.get("step"), "left": left_behind(run)}
            rows[run.name] = again(trainer, run, row, whole)

    def twice():
        from ft_notebooks.resume import save_on_signals

        with save_on_signals(trainer):
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)

    def ignored_before():
        from ft_notebooks.resume import save_on_signals

        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with save_on_signals(trainer):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    return {**rows, "twice": forked(twice), "ignored before": forked(ignored_before)}


def just_in_time(trainer, tmp):
    fields = {"enable_jit_checkpoint": True, "save_total_limit": 2}
    forked(lambda: train(trainer, tmp / "whole"))

    def run():
        mine = make(tmp / "run", **fields)
        jit = next(c.jit_manager for c in mine.callback_handler.callbacks if getattr(c, "jit_manager", None))
        jit.kill_wait = 0
        mine.add_callback(waits(5, lambda: jit.is_checkpoint_requested))
        train(mine, tmp / "run")

    pid = forked(run, wait=False)
    send(pid, signal.SIGTERM, tmp / "run")
    row = {"exit": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), "left": left_behind(tmp / "run")}
    row |= {"files": sorted(p.name for p in (tmp / "run" / "checkpoint-5").glob("*.txt")), "step": noted(tmp / "run")["step"]}
    return again(trainer, tmp / "run", row, noted(tmp / "whole")["weights"])


def two(run, job):
    "`job(trainer)` in two processes of one run, started together; their process numbers."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def rank(index):
        from accelerate.state import AcceleratorState, GradientState, PartialState

        AcceleratorState._reset_state(True)
        PartialState._reset_state()
        GradientState._reset_state()
        place = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": 2, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
        os.environ.update({name: str(value) for name, value in place.items()})
        job(make(run, gradient_accumulation_steps=1, ddp_backend="gloo", save_total_limit=2))

    return [forked(lambda: rank(index), wait=False) for index in range(2)]


def ended(pids):
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def ranks(trainer, tmp):
    rows = {"exits": ended(two(tmp / "whole", lambda trainer: train(trainer, tmp / "whole")))}
    whole = noted(tmp / "whole")["weights"]
    marked = json.loads((tmp / "whole" / "checkpoint-8" / "complete.json").read_text())["files"]
    rows["random states"] = sorted(name for name in marked if name.startswith("rng_state"))
    rows["alike"] = noted(tmp / "whole", 1)["weights"] == whole
    for rank in (0, 1):
        run = tmp / f"sigterm-{rank}"
        pids = two(run, lambda trainer: listening(trainer, run, 5, rank))
        send(pids[rank], signal.SIGTERM, run, rank)
        row = {"exits": ended(pids), "left": left_behind(run)}
        row |= {"heard": [noted(run, r).get("signal") for r in (0, 1)], "step": [noted(run, r)["step"] for r in (0, 1)]}
        row["exits again"] = ended(two(run, lambda trainer: train(trainer, run)))
        row |= {"from": noted(run)["start"], "same": [noted(run, r)["weights"] == whole for r in (0, 1)]}
        rows[f"SIGTERM to rank {rank}"] = row
    run = tmp / "killed"
    pids = two(run, lambda trainer: killed_after_rank_files(trainer, run))
    row = {"exits": [code < 0 or code > 0 for code in ended(pids)], "left": left_behind(run)}
    row["exits again"] = ended(two(run, lambda trainer: train(trainer, run)))
    return {**rows, "killed": {**row, "from": noted(run)["start"], "same": noted(run)["weights"] == whole, "aside": aside(run)}}


def killed_after_rank_files(trainer, run):
    "Rank 1 is killed before it has written its random state, and rank 0 may not mark what it has."
    save = trainer._save_rng_state

    def die(folder):
        if trainer.args.process_index == 1 and trainer.state.global_step == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        save(folder)

    trainer._save_rng_state = die
    train(trainer, run)


def small_disk(folder, size):
    "A file system of our own, for this process alone."
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(0x10000000 | 0x00020000):  # a user and a mount namespace
        return False
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    return libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, f"size={size}".encode()) == 0


def disk_full(trainer, tmp):
    from transformers import TrainerCallback

    forked(lambda: train(trainer, tmp / "whole"))
    whole = noted(tmp / "whole")["weights"]

    class Fills(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 2:
                self.fill(Path(args.output_dir))

    def job(kind, fill, empty):
        (run := tmp / kind).mkdir()
        if kind == "tmpfs" and not small_disk(run, 2_000_000):
            (tmp / f"{kind}.json").write_text(json.dumps(None))
            return
        callback = Fills()
        callback.fill = fill
        trainer.add_callback(callback)
        start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        try:
            train(trainer, run)
        except OSError as error:
            row = {"error": str(error), "left": left_behind(run)}
        empty(run)
        trainer.remove_callback(callback)
        trainer.model.load_state_dict(start)
        trainer.optimizer = trainer.lr_scheduler = None
        train(trainer, run)
        row |= {"from": noted(run)["start"], "same": noted(run)["weights"] == whole, "aside": aside(run)}
        (tmp / f"{kind}.json").write_text(json.dumps(row))

    def ballast(run):
        (run / "ballast").write_bytes(bytes(shutil.disk_usage(run).free - 70_000))

    def limit(run, size=60_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def no_limit(run):
        limit(run, resource.RLIM_INFINITY)

    forked(lambda: job("limit", limit, no_limit))
    forked(lambda: job("tmpfs", ballast, lambda run: (run / "ballast").unlink()))
    return {kind: json.loads((tmp / f"{kind}.json").read_text()) for kind in ("limit", "tmpfs")}


SCENARIOS = {f.__name__: f for f in (kills, tampered, signals, just_in_time, ranks, disk_full)}


def drive():
    "All scenarios, or those named; what each returned, or how it failed."
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    names = sys.argv[1:] or list(SCENARIOS)
    results = {}
    with tempfile.TemporaryDirectory() as tmp:
        trainer = make(Path(tmp) / "made", save_total_limit=2)
        gc.collect()
        gc.freeze()  # a child does not touch, and so copy, what is there already
        for name in names:
            (folder := Path(tmp) / name).mkdir()
            try:
                results[name] = SCENARIOS[name](trainer, folder)
            except Exception:
                results[name] = traceback.format_exc()
            shutil.rmtree(folder)
    return results


SPREAD = 14

if __name__ == "__main__":
    print(json.dumps(drive(), indent=1))
