"""Readers, label masks and batches: LLaVA-Pretrain captions, LLaVA and Cambrian instruction records.

A file is a JSON array or JSON lines of records

    {"id": "7", "image": "a/b.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                                                      {"from": "gpt", "value": "a bunk room"}]}

and is seen in one of three views: `text` (stage 1: the caption alone), `pair` (stage 2: image, caption, newline, the
plain format of LLaVA) and `chat` (stage 3: the LLM's own chat template, answers supervised). A record that cannot be
used is an InputError that names file, record and fix.

Reference: the released code lifts PIL's limit on pixels and, after three failed reads, silently trains on the next
record; here a picture is bounded (`MAX_PIXELS`) and no other record is ever taken in its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jinja2 import TemplateError
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from tqdm import tqdm

from dpa.errors import InputError
from dpa.loss import IGNORE
from dpa.methods import Stage

View = Literal["text", "pair", "chat"]
VIEWS: dict[Stage, View] = {"proxy": "text", "connector": "pair", "instruct": "chat"}
IMAGE_MARK = "<image>"
MAX_PIXELS = 64_000_000  # a picture with more is refused: a decompression bomb, or a mistake
DECODE_AT_START = 20_000  # up to this many pictures are decoded before training starts; of more, existence is checked
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Record:
    """One sample: `turns` are (role, text) with roles user, assistant, system; `where` names file and record."""

    where: str
    id: str
    image: str | None
    turns: tuple[tuple[str, str], ...]

    @property
    def caption(self) -> str:
        return next(text for role, text in self.turns if role == "assistant")


def read_json_records(path: Path) -> Iterator[tuple[str, dict]]:
    """("file record 3", object) for each object of a JSON array or of JSON lines."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the data file with --data (or --instruct-data)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    if not text.strip():
        raise InputError(f"{path}: the file is empty; it should hold a JSON array or JSON lines of records")
    if text.lstrip().startswith("["):
        try:
            objects = list(enumerate(json.loads(text), start=1))
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}: not valid JSON at line {error.lineno} ({error.msg}); is the file truncated?"
            ) from None
        unit = "record"
    else:
        objects, unit = [], "line"
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    objects.append((number, json.loads(line)))
                except json.JSONDecodeError as error:
                    raise InputError(
                        f"{path} line {number}: not valid JSON ({error.msg}); expected one record a line or one JSON array"
                    ) from None
    for number, fields in objects:
        where = f"{path} {unit} {number}"
        if not isinstance(fields, dict):
            raise InputError(f"{where}: expected an object with 'conversations', got {type(fields).__name__}")
        yield where, fields


def read_records(path: Path, view: View) -> list[Record]:
    """All records of a file, each checked for what `view` needs."""
    if view not in get_args(View):
        raise ValueError(f"unknown view {view!r}")
    records = [_record(where, fields, view) for where, fields in read_json_records(path)]
    if not records:
        raise InputError(f"{path}: holds no record; expected a JSON array or JSON lines of records")
    return records


def _record(where: str, fields: dict, view: View) -> Record:
    identity = str(fields.get("id", "")) or where.rsplit(" ", 1)[-1]
    where = f"{where} (id {identity!r})"
    conversations = fields.get("conversations")
    if not isinstance(conversations, list) or not conversations:
        raise InputError(
            f"{where}: 'conversations' should be a list of turns, got {type(conversations).__name__}; see the LLaVA format"
        )
    turns = []
    for turn in conversations:
        role = ROLES.get(str(turn.get("from", turn.get("role")))) if isinstance(turn, dict) else None
        text = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
        if role is None or not isinstance(text, str):
            raise InputError(
                f"{where}: a turn should be {{'from': 'human' or 'gpt', 'value': text}}, got {str(turn)[:80]}"
            )
        turns.append((role, text))
    image = fields.get("image")
    if image is not None and not isinstance(image, str):
        raise InputError(
            f"{where}: 'image' should be one path, got {type(image).__name__}; one image a record is supported"
        )
    answers = [text for role, text in turns if role == "assistant"]
    if not answers or not all(text.strip() for text in answers):
        raise InputError(
            f"{where}: the {'caption' if view != 'chat' else 'answer'} is empty; give the 'gpt' turn a text or take the record out"
        )
    marks = sum(text.count(IMAGE_MARK) for role, text in turns if role != "assistant")
    if view == "pair" and image is None:
        raise InputError(f"{where}: no 'image' field; stage connector needs a picture for every caption")
    if view != "text" and marks != (image is not None):
        fix = "add the mark to the first human turn" if marks < 1 else "keep one mark for each image"
        raise InputError(
            f"{where}: {marks} {IMAGE_MARK} marks for {int(image is not None)} image; {fix} or take the record out"
        )
    if any(IMAGE_MARK in text for text in answers):
        raise InputError(f"{where}: {IMAGE_MARK} stands in a 'gpt' turn; an answer is text, take the mark out")
    return Record(where, identity, image, tuple(turns))


def open_image(root: Path, name: str, where: str) -> Image.Image:
    """The picture `name` under `root` as RGB, fully decoded. InputError for one that is missing, outside or broken."""
    path = image_path(root, name, where)
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    f"{where}: image {path} has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}; scale it down"
                )
            return image.convert("RGB")
    except UnidentifiedImageError:
        raise InputError(
            f"{where}: {path} is not an image that can be read; replace the file or take the record out"
        ) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{where}: image {path} is broken ({error}); replace the file or take the record out"
        ) from None


def image_path(root: Path, name: str, where: str) -> Path:
    """The path of an image, which must exist and stay under `root` (symbolic links followed)."""
    path = root / name
    if "\0" in name or not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{where}: image path {name!r} leads out of {root}; paths are relative to the image folder")
    if not path.is_file():
        raise InputError(f"{where}: image {path} does not exist; is --images (or --instruct-images) the right folder?")
    return path


def check_images(records: Sequence[Record], root: Path, title: str = "checking images") -> None:
    """Every picture is there; up to `DECODE_AT_START` of them are decoded too, so that a broken one stops the run here."""
    if not root.is_dir():
        raise InputError(f"{root}: no such image folder; give it with --images (or --instruct-images)")
    with_image = [record for record in records if record.image is not None]
    decode = len(with_image) <= DECODE_AT_START
    for record in tqdm(with_image, desc=title, unit="img", leave=False, delay=2):
        assert record.image is not None
        if decode:
            open_image(root, record.image, record.where)
        else:
            image_path(root, record.image, record.where)


class Samples(Dataset):
    """Records as training samples of a view: dicts of input_ids [L], labels [L] and, with an image, pixel_values [3, S, S].

    processor: a LlavaProcessor for the views with images, a tokenizer for `text`. Sequences longer than `max_length`
    are cut at the right as in the released code; `num_cut` counts the cuts made in this process. InputError when the cut leaves no label.
    """

    def __init__(
        self,
        records: Sequence[Record],
        view: View,
        processor: Any,
        *,
        images: Path | None = None,
        max_length: int = 8192,
    ) -> None:
        self.records, self.view, self.images, self.max_length = records, view, images, max_length
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.num_cut = 0
        if view != "text":
            # fixed by the tower: every picture is scaled to the same square, (S / P)^2 patches
            side = processor.image_processor.crop_size["height"] // processor.patch_size
            self.num_image_tokens = side * side
            self.image_token_id = self.tokenizer.convert_tokens_to_ids(processor.image_token)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        record = self.records[index]
        ids, supervised = self._encode(record)
        if self.view != "text":
            ids, supervised = self._expand_image_token(record, ids, supervised)
        if len(ids) > self.max_length:
            self.num_cut += 1
            ids, supervised = ids[: self.max_length], supervised[: self.max_length]
        if not any(supervised[1:]):
            raise InputError(
                f"{record.where}: no supervised token is left within {self.max_length} tokens; shorten the record or take it out"
            )
        sample = {
            "input_ids": torch.tensor(ids),
            "labels": torch.tensor([token if label else IGNORE for token, label in zip(ids, supervised, strict=True)]),
        }
        if self.view != "text" and record.image is not None:
            assert self.images is not None
            image = open_image(self.images, record.image, record.where)
            sample["pixel_values"] = self.processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
        return sample

    def _encode(self, record: Record) -> tuple[list[int], list[bool]]:
        if self.view == "chat":
            return encode_chat(record, self.tokenizer, getattr(self.processor, "image_token", None))
        image = self.processor.image_token if self.view == "pair" else ""
        ids = self.tokenizer(image + record.caption.strip() + "\n").input_ids
        return ids, [not image or token != self.image_token_id for token in ids]

    def _expand_image_token(
        self, record: Record, ids: list[int], supervised: list[bool]
    ) -> tuple[list[int], list[bool]]:
        found = ids.count(self.image_token_id)
        if found != (record.image is not None):
            raise InputError(
                f"{record.where}: {found} image tokens for {int(record.image is not None)} image; its text spells the image token {self.processor.image_token!r}, take that out"
            )
        if not found:
            return ids, supervised
        place = ids.index(self.image_token_id)
        ids = ids[:place] + [self.image_token_id] * self.num_image_tokens + ids[place + 1 :]
        first = 0 if self.view == "chat" else place  # in the plain format nothing before the image is supervised
        before = supervised[:place] if first == 0 else [False] * place
        return ids, before + [False] * self.num_image_tokens + supervised[place + 1 :]


def encode_chat(record: Record, tokenizer: Any, image_mark: str | None) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation in the LLM's chat template and which of them are supervised: the assistant's turns.

    The image mark stands first in its turn, as in LLaVA's preprocessing. The answers' spans are found by rendering the
    conversation up to each of them, so any template whose rendering only grows will do.
    """
    messages = []
    for role, text in record.turns:
        if role != "assistant" and IMAGE_MARK in text:
            text = f"{image_mark}\n{text.replace(IMAGE_MARK, '').strip()}"
        messages.append({"role": role, "content": text})

    def render(upto: int, prompt: bool) -> str:
        try:
            return tokenizer.apply_chat_template(messages[:upto], tokenize=False, add_generation_prompt=prompt)
        except TemplateError as error:  # Gemma's refuses a system turn, others two turns of one role
            raise InputError(
                f"{record.where}: the tokenizer's chat template refuses it ({error}); change its turns"
            ) from None

    whole = render(len(messages), False)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            before, after = render(index, True), render(index + 1, False)
            if not (after.startswith(before) and whole.startswith(after)):
                raise InputError(
                    f"{record.where}: the tokenizer's chat template rewrites earlier turns, so the answers cannot be told apart; use one that only appends"
                )
            spans.append((len(before), len(after)))
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    supervised = [
        any(start >= s and end <= e for s, e in spans) and end > start for start, end in encoded.offset_mapping
    ]
    return encoded.input_ids, supervised


@dataclass(frozen=True)
class Collator:
    """Pad samples at the right to one batch: input_ids, labels, attention_mask [B, L], pixel_values [I, 3, S, S] if any."""

    pad_token_id: int

    def __call__(self, samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        ids = [sample["input_ids"] for sample in samples]
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "labels": pad_sequence([sample["labels"] for sample in samples], batch_first=True, padding_value=IGNORE),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        }
        pictures = [sample["pixel_values"] for sample in samples if "pixel_values" in sample]
        if pictures:
            batch["pixel_values"] = torch.stack(pictures)
        return batch
