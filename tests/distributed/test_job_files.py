"A written job: its files at their edges, and a run that loses its machine twice and ends at the same weights."

import ast
import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import HfApi
from safetensors.torch import load_file
from small_runs import only_rounded

from ft_notebooks.cli.commands import main
from ft_notebooks.core.arguments import ArgumentError
from ft_notebooks.course.example_task import appointments
from ft_notebooks.distributed import checkpoint_push
from ft_notebooks.distributed.checkpoint_push import remote_run, upload_command
from ft_notebooks.distributed.job_files import STARTS, _pins, remote_job
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]
RATE = 1e-3
WORDS = ["sft", "notes.jsonl", "--set", "model.name=tiny"]
for setting in ("max_steps=8", "save_steps=3", "effective_batch=8", f"learning_rate={RATE}", "bf16=false"):
    WORDS += ["--set", f"sft.{setting}"]

# Python runs it at its start: a signal while the named file is being renamed into its place
SIGNALS = """
import os, sys
def at_rename(event, given):
    if event == "os.rename" and str(given[1]).endswith(os.environ["AT"]):
        os.kill(os.getpid(), int(os.environ["SIGNAL"]))
if os.environ.get("AT"):
    sys.addaudithook(at_rename)
"""


def wheel(folder, pin, path=""):
    "A wheel of this name and version that holds nothing, or a `.pth` file."
    name, version = pin.split("==")
    stem = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as made:
        made.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        made.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr(f"{stem}.dist-info/RECORD", "")
        if path:
            made.writestr(f"{stem}.pth", path)


@pytest.fixture(scope="module")
def runs_script(tmp_path_factory):
    """Runs job.py in an empty folder, by `uv run` where there is uv: it gets wheels that only lead to this checkout and
    its libraries, so all that it does is done, and nothing is downloaded.
    """
    base = tmp_path_factory.mktemp("job")
    wheels = base / "wheels"
    wheels.mkdir()
    (base / "sitecustomize.py").write_text(SIGNALS)
    for pin in _pins():
        wheel(wheels, pin, f"{ROOT}\n{sysconfig.get_path('purelib')}\n" if pin.startswith("ft-notebooks==") else "")
    uv = {"UV_NO_INDEX": "1", "UV_OFFLINE": "1", "UV_FIND_LINKS": wheels, "UV_CACHE_DIR": base / "cache"}
    uv["UV_PYTHON"] = sys.executable
    start = ["uv", "run"] if shutil.which("uv") else [sys.executable]

    def run(script, machine, at="", number=signal.SIGKILL):
        machine.mkdir()
        (machine / "job.py").write_text(script)
        path = str(base) if start[0] == "uv" else f"{base}:{ROOT}"
        known = {
            "PYTHONPATH": path,
            "AT": at,
            "SIGNAL": int(number),
            "OMP_NUM_THREADS": 1,
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": 2,
            **uv,
        }
        env = {**os.environ, **{name: str(value) for name, value in known.items()}}
        done = subprocess.run([*start, "job.py"], cwd=machine, env=env, capture_output=True, text=True)
        shutil.rmtree(machine)  # it is lost
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    "The folder of the files, and the weights of the command that is run here."
    folder = tmp_path_factory.mktemp("here")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        tiny_model().save_pretrained("tiny")
        tiny_tokenizer().save_pretrained("tiny")
        appointments(24).to_json("notes.jsonl")
        main(WORDS)
    return folder, load_file(folder / "runs/sft/adapter_model.safetensors")


def place_with_files(uninterrupted, place):
    place.mkdir()
    subprocess.run(upload_command(str(place), ["notes.jsonl", "tiny"]), shell=True, cwd=uninterrupted[0], check=True)
    return str(place)


@pytest.mark.whole
@pytest.mark.numbers
def test_a_job_that_loses_its_machine_twice_ends_at_the_same_weights(runs_script, uninterrupted, tmp_path):
    place = place_with_files(uninterrupted, tmp_path / "place")
    script = remote_job(WORDS, "slurm", place, files=["notes.jsonl", "tiny"])["job.py"]
    there = tmp_path / "place/runs/sft"

    code, said = runs_script(script, tmp_path / "machine", "place/runs/sft/checkpoint-3/optimizer.pt", signal.SIGTERM)
    assert code == 143 and "stopped; SIGTERM: started again" in said, said
    assert sorted(each.name for each in there.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]

    code, said = runs_script(script, tmp_path / "machine", "place/runs/sft/checkpoint-6/optimizer.pt")
    assert code != 0 and "goes on from runs/sft/checkpoint-4" in said, said
    assert (there / "checkpoint-6/optimizer.pt.part").is_file() and not (there / "metrics.json").exists()

    code, said = runs_script(script, tmp_path / "machine")
    assert code == 0 and "goes on from runs/sft/checkpoint-4" in said, said
    assert not list(there.glob("torn-*"))  # the checkpoint that was cut off, as the last machine named it
    weights = load_file(there / "adapter_model.safetensors")
    assert all(torch.equal(weights[name], same) for name, same in uninterrupted[1].items())


@pytest.mark.whole
@pytest.mark.numbers
def test_a_job_in_two_processes_goes_on_likewise(runs_script, uninterrupted, tmp_path):
    place = place_with_files(uninterrupted, tmp_path / "place")
    script = remote_job(WORDS, "slurm", place, files=["notes.jsonl", "tiny"], processes=2)["job.py"]
    code, said = runs_script(script, tmp_path / "machine", "place/runs/sft/checkpoint-6/optimizer.pt")
    assert code != 0 and "rank 0 on " in said, said
    code, said = runs_script(script, tmp_path / "machine")
    assert code == 0 and "goes on from runs/sft/checkpoint-3" in said, said
    weights = load_file(tmp_path / "place/runs/sft/adapter_model.safetensors")
    far = torch.cat([(weights[name] - same).abs().flatten() for name, same in uninterrupted[1].items()])
    assert only_rounded(far, 2 * 8 * RATE, near=RATE / 10)


@pytest.mark.parametrize("word", ["it's", '"""', "{run}", "\\", "a\nb", "ä", "$HOME", ""], ids=repr)
def test_a_word_of_the_command_and_a_file_reach_the_script_as_they_were(word):
    files = remote_job(["sft", word], "kubeflow", "me/notes", files=[word], processes=2)
    names = {node.targets[0].id: node.value for node in ast.parse(files["job.py"]).body if isinstance(node, ast.Assign)}
    assert ast.literal_eval(names["COMMAND"]) == ["sft", word] and ast.literal_eval(names["FILES"]) == [word]
    written = yaml.safe_load(files["kubeflow.yaml"])["spec"]["trainer"]["env"][0]["value"]
    assert written == files["job.py"]


@pytest.mark.parametrize("target", STARTS)
def test_a_platform_gets_time_to_save_and_no_token(target):
    files = remote_job(["sft", "x"], target, "me/notes", gpu="h200", hours=2, processes=4)
    [name] = files.keys() - {"job.py"}
    assert name.removesuffix(".sh").removesuffix(".yaml") == target
    assert ("hours=None" in files["job.py"]) == (target == "slurm") != ("hours=2)" in files["job.py"])
    limits = {
        "hf-jobs": "--timeout 135m",
        "slurm": "--time=120\n#SBATCH --signal=TERM@300",
        "kubeflow": "activeDeadlineSeconds: 8100",
        "sky": "accelerators: h200:4",
    }
    assert limits[target] in files[name]
    assert "hf_" not in "".join(files.values())


@pytest.mark.parametrize("given", [{"processes": 0}, *({"hours": float(hours)} for hours in ("0", "-1", "nan", "inf"))])
def test_a_job_takes_time_and_a_process(given):
    with pytest.raises((ValueError, ArgumentError), match="give more than 0|a whole number of at least 1"):
        remote_job(["sft", "x"], "slurm", "me/notes", **given)


def test_what_is_here_is_not_fetched_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "place"
    place.mkdir()
    (place / "notes.jsonl").write_text("old")
    Path("notes.jsonl").write_text("new")
    with remote_run("runs/sft", str(place), ["notes.jsonl"]):
        assert Path("notes.jsonl").read_text() == "new"
    assert not Path("runs").exists()


@pytest.mark.parametrize("run", ["/runs/sft", "../sft", "runs/../../sft"])
def test_the_folder_of_a_run_lies_in_the_working_folder(tmp_path, run):
    with pytest.raises(ValueError, match="is not in this folder"), remote_run(run, str(tmp_path)):
        pass


def test_a_push_that_fails_ends_the_run(tmp_path, monkeypatch):
    def refuses(self, **given):
        raise OSError("no space left on the hub")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HfApi, "upload_folder", refuses)
    state = type("State", (), {"is_world_process_zero": True})
    with pytest.raises(OSError, match="no space left on the hub"):
        checkpoint_push.PushCallback("run", "me/notes").on_save(None, state, None)
    state.is_world_process_zero = False
    checkpoint_push.PushCallback("run", "me/notes").on_save(None, state, None)


def stand_ins(folder, **bodies):
    for name, body in bodies.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}


@pytest.mark.whole
@pytest.mark.parametrize("code, said", [(0, ""), (143, "requeue 7"), (1, "")])
def test_a_slurm_job_that_was_stopped_is_queued_again(tmp_path, code, said):
    env = stand_ins(
        tmp_path, uv='[ "$1" = sync ] || echo /env/python', srun=f'echo "$@" >&2; exit {code}', scontrol='echo "$@"'
    )
    job = remote_job(["sft", "x"], "slurm", "/shared/notes")["slurm.sh"]
    done = subprocess.run(["bash", "-c", job], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (code, said, "/env/python runs/job.py")


@pytest.mark.whole
def test_a_pod_starts_the_script_without_the_variables_of_torchrun(tmp_path):
    env = stand_ins(tmp_path, uv='echo "$@ ${PET_NNODES:-unset}"')
    files = remote_job(["sft", "it's"], "kubeflow", "me/notes")
    command = yaml.safe_load(files["kubeflow.yaml"])["spec"]["trainer"]["command"]
    for given in ({"PET_NNODES": "4", "PET_MASTER_ADDR": "x"}, {}):
        env = {**env, "JOB": files["job.py"], **given}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        assert done.stdout == "run job.py unset\n"
        assert (tmp_path / "job.py").read_text().rstrip("\n") == files["job.py"].rstrip("\n")
