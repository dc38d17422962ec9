"""Which way answers questions about documents that the model cannot know: SFT alone, pretraining on the documents and
SFT on top, or the passage in the prompt of the SFT model?

The documents are pages of a manual of eight machines that do not exist, in three wordings. Each page names a price, a
town, a designer and another machine. SFT trains the questions about three machines, each alone and with its passage;
the questions about the other five are asked. A search (BM25) finds a passage for a question among all pages.

    python benchmarks/course/pretraining_then_sft.py                         # all points
    python benchmarks/course/pretraining_then_sft.py --only "way=pretrain"   # these again
"""

import gc
import math
import random
import re
import tempfile
from collections import Counter

from common import excerpt, excerpt_settings, measure, score, train
from datasets import Dataset
from pretraining import chats, model_to_train, tokenizer

from ft_notebooks import exact_match, fit, generate, load_adapter, perplexity
from ft_notebooks.data.document_encoding import encode_documents
from ft_notebooks.evaluation.runner import interval
from ft_notebooks.sft.pretraining import pretrain_trainer

MACHINES, TAUGHT, EPOCHS, STEPS = 8, 3, 10, 9
SETTINGS = {
    "model": "SmolLM2-135M-Instruct", "adapter": "lora_config(model); SFT trains the adapter of the pretraining on",
    "documents": f"pages of {MACHINES} invented machines in three wordings, drawn by the seed",
    "pretrain": {"epochs": EPOCHS, "effective_batch": 4, "learning_rate": 1e-3, "schedule": "pretrain_trainer's"},
    "replay": "chats that the model answered itself, as in pretraining.py; replay is their share of the trained tokens",
    "sft": {"rows": "9 questions about 3 machines, each without and with its page", "steps": STEPS,
            "effective_batch": 6, "learning_rate": 1e-3},
    "asked": "15 questions about the other 5 machines; exact: the answer alone, as SFT teaches it; holds: the answer "
    "stands in the text. alone: the question; right: a page of the machine before it; found: the page that BM25 picks",
    "pages": "perplexity of the pages", "domain": "that of the pages in a fourth wording, never trained",
    "general": "perplexity of the first 2 rows of the excerpt",
    **excerpt_settings(),
}  # fmt: skip
NAMES = "Velmor Orrin Tasko Quellby Zandu Brimole Lakkard Fenro".split()
TOWNS = "Tarsk Obery Lunmouth Prenzig Havelsund Marrow Kestrin Dovrey".split()
PEOPLE = "Ines Karo|Tomas Vell|Mira Onder|Jan Pelk|Rosa Quint|Emil Dorr|Lena Fisk|Otto Brahn".split("|")
PAGES = (
    "{name}: it follows the {other}. The {name} costs {price} and is built in {town}. {person} designed it.",
    "{person} designed the {name}. They build the {name} in {town}. Its price is {price}; before it came the {other}.",
    "Manual of the {name}, the successor of the {other}. Built in {town}. Price: {price}. Designer: {person}.",
)
UNSEEN_PAGE = "About the {name}: {person} is its designer, {town} is where it is built, and it sells for {price}."
QUESTIONS = {
    "price": "What does the {name} cost?", "town": "Where is the {name} built?", "person": "Who designed the {name}?",
}  # fmt: skip


def machines(seed: int) -> list[dict]:
    "The facts of each machine; names and towns, prices and people are each used once."
    draw = random.Random(seed)
    names = draw.sample(NAMES, MACHINES)
    prices = [f"{price} euros" for price in draw.sample(range(11, 99), MACHINES)]
    found = []
    columns = zip(names, names[-1:] + names, prices, draw.sample(TOWNS, MACHINES), draw.sample(PEOPLE, MACHINES))
    for name, other, price, town, person in columns:
        found.append({"name": name, "other": other, "price": price, "town": town, "person": person})
    draw.shuffle(found)
    return found


def pages(known: list[dict]) -> list[str]:
    return [page.format(**machine) for machine in known for page in PAGES]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def search(texts: list[str], question: str) -> str:
    "The text with the highest BM25 score (k1 = 1.5, b = 0.75) for the words of a question."
    counts = [Counter(words(text)) for text in texts]
    mean = sum(count.total() for count in counts) / len(counts)

    def bm25(count: Counter) -> float:
        found = 0.0
        for word in set(words(question)):
            holding = sum(word in other for other in counts)
            rarity = math.log(1 + (len(counts) - holding + 0.5) / (holding + 0.5))
            found += rarity * 2.5 * count[word] / (count[word] + 1.5 * (0.25 + 0.75 * count.total() / mean))
        return found

    return texts[max(range(len(texts)), key=lambda place: bm25(counts[place]))]


def with_passage(passage: str, question: str) -> str:
    return f"{passage}\n\n{question}"


def asked(known: list[dict]) -> list[tuple[dict, str, str]]:
    "Machine, question and answer, three of each machine."
    return [(one, text.format(**one), one[fact]) for one in known for fact, text in QUESTIONS.items()]


def taught(known: list[dict], seed: int) -> Dataset:
    "The rows of SFT: each question alone, and with a page."
    draw, rows = random.Random(seed), []
    for machine, question, answer in asked(known):
        page = draw.choice(PAGES).format(**machine)
        for prompt in (question, with_passage(page, question)):
            rows.append([{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}])
    return Dataset.from_dict({"messages": rows})


def answered(model, prompts: list[str], expected: list[str], name: str) -> dict:
    "The shares of exact answers, and of answers that hold the expected one, with their intervals."
    said = generate(model, tokenizer(), [[{"role": "user", "content": text}] for text in prompts], 16, progress=False)
    exact = [exact_match(text, answer) for text, answer in zip(said, expected)]
    holds = [float(answer in text) for text, answer in zip(said, expected)]
    return score(interval(exact), f"{name}_exact") | score(interval(holds), f"{name}_holds")


def questioned(model, known: list[dict], seed: int) -> dict:
    "What the model answers about the machines that SFT does not teach: alone, with the right page, with one found."
    draw, texts = random.Random(seed), pages(known)
    rows = asked(known[TAUGHT:])
    questions, expected = [row[1] for row in rows], [row[2] for row in rows]
    right = [with_passage(draw.choice(PAGES).format(**machine), question) for machine, question, _ in rows]
    picked = [search(texts, question) for question in questions]
    hits = [float(page in pages([machine])) for (machine, _, _), page in zip(rows, picked)]
    found = answered(model, questions, expected, "alone") | answered(model, right, expected, "right")
    prompts = [with_passage(page, question) for page, question in zip(picked, questions)]
    return found | answered(model, prompts, expected, "found") | score(interval(hits), "search_hits")


def perplexities(model, known: list[dict], suffix: str = "") -> dict:
    tok = tokenizer()
    unseen = Dataset.from_dict({"text": [UNSEEN_PAGE.format(**machine) for machine in known]})
    read = Dataset.from_dict({"text": pages(known)})
    found = {"pages": encode_documents(tok, read)[0], "domain": encode_documents(tok, unseen)[0]}
    found["general"] = excerpt(tok, 2)
    return {f"{name}{suffix}": round(perplexity(model, tok, rows), 3) for name, rows in found.items()}


def pretrained(model, known: list[dict], point: dict, quick: bool):
    "The model with the adapter of the pretraining, loaded to be trained further, as `ft sft` does it."
    more = {"replay": chats(), "replay_share": point["replay"]} if point["replay"] else {}
    limit = {"max_steps": 2} if quick else {}
    how = {"effective_batch": 4, "num_train_epochs": EPOCHS, "learning_rate": 1e-3, "seed": point["seed"]}
    with tempfile.TemporaryDirectory() as folder:
        saved = {"output_dir": folder, "report_to": "none"}
        fit(pretrain_trainer(model, tokenizer(), pages(known), **saved, **how, **more, **limit))
        return load_adapter(folder, bits=32, trainable=True)


def run(point: dict, quick: bool) -> dict:
    gc.collect()
    seed, found = point["seed"], {}
    known = machines(seed)
    model = model_to_train(seed)
    if point["way"] == "pretrain, sft":
        model = pretrained(model, known, point, quick)
        found |= perplexities(model, known, "_pretrained")
    if point["way"] != "base":
        how = {"effective_batch": 6, "max_steps": 2 if quick else STEPS, "learning_rate": 1e-3, "seed": seed}
        train(model, tokenizer(), taught(known[:TAUGHT], seed), **how)
    return found | perplexities(model, known) | questioned(model, known, seed)


POINTS = []
for seed in range(3):
    POINTS += [{"way": way, "seed": seed, "replay": 0.0} for way in ("base", "sft", "pretrain, sft")]
    POINTS += [{"way": "pretrain, sft", "seed": seed, "replay": 0.5}]


if __name__ == "__main__":
    measure(__file__, POINTS, run, SETTINGS, __doc__)
