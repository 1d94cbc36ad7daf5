"""Training samples: label masks of the three views, pictures, batches.

    python -m dpa.data --show 3 --recipe lab_ornate [--stage connector]            samples token by token, supervised or not
    python -m dpa.data --show 3 --data FILE --images DIR [--llm L] [--stage S]     the same without a recipe

A record (`dpa.readers`) is seen in one of three views: `text` (stage 1: the caption alone), `pair` (stage 2: image,
caption, newline, the plain format of LLaVA) and `chat` (stage 3: the LLM's own chat template, answers supervised).
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from dpa.cache import RowCache
from dpa.errors import InputError, command, first_line
from dpa.images import image_size, open_image
from dpa.loss import IGNORE
from dpa.packing import Rows, arrange
from dpa.readers import IMAGE_MARK, VIEWS, Record, View

BYTES_A_TOKEN = 3  # at least, in most scripts: what memory has to hold
CHARACTERS_A_TOKEN = 4  # of English under the paper's tokenizers, roughly: lengths for grouping need no better


class Encoded(NamedTuple):
    """Token ids of a record before any cut, and which of them are supervised."""

    ids: list[int]
    supervised: list[bool]


class Samples(Dataset):
    """Records as training samples of a view: dicts of input_ids [L], labels [L] and, with an image, pixel_values
    [3, S, S] (with several tiles a picture [P, 3, S, S], and image_sizes [2]: height, width in pixels).

    processor: a LLaVA processor for the views with images, a tokenizer for `text`. Sequences longer than `max_length`
    are cut at the right as in the released code. InputError when the cut leaves no label or splits the image.
    With `blind` (`dpa.blind_cache`) also blind_log_p and blind_logit [L], valid where labels are; with `features`
    (`dpa.vision_cache`) pixel_values are the tower's features [P, D].
    """

    def __init__(self, records: Sequence[Record], view: View, processor: Any, *, max_length: int = 8192) -> None:
        self.records, self.view, self.max_length = records, view, max_length
        self.blind: RowCache | None = None  # p(token | text) of each label
        self.features: RowCache | None = None  # the frozen tower's, of each record's picture
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.tiled = "Next" in type(processor).__name__
        self._image_tokens: dict[tuple[int, int], int] = {}
        if view != "text":
            self.image_token_id = self.tokenizer.convert_tokens_to_ids(processor.image_token)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        record = self.records[index]
        image = None
        if self.view != "text" and record.image is not None and self.features is None:
            image = open_image(record.images, record.image, record.where)
        ids, labels = self.tokens(index, image.size if image is not None else None)
        sample = {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}
        if self.blind is not None:
            scores = torch.zeros(len(ids), 2)
            is_label = sample["labels"] != IGNORE
            is_label[0] = False  # nothing predicts the first token
            scores[is_label] = torch.from_numpy(self.blind.read(index))
            sample["blind_log_p"], sample["blind_logit"] = scores.unbind(1)
        if self.features is not None and record.image is not None:
            sample["pixel_values"] = torch.from_numpy(self.features.read(index))
        if image is not None:
            pixels = self.processor.image_processor(image, return_tensors="pt")
            sample["pixel_values"] = pixels["pixel_values"][0]
            if "image_sizes" in pixels:
                sample["image_sizes"] = torch.as_tensor(pixels["image_sizes"][0])
        return sample

    def tokens(self, index: int, size: tuple[int, int] | None = None) -> tuple[list[int], list[int]]:
        """(token ids, labels) of a sample, each [L]; `size`: (width, height) of its picture where that is known already."""
        record = self.records[index]
        encoded = self.cut(record, self.encode(record, size))
        return encoded.ids, [t if label else IGNORE for t, label in zip(encoded.ids, encoded.supervised, strict=True)]

    def encode(self, record: Record, size: tuple[int, int] | None = None) -> Encoded:
        """The record's tokens, uncut; `size`: (width, height) of its picture where that is known already.

        InputError when the text spells the image token, or the chat template refuses the turns.
        """
        if self.view == "chat":
            encoded = encode_chat(record, self.tokenizer, self.processor.image_token)
        else:
            image = self.processor.image_token if self.view == "pair" else ""
            ids = self.tokenizer(image + record.caption.strip() + "\n").input_ids
            encoded = Encoded(ids, [not image or token != self.image_token_id for token in ids])
        return encoded if self.view == "text" else self._expand_image_token(record, encoded, size)

    def cut(self, record: Record, encoded: Encoded) -> Encoded:
        """At most `max_length` tokens. InputError when no label is left, or the image would be split."""
        ids, supervised = encoded.ids[: self.max_length], encoded.supervised[: self.max_length]
        if not any(supervised[1:]):
            raise InputError(
                f"{record.where}: no supervised token is left within {self.max_length} tokens; shorten the record or take it out"
            )
        if (
            self.view != "text"
            and len(ids) < len(encoded.ids)
            and self.image_token_id in encoded.ids[self.max_length :]
        ):
            raise InputError(
                f"{record.where}: its image does not fit within {self.max_length} tokens; shorten the text before it or take the record out"
            )
        return Encoded(ids, supervised)

    @property
    def lengths(self) -> list[int]:
        """Length of each sample in tokens, estimated from its characters: for sampling by length, before any is read."""
        sizes = getattr(self.records, "sizes", None)
        if sizes is None:
            sizes = np.array([sum(len(text) for _, text in record.turns) for record in self.records])
        lengths = sizes // CHARACTERS_A_TOKEN
        if self.view != "text":
            pictures = getattr(self.records, "has_image", None)
            if pictures is None:
                pictures = np.array([record.image is not None for record in self.records])
            lengths = lengths + pictures * self.num_image_tokens(None)
        return lengths.tolist()

    @property
    def longest(self) -> tuple[int, int]:
        """(tokens of the longest sample, estimated from above by its bytes; those of its picture), at most `max_length`."""
        sizes = getattr(self.records, "sizes", None)
        text = max(sizes if sizes is not None else [sum(len(t.encode()) for _, t in r.turns) for r in self.records])
        picture = 0
        if self.view != "text":
            grids = self.processor.image_processor.image_grid_pinpoints if self.tiled else [(1, 1)]
            picture = max(self.num_image_tokens((width, height)) for height, width in grids)
        return min(int(text) // BYTES_A_TOKEN + picture, self.max_length), picture

    @property
    def patches(self) -> int:
        """Patches of one square picture, what the tower sees at a time (a class token apart)."""
        side = self.processor.image_processor.crop_size["height"] // self.processor.patch_size
        return side * side

    def num_image_tokens(self, size: tuple[int, int] | None) -> int:
        """Tokens of a picture of (width, height) pixels; of a square one when `size` is None."""
        from dpa.processing import num_image_tokens

        width, height = (size or (1, 1)) if self.tiled else (1, 1)  # untiled, all have as many
        if (width, height) not in self._image_tokens:
            self._image_tokens[width, height] = num_image_tokens(self.processor, height, width)
        return self._image_tokens[width, height]

    def _expand_image_token(self, record: Record, encoded: Encoded, size: tuple[int, int] | None) -> Encoded:
        ids, supervised = encoded.ids, encoded.supervised
        found = ids.count(self.image_token_id)
        if found != (record.image is not None):
            raise InputError(
                f"{record.where}: {found} image tokens for {int(record.image is not None)} image; its text spells the image token {self.processor.image_token!r}, take that out"
            )
        if not found:
            return encoded
        if self.tiled and size is None and record.image is not None:  # a square layout has one number for all
            size = image_size(record.images, record.image, record.where)
        number, place = self.num_image_tokens(size), ids.index(self.image_token_id)
        ids = ids[:place] + [self.image_token_id] * number + ids[place + 1 :]
        first = 0 if self.view == "chat" else place  # in the plain format nothing before the image is supervised
        before = supervised[:place] if first == 0 else [False] * place
        return Encoded(ids, before + [False] * number + supervised[place + 1 :])


def messages_of(record: Record, image_mark: str | None) -> list[dict[str, str]]:
    """A conversation's turns for a chat template. The image mark stands first in its turn, as in LLaVA's preprocessing."""
    messages = []
    for role, text in record.turns:
        if role != "assistant" and IMAGE_MARK in text:
            text = f"{image_mark}\n{text.replace(IMAGE_MARK, '').strip()}"
        messages.append({"role": role, "content": text})
    return messages


def rendered(messages: list[dict[str, str]], tokenizer: Any, where: str, *, prompt: bool = False) -> str:
    """A conversation as the LLM's chat template writes it. InputError when it refuses the turns."""
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except (TemplateError, ValueError, TypeError) as error:  # Gemma's refuses a system turn, others two of one role
        raise InputError(
            f"{where}: the tokenizer's chat template refuses it ({first_line(error)}); change its turns"
        ) from None


def encode_chat(record: Record, tokenizer: Any, image_mark: str | None) -> Encoded:
    """Token ids of a conversation in the LLM's chat template and which of them are supervised: the assistant's turns.

    InputError when the template refuses the turns.
    """
    messages = messages_of(record, image_mark)

    def render(some: list[dict[str, str]], prompt: bool = False) -> str:
        return rendered(some, tokenizer, record.where, prompt=prompt)

    whole = render(messages)
    spans = _spans_by_growing(messages, whole, render) or _spans_by_marks(messages, whole, render, tokenizer)
    if spans is None:
        raise InputError(
            f"{record.where}: the tokenizer's chat template rewrites the texts of turns, so the answers cannot be told apart; use one that keeps them"
        )
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    # an empty offset: a blank that the tokenizer trims
    supervised = [
        any(start >= s and end <= e and (end > start or start > s) for s, e in spans)
        for start, end in encoded.offset_mapping
    ]
    return Encoded(encoded.input_ids, supervised)


Spans = list[tuple[int, int]]


def _spans_by_growing(messages: list[dict[str, str]], whole: str, render: Callable) -> Spans | None:
    """The answers with their ends, found by rendering the conversation up to each; None where the rendering does not
    only grow, or what grows begins with something else than the answer.
    """
    spans = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            if index == 0:
                return None
            before, after = render(messages[:index], True), render(messages[: index + 1])
            grown = after.removeprefix(before)
            if not (after.startswith(before) and whole.startswith(after)):
                return None
            if not grown.lstrip().startswith(message["content"].strip()):
                return None
            spans.append((len(before), len(after)))
    return spans


def _spans_by_marks(messages: list[dict[str, str]], whole: str, render: Callable, tokenizer: Any) -> Spans | None:
    """The answers, each with the special token that ends it, found by rendering marks in the texts' places: for templates
    that write earlier turns otherwise than the last (Qwen3), or a heading that no generation prompt has.
    """
    marks = [f"<<turn {index} of {len(messages)}>>" for index in range(len(messages))]
    skeleton = render([{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)])
    if any(skeleton.count(mark) != 1 for mark in marks):
        return None
    pieces = re.split("|".join(map(re.escape, marks)), skeleton)
    spans: Spans = []
    place, before = len(pieces[0]), pieces[0]
    if not whole.startswith(pieces[0]):
        return None
    for message, piece in zip(messages, pieces[1:], strict=True):
        texts = dict.fromkeys((message["content"], message["content"].strip()))
        text = next((text for text in texts if whole.startswith(text + piece, place)), None)
        if text is None:
            return None
        end = place + len(text)
        if message["role"] == "assistant":
            closing = next((t for t in tokenizer.all_special_tokens if piece.lstrip().startswith(t)), None)
            begin = place - (len(before) - len(before.rstrip(" ")))  # a blank may be one token with the first word
            spans.append((begin, end + (piece.index(closing) + len(closing) if closing else 0)))
        place, before = end + len(piece), piece
    return spans if place == len(whole) else None


@dataclass(frozen=True)
class Collator:
    """Samples as one batch: input_ids, labels, attention_mask [B, L], pixel_values [I, 3, S, S] if any (several tiles a
    picture: [I, P, 3, S, S], padded with empty tiles, and image_sizes [I, 2]), blind_log_p and blind_logit [B, L] if any.

    A row is a sample, padded at the right. packed: a row holds as many samples as fit beside the longest (`flat`: one row
    all of them), with position_ids [B, L] from 0 in each; pictures are in the order in which rows are read, and a
    sample's first token, which nothing predicts, has no label.
    """

    pad_token_id: int
    packed: bool = False
    flat: bool = False

    def __call__(self, samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        rows: list[dict[str, Any]] = [s | {"attention_mask": torch.ones_like(s["input_ids"])} for s in samples]
        if self.packed:
            lying = arrange([len(row["input_ids"]) for row in rows], flat=self.flat)
            rows = self._pack(rows, lying) if lying.is_packed else rows
        filler = {"input_ids": self.pad_token_id, "labels": IGNORE}
        batch: dict[str, Tensor] = {
            name: pad_sequence([row[name] for row in rows], batch_first=True, padding_value=filler.get(name, 0))
            for name in ("input_ids", "labels", "attention_mask", "position_ids", "blind_log_p", "blind_logit")
            if name in rows[0]
        }
        pictures = [picture for row in rows for picture in row.get("pictures", [row.get("pixel_values")])]
        if any(picture is not None for picture in pictures):
            batch["pixel_values"] = pad_sequence([p for p in pictures if p is not None], batch_first=True)
        sizes = [size for row in rows for size in row.get("sizes", [row.get("image_sizes")]) if size is not None]
        if sizes:
            batch["image_sizes"] = torch.stack(sizes)
        return batch

    def _pack(self, samples: Sequence[dict[str, Tensor]], rows: Rows) -> list[dict[str, Any]]:
        """Rows as samples of their own, with their pictures in lists."""
        packed: list[dict[str, Any]] = []
        for number in range(rows.num_rows):
            places = [i for i in range(len(samples)) if rows.rows[i] == number]
            own = [samples[i] for i in sorted(places, key=lambda i: rows.offsets[i])]
            row: dict[str, Any] = {
                "pictures": [s.get("pixel_values") for s in own],
                "sizes": [s.get("image_sizes") for s in own],
            }
            for name in ("input_ids", "attention_mask", "labels", "blind_log_p", "blind_logit"):
                if name in own[0]:
                    row[name] = torch.cat([sample[name] for sample in own])
            lengths = [len(sample["input_ids"]) for sample in own]
            row["position_ids"] = torch.cat([torch.arange(n) for n in lengths])
            row["labels"][row["position_ids"] == 0] = IGNORE
            packed.append(row)
        return packed


def shown(samples: Samples, index: int, *, colour: bool) -> str:
    """One sample as text: what is supervised stands between ⟦ and ⟧ (and in colour), a picture as its number of tokens."""
    record = samples.records[index]
    encoded = samples.encode(record)
    cut = samples.cut(record, encoded)
    image = getattr(samples, "image_token_id", None)
    parts: list[tuple[bool, list[int]]] = []
    for token, label in zip(cut.ids, cut.supervised, strict=True):
        if not parts or parts[-1][0] != label or (token == image) != (parts[-1][1][-1] == image):
            parts.append((label, []))
        parts[-1][1].append(token)
    text = ""
    for label, ids in parts:
        words = f"[image, {len(ids)} tokens]" if ids[0] == image else samples.tokenizer.decode(ids)
        on, off = ("\x1b[1;36m", "\x1b[0m") if colour else ("", "")
        text += f"{on}⟦{words}⟧{off}" if label else words
    dropped = f", {len(encoded.ids) - len(cut.ids)} cut off at the right" if len(cut.ids) < len(encoded.ids) else ""
    return f"{record.where}: {len(cut.ids)} tokens, {sum(cut.supervised)} supervised{dropped}\n{text}"


@command
def main(arguments: list[str] | None = None) -> int:
    from dpa.arguments import add_recipe_flags, fill_without_recipe, resolve, stages_of
    from dpa.inputs import stage_corpus, stage_processor

    parser = argparse.ArgumentParser(prog="python -m dpa.data", description=__doc__.split("\n")[0])
    add_recipe_flags(parser, required=False)
    parser.add_argument("--show", type=int, default=3, metavar="N", help="how many samples of each stage (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the training, which draws its records by it")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto")
    flags = parser.parse_args(arguments)
    if not flags.recipe:
        fill_without_recipe(flags)
    chosen = resolve(flags)
    colour = flags.color == "always" or (flags.color == "auto" and sys.stdout.isatty() and "NO_COLOR" not in os.environ)
    for stage in stages_of(chosen, flags):
        corpus = stage_corpus(chosen, stage, flags, seed=flags.seed)
        settings = chosen.settings(stage)
        samples = Samples(corpus, VIEWS[stage], stage_processor(chosen, stage), max_length=settings.max_length)
        print(f"stage {stage}: {len(samples):,} records")
        for index in range(min(flags.show, len(samples))):
            print(shown(samples, index, colour=colour), end="\n\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
