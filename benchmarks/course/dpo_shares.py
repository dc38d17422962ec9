"""Where does the probability go while DPO trains? Both answers of 16 new pairs, along four runs of dpo_settings.py.

After the steps of `STEPS`: the mean log-probability of each side, and the mean share of the probability that it has. A
pair's two answers are different texts, so its two shares and that of all other texts add up to 1.

    python benchmarks/course/dpo_shares.py                            # all points
    python benchmarks/course/dpo_shares.py --only "rate=0.001 anchor=False"
"""

import tempfile

from common import measure
from dpo_settings import COURSE, held_out
from dpo_settings import SETTINGS as RUNS
from torch import Tensor
from transformers import TrainerCallback

from ft_notebooks import dpo_trainer, load_adapter, load_tokenizer
from ft_notebooks.course.demo_task import course_stage, demo_pairs
from ft_notebooks.data import encode_pairs
from ft_notebooks.dpo import CollapseCallback, pair_logps

STEPS = (0, 1, 2, 3, 4, 6, 8, 12)
SETTINGS = {
    **{name: RUNS[name] for name in ("start", "pairs", "steps", "effective_batch", "schedule", "seed", "anchor")},
    "held_out": "16 pairs of validation notes; chosen, rejected: nats, means over the pairs; chosen_share, "
    "rejected_share: means of the probabilities; after 0 to 12 steps",
}


def line_of(step: int, logps: Tensor) -> dict:  # of `pair_logps`: float [N, 2]
    chosen, rejected = logps.mean(0).tolist()
    chosen_share, rejected_share = logps.exp().mean(0).tolist()
    return {
        "step": step,
        "chosen": round(chosen, 2),
        "rejected": round(rejected, 2),
        "chosen_share": round(chosen_share, 4),
        "rejected_share": round(rejected_share, 4),
    }


class Shares(TrainerCallback):
    "Both answers of each pair, before the first step and after those of `STEPS`."

    def __init__(self, model, rows):
        self.rows = rows
        self.lines = [line_of(0, pair_logps(model, rows))]

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step in STEPS:
            self.lines.append(line_of(state.global_step, pair_logps(model, self.rows)))


def run(point: dict, quick: bool) -> dict:
    tok = load_tokenizer(course_stage("sft", COURSE))
    rows = encode_pairs(tok, held_out(4 if quick else 16))[0]
    model = load_adapter(course_stage("sft", COURSE), trainable=True)
    shares = Shares(model, rows)
    guard = CollapseCallback(tok, rows.select(range(1)), every=10**6, max_new_tokens=40, stop=False)
    loss = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]} if point["anchor"] else {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = dpo_trainer(
            model, tok, demo_pairs(SETTINGS["pairs"], 100), output_dir=folder, beta=0.1, callbacks=[shares, guard],
            learning_rate=point["rate"], max_steps=2 if quick else SETTINGS["steps"], effective_batch=4, seed=0,
            lr_scheduler_type="constant", save_strategy="no", **loss,
        )  # fmt: skip
        trainer.train()
    return {"looks": shares.lines}


if __name__ == "__main__":
    points = [{"rate": rate, "anchor": anchor} for anchor in (False, True) for rate in (2e-4, 1e-3)]
    measure(__file__, points, run, SETTINGS, __doc__)
