"""What does continued pretraining teach and what does it cost, by the share of replay, and when is a passage in the
prompt the better answer?

The documents are beginnings of paragraphs of Python's own manual (pydoc_data.topics), at most 40 tokens each: 32 to
train on, 24 held out, of other topics. The chats of replay are short questions with the answers that the model itself
gave before (greedy, at most 24 tokens): 16 to train on, 12 that are only measured. Each point trains one epoch as `ft
pretrain` does (LoRA on a base in 32 bits) in steps of 4 rows, at twice its default rate, since the steps are few.

The points "facts" train 20 notes of a plant that does not exist, for five epochs, and ask a question about each: with
the note in the prompt before, and without it before and after.

    OMP_NUM_THREADS=1 python benchmarks/course/pretraining.py    # all points
"""

import functools
import gc
import itertools
import math
import random
import sys
import tempfile
from pydoc_data.topics import topics

import numpy as np
from common import measure
from datasets import Dataset

from ft_notebooks import add_adapter, load_model, load_tokenizer, lora_config, smollm2
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.data.document_encoding import encode_documents
from ft_notebooks.evaluation.likelihood import row_losses
from ft_notebooks.evaluation.runner import interval
from ft_notebooks.inference.generation import generate
from ft_notebooks.sft.pretraining import pretrain_trainer

TRAINED, HELD_OUT, CHATS, CHATS_HELD, MOST_TOKENS, EPOCHS_OF_FACTS = 32, 24, 16, 12, 40, 5
SETTINGS = {
    "model": "SmolLM2-135M-Instruct", "bits": 32, "effective_batch": 4, "epochs": 1, "adapter": "lora_config(model)",
    "schedule": "linear to 0; warm-up over a tenth of the steps, where warmup is 0.1",
    "documents": f"pydoc_data.topics of Python {sys.version_info.major}.{sys.version_info.minor}: two paragraphs of "
    f"each topic, of at most {MOST_TOKENS} tokens, topics drawn by the seed; {TRAINED} trained, {HELD_OUT} held out",
    "chats": f"questions by template, answered by the model before training: {CHATS} trained, {CHATS_HELD} held out",
    "domain": "perplexity of the held-out documents", "general": "perplexity of the held-out chats",
    "gain": "mean over held-out rows of the fall of a row's own mean loss, in nats, with an interval of 1.96 standard "
    "errors; general_gain that of the chats: below 0 it is forgetting",
    "facts": f"20 notes of one fact each, {EPOCHS_OF_FACTS} epochs in steps of 4, scored by the number or name in the "
    "answer, with Wilson intervals of 95 %",
}  # fmt: skip
NAMES = "Ines Karo Tomas Vell Mira Onder Jan Pelk Rosa Quint Emil Dorr Lena Fisk Otto Brahn Nora Sulk Paul Weir".split()


@functools.cache
def tokenizer():
    return load_tokenizer(smollm2())


def model_to_train(seed: int):
    base = load_model(smollm2(), bits=32)
    return add_adapter(base, lora_config(base), seed)


@functools.cache
def parts() -> dict[str, list[str]]:
    "The beginnings of two paragraphs of each topic, of at most 40 tokens with the end."
    tok, found = tokenizer(), {}
    for name in sorted(topics):
        texts = [tok.decode(tok(text)["input_ids"][: MOST_TOKENS - 1]) for text in topics[name].split("\n\n")[1:12]]
        kept = [text for text in texts if len(text) > 100]
        if len(kept) > 1:
            found[name] = kept[:2]
    return found


def documents(seed: int) -> tuple[list[str], list[str]]:
    "Those to train on and those held out, of different topics."
    names = sorted(parts())
    random.Random(seed).shuffle(names)
    texts = list(itertools.chain.from_iterable(parts()[name] for name in names))
    return texts[:TRAINED], texts[TRAINED : TRAINED + HELD_OUT]


@functools.cache
def chats() -> Dataset:
    "Questions with the answers of the model before any training."
    words = "bread rain winter music coffee sleep money history school tea snow fire paint salt glass wind bridges dogs"
    words = [*words.split(), *"rivers trains gardens forests clocks markets libraries".split()]
    asked = [f"Write one sentence about {word}." for word in words]
    asked += [f"Why do people like {word}?" for word in words]
    asked += [f"Name two things that have to do with {word}." for word in words]
    asked = asked[: CHATS + CHATS_HELD]
    random.Random(0).shuffle(asked)
    prompts = [[{"role": "user", "content": text}] for text in asked]
    said = generate(load_model(smollm2(), bits=32), tokenizer(), prompts, 24, progress=False)
    rows = [[*prompt, {"role": "assistant", "content": text}] for prompt, text in zip(prompts, said)]
    return Dataset.from_dict({"messages": rows})


def losses(model, rows: Dataset) -> tuple[float, np.ndarray]:
    "Perplexity, and the mean loss of each row."
    sums, counts = row_losses(model, tokenizer(), rows)
    return math.exp(sums.sum() / counts.sum()), sums / counts


def fall(name: str, before: np.ndarray, after: np.ndarray) -> dict:
    "The mean fall of a row's loss, with an interval over the rows."
    fallen = before - after
    error = 1.96 * fallen.std(ddof=1) / math.sqrt(len(fallen))
    mean = fallen.mean()
    return {name: round(mean, 4), f"{name}_low": round(mean - error, 4), f"{name}_high": round(mean + error, 4)}


def pretrain(model, texts: list[str], seed: int, **settings) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fixed = {"output_dir": folder, "save_strategy": "no", "seed": seed, "report_to": "none"}
        pretrain_trainer(model, tokenizer(), texts, **fixed, **settings).train()


def replayed(point: dict, quick: bool) -> dict:
    "Perplexity of the held-out documents and chats before and after one epoch."
    tok = tokenizer()
    trained, held = documents(point["seed"])
    ids, _ = encode_documents(tok, Dataset.from_dict({"text": held}))
    known, _ = encode_chats(tok, chats().select(range(CHATS, CHATS + CHATS_HELD)))
    model = model_to_train(point["seed"])
    domain, domain_rows = losses(model, ids)
    general, general_rows = losses(model, known)
    more = {"replay": chats().select(range(CHATS)), "replay_share": point["replay"]} if point["replay"] else {}
    rate = {"learning_rate": point["rate"], "warmup_steps": point["warmup"]}
    limit = {"max_steps": 2} if quick else {}
    pretrain(model, trained, point["seed"], effective_batch=4, num_train_epochs=1, **rate, **more, **limit)
    domain_after, domain_rows_after = losses(model, ids)
    general_after, general_rows_after = losses(model, known)
    found = {"domain_before": domain, "domain": domain_after, "general_before": general, "general": general_after}
    found = {name: round(value, 3) for name, value in found.items()}
    found |= fall("gain", domain_rows, domain_rows_after)
    return found | fall("general_gain", general_rows, general_rows_after)


def facts(seed: int) -> list[tuple[str, str, str]]:
    "Note, question and answer, 20 of each."
    draw = random.Random(seed)
    people = [f"{first} {last}" for first, last in zip(NAMES[::2], NAMES[1::2])]
    found = []
    for number in range(20):
        machine = f"the {draw.choice(['Velm', 'Orrin', 'Tasko', 'Quell'])}-{draw.randrange(100, 999)}"
        days, person = draw.randrange(11, 99), draw.choice(people)
        note = (
            f"Maintenance note. In hall {number + 1} stands {machine}. It is oiled every {days} days. {person} does it."
        )
        asked = (f"Every how many days is {machine} oiled?", str(days))
        found.append((note, *(asked if number % 2 else (f"Who oils {machine}?", person.split()[1]))))
    return found


def score(model, prompts: list[str], answers: list[str], name: str) -> dict:
    "The share of the answers that hold the expected one, with its interval."
    said = generate(model, tokenizer(), [[{"role": "user", "content": text}] for text in prompts], 24, progress=False)
    found = interval([float(answer in text) for answer, text in zip(answers, said)])
    ends = {f"{name}_{end}": round(found[end], 3) for end in ("low", "high")}
    return {name: round(found["value"], 3), **ends}


def asked(point: dict, quick: bool) -> dict:
    "Questions about the notes: with the note in the prompt, and without it before and after training."
    notes, questions, answers = map(list, zip(*facts(point["seed"])))
    model = model_to_train(point["seed"])
    found = score(model, questions, answers, "without")
    with_note = [f"{note}\n\n{question}" for note, question in zip(notes, questions)]
    found |= score(model, with_note, answers, "passage")
    ids, _ = encode_documents(tokenizer(), Dataset.from_dict({"text": notes}))
    epochs = 1 if quick else EPOCHS_OF_FACTS
    pretrain(model, notes, point["seed"], effective_batch=4, num_train_epochs=epochs, learning_rate=point["rate"])
    return found | score(model, questions, answers, "pretrained") | {"notes": round(losses(model, ids)[0], 3)}


def run(point: dict, quick: bool) -> dict:
    gc.collect()
    return (asked if point["kind"] == "facts" else replayed)(point, quick)


def point(kind: str, seed: int, replay: float = 0.0, rate: float = 1e-3, warmup: float = 0.1) -> dict:
    return {"kind": kind, "seed": seed, "replay": replay, "rate": rate, "warmup": warmup}


POINTS = []
for seed in range(3):
    POINTS += [point("replay", seed, replay) for replay in (0.0, 0.25, 0.5)]
    POINTS += [point("facts", seed)]


if __name__ == "__main__":
    measure(__file__, POINTS, run, SETTINGS, __doc__)
