"""Intervals of ratios of sums, resampled by the document: nats a token, bits a byte, a share of tokens, a mean relevance.

Tokens of one document are not independent, so a document is drawn with all of its tokens. The interval is a studentised
bootstrap (bootstrap-t, Efron and Tibshirani 1993, chapter 12), whose coverage holds where documents are few and lengths
skewed, and where the percentile interval is too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 2000
ROOM = 4_000_000  # draws held at a time
SHARE = (0.0, 1.0)  # bounds of a share


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; unbounded where a single document leaves the spread unknown."""

    value: float
    low: float
    high: float

    def __iter__(self):
        return iter((self.value, self.low, self.high))


def ratio_interval(
    numerators, denominators, *, bounds: tuple[float, float] = (-np.inf, np.inf), seed: int = 0
) -> Interval:
    """sum(numerators) / sum(denominators) over documents, with its interval.

    numerators, denominators [N]: of each document, in any unit; a document with denominator 0 (no tokens of the class
    asked for) has numerator 0 and counts as drawn. bounds: what the ratio cannot leave; for a share (`SHARE`) that all
    documents agree on, where resampling shows no spread, the Wilson interval of N documents stands in.
    ValueError when no denominator is above 0, or a number is not finite.
    """
    pairs = np.stack([np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)])  # (2, N)
    if not np.isfinite(pairs).all() or (pairs[1] < 0).any() or not pairs[1].sum() > 0:
        raise ValueError("an interval needs finite numbers and a document with something to divide by")
    top, bottom = pairs
    n = len(top)
    value = float(top.sum() / bottom.sum())
    if n == 1:
        return Interval(value, *(float(b) for b in bounds))
    error = _error(top @ top, top @ bottom, bottom @ bottom, bottom.sum(), value, n)
    if error <= 1e-12 * max(1.0, abs(value)):
        if bounds == SHARE:
            wilson = stats.binomtest(round(value * n), n).proportion_ci(LEVEL, method="wilson")
            return Interval(value, min(value, float(wilson.low)), max(value, float(wilson.high)))
        return Interval(value, value, value)
    moments = np.stack([top, bottom, top * top, top * bottom, bottom * bottom], axis=1)  # (N, 5)
    rng, drawn = np.random.default_rng(seed), []
    for first in range(0, RESAMPLES, step := max(1, ROOM // n)):
        number = min(step, RESAMPLES - first)
        places = rng.integers(0, n, (number, n)) + n * np.arange(number)[:, None]
        counts = np.bincount(places.ravel(), minlength=number * n).reshape(number, n)
        drawn.append(counts @ moments)
    a, b, aa, ab, bb = np.concatenate(drawn).T
    usable = b > 0
    a, b, aa, ab, bb = (moment[usable] for moment in (a, b, aa, ab, bb))
    ratios = a / b
    errors = _error(aa, ab, bb, b, ratios, n)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.nan_to_num((ratios - value) / errors, nan=0.0, posinf=np.inf, neginf=-np.inf)
    tail = (1 - LEVEL) / 2
    upper, lower = np.quantile(scaled, [1 - tail, tail], method="closest_observation")
    if not (np.isfinite(upper) and np.isfinite(lower)):  # draws without spread: a rare class in few documents
        low, high = np.quantile(ratios, [tail, 1 - tail])
    else:
        low, high = value - upper * error, value - lower * error
    return Interval(value, float(np.clip(low, *bounds)), float(np.clip(high, *bounds)))


def _error(aa, ab, bb, b, ratio, n: int):
    """Standard error of the ratio a / b from second moments of its documents (linearised)."""
    squares = np.maximum(aa - 2 * ratio * ab + ratio * ratio * bb, 0.0)
    return np.sqrt(squares * n / (n - 1)) / b


def rank_correlation(x, y) -> tuple[Interval, float]:
    """(Spearman's rank correlation with its interval, two-sided p by permutation) of two columns [N], N >= 4.

    Interval: Fisher's z with the variance of Bonett and Wright (2000). ValueError for fewer rows or a constant column,
    which has no ranks.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError("a rank correlation needs four rows or more, and two columns that vary")
    rho = float(stats.spearmanr(x, y).statistic)
    test = stats.permutation_test(
        (x,), lambda a: stats.spearmanr(a, y).statistic, permutation_type="pairings", n_resamples=5000, rng=0
    )
    n = len(x)
    nearest = 1 - 12 / (n * (n * n - 1))  # two neighbours exchanged: perfect order has no z of its own
    inner = float(np.clip(rho, -nearest, nearest))
    reach = stats.norm.ppf(0.5 + LEVEL / 2) * np.sqrt((1 + inner * inner / 2) / (n - 3))
    low, high = np.tanh(np.arctanh(inner) + np.array([-reach, reach]))
    low, high = min(low, rho), max(high, rho)
    return Interval(rho, float(low), float(high)), float(test.pvalue)
