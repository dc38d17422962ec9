"""Edges of `ft_notebooks.training.progress_and_plots`: curves, bars, a real kernel, and trackers where they are
installed.
"""

import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from small_runs import HANGS, arguments, lines, title_gaps, trainer
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.integrations import TensorBoardCallback

from ft_notebooks.checkpointing.integrity import mark_checkpoint
from ft_notebooks.checkpointing.metrics_log import entries_text
from ft_notebooks.loading.example_models import tiny_model
from ft_notebooks.training import progress_and_plots
from ft_notebooks.training.progress_and_plots import _LiveCurve, _LossBar, check_trackers, plot_history, watch

# ---- curves


HISTORY = [
    {"step": 5, "loss": 3.0, "grad_norm": 0.5},
    {"step": 10, "loss": 2.0, "grad_norm": 0.25},
    {"step": 10, "eval_loss": 2.5},
    {"step": 10, "train_loss": 2.5, "train_runtime": 1.0},
]


def drawn(fig):
    return {
        ax.get_title() or "loss": [(list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines]
        for ax in fig.axes
    }


def test_the_curve_is_of_what_was_logged():
    fig = plot_history(HISTORY)
    assert drawn(fig) == {"loss": [([5, 10], [3.0, 2.0]), ([10], [2.5])], "gradient norm": [([5, 10], [0.5, 0.25])]}
    assert [text.get_text() for text in fig.axes[0].get_legend().get_texts()] == ["training", "evaluation"]
    assert all(ax.get_ylim()[0] == 0 for ax in fig.axes)  # a curve that starts at its own minimum looks like success


@pytest.mark.parametrize(
    "names", [[], ["grad_norm"], ["learning_rate", "tokens_per_second", "entropy"], [*progress_and_plots._PANELS]]
)
def test_each_number_that_was_logged_has_one_panel(names):
    fig = plot_history([{"step": n, "loss": 1.0, **{name: n + i for i, name in enumerate(names)}} for n in (1, 2)])
    panels = {progress_and_plots._PANELS[name][0]: [([1, 2], [1 + i, 2 + i])] for i, name in enumerate(names)}
    assert drawn(fig) == {"loss": [([1, 2], [1.0, 1.0])], **panels}


@pytest.mark.parametrize("rate", [2e-3, 2e-5])  # the second writes its power of ten above the axes
def test_the_title_of_a_panel_is_nearer_to_it_than_to_the_panel_above(rate):
    values = {"learning_rate": rate, "grad_norm": 7.5, "tokens_per_second": 12345.0, "entropy": 2.5}
    gaps = title_gaps(plot_history([{"step": n, "loss": 5.0 / n, **values} for n in range(1, 13)]))
    assert len(gaps) == 4 and all(0 < own < above / 2 for own, above in gaps), gaps


def test_several_evaluation_sets_are_several_curves():
    fig = plot_history([{"step": 1, "loss": 3.0}, {"step": 1, "eval_a_loss": 2.0}, {"step": 1, "eval_b_loss": 1.0}])
    legend = [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
    assert drawn(fig)["loss"][1:] == [([1], [2.0]), ([1], [1.0])] and legend == [
        "training",
        "evaluation a",
        "evaluation b",
    ]


def test_marks_are_drawn_where_they_are_and_named_once():
    fig = plot_history(HISTORY, marks=(5, 7))
    assert [line.get_xdata()[0] for line in fig.axes[0].lines[2:]] == [5, 7]
    assert [text.get_text() for text in fig.axes[0].get_legend().get_texts()][2:] == ["marked"]


def test_a_loss_of_nan_leaves_a_gap_and_is_no_error():
    plot_history([{"step": n, "loss": value} for n, value in enumerate([3.0, float("nan"), 2.0])]).canvas.draw()


def test_one_point_can_be_seen():
    assert plot_history([{"step": 1, "loss": 3.0}]).axes[0].lines[0].get_marker() == "o"


def test_the_figure_is_left_to_the_caller_to_show():
    before = plt.get_fignums()
    plot_history(HISTORY)
    assert plt.get_fignums() == before


def test_a_history_without_a_loss_or_without_a_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing was logged"):
        plot_history([{"step": 1, "eval_loss": 1.0}])
    with pytest.raises(ValueError, match="no metrics.jsonl and no complete checkpoint"):
        plot_history(tmp_path / "nowhere")


def test_a_folder_s_lines_go_further_than_its_last_checkpoint_and_count_first(tmp_path):
    trainer(tmp_path, max_steps=3, eval_strategy="no").train()
    mark_checkpoint(tmp_path / "checkpoint-3", 3)
    assert len(drawn(plot_history(tmp_path))["loss"][0][0]) == 3
    (tmp_path / "metrics.jsonl").write_text(entries_text([{"step": n, "loss": 1.0} for n in range(5)]) + '{"st')
    assert len(drawn(plot_history(tmp_path))["loss"][0][0]) == 5


# ---- what is seen while it goes


def test_a_bar_shows_a_lone_evaluation_and_closes(tmp_path, capsys):
    run = trainer(tmp_path, _LossBar(), save_strategy="no", max_steps=2)
    run.evaluate()
    assert "1/1" in capsys.readouterr().err
    run.train()
    err = capsys.readouterr().err
    assert "2/2" in err and "eval=" in err and "{'loss'" not in err


def test_a_bar_that_resumes_begins_there_and_says_when_it_evaluates(tmp_path):
    bar, args, control = _LossBar(), arguments(tmp_path), TrainerControl()
    state = TrainerState(global_step=6, max_steps=9)
    bar.on_train_begin(args, state, control)
    assert (bar.training_bar.initial, bar.training_bar.n, bar.training_bar.total) == (6, 6, 9)
    bar.on_prediction_step(args, state, control)
    assert bar.training_bar.desc == "evaluating: "
    bar.on_log(args, state, control, logs={"eval_loss": 1.5, "eval_runtime": 3.0})
    assert bar.training_bar.desc == "" and bar.training_bar.postfix == "eval=1.5"
    state.global_step = 7
    bar.on_step_end(args, state, control)
    assert bar.training_bar.n == 7
    bar.on_train_end(args, state, control)
    assert bar.training_bar is None


def test_other_processes_show_nothing(tmp_path, capsys):
    state, control = TrainerState(is_world_process_zero=False, max_steps=3), TrainerControl()
    args, model = arguments(tmp_path), tiny_model()
    for callback in (_LossBar(), _LiveCurve()):
        callback.on_train_begin(args, state, control, model=model)
        state.log_history = [{"loss": 1.0, "step": 0}]
        callback.on_log(args, state, control, logs={"loss": 1.0})
        callback.on_train_end(args, state, control, model=model)
    assert "".join(capsys.readouterr()) == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("before", "after"), [("no", "non_padding"), ("non_padding", "non_padding"), ("all", "all")])
def test_a_run_that_is_watched_counts_unless_it_counts_already(tmp_path, before, after):
    run = trainer(tmp_path)
    run.args.include_num_input_tokens_seen = before
    assert watch(run).args.include_num_input_tokens_seen == after


@pytest.mark.parametrize("given", [None, "elsewhere"])
def test_tensorboard_s_files_go_into_the_folder_of_the_run_unless_a_place_is_given(tmp_path, given):
    class Board(TensorBoardCallback):
        def __init__(self):  # which asks for the package
            self.logging_dir = given

    board, run = Board(), trainer(tmp_path)
    run.callback_handler.callbacks.append(board)
    assert watch(run) is run and board.logging_dir == (given or str(tmp_path / "tensorboard"))


def test_a_tracker_is_given_what_the_metrics_add(tmp_path):
    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            told.append(dict(logs))

    told = []
    watch(trainer(tmp_path, Tracker(), save_strategy="no", max_steps=2, eval_strategy="no")).train()
    assert ["tokens_per_second" in entry for entry in told] == [True, True, False]


@pytest.mark.whole
def test_a_picture_is_not_drawn_more_often_than_its_share_of_the_time(tmp_path, monkeypatch):
    import IPython.display

    now, drawn = [0.0], []

    class Slow(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            now[0] += 1

    def picture(figure, display_id=None):
        drawn.append(figure)
        now[0] += 0.25  # so that the next may come after five seconds
        return type("Handle", (), {"update": staticmethod(picture)})

    monkeypatch.setattr(IPython.display, "display", picture)
    monkeypatch.setattr(progress_and_plots.time, "monotonic", lambda: now[0])
    trainer(tmp_path, Slow(), _LiveCurve(), eval_strategy="no", save_strategy="no", max_steps=30).train()
    assert 6 <= len(drawn) <= 8 and [bool(figure.get_suptitle()) for figure in drawn] == [True] * (len(drawn) - 1) + [
        False
    ]


def test_a_picture_holds_no_time_but_in_its_title_and_the_last_has_none(tmp_path, monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(
        IPython.display, "display", lambda figure, display_id: type("Handle", (), {"update": shown.append})
    )
    curve, args, control = _LiveCurve(), arguments(tmp_path), TrainerControl()
    curve.SHARE, state = 0, TrainerState(global_step=0, max_steps=2)
    curve.on_train_begin(args, state, control)
    for step in (1, 2):
        state.global_step, entry = step, {"step": step, "loss": 1.0, "entropy": 2.0, "tokens_per_second": 3.0}
        state.log_history.append(entry)
        curve.next = 0.0
        curve.on_log(args, state, control, logs=entry)
    curve.on_train_end(args, state, control)
    assert [[ax.get_title() for ax in figure.axes] for figure in shown] == [["", "entropy (nats)"]] * 2
    assert "step 2 of 2, 3 tokens/s" in shown[0].get_suptitle() and shown[1].get_suptitle() == ""
    monkeypatch.setattr(progress_and_plots.time, "monotonic", lambda: 1e12)  # long after the run
    curve.on_log(args, state, control, logs=entry)
    assert len(shown) == 2


# ---- trackers


@pytest.mark.parametrize("name", ["trackio", "tensorboard", "wandb"])
def test_a_tracker_is_let_through_where_it_is_and_its_install_line_given_where_it_is_not(name):
    if importlib.util.find_spec(name):
        check_trackers([name])
    else:
        with pytest.raises(ValueError, match=rf"report_to='{name}'.* pip install 'ft-notebooks\[track\]'"):
            check_trackers(name)


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "mlflow"])
def test_a_missing_tracker_is_refused_wherever_it_stands(monkeypatch, name):
    monkeypatch.setattr(progress_and_plots, "get_available_reporting_integrations", lambda: ["trackio"])
    for report_to in (name, [name], ["trackio", name], [name, "trackio"]):
        with pytest.raises(ValueError, match=f"report_to='{name}': no such tracker is installed"):
            check_trackers(report_to)
    check_trackers(["trackio"]), check_trackers("flyte"), check_trackers("all")


TRACK = """
import sys, json
sys.path[:0] = sys.argv[3:]
from small_runs import trainer
from ft_notebooks.training.progress_and_plots import watch
run = watch(trainer(sys.argv[2], report_to=[sys.argv[1]], run_name="mine", project="project", save_strategy="no"))
run.train()
"""


def tracked(name, tmp_path, **env):
    if not os.environ.get("LEG"):  # which has them all
        pytest.importorskip(name)
    home = {"HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **env}
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    cmd = [sys.executable, "-c", TRACK, name, str(tmp_path / "run"), *paths]
    run = subprocess.run(cmd, cwd=tmp_path, env={**os.environ, **home}, capture_output=True, text=True, timeout=HANGS)
    assert run.returncode == 0, run.stderr[-4000:]
    entries = lines(tmp_path / "run" / "metrics.jsonl")
    return {
        key: [(e["step"], e[key]) for e in entries if key in e] for key in ("loss", "eval_loss", "tokens_per_second")
    }


def as_logged(found, wanted):
    for key, name in (
        ("loss", "train/loss"),
        ("eval_loss", "eval/loss"),
        ("tokens_per_second", "train/tokens_per_second"),
    ):
        assert [step for step, _ in found[name]] == [step for step, _ in wanted[key]]
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in wanted[key]], rel=1e-6)


def by_name(logged):  # [(step, {name: value})] -> {name: [(step, value)]}
    names = {name for _, entry in logged for name in entry}
    return {name: [(step, entry[name]) for step, entry in logged if name in entry] for name in names}


def test_tensorboard_holds_what_was_logged_in_the_folder_of_the_run(tmp_path):
    wanted = tracked("tensorboard", tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    as_logged({name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}, wanted)
    assert not (tmp_path / "run" / "runs").exists()  # the folder named after the clock


def test_trackio_holds_what_was_logged_in_a_file_on_this_machine(tmp_path):
    import sqlite3

    wanted = tracked("trackio", tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    with sqlite3.connect(tmp_path / "trackio" / "project.db") as db:
        logged = [
            json.loads(text)
            for (text,) in db.execute("select metrics from metrics where run_name = 'mine' order by id")
        ]
    as_logged(by_name([(entry["train/global_step"], entry) for entry in logged]), wanted)


def wandb_records(path):  # a log of LevelDB: blocks of 32 kB; each part with a checksum, its length and its kind
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        _, size, kind = struct.unpack("<IHB", data[at : at + 7]) if room >= 7 else (0, 0, 0)
        if not kind:
            at += room
            continue
        parts, at = parts + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield Record.FromString(parts)
            parts = b""


def test_wandb_holds_what_was_logged_in_a_folder_for_later(tmp_path):
    wanted = tracked("wandb", tmp_path, WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    history = [record.history for record in wandb_records(file) if record.WhichOneof("record_type") == "history"]
    entries = [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in h.item} for h in history]
    as_logged(by_name([(entry["train/global_step"], entry) for entry in entries]), wanted)


# ---- several runs


def test_runs_in_folders_are_named_by_them_and_one_without_a_loss_is_named(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(entries_text([{"step": n, "loss": 1.0} for n in range(3)]))
    folders = [tmp_path / "a", str(tmp_path / "b")]
    fig = plot_history(folders, marks=[1])
    assert [text.get_text() for text in fig.axes[0].get_legend().get_texts()] == list(map(str, folders))
    assert fig.axes[0].lines[-1].get_xdata()[0] == 1
    with pytest.raises(ValueError, match="^other: nothing was logged"):
        plot_history({"one": folders[0], "other": []})
    with pytest.raises(ValueError, match="draw others apart"):
        plot_history({})
