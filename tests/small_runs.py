"Trainings of a second, for the tests of what a run writes and shows."

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist
from datasets import Dataset
from matplotlib.backends.backend_agg import FigureCanvasAgg
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import CallbackHandler
from trl import SFTConfig

from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.tokenization.padding import IGNORE, pad_batch

ROUNDED = (
    1e-4  # of a loss in float32: rounding moves a mean of 300 tokens by u·√300·6 = 6e-6, a row more or less by 1e-2
)


def only_rounded(far: torch.Tensor, most: float, near: float = 1e-5) -> bool:
    """Whether weights that are so `far` apart after the same steps of AdamW differ by rounding alone.

    AdamW divides a gradient by its own size. Where rounding decides the sign of a gradient, the weight goes the other
    way: one in a thousand may be off by all that the steps can do, `most` (twice the rate for each). The others keep to
    `near`. With other rows, or a step less, a third of the weights or more differ by over a tenth of the rate.
    """
    return (far > near).float().mean().item() <= 1e-3 and far.max().item() <= most


TEXTS = ["a", "be", "cat", "dove", "eagle", "ferret and fox", "goose", "a hedgehog crosses the road"]
CHATS = [[{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}] for text in ("hello", "bye")]


def title_gaps(fig) -> list[tuple[float, float]]:
    "For each title with axes above it: the pixels down to its own axes, and up to the lowest mark of those above"
    canvas, gaps = FigureCanvasAgg(fig), []
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = [(ax, ax.title.get_window_extent(renderer), ax.get_window_extent(renderer)) for ax in fig.axes]
    for ax, title, own in boxes:
        over = [(other, box) for other, _, box in boxes if box.y0 > own.y1 and box.x0 < own.x1 and own.x0 < box.x1]
        if ax.get_title() and over:
            bottom = min((other.xaxis.get_tightbbox(renderer) or box).y0 for other, box in over)
            gaps.append((float(title.y0 - own.y1), float(bottom - title.y1)))
    return gaps


def chat(user, *more):
    roles = ["user", "assistant"] * len(more)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, (user, *more))]}


TALKS = Dataset.from_list([chat("hi", "yo"), chat("count", "one two three four five"), chat("a", "b", "c", "d e f")])


def rows():
    tok = tiny_tokenizer()
    ids = [tok(text + "<|im_end|>").input_ids for text in TEXTS]
    return [{"input_ids": i, "labels": [IGNORE, *i[1:]]} for i in ids]


def arguments(folder, **settings):
    fixed = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "eval_strategy": "steps", "eval_steps": 3}
    fields = fixed | {"max_steps": 9, "logging_steps": 1, "save_steps": 3, "learning_rate": 3e-3} | settings
    return TrainingArguments(
        folder, per_device_train_batch_size=2, include_num_input_tokens_seen="non_padding", **fields
    )


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


def forked(function):  # what a process that has already imported everything ends with
    if (child := os.fork()) == 0:
        try:
            function()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(step, function):
    "What the run that `function` starts ends with, in a process that is killed at the beginning of a step."
    begin = CallbackHandler.on_step_begin

    def killed(self, args, state, control):
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return begin(self, args, state, control)

    def child():
        CallbackHandler.on_step_begin = killed
        function()

    return forked(child)


class DiesAt(TrainerCallback):
    "Ends the process at the end of a step."

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os._exit(9)


class InterruptedAt(DiesAt):
    "Ctrl-C at the end of a step."

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def several(*functions):  # at once, each in a process of its own; what they return, or the text of their ValueError
    def child(function, file):
        try:
            said = function()
        except ValueError as e:
            said = f"ValueError: {e}"
        file.write(json.dumps(said).encode())
        file.flush()

    children = []
    for function in functions:
        reading, writing = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(reading)
            try:
                child(function, os.fdopen(writing, "wb"))
            finally:
                os._exit(0)
        os.close(writing)
        children.append((pid, reading))
    said = []
    for pid, reading in children:
        text = os.fdopen(reading, "rb").read()
        said.append(json.loads(text) if text else None)
        os.waitpid(pid, 0)
    return said


def ranks(tmp_path, *functions):  # the same, in one group of processes
    def joined(rank, function):
        def run():
            dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=rank, world_size=len(functions))
            return function()

        return run

    return several(*(joined(rank, function) for rank, function in enumerate(functions)))


TOK = tiny_tokenizer()
ROWS = encode_chats(TOK, appointments(16))[0]
QUIET = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "gradient_checkpointing": False}


def on_notes():
    return add_adapter(tiny_model(), lora_config(tiny_model(), r=4, lora_dropout=0.1))


def sft(folder, model=None, rows=ROWS, *, kind, callbacks=(), **fields):
    "Sixteen rows of the built-in task, four a step: four steps are an epoch; `kind` is a subclass of `SFTTrainer`."
    batch = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    args = SFTConfig(str(folder), **(QUIET | batch | {"max_steps": 8, "learning_rate": 1e-2} | fields))
    return kind(model or on_notes(), args, train_dataset=rows, processing_class=TOK, callbacks=list(callbacks))


def train(trainer, **arguments):
    with contextlib.redirect_stdout(None):
        trainer.train(**arguments)
    return trainer


HANGS = 900  # seconds after which a process hangs: nothing that works takes as long, however busy the machine is


def ended(pids, seconds=HANGS):
    "The exit codes, negative for a signal; processes that take longer are killed."
    codes, deadline = {}, time.monotonic() + seconds
    while len(codes) < len(pids):
        for pid in [pid for pid in pids if pid not in codes]:
            if (found := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(found[1])
            elif time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[pid] for pid in pids]
