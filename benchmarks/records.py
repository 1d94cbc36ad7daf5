"""Scores as a pure function of items and predictions, and their records with provenance (JSON lines, append-only)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import scorers
from benchmarks.statistics import Unit, mean_interval
from benchmarks.suites import BENCHMARKS, Item, chance, check_complete, natural_accuracies, unit_scores
from dpa.errors import InputError
from dpa.lineage import commit, is_complete, read_lineage
from dpa.methods import METHODS
from dpa.recipes import RECIPES, Recipe


@dataclass(frozen=True)
class Score:
    """A benchmark's score, 0 to 100, with its 95 % interval, the chance level and the number of units.

    samples: units (sum of scores, number of items) per task, in the order of the items, so that scores of two models pair by position.
    unparsed: answers that named no option (counted as wrong); detail: further metrics of the benchmark, 0 to 100.
    """

    benchmark: str
    value: float
    low: float
    high: float
    chance: float
    units: int
    unparsed: int
    samples: tuple[tuple[Unit, ...], ...]
    detail: dict[str, float]


def score(
    items: Sequence[Item],
    answers: Mapping[tuple[str, str], str],
    values: Mapping[str, float] | None = None,
    parsed: Mapping[str, bool] | None = None,
) -> Score:
    """The score of one benchmark's items. InputError when an item has no answer: part of a benchmark is no score.

    values: what each item (by its index) scores, 0 to 1, by another scorer than the items' own rule; parsed: whether that
    one could read its answer.
    """
    check_complete(items)
    name = items[0].benchmark
    missing = [item.index for item in items if (name, item.index) not in answers]
    if missing:
        raise InputError(
            f"{name}: {len(missing)} of {len(items)} items have no prediction (first: {missing[0]}); run the prediction again, it continues"
        )
    given = [answers[name, item.index] for item in items]
    pairs = list(zip(items, given, strict=True))
    worth = [scorers.value(i, said) if values is None else values[i.index] for i, said in pairs]
    by_task = unit_scores(items, worth)
    samples = tuple(tuple(units) for units in by_task.values())
    mean, low, high = mean_interval([samples])
    detail = {
        f"{task} accuracy": 100 * sum(s for s, _ in u) / sum(n for _, n in u) for task, u in by_task.items() if task
    }
    detail["single accuracy"] = 100 * sum(worth) / len(worth)
    if BENCHMARKS[name].metric == "group":
        right = [x == 1 for x in worth]
        detail |= {f"{key} accuracy": 100 * value for key, value in natural_accuracies(items, right).items()}
    unparsed = sum(not (scorers.is_parsed(i, said) if parsed is None else parsed[i.index]) for i, said in pairs)
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
    trained: dict,
    seed: int,
    mode: str,
    data: Mapping[str, Any],
    prediction_hash: str,
    seconds: float,
    asked_by: dict,
) -> None:
    """Append one line a score unless a line of the same predictions, data and value is there.

    `data` says what was asked and who scored it, with a "data_hash"; `trained` is what `trained_as` tells of the model. `asked_by` is the provenance of the process that asked the model (it stands in the predictions file); the scorer's own commit
    is recorded beside it. A torn last line, from a kill, is cut off first.
    """
    known = set()
    if path.is_file():
        cut_torn_line(path)
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                row = json.loads(line)
                known.add(_identity(row))
            except (json.JSONDecodeError, KeyError, TypeError):
                continue  # the empty line behind the last newline
    path.parent.mkdir(parents=True, exist_ok=True)
    scored_by = {"scored_at_commit": commit()}
    with open(path, "a", encoding="utf-8") as file:
        for s in scores:
            row = {
                "model": model,
                **trained,
                "seed": seed,
                "mode": mode,
                "benchmark": s.benchmark,
                "value": round(s.value, 3),
                "low": round(s.low, 3),
                "high": round(s.high, 3),
                "chance": round(s.chance, 3),
                "units": s.units,
                "items": round(sum(n for units in s.samples for _, n in units)),  # a pair or group is one
                "unparsed": s.unparsed,
                "detail": {key: round(value, 3) for key, value in s.detail.items()},
                **data,
                "predictions": prediction_hash,
                "seconds": round(seconds, 1),
            }
            if _identity(row) not in known:
                file.write(json.dumps(row | scored_by | asked_by) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _identity(row: Mapping[str, Any]) -> tuple:
    """What makes two records the same measurement."""
    own = ("benchmark", "predictions", "data_hash", "value")
    return (*(row[name] for name in own), row.get("scorer"), row.get("limit"))


def trained_as(model: Path) -> dict[str, str]:
    """{"llm", "llm_hash", "captions", "captions_hash", "method"} of one of our checkpoints, from its stages' lineages; {} of
    others.

    captions: the names of the caption sources (the lab's: lab/STYLE), with + between them; captions_hash: of what they
    held; both are left out where the stage that read them is not at hand, as of a checkpoint that was moved. method: of
    `dpa.methods.METHODS`, or the recipe's name where it is a method with something else varied.
    """
    if not is_complete(model):
        return {}
    lineage = read_lineage(model)
    chosen = RECIPES.get(lineage.get("recipe", ""))
    told = {
        "llm": lineage.get("names", {}).get("llm", ""),
        "llm_hash": lineage.get("llm", ""),
        "method": method_of(chosen) if chosen is not None else str(lineage.get("recipe", "")),
    }
    named = Path(lineage.get("names", {}).get("connector", "connector"))
    connector = next((f for f in (named, model.resolve().parent / "connector") if is_complete(f)), None)
    if connector is None:
        return told
    data: dict[str, str] = read_lineage(connector)["data"]
    captions = list(data)
    if chosen is not None and captions == ["records.json"] and chosen.captions[0].startswith("lab/"):
        captions = list(chosen.captions)
    digest = next(iter(data.values())) if len(data) == 1 else hashlib.sha256(json.dumps(data).encode()).hexdigest()
    return told | {"captions": " + ".join(captions), "captions_hash": digest}


def method_of(chosen: Recipe) -> str:
    """The method of a recipe that is one of `METHODS` on some LLM and captions; of one that varies more, its own name."""
    root = chosen
    while root.parent:
        root = RECIPES[root.parent]
    same = ("fraction", "weighted_stages", "instruct_from", "anyres", "caption_count", "lora_rank")
    switches = {"proxy": chosen.proxy, "weighting": chosen.weighting}
    name = next((name for name, row in METHODS.items() if row == switches), None)
    plain = all(getattr(chosen, field) == getattr(root, field) for field in same)
    return name if name is not None and plain else chosen.name


def cut_torn_line(path: Path) -> None:
    """Cut off what stands behind the last newline of a file: a line that a kill left unfinished."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with open(path, "r+b") as file:
            file.truncate(whole)
