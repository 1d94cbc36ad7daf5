"""Benchmarks and suites: what is asked, how an answer counts, the unit that is resampled, the chance level.

Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Literal

from dpa.errors import InputError

Metric = Literal["accuracy", "pair", "group", "circular"]
WHOLE = ("pair", "group", "circular")  # metrics whose unit counts only if all its questions are right
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Item:
    """One question about one picture.

    index: unique within its benchmark; unit: what is resampled together (the item, the MMVP pair, the NaturalBench
    group, the rotations of an MMBench question, the document or photo of several items); task: the column of a finer
    table; answer: the text of the right option; options: all of them, in order, none of an open question, whose accepted
    answers are `answers`; where options read the same, `answers` holds the right one's letter. rule: how an answer counts, of `benchmarks.scorers.RULES`. NaturalBench items carry (question,
    image) numbers in `slot`.
    """

    benchmark: str
    index: str
    image: str
    prompt: str
    answer: str
    options: tuple[str, ...]
    unit: str
    task: str
    slot: tuple[int, int] = (0, 0)
    answers: tuple[str, ...] = ()
    rule: str = "option"

    @property
    def letter(self) -> str:
        """The right option's letter; of options that read the same the one that `answers` names."""
        return self.answers[0] if self.answers else LETTERS[self.options.index(self.answer)]

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict) -> Item:
        lists = {name: tuple(fields[name]) for name in ("options", "slot", "answers") if name in fields}
        return cls(**(fields | lists))


@dataclass(frozen=True)
class Benchmark:
    """name: the paper's column; metric: when a unit counts; by_task: whether its tasks are averaged with equal weight.

    scale: what the paper prints for a perfect score; inside, scores run from 0 to 100. units: how many scores the official
    set averages, each of a `unit`; 0 where there is no one official set. (Resampled are documents in DocVQA, photos in CV-Bench.)
    """

    name: str
    metric: Metric
    by_task: bool = False
    scale: int = 100
    units: int = 0
    unit: str = "items"


BENCHMARKS = {
    b.name: b
    for b in (
        Benchmark("MMBench", "circular", units=1164, unit="questions in all their rotations"),
        Benchmark("OCRBench", "accuracy", scale=1000, units=1000),
        Benchmark("DocVQA", "accuracy", units=5349, unit="questions"),  # ANLS; resampled by document
        Benchmark("AI2D", "accuracy", units=3088),
        Benchmark("CVBench-2D", "accuracy", by_task=True, units=1438),  # ADE20K, COCO; the lab's: count, relation
        Benchmark("CVBench-3D", "accuracy", by_task=True, units=1200),  # Omni3D; the lab's: depth, distance
        Benchmark("MMVP", "pair", units=150, unit="pairs"),
        Benchmark("NaturalBench", "group", units=1900, unit="groups"),
        Benchmark("CV-Bench", "accuracy"),  # the real items whose photos are at hand, one column
        Benchmark("MMStar", "accuracy", units=1500),
        Benchmark("POPE", "accuracy"),
    )
}
GENERAL = ("MMBench", "OCRBench", "DocVQA", "AI2D")
VISION = ("CVBench-2D", "CVBench-3D", "MMVP", "NaturalBench")
SUITES = {"vision-centric": VISION, "general": GENERAL, "all": GENERAL + VISION}  # in the order of the paper's Table 1


def suite(name: str) -> tuple[str, ...]:
    """The benchmarks of a suite; InputError for an unknown one."""
    try:
        return SUITES[name]
    except KeyError:
        raise InputError(f"unknown suite {name!r}; there is {', '.join(SUITES)}") from None


def check_complete(items: Sequence[Item], source: str = "") -> None:
    """InputError, which names `source`, unless every MMVP pair has both halves, every NaturalBench group its four questions
    and every circular question as many rotations as options that move ("all of the above" may keep its place).
    """
    units: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        units.setdefault((item.benchmark, item.unit), []).append(item)
    for (name, unit), own in units.items():
        metric = BENCHMARKS[name].metric
        moving = sum(len(set(texts)) > 1 for texts in zip_longest(*(item.options for item in own)))
        all_move = len(own[0].options)
        wanted = {"pair": 2, "group": 4, "circular": moving if len(own) > 1 else all_move}.get(metric)
        if wanted is not None and len(own) != wanted:
            whole, parts = ("question", "rotations") if metric == "circular" else (metric, "questions")
            raise InputError(
                f"{source}{': ' if source else ''}{name} {whole} {unit} has {len(own)} of its {wanted} {parts}; a score over part of them would mean something else, give them all"
            )


def limited(items: Sequence[Item], number: int | None) -> list[Item]:
    """The items of the first `number` units of each benchmark, so that pairs and groups stay whole; None: all of them."""
    units: dict[str, set[str]] = {}
    kept = []
    for item in items:
        own = units.setdefault(item.benchmark, set())
        if number is None or item.unit in own or len(own) < number:
            own.add(item.unit)
            kept.append(item)
    return kept


def unit_scores(items: Sequence[Item], values: Sequence[float]) -> dict[str, list[tuple[float, float]]]:
    """{task: units} of one benchmark, a unit as (sum of scores, number of items); one task "" unless the benchmark averages tasks.

    values: of each item, 0 to 1. A pair, group or circular question is one item that scores 1 when all its questions are right.
    """
    if not items:
        return {}
    benchmark = BENCHMARKS[items[0].benchmark]
    grouped: dict[tuple[str, str], list[float]] = {}
    for item, value in zip(items, values, strict=True):
        grouped.setdefault((item.task if benchmark.by_task else "", item.unit), []).append(value)
    scores: dict[str, list[tuple[float, float]]] = {}
    for (task, _), hits in grouped.items():
        whole = benchmark.metric in WHOLE
        units = scores.setdefault(task, [])
        units.append((float(min(hits) == 1), 1.0) if whole else (float(sum(hits)), float(len(hits))))
    return scores


def natural_accuracies(items: Sequence[Item], right: Sequence[bool]) -> dict[str, float]:
    """NaturalBench's metrics, 0 to 1: questions (right on both images), images (both questions right), groups."""
    grid: dict[str, dict[tuple[int, int], bool]] = {}
    for item, hit in zip(items, right, strict=True):
        grid.setdefault(item.unit, {})[item.slot] = hit
    groups = list(grid.values())
    n = len(groups)
    return {
        "question": sum(g[q, 0] and g[q, 1] for g in groups for q in (0, 1)) / (2 * n),
        "image": sum(g[0, i] and g[1, i] for g in groups for i in (0, 1)) / (2 * n),
        "group": sum(all(g.values()) for g in groups) / n,
    }


def chance(items: Sequence[Item]) -> float:
    """Score of uniform guessing among the options, 0 to 100, by the benchmark's own metric and mean over its tasks.

    Open questions count 0. Rotations are guessed each for itself.
    """
    benchmark = BENCHMARKS[items[0].benchmark]
    odds: dict[str, dict[str, list[float]]] = {}
    for item in items:
        task = item.task if benchmark.by_task else ""
        odds.setdefault(task, {}).setdefault(item.unit, []).append(1 / len(item.options) if item.options else 0.0)
    means = []
    for units in odds.values():
        if benchmark.metric in WHOLE:
            means.append(sum(math.prod(unit) for unit in units.values()) / len(units))
        else:
            flat = [p for unit in units.values() for p in unit]
            means.append(sum(flat) / len(flat))
    return 100 * sum(means) / len(means)
