"""Scores as a pure function of items and predictions, and their records with provenance (JSON lines, append-only)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.statistics import mean_interval
from benchmarks.suites import (
    BENCHMARKS,
    Item,
    chance,
    check_complete,
    is_parsed,
    is_right,
    natural_accuracies,
    unit_scores,
)
from dpa.errors import InputError
from dpa.lineage import provenance


@dataclass(frozen=True)
class Score:
    """A benchmark's score, 0 to 100, with its 95 % interval, the chance level and the number of units.

    samples: unit scores (0 to 1) per task, in the order of the items, so that scores of two models pair by position.
    unparsed: answers that named no option (counted as wrong); detail: further metrics of the benchmark, 0 to 100.
    """

    benchmark: str
    value: float
    low: float
    high: float
    chance: float
    units: int
    unparsed: int
    samples: tuple[tuple[float, ...], ...]
    detail: dict[str, float]


def score(items: Sequence[Item], answers: Mapping[tuple[str, str], str]) -> Score:
    """The score of one benchmark's items. InputError when an item has no answer: part of a benchmark is no score."""
    check_complete(items)
    name = items[0].benchmark
    missing = [item.index for item in items if (name, item.index) not in answers]
    if missing:
        raise InputError(
            f"{name}: {len(missing)} of {len(items)} items have no prediction (first: {missing[0]}); run the prediction again, it continues"
        )
    given = [answers[name, item.index] for item in items]
    right = [is_right(item, answer) for item, answer in zip(items, given, strict=True)]
    by_task: dict[str, list[float]] = {}
    for task, value in unit_scores(items, right).values():
        by_task.setdefault(task if BENCHMARKS[name].metric == "accuracy" else "", []).append(value)
    samples = tuple(tuple(values) for values in by_task.values())
    mean, low, high = mean_interval([samples])
    detail = {f"{task} accuracy": 100 * float(np.mean(values)) for task, values in by_task.items() if task}
    detail["single accuracy"] = 100 * sum(right) / len(right)
    if BENCHMARKS[name].metric == "group":
        detail |= {key: 100 * value for key, value in natural_accuracies(items, right).items()}
    unparsed = sum(not is_parsed(item, answer) for item, answer in zip(items, given, strict=True))
    return Score(
        name, 100 * mean, 100 * low, 100 * high, chance(items), sum(map(len, samples)), unparsed, samples, detail
    )


def average(scores: Sequence[Score]) -> tuple[float, float, float]:
    """(mean, low, high) of the plain mean over benchmarks, 0 to 100."""
    mean, low, high = mean_interval([s.samples for s in scores])
    return 100 * mean, 100 * low, 100 * high


def append_records(
    path: Path,
    scores: Sequence[Score],
    *,
    model: str,
    seed: int,
    mode: str,
    data: str,
    data_hash: str,
    prediction_hash: str,
    seconds: float,
) -> None:
    """Append one line a score, with provenance, unless a line of the same predictions and data is there."""
    known = set()
    if path.is_file():
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                row = json.loads(line)
                known.add((row["benchmark"], row["predictions"], row["data_hash"]))
            except (json.JSONDecodeError, KeyError, TypeError):
                continue  # a torn line, or the empty one behind the last newline
    path.parent.mkdir(parents=True, exist_ok=True)
    made = provenance()
    with open(path, "a", encoding="utf-8") as file:
        for s in scores:
            if (s.benchmark, prediction_hash, data_hash) in known:
                continue
            row = {
                "model": model,
                "seed": seed,
                "mode": mode,
                "benchmark": s.benchmark,
                "value": round(s.value, 3),
                "low": round(s.low, 3),
                "high": round(s.high, 3),
                "chance": round(s.chance, 3),
                "units": s.units,
                "unparsed": s.unparsed,
                "detail": {key: round(value, 3) for key, value in s.detail.items()},
                "data": data,
                "data_hash": data_hash,
                "predictions": prediction_hash,
                "seconds": round(seconds, 1),
            }
            file.write(json.dumps(row | made) + "\n")
        file.flush()
        os.fsync(file.fileno())
