"Edges of `ft_notebooks.training`: processes, torn folders."

import json
import subprocess
import sys

import pytest

from ft_notebooks.training import effective_batch, last_good_checkpoint, plot_history, run_folder


def test_the_launchers_world_size_is_taken_into_account(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert effective_batch(16, micro=2) == {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize("arguments", [(0,), (16.0,), (16, -1), (16, 4, 0), (2, 4, 4)])
def test_impossible_batches_are_refused(arguments):
    with pytest.raises(ValueError, match="effective batch|effective_batch"):
        effective_batch(*arguments)


def test_several_processes_agree_on_one_new_folder(tmp_path):
    code = f"from ft_notebooks.training import run_folder; print(run_folder({str(tmp_path / 'run')!r}, {{'seed': 0}}))"
    ranks = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert {rank.communicate()[0].strip() for rank in ranks} == {str(tmp_path / "run")}
    assert all(rank.returncode == 0 for rank in ranks)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["run.json"]


def test_a_setting_that_is_new_or_gone_is_another_run_too(tmp_path):
    run_folder(tmp_path / "run", {"seed": 0})
    (tmp_path / "run" / "checkpoint-2").mkdir()
    with pytest.raises(ValueError, match="r was None, is 8"):
        run_folder(tmp_path / "run", {"seed": 0, "r": 8})
    with pytest.raises(ValueError, match="seed was 0, is None"):
        run_folder(tmp_path / "run", {})


def test_a_run_that_ended_before_its_first_checkpoint_may_become_another(tmp_path):
    run_folder(tmp_path / "run", {"seed": 0})
    run = run_folder(tmp_path / "run", {"seed": 1})
    assert json.loads((run / "run.json").read_text()) == {"seed": 1}


@pytest.mark.parametrize("torn", ["trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"])
def test_a_checkpoint_with_one_part_missing_does_not_count(tmp_path, torn):
    for step in (2, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"):
            (folder / name).touch()
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    assert last_good_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")  # by number: 10 comes after 2
    (tmp_path / "checkpoint-10" / torn).unlink()
    assert last_good_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


@pytest.mark.parametrize("state", ['{"global_step": 3', '{"global_step": 2}', "{}", ""])
def test_a_half_written_or_foreign_state_does_not_count(tmp_path, state):
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"):
        (folder / name).touch()
    (folder / "trainer_state.json").write_text(state)
    assert last_good_checkpoint(tmp_path) is None


def test_a_history_without_a_loss_is_an_error():
    with pytest.raises(ValueError, match="nothing was logged"):
        plot_history([{"step": 1, "eval_loss": 1.0}])
    with pytest.raises(ValueError, match="no complete checkpoint"):
        plot_history("nowhere")


def test_the_curve_is_of_what_was_logged():
    fig = plot_history([{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "eval_loss": 2.5}])
    assert [list(line.get_ydata()) for line in fig.axes[0].lines] == [[3.0, 2.0], [2.5]]
