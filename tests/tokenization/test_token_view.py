"""Edges of the ribbon and the figure of `ft_notebooks.tokenization.token_view`: strange texts, long rows, batches."""

import random
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from ft_notebooks.data.chat_encoding import encode_chat
from ft_notebooks.loading.example_models import tiny_tokenizer
from ft_notebooks.tokenization.padding import IGNORE, pad_batch
from ft_notebooks.tokenization.token_view import _CSS, TokenRibbon, _drawn, _Part, plot_labels, show_tokens


def words(*turns):
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(turns)]


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
    assert "日" in [text for text, _ in ribbon.tokens] and "⟦··日···🙂‹<|im_end|>›⟧" in str(ribbon)


def test_a_printed_row_has_brackets():
    tok = tiny_tokenizer()
    rows = [encode_chat(tok, words("hi", "yo")), encode_chat(tok, words("a longer question", "yo"))]
    ribbon = show_tokens(tok, {key: value[0] for key, value in pad_batch(rows, tok.pad_token_id).items()})
    text = str(ribbon)
    assert "hi‹<|im_end|>›⏎\n" in text and "⟦yo‹<|im_end|>›⟧⏎\n~<pad>" in text


def test_a_text_with_escape_codes_does_nothing_to_a_terminal_or_a_page():
    tok, nasty = tiny_tokenizer(), "a\x1b[2J\x1b]0;title\x07\r\x9b1m\u202e\u2028\x00\tb\" onmouseover='x'><img src=x>"
    ribbon = show_tokens(tok, encode_chat(tok, words(nasty, "yo")))
    assert not {"\x1b[2J", "\x1b]", "\x07", "\r", "\x9b", "\u202e", "\u2028", "\x00", "\t"} & {*str(ribbon)}
    assert "\x1b[2J" not in str(ribbon) and r"\x1b[2J" in str(ribbon)
    assert all(c.isprintable() for c in ribbon._repr_html_())


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.seen, self.text, self.titles = set(), "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.add((tag, *sorted(name for name, _ in attrs)))
        self.titles += [value for name, value in attrs if name == "title"]

    def handle_data(self, data):
        self.text += data


def test_the_page_has_only_harmless_tags_and_every_token_says_its_position_and_id():
    tok = tiny_tokenizer()
    row = encode_chat(tok, words("<img src=x onerror=alert(1)>", "\"yo\" & 'so'"))
    page = Tags(show_tokens(tok, row)._repr_html_())
    chips = {(tag, "dir", "style", "title") for tag in ("b", "span")}
    assert page.seen == chips | {("div", "style"), ("br",), ("wbr",)}
    assert "<img" in page.text and "\"yo\"\xa0&\xa0'so'" in page.text
    for at, i in enumerate(row["input_ids"]):
        assert any(title.startswith(f"token {at}, id {i}: ") for title in page.titles)


def test_every_filled_kind_brings_a_text_colour_that_reads_on_it():
    def light(colour):  # relative luminance of WCAG 2
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return np.dot([0.2126, 0.7152, 0.0722], linear)

    filled = 0
    for css in _CSS.values():
        style = dict(part.split(":") for part in css.split(";"))
        if style.get("background-color", "rgba").startswith("#"):
            high, low = sorted((light(style["background-color"]), light(style["color"])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5
            filled += 1
    assert filled == 3


def test_the_texts_of_the_tokens_are_the_text_whatever_the_ids():
    tok, draw = tiny_tokenizer(), random.Random(0)
    for _ in range(200):
        ids = draw.choices(range(len(tok)), k=draw.randint(0, 30))
        ribbon = show_tokens(tok, {"input_ids": ids, "labels": ids})
        assert len(ribbon.tokens) == len(ids) and "".join(text for text, _ in ribbon.tokens) == tok.decode(ids)


def test_a_sentencepiece_tokenizer_keeps_its_spaces():
    vocab = {"<unk>": 0, "▁Hello": 1, "▁big": 2, "▁world": 3, "!": 4, "</s>": 5}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.decoder = decoders.Metaspace()
    tok = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")
    assert tok.decode([2]) == "big"
    ribbon = show_tokens(tok, {"input_ids": [1, 2, 3, 4, 5], "labels": [IGNORE, IGNORE, 3, 4, 5]})
    assert [text for text, _ in ribbon.tokens[:4]] == ["Hello", " big", " world", "!"]
    assert ribbon.tokens[4][1] == "trained special"


def test_added_tokens_that_are_only_spaces_are_text():
    tok = tiny_tokenizer()
    tok.add_tokens(["    ", "<tool>"])
    ids = tok("a    <tool>b").input_ids
    ribbon = show_tokens(tok, {"input_ids": ids, "labels": [IGNORE, *ids[1:]]})
    kinds = ["context", "trained", "trained special", "trained"]
    assert ribbon.tokens == tuple(zip(["a", "    ", "<tool>", "b"], kinds))


def test_a_label_on_the_first_token_trains_nothing_and_one_on_padding_is_seen():
    tok = tiny_tokenizer()
    row = {"input_ids": [70, 71, 0, 0], "labels": [70, 71, IGNORE, 0], "attention_mask": [1, 1, 0, 0]}
    ribbon = show_tokens(tok, row)
    assert [kind for _, kind in ribbon.tokens] == ["context", "trained", "padding", "trained padding"]
    legend = plot_labels({key: torch.tensor([value]) for key, value in row.items()}).legends[0].texts
    names = ["trained padding", "trained", "context", "padding"]
    assert [text.get_text() for text in legend] == [f"{name} 25 %" for name in names]
    assert "D55E00" in ribbon._repr_html_() and "⟦~" in str(ribbon)
    assert repr(ribbon) == "TokenRibbon(1 of 2 tokens trained (50 %), 2 of padding, of which 1 trained)"


def test_a_shortened_row_keeps_every_border_and_counts_what_it_leaves_out():
    draw = random.Random(0)
    for _ in range(100):
        runs = [(kind, draw.choice([1, 2, 3, 400])) for kind in draw.choices(["trained", "context", "special"], k=9)]
        tokens = [(str(at), kind) for kind, n in runs for at in range(n)]
        shown = _drawn(tokens, 60)
        assert [part.first for part in shown] == [0, *(part.last + 1 for part in shown[:-1])]
        assert shown[-1].last == len(tokens) - 1 and len(shown) <= 60 + 9
        borders = {at for at in range(1, len(tokens)) if tokens[at - 1][1] != tokens[at][1]}
        drawn = {part.first for part in shown if part.first == part.last}
        assert borders | {at - 1 for at in borders} <= drawn
        left_out = [part for part in shown if part.first != part.last]
        assert all(part.text == f"⋯ {part.last - part.first + 1:,} more ⋯" for part in left_out)


def test_a_row_with_more_borders_than_the_limit_loses_its_middle_and_none_draws_all():
    tokens = [("x", "trained" if at % 2 else "context") for at in range(5000)]
    shown = _drawn(tokens, 100)
    assert len(shown) == 101 and shown[50] == _Part("⋯ 4,900 more ⋯", "context", 50, 4949)
    assert len(_drawn(tokens, None)) == 5000
    tok = tiny_tokenizer()
    assert "more ⋯" in str(show_tokens(tok, encode_chat(tok, words("hi", "yo" * 50)), max_tokens=40))
    ribbon = TokenRibbon(tuple(tokens), tuple(range(5000)), 100)
    assert len(ribbon._repr_html_()) < 30_000 and "2,500 of 5,000 tokens trained (50 %)" in ribbon._repr_html_()


@pytest.mark.parametrize(
    "row, message",
    [
        ({"input_ids": [1, 2]}, "the row has no 'labels'"),
        ({"input_ids": [1, 2], "labels": [1]}, r"'labels': \(1,\)"),
        ({"input_ids": [[1, 2]], "labels": [[1, 2]]}, "show one row of a batch"),
        ({"input_ids": [1, 2], "labels": [1, 2], "attention_mask": [1]}, r"'attention_mask': \(1,\)"),
    ],
)
def test_what_is_not_one_row_raises_with_the_cure(row, message):
    with pytest.raises(ValueError, match=message):
        show_tokens(tiny_tokenizer(), row)


def test_an_empty_row_is_shown_as_such():
    ribbon = show_tokens(tiny_tokenizer(), {"input_ids": [], "labels": []})
    assert "0 of 0 tokens" in ribbon._repr_html_() and "0 of 0 tokens" in str(ribbon)


def test_the_figure_of_a_batch_has_every_position_in_its_colour():
    from matplotlib.colors import to_rgba

    draw = random.Random(0)
    rows = [[draw.choice([IGNORE, 5]) for _ in range(draw.randint(2, 9))] for _ in range(5)]
    batch = pad_batch([{"input_ids": [5] * len(row), "labels": row} for row in rows], 0)
    fig = plot_labels(batch)
    image = fig.axes[0].images[0].get_array()
    tall, wide = image.shape[0] // 5, image.shape[1] // batch["labels"].shape[1]
    colours = {"padding": (0, 0, 0, 0), "context": to_rgba("#B4B4B4"), "trained": to_rgba("#0072B2")}
    counts = dict.fromkeys(colours, 0)
    for b, row in enumerate(rows):
        for t in range(batch["labels"].shape[1]):
            kind = "padding" if t >= len(row) else "trained" if t and row[t] != IGNORE else "context"
            assert tuple(image[b * tall + tall // 2, t * wide + wide // 2]) == colours[kind]
            counts[kind] += 1
    legend = [text.get_text() for text in fig.legends[0].texts]
    assert legend == [f"{kind} {100 * n / batch['labels'].numel():.0f} %" for kind, n in reversed(counts.items())]


def test_the_figure_opens_no_window():
    import matplotlib.pyplot as plt

    plot_labels(pad_batch([[5, 6], [7]], 0))
    assert plt.get_fignums() == []


def test_one_row_is_no_batch():
    with pytest.raises(ValueError, match=r"shape \(B, T\), got \(3,\)"):
        plot_labels({"labels": torch.tensor([1, 2, 3])})
