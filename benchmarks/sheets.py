"""Sheets of the paper's tables: as printed with what was measured below, cell by cell, published differences, the lab."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite

from benchmarks import audit
from benchmarks.audit import Finding, against_vanilla, difference_of_averages_noise, title
from benchmarks.formats import Line, Sheet
from benchmarks.measured import Comparison, Measured, as_printed, comparison, latest, mean_of, measured, recipe_of
from benchmarks.published import AVERAGES, Number, Paper, Row, read_claims, read_numbers, score_of, tables
from benchmarks.suites import BENCHMARKS, SUITES
from dpa.errors import InputError
from dpa.recipes import RECIPES

ABOUT = {
    "1": "three LLMs, three caption sets, three methods",
    "2": "what PMO and CMO each add; the cells are in Table 10",
    "3": "size of the LLM; the cells are in Table 13",
    "4": "share of the data; the cells are in Table 14",
    "5": "PMO alone, with CAL and with CMO",
    "6": "LoRA of the proxy; the cells are in Table 15",
    "7": "the LLM that stage 3 starts from; the cells are in Table 16",
    "8": "three caption sets mixed",
    "9": "hours on 8 x H100",
    "10": "the cells of Table 2",
    "11": "stages in which CMO holds: PT pretraining, IT instruction tuning",
    "12": "bounds of the clip",
    "13": "the cells of Table 3",
    "14": "the cells of Table 4",
    "15": "the cells of Table 6",
    "16": "the cells of Table 7",
    "readme": "the results in the README of the paper's code",
    "cal-1": "CAL's README, its paper's Table 1 in part",
    "cal-2": "CAL's README, its paper's Table 2 in part",
    "cal-12": "CAL, hours of instruction tuning on 16 A100",
}
NOISE_NOTE = (
    "Difference = measured - published. Within noise: not above the half-width of a 95 % interval from the items alone, the "
    "measured interval and the published score's own sampling noise on the official number of units together; training "
    "seeds are not in it, of which the paper reports none."
)
LONG_HEAD = (
    "table",
    "llm",
    "captions",
    "method",
    "benchmark",
    "published",
    "unit",
    "measured",
    "low",
    "high",
    "seeds",
    "spread",
    "difference",
    "noise",
    "within noise?",
    "place",
    "recipe",
    "to run",
)
NARROW = (
    "llm",
    "captions",
    "method",
    "benchmark",
    "published",
    "measured",
    "low",
    "high",
    "spread",
    "difference",
    "noise",
    "within noise?",
)


@dataclass(frozen=True)
class Sources:
    """What the tables are made of: the published rows, what disagrees in them, what the records measured.

    left_out: remarks on records of one checkpoint that was scored in several ways.
    """

    paper: Paper
    known: Sequence[Finding]
    further: Sequence[Finding]
    measured: Mapping[tuple[str, str], Measured]
    left_out: Sequence[str]


def sources(records: Sequence[dict]) -> Sources:
    """The published numbers as they stand in `results/published/`, and these records."""
    paper, claims = tables(read_numbers()), read_claims()
    known, further = ([check(paper, claims) for check in checks] for checks in (audit.KNOWN, audit.FURTHER))
    return Sources(paper, known, further, *measured(records))


def about(table: str) -> str:
    return f"{title(table)}: {ABOUT[table]}"


def name_of(table: str) -> str:
    """The name of a table's files."""
    return f"table_{table}" if table.isdigit() else table


def to_run(row: Row) -> str:
    """The commands that would fill a row's cells; "" where no recipe makes the row."""
    if not row.recipe:
        return ""
    training = f"python -m dpa.train --recipe {row.recipe} --stage all"
    if any(cell.unit == "h" for cell in row.cells.values()):
        return f"{training}  (its stages' lineage.json tell the seconds)"
    columns = {name for column in row.cells for name in AVERAGES.get(column, (column,))}
    suite = next(name for name, names in SUITES.items() if columns <= set(names))
    return f"{training} && python -m benchmarks.run --suite {suite} --data DIR --model runs/{row.recipe}/instruct"


def columns_of(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(column for row in rows for column in row.cells))


def _labels(rows: Sequence[Row]) -> tuple[list[str], str]:
    """The labels that differ between rows, method always, and what the others are for all of them."""
    varied = [name for name in ("llm", "captions") if len({getattr(row, name) for row in rows}) > 1]
    same = ", ".join(getattr(rows[0], name) for name in ("llm", "captions") if name not in varied)
    return [*varied, "method"], same


def _heading(column: str, rows: Sequence[Row]) -> str:
    unit = rows[0].cells[column].unit
    return column + {"/1": " (/1)", "/1000": " (/1000)", "h": " (h)"}.get(unit, "")


def sheet(table: str, sources: Sources) -> Sheet:
    """A table as the paper prints it; below each row that was measured: scores, intervals, differences, verdicts."""
    rows = sources.paper[table]
    labels, same = _labels(rows)
    columns = columns_of(rows)
    blocks = []
    for row in rows:
        own = tuple(getattr(row, name) for name in labels)
        block = [(*own, *(row.cells[c].value for c in columns))]
        found = [comparison(row, row.cells[c], sources.measured) for c in columns]
        if any(found):
            block += [(*own[:-1], *line) for line in _measured_lines(row, columns, found)]
        blocks.append(tuple(block))
    head = (*labels, *(_heading(c, rows) for c in columns))
    said = f"{about(table)}; {same}" if same else about(table)
    return Sheet(name_of(table), said, len(labels), head, tuple(blocks), tuple(notes(table, sources)))


def _measured_lines(row: Row, columns: Sequence[str], found: Sequence[Comparison | None]) -> list[tuple[str, ...]]:
    both = [(row.cells[c], f) for c, f in zip(columns, found, strict=True)]
    seeds = sorted({len(f.measured.runs) for f in found if f})
    lines = [
        (
            "  measured" + (f", {'-'.join(map(str, seeds))} seeds" if seeds != [1] else ""),
            *(_value(c, f) for c, f in both),
        )
    ]
    lines += [("  95 % interval", *(_interval(c, f) for c, f in both))]
    if seeds != [1]:
        lines += [("  spread of seeds", *(_spread(c, f) for c, f in both))]
    lines += [("  difference", *(as_printed(f.difference, c, "+") if f else "" for c, f in both))]
    return [*lines, ("  within noise?", *(_verdict(f) for f in found))]


def _value(cell: Number, found: Comparison | None) -> str:
    return as_printed(found.measured.value, cell) if found else ""


def _limits(cell: Number, found: Comparison | None) -> tuple[str, str]:
    return (as_printed(found.measured.low, cell), as_printed(found.measured.high, cell)) if found else ("", "")


def _interval(cell: Number, found: Comparison | None) -> str:
    return "-".join(_limits(cell, found)) if found else ""


def _spread(cell: Number, found: Comparison | None) -> str:
    spread = found.measured.spread if found else None
    return "" if spread is None else f"±{as_printed(spread, cell)}"


def _verdict(found: Comparison | None) -> str:
    return {None: "", True: "yes", False: "no"}[found.within_noise if found else None]


def long_sheet(table: str, sources: Sources) -> Sheet:
    """The same, a line for each cell, with its place and what would measure it; low and high: the 95 % interval."""
    blocks = []
    for row in sources.paper[table]:
        for cell in row.cells.values():
            found = comparison(row, cell, sources.measured)
            seeds = " ".join(map(str, sorted(found.measured.runs))) if found else ""
            told = (_value(cell, found), *_limits(cell, found), seeds, _spread(cell, found), *_points(cell, found))
            own = (table, row.llm, row.captions, row.method, cell.benchmark, cell.value, cell.unit)
            blocks.append(((*own, *told, cell.place, row.recipe, "" if found else to_run(row)),))
    return Sheet(name_of(table), about(table), 4, LONG_HEAD, tuple(blocks), tuple(notes(table, sources)))


def narrow(long: Sheet) -> Sheet:
    """A long sheet's columns for a terminal."""
    kept = [LONG_HEAD.index(name) for name in NARROW]
    blocks = tuple(tuple(tuple(line[at] for at in kept) for line in block) for block in long.blocks)
    return replace(long, labels=3, head=NARROW, blocks=blocks)


def _points(cell: Number, found: Comparison | None) -> tuple[str, str, str]:
    if found is None:
        return "", "", ""
    return as_printed(found.difference, cell, "+"), as_printed(found.noise, cell), _verdict(found)


def notes(table: str, sources: Sources) -> list[str]:
    """What disagrees in a table, how noise is meant, and what to run for cells that are not measured."""
    rows = sources.paper[table]
    lines = [
        finding.says for finding in (*sources.known, *sources.further) if finding.holds and table in finding.tables
    ]
    cells = [(row, cell) for row in rows for cell in row.cells.values()]
    missing = [row for row, cell in cells if comparison(row, cell, sources.measured) is None]
    if len(missing) < len(cells):
        lines.append(NOISE_NOTE)
        own = {row.recipe for row in rows}
        lines += [remark for remark in sources.left_out if remark.partition(",")[0] in own]
    if missing and not missing[0].recipe:
        lines.append("No recipe here makes these rows; they are for reading beside.")
    elif missing:
        first = missing[0]
        others = (
            f"; the recipes of the other rows: `python -m dpa.recipes --table {table}`"
            if table.isdigit() and len(rows) > 1
            else ""
        )
        lines.append(
            f"Not measured: {len(missing)} of {len(cells)} cells. For {first.recipe}: `{to_run(first)}`{others}."
        )
    return lines


def differences_sheet(paper: Paper, method: str) -> Sheet:
    """A method's printed scores minus vanilla's in Table 1, in points, with the item noise of each difference.

    The rows' items are the same, but which were right is not printed: the noise is that of two independent sets, which is
    more than that of a paired comparison.
    """
    from benchmarks.noise import difference_noise

    columns = columns_of(paper["1"])
    blocks = []
    beyond: dict[bool, list[int]] = {False: [], True: []}  # of cells, of averages: 1 up, -1 down, 0 within noise
    for vanilla, row in against_vanilla(paper, method):
        line = [row.llm, row.captions]
        for column in columns:
            first, second = score_of(row.cells[column]), score_of(vanilla.cells[column])
            is_average = column in AVERAGES
            if is_average:
                noise = difference_of_averages_noise(row, vanilla, column)
            else:
                noise = difference_noise(first, second, BENCHMARKS[column].units)
            is_beyond = abs(first - second) > noise
            beyond[is_average].append(is_beyond * (1 if first > second else -1))
            line.append(f"{first - second:+z.1f} ±{noise:.1f}{' *' if is_beyond else ''}")
        blocks.append((tuple(line),))
    up, down, number = beyond[False].count(1), beyond[False].count(-1), len(beyond[False])
    said = (
        f"* more than item noise: {up + down} of {number} cells ({up} up, {down} down) and "
        f"{len(beyond[True]) - beyond[True].count(0)} of {len(beyond[True])} averages. At 95 % about {0.05 * number:.0f} of "
        f"{number} cells would be even if the methods were equal."
    )
    how = (
        "Noise: half-width of the 95 % interval of the difference of two independent scores on the official number of units, "
        "which is wide for two models on the same items; training seeds are not in it. NaturalBench's metric is not said "
        f"(its groups are taken as units); MMVP is taken as {BENCHMARKS['MMVP'].units} pairs."
    )
    name = f"Published differences, {method} - vanilla, in points from 0 to 100"
    head = ("llm", "captions", *columns)
    return Sheet(f"table_1_{method.lower()}_minus_vanilla", name, 2, head, tuple(blocks), (said, how))


def lab_sheet(records: Sequence[dict]) -> Sheet:
    """Table 1's layout for the records of the lab: a line for each seed, and the mean over seeds with its own interval.

    InputError when there is none.
    """
    from benchmarks.records import method_of
    from benchmarks.statistics import seed_interval

    own = []
    for record in records:
        chosen = RECIPES.get(recipe_of(record))
        is_lab = chosen is not None and chosen.llm == "lab" and str(record.get("data", "")).startswith("lab")
        if chosen is not None and is_lab and record["mode"] == "seen" and not record.get("limit"):
            llm = str(record.get("llm", "lab"))
            llm = "lab" if llm.endswith("dpa/lab/foundations/llm") else llm
            captions = " + ".join(chosen.captions)
            own.append(record | {"llm": llm, "captions": captions, "method": method_of(chosen)})
    if not own:
        raise InputError(
            "no record of the lab; make some: python -m benchmarks.run --suite all, or name a file by --records"
        )
    kept, older = latest(own, ("llm", "captions", "method", "seed", "benchmark"))
    names = [name for name in AVERAGES["Avg"] if any(r["benchmark"] == name for r in kept)]
    rows: dict[Line, dict[str, dict[int, tuple[float, float, float]]]] = {}
    for r in kept:
        if r["benchmark"] in names:
            columns = rows.setdefault((r["llm"], r["captions"], r["method"]), {})
            columns.setdefault(r["benchmark"], {})[r["seed"]] = (r["value"], r["low"], r["high"])
    blocks = []
    for labels, cells in sorted(rows.items(), key=lambda row: (row[0][0] != "lab", row[0][:2])):
        found = {name: Measured(runs) for name, runs in cells.items()}
        if len(found) == len(names):
            found["Avg"] = mean_of([found[name] for name in names])
        parts = [found.get(name, Measured({})) for name in (*names, "Avg")]
        seeds = sorted({seed for part in parts for seed in part.runs})
        block = [(*labels, str(seed), *(_with_interval(part.runs.get(seed)) for part in parts)) for seed in seeds]
        if len(seeds) > 1:
            means = [
                seed_interval([value for value, _, _ in part.runs.values()]) if part.runs else None for part in parts
            ]
            block.append((*labels, "mean", *map(_with_interval, means)))
        blocks.append(tuple(block))
    said = [
        "Scores from 0 to 100. A seed's interval is over items, a mean's over training seeds (Student's t), both at 95 %.",
        "Scores of the lab stand beside no number of the paper: its models, pictures and questions are other ones.",
    ]
    if older:
        said.append(f"{older} older records of the same model, seed and benchmark are left out.")
    if missing := [name for name in AVERAGES["Avg"] if name not in names]:
        said.append(
            f"Not measured: {', '.join(missing)}: `python -m benchmarks.run --suite all`. Avg is of the columns that are here."
        )
    head = ("llm", "captions", "method", "seed", *names, "Avg")
    return Sheet("lab", "The lab, in the layout of Table 1", 4, head, tuple(blocks), tuple(said))


def _with_interval(score: tuple[float, float, float] | None) -> str:
    """A score with its interval, cut at 0 and 100; one seed alone has none over seeds."""
    if score is None:
        return ""
    value, low, high = score
    return f"{value:.1f} [{max(low, 0):.1f}, {min(high, 100):.1f}]" if isfinite(low) else f"{value:.1f}"


def paper_sheets(table: str, sources: Sources, long: bool = False) -> list[Sheet]:
    """A table's sheets: its own and, under Table 1, the published differences of DPA and of CAL from vanilla."""
    own = [narrow(long_sheet(table, sources)) if long else sheet(table, sources)]
    return own + [differences_sheet(sources.paper, method) for method in ("DPA", "CAL")] if table == "1" else own
