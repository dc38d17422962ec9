"Ray Train starts a script's training in its own workers: two of them end at the weights of one process."

import contextlib
import io
from pathlib import Path

import pytest
import torch
from small_runs import TOK, only_rounded

from ft_notebooks.course.example_task import appointments
from ft_notebooks.loading.example_models import tiny_model
from ft_notebooks.sft.trainer import sft_trainer

ray = pytest.importorskip("ray")
pytest.importorskip("ray.train.torch")

ROOT = Path(__file__).parents[2]
RATE, STEPS = 1e-3, 6


def train(config):
    "What a script does in each process."
    fields = {"effective_batch": 8, "per_device_train_batch_size": 2, "max_steps": STEPS, "learning_rate": RATE}
    fields |= {"bf16": False, "report_to": "none", "save_strategy": "no", "use_cpu": True}
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = sft_trainer(tiny_model(), TOK, appointments(21), output_dir=config["run"], **fields)
        trainer.train()
    if trainer.is_world_process_zero():
        weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        torch.save({"weights": weights, "processes": trainer.args.world_size}, config["file"])


@pytest.mark.whole
@pytest.mark.numbers
def test_two_workers_of_ray_end_at_the_weights_of_one_process(tmp_path):
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    found = {}
    for name in ("ray", "one"):
        config = {"run": str(tmp_path / name), "file": str(tmp_path / f"{name}.pt")}
        if name == "ray":
            paths = f"{ROOT}:{Path(__file__).parents[1]}:{Path(__file__).parent}"
            env = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
            ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": env})
            try:
                TorchTrainer(
                    train,
                    train_loop_config=config,
                    torch_config=TorchConfig(backend="gloo"),
                    scaling_config=ScalingConfig(num_workers=2, use_gpu=False),
                    run_config=RunConfig(storage_path=str(tmp_path / "storage"), name="two"),
                ).fit()
            finally:
                ray.shutdown()
        else:
            train(config)
        found[name] = torch.load(config["file"])
    assert [each["processes"] for each in found.values()] == [2, 1]
    far = (found["ray"]["weights"] - found["one"]["weights"]).abs()
    assert only_rounded(far, 2 * STEPS * RATE)
