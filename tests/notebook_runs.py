"""Runs a notebook by `nbdev_test`, in a process of its own, with the errors below `%%capture` (tools/captured.py).

NB_FLAGS="smol gpu" says which flagged cells run; without it the cells flagged `smol` run where the real model is in
the cache. FT_PLANT=NAME runs it with a default of tests/planted.py. Where a cell fails, pytest's junit report has its
notebook, its number, counted from 0 in the saved notebook, and the traceback: tools/broken_claims.py reads them.
"""

import atexit
import gc
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

import planted
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))
import captured

NBS = sorted(  # but the solutions, which tests/test_solutions.py runs
    p
    for p in (ROOT / "nbs").rglob("*.ipynb")
    if p.parent.name != "solutions" and not any(part[0] in "_." for part in p.relative_to(ROOT).parts)
)
LESSONS = [nb for nb in NBS if nb.parent.name == "nbs" and nb.name[0].isdigit()]
CAN_FORK = sys.platform == "linux" and not os.path.exists("/dev/nvidiactl")  # CUDA cannot be used in a fork


def name(nb):
    return str(nb.relative_to(ROOT / "nbs").with_suffix(""))


@pytest.fixture(scope="module")
def imported():
    "Nine seconds that a fork need not repeat: what notebooks import, and what a first step of training prepares."
    if CAN_FORK:
        import execnb.shell  # noqa: F401
        import matplotlib.pyplot  # noqa: F401
        import nbdev.test  # noqa: F401

        import ft_notebooks.cli.commands
        import ft_notebooks.dpo.trainer
        import ft_notebooks.evaluation.runner
        import ft_notebooks.sft.trainer  # noqa: F401
        from ft_notebooks import add_adapter, lora_config, tiny_model
        from ft_notebooks.loading.training_memory import step_memory

        for model in (tiny_model(), add_adapter(tiny_model(), lora_config(tiny_model()))):
            step_memory(model, {"use_cpu": True})(1000)
        gc.collect()
        gc.freeze()


def run_in_fork(nb, flags, log):
    from nbdev.test import nbdev_test

    os.chdir(ROOT)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # in place of pytest's
    captured.raise_errors()
    try:
        if "FT_PLANT" in os.environ:
            getattr(planted, os.environ["FT_PLANT"])()
        nbdev_test(str(nb), do_print=True, flags=flags, n_workers=0)
    finally:
        atexit._run_exitfuncs()  # removes temporary folders


def run(nb, flags, log):
    "The exit code of `nbdev_test`; what it prints is in `log`."
    if CAN_FORK:
        process = multiprocessing.get_context("fork").Process(target=run_in_fork, args=(nb, flags, log))
        process.start()
        process.join()
        return process.exitcode
    command = [sys.executable, captured.__file__, nb, "--do_print", "--n_workers", "0", "--flags", flags]
    with log.open("w") as file:
        return subprocess.run(command, cwd=ROOT, stdout=file, stderr=file).returncode


def failing_cell(said):
    "The number of the cell that failed, and its traceback, from what `nbdev_test` prints."
    found = re.search(
        r"^While Executing Cell #(\d+):\n(.*?)(?=^- Completed |^nbdev Tests Failed |\Z)", said, re.M | re.S
    )
    return found and (int(found[1]) - 1, found[2].strip())


def check_run(nb, real_model, tmp_path, monkeypatch, record_property):
    "Fails the test with what `nbdev_test` prints, if it fails."
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)  # for `!ft`
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("FT_TRIES", str(tmp_path / "tries.json"))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.delenv("TQDM_DISABLE", raising=False)  # some of them prove what a bar writes
    log = tmp_path / "log"
    flags = os.environ.get("NB_FLAGS", "smol" if real_model else "")
    record_property("flags", flags)  # for tools/proofs.py
    code = run(nb, flags, log)
    said = log.read_text(errors="replace")
    if code != 0 or "Success." not in said:
        record_property("notebook", str(nb.relative_to(ROOT)))
        if cell := failing_cell(said):
            record_property("cell", cell[0])
            record_property("error", cell[1])
        pytest.fail(f"nbdev_test ended with {code}\n{said[:8000]}", pytrace=False)
    if f"- Completed {nb}" not in said:
        pytest.skip("the notebook says skip_exec")
