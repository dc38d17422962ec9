"""Edges of `ft_notebooks.tokenization.length_report`: other ways to count, more rows, long tails."""

import random

import numpy as np
import pytest
from datasets import Dataset
from trl import pack_dataset

from ft_notebooks.tokenization.length_report import _answers, _edges, _empty, plot_lengths
from ft_notebooks.tokenization.padding import IGNORE


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


@pytest.mark.parametrize(
    "rows, settings, message",
    [
        ([], {}, 'no "labels"'),
        ([{"input_ids": [1, 2]}], {}, r"no \"labels\", only \['input_ids'\]"),
        ([{"labels": [IGNORE, IGNORE]}], {}, "no answer to draw in 1 rows"),
        ([{"labels": [5, 5]}], {"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ([{"labels": [5, 5]}], {"max_length": 0}, "max_length must be a whole number of at least 1, got 0"),
    ],
)
def test_what_cannot_be_drawn_raises(rows, settings, message):
    with pytest.raises(ValueError, match=message):
        plot_lengths(rows, **settings)


def test_the_figure_opens_no_window():
    import matplotlib.pyplot as plt

    plot_lengths(some_rows(3))
    assert plt.get_fignums() == []


def test_a_single_row_is_drawn():
    fig = plot_lengths([{"labels": [IGNORE, 5, 5]}], max_length=2, batch_size=4)
    assert fig.legends[0].texts[1].get_text() == "1 of 1 answers (100.0 %) lose their end at 2"
