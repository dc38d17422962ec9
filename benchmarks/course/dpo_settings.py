"""What do beta, the rate and a second loss do to DPO? Runs of twelve steps from the course's SFT model.

The pairs are the course's own: the same line of JSON, chosen with the day first, rejected with the event first. Before
and after: the margin, the log-probabilities and the KL divergence on held-out pairs, and the answers to test notes.

    python benchmarks/course/dpo_settings.py                            # all points
    python benchmarks/course/dpo_settings.py --only "beta=0.1 rate=0.0002 anchor=False"
"""

import json
import tempfile
from pathlib import Path

import torch
from common import measure, score
from datasets import Dataset

from ft_notebooks import appointments, dpo_trainer, evaluate, exact_match, load_adapter, load_tokenizer, merge_adapter
from ft_notebooks.course.demo_task import FORM, course_stage, demo_pairs
from ft_notebooks.data import encode_pairs
from ft_notebooks.dpo import CollapseCallback, pair_logps
from ft_notebooks.evaluation.answer_format import key_order

COURSE = Path(__file__).parent / "runs" / "course"
SETTINGS = {
    "start": "the course's SFT adapter: SmolLM2-135M-Instruct, LoRA r=16, 8 steps of 16 notes at 1e-3",
    "pairs": 48,
    "steps": 12,
    "effective_batch": 4,
    "schedule": "constant",
    "seed": 0,
    "anchor": 'True: loss_type=["sigmoid", "sft"], loss_weights=[1, 1]; False: "sigmoid"',
    "looks": "8 validation notes, at the start and the end, at 1e-3 every fourth step: greedy answers of at most 40 "
    "tokens; score: the right answer, whatever the order of its keys",
    "held_out": "16 pairs of validation notes; nats, means over the pairs; KL(policy || reference) in nats a token, at "
    "all tokens of both answers",
    "test": "30 notes of the test part, greedy decoding with the adapter merged, 40 tokens at most",
}


def held_out(n: int) -> Dataset:
    "Pairs as `demo_pairs` makes them, of notes whose words no training note has."
    rows = []
    for messages in appointments(n, part="validation")["messages"]:
        known = json.loads(messages[-1]["content"])
        chosen = {"role": "assistant", "content": json.dumps({key: known[key] for key in FORM})}
        rows.append({"prompt": messages[:-1], "chosen": [chosen], "rejected": messages[-1:]})
    return Dataset.from_list(rows)


@torch.no_grad()
def log_probs(model, rows) -> torch.Tensor:  # float [tokens, V]
    "The model's predictions of all tokens of both answers to each prompt."
    found = []
    for row in rows:
        for answer in (row["chosen_ids"], row["rejected_ids"]):
            ids = torch.tensor([row["prompt_ids"] + answer])
            found.append(model(ids).logits[0, -len(answer) - 1 : -1].float().log_softmax(-1))
    return torch.cat(found)


def right(tok):
    "A scorer for `CollapseCallback`: the share of answers that are the chosen one."

    def scorer(answers, rows):
        known = (tok.decode(row["chosen_ids"], skip_special_tokens=True) for row in rows)
        return sum(exact_match(answer, text, {}) for answer, text in zip(answers, known)) / len(rows)

    return scorer


def trained(point: dict, tok, rows, folder: str, steps: int):
    "The trainer after the run, with the lines of its looks."
    model = load_adapter(course_stage("sft", COURSE), trainable=True)
    every = 4 if point["rate"] > 2e-4 else steps
    guard = CollapseCallback(tok, rows.select(range(8)), every=every, scorer=right(tok), max_new_tokens=40, stop=False)
    loss = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]} if point["anchor"] else {}
    trainer = dpo_trainer(
        model, tok, demo_pairs(SETTINGS["pairs"], 100), output_dir=folder, beta=point["beta"], callbacks=[guard],
        learning_rate=point["rate"], max_steps=steps, effective_batch=SETTINGS["effective_batch"], seed=0,
        lr_scheduler_type="constant", save_strategy="no", **loss,
    )  # fmt: skip
    trainer.train()
    looks = [json.loads(line) for line in Path(folder, "collapse.jsonl").read_text().splitlines()]
    return trainer, looks


def run(point: dict, quick: bool) -> dict:
    tok = load_tokenizer(course_stage("sft", COURSE))
    rows = encode_pairs(tok, held_out(16))[0]
    before_model = load_adapter(course_stage("sft", COURSE))
    before, then = pair_logps(before_model, rows), log_probs(before_model, rows.select(range(8)))
    with tempfile.TemporaryDirectory() as folder:
        trainer, looks = trained(point, tok, rows, folder, 2 if quick else SETTINGS["steps"])
    model = merge_adapter(trainer.model)
    after, now = pair_logps(model, rows), log_probs(model, rows.select(range(8)))
    change = after - before
    test = appointments(4 if quick else 30, part="test")
    scorers = {"exact_match": exact_match, "preferred_form": key_order(*FORM)}
    found = evaluate(model, tok, test, scorers, max_new_tokens=40, batch_size=50)
    log = [
        {
            "step": entry["step"],
            "loss": round(entry["loss"], 4),
            "margin": round(entry["rewards/margins"] / point["beta"], 3),
            "accuracy": entry["rewards/accuracies"],
            "chosen": round(entry["rewards/chosen"] / point["beta"], 3),
            "rejected": round(entry["rewards/rejected"] / point["beta"], 3),
        }
        for entry in trainer.state.log_history
        if "rewards/margins" in entry
    ]
    kept = ("step", "stop_rate", "score", "length", "kl", "chosen_logp")
    return {
        "margin": round((change[:, 0] - change[:, 1]).mean().item(), 2),
        "chosen_change": round(change[:, 0].mean().item(), 2),
        "rejected_change": round(change[:, 1].mean().item(), 2),
        "ranked": (after[:, 0] > after[:, 1]).float().mean().item(),
        "kl": round((now.exp() * (now - then)).sum(-1).mean().item(), 3),
        **score(found.scores["exact_match"], "exact_match"),
        **score(found.scores["preferred_form"], "preferred_form"),
        "answers": [row["generated"][:80] for row in found.rows[:2]],
        "log": log,
        "looks": [{key: round(look[key], 4) for key in kept} for look in looks],
    }


if __name__ == "__main__":
    points = [{"beta": 0.1, "rate": rate, "anchor": True} for rate in (2e-4, 1e-3)]
    points += [{"beta": beta, "rate": 2e-4, "anchor": False} for beta in (1.0, 0.1)]
    points += [{"beta": 0.1, "rate": rate, "anchor": False} for rate in (2e-5, 1e-3)]
    measure(__file__, points, run, SETTINGS, __doc__)
