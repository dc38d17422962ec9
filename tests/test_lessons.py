"The form of the course: what a reader may rely on in every lesson of nbs/."

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEW = (*range(16),)  # the lessons that have this form
LESSONS = [nb for nb in sorted(ROOT.glob("nbs/[0-9][0-9]_*.ipynb")) if int(nb.name[:2]) in NEW]
SOLUTIONS = ROOT / "nbs" / "solutions"
# the first place of the course that has one of these words must be its definition, in bold
TERMS = """
retrieval-augmented generation
fine-tuning; prompt; adapter; LoRA; loss; held-out; exact match; confidence interval; parameter
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
HEAD = re.compile(
    r"# \d+ · [^\n]+\n\n> [^\n]+\?[^\n]*\n\n\*\d+ minutes to read, (?:about )?\d+ minutes? to run on two CPU cores[^*]*"
    r"You need [^*]+\. (?:Before: [^*]+\. )?Next: [^*]+\.\*"
)
each_lesson = pytest.mark.parametrize("nb", LESSONS, ids=lambda nb: nb.stem)


def cells(nb, kind=None):
    found = json.loads(nb.read_text(encoding="utf-8"))["cells"]
    return [{**c, "source": "".join(c["source"])} for c in found if kind in (None, c["cell_type"])]


def lines(source):
    return [line for line in source.splitlines() if line.strip() and not re.match(r"#\s*\||%%", line)]


def code(nb, hidden):
    "The lines of each cell that a reader sees, or that are folded; without those that make a package's face."
    found = []
    for cell in cells(nb, "code"):
        is_face = re.search(r"^#\s*\|\s*(default_exp|export)", cell["source"], flags=re.M)
        if not is_face and cell["metadata"].get("jupyter", {}).get("source_hidden", False) == hidden:
            found.append(lines(cell["source"]))
    return found


def prose(nb):
    return "\n\n".join(cell["source"] for cell in cells(nb, "markdown"))


def exercises(nb):
    "Number -> the asserts of its empty cell, which are comments."
    found = {}
    for cell in cells(nb, "code"):
        if named := re.match(r"# Exercise (\d)", cell["source"]):
            found[int(named[1])] = re.findall(r"^# (assert .*)$", cell["source"], flags=re.M)
    return found


def test_the_lessons_follow_each_other():
    assert [int(nb.name[:2]) for nb in LESSONS] == list(NEW)


@each_lesson
def test_a_lesson_says_first_what_it_asks_how_long_it_takes_and_what_it_needs(nb):
    head = cells(nb, "markdown")[0]["source"]
    assert HEAD.match(head), head
    assert head.startswith(f"# {int(nb.name[:2])} · ")
    numbers = [int(number) for number in re.findall(r"\]\((\d\d)_\w+\.ipynb\)", head.split("\n\n")[2])]
    there = [int(lesson.name[:2]) for lesson in sorted(ROOT.glob("nbs/[0-9][0-9]_*.ipynb"))]  # some are to come
    here = there.index(int(nb.name[:2]))
    assert numbers == there[max(here - 1, 0) : here] + there[here + 1 : here + 2], numbers


@each_lesson
def test_a_lesson_is_short_enough_to_be_read(nb):
    words = len(prose(nb).split())
    assert 1000 <= words <= 2000, f"{words} words"
    visible, hidden = code(nb, hidden=False), code(nb, hidden=True)
    assert len(visible) <= 15 and len(hidden) <= 6, (len(visible), len(hidden))
    assert all(1 <= len(cell) <= 10 for cell in visible), [cell[0] for cell in visible if len(cell) > 10]
    assert all(len(cell) <= 25 for cell in hidden), [cell[0] for cell in hidden if len(cell) > 25]
    assert all(len(line) <= 120 for cell in visible + hidden for line in cell)


@each_lesson
def test_a_lesson_spends_at_most_two_cells_on_errors(nb):
    refusals = [
        cell for cell in code(nb, False) + code(nb, True) if re.search(r"expect_fail\(|except \w+", "\n".join(cell))
    ]
    assert len(refusals) <= 2, refusals


@each_lesson
def test_a_lesson_needs_no_flag_but_a_card_or_the_hub(nb):
    found = {flag for cell in cells(nb, "code") for flag in re.findall(r"^#\s*\|\s*(\w+)", cell["source"], flags=re.M)}
    assert found <= {"default_exp", "export", "hide", "gpu", "hub"}, found


@each_lesson
def test_a_lesson_has_a_drawing_what_to_remember_exercises_and_links_to_the_package(nb):
    text = prose(nb)
    assert any("image/png" in out.get("data", {}) for cell in cells(nb, "code") for out in cell["outputs"])
    for heading in ("## What to remember", "## Exercises", "## Where this lives in the package"):
        assert heading in text, heading
    last = text.partition("## Where this lives in the package")[2]
    assert len(re.findall(r"\]\(package/[\w/]+\.ipynb\)", last)) >= (1 if nb.name.startswith("00") else 3)


@each_lesson
def test_each_exercise_has_a_solution_with_the_same_asserts(nb):
    asked, solution = exercises(nb), SOLUTIONS / nb.name
    assert list(asked) == [1, 2] and all(asked.values()), asked
    assert f"](solutions/{nb.name})" in prose(nb)
    solved = {}
    for cell in cells(solution, "code"):
        if named := re.match(r"# Exercise (\d)", cell["source"]):
            solved[int(named[1])] = re.findall(r"^(assert .*)$", cell["source"], flags=re.M)
    assert solved == asked


def plain(text):
    "The prose without code, formulas, links' targets, headings and the line with the minutes."
    text = re.sub(r"```.*?```|`[^`]*`|\$[^$]*\$|\]\([^)]*\)", " ", text, flags=re.S)
    return re.sub(r"^#.*$|^\*\d+ minutes.*$", " ", text, flags=re.M)


def test_a_term_is_defined_where_it_is_first_used():
    told = "\n".join(f"\n@{nb.name[:2]}@ {plain(prose(nb))}" for nb in LESSONS)
    wrong = []
    for term in re.split(r"[;\n]\s*", TERMS.strip()):
        word = re.compile(rf"(?<![\w-])(\**){re.escape(term)}(?:s|es)?[,.:]?(\**)(?![\w-])", flags=re.I)
        first = word.search(told)
        if not first or not first[1] == first[2] == "**":
            place = told[: first.start()].rpartition("@ ")[0][-2:] if first else "nowhere"
            around = told[max(0, first.start() - 40) : first.end() + 40].replace("\n", " ") if first else ""
            wrong.append(f"{term} (lesson {place}): {around}")
    assert not wrong, "\n".join(wrong)
