"""Thoughts kept, dropped or expanded to a row a turn, under a template that drops the thoughts of earlier turns.

In the first turn the user gives three words, and the thought names their first letters; the answer says only "Saved."
In the second turn the user asks for the code, which is these letters. In use the first thought is gone by then.

    python benchmarks/course/thinking.py                        # all points
    python benchmarks/course/thinking.py --only "expand"        # these again
"""

import random
from importlib.resources import files

from common import measure, score, train
from datasets import Dataset

from ft_notebooks import add_adapter, load_model, load_tokenizer, lora_config, smollm2
from ft_notebooks.data import encode_chats
from ft_notebooks.evaluation.runner import interval
from ft_notebooks.inference import answers
from ft_notebooks.tokenization.thoughts import answer_of

WORDS = (
    "apple bread chair dance eagle fence grass house island jacket kettle lemon mirror needle ocean paper queen river "
    "stone table uncle voice window yellow zebra"
).split()
SETTINGS = {
    "start": "SmolLM2-135M-Instruct, LoRA r=16, with the chat template of Qwen3",
    "rows": "96 conversations of two turns; expanded: 192 rows",
    "steps": "one epoch, 12 steps of 8 conversations (expanded: of 16 rows), at 1e-3",
    "held_out": "30 conversations with other triples of words, at most 40 tokens, greedy. code: the answer of the "
    "second turn is the code, after the prompt as the template writes it in use. thought_seen, of keep: the same "
    "with the first thought in the prompt, as in training",
}


def talks(count: int, seed: int) -> list[dict]:
    "Conversations of two turns."
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = draw.sample(WORDS, 3)
        letters = [word[0] for word in words]
        told = ". ".join(f"{word} begins with {letter}" for word, letter in zip(words, letters))
        rows.append(
            [
                {"role": "user", "content": f"My words are {', '.join(words)}."},
                {"role": "assistant", "reasoning_content": f"{told}.", "content": "Saved."},
                {"role": "user", "content": "What is my code, the first letters?"},
                {
                    "role": "assistant",
                    "reasoning_content": f"The letters are {', '.join(letters)}.",
                    "content": "".join(letters),
                },
            ]
        )
    return [{"messages": row} for row in rows]


def right(model, tok, rows: list[dict], seen: bool) -> list[float]:
    "Whether the answer of the second turn is the code; with `seen`, the first thought is in the prompt as plain text."
    prompts = [row["messages"][:3] for row in rows]
    if seen:
        prompts = [[p[0], {"role": "assistant", "content": written(p[1])}, p[2]] for p in prompts]
        tok = kept_template()
    said = answers(model, tok, prompts, 40, progress=False)
    return [float(answer_of(one["text"]).strip() == row["messages"][3]["content"]) for one, row in zip(said, rows)]


def written(message: dict) -> str:
    return f"<think>\n{message['reasoning_content']}\n</think>\n\n{message['content']}"


def kept_template():
    "SmolLM2's tokenizer with plain ChatML, which keeps every text."
    tok = load_tokenizer(smollm2())
    tok.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return tok


def run(point: dict, quick: bool) -> dict:
    tok = load_tokenizer(smollm2())
    tok.chat_template = (files("trl") / "chat_templates" / "qwen3.jinja").read_text(encoding="utf-8")
    held = talks(4 if quick else 30, 10_000)
    known = {row["messages"][0]["content"] for row in held}
    chats = [row for row in talks(400, point["seed"]) if row["messages"][0]["content"] not in known]
    rows, account = encode_chats(tok, Dataset.from_list(chats[: 16 if quick else 96]), thoughts=point["thinking"])
    model = load_model(smollm2(), bits=32)
    model = add_adapter(model, lora_config(model, r=16), point["seed"])
    batch = 8 * account["rows"] // account.get("conversations", account["rows"])
    how = {"effective_batch": batch, "learning_rate": 1e-3, "seed": point["seed"], "num_train_epochs": 1}
    losses = train(model, tok, rows, **how)
    with_thought = {}
    if point["thinking"] == "keep":
        with_thought = score(interval(right(model, tok, held, True)), "thought_seen")
    return {
        "rows": account["rows"],
        "tokens": account["tokens"],
        "trained_tokens": account["trained_tokens"],
        **score(interval(right(model, tok, held, False)), "code"),
        **with_thought,
        "last_loss": round(losses[-1], 4),
    }


if __name__ == "__main__":
    points = [{"thinking": thinking, "seed": seed} for seed in range(3) for thinking in ("keep", "drop", "expand")]
    measure(__file__, points, run, SETTINGS, __doc__)
