"""What holds a task while a preference is learned: DPO after the demo's SFT, with and without an NLL term, at several
rates.

Scores on the validation part of the built-in task: 50 notes of held-out words, and 50 of held-out words and phrases.
"""

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path

import transformers

from ft_notebooks.cli.settings import read_settings
from ft_notebooks.course.demo_task import DEMO, DEMO_DPO, FORM, demo_pairs
from ft_notebooks.course.example_task import appointments
from ft_notebooks.dpo.over_optimization import CollapseCallback
from ft_notebooks.dpo.trainer import dpo_trainer
from ft_notebooks.evaluation.answer_format import key_order
from ft_notebooks.evaluation.metrics import exact_match
from ft_notebooks.evaluation.runner import evaluate
from ft_notebooks.lora.adapter import load_adapter
from ft_notebooks.runs.pipeline import train_run
from ft_notebooks.tokenization.padding import load_tokenizer

ANCHORED = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]}


def scores(model, tok) -> list[str]:
    found = []
    for new in (False, True):
        notes = appointments(50, part="validation", new_phrases=new)
        said = evaluate(model, tok, notes, {"right": exact_match, "form": key_order(*FORM)}, 40, 50).scores
        found += [f"{said[name]['value']:.2f}" for name in ("right", "form")]
    return found


def run(sft: Path, tok, seed: int, rate: float, anchored: bool) -> list[str]:
    model, folder = load_adapter(sft, 16, trainable=True), tempfile.mkdtemp()
    given = {key: value for key, value in DEMO_DPO.items() if key not in ("loss_type", "loss_weights", "save_steps")}
    given |= {
        "learning_rate": rate,
        "seed": seed,
        "logging_steps": 1,
        "save_strategy": "no",
        **(ANCHORED if anchored else {}),
    }
    rows = demo_pairs(96, 100 + seed)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = dpo_trainer(model, tok, rows, output_dir=folder, callbacks=[], **given)
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, CollapseCallback):
            callback.stop, callback.every = False, 12
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    looks = [json.loads(line) for line in Path(folder, "collapse.jsonl").read_text().splitlines()]
    model.delete_adapter("ref")
    return [
        f"{losses[0]:.2f} to {losses[-1]:.2f}",
        f"{looks[-1]['stop_rate']:.2f}",
        f"{looks[-1]['kl']:.2f}",
        *scores(model, tok),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 2e-4, 5e-4])
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    sft = Path(tempfile.mkdtemp()) / "sft"
    settings = {**read_settings(), "sft": {**DEMO, "seed": args.seed}}
    with contextlib.redirect_stdout(io.StringIO()):
        train_run(appointments(128, seed=args.seed), None, settings, sft)
    tok = load_tokenizer(str(sft))
    print(
        "| loss | rate | loss, first to last | stop rate | KL, nats a token | right | form | right, new phrases | form "
        "|"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    print(
        "|", " | ".join(["none: after SFT", "–", "–", "–", "–", *scores(load_adapter(sft, 16), tok)]), "|", flush=True
    )
    for rate in args.rates:
        for anchored in (False, True):
            name = "sigmoid + sft" if anchored else "sigmoid"
            print("|", " | ".join([name, f"{rate:.0e}", *run(sft, tok, args.seed, rate, anchored)]), "|", flush=True)
