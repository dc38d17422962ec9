"What a chat template does with thoughts, found by rendering, and where training shows another text than use does"

import json
import logging
from dataclasses import dataclass

from datasets import Dataset
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ft_notebooks.data.chat_encoding import encode_chat
from ft_notebooks.data.prompt_in_use import check_prompts
from ft_notebooks.tokenization.padding import IGNORE
from ft_notebooks.tokenization.rendering import write_chat

FIELDS = ("reasoning_content", "reasoning", "thinking", "<think> in content")
VARIABLES: tuple[dict, ...] = ({}, {"enable_thinking": False}, {"enable_thinking": True})


def _answer(words: str, thought: str | None, field: str) -> dict:
    message = {"role": "assistant", "content": words}
    if thought is None:
        return message
    if field in message or " in " in field:
        return {**message, "content": f"<think>\n{thought}\n</think>\n\n{words}"}
    return {**message, field: thought}


def conversation(turns: int, field: str | None = None) -> list[dict]:
    "Questions and answers; with a thought in each answer where a field is given."
    found = []
    for n in range(1, turns + 1):
        found.append({"role": "user", "content": f"Question {n}?"})
        found.append(_answer(f"Answer {n}.", f"Thought {n}." if field else None, field or ""))
    return found


def _written(tok, messages: list[dict], **variables) -> str | None:
    try:
        return write_chat(tok, messages, **variables)
    except (TemplateError, TypeError, ValueError):
        return None


def _fate(text: str | None, thought: str) -> str:
    return "refused" if text is None else "kept" if thought in text else "removed"


def field_of(tok: PreTrainedTokenizerBase) -> str | None:
    "The field from which the template writes the last answer's thought; None if from none."
    for field in FIELDS:
        text = _written(tok, conversation(1, field))
        if text and "Thought 1." in text:
            return field
    return None


def rules(tok: PreTrainedTokenizerBase) -> dict[str, str]:
    "A row of the table."
    field = field_of(tok)
    asked = conversation(1)[:1]
    prompts = [_written(tok, asked, add_generation_prompt=True, **variables) or "" for variables in VARIABLES]
    begins = [prompt.rpartition("Question 1?")[2] for prompt in prompts]
    text = _written(tok, conversation(2, field)) if field else ""
    plain = _written(tok, conversation(1)) or ""
    before = plain.partition("Question 1?")[2].partition("Answer 1.")[0]
    return {
        "field": field or "none",
        "earlier thoughts": _fate(text, "Thought 1.") if field else "–",
        "last thought": _fate(text, "Thought 2.") if field else "–",
        "before an answer without thought": before,
        "prompt": begins[0],
        "enable_thinking=False": "the same" if begins[1] == begins[0] else begins[1],
        "enable_thinking=True": "the same" if begins[2] == begins[0] else begins[2],
    }


@dataclass(frozen=True)
class Difference:
    "An answer before which training shows another text than the prompt in use."

    chat: str  # which conversation
    answer: int
    trained: str  # the last characters before the answer, with those of the answer that are no words of it
    prompt: str
    alike: str  # the variable with which the prompt in use is the trained text; "" if none
    said: str  # what the package says of it; "" if nothing

    @property
    def silent(self) -> bool:
        return not self.said

    def __str__(self):
        cure = f", alike with {self.alike}" if self.alike else ""
        said = f" ({self.said})" if self.said else ""
        return f"{self.chat}, answer {self.answer}: trained {self.trained!r}, in use {self.prompt!r}{cure}{said}"


class _Said(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def _encoded(tok, chat: list[dict]) -> tuple[dict | None, str]:
    "The row, and what the package says of it before step 1; no row where it cannot be encoded."
    said, log = _Said(), logging.getLogger("ft_notebooks.data.chat_encoding")
    log.addHandler(said)
    try:
        row = encode_chat(tok, chat)
    except ValueError as e:
        return None, f"refused: {e}"
    finally:
        log.removeHandler(said)
    try:
        check_prompts(tok, Dataset.from_list([{"messages": chat}]))
    except ValueError as e:
        said.lines.append(f"refused: {e}")
    return row, "; ".join(said.lines)


def _stretches(labels: list[int]) -> list[tuple[int, int]]:
    starts = [i for i, label in enumerate(labels) if label != IGNORE and (i == 0 or labels[i - 1] == IGNORE)]
    ends = [i + 1 for i, label in enumerate(labels) if label != IGNORE and labels[i + 1 : i + 2] in ([], [IGNORE])]
    return list(zip(starts, ends))


def _tail(text: str, shared: str) -> str:
    "The end of a text from the line on in which it leaves another."
    same = next((i for i, (a, b) in enumerate(zip(text, shared)) if a != b), min(len(text), len(shared)))
    return text[max(0, same - 20) :][:60]


def differences(tok: PreTrainedTokenizerBase) -> list[Difference]:
    "Of conversations of one and two turns, with and without thoughts; a refused one is no difference."
    found, field = [], field_of(tok)
    chats = {f"{turns} turns": conversation(turns) for turns in (1, 2)}
    chats |= {f"{turns} turns with thoughts": conversation(turns, field) for turns in (1, 2) if field}
    for name, chat in chats.items():
        row, said = _encoded(tok, chat)
        if row is None:
            continue
        answers = [i for i, message in enumerate(chat) if message["role"] == "assistant"]
        for number, (i, (start, end)) in enumerate(zip(answers, _stretches(row["labels"])), 1):
            trained = tok.decode(row["input_ids"][:end])
            prompts = [_written(tok, chat[:i], add_generation_prompt=True, **variables) for variables in VARIABLES]
            alike = [json.dumps(v) for v, p in zip(VARIABLES, prompts) if p is not None and trained.startswith(p)]
            if prompts[0] is not None and not trained.startswith(prompts[0]):
                tails = _tail(trained, prompts[0]), _tail(prompts[0], trained)
                found.append(Difference(name, number, *tails, (alike or [""])[0], said))
    return found
