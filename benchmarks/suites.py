"""Benchmarks and suites: what is asked, how an answer counts, the unit that is resampled, the chance level.

Nothing here imports torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from dpa.errors import InputError

Metric = Literal["accuracy", "pair", "group"]
LETTERS = "ABCDEF"


@dataclass(frozen=True)
class Item:
    """One question about one picture.

    index: unique within its benchmark; unit: what is resampled together (the item, the MMVP pair, the NaturalBench
    group, the photo of several items); task: the column of a finer table; answer: the text of the right option; options: all of them, in order.
    NaturalBench items carry (question, image) numbers in `slot`.
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

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict) -> Item:
        return cls(**{**fields, "options": tuple(fields["options"]), "slot": tuple(fields["slot"])})


@dataclass(frozen=True)
class Benchmark:
    """name: the paper's column; metric: when a unit counts; by_task: whether its tasks are averaged with equal weight."""

    name: str
    metric: Metric
    by_task: bool = False


BENCHMARKS = {
    b.name: b
    for b in (
        Benchmark("CVBench-2D", "accuracy", by_task=True),  # count, relation
        Benchmark("CVBench-3D", "accuracy", by_task=True),  # depth, distance
        Benchmark("MMVP", "pair"),
        Benchmark("NaturalBench", "group"),
        Benchmark("CV-Bench", "accuracy"),  # the real items whose photos are at hand, one column
        Benchmark("POPE", "accuracy"),
    )
}
SUITES = {"vision-centric": ("CVBench-2D", "CVBench-3D", "MMVP", "NaturalBench")}


def suite(name: str) -> tuple[str, ...]:
    """The benchmarks of a suite; InputError for an unknown one."""
    try:
        return SUITES[name]
    except KeyError:
        raise InputError(f"unknown suite {name!r}; there is {', '.join(SUITES)}") from None


def normalise(answer: str) -> str:
    """An answer as Cambrian's scorer reads it: lower case, without "answer is", "answer:" and the marks . : ( ) ,"""
    text = answer.lower().strip()
    for phrase in ("the answer is", "answer is", "answer:"):
        text = text.replace(phrase, "")
    return re.sub(r"[.:(),]", " ", text).strip()


def is_right(item: Item, prediction: str) -> bool:
    """Whether a prediction names the right option. No judge and no guess; an empty answer is wrong everywhere.

    CV-Bench (Cambrian): only the first character of the answer counts, as a letter. POPE, as its authors do: a first
    sentence with "no" or "not" is a no, any other answer a yes. Else: the right option's letter or its text.
    """
    if not prediction.strip():
        return False
    if item.benchmark == "POPE":
        words = set(re.split(r"[^a-z]+", prediction.split(".")[0].lower()))
        return ("no" if {"no", "not"} & words else "yes") == item.answer
    given = normalise(prediction)
    letter = LETTERS[item.options.index(item.answer)].lower()
    if item.benchmark == "CV-Bench":
        return given[:1] == letter
    if given == normalise(item.answer):
        return True
    return given == letter and letter not in map(normalise, item.options)


def is_parsed(item: Item, prediction: str) -> bool:
    """Whether a prediction plainly names an option (yes or no for POPE); the others are counted apart."""
    given = normalise(prediction)
    if item.benchmark == "POPE":
        return bool({"yes", "no", "not"} & set(re.split(r"[^a-z]+", given)))
    letters = LETTERS[: len(item.options)]
    if item.benchmark == "CV-Bench" and re.match(rf"\(?[{letters}]\b", prediction.strip()):
        return True
    return given in {letter.lower() for letter in letters} | set(map(normalise, item.options))


def check_complete(items: Sequence[Item]) -> None:
    """InputError unless every MMVP pair has both halves and every NaturalBench group its four questions."""
    sizes: dict[tuple[str, str], int] = {}
    for item in items:
        sizes[item.benchmark, item.unit] = sizes.get((item.benchmark, item.unit), 0) + 1
    for (name, unit), size in sizes.items():
        wanted = {"pair": 2, "group": 4}.get(BENCHMARKS[name].metric)
        if wanted is not None and size != wanted:
            raise InputError(
                f"{name} {BENCHMARKS[name].metric} {unit!r} has {size} of its {wanted} questions; a score over part of it would mean something else, give them all"
            )


def unit_scores(items: Sequence[Item], right: Sequence[bool]) -> dict[str, list[tuple[float, float]]]:
    """{task: units} of one benchmark, a unit as (sum of scores, number of items); one task "" unless the benchmark averages tasks.

    A pair or group is one item that scores 1 when all its questions are right.
    """
    if not items:
        return {}
    benchmark = BENCHMARKS[items[0].benchmark]
    grouped: dict[tuple[str, str], list[bool]] = {}
    for item, hit in zip(items, right, strict=True):
        grouped.setdefault((item.task if benchmark.by_task else "", item.unit), []).append(hit)
    scores: dict[str, list[tuple[float, float]]] = {}
    for (task, _), hits in grouped.items():
        whole = benchmark.metric in ("pair", "group")
        scores.setdefault(task, []).append((float(all(hits)), 1.0) if whole else (float(sum(hits)), float(len(hits))))
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
    """Score of uniform guessing among the options, 0 to 100, by the benchmark's own metric and mean over its tasks."""
    benchmark = BENCHMARKS[items[0].benchmark]
    odds: dict[str, dict[str, list[float]]] = {}
    for item in items:
        task = item.task if benchmark.by_task else ""
        odds.setdefault(task, {}).setdefault(item.unit, []).append(1 / len(item.options))
    means = []
    for units in odds.values():
        if benchmark.metric in ("pair", "group"):
            means.append(sum(math.prod(unit) for unit in units.values()) / len(units))
        else:
            flat = [p for unit in units.values() for p in unit]
            means.append(sum(flat) / len(flat))
    return 100 * sum(means) / len(means)
