"""Intervals of scores, resampled by the benchmark's own unit (item, MMVP pair, NaturalBench group); scipy does the arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 2000


def mean_interval(samples: Sequence[Sequence[Sequence[float]]], *, seed: int = 0) -> tuple[float, float, float]:
    """(mean, low, high) of a mean over benchmarks of means over tasks of means over units, with its 95 % interval.

    samples[b][t] holds the unit scores (0 to 1) of task t of benchmark b. Percentile bootstrap within each task. Where
    every unit scored the same (all wrong, all right) resampling shows no spread, and the Wilson interval of the pooled
    units stands in.
    """
    tasks = [
        (np.asarray(task, dtype=float), 1.0 / (len(samples) * len(benchmark)))
        for benchmark in samples
        for task in benchmark
    ]
    if not tasks or any(len(values) == 0 for values, _ in tasks):
        raise ValueError("an interval needs at least one unit in every task")
    mean = float(sum(weight * values.mean() for values, weight in tasks))
    if all(np.ptp(values) == 0 for values, _ in tasks):
        n = sum(len(values) for values, _ in tasks)
        wilson = stats.binomtest(round(mean * n), n).proportion_ci(LEVEL, method="wilson")
        return mean, float(wilson.low), float(wilson.high)
    rng = np.random.default_rng(seed)
    draws = np.zeros(RESAMPLES)
    for values, weight in tasks:
        draws += weight * values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return mean, float(low), float(high)


def paired_interval(
    first: Sequence[Sequence[Sequence[float]]], second: Sequence[Sequence[Sequence[float]]], *, seed: int = 0
) -> tuple[float, float, float]:
    """(difference, low, high) of `first` minus `second` on the same units: as `mean_interval`, of the units' differences."""
    if [[len(t) for t in b] for b in first] != [[len(t) for t in b] for b in second]:
        raise ValueError("a paired difference needs the same units on both sides")
    differences = [
        [np.subtract(a, b).tolist() for a, b in zip(x, y, strict=True)] for x, y in zip(first, second, strict=True)
    ]
    if all(np.ptp(task) == 0 for benchmark in differences for task in benchmark):
        mean = float(np.mean([np.mean([np.mean(task) for task in benchmark]) for benchmark in differences]))
        return mean, mean, mean
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
