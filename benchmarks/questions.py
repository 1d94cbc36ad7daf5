"""What is put to a model: the items' prompts with the pictures that a mode shows, and how they are asked."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from benchmarks.suites import Item
from dpa.errors import InputError
from dpa.images import image_size, open_image
from dpa.lineage import file_hash

Mode = Literal["seen", "blind", "blank", "shuffled"]
MODES: tuple[Mode, ...] = get_args(Mode)
GREY = (128, 128, 128)
SHUFFLE_SEED = 0  # part of what `shuffled` means: every checkpoint is shown the same wrong pictures
MAX_NEW_TOKENS = 16


@dataclass(frozen=True)
class How:
    """How items are asked; all of it stands in the settings of the predictions file.

    mode: what is shown: the item's picture (seen), none (blind), a grey one of its size (blank), another item's of the
    same benchmark (shuffled). prompt_line: a name for how the prompts end; the items carry the line itself. temperature:
    0 is greedy, more is sampling by `seed`, whose answers also depend on the batch. attention: of `dpa.model.ATTENTION`;
    None leaves it to transformers. chat_template: of `dpa.processing.CHAT_TEMPLATES`, for a checkpoint that has none.
    server: address of an OpenAI-compatible server that is asked in place of a checkpoint here.
    """

    mode: Mode = "seen"
    prompt_line: str = "stock"
    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 0.0
    seed: int = 0
    attention: str | None = None
    chat_template: str | None = None
    server: str | None = None


GREEDILY = How()  # with the pictures, as all is asked unless something else is said


@dataclass(frozen=True)
class Question:
    """What an answer can differ in. picture: a name under the images' folder, or (width, height) of a grey one."""

    prompt: str
    picture: str | tuple[int, int] | None


def questions(items: Sequence[Item], images: Path, mode: Mode = "seen") -> dict[Question, list[Item]]:
    """{question: the items that ask it}, in the order of the items.

    mode "shuffled" gives each picture of a benchmark another one in its place, a fixed derangement of the benchmark's
    different pictures, so hand over all its items. InputError when there is but one.
    """
    others = _deranged(items, images) if mode == "shuffled" else {}
    asked: dict[Question, list[Item]] = {}
    for item in items:
        picture: str | tuple[int, int] | None = item.image
        if mode == "blind":
            picture = None
        elif mode == "blank":
            picture = image_size(images, item.image, where_of(item))
        elif mode == "shuffled":
            picture = others[item.benchmark, item.image]
        asked.setdefault(Question(item.prompt, picture), []).append(item)
    return asked


def _deranged(items: Sequence[Item], images: Path) -> dict[tuple[str, str], str]:
    """{(benchmark, picture): another picture of the benchmark}, the same whatever the order of the items.

    Pictures are told apart by content, as a benchmark may hold one under several names (the rotations of a question).
    """
    names: dict[str, set[str]] = {}
    for item in items:
        image_size(images, item.image, where_of(item))  # names the item of a picture that is missing or no picture
        names.setdefault(item.benchmark, set()).add(item.image)
    found = {}
    for benchmark, own in names.items():
        sizes = Counter((images / name).stat().st_size for name in own)
        by_content: dict[str, list[str]] = {}
        for name in sorted(own):
            alone = sizes[(images / name).stat().st_size] == 1  # then no other can be equal, and it need not be read
            by_content.setdefault(name if alone else file_hash(images / name), []).append(name)
        if len(by_content) == 1:
            raise InputError(
                f"{benchmark}: has one picture only, so there is none to show in its place; leave --shuffled out"
            )
        groups = list(by_content.values())
        groups.sort(key=lambda group: hashlib.sha256(f"{SHUFFLE_SEED} {group[0]}".encode()).digest())
        for group, following in zip(groups, groups[1:] + groups[:1], strict=True):  # one cycle through all
            found.update({(benchmark, name): following[0] for name in group})
    return found


def shown_picture(question: Question, images: Path, where: str):
    """The PIL picture of a question that has one, RGB. InputError for one that is missing or broken."""
    from PIL import Image

    if isinstance(question.picture, tuple):
        return Image.new("RGB", question.picture, GREY)
    return open_image(images, str(question.picture), where)


def where_of(item: Item) -> str:
    """How an error names an item."""
    return f"{item.benchmark} item {item.index}"
