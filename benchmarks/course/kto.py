"""KTO on answers rated good or bad, against DPO on the same answers in pairs, and with one good answer in ten.

From the course's SFT model, whose answers have the event first; answers with the day first are the good ones. Held out:
by how many pairs of new notes the good answer gains more than the bad one, and how many answers have the new form.

    python benchmarks/course/kto.py                        # all points
    python benchmarks/course/kto.py --only "way=dpo"       # these again
"""

import tempfile
from functools import cache

from common import measure, score
from dpo_settings import COURSE, held_out

from ft_notebooks import appointments, dpo_trainer, evaluate, load_adapter, load_tokenizer, merge_adapter
from ft_notebooks.course.demo_task import FORM, course_stage, demo_pairs
from ft_notebooks.data import encode_pairs, read_rated
from ft_notebooks.dpo import CollapseCallback, kto_trainer, pair_logps
from ft_notebooks.evaluation.answer_format import key_order
from ft_notebooks.evaluation.runner import interval

SETTINGS = {
    "start": "the course's SFT adapter: SmolLM2-135M-Instruct, LoRA r=16, 8 steps of 16 notes at 1e-3",
    "rows": "32 answers to 16 notes (apart), or to 32 notes, 3 of them good (1:10)",
    "steps": "8 of 4 answers (DPO: of 2 pairs), one epoch",
    "learning_rate": 2e-4,
    "schedule": "constant",
    "beta": 0.1,
    "weighted": "desirable_weight = 29/3, so that both labels count alike",
    "in order": "all good answers, then all bad ones, read in this order, as trl.KTOTrainer reads pairs that it takes apart",
    "held_out": "20 pairs of validation notes: shares of pairs, changes in nats, means",
    "test": "20 notes of the test part, greedy decoding with the adapter merged, 40 tokens at most",
}


def rated(seed: int, good: int | None = None) -> list[dict]:
    "The answers to 16 notes, taken apart; or 32 notes with one answer each, of which so many are good."
    if good is None:
        return list(read_rated(demo_pairs(16, 100 + seed).to_list()))
    rows = []
    for i, pair in enumerate(demo_pairs(32, 100 + seed)):
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
        trainer = dpo_trainer(model, tok, demo_pairs(16, 100 + seed), effective_batch=2, callbacks=[guard], **how)
    else:
        rows = rated(seed, 3 if "1:10" in way else None)
        weights = {"desirable_weight": 29 / 3} if "weighted" in way else {}
        if "order" in way:
            rows.sort(key=lambda row: not row["label"])
            weights = {"train_sampling_strategy": "sequential"}
        trainer = kto_trainer(model, tok, read_rated(rows), effective_batch=4, **weights, **how)
    trainer.train()
    return trainer


def run(point: dict, quick: bool) -> dict:
    tok, rows, then = before()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trained(point["way"], point["seed"], folder, 1 if quick else 8)
    model = merge_adapter(trainer.model)
    change = pair_logps(model, rows) - then
    gained = interval((change[:, 0] > change[:, 1]).double().tolist())
    test = appointments(4 if quick else 20, part="test")
    found = evaluate(model, tok, test, {"preferred_form": key_order(*FORM)}, max_new_tokens=40, likelihood=False)
    log = [entry for entry in trainer.state.log_history if "rewards/margins" in entry or "kl" in entry]
    return {
        **score(gained, "reward_accuracy"),
        **score(found.scores["preferred_form"], "preferred_form"),
        "margin": round((change[:, 0] - change[:, 1]).mean().item(), 2),
        "good_change": round(change[:, 0].mean().item(), 2),
        "bad_change": round(change[:, 1].mean().item(), 2),
        "loss": [round(entry["loss"], 4) for entry in log if "loss" in entry],
        "kl": [round(entry["kl"], 3) for entry in log if "kl" in entry],
    }


if __name__ == "__main__":
    ways = ("dpo", "kto apart", "kto 1:10", "kto 1:10 weighted")
    points = [{"way": way, "seed": seed} for seed in range(3) for way in ways]
    points += [{"way": "kto apart in order", "seed": seed} for seed in range(3)]
    measure(__file__, points, run, SETTINGS, __doc__)
