"Edges of `ft_notebooks.templates`: every template that TRL ships, random conversations, both ways of finding an answer."

import random
import re
from pathlib import Path

import pytest
import trl

from ft_notebooks.models import tiny_tokenizer
from ft_notebooks.templates import CUT, ChatTemplate, _asked

FOLDER = Path(trl.__file__).parent / "chat_templates"
TEXT = sorted(p.stem for p in FOLDER.glob("*.jinja") if not re.search("_vl|idefics|llava|smolvlm", p.stem))
TOKENS = re.compile(r"<\|[^|<>\s'\"]+\|>|<｜[^｜<>\s]+｜>|<(?:start|end)_of_turn>|\[gMASK\]|<sop>|<turn\|>|<\|turn>|</?think>")
PIECES = ["a", "B c", " ", "\n", "\n\n", "é", "日本", "🙂", "user\n", "assistant\n", "{{ x }}", "<b>", "end", "\t", ".", "|>", "final", "<|im_end|>"]


def words(*turns):
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(turns)]


def with_tokens(name):
    tok, source = tiny_tokenizer(), (FOLDER / f"{name}.jinja").read_text()
    marks = sorted({*TOKENS.findall(source), "<bos>"})
    tok.add_tokens([mark for mark in marks if "think" in mark])
    special = [mark for mark in marks if "think" not in mark]
    tok.add_special_tokens({"additional_special_tokens": special, "bos_token": "<bos>"})
    tok.chat_template = source
    return tok


@pytest.mark.parametrize("name", TEXT)
def test_the_frame_finds_what_asking_one_at_a_time_finds(name):
    template, draw, framed = ChatTemplate(with_tokens(name)), random.Random(name), 0
    for _ in range(25):
        chat = words(*("".join(draw.choices(PIECES, k=draw.randint(1, 4))) + "x" for _ in range(2 * draw.randint(1, 3))))
        text = template.render(chat)
        quick = template.framed(chat, text)
        if quick is not None:
            framed += 1
            assert quick == _asked(template, chat, text, {})
            for (start, end), message in zip(quick, chat[1::2]):
                assert message["content"].strip() in text[start:end].replace(CUT, "")
    assert framed or template.framed(words("Q", "A"), template.render(words("Q", "A"))) is None


def test_a_text_of_another_template_is_in_no_frame():
    template = ChatTemplate(tiny_tokenizer())
    chat = words("a", "b")
    assert template.framed(chat, template.render(chat) + " ") is None


def test_a_space_behind_the_generation_prompt_is_not_taken_for_the_answers():
    tok = tiny_tokenizer()
    tok.chat_template += " "
    template, chat = ChatTemplate(tok), words("a", "  b")
    text = template.render(chat)
    assert [text[start:end] for start, end in _asked(template, chat, text, {})] == ["  b<|im_end|>"]


def test_a_variable_of_the_template_is_learnt_anew():
    source = "{% for m in messages %}{{ m.role + (sign or ':') + m.content + '<|im_end|>' }}{% endfor %}"
    source += "{% if add_generation_prompt %}{{ 'assistant' + (sign or ':') }}{% endif %}"
    template, chat = ChatTemplate(tiny_tokenizer(), source), words("a", "b")
    for sign in (":", "=>", ":"):
        text = template.render(chat, sign=sign)
        assert [text[s:e] for s, e in template.answers(chat, text, sign=sign)] == ["b<|im_end|>"]


def test_no_template_is_an_error():
    tok = tiny_tokenizer()
    tok.chat_template = None
    with pytest.raises(ValueError, match="has no chat template"):
        ChatTemplate(tok)


def test_the_noncharacter_that_cuts_may_not_come_in_with_a_text():
    with pytest.raises(ValueError, match=r"holds U\+FDD0"):
        ChatTemplate(tiny_tokenizer()).render(words(f"a{CUT}", "b"))


def test_a_conversation_that_the_template_refuses_is_our_error():
    tok = tiny_tokenizer()
    tok.chat_template = "{% if messages[0].role != 'system' %}{{ raise_exception('begin with a system message') }}{% endif %}"
    with pytest.raises(ValueError, match="cannot write the conversation: TemplateError: begin with a system message"):
        ChatTemplate(tok).render(words("a", "b"))
