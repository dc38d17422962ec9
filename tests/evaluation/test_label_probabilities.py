"Faults of labels and their probabilities: found or refused; and benign cases, which are not."

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.special import softmax
from small_runs import chat
from tiny_families import family as tiny

from ft_notebooks.core.arguments import ArgumentError
from ft_notebooks.data.read import read_chats
from ft_notebooks.evaluation.labels import calibrate_labels, label_probabilities, label_report, plot_label_report
from ft_notebooks.evaluation.likelihood import row_losses
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer

TOK = tiny_tokenizer()
LABELS = ["app", "apple", "billing", "a label that is much longer than all of the others"]
MAILS = [[{"role": "user", "content": text}] for text in ("I paid twice.", "?", "The parcel is late, and I am angry.")]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def slow(model, mails, labels):
    "Each pair of prompt and label as a row of its own."
    pairs = [{"messages": [*mail, {"role": "assistant", "content": label}]} for mail in mails for label in labels]
    return softmax(-row_losses(model, TOK, read_chats(pairs))[0].reshape(len(mails), -1), axis=1)


@pytest.mark.numbers
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_next", "mixtral"])
def test_each_family_gives_what_a_full_forward_of_each_pair_gives(family):
    model = tiny(family)
    found = label_probabilities(model, TOK, MAILS, LABELS, batch_size=3)
    np.testing.assert_allclose(found, slow(model, MAILS, LABELS), rtol=2e-3, atol=1e-6)


@pytest.mark.numbers
def test_earlier_turns_and_a_system_message_are_part_of_the_prompt(model):
    long = [{"role": "system", "content": "Name it."}, *chat("Hi", "Yes?")["messages"], *MAILS[0]]
    np.testing.assert_allclose(label_probabilities(model, TOK, [long], LABELS), slow(model, [long], LABELS), rtol=1e-3)
    assert model.training is tiny_model().training


@pytest.mark.numbers
def test_where_all_tokens_are_equally_probable_a_label_loses_a_factor_with_each_token():
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight.zero_()
    found = label_probabilities(model, TOK, MAILS[:1], ["app", "appl", "apple"])[0]
    np.testing.assert_allclose(found[1:] / found[:-1], 1 / len(TOK), rtol=1e-3)  # one byte more each


def test_labels_that_are_one_text_are_refused_by_number(model):
    with pytest.raises(ValueError, match="label 2, 'app', is in the list twice"):
        label_probabilities(model, TOK, MAILS, ["app", "apple", "app"])
    with pytest.raises(ValueError, match="label 1, 'app ', is in the list twice, but for spaces"):
        label_probabilities(model, TOK, MAILS, ["app", "app "])
    with pytest.raises(ValueError, match="label 1, None, is no text"):
        label_probabilities(model, TOK, MAILS, ["app", None])
    with pytest.raises(ValueError, match="label 0, ' ', is no text"):
        label_probabilities(model, TOK, MAILS, [" ", "app"])
    for labels in ("app", ["app"]):
        with pytest.raises(ValueError, match="a list of at least two strings"):
            label_probabilities(model, TOK, MAILS, labels)


@pytest.mark.parametrize("said", [" Billing", "BILLING", "biling"])
def test_a_label_that_the_rows_spell_otherwise_is_refused_with_its_row(model, said):
    rows = Dataset.from_list([chat("a", "billing"), chat("b", said)])
    with pytest.raises(ValueError, match=f"row 1: its label '{said}' is none of the 2 labels; did you mean 'billing'"):
        label_probabilities(model, TOK, rows, ["billing", "delivery"])
    with pytest.raises(ValueError, match="row 1: .* add it to the list"):
        label_probabilities(model, TOK, [chat("a", "billing"), chat("b", "xyz")], ["billing", "delivery"])


def test_labels_that_differ_in_case_and_rows_without_some_label_are_fine(model):
    assert label_probabilities(model, TOK, [chat("a", "us")], ["US", "us", "uk"]).shape == (1, 3)


def test_a_wrong_argument_a_long_row_and_a_broken_model_are_errors(model):
    with pytest.raises(ArgumentError, match="order"):
        label_probabilities(TOK, model, MAILS, LABELS)
    with pytest.raises(ArgumentError, match="batch_size"):
        label_probabilities(model, TOK, MAILS, LABELS, batch_size=0)
    with pytest.raises(ValueError, match="row 1 has .* more than the model's context"):
        label_probabilities(model, TOK, [MAILS[0], [{"role": "user", "content": "a" * 2050}]], LABELS)
    broken = tiny_model()
    with torch.no_grad():
        broken.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="row 0: the loss of label 'app' is not finite"):
        label_probabilities(broken, TOK, MAILS, LABELS)


def drawn(rows, scale, seed=0, labels=4):
    "A table that is `scale` times too sure, and labels drawn from the true one."
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(rows, labels))
    truth = softmax(logits, axis=1)
    numbers = (truth.cumsum(1) > rng.random((rows, 1))).argmax(1)
    return softmax(scale * logits, axis=1), [LABELS[n] for n in numbers]


@pytest.mark.parametrize("scale", [0.5, 1, 4])
def test_the_temperature_is_the_scale_whichever_way_it_is_wrong(scale):
    table, said = drawn(3000, scale)
    assert calibrate_labels(table, said, LABELS).temperature == pytest.approx(scale, rel=0.12)


def test_test_rows_that_the_temperature_was_fitted_on_are_refused_and_new_rows_are_not():
    table, said = drawn(400, 3)
    calibration = calibrate_labels(table[:200], said[:200], LABELS)
    with pytest.raises(ValueError, match="200 test rows were held out for the calibration, the first is row 0"):
        label_report(table, said, LABELS, calibration)
    label_report(table[200:], said[200:], LABELS, calibration)
    label_report(table, said, LABELS)


def test_rows_of_which_a_model_is_certain_are_not_taken_for_the_same_row():
    held, said = drawn(200, 3)
    certain = np.eye(4)[[0, 1, 2, 3, 0]]
    even = np.full((1, 4), 0.25)
    calibration = calibrate_labels(np.vstack([held, certain, even]), [*said, *["app"] * 6], LABELS)
    report = label_report(np.vstack([certain, even]), ["app"] * 6, LABELS, calibration)
    assert report.accuracy["n"] == 6


def test_a_threshold_keeps_its_precision_on_new_rows_nearly_always():
    kept = []
    for seed in range(40):
        table, said = drawn(600, 3, seed)
        calibration = calibrate_labels(table[:300], said[:300], LABELS, precision=0.8)
        kept.append(label_report(table[300:], said[300:], LABELS, calibration).precision["value"])
    assert np.mean(kept) > 0.8 and np.mean(np.array(kept) > 0.76) > 0.9


def test_texts_without_a_label_count_for_the_threshold_alone():
    table, said = drawn(600, 1)
    others = softmax(0.2 * np.random.default_rng(5).normal(size=(100, 4)), axis=1)  # the model is not sure of them
    both, expected = np.vstack([table, others]), [*said, *[None] * 100]
    halves = np.arange(700) % 2 == 0
    known = calibrate_labels(both[halves], [e for e, h in zip(expected, halves) if h], LABELS, precision=0.8)
    report = label_report(both[~halves], [e for e, h in zip(expected, halves) if not h], LABELS, known)
    assert report.none_found["value"] == 1 and report.none_found["n"] == 50 and report.accuracy["n"] == 300
    chosen = known.choose(both[~halves])
    assert chosen.count(None) == round((1 - report.answered["value"]) * 350) > 50


def test_a_report_of_tables_that_are_no_probabilities_is_refused():
    with pytest.raises(ValueError, match="row 0 is .* no probabilities"):
        label_report([[-1.0, 2.0]], ["a"], ["a", "b"])
    with pytest.raises(ValueError, match="row 0 is .* no probabilities"):
        label_report([[np.nan, 0.5]], ["a"], ["a", "b"])
    with pytest.raises(ValueError, match="0 of them not None"):
        label_report([[0.5, 0.5]], [None], ["a", "b"])
    with pytest.raises(ValueError, match="row 0: its label 'c' is none of the 2"):
        label_report([[0.5, 0.5]], ["c"], ["a", "b"])


def test_the_figure_names_forty_labels_and_takes_formulas_as_text():
    labels = [f"label ${n}" for n in range(40)]
    table = softmax(np.random.default_rng(0).normal(size=(80, 40)), axis=1)
    fig = plot_label_report(label_report(table, labels * 2, labels))
    assert [tick.get_text() for tick in fig.axes[1].get_yticklabels()] == labels
    fig.canvas.draw()
