"""Edges of the paired comparison; slow loops, exact sums and other libraries' formulas are the oracles."""

import math
import tracemalloc

import numpy as np
import pytest
from scipy.stats import binom, binomtest, nct, norm, t

from ft_notebooks.core.arguments import ArgumentError
from ft_notebooks.evaluation import statistics
from ft_notebooks.evaluation.comparison import compare_stages, group_rows
from ft_notebooks.evaluation.runner import Evaluation, interval
from ft_notebooks.evaluation.statistics import compare, rows_needed


def told(values, name="score", **columns):
    rows = [
        {"prompt": n, "expected": "", name: v, **{k: c[n] for k, c in columns.items()}} for n, v in enumerate(values)
    ]
    good = [v for v in values if v is not None]
    return Evaluation({name: interval(good)} if good else {name: {}}, rows)


def read(nats, trained, size):
    rows = [
        {"prompt": n, "expected": "", "nats": a, "trained": b, "bytes": c}
        for n, (a, b, c) in enumerate(zip(nats, trained, size))
    ]
    return Evaluation({"perplexity": {}, "bits_per_byte": {}}, rows)


@pytest.mark.parametrize("gained, lost", [(0, 0), (1, 0), (5, 0), (6, 0), (3, 4), (20, 4), (150, 100)])
def test_the_p_of_zeros_and_ones_is_that_of_a_fair_coin_on_the_rows_that_differ(gained, lost):
    one, other = [1] * lost + [0] * gained + [1, 0] * 10, [0] * lost + [1] * gained + [1, 0] * 10
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n
    found = compare(told(one), told(other), "score")
    assert found["p"] == pytest.approx(min(1, 2 * tail)) and found["n"] == n + 20
    assert found["difference"] == pytest.approx((gained - lost) / (n + 20)) and found["discordant"] == n / (n + 20)


def test_no_row_that_differs_is_no_proof_of_equality():
    found = compare(told([1, 0] * 20), told([1, 0] * 20), "score")
    assert (found["difference"], found["p"]) == (0, 1) and found["low"] < -0.05 and found["high"] > 0.05
    assert found["verdict"].startswith("not distinguishable on 40 rows")


@pytest.mark.parametrize("name, of", [("perplexity", np.exp), ("bits_per_byte", lambda x: x / math.log(2))])
def test_a_ratio_is_compared_as_the_difference_of_two_ratios(name, of):
    rng = np.random.default_rng(0)
    trained, size = rng.integers(3, 40, 30), rng.integers(9, 99, 30)
    whole = trained if name == "perplexity" else size
    first, second = rng.gamma(2, 0.5, (2, 30)) * trained * [[1], [0.7]]
    found = compare(read(first, trained, size), read(second, trained, size), name)
    assert found["difference"] == pytest.approx(of(second.sum() / whole.sum()) - of(first.sum() / whole.sum()))
    draws = rng.integers(0, 30, (20_000, 30))
    drawn = of(second[draws].sum(1) / whole[draws].sum(1)) - of(first[draws].sum(1) / whole[draws].sum(1))
    tail = norm.cdf(-t.ppf(0.975, 29) * math.sqrt(30 / 29))
    low, high = np.quantile(drawn, (tail, 1 - tail))
    assert found["low"] == pytest.approx(low, abs=0.1 * (high - low))
    assert found["high"] == pytest.approx(high, abs=0.1 * (high - low))
    swaps = np.abs((rng.choice([-1, 1], (20_000, 30)) * (second - first)).sum(axis=1))
    assert found["p"] == pytest.approx(np.mean(swaps >= abs((second - first).sum())), abs=0.01)


def test_rows_are_swapped_within_themselves_however_far_apart_they_are():
    hard = np.linspace(0, 100, 12)
    found = compare(told(hard.tolist()), told((hard + np.linspace(0.1, 0.2, 12)).tolist()), "score")
    assert found["p"] == pytest.approx(2 / 2**12) and found["low"] > 0.1


def test_less_is_better_of_a_perplexity_and_of_what_one_says():
    nats, trained = np.linspace(10, 20, 12), [10] * 12
    worse, better = read(2 * nats, trained, trained), read(nats, trained, trained)
    assert compare(worse, better, "perplexity", ("A", "B"))["verdict"].startswith("B is better by")
    assert compare(better, worse, "bits_per_byte", ("A", "B"))["verdict"].startswith("A is better by")
    short, long = told([3.5] * 12), told([9.0] * 12)
    assert compare(short, long, "score")["verdict"].startswith("the second is better by 5.5 (5.5 to 5.5) on 12 rows")
    assert compare(short, long, "score", direction=-1)["verdict"].startswith("the first is better by 5.5")
    assert compare(worse, better, "perplexity", direction=1)["verdict"].startswith("the first is better")


@pytest.mark.parametrize("scores", [([1, 0, 1, 1, 0], [0, 1, 1, 1, 0]), ([0.5, 2, 0.25, 1, 7], [1, 0, 0, 3, 2])])
def test_the_other_way_round_everything_changes_its_sign_and_nothing_else(scores):
    there, back = compare(*map(told, scores), "score"), compare(*map(told, scores[::-1]), "score")
    assert there["difference"] == -back["difference"] and there["p"] == pytest.approx(back["p"])
    assert there["low"] == pytest.approx(-back["high"]) and there["high"] == pytest.approx(-back["low"])
    assert [there[key] == back[key] for key in ("n", "sd", "discordant", "left_out")] == [True] * 4


def test_rows_that_one_of_the_two_did_not_score_are_left_out_and_counted():
    one, other = [1, None, 0, 1, 0, 1], [1, 1, None, 0, 1, None]
    found = compare(told(one), told(other), "score")
    assert (found["n"], found["left_out"]) == (3, 3)
    whole = compare(told([1, 1, 0]), told([1, 0, 1]), "score")
    assert {**found, "left_out": 0} == whole


def test_one_row_is_no_crash():
    found = compare(told([0.5]), told([0.75]), "score")
    assert found["low"] == found["high"] == found["difference"] == 0.25 and found["p"] == 1 and found["sd"] == 0
    assert compare(told([0]), told([1]), "score")["p"] == 1


@pytest.mark.parametrize("change", ["order", "fewer", "expected", "prompt"])
def test_evaluations_of_other_rows_are_refused(change):
    one, other = told([1, 0, 1]), told([1, 0, 1])
    if change == "order":
        other.rows.reverse()
    elif change == "fewer":
        other.rows.pop()
    else:
        other.rows[2][change] = "else"
    with pytest.raises(ValueError, match="not on the same rows; evaluate both models on one dataset"):
        compare(one, other, "score")


@pytest.mark.whole
def test_the_memory_of_a_comparison_does_not_grow_with_rows_times_permutations():
    draw = np.random.default_rng(0)
    one, other = (told(draw.random(300).tolist()) for _ in range(2))
    tracemalloc.start()
    compare(one, other, "score")
    assert tracemalloc.get_traced_memory()[1] < 10e6  # 9,999 permutations of 300 rows at once are 24 MB an array
    tracemalloc.stop()


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match=r"'f1' must be a score of both evaluations; one of them has \['score'\]"):
        compare(told([1], "f1"), told([1]), "f1")
    of_some = Evaluation({"score": {}, "total": {}}, told([1]).rows)
    with pytest.raises(ValueError, match="no row has the score 'total'"):
        compare(of_some, of_some, "total")
    with pytest.raises(ValueError, match="no row has the score 'score'"):
        compare(told([None, 1]), told([1, None]), "score")
    one, other = read([3.0, 4.0], [2, 3], [5, 6]), read([3.0, 4.0], [2, 4], [5, 6])
    with pytest.raises(ValueError, match="the two models tokenize the rows differently"):
        compare(one, other, "perplexity")
    assert compare(one, other, "bits_per_byte")["difference"] == 0


def test_the_verdict_needs_both_the_test_and_the_interval():
    one, other = told([1] + [0] * 49), told([0] + [1] * 7 + [0] * 42)  # 7 gained, 1 lost
    found = compare(one, other, "score")
    assert found["low"] > 0 and found["p"] > 0.05 and found["verdict"].startswith("not distinguishable")


@pytest.mark.parametrize("p", [(0.02, 0.05), (0.1, 0.1), (0.05, 0.25), (0.0, 0.1)])
@pytest.mark.parametrize("n", [15, 60])
def test_the_interval_of_a_difference_of_shares_holds_the_truth_at_least_93_times_in_100(p, n):
    "Added up over every outcome."
    lost, gained = np.meshgrid(range(n + 1), range(n + 1), indexing="ij")
    possible = lost + gained <= n
    lost, gained = lost[possible], gained[possible]
    weight = binom.pmf(lost, n, p[0]) * binom.pmf(gained, n - lost, p[1] / (1 - p[0]))
    low, high = statistics._adjusted(gained, lost, n)
    assert weight.sum() == pytest.approx(1)
    assert weight[(low <= p[1] - p[0]) & (p[1] - p[0] <= high)].sum() > 0.93


@pytest.mark.parametrize("n, discordant, difference", [(10, 0.5, 0.3), (40, 0.2, 0.2), (40, 0.3, 0.1), (25, 1.0, 0.4)])
def test_the_power_is_the_sum_over_all_outcomes(n, discordant, difference):
    total = 0
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            if gained + lost and binomtest(gained, gained + lost).pvalue < 0.05:
                up, down = (discordant + difference) / 2, (discordant - difference) / 2
                ways = math.comb(n, gained) * math.comb(n - gained, lost)
                total += ways * up**gained * down**lost * (1 - discordant) ** (n - gained - lost)
    assert statistics._power(n, discordant, difference) == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("given", [{"discordant": 0.2}, {"discordant": 0.1}, {"share": 0.84}, {}])
def test_as_many_rows_as_are_needed_are_enough_and_one_less_is_not(given):
    n, power = rows_needed(0.1, **given), 0.8
    share = given.get("share", 0.5)
    discordant = given.get("discordant", share * (0.9 - share) + (share + 0.1) * (1 - share))
    assert statistics._power(n, discordant, 0.1) >= power > statistics._power(n - 1, discordant, 0.1)
    assert rows_needed(0.1, **given, power=0.9) > n


@pytest.mark.parametrize("ratio", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("power", [0.8, 0.95])
def test_other_scores_need_as_many_rows_as_a_paired_t_test(ratio, power):
    n = rows_needed(0.5 * ratio, sd=0.5, power=power)
    seen = [nct.sf(t.ppf(0.975, k - 1), k - 1, ratio * math.sqrt(k)) for k in (n - 2, n)]
    assert seen[0] < power + 0.01 and seen[1] > power - 0.01


@pytest.mark.whole
def test_a_small_difference_needs_rows_and_no_patience():
    assert 1.4e5 < rows_needed(0.005) < 1.8e5


@pytest.mark.parametrize(
    "given",
    [
        {"difference": 0},
        {"difference": -0.1},
        {"difference": 0.3, "discordant": 0.2},
        {"difference": 0.1, "discordant": 1.2},
    ]
    + [{"difference": 0.1, "power": 1}, {"difference": 0.1, "power": 0, "sd": 1}, {"difference": 0.6, "share": 0.9}]
    + [
        {"difference": 0.1, "sd": 0},
        {"difference": 0.1, "sd": -1},
        {"difference": 0.9, "share": 0.5},
        {"difference": math.nan},
    ],
)
def test_what_no_number_of_rows_can_show_is_refused(given):
    with pytest.raises(ValueError, match="rows_needed: "):
        rows_needed(**given)


@pytest.mark.parametrize("value", [1e308, -math.inf, math.nan, 10**400, "a", [1]])
def test_scores_that_are_no_numbers_or_overflow_are_refused_with_their_row(value):
    odd = Evaluation({"score": {}}, [{**row, "score": [1, 2, value][n]} for n, row in enumerate(told([1, 2, 3]).rows)])
    for pair in ((odd, told([1, 2, 3])), (told([1, 2, 3]), odd)):
        with pytest.raises(ValueError, match="row 2: score is .*, which is not a finite number up to 1e.100"):
            compare(*pair, "score")


@pytest.mark.parametrize("direction", [5, 0.5, math.nan, "up"])
def test_a_direction_is_1_or_minus_1_or_0(direction):
    stages = {"one": told([1, 0]), "other": told([1, 1])}
    for refused in (
        lambda: compare(*stages.values(), "score", direction=direction),
        lambda: compare_stages(stages, {"score": direction}),
        lambda: group_rows(stages, {"score": direction}),
    ):
        with pytest.raises(ArgumentError, match="the direction of score must be 1, -1 or 0"):
            refused()


@pytest.mark.whole
def test_more_rows_than_anybody_has_are_an_error_and_no_endless_search():
    for given in ({"difference": 1e-9}, {"difference": 1e-300, "sd": 1e300}):
        with pytest.raises(ValueError, match="more than 16,777,216 rows"):
            rows_needed(**given)
    assert rows_needed(1, sd=1000) > 7_000_000
    with pytest.raises(ValueError, match="share=2"):
        rows_needed(0.1, share=2)
