"Whether answers are trained after the text that the model reads in use, by the templates that TRL knows."

from importlib.resources import files

import pytest
from datasets import Dataset

from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.data.prompt_in_use import check_prompts, different_prompts
from ft_notebooks.loading.example_models import tiny_tokenizer

SOURCES = files("trl") / "chat_templates"
TEMPLATES = sorted(file.name for file in SOURCES.iterdir() if file.name.endswith(".jinja"))
CURES = {  # of the templates that open a thought in use alone, by the beginning of their name
    "nemotron_3": "begin tok.chat_template with {% set enable_thinking = false %}",
    "deepseek": "give each answer the thought that the template begins",
}


def chat(turns: int, thoughts: bool = False) -> list[dict]:
    messages = []
    for n in range(turns):
        messages.append({"role": "user", "content": f"Question {n}?"})
        thought = {"reasoning_content": f"thought {n}"} if thoughts else {}
        messages.append({"role": "assistant", "content": f"Answer {n}.", **thought})
    return messages


def tokenizer(name: str):
    tok = tiny_tokenizer()
    tok.chat_template = (SOURCES / name).read_text(encoding="utf-8")
    return tok


def refused(tok, *chats) -> str:
    try:
        check_prompts(tok, Dataset.from_list([{"messages": one} for one in chats]))
    except ValueError as e:
        return str(e)
    return ""


@pytest.mark.parametrize("name", TEMPLATES)
def test_ordinary_rows_are_trained_with_every_template(name):
    said = refused(tokenizer(name), chat(3))
    cures = [cure for start, cure in CURES.items() if name.startswith(start)]
    if cures:
        assert cures[0] in said
    else:
        assert "is trained after" not in said  # a template may refuse the roles or the rows in its own words


def test_the_line_of_the_cure_is_one_that_was_tried():
    tok = tokenizer("nemotron_3_nano.jinja")
    assert "enable_thinking = false" in refused(tok, chat(1), chat(2))
    tok.chat_template = "{% set enable_thinking = false %}" + tok.chat_template
    assert refused(tok, chat(1), chat(2)) == ""


def test_rows_with_and_without_thoughts_may_be_mixed():
    tok = tokenizer("nemotron_3_nano.jinja")
    assert refused(tok, chat(1, True)) == "" == refused(tok, chat(1, True), chat(1, True), chat(1))
    assert refused(tok, chat(1), chat(1), chat(1, True))


def test_a_newline_too_many_has_a_cure_of_its_own():
    tok = tiny_tokenizer()
    tok.chat_template = tok.chat_template.replace("<|im_start|>assistant\n' }}", "<|im_start|>assistant\n\n' }}")
    assert refused(tok, chat(1)).endswith("what it writes before an answer in training")


def test_rows_far_into_the_dataset_are_looked_at():
    tok = tokenizer("nemotron_3_nano.jinja")
    assert refused(tok, *[chat(1, True)] * 64, *[chat(1)] * 640)


def test_what_the_twin_alone_writes_is_no_error():
    tok = tokenizer("qwen3.jinja")
    rows = Dataset.from_list([{"messages": chat(3, True)}])
    assert encode_chats(tok, rows)[1]["training_twin"] == 1 and different_prompts(tok, rows) == []
