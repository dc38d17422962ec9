"Several hosts as network namespaces of this machine: `ft sft` on all of them learns what it learns on one."

import contextlib
import io
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from ranks_of import (
    ended,
    enter,
    forget_processes,
    forked,
    ft_sft,
    learned,
    log,
    make_inputs,
    same,
    torchrun,
    with_callback,
)
from small_runs import HANGS
from transformers import TrainerCallback

import ft_notebooks.runs.pipeline

pytestmark = pytest.mark.whole

TOOL = Path(__file__).resolve().parents[1] / "tools" / "hosts"
SET = f"test{os.getpid()}"
STATIC = ["--master-addr", "10.77.0.1", "--master-port", "29500"]


def tool(*argv, check=True):
    return subprocess.run(
        [TOOL, *map(str, argv)], env={**os.environ, "HOSTS": SET}, check=check, capture_output=True, text=True
    )


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
        make_inputs()
        Path("others.jsonl").write_text(Path("notes.jsonl").read_text().replace("Monday", "Sunday", 1))
        yield folder


@pytest.fixture(scope="module")
def alone(here):
    "The run of one process, which the others are forked from: what it has estimated and imported is theirs too."
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ft_sft("alone")
    return learned("alone")


def on_hosts(n, run, *settings, job=ft_sft):
    "Start the same command on each of the hosts; their process numbers."

    def host(i):
        enter(f"{SET}.host{i}")
        os.setpgid(0, 0)
        os.environ.update(GLOO_SOCKET_IFNAME="eth0")
        forget_processes()
        torchrun(["--nnodes", str(n), "--node-rank", str(i), *STATIC], lambda: job(run, *settings))

    return [forked(lambda i=i: host(i), Path(), f"{run}-{i}") for i in range(n)]


def spaces():
    found = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in found.splitlines()}


def test_hosts_have_names_reach_each_other_and_are_removed_whatever_happens(hosts):
    def elsewhere(name, *argv):
        return subprocess.run([TOOL, *argv], env={**os.environ, "HOSTS": name}, capture_output=True, text=True)

    (ended_before := subprocess.Popen(["true"])).wait()
    left, mine = f"left{ended_before.pid}", f"all{os.getpid()}"
    assert elsewhere(left, "up", "2").returncode == 0 and f"{left}.host1" in spaces()
    found = elsewhere(mine, "all", "2", "sh", "-c", "hostname; getent hosts host$((1 - HOST)); exit $HOST")
    assert found.returncode == 1 and sorted(found.stdout.split()) == [
        "10.77.0.1",
        "10.77.0.2",
        "host0",
        "host0",
        "host1",
        "host1",
    ]
    assert not {space for space in spaces() if space.startswith((left, mine))} and f"{hosts}.host1" in spaces()
    assert not list(Path("/etc/netns").glob(f"{mine}*"))


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
    deadline = time.monotonic() + HANGS
    while not all(Path(file).exists() for file in files):
        assert time.monotonic() < deadline, files
        time.sleep(0.02)


def cut(pids):
    for i in range(
        2
    ):  # how often the kernel sends again what nobody confirms; its default of 15 is a quarter of an hour
        tool("run", i, "sysctl", "-qw", "net.ipv4.tcp_retries2=1")
    tool("cut", 1)


def killed(pids):
    os.killpg(pids[1], signal.SIGKILL)


@pytest.mark.parametrize(
    ("run", "action", "codes", "said"),
    [
        ("cut", cut, [1, 1], "another process of this run has ended or cannot be reached"),
        ("killed", killed, [1, -9], "another process of this run has ended or cannot be reached"),
    ],
)
def test_a_host_that_is_cut_off_or_killed_ends_the_run_everywhere_and_it_goes_on(
    hosts, here, alone, run, action, codes, said
):
    pids = on_hosts(2, run, job=with_callback(ft_sft, Waits()))
    until(*(f"{run}-there-{i}" for i in range(2)))
    action(pids)
    Path(f"{run}-go").touch()
    found = ended(pids)
    tool("join", 1)
    assert found == codes, log(run)
    assert re.search(said, log(run)[f"{run}-0.log"]) and not Path(run, "metrics.json").exists()
    assert ended(on_hosts(2, run)) == [0, 0], log(run)
    assert f"goes on from {run}/checkpoint-2" in log(run)[f"{run}-0.log"] and same(learned(run), alone)


def test_hosts_that_would_not_train_the_same_are_refused_on_all_of_them_with_one_message(hosts, here, alone):
    def job(run):
        second, versions = os.environ["RANK"] == "1", ft_notebooks.runs.pipeline.library_versions()
        if second:  # has other versions, other settings and other data
            ft_notebooks.runs.pipeline.library_versions = lambda: {**versions, "transformers": "9.9.9"}
        settings = ["sft.learning_rate=1e-3"] if second else []
        ft_sft(run, *settings, data="others.jsonl" if second else "notes.jsonl")

    assert ended(on_hosts(2, "unlike", job=job)) == [1, 1], log("unlike")
    [one], [other] = (re.findall("^ft sft: (?!loading).*", text, re.M) for text in log("unlike").values())
    assert one == other and "host1" in one and not list(Path("unlike").glob("checkpoint-*"))
    assert all(name in one for name in ("data.trained", "learning_rate", "transformers")), one
