"""Benchmarks and suites: what is asked, how an answer counts, the unit that is resampled, the chance level.

Nothing here imports torch.
"""

from __future__ import annotations

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
    group); task: the column of a finer table; answer: the text of the right option; options: all of them, in order.
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
    """name: the paper's column; metric: what one unit contributes; tasks: averaged with equal weight where several."""

    name: str
    metric: Metric
    tasks: tuple[str, ...] = ()


BENCHMARKS = {
    b.name: b
    for b in (
        Benchmark("CVBench-2D", "accuracy", ("count", "relation")),
        Benchmark("CVBench-3D", "accuracy", ("depth", "distance")),
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
    """Whether a prediction names the right option, by its letter or its text. No judge and no guess.

    POPE's yes and no are read as its authors do: a first sentence with "no" or "not" is a no, any other answer a yes.
    An empty answer is wrong everywhere.
    """
    if not prediction.strip():
        return False
    if item.benchmark == "POPE":
        words = re.split(r"[^a-z]+", prediction.split(".")[0].lower())
        return ("no" if {"no", "not"} & set(words) else "yes") == item.answer
    given = normalise(prediction)
    if given == normalise(item.answer):
        return True
    letter = LETTERS[item.options.index(item.answer)].lower()
    if item.benchmark == "CV-Bench":  # Cambrian: only the first character of the answer counts
        return given[:1] == letter
    return given == letter and letter not in (normalise(option) for option in item.options)


def is_parsed(item: Item, prediction: str) -> bool:
    """Whether a prediction names any option at all; the others are wrong and are counted apart."""
    if item.benchmark == "POPE":
        return bool(prediction.strip())
    given = normalise(prediction)
    named = {normalise(option) for option in item.options} | {LETTERS[i].lower() for i in range(len(item.options))}
    return given in named or (item.benchmark == "CV-Bench" and given[:1] in named)


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


def unit_scores(items: Sequence[Item], right: Sequence[bool]) -> dict[str, tuple[str, float]]:
    """{unit: (task, score)} of one benchmark; the score is 1 when all items of the unit are right (pair, group), else their mean."""
    metric = BENCHMARKS[items[0].benchmark].metric if items else "accuracy"
    grouped: dict[str, list[tuple[Item, bool]]] = {}
    for item, hit in zip(items, right, strict=True):
        grouped.setdefault(item.unit, []).append((item, hit))
    scores = {}
    for unit, members in grouped.items():
        hits = [hit for _, hit in members]
        scores[unit] = (members[0][0].task, float(all(hits)) if metric in ("pair", "group") else sum(hits) / len(hits))
    return scores


def natural_accuracies(items: Sequence[Item], right: Sequence[bool]) -> dict[str, float]:
    """NaturalBench's four metrics, 0 to 1: single answers, questions (right on both images), images (both questions right), groups."""
    grid: dict[str, dict[tuple[int, int], bool]] = {}
    for item, hit in zip(items, right, strict=True):
        grid.setdefault(item.unit, {})[item.slot] = hit
    groups = list(grid.values())
    n = len(groups)
    return {
        "accuracy": sum(sum(g.values()) for g in groups) / (4 * n),
        "question": sum(g[q, 0] and g[q, 1] for g in groups for q in (0, 1)) / (2 * n),
        "image": sum(g[0, i] and g[1, i] for g in groups for i in (0, 1)) / (2 * n),
        "group": sum(all(g.values()) for g in groups) / n,
    }


def chance(items: Sequence[Item]) -> float:
    """Score of uniform guessing among the options, 0 to 100, by the benchmark's own metric and mean over tasks."""
    metric = BENCHMARKS[items[0].benchmark].metric
    by_task: dict[str, dict[str, list[float]]] = {}
    for item in items:
        by_task.setdefault(item.task if metric == "accuracy" else "", {}).setdefault(item.unit, []).append(
            1 / len(item.options)
        )
    means = []
    for units in by_task.values():
        scores = []
        for odds in units.values():
            product = 1.0
            for p in odds:
                product *= p
            scores.append(product if metric in ("pair", "group") else sum(odds) / len(odds))
        means.append(sum(scores) / len(scores))
    return 100 * sum(means) / len(means)
