"""Readers: the records of a source, one by one, whichever layout it has; nothing is held but the record at hand.

A source is one of

    FILE.json, FILE.jsonl   LLaVA, ShareGPT4V and Cambrian records, an array or one a line:
                            {"id": "7", "image": "a/b.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat?"},
                                                                             {"from": "gpt", "value": "a bunk room"}]}
    FILE.txt                one caption a line (ended by a line feed alone), no pictures; empty lines are no records
    FILE.parquet or folder of them   the same columns, or a caption (`caption`, `text`) and a picture (`image`, `image_path`,
                            `file_name`: a path, or the picture itself; `image_url`, `url`: see `picture_name`). PixMo-Cap
    folder                  written by `datasets.save_to_disk`, or pictures with a text beside each (a.jpg, a.txt), or
                            pictures with `metadata.jsonl` (`file_name`, `text`)
    hub:OWNER/NAME[@REV]    a set of the hub, split `train`, read as a stream

A record that cannot be used is a `Problem` that names source, record, reason and fix; it is for the caller to stop.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dpa.errors import InputError
from dpa.lineage import file_hash
from dpa.methods import Stage

View = Literal["text", "pair", "chat"]
VIEWS: dict[Stage, View] = {"proxy": "text", "connector": "pair", "instruct": "chat"}
IMAGE_MARK = "<image>"
HUB = "hub:"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
CAPTION_FIELDS = ("caption", "text")
ADDRESS_FIELDS = ("image_url", "url")
IMAGE_FIELDS = ("image", "image_path", "file_name", *ADDRESS_FIELDS)
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
CHUNK = 1 << 20  # characters read at a time


@dataclass(frozen=True)
class Record:
    """One sample: `turns` are (role, text) with roles user, assistant, system; `where` names source and record.

    `image` is a path under the folder `images`.
    """

    where: str
    id: str
    image: str | None
    turns: tuple[tuple[str, str], ...]
    images: Path

    @property
    def caption(self) -> str:
        return next(text for role, text in self.turns if role == "assistant")


@dataclass(frozen=True)
class Problem:
    """A record that cannot be used as it is: where it stands, its id, and the reason with its fix.

    kind: a word for counting ("record", "image", "labels", "cut", "duplicate").
    """

    where: str
    id: str
    reason: str
    kind: str = "record"

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class Row:
    """What a reader found: a record's fields, or why it could not be read.

    numbered: it has no id of its own, but its number; embedded: the picture's own bytes.
    """

    where: str
    id: str
    image: str | None = None
    turns: tuple[tuple[str, str], ...] = ()
    embedded: bytes | None = None
    reason: str | None = None
    numbered: bool = False


def read_rows(source: str) -> Iterator[Row]:
    """The rows of a source, in its order. InputError when the source as a whole cannot be read."""
    for where, fields in _read_fields(source):
        yield _row(where, fields)


def source_hash(source: str) -> str:
    """SHA-256 of what decides a source's records: a file's bytes; all files of a folder but pictures; a hub revision."""
    if source.startswith(HUB):
        return _hub_revision(source)
    path = existing(source)
    if path.is_file():
        return file_hash(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file() and not file.name.startswith("."):
            content = "" if file.suffix.lower() in PICTURES else file_hash(file)
            digest.update(f"{file.relative_to(path)} {content}\n".encode())
    return digest.hexdigest()


def existing(source: str) -> Path:
    """The path of a local source. InputError when nothing is there."""
    path = Path(source)
    if not path.exists():
        raise InputError(f"{path}: no such file; give the data file with --data (or --instruct-data)")
    return path


def picture_name(url: str) -> str:
    """The name under the image folder of a picture that a record gives by address: the SHA-256 of the address."""
    return hashlib.sha256(url.encode()).hexdigest()


def addresses(source: str) -> Iterator[tuple[str, str]]:
    """(where, address) of each record that gives its picture by address, as PixMo-Cap does."""
    for where, fields in _read_fields(source):
        if isinstance(fields, dict) and not any(fields.get(f) for f in IMAGE_FIELDS if f not in ADDRESS_FIELDS):
            address = next((fields[f] for f in ADDRESS_FIELDS if isinstance(fields.get(f), str)), None)
            if address:
                yield where, address


def problem_for(view: View, image: str | None, turns: tuple[tuple[str, str], ...]) -> str | None:
    """Why a record cannot be used in a view, with the fix; None when it can."""
    answers = [text for role, text in turns if role == "assistant"]
    if not answers or not all(text.strip() for text in answers):
        what = "answer" if view == "chat" else "caption"
        return f"the {what} is empty; give the 'gpt' turn a text or take the record out"
    if view != "chat" and len(answers) > 1:
        return f"{len(answers)} answers, and one caption a record is trained on; split the record"
    marks = sum(text.count(IMAGE_MARK) for role, text in turns if role != "assistant")
    if view == "pair" and image is None:
        return "no 'image' field; stage connector needs a picture for every caption"
    if view != "text" and marks != (image is not None):
        fix = "add the mark to the first human turn" if marks < 1 else "keep one mark for each image"
        return f"{marks} {IMAGE_MARK} marks for {int(image is not None)} image; {fix} or take the record out"
    if any(IMAGE_MARK in text for text in answers):
        return f"{IMAGE_MARK} stands in a 'gpt' turn; an answer is text, take the mark out"
    return None


def read_json_records(path: Path) -> Iterator[tuple[str, Any]]:
    """("file record 3", value) for each value of a JSON array or of JSON lines, read in pieces.

    InputError when the file is absent, empty, not UTF-8, or not JSON from some line on; a line that is not JSON by
    itself comes as a ValueError in the value's place.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the data file with --data (or --instruct-data)")
    try:
        with open(path, encoding="utf-8-sig") as file:
            first = ""
            while not first.strip():
                if not (piece := file.read(CHUNK)):
                    raise InputError(f"{path}: the file is empty; it should hold a JSON array or JSON lines of records")
                first += piece
            file.seek(0)
            yield from _json_array(file, path) if first.lstrip().startswith("[") else _json_lines(file, path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def _text_lines(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:  # no other character ends a line: texts hold them
            for number, line in enumerate(file, start=1):
                if text := line.strip():
                    yield f"{path} line {number}", {"caption": text}
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}); save it as UTF-8") from None


def _json_lines(file, path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield f"{path} line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
                reason = (
                    f"not valid JSON ({getattr(error, 'msg', error)}); expected one record a line or one JSON array "
                    "(a file with one caption a line is named .txt)"
                )
                yield f"{path} line {number}", ValueError(reason)


def _json_array(file, path: Path) -> Iterator[tuple[str, Any]]:
    decoder, buffer, place, line, ended = json.JSONDecoder(), "", 0, 1, False
    number, wanted = 0, CHUNK
    state: Literal["start", "first", "value", "comma", "end"] = "start"  # what should stand next

    def invalid(what: str) -> InputError:
        return InputError(f"{path}: not valid JSON at line {line} ({what}); is the file truncated?")

    while True:
        while place < len(buffer) and buffer[place] in " \t\r\n":
            line += buffer[place] == "\n"
            place += 1
        if place < len(buffer):
            character = buffer[place]
            if state == "start":  # the caller has seen the bracket
                state, place = "first", place + 1
                continue
            if character == "]" and state in ("first", "comma"):
                state, place = "end", place + 1
                continue
            if character == "," and state == "comma":
                state, place = "value", place + 1
                continue
            if state in ("comma", "end"):
                should = "a comma should stand" if state == "comma" else "the file should end"
                raise invalid(f"{character!r} where {should}")
            try:
                value, stop = decoder.raw_decode(buffer, place)
            except json.JSONDecodeError as error:
                if ended:
                    line += buffer.count("\n", place, error.pos)
                    raise invalid(error.msg) from None
            except (ValueError, RecursionError) as error:
                raise invalid(str(error)[:120]) from None
            else:
                if ended or buffer[stop : stop + 1] in tuple(" \t\r\n,]"):  # else a number may go on in the next piece
                    number, line = number + 1, line + buffer.count("\n", place, stop)
                    state, place, wanted = "comma", stop, CHUNK
                    yield f"{path} record {number}", value
                    continue
        if ended:
            break
        piece = file.read(wanted)
        wanted *= 2  # a value longer than a piece is not decoded again and again
        ended = not piece
        buffer, place = buffer[place:] + piece, 0
    if state != "end":
        raise invalid("the array is not closed")


def _read_fields(source: str) -> Iterator[tuple[str, Any]]:
    if source.startswith(HUB):
        yield from _table_rows(source, _hub_stream(source))
        return
    path = existing(source)
    if path.is_file():
        if path.suffix == ".parquet":
            yield from _parquet(path)
        elif path.suffix == ".txt":
            yield from _text_lines(path)
        else:
            yield from read_json_records(path)
    elif (path / "dataset_dict.json").is_file():
        yield from _saved(path / "train")
    elif (path / "state.json").is_file():
        yield from _saved(path)
    elif tables := sorted(path.rglob("*.parquet")):
        for table in tables:
            yield from _parquet(table)
    elif (path / "metadata.jsonl").is_file():
        yield from read_json_records(path / "metadata.jsonl")
    elif pictures := sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES):
        for picture in pictures:
            name = str(picture.relative_to(path))
            try:
                text = picture.with_suffix(".txt").read_text(encoding="utf-8")
            except FileNotFoundError:
                text = ""
            except (OSError, UnicodeDecodeError) as error:
                yield f"{path} picture {name}", ValueError(f"its text cannot be read as UTF-8 ({error}); write it anew")
                continue
            yield f"{path} picture {name}", {"id": name, "image": name, "caption": text}
    else:
        raise InputError(
            f"{path}: holds no records; expected parquet files, metadata.jsonl, pictures with texts beside them, or what datasets.save_to_disk writes"
        )


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield f"{path} row {number}", row
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable parquet file ({str(error).splitlines()[0][:160]})") from None


def _saved(path: Path) -> Iterator[tuple[str, Any]]:
    from datasets import load_from_disk

    try:
        yield from _table_rows(str(path), load_from_disk(str(path)))
    except Exception as error:  # cut or foreign files fail in many ways there
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"
        raise InputError(f"{path}: cannot be read as datasets.save_to_disk writes it ({reason})") from None


def _table_rows(name: str, table: Any) -> Iterator[tuple[str, Any]]:
    from datasets import Image

    for column, feature in (table.features or {}).items():
        if isinstance(feature, Image):
            table = table.cast_column(column, Image(decode=False))  # the bytes as they are
    for number, row in enumerate(table, start=1):
        yield f"{name} row {number}", row


def _hub_parts(source: str) -> tuple[str, str | None]:
    name, _, revision = source.removeprefix(HUB).partition("@")
    return name, revision or None


def _hub_revision(source: str) -> str:
    from huggingface_hub import HfApi

    name, revision = _hub_parts(source)
    try:
        return str(HfApi().dataset_info(name, revision=revision).sha)
    except Exception as error:  # no network, unknown id, gated: the hub has many names for it
        raise InputError(f"{source}: the hub's set cannot be reached ({str(error).splitlines()[0][:160]})") from None


def _hub_stream(source: str) -> Any:
    from datasets import load_dataset

    name, _ = _hub_parts(source)
    return load_dataset(name, split="train", streaming=True, revision=_hub_revision(source))


def _row(where: str, fields: Any) -> Row:
    """A row from a record's fields; its `reason` says what is wrong with their types."""
    if isinstance(fields, ValueError):
        return Row(where, "", reason=str(fields))
    if not isinstance(fields, dict):
        return Row(
            where, "", reason=f"expected an object with 'conversations', got {type(fields).__name__}; take it out"
        )
    given = fields.get("id")
    numbered = given in (None, "")
    identity = where.rsplit(" ", 1)[-1] if numbered else str(given)
    where = f"{where} (id {identity!r})"
    if not _is_text(identity):
        return Row(where, repr(identity), reason=NO_TEXT)
    image, embedded, reason = _picture(fields)
    if reason or not _is_text(image or ""):
        return Row(where, identity, reason=reason or NO_TEXT)
    conversations = fields.get("conversations", fields.get("messages"))
    if (
        conversations is None
        and (caption := next((fields[f] for f in CAPTION_FIELDS if f in fields), None)) is not None
    ):
        conversations = [{"from": "human", "value": IMAGE_MARK if image else ""}, {"from": "gpt", "value": caption}]
    if not isinstance(conversations, list) or not conversations:
        got = type(conversations).__name__
        return Row(
            where, identity, reason=f"'conversations' should be a list of turns, got {got}; see the LLaVA format"
        )
    turns = []
    for turn in conversations:
        role = ROLES.get(str(turn.get("from", turn.get("role")))) if isinstance(turn, dict) else None
        text = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
        if role is None or not isinstance(text, str):
            shape = "{'from': 'human' or 'gpt', 'value': text}"
            return Row(where, identity, reason=f"a turn should be {shape}, got {str(turn)[:80]}")
        if not _is_text(text):
            return Row(where, identity, reason=NO_TEXT)
        turns.append((role, text))
    return Row(where, identity, image, tuple(turns), embedded, numbered=numbered)


NO_TEXT = "holds half a surrogate pair, which is no character; mend it"


def _is_text(text: str) -> bool:
    try:
        codecs.encode(text, "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _picture(fields: dict) -> tuple[str | None, bytes | None, str | None]:
    """(path, bytes, reason) of a record's picture."""
    # beside turns, a bare `url` may be a page that the text comes from
    names = [name for name in IMAGE_FIELDS if name != "url" or not ("conversations" in fields or "messages" in fields)]
    name = next((f for f in names if fields.get(f) not in (None, "")), None)
    if name is None:
        return None, None, None
    value = fields[name]
    if isinstance(value, dict) and set(value) == {"bytes", "path"}:  # how parquet files of the hub hold pictures
        if value["bytes"]:
            suffix = Path(str(value["path"] or "")).suffix.lower()
            name = hashlib.sha256(value["bytes"]).hexdigest() + (suffix if suffix in PICTURES else "")
            return name, value["bytes"], None
        value = value["path"]
    if not isinstance(value, str):
        return None, None, f"'{name}' should be one path, got {type(value).__name__}; one image a record is supported"
    return (picture_name(value) if name in ADDRESS_FIELDS else value), None, None
