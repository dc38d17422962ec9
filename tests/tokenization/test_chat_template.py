"""Edges of `ft_notebooks.tokenization.chat_template`: every template that TRL ships, random conversations, both ways of
finding an answer.
"""

import random
import re
from pathlib import Path

import pytest
import trl
from jinja2 import TemplateError
from tokenizers.processors import TemplateProcessing

from ft_notebooks.loading.example_models import CHATML, tiny_tokenizer
from ft_notebooks.tokenization.chat_template import CUT, ChatTemplate, _asked, template_additions

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
    for _ in range(12):
        chat = words(
            *("".join(draw.choices(PIECES, k=draw.randint(1, 4))) + "x" for _ in range(2 * draw.randint(1, 3)))
        )
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
    tok.chat_template = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('begin with a system message') }}{% endif %}"
    )
    with pytest.raises(ValueError, match="cannot write the conversation: TemplateError: begin with a system message"):
        ChatTemplate(tok).render(words("a", "b"))


def tokenizer(template, bos=None, adds=False):
    "The tiny tokenizer with a template of TRL's or one given as text, and with a BOS token that it adds or not."
    tok = tiny_tokenizer()
    file = FOLDER / f"{template}.jinja"
    tok.chat_template = file.read_text() if len(template) < 40 and file.exists() else template
    if bos:
        tok.add_special_tokens({"bos_token": bos})
    if adds:
        special = [(bos, tok.bos_token_id)]
        tok.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=special)
    return tok


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("qwen2_5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
        ("qwen2_5_vl", "You are a helpful assistant."),
        ("qwen2_5_training", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    ],
)
def test_the_default_system_message_is_found_word_for_word(template, words):
    assert template_additions(tokenizer(template)) == {"bos": None, "system": words, "date": False}


def test_a_default_that_holds_a_date_is_both():
    found = template_additions(tokenizer("muse_glimmer", bos="<s>"))
    assert found["system"].startswith("You are a helpful AI assistant.\n") and "Current date: " in found["system"]
    assert found["date"] and found["bos"] == "template"


@pytest.mark.parametrize(
    "template", ["llama3_1", "qwen3_8", "cohere2", "gptoss", "nemotron_3_nano", "qwen3", "lfm2", "gemma", "gemma3"]
)
def test_what_a_system_message_does_not_replace_is_none(template):
    assert template_additions(tokenizer(template, bos="<s>"))["system"] is None


def test_words_that_begin_like_the_end_of_the_turn_are_whole():
    template = CHATML.replace(
        "{% for", "{% if messages[0].role != 'system' %}<|im_start|>system\n<|kind|><|im_end|>\n{% endif %}{% for", 1
    )
    assert template_additions(tokenizer(template))["system"] == "<|kind|>"


@pytest.mark.parametrize(
    ("given", "default"),
    [
        ("<|im_start|>system\n{{ messages[0].content }}", "<|im_start|>default\nbe kind"),
        ("<|im_start|>system\n{{ messages[0].content }} Obey.", "<|im_start|>system\nbe kind to everybody"),
    ],
)
def test_words_that_do_not_stand_where_a_given_message_would_are_none_rather_than_half_of_them(given, default):
    opening = "{% if messages[0].role == 'system' %}" + given + "{% else %}" + default + "{% endif %}<|im_end|>\n"
    template = opening + "<|im_start|>user\n{{ messages[-1].content }}<|im_end|>\n"
    assert template_additions(tokenizer(template))["system"] is None


@pytest.mark.parametrize(
    ("template", "adds", "bos"),
    [
        (CHATML, False, None),
        (CHATML, True, "tokenizer"),
        ("{{ bos_token }}" + CHATML, False, "template"),
        ("{{ bos_token }}" + CHATML, True, "both"),
    ],
)
def test_bos_comes_from_the_template_the_tokenizer_both_or_neither(template, adds, bos):
    tok = tokenizer(template, "<s>", adds)
    text = tok.apply_chat_template([{"role": "user", "content": "ping"}], tokenize=False)
    assert template_additions(tok)["bos"] == bos
    assert tok(text).input_ids.count(tok.bos_token_id) == {None: 0, "both": 2}.get(bos, 1)


@pytest.mark.parametrize("template", sorted(file.stem for file in FOLDER.glob("*.jinja")))
def test_only_templates_that_ask_the_clock_change_by_day(template):
    if template.removesuffix("_training") in ("idefics3", "llava_next", "smolvlm"):
        pytest.skip("takes lists of parts only; load_tokenizer refuses it")
    asks = {"llama3_2", "gptoss", "gptoss_training", "muse_glimmer", "muse_glimmer_training"}
    assert template_additions(tokenizer(template, bos="<s>"))["date"] == (template in asks)


def test_a_pinned_date_does_not_count():
    tok = tokenizer("llama3_2", bos="<s>")
    tok.chat_template = "{%- set date_string = '26 Jul 2024' %}" + tok.chat_template
    assert not template_additions(tok)["date"]


def test_nothing_is_changed_and_a_choice_of_templates_is_read():
    tok = tokenizer("qwen2_5")
    before = tok.chat_template
    template_additions(tok)
    assert tok.chat_template == before
    tok.chat_template = {"default": before, "tool_use": "{{ raise_exception('no') }}"}
    assert template_additions(tok)["system"].startswith("You are Qwen")


def test_a_template_that_cannot_write_a_question_fails_as_it_does():
    with pytest.raises(TemplateError, match="no words"):
        template_additions(tokenizer("{{ raise_exception('no words') }}"))


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
    tok = tokenizer("{{ bos_token }}" + CHATML, bos="<s>", adds=True)
    template = ChatTemplate(tok)
    [(ids, places)] = template.tokenize([template.render(words("<s>a", "b"))])
    assert tok("a").input_ids[0] == tok.bos_token_id and ids.count(tok.bos_token_id) == 1 and places[0] == (0, 3)


def told(template, chat):
    text = template.render(chat)
    return [text[start:end] for start, end in _asked(template, chat, text, {})]


def test_the_tag_of_an_empty_reasoning_is_the_answers_though_the_generation_prompt_opens_one():
    template = ChatTemplate(with_tokens("nemotron_3_nano"))
    assert template.render(words("Q"), add_generation_prompt=True).endswith("<think>\n")
    assert told(template, words("Q", "A")) == ["<think></think>A<|im_end|>"]


def test_words_that_look_like_the_end_of_a_token_are_found_in_their_place():
    template = ChatTemplate(with_tokens("phi3"))
    assert told(template, words("Q", "|>", "Q", "end", "Q", "<|")) == ["|><|end|>", "end<|end|>", "<|<|end|>"]


@pytest.mark.parametrize("name", ["gptoss", "phi3", "llama3", "gemma", "qwen2_5", "deepseekv3", "nemotron_3_nano"])
def test_a_plain_conversation_is_in_the_templates_frame(name):
    template, chat = ChatTemplate(with_tokens(name)), words("one", "two", "three", "four", "five", "six")
    text = template.render(chat)
    assert template.framed(chat, text) == _asked(template, chat, text, {})


def test_an_answer_that_the_template_writes_otherwise_is_in_no_frame():
    source = (
        "{% for m in messages %}{{ m.role + ':' + m.content + (' (sic)' if 'x' in m.content else '') + '<|im_end|>' }}"
    )
    source += "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    template = ChatTemplate(tiny_tokenizer(), source)
    for chat, fits in ((words("a", "b"), True), (words("a", "x"), False)):
        assert (template.framed(chat, template.render(chat)) is not None) == fits
    assert told(template, words("a", "x")) == ["x (sic)<|im_end|>"]
