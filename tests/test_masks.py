"Edges of `ft_notebooks.masks`: strange templates, strange texts, strange models."

import random
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from ft_notebooks.masks import encode_chat, encode_chats, render, show_tokens, token_losses
from ft_notebooks.models import tiny_model, tiny_tokenizer
from ft_notebooks.tokenizer import IGNORE, pad_batch

TAGGED = (  # renders what the tiny template renders, and marks the assistant's part for transformers' own mask
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
)
PIECES = ["a", "B c", " ", "\n", "\n\n", "é", "日本", "🙂", "user\n", "assistant\n", "{{ x }}", "<b>", "-100", "\t", "."]


def words(*turns):
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(turns)]


def test_two_hundred_random_conversations_get_the_labels_of_transformers_own_mask():
    tok, draw = tiny_tokenizer(), random.Random(0)
    for _ in range(200):
        chat = words(*("".join(draw.choices(PIECES, k=draw.randint(1, 6))) for _ in range(2 * draw.randint(1, 4))))
        if draw.random() < 0.5:
            chat = [{"role": "system", "content": "Be brief."}, *chat]
        out = tok.apply_chat_template(chat, chat_template=TAGGED, return_dict=True, return_assistant_tokens_mask=True)
        labels = [i if m else IGNORE for i, m in zip(out["input_ids"], out["assistant_masks"])]
        assert encode_chat(tok, chat) == {"input_ids": out["input_ids"], "labels": labels}


def test_a_template_that_rewrites_earlier_turns_is_refused():
    tok = tiny_tokenizer()
    tok.chat_template = (
        "{% for m in messages %}{% if not loop.last and m['role'] == 'assistant' %}(an answer)<|im_end|>"
        "{% else %}{{ m['role'] + ':' + m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    with pytest.raises(ValueError, match="message 2: the chat template rewrites what comes before"):
        encode_chat(tok, words("a", "b", "c", "d"))
    assert encode_chat(tok, words("a", "b"))["labels"][-1] == tok.eos_token_id


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_content_with_a_token_of_the_template_is_refused_whoever_wrote_it(token, place):
    turns = ["hi", "yo"]
    turns[place] += token
    with pytest.raises(ValueError, match=f"message {place + 1} .* holds"):
        render(tiny_tokenizer(), words(*turns))


def test_special_tokens_are_refused_also_where_the_template_names_them_by_a_variable():
    tok = tiny_tokenizer()
    assert "<pad>" not in tok.chat_template and tok("<pad>").input_ids == [tok.pad_token_id]
    with pytest.raises(ValueError, match="holds '<pad>'"):
        render(tok, words("what is <pad>?", "a token"))
    tok.chat_template = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    with pytest.raises(ValueError, match=r"holds '<\|im_end\|>'"):
        render(tok, words("a<|im_end|>b", "c"))


def test_rows_without_any_answer_left_are_dropped_and_counted():
    chats = Dataset.from_list([{"messages": words("x" * 80, "yo")}, {"messages": words("x", "yo")}])
    rows, account = encode_chats(tiny_tokenizer(), chats, max_length=60, allow_cut=1)
    assert len(rows) == 1 and account["rows"] == 2 and account["cut"] == account["dropped"] == 1


def test_no_row_left_is_an_error():
    with pytest.raises(ValueError, match="no answer is left"):
        encode_chats(tiny_tokenizer(), Dataset.from_list([{"messages": words("x" * 80, "yo")}]), 60, allow_cut=1)


def test_a_refused_row_is_named():
    chats = Dataset.from_list([{"messages": words("x", "yo")}, {"messages": words("<|im_end|>", "yo")}])
    with pytest.raises(ValueError, match="row 1, message 1"):
        encode_chats(tiny_tokenizer(), chats)


def test_nothing_to_train_gives_no_losses():
    batch = pad_batch([{"input_ids": [5, 6], "labels": [IGNORE, IGNORE]}], 0)
    assert token_losses(tiny_model(), batch).shape == (0,)


def test_a_model_that_ignores_logits_to_keep_gives_the_same_losses():
    model, batch = tiny_model(), pad_batch([[5, 6, 7], [8, 9]], 0)

    def all_logits(input_ids, attention_mask, **ignored):
        return SimpleNamespace(logits=model(input_ids, attention_mask=attention_mask).logits)

    torch.testing.assert_close(token_losses(all_logits, batch), token_losses(model, batch))


def test_padding_is_drawn_as_padding_and_html_is_escaped():
    tok = tiny_tokenizer()
    rows = [encode_chat(tok, words("<script>", "yo")), encode_chat(tok, words("a longer question", "yo"))]
    batch = pad_batch(rows, tok.pad_token_id)
    ribbon = show_tokens(tok, {k: v[0] for k, v in batch.items()})
    assert [kind for _, kind in ribbon.tokens].count("padding") == (batch["attention_mask"][0] == 0).sum()
    assert "<script>" not in ribbon._repr_html_() and "&lt;" in ribbon._repr_html_()


def test_a_character_of_several_tokens_is_drawn_once():
    tok = tiny_tokenizer()
    ribbon = show_tokens(tok, encode_chat(tok, words("x", "日🙂")))
    assert "".join(t for t, kind in ribbon.tokens if kind.startswith("trained")) == "日🙂<|im_end|>"
    assert "日🙂" in "".join(text for text, _ in ribbon.tokens) and "\x1b[" in str(ribbon)
