"""Tables of scores as text and Markdown: methods x benchmarks, intervals, blind scores, chance."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.records import Score, average
from benchmarks.statistics import paired_interval, seed_interval

Table = dict[tuple[str, int, str], list[Score]]  # (subject, seed, seen or blind) -> a score for each benchmark


def suite_rows(table: Table, names: Sequence[str]) -> list[list[str]]:
    """Text cells: a head row; for each subject and seed its scores and its blind ones; means over seeds; chance.

    A score's interval is over items, a mean's over training seeds (Student's t): the two kinds of noise stay apart.
    """
    rows = [["method", *names, "Avg"]]
    seeds = sorted({seed for _, seed, _ in table})
    for name in dict.fromkeys(name for name, _, _ in table):
        runs = {seed: table[name, seed, "seen"] for seed in seeds if (name, seed, "seen") in table}
        for seed, seen in runs.items():
            label = name if len(seeds) == 1 else f"{name}, seed {seed}"
            for title, scores in ((label, seen), ("  blind", table[name, seed, "blind"])):
                rows.append([title, *(_cell(s.value, s.low, s.high) for s in scores), _cell(*average(scores))])
        if len(runs) > 1:
            means = [seed_interval([run[i].value for run in runs.values()]) for i in range(len(names))]
            overall = seed_interval([average(run)[0] for run in runs.values()])
            rows.append([f"{name}, mean of {len(runs)} seeds", *(_cell(*m) for m in means), _cell(*overall)])
    first = next(iter(table.values()))
    return [*rows, ["chance", *(f"{s.chance:.1f}" for s in first), f"{sum(s.chance for s in first) / len(first):.1f}"]]


def differences(table: Table, base: str = "vanilla") -> list[str]:
    """One line a method and seed: its average minus `base`'s on the same items, and whether that is more than item noise."""
    lines = []
    for (name, seed, mode), scores in table.items():
        if mode == "seen" and name != base and (base, seed, "seen") in table:
            reference = table[base, seed, "seen"]
            difference = paired_interval([s.samples for s in scores], [s.samples for s in reference])
            mean, low, high = (100 * x for x in difference)
            verdict = "more than item noise" if low > 0 or high < 0 else "within item noise"
            lines.append(f"{name} - {base}, seed {seed}: {mean:+.1f} [{low:+.1f}, {high:+.1f}], {verdict}")
    return lines


def unparsed(table: Table) -> list[str]:
    """One line for each subject that gave answers naming no option."""
    counts = {key: sum(s.unparsed for s in scores) for key, scores in table.items() if key[2] == "seen"}
    return [
        f"{name}, seed {seed}: {n} answers named no option and count as wrong"
        for (name, seed, _), n in counts.items()
        if n
    ]


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns for a terminal."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    body = ["| " + " | ".join(cell.strip() for cell in row) + " |" for row in rows]
    return "\n".join([body[0], "|" + "---|" * len(rows[0]), *body[1:]])


def _cell(value: float, low: float, high: float) -> str:
    return f"{value:.1f} [{low:.1f}, {high:.1f}]" if math.isfinite(low) else f"{value:.1f}"
