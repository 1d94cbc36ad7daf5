"""The paper's tables: published numbers beside what our records measured, and whether a difference is more than noise.

    python -m benchmarks.tables --table 1                one table, or several, or `all`; also readme, cal-1, cal-2, cal-12
    python -m benchmarks.tables --table 1 --long         a line for each cell
    python -m benchmarks.tables --table 1 --lab          Table 1's layout for the records of the laptop lab
    python -m benchmarks.tables --audit                  where the paper's numbers disagree with each other, by code
    python -m benchmarks.tables --table all --out DIR    Markdown, LaTeX, CSV of each table, and one page tables.html

Records are those that `benchmarks.run` writes. Only scores on all of the official data, with the picture, stand beside a
printed number; everything else is left out.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks import formats
from benchmarks.formats import Sheet
from benchmarks.measured import is_official, read_records, recipe_of
from benchmarks.published import FOLDER, NAMES, OTHERS
from benchmarks.sheets import Sources, lab_sheet, long_sheet, paper_sheets, sources
from dpa.errors import InputError, command
from dpa.lineage import file_hash, provenance, write_json


def audit_text(found: Sources) -> str:
    """The disagreements, with the numbers and whether each is there; then what else was checked."""
    lines = []
    for heading, findings in (("Known disagreements", found.known), ("Further checks", found.further)):
        lines += [f"{heading}: {sum(f.holds for f in findings)} of {len(findings)} find one"]
        for number, finding in enumerate(findings, 1):
            lines += formats.wrapped(f"{number}. {'found' if finding.holds else 'none'}: {finding.says}", "   ")
    return "\n".join(lines)


def page(names: Sequence[str], found: Sources) -> str:
    """All of these tables as one HTML page."""
    return formats.as_html([(paper_sheets(name, found), long_sheet(name, found)) for name in names])


def write_all(folder: Path, names: Sequence[str], found: Sources, records: Sequence[dict]) -> list[Path]:
    """Every format of the tables, one page of all of them, and a manifest; each file is there whole or not at all."""
    files = {"tables.html": page(names, found)}
    for table in names:
        own = paper_sheets(table, found)
        files[f"{own[0].name}.md"] = "\n".join(map(formats.as_markdown, own))
        files[f"{own[0].name}.tex"] = "\n".join(map(formats.as_latex, own))
        files[f"{own[0].name}.csv"] = formats.as_csv([long_sheet(table, found)])
        files |= {f"{other.name}.csv": formats.as_csv([other]) for other in own[1:]}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        temporary = folder / f"{name}.{os.getpid()}.tmp"
        temporary.write_text(text, encoding="utf-8", newline="")
        os.replace(temporary, folder / name)
    inputs = {f"published/{name}": file_hash(FOLDER / name) for name in ("numbers.csv", "claims.csv")}
    used = sorted({record["file"] for record in records if is_official(record) and recipe_of(record)})
    read = {file: file_hash(Path(file)) for file in used}
    write_json(folder / "manifest.json", provenance() | {"tables": list(names), "inputs": inputs, "records": read})
    return [folder / name for name in files]


def record_files(given: Sequence[Path] | None) -> list[Path]:
    """The files named, or those that `benchmarks.run` writes and publishes."""
    if given is not None:
        if gone := [path for path in given if not path.is_file()]:
            raise InputError(f"{gone[0]}: no such file; give a records.jsonl of benchmarks.run")
        return list(given)
    ours = FOLDER.parent
    published = [*sorted(ours.glob("records/*.jsonl")), *sorted(ours.glob("*/records.jsonl"))]
    own = Path("runs/records.jsonl")
    return [*([own] if own.is_file() else []), *(Path(os.path.relpath(path)) for path in published)]


def table_names(given: Sequence[str]) -> list[str]:
    """The tables asked for; InputError for an unknown one."""
    names = [name.lower().removeprefix("table") for name in given]
    if unknown := [name for name in names if name not in (*NAMES, "all")]:
        raise InputError(f"no table {unknown[0]!r}; there are 1 to 16, {', '.join(OTHERS)}, and all")
    return list(NAMES) if "all" in names else list(dict.fromkeys(names))


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__.split("\n")[0])
    parser.add_argument("--table", nargs="+", metavar="N", help="1 to 16, readme, cal-1, cal-2, cal-12, or all")
    parser.add_argument(
        "--records", nargs="*", type=Path, metavar="FILE", help="default: runs/records.jsonl and those in results/"
    )
    parser.add_argument("--long", action="store_true", help="a line for each cell")
    parser.add_argument("--format", choices=("text", "markdown", "latex", "csv", "html"), default="text")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write every format there instead of printing one")
    parser.add_argument("--lab", action="store_true", help="Table 1's layout for the lab's records")
    parser.add_argument("--audit", action="store_true", help="where the paper's numbers disagree with each other")
    options = parser.parse_args(arguments)
    if not (options.table or options.lab or options.audit):
        raise InputError("nothing asked for; give --table N, --lab or --audit")
    names = table_names(options.table or [])
    records = read_records(record_files(options.records))
    if options.lab:
        if set(names) - {"1"} or options.out or options.audit:
            raise InputError("--lab prints Table 1's layout alone; leave out other tables, --out and --audit")
        print(shown([lab_sheet(records)], options.format), end="")
        return 0
    found = sources(records)
    if options.audit:
        print(audit_text(found))
    if options.out and names:
        written = write_all(options.out, names, found, records)
        print(f"{len(written)} files in {options.out}; the page for reading is {options.out / 'tables.html'}")
    elif names and options.format == "html":
        print(page(names, found), end="")
    elif options.format == "csv":
        print(formats.as_csv([long_sheet(name, found) for name in names]), end="")
    else:
        chosen = [sheet for name in names for sheet in paper_sheets(name, found, options.long)]
        print(shown(chosen, options.format), end="")
    return 0


def shown(sheets: Sequence[Sheet], form: str) -> str:
    """Sheets in one format."""
    if form == "csv":
        return formats.as_csv(sheets)
    if form == "html":
        return formats.as_html([(sheets, None)])
    way = {"text": formats.as_text, "markdown": formats.as_markdown, "latex": formats.as_latex}[form]
    return "\n".join(map(way, sheets))


if __name__ == "__main__":
    raise SystemExit(main())
