"""Intervals over documents: known answers, honest coverage, what they refuse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis import intervals
from analysis.intervals import SHARE, difference_interval, rank_correlation, ratio_interval


def documents(rng, n):
    """Nats and lengths of n documents whose ratio is 3 on average; tokens of a document are alike, lengths are skewed."""
    lengths = np.maximum(1, rng.lognormal(3, 0.8, n).round())
    return lengths * rng.gamma(4, 0.25, n) * 3, lengths


def tokenwise(top, bottom):
    """The interval of somebody who takes tokens for independent: too narrow, the test's counter-example."""
    mean = top.sum() / bottom.sum()
    values = np.repeat(top / bottom, bottom.astype(int))
    reach = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    return mean - reach, mean + reach


@pytest.mark.parametrize("n", [12, 60])
def test_95_percent_of_the_intervals_cover_the_truth(n):
    rng, hits, naive = np.random.default_rng(0), 0, 0
    for trial in range(400):
        pair = documents(rng, n)
        found = ratio_interval(*pair, seed=trial)
        hits += found.low <= 3 <= found.high
        low, high = tokenwise(*pair)
        naive += low <= 3 <= high
    assert 0.90 <= hits / 400 <= 0.985
    assert naive / 400 < 0.6, "tokens drawn one by one would do: the test cannot tell"


def test_coverage_of_a_difference_of_two_classes():
    """Classes that share documents; a document may lack one of them."""
    rng, hits = np.random.default_rng(11), 0
    for trial in range(600):
        n = 40
        mood = rng.normal(0, 0.5, n)  # of a document, in both classes
        counts = rng.poisson(6, (2, n)).astype(float)
        tops = counts * (np.array([[1.0], [0.7]]) + mood) + rng.normal(0, 0.3, (2, n)) * np.sqrt(counts)
        found = difference_interval((tops[0], counts[0]), (tops[1], counts[1]), seed=trial)
        hits += found.low <= 0.3 <= found.high
    assert 0.90 <= hits / 600 <= 0.985


def test_coverage_of_a_rare_share():
    rng, hits = np.random.default_rng(2), 0
    for trial in range(300):
        lengths = rng.integers(5, 40, 60)
        rates = rng.beta(0.5, 0.5 * 0.96 / 0.04, 60)  # 4 %, very uneven over documents
        found = ratio_interval(rng.binomial(lengths, rates), lengths, bounds=SHARE, seed=trial)
        hits += found.low <= 0.04 <= found.high
        assert 0 <= found.low <= found.value <= found.high <= 1
    assert 0.89 <= hits / 300 <= 0.985


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-50, 50), st.integers(0, 40)), min_size=2, max_size=30), st.floats(0.1, 10))
def test_value_scale_and_order(rows, factor):
    """The value is the ratio of the sums; scaling scales the interval; the interval holds the value and is finite."""
    top, bottom = np.array(rows, float).T
    top = np.where(bottom > 0, top, 0.0)
    if not bottom.sum():
        with pytest.raises(ValueError, match="divide by"):
            ratio_interval(top, bottom)
        return
    found, scaled = ratio_interval(top, bottom), ratio_interval(factor * top, bottom)
    assert found.value == pytest.approx(top.sum() / bottom.sum(), abs=1e-9)
    assert np.isfinite([found.low, found.high]).all() and found.low <= found.high
    assert scaled.value == pytest.approx(factor * found.value, abs=1e-6, rel=1e-6)


def test_many_equal_documents_give_the_textbook_interval():
    """Denominators all 1: a mean, whose studentised bootstrap is near Student's t."""
    values = np.random.default_rng(3).normal(5, 2, 200)
    found = ratio_interval(values, np.ones(200))
    low, high = stats.t.interval(0.95, 199, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.04)
    assert ratio_interval(values, np.ones(200), seed=1) != found, "the seed decides the draws"
    assert ratio_interval(values, np.ones(200)) == found


def test_a_difference_of_the_same_is_nothing_and_paired_is_narrower():
    rng = np.random.default_rng(4)
    top, bottom = documents(rng, 50)
    same = difference_interval((top, bottom), (top, bottom))
    assert (same.value, same.low, same.high) == (0, 0, 0)
    paired = difference_interval((top + 0.1 * bottom, bottom), (top, bottom))
    alone = ratio_interval(top, bottom)
    assert paired.high - paired.low < 1e-6 < alone.high - alone.low


def test_little_to_resample():
    assert tuple(ratio_interval([3.0], [2.0])) == (1.5, -np.inf, np.inf)
    assert tuple(ratio_interval([1.0], [2.0], bounds=SHARE)) == (0.5, 0.0, 1.0)
    assert tuple(ratio_interval([2.0, 4.0], [1.0, 2.0])) == (2.0, 2.0, 2.0)
    none = ratio_interval(np.zeros(30), np.full(30, 5.0), bounds=SHARE)
    wilson = stats.binomtest(0, 30).proportion_ci(0.95, method="wilson")
    assert (none.value, none.low) == (0, 0) and none.high == pytest.approx(wilson.high)
    for bad in ([np.nan, 1.0], [np.inf, 1.0]):
        with pytest.raises(ValueError, match="finite"):
            ratio_interval(bad, [1.0, 1.0])
    with pytest.raises(ValueError, match="finite"):
        ratio_interval([1.0, 1.0], [1.0, -1.0])


def test_draws_without_spread_do_not_explode():
    """Three documents of one ratio and one far off: many draws hold the three alone."""
    found = ratio_interval([1, 1, 1, 300], [10, 10, 10, 100])
    assert found.low <= found.value <= found.high < 10
    rare = ratio_interval([0.09, 1e-6, 2e-6, 0, 1e-6, 3e-6], [4, 4, 4, 4, 4, 4])
    assert rare.low <= rare.value <= rare.high < 10 * rare.value


@pytest.mark.parametrize("n", [2, 3])
def test_two_or_three_documents_have_a_wide_interval(n):
    rng = np.random.default_rng(8)
    hits = 0
    for _ in range(400):
        found = ratio_interval(rng.normal(5, 1, n), np.ones(n))
        hits += found.low <= 5 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_large_corpora_are_drawn_in_pieces(monkeypatch):
    top, bottom = documents(np.random.default_rng(5), 300)
    whole = ratio_interval(top, bottom)
    monkeypatch.setattr(intervals, "ROOM", 700)
    assert tuple(ratio_interval(top, bottom)) == pytest.approx(tuple(whole), rel=1e-12)


def test_rank_correlation():
    rng = np.random.default_rng(6)
    x = rng.normal(size=40)
    found, p = rank_correlation(x, x + 0.5 * rng.normal(size=40))
    assert found.value == pytest.approx(stats.spearmanr(x, x).statistic, abs=0.3) and found.value < 1
    assert -1 < found.low < found.value < found.high < 1 and p < 0.01
    perfect, p = rank_correlation(range(8), range(8))
    assert perfect.value == pytest.approx(1) and 0.5 < perfect.low < 1 and perfect.high == pytest.approx(1) and p < 0.01
    reverse, _ = rank_correlation(range(8), range(8, 0, -1))
    assert (reverse.value, reverse.low) == pytest.approx((-1, -1)) and reverse.high < -0.5
    for x, y in (([1, 2, 3], [1, 2, 3]), ([1, 1, 1, 1], [1, 2, 3, 4])):
        with pytest.raises(ValueError, match="four rows"):
            rank_correlation(x, y)


def test_rank_correlation_covers():
    """Normal pairs of correlation 0.6, whose Spearman correlation is 6/pi asin(0.3)."""
    rng, hits, truth = np.random.default_rng(7), 0, 6 / np.pi * np.arcsin(0.3)
    for _ in range(300):
        x = rng.normal(size=(2, 12))
        y = 0.6 * x[0] + 0.8 * x[1]
        rho = stats.spearmanr(x[0], y).statistic
        inner = np.clip(rho, -1 + 12 / (12 * 143), 1 - 12 / (12 * 143))
        reach = 1.96 * np.sqrt((1 + inner**2 / 2) / 9)
        hits += np.tanh(np.arctanh(inner) - reach) <= truth <= np.tanh(np.arctanh(inner) + reach)
        if _ < 20:
            found, _p = rank_correlation(x[0], y)
            assert found.low == pytest.approx(min(rho, np.tanh(np.arctanh(inner) - reach)), abs=1e-3)
    assert 0.91 <= hits / 300 <= 0.99
