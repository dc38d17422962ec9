"What limits a process, what other programs leave, and what `ft` does about it before torch is imported."

import json
import os
import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace

import pytest

from ft_notebooks.core import cpu_threads
from ft_notebooks.core.cpu_threads import _SPIN as SPIN
from ft_notebooks.core.cpu_threads import CpuThreads, idle_cpus, usable_cpus, use_cpu_threads
from ft_notebooks.distributed import launcher

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    "Eight CPUs, with files as given: `machine({path: text})`."
    monkeypatch.setattr(cpu_threads, "_ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {*range(8)}, raising=False)

    def write(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    return write


def fresh(code, *argv, **variables):  # what a new interpreter prints, without this one's threads
    env = {**{name: value for name, value in os.environ.items() if name not in VARIABLES}, **variables}
    run = subprocess.run([sys.executable, "-c", code, *argv], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return SimpleNamespace(out=run.stdout, err=run.stderr)


OLD = "sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    "group, files, cpus",
    [
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "1600000 100000"}, 8),
        ("0::/a/b\n", {"sys/fs/cgroup/a/b/cpu.max": "max 100000", "sys/fs/cgroup/a/cpu.max": "300000 100000"}, 3),
        ("0::/a/b\n", {"sys/fs/cgroup/a/b/cpu.max": "400000 100000", "sys/fs/cgroup/a/cpu.max": "600000 100000"}, 4),
        ("4:cpu,cpuacct:/a\n0::/\n", {f"{OLD}/a/cpu.cfs_quota_us": "-1", f"{OLD}/a/cpu.cfs_period_us": "100000"}, 8),
        (
            "4:cpu,cpuacct:/a\n0::/\n",
            {f"{OLD}/a/cpu.cfs_quota_us": "500000", f"{OLD}/a/cpu.cfs_period_us": "100000"},
            5,
        ),
        ("4:cpu,cpuacct:/docker/1\n", {f"{OLD}/cpu.cfs_quota_us": "500000", f"{OLD}/cpu.cfs_period_us": "100000"}, 5),
        (
            "3:cpuset:/a\n",
            {"sys/fs/cgroup/cpuset/a/cpu.cfs_quota_us": "1", "sys/fs/cgroup/cpuset/a/cpu.cfs_period_us": "1"},
            8,
        ),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "nonsense"}, 8),
    ],
)
def test_the_smallest_quota_of_all_groups_limits_the_cpus(machine, group, files, cpus):
    machine({"proc/self/cgroup": group, **files})
    assert usable_cpus() == cpus


def test_without_proc_and_affinity_the_cpus_are_those_of_the_machine(machine, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cpus() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus() == 1


def counted(monkeypatch, *idle):
    "Makes psutil count these shares of each CPU as idle, on a clock that moves only in sleep."
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("time.sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    times = namedtuple("Times", "user idle")
    monkeypatch.setattr(
        "psutil.cpu_times", lambda percpu: [times(5.0 + clock[0] * (1 - one), clock[0] * one) for one in idle]
    )


def test_an_affinity_limits_the_cpus_and_only_they_are_looked_at(machine, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 3, 9})  # there are four, as far as psutil knows
    counted(monkeypatch, 0.0, 1.0, 0.0, 1.0)
    assert usable_cpus() == 3 and idle_cpus(2.5) == 2.0
    counted(monkeypatch, 1.0, 0.0, 1.0, 0.0)
    assert idle_cpus(2.5) == 0.0


@pytest.mark.parametrize("seconds", [0.05, 0.25, 2.0])
def test_the_idle_cpus_do_not_depend_on_how_long_they_are_measured(machine, monkeypatch, seconds):
    counted(monkeypatch, *[0.75] * 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {*range(8)})
    assert idle_cpus(8, seconds=seconds) == pytest.approx(6.0)


@pytest.mark.parametrize("nothing", ["zeros", "not allowed"])
def test_a_system_that_hides_its_times_counts_as_quiet(machine, monkeypatch, nothing):
    def times(percpu):
        if nothing == "not allowed":
            raise PermissionError("/proc/stat")
        return [namedtuple("Times", "user idle")(0.0, 0.0)] * 8

    monkeypatch.setattr("psutil.cpu_times", times)
    assert idle_cpus(7.5) is None


BUSY = """
import os, psutil
os.sched_getaffinity = lambda process: {{0, 1}}
psutil.cpu_count = lambda logical: 2
from ft_notebooks.core import cpu_threads as threads
threads.usable_cpus, threads.idle_cpus = lambda: 2, lambda enough: {}
"""
USE = "found = threads.use_cpu_threads()\nprint(sorted(found.variables.items()), found)"


@pytest.mark.parametrize(
    "idle, variables, wanted",
    [
        (2.0, {}, SPIN),
        (1.5, {}, SPIN),
        (1.4, {}, {"OMP_NUM_THREADS": "1", **SPIN}),
        (0.0, {}, {"OMP_NUM_THREADS": "1", **SPIN}),
        (None, {}, SPIN),
        (0.0, {"OMP_NUM_THREADS": "2"}, SPIN),
        (0.0, {"MKL_NUM_THREADS": "2"}, SPIN),
        (0.0, {"GOMP_SPINCOUNT": "7"}, {"OMP_NUM_THREADS": "1"}),
        (0.0, {"OMP_WAIT_POLICY": "active"}, {"OMP_NUM_THREADS": "1"}),
        (0.0, {"KMP_BLOCKTIME": "200"}, {"OMP_NUM_THREADS": "1"}),
    ],
)
def test_threads_follow_the_load_and_no_variable_of_the_user_changes(monkeypatch, idle, variables, wanted):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cpu_threads, "usable_cpus", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 2)
    monkeypatch.setattr(cpu_threads, "idle_cpus", lambda enough: idle)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(os, "environ", environ := dict(os.environ))
    found = use_cpu_threads.__wrapped__()
    assert found.variables == wanted and {name: environ[name] for name in variables} == variables == found.kept
    assert {name: environ[name] for name in VARIABLES if name in environ} == {**variables, **wanted}


@pytest.mark.whole
def test_openmp_reads_what_is_set_only_torch_imports_torch_and_to_call_it_again_is_no_mistake():
    told = fresh(
        BUSY.format(0.2)
        + USE
        + "\nimport sys\nprint('torch' in sys.modules)\nimport torch\nprint(torch.get_num_threads())"
        + "\nassert threads.use_cpu_threads() is found",
        OMP_DISPLAY_ENV="verbose",
    )
    assert told.out.splitlines()[1:] == ["False", "1"] and "2 CPUs, 0.2 of them idle" in told.out
    if "GOMP_SPINCOUNT" in told.err:  # libgomp, and not another OpenMP
        assert f"GOMP_SPINCOUNT = '{SPIN['GOMP_SPINCOUNT']}'" in told.err


def test_to_call_it_late_is_a_mistake():
    with pytest.raises(RuntimeError, match="restart the kernel"):
        use_cpu_threads.__wrapped__()


FT = """
import json, sys
from ft_notebooks.cli import commands as cli
cli.use_cpu_threads = lambda threads=None: print("asked", threads)
cli._function = lambda args: lambda args: print("torch" in sys.modules, flush=True)
for words in json.loads(sys.argv[1]):
    cli.main(words.split())
"""


def told_by_ft(*commands):  # what a new interpreter prints for each
    return fresh(FT, json.dumps(commands)).out


@pytest.mark.whole
def test_ft_chooses_threads_before_torch_is_imported_where_it_computes():
    commands = ["sft a.jsonl", "dpo a.jsonl", "eval x", "merge x", "chat x", "demo"]
    assert told_by_ft(*commands) == len(commands) * "asked None\nFalse\n"
    assert told_by_ft("init", "launch --processes 2 -- sft a.jsonl") == 2 * "False\n"


@pytest.mark.whole
def test_a_run_that_goes_on_takes_the_threads_that_it_began_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    machine = {"device": "cpu", "threads": 3}
    card = {"device": "cuda:0", "threads": 3}
    texts = {"cpu": {"recorded": {"machine": machine}}, "card": {"recorded": {"machine": card}}, "damaged": []}
    for run, text in texts.items():
        for folder in (run, f"{run}/sft"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "manifest.json").write_text(json.dumps(text))
    told = told_by_ft(*(f"sft a.jsonl --output {run}" for run in texts), *(f"demo --output {run}" for run in texts))
    asked = "asked {}\nFalse\n"
    assert told == 2 * (asked.format(3) + 2 * asked.format(None))


def test_the_reason_names_the_variables_that_were_there():
    assert str(CpuThreads(2, None, SPIN, {"OMP_NUM_THREADS": "1"})) == "2 CPUs, OMP_NUM_THREADS=1"


def test_a_launch_divides_the_quota_among_its_processes_and_not_the_cpus_of_the_host(machine, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    machine({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "400000 100000"})
    two = {"num_machines": 1, "num_processes": 2}
    words = launcher._arguments("two.yaml", two, machine_rank=0, address=None, port=None, max_restarts=0)
    assert words[-2:] == ["--num_cpu_threads_per_process", "2"]
