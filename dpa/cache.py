"""Rows of numbers for each record of a data set, computed once and kept on disk: the frozen LLM's label scores, a
frozen tower's features.

A cache is a folder: `values.bin` (all rows in the records' order, little-endian, NaN where nothing was written yet),
`header.json` (what made the values) and, written last, `complete.json` (the SHA-256 of the values). Processes on one
shared disk may fill it together, each its own records; killed at any time, it holds NaN or final values.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from dpa.errors import InputError, first_line
from dpa.lineage import file_hash, flush, write_json

VALUES, HEADER, COMPLETE = "values.bin", "header.json", "complete.json"
CHUNK = 1 << 22  # numbers held in memory at once: 16 MiB of float32


@dataclass(eq=False)
class RowCache:
    """For record i, `rows[i]` rows of `columns` numbers; `open` makes one. Pickles without its values."""

    folder: Path
    offsets: np.ndarray  # [records + 1]; the numbers of record i are offsets[i]:offsets[i + 1]
    columns: int
    dtype: np.dtype

    @classmethod
    def open(
        cls, root: Path, kind: str, key: dict[str, Any], rows: Sequence[int], columns: int, dtype: str = "float32"
    ) -> RowCache:
        """The cache under `root` for this key, these rows per record, columns and dtype (float32, float16), created
        full of NaN when it is not there.

        `key` (JSON) says what made the values; a complete cache is hashed whole, once per process. InputError when the
        folder is another key's, is cut short or altered, cannot be read, or the disk is full.
        """
        counts = np.asarray(rows, dtype="<i8")
        if columns < 1 or (counts < 0).any() or dtype not in ("float32", "float16"):
            raise ValueError(f"rows >= 0, columns >= 1 and float32 or float16 are needed, not {columns} of {dtype}")
        row_hash = hashlib.sha256(counts.tobytes()).hexdigest()
        header = {"key": key, "rows": row_hash, "columns": columns, "dtype": dtype}
        canonical = json.dumps(header, sort_keys=True, separators=(",", ":"))
        name = f"{kind}-{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"
        offsets = np.concatenate([[0], np.cumsum(counts * columns)])
        cache = cls(root / name, offsets, columns, np.dtype(dtype).newbyteorder("<"))
        if not cache.folder.is_dir():
            cache._create(header)
        for leftover in root.glob(f".{name}.*"):  # of a killed creator, or of one that will now find it came second
            shutil.rmtree(leftover, ignore_errors=True)
        cache._verify(json.loads(canonical))
        return cache

    @property
    def complete(self) -> bool:
        """Whether `finish` has been here: all records are whole and their hash is noted."""
        return (self.folder / COMPLETE).is_file()

    def missing(self) -> np.ndarray:
        """Ascending indices [m] of the records with a NaN in their rows; a record of no rows is never missing."""
        some = np.flatnonzero(np.diff(self.offsets))
        starts, ends = self.offsets[some], self.offsets[some + 1]
        holes = np.zeros(len(some), dtype=bool)
        first = 0
        while first < len(some):
            last = max(first + 1, int(np.searchsorted(ends, starts[first] + CHUNK, side="right")))
            empty = np.isnan(self._mapped(starts[first], ends[last - 1]))
            holes[first:last] = np.logical_or.reduceat(empty, starts[first:last] - starts[first])
            first = last
        return some[holes]

    def write(self, index: int, values: np.ndarray) -> None:
        """Keep the values [rows[index], columns] of one record; whoever asks later for what is missing sees them.

        ValueError for another shape, a NaN or a finite number that the dtype cannot hold; RuntimeError once the cache
        is complete; InputError when the disk is full.
        """
        begin, end = self._span(index)
        with np.errstate(over="ignore"):
            kept = np.ascontiguousarray(values, dtype=self.dtype)
        wanted = ((end - begin) // self.columns, self.columns)
        if np.shape(values) != wanted:
            raise ValueError(f"{self.folder}: record {index} has shape {wanted}, not {np.shape(values)}")
        if np.isnan(kept).any() or (np.isinf(kept) & np.isfinite(values)).any():
            raise ValueError(f"{self.folder}: record {index} holds NaN or a number too large for {self.dtype}")
        if self.complete:
            raise RuntimeError(f"{self.folder}: complete, so record {index} cannot be written again")
        with _space(self.folder), open(self.folder / VALUES, "r+b", buffering=0) as file:  # its closing tells NFS
            _write(file.fileno(), kept, begin)

    def read(self, index: int) -> np.ndarray:
        """A copy of one record's values [rows[index], columns]; ValueError when the record is not whole yet."""
        begin, end = self._span(index)
        values = self._values[begin:end].reshape(-1, self.columns).copy()
        if np.isnan(values).any():
            raise ValueError(f"{self.folder}: record {index} is not whole; fill the cache before reading it")
        return values

    def finish(self) -> None:
        """Mark the cache complete: one process does it, after all have written. RuntimeError if a record is missing."""
        if self.complete:
            return
        if len(missing := self.missing()):
            raise RuntimeError(f"{self.folder}: {len(missing)} records are missing, record {missing[0]} first")
        with _space(self.folder):
            flush(self.folder)
            write_json(self.folder / COMPLETE, {"sha256": file_hash(self.folder / VALUES)})

    @cached_property
    def _values(self) -> np.ndarray:
        return self._mapped(0, self.offsets[-1])

    def __getstate__(self) -> dict[str, Any]:  # a pickled memory map would be all its values
        return {name: value for name, value in vars(self).items() if name != "_values"}

    def _mapped(self, begin: int, end: int) -> np.ndarray:
        if begin == end:  # nothing cannot be mapped
            return np.empty(0, self.dtype)
        place = int(begin) * self.dtype.itemsize
        return np.asarray(np.memmap(self.folder / VALUES, self.dtype, "r", place, (int(end - begin),)))

    def _span(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self.offsets) - 1:
            raise IndexError(f"{self.folder}: no record {index} among {len(self.offsets) - 1}")
        return int(self.offsets[index]), int(self.offsets[index + 1])

    def _create(self, header: dict[str, Any]) -> None:
        temporary = self.folder.with_name(f".{self.folder.name}.{uuid.uuid4().hex}")
        with _space(self.folder):
            try:
                temporary.mkdir(parents=True)
                with open(temporary / VALUES, "wb", buffering=0) as file:
                    for place in range(0, self.offsets[-1], CHUNK):
                        nothing = np.full(min(CHUNK, self.offsets[-1] - place), np.nan, self.dtype)
                        _write(file.fileno(), nothing, place)
                write_json(temporary / HEADER, header)
                flush(temporary)
                os.rename(temporary, self.folder)
            except OSError:
                if not self.folder.is_dir():  # else another process was first, and its cache serves
                    raise
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def _verify(self, header: dict[str, Any]) -> None:
        path, fix = self.folder / VALUES, "delete the folder and run again"
        if self._json(HEADER) != header:
            raise InputError(f"{self.folder}: {HEADER} is not of the values asked for, foreign or stale; {fix}")
        size, wanted = path.stat().st_size if path.is_file() else 0, int(self.offsets[-1]) * self.dtype.itemsize
        if size != wanted:
            raise InputError(f"{self.folder}: {VALUES} has {size} bytes instead of {wanted}; {fix}")
        if self.complete and self._json(COMPLETE) != {"sha256": file_hash(path)}:
            raise InputError(f"{self.folder}: {VALUES} is not what {COMPLETE} notes, a byte has changed; {fix}")

    def _json(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError) as error:
            reason = first_line(error)
            raise InputError(f"{self.folder}: {name}: {reason}; delete the folder and run again") from None


def circumstances(code: Path, files: Sequence[str], dtype: str, arguments: Any, config: Any) -> dict[str, Any]:
    """For a key: how a model computes under some TrainingArguments; `files` in the folder `code` do it."""
    mixed = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "no"
    return {
        "precision": f"{dtype}, autocast {mixed}",
        "attention": config._attn_implementation,
        "device": arguments.device.type,
        "libraries": [f"{name} {metadata.version(name)}" for name in ("torch", "transformers")],
        "code": hashlib.sha256("".join(file_hash(code / name) for name in files).encode()).hexdigest(),
    }


def filled(
    root: Path,
    kind: str,
    key: dict[str, Any],
    processes: tuple[int, int],
    wait: Callable[[], None],
    opened: Callable[[], tuple[RowCache, Callable[[], object]]],
) -> RowCache:
    """A complete cache, filled together by all processes where anything is missing; every process calls it.

    processes: (number of this one, how many); wait: returns once all have called it; opened: opens the cache, and says
    how to fill this process's share. Runs that want to fill values of one `kind` and `key` at a time wait for each other.
    """
    root.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    main = processes[0] == 0
    with FileLock(root / f".{kind}-{name}.lock") if main else nullcontext():
        if not main:
            wait()  # until the main process has made it
        cache, fill = opened()
        if main:
            wait()
        if len(cache.missing()):
            fill()
        wait()
        if main and len(missing := cache.missing()):
            raise InputError(f"{cache.folder}: {len(missing)} records were not filled by a process; run again")
        if main:
            cache.finish()
        wait()
    return cache


def _write(file: int, values: np.ndarray, place: int) -> None:
    """Put values at a place counted in values; pwrite may take fewer bytes than it is given."""
    rest, offset = values.tobytes(), place * values.itemsize
    while rest:
        taken = os.pwrite(file, rest, offset)
        rest, offset = rest[taken:], offset + taken


@contextmanager
def _space(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"{folder}: the disk is full; free space and run again, what was written is kept") from None
