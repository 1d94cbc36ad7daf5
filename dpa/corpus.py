"""A corpus: the records of one or several sources as a sequence that stays on disk.

Each source is read once into an Arrow file that is mapped into memory, so a process holds a few bytes a record, however
many data loader workers there are. Small sources stay in memory. From each source a fixed count or a seeded fraction is
drawn; a smaller fraction is part of a larger one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_args, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
from datasets import Dataset, config
from filelock import FileLock
from tqdm import tqdm

from dpa.errors import InputError
from dpa.lineage import file_hash, write_json
from dpa.readers import HUB, Problem, Record, Row, View, existing, problem_for, read_rows, source_hash

IN_MEMORY = 32_000_000  # bytes; a smaller file is read anew each time and leaves nothing on the disk
BATCH = 1000  # rows a time
VIEW_NAMES: tuple[View, ...] = get_args(View)
SCHEMA = pa.schema(
    [
        ("where", pa.string()),
        ("id", pa.string()),
        ("image", pa.string()),
        ("roles", pa.list_(pa.string())),
        ("texts", pa.list_(pa.string())),
        ("numbered", pa.bool_()),  # its id is its number
        ("embedded", pa.bool_()),  # its picture came with the source
        ("size", pa.int32()),  # bytes of all texts
        ("answers", pa.int32()),  # bytes of the assistant's
        *((view, pa.string()) for view in VIEW_NAMES),  # why it cannot be used in the view
    ]
)


@dataclass(frozen=True)
class Part:
    """One source: its rows on disk, the folder its pictures' paths start from, and that of pictures it held itself."""

    source: str
    rows: Dataset
    images: Path
    embedded: Path


class Corpus(Sequence[Record]):
    """Usable records of a view, in the order of their sources; `problems` are the others, which nothing is taken for."""

    def __init__(self, parts: Sequence[Part], view: View, chosen: np.ndarray, problems: Sequence[Problem]) -> None:
        self.parts, self.view, self.chosen, self.problems = tuple(parts), view, chosen, tuple(problems)

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number, row = self.chosen[index]
        part = self.parts[number]
        fields = part.rows[int(row)]
        turns = tuple(zip(fields["roles"], fields["texts"], strict=True))
        images = part.embedded if fields["embedded"] else part.images
        return Record(fields["where"], fields["id"], fields["image"], turns, images)

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of the texts that the view reads of each record, [N] int64: no tokenizer makes more tokens of them, its
        special ones apart.
        """
        name = "size" if self.view == "chat" else "answers"
        return self._gather(lambda rows: rows.data.column(name).to_numpy()).astype(np.int64)

    @property
    def has_image(self) -> np.ndarray:
        """Whether each record has a picture, [N] bool."""
        return self._gather(lambda rows: rows.data.column("image").is_valid().to_numpy())

    @property
    def num_turns(self) -> np.ndarray:
        """Turns of each record, [N]."""
        return self._gather(lambda rows: compute.list_value_length(rows.data.column("roles")).to_numpy())

    def pictures(self) -> Iterator[tuple[int, str] | None]:
        """Which picture each record has: (part, path), None where it has none."""
        return self._keys("image")

    def ids(self) -> Iterator[tuple[int, str] | None]:
        """Each record's (part, id), None where it has none of its own."""
        numbered = self._gather(lambda rows: rows.data.column("numbered").to_numpy())
        return (None if own else key for key, own in zip(self._keys("id"), numbered, strict=True))

    def role_sequences(self) -> Iterator[tuple[str, ...]]:
        """The roles of each record's turns."""
        for number, part in enumerate(self.parts):
            values = part.rows.data.column("roles").take(self.chosen[self.chosen[:, 0] == number, 1])
            for chunk in values.chunks:
                yield from map(tuple, chunk.to_pylist())

    def spells(self, words: str) -> np.ndarray:
        """Whether a text of each record holds `words`, [N] bool."""

        def found(rows: Dataset) -> np.ndarray:
            flags = []
            for chunk in rows.data.column("texts").chunks:
                hits = compute.match_substring(chunk.flatten(), words).to_numpy(zero_copy_only=False)
                counts = np.concatenate([[0], np.cumsum(hits)])
                ends = np.cumsum(compute.list_value_length(chunk).to_numpy(zero_copy_only=False))
                flags.append(np.diff(counts[np.concatenate([[0], ends])]) > 0)
            return np.concatenate(flags)

        return self._gather(found)

    def captions(self) -> Iterator[str]:
        """Each record's first answer, stripped, as it is trained on; read in pieces."""
        for number, part in enumerate(self.parts):
            rows = self.chosen[self.chosen[:, 0] == number, 1]
            columns = part.rows.select_columns(["roles", "texts"])
            for first in range(0, len(rows), BATCH):
                piece = columns[rows[first : first + BATCH].tolist()]
                for roles, texts in zip(piece["roles"], piece["texts"], strict=True):
                    yield texts[roles.index("assistant")].strip()

    def without(self, indices: Iterable[int], problems: Iterable[Problem]) -> Corpus:
        """The corpus less the records at `indices`, with more problems."""
        keep = np.ones(len(self), bool)
        keep[list(indices)] = False
        return Corpus(self.parts, self.view, self.chosen[keep], [*self.problems, *problems])

    def _gather(self, column: Callable[[Dataset], np.ndarray]) -> np.ndarray:
        """A column of the parts at the chosen rows."""
        return np.concatenate(
            [column(part.rows)[self.chosen[self.chosen[:, 0] == n, 1]] for n, part in enumerate(self.parts)]
        )

    def _keys(self, name: str) -> Iterator[tuple[int, str] | None]:
        for number, part in enumerate(self.parts):
            values = part.rows.data.column(name).take(self.chosen[self.chosen[:, 0] == number, 1])
            for chunk in values.chunks:
                yield from ((number, value) if value is not None else None for value in chunk.to_pylist())


def text_hashes(texts: Iterable[str]) -> np.ndarray:
    """64 bits of the BLAKE2 hash of each text, [N] uint64: to tell which captions are the same, whatever file they are in."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, "<u8")


def read_records(source: str | Path, view: View, images: Path | None = None) -> Corpus:
    """All records of a source in a view. InputError naming the first that cannot be used."""
    corpus = open_corpus([str(source)], view, images=[images])
    if corpus.problems:
        raise InputError(str(corpus.problems[0]))
    return corpus  # sources without any record are refused before


def open_corpus(
    sources: Sequence[str],
    view: View,
    *,
    images: Sequence[Path | None] = (None,),
    cache: Path | None = None,
    count: int | None = None,
    fraction: float = 1.0,
    seed: int = 0,
) -> Corpus:
    """The records of all sources in a view; bad ones are left out and told in `problems`.

    images: the folder of each source's pictures, or one for all; None: where the source stands.
    count: how many usable records to draw from each source; fraction: the share to draw. Rows are drawn before the bad
    ones among them are left out, so that all views and mended data draw the same. Drawn records keep their order.
    InputError when a source cannot be read, or has no record, or fewer usable ones than `count`.
    """
    if view not in VIEW_NAMES:
        raise ValueError(f"unknown view {view!r}")
    if len(images) not in (1, len(sources)):
        raise InputError(
            f"{len(images)} image folders for {len(sources)} data files; give one for all, or one each in the same order"
        )
    parts, chosen, problems = [], [], []
    for number, source in enumerate(sources):
        part = _open_part(source, images[number if len(images) > 1 else 0], cache)
        bad = part.rows.data.column(view).is_valid().to_numpy()
        if not len(bad):
            raise InputError(f"{source}: holds no record")
        drawn = np.random.default_rng([seed, number]).permutation(len(bad))
        if count is not None:
            if count > (~bad).sum():
                raise InputError(
                    f"{source}: holds {(~bad).sum():,} usable records, and {count:,} are to be drawn from it"
                )
            drawn = drawn[: np.searchsorted(np.cumsum(~bad[drawn]), count) + 1]
        else:
            drawn = drawn[: max(1, round(fraction * len(bad)))]
        drawn = np.sort(drawn)
        problems += [
            Problem(row["where"], row["id"], row[view]) for row in (part.rows[int(i)] for i in drawn[bad[drawn]])
        ]
        usable = drawn[~bad[drawn]]
        chosen.append(np.stack([np.full(len(usable), number), usable], axis=1).astype(np.int32))
        parts.append(part)
    return Corpus(parts, view, np.concatenate(chosen), problems)


def _open_part(source: str, images: Path | None, cache: Path | None) -> Part:
    local = not source.startswith(HUB)
    path = existing(source) if local else Path()
    folder = cache or Path(config.HF_DATASETS_CACHE) / "dpa"
    code = "".join(file_hash(Path(__file__).with_name(name)) for name in ("readers.py", "corpus.py"))
    own = path.parent if path.is_file() else path
    if local and path.is_file() and path.suffix != ".parquet" and path.stat().st_size < IN_MEMORY:
        rows = Dataset(pa.Table.from_batches(_batches(read_rows(source), folder), SCHEMA))
        return Part(source, rows, images or own, folder)
    key = hashlib.sha256(f"{source} {source_hash(source)} {code}".encode()).hexdigest()[:24]
    file, told, pictures = folder / f"{key}.arrow", folder / f"{key}.json", folder / f"{key}-pictures"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{key}.lock"):  # of several processes one reads the source
        if not told.is_file() or not file.is_file() or json.loads(told.read_text())["sha256"] != file_hash(file):
            partial = file.with_suffix(".partial")
            title = f"reading {Path(source).name}"
            rows_read = iter(tqdm(read_rows(source), desc=title, unit="rec", leave=False, delay=2))
            with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
                for batch in _batches(rows_read, pictures):
                    writer.write_batch(batch)
            os.replace(partial, file)
            write_json(told, {"source": source, "sha256": file_hash(file)})
    return Part(source, Dataset.from_file(str(file)), images or own, pictures)


def _batches(rows: Iterator[Row], pictures: Path) -> Iterator[pa.RecordBatch]:
    while batch := [_fields(row, pictures) for row in islice(rows, BATCH)]:
        yield pa.RecordBatch.from_pylist(batch, SCHEMA)


def _fields(row: Row, pictures: Path) -> dict:
    """A row of the schema; a picture that the source holds itself is written to the folder `pictures`."""
    if row.embedded is not None:
        assert row.image is not None
        target = pictures / row.image  # named by its content
        if not target.is_file() or target.stat().st_size != len(row.embedded):
            pictures.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.{os.getpid()}.part")
            partial.write_bytes(row.embedded)
            os.replace(partial, target)
    roles, texts = zip(*row.turns, strict=True) if row.turns else ((), ())
    problems = {view: row.reason or problem_for(view, row.image, row.turns) for view in VIEW_NAMES}
    sizes = [len(text.encode()) for text in texts]
    answers = sum(size for role, size in zip(roles, sizes, strict=True) if role == "assistant")
    fields: dict[str, Any] = {"where": row.where, "id": row.id, "image": row.image, "roles": roles, "texts": texts}
    fields |= {"numbered": row.numbered, "embedded": row.embedded is not None, "size": sum(sizes), "answers": answers}
    return fields | problems
