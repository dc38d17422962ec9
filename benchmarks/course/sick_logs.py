"""Training logs of healthy and sick runs: which faults a log shows, and which look healthy until one reads an answer.

Each point is one run of LoRA (r=16) on SmolLM2-135M-Instruct with one thing wrong, and `sft_trainer`'s defaults
otherwise. What is evaluated during the run is labelled as the run's own rows are, as it would be in a project that has
the fault. Afterwards each run gets the same honest examination: the loss of the right tokens, and generated answers.
"""

import gc
import math
import tempfile

import torch
from common import measure, score

from ft_notebooks import (
    add_adapter,
    appointments,
    evaluate,
    load_model,
    load_tokenizer,
    lora_config,
    perplexity,
    sft_trainer,
    smollm2,
)
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.tokenization.padding import IGNORE
from ft_notebooks.training.nan_guard import BadStep, NaNGuard

RUNS = {  # what differs from the healthy run
    "healthy": {},
    "too hot": {"learning_rate": 2e-2},
    "too cold": {"learning_rate": 1e-5},
    "16 notes, 10 epochs": {"notes": 16, "effective_batch": 4, "max_steps": 40, "learning_rate": 3e-3},
    "labels on all tokens": {"labels": "all"},
    "labels on the user's tokens": {"labels": "prompt"},
    "labels shifted twice": {"labels": "shifted"},
    "NaN": {"learning_rate": 1e-1, "float16": True, "guard": False},
    "NaN, with the guard": {"learning_rate": 1e-1, "float16": True},
}
SETTINGS = {
    "model": "SmolLM2-135M-Instruct, bfloat16 weights, a LoRA adapter with r=16",
    "healthy": {"notes": 128, "max_steps": 8, "effective_batch": 16, "learning_rate": 1e-3, "labels": "answers"},
    "schedule": "linear to 0, no warm-up",
    "runs": RUNS,
    "eval_loss": "24 notes of appointments(part='validation'), labelled as the run's rows",
    "validation_loss": "the same 24 notes, labelled on their answers: the mean loss a token, in nats",
    "exact_match": "30 notes of appointments(part='test'), generated greedily, 95 % Wilson interval",
    "answer": "to the first of them",
    "float16": "the output of each layer is rounded to float16 and back, so that what exceeds 65,504 becomes infinite",
}


def labelled(tok, chats, way: str):
    "The encoded chats, with labels on the answers, on everything, on everything but the answers, or one place early."
    rows, _ = encode_chats(tok, chats)

    def relabel(row):
        ids, labels = row["input_ids"], row["labels"]
        if way == "all":
            labels = ids
        if way == "prompt":
            labels = [i if label == IGNORE else IGNORE for i, label in zip(ids, labels)]
        if way == "shifted":  # the model shifts them too, so each token is to predict the next but one
            labels = labels[1:] + [IGNORE]
        return {"labels": labels}

    return rows if way == "answers" else rows.map(relabel)


def float16_range(model) -> None:
    "What float16 does to a model on a GPU: a hidden state beyond 65,504 is infinite."
    for layer in model.get_base_model().model.layers:
        layer.register_forward_hook(lambda module, given, out: out.half().to(out.dtype))


def history(trainer) -> list[dict]:
    "One entry a step: its training loss, gradient norm and rate, and the evaluation loss where there is one."
    names, steps = {"loss": 5, "grad_norm": 4, "learning_rate": 8, "eval_loss": 5}, {}
    for entry in trainer.state.log_history:
        kept = {name: round(entry[name], digits) for name, digits in names.items() if name in entry}
        kept = {name: value if math.isfinite(value) else str(value) for name, value in kept.items()}
        if kept:
            steps.setdefault(entry["step"], {"step": entry["step"]}).update(kept)
    return list(steps.values())


def examined(model, tok, quick) -> dict:
    "The loss of the right tokens, exact match, and the first answer; None where the model computes NaN."
    try:
        loss = math.log(perplexity(model, tok, appointments(24, part="validation")))
    except ValueError:
        return {"validation_loss": None, "exact_match": None, "answer": None}
    test = appointments(4 if quick else 30, part="test")
    found = evaluate(model, tok, test, ["exact_match"], max_new_tokens=40, batch_size=30)
    asked, said = found.rows[0]["prompt"][-1]["content"], found.rows[0]["generated"]
    return {
        "validation_loss": round(loss, 5), **score(found.scores["exact_match"], "exact_match"),
        "note": asked, "answer": said,
    }  # fmt: skip


def run(point: dict, quick: bool) -> dict:
    gc.collect()
    given = {**SETTINGS["healthy"], **RUNS[point["run"]]}
    seed, steps = point["seed"], 2 if quick else given["max_steps"]
    tok, model = load_tokenizer(smollm2()), load_model(smollm2())
    model = add_adapter(model, lora_config(model, r=16), seed=seed)
    if given.get("float16"):
        float16_range(model)
    rows = labelled(tok, appointments(given["notes"], seed=seed), given["labels"])
    held_out = labelled(tok, appointments(24, part="validation"), given["labels"])
    stopped = None
    with tempfile.TemporaryDirectory() as folder:
        trainer = sft_trainer(
            model, tok, rows, held_out, output_dir=folder, learning_rate=given["learning_rate"], max_steps=steps,
            effective_batch=given["effective_batch"], seed=seed, save_strategy="no", eval_strategy="steps",
            eval_steps=max(2, steps // 8), per_device_eval_batch_size=8,
        )  # fmt: skip
        if given.get("guard") is False:
            trainer.remove_callback(NaNGuard)
        try:
            trainer.train()
        except BadStep as error:
            stopped = str(error).replace(folder, "runs/sft")
    return {"stopped": stopped, **examined(model, tok, quick), "log": history(trainer)}


def points() -> list[dict]:
    return [{"run": name, "seed": 0} for name in RUNS]


if __name__ == "__main__":
    torch.set_float32_matmul_precision("medium")  # on a CPU without AMX: oneDNN's float32, twice as fast, as exact
    measure(__file__, points(), run, SETTINGS, __doc__)
