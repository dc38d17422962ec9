"""Edges of the report card: names and texts that would break a page, killed runs, unequal stages."""

import base64
import io
import json
import os
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import ft_notebooks.evaluation.report as report
from ft_notebooks.data.read import read_chats, read_preferences
from ft_notebooks.evaluation.comparison import compare_stages, group_rows, scores_without, seen_rows
from ft_notebooks.evaluation.report import report_card
from ft_notebooks.evaluation.run_description import run_facts, scores_by_step
from ft_notebooks.evaluation.runner import Evaluation, interval
from ft_notebooks.evaluation.score_plots import format_number, plot_progress, plot_scores
from ft_notebooks.evaluation.statistics import compare

NASTY = [
    "<script>alert(1)</script>", "a|b\nc", "`x` *y* [z](http://x)", "$\\frac{1$ for 5",
    "_hidden", "", "\"'&amp;", "名 é", "{title}",
]  # fmt: skip


def stage(values, names=("exact",), generated=None, perplexity=2.0, missing=False):
    rows = [
        {"prompt": [{"role": "user", "content": f"note {i}"}], "expected": f"answer {i}", "generated": f"said {i}"}
        for i in range(len(values))
    ]
    for i, row in enumerate(rows):
        row["generated"] = generated or row["generated"]
        row.update(dict.fromkeys(names, values[i]))
    scores = {name: interval([v for v in values if v is not None] if missing else values) for name in names}
    if perplexity:
        scores["perplexity"] = {"value": perplexity, "low": perplexity * 0.9, "high": perplexity * 1.1, "n": len(rows)}
    return Evaluation(scores, rows)


@pytest.fixture
def undrawn(monkeypatch):  # where the figures do not matter, one of one pixel
    fig = plt.figure(figsize=(0.01, 0.01))
    file = io.BytesIO()
    fig.savefig(file, dpi=100)
    plt.close(fig)
    monkeypatch.setattr(report, "png", lambda draw, dark=False: file.getvalue())


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


def test_report_json_is_the_scores_by_stage_and_what_was_compared_stands_under_the_score(tmp_path, undrawn):
    stages = {"base": stage([0, 0, 1]), "sft": stage([1, 1, 1])}
    assert report_card(stages, tmp_path / "deep" / "er") == tmp_path / "deep" / "er" / "report.html"
    found = json.loads((tmp_path / "deep" / "er" / "report.json").read_text())
    against = found["sft"]["exact"].pop("against")
    assert found == {name: one.scores for name, one in stages.items()}
    assert set(found["base"]["exact"]) == {"value", "low", "high", "n"}
    assert against == {"base": compare(*stages.values(), "exact", names=("base", "sft"))}


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


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore:Glyph")
def test_any_string_can_be_drawn():
    fig = plot_scores({text: stage([0.0, 1.0], names=NASTY) for text in NASTY})
    fig.savefig(io.BytesIO())
    assert [label.get_text() for label in fig.legends[0].get_texts()][3:6] == ["$\\frac{1$ for 5", "_hidden", ""]
    long = plot_scores({"base": stage([1.0], names=("a_name_of_one_very_long_word",))}).axes[0].get_xticklabels()
    assert long[0].get_text() == "a_name_of_one_\nvery_long…\nn = 1"


@pytest.mark.parametrize("text", NASTY)
def test_every_row_of_a_markdown_table_has_as_many_cells_as_its_head(tmp_path, undrawn, text):
    stages = {text: stage([0.0, 1.0], names=(text,), generated=text), "b": stage([1.0, 1.0], names=(text,))}
    report_card(stages, tmp_path, title=text)
    lines = [line for line in (tmp_path / "report.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [len(re.findall(r"(?<!\\)\|", line)) - 1 for line in lines]
    assert cells[:4] == [4] * 4 and cells[4:7] == [2] * 3 and set(cells[7:]) == {4}  # scores, changes, answers
    assert len(cells) == 13 and "<script" not in "".join(lines)


def test_the_page_shows_all_answers_side_by_side_of_rows_that_got_better_and_worse_and_are_still_wrong(
    tmp_path, undrawn
):
    stages = {"base": stage([0, 1, 0, 0]), "sft": stage([1, 0, 1, 0])}
    text = report_card(stages, tmp_path, samples=3).read_text(encoding="utf-8")
    assert re.findall(r"<h4>(.*?)</h4>", text) == ["note 0", "note 1", "note 3"]
    assert text.count("<pre>said 1</pre>") == 2 and "said 2" not in text


def test_each_stage_is_shown_with_its_own_answer_and_marks_in_the_order_given(tmp_path, undrawn):
    stages = {"b": stage([0], generated="one"), "a": stage([1], generated="two"), "c": stage([0.5], generated="three")}
    text = report_card(stages, tmp_path).read_text(encoding="utf-8")
    found = re.findall(r'<h5>(.*?)</h5><pre>(.*?)</pre>(?:<span class="mark (\w*)">(.*?)</span>)?', text)
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
        assert "n is the number of rows behind a score; brackets hold its 95 % interval." in text, path.name


@pytest.mark.whole
def test_on_a_narrow_page_every_cell_says_what_it_is_of_and_figures_follow_the_theme(tmp_path):
    stages = {"base": stage([0, 0]), "sft & <dpo>": stage([1, 0])}
    text = report_card(stages, tmp_path, history=HISTORY, facts={"sft": {"rows": "9"}}).read_text(encoding="utf-8")
    cells = re.findall(r'<td data-of="(.*?)">', text)
    assert len(cells) == text.count("<td") and cells[:4] == ["rows", "n", "base", "sft &amp; &lt;dpo&gt;"]
    assert text.count('<picture><source media="(prefers-color-scheme: dark)"') == text.count("<img ") == 2
    assert "@media (max-width" in text and "content: attr(data-of)" in text and "overflow-x: auto" in text


def test_each_group_of_rows_has_its_count_and_an_example(tmp_path, undrawn):
    stages = {"base": stage([0] * 40 + [1] * 10), "sft": stage([0] * 28 + [1] * 12 + [0] * 3 + [1] * 7)}
    page = report_card(stages, tmp_path, samples=4)
    for path in (page, page.with_suffix(".md")):
        found = re.findall(r"(\d+) rows, (\d+) shown: sft is ([a-z ]+) in exact", path.read_text(encoding="utf-8"))
        assert found == [("12", "1", "better"), ("3", "1", "worse"), ("28", "1", "still wrong"), ("7", "1", "right")]


def test_the_head_says_what_was_trained_and_how_before_any_score(tmp_path, undrawn):
    facts = {
        "sft": {"model": "SmolLM2 <b>", "learning rate": "0.0002", "steps": "8, with 16 rows each", "rows": "199"},
        "dpo": {},
    }
    page = report_card({"base": stage([0, 1])}, tmp_path, facts=facts)
    for path in (page, page.with_suffix(".md")):
        text = path.read_text(encoding="utf-8")
        places = [text.index(part) for part in ("SmolLM2 &lt;b&gt;", "0.0002", "8, with 16 rows each", "199", "exact")]
        assert places == sorted(places) and text.count("not recorded") == 4, path.name


def test_facts_come_from_a_folder_of_any_state(tmp_path):
    assert set(run_facts(tmp_path).values()) == {"not recorded"}
    run = {"trainer": "DPOTrainer", "learning_rate": 5e-6, "max_steps": 12, "data": "96 rows, sha256 1"}
    (tmp_path / "manifest.json").write_text(json.dumps({"run": run, "recorded": {"model": "owner/model"}}))
    assert run_facts(tmp_path) == {
        "model": "owner/model", "method": "DPO, all weights", "learning rate": "5e-06", "steps": "12, with 1 rows each",
        "rows": "96",
    }  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "loss": 1.0}\n{"step": 6, "lo')
    assert run_facts(tmp_path)["steps"] == "3, with 1 rows each"
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        run_facts(tmp_path)


@pytest.mark.parametrize("value", [0.0, 0.004, 99.994, 123.4, 9999.4, 10_000, 123_456_789.0, -1e30])
def test_a_number_of_any_size_has_few_digits(value):
    text = format_number(value)
    assert len(text) <= 9 and float(text) == pytest.approx(value, rel=0.01, abs=0.005)


def test_without_scorers_or_samples_there_is_still_a_report(tmp_path):
    text = report_card({"base": stage([1, 1], names=())}, tmp_path, samples=0).read_text(encoding="utf-8")
    assert "perplexity" in text and "<article>" not in text and "Samples" not in text
    assert "Samples" not in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.whole
def test_scores_that_one_stage_lacks_are_shown_as_missing(tmp_path):
    stages = {"base": stage([0.5, 2.5], names=("length",)), "sft": stage([1, 0], names=("exact",), perplexity=None)}
    report_card(stages, tmp_path)
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("| length | 2 | 1.50") and line.endswith("| – |") for line in lines)
    assert any(line.startswith("| exact | 2 | – | 0.50") for line in lines)


@pytest.mark.whole
def test_every_score_names_its_own_rows_and_no_other_number_of_rows_stands_beside_it(tmp_path):
    base, sft = stage([0.0] * 6), stage([1.0] * 6)
    for found, n in ((base, 1200), (sft, 4)):
        found.scores["part"], found.scores["half"] = interval([1.0] * 2), interval([0.0, 1.0] * (n // 2))
    text = report_card({"base": base, "sft": sft}, tmp_path, samples=3).read_text(encoding="utf-8")
    assert re.findall(r'<tr><th>(\w+)</th><td data-of="n"><span>([\d,/ ]+)</span></td>', text) == [
        ("exact", "6"), ("part", "2"), ("half", "1,200 / 4"), ("perplexity", "6")
    ]  # fmt: skip
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    assert [line.split(" | ")[1] for line in lines[4:8]] == ["6", "2", "1,200 / 4", "6"]
    for written in (text, "".join(lines)):
        assert re.findall(r"\d+ (?:of \d+ )?rows", written) == ["6 rows", "3 of 6 rows"]  # compared, shown
    ticks = [tick.get_text() for ax in plot_scores({"base": base, "sft": sft}).axes for tick in ax.get_xticklabels()]
    assert ticks == ["exact\nn = 6", "part\nn = 2", "half\nn = 1,200 / 4", "perplexity\nn = 6"]


def test_samples_are_grouped_only_where_a_score_tells_them_apart(tmp_path, undrawn):
    scored = report_card({"base": stage([0, 1, 0])}, tmp_path, samples=9).read_text(encoding="utf-8")
    assert re.findall("<h3>(.*?)</h3>", scored) == [
        "2 rows, 2 shown: base is wrong in exact",
        "1 row, 1 shown: base is right in exact",
    ]
    unscored = report_card({"base": stage([0, 1], names=())}, tmp_path, samples=1).read_text(encoding="utf-8")
    assert "<small>1 of 2 rows</small>" in unscored and "<h3>in their order</h3>" in unscored
    assert "## Samples: 1 of 2 rows\n\n### in their order" in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.whole
def test_a_history_adds_the_loss_curve_and_only_then(tmp_path):
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "train_runtime": 1.0}]
    page = report_card({"base": stage([1])}, tmp_path / "with", history=history)
    assert (page.parent / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "loss.png" in (page.parent / "report.md").read_text() and len(Page(page).sources) == 4
    report_card({"base": stage([1])}, tmp_path / "without", history=[])
    assert not (tmp_path / "without" / "loss.png").exists()


@pytest.mark.whole
def test_the_page_holds_the_figure_that_stands_beside_it_and_a_dark_one(tmp_path):
    page = report_card({"base": stage([0, 1])}, tmp_path)
    dark, light = (base64.b64decode(source.partition(",")[2]) for source in Page(page).sources)
    assert light == (tmp_path / "scores.png").read_bytes()
    corners = [plt.imread(io.BytesIO(image))[0, 0, :3].mean() for image in (light, dark)]
    assert corners[0] == 1 and corners[1] < 0.1  # the second is shown where the reader prefers a dark page


@pytest.mark.parametrize("change", ["prompt", "expected", "fewer"])
def test_stages_over_other_rows_are_refused_before_anything_is_written(tmp_path, change):
    other = stage([1, 1])
    if change == "fewer":
        other.rows.pop()
    else:
        other.rows[1][change] = [{"role": "user", "content": "x"}] if change == "prompt" else "x"
    with pytest.raises(ValueError, match="'sft' and 'base' are not on the same rows"):
        report_card({"base": stage([1, 1]), "sft": other}, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_no_stages_are_refused(tmp_path):
    with pytest.raises(ValueError, match="evaluations is empty"):
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


@pytest.mark.whole
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


@pytest.mark.whole
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


def test_a_score_that_is_no_share_has_a_panel_of_its_own():
    one = stage([0.0, 1.0], names=("exact", "form"))
    one.scores.update(length=interval([30.0, 50.0]), bits_per_byte=one.scores["perplexity"])
    axes = plot_scores({"base": one}).axes
    assert [[tick.get_text().split("\n")[0] for tick in ax.get_xticklabels()] for ax in axes] == [
        ["exact", "form"], ["length"], ["bits_per_byte"], ["perplexity"]
    ]  # fmt: skip
    assert [ax.get_yscale() for ax in axes] == ["linear"] * 3 + ["log"]


@pytest.mark.whole
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


# what is found


def kind(evaluations, i):  # slowly, as one would say it
    *before, now = [found.rows[i]["exact"] for found in evaluations.values()]
    before = [value for value in before if value is not None]
    if now is None:
        return "no value"
    if any(value > now for value in before):
        return "worse"
    if before and all(value < now for value in before):
        return "better"
    return "right" if now >= 1 else "wrong"


@pytest.mark.parametrize("values", [(0, 1), (0, 1, None), (0, 0.3, 0.6, 1)])
@pytest.mark.parametrize("stages", [1, 2, 4])
def test_every_row_is_in_the_group_that_its_values_say_and_only_there(values, stages):
    draw = random.Random(stages)
    found = {str(s): stage([draw.choice(values) for _ in range(60)], missing=True) for s in range(stages)}
    groups = group_rows(found)
    assert sorted(i for _, rows in groups for i in rows) == list(range(60))
    words = ["better", "worse", "wrong", "right", "no value"]
    titles = [title.replace("below 1", "wrong") for title, _ in groups]
    assert [next(w for w in words if f" {w} " in title) for title in titles] == [
        kind(found, rows[0]) for _, rows in groups
    ]
    assert ("below 1" in str(groups)) == (0.3 in values)
    assert all({kind(found, i) for i in rows} == {kind(found, rows[0])} for _, rows in groups)
    order = [words.index(kind(found, rows[0])) for _, rows in groups]
    assert order == sorted(order)


def test_rows_of_another_part_are_grouped_by_the_score_that_they_have(tmp_path, undrawn):
    stages = {"a": stage([0, 1, 0, 1]), "b": stage([1, 1, 0, 0])}
    for found in stages.values():
        for row in found.rows[2:]:
            row["other"] = row.pop("exact")
        for name, rows in (("exact", found.rows[:2]), ("other", found.rows[2:])):
            found.scores[name] = interval([row[name] for row in rows])
    assert [(title.split(":")[0], rows) for title, rows in group_rows(stages)] == [
        ("b is better in exact than before", [0]), ("b is worse in other than before", [3]),
        ("b is still wrong in other", [2]), ("b is right in exact, as before", [1]),
    ]  # fmt: skip
    text = report_card(stages, tmp_path).read_text(encoding="utf-8")
    assert "no value" not in text and text.count("other</span>") == text.count("exact</span>") == 4
    against = json.loads((tmp_path / "report.json").read_text())["b"]["other"]["against"]
    assert against["a"]["n"] == against["a"]["left_out"] == 2


def test_a_score_of_which_less_is_better_orders_no_rows_unless_it_is_said():
    found = {"a": stage([3.0, 5.0], names=("cost",)), "b": stage([2.0, 6.0], names=("cost",))}
    assert group_rows(found, {"cost": -1}) == [("in their order", [0, 1])]
    assert [rows for _, rows in group_rows(found)] == [[1], [0]]


def test_the_largest_change_comes_first():
    found = {"a": stage([0.1, 0.5, 0.0, 0.6]), "b": stage([0.2, 0.9, 0.8, 0.6])}
    assert group_rows(found) == [("b is better in exact than before", [2, 1, 0]), ("b is still below 1 in exact", [3])]
    found = {"a": stage([0.9, 0.5, 1.0, 0.6]), "b": stage([0.8, 0.5, 0.1, 0.2])}
    assert group_rows(found)[0] == ("b is worse in exact than before", [2, 3, 0])


def test_a_score_that_is_of_other_rows_than_those_that_are_there_is_neither_compared_nor_taken_anew():
    one, two = stage([0.0] * 6), stage([1.0] * 6)
    for found in (one, two):
        found.scores["half"], found.scores["exact"] = interval([0.0, 1.0]), interval([1.0, 0.0, 1.0])
    assert compare_stages({"one": one, "two": two}) == {} and scores_without(one, {0}) == {}
    for found in (one, two):
        for row in found.rows[:3]:
            row["half"] = row.pop("exact")  # the two scores are of three rows each, as a set of two parts has it
        found.scores["half"] = interval([0.0, 1.0, 1.0])
    assert list(compare_stages({"one": one, "two": two})["two", "one"]) == ["exact", "half"]


def test_a_perplexity_over_other_tokens_is_not_compared_and_the_card_says_why(tmp_path, undrawn):
    stages = {"a": stage([1, 0]), "b": stage([1, 0])}
    for name, tokens in (("a", 3), ("b", 4)):
        for row in stages[name].rows:
            row |= {"nats": 1.0, "trained": tokens, "bytes": 5}
        stages[name].scores["bits_per_byte"] = {"value": 0.3, "low": 0.3, "high": 0.3, "n": 2}
    text = report_card(stages, tmp_path).read_text(encoding="utf-8")
    assert "not compared: the two models tokenize the rows differently" in text
    found = json.loads((tmp_path / "report.json").read_text())["b"]
    assert "not compared" in found["perplexity"]["against"]["a"]["verdict"]
    assert "not distinguishable on 2 rows" in found["bits_per_byte"]["against"]["a"]["verdict"]


def test_the_last_stage_is_compared_with_the_first_too_and_each_pair_once():
    same = {name: stage([0, 1, 1]) for name in ("a", "b", "c", "d")}
    assert list(compare_stages(same)) == [("b", "a"), ("c", "b"), ("d", "c"), ("d", "a")]
    assert (
        list(compare_stages({name: same[name] for name in "ab"})) == [("b", "a")]
        and compare_stages({"a": same["a"]}) == {}
    )


def test_a_verdict_names_stages_as_they_are_called_whatever_that_is(tmp_path, undrawn):
    for text in NASTY:
        stages = {text: stage([0] * 9), text + " again": stage([1] * 9)}
        page = Page(report_card(stages, tmp_path))
        assert any(found.startswith(text + " again is better by 1 ") for found in page.texts)


def test_values_that_a_scorer_did_not_give_are_counted_and_never_a_zero(tmp_path, undrawn):
    one = stage([1, None, 1], missing=True)
    one.errors.append({"row": 1, "scorer": "exact", "message": "KeyError('<b>')"})
    text = report_card({"base": one}, tmp_path, samples=3).read_text(encoding="utf-8")
    assert "<b>1.00</b>" in text and "? no value of exact" in text and "✗" not in text
    said = "base: 1 of 3 values of exact are missing and left out of its score; the first error, on row 1: KeyError"
    assert said in text and "&lt;b&gt;" in text and said in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_an_answer_that_was_cut_says_so(tmp_path, undrawn):
    one = stage([1, 1])
    one.rows[0] |= {"ended": False, "tokens": 40}
    one.rows[1] |= {"ended": True, "tokens": 40}
    text = report_card({"base": one}, tmp_path).read_text(encoding="utf-8")
    assert text.count("… cut after 40 tokens") == 1 and "✓ ended" not in text


def chats_of(found, places):
    said = [[*found.rows[i]["prompt"], {"role": "assistant", "content": found.rows[i]["expected"]}] for i in places]
    return read_chats([{"messages": chat} for chat in said])


def pairs_of(found, places):
    sides = {"chosen": "yes", "rejected": "no"}
    answers = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
    return read_preferences([{"prompt": found.rows[i]["prompt"], **answers} for i in places])


@pytest.mark.parametrize("rows_of", [chats_of, pairs_of])
def test_rows_that_were_trained_on_are_said_on_the_card_with_the_scores_on_the_others(tmp_path, undrawn, rows_of):
    stages = {"base": stage([0] * 12), "sft": stage([1] * 4 + [0] * 8)}
    train = {"sft": rows_of(stages["base"], [1, 2]), "<i>": rows_of(stages["base"], [2])}
    text = report_card(stages, tmp_path, train=train).read_text(encoding="utf-8")
    assert "2 of 12 evaluated rows are, or nearly are, among the 2 training rows of sft." in text
    assert "among the 1 training rows of &lt;i&gt;." in text and "Without them, 10 rows are left:" in text
    assert re.findall("<tr><th>(note .)</th><td[^>]*><span>(note .)</span></td><td[^>]*><span>1.00</span>", text) == [
        ("note 1", "note 1"), ("note 2", "note 2"), ("note 2", "note 2")
    ]  # fmt: skip
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["sft"]["exact"]["unseen"] == interval([1, 1] + [0] * 8) and found["base"]["exact"]["unseen"]["n"] == 10
    seen = json.loads((tmp_path / "contamination.json").read_text())
    assert seen == {"sft": {"rows": 2, "seen": [[0, 1, 1.0], [1, 2, 1.0]]}, "<i>": {"rows": 1, "seen": [[0, 2, 1.0]]}}


def test_where_no_row_was_trained_on_the_card_says_so_and_the_scores_stand_once(tmp_path, undrawn):
    stages, rows = {"base": stage([0] * 3)}, read_chats([{"messages": chat} for chat in [[
        {"role": "user", "content": "what else"}, {"role": "assistant", "content": "nothing"}
    ]]])  # fmt: skip
    text = report_card(stages, tmp_path, train={"sft": rows}).read_text(encoding="utf-8")
    assert "0 of 3 evaluated rows are, or nearly are, among the 1 training rows of sft." in text
    assert text.count("<th>exact</th>") == 1 and "Without them" not in text
    assert "unseen" not in json.loads((tmp_path / "report.json").read_text())["base"]["exact"]


def test_where_every_row_was_trained_on_no_score_is_left(tmp_path, undrawn):
    stages = {"base": stage([0, 1])}
    text = report_card(stages, tmp_path, train={"sft": chats_of(stages["base"], [0, 1])}).read_text(encoding="utf-8")
    assert "Without them, 0 rows are left:" in text and text.count("<th>exact</th>") == 1


def test_training_rows_need_the_name_of_their_stage_and_rows_to_look_for(tmp_path):
    one = stage([0, 1])
    with pytest.raises(ValueError, match="train must name the stage"):
        seen_rows(one, chats_of(one, [0]))
    with pytest.raises(ValueError, match="no evaluated rows to look for"):
        report_card({"base": Evaluation(one.scores, [])}, tmp_path / "new", train={"sft": chats_of(one, [0])})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("text", NASTY)
def test_no_text_of_the_training_data_becomes_a_tag(tmp_path, undrawn, text):
    pages = []
    for said in ("plain", text or "empty"):
        one = stage([0, 1], generated=said)
        one.rows[0]["prompt"] = [{"role": "user", "content": said}]
        one.errors.append({"row": 0, "scorer": said, "message": said})
        train = {said: chats_of(one, [0])}
        pages.append(Page(report_card({"a": one, "b" + said: one}, tmp_path, train=train)))
    assert sorted(pages[0].tags) == sorted(pages[1].tags)


def test_a_report_shows_control_codes_as_symbols_in_both_formats(tmp_path, undrawn):
    text = "a\x1b[31m\x07\x00\x9b2Jb"
    report_card({text: stage([0.0, 1.0], names=(text,), generated=text)}, tmp_path, title=text)
    for file in ("report.md", "report.html"):
        page = (tmp_path / file).read_text(encoding="utf-8")
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", page) and "␇␀" in page


# bad input


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "0.5"])
@pytest.mark.parametrize("key", ["value", "low", "high"])
def test_a_score_that_is_no_number_is_refused_before_anything_is_written(tmp_path, value, key):
    one = stage([0, 1])
    one.scores["exact"][key] = value
    with pytest.raises(ValueError, match="'exact' of 'base' is .* leave this score out"):
        report_card({"base": one}, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("evaluations", [stage([0, 1]), [stage([0, 1])], "runs/eval", {"base": {"exact": 0.5}}])
def test_what_is_no_dict_of_evaluations_is_refused(tmp_path, evaluations):
    with pytest.raises(ValueError, match=r"report_card: evaluations must be .*pass \{'base': evaluate\(...\)\}"):
        report_card(evaluations, tmp_path / "new")
    for function in (compare_stages, group_rows, plot_scores):
        with pytest.raises(ValueError, match=f"{function.__name__}: evaluations must be"):
            function(evaluations)
    assert not (tmp_path / "new").exists()


def test_evaluations_without_rows_have_a_card_of_scores_alone(tmp_path):
    stages = {name: Evaluation(stage([0, 1]).scores, []) for name in ("base", "sft")}
    text = report_card(stages, tmp_path).read_text(encoding="utf-8")
    assert (
        '<th>exact</th><td data-of="n"><span>2</span>' in text
        and "Samples" not in text
        and "What has changed" not in text
    )
    with pytest.raises(ValueError, match="are not on the same rows"):
        report_card({**stages, "dpo": stage([0, 1])}, tmp_path)


def test_evaluations_without_scores_have_no_figure(tmp_path):
    page = report_card({"base": Evaluation({}, [])}, tmp_path)
    assert not (tmp_path / "scores.png").exists() and Page(page).sources == []


@pytest.mark.parametrize("place", ["file", "file/deep/er"])
def test_a_folder_that_is_a_file_is_refused(tmp_path, undrawn, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file or leads through one, so nothing can be written"):
        report_card({"base": stage([0])}, tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("samples", [-1, 0])
def test_no_samples_are_none(tmp_path, undrawn, samples):
    assert "<article>" not in report_card({"base": stage([0, 1])}, tmp_path, samples=samples).read_text(
        encoding="utf-8"
    )


# losses and scores by step

HISTORY = [{"step": s, "loss": 3.0 / s} for s in range(1, 9)] + [
    {"step": s, "eval_loss": v} for s, v in ((2, 2.0), (4, 1.0), (8, 1.5))
]
LOOKS = [
    {"step": 0, "exact": interval([0, 0, 1])},
    {"step": 4, "exact": interval([0, 1, 1])},
    {"step": 8, "stop_rate": 0.5},
]


def test_the_lowest_evaluation_loss_is_marked_in_both_panels():
    fig = drawn(plot_progress(HISTORY, LOOKS))
    for ax in fig.axes:
        assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"] == [4]
    assert fig.axes[0].get_ylim()[1] == pytest.approx(2.4)  # the first losses do not flatten the rest


def test_scores_of_the_looks_are_drawn_with_their_intervals():
    scores = drawn(plot_progress(HISTORY, LOOKS)).axes[1]
    assert {line.get_label(): list(line.get_ydata()) for line in scores.lines[:2]} == {
        "exact, 3 rows": [1 / 3, 2 / 3],
        "stop_rate": [0.5],
    }
    heights = scores.collections[0].get_paths()[0].vertices[:, 1]
    assert heights.min() == LOOKS[0]["exact"]["low"] and heights.max() == LOOKS[1]["exact"]["high"]
    assert scores.get_ylim() == (0, 1.05)


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore:Glyph")
def test_any_string_can_be_the_name_of_a_stage_and_of_a_look():
    odd = [text for text in NASTY if text[:1] in ("$", "_", "名")]
    drawn(plot_progress(dict.fromkeys(odd, HISTORY), {text: [{"step": 1, text: 0.5}] for text in odd}))


def test_a_stage_without_scores_has_no_mark_in_the_empty_place_below_its_loss():
    empty = drawn(plot_progress({"sft": HISTORY, "dpo": HISTORY[:8]}, {"dpo": LOOKS})).axes[2]
    assert not empty.axison and not empty.lines


def test_histories_of_several_stages_stand_beside_each_other(tmp_path, undrawn):
    rewards = [{"step": s, "loss": 0.6 / s} for s in (1, 2)]
    fig = drawn(plot_progress({"sft": HISTORY, "dpo": rewards}))
    assert [ax.get_title() for ax in fig.axes] == ["sft", "dpo"] and fig.axes[1].lines[0].get_ydata()[1] == 0.3
    page = report_card({"base": stage([1])}, tmp_path, history={"sft": HISTORY, "dpo": rewards}, looks={"sft": LOOKS})
    assert len(Page(page).sources) == 4 and (tmp_path / "loss.png").exists()
    with pytest.raises(ValueError, match="looks has the stages .'kto'."):
        plot_progress({"sft": HISTORY}, {"kto": LOOKS})


@pytest.mark.parametrize("history", [None, [], {}, {"sft": []}, [{"step": 3, "train_runtime": 1.0}]])
def test_a_run_that_logged_no_loss_has_a_card_without_a_curve(tmp_path, undrawn, history):
    report_card({"base": stage([1])}, tmp_path, history=history)
    assert not (tmp_path / "loss.png").exists()


def test_scores_by_step_come_from_both_files_in_order_and_a_torn_line_is_left_out(tmp_path):
    lines = [(4, "a", "a"), (4, "b", "x"), (4, "c", None), (0, "a", "b"), (0, "b", "b")]
    text = "".join(json.dumps({"step": s, "prompt": "p", "answer": a, "expected": e}) + "\n" for s, a, e in lines)
    (tmp_path / "samples.jsonl").write_text(text + '{"step": 9, "prom')
    (tmp_path / "collapse.jsonl").write_text(
        '{"step": 0, "stop_rate": 1.0, "kl": 0.0, "score": 3}\n{"step": 6, "stop_rate": 0.5}\n'
    )
    both = interval([1, 0])
    assert scores_by_step(tmp_path) == [
        {"step": 0, "exact_match": both, "stop_rate": 1.0, "score": 3}, {"step": 4, "exact_match": both},
        {"step": 6, "stop_rate": 0.5},
    ]  # fmt: skip
    (tmp_path / "held_out.jsonl").write_text('{"step": 0, "exact_match": 0.25, "answers": 16, "text": "a"}\n')
    found = scores_by_step(tmp_path, {})  # without the sampled outputs, and without steps that have no score left
    assert [look["step"] for look in found] == [0, 6] and found[0]["exact_match"]["n"] == 16
    (tmp_path / "held_out.jsonl").unlink()
    longer = scores_by_step(tmp_path, {"longer": lambda said, expected, example: float(example["step"])})
    assert longer[1]["longer"]["value"] == 4.0


def test_a_value_that_is_none_is_no_value_and_the_worst_of_equal_gain_comes_first():
    found = stage([0.0, 0.0], names=("exact", "other"))
    found.rows[0]["exact"] = None
    assert {title.split(":")[0]: rows for title, rows in group_rows({"a": found})} == {
        "a is wrong in exact": [1],
        "a is wrong in other": [0],
    }
    alike = {name: stage([0.9, 0.1, 0.5]) for name in "ab"}
    assert [rows for _, rows in group_rows(alike)] == [[1, 2, 0]]
