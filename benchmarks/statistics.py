"""Intervals of scores, resampled by the benchmark's own unit; scipy does the arithmetic.

A unit is what is drawn together: an item, an MMVP pair, a NaturalBench group, a photo with several questions. It is given
as (sum of scores, number of items), and a task's score is the ratio of the two sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 2000
Unit = tuple[float, float]  # sum of scores, number of items
Samples = Sequence[Sequence[Sequence[Unit]]]  # benchmark -> task -> units


def mean_interval(samples: Samples, *, seed: int = 0) -> tuple[float, float, float]:
    """(mean, low, high) of a mean over benchmarks of means over tasks of scores per item, with its 95 % interval.

    Percentile bootstrap over the units of each task. Where every item scored the same (all wrong, all right) resampling
    shows no spread, and the Wilson interval of that many units stands in. ValueError for a task without units.
    """
    tasks = [(np.asarray(task, dtype=float), 1.0 / (len(samples) * len(b))) for b in samples for task in b]
    if not tasks or any(len(units) == 0 for units, _ in tasks):
        raise ValueError("an interval needs at least one unit in every task")
    mean = float(sum(weight * units[:, 0].sum() / units[:, 1].sum() for units, weight in tasks))
    if all(np.ptp(units[:, 0] / units[:, 1]) == 0 for units, _ in tasks):
        n = sum(len(units) for units, _ in tasks)
        if not 0 <= mean <= 1:
            return mean, mean, mean
        wilson = stats.binomtest(round(mean * n), n).proportion_ci(LEVEL, method="wilson")
        return mean, min(mean, float(wilson.low)), max(mean, float(wilson.high))
    rng = np.random.default_rng(seed)
    draws = np.zeros(RESAMPLES)
    for units, weight in tasks:
        drawn = units[rng.integers(0, len(units), (RESAMPLES, len(units)))].sum(axis=1)  # (R, 2)
        draws += weight * drawn[:, 0] / drawn[:, 1]
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return mean, float(low), float(high)


def paired_interval(first: Samples, second: Samples, *, seed: int = 0) -> tuple[float, float, float]:
    """(difference, low, high) of `first` minus `second` on the same units: the bootstrap of the units' differences."""
    if [[len(t) for t in b] for b in first] != [[len(t) for t in b] for b in second]:
        raise ValueError("a paired difference needs the same units on both sides")
    differences = [
        [[(a - c, n) for (a, n), (c, _) in zip(x, y, strict=True)] for x, y in zip(left, right, strict=True)]
        for left, right in zip(first, second, strict=True)
    ]
    flat = {a / n for b in differences for task in b for a, n in task}
    if len(flat) == 1:  # every unit differs by the same: resampling shows no spread
        return (value := float(flat.pop())), value, value
    return mean_interval(differences, seed=seed)


def seed_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high) over training seeds: Student's t interval, infinitely wide for a single seed."""
    runs = np.asarray(values, dtype=float)
    mean = float(runs.mean())
    if len(runs) < 2:
        return mean, -np.inf, np.inf
    error = stats.sem(runs)
    if error == 0:
        return mean, mean, mean
    low, high = stats.t.interval(LEVEL, len(runs) - 1, loc=mean, scale=error)
    return mean, float(low), float(high)
