"""Edges of `ft_notebooks.tokenization.template_checks`: every template that TRL ships, defaults in unusual places."""

from pathlib import Path

import pytest
import trl
from jinja2 import TemplateError
from tokenizers.processors import TemplateProcessing

from ft_notebooks.loading.example_models import CHATML, tiny_tokenizer
from ft_notebooks.tokenization.template_checks import template_additions

FOLDER = Path(trl.__file__).parent / "chat_templates"


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
def test_only_templates_that_read_the_clock_change_by_day(template):
    if template.removesuffix("_training") in ("idefics3", "llava_next", "smolvlm"):
        pytest.skip("takes lists of parts only; load_tokenizer raises ValueError for it")
    read = {"llama3_2", "gptoss", "gptoss_training", "muse_glimmer", "muse_glimmer_training"}
    assert template_additions(tokenizer(template, bos="<s>"))["date"] == (template in read)


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
