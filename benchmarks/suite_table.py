"""Tables of scores as text and Markdown: methods x benchmarks, intervals, blind scores, chance; and what differs.

Scores and differences are points, 0 to 100, but those of a benchmark that prints another scale (OCRBench, of 1000) stand
on its own; averages are always over 0 to 100.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.records import Score, average
from benchmarks.statistics import (
    LEVEL,
    compare,
    holm,
    mean_of_seeds,
    seed_difference,
    seed_interval,
    smallest_detectable,
)
from benchmarks.suites import BENCHMARKS

Table = dict[tuple[str, int, str], list[Score]]  # (subject, seed, seen or blind) -> a score for each benchmark


def suite_rows(table: Table, names: Sequence[str]) -> list[list[str]]:
    """Text cells: a head row; for each subject and seed its scores and its blind ones; means over seeds; chance.

    A score's interval is over items, a mean's over training seeds (Student's t): the two kinds of noise stay apart.
    """
    rows = [["method", *map(_title, names), "Avg"]]
    seeds = sorted({seed for _, seed, _ in table})
    for name in dict.fromkeys(name for name, _, _ in table):
        runs = {seed: table[name, seed, "seen"] for seed in seeds if (name, seed, "seen") in table}
        for seed, seen in runs.items():
            label = name if len(seeds) == 1 else f"{name}, seed {seed}"
            others = [
                (mode, scores) for (n, s, mode), scores in table.items() if (n, s) == (name, seed) and mode != "seen"
            ]
            for title, scores in ((label, seen), *((f"  {mode}", scores) for mode, scores in others)):
                cells = [_cell(b, s.value, s.low, s.high) for b, s in zip(names, scores, strict=True)]
                rows.append([title, *cells, _cell("", *average(scores))])
        if len(runs) > 1:
            means = [_cell(b, *_seed_mean([run[i].value for run in runs.values()])) for i, b in enumerate(names)]
            overall = _seed_mean([average(run)[0] for run in runs.values()])
            rows.append([f"{name}, mean of {len(runs)} seeds", *means, _cell("", *overall)])
    first = next(iter(table.values()))
    guessed = [_points(b, s.chance) for b, s in zip(names, first, strict=True)]
    return [*rows, ["chance", *guessed, f"{sum(s.chance for s in first) / len(first):.1f}"]]


def _seed_mean(values: Sequence[float]) -> tuple[float, float, float]:
    """`seed_interval`, cut off at 0 and 100."""
    mean, low, high = seed_interval(values)
    return (mean, max(low, 0.0), min(high, 100.0)) if math.isfinite(low) else (mean, low, high)


def differences(table: Table, base: str = "vanilla") -> list[str]:
    """One line a method and seed: its average minus `base`'s on the same items, and whether that is more than item noise.

    Of several seeds one more, for their mean: the noise of the items that they share, and that of the seeds.
    """
    lines = []
    for name, pairs in _paired(table, base).items():
        for seed, (scores, reference) in pairs.items():
            found = compare([s.samples for s in scores], [s.samples for s in reference])
            shown = _interval("", 100 * found.difference, 100 * found.low, 100 * found.high)
            lines.append(f"{name} - {base}, seed {seed}: {shown}, {_verdict(found.p)}")
        if len(pairs) > 1:
            first, second = (
                mean_of_seeds([[s.samples for s in pair[side]] for pair in pairs.values()]) for side in (0, 1)
            )
            found = compare(first, second)
            averages = [{seed: average(pair[side])[0] for seed, pair in pairs.items()} for side in (0, 1)]
            mean, low, high = seed_difference(averages[0], averages[1])
            seeds = "more than seed noise" if low > 0 or high < 0 else "within seed noise"
            lines.append(
                f"{name} - {base}, mean of {len(pairs)} seeds: {mean:+.1f}; over items {_limits('', 100 * found.low, 100 * found.high)}, "
                f"{_verdict(found.p)}; over seeds {_limits('', low, high)}, {seeds}"
            )
    return lines


def difference_rows(table: Table, base: str = "vanilla") -> list[list[str]]:
    """Text cells: a head row and one for each method and benchmark, against `base` on the same items; no rows at all where
    there is nothing to compare.

    Of several seeds their mean is compared, and the interval over seeds stands beside that over items. The verdict is by
    p after Holm over all rows; the last column is the difference that a comparison on these items finds in 4 of 5 cases, at
    the level that Holm asks of the first.
    """
    rows, p_values, paired = [], [], _paired(table, base)
    level = (1 - LEVEL) / max(1, sum(len(next(iter(pairs.values()))[0]) for pairs in paired.values()))
    several = any(len(pairs) > 1 for pairs in paired.values())
    for name, pairs in paired.items():
        for i, score in enumerate(next(iter(pairs.values()))[0]):
            benchmark = score.benchmark
            first, second = (mean_of_seeds([[pair[side][i].samples] for pair in pairs.values()]) for side in (0, 1))
            found = compare(first, second)
            p_values.append(found.p)
            shown = _interval(benchmark, 100 * found.difference, 100 * found.low, 100 * found.high)
            least = _points(benchmark, 100 * smallest_detectable(first, second, level=level))
            values = [{seed: pair[side][i].value for seed, pair in pairs.items()} for side in (0, 1)]
            _, low, high = seed_difference(values[0], values[1])
            over = [_limits(benchmark, low, high) if math.isfinite(low) else "one seed"] if several else []
            rows.append([f"{name} - {base}", _title(benchmark), shown, *over, _p(found.p), least])
    if not rows:
        return []
    whole = [[*row[:-1], _p(p), _verdict(p), row[-1]] for row, p in zip(rows, holm(p_values), strict=True)]
    over = ["over seeds"] if several else []
    return [["methods", "benchmark", "difference", *over, "p", "p (Holm)", "verdict", "detectable"], *whole]


def _paired(table: Table, base: str) -> dict[str, dict[int, tuple[list[Score], list[Score]]]]:
    """method -> seed -> (its scores, those of `base`), of the seeds that both have."""
    paired: dict[str, dict[int, tuple[list[Score], list[Score]]]] = {}
    for (name, seed, mode), scores in table.items():
        if mode == "seen" and name != base and (base, seed, "seen") in table:
            paired.setdefault(name, {})[seed] = scores, table[base, seed, "seen"]
    return paired


def unparsed(table: Table) -> list[str]:
    """One line for each subject that gave answers naming no option."""
    counts = {key: sum(s.unparsed for s in scores) for key, scores in table.items() if key[2] == "seen"}
    return [
        f"{name}, seed {seed}: {n} answers named no option and count as wrong"
        for (name, seed, _), n in counts.items()
        if n
    ]


def _title(name: str) -> str:
    scale = BENCHMARKS[name].scale
    return name if scale == 100 else f"{name} (/{scale})"


def _points(benchmark: str, value: float, sign: str = "") -> str:
    """A score or difference, given in 0 to 100, on its benchmark's scale; an average has no benchmark."""
    scale = BENCHMARKS[benchmark].scale if benchmark else 100
    return f"{value:{sign}.1f}" if scale == 100 else f"{value * scale / 100:{sign}.0f}"


def _cell(benchmark: str, value: float, low: float, high: float) -> str:
    shown = _points(benchmark, value)
    return f"{shown} [{_points(benchmark, low)}, {_points(benchmark, high)}]" if math.isfinite(low) else shown


def _interval(benchmark: str, value: float, low: float, high: float) -> str:
    return f"{_points(benchmark, value, '+')} {_limits(benchmark, low, high)}"


def _limits(benchmark: str, low: float, high: float) -> str:
    return f"[{_points(benchmark, low, '+')}, {_points(benchmark, high, '+')}]"


def _verdict(p: float) -> str:
    return "more than item noise" if p <= 1 - LEVEL else "within item noise"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "<0.001"
