"Steps in processes of their own, compared; what fails, hangs or is cut off ends none of the others."

import json
import math
import multiprocessing
import os
import signal
import sys
import time

import pytest
import torch

from ft_notebooks.core.device import Hardware
from ft_notebooks.course import gpu_check as program
from ft_notebooks.course import gpu_steps as steps
from ft_notebooks.course.gpu_check import _as_markdown, _in_process, check_gpu, compared
from ft_notebooks.course.gpu_figures import NotHere, Step
from ft_notebooks.course.gpu_steps import STEPS


@pytest.fixture
def forks(monkeypatch):
    "Processes that need not import all that a step uses."
    context = multiprocessing.get_context("fork")
    run = program._run_step

    def spoken(*args):
        sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
        run(*args)

    monkeypatch.setattr(program.multiprocessing, "get_context", lambda kind: context)
    monkeypatch.setattr(program, "_run_step", spoken)


def right(folder):
    print("a library speaks")
    return {"numbers": [1.0, 2.0], "text": "yes"}


def wrong(folder):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def ends(folder):
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(folder):
    time.sleep(600)


def absent(folder):
    raise NotHere("flash_attn is not installed")


def test_each_end_of_a_step_is_named(tmp_path, forks):
    assert _in_process(right, tmp_path / "1", cpu=True, seconds=60)["figures"] == right(None)
    assert (tmp_path / "1.log").read_text(encoding="utf-8") == "a library speaks\n"
    assert "illegal memory access" in _in_process(wrong, tmp_path / "2", cpu=True, seconds=60)["error"]
    assert "Traceback" in (tmp_path / "2.log").read_text(encoding="utf-8")
    assert _in_process(ends, tmp_path / "3", cpu=True, seconds=60)["error"] == "the process ended with code -11"
    assert _in_process(absent, tmp_path / "4", cpu=True, seconds=60)["not here"] == "flash_attn is not installed"
    (tmp_path / "3").write_text('{"figures": {"numbers": [1.0]}}', encoding="utf-8")  # of an earlier call
    assert _in_process(ends, tmp_path / "3", cpu=True, seconds=60)["error"] == "the process ended with code -11"
    assert _in_process(hangs, tmp_path / "5", cpu=True, seconds=1)["error"] == "took more than 1 s"


def test_the_rest_goes_on_and_each_line_is_kept(tmp_path, forks):
    some = {"one": Step(wrong), "two": Step(ends), "three": Step(right), "four": Step(absent)}
    lines = check_gpu(tmp_path, device="cpu", steps=some, sizes=())
    assert next(lines).startswith("one: failed, on the GPU: RuntimeError: CUDA error")
    known = json.loads((tmp_path / "gpu_check.json").read_text(encoding="utf-8"))
    assert list(known["steps"]) == ["one"]  # what a machine that is taken away leaves
    assert [line.split(",")[0] for line in lines] == ["two: failed", "three: right", "four: not here"]
    assert "1 of 4 steps right" in (tmp_path / "gpu_check.md").read_text(encoding="utf-8")


def test_no_step_begins_when_the_time_is_over(tmp_path):
    assert list(check_gpu(tmp_path, device="cpu", seconds=0, steps={"one": Step(right)}, sizes=())) == [
        "one: not here, no time was left"
    ]


def test_a_machine_without_a_gpu_is_refused(tmp_path, monkeypatch):
    here = Hardware("cpu", torch.float32, False, "sdpa", 1)
    monkeypatch.setattr(program, "hardware", lambda: here)
    with pytest.raises(ValueError, match="no GPU on this machine; .*--device cpu"):
        next(check_gpu(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def found(step: str, folder) -> dict:
    return {"figures": STEPS[step].run(folder)}


@pytest.mark.whole
def test_a_wrong_mask_and_a_wrong_dtype_are_beyond_the_bound(tmp_path, monkeypatch):
    for name in ("load in 32 bits", "load in 16 bits", "load in 4 bits"):
        expected = found(name, tmp_path / "right" / name)
        assert compared(STEPS[name], expected, found(name, tmp_path / "again" / name))["result"] == "right"
        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.functional, "scaled_dot_product_attention", _not_causal)
            row = compared(STEPS[name], expected, found(name, tmp_path / "mask" / name))
        assert row["result"] == "failed" and row["difference"] > row["bound"]
    expected = found("load in 32 bits", tmp_path / "float32")
    load = steps.load_model
    monkeypatch.setattr(steps, "load_model", lambda *args, **kwargs: load(*args, **kwargs).bfloat16())
    assert compared(STEPS["load in 32 bits"], expected, found("load in 32 bits", tmp_path / "b"))["result"] == "failed"


_attention = torch.nn.functional.scaled_dot_product_attention


def _not_causal(*args, is_causal=False, **kwargs):
    return _attention(*args, is_causal=False, **kwargs)


def test_what_is_missing_or_not_a_number_is_no_agreement():
    step = Step(right)
    assert compared(step, {"figures": {"a": 1.0}}, {"figures": {}})["result"] == "failed"
    assert compared(step, {"figures": {"a": 1.0}}, {"figures": {"a": math.nan}})["difference"] == math.inf
    assert (
        compared(step, {"figures": {"a": "yes"}}, {"figures": {"a": "no"}})["why"] == "a: no on the GPU, yes on the CPU"
    )


def test_the_page_holds_what_failed_and_both_speeds():
    failed = {"result": "failed", "why": "a | b", "seconds": 1}
    speed = {"figures": {"tokens a second": 12345, "peak": 2e9}}
    report = {"machine": device_of("NVIDIA L4"), "versions": {"torch": "2.13"}, "right": 0, "steps": {"x": failed}}
    page = _as_markdown(report | {"speeds": {"LoRA 1B": {"ours": speed, "TRL": {"error": "out of memory"}}}})
    assert "# NVIDIA L4: 0 of 1 steps right" in page and "a \\| b" in page
    assert "| LoRA 1B | 12,345 tokens/s | 2.0 GB | out of memory |  |" in page


def device_of(name: str) -> dict:
    return {"name": name, "device": "cuda:0"}
