"""Where the paper's numbers disagree with each other, each found by code in `results/published/`.

`python -m benchmarks.tables --audit` prints what this finds. A finding is worked out from the numbers every time: change
one and it says something else, or no longer holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.noise import difference_noise
from benchmarks.published import AVERAGES, Claim, Number, Paper, Row, mean_of, score_of
from benchmarks.suites import BENCHMARKS
from dpa.errors import InputError
from dpa.recipes import QWEN, QWEN_BLIP

DETAILS = {"2": "10", "3": "13", "4": "14", "5": "1", "6": "15", "7": "16", "readme": "1"}  # averages, and their cells
SLACK = 1e-9  # of binary fractions


@dataclass(frozen=True)
class Finding:
    """tables: those it touches; holds: whether the disagreement is there; says: it in figures, one or two sentences."""

    tables: tuple[str, ...]
    holds: bool
    says: str


def row_of(paper: Paper, table: str, recipe: str) -> Row:
    """The row of a table that a recipe makes; InputError where the table has none."""
    row = next((row for row in paper.get(table, ()) if row.recipe == recipe), None)
    if row is None:
        raise InputError(
            f"results/published/numbers.csv: {title(table)} has no row of {recipe}; take the file from the repository again"
        )
    return row


def agrees(printed: Number, row: Row, average: str) -> bool:
    """Whether the printed average can be the rounded mean of cells that are rounded themselves."""
    slack = sum(row.cells[name].rounding for name in AVERAGES[average]) / len(AVERAGES[average])
    return abs(score_of(printed) - mean_of(row, average)) <= printed.rounding + slack + SLACK


def equal_cells(one: Row, other: Row) -> list[str]:
    """The benchmarks of which two rows print the same score."""
    return [b for b in AVERAGES["Avg"] if one.score(b) is not None and one.score(b) == other.score(b)]


def difference_of_averages_noise(first: Row, second: Row, average: str = "Avg") -> float:
    """Half-width, in points, of the 95 % interval of the difference of two rows' averages, from item noise alone.

    A row without cells stands for each of its benchmarks with its average.
    """
    names = AVERAGES[average]
    squares = 0.0
    for name in names:
        a, c = (next(s for s in (r.score(name), r.score(average)) if s is not None) for r in (first, second))
        squares += difference_noise(a, c, BENCHMARKS[name].units) ** 2
    return squares**0.5 / len(names)


def data_scale(paper: Paper, claims: Mapping[str, Claim]) -> Finding:
    """Table 4 against the averages of Table 14's cells, and Table 14 against Table 1."""
    pairs = [(row, row_of(paper, "14", row.recipe), a) for row in paper["4"] for a in ("General Avg", "Vision Avg")]
    off = [(short, long, a) for short, long, a in pairs if not agrees(short.cells[a], long, a)]
    same = sum(len(equal_cells(row_of(paper, "14", r), row_of(paper, "1", r))) for r in (f"{QWEN}_vanilla", QWEN))
    says = f"{len(off)} of the {len(pairs)} averages of Table 4 are not those of the cells of Table 14"
    if off:
        short, long, a = max(off, key=lambda pair: abs(score_of(pair[0].cells[pair[2]]) - mean_of(pair[1], pair[2])))
        says += (
            f" (furthest: {short.cells[a].value} against {mean_of(long, a):.1f}, {a}, {short.captions}, {short.method})"
        )
    return Finding(
        ("4", "14"), bool(off), f"{says}. Table 14 has {same} of 16 cells in common with Table 1's same two rows."
    )


def mixed_average(paper: Paper, claims: Mapping[str, Claim]) -> Finding:
    """Table 8's printed averages against those of its cells."""
    off = [row for row in paper["8"] if not agrees(row.cells["Avg"], row, "Avg")]
    told = "; ".join(
        f"{row.method}: {row.cells['Avg'].value} printed, {mean_of(row, 'Avg'):.2f} by its cells" for row in paper["8"]
    )
    return Finding(
        ("8",), bool(off), f"{len(off)} of {len(paper['8'])} averages of Table 8 are not those of its cells ({told})."
    )


def hours(paper: Paper, claims: Mapping[str, Claim]) -> Finding:
    """Table 9's sums, and the overhead that the text takes from them."""
    sums, told = [], []
    for row in paper["9"]:
        parts = {n: float(c.value) for n, c in row.cells.items() if n != "Overall" and c.value != "-"}
        sums.append(sum(parts.values()))
        told.append(
            f"{row.method}: {' + '.join(map('{:g}'.format, parts.values()))} = {sums[-1]:.2f} h, printed {row.cells['Overall'].value} h"
        )
    printed = [float(row.cells["Overall"].value) for row in paper["9"]]
    pretraining = [float(row.cells["Pretraining"].value) for row in paper["9"]]
    overhead, said = (100 * (later / first - 1) for first, later in (sums, printed))
    claim = claims["overhead"]
    off = any(abs(a - b) > 0.005 + SLACK for a, b in zip(sums, printed, strict=True))
    return Finding(
        ("9",),
        off or abs(overhead - float(claim.value)) > 0.5,
        f"{'; '.join(told)}. The overhead is {overhead:.1f} % by the sums and {said:.1f} % by what is printed; the text says "
        f"{claim.value} %. Pretraining alone: {100 * (pretraining[1] / pretraining[0] - 1):+.0f} %.",
    )


def proxy_alone(paper: Paper, claims: Mapping[str, Claim]) -> Finding:
    """On BLIP-LCS, the proxy without CMO against vanilla: Table 11's first row, and the row of Table 15 that looks like it."""
    vanilla = row_of(paper, "1", f"{QWEN_BLIP}_vanilla")
    alone = {"11": row_of(paper, "11", f"{QWEN_BLIP}_pmo"), "15": row_of(paper, "15", QWEN_BLIP)}
    gains = {table: mean_of(row, "Avg") - mean_of(vanilla, "Avg") for table, row in alone.items()}
    best = max(gains, key=lambda table: gains[table])
    noise = difference_of_averages_noise(alone[best], vanilla)
    told = " and ".join(f"{mean_of(row, 'Avg'):.1f} (Table {table})" for table, row in alone.items())
    return Finding(
        ("11", "15"),
        gains[best] < noise,
        f"On BLIP-LCS PMO alone averages {told} against vanilla's {mean_of(vanilla, 'Avg'):.1f}: at best {gains[best]:+.1f}, "
        f"where item noise is {noise:.1f}.",
    )


def rank_row(paper: Paper, claims: Mapping[str, Claim]) -> Finding:
    """Table 15's row of rank 256, by name Table 1's DPA, against that and against Table 11's row without CMO."""
    row, dpa, pmo = (row_of(paper, t, r) for t, r in (("15", QWEN_BLIP), ("1", QWEN_BLIP), ("11", f"{QWEN_BLIP}_pmo")))
    shared, twin = equal_cells(row, dpa), equal_cells(row, pmo)
    other = [f"{b} {row.cells[b].value} against {dpa.cells[b].value}" for b in AVERAGES["Avg"] if b not in shared]
    says = f"Table 15's row of rank 256 has {len(shared)} of 8 cells of Table 1's DPA, which it is by name"
    says += f" ({', '.join(other)})" if other else ""
    says += f"; of Table 11's row without CMO it has {len(twin)}" + (f" ({', '.join(twin)})." if twin else ".")
    return Finding(
        ("6", "15"),
        len(shared) < 8,
        f"{says} Tables 6 and 15 look like PMO-only runs." if len(twin) > len(shared) else says,
    )


def said_and_printed(paper: Paper, claims: Mapping[str, Claim]) -> Finding:
    """The vision averages that stand in two ways: 14B in the text and Table 3, PMO in Tables 2 and 5."""
    claim, recipe = claims["vision_14b_vanilla"], "qwen2.5-14b_blip-lcs_vanilla"
    table_3 = row_of(paper, "3", recipe).cells["Vision Avg"]
    one, two = (row_of(paper, table, f"{QWEN}_pmo").cells["Vision Avg"] for table in ("2", "5"))
    cells = mean_of(row_of(paper, "10", f"{QWEN}_pmo"), "Vision Avg")
    return Finding(
        ("2", "3", "5"),
        float(claim.value) != float(table_3.value) or float(one.value) != float(two.value),
        f"For {claim.says}, {claim.place.partition(', ')[2]} says {claim.value} and Table 3 {table_3.value}; "
        f"by Table 13's cells it is {mean_of(row_of(paper, '13', recipe), 'Vision Avg'):.2f}. "
        f"PMO's vision average is {one.value} in Table 2 and {two.value} in Table 5; by Table 10's cells {cells:.2f}.",
    )


def ablation_captions(paper: Paper, claims: Mapping[str, Claim]) -> Finding:
    """Whose rows Tables 2 and 10 carry: those of ShareGPT4V-PT, or of the captions that the appendix names."""
    claim = claims["ablation_captions"]
    rows = [row_of(paper, "10", recipe) for recipe in (f"{QWEN}_vanilla", QWEN)]
    counts = {}
    for captions, first in (("ShareGPT4V-PT", QWEN), (claim.value, QWEN_BLIP)):
        own = [row_of(paper, "1", f"{first}{ending}") for ending in ("_vanilla", "")]
        cells = sum(len(equal_cells(a, b)) for a, b in zip(rows, own, strict=True))
        short = [row_of(paper, "2", recipe) for recipe in (f"{QWEN}_vanilla", QWEN)]
        means = sum(
            agrees(a.cells[average], b, average)
            for a, b in zip(short, own, strict=True)
            for average in ("General Avg", "Vision Avg")
        )
        counts[captions] = (cells, means)
    told = " and ".join(f"{a} of 16 cells and {b} of 4 averages with {name}" for name, (a, b) in counts.items())
    return Finding(
        ("2", "10"),
        counts["ShareGPT4V-PT"] > counts[claim.value],
        f"The vanilla and DPA rows of Tables 10 and 2 share {told}, though {claim.place.partition(', ')[2]} gives {claim.value} "
        f"as {claim.says}.",
    )


def no_error_bars(paper: Paper, claims: Mapping[str, Claim]) -> Finding:
    """Whether any cell carries an error bar, and what one pair of MMVP is worth."""
    cells = [cell for table, rows in paper.items() if table.isdigit() for row in rows for cell in row.cells.values()]
    with_error = [cell for cell in cells if "±" in cell.value]
    pair = 100 / (pairs := BENCHMARKS["MMVP"].units)
    sides = [(score_of(d.cells["MMVP"]), score_of(v.cells["MMVP"])) for v, d in against_vanilla(paper, "DPA")]
    noise = [difference_noise(a, b, pairs) for a, b in sides]
    small = sum(abs(a - b) <= n for (a, b), n in zip(sides, noise, strict=True))
    return Finding(
        ("1",),
        not with_error,
        f"{len(with_error)} of the {len(cells)} cells of the paper's tables carry a seed's spread or an error bar. MMVP has "
        f"{pairs} pairs, {pair:.2f} points each: {small} of Table 1's {len(sides)} differences of DPA from vanilla there are "
        f"within item noise (up to {max(noise):.1f}).",
    )


def losses(paper: Paper, claims: Mapping[str, Claim]) -> Finding:
    """Where DPA is below vanilla: at small shares of the data (Table 14), and in cells of Table 1."""
    pairs = list(zip(paper["14"][::2], paper["14"][1::2], strict=True))
    worse = [(v, d) for v, d in pairs if mean_of(d, "Avg") < mean_of(v, "Avg")]
    shares = ", ".join(
        f"{v.captions.split()[-1]} ({mean_of(d, 'Avg'):.1f} against {mean_of(v, 'Avg'):.1f})" for v, d in worse
    )
    cells = [
        (score_of(d.cells[b]) - score_of(v.cells[b]), b, v, d)
        for v, d in against_vanilla(paper, "DPA")
        for b in AVERAGES["Avg"]
    ]
    lost = sorted((c for c in cells if c[0] < 0), key=lambda c: c[0])
    says = f"DPA is below vanilla on {len(worse)} of {len(pairs)} shares of the data in Table 14"
    says += f": {shares}" if worse else ""
    says += f". In Table 1 it is below in {len(lost)} of {len(cells)} cells"
    if lost:
        _, b, v, d = lost[0]
        says += f", furthest in {b}, {v.llm} on {v.captions}: {d.cells[b].value} against {v.cells[b].value}"
    return Finding(("1", "4", "14"), bool(worse or lost), says + ".")


def table_1_averages(paper: Paper, claims: Mapping[str, Claim]) -> Finding:
    """Table 1's averages against the plain means of its cells with OCRBench/10."""
    gaps = [abs(score_of(row.cells["Avg"]) - mean_of(row, "Avg")) for row in paper["1"]]
    off = sum(gap > 0.06 for gap in gaps)
    return Finding(
        ("1",),
        bool(off),
        f"{len(gaps) - off} of the {len(gaps)} averages of Table 1 are within 0.06 of the plain mean of the cells with "
        f"OCRBench/10 (furthest: {max(gaps):.3f}).",
    )


def other_averages(paper: Paper, claims: Mapping[str, Claim]) -> Finding:
    """Every other printed average against the cells of the table that has them, Tables 4 and 8 aside."""
    checked, off = 0, []
    for table, detail in DETAILS.items():
        cells = {row.recipe: row for row in paper[detail]}
        for row in paper[table] if table != "4" else ():
            for average in AVERAGES:
                if average in row.cells and row.recipe in cells:
                    checked += 1
                    if not agrees(row.cells[average], cells[row.recipe], average):
                        off.append((row.cells[average], mean_of(cells[row.recipe], average)))
    told = "; ".join(f"{cell.place.partition(', ')[2]}: {cell.value}, by the cells {mean:.2f}" for cell, mean in off)
    touched = tuple(dict.fromkeys(cell.table for cell, _ in off))
    return Finding(
        touched,
        bool(off),
        f"{checked - len(off)} of {checked} averages of Tables 2, 3, 5, 6, 7 and the README agree with the cells of "
        f"their rows in other tables{f' ({told})' if off else ''}.",
    )


def repeated_cells(paper: Paper, claims: Mapping[str, Claim]) -> Finding:
    """Cells that stand in several tables under one recipe, but with different scores. In the audit alone: no table's note."""
    found: dict[tuple[str, str], list[Number]] = {}
    for rows in paper.values():
        for row in rows:
            for column, cell in row.cells.items() if row.recipe else ():
                if cell.score is not None:
                    found.setdefault((row.recipe, column), []).append(cell)
    several = {key: cells for key, cells in found.items() if len(cells) > 1}
    off = {key: c for key, c in several.items() if max(map(score_of, c)) - min(map(score_of, c)) > 1e-6}
    told: dict[tuple[str, str], list[str]] = {}
    for (recipe, column), cells in off.items():
        by_value: dict[str, list[str]] = {}
        for cell in cells:
            by_value.setdefault(cell.value, []).append(cell.table)
        sides = " against ".join(("Tables " if len(of) > 1 else "Table ") + ", ".join(of) for of in by_value.values())
        told.setdefault((recipe, sides), []).append(f"{column} {' / '.join(by_value)}")
    lines = "; ".join(f"{recipe}, {sides}: {', '.join(said)}" for (recipe, sides), said in told.items())
    return Finding(
        (),
        bool(off),
        f"{len(several)} cells stand in two or more tables for one recipe, {len(off)} of them with different values"
        f"{': ' if off else ''}{lines}.",
    )


def pairs_of_mmvp(paper: Paper, claims: Mapping[str, Claim]) -> Finding:
    """MMVP scores that no number of right pairs gives."""
    pairs = BENCHMARKS["MMVP"].units
    cells = [row.cells["MMVP"] for rows in paper.values() for row in rows if "MMVP" in row.cells]

    def is_count(cell: Number) -> bool:
        nearest = 100 * round(score_of(cell) * pairs / 100) / pairs
        return abs(nearest - score_of(cell)) <= cell.rounding + SLACK

    off = [cell for cell in cells if not is_count(cell)]
    told = "; ".join(f"{c.place.partition(', ')[2]}: {c.value}, {score_of(c) * pairs / 100:.1f} pairs" for c in off)
    return Finding(
        tuple(dict.fromkeys(cell.table for cell in off)),
        bool(off),
        f"{len(cells) - len(off)} of {len(cells)} MMVP scores are a whole number of {pairs} pairs{f' ({told})' if off else ''}.",
    )


def scored_by(paper: Paper, claims: Mapping[str, Claim]) -> Finding:
    """What the paper and its README say about the scorer of MMVP and CVBench."""
    one, other = claims["scorer"], claims["scorer_cv"]
    return Finding(
        ("1",),
        one.value != other.value,
        f"The paper's {one.place.partition(', ')[2]} gives {one.value} as {one.says}; its README gives {other.value} as {other.says}.",
    )


Check = Callable[[Paper, Mapping[str, Claim]], Finding]
KNOWN: tuple[Check, ...] = (
    data_scale,
    mixed_average,
    hours,
    proxy_alone,
    rank_row,
    said_and_printed,
    ablation_captions,
    no_error_bars,
    losses,
)
FURTHER: tuple[Check, ...] = (table_1_averages, other_averages, repeated_cells, pairs_of_mmvp, scored_by)


def against_vanilla(paper: Paper, method: str) -> Iterator[tuple[Row, Row]]:
    """(vanilla's row, the method's row) of each LLM and caption set of Table 1."""
    by_labels = {(row.llm, row.captions, row.method): row for row in paper["1"]}
    for row in paper["1"]:
        if row.method == "Vanilla":
            yield row, by_labels[row.llm, row.captions, method]


def title(table: str) -> str:
    return f"Table {table}" if table.isdigit() else table
