"""Intervals and comparisons: known answers, honest coverage, false alarms no more often than they say."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks import statistics
from benchmarks.formats import markdown_table, text_table
from benchmarks.noise import detectable_from_counts, difference_noise
from benchmarks.records import Score
from benchmarks.statistics import (
    compare,
    holm,
    mean_interval,
    mean_of_seeds,
    seed_difference,
    seed_interval,
    smallest_detectable,
)
from benchmarks.suite_table import difference_rows, differences, suite_rows


def singles(hits):
    """Units of one item each."""
    return [(float(hit), 1.0) for hit in hits]


def documents(rng, n, p):
    """Documents of 2 to 20 questions, whose answers are right or wrong together: a Beta(p, 1 - p) rate each."""
    sizes = np.minimum(1 + rng.geometric(0.35, n), 20)
    return [(float(s), float(m)) for s, m in zip(rng.binomial(sizes, rng.beta(p, 1 - p, n)), sizes, strict=True)]


def two_methods(rng, n, disagreement=0.4, tilt=0.5):
    """Two methods on documents, which disagree on some questions of a document and there in the same direction."""
    first, second = [], []
    for size in np.minimum(1 + rng.geometric(0.35, n), 20):
        apart = rng.binomial(size, rng.beta(disagreement, 1 - disagreement))
        better = rng.binomial(apart, rng.beta(2 * tilt, 2 - 2 * tilt))
        both = rng.integers(0, size - apart + 1)
        first.append((float(both + better), float(size)))
        second.append((float(both + apart - better), float(size)))
    return first, second


def split(better, worse, n):
    """Two methods on n items, which disagree on better + worse of them."""
    same = n - better - worse
    return singles([1] * better + [0] * worse + [1] * same), singles([0] * better + [1] * worse + [1] * same)


# one score


@pytest.mark.parametrize("n", [20, 50, 150, 400])
def test_interval_of_single_items_covers_what_it_says(n):
    """Exactly, over all outcomes: Wilson's interval waves about 95 %; the percentile bootstrap fails for rare errors."""
    found = np.array([mean_interval([[singles([1] * k + [0] * (n - k))]]) for k in range(n + 1)])
    low, high = np.clip(stats.binom.ppf([[0.025], [0.975]], n, found[:, 0]) / n, 0, 1)  # percentile bootstrap, no draws
    covered, naive = [], []
    for p in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98):
        chances = stats.binom.pmf(np.arange(n + 1), n, p)
        covered.append(chances @ ((found[:, 1] <= p) & (p <= found[:, 2])))
        naive.append(chances @ ((low <= p) & (p <= high)))
    assert 0.94 <= np.mean(covered) <= 0.97 and min(covered) >= 0.915, covered
    assert n >= 150 or min(naive) < 0.7, "the percentile bootstrap would do: the test cannot tell"


def coverage(draw, truth, trials, seed=0):
    rng, hits = np.random.default_rng(seed), 0
    for trial in range(trials):
        _, low, high = mean_interval(draw(rng), seed=trial)
        hits += low <= truth <= high
    return hits / trials


@pytest.mark.parametrize(("n", "p"), [(20, 0.5), (40, 0.9)])
def test_interval_of_documents_covers_and_that_of_their_questions_does_not(n, p):
    assert 0.92 <= coverage(lambda rng: [[documents(rng, n, p)]], p, 200) <= 0.995

    def questions(rng):  # somebody who takes the questions for independent
        units = documents(rng, n, p)
        right, asked = (int(sum(column)) for column in zip(*units, strict=True))
        return [[singles([1] * right + [0] * (asked - right))]]

    assert coverage(questions, p, 200) < 0.85


def test_interval_of_a_mean_over_tasks_covers():
    def tasks(rng):
        return [[singles(rng.random(n) < p) for n, p in ((40, 0.1), (20, 0.7))]]

    assert 0.93 <= coverage(tasks, 0.4, 400) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 60, 150])
def test_interval_of_an_average_over_benchmarks_covers(n):
    rates = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)

    def suite(rng):
        return [*([singles(rng.random(n) < p)] for p in rates), [documents(rng, n, 0.6)]]

    assert 0.93 <= coverage(suite, (sum(rates) + 0.6) / 8, 600) <= 0.98


def test_interval_of_clusters_is_wider():
    """Ten photos with ten questions each, all right or all wrong, say less than a hundred photos."""
    photos = [(10.0, 10.0)] * 5 + [(0.0, 10.0)] * 5
    (_, low, high), (mean, inner_low, inner_high) = mean_interval([[photos]]), mean_interval([[singles([1, 0] * 50)]])
    assert mean == 0.5 and low < inner_low - 0.1 and high > inner_high + 0.1
    wilson = stats.binomtest(5, 10).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((wilson.low, wilson.high))
    assert mean_interval([[[(9.0, 9.0), (0.0, 1.0)]]])[0] == 0.9, "photos of unequal size count by their questions"


def test_interval_of_a_mean_over_benchmarks_by_hand():
    """Two benchmarks, one of two tasks: weights 1/2, 1/4, 1/4; distances to Wilson's limits squared and added."""
    samples = [[singles([1] * 30 + [0] * 10)], [singles([1] * 5 + [0] * 15), singles([1] * 9 + [0])]]
    weights, counts = (0.5, 0.25, 0.25), ((30, 40), (5, 20), (9, 10))
    value = sum(w * k / n for w, (k, n) in zip(weights, counts, strict=True))
    limits = [stats.binomtest(k, n).proportion_ci(method="wilson") for k, n in counts]
    down = math.hypot(*(w * (k / n - x.low) for w, (k, n), x in zip(weights, counts, limits, strict=True)))
    up = math.hypot(*(w * (x.high - k / n) for w, (k, n), x in zip(weights, counts, limits, strict=True)))
    assert mean_interval(samples) == pytest.approx((value, value - down, value + up))


unit_lists = st.lists(st.integers(1, 6).flatmap(lambda n: st.tuples(st.floats(0, n), st.just(float(n)))), min_size=1)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(unit_lists, min_size=1, max_size=2), min_size=1, max_size=3))
def test_interval_holds_its_mean_within_the_scale(samples):
    mean, low, high = mean_interval(samples)
    assert 0 <= low <= mean + 1e-9 and mean <= high + 1e-9 and high <= 1
    plain = np.mean([np.mean([sum(s for s, _ in t) / sum(n for _, n in t) for t in b]) for b in samples])
    assert mean == pytest.approx(plain)


@pytest.mark.parametrize("bad", [[], [[]], [[[]]], [[[(0.0, 0.0)]]], [[[(2.0, 1.0)]]], [[[(-0.5, 1.0)]]]])
def test_what_is_no_score_is_refused(bad):
    with pytest.raises(ValueError, match="unit"):
        mean_interval(bad)


# two methods


def test_mcnemar_by_hand():
    """Six items won, none lost: p = 2 / 2^6; the interval of Bonett and Price with one more of either kind."""
    found = compare(*([[side]] for side in split(6, 0, 48)))
    assert found.test == "McNemar, exact" and found.p == pytest.approx(2 / 64) and found.difference == 6 / 48
    middle, reach = 6 / 50, 1.959964 * math.sqrt((8 / 50 - (6 / 50) ** 2) / 50)
    assert (found.low, found.high) == pytest.approx((middle - reach, middle + reach))
    same = compare(*([[side]] for side in split(0, 0, 48)))
    assert same.p == 1 and same.low == pytest.approx(-same.high) and same.high > 0.05, "not seen is not impossible"


def test_single_items_all_outcomes():
    """Exactly, over all outcomes of 50 items: never more than 5 % false alarms, intervals that cover and agree with p."""
    n = 50
    table = {
        (b, c): compare(*([[side]] for side in split(b, c, n))) for b in range(32) for c in range(32) if b + c <= n
    }
    for found in table.values():
        assert (found.p <= 0.05) == (found.low > 0 or found.high < 0)
        assert -1 <= found.low <= found.difference <= found.high <= 1
    for apart, difference in ((0.05, 0.0), (0.2, 0.0), (0.4, 0.0), (0.1, 0.05), (0.3, 0.15), (0.4, 0.3)):
        wins, losses = (apart + difference) / 2, (apart - difference) / 2
        chances = {k: stats.multinomial.pmf((*k, n - sum(k)), n, (wins, losses, 1 - apart)) for k in table}
        assert sum(chances.values()) > 0.998
        covered = sum(p for k, p in chances.items() if table[k].low <= difference <= table[k].high)
        assert covered > 0.945, (apart, difference)
        if difference == 0:
            assert sum(p for k, p in chances.items() if table[k].p <= 0.05) <= 0.05
        if difference == 0.3:
            assert sum(p for k, p in chances.items() if table[k].p <= 0.05) > 0.9, "no power"


@pytest.mark.parametrize(("better", "worse"), [(6, 0), (14, 4), (9, 7), (30, 12), (1, 1)])
def test_exchange_is_mcnemars_test_carried_over(better, worse):
    """The same wins and losses as units of two questions, all right or all wrong."""
    first, second = ([(2 * s, 2 * n) for s, n in side] for side in split(better, worse, 80))
    found, exact = compare([[first]], [[second]]), compare(*([[side]] for side in split(better, worse, 80)))
    assert found.test == "exchange of units" and found.difference == exact.difference
    assert found.p == pytest.approx(exact.p, abs=4 * 2 * 0.5 / 9999**0.5)  # four times the error of 9,999 draws
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.03)
    assert (found.p <= 0.05) == (found.low > 0)


def test_which_test_is_asked():
    one, two, part = singles([1, 0, 1, 1]), [(1.0, 2.0)] * 4, [(0.5, 1.0)] * 4
    assert compare([[one]], [[one]]).test == "McNemar, exact"
    for sides in ([[two]], [[part]], [[one, one]], [[one], [one]]):
        same = compare(sides, sides)
        assert same.test == "exchange of units" and (same.difference, same.p) == (0, 1)
        assert same.low < -0.2 and same.high > 0.2, "not seen is not impossible"


def test_ties_of_decimal_scores_are_ties():
    """Of the 64 halves of +.1 +.2 +.5 +.6 +.7 -.3 five have no positive sum, one of them in decimals alone (.1 + .2 - .3)."""
    first = [(x, 1.0) for x in (0.1, 0.2, 0.5, 0.6, 0.7, 0.0)]
    second = [(x, 1.0) for x in (0.0, 0.0, 0.0, 0.0, 0.0, 0.3)]
    assert compare([[first]], [[second]]).p == pytest.approx(2 * 5 / 64, abs=0.015)


def trials_of(draw, difference, trials, monkeypatch):
    """(share of p <= 0.05, share of intervals that hold the difference)"""
    monkeypatch.setattr(statistics, "HALVES", 999)
    rng, alarms, hits = np.random.default_rng(7), 0, 0
    for trial in range(trials):
        found = compare(*draw(rng), seed=trial)
        assert (found.p <= 0.05) == (found.low > 0 or found.high < 0)
        alarms += found.p <= 0.05
        hits += found.low <= difference <= found.high
    return alarms / trials, hits / trials


def test_equal_methods_on_documents_differ_by_noise(monkeypatch):
    """Methods that disagree by whole documents: McNemar's test over the questions cries wolf, that over documents does not."""

    def draw(rng):
        first, second = two_methods(rng, 40)
        return [[first]], [[second]]

    alarms, hits = trials_of(draw, 0, 400, monkeypatch)
    assert 0.01 <= alarms <= 0.08 and hits >= 0.92
    rng, wolf = np.random.default_rng(7), 0
    for _ in range(200):
        first, second = two_methods(rng, 40)
        wins = [a - b for (a, _), (b, _) in zip(first, second, strict=True)]
        better, worse = (int(sum(max(0, sign * w) for w in wins)) for sign in (1, -1))
        wolf += compare(*([[side]] for side in split(better, worse, better + worse))).p <= 0.05
    assert wolf / 200 > 0.15


def test_means_over_tasks_of_equal_methods_differ_by_noise(monkeypatch):
    """Two tasks of unequal size and few disagreements, where a bootstrap of the units would call 10 % of them different."""

    def draw(rng):
        sides = [[], []]
        for n in (60, 30):
            wins = rng.choice([1, -1, 0], n, p=[0.05, 0.05, 0.9])
            sides[0].append(singles(np.where(wins > 0, 1, 0)))
            sides[1].append(singles(np.where(wins < 0, 1, 0)))
        return [sides[0]], [sides[1]]

    alarms, hits = trials_of(draw, 0, 500, monkeypatch)
    assert 0.005 <= alarms <= 0.07 and hits >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 60, 200])
@pytest.mark.parametrize("disagreement", [0.05, 0.4])
def test_comparison_of_documents_over_sizes(n, disagreement, monkeypatch):
    def draw(rng, tilt=0.5):
        first, second = two_methods(rng, n, disagreement, tilt)
        return [[first]], [[second]]

    assert trials_of(draw, 0, 1000, monkeypatch)[0] <= 0.065  # 5 % and twice the error of 1,000 trials
    difference = disagreement * 0.4
    power, hits = trials_of(lambda rng: draw(rng, 0.7), difference, 400, monkeypatch)
    assert hits >= 0.85  # few documents that differ, one way, say little of how skewed they are
    assert power >= 0.6 or n * disagreement < 20


def test_comparison_is_repeatable_and_antisymmetric():
    first, second = two_methods(np.random.default_rng(1), 60)
    there, back = compare([[first]], [[second]]), compare([[second]], [[first]])
    assert compare([[first]], [[second]]) == there != compare([[first]], [[second]], seed=1)
    assert there.difference == -back.difference and there.p == pytest.approx(back.p, abs=0.02)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=0.01)


def test_paired_is_narrower_than_apart():
    """Difficulty that both share drops out of the difference."""
    first, second = split(6, 2, 200)
    hard = [singles([0] * 100 + [1] * 100)]
    for side in (first, second):
        side[100:] = hard[0][:100]
    found, (_, low, high) = compare([[first]], [[second]]), mean_interval([[first]])
    assert found.high - found.low < 0.6 * math.sqrt(2) * (high - low)


def test_other_units_are_refused():
    with pytest.raises(ValueError, match="same units"):
        compare([[singles([1, 0])]], [[singles([1])]])
    with pytest.raises(ValueError, match="same units"):
        compare([[[(1.0, 2.0)]]], [[singles([1])]])
    with pytest.raises(ValueError, match="same units"):
        compare([[singles([1]), singles([1])]], [[singles([1])], [singles([1])]])


def test_a_single_unit_rules_out_nothing():
    found = compare([[[(2.0, 3.0)]]], [[[(1.0, 3.0)]]])
    assert found.p > 0.9 and (found.low, found.high) == (-1, 1)


# many comparisons


def test_holm_by_hand():
    assert holm([]) == [] and holm([0.2]) == [0.2]
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6, 0.7]) == [1, 1, 1]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.999))
def test_holm_rejects_step_by_step(p_values, level):
    """adjusted p <= level exactly where Holm's steps reject: smallest first, until one is above level / those left."""
    rejected, left = set(), len(p_values)
    for index in sorted(range(left), key=lambda i: p_values[i]):
        if p_values[index] * left > level:
            break
        rejected.add(index)
        left -= 1
    assert {i for i, p in enumerate(holm(p_values)) if p <= level} == rejected


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.randoms())
def test_holm_keeps_order_and_place(p_values, random):
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    places = list(range(len(p_values)))
    random.shuffle(places)
    assert holm([p_values[i] for i in places]) == [adjusted[i] for i in places]


# training seeds


def test_seed_interval():
    assert seed_interval([1.0])[1:] == (-np.inf, np.inf)
    assert seed_interval([2.0, 2.0])[1:] == (-np.inf, np.inf), "two alike say nothing of the spread"
    assert seed_interval([2.0, 2.0, 2.0]) == (2, 2, 2)
    reach = 4.303 * 3**-0.5
    assert seed_interval([1.0, 2.0, 3.0]) == pytest.approx((2, 2 - reach, 2 + reach), abs=1e-3)


def test_seed_difference_is_paired():
    """Seeds that both methods find hard drop out; seeds of one method alone are left aside."""
    first, second = {0: 11.0, 1: 52.0, 2: 93.0, 7: 0.0}, {2: 90.0, 1: 50.0, 0: 10.0}
    assert seed_difference(first, second) == seed_interval([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="both"):
        seed_difference({0: 1.0}, {1: 1.0})


def test_mean_of_seeds_by_hand():
    runs = [[[[(1.0, 1.0), (2.0, 4.0)]], [[(0.0, 1.0)]]], [[[(0.0, 1.0), (4.0, 4.0)]], [[(1.0, 1.0)]]]]
    assert mean_of_seeds(runs) == [[[(0.5, 1.0), (3.0, 4.0)]], [[(0.5, 1.0)]]]
    with pytest.raises(ValueError, match="same units"):
        mean_of_seeds([runs[0], [runs[1][0]]])


# what can be found


@pytest.mark.parametrize(("n", "apart"), [(150, 0.32), (600, 0.1)])
def test_smallest_detectable_is_found_in_four_of_five(n, apart):
    wins = int(n * apart / 2)
    first, second = split(wins, wins, n)
    least = smallest_detectable([[first]], [[second]])
    assert least == pytest.approx(2.8016 * math.sqrt(apart / (n - 1)), rel=1e-3)
    rng, found = np.random.default_rng(3), 0
    draws = rng.multinomial(n, ((apart + least) / 2, (apart - least) / 2, 1 - apart), 400)
    for better, worse, _ in draws:
        found += compare(*([[side]] for side in split(better, worse, n))).p <= 0.05
    assert 0.72 <= found / 400 <= 0.86


def test_smallest_detectable_of_documents_is_larger(monkeypatch):
    rng = np.random.default_rng(5)
    first, second = two_methods(rng, 400)
    least = smallest_detectable([[first]], [[second]])
    questions = sum(n for _, n in first)
    apart = sum(abs(a - b) for (a, _), (b, _) in zip(first, second, strict=True)) / questions
    assert least > 1.3 * 2.8 * math.sqrt(apart / questions)

    def draw(rng):
        sides = two_methods(rng, 400, tilt=0.5 + least / 0.8)  # disagreement 0.4 x (2 tilt - 1)
        return [[sides[0]]], [[sides[1]]]

    assert 0.7 <= trials_of(draw, least, 150, monkeypatch)[0] <= 0.9


def test_what_never_differed_needs_eight_items():
    same = singles([1] * 100)
    assert smallest_detectable([[same]], [[same]]) == pytest.approx(0.0785, abs=1e-3)
    assert smallest_detectable([[same, same]], [[same, same]]) == pytest.approx(0.0392, abs=1e-3)
    half = singles([1, 0] * 50)
    assert smallest_detectable([[half]]) == pytest.approx(2.8016 * math.sqrt(2 * 0.25 / 99), rel=1e-3)
    assert smallest_detectable([[half]], power=0.9) > smallest_detectable([[half]])


def two_binomials(p, q, n):
    """Chances [n + 1, n + 1] of every pair of counts."""
    k = np.arange(n + 1)
    return np.outer(stats.binom.pmf(k, n, p), stats.binom.pmf(k, n, q))


@pytest.mark.parametrize(("score", "n"), [(50, 150), (70, 400), (90, 150), (20, 300)])
def test_published_scores_can_be_told_apart_in_four_of_five(score, n):
    """Power of the two-sample test, exactly."""
    step = detectable_from_counts(score, n) / 100
    p, k = score / 100, np.arange(n + 1)
    q = p + step if p <= 0.5 else p - step
    pooled = np.add.outer(k, k) / (2 * n)
    z = np.subtract.outer(k, k) / n / np.sqrt(np.maximum(2 * pooled * (1 - pooled) / n, 1e-12))
    assert 0.78 <= (two_binomials(p, q, n) * (np.abs(z) > 1.96)).sum() <= 0.83


@pytest.mark.parametrize(("first", "second"), [(0.5, 0.5), (0.7, 0.75), (0.9, 0.85), (0.97, 0.98), (0.02, 0.05)])
@pytest.mark.parametrize("n", [50, 150, 400])
def test_difference_noise_covers_independent_scores(first, second, n):
    """Exactly, over all pairs of counts; a difference beyond the noise of equals is a false alarm."""
    noise = (
        np.array([[difference_noise(100 * a / n, 100 * b / n, n) for b in range(n + 1)] for a in range(n + 1)])
        if n == 50
        else None
    )
    if noise is None:
        p = (np.arange(n + 1) + 1) / (n + 2)
        spread = p * (1 - p) / (n + 2)
        noise = 195.9964 * np.sqrt(np.add.outer(spread, spread))
        assert difference_noise(100 * 3 / n, 100 * 30 / n, n) == pytest.approx(noise[3, 30])
    observed = 100 * np.subtract.outer(np.arange(n + 1), np.arange(n + 1)) / n
    chances = two_binomials(first, second, n)
    assert 0.93 <= (chances * (np.abs(observed - 100 * (first - second)) <= noise)).sum() <= 0.995


def test_published_noise_known_values():
    assert difference_noise(50, 50, 148) == pytest.approx(195.9964 * math.sqrt(2 * 0.25 / 150))
    assert difference_noise(0, 0, 100) > 1 and difference_noise(100, 100, 100) == pytest.approx(
        difference_noise(0, 0, 100)
    )
    assert detectable_from_counts(50, 3) == 100 and detectable_from_counts(0, 100) == detectable_from_counts(100, 100)
    for bad in ((101, 50, 10), (50, -1, 10), (50, 50, 0)):
        with pytest.raises(ValueError, match="between 0 and 100"):
            difference_noise(*bad)
    with pytest.raises(ValueError, match="between 0 and 100"):
        detectable_from_counts(0.5, 0)


# the suite's table


def scored(name, hits):
    units = tuple(singles(hits))
    mean, low, high = (100 * x for x in mean_interval([[units]]))
    return Score(name, mean, low, high, 25.0, len(units), 0, (units,), {})


def little_table(seeds=(0,)):
    """Two benchmarks: on the first dpa wins 30 items and loses 5 of 200, on the second 6 and 5; cal wins 7 and loses 1."""
    table = {}
    for seed in seeds:
        for name, better, worse in (("dpa", 30, 5), ("cal", 7, 1)):
            first, second = split(better + seed, worse, 200)
            table["vanilla", seed, "seen"] = [scored("OCRBench", [1] * 100 + [0] * 100), scored("MMVP", [1] * 200)]
            base = [hit for hit, _ in table["vanilla", seed, "seen"][0].samples[0]]
            base[:worse], base[-better - seed :] = [1.0] * worse, [0.0] * (better + seed)
            won = [*[0.0] * worse, *base[worse : 200 - better - seed], *[1.0] * (better + seed)]
            lost = [0.0] * 4 + [1.0] * 196
            table[name, seed, "seen"] = [scored("OCRBench", won), scored("MMVP", lost)]
            assert len(first) == len(second) == len(won)
    return table


def test_difference_rows_correct_for_their_number():
    rows = difference_rows(little_table())
    assert rows[0] == ["methods", "benchmark", "difference", "p", "p (Holm)", "verdict", "detectable"]
    cells = {(row[0], row[1]): row[2:] for row in rows[1:]}
    assert list(cells) == [(f"{m} - vanilla", b) for m in ("dpa", "cal") for b in ("OCRBench (/1000)", "MMVP")]
    difference, p, adjusted, verdict, _ = cells["dpa - vanilla", "OCRBench (/1000)"]
    assert difference.startswith("+125 [+") and (p, adjusted, verdict) == ("<0.001", "<0.001", "more than item noise")
    difference, p, adjusted, verdict, least = cells["cal - vanilla", "OCRBench (/1000)"]
    assert difference.startswith("+30 [") and p == "0.070" and adjusted == "0.211" and verdict == "within item noise"
    reach = stats.norm.ppf(1 - 0.05 / 4 / 2) + stats.norm.ppf(0.8)  # Holm asks the first of four for 0.05 / 4
    assert least == f"{1000 * max(reach * math.sqrt((8 - 36 / 200) / 199 / 200), reach**2 / 200):.0f}"
    assert cells["cal - vanilla", "MMVP"][:2] == cells["dpa - vanilla", "MMVP"][:2]
    assert cells["cal - vanilla", "MMVP"][0].startswith("-2.0 [-")
    assert text_table(rows) and markdown_table(rows).count("\n") == 5


def test_a_verdict_waits_for_holm():
    """p = 0.031 alone is more than noise; as one of four comparisons it is not, and the reader sees both."""
    table = little_table()
    first, second = split(6, 0, 200)
    for name, units in (("vanilla", second), ("cal", first), ("dpa", second)):
        table[name, 0, "seen"] = [scored(b, [s for s, _ in units]) for b in ("OCRBench", "MMVP")]
    rows = difference_rows(table)
    assert [row[3] for row in rows[1:]].count("0.031") == 2 and {row[5] for row in rows[1:]} == {"within item noise"}
    assert {row[4] for row in rows[1:]} == {"0.125", "1.000"}


def test_both_noises_stand_side_by_side():
    rows = difference_rows(little_table(seeds=(0, 1, 4)))
    assert rows[0][2:4] == ["difference", "over seeds"]
    mean, low, high = (1000 * x / 200 for x in seed_interval([25, 26, 29]))
    assert rows[1][2].startswith(f"{mean:+.0f} [") and rows[1][3] == f"[{low:+.0f}, {high:+.0f}]"
    lines = differences(little_table(seeds=(0, 1, 4)))
    assert len(lines) == 8 and lines[0].startswith("dpa - vanilla, seed 0: +5.2 [")
    assert lines[3].startswith("dpa - vanilla, mean of 3 seeds: +5.7; over items [")
    assert lines[3].count("more than item noise") == lines[3].count("more than seed noise") == 1
    alone = little_table(seeds=(0, 1))
    del alone["cal", 1, "seen"]
    assert [row[3] for row in difference_rows(alone)[3:]] == ["one seed", "one seed"]


def test_nothing_to_compare():
    table = {key: scores for key, scores in little_table().items() if key[0] == "vanilla"}
    assert difference_rows(table) == [] and differences(table) == []
    half = little_table(seeds=(0, 1))
    del half["vanilla", 1, "seen"]
    assert difference_rows(half) == difference_rows(little_table())


def test_ocrbench_is_shown_of_a_thousand():
    table = little_table()
    table |= {(name, seed, "blind"): scores for (name, seed, _), scores in table.items()}
    rows = suite_rows(table, ("OCRBench", "MMVP"))
    assert rows[0] == ["method", "OCRBench (/1000)", "MMVP", "Avg"] and rows[-1][1:] == ["250", "25.0", "25.0"]
    score = table["vanilla", 0, "seen"][0]
    assert rows[1][1] == f"{10 * score.value:.0f} [{10 * score.low:.0f}, {10 * score.high:.0f}]"
    assert rows[1][3].startswith(f"{(score.value + 100) / 2:.1f} ["), "averages keep 0 to 100"
    assert [row[0] for row in rows[1:3]] == ["vanilla", "  blind"]
    table["vanilla", 0, "shuffled"] = [replace(score, value=0.0), score]
    assert "  shuffled" in [row[0] for row in suite_rows(table, ("OCRBench", "MMVP"))]


@pytest.mark.slow
def test_a_whole_suite_is_compared_in_seconds():
    """Five methods on sets of the official sizes, each cell and each difference from the first."""
    rng = np.random.default_rng(0)
    sizes = np.minimum(1 + rng.geometric(0.25, 1287), 30)

    def suite(rate):
        single = [[singles(rng.random(n) < rate)] for n in (1164, 1000, 3088, 1438, 1200, 150, 1900)]
        return [*single, [[(float(s), float(n)) for s, n in zip(rng.binomial(sizes, rate), sizes, strict=True)]]]

    suites = [suite(0.5 + 0.01 * i) for i in range(5)]
    start = time.process_time()
    for run in suites:
        mean_interval(run)
        for cell in run:
            mean_interval([cell])
    for run in suites[1:]:
        compare(run, suites[0])
        for mine, base in zip(run, suites[0], strict=True):
            compare([mine], [base])
            smallest_detectable([mine], [base])
    assert time.process_time() - start < 3


def test_a_mean_over_seeds_stays_on_the_scale():
    """Scores of 5 and 95 over two seeds: Student's t reaches far beyond 0 and 100."""
    table = {}
    for seed, right in ((0, 5), (1, 95)):
        units = tuple((float(n < right), 1.0) for n in range(100))
        table["m", seed, "seen"] = [Score("MMVP", float(right), 0.0, 100.0, 25.0, 100, 0, (units,), {})]
    assert suite_rows(table, ["MMVP"])[3][1] == "50.0 [0.0, 100.0]"
