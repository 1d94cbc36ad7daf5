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
LEAST = 0.3  # standard error of a draw, at least, in that of the documents
FEW = 4  # documents below which draws say too little: Student's t, wide as it is
PERMUTATIONS = 9999
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
    found = _contrast([(numerators, denominators)], [1.0], bounds, seed)
    if bounds == SHARE and found.low == found.high:
        n = len(np.asarray(denominators))
        wilson = stats.binomtest(round(found.value * n), n).proportion_ci(LEVEL, method="wilson")
        return Interval(found.value, min(found.value, float(wilson.low)), max(found.value, float(wilson.high)))
    return found


def difference_interval(first, second, *, seed: int = 0) -> Interval:
    """The ratio of `first` minus that of `second`, each (numerators, denominators) of the same N documents, in order."""
    return _contrast([first, second], [1.0, -1.0], (-np.inf, np.inf), seed)


def _contrast(ratios, coefficients, bounds: tuple[float, float], seed: int) -> Interval:
    """A weighted sum of ratios of sums, with the studentised bootstrap over the documents that they share."""
    columns = np.stack([np.asarray(side, np.float64) for pair in ratios for side in pair])  # (2K, N): top, bottom, ...
    if not np.isfinite(columns).all() or (columns[1::2] < 0).any() or not (columns[1::2].sum(1) > 0).all():
        raise ValueError("an interval needs finite numbers and a document with something to divide by")
    weight, n = np.asarray(coefficients), columns.shape[1]
    places = np.triu_indices(len(columns))
    value, error = (
        float(x[0]) for x in _estimate(columns.sum(1)[None], (columns @ columns.T)[places][None], weight, n)
    )
    if n == 1:
        return Interval(value, *(float(bound) for bound in bounds))
    if error <= 1e-12 * max(1.0, abs(value)):
        return Interval(value, value, value)
    if n < FEW:
        reach = stats.t.ppf(0.5 + LEVEL / 2, n - 1) * error
        return Interval(value, *(float(bound) for bound in np.clip([value - reach, value + reach], *bounds)))
    moments = np.concatenate([columns, columns[places[0]] * columns[places[1]]]).T  # (N, 2K + K (2K + 1))
    rng, drawn = np.random.default_rng(seed), []
    for first in range(0, RESAMPLES, step := max(1, ROOM // n)):
        number = min(step, RESAMPLES - first)
        documents = rng.integers(0, n, (number, n)) + n * np.arange(number)[:, None]
        drawn.append(np.bincount(documents.ravel(), minlength=number * n).reshape(number, n) @ moments)
    sums, products = np.split(np.concatenate(drawn), [len(columns)], axis=1)
    usable = (sums[:, 1::2] > 0).all(1)
    values, errors = _estimate(sums[usable], products[usable], weight, n)
    # a draw that missed the documents which make the spread has next to none, and would make the interval boundless
    scaled = (values - value) / np.maximum(errors, LEAST * error)
    tail = (1 - LEVEL) / 2
    lower, upper = np.quantile(scaled, [tail, 1 - tail], method="closest_observation")
    low, high = np.clip([value - upper * error, value - lower * error], *bounds)
    return Interval(value, float(min(low, value)), float(max(high, value)))


def _estimate(sums, products, weight, n: int):
    """(values, standard errors) [R] of R draws, from the sums [R, 2K] of the documents' columns and the sums of their
    products [R, K (2K + 1)] (upper triangle): the linearised variance of the ratios.
    """
    top, bottom = sums[:, ::2], sums[:, 1::2]
    ratio = top / bottom
    slope = np.empty_like(sums)  # d value / d column
    slope[:, ::2], slope[:, 1::2] = weight / bottom, -weight * ratio / bottom
    rows, columns = np.triu_indices(sums.shape[1])
    twice = np.where(rows == columns, 1.0, 2.0)
    squares = (products * slope[:, rows] * slope[:, columns] * twice).sum(1)
    return ratio @ weight, np.sqrt(np.maximum(squares, 0.0) * n / max(n - 1, 1))


def rank_correlation(x, y, groups=None) -> tuple[Interval, float]:
    """(Spearman's rank correlation with its interval, two-sided p by permutation) of two columns [N], N >= 4.

    groups [N]: correlate what is left within groups when each one's mean is taken off, of groups of two rows or more; p
    then exchanges rows within groups alone, and each group but the first costs a row.
    Interval: Fisher's z with the variance of Bonett and Wright (2000). ValueError for fewer rows or a constant column,
    which has no ranks.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    codes = np.zeros(len(x), int) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    kept = np.bincount(codes, minlength=1)[codes] > 1 if groups is not None else np.ones(len(x), bool)
    x, y, codes = x[kept], y[kept], codes[kept]
    n = len(x) - (len(np.unique(codes)) - 1 if groups is not None else 0)
    if groups is not None:
        x, y = (_centred(column, codes) for column in (x, y))
    if n < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError("a rank correlation needs four rows or more, and two columns that vary")
    rho = float(stats.spearmanr(x, y).statistic)
    second = stats.rankdata(y)
    rng, draws = np.random.default_rng(0), np.tile(x, (PERMUTATIONS, 1))
    for code in np.unique(codes):
        own = codes == code
        draws[:, own] = rng.permuted(draws[:, own], axis=1)
    first = stats.rankdata(draws, axis=1)
    first -= first.mean(1, keepdims=True)
    second -= second.mean()
    found = first @ second / np.sqrt((first * first).sum(1) * (second @ second))
    p = (1 + (np.abs(found) >= abs(rho) - 1e-12).sum()) / (1 + PERMUTATIONS)
    nearest = 1 - 12 / (n * (n * n - 1))  # two neighbours exchanged: perfect order has no z of its own
    inner = float(np.clip(rho, -nearest, nearest))
    reach = stats.norm.ppf(0.5 + LEVEL / 2) * np.sqrt((1 + inner * inner / 2) / (n - 3))
    low, high = np.tanh(np.arctanh(inner) + np.array([-reach, reach]))
    return Interval(rho, float(min(low, rho)), float(max(high, rho))), float(p)


def _centred(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    means = np.bincount(codes, values) / np.maximum(np.bincount(codes), 1)
    return (values - means[codes]).round(9)  # equal values stay equal
