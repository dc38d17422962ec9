"""Edges of `ft_notebooks.tokenization.chat_template` and `answer_spans`: every template that TRL ships, random
conversations, both ways of finding an answer.
"""

import random
import re
from pathlib import Path

import pytest
import trl
from tokenizers import Regex
from tokenizers.pre_tokenizers import Sequence, Split
from tokenizers.processors import TemplateProcessing

from ft_notebooks.loading.example_models import CHATML, tiny_tokenizer
from ft_notebooks.tokenization.chat_template import CUT, ChatTemplate

FOLDER = Path(trl.__file__).parent / "chat_templates"
TEXT = sorted(p.stem for p in FOLDER.glob("*.jinja") if not re.search("_vl|idefics|llava|smolvlm", p.stem))
TOKENS = re.compile(
    r"<\|[^|<>\s'\"]+\|>|<｜[^｜<>\s]+｜>|<(?:start|end)_of_turn>|\[gMASK\]|<sop>|<turn\|>|<\|turn>|</?think>"
)
PIECES = [
    "a",
    "B c",
    " ",
    "\n",
    "\n\n",
    "é",
    "日本",
    "🙂",
    "user\n",
    "assistant\n",
    "{{ x }}",
    "<b>",
    "end",
    "\t",
    ".",
    "|>",
    "final",
    "<|im_end|>",
]


class OneByOne(ChatTemplate):
    "Finds every answer without the frame."

    def framed(self, messages, text, **template):
        return None


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
    tok, draw, framed = with_tokens(name), random.Random(name), 0
    template, slow = ChatTemplate(tok), OneByOne(tok)
    for _ in range(12):
        chat = words(
            *("".join(draw.choices(PIECES, k=draw.randint(1, 4))) + "x" for _ in range(2 * draw.randint(1, 3)))
        )
        text = template.render(chat)
        quick = template.framed(chat, text)
        if quick is not None:
            framed += 1
            assert quick == slow.answers(chat, text)
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
    assert told(OneByOne(tok), words("a", "  b")) == told(ChatTemplate(tok), words("a", "  b")) == ["  b<|im_end|>"]


def test_a_variable_of_the_template_is_learnt_again():
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


def test_a_conversation_that_the_template_cannot_write_is_a_value_error():
    tok = tiny_tokenizer()
    tok.chat_template = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('begin with a system message') }}{% endif %}"
    )
    with pytest.raises(ValueError, match="cannot write the conversation: TemplateError: begin with a system message"):
        ChatTemplate(tok).render(words("a", "b"))


def test_a_tool_call_that_the_template_cannot_write_is_named_with_the_cure():
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}
    with pytest.raises(ValueError, match="message 2 calls a tool: use a template that writes tool calls, or leave"):
        ChatTemplate(tiny_tokenizer()).render([*words("a"), call])


def test_a_tag_that_the_template_writes_is_text_in_a_question_and_a_tag_in_an_answer():
    tok = tiny_tokenizer()
    tok.add_tokens(["<think>", "</think>", "<other>"])
    tok.chat_template += "{# reasoning stands between <think> and </think> #}"
    template, chat = ChatTemplate(tok), words("<think>a</think><other>", "<think>b</think>c<|im_start|>")
    text = template.render(chat)
    [(ids, _)] = template.tokenize([text])
    counts = [ids.count(tok.convert_tokens_to_ids(t)) for t in ("<think>", "</think>", "<other>", "<|im_start|>")]
    assert counts == [1, 1, 1, 2] and text.count(CUT) == 3


def test_a_tokenizer_that_adds_bos_adds_none_to_a_rendered_text():
    tok = tiny_tokenizer()
    tok.chat_template = "{{ bos_token }}" + CHATML
    tok.add_special_tokens({"bos_token": "<s>"})
    special = [("<s>", tok.bos_token_id)]
    tok.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=special)
    template = ChatTemplate(tok)
    [(ids, places)] = template.tokenize([template.render(words("<s>a", "b"))])
    assert tok("a").input_ids[0] == tok.bos_token_id and ids.count(tok.bos_token_id) == 1 and places[0] == (0, 3)


def told(template, chat):
    text = template.render(chat)
    return [text[start:end] for start, end in template.answers(chat, text)]


def test_the_tag_of_an_empty_reasoning_is_the_answers_though_the_generation_prompt_opens_one():
    template = OneByOne(with_tokens("nemotron_3_nano"))
    assert template.render(words("Q"), add_generation_prompt=True).endswith("<think>\n")
    assert told(template, words("Q", "A")) == ["<think></think>A<|im_end|>"]


def test_words_that_look_like_the_end_of_a_token_are_found_in_their_place():
    template = OneByOne(with_tokens("phi3"))
    assert told(template, words("Q", "|>", "Q", "end", "Q", "<|")) == ["|><|end|>", "end<|end|>", "<|<|end|>"]


@pytest.mark.parametrize("name", ["gptoss", "phi3", "llama3", "gemma", "qwen2_5", "deepseekv3", "nemotron_3_nano"])
def test_a_plain_conversation_is_in_the_templates_frame(name):
    tok, chat = with_tokens(name), words("one", "two", "three", "four", "five", "six")
    template = ChatTemplate(tok)
    text = template.render(chat)
    assert template.framed(chat, text) == OneByOne(tok).answers(chat, text)


def test_an_answer_that_the_template_writes_otherwise_is_in_no_frame():
    source = (
        "{% for m in messages %}{{ m.role + ':' + m.content + (' (sic)' if 'x' in m.content else '') + '<|im_end|>' }}"
    )
    source += "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    template = ChatTemplate(tiny_tokenizer(), source)
    for chat, fits in ((words("a", "b"), True), (words("a", "x"), False)):
        assert (template.framed(chat, template.render(chat)) is not None) == fits
    assert told(template, words("a", "x")) == ["x (sic)<|im_end|>"]


def test_a_pattern_that_makes_the_tokenizer_panic_is_an_error():
    tok = tiny_tokenizer()
    slow = Split(Regex("(a|aa)+$"), "isolated")
    tok.backend_tokenizer.pre_tokenizer = Sequence([slow, tok.backend_tokenizer.pre_tokenizer])
    with pytest.raises(ValueError, match="the tokenizer fails on a text .*tokenizer.json"):
        ChatTemplate(tok).tokenize(["a" * 60 + "!"])
