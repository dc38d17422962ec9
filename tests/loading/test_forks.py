"A process that has estimated a training step can still be forked: tests, launchers and data loaders do so."

import subprocess
import sys

import pytest

pytestmark = pytest.mark.whole

CODE = """
import os, torch
from ft_notebooks.loading.example_models import tiny_model
from ft_notebooks.loading.memory_estimate import estimate_memory

# nothing in this process has run a backward pass before
estimate_memory(tiny_model(), "full", length=8, device="cpu", dtype=None, whole_logits=True)
if not (child := os.fork()):
    torch.ones(1, requires_grad=True).sum().backward()
    os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_runs_a_backward_pass_after_a_step_was_simulated():
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
