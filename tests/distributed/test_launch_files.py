"The files that start processes, at their edges, and the processes that they start."

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

from ft_notebooks.cli.arguments import parser
from ft_notebooks.cli.training import launch_command
from ft_notebooks.core.arguments import ArgumentError
from ft_notebooks.distributed import launcher
from ft_notebooks.distributed.launch_files import accelerate_config, check_config, slurm_job
from ft_notebooks.distributed.launcher import launch

GOLDEN = Path(__file__).parents[1] / "golden"
BIN = Path(sys.executable).parent
FSDP = {"distributed_type": "FSDP", "num_processes": 4, "num_machines": 1}
ZERO3 = {"distributed_type": "DEEPSPEED", "num_processes": 4, "num_machines": 1}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def written(folder, config, name="accelerate.yaml"):
    (folder / name).write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    return name


def started(*program, file="accelerate.yaml", **arguments):  # `launch` in a process that has imported everything
    said = tempfile.TemporaryFile("w+")
    if (process := os.fork()) == 0:
        code = 99
        try:
            os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
            sys.stderr = open(2, "w", buffering=1)
            torch.set_num_threads(1)
            code = launch(list(program), file, **arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return process, said


def ended(process, said):
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    said.seek(0)
    return code, said.read()


@pytest.mark.parametrize(
    "strategy, processes, machines", [("ddp", 2, 1), ("fsdp2", 32, 4), ("zero2", 8, 1), ("zero3", 16, 2)]
)
def test_the_file_of_a_strategy_is_the_one_that_was_looked_at(here, strategy, processes, machines):
    text = accelerate_config(strategy, processes, machines)
    assert text == (GOLDEN / f"{strategy}.yaml").read_text()
    read = load_config_from_file(written(here, text))
    assert (read.num_processes, read.num_machines) == (processes, machines)


@pytest.mark.whole
def test_the_job_for_slurm_is_the_one_that_was_looked_at(here):
    file = written(here, accelerate_config("fsdp2", 32, 4))
    job = slurm_job(["sft", "data.jsonl", "--set", "sft.learning_rate=2e-4"], file, name="sft", max_restarts=2)
    assert job == (GOLDEN / "fsdp2.sbatch").read_text()
    subprocess.run(["bash", "-n", GOLDEN / "fsdp2.sbatch"], check=True)


@pytest.mark.whole
@pytest.mark.parametrize("word", ["a b", "it's", '"', "$HOME", "`id`", "*", "\\", "a\nb", ""], ids=repr)
def test_a_word_reaches_the_task_of_a_job_as_it_was(here, word):
    job = slurm_job(["sft", word], written(here, accelerate_config("ddp", 2)))
    tools = {
        "srun": 'while [ "$1" != bash ]; do shift; done; "$@"',
        "scontrol": "echo one",
        "ft": 'printf "%s\\0" "$@"',
    }
    for name, body in tools.items():
        (here / name).write_text(f"#!/bin/bash\n{body}\n")
        (here / name).chmod(0o755)
    known = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "x", "SLURM_CPUS_PER_TASK": "1", "SLURM_NODEID": "0"}
    env = {**os.environ, **known, "PATH": f"{here}:{os.environ['PATH']}"}
    said = subprocess.run(["bash", "-c", job], env=env, capture_output=True, text=True).stdout
    assert said.split("\0")[-3:] == ["sft", word, ""] and f"--address\0one\0--port\0{20001}\0" in said


@pytest.mark.parametrize("processes, machines", [(0, 1), (-2, 1), (2, 0), (6, 4), (2, 4)])
def test_processes_are_the_same_number_on_each_machine(here, processes, machines):
    with pytest.raises(ValueError, match="the same number on each|a whole number of at least 1"):
        accelerate_config("ddp", processes, machines)
    file = written(here, {"distributed_type": "MULTI_GPU", "num_processes": processes, "num_machines": machines})
    with pytest.raises(ValueError, match="the same number on each|a whole number of at least 1"):
        check_config(file)


def test_a_section_may_be_empty(here):
    text = "distributed_type: MULTI_GPU\nnum_processes: 2\nfp8_config:\n"
    assert check_config(written(here, text))["num_processes"] == 2


def test_a_key_goes_where_accelerate_reads_it():
    config = yaml.safe_load(accelerate_config("fsdp2", 2, gpu_ids="0,1", fsdp_offload_params=True))
    assert config["gpu_ids"] == "0,1" and config["fsdp_config"]["fsdp_offload_params"] is True
    with pytest.raises(ValueError, match="does not read fsdp_offload_params"):
        accelerate_config("ddp", 2, fsdp_offload_params=True)  # a section that DDP does not have


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "has no distributed_type or no num_processes"),
        ("- 1", "has no distributed_type or no num_processes"),
        ("distributed_type: MULTI_GPU", "has no distributed_type or no num_processes"),
        ("a: [", "is not valid YAML"),
        (
            "distributed_type: MULTIGPU\nnum_processes: 2",
            "does not know distributed_type: MULTIGPU; the nearest is MULTI_GPU",
        ),
        (
            "distributed_type: NO\nnum_processes: 2",
            "distributed_type: NO, with which accelerate launch starts one process",
        ),
        ("distributed_type: MULTI_GPU\nnum_processes: 2\nrdzv_backend: c10d", "reads rdzv_backend only on the command"),
        (
            "distributed_type: MULTI_GPU\nnum_processes: 2\nmpirun_config: {mpirun_hstfile: x}",
            "mpirun_hstfile; the near",
        ),
    ],
)
def test_a_file_that_starts_nothing_is_refused_with_its_name(here, text, words):
    with pytest.raises(ValueError, match=words) as error:
        check_config(written(here, text))
    assert str(error.value).startswith("accelerate.yaml")


def test_a_file_in_json_and_one_for_one_process_pass(here):
    one = {"distributed_type": "NO", "num_processes": 1, "compute_environment": "LOCAL_MACHINE"}
    for name, text in (("one.json", json.dumps(one)), ("one.yaml", yaml.safe_dump(one))):
        assert check_config(written(here, text, name), 1, 1) == {**one, "num_machines": 1}


@pytest.mark.parametrize("section", [{}, {"fsdp_sharding_strategy": "FULL_SHARD"}, {"fsdp_version": 1}, None])
def test_a_file_for_fsdp1_is_refused_and_not_started(here, section):
    file = written(here, {**FSDP, "fsdp_config": section})
    for read in (check_config, lambda file: launch(["-m", "this"], file)):
        with pytest.raises(ValueError, match="is for FSDP1.*create a file for FSDP2"):
            read(file)


@pytest.mark.parametrize("key", ["fsdp_use_orig_params", "fsdp_forward_prefetch", "fsdp_sharding_strategy"])
def test_a_file_for_fsdp2_has_no_key_of_fsdp1(here, key):
    section = yaml.safe_load(accelerate_config("fsdp2", 4))["fsdp_config"]
    with pytest.raises(ValueError, match=f"accelerate.yaml: {key} has no effect under FSDP2; remove it"):
        check_config(written(here, {**FSDP, "fsdp_config": {**section, key: True}}))


def test_zero_3_ends_with_a_whole_model_and_starts_on_every_machine(here):
    for section, machines, words in (
        ({"zero_stage": 3}, 1, "write zero3_save_16bit_model: True"),
        ({"zero_stage": 3, "zero3_save_16bit_model": False}, 1, "write zero3_save_16bit_model: True"),
        ({"zero_stage": "2"}, 2, "write deepspeed_multinode_launcher: standard"),
    ):
        with pytest.raises(ValueError, match=words):
            check_config(written(here, {**ZERO3, "num_machines": machines, "deepspeed_config": section}))
    for section in ({"zero_stage": 2}, {"deepspeed_config_file": "ds.json"}):
        config = {**ZERO3, "deepspeed_config": section}
        assert check_config(written(here, config)) == config


@pytest.mark.parametrize("program", [[], ["train.py"], ["--help"]])
def test_a_program_that_is_not_there_is_not_started(here, program):
    with pytest.raises(ValueError, match="pass an existing script"):
        launch(program, written(here, accelerate_config("ddp", 2)))


def test_only_machines_that_restart_together_meet_by_c10d():
    def words(machines, rank, **how):
        config = {"num_machines": machines, "num_processes": 4}
        at = {"address": "127.0.0.1", "port": 29500, **how}
        return " ".join(launcher._arguments("x.yaml", config, machine_rank=rank, **at))

    assert "rdzv" not in words(2, 0, max_restarts=0)
    again = [words(2, rank, port=29111, max_restarts=1) for rank in (0, 1)]
    assert ["is_host=1" in line for line in again] == [True, False]
    assert all("--rdzv_backend c10d" in line for line in again)
    assert "rdzv" not in words(1, 0, max_restarts=1)


def test_restarted_processes_find_each_other_instead_of_the_ended_ones():
    def variables(**how):
        return launcher._environment({"num_machines": 1, "num_processes": 4}, address=None, port=None, **how)

    added = variables(max_restarts=1).keys() - variables(max_restarts=0).keys()
    assert added == {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "PET_STANDALONE"}


@pytest.mark.whole
def test_two_launches_on_one_machine_do_not_meet(here):
    (here / "who.py").write_text(
        "import os, sys, time\ntime.sleep(0.5)\nsys.stdout.write(os.environ['MASTER_PORT'] + '\\n')"
    )
    written(here, accelerate_config("ddp", 2))
    found = [ended(*one) for one in [started("who.py"), started("who.py")]]
    ports = [{*said.split()} for _, said in found]
    assert [code for code, _ in found] == [0, 0] and len(ports[0]) == len(ports[1]) == 1 and ports[0] != ports[1]


@pytest.mark.whole
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_each_process_once_and_is_the_exit_code(here, number):
    (here / "waits.py").write_text(
        "import os, signal, sys, time\nheard = []\n"
        "for number in (signal.SIGINT, signal.SIGTERM):\n    signal.signal(number, lambda n, frame: heard.append(n))\n"
        "open(os.environ['RANK'], 'w').close()\nwhile not heard:\n    time.sleep(0.02)\ntime.sleep(0.3)\n"
        "sys.stdout.write(f'heard {heard}\\n')\n"
    )
    written(here, accelerate_config("ddp", 2))
    process, said = started("waits.py")
    while not ((here / "0").exists() and (here / "1").exists()):
        time.sleep(0.02)
    os.kill(process, number)
    code, text = ended(process, said)
    assert code == 128 + number and text.count(f"heard [{number}]") == text.count("heard") == 2


WAITS = """
import os, signal, sys, time
heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
open(os.environ['RANK'], 'w').close()
end = time.monotonic() + 60
while not heard and time.monotonic() < end:
    time.sleep(0.02)
time.sleep(0.3)
sys.stdout.write(f'heard {heard}\\n')
"""


@pytest.mark.whole
@pytest.mark.parametrize("last", ["0", "1"])
def test_a_signal_during_the_start_reaches_the_processes_that_have_started(here, monkeypatch, last):
    (here / "waits.py").write_text(WAITS)
    written(here, accelerate_config("ddp", 2))

    def slow(handler, *given, start=SubprocessHandler._popen):  # torchrun does not know the process until this returns
        process = start(handler, *given)
        if str(handler.local_rank_id) == last:
            time.sleep(60)
        return process

    monkeypatch.setattr(SubprocessHandler, "_popen", slow)
    process, said = started("waits.py")
    while not (here / last).exists():
        time.sleep(0.02)
    os.kill(process, signal.SIGTERM)
    code, text = ended(process, said)
    assert (code, text.count("heard [15]")) == (128 + signal.SIGTERM, int(last) + 1), text


@pytest.mark.whole
def test_a_process_that_ignores_the_end_of_another_is_ended(here):
    (here / "one.py").write_text("import os, sys, time\nsys.exit(7) if os.environ['RANK'] == '1' else time.sleep(600)")
    written(here, accelerate_config("ddp", 2))
    code, text = ended(*started("one.py"))
    assert code == 7 and text.strip().splitlines()[-1].startswith("rank 1 on ") and "ended with exit code 7" in text


@pytest.mark.whole
def test_a_launch_leaves_the_environment_and_the_handlers_as_they_were(here, monkeypatch):
    (here / "ends.py").write_text("print('end')")
    file = written(here, accelerate_config("ddp", 2))
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    handlers = [signal.getsignal(number) for number in numbers]
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "x")  # which torchrun sets for good
    before = dict(os.environ)
    assert launch(["ends.py"], file) == 0
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "x"
    assert os.environ == before and [signal.getsignal(number) for number in numbers] == handlers


@pytest.mark.whole
def test_the_processes_of_ft_launch_import_no_module_that_lies_beside_the_data(here, monkeypatch):
    (here / "datasets.py").touch()
    where = "import importlib.util; print(importlib.util.find_spec('datasets').origin)"
    found = []

    def asked(program, file, **_):  # `-c` and `-m` search the working folder alike
        found.append(subprocess.run([sys.executable, "-c", where], capture_output=True, text=True).stdout.strip())

    monkeypatch.setattr("ft_notebooks.cli.training.launch", asked)
    launch_command(parser().parse_args(["launch", "--processes", "1", "--", "sft", "notes.jsonl"]))
    assert found[0].endswith("site-packages/datasets/__init__.py")
    assert "PYTHONSAFEPATH" not in os.environ


@pytest.mark.parametrize("number", [0, -1, 1.5, "2", True])
def test_counts_of_processes_and_machines_are_whole_numbers_of_at_least_1(here, number):
    for counts in ({"processes": number}, {"processes": 2, "machines": number}):
        with pytest.raises(ArgumentError, match="must be a whole number of at least 1"):
            accelerate_config("ddp", **counts)
    odd = yaml.safe_dump({**FSDP, "distributed_type": "MULTI_GPU", "num_processes": number})
    Path(here, "odd.yaml").write_text(odd)
    with pytest.raises(ArgumentError, match="odd.yaml: processes must be a whole number"):
        check_config("odd.yaml")
    file = written(here, accelerate_config("ddp", 2))
    for counts in ({"cpus": number}, {"grace": number}):
        with pytest.raises(ArgumentError, match="slurm_job"):
            slurm_job(["sft", "x"], file, **counts)
