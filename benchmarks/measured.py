"""What our records measured of the paper's rows: which recipe a record belongs to, seeds, averages, item noise.

Item noise and the spread over training seeds stay apart: an interval here is over items, whatever the number of seeds.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from benchmarks.published import AVERAGES, UNITS, Number, Row
from benchmarks.suites import BENCHMARKS
from dpa.errors import InputError
from dpa.recipes import LLMS, RECIPES

NEEDED = {"model": str, "seed": int, "mode": str, "benchmark": str, "value": float, "low": float, "high": float}


@dataclass(frozen=True)
class Measured:
    """{seed: (score, low, high)}, 0 to 100; the intervals are over items, at 95 %."""

    runs: dict[int, tuple[float, float, float]]

    @property
    def value(self) -> float:
        return fmean(value for value, _, _ in self.runs.values())

    @property
    def low(self) -> float:
        """Of the mean over seeds. All seeds answered the same items, so that more seeds leave their noise as it is."""
        return fmean(low for _, low, _ in self.runs.values())

    @property
    def high(self) -> float:
        return fmean(high for _, _, high in self.runs.values())

    @property
    def spread(self) -> float | None:
        """Standard deviation over training seeds, in points; None of one seed."""
        return stdev(value for value, _, _ in self.runs.values()) if len(self.runs) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """A measured score beside a printed one, in points: measured minus published, and how much items alone explain."""

    measured: Measured
    difference: float
    noise: float  # half-width of a 95 % interval

    @property
    def within_noise(self) -> bool:
        return abs(self.difference) <= self.noise


def read_records(paths: Sequence[Path]) -> list[dict]:
    """The records of `benchmarks.records`, each with `file` added; a last line that a kill left unfinished is left out.

    InputError naming file and line for anything else that is no record.
    """
    records = []
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: no UTF-8 text ({error}); give the records.jsonl of benchmarks.run") from None
        for number, line in enumerate(lines, 1):
            if not line.strip() or (number == len(lines) and not line.endswith("}")):
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{path}, line {number}: no JSON ({error.msg}); delete the line and run again"
                ) from None
            wrong = next((key for key, kind in NEEDED.items() if not _is(record, key, kind)), None)
            if wrong:
                raise InputError(
                    f"{path}, line {number}: no record of benchmarks.run, {wrong!r} is missing or wrong; delete the line"
                )
            if not (0 <= record["value"] <= 100 and 0 <= record["low"] <= record["high"] <= 100):
                raise InputError(
                    f"{path}, line {number}: value, low, high should stand from 0 to 100; delete the line and score again"
                )
            records.append(record | {"file": str(path)})
    return records


def _is(record: object, key: str, kind: type) -> bool:
    value = record.get(key) if isinstance(record, dict) else None
    return isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)


def recipe_of(record: Mapping) -> str:
    """The recipe whose checkpoint a record scored: by name, by folder (RECIPE/instruct), or by LLM, captions and method.

    "" where none is told, and where the LLM is told and is another than the recipe's: a trial run at another size.
    """
    model, llm = str(record["model"]), str(record.get("llm", ""))
    *above, last = Path(model).parts or ("",)
    owner = re.sub(r"-seed\d+$", "", above[-1]) if above and last == "instruct" else model
    if owner in RECIPES:
        wanted = RECIPES[owner].llm
        is_own = not llm or wanted not in LLMS.values() or wanted.split("/")[-1].lower() in llm.lower()
        return owner if is_own else ""
    if not llm:
        return ""
    from benchmarks.records import method_of

    labels = (record.get("captions"), record.get("method"))
    for name, chosen in RECIPES.items():
        if llm == chosen.llm and labels == (" + ".join(chosen.captions), method_of(chosen)):
            return name
    return ""


def is_official(record: Mapping) -> bool:
    """Whether a score can stand beside a printed one: the official data, all of it, with the picture.

    Files that nobody publishes an MD5 of (`official_data` is null: MMVP's own, CV-Bench's parquet) count as official if
    they have the official number of items. Sampled answers never do.
    """
    official = record.get("official_data", False)
    whole = official is None and record.get("items") == BENCHMARKS[record["benchmark"]].units
    greedy = record.get("decoding", "greedy") == "greedy"
    return greedy and (official is True or whole) and not record.get("limit") and record["mode"] == "seen"


def latest(records: Iterable[dict], key: Sequence[str]) -> tuple[list[dict], int]:
    """(the newest record of each key, how many older ones are left out)."""
    newest: dict[tuple, dict] = {}
    number = 0
    for record in records:
        number += 1
        own = tuple(record.get(name) for name in key)
        if own not in newest or _time(record) >= _time(newest[own]):
            newest.pop(own, None)  # so that of several keys the one that came last stands last
            newest[own] = record
    return list(newest.values()), number - len(newest)


def _time(record: Mapping) -> str:
    return str(record.get("time") or "")


def measured(records: Iterable[dict]) -> tuple[dict[tuple[str, str], Measured], list[str]]:
    """({(recipe, column): what was measured}, remarks on records left out), averages included.

    Of one checkpoint scored in several ways (scorer, prompt line, length of an answer) the newest way counts, for all its seeds.
    """
    cells: dict[tuple[str, str], list[dict]] = {}
    for record in records:
        if is_official(record) and (recipe := recipe_of(record)):
            cells.setdefault((recipe, record["benchmark"]), []).append(record)
    found, remarks = {}, []
    for (recipe, benchmark), own in cells.items():
        way = ("scorer", "prompt_line", "max_new_tokens")
        newest, _ = latest(own, ("seed", *way))
        last = sorted(newest, key=_time)[-1]  # of several at one time, of one set of answers say, the last line
        kept = [r for r in newest if all(r.get(name) == last.get(name) for name in way)]
        if others := len({tuple(r.get(name) for name in way) for r in newest}) - 1:
            told = ", ".join(f"{name.replace('_', ' ')} {last.get(name)!r}" for name in way)
            remarks.append(f"{recipe}, {benchmark}: shown is {told}; {others} other way(s) of scoring left out.")
        found[recipe, benchmark] = Measured({r["seed"]: (r["value"], r["low"], r["high"]) for r in kept})
    for recipe in {recipe for recipe, _ in found}:
        for average, names in AVERAGES.items():
            parts = [found[recipe, name] for name in names if (recipe, name) in found]
            if len(parts) == len(names) and (mean := mean_of(parts)).runs:
                found[recipe, average] = mean
    return found, remarks


def mean_of(parts: Sequence[Measured]) -> Measured:
    """The plain mean over benchmarks, of the seeds that all have; each side's half-width adds up in squares."""
    runs = {}
    for seed in sorted(set.intersection(*(set(part.runs) for part in parts))):
        values, lows, highs = zip(*(part.runs[seed] for part in parts), strict=True)
        value = fmean(values)
        down, up = (
            math.sqrt(sum((v - side) ** 2 for v, side in zip(values, sides, strict=True))) / len(parts)
            for sides in (lows, highs)
        )
        runs[seed] = (value, value - down, value + up)
    return Measured(runs)


def sampling_noise(score: float, units: int) -> float:
    """Half-width, in points, of the 95 % interval of one score, 0 to 100, on that many units."""
    from benchmarks.noise import difference_noise

    return difference_noise(score, score, units) / math.sqrt(2)  # of two alike it is sqrt(2) times as wide


def published_noise(row: Row, column: str) -> float:
    """Item noise of a printed score or average, in points, on the official number of units.

    An average without cells in its row stands for each of its benchmarks.
    """
    names = AVERAGES.get(column, (column,))
    scores = [row.score(name) if row.score(name) is not None else row.score(column) for name in names]
    noises = (
        sampling_noise(score, BENCHMARKS[name].units)
        for name, score in zip(names, scores, strict=True)
        if score is not None
    )
    return math.sqrt(sum(noise**2 for noise in noises)) / len(names)


def comparison(row: Row, cell: Number, found: Mapping[tuple[str, str], Measured]) -> Comparison | None:
    """The cell beside what was measured of its row; None where nothing was, or where it is no score."""
    own = found.get((row.recipe, cell.benchmark))
    if own is None or cell.score is None:
        return None
    difference = own.value - cell.score
    side = own.high - own.value if difference < 0 else own.value - own.low
    return Comparison(own, difference, math.hypot(side, published_noise(row, cell.benchmark)))


def as_printed(points: float, cell: Number, sign: str = "") -> str:
    """Points in the unit and with the digits of a printed cell."""
    return f"{points / UNITS[cell.unit]:{sign}z.{cell.digits}f}"
