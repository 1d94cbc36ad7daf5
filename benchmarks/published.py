"""The numbers that the paper and its neighbours print, each with its place and the recipe that makes its row again.

    python -m benchmarks.published --source CSV           compares results/published/ with the transcript it was made from
    python -m benchmarks.published --source CSV --write   makes it anew

`numbers.csv` holds the tables; `claims.csv` what the text says beside them. A row belongs to a recipe by its place in the
table: `dpa.recipes.TABLES` names the recipes of a table in the order of its rows.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from itertools import groupby
from pathlib import Path

from benchmarks.suites import GENERAL, VISION
from dpa.errors import InputError, command
from dpa.lineage import file_hash, provenance, write_json
from dpa.recipes import TABLES

FOLDER = Path(__file__).parents[1] / "results" / "published"
PAPER = "arXiv 2509.14735v1"
OTHERS = {  # tables without a number in the paper: what the transcript calls each, and its place
    "readme": ("README results summary", "github.com/fnlp-vision/DPA, README, results summary"),
    "cal-1": ("CAL README (paper Table1 part)", "github.com/foundation-multimodal-models/CAL, README, Table 1"),
    "cal-2": ("CAL README (paper Table2 part)", "github.com/foundation-multimodal-models/CAL, README, Table 2"),
    "cal-12": ("CAL Table12 (IT stage, 16xA100)", "arXiv 2405.17871, Table 12, by a secondary source"),
}
NAMES = (*map(str, range(1, 17)), *OTHERS)
UNITS = {"/1": 100.0, "/100": 1.0, "/1000": 0.1}  # times this, a score stands from 0 to 100
AVERAGES = {"General Avg": GENERAL, "Vision Avg": VISION, "Avg": GENERAL + VISION}  # plain means, OCRBench/10


@dataclass(frozen=True)
class Number:
    """A printed cell: `value` as printed, `unit` of UNITS, h (hours) or CIDEr; recipe "" where none makes the row.

    An error bar would stand behind the value, after ±; the paper has none.

    remark: what the transcript adds to the row's labels, such as captions that are inferred and not said.
    """

    table: str
    llm: str
    captions: str
    method: str
    benchmark: str
    value: str
    unit: str
    place: str
    recipe: str
    remark: str

    @property
    def score(self) -> float | None:
        """The value from 0 to 100; None for hours, CIDEr and a dash."""
        return float(self.value.partition("±")[0]) * UNITS[self.unit] if self.unit in UNITS else None

    @property
    def digits(self) -> int:
        """How many stand behind the point."""
        return len(self.value.partition("±")[0].partition(".")[2])

    @property
    def rounding(self) -> float:
        """How far the true score may lie from the printed one, in points: half of the last digit, 0 of a count."""
        return 0.5 * 10**-self.digits * UNITS.get(self.unit, 1.0) if self.digits else 0.0


@dataclass(frozen=True)
class Row:
    """A row of a table: its labels, its recipe and its cells by column."""

    llm: str
    captions: str
    method: str
    recipe: str
    cells: dict[str, Number]

    def score(self, column: str) -> float | None:
        """What is printed, 0 to 100; None where nothing is or it is no score."""
        return self.cells[column].score if column in self.cells else None

    def mean(self, average: str) -> float | None:
        """The average that the row's own cells give; None unless all are there."""
        scores = [self.score(name) for name in AVERAGES[average]]
        return None if None in scores else sum(filter(None, scores)) / len(scores)


def score_of(cell: Number) -> float:
    """A cell's score, 0 to 100; InputError where it is none."""
    if cell.score is None:
        raise InputError(f"results/published/numbers.csv: {cell.place}: {cell.value} {cell.unit} is no score")
    return cell.score


def mean_of(row: Row, average: str) -> float:
    """The average that a row's cells give, 0 to 100; InputError where some are missing."""
    mean = row.mean(average)
    if mean is None:
        place = next(iter(row.cells.values())).place
        raise InputError(f"results/published/numbers.csv: {place}: the row lacks cells of {average}")
    return mean


@dataclass(frozen=True)
class Claim:
    """What the text says, as a value with its place."""

    name: str
    value: str
    unit: str
    place: str
    says: str


Paper = Mapping[str, Sequence[Row]]


def numbers_of(source: Path) -> list[Number]:
    """The transcript's rows as ours: names parted from units and remarks, place and recipe added."""
    raw = _read(source, ("table", "model", "pretrain_data", "method", "benchmark", "score", "source"))
    names = {label: name for name, (label, _) in OTHERS.items()}
    numbers = []
    for label, cells in groupby(raw, key=lambda line: line["table"]):
        table = names.get(label, label.removeprefix("Table"))
        if table not in NAMES:
            raise InputError(f"{source}: table {label!r} is none that is known; there are {', '.join(NAMES)}")
        rows = [list(row) for _, row in groupby(cells, key=lambda c: (c["model"], c["pretrain_data"], c["method"]))]
        for at, row in enumerate(rows):
            for column, cell in enumerate(row, 1):
                numbers.append(_number(table, at, column, cell))
    first = {(n.llm, n.captions, n.method): n.recipe for n in numbers if n.table == "1"}
    full = {llm.removesuffix("-Instruct").removesuffix("-it"): llm for llm, _, _ in first}
    return [
        replace(n, recipe=first.get((full.get(n.llm, ""), n.captions, n.method), "")) if n.table == "readme" else n
        for n in numbers
    ]


def _number(table: str, at: int, column: int, cell: Mapping[str, str]) -> Number:
    parted = [_parted(cell[key]) for key in ("pretrain_data", "method", "benchmark")]
    (captions, _), (method, _), (benchmark, unit) = parted
    value, hours = re.fullmatch(r"(.+?)(h?)", cell["score"]).groups()  # type: ignore[union-attr]
    if hours or benchmark.startswith("time "):
        benchmark, unit = cell["benchmark"].removeprefix("time "), "h"
    elif benchmark == "OCRBench":
        unit = "/1000"
    elif benchmark.endswith("CIDEr"):
        unit = "CIDEr"
    elif unit == "fraction":
        unit = "/1"
    else:
        benchmark, unit = f"{benchmark} ({unit})" if unit else benchmark, "/100"
    place = f"{PAPER}, Table {table}" if table.isdigit() else OTHERS[table][1]
    recipes = TABLES.get(table, ())
    return Number(
        table,
        cell["model"],
        captions,
        method,
        benchmark,
        value,
        unit,
        f"{place}, row {at + 1}, column {column}",
        recipes[at] if recipes else "",
        "; ".join(remark for _, remark in parted[:2] if remark),
    )


def _parted(text: str) -> tuple[str, str]:
    """A label and what stands in brackets behind it."""
    label, _, remark = text.removesuffix(")").partition("(")
    return (label.strip(), remark) if text.endswith(")") else (text, "")


def read_numbers(folder: Path = FOLDER) -> list[Number]:
    """The published numbers; InputError for a file that is not ours."""
    path = folder / "numbers.csv"
    numbers = [Number(**line) for line in _read(path, [f.name for f in fields(Number)])]
    for at, number in enumerate(numbers, 2):
        value = _float(number.value.partition("±")[0])
        if number.unit not in (*UNITS, "h", "CIDEr") or not (math.isfinite(value) or number.value == "-"):
            raise InputError(
                f"{path}, line {at}: no number with a unit: {number.value!r} {number.unit!r}; "
                "make the file anew: python -m benchmarks.published --source CSV --write"
            )
    return numbers


def read_claims(folder: Path = FOLDER) -> dict[str, Claim]:
    """{name: what the text says}; InputError for a file that is not ours."""
    return {line["name"]: Claim(**line) for line in _read(folder / "claims.csv", [f.name for f in fields(Claim)])}


def tables(numbers: Iterable[Number]) -> dict[str, list[Row]]:
    """{table: its rows}, both in the paper's order."""
    found: dict[str, list[Row]] = {}
    for (table, *_), cells in groupby(numbers, key=lambda n: (n.table, n.llm, n.captions, n.method, n.recipe)):
        row = {cell.benchmark: cell for cell in cells}
        first = next(iter(row.values()))
        found.setdefault(table, []).append(Row(first.llm, first.captions, first.method, first.recipe, row))
    return found


def _read(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file, strict=True))
    except FileNotFoundError:
        raise InputError(f"{path}: not there; check the path (results/published is part of a checkout)") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as CSV ({error}); take it from the repository again") from None
    for at, line in enumerate(lines, 2):
        if list(line) != list(columns) or None in line.values():
            raise InputError(
                f"{path}, line {at}: should have the columns {', '.join(columns)}; take it from its origin again"
            )
    return lines


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def write_numbers(source: Path, folder: Path) -> None:
    """`numbers.csv` and its manifest; each is there whole or not at all."""
    numbers = numbers_of(source)
    path = folder / "numbers.csv"
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([f.name for f in fields(Number)])
        writer.writerows(map(astuple, numbers))
    os.replace(temporary, path)
    files = {name: file_hash(folder / name) for name in ("numbers.csv", "claims.csv")}
    write_json(folder / "manifest.json", provenance() | {"source": {source.name: file_hash(source)}, "files": files})


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published", description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, required=True, metavar="CSV", help="the transcript of the tables")
    parser.add_argument("--write", action="store_true", help="write what is compared otherwise")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="default: results/published")
    options = parser.parse_args(arguments)
    if options.write:
        write_numbers(options.source, options.folder)
    wanted, kept = numbers_of(options.source), read_numbers(options.folder)
    for one, other in zip(wanted, kept, strict=False):
        if one != other:
            changed = [f"{k} {v!r}" for k, v in asdict(one).items() if asdict(other)[k] != v]
            raise InputError(
                f"{options.folder / 'numbers.csv'}: {other.place}: should have {', '.join(changed)}; --write"
            )
    if len(wanted) != len(kept):
        raise InputError(f"{options.folder / 'numbers.csv'}: {len(kept)} numbers, should be {len(wanted)}; --write")
    linked = sum(bool(n.recipe) for n in kept)
    print(
        f"{len(kept)} numbers of {len(tables(kept))} tables as in {options.source}; {linked} in rows that a recipe makes again"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
