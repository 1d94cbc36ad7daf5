"""Rows of the files that answers and benchmarks are published in: tables (TSV, CSV, XLSX) and JSON, every text as it stands.

"", "None", "NA" and "007" keep their text, and so does a cell of 200,000 characters. Numbers of a workbook become texts.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

from dpa.errors import InputError

SUFFIXES = (".tsv", ".csv", ".xlsx", ".jsonl", ".json")
Row = tuple[str, dict[str, Any]]  # "FILE line 3", and the fields


def read_rows(path: Path) -> list[Row]:
    """The rows of a table or of JSON lines, each with where it stands. InputError for a file that is none, or has no row."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: cannot be read, give a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        if path.suffix == ".xlsx":
            rows = _workbook(path)
        elif path.suffix == ".json":
            rows = _json(path)
        elif path.suffix == ".jsonl":
            rows = _json_lines(path)
        else:
            rows = _table(path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    if not rows:
        raise InputError(f"{path}: holds no row; was it cut off?")
    return rows


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig")


def _json_lines(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path} line {number}"
            try:
                fields = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise InputError(f"{where}: is no whole JSON object ({error}); was the file cut off?") from None
            if not isinstance(fields, dict):
                raise InputError(f"{where}: {line[:40]} is no JSON object; give one object a line")
            rows.append((where, fields))
    return rows


def _json(path: Path) -> list[Row]:
    """A list of objects, of NaturalBench's lists, or JSON lines under this ending (POPE's own files)."""
    try:
        values = json.loads(_text(path))
    except json.JSONDecodeError:
        return _json_lines(path)
    except RecursionError as error:
        raise InputError(f"{path}: is no list of objects ({error})") from None
    if isinstance(values, dict):
        values = values.get("data", [values])
    if isinstance(values, list) and all(isinstance(value, list) and len(value) == 4 for value in values):
        names = ("question", "image", "answer", "type")
        values = [{"index": place} | dict(zip(names, value, strict=True)) for place, value in enumerate(values)]
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise InputError(f"{path}: is no list of objects; give one object a question")
    return [(f"{path} item {place}", value) for place, value in enumerate(values)]


def _table(path: Path) -> list[Row]:
    """Rows of a table of text, quoted as the csv module quotes or with \\n, \\t and \\\\ for what would break a line."""
    text, separator = _text(path), "\t" if path.suffix == ".tsv" else ","
    lines = text.removesuffix("\n").split("\n")
    if all(line.endswith("\r") for line in lines[:-1]):  # \r\n, but not a \r inside of a cell
        lines = [line.removesuffix("\r") for line in lines]
    cells = [line.split("\t") for line in lines]
    if separator == "," or _is_quoted(cells):
        csv.field_size_limit(sys.maxsize)
        spare = next(
            c for c in map(chr, range(0xE000, 0xF900)) if c not in text
        )  # stands for \r, which is an end of line
        alone = r"\r(?!\n)" if text.partition("\n")[0].endswith("\r") else r"\r"  # to the csv module wherever it is
        reader = csv.reader(_kept_lines(re.sub(alone, spare, text)), delimiter=separator, strict=True)
        rows, numbers = [], []
        try:
            for row in reader:
                rows.append([cell.replace(spare, "\r") for cell in row])
                numbers.append(reader.line_num)
        except csv.Error as error:
            raise InputError(f"{path} line {reader.line_num}: {error}; is the file cut off?") from None
    else:
        escaped = not re.search(r"\\(?![nt])", text.replace("\\\\", ""))  # every backslash is one of an escape
        rows = [[_unescaped(cell) for cell in row] for row in cells] if escaped else cells
        numbers = list(range(1, len(rows) + 1))
    header = rows[0]
    if len(set(header)) != len(header):
        raise InputError(f"{path}: two columns have one name ({', '.join(header)[:80]}); rename one")
    found = []
    for number, row in zip(numbers[1:], rows[1:], strict=True):
        where = f"{path} line {number}"
        if len(row) != len(header):
            raise InputError(f"{where}: has {len(row)} cells under {len(header)} columns; is the file cut off?")
        found.append((where, dict(zip(header, row, strict=True))))
    return found


def _kept_lines(text: str) -> list[str]:
    """Lines with their ends, cut at \\n alone: other separators belong to the texts."""
    return [f"{line}\n" for line in text.removesuffix("\n").split("\n")]


def _is_quoted(cells: list[list[str]]) -> bool:
    """Whether quotation marks are the table's and not its texts': then rows seem to have too few or too many cells, or
    every cell with a mark in it is quoted as a writer would have had to.
    """
    marked = [cell for row in cells for cell in row if '"' in cell]
    if not marked:
        return False
    everything = all(cell[:1] == '"' for row in cells for cell in row)

    def quoted(cell: str) -> bool:
        inside = cell[1:-1]
        return (
            cell[0] == cell[-1] == '"' != cell and '"' not in inside.replace('""', "") and (everything or '"' in inside)
        )

    needed = all(map(quoted, marked))
    return needed or len({len(row) for row in cells}) > 1


def _unescaped(cell: str) -> str:
    return re.sub(r"\\([nt\\])", lambda found: {"n": "\n", "t": "\t", "\\": "\\"}[found[1]], cell)


def _workbook(path: Path) -> list[Row]:
    """Rows of the first sheet. A number is a text as it is written; a text that begins with "=" comes back as it was."""
    import zipfile
    import zlib

    from openpyxl import load_workbook

    try:
        book = load_workbook(path, read_only=True)
        sheet = [[_cell(value) for value in row] for row in book.worksheets[0].iter_rows(values_only=True)]
        book.close()
    except (
        zipfile.BadZipFile,
        zlib.error,
        SyntaxError,
        EOFError,
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        OSError,
    ) as error:  # SyntaxError: broken XML
        raise InputError(f"{path}: cannot be read as a workbook ({str(error)[:80]}); is it cut off?") from None
    if not sheet:
        return []
    header = sheet[0]
    rows = [(f"{path} row {number}", row) for number, row in enumerate(sheet[1:], 2) if any(row)]
    padded = itertools.zip_longest
    return [(where, {n: v or "" for n, v in padded(header, row) if n}) for where, row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    # characters that XML cannot hold are written _x0007_
    return re.sub(r"_x([0-9A-Fa-f]{4})_", lambda found: chr(int(found[1], 16)), str(value))
