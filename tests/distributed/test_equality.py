"""One, two and four processes are one run: the same losses, the same weights, one writer, a clear end, and an exact
restart.
"""

import contextlib
import copy
import gc
import io
import os
import re
import signal
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import datasets
import pytest
import ranks_of
import torch
from datasets import Dataset
from ranks_of import (
    ended,
    forget_processes,
    forked,
    ft_sft,
    learned,
    log,
    make_inputs,
    ranks,
    same,
    torchrun,
    with_callback,
)
from small_runs import ROUNDED, TOK, only_rounded
from transformers import TrainerCallback

from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.data.document_encoding import document_end
from ft_notebooks.distributed.launch_files import accelerate_config
from ft_notebooks.distributed.launcher import launch
from ft_notebooks.dpo.trainer import dpo_trainer
from ft_notebooks.loading.example_models import tiny_model
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.sft.pretraining import pretrain_trainer
from ft_notebooks.sft.trainer import sft_trainer
from ft_notebooks.tokenization.padding import IGNORE

pytestmark = pytest.mark.whole

END = document_end(TOK)
FIXED = {
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "num_train_epochs": 2,
    "learning_rate": 1e-3,
}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    datasets.disable_progress_bars()


def ids(n, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(5, 200, (n,), generator=draw).tolist()


def row(i):  # of 21 to 30 tokens, 3 to 12 of them trained
    n = 21 + 7 * i % 10
    return {"input_ids": (found := ids(n, i)), "labels": [IGNORE] * 18 + found[18:]}


def pair(i):
    return {
        "prompt_ids": ids(4 + i % 3, i),
        "chosen_ids": ids(3 + i % 5, 100 + i),
        "rejected_ids": ids(2 + i % 4, 200 + i),
    }


THINKING = copy.deepcopy(TOK)
THINKING.chat_template = (files("trl") / "chat_templates" / "qwen3.jinja").read_text()


def talk(n):
    turns = [{"role": "assistant", "content": str(k), "reasoning_content": f"It is {k}."} for k in (n, n + 1)]
    return [{"role": "user", "content": "Say it."}, turns[0], {"role": "user", "content": "And the next."}, turns[1]]


def model(method):
    plain = tiny_model()
    return plain if method == "full" else add_adapter(plain, lora_config(plain, r=4, lora_dropout=0.0))


def trained(stage, method, folder, **given):
    "Two epochs of 13 units in steps of 8: the last step of each has 5. What the run logged and learned."
    make, rows, more = sft_trainer, [row(i) for i in range(13)], {}
    if stage == "packed":  # two rows fit into 60 tokens, and three do not
        rows, more = [row(i) for i in range(26)], {"packing": True, "max_length": 60, "effective_batch": 16}
    if stage == "expanded":  # seven conversations of two turns, whose second row does not hold the first thought
        rows = encode_chats(THINKING, [{"messages": talk(n)} for n in range(7)], thoughts="expand")[0].to_list()
    if stage == "pretrain":  # documents of 21 to 30 tokens, and as many chats' tokens between them
        make, rows = pretrain_trainer, [{"input_ids": [*row(i)["input_ids"], END]} for i in range(13)]
        more = {"replay": appointments(3), "replay_share": 0.5}
    if stage == "dpo":
        make, rows = dpo_trainer, [pair(i) for i in range(13)]
    fields = (
        FIXED | {"effective_batch": 8, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2} | more | given
    )
    with contextlib.redirect_stdout(io.StringIO()):
        data = Dataset.from_list(rows)
        trainer = make(model(method), TOK, data, data.select(range(5)), output_dir=str(folder), **fields)
        trainer.train()
        found = trainer.evaluate()
    losses = torch.tensor([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])
    return {"loss": losses, "weights": weights, "eval_loss": torch.tensor(found["eval_loss"])}


# each stage and each method; test_dpo_trainer.py and test_sharded_save.py have both methods in two processes, too
CASES_OF = {2: [("sft", "full"), ("packed", "lora"), ("pretrain", "lora"), ("expanded", "lora")], 4: [("dpo", "full")]}
CASES = list(dict.fromkeys(case for cases in CASES_OF.values() for case in cases))


def all_cases(folder, cases=CASES):
    return {case: trained(*case, folder / "-".join(case)) for case in cases}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    "Of one process, which the others are forked from; then of two and of four."
    folder = tmp_path_factory.mktemp("processes")
    gc.freeze()  # what the trainers' collections of garbage need not look at
    table = {1: [all_cases(folder / "1")]}
    yield table | {n: ranks(n, lambda rank: all_cases(folder / str(n), CASES_OF[n]), folder / str(n)) for n in (2, 4)}
    gc.unfreeze()


@pytest.mark.parametrize(("n", "case"), [(n, case) for n, cases in CASES_OF.items() for case in cases])
def test_processes_log_and_learn_what_one_does(found, n, case):
    one, several = found[1][0][case], [rank[case] for rank in found[n]]
    far = {name: (several[0][name] - value).abs() for name, value in one.items()}
    print(n, *case, {name: f"{value.max():.1e}" for name, value in far.items()})
    assert all(torch.equal(rank["weights"], several[0]["weights"]) for rank in several)
    steps = 6 if case[0] == "pretrain" else 4  # with the chats of replay an epoch has three
    assert len(one["loss"]) == steps and max(far["loss"].max(), far["eval_loss"]) < ROUNDED
    assert only_rounded(far["weights"], steps * 2e-3)


# ---- a command in several processes


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "The run of one process, in the folder where all commands are given."
    with contextlib.chdir(tmp_path_factory.mktemp("commands")):
        make_inputs()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ft_sft("alone")
        yield learned("alone")


def launched(run, job, *argv, name="torchrun"):
    "The exit code of `torchrun --standalone` with two processes that run `job`."
    argv = [
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
        "--rdzv-id",
        run,
        "--nproc-per-node",
        "2",
        *argv,
    ]

    def start():
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = (
            "1"  # else the addresses of the dead are found when all are started again
        )
        torchrun(argv, lambda: job(run))

    return ended([forked(start, Path(), f"{run}-{name}")])[0]


def test_the_processes_of_a_run_have_one_folder_and_the_first_writes_all_but_random_numbers(alone):
    try:
        os.setegid(os.getegid())
        Path("mine").touch()
        os.chown("mine", -1, 60000)
    except PermissionError:
        pytest.skip("files can be given to other groups by root alone")

    (shared := Path("temporary").resolve()).mkdir()
    shared.chmod(0o777)

    def job(rank):
        os.setegid(60000 + rank)  # the group of every file that this process makes
        tempfile.tempdir = str(shared)
        ft_sft("owned")

    ranks(2, job, "owned-logs")
    owners = {str(file): file.stat().st_gid - 60000 for file in Path("owned").rglob("*") if file.is_file()}
    assert {file for file, owner in owners.items() if owner == 1} == {
        f"owned/checkpoint-{n}/rng_state_1.pth" for n in (6, 8)
    }
    assert not list(shared.glob("ft_notebooks_*"))  # where the rows lay that were prepared once
    assert set(owners.values()) == {0, 1} and same(learned("owned"), alone)


class Dies(TrainerCallback):
    "Once, the second process, after the fifth step: one after a checkpoint."

    def __init__(self, how):
        self.how = how

    def on_step_end(self, args, state, control, **kwargs):
        mark = Path(f"{args.output_dir}-died")
        if state.global_step == 5 and args.process_index == 1 and not mark.exists():
            mark.touch()
            self.how()


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def by_itself(run, *settings, name):
    "The exit code of the same command in one process."
    return ended([forked(lambda: ft_sft(run, *settings), Path(), f"{run}-{name}")])[0]


def test_a_launch_that_restarts_goes_on_from_its_last_whole_checkpoint_to_the_same_weights(alone):
    Path("again.yaml").write_text(accelerate_config("ddp", processes=2))
    Path("again.py").write_text("import ranks_of\nranks_of.JOB()")

    def start():
        ranks_of.JOB = lambda: (forget_processes(), with_callback(ft_sft, Dies(killed))("again"))
        os.environ |= {
            "PET_RUN_PATH": "1",
            "PET_START_METHOD": "fork",
        }  # the launcher's processes are forks of this one
        sys.exit(launch(["again.py"], "again.yaml", max_restarts=1))

    assert ended([forked(start, Path(), "again-launch")]) == [0], log("again")
    text = log("again")["again-launch.log"]
    assert "goes on from again/checkpoint-4" in text and same(learned("again"), alone)


def test_a_job_ends_with_a_killed_process_and_another_number_of_them_goes_on_where_that_is_allowed(alone):
    assert launched("fewer", with_callback(ft_sft, Dies(killed))) == 1
    assert (
        re.search("SIGKILL|another process of this run has ended", log("fewer")["fewer-torchrun.log"])
        and not Path("fewer", "metrics.json").exists()
    )
    assert by_itself("fewer", name="refused") == 2 and "run.world_size=any" in log("fewer")["fewer-refused.log"]
    assert by_itself("fewer", "run.world_size=any", name="allowed") == 0, log("fewer")
    assert "goes on from fewer/checkpoint-4" in log("fewer")["fewer-allowed.log"] and same(learned("fewer"), alone)
