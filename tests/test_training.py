"Edges of `ft_notebooks.training`: processes, torn folders."

import json
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest

import ft_notebooks.training
from ft_notebooks.training import effective_batch, last_good_checkpoint, plot_history

PARTS = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors")


def checkpoint(run, step, history=()):
    folder = run / f"checkpoint-{step}"
    folder.mkdir()
    for name in PARTS:
        (folder / name).touch()
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": list(history)}))
    return folder


def test_the_launchers_world_size_is_taken_into_account(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert effective_batch(16, micro=2) == {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize(("device", "micro"), [("cpu", 4), ("cuda", 8), ("cuda:1", 8), ("mps", 8)])
def test_a_gpu_takes_more_rows_at_a_time_than_a_cpu(monkeypatch, device, micro):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(ft_notebooks.training, "hardware", lambda: SimpleNamespace(device=device))
    fields = effective_batch(16)
    assert fields == {"per_device_train_batch_size": micro, "gradient_accumulation_steps": 16 // micro}


def test_the_rows_at_a_time_are_as_many_as_fit():
    assert effective_batch(12, micro=5, processes=1)["per_device_train_batch_size"] == 4
    assert effective_batch(7, micro=4, processes=1)["per_device_train_batch_size"] == 1
    assert effective_batch(2, micro=8, processes=1)["per_device_train_batch_size"] == 2


@pytest.mark.parametrize("arguments", [(0,), (16.0,), (16, -1), (16, 4, 0), (2, 4, 4)])
def test_impossible_batches_are_refused(arguments):
    with pytest.raises(ValueError, match="effective batch|effective_batch"):
        effective_batch(*arguments)


@pytest.mark.parametrize("torn", ["trainer_state.json", *PARTS])
def test_a_checkpoint_with_one_part_missing_does_not_count(tmp_path, torn):
    checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 2)
    (tmp_path / "checkpoint-final").mkdir()
    # by number: neither the last in the alphabet, nor the last that was written
    assert last_good_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-10" / torn).unlink()
    assert last_good_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


@pytest.mark.parametrize("state", ['{"global_step": 3', '{"global_step": 2}', "{}", ""])
def test_a_half_written_or_foreign_state_does_not_count(tmp_path, state):
    (checkpoint(tmp_path, 3) / "trainer_state.json").write_text(state)
    assert last_good_checkpoint(tmp_path) is None


def test_a_history_without_a_loss_is_an_error():
    with pytest.raises(ValueError, match="nothing was logged"):
        plot_history([{"step": 1, "eval_loss": 1.0}])
    with pytest.raises(ValueError, match="no complete checkpoint"):
        plot_history("nowhere")


HISTORY = [
    {"step": 5, "loss": 3.0, "grad_norm": 0.5},
    {"step": 10, "loss": 2.0, "grad_norm": 0.25},
    {"step": 10, "eval_loss": 2.5},
    {"step": 10, "train_loss": 2.5, "train_runtime": 1.0},
]


def test_the_curve_is_of_what_was_logged():
    fig = plot_history(HISTORY)
    above, below = ([(list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines] for ax in fig.axes)
    assert above == [([5, 10], [3.0, 2.0]), ([10], [2.5])]
    assert below == [([5, 10], [0.5, 0.25])]
    assert [text.get_text() for text in fig.axes[0].get_legend().get_texts()] == ["training", "evaluation"]
    assert all(ax.get_ylim()[0] == 0 for ax in fig.axes)  # a curve that starts at its own minimum looks like success


def test_a_history_without_evaluation_or_norms_is_one_line():
    fig = plot_history([{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}])
    assert [len(ax.lines) for ax in fig.axes] == [1, 0]


def test_the_figure_is_left_to_the_caller_to_show():
    before = plt.get_fignums()
    plot_history(HISTORY)
    assert plt.get_fignums() == before


def test_a_folder_gives_the_history_of_its_last_whole_checkpoint(tmp_path):
    checkpoint(tmp_path, 5, HISTORY[:1])
    (checkpoint(tmp_path, 10, HISTORY) / "optimizer.pt").unlink()
    assert [list(line.get_ydata()) for line in plot_history(tmp_path).axes[0].lines] == [[3.0]]
