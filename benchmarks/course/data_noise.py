"""How clean must the answers be? Exact match on held-out notes after SFT on 64 notes of which a share has a wrong day.

python benchmarks/course/data_noise.py                          # all points
python benchmarks/course/data_noise.py --only "share=0.5"       # this one again
"""

import json
import random

from common import measure, score, train
from datasets import Dataset

from ft_notebooks import (
    add_adapter,
    appointments,
    evaluate,
    load_model,
    load_tokenizer,
    lora_config,
    merge_adapter,
    smollm2,
)

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
SETTINGS = {
    "model": "SmolLM2-135M-Instruct",
    "bits": 16,
    "method": "LoRA r=16 on all linear layers",
    "learning_rate": 1e-3,
    "effective_batch": 8,
    "steps": 24,
    "notes": 64,
    "wrong": "another day than the note's, drawn evenly; event and time are right",
    "test": "100 notes of the test part, greedy decoding with the adapter merged, 40 tokens at most",
}


def with_wrong_days(chats, share: float, seed: int) -> Dataset:
    "The chats, the first `share` of them with a wrong day in the answer."
    draw, rows = random.Random(seed), chats.to_list()
    for row in rows[: round(share * len(rows))]:
        answer = json.loads(row["messages"][-1]["content"])
        answer["day"] = draw.choice([day for day in DAYS if day != answer["day"]])
        row["messages"][-1]["content"] = json.dumps(answer)
    return Dataset.from_list(rows)


def run(point: dict, quick: bool) -> dict:
    seed = point["seed"]
    tok, model = load_tokenizer(smollm2()), load_model(smollm2())
    model = add_adapter(model, lora_config(model, r=16), seed=seed)
    rows = with_wrong_days(appointments(SETTINGS["notes"], seed=seed), point["share"], seed)
    steps = 2 if quick else SETTINGS["steps"]
    losses = train(model, tok, rows, learning_rate=1e-3, effective_batch=8, max_steps=steps, seed=seed, data_seed=seed)
    test = appointments(4 if quick else 100, part="test")
    found = evaluate(merge_adapter(model), tok, test, ["exact_match"], max_new_tokens=40, batch_size=50)
    return {
        "loss_last_8": round(sum(losses[-8:]) / len(losses[-8:]), 5),
        **score(found.scores["exact_match"], "exact_match"),
    }


if __name__ == "__main__":
    points = [{"share": share, "seed": seed} for seed in (0, 1) for share in (0.0, 0.1, 0.25, 0.5)]
    measure(__file__, points, run, SETTINGS, __doc__)
