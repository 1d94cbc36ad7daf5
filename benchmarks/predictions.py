"""Predictions files: answers of one checkpoint, one a line, appended as they come.

The first line holds the settings that made the file and the provenance of the process that started it; a file of another
checkpoint, other questions or other settings is never continued. A torn last line, from a kill, is cut off. Processes
that share the work write parts beside the file (`NAME.part-2-of-4.jsonl`), which are merged into it; one process writes a
file at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.records import cut_torn_line
from benchmarks.suites import Item
from dpa.errors import InputError
from dpa.lineage import provenance

Key = tuple[str, str]  # (benchmark, index) of an item


def read_predictions(path: Path, wanted: dict | None = None) -> dict[Key, str]:
    """{(benchmark, index): answer} of a predictions file; {} if there is none. InputError when a setting is not as `wanted`."""
    header, rows = _read(path)
    if header and wanted is not None:
        made = header["settings"]
        for part, value in wanted.items():
            if made.get(part) != value:
                was = repr(made[part]) if part in made else "not recorded"
                raise InputError(
                    f"{path}: was made with another {part.replace('_', ' ')} ({was}) than asked for now ({value!r}); delete it to ask again"
                )
    return {(row["benchmark"], row["index"]): row["answer"] for row in rows}


def read_truncated(path: Path) -> set[Key]:
    """The items whose answers ended because they may not be longer, not because the model was done."""
    return {(row["benchmark"], row["index"]) for row in _read(path)[1] if row.get("truncated")}


def settings_of(path: Path) -> dict:
    """The settings that made a predictions file."""
    return _read(path)[0]["settings"]


def asked_by(path: Path) -> dict:
    """Provenance of the process that started a predictions file."""
    return _read(path)[0]["provenance"]


def _read(path: Path) -> tuple[dict, list[dict]]:
    """(header, rows), both empty when there is no whole header."""
    if not path.is_file():
        return {}, []
    data = path.read_bytes()
    lines = data[: data.rfind(b"\n") + 1].decode("utf-8", errors="replace").split("\n")[:-1]  # no torn last line
    if not lines:
        return {}, []
    try:
        header, rows = json.loads(lines[0]), [json.loads(line) for line in lines[1:]]
        if not all(isinstance(row[name], str) for row in rows for name in ("benchmark", "index", "answer")):
            raise TypeError("a benchmark, index or answer is no text")
        return {"settings": dict(header["settings"]), "provenance": header["provenance"]}, rows
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a predictions file ({error}); delete it to ask again") from None


class Predictions:
    """A predictions file open for appending; with a header, if it is new, that holds `settings`."""

    def __init__(self, path: Path, settings: dict, asked_by: dict | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            cut_torn_line(path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  `__exit__` closes it
        if self._file.tell() == 0:
            self.write([{"settings": settings, "provenance": asked_by or provenance()}])

    def append(self, answered: Sequence[tuple[Item, str, bool]]) -> None:
        """Write (item, answer, whether it was truncated) so that the disk has them when this returns."""
        rows = [{"benchmark": item.benchmark, "index": item.index, "answer": answer} for item, answer, _ in answered]
        self.write([row | {"truncated": True} if cut else row for row, (_, _, cut) in zip(rows, answered, strict=True)])

    def write(self, rows: Sequence[dict]) -> None:
        """Write rows as they stand in such files."""
        self._file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Predictions:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Holds a predictions file for this process alone. InputError when another one has it; a kill lets go of it."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(f"{path}.lock")
    try:
        held.acquire(timeout=1)  # a shard ends with its parent, but not in the same instant
    except Timeout:
        raise InputError(f"{path}: another process is writing it; wait for it to end, or stop it") from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps an open file
            Path(held.lock_file).unlink()
        held.release()


def part_file(path: Path, number: int, of: int) -> Path:
    """Where shard `number` (from 1) of `of` writes."""
    return path.with_name(f"{path.stem}.part-{number}-of-{of}{path.suffix}")


def part_files(path: Path) -> list[Path]:
    """The parts beside a predictions file, of any number of shards, sorted by name; also one that is only locked as yet."""
    found = path.parent.iterdir() if path.parent.is_dir() else ()
    parts = {part.with_name(part.name.removesuffix(".lock")) for part in found}
    return sorted(p for p in parts if p.name.startswith(f"{path.stem}.part-") and p.suffix == path.suffix)


def read_all_parts(path: Path, wanted: dict | None = None) -> dict[Key, str]:
    """As `read_predictions`, with the answers in the parts beside it; where two answer an item, the file's own counts."""
    found: dict[Key, str] = {}
    for file in (*part_files(path), path):
        found |= read_predictions(file, wanted)
    return found


def merge(path: Path, wanted: dict) -> None:
    """Append the parts beside a predictions file to it and delete them, after a look that all were made as `wanted`.

    InputError when one was not, or when a part is being written; what is merged by then stays merged.
    """
    read_all_parts(path, wanted)
    known = set(read_predictions(path))
    for part in part_files(path):
        with lock(part):
            header, rows = _read(part)
            if header:  # else it was killed before its first line was whole
                new = [row for row in rows if (row["benchmark"], row["index"]) not in known]
                with Predictions(path, header["settings"], header["provenance"]) as file:
                    file.write(new)
                known |= {(row["benchmark"], row["index"]) for row in new}
            part.unlink(missing_ok=True)
