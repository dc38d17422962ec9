"""List what in the prose is hard to read: words to replace, terms used before their definition, what is too long.

It warns, and ends with 0: a rule of style has exceptions. CONTRIBUTING.md has the rules that a test checks.
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
INSTEAD = {  # pattern -> what to write; in prose, docstrings, comments and messages alike
    r"\bis no number\b|(?<!there )\bis none\b": "NaN, or what is missing",
    r"\b(?:is|are) refused\b|(?<!model )(?<!it )\b(?:is|are) told\b|\b(?:it|what) is said\b": "raises, checks, logs",
    r"\bheard\b|\blistens?\b(?! on)|must not be heard": "sampled outputs, generates",
    r"\boracles?\b": "reference implementation",
    r"\blevers?\b": "optimizations",
    r"\bdials?\b": "setting",
    r"\bforetells?\b": "predicts",
    r"\bthe say of\b": "weight",
    r"\broom\b": "budget, free space, the most new tokens",
    r"\banew\b": "again from scratch",
    r"\banother one\b": "a different one, or name the thing",
    r"(?:^|\. )Guides say\b": "the question; the table of claims stands at the end",
}
THAT_OF = 24  # "that of" in all notebooks; each is a comparison whose noun would have to be said twice
# the first place of the course that has one of these words must be its definition, in bold
TERMS = """
retrieval-augmented generation
fine-tuning; prompt; adapter; LoRA; loss; held-out; exact match; confidence interval; parameter
layer; attention; embedding; residual stream; dropout; seed
token; tokenizer; vocabulary; logits; softmax; log-probability; cross-entropy; nat; perplexity; gradient; optimizer
AdamW; learning rate; greedy decoding; sampling; temperature; top-p; base model; instruct model; batch
padding; pad token; EOS; attention mask; truncation; special token; chat template; system message; generation prompt
quantization; bfloat16; NF4; optimizer state; activations; activation checkpointing; KV cache; QLoRA
rank; alpha; target modules; merging; singular value; JSON Lines; synthetic data; near-duplicate; contamination
validation set; epoch; effective batch; micro-batch; gradient accumulation; packing; checkpoint; gradient norm
gradient clipping; overfitting; NaN; hyperparameter; warm-up; cosine; weight decay; early stopping
catastrophic forgetting; throughput
DPO; chosen answer; rejected answer; policy; reference model; beta; implicit reward; margin; over-optimization
world size; DDP; gradient averaging; all-reduce; FSDP; shard; scorer; paired test; p-value; judge; rubric
position bias; reinforcement learning; RLHF; reward function; rejection sampling; critic; GRPO
reward hacking; loss spike; pre-emption; resuming
"""


def notebooks():
    return [nb for nb in sorted(NBS.rglob("*.ipynb")) if not any(part[0] == "." for part in nb.relative_to(NBS).parts)]


def lessons():
    return sorted(NBS.glob("[0-9][0-9]_*.ipynb"))


def cells(notebook, kind=None):
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in found if kind in (None, cell["cell_type"])]


def prose(notebook):
    return "\n\n".join(cell["source"] for cell in cells(notebook, "markdown"))


def around(text, match):
    return text[max(0, match.start() - 40) : match.end() + 40].replace("\n", " ")


def words_to_replace(text):
    "For each that stands in the text: the words around it, and what to write instead"
    for pattern, instead in INSTEAD.items():
        for match in re.finditer(pattern, text, flags=re.M):
            yield f"…{around(text, match)}…: write {instead}"


def language():
    that_of = 0
    for notebook in notebooks():
        for cell in cells(notebook):
            for warning in words_to_replace(cell["source"]):
                yield f"{notebook.relative_to(ROOT)}: {warning}"
            that_of += len(re.findall(r"\bthat of\b", cell["source"]))
    if that_of > THAT_OF:
        yield f'nbs: "that of" stands {that_of} times, at most {THAT_OF}: name the thing instead'


def is_seen(cell):  # a cell of the lesson, and not one that makes a package's face
    return cell["cell_type"] == "code" and not re.search(r"^#\s*\|\s*(default_exp|export)", cell["source"], flags=re.M)


def size(cell):  # its lines without directives
    return len([line for line in cell["source"].splitlines() if line.strip() and not re.match(r"#\s*\||%%", line)])


def too_long():
    for lesson in lessons():
        seen = [cell for cell in cells(lesson) if is_seen(cell)]
        folded = [cell for cell in seen if cell["metadata"].get("jupyter", {}).get("source_hidden")]
        shown = [cell for cell in seen if cell not in folded]
        errors = [cell for cell in seen if re.search(r"expect_fail\(|except \w+", cell["source"])]
        for what, count, least, most in [
            ("words", len(prose(lesson).split()), 1200, 3500),
            ("cells", len(shown), 1, 24),
            ("cells that show an error", len(errors), 0, 2),
            ("lines in a cell", max(map(size, shown)), 1, 8),
            ("lines in a folded cell", max(map(size, folded), default=0), 0, 40),
        ]:
            if not least <= count <= most:
                yield f"{lesson.relative_to(ROOT)}: {count} {what}, {least} to {most} are usual"
    readme = re.sub(r"```.*?```|\]\([^)]*\)|<!--.*?-->", " ", (ROOT / "README.md").read_text("utf-8"), flags=re.S)
    contributing = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    for name, text, most in [("README.md", readme, 700), ("CONTRIBUTING.md", contributing, 1300)]:
        if (count := len(re.findall(r"[^\s|]*\w[^\s|]*", text))) > most:
            yield f"{name}: {count} words, at most {most}"


def plain(text):
    "The prose without code, formulas, links' targets, headings and the line with the minutes."
    text = re.sub(r"```.*?```|`[^`]*`|\$[^$]*\$|\]\([^)]*\)", " ", text, flags=re.S)
    return re.sub(r"^#.*$|^\*\d+ minutes.*$", " ", text, flags=re.M)


def undefined_terms():
    course = [
        (f"nbs/{lesson.name}, cell {i}", plain(cell["source"]))
        for lesson in lessons()
        for i, cell in enumerate(cells(lesson))
        if cell["cell_type"] == "markdown"
    ]
    for term in re.split(r"[;\n]\s*", TERMS.strip()):
        there = re.compile(rf"(?<![\w-])(\**){re.escape(term)}(?:s|es)?[,.:]?(\**)(?![\w-])", flags=re.I)
        place, text = next(((place, text) for place, text in course if there.search(text)), ("", ""))
        first = there.search(text)
        if not first:
            yield f"nbs: no lesson defines {term}"
        elif not first[1] == first[2] == "**":
            yield f"{place}: …{around(text, first)}…: define {term} here, in bold"


def warnings():
    yield from language()
    yield from too_long()
    yield from undefined_terms()


if __name__ == "__main__":
    found = list(warnings())
    print("\n".join([*found, f"{len(found)} warnings on the prose"]))
