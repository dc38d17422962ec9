"""Edges of scorers, intervals and evaluate; `scipy` and hand formulas are the oracles."""

import logging
import math
import os

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.stats import norm, t
from small_runs import TALKS as CHATS
from small_runs import chat

from ft_notebooks.core.errors import Terminated
from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.evaluation import runner
from ft_notebooks.evaluation.answer_format import key_order
from ft_notebooks.evaluation.likelihood import answer_bytes, bits_per_byte, perplexity, row_losses
from ft_notebooks.evaluation.metrics import exact_match
from ft_notebooks.evaluation.runner import Evaluation, evaluate, interval
from ft_notebooks.inference.generation import answers
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.tokenization.padding import IGNORE

TOK = tiny_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.mark.parametrize(
    "generated, expected, score",
    [
        ('{"a": [1, {"b": null}]}', '{"a":[1,{"b":null}]}', 1),
        ('{"a": [1, 2]}', '{"a": [2, 1]}', 0),  # the order of a list says something
        ('{"a": 1}', '{"a": "1"}', 0),
        ('{"a": false}', '{"a": 0}', 0),
        ('{"a": 1e2}', '{"a": 100}', 1),
        ('{"a": 12345678901234567}', '{"a": 12345678901234568}', 0),  # alike as floats
        ('{"a": 1, "b": 2}', '{"a": 1}', 0),
        ('{"a": {"b": 1, "b": 1}}', '{"a": {"b": 1}}', 0),
        ('```json\n{"a": 1}\n```', '{"a": 1}', 0),
        ('{"a": "é"}', '{"a": "\\u00e9"}', 1),
        ("[1, 2]", "[1,2]", 0),  # not an object: text
        ('{"a": ' * 3000, '{"a": 1}', 0),
        ('{"a": ' + "9" * 5000 + "}", '{"a": 1}', 0),
        ("", "", 1),
        ("No", "no", 0),
    ],
)
def test_exact_match_compares_content(generated, expected, score):
    assert exact_match(generated, expected, {}) == score


def test_key_order_wants_all_the_keys_once_and_no_others():
    scorer = key_order("b", "a")
    assert scorer('{"b": 1, "a": 2}', "", {}) == 1
    wrong = ['{"a": 2, "b": 1}', '{"b": 1}', '{"b": 1, "a": 2, "c": 3}', '{"b": 1, "a": 2, "b": 3}', '["b", "a"]', "ba"]
    assert not any(scorer(text, "", {}) for text in wrong)


@pytest.mark.parametrize("n", [1, 2, 7, 300])
def test_wilson_holds_its_formula_for_every_count(n):
    z = 1.959963984540054
    for right in {0, 1, n // 2, n - 1, n}:
        found, p = interval([True] * right + [False] * (n - right)), right / n
        centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        assert found["value"] == p and found["n"] == n
        assert found["low"] == pytest.approx((centre - half) / (1 + z * z / n), abs=1e-9)
        assert found["high"] == pytest.approx((centre + half) / (1 + z * z / n), abs=1e-9)
        assert 0 <= found["low"] <= p <= found["high"] <= 1


def test_the_bootstrap_agrees_with_the_normal_formula_and_with_itself():
    values = np.random.default_rng(1).normal(3, 2, size=400)
    found = interval(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert found["value"] == pytest.approx(values.mean())
    assert found["high"] - found["low"] == pytest.approx(2 * half, rel=0.1)
    assert interval(values.tolist()) == found


@pytest.mark.whole
@pytest.mark.parametrize("n", [8, 60])
def test_the_bootstrap_holds_the_truth_about_95_times_in_100(n):
    draws = np.random.default_rng(2).beta(2, 3, size=(400, n))
    held = [found["low"] <= 0.4 <= found["high"] for found in map(interval, draws)]
    assert 0.92 <= np.mean(held) <= 0.975


@pytest.mark.parametrize("n", [2, 3, 5, 12, 200])
def test_the_bootstrap_is_as_wide_as_students_t_makes_it(n):
    values = np.random.default_rng(3).normal(size=n)
    draws = np.random.default_rng(4).choice(values, size=(40_000, n)).mean(axis=1)
    tail = norm.cdf(-t.ppf(0.975, n - 1) * math.sqrt(n / (n - 1)))
    low, high = np.quantile(draws, (tail, 1 - tail))
    found, tolerance = interval(values), 0.1 * (high - low)
    assert found["low"] == pytest.approx(low, abs=tolerance) and found["high"] == pytest.approx(high, abs=tolerance)


@pytest.mark.parametrize("value", [0, 1, 0.1, -3.7, 1e9])
@pytest.mark.parametrize("n", [1, 2, 30])
def test_constant_values_have_an_ordered_interval_without_nan(value, n):
    found = interval([value] * n)
    assert found["low"] <= found["value"] <= found["high"] and found["n"] == n
    assert value in (0, 1) or found["high"] - found["low"] <= 1e-9 * abs(value)


@pytest.mark.parametrize("values", [[], [math.nan], [0, math.inf], [[0, 1]], [1e308], [10**400], ["a"], [None]])
def test_values_that_are_no_sample_are_refused(values):
    with pytest.raises(ValueError, match="finite numbers, at least one"):
        interval(values)


def said(model, scorers, dataset=CHATS):
    return evaluate(model, TOK, dataset, scorers, max_new_tokens=3)


def test_evaluate_asks_for_the_last_turn_and_hands_the_row_to_the_scorer(model):
    dataset = CHATS.add_column("weight", [1, 2, 3])
    found = said(model, {"weight": lambda generated, expected, example: example["weight"]}, dataset)
    assert [row["expected"] for row in found.rows] == ["yo", "one two three four five", "d e f"]
    assert [row["prompt"] for row in found.rows] == [row["messages"][:-1] for row in CHATS]
    assert [row["weight"] for row in found.rows] == [1, 2, 3]
    facts = ["prompt", "expected", "generated", "ended", "tokens", "nats", "trained", "bytes"]
    assert list(found.rows[0]) == [*facts, "weight"]
    assert found.scores["weight"] == interval([1, 2, 3])


def test_answers_are_cut_and_batched_as_asked_for(model, monkeypatch):
    asked = []
    said = {"text": "x", "tokens": 1, "ended": False}
    monkeypatch.setattr(
        runner, "answers", lambda model, tok, chats, **how: asked.append((chats, how)) or [said] * len(chats)
    )
    prompts = [row["messages"][:-1] for row in CHATS]
    evaluate(model, TOK, CHATS, {}, max_new_tokens=7, batch_size=2, file="kept.jsonl")
    evaluate(model, TOK, CHATS, {})
    names = ("max_new_tokens", "batch_size", "file", "tools", "max_thought_tokens")
    wanted = [(7, 2, "kept.jsonl", None, None), (64, None, None, None, None)]
    assert asked == [(prompts, dict(zip(names, values))) for values in wanted]


@pytest.mark.numbers
def test_evaluate_always_reports_the_perplexity_with_an_interval_around_it(model):
    found = said(model, {})
    assert list(found.scores) == ["bits_per_byte", "perplexity"]
    score = found.scores["perplexity"]
    assert score["value"] == pytest.approx(perplexity(model, TOK, CHATS), rel=1e-6)
    assert score["low"] < score["value"] < score["high"] and score["n"] == 3
    alone = said(model, {}, CHATS.take(1)).scores["perplexity"]
    assert alone["low"] == alone["value"] == alone["high"]


@pytest.mark.numbers
def test_the_interval_of_the_perplexity_is_that_of_rows_drawn_again(model):
    notes = appointments(12)
    counts = np.array([sum(label != IGNORE for label in labels) for labels in encode_chats(TOK, notes)[0]["labels"]])
    sums = counts * np.log([perplexity(model, TOK, notes.select([i])) for i in range(12)])
    draws = np.random.default_rng(5).integers(0, 12, size=(4000, 12))
    tail = norm.cdf(-t.ppf(0.975, 11) * math.sqrt(12 / 11))
    low, high = np.quantile(np.exp(sums[draws].sum(1) / counts[draws].sum(1)), (tail, 1 - tail))
    score = evaluate(model, TOK, notes, {}, max_new_tokens=1).scores["perplexity"]
    assert score["low"] == pytest.approx(low, abs=0.1 * (high - low))
    assert score["high"] == pytest.approx(high, abs=0.1 * (high - low))


@pytest.mark.numbers
def test_bits_per_byte_stand_beside_the_perplexity_with_their_interval(model):
    score = said(model, {}).scores["bits_per_byte"]
    assert score["value"] == pytest.approx(bits_per_byte(model, TOK, CHATS), rel=1e-6)
    assert score["low"] < score["value"] < score["high"] and score["n"] == 3


@pytest.mark.numbers
def test_each_row_has_its_part_of_the_sums_and_what_is_known_of_its_answer(model):
    rows = said(model, {}).rows
    sums, counts = row_losses(model, TOK, CHATS)
    assert [row["nats"] for row in rows] == pytest.approx(sums, rel=1e-5)
    assert [row["trained"] for row in rows] == counts.tolist() and [row["bytes"] for row in rows] == answer_bytes(CHATS)
    heard = answers(model, TOK, [row["messages"][:-1] for row in CHATS], 3, progress=False)
    assert [(row["generated"], row["tokens"], row["ended"]) for row in rows] == [tuple(a.values()) for a in heard]


def test_answers_without_a_byte_leave_bits_per_byte_out(model):
    assert list(said(model, {}, Dataset.from_list([chat("hi", "")])).scores) == ["perplexity"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, None, "1", [1], 1j, 1e308, -(10**400)])
def test_a_value_that_is_no_finite_number_is_missing_and_named(model, bad):
    found = said(model, {"odd": lambda g, expected, x: bad if expected == "yo" else 1})
    assert [row["odd"] for row in found.rows] == [None, 1.0, 1.0] and found.scores["odd"] == interval([1, 1])
    [error] = found.errors
    assert (error["row"], error["scorer"]) == (0, "odd") and repr(bad)[:80] in error["message"]


def test_a_scorer_that_raises_loses_its_rows_and_no_others(model, caplog):
    def second(generated, expected, example):
        return {"yo": 1}[expected]

    found = said(model, {"second": second, "fine": lambda *_: 0.5})
    assert [row["second"] for row in found.rows] == [1.0, None, None] and found.scores["second"]["n"] == 1
    assert [row["fine"] for row in found.rows] == [0.5] * 3 and found.scores["fine"]["n"] == 3
    assert [(e["row"], e["scorer"]) for e in found.errors] == [(1, "second"), (2, "second")]
    [line] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line == "2 of 6 values are missing; the first: scorer 'second' on row 1: KeyError('one two three four five')"


def test_a_value_that_cannot_even_be_shown_is_missing_too(model):
    found = said(model, {"odd": lambda g, expected, x: 10**5000 if expected == "yo" else 1})
    assert [row["odd"] for row in found.rows] == [None, 1.0, 1.0]


def test_a_scorer_that_fails_on_every_row_is_refused(model):
    with pytest.raises(ValueError, match=r"scorer 'second' failed on all 3 rows; on row 0: KeyError\('generated'\)"):
        said(model, {"fine": lambda *_: 1, "second": lambda g, e, example: example["generated"]})


def test_nothing_is_said_where_nothing_failed(model, caplog):
    found = said(model, {"fine": lambda *_: 1})
    assert found.errors == [] and not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_interrupt_is_no_failure_of_a_scorer(model):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        said(model, {"stop": stop})


def test_a_scorer_sees_how_the_answer_ended_and_how_long_it_is(model):
    seen = []
    found = said(model, {"seen": lambda g, e, example: seen.append(example) or 1})
    assert [(x["ended"], x["tokens"]) for x in seen] == [(row["ended"], row["tokens"]) for row in found.rows]
    assert [set(x) for x in seen] == [{"messages", "ended", "tokens"}] * 3


def test_no_scorer_sees_or_leaves_what_another_did(model, tmp_path):
    def greedy(generated, expected, example):
        example["ended"] = example["messages"][0]["content"] = None
        os.chdir(tmp_path)
        torch.set_grad_enabled(False)
        return torch.rand(())

    def seen(generated, expected, example):
        return np.array(example["ended"] is not None and example["messages"][0]["content"] is not None)

    before, state = os.getcwd(), torch.get_rng_state()
    found = said(model, [greedy, seen])
    assert not found.errors and [row["seen"] for row in found.rows] == [1.0] * len(found.rows)
    assert (os.getcwd(), torch.is_grad_enabled()) == (before, True) and torch.equal(torch.get_rng_state(), state)


def test_a_scorer_may_return_a_truth_value(model):
    found = said(model, {"long": lambda g, e, x: len(e) > 2, "numpy": lambda g, e, x: np.bool_(True)})
    assert found.scores["long"] == interval([0, 1, 1]) and found.scores["numpy"] == interval([1, 1, 1])


def test_what_cannot_be_evaluated_is_refused(model):
    with pytest.raises(ValueError, match="got 0 rows"):
        said(model, {}, CHATS.select([]))
    with pytest.raises(ValueError, match='needs chats \\("messages"\\), got 3 rows of'):
        said(model, {}, encode_chats(TOK, CHATS)[0])
    with pytest.raises(ValueError, match=r"rename the columns \['tokens'\]"):
        said(model, {}, CHATS.add_column("tokens", [1, 2, 3]))
    with pytest.raises(ValueError, match="row 1 has no assistant turn"):
        said(model, {}, Dataset.from_list([CHATS[0], chat("hi", "x") | {"messages": CHATS[0]["messages"][:1]}]))
    with pytest.raises(ValueError, match=r"rename the scorers \['bits_per_byte', 'ended', 'perplexity'\]"):
        said(model, {"perplexity": exact_match, "ended": exact_match, "bits_per_byte": exact_match})


@pytest.mark.parametrize("long, told", [(["hi" * 1100, "yo"], "conversation 1"), (["hi", "yo" * 1100], "row 1")])
def test_what_is_longer_than_the_context_is_refused_before_anything_runs(model, monkeypatch, long, told):
    monkeypatch.setattr(model, "forward", None)
    monkeypatch.setattr(model, "generate", None)
    with pytest.raises(ValueError, match=f"{told} has 2[0-9]+ tokens.* context of 2048"):
        said(model, {}, Dataset.from_list([chat("a", "b"), chat(*long)]))
    with pytest.raises(ValueError, match="conversation 0 has .* with max_new_tokens=3000"):
        evaluate(model, TOK, CHATS, {}, max_new_tokens=3000)


def test_a_result_cannot_be_edited_and_does_not_spill_its_rows_when_shown():
    found = Evaluation({"a": interval([1])}, [{"generated": "x" * 1000}])
    with pytest.raises(AttributeError):
        found.scores = {}
    assert "xxx" not in repr(found)


def test_a_scorer_that_exits_has_failed_on_its_row_and_sigterm_ends_the_evaluation(model):
    def leaves(generated, expected, example):
        raise SystemExit(0)

    def is_stopped(generated, expected, example):
        raise Terminated

    with pytest.raises(ValueError, match=r"scorer 'leaves' failed on all .* rows; on row 0: SystemExit\(0\)"):
        said(model, {"leaves": leaves})
    with pytest.raises(Terminated):
        said(model, {"is_stopped": is_stopped})
