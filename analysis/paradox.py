"""The dataset quality paradox: does the corpus with richer captions lose where it conflicts more with the LLM?

    python -m analysis.paradox --conflict FORECAST.csv ... --records records.jsonl ... [--out DIR]

Joins what `analysis.forecast` or `analysis.perplexity` found of (LLM, corpus) with benchmark records of models trained on
them (`benchmarks.run`, `benchmarks.grid`; or a CSV with llm, captions, method, benchmark, value and, if there are several,
seed). In the paper (Fig. 1a) ShareGPT4V-PT helps Vicuna-7B and hurts Qwen2.5-7B.

One row a cell (LLM, corpus, method), its score the mean over benchmarks and training seeds. Two questions are asked of
them, for each method: do scores fall as `--x` grows (over all cells, and within LLMs: ranks of what is left when each
LLM's mean is taken off), and, for each pair of corpora of one LLM, does the richer one lose where its conflict is larger?
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.intervals import rank_correlation
from dpa.errors import InputError, command

if TYPE_CHECKING:
    import pandas as pd

CELL = ["llm", "captions", "method"]
KEY = ["llm_key", "captions_key"]
CONFLICT, RICHNESS = "bits_per_byte_saved", "visual_words"
WANTED: dict[str, Any] = {"benchmark": str, "value": (int, float), "llm": str, "captions": str, "method": str}


def read_records(files: Sequence[Path], mode: str = "seen") -> pd.DataFrame:
    """Benchmark records as a table: llm, llm_hash ("" if unknown), captions, method, seed, benchmark, value (0 to 100).

    InputError naming file and line for a record without one of them. Of records of one cell, seed and benchmark the last
    counts. Records that do not say what they were trained on (checkpoints from elsewhere) are left out.
    """
    import pandas as pd

    rows = []
    for file in files:
        for where, row in _rows(file):
            if row.get("mode", mode) != mode or (file.suffix != ".csv" and not row.get("llm")):
                continue  # the picture was withheld, or a checkpoint from elsewhere
            for name, kind in WANTED.items():
                value = row.get(name)
                if not isinstance(value, kind) or (name == "value" and not 0 <= value <= 100):
                    raise InputError(
                        f"{where}: {name!r} is {value!r}; give llm, captions, method, benchmark and value (0 to 100)"
                    )
            known = {name: str(row.get(name) or "") for name in ("llm_hash", "captions_hash", "data_hash")}
            rows.append({name: row[name] for name in WANTED} | known | {"seed": int(row.get("seed") or 0)})
    if not rows:
        raise InputError(f"{files[0]}: holds no record of a model whose LLM and captions are known; see benchmarks.run")
    table = _keyed(pd.DataFrame(rows))
    asked = table.groupby("benchmark")["data_hash"].nunique()
    if (asked > 1).any():
        raise InputError(
            f"{files[0]}: {asked[asked > 1].index[0]} was asked with other items in some records than in others; give records of one set of items"
        )
    return table.drop_duplicates([*KEY, "method", "seed", "benchmark"], keep="last").reset_index(drop=True)


def _keyed(table: pd.DataFrame) -> pd.DataFrame:
    """With what LLMs and captions are told apart by: `llm_key`, `captions_key`, their hashes where known, else their names."""
    names = table["captions"].map(plain_name)
    return table.assign(
        captions=names,
        llm_key=table["llm_hash"].where(table["llm_hash"] != "", table["llm"]),
        captions_key=table["captions_hash"].where(table["captions_hash"] != "", names),
    )


def _rows(file: Path):
    import pandas as pd

    if not file.is_file():
        raise InputError(f"{file}: no such file; give records with --records")
    if file.suffix == ".csv":
        try:
            frame = pd.read_csv(file, dtype=dict.fromkeys((*CELL, "benchmark"), str), keep_default_na=False)
        except (ValueError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: not a readable CSV file ({str(error).splitlines()[0][:120]})") from None
        for number, row in enumerate(frame.to_dict("records"), start=2):
            yield f"{file} line {number}", row
        return
    from dpa.readers import read_json_records

    for where, value in read_json_records(file):
        if not isinstance(value, dict):
            raise InputError(f"{where}: not a record ({str(value)[:80]}); take the line out")
        yield where, value


def read_conflicts(files: Sequence[Path]) -> pd.DataFrame:
    """Tables of `analysis.forecast` or `analysis.perplexity` (conflict.csv) under one another."""
    import pandas as pd

    frames = []
    for file in files:
        try:
            texts = dict.fromkeys(("llm", "captions", "llm_hash", "captions_hash", "proxy"), str)
            frame = pd.read_csv(file, dtype=texts, keep_default_na=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: not a readable CSV file ({str(error).splitlines()[0][:120]})") from None
        if missing := [name for name in ("llm", "captions", CONFLICT) if name not in frame.columns]:
            raise InputError(f"{file}: no column {missing[0]!r}; give forecast.csv or conflict.csv of this package")
        if "proxy" in frame.columns:  # a matrix: each corpus with the proxy that fits it best
            frame = frame.sort_values(CONFLICT).drop_duplicates(["llm", "captions"], keep="last")
        frames.append(frame.assign(**{name: "" for name in ("llm_hash", "captions_hash") if name not in frame.columns}))
    common = [name for name in frames[0].columns if all(name in frame.columns for frame in frames)]
    table = _keyed(pd.concat([frame[common] for frame in frames], ignore_index=True))
    table = table.drop_duplicates(KEY, keep="last").reset_index(drop=True)
    if (twice := table.duplicated(["llm", "captions"])).any():
        row = table[twice].iloc[0]
        raise InputError(
            f"{files[0]}: two caption sets or LLMs are called {row['llm']} x {row['captions']}; rename one and measure it again"
        )
    return table


def plain_name(captions: str) -> str:
    """The name by which tables of caption sets meet where no hash is known: of lab/ornate, captions_ornate and ornate.json
    it is ornate. Mixtures (a + b), sets of the hub, and names with a folder keep theirs.
    """
    if captions.startswith("hub:") or " + " in captions:
        return captions
    name = captions.removeprefix("lab/")
    for ending in (".jsonl", ".json", ".txt", ".parquet"):
        name = name.removesuffix(ending)
    return name.removeprefix("captions_")


def llm_name(llm: str) -> str:
    """An LLM's name in tables: of a folder .../NAME/llm it is NAME, of the shipped one `lab`."""
    path = Path(llm)
    if path.parts[-3:] == ("lab", "foundations", "llm"):
        return "lab"
    return path.parent.name if path.name == "llm" and path.parent.name else llm


def cells(conflicts: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """A row for each (LLM, corpus, method): score (mean over benchmarks, then seeds), its spread over seeds (0 for one
    seed), seeds, each benchmark's mean, and the columns of `conflicts`. LLMs meet by hash where both tell it, else by name.

    InputError when nothing meets, or benchmarks differ between cells (their means would not compare).
    """
    import pandas as pd

    benchmarks = sorted(records["benchmark"].unique())
    index = [*KEY, "llm", "captions", "method", "seed"]
    first = records.groupby(KEY)[["llm", "captions"]].transform("first")  # one LLM may be named by two paths
    wide = records.assign(**first).pivot(index=index, columns="benchmark", values="value")
    if wide.isna().to_numpy().any():
        cell = dict(zip(index, wide.index[wide.isna().any(axis=1)][0], strict=True))
        missing = wide.columns[wide.isna().any()][0]
        raise InputError(
            f"{cell['llm']} on {cell['captions']} by {cell['method']}: no record of {missing}; a mean over other benchmarks does not compare, ask it too"
        )
    wide["score"] = wide[benchmarks].mean(axis=1)
    groups = wide.groupby(level=index[:-1])
    found = (
        groups.mean().assign(score_spread=groups["score"].std(ddof=1).fillna(0.0), seeds=groups.size()).reset_index()
    )
    rows = []
    for row in found.to_dict("records"):
        hits = conflicts[_meets(conflicts, row, "llm") & _meets(conflicts, row, "captions")]
        if hits.empty:
            continue
        own = {
            k: v for k, v in hits.iloc[-1].to_dict().items() if k not in (*KEY, "captions", "llm_hash", "captions_hash")
        }
        kept = {k: v for k, v in row.items() if k not in KEY}
        rows.append(kept | own | {"llm": llm_name(own["llm"])})
    if not rows:
        theirs, ours = (
            ", ".join(sorted({f"{a} x {b}" for a, b in zip(t["llm"], t["captions"], strict=True)})[:4])
            for t in (records, conflicts)
        )
        raise InputError(
            f"no record meets a conflict: records of {theirs}; conflicts of {ours}; measure the same LLM and captions"
        )
    return pd.DataFrame(rows).sort_values(["method", "llm", "captions"], kind="stable").reset_index(drop=True)


def _meets(conflicts: pd.DataFrame, row: dict, part: str) -> pd.Series:
    """Which rows of the conflicts are of a record's LLM or captions: by hash where both tell it, else by name."""
    known = conflicts[f"{part}_hash"] != ""
    by_key = known & (conflicts[f"{part}_key"] == row[f"{part}_key"])
    told = row[f"{part}_key"] != row[part]  # the record's key is a hash
    return by_key | ((~known if told else True) & (conflicts[part] == row[part]))


def correlations(table: pd.DataFrame, x: str = CONFLICT) -> pd.DataFrame:
    """Spearman's correlation of `x` and score for each method, over all cells and within LLMs, with interval and p.

    Cells of one LLM or corpus are not independent of each other; the interval takes those of other LLMs for independent.

    A method with too few cells, or without spread, has a row that says so in `note`, and correlation 0 in [-1, 1].
    """
    import pandas as pd

    rows = []
    for method, own in table.groupby("method", sort=False):
        for over, groups in (("all cells", None), ("within LLMs", own["llm"])):
            row: dict[str, Any] = {"method": method, "over": over, "x": x, "cells": len(own)}
            try:
                interval, p = rank_correlation(own[x].round(12), own["score"].round(9), groups)
                row |= {"rho": interval.value, "rho_low": interval.low, "rho_high": interval.high, "p": p, "note": ""}
            except ValueError as error:
                row |= {"rho": 0.0, "rho_low": -1.0, "rho_high": 1.0, "p": 1.0, "note": str(error)}
            rows.append(row)
    return pd.DataFrame(rows)


def pairs(table: pd.DataFrame, richness: str = RICHNESS, conflict: str = CONFLICT) -> pd.DataFrame:
    """A row for each two corpora of one LLM and method: the richer and the poorer one (by `richness`), and how much more
    rich, in conflict and in score the richer is. paradox: it is richer, conflicts more, and loses.
    """
    import pandas as pd

    columns = ["llm", "method", "richer", "poorer", "richness_gap", "conflict_gap", "score_gap", "paradox"]
    rows = []
    for (llm, method), own in table.groupby(["llm", "method"], sort=False):
        for a, b in combinations(own.to_dict("records"), 2):
            rich, poor = (a, b) if a[richness] >= b[richness] else (b, a)
            gaps = [rich[name] - poor[name] for name in (richness, conflict, "score")]
            rows.append([llm, method, rich["captions"], poor["captions"], *gaps, gaps[1] > 0 and gaps[2] < 0])
    return pd.DataFrame(rows, columns=columns)


def verdict(gaps: pd.DataFrame) -> list[str]:
    """For each method, in how many pairs the richer corpus loses, where its conflict is larger and where it is not."""
    lines = []
    for method, own in gaps.groupby("method", sort=False):
        parts = []
        for more, name in ((True, "where it conflicts more"), (False, "where it does not")):
            side = own[(own["conflict_gap"] > 0) == more]
            parts.append(f"{int((side['score_gap'] < 0).sum())} of {len(side)} {name}")
        lines.append(f"{method}: the richer corpus loses in {', '.join(parts)}")
    return lines


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.paradox", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--conflict", type=Path, nargs="+", required=True, help="forecast.csv or conflict.csv, one or several"
    )
    parser.add_argument(
        "--records", type=Path, nargs="+", required=True, help="records.jsonl of benchmarks.run, or CSV"
    )
    parser.add_argument("--benchmarks", nargs="+", help="only these (default: all)")
    parser.add_argument("--x", default=CONFLICT, help=f"column that scores are held against (default: {CONFLICT})")
    parser.add_argument(
        "--richness",
        help=f"column that says how rich captions are (default: {RICHNESS}, else tokens a caption)",
    )
    parser.add_argument("--out", type=Path, help="also write tables, picture and manifest there")
    options = parser.parse_args(arguments)
    from analysis.outputs import shown, write_figure, write_manifest, write_table
    from dpa.lineage import file_hash

    records = read_records(options.records)
    if options.benchmarks:
        if unknown := set(options.benchmarks) - set(records["benchmark"]):
            raise InputError(
                f"no record of benchmark {sorted(unknown)[0]!r}; there are {', '.join(sorted(set(records['benchmark'])))}"
            )
        records = records[records["benchmark"].isin(options.benchmarks)]
    table = cells(read_conflicts(options.conflict), records)
    numbers = list(table.select_dtypes("number").columns)
    if options.x not in numbers:
        raise InputError(f"--x {options.x}: no such number among {', '.join(numbers)}")
    found = correlations(table, options.x)
    columns = list(dict.fromkeys([*CELL, options.x, CONFLICT, "score", "score_spread", "seeds"]))
    print(shown(table[columns]))
    print(f"\nrank correlation of {options.x} and score (95 % interval, p by permutation):\n{shown(found)}")
    if options.richness is not None and options.richness not in numbers:
        raise InputError(f"--richness {options.richness}: no such number among {', '.join(numbers)}")
    richness = options.richness or next((name for name in (RICHNESS, "tokens") if name in numbers), None)
    gaps = pairs(table, richness) if richness else None
    if gaps is not None:
        print(f"\nrichness: {richness}")
        print("\n".join(verdict(gaps)))
    if options.out:
        from analysis.figures import paradox_figure

        write_table(table, options.out, "cells")
        write_table(found, options.out, "correlation")
        if gaps is not None:
            write_table(gaps, options.out, "pairs")
        write_figure(paradox_figure(table, options.x), options.out, "paradox")
        hashes = {str(file): file_hash(file) for file in (*options.conflict, *options.records)}
        write_manifest(options.out, data=hashes, seeds=sorted({int(seed) for seed in records["seed"]}))
        print(f"\ntables and picture: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
