"""The captions of a source as texts to measure: any source that training reads, or a text file with one caption a line.

What cannot be measured is named and counted, never passed over in silence: records without a caption, repeated texts
(each text counts once, or documents would not be independent), captions that a proxy was trained on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

from dpa.errors import InputError
from dpa.readers import HUB, source_hash

if TYPE_CHECKING:
    from dpa.corpus import Corpus


ENDINGS = (".json", ".jsonl", ".txt", ".parquet")


@dataclass(frozen=True)
class Captions(Sequence[str]):
    """Distinct captions of a source, stripped; they stay on disk where the source is large.

    chosen [N]: their places in `corpus`; hashes [N] uint64: `dpa.corpus.text_hashes`. repeated, unusable, excluded: how
    many records were left out because their text had been seen, because there is none, because `without` was told to.
    """

    name: str
    corpus: Corpus
    chosen: np.ndarray
    hashes: np.ndarray
    repeated: int = 0
    unusable: int = 0
    excluded: int = 0

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[str]:
        places = iter(self.chosen.tolist())
        wanted = next(places, None)
        for place, text in enumerate(self.corpus.captions()):
            if place == wanted:
                yield text
                wanted = next(places, None)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return self.corpus[int(self.chosen[index])].caption.strip()

    @property
    def source_hash(self) -> str:
        """`dpa.readers.source_hash` of the source: by which tables of one set meet, whatever it is called."""
        return source_hash(self.corpus.parts[0].source)

    def without(self, hashes: np.ndarray) -> Captions:
        """Those whose text is not among `hashes`. InputError when none is left."""
        kept = ~np.isin(self.hashes, hashes)
        if not kept.any():
            raise InputError(
                f"{self.name}: all {len(self):,} captions are among those that a proxy was trained on; give held-out captions"
            )
        return replace(
            self,
            chosen=self.chosen[kept],
            hashes=self.hashes[kept],
            excluded=self.excluded + int((~kept).sum()),
        )

    def part(self, number: int, *, seed: int = 0) -> Captions:
        """At most `number` of them, drawn by `seed` and kept in order."""
        if number >= len(self):
            return self
        drawn = np.sort(np.random.default_rng(seed).permutation(len(self))[:number])
        return replace(self, chosen=self.chosen[drawn], hashes=self.hashes[drawn])


def read_captions(source: str | Path, *, name: str = "", cache: Path | None = None) -> Captions:
    """The distinct captions of a source of `dpa.readers`; records without one are named on standard error.

    cache: folder for the records of large sources. InputError when the source cannot be read or has no caption.
    """
    from dpa.corpus import open_corpus, text_hashes

    corpus = open_corpus([str(source)], "text", cache=cache)
    name_left_out(list(map(str, corpus.problems)), source)
    if not len(corpus):
        raise InputError(f"{source}: holds no caption; the first record: {corpus.problems[0].reason}")
    hashes = text_hashes(corpus.captions())
    _, first = np.unique(hashes, return_index=True)
    first = np.sort(first)
    return Captions(
        name or source_name(source),
        corpus,
        first,
        hashes[first],
        repeated=len(hashes) - len(first),
        unusable=len(corpus.problems),
    )


def name_left_out(problems: Sequence[str], source: str | Path) -> None:
    """Name the first three on standard error, and count the others."""
    for problem in problems[:3]:
        print(f"left out: {problem}", file=sys.stderr)
    if len(problems) > 3:
        print(f"left out: {source}: {len(problems) - 3:,} more", file=sys.stderr)


def read_all(sources: Sequence[str | Path], cache: Path | None = None) -> list[Captions]:
    """`read_captions` of each source, under names that differ: with the folder's where files are called alike."""
    names = names_of(sources)
    return [read_captions(source, name=name, cache=cache) for source, name in zip(sources, names, strict=True)]


def names_of(sources: Sequence[str | Path]) -> list[str]:
    """A name for each source, with its folder's where several are called alike. InputError for one given twice."""
    names = [source_name(source) for source in sources]
    names = [
        f"{Path(source).parent.name}/{name}" if names.count(name) > 1 else name
        for source, name in zip(sources, names, strict=True)
    ]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{twice}: given twice; give each set once, or rename the file or its folder")
    return names


def source_name(source: str | Path) -> str:
    """What a source is called in tables: the file's name without its ending, the folder's, the hub's; the records of a set
    that are all in a file `records` or `captions` are called by their folder.
    """
    if str(source).startswith(HUB):
        return str(source)
    path = Path(source)
    name = path.stem if path.suffix in ENDINGS else path.name
    return path.parent.name if name in ("records", "captions") and path.parent.name else name
