"""KTO on answers rated good or bad, against DPO on the same answers in pairs, and with one good answer in eight.

From the course's SFT model, whose answers have the event first; answers with the day first are the good ones. Held out:
in how many pairs of new notes the good answer gains more than the bad one, and in how many it is now the likelier one.

    python benchmarks/course/kto.py                        # all points
    python benchmarks/course/kto.py --only "way=dpo"       # these again
"""

import tempfile
from functools import cache

from common import measure, score
from dpo_settings import COURSE, held_out

from ft_notebooks import dpo_trainer, load_adapter, load_tokenizer
from ft_notebooks.course.demo_task import course_stage, demo_pairs
from ft_notebooks.data import encode_pairs, read_rated
from ft_notebooks.dpo import CollapseCallback, kto_trainer, pair_logps
from ft_notebooks.evaluation.runner import interval

SETTINGS = {
    "start": "the course's SFT adapter: SmolLM2-135M-Instruct, LoRA r=16, 8 steps of 16 notes at 1e-3",
    "rows": "48 answers to 24 notes (apart), or to 48 notes, 6 of them good (1:7)",
    "steps": "6 of 8 answers (DPO: of 4 pairs), one epoch",
    "learning_rate": 2e-4,
    "schedule": "constant",
    "beta": 0.1,
    "weighted": "desirable_weight = 7, so that both labels count alike",
    "in order": "all good answers, then all bad ones, read in this order, as trl.KTOTrainer reads pairs "
    "that it takes apart",
    "held_out": "40 answers to 20 validation notes: shares of pairs, changes in nats, means. form_likelier: the answer "
    "in the new form is the likelier one, as none was before training",
}


def rated(seed: int, good: int | None = None) -> list[dict]:
    "The answers to 24 notes, taken apart; or 48 notes with one answer each, of which so many are good."
    if good is None:
        return list(read_rated(demo_pairs(24, 100 + seed).to_list()))
    rows = []
    for i, pair in enumerate(demo_pairs(48, 100 + seed)):
        side = "chosen" if i < good else "rejected"  # they are read in random order
        rows.append({"messages": pair["prompt"] + pair[side], "label": side == "chosen"})
    return rows


@cache
def before() -> tuple:
    "The tokenizer, the held-out pairs, and the log-probabilities of their answers before training."
    tok = load_tokenizer(course_stage("sft", COURSE))
    rows = encode_pairs(tok, held_out(20))[0]
    return tok, rows, pair_logps(load_adapter(course_stage("sft", COURSE)), rows)


def trained(way: str, seed: int, folder: str, steps: int):
    "The trainer after its run."
    tok, held, _ = before()
    model = load_adapter(course_stage("sft", COURSE), trainable=True)
    how = {
        "output_dir": folder, "max_steps": steps, "seed": seed, "learning_rate": 2e-4, "lr_scheduler_type": "constant",
        "save_strategy": "no",
    }  # fmt: skip
    if way == "dpo":
        guard = CollapseCallback(tok, held.select(range(1)), every=10**6, max_new_tokens=4, stop=False)
        trainer = dpo_trainer(model, tok, demo_pairs(24, 100 + seed), effective_batch=4, callbacks=[guard], **how)
    else:
        rows = rated(seed, 6 if "1:7" in way else None)
        weights = {"desirable_weight": 7.0} if "weighted" in way else {}
        if "order" in way:
            rows.sort(key=lambda row: not row["label"])
            weights = {"train_sampling_strategy": "sequential"}
        trainer = kto_trainer(model, tok, read_rated(rows), effective_batch=8, **weights, **how)
    trainer.train()
    return trainer


def run(point: dict, quick: bool) -> dict:
    tok, rows, then = before()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trained(point["way"], point["seed"], folder, 1 if quick else 6)
    now = pair_logps(trainer.model, rows)
    change = now - then
    gained = interval((change[:, 0] > change[:, 1]).double().tolist())
    likelier = interval((now[:, 0] > now[:, 1]).double().tolist())
    log = [entry for entry in trainer.state.log_history if "rewards/margins" in entry or "kl" in entry]
    return {
        **score(gained, "reward_accuracy"),
        **score(likelier, "form_likelier"),
        "margin": round((change[:, 0] - change[:, 1]).mean().item(), 2),
        "good_change": round(change[:, 0].mean().item(), 2),
        "bad_change": round(change[:, 1].mean().item(), 2),
        "loss": [round(entry["loss"], 4) for entry in log if "loss" in entry],
        "kl": [round(entry["kl"], 3) for entry in log if "kl" in entry],
    }


if __name__ == "__main__":
    ways = ("dpo", "kto apart", "kto 1:7", "kto 1:7 weighted")
    points = [{"way": way, "seed": seed} for seed in range(3) for way in ways]
    points += [{"way": "kto apart in order", "seed": seed} for seed in range(3)]
    measure(__file__, points, run, SETTINGS, __doc__)
