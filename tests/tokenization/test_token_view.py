"""Edges of the ribbon and the figures of `ft_notebooks.tokenization.token_view`: strange texts, long rows, other ways
to count.
"""

import io
import random
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from trl import pack_dataset

from ft_notebooks.data.chat_encoding import encode_chat
from ft_notebooks.loading.example_models import tiny_tokenizer
from ft_notebooks.tokenization.padding import IGNORE, pad_batch
from ft_notebooks.tokenization.token_view import (
    _CSS,
    TokenRibbon,
    _answers,
    _drawn,
    _edges,
    _empty,
    _kinds,
    _packs,
    _texts,
    plot_labels,
    plot_lengths,
    show_tokens,
)


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


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("out, setting, coloured", [(Terminal, "", 1), (Terminal, "1", 0), (io.StringIO, "", 0)])
def test_only_a_terminal_gets_escape_codes_and_only_if_the_user_lets_it(monkeypatch, out, setting, coloured):
    tok = tiny_tokenizer()
    rows = [encode_chat(tok, words("hi", "yo")), encode_chat(tok, words("a longer question", "yo"))]
    ribbon = show_tokens(tok, {key: value[0] for key, value in pad_batch(rows, tok.pad_token_id).items()})
    monkeypatch.setattr(sys, "stdout", out())
    monkeypatch.setenv("NO_COLOR", setting)
    text = str(ribbon)
    assert ("\x1b" in text) == bool(coloured) == ("⟦" not in text)
    assert coloured or ("hi‹<|im_end|>›⏎\n" in text and "⟦yo‹<|im_end|>›⟧⏎\n~<pad>" in text)


def test_a_text_with_escape_codes_does_nothing_to_a_terminal_or_a_page(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
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
        assert "".join(_texts(tok, ids)) == tok.decode(ids)


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
    assert _kinds({key: torch.tensor([value]) for key, value in row.items()}).tolist() == [[1, 2, 0, 3]]
    assert "D55E00" in ribbon._repr_html_() and "⟦~" in str(ribbon)
    assert repr(ribbon) == "TokenRibbon(1 of 2 tokens trained (50 %), 2 of padding, of which 1 trained)"


def test_a_shortened_row_keeps_every_border_and_counts_what_it_leaves_out():
    draw = random.Random(0)
    for _ in range(100):
        runs = [(kind, draw.choice([1, 2, 3, 400])) for kind in draw.choices(["trained", "context", "special"], k=9)]
        tokens = [(str(at), kind) for kind, n in runs for at in range(n)]
        shown = _drawn(tokens, 60)
        assert [first for *_, first, _ in shown] == [0, *(last + 1 for *_, last in shown[:-1])]
        assert shown[-1][3] == len(tokens) - 1 and len(shown) <= 60 + 9
        borders = {at for at in range(1, len(tokens)) if tokens[at - 1][1] != tokens[at][1]}
        drawn = {first for *_, first, last in shown if first == last}
        assert borders | {at - 1 for at in borders} <= drawn
        assert all(text == f"⋯ {last - first + 1:,} more ⋯" for text, _, first, last in shown if first != last)


def test_a_row_with_more_borders_than_room_loses_its_middle_and_none_draws_all():
    tokens = [("x", "trained" if at % 2 else "context") for at in range(5000)]
    shown = _drawn(tokens, 100)
    assert len(shown) == 101 and shown[50][0] == "⋯ 4,900 more ⋯" and shown[50][2:] == (50, 4949)
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
def test_what_is_not_one_row_is_refused_with_the_cure(row, message):
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


def test_one_row_is_no_batch():
    with pytest.raises(ValueError, match=r"shape \(B, T\), got \(3,\)"):
        plot_labels({"labels": torch.tensor([1, 2, 3])})


def some_rows(n, seed=0, longest=40):
    draw = random.Random(seed)
    labels = [[draw.choice([IGNORE, IGNORE, 5]) for _ in range(draw.randint(1, longest))] for _ in range(n)]
    return [{"input_ids": [5] * len(row), "labels": row} for row in labels]


def test_the_answers_that_a_cut_costs_are_those_that_a_slow_look_finds():
    rows = some_rows(60)
    for cut in (1, 7, 20, 39, 100):
        answers = lost = harmed = 0
        for row in rows:
            labels, harm = row["labels"], 0
            for at, label in enumerate(labels):
                if label != IGNORE and (at + 1 == len(labels) or labels[at + 1] == IGNORE):
                    answers, harm = answers + 1, harm + (at >= cut)
            lost, harmed = lost + harm, harmed + (harm > 0)
        fig = plot_lengths(rows, cut)
        note = fig.legends[0].texts[1].get_text()
        assert note == f"{lost} of {answers} answers ({100 * lost / answers:.1f} %) lose their end at {cut}"
        whole, orange = (sum(bar.get_height() for bar in bars) for bars in fig.axes[0].containers)
        assert (whole, orange) == (len(rows) - harmed, harmed)


def test_lists_datasets_selections_and_streams_give_the_same_lengths():
    rows = some_rows(2500)
    data = Dataset.from_list(rows)
    for other in (data, data.select(range(2499, -1, -1)).select(range(2499, -1, -1)), data.to_iterable_dataset()):
        for a, b in zip(_answers(rows), _answers(other)):
            assert np.array_equal(a, b)
    assert _answers(rows)[0].tolist() == [len(row["labels"]) for row in rows]
    assert all(rows[o]["labels"][n - 1] == 5 for _, n, o in zip(range(10**6), *_answers(rows)[1:]))


@pytest.mark.parametrize("room", [1, 13, 64, 100])
def test_packs_are_as_many_as_trl_makes(room):
    for seed in range(5):
        lengths = np.random.default_rng(seed).integers(1, room + 1, 300)
        packed = pack_dataset(Dataset.from_dict({"input_ids": [[0] * n for n in lengths]}), room, "bfd")
        assert _packs(lengths.tolist(), room) == len(packed)


def test_a_row_goes_where_it_leaves_least_free():
    assert _packs([7, 6, 3, 2, 2], 10) == 2  # 7 + 3 and 6 + 2 + 2; with 3 put beside 6, a 2 would be left over
    assert _packs([9, 1, 9, 1], 10) == 2 and _packs([10, 10], 10) == 2 and _packs([], 10) == 0


def test_the_figure_says_what_was_counted():
    rows = some_rows(60)
    counted = _empty(np.array([min(len(row["labels"]), 20) for row in rows]), 20, 4)
    ax = plot_lengths(rows, 20, batch_size=4).axes[1]
    assert [text.get_text() for text in ax.texts] == [f"{name}: {100 * x:.1f} %" for name, x in counted.items()]
    assert [bar.get_width() for bar in ax.patches] == [100 * x for x in counted.values()]
    assert "4 a batch" in ax.get_xlabel()


def test_more_than_a_thousand_rows_are_packed_in_groups_as_trl_does():
    lengths = np.random.default_rng(3).integers(20, 60, 2300)
    order = np.random.default_rng(0).permutation(2300)
    packed = pack_dataset(Dataset.from_dict({"input_ids": [[0] * n for n in lengths[order]]}), 64, "bfd")
    assert _empty(lengths, 64, 8)["packed to 64"] == pytest.approx(1 - lengths.sum() / (64 * len(packed)))
    assert len(packed) > _packs(lengths.tolist(), 64)


def test_padding_is_what_a_slow_count_finds_and_grouping_never_hides_a_row():
    lengths = np.random.default_rng(1).integers(1, 500, 1003)
    empty, batches = _empty(lengths, 500, 8), np.array_split(np.sort(lengths), range(8, 1003, 8))
    order = np.random.default_rng(0).permutation(1003)
    gaps = sum(max(lengths[b]) - lengths[i] for b in np.array_split(order, range(8, 1003, 8)) for i in b)
    assert empty["random order"] == pytest.approx(gaps / (gaps + lengths.sum()))
    sorted_gaps = sum((batch.max() - batch).sum() for batch in batches)
    assert sorted_gaps / (sorted_gaps + lengths.sum()) <= empty["grouped by length"] < 0.5 * empty["random order"]
    assert _empty(lengths, 500, 1)["random order"] == 0


def test_a_long_tail_gets_a_logarithmic_axis_and_bars_of_whole_tokens():
    lengths = np.array([10] * 50 + [20] * 50 + [5000])
    rows = [{"labels": [5] * n} for n in lengths]
    assert plot_lengths(rows, 512).axes[0].get_xscale() == "log"
    assert plot_lengths(rows[:-1], 512).axes[0].get_xscale() == "linear"
    for cut in (None, 1, 10, 15, 512, 4999, 5000, 10**6):
        for some in (lengths, lengths[:-1], lengths[:1]):
            edges, _ = _edges(some, cut)
            assert (np.diff(edges) > 0).all() and edges[0] < some.min() and some.max() < edges[-1] and len(edges) < 60
            assert len(_edges(np.arange(1000, 4000), cut)[0]) < 60
            assert cut is None or not some.min() <= cut < some.max() or cut + 0.5 in edges


def test_figures_open_no_window():
    import matplotlib.pyplot as plt

    rows = some_rows(3)
    plot_lengths(rows), plot_labels(pad_batch(rows, 0))
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    "rows, settings, message",
    [
        ([], {}, 'no "labels"'),
        ([{"input_ids": [1, 2]}], {}, r"no \"labels\", only \['input_ids'\]"),
        ([{"labels": [IGNORE, IGNORE]}], {}, "no answer to draw in 1 rows"),
        ([{"labels": [5, 5]}], {"batch_size": 0}, "count from 1, got None and 0"),
        ([{"labels": [5, 5]}], {"max_length": 0}, "count from 1, got 0 and 8"),
    ],
)
def test_what_cannot_be_drawn_is_refused(rows, settings, message):
    with pytest.raises(ValueError, match=message):
        plot_lengths(rows, **settings)


def test_a_single_row_is_drawn():
    fig = plot_lengths([{"labels": [IGNORE, 5, 5]}], max_length=2, batch_size=4)
    assert fig.legends[0].texts[1].get_text() == "1 of 1 answers (100.0 %) lose their end at 2"
