"""A judge that says whether a reply follows the house style: asked, and trained on labels of a program.

The replies are samples of a model that was trained on 128 mails, so some follow all five lines of the rubric and some
do not. The judge reads mail, manual and reply, and answers yes or no. It is trained on replies to training mails, and
compared with the rubric on replies to the test mails, whose names, machines, complaints and forms are new.

    python benchmarks/course/trained_judge.py                     # two seeds, about 35 minutes on one core
    python benchmarks/course/trained_judge.py --only "seed=0"
"""

import copy

import torch
from common import measure, score, train
from datasets import Dataset
from replies import SETTINGS as REPLIES
from replies import TEST, asked, sampled

from ft_notebooks import add_adapter, load_model, load_tokenizer, lora_config, merge_adapter, smollm2
from ft_notebooks.course.reply_task import customer_mails, rubric
from ft_notebooks.evaluation.runner import interval

QUESTION = (
    "Does the reply greet by name, name the machine, give the step of the manual and no other, offer more help, and "
    "end with a name? Answer yes or no."
)
SETTINGS = {
    "model": REPLIES["model"],
    "replies": {"by": "SFT on 128 mails", "train": "64 mails, 4 samples each", "test": "40 test mails, 2 samples each"},
    "sft": REPLIES["sft"],
    "judge": {"learning_rate": 1e-3, "effective_batch": 8, "num_train_epochs": 1},
    "question": QUESTION,
    "labels": [64, 256],
}


def shown(row, reply: str) -> list[dict]:
    "What the judge reads."
    mail = row["messages"][1]["content"]
    return [{"role": "system", "content": QUESTION}, {"role": "user", "content": f"Mail: {mail}\n\nReply: {reply}"}]


def labelled(rows, samples: list[list[str]]) -> list[dict]:
    "One row for each reply, with the program's verdict."
    found = []
    for row, replies in zip(rows, samples):
        for reply in replies:
            lines = rubric(reply, row["messages"])
            found.append({"chat": shown(row, reply), "lines": lines, "good": all(lines.values())})
    return found


def says_yes(model, tok, rows: list[dict]) -> list[bool]:
    "Whether the judge finds yes more probable than no, as the first token of its answer."
    yes, no = (tok(word, add_special_tokens=False)["input_ids"][0] for word in ("yes", "no"))
    found = []
    for row in rows:
        batch = tok.apply_chat_template(row["chat"], add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            logits = model(**batch).logits[0, -1]
        found.append(bool(logits[yes] > logits[no]))
    return found


def compared(name: str, verdicts: list[bool], rows: list[dict]) -> dict:
    "How often judge and program agree; both mistakes; how often the judge saw each line's failure."
    good = [row["good"] for row in rows]
    found = score(interval([float(said == right) for said, right in zip(verdicts, good)]), name)
    found[f"{name}_yes"] = sum(verdicts)
    found[f"{name}_bad_passed"] = sum(said and not right for said, right in zip(verdicts, good))
    found[f"{name}_good_refused"] = sum(right and not said for said, right in zip(verdicts, good))
    for line in rows[0]["lines"]:
        failed = [said for said, row in zip(verdicts, rows) if not row["lines"][line]]
        found[f"{name}_{line}"] = [failed.count(False), len(failed)]
    return found


def run(point: dict, quick: bool) -> dict:
    seed = point["seed"]
    tok, base = load_tokenizer(smollm2()), load_model(smollm2(), bits=32)
    given = {name: value for name, value in SETTINGS["sft"].items() if name != "rows"}
    writer = add_adapter(copy.deepcopy(base), lora_config(base, r=16), seed=seed)
    train(writer, tok, customer_mails(16 if quick else SETTINGS["sft"]["rows"], seed=seed), seed=seed, **given)
    writer = merge_adapter(writer)

    mails = customer_mails(8 if quick else 64, seed=100 + seed)
    known = labelled(mails, sampled(writer, tok, asked(mails), 4, seed))
    held = labelled(TEST, sampled(writer, tok, asked(TEST), 2, 1000 + seed))
    found = {"train_good": sum(row["good"] for row in known), "test": len(held)}
    found["test_good"] = sum(row["good"] for row in held)

    found |= compared("asked", says_yes(base, tok, held), held)
    for n in [8] if quick else SETTINGS["labels"]:
        judge = add_adapter(copy.deepcopy(base), lora_config(base, r=16), seed=seed)
        some = known[:: len(known) // n]  # as many of each mail
        chats = [row["chat"] + [{"role": "assistant", "content": "yes" if row["good"] else "no"}] for row in some]
        train(judge, tok, Dataset.from_list([{"messages": chat} for chat in chats]), seed=seed, **SETTINGS["judge"])
        found |= compared(f"trained_{n}", says_yes(judge, tok, held), held)
    return found


if __name__ == "__main__":
    measure(__file__, [{"seed": seed} for seed in range(2)], run, SETTINGS, __doc__)
