"""The official data files of the benchmarks: where each comes from, what is at hand, and its items with their pictures.

    python -m benchmarks.official --data DIR                       which files DIR has, their MD5, where to get the others
    python -m benchmarks.official --data DIR --download MMBench    fetch a file into DIR; nothing is fetched unasked

MMBench, AI2D, DocVQA, OCRBench, NaturalBench, MMStar and POPE are read and asked through VLMEvalKit
(`benchmarks.vlmevalkit`), CV-Bench and MMVP by Cambrian's protocol (`benchmarks.cambrian`). A file whose MD5 is not the
one VLMEvalKit gives is used all the same, and recorded as not official.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import csv
import hashlib
import os
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from benchmarks import cambrian
from benchmarks.linked import LETTER_LINE
from benchmarks.suites import LETTERS, Item
from dpa.errors import InputError, command, first_line
from dpa.images import image_path, open_image

KIT = "https://opencompass.openxlab.space/utils/VLMEval/"
TIMEOUT = 60  # seconds without an answer
PIECE = 1 << 20  # bytes read at a time
SHORT = 64  # characters; a cell that has no more does not hold a picture but names the row that does (VLMEvalKit)
KIT_LINES = (  # what VLMEvalKit's prompts end on: multiple choice, DocVQA, NaturalBench's two kinds, POPE
    "Please select the correct answer from the options above.",
    "Answer the question using a single word or phrase.",
    "Please answer Yes or No.",
    "Please output the letter corresponding to the correct option.",
    "Please answer yes or no.",
)


@dataclass(frozen=True)
class Source:
    """dataset: VLMEvalKit's name; files: accepted names, the first that is there is read; url and md5: of files[0].

    size: of files[0], as its page or that of a copy tells it, "" if not known; page: about the data set.
    """

    benchmark: str
    dataset: str
    url: str
    md5: str
    licence: str
    page: str
    size: str = ""
    others: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        return (f"{self.dataset}.tsv", *self.others)


SOURCES = {
    source.benchmark: source
    for source in (
        Source(
            "MMBench",
            "MMBench_DEV_EN",
            "https://opencompass.openxlab.space/utils/benchmarks/MMBench/MMBench_DEV_EN.tsv",
            "b6caf1133a01c6bb705cf753bb527ed8",
            "Apache-2.0",
            "https://github.com/open-compass/MMBench",
            "37 MB",
        ),
        Source(
            "OCRBench",
            "OCRBench",
            f"{KIT}OCRBench.tsv",
            "e953d98a987cc6e26ef717b61260b778",
            "MIT",
            "https://github.com/Yuliang-Liu/MultimodalOCR",
            "114 MB",
        ),
        Source(
            "DocVQA",
            "DocVQA_VAL",
            f"{KIT}DocVQA_VAL.tsv",
            "d5ee77e1926ff10690d469c56b73eabf",
            "research use",
            "https://rrc.cvc.uab.es/?ch=17",
            "631 MB",
        ),
        Source(
            "AI2D",
            "AI2D_TEST",
            f"{KIT}AI2D_TEST.tsv",
            "0f593e0d1c7df9a3d69bf1f947e71975",
            "",
            "https://huggingface.co/datasets/lmms-lab/ai2d",
            "167 MB",
        ),
        Source(
            "CVBench-2D",
            "CV-Bench-2D",
            f"{KIT}CV-Bench-2D.tsv",
            "a7cff4cc2857cc237ee2b89e62bccb2d",
            "Apache-2.0",
            "https://huggingface.co/datasets/nyu-visionx/CV-Bench",
            others=("test_2d.parquet", "test_2d.jsonl", "test.parquet", "test.jsonl"),
        ),
        Source(
            "CVBench-3D",
            "CV-Bench-3D",
            f"{KIT}CV-Bench-3D.tsv",
            "bb94c0d568d652d15b60e001ac40a170",
            "Apache-2.0",
            "https://huggingface.co/datasets/nyu-visionx/CV-Bench",
            others=("test_3d.parquet", "test_3d.jsonl", "test.parquet", "test.jsonl"),
        ),
        Source(
            "MMVP",
            "MMVP",
            f"{KIT}MMVP.tsv",
            "8cb732b141a0cba5b42159df2839e557",
            "MIT",
            "https://huggingface.co/datasets/MMVP/MMVP",
            others=("Questions.csv",),
        ),
        Source(
            "NaturalBench",
            "NaturalBenchDataset",
            "https://huggingface.co/datasets/BaiqiL/NaturalBench/resolve/main/NaturalBenchDataset.tsv",
            "e5f724932972eaeb8a9099e6979606ec",
            "Apache-2.0",
            "https://huggingface.co/datasets/BaiqiL/NaturalBench",
            "3.07 GB",
        ),
        Source(
            "MMStar",
            "MMStar",
            f"{KIT}MMStar.tsv",
            "e1ecd2140806c1b1bbf54b43372efb9e",
            "",
            "https://huggingface.co/datasets/Lin-Chen/MMStar",
            "60 MB",
        ),
        Source(
            "POPE",
            "POPE",
            f"{KIT}POPE.tsv",
            "c12f5acb142f2ef1f85a26ba2fbe41d5",
            "MIT",
            "https://github.com/RUCAIBox/POPE",
            "1.12 GB",
        ),
    )
}


@dataclass(frozen=True)
class OfficialSet:
    """The items of one file and the folder of their pictures.

    official: whether the file's MD5 is the one that VLMEvalKit gives; None for files that nobody gives one for.
    scorer: whose prompts and scores count.
    """

    benchmark: str
    items: list[Item]
    images: Path
    file: Path
    md5: str
    official: bool | None
    scorer: Literal["vlmevalkit", "cambrian"]


def load(
    benchmark: str,
    data: Path,
    cache: Path,
    *,
    kit: Any = None,
    prompt_line: str = "stock",
    corrected_labels: bool = False,
    pictures: bool = True,
    made_up: bool = False,
) -> OfficialSet:
    """The items of a benchmark's official file under `data`. InputError when there is none, or it is broken.

    cache: folder that pictures packed into the file are unpacked to, once. kit: from `vlmevalkit.find()`, by default
    that. prompt_line: see `with_line`. corrected_labels: turn the four MMVP labels that are known to be swapped.
    pictures: False for prompts alone, as for a blind run where the pictures are not at hand (CV-Bench and MMVP).
    made_up: NaturalBench may have another number of rows than the official 7,600.
    """
    file = find(benchmark, data)
    if file is None:
        raise InputError(missing(benchmark, data))
    md5 = file_md5(file)
    official = is_official(benchmark, file)
    if benchmark == "MMVP" or benchmark in cambrian.SETS:
        line = LETTER_LINE if prompt_line in ("stock", "letter") else prompt_line
        images = cache / f"images-{md5[:12]}" if _holds_pictures(file) else file.parent
        rows = list(_rows(file, images, pictures))
        if benchmark == "MMVP":
            items = cambrian.mmvp_items(rows, line, corrected_labels)
        else:
            items = cambrian.cvbench_items(benchmark, rows, line)
        if not items:
            raise InputError(f"{file}: holds no {benchmark} item")
        if pictures:
            _check_pictures(items, images, file)
        return OfficialSet(benchmark, items, images, file, md5, official, "cambrian")
    from benchmarks import vlmevalkit

    items, images = vlmevalkit.prompts(kit or vlmevalkit.find(), benchmark, file, cache, made_up=made_up)
    asked = [replace(item, prompt=with_line(item.prompt, prompt_line)) for item in items]
    return OfficialSet(benchmark, asked, images, file, md5, official, "vlmevalkit")


def with_line(prompt: str, line: str) -> str:
    """VLMEvalKit's prompt with `line` in the place of the instruction that it ends on.

    line: "stock" leaves its words; "letter" asks for the option's letter in Cambrian's words where the kit asks to select
    an answer (MMBench, AI2D, MMStar), and leaves the others; any other text takes the place of whatever instruction there
    is, of which OCRBench's prompts have none.
    """
    if line == "stock":
        return prompt
    for ending in KIT_LINES[:1] if line == "letter" else KIT_LINES:
        if prompt.rstrip().endswith(ending):
            return prompt.rstrip().removesuffix(ending) + (LETTER_LINE if line == "letter" else line)
    return prompt


def find(benchmark: str, data: Path) -> Path | None:
    """The benchmark's file in `data` or in a folder of it, the first of its accepted names; None if there is none."""
    if benchmark not in SOURCES:
        raise InputError(f"unknown benchmark {benchmark!r}; there is {', '.join(SOURCES)}")
    for name in SOURCES[benchmark].files:
        for pattern in (name, f"*/{name}"):
            if found := sorted(path for path in data.glob(pattern) if path.is_file()):
                return found[0]
    return None


def missing(benchmark: str, data: Path) -> str:
    """One line that says which files of a benchmark were looked for in `data` and how to get them."""
    source = SOURCES[benchmark]
    return (
        f"{benchmark}: none of {', '.join(source.files)} is in {data} or a folder of it; get {source.files[0]} ({source.size or 'size not known'}) from {source.url}, "
        f"or `python -m benchmarks.official --data {data} --download {benchmark}`; about it: {source.page}"
    )


def file_md5(path: Path) -> str:
    """MD5 of a file, hexadecimal; a file that has not been touched since is not read again."""
    status = path.stat()
    return _file_md5(path, status.st_size, status.st_mtime_ns, status.st_ino)


def is_official(benchmark: str, file: Path) -> bool | None:
    """Whether a file has the MD5 that VLMEvalKit gives for the benchmark's table; None of files that nobody gives one for."""
    source = SOURCES[benchmark]
    return file_md5(file) == source.md5 if file.name == source.files[0] else None


@lru_cache(maxsize=64)
def _file_md5(path: Path, *status: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _rows(file: Path, images: Path, pictures: bool) -> Iterator[cambrian.Row]:
    """The rows of a file of CV-Bench or MMVP, with the path of each picture under `images` as `picture`.

    Pictures that the file holds are stored there, unless `pictures` is False.
    """
    if file.suffix == ".parquet":
        yield from _parquet_rows(file, images, pictures)
    elif file.suffix == ".jsonl":
        yield from _json_rows(file)
    elif file.suffix == ".csv":
        for where, fields in _table(file, ","):
            number = fields.get("lndex", fields.get("Index", ""))
            yield where, fields | {"picture": f"MMVP Images/{number}.jpg"}
    else:
        yield from _tsv_rows(file, images, pictures)


def _table(file: Path, separator: str) -> Iterator[tuple[str, dict[str, str]]]:
    """("file line 3", {column: text}) of each row; the text is kept as it is: "None", "NA", "007" and "" too."""
    csv.field_size_limit(sys.maxsize)  # a cell may hold a picture
    with open(file, encoding="utf-8-sig", newline="") as opened:
        reader = csv.reader(opened, delimiter=separator)
        try:
            header = next(reader, [])
            for row in reader:
                where = f"{file} line {reader.line_num}"
                if len(row) != len(header):
                    raise InputError(f"{where}: {len(row)} cells under {len(header)} columns; is the file truncated?")
                yield where, dict(zip(header, row, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{file} line {reader.line_num + 1}: {error}; is the file truncated?") from None


def _holds_pictures(file: Path) -> bool:
    """Whether pictures are packed into a file; beside the others lie the pictures that they name."""
    if file.suffix != ".tsv":
        return file.suffix == ".parquet"
    with open(file, encoding="utf-8-sig", errors="replace") as opened:
        return "image" in opened.readline().rstrip("\r\n").split("\t")


def _tsv_rows(file: Path, images: Path, pictures: bool) -> Iterator[cambrian.Row]:
    """Rows of a VLMEvalKit table: a picture in base64 a row, or the index of the row that has it, or none but its path."""
    packed = _holds_pictures(file)
    rows: list[tuple[str, dict[str, str], str]] = []
    names: dict[str, str] = {}
    for where, fields in _table(file, "\t"):
        cell, index = fields.pop("image", ""), fields.get("index", "")
        if not packed:
            names[index] = fields.get("image_path", "")
            cell = index
        elif len(cell) > SHORT:
            try:
                content = base64.b64decode(cell, validate=True)
            except binascii.Error as error:
                raise InputError(f"{where}: the picture of item {index} is no base64 ({error})") from None
            names[index] = _stored(images, index, content, where, pictures)
            cell = index
        rows.append((where, fields, cell))
    for where, fields, cell in rows:
        if cell not in names:
            raise InputError(
                f"{where}: item {fields.get('index')} has no picture: its cell {cell!r} is too short for one and names no row that has one"
            )
        yield where, fields | {"picture": names[cell]}


def _parquet_rows(file: Path, images: Path, pictures: bool) -> Iterator[cambrian.Row]:
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    try:
        table = parquet.ParquetFile(file)
        wanted = [name for name in table.schema_arrow.names if pictures or name != "image"]
        number = 0
        for batch in table.iter_batches(batch_size=64, columns=wanted):
            for fields in batch.to_pylist():
                where, number = f"{file} row {number}", number + 1
                content = (fields.pop("image", None) or {}).get("bytes") or b""
                name = _stored(images, str(fields.get("idx")), content, where, pictures)
                yield where, _as_text(fields) | {"picture": name}
    except (ArrowException, OSError, AttributeError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # a full disk, not one of Arrow's own
            raise
        raise InputError(f"{file}: cannot be read as CV-Bench's parquet ({first_line(error)})") from None


def _json_rows(file: Path) -> Iterator[cambrian.Row]:
    from dpa.readers import read_json_records

    for where, fields in read_json_records(file):
        if not isinstance(fields, dict) or not isinstance(fields.get("filename"), str):
            raise InputError(f"{where}: not one item of CV-Bench, which is an object with a filename")
        yield where, _as_text(fields) | {"picture": fields["filename"]}


def _as_text(fields: Mapping[str, Any]) -> dict[str, str]:
    """The fields of CV-Bench's own files as VLMEvalKit's table has them: text, options as A, B, ..."""
    choices = fields.get("choices") or []
    text = {name: str(value) for name, value in fields.items() if value is not None}
    return text | {letter: str(choice) for letter, choice in zip(LETTERS, choices, strict=False)}


def _stored(images: Path, index: str, content: bytes, where: str, pictures: bool) -> str:
    """The name under `images` of the picture of an item, which is written there if it is not yet. InputError if broken."""
    suffix = ".jpg" if content.startswith(b"\xff\xd8") else ".png"
    name = quote(index, safe="") + suffix  # an index with a slash in it stays one name
    path = images / name
    if not pictures or (path.is_file() and path.stat().st_size == len(content) > 0):
        return name
    images.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(content)
        open_image(images, partial.name, f"{where}, item {index}")
        os.replace(partial, path)
    except InputError as error:  # it would name a file that is gone
        text = str(error).replace(f"image {partial}", "its picture").replace(str(partial), "its picture")
        raise InputError(text) from None
    finally:
        partial.unlink(missing_ok=True)
    return name


def _check_pictures(items: list[Item], images: Path, file: Path) -> None:
    """InputError, on the first, unless every item's picture is there and under `images`."""
    for item in items:
        try:
            image_path(images, item.image, f"{file} item {item.index}")
        except InputError as error:
            told, missing, _ = str(error).partition("; is --images")  # no flag of ours
            more = f"; the pictures belong beside {file.name}, get them from {SOURCES[item.benchmark].page}"
            raise InputError(told + more if missing else told) from None


def download(benchmark: str, data: Path) -> Path:
    """Fetch a benchmark's file into `data`, checked by MD5; what is there already stays.

    InputError when it cannot be had or is not the official file; then nothing is left behind.
    """
    if benchmark not in SOURCES:
        raise InputError(f"unknown benchmark {benchmark!r}; there is {', '.join(SOURCES)}")
    source = SOURCES[benchmark]
    if (found := find(benchmark, data)) is not None:
        print(f"{benchmark}: {found} is there already, nothing is fetched")
        return found
    data.mkdir(parents=True, exist_ok=True)
    target = data / source.files[0]
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        got = _fetch(source.url, partial)
        if got != source.md5:
            raise InputError(
                f"{benchmark}: what {source.url} sent has MD5 {got} instead of {source.md5}, nothing is kept; see {source.page}"
            )
        os.replace(partial, target)
    except (HTTPException, ValueError, OSError) as error:  # urllib's errors are OSErrors
        if isinstance(error, InputError) or (isinstance(error, OSError) and error.filename == str(partial)):
            raise
        raise InputError(
            f"{benchmark}: {source.url} cannot be had ({first_line(error)}); fetch it elsewhere and put it into {data}"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    return target


def _fetch(url: str, target: Path) -> str:
    """The MD5 of what an address sent, now in `target`."""
    from tqdm import tqdm

    digest, came = hashlib.md5(usedforsecurity=False), 0
    request = urllib.request.Request(url, headers={"User-Agent": "dpa-benchmarks"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer, open(target, "wb") as file:
        promised = int(answer.headers.get("Content-Length") or 0)
        with tqdm(total=promised or None, unit="B", unit_scale=True, desc=target.name.split(".")[0], delay=2) as bar:
            while piece := answer.read(PIECE):
                file.write(piece)
                digest.update(piece)
                came += len(piece)
                bar.update(len(piece))
        file.flush()
        os.fsync(file.fileno())
    if came < promised:
        raise ValueError(f"{came} of {promised} bytes came")
    return digest.hexdigest()


def as_text(data: Path) -> str:
    """A table of the benchmarks: the file in `data`, whether its MD5 is the official one, size, address."""
    lines = [("benchmark", "file", "official MD5", "size", "from")]
    for source in SOURCES.values():
        found = find(source.benchmark, data)
        if found is None:
            lines.append((source.benchmark, "not there", "", source.size or "not known", source.url))
            continue
        same = {True: "yes", False: "no", None: "none to compare"}[is_official(source.benchmark, found)]
        size = f"{found.stat().st_size / 1e6:,.2f} MB"
        lines.append((source.benchmark, str(found.relative_to(data)), same, size, source.page))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
    return "\n".join(rows)


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.official", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the official files, or of folders of them")
    parser.add_argument("--download", nargs="+", metavar="NAME", default=[], help=f"of {', '.join(SOURCES)}")
    options = parser.parse_args(arguments)
    for name in dict.fromkeys(options.download):
        download(name, options.data)
    if not options.data.is_dir():
        raise InputError(f"--data {options.data}: no such folder; make it, or give that of the files")
    print(as_text(options.data))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
