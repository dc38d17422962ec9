"""Edges of the report card: names and texts that would break a page, killed runs, unequal stages."""

import base64
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import ft_notebooks.report as report
from ft_notebooks.evaluation import Evaluation, interval
from ft_notebooks.report import plot_scores, report_card

NASTY = [
    "<script>alert(1)</script>", "a|b\nc", "`x` *y* [z](http://x)", "$\\frac{1$ for 5",
    "_hidden", "", "\"'&amp;", "名 é", "{title}",
]  # fmt: skip


def stage(values, names=("exact",), generated=None, perplexity=2.0):
    rows = [
        {"prompt": [{"role": "user", "content": f"note {i}"}], "expected": f"answer {i}", "generated": f"said {i}"}
        for i in range(len(values))
    ]
    for i, row in enumerate(rows):
        row["generated"] = generated or row["generated"]
        row.update(dict.fromkeys(names, values[i]))
    scores = {name: interval(values) for name in names}
    if perplexity:
        scores["perplexity"] = {"value": perplexity, "low": perplexity * 0.9, "high": perplexity * 1.1, "n": len(rows)}
    return Evaluation(scores, rows)


@pytest.fixture
def undrawn(monkeypatch):  # where the figures do not matter, one of one pixel
    fig = plt.figure(figsize=(0.01, 0.01))
    file = io.BytesIO()
    fig.savefig(file, dpi=100)
    plt.close(fig)
    monkeypatch.setattr(report, "_png", lambda draw, dark: file.getvalue())


class Page(HTMLParser):
    "The tags of a page, and the texts between them."

    def __init__(self, path):
        super().__init__()
        self.tags, self.texts, self.sources = [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "srcset", "href")]

    def handle_data(self, data):
        self.texts.append(data)


def test_report_json_is_the_scores_by_stage_and_nothing_else(tmp_path, undrawn):
    stages = {"base": stage([0, 0, 1]), "sft": stage([1, 1, 1])}
    assert report_card(stages, tmp_path / "deep" / "er") == tmp_path / "deep" / "er" / "report.html"
    found = json.loads((tmp_path / "deep" / "er" / "report.json").read_text())
    assert found == {name: one.scores for name, one in stages.items()}
    assert set(found["base"]["exact"]) == {"value", "low", "high", "n"}


@pytest.mark.parametrize("text", NASTY)
def test_any_string_can_be_a_title_a_stage_a_score_and_an_answer(tmp_path, undrawn, text):
    plain = Page(report_card({"base": stage([0.0, 1.0])}, tmp_path / "plain"))
    one = stage([0.0, 1.0], names=(text,), generated=text)
    page = Page(report_card({text: one}, tmp_path / "nasty", title=text))
    assert sorted(page.tags) == sorted(plain.tags)  # no text became a tag
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    for tag in ("h1", "pre", "th"):
        assert tag in page.tags
    assert not text or sum(text in found for found in page.texts) >= 4  # title twice, stage, score, answers
    assert json.loads((tmp_path / "nasty" / "report.json").read_text()) == {text: one.scores}


@pytest.mark.filterwarnings("ignore:Glyph")
def test_any_string_can_be_drawn():
    fig = plot_scores({text: stage([0.0, 1.0], names=NASTY) for text in NASTY})
    fig.savefig(io.BytesIO())
    assert [label.get_text() for label in fig.legends[0].get_texts()][3:6] == ["$\\frac{1$ for 5", "_hidden", ""]
    long = plot_scores({"base": stage([1.0], names=("a_name_of_one_very_long_word",))}).axes[0].get_xticklabels()
    assert long[0].get_text() == "a_name_of_one_\nvery_long…\nn = 1"


@pytest.mark.parametrize("text", NASTY)
def test_every_row_of_a_markdown_table_has_as_many_cells_as_its_head(tmp_path, undrawn, text):
    report_card({text: stage([0.0, 1.0], names=(text,), generated=text), "b": stage([1.0, 1.0])}, tmp_path, title=text)
    lines = [line for line in (tmp_path / "report.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [len(re.findall(r"(?<!\\)\|", line)) - 1 for line in lines]
    assert set(cells) == {4} and len(cells) == 9
    assert "<script" not in "".join(lines)


def test_the_page_shows_all_answers_side_by_side_failures_of_the_last_stage_first(tmp_path, undrawn):
    stages = {"base": stage([0, 1, 0, 0]), "sft": stage([1, 0, 1, 0])}
    text = report_card(stages, tmp_path, samples=3).read_text(encoding="utf-8")
    assert re.findall(r"<h3>(.*?)</h3>", text) == ["note 1", "note 3", "note 0"]
    assert text.count("<pre>said 1</pre>") == 2 and "said 2" not in text


def test_each_stage_is_shown_with_its_own_answer_and_marks_in_the_order_given(tmp_path, undrawn):
    stages = {"b": stage([0], generated="one"), "a": stage([1], generated="two"), "c": stage([0.5], generated="three")}
    text = report_card(stages, tmp_path).read_text(encoding="utf-8")
    found = re.findall(r'<h4>(.*?)</h4><pre>(.*?)</pre>(?:<span class="mark (\w*)">(.*?)</span>)?', text)
    assert found == [
        ("expected", "answer 0", "", ""), ("b", "one", "bad", "✗ exact"), ("a", "two", "good", "✓ exact"),
        ("c", "three", "", "0.50 exact"),
    ]  # fmt: skip
    last = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()[-1]
    assert last == "| note 0 | answer 0 | one<br>✗ exact | two<br>✓ exact | three<br>0.50 exact |"


def test_both_formats_say_what_n_and_the_brackets_are(tmp_path, undrawn):
    page = report_card({"base": stage([0, 1])}, tmp_path)
    for path in (page, page.with_suffix(".md")):
        text = path.read_text(encoding="utf-8")
        assert "n is the number of rows behind a score; its 95 % interval stands in brackets." in text, path.name


def test_without_scorers_or_samples_there_is_still_a_report(tmp_path):
    text = report_card({"base": stage([1, 1], names=())}, tmp_path, samples=0).read_text(encoding="utf-8")
    assert "perplexity" in text and "<article>" not in text and "Samples" not in text
    assert "Samples" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_scores_that_one_stage_lacks_are_shown_as_missing(tmp_path):
    stages = {"base": stage([0.5, 2.5], names=("length",)), "sft": stage([1, 0], names=("exact",), perplexity=None)}
    report_card(stages, tmp_path)
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("| length | 2 | 1.50") and line.endswith("| – |") for line in lines)
    assert any(line.startswith("| exact | 2 | – | 0.50") for line in lines)


def test_every_score_names_its_own_rows_and_no_other_number_of_rows_stands_beside_it(tmp_path):
    base, sft = stage([0.0] * 6), stage([1.0] * 6)
    for found, n in ((base, 1200), (sft, 4)):
        found.scores["part"], found.scores["half"] = interval([1.0] * 2), interval([0.0, 1.0] * (n // 2))
    text = report_card({"base": base, "sft": sft}, tmp_path, samples=3).read_text(encoding="utf-8")
    assert re.findall(r"<tr><th>(\w+)</th><td>(.*?)</td>", text) == [
        ("exact", "6"), ("part", "2"), ("half", "1,200 / 4"), ("perplexity", "6")
    ]  # fmt: skip
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    assert [line.split(" | ")[1] for line in lines[4:8]] == ["6", "2", "1,200 / 4", "6"]
    for written in (text, "".join(lines)):
        assert re.findall(r"\d+ (?:of \d+ )?rows", written) == ["3 of 6 rows"]
    ticks = [tick.get_text() for ax in plot_scores({"base": base, "sft": sft}).axes for tick in ax.get_xticklabels()]
    assert ticks == ["exact\nn = 6", "part\nn = 2", "half\nn = 1,200 / 4", "perplexity\nn = 6"]


def test_samples_are_called_failures_first_only_where_a_score_orders_them(tmp_path, undrawn):
    scored = report_card({"base": stage([0, 1, 0])}, tmp_path, samples=9).read_text(encoding="utf-8")
    assert "<small>3 of 3 rows, the last stage's failures first</small>" in scored
    unscored = report_card({"base": stage([0, 1], names=())}, tmp_path, samples=1).read_text(encoding="utf-8")
    assert "<small>1 of 2 rows, in their order</small>" in unscored
    assert "## Samples: 1 of 2 rows, in their order" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_history_adds_the_loss_curve_and_only_then(tmp_path):
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "train_runtime": 1.0}]
    page = report_card({"base": stage([1])}, tmp_path / "with", history=history)
    assert (page.parent / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "loss.png" in (page.parent / "report.md").read_text() and len(Page(page).sources) == 4
    report_card({"base": stage([1])}, tmp_path / "without", history=[])
    assert not (tmp_path / "without" / "loss.png").exists()


def test_each_screen_gets_the_figure_that_is_drawn_for_it(tmp_path):
    page = report_card({"base": stage([0, 1])}, tmp_path)
    dark, light = (base64.b64decode(source.partition(",")[2]) for source in Page(page).sources)
    assert (tmp_path / "scores.png").read_bytes() == light  # what a code host shows, on white
    assert re.search(r'<source srcset="data:[^"]+" media="\(prefers-color-scheme: dark\)"><img src="data:', page.read_text())
    for png, ink, paper in ((light, 0, 1), (dark, 1, 0)):
        image = plt.imread(io.BytesIO(png))
        assert image[0, 0, 3] == paper  # the dark one has the page's own background
        opaque = image[image[..., 3] == 1][:, :3]
        letters = opaque[(opaque == ink).all(axis=1)]
        assert len(letters) > 100


@pytest.mark.parametrize("change", ["prompt", "expected", "fewer"])
def test_stages_over_other_rows_are_refused_before_anything_is_written(tmp_path, change):
    other = stage([1, 1])
    if change == "fewer":
        other.rows.pop()
    else:
        other.rows[1][change] = [{"role": "user", "content": "x"}] if change == "prompt" else "x"
    with pytest.raises(ValueError, match="'sft' and 'base' were not asked the same rows"):
        report_card({"base": stage([1, 1]), "sft": other}, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_no_stages_are_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to report"):
        report_card({}, tmp_path)


@pytest.mark.parametrize("fails", ["write_bytes", "replace"])
def test_a_report_that_is_cut_short_leaves_the_last_one_whole(tmp_path, undrawn, monkeypatch, fails):
    report_card({"base": stage([0, 0])}, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls, write = [], Path.write_bytes

    def stop(path, *args):
        calls.append(path)
        if fails == "replace":
            raise KeyboardInterrupt
        write(path, b"half")
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(os if fails == "replace" else Path, fails, stop)
    with pytest.raises(KeyboardInterrupt):
        report_card({"base": stage([1, 1])}, tmp_path)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before and calls


def test_the_same_report_is_written_twice_byte_for_byte(tmp_path):
    for folder in ("a", "b"):
        report_card({"base": stage([0, 1])}, tmp_path / folder)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def drawn(fig):
    fig.savefig(io.BytesIO())
    return fig


@pytest.mark.parametrize("stages", [1, 2, 3, 7])
def test_names_below_the_bars_do_not_run_into_each_other(stages):
    names = ("exact_match", "preferred_form", "exact_match_new_phrases", "share of fields right", "key_order")
    fig = drawn(plot_scores({f"stage {i}": stage([0.0, 1.0], names=names) for i in range(stages)}))
    boxes = [label.get_window_extent() for ax in fig.axes for label in ax.get_xticklabels()]
    assert len(boxes) == 6 and all(left.x1 + 2 < right.x0 for left, right in zip(boxes, boxes[1:]))


@pytest.mark.parametrize("stages", [1, 2, 3, 7])
def test_bars_stand_side_by_side_around_their_names(stages):
    axis = plot_scores({f"stage {i}": stage([0.0, 1.0], names=("a", "b")) for i in range(stages)}).axes[0]
    bars = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in axis.patches)
    assert len(bars) == 2 * stages and all(left[1] <= right[0] for left, right in zip(bars, bars[1:]))
    for middle, group in ((0, bars[:stages]), (1, bars[stages:])):
        assert (group[0][0] + group[-1][1]) / 2 == pytest.approx(middle) and group[-1][1] - group[0][0] < 0.9


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_an_interval_is_seen_on_a_bar_of_any_colour(style):
    with plt.style.context(style):
        fig, file = plot_scores({f"stage {i}": stage([0.0, 1.0, 1.0]) for i in range(7)}), io.BytesIO()
        fig.savefig(file, dpi=320)
    file.seek(0)
    image = plt.imread(file)[:, :, :3].mean(axis=2)
    for bar in fig.axes[0].patches:
        ends = [(bar.get_x() + x, 0.5) for x in (0, bar.get_width())]
        (left, y), (right, _) = 320 / 80 * fig.axes[0].transData.transform(ends)  # in the pixels of the image
        row = image[round(len(image) - y), round(left) : round(right)]  # across the bar, where the interval crosses it
        assert row.min() < 0.1 and row.max() > 0.9, bar


@pytest.mark.parametrize("perplexity", [1.0, 1.01, 1.3, 2.3, 7.0, 60.0, 1e6])
def test_the_axis_of_perplexities_has_a_few_numbers_whatever_the_range(perplexity):
    axis = drawn(plot_scores({"base": stage([1.0], perplexity=perplexity)})).axes[1]
    low, high = axis.get_ylim()
    labels = [tick.label1 for tick in axis.yaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    boxes = [label.get_window_extent() for label in labels if label.get_text()]
    assert 2 <= len(boxes) <= 10 and all(one.y1 < other.y0 for one, other in zip(boxes, boxes[1:]))


@pytest.mark.parametrize("values", [[-0.5, -0.25], [0.5, 0.25], [3.0, 4.0]])
def test_every_bar_lies_within_its_axis(values):
    axis = drawn(plot_scores({"base": stage(values), "sft": stage(values)})).axes[0]
    low, high = axis.get_ylim()
    assert low <= min(0, *values) and high >= max(0, *values)
    assert (low, high) == (0, 1.1) if values == [0.5, 0.25] else (low, high) != (0, 1.1)


def test_the_figure_shows_what_the_scores_say_and_leaves_pyplot_alone(tmp_path):
    plt.style.use("default")
    open_before, style = plt.get_fignums(), dict(plt.rcParams)
    stages = {"base": stage([0, 0, 1, 1]), "sft": stage([1, 1, 1, 0], perplexity=1.1)}
    scores, surprise = plot_scores(stages).axes
    assert [bar.get_height() for bar in scores.patches] == [0.5, 0.75]
    assert [bar.get_y() + bar.get_height() for bar in surprise.patches] == pytest.approx([2.0, 1.1])
    assert [bar.get_y() for bar in surprise.patches] == [1, 1] and surprise.get_yscale() == "log"
    assert surprise.get_ylim()[0] == 1 and surprise.get_ylim()[1] > 2.2
    for ends, one in zip(scores.collections, stages.values()):  # the bar of an interval is a line from low to high
        (low, high) = ends.get_segments()[0][:, 1]
        assert (low, high) == pytest.approx((one.scores["exact"]["low"], one.scores["exact"]["high"]))
    report_card(stages, tmp_path, history=[{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
    assert plt.get_fignums() == open_before and dict(plt.rcParams) == style
