"""Intervals of scores and comparisons of two methods, by the benchmark's own unit; scipy does the arithmetic.

A unit is what is drawn together: an item, an MMVP pair, a NaturalBench group, a document with several questions. It is
given as (sum of scores, number of items), and a task's score is the ratio of the two sums. All speak of 0 to 1,
but `seed_interval` and `seed_difference`, which take what they are given. Two kinds of noise stay apart: which items were asked
(`mean_interval`, `compare`) and which seed trained the model (`seed_interval`, `seed_difference`).

The choices were made by simulation (tests/test_statistics.py): percentile intervals and those of single questions are too
narrow for few or clustered units, and a bootstrap's test finds differences between equals where two methods seldom differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

from analysis.intervals import SHARE, ratio_interval

LEVEL = 0.95
RESAMPLES = 2000  # of the bootstrap in analysis.intervals
HALVES = 9999  # random halves of the units
FEW = 16  # units alike below which each gets a coin of its own
ROOM = 4_000_000  # coins held at a time
Unit = tuple[float, float]  # sum of scores, number of items
Samples = Sequence[Sequence[Sequence[Unit]]]  # benchmark -> task -> units


@dataclass(frozen=True)
class Comparison:
    """The difference of two methods on the same items, 0 to 1, its 95 % interval and two-sided p over items, and the test.

    The interval excludes 0 exactly where p <= 0.05.
    """

    difference: float
    low: float
    high: float
    p: float
    test: str


def mean_interval(samples: Samples, *, seed: int = 0) -> tuple[float, float, float]:
    """(mean, low, high) of a mean over benchmarks of means over tasks of scores per item, with its 95 % interval.

    A task of units all right or all wrong, and equally large: Wilson's interval of that many units. Any other: the
    studentised bootstrap over its units. Several tasks: the distances to their limits, squared and added (Zou and Donner
    2008). ValueError for a task without units, a unit without items or a score outside 0 to 1.
    """
    tasks = _tasks(samples)
    if any((units[:, 0] < 0).any() or (units[:, 0] > units[:, 1] + 1e-9).any() for units in tasks):
        raise ValueError("a score of a unit lies between 0 and its number of items")
    weights = _weights(samples)
    value, low, high = np.array([_task_interval(units.tobytes(), seed) for units in tasks]).T
    mean = float(weights @ value)
    down, up = (math.sqrt(((weights * side) ** 2).sum()) for side in (value - low, high - value))
    return mean, max(0.0, mean - down), min(1.0, mean + up)


@lru_cache(maxsize=512)  # an average asks for the intervals of its benchmarks again
def _task_interval(units: bytes, seed: int) -> tuple[float, float, float]:
    scores, sizes = np.frombuffer(units).reshape(-1, 2).T
    shares = scores / sizes
    if np.isin(shares, (0.0, 1.0)).all() and np.ptp(sizes) == 0:
        value = float(shares.mean())
        wilson = stats.binomtest(round(shares.sum()), len(shares)).proportion_ci(LEVEL, method="wilson")
        return value, min(value, float(wilson.low)), max(value, float(wilson.high))
    found = ratio_interval(scores, sizes, bounds=SHARE, seed=seed)
    return found.value, found.low, found.high


def compare(first: Samples, second: Samples, *, seed: int = 0) -> Comparison:
    """`first` minus `second` on the same units: how large, how sure, and whether more than the noise of the items.

    One task whose units are single items, right or wrong (a pair, group or circular question is one): McNemar's exact
    test, with the interval of Bonett and Price (2012). Anything else, units of several questions, scores in part, means
    over tasks or benchmarks: McNemar's test carried over, which exchanges the methods in random halves of the units (sign
    flips, p after Phipson and Smyth 2010), and the interval of the differences not so rejected (Hartigan's typical
    values, 1969). ValueError where the two sides have other units.
    """
    tasks = _differences(first, second)
    weights = _weights(first)
    difference = float(sum(w * d.sum() / n.sum() for w, (d, n) in zip(weights, tasks, strict=True)))
    single = all(n == 1 and score in (0, 1) for side in (first, second) for b in side for t in b for score, n in t)
    if len(tasks) == 1 and single:
        p, low, high = _mcnemar(tasks[0][0])
        test = "McNemar, exact"
    else:
        p, low, high = _exchanged(tasks, weights, np.random.default_rng(seed))
        test = "exchange of units"
    if p > 1 - LEVEL:
        low, high = min(low, 0.0), max(high, 0.0)
    return Comparison(difference, max(-1.0, min(low, difference)), min(1.0, max(high, difference)), p, test)


def _mcnemar(differences: np.ndarray) -> tuple[float, float, float]:
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    p = float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
    n = len(differences) + 2  # one more of either kind
    middle = (better - worse) / n
    reach = _quantile() * math.sqrt(((better + worse + 2) / n - middle**2) / n)
    return p, middle - reach, middle + reach


def _exchanged(tasks, weights, rng: np.random.Generator) -> tuple[float, float, float]:
    """(p, low, high). The half away from 0 is widened by a unit of either kind in each task, as in `_mcnemar`: two methods
    that never differed on these items may still differ.
    """
    rows, extra = [], []
    for weight, (d, n) in zip(weights, tasks, strict=True):
        size, some = n.mean(), np.abs(d[d != 0])
        reach = some.mean() if len(some) else size
        scale = weight / n.sum()
        rows.append(np.stack([d, n], 1) * scale)
        extra.append(np.array([[reach, size], [-reach, size]]) * scale)
    plain = _halves(np.concatenate(rows), rng)
    against = int(min((plain[:, 0] <= 0).sum(), (plain[:, 0] >= 0).sum()))
    p = min(1.0, 2 * (against + 1) / (HALVES + 1))
    low, high = _limits(plain)
    wide_low, wide_high = _limits(plain + _halves(np.concatenate(extra), rng))
    if p > 1 - LEVEL or low <= 0:
        low = min(low, wide_low)
    if p > 1 - LEVEL or high >= 0:
        high = max(high, wide_high)
    return p, low, high


def _halves(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Column sums [HALVES, 2] of random halves of the rows [N, 2], each row in or out by the toss of a coin."""
    kinds, counts = np.unique(rows, axis=0, return_counts=True)
    few = counts < FEW
    sums = rng.binomial(counts[~few], 0.5, (HALVES, int((~few).sum()))) @ kinds[~few]
    rest = np.repeat(kinds[few], counts[few], axis=0)
    for block in np.array_split(rest, len(rest) * HALVES // ROOM + 1):  # bits are tossed faster than binomials
        coins = np.unpackbits(rng.integers(0, 256, (HALVES, len(block) // 8 + 1), np.uint8), axis=1, count=len(block))
        sums += coins.astype(float) @ block
    sums[np.abs(sums) < 1e-12] = 0.0  # +0.1 + 0.2 - 0.3 is no difference
    return sums


def _limits(halves: np.ndarray) -> tuple[float, float]:
    """The 95 % limits among the differences of random halves; an empty half rules out nothing."""
    differences, size = halves.T
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = differences / size
    last = int((1 - LEVEL) / 2 * (HALVES + 1)) - 1
    low = np.partition(np.where(size > 0, ratio, -np.inf), last)[last]
    high = np.partition(np.where(size > 0, ratio, np.inf), HALVES - 1 - last)[HALVES - 1 - last]
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for their number by Holm's step-down method (1979), in the order given."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def seed_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high) over training seeds: Student's t interval, infinitely wide for a single seed and for two alike."""
    runs = np.asarray(values, dtype=float)
    mean = float(runs.mean())
    error = stats.sem(runs) if len(runs) > 1 else 0.0
    if error == 0:
        return (mean, mean, mean) if len(runs) > 2 else (mean, -np.inf, np.inf)
    low, high = stats.t.interval(LEVEL, len(runs) - 1, loc=mean, scale=error)
    return mean, float(low), float(high)


def seed_difference(first: Mapping[int, float], second: Mapping[int, float]) -> tuple[float, float, float]:
    """`seed_interval` of first minus second, {training seed: score} in any unit, over the seeds that both have.

    Paired, because a seed decides the same order of data for both. ValueError where no seed is shared.
    """
    shared = sorted(first.keys() & second.keys())
    if not shared:
        raise ValueError("a difference over seeds needs a seed that both methods have")
    return seed_interval([first[seed] - second[seed] for seed in shared])


def mean_of_seeds(runs: Sequence[Samples]) -> list[list[list[Unit]]]:
    """Samples of the mean over training seeds: each unit's mean score, for the item noise that the seeds share.

    ValueError where the runs have other units.
    """
    arrays = [_tasks(run) for run in runs]
    if any([t[:, 1].tolist() for t in a] != [t[:, 1].tolist() for t in arrays[0]] for a in arrays):
        raise ValueError("a mean over seeds needs the same units in every run")
    means = iter([[(float(s), float(n)) for s, n in np.mean(task, axis=0)] for task in zip(*arrays, strict=True)])
    return [[next(means) for _ in benchmark] for benchmark in runs[0]]


def smallest_detectable(
    first: Samples, second: Samples | None = None, *, power: float = 0.8, level: float = 0.05
) -> float:
    """The difference, 0 to 1, that a comparison on these units finds with this power: normal approximation.

    Of two methods by the spread of their units' differences; of one against another, unknown, of the same spread and
    independent. At least so much that enough units change sides (about eight): fewer say nothing.
    """
    tasks = _differences(first, second) if second is not None else [tuple(units.T) for units in _tasks(first)]
    variance = share = 0.0
    for weight, (scores, sizes) in zip(_weights(first), tasks, strict=True):
        part = weight / sizes.sum()
        left = part * (scores - scores.sum() / sizes.sum() * sizes)
        variance += float(left @ left) * len(sizes) / max(1, len(sizes) - 1)
        share += float(((part * sizes) ** 2).sum())
    reach = _quantile(1 - level) + float(stats.norm.ppf(power))
    return min(1.0, max(reach * math.sqrt(variance * (1 if second is not None else 2)), reach**2 * share))


def _quantile(level: float = LEVEL) -> float:
    return float(stats.norm.ppf(0.5 + level / 2))


def _tasks(samples: Samples) -> list[np.ndarray]:
    """The tasks of all benchmarks, each [N, 2]."""
    tasks = [np.asarray(task, dtype=float).reshape(-1, 2) for benchmark in samples for task in benchmark]
    if not tasks or any(len(units) == 0 or (units[:, 1] <= 0).any() for units in tasks):
        raise ValueError("a score needs at least one unit in every task, and an item in every unit")
    return tasks


def _weights(samples: Samples) -> np.ndarray:
    """What each task counts in the mean over benchmarks of means over tasks."""
    return np.array([1 / (len(samples) * len(benchmark)) for benchmark in samples for _ in benchmark])


def _differences(first: Samples, second: Samples) -> list[tuple[np.ndarray, np.ndarray]]:
    """(differences of the sums of scores, numbers of items) of each task."""
    left, right = _tasks(first), _tasks(second)
    if [len(b) for b in first] != [len(b) for b in second] or [a[:, 1].tolist() for a in left] != [
        c[:, 1].tolist() for c in right
    ]:
        raise ValueError("a comparison needs the same units on both sides")
    return [(a[:, 0] - c[:, 0], a[:, 1]) for a, c in zip(left, right, strict=True)]
