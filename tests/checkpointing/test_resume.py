"""Real kills: of a run at any moment, of a save after each of its files, and what is left on the disk then.

`PYTHONPATH=tests python tests/checkpointing/test_resume.py` prints the table of kills. Runs are forked from one process
of one thread that has imported everything and made the trainer. The processes that are killed inside a save are forked
in that moment from a training that has come so far, each with a copy of its folder: the steps before it are trained
once for all of them.
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
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_runs import HANGS, ended

pytestmark = pytest.mark.whole

STEPS, SAVE, SPREAD = 6, 2, 2  # steps of a run, steps between checkpoints, kills from outside
SUMS = [{"prompt": f"{n} + {n}?", "completion": "=" * n + str(2 * n)} for n in range(12)]

# ---- what runs in the process that forks


def make(run, ranks=1, callbacks=(), **fields):
    import torch
    from trl import SFTConfig, SFTTrainer

    from ft_notebooks.checkpointing.resume import exact_resume
    from ft_notebooks.data.chat_encoding import encode_chats
    from ft_notebooks.data.read import read_chats
    from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
    from ft_notebooks.lora.adapter import add_adapter, lora_config

    torch.set_num_threads(1)
    tok, model = tiny_tokenizer(), tiny_model()
    model = add_adapter(model, lora_config(model, r=4, lora_dropout=0.1))
    fields = {
        "max_steps": STEPS,
        "save_steps": SAVE,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "packing": True,
        "max_length": 72,  # two chats a row, so three steps an epoch
        "learning_rate": 1e-2,
        "logging_steps": 1,
        **fields,
    }
    quiet = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "gradient_checkpointing": False}
    trainer = SFTTrainer(
        model,
        SFTConfig(output_dir=str(run), **quiet, **fields),
        train_dataset=encode_chats(tok, read_chats(SUMS))[0],
        processing_class=tok,
        callbacks=list(callbacks),
    )
    return exact_resume(trainer)


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

    from ft_notebooks.checkpointing.integrity import last_good_checkpoint
    from ft_notebooks.checkpointing.resume import explain_load_error

    run.mkdir(exist_ok=True)
    trainer.args.output_dir = str(run)
    start = last_good_checkpoint(run)
    if start:
        torch.manual_seed(7)
        for p in trainer.model.parameters():
            if p.requires_grad:
                torch.nn.init.normal_(p.data)
    began = time.process_time()
    with explain_load_error(trainer, start):
        trainer.train(resume_from_checkpoint=start)
    note(trainer, run, start=start and Path(start).name, seconds=time.process_time() - began)


def note(trainer, run, **more):
    more |= {"step": trainer.state.global_step, "weights": weights(trainer)}
    (run / f"note-{trainer.args.process_index}.json").write_text(json.dumps(more))


def noted(run, rank=0):
    return json.loads((run / f"note-{rank}.json").read_text())


def aside(run):
    return sorted(p.name for p in run.glob("*-checkpoint-*"))


CHANGES = {"mkdir", "open", "serialize_file", "save", "write_end_of_file", "replace", "unlink", "rmdir"}  # C functions


class Watch:
    "Of one save, what changes in the run's checkpoints, in its order; before it begins, `before` is called."

    def __init__(self, trainer, before=lambda watch: None, step=2 * SAVE):
        self.trainer, self.before, self.step, self.kill_at, self.seen = trainer, before, step, None, []
        trainer.add_callback(self.callback())

    def callback(self):
        from transformers import TrainerCallback

        class Around(TrainerCallback):
            def on_step_end(_, args, state, control, **kwargs):
                if state.global_step == self.step:
                    self.before(self)
                    self.there = self.files()
                    sys.setprofile(self.look)

            def on_save(_, args, state, control, **kwargs):
                sys.setprofile(None)

        return Around()

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


def killed_after(seconds, job):
    """`job`, whose process the kernel ends, wherever it is, when it has computed for so long: by a signal that nobody
    handles.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)
    job()


def left_behind(run):
    def state(folder):
        return "whole" if (folder / "complete.json").exists() else "torn"

    found = sorted(run.glob("checkpoint-*"), key=lambda p: int(p.name[11:]))
    return ", ".join(f"{p.name[11:]} {state(p)}" for p in found) or "nothing"


def uninterrupted(trainer, tmp, known=[]):
    "The weights of the run that nobody disturbs."
    if not known:
        forked(lambda: train(trainer, tmp / "uninterrupted"))
        known.append(noted(tmp / "uninterrupted")["weights"])
    return known[0]


def again(trainer, run, row, whole):
    "The same command once more, and what came of it."
    code = forked(lambda: train(trainer, run))
    end = noted(run) if code == 0 else {}
    return {
        **row,
        "exit again": code,
        "from": end.get("start"),
        "aside": aside(run),
        "same": end.get("weights") == whole,
    }


def inside_a_save(trainer, tmp, limit):
    """What a save changes, in its order, and how a process ended that was killed right after some changes: every third
    until the marker has its name, and each from there on.
    """

    def record(run):
        trainer.args.output_dir = str(run)
        watch = Watch(trainer)
        train(trainer, run)
        (run / "seen.json").write_text(json.dumps([sign + name for sign, name in watch.seen]))

    forked(lambda: record(tmp / f"seen-{limit}"))
    seen = json.loads((tmp / f"seen-{limit}" / "seen.json").read_text())
    removed = [i for i, change in enumerate(seen) if change[0] == "-" and change != "-checkpoint-4/.complete"]
    points = [i for i in range(len(seen)) if i not in removed[1:-1]] + removed[
        len(removed) // 2 : len(removed) // 2 + 1
    ]
    marked = seen.index("-checkpoint-4/.complete")
    points = [i for i in sorted(set(points)) if i % 3 == 0 or i >= marked - 1]
    file = tmp / f"exits-{limit}.json"

    def forks(watch):
        exits = []
        for at in points:
            run = Path(shutil.copytree(tmp / f"at-{limit}", tmp / f"inside-{limit}-{at}"))
            if pid := os.fork():
                exits.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            else:  # one that goes on with the save, in its own folder
                trainer.args.output_dir, watch.kill_at = str(run), at
                return
        file.write_text(json.dumps(exits))
        os._exit(0)

    def on_the_way(run):
        Watch(trainer, forks)
        train(trainer, run)

    forked(lambda: on_the_way(tmp / f"at-{limit}"))
    return [(at, seen[at], code) for at, code in zip(points, json.loads(file.read_text()), strict=True)]


def kills(trainer, tmp):
    "The table: changes of a save with save_total_limit=1, and moments spread over a run with 2."
    whole, rows = uninterrupted(trainer, tmp), []
    trainer.args.save_total_limit = 1
    for at, change, code in inside_a_save(trainer, tmp, 1):
        run = tmp / f"inside-1-{at}"
        row = {"where": f"in the save of 4, after {change}", "limit": 1, "exit": code, "left": left_behind(run)}
        rows.append(again(trainer, run, row, whole))
    trainer.args.save_total_limit = 2
    seconds = noted(tmp / "uninterrupted")["seconds"]
    for i in range(SPREAD):
        run = tmp / f"spread-{i}"
        code = forked(lambda: killed_after(0.8 * seconds * (i + 0.5) / SPREAD, lambda: train(trainer, run)))
        row = {
            "where": f"after {0.8 * (i + 0.5) / SPREAD:.0%} of the run's time",
            "limit": 2,
            "exit": code,
            "left": left_behind(run),
        }
        rows.append(again(trainer, run, row, whole))
    return rows


def tampered(trainer, tmp):
    forked(lambda: train(trainer, tmp / "run"))
    whole, file = uninterrupted(trainer, tmp), tmp / "run" / "checkpoint-6" / "optimizer.pt"
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
                end = time.monotonic() + HANGS
                while not heard() and time.monotonic() < end:
                    time.sleep(0.005)

    return Waits()


def send(pid, number, run, rank=0):
    "The signal, in the middle of the step in which the process waits for it."
    while (
        not (run / f"at-{rank}").exists() and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    ):
        time.sleep(0.005)
    os.kill(pid, number)


def listening(trainer, run, step=None, rank=0):
    from ft_notebooks.checkpointing.graceful_stop import save_on_signals

    with save_on_signals(trainer) as stop:
        if step and trainer.args.process_index == rank:
            trainer.add_callback(waits(step, lambda: stop.received))
        train(trainer, run)
    note(
        trainer,
        run,
        signal=stop.signal and stop.signal.name,
        **{"start": noted(run, trainer.args.process_index)["start"]},
    )


def signals(trainer, tmp):
    whole, rows = uninterrupted(trainer, tmp), {}
    for number in (signal.SIGTERM, signal.SIGINT):
        for step in (3, STEPS) if number == signal.SIGTERM else (5,):  # within an epoch, its last step, the last of all
            run = tmp / f"{number.name}-{step}"
            pid = forked(lambda: listening(trainer, run, step), wait=False)
            send(pid, number, run)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            stopped = noted(run) if (run / "note-0.json").exists() else {}
            row = {"exit": code, "signal": stopped.get("signal"), "step": stopped.get("step"), "left": left_behind(run)}
            rows[run.name] = again(trainer, run, row, whole)

    def twice():
        from ft_notebooks.checkpointing.graceful_stop import save_on_signals

        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background has not
        with save_on_signals(trainer):
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
            os._exit(3)  # the second was handled like the first

    def ignored_before():
        from ft_notebooks.checkpointing.graceful_stop import save_on_signals

        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with save_on_signals(trainer):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    return {**rows, "twice": forked(twice), "ignored before": forked(ignored_before)}


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


def ranks(trainer, tmp):
    rows = {"exits": ended(two(tmp / "whole", lambda trainer: train(trainer, tmp / "whole")))}
    whole = noted(tmp / "whole")["weights"]
    marked = json.loads((tmp / "whole" / "checkpoint-6" / "complete.json").read_text())["files"]
    rows["random states"] = sorted(name for name in marked if name.startswith("rng_state"))
    rows["alike"] = noted(tmp / "whole", 1)["weights"] == whole
    rows["finished"] = finished_twice(tmp / "finished")
    run = tmp / "sigterm"
    pids = two(run, lambda trainer: listening(trainer, run, 5, 1))
    send(pids[1], signal.SIGTERM, run, 1)
    row = {"exits": ended(pids), "left": left_behind(run)}
    row |= {"heard": [noted(run, r).get("signal") for r in (0, 1)], "step": [noted(run, r)["step"] for r in (0, 1)]}
    pids = two(run, lambda trainer: killed_after_rank_files(trainer, run))  # when it goes on
    row["killed"] = {"exits": [code != 0 for code in ended(pids)], "left": left_behind(run)}
    row["exits again"] = ended(two(run, lambda trainer: train(trainer, run)))
    row |= {"from": noted(run)["start"], "same": [noted(run, r)["weights"] == whole for r in (0, 1)]}
    return rows | {"SIGTERM to rank 1": row | {"aside": aside(run)}}


def finished_twice(run):
    """Two processes end a run within an epoch, and are started again: what they note, and whether a checkpoint has
    changed.
    """

    def job(trainer):
        trainer.args.max_steps = 5  # of three steps an epoch
        train(trainer, run)

    found = []
    for _ in range(2):
        exits = ended(two(run, job))
        files = {str(p): p.stat().st_mtime_ns for p in run.glob("checkpoint-*/*")}
        found.append([exits, *([noted(run, rank)[key] for key in ("step", "weights")] for rank in (0, 1)), files])
    return {"first": found[0], "again": found[1]}


def killed_after_rank_files(trainer, run):
    "Rank 1 is killed before it has written its random state, and rank 0 may not mark what it has."
    import torch

    save = torch.save

    def die(what, file, *args, **kwargs):
        if trainer.state.global_step == 6 and Path(file).name == "rng_state_1.pth":
            os.kill(os.getpid(), signal.SIGKILL)
        save(what, file, *args, **kwargs)

    torch.save = die
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

    whole = uninterrupted(trainer, tmp)

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


SCENARIOS = {f.__name__: f for f in (kills, tampered, signals, ranks, disk_full)}


def drive(names):
    "What each scenario returned, or how it failed."
    results = {}
    os.fsync = lambda handle: None  # a kill, unlike a power cut, loses nothing that was written
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


# ---- what pytest runs


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    file = tmp_path_factory.mktemp("ran") / "results.json"
    assert forked(lambda: file.write_text(json.dumps(drive(SCENARIOS)))) == 0
    return json.loads(file.read_text())


def test_a_run_killed_anywhere_ends_at_the_same_weights(ran):
    rows = ran["kills"]
    assert not isinstance(rows, str), rows
    killed = [row for row in rows if row["exit"] in (-signal.SIGKILL, -signal.SIGPROF)]
    assert [row for row in rows if row["exit again"] or not row["same"]] == []
    assert len(killed) >= 10, len(killed)
    assert sum(row["limit"] == 1 and row["where"].startswith("in the save") for row in killed) >= 8
    assert {None, "checkpoint-2", "checkpoint-4"} <= {row["from"] for row in killed}


def test_a_torn_checkpoint_is_set_aside_and_a_marked_one_counts_at_once(ran):
    inside = {
        row["where"].split()[-1]: row for row in ran["kills"] if row["limit"] == 1 and row["where"].startswith("in the")
    }
    marked = list(inside).index("-checkpoint-4/.complete")  # the rename
    for i, row in enumerate(inside.values()):
        assert row["from"] == ("checkpoint-4" if i >= marked else "checkpoint-2")
        assert row["aside"] == ([] if i >= marked else ["torn-checkpoint-4"])
    assert [change for change in inside if change.startswith("-checkpoint-2")] == list(inside)[marked + 2 :]


def test_one_flipped_bit_in_the_optimizer_sends_the_run_back_to_the_checkpoint_before(ran):
    assert ran["tampered"] == {"exit again": 0, "from": "checkpoint-4", "aside": ["torn-checkpoint-6"], "same": True}


@pytest.mark.parametrize("name", ["SIGINT-5", "SIGTERM-3"])
def test_a_signal_saves_after_the_step_and_the_run_goes_on_from_there(ran, name):
    number, step = name.split("-")
    row = ran["signals"][name]
    assert (row["exit"], row["signal"], row["step"], row["same"]) == (0, number, int(step), True)
    assert row["from"] == f"checkpoint-{step}" and row["aside"] == []


def test_a_signal_in_the_last_step_is_passed_on_when_all_is_saved(ran):
    row = ran["signals"]["SIGTERM-6"]
    assert (row["exit"], row["signal"], row["left"]) == (-signal.SIGTERM, None, "4 whole, 6 whole")


def test_a_second_signal_and_the_handlers_of_others_are_as_before(ran):
    assert ran["signals"]["twice"] == 1  # a KeyboardInterrupt
    assert ran["signals"]["ignored before"] == 0


def orders(kind, processes, skip, epoch, **fields):
    "The rows of an epoch that each of so many processes reads, by the loader that accelerate makes for it."
    import torch
    from accelerate.data_loader import prepare_data_loader, skip_first_batches
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler
    from transformers.trainer_pt_utils import BatchRebalanceSampler, LengthGroupedSampler

    from ft_notebooks.checkpointing.row_order import set_order

    settings = {"seed": 3, "data_seed": None, "train_sampling_strategy": kind, "world_size": processes}
    args = SimpleNamespace(**settings | {"train_batch_size": 2, "gradient_accumulation_steps": 1} | fields)
    found = []
    for process in range(processes):
        torch.manual_seed(process + 100 * skip)  # what is drawn before differs
        lengths = [(7 * n) % 24 + 1 for n in range(24)]
        if kind == "batch_rebalance":
            size = 2 * processes
            sampler = BatchRebalanceSampler(lengths, size, processes, 1, rank=process, drop_last=False)
            loader = DataLoader(range(24), batch_sampler=sampler)
        else:
            sampler = (
                LengthGroupedSampler(2, lengths=lengths) if kind == "group_by_length" else RandomSampler(range(24))
            )
            loader = DataLoader(range(24), batch_sampler=BatchSampler(sampler, 2, drop_last=False))
            loader = prepare_data_loader(
                loader, num_processes=processes, process_index=process, use_seedable_sampler=kind == "random"
            )
        set_order(loader, args, epoch)
        again = skip_first_batches(loader, skip) if skip else loader
        if hasattr(again, "set_epoch"):  # as transformers does
            again.set_epoch(epoch)
        found.append([rows.tolist() for rows in again])
    return found


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", ["random", "not seedable", "group_by_length", "batch_rebalance"])
def test_the_order_of_an_epoch_follows_from_seed_and_epoch_behind_every_loader(kind, processes):
    whole, again = orders(kind, processes, 0, 1), orders(kind, processes, 2, 1)
    assert again == [rows[2:] for rows in whole]
    assert whole != orders(kind, processes, 0, 2)
    assert (whole != orders(kind, processes, 0, 1, data_seed=4)) == (kind != "batch_rebalance")  # it has its own seed
    assert sorted(sum(sum(whole, []), [])) == list(range(24))


def test_rows_of_like_length_are_ordered_as_for_one_process():
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    lengths = [(7 * n) % 24 + 1 for n in range(24)]
    for processes in (1, 2):
        found = orders("group_by_length", processes, 0, 1)
        dealt = [row for step in zip(*found) for rows in step for row in rows]
        generator = torch.Generator().manual_seed(4)
        assert dealt == list(LengthGroupedSampler(2 * processes, lengths=lengths, generator=generator))


@pytest.mark.parametrize("name", ["enable_jit_checkpoint", "hyperparameter_search"])
def test_saves_that_would_not_count_are_refused(tmp_path, name):
    trainer = make(tmp_path, **({"enable_jit_checkpoint": True} if name == "enable_jit_checkpoint" else {}))
    trainer.state.is_hyper_param_search = name == "hyperparameter_search"
    with pytest.raises(ValueError, match=f"{name}.* saves checkpoints without the marker"):
        trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)


def test_two_processes_mark_one_checkpoint_with_both_random_states(ran):
    assert not isinstance(ran["ranks"], str), ran["ranks"]
    assert ran["ranks"]["exits"] == [0, 0] and ran["ranks"]["alike"]
    assert ran["ranks"]["random states"] == ["rng_state_0.pth", "rng_state_1.pth"]


def test_two_processes_that_have_finished_change_nothing_when_they_are_started_again(ran):
    first, again = ran["ranks"]["finished"]["first"], ran["ranks"]["finished"]["again"]
    assert first[0] == [0, 0] and first[1][0] == 5 and again == first


def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(ran):
    row = ran["ranks"]["SIGTERM to rank 1"]
    assert (row["exits"], row["exits again"], row["step"]) == ([0, 0], [0, 0], [5, 5])
    assert (row["heard"], row["from"], row["same"]) == (["SIGTERM", "SIGTERM"], "checkpoint-5", [True, True])


def test_a_checkpoint_without_the_files_of_a_killed_rank_is_not_marked(ran):
    row = ran["ranks"]["SIGTERM to rank 1"]
    assert row["killed"] == {"exits": [True, True], "left": "4 whole, 5 whole, 6 torn"}
    assert (row["from"], row["same"]) == ("checkpoint-5", [True, True])
    assert row["aside"] == ["torn-checkpoint-6"] and row["exits again"] == [0, 0]


@pytest.mark.parametrize("kind", ["limit", "tmpfs"])
def test_a_disk_that_is_full_ends_the_run_with_what_is_missing_and_what_is_whole(ran, kind):
    assert not isinstance(ran["disk_full"], str), ran["disk_full"]
    row = ran["disk_full"][kind]
    if row is None:
        pytest.skip("no user namespaces here")
    assert "checkpoint-4 could not be saved" in row["error"] and "checkpoint-2, which is complete" in row["error"]
    assert ("no space is left" in row["error"]) == (kind == "tmpfs")  # a limit of a process leaves the disk empty
    assert (row["left"], row["from"], row["aside"], row["same"]) == ("2 whole", "checkpoint-2", [], True)


def checkpoint(run, step, name=None):
    from ft_notebooks.checkpointing.integrity import mark_checkpoint

    folder = run / (name or f"checkpoint-{step}")
    (folder / "part").mkdir(parents=True)
    for file in ("optimizer.pt", "part/weights.safetensors"):
        (folder / file).write_bytes(bytes(range(100)))
    mark_checkpoint(folder, step)
    return folder


def test_the_newest_is_the_one_with_the_greatest_number(tmp_path):
    from ft_notebooks.checkpointing.integrity import last_good_checkpoint

    checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 9)
    checkpoint(tmp_path, 99, "checkpoint-best")
    (tmp_path / "checkpoint-100").write_text("a file")
    assert last_good_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_a_checkpoint_under_another_number_does_not_count(tmp_path):
    from ft_notebooks.checkpointing.integrity import last_good_checkpoint

    checkpoint(tmp_path, 10, "checkpoint-50")
    assert last_good_checkpoint(tmp_path) is None


NO_MARKER = ["", "{", "[]", "{}", '{"step": 10}', '{"files": 3}', '{"files": {"a": 1}}', "\udcff"]
NO_MARKER += ['{"step": 10, "files": {}}', '{"files": {"optimizer.pt": {"size": 100, "sha256": "a"}}}']


@pytest.mark.parametrize("marker", NO_MARKER)
def test_a_marker_that_is_not_one_is_a_fault_and_no_crash(tmp_path, marker):
    from ft_notebooks.checkpointing.integrity import last_good_checkpoint

    checkpoint(tmp_path, 2)
    (checkpoint(tmp_path, 10) / "complete.json").write_bytes(marker.encode("utf-8", "surrogateescape"))
    assert last_good_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


def test_files_in_folders_count_and_what_is_added_later_does_not(tmp_path):
    from ft_notebooks.checkpointing.integrity import last_good_checkpoint

    folder = checkpoint(tmp_path, 10)
    assert set(json.loads((folder / "complete.json").read_text())["files"]) == {
        "optimizer.pt",
        "part/weights.safetensors",
    }
    (folder / "note.txt").write_text("mine")
    assert last_good_checkpoint(tmp_path) == str(folder)
    (folder / "part" / "weights.safetensors").write_bytes(bytes(99))
    assert last_good_checkpoint(tmp_path) is None


def rotated(run):
    from ft_notebooks.checkpointing import checkpoint_saving

    checkpoint_saving._delete_oldest(run / "checkpoint-9", 1, None)
    return sorted(p.name for p in run.iterdir())


def test_rotation_deletes_only_what_the_run_has_saved(tmp_path):
    for step in (3, 4, 5, 9):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-4" / "merged").mkdir()
    (tmp_path / "checkpoint-4" / "merged" / "model.safetensors").write_text("mine")
    checkpoint(tmp_path, 2, "checkpoint-0002")
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "mine.txt").write_text("mine")
    for step, marker in enumerate(("{", '{"files": 3}'), 6):
        (checkpoint(tmp_path, step) / "complete.json").write_text(marker)
    kept = ["checkpoint-0002", "checkpoint-1", "checkpoint-4", "checkpoint-6", "checkpoint-7", "checkpoint-9"]
    assert rotated(tmp_path) == kept


def test_rotation_without_markers_deletes_only_what_a_trainer_has_saved(tmp_path):
    for step in (1, 2, 3, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / ("mine.txt" if step == 1 else "trainer_state.json")).touch()
    (tmp_path / "checkpoint-2" / "merged").mkdir()
    assert rotated(tmp_path) == ["checkpoint-1", "checkpoint-2", "checkpoint-9"]


def test_a_checkpoint_whose_number_is_written_otherwise_is_none(tmp_path):
    from ft_notebooks.core.files import numbered_checkpoints

    for name in ("checkpoint-0002", "checkpoint-\u0663", "checkpoint-2"):
        checkpoint(tmp_path, 2, name)
    assert [p.name for _, p in numbered_checkpoints(tmp_path)] == ["checkpoint-2"]


def test_looking_for_the_last_good_checkpoint_changes_nothing(tmp_path):
    from ft_notebooks.checkpointing.integrity import last_good_checkpoint

    checkpoint(tmp_path, 2)
    (checkpoint(tmp_path, 10) / "optimizer.pt").unlink()
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in tmp_path.rglob("*")}
    last_good_checkpoint(tmp_path)
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in tmp_path.rglob("*")} == before


def test_every_file_is_on_the_disk_before_the_marker_has_its_name(tmp_path, monkeypatch):
    events, replace, fsync = [], os.replace, os.fsync

    def named(handle):
        return Path(os.readlink(f"/proc/self/fd/{handle}")).relative_to(tmp_path).as_posix()

    monkeypatch.setattr(os, "fsync", lambda handle: events.append(named(handle)) or fsync(handle))
    monkeypatch.setattr(os, "replace", lambda part, path: events.append("rename") or replace(part, path))
    checkpoint(tmp_path, 10)
    at = events.index("rename")
    assert {"checkpoint-10/optimizer.pt", "checkpoint-10/part/weights.safetensors"} <= set(events[:at])
    assert {"checkpoint-10/complete.json", "checkpoint-10", "."} <= set(events[at:])


def test_what_lies_beyond_the_start_is_set_aside_under_a_new_name_each_time(tmp_path, caplog):
    from ft_notebooks.checkpointing.integrity import set_aside

    checkpoint(tmp_path, 2)
    for _ in range(2):
        checkpoint(tmp_path, 4)
        (checkpoint(tmp_path, 6) / "optimizer.pt").unlink()
        set_aside(tmp_path, 2)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {
        "checkpoint-2",
        "later-checkpoint-4",
        "later-checkpoint-4-2",
        "torn-checkpoint-6",
        "torn-checkpoint-6-2",
    }
    assert len(caplog.records) == 2 and "torn-checkpoint-6, optimizer.pt is missing" in caplog.text


def test_a_run_that_starts_from_scratch_sets_aside_all(tmp_path):
    from ft_notebooks.checkpointing.integrity import set_aside

    checkpoint(tmp_path, 2)
    set_aside(tmp_path, None)
    assert [p.name for p in tmp_path.iterdir()] == ["later-checkpoint-2"]


def table(rows):
    "The kills as markdown."
    columns = {
        "where": "killed",
        "limit": "save_total_limit",
        "left": "left behind",
        "from": "went on from",
        "same": "same bits",
    }
    lines = [list(columns.values()), ["---"] * len(columns)] + [[str(row[key]) for key in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    import forks

    forks.renew_threads()
    print(table(drive(["kills"])["kills"]))
