"""Edges of perplexity, scorers, intervals and evaluate; `scipy` and hand formulas are the oracles."""

import math
import weakref

import numpy as np
import pytest
import torch
from datasets import Dataset

from ft_notebooks import evaluation
from ft_notebooks.data import appointments
from ft_notebooks.evaluation import Evaluation, evaluate, exact_match, interval, key_order, perplexity
from ft_notebooks.masks import encode_chats
from ft_notebooks.models import tiny_model, tiny_tokenizer
from ft_notebooks.tokenizer import IGNORE

TOK = tiny_tokenizer()


def chat(user, *more):
    roles = ["user", "assistant"] * len(more)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, (user, *more))]}


CHATS = Dataset.from_list([chat("hi", "yo"), chat("count", "one two three four five"), chat("a", "b", "c", "d e f")])


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def by_hand(model, rows):
    total, count = 0.0, 0
    for row in rows:
        logp = model(torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
        for t in range(1, len(row["labels"])):
            if row["labels"][t] != IGNORE:
                total, count = total - logp[t - 1, row["labels"][t]].item(), count + 1
    return math.exp(total / count)


@torch.no_grad()
def test_perplexity_counts_every_assistant_turn_of_a_conversation(model):
    encoded, _ = encode_chats(TOK, CHATS)
    assert perplexity(model, TOK, CHATS) == pytest.approx(by_hand(model, encoded), rel=1e-5)
    assert perplexity(model, TOK, encoded, batch_size=2) == pytest.approx(by_hand(model, encoded), rel=1e-5)


@torch.no_grad()
def test_perplexity_is_that_of_the_real_task_in_any_order_and_batch(model):
    notes = appointments(9, part="test")
    expected = by_hand(model, encode_chats(TOK, notes)[0])
    for size, rows in ((1, notes), (4, notes.shuffle(seed=3)), (9, notes.select(range(8, -1, -1)))):
        assert perplexity(model, TOK, rows, batch_size=size) == pytest.approx(expected, rel=1e-5)


def test_rows_without_a_trained_token_add_nothing(model):
    encoded, _ = encode_chats(TOK, CHATS)
    silent = {"input_ids": [5] * 40, "labels": [IGNORE] * 40}
    with_silence = Dataset.from_list([silent, *encoded.to_list()])
    assert perplexity(model, TOK, with_silence) == pytest.approx(perplexity(model, TOK, encoded), rel=1e-5)


def test_a_label_on_the_first_token_is_not_counted(model):
    rows = encode_chats(TOK, CHATS)[0].to_list()
    first = [{**row, "labels": [row["input_ids"][0], *row["labels"][1:]]} for row in rows]
    assert perplexity(model, TOK, Dataset.from_list(first)) == perplexity(model, TOK, Dataset.from_list(rows))


@pytest.mark.parametrize("rows", [[], [{"input_ids": [1, 2], "labels": [IGNORE, IGNORE]}]])
def test_perplexity_over_nothing_is_refused(model, rows):
    dataset = Dataset.from_list(rows) if rows else encode_chats(TOK, CHATS)[0].select([])
    with pytest.raises(ValueError, match="no token is trained"):
        perplexity(model, TOK, dataset)


def test_a_model_with_nan_weights_is_refused_with_the_row():
    broken = tiny_model()
    torch.nn.init.constant_(broken.lm_head.weight, math.nan)
    with pytest.raises(ValueError, match="row 0: the loss is nan"):
        perplexity(broken, TOK, CHATS)


@pytest.mark.parametrize("mode", [True, False])
def test_dropout_is_off_and_the_mode_is_put_back(mode):
    dropping = tiny_model()
    for layer in dropping.model.layers:
        layer.self_attn.attention_dropout = 0.5
    plain = perplexity(dropping, TOK, CHATS)
    dropping.train(mode)
    assert perplexity(dropping, TOK, CHATS) == plain
    assert dropping.training is mode


def test_the_mode_is_put_back_when_the_model_fails():
    broken = tiny_model().train()
    broken.forward = lambda **_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        perplexity(broken, TOK, CHATS)
    assert broken.training


def test_no_gradient_is_recorded_and_no_logits_outlive_their_batch(model):
    alive, most = [], []

    def watch(module, args, output):
        assert not output.requires_grad
        most.append(sum(ref() is not None for ref in alive))
        alive.append(weakref.ref(output))

    handle = model.lm_head.register_forward_hook(watch)
    perplexity(model, TOK, appointments(6), batch_size=1)
    handle.remove()
    assert len(most) == 6 and max(most) == 0


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


def test_the_bootstrap_holds_the_truth_about_95_times_in_100():
    draws = np.random.default_rng(2).beta(2, 3, size=(300, 60))
    held = [found["low"] <= 0.4 <= found["high"] for found in map(interval, draws)]
    assert 0.91 <= np.mean(held) <= 0.98


@pytest.mark.parametrize("value", [0, 1, 0.1, -3.7, 1e9])
@pytest.mark.parametrize("n", [1, 2, 30])
def test_constant_values_have_an_ordered_interval_without_nan(value, n):
    found = interval([value] * n)
    assert found["low"] <= found["value"] <= found["high"] and found["n"] == n
    assert value in (0, 1) or found["high"] - found["low"] <= 1e-9 * abs(value)


@pytest.mark.parametrize("values", [[], [math.nan], [0, math.inf], [[0, 1]]])
def test_values_that_are_no_sample_are_refused(values):
    with pytest.raises(ValueError, match="at least one finite number"):
        interval(values)


def said(model, scorers, dataset=CHATS):
    return evaluate(model, TOK, dataset, scorers, max_new_tokens=3)


def test_evaluate_asks_for_the_last_turn_and_hands_the_row_to_the_scorer(model):
    dataset = CHATS.add_column("weight", [1, 2, 3])
    found = said(model, {"weight": lambda generated, expected, example: example["weight"]}, dataset)
    assert [row["expected"] for row in found.rows] == ["yo", "one two three four five", "d e f"]
    assert [row["prompt"] for row in found.rows] == [row["messages"][:-1] for row in CHATS]
    assert [row["weight"] for row in found.rows] == [1, 2, 3]
    assert list(found.rows[0]) == ["prompt", "expected", "generated", "weight"]
    assert found.scores["weight"] == interval([1, 2, 3])


def test_answers_are_cut_and_batched_as_asked_for(model, monkeypatch):
    asked = []
    monkeypatch.setattr(evaluation, "generate", lambda *args: asked.append(args[2:]) or ["x"] * len(args[2]))
    prompts = [row["messages"][:-1] for row in CHATS]
    evaluate(model, TOK, CHATS, {}, max_new_tokens=7, batch_size=2)
    evaluate(model, TOK, CHATS, {})
    assert asked == [(prompts, 7, 2), (prompts, 64, None)]


def test_evaluate_always_reports_the_perplexity_with_an_interval_around_it(model):
    found = said(model, {})
    assert list(found.scores) == ["perplexity"]
    score = found.scores["perplexity"]
    assert score["value"] == pytest.approx(perplexity(model, TOK, CHATS), rel=1e-6)
    assert score["low"] < score["value"] < score["high"] and score["n"] == 3
    alone = said(model, {}, CHATS.take(1)).scores["perplexity"]
    assert alone["low"] == alone["value"] == alone["high"]


def test_the_interval_of_the_perplexity_is_that_of_rows_drawn_again(model):
    notes = appointments(12)
    counts = np.array([sum(label != IGNORE for label in labels) for labels in encode_chats(TOK, notes)[0]["labels"]])
    sums = counts * np.log([perplexity(model, TOK, notes.select([i])) for i in range(12)])
    draws = np.random.default_rng(5).integers(0, 12, size=(4000, 12))
    low, high = np.quantile(np.exp(sums[draws].sum(1) / counts[draws].sum(1)), (0.025, 0.975))
    score = evaluate(model, TOK, notes, {}, max_new_tokens=1).scores["perplexity"]
    assert score["low"] == pytest.approx(low, abs=0.1 * (high - low))
    assert score["high"] == pytest.approx(high, abs=0.1 * (high - low))


@pytest.mark.parametrize("bad", [math.nan, math.inf, None, "1", [1], 1j])
def test_a_scorer_that_returns_no_finite_number_is_named(model, bad):
    with pytest.raises(ValueError, match=r"scorer 'odd' must return a finite number, got .* on row 0; generated: "):
        said(model, {"odd": lambda *_: bad})


def test_a_scorer_that_raises_is_named_with_its_row_and_reason(model):
    def second(generated, expected, example):
        return {"yo": 1}[expected]

    with pytest.raises(ValueError, match=r"scorer 'second' failed on row 1: KeyError\('one two") as e:
        said(model, {"second": second})
    assert isinstance(e.value.__cause__, KeyError) and "generated: " in str(e.value)


def test_a_scorer_may_return_a_truth_value(model):
    found = said(model, {"long": lambda g, e, x: len(e) > 2, "numpy": lambda g, e, x: np.bool_(True)})
    assert found.scores["long"] == interval([0, 1, 1]) and found.scores["numpy"] == interval([1, 1, 1])


def test_what_cannot_be_evaluated_is_refused(model):
    with pytest.raises(ValueError, match="got 0 rows"):
        said(model, {}, CHATS.select([]))
    with pytest.raises(ValueError, match='rows with "messages"'):
        said(model, {}, encode_chats(TOK, CHATS)[0])
    with pytest.raises(ValueError, match="row 1 has no assistant turn"):
        said(model, {}, Dataset.from_list([CHATS[0], chat("hi", "x") | {"messages": CHATS[0]["messages"][:1]}]))
    with pytest.raises(ValueError, match=r"may not be called \['expected', 'perplexity'\]"):
        said(model, {"perplexity": exact_match, "expected": exact_match})


def test_a_result_cannot_be_edited_and_does_not_spill_its_rows_when_shown():
    found = Evaluation({"a": interval([1])}, [{"generated": "x" * 1000}])
    with pytest.raises(AttributeError):
        found.scores = {}
    assert "xxx" not in repr(found)
