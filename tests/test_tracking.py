"Edges of `ft_notebooks.tracking`: kills, ranks, real kernels, and trackers where they are installed."

import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from ft_notebooks import tracking
from ft_notebooks.generation import generate
from ft_notebooks.lora import add_adapter, lora_config
from ft_notebooks.models import tiny_model, tiny_tokenizer
from ft_notebooks.resume import mark_checkpoint
from ft_notebooks.tokenizer import IGNORE, pad_batch
from ft_notebooks.tracking import (
    LiveCurve,
    LossBar,
    MetricsCallback,
    SamplesCallback,
    check_checkpoint_choice,
    check_trackers,
    plot_history,
    show_samples,
    watch,
)

TEXTS = ["a", "be", "cat", "dove", "eagle", "ferret and fox", "goose", "a hedgehog crosses the road"]
CHATS = [[{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}] for text in ("hello", "bye")]


def rows():
    tok = tiny_tokenizer()
    ids = [tok(text + "<|im_end|>").input_ids for text in TEXTS]
    return [{"input_ids": i, "labels": [IGNORE, *i[1:]]} for i in ids]


def arguments(folder, **settings):
    fixed = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "eval_strategy": "steps", "eval_steps": 3}
    fields = fixed | {"max_steps": 9, "logging_steps": 1, "save_steps": 3, "learning_rate": 3e-3} | settings
    return TrainingArguments(folder, per_device_train_batch_size=2, include_num_input_tokens_seen="non_padding", **fields)


def trainer(folder, *callbacks, model=None, compute_metrics=None, **settings):
    data = {"train_dataset": rows()[:7], "eval_dataset": rows()[7:], "data_collator": lambda batch: pad_batch(batch, 0)}
    if compute_metrics:
        data["compute_metrics"] = compute_metrics
    return Trainer(model or tiny_model(), arguments(folder, **settings), callbacks=list(callbacks), **data)


def adapted():
    return add_adapter(tiny_model(), lora_config(tiny_model(), lora_dropout=0.3))


def lines(file):
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def timeless(entries):
    return [{k: v for k, v in e.items() if not k.endswith(("_per_second", "_runtime"))} for e in entries]


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


# ---- curves


@pytest.mark.parametrize(
    ("written", "whole"),
    [(b"", []), (b'{"a": 1}\n', [{"a": 1}]), (b'{"a": 1}\n{"a": 2', [{"a": 1}]), (b'{"a": "\xc3', []), (b"{", [])],
)
def test_a_last_line_that_is_torn_anywhere_does_not_count(tmp_path, written, whole):
    (tmp_path / "lines").write_bytes(written)
    assert tracking._lines(tmp_path / "lines") == whole


def test_a_file_that_is_torn_elsewhere_is_an_error(tmp_path):
    (tmp_path / "lines").write_text('{"a": \n{"a": 2}\n')
    with pytest.raises(ValueError):
        tracking._lines(tmp_path / "lines")


HISTORY = [
    {"step": 5, "loss": 3.0, "grad_norm": 0.5},
    {"step": 10, "loss": 2.0, "grad_norm": 0.25},
    {"step": 10, "eval_loss": 2.5},
    {"step": 10, "train_loss": 2.5, "train_runtime": 1.0},
]


def drawn(fig):
    return {ax.get_title() or "loss": [(list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines] for ax in fig.axes}


def test_the_curve_is_of_what_was_logged():
    fig = plot_history(HISTORY)
    assert drawn(fig) == {"loss": [([5, 10], [3.0, 2.0]), ([10], [2.5])], "gradient norm": [([5, 10], [0.5, 0.25])]}
    assert [text.get_text() for text in fig.axes[0].get_legend().get_texts()] == ["training", "evaluation"]
    assert all(ax.get_ylim()[0] == 0 for ax in fig.axes)  # a curve that starts at its own minimum looks like success


@pytest.mark.parametrize("names", [[], ["grad_norm"], ["learning_rate", "tokens_per_second", "entropy"], [*tracking._PANELS]])
def test_each_number_that_was_logged_has_one_panel(names):
    fig = plot_history([{"step": n, "loss": 1.0, **{name: n + i for i, name in enumerate(names)}} for n in (1, 2)])
    panels = {tracking._PANELS[name][0]: [([1, 2], [1 + i, 2 + i])] for i, name in enumerate(names)}
    assert drawn(fig) == {"loss": [([1, 2], [1.0, 1.0])], **panels}


def test_several_evaluation_sets_are_several_curves():
    fig = plot_history([{"step": 1, "loss": 3.0}, {"step": 1, "eval_a_loss": 2.0}, {"step": 1, "eval_b_loss": 1.0}])
    legend = [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
    assert drawn(fig)["loss"][1:] == [([1], [2.0]), ([1], [1.0])] and legend == ["training", "evaluation a", "evaluation b"]


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
    (tmp_path / "metrics.jsonl").write_text(tracking._text([{"step": n, "loss": 1.0} for n in range(5)]) + '{"st')
    assert len(drawn(plot_history(tmp_path))["loss"][0][0]) == 5


# ---- metrics.jsonl


class Die(TrainerCallback):
    "SIGKILL at the end of a step; or in the middle of the line that the step writes"

    def __init__(self, step, torn):
        self.step, self.torn = step, torn

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and not self.torn:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_log(self, args, state, control, **kwargs):
        if state.global_step == self.step and self.torn:
            file = Path(args.output_dir) / "metrics.jsonl"
            file.write_bytes(file.read_bytes()[:-9])
            os.kill(os.getpid(), signal.SIGKILL)


def forked(function):  # what a process that has already imported everything ends with
    if (child := os.fork()) == 0:
        try:
            function()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    done = trainer(folder, MetricsCallback(), SamplesCallback(tiny_tokenizer(), CHATS, 4), model=adapted())
    done.train()
    return folder, done


@pytest.mark.parametrize(("step", "torn"), [(1, False), (2, True), (4, True), (5, False), (9, True)])
def test_a_run_killed_anywhere_and_resumed_ends_with_the_files_of_the_run_that_went_through(tmp_path, whole, step, torn):
    def run(*callbacks):
        return trainer(tmp_path, MetricsCallback(), SamplesCallback(tiny_tokenizer(), CHATS, 4), *callbacks, model=adapted())

    assert forked(lambda: run(Die(step, torn)).train()) == -signal.SIGKILL
    written = len(tracking._lines(tmp_path / "metrics.jsonl"))
    at = (step - 1) // 3 * 3  # the last checkpoint
    assert written >= step - 1 + (step - 1) // 3  # more than the checkpoint holds
    again = run()
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}") if at else None)
    folder, done = whole
    assert timeless(lines(tmp_path / "metrics.jsonl")) == timeless(lines(folder / "metrics.jsonl"))
    assert (tmp_path / "samples.jsonl").read_bytes() == (folder / "samples.jsonl").read_bytes()
    assert torch.equal(weights(again), weights(done))


def test_the_file_is_the_history_but_for_the_summary(whole):
    folder, done = whole
    assert lines(folder / "metrics.jsonl") == done.state.log_history[:-1]
    assert all(entry["tokens_per_second"] > 0 for entry in done.state.log_history if "loss" in entry)
    assert [entry["step"] for entry in lines(folder / "metrics.jsonl")] == [1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9]


def test_what_is_logged_before_and_after_a_run_is_no_part_of_it(tmp_path):
    run = trainer(tmp_path, MetricsCallback(), save_strategy="no", max_steps=3)
    run.evaluate()
    assert not (tmp_path / "metrics.jsonl").exists()
    run.train()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    run.evaluate()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before and len(before.splitlines()) == 4
    run.train()  # a new run
    assert len((tmp_path / "metrics.jsonl").read_bytes().splitlines()) == 4


def test_numpy_numbers_and_letters_of_all_kinds_are_written(tmp_path):
    found = {"accuracy": np.float32(0.5), "right": np.int64(3)}
    trainer(tmp_path, MetricsCallback(), compute_metrics=lambda _: found, save_strategy="no", max_steps=3).train()
    entry = lines(tmp_path / "metrics.jsonl")[-1]
    assert (entry["eval_accuracy"], entry["eval_right"]) == (0.5, 3)
    assert tracking._text([{"answer": "naïve 🙂\n"}]) == '{"answer": "naïve 🙂\\n"}\n'


@pytest.mark.parametrize("counting", ["no", "all"])
def test_without_a_count_of_real_tokens_no_speed_is_claimed(tmp_path, counting):
    run = trainer(tmp_path, MetricsCallback(), save_strategy="no", max_steps=2)
    run.args.include_num_input_tokens_seen = counting
    run.train()
    assert not any("tokens_per_second" in entry for entry in run.state.log_history)


@pytest.mark.parametrize("settings", [{}, {"padding_free": True, "max_length": None, "pad_to_multiple_of": 64}, {"packing": True, "max_length": 64}])
def test_tokens_are_counted_without_padding_however_rows_are_batched(tmp_path, settings):
    from datasets import Dataset

    fixed = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    args = SFTConfig(tmp_path, per_device_train_batch_size=8, num_train_epochs=1, logging_steps=1, **fixed, **settings)
    run = SFTTrainer(tiny_model(), args, train_dataset=Dataset.from_list(rows()), processing_class=tiny_tokenizer())
    watch(run).train()
    entry = lines(tmp_path / "metrics.jsonl")[-1]
    assert entry["num_input_tokens_seen"] == entry["num_tokens"] == sum(len(row["input_ids"]) for row in rows())
    assert entry["tokens_per_second"] > 0


def test_a_log_after_the_save_of_an_epoch_s_last_step_has_the_speed_of_the_epoch(tmp_path):
    settings = {"logging_strategy": "epoch", "save_steps": 4, "eval_strategy": "no", "max_steps": -1, "num_train_epochs": 2}
    run = trainer(tmp_path, MetricsCallback(), **settings)
    run.train()
    assert [entry["step"] for entry in lines(tmp_path / "metrics.jsonl") if entry["tokens_per_second"] > 0] == [4, 8]


def test_only_the_first_process_writes_and_all_of_them_speak(tmp_path):
    state, control = TrainerState(is_world_process_zero=False, max_steps=3), TrainerControl()
    args, model = arguments(tmp_path), tiny_model()
    samples, metrics = SamplesCallback(tiny_tokenizer(), CHATS, 2), MetricsCallback()
    for callback in (samples, metrics, LossBar(), LiveCurve()):
        callback.on_train_begin(args, state, control, model=model)
        state.log_history = [{"loss": 1.0, "step": 0}]
        callback.on_log(args, state, control, logs={"loss": 1.0})
        callback.on_train_end(args, state, control, model=model)
    assert samples.steps == {0} and not list(tmp_path.iterdir())  # sharded weights need every process to generate


# ---- samples


class Noisy(TrainerCallback):
    "A model that draws random numbers in evaluation mode too"

    def on_init_end(self, args, state, control, model, **kwargs):
        def draw(module, args):
            torch.rand(1)

        model.get_base_model().register_forward_pre_hook(draw)  # which `generate` calls too


def test_listening_moves_no_random_state_even_where_a_forward_draws_from_it(tmp_path):
    runs = []
    for callbacks in ([], [SamplesCallback(tiny_tokenizer(), CHATS, 4)]):
        run = trainer(tmp_path / str(len(runs)), Noisy(), *callbacks, model=adapted(), save_strategy="no")
        run.train()
        runs.append(run)
    assert torch.equal(weights(runs[0]), weights(runs[1]))


@pytest.mark.parametrize("training", [True, False])
def test_listening_leaves_the_mode_and_the_settings_as_they_were(tmp_path, training):
    model = tiny_model().train(training)
    before = model.config.to_dict(), model.generation_config.to_dict(), torch.get_rng_state()
    samples, state = SamplesCallback(tiny_tokenizer(), CHATS, 2), TrainerState()
    samples.on_train_begin(arguments(tmp_path), state, TrainerControl(), model=model)
    assert all(module.training == training for module in model.modules())
    assert before[:2] == (model.config.to_dict(), model.generation_config.to_dict())
    assert torch.equal(before[2], torch.get_rng_state()) and all(p.grad is None for p in model.parameters())


def test_the_last_sample_is_of_the_model_that_is_left(tmp_path):
    tok, settings = tiny_tokenizer(), {"max_steps": 30, "eval_steps": 4, "save_steps": 4, "load_best_model_at_end": True}
    run = trainer(tmp_path, SamplesCallback(tok, CHATS, 4), learning_rate=1e-2, **settings | {"max_steps": 30})
    run.train()
    best = run.state.best_global_step
    heard = lines(tmp_path / "samples.jsonl")
    assert 0 < best < 28 and [line["step"] for line in heard] == [n for n in (0, 4, 8, 12, 16, 20, 24, 28, 30) for _ in CHATS]
    answers = generate(run.model, tok, [chat[:-1] for chat in CHATS], 4, progress=False)
    assert answers == [line["answer"] for line in heard if line["step"] == best]


def test_a_run_without_evaluation_is_heard_at_its_start_and_end_with_or_without_an_expected_answer(tmp_path):
    chats = [CHATS[0][:1], CHATS[1]]
    trainer(tmp_path, SamplesCallback(tiny_tokenizer(), chats, 2), eval_strategy="no", save_strategy="no", max_steps=2).train()
    found = [(line["step"], line["prompt"], line["expected"]) for line in lines(tmp_path / "samples.jsonl")]
    assert found == [(n, *pair) for n in (0, 2) for pair in (("hello", None), ("bye", "yes"))]


def test_samples_of_a_run_that_died_before_its_first_checkpoint_are_not_kept(tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"step": 0, "prompt": "old", "answer": "", "expected": null}\n{"st')
    trainer(tmp_path, SamplesCallback(tiny_tokenizer(), CHATS, 2), eval_strategy="no", save_strategy="no", max_steps=1).train()
    assert "old" not in (tmp_path / "samples.jsonl").read_text()


def listened(folder, state, **settings):  # the steps in the file after a callback has seen a run begin and end
    samples, args = SamplesCallback(tiny_tokenizer(), CHATS, 2), arguments(folder, **settings)
    for event in (samples.on_train_begin, samples.on_train_end):
        event(args, state, TrainerControl(), model=tiny_model())
    return [line["step"] for line in lines(folder / "samples.jsonl")]


def test_a_resume_drops_what_was_heard_after_its_checkpoint_and_hears_its_own_end(tmp_path):
    old = [{"step": n, "prompt": "p", "answer": "old", "expected": None} for n in (0, 4, 8)]
    (tmp_path / "samples.jsonl").write_text(tracking._text(old))
    assert listened(tmp_path, TrainerState(global_step=5)) == [0, 4, 5, 5]


def test_a_run_stopped_between_evaluations_with_its_best_model_loaded_claims_no_other_step(tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"step": 4, "prompt": "p", "answer": "", "expected": null}\n')
    state = TrainerState(global_step=5, best_global_step=4, best_model_checkpoint="checkpoint-4")
    assert listened(tmp_path, state, load_best_model_at_end=True) == [4]


@pytest.mark.parametrize(("steps", "shown"), [(1, [0]), (2, [0, 90]), (4, [0, 30, 60, 90]), (20, list(range(0, 91, 10)))])
def test_the_first_and_the_last_sample_are_among_those_shown(steps, shown):
    heard = [{"step": n, "prompt": "p", "answer": str(n), "expected": None} for n in range(0, 91, 10)]
    assert [*show_samples(heard, steps).rows[0][2]] == shown


def test_a_folder_without_samples_says_how_to_get_some(tmp_path):
    with pytest.raises(ValueError, match="train with SamplesCallback"):
        show_samples(tmp_path)


def test_a_long_answer_is_cut_where_it_is_shown_and_whole_in_the_file():
    table = show_samples([{"step": 0, "prompt": "p", "answer": "x" * 1000, "expected": None}])
    assert max(map(len, str(table).splitlines())) < 320 and table.rows[0][2][0] == "x" * 1000


# ---- what is seen while it goes


def test_a_bar_shows_a_lone_evaluation_and_closes(tmp_path, capsys):
    run = trainer(tmp_path, LossBar(), save_strategy="no", max_steps=2)
    run.evaluate()
    assert "1/1" in capsys.readouterr().err
    run.train()
    err = capsys.readouterr().err
    assert "2/2" in err and "eval=" in err and "{'loss'" not in err


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
    monkeypatch.setattr(tracking.time, "monotonic", lambda: now[0])
    trainer(tmp_path, Slow(), LiveCurve(), eval_strategy="no", save_strategy="no", max_steps=30).train()
    assert 6 <= len(drawn) <= 8 and [bool(figure.get_suptitle()) for figure in drawn] == [True] * (len(drawn) - 1) + [False]


KERNEL = """
import itertools, types
import ft_notebooks.tracking as tracking
from transformers import Trainer, TrainingArguments
from ft_notebooks.models import tiny_model
rows = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}] * 4
args = TrainingArguments(FOLDER, max_steps=4, logging_steps=1, use_cpu=True, report_to="none", save_strategy="no",
                         eval_strategy="steps", eval_steps=2, disable_tqdm=False)
trainer = tracking.watch(Trainer(tiny_model(), args, train_dataset=rows, eval_dataset=rows))
tracking.LiveCurve.SHARE = 0
tracking.time = types.SimpleNamespace(monotonic=itertools.count(0, 10).__next__)  # ten seconds a look
trainer.train();
"""


def test_in_a_real_kernel_one_picture_changes_and_nothing_else_is_shown(tmp_path):
    manager = pytest.importorskip("jupyter_client.manager")
    kernel, client = manager.start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    seen = []
    try:
        ended = client.execute_interactive(KERNEL.replace("FOLDER", repr(str(tmp_path))), timeout=120, output_hook=seen.append)
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
    assert ended["content"]["status"] == "ok", ended["content"]
    shown = [m for m in seen if m["msg_type"] in ("display_data", "update_display_data", "execute_result")]
    assert [m["msg_type"] for m in shown] == ["display_data"] + ["update_display_data"] * 4
    assert len({m["content"]["transient"]["display_id"] for m in shown}) == 1
    assert all("image/png" in m["content"]["data"] and "text/html" not in m["content"]["data"] for m in shown)
    assert not [m for m in seen if m["msg_type"] == "stream" and m["content"]["name"] == "stdout"]


# ---- the best checkpoint


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_strategy": "epoch", "save_strategy": "epoch"},
        {"eval_steps": 0.2, "save_steps": 0.2},
        {"save_strategy": "best", "save_steps": 7},
        {"eval_steps": 4, "save_steps": 4},
    ],
)
def test_settings_that_keep_the_best_are_let_through(tmp_path, settings):
    check_checkpoint_choice(arguments(tmp_path, load_best_model_at_end=True, **settings), None)


def test_steps_that_differ_are_no_matter_where_the_best_is_not_asked_for(tmp_path):
    check_checkpoint_choice(arguments(tmp_path, eval_steps=2, save_steps=7))


@pytest.mark.parametrize("kind", [EarlyStoppingCallback, type("Mine", (EarlyStoppingCallback,), {})])
def test_every_kind_of_early_stopping_is_seen_as_a_class_and_as_an_object(tmp_path, kind):
    for callback in (kind, kind(3)):
        with pytest.raises(ValueError, match="restore_callback_states_from_checkpoint=True"):
            check_checkpoint_choice(arguments(tmp_path, metric_for_best_model="loss"), [callback])


def test_the_adapter_that_is_left_is_that_of_the_best_checkpoint(tmp_path):
    settings = {"max_steps": 24, "eval_steps": 4, "save_steps": 4, "load_best_model_at_end": True, "learning_rate": 3e-2}
    run = trainer(tmp_path, model=adapted(), **settings)
    check_checkpoint_choice(run.args)
    run.train()
    best = load_file(Path(run.state.best_model_checkpoint) / "adapter_model.safetensors")
    own = {name.replace(".default", ""): p for name, p in run.model.named_parameters() if "lora_" in name}
    assert run.state.best_global_step < 24 and own.keys() == best.keys()
    assert all(torch.equal(p, best[name]) for name, p in own.items())


# ---- trackers


@pytest.mark.parametrize("name", ["trackio", "tensorboard", "wandb"])
def test_a_tracker_is_let_through_where_it_is_and_its_install_line_given_where_it_is_not(name):
    if importlib.util.find_spec(name):
        check_trackers([name])
    else:
        with pytest.raises(ValueError, match=rf"report_to='{name}'.* pip install 'ft_notebooks\[track\]'"):
            check_trackers(name)


def test_a_tracker_of_another_extra_has_an_install_line_of_its_own(monkeypatch):
    monkeypatch.setattr(tracking, "get_available_reporting_integrations", list)
    with pytest.raises(ValueError, match="pip install mlflow$"):
        check_trackers(["mlflow"])


TRACK = """
import sys, json
sys.path[:0] = sys.argv[3:]
from test_tracking import trainer, watch
run = watch(trainer(sys.argv[2], report_to=[sys.argv[1]], run_name="mine", project="project", save_strategy="no"))
run.train()
"""


def tracked(name, tmp_path, **env):
    pytest.importorskip(name)
    home = {"HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **env}
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    cmd = [sys.executable, "-c", TRACK, name, str(tmp_path / "run"), *paths]
    run = subprocess.run(cmd, cwd=tmp_path, env={**os.environ, **home}, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-4000:]
    entries = lines(tmp_path / "run" / "metrics.jsonl")
    return {key: [(e["step"], e[key]) for e in entries if key in e] for key in ("loss", "eval_loss", "tokens_per_second")}


def as_logged(found, wanted):
    for key, name in (("loss", "train/loss"), ("eval_loss", "eval/loss"), ("tokens_per_second", "train/tokens_per_second")):
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
        logged = [json.loads(text) for (text,) in db.execute("select metrics from metrics where run_name = 'mine' order by id")]
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
