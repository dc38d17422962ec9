"""Every notebook but the lessons runs, reported as one pytest test each: `pytest -k tokenizer` runs that one only."""

import pytest
from notebook_runs import LESSONS, NBS, check_run, imported, name  # noqa: F401

# these compare what a model computes, most of it in bfloat16: .ci/run runs them as on other processors, too
NUMBERS = {
    "package/doctor/probe",
    "package/dpo/loss",
    "package/evaluation/likelihood",
    "package/course/gpu_speed",
    "package/inference/generation",
    "package/inference/prefix_cache",
    "package/course/four_bit_codes",
    "package/kernels/attention",
    "package/kernels/fused_layers",
    "package/kernels/label_head",
    "package/kernels/log_probs",
    "package/kernels/patching",
    "package/kernels/shared_prompt",
    "package/kernels/shared_rows",
    "package/loading/quantization_error",
    "package/loading/quantized_loading",
    "package/lora/adapter",
    "package/rlhf/grpo",
    "package/course/ppo",
    "package/rlhf/reward_hacking",
    "package/rlhf/reward_model",
    "package/rlhf/reward_training",
    "package/sft/packing_check",
    "package/training/loss_spikes",
}


def test_the_notebooks_that_compare_numbers_are_there():
    assert sorted(NUMBERS - {name(nb) for nb in NBS}) == []


@pytest.mark.whole
@pytest.mark.parametrize(
    "nb",
    [
        pytest.param(nb, id=name(nb), marks=[pytest.mark.numbers, pytest.mark.bfloat16] * (name(nb) in NUMBERS))
        for nb in NBS
        if nb not in LESSONS
    ],
)
def test_runs(nb, imported, real_model, tmp_path, monkeypatch, record_property):  # noqa: F811
    if nb.parent.name == "recipes" and not real_model:
        pytest.skip("needs the real model")
    check_run(nb, real_model, tmp_path, monkeypatch, record_property)
