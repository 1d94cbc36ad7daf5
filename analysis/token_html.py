"""The tokens of one sample as HTML: their characters in their colours, with numbers that pointing and the tab key show.

Captions are data of strangers: what they hold is escaped, characters that would act (controls, marks of direction) stand
as signs, and every other one stands there once, in order.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

MINUS, TIMES = "\u2212", "\u00d7"  # which no reader takes for a hyphen or a letter
# The ends of the scales, light enough for INK on any mixture with white. Blue and orange are told apart by readers of any
# colour vision; a mixture with white falls in every channel, so its lightness falls with the value.
WHITE, INK, MUTED = "#ffffff", "#16191d", "#59616b"
BLUE, ORANGE, PURPLE = "#4a97cf", "#e8862e", "#a684cc"
MARKED = 0.05  # of a scale's limit below zero: from there on a token is underlined, for prints without colour
FILLERS = "\u115f\u1160\u3164\uffa0"  # letters by their category, and invisible
JOINERS = "\u200c\u200d"  # act on their neighbours alone, and emoji are made with them
LINE_END = '<i class="dpa-line">\n</i>'
UNSCORED = '<span class="dpa-unscored">'


class Group(NamedTuple):
    """Tokens (row numbers) that share the characters `start` to `end` of the text; none are shared with another group."""

    start: int
    end: int
    rows: list[int]


class Scale(NamedTuple):
    """The colours' scale of a measure: from `low`, which is 0 or -`high`, to `high`; white is 0."""

    measure: str
    unit: str  # as text; "" where it has none
    low: float
    high: float
    clipped: tuple[bool, bool]  # whether values lie beyond `low`, `high`

    @property
    def ends(self) -> tuple[str, str]:
        """Colours at `low` and at `high`."""
        if self.low < 0:
            return BLUE, ORANGE
        return WHITE, PURPLE if self.measure == "loss" else ORANGE

    @property
    def threshold(self) -> float:
        """Below it a token is underlined."""
        return MARKED * self.low if self.low < 0 else -math.inf

    def colour(self, value: float) -> str:
        return mixture(self.ends[value >= 0], min(1.0, abs(value) / self.high))


class Shown(NamedTuple):
    """What is shown of a sample: its text; by row number its tokens' words, ids and values of the scale's measure, [N]; for
    each model its name as HTML ("" for one alone) and the numbers by heading, [N] each.
    """

    record: str
    text: str
    words: list[str]
    ids: list[int]
    values: np.ndarray
    names: list[str]
    numbers: list[dict[str, np.ndarray]]
    groups: list[Group]
    scale: Scale


def mixture(colour: str, share: float) -> str:
    """`share` (0 to 1) of a colour #rrggbb in white, mixed as a browser's gradient mixes."""
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 + share * (channel - 255)):02x}" for channel in channels)


def body(shown: Shown) -> str:
    """The text as HTML, its tokens coloured."""
    parts, at = [], 0
    for group in shown.groups:
        parts += [_unscored(shown.text[at : group.start]), _element(group, shown)]
        at = group.end
    return "".join([*parts, _unscored(shown.text[at:])])


# ---- characters


def _sign(character: str) -> str:
    """What stands for a character that would act instead of being seen, or that HTML cannot hold; "" for all others."""
    code = ord(character)
    if character == "\t":
        return "⇥"
    acts = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in JOINERS
    is_noncharacter = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    return f"U+{code:04X}" if acts or is_noncharacter or character in FILLERS else ""


def plain(text: str) -> str:
    """Text for an attribute or a title: escaped, on one line, with signs."""
    return html.escape("".join("↵" if c == "\n" else _sign(c) or c for c in text))


def _visible(text: str) -> str:
    """Text as HTML: escaped, line ends seen, and signs in the place of characters that act."""
    parts = []
    for character in text:
        sign = _sign(character)
        if character == "\n":
            parts.append(LINE_END)
        elif sign:
            parts.append(f'<i class="dpa-sign" data-code="{ord(character):X}">{sign}</i>')
        else:
            parts.append(html.escape(character))
    return "".join(parts)


def _unscored(text: str) -> str:
    """Text between tokens: no label's, so it has no number (a question, what a cut left out)."""
    return f"{UNSCORED}{_visible(text)}</span>" if text.strip() else _visible(text)


def _element(group: Group, shown: Shown) -> str:
    """A group of tokens: their characters, coloured, and their numbers, which are seen when it is pointed at."""
    values, scale = shown.values, shown.scale
    own = shown.text[group.start : group.end]
    ink = own.lstrip(" ")
    blanks = own[: len(own) - len(ink)] if ink else ""
    ink = ink or own
    classes = ["dpa-ink"]
    if not own:
        classes.append("dpa-end")
    elif not ink.strip(" "):
        classes.append("dpa-blank")
    elif all(unicodedata.category(c) in ("Mn", "Me") or c in JOINERS for c in ink):
        classes.append("dpa-mark")  # nothing of it would be seen alone
    if any(values[row] < scale.threshold for row in group.rows):
        classes.append("dpa-below")
    colours = [scale.colour(float(values[row])) for row in group.rows]
    paint = colours[0]
    if len(colours) > 1:
        stops = ", ".join(
            f"{c} {100 * i / len(colours):.4g}% {100 * (i + 1) / len(colours):.4g}%" for i, c in enumerate(colours)
        )
        paint = f"linear-gradient(90deg, {stops})"
    first, line, rest = ink.partition("\n")  # the numbers hang from the line that the token begins on
    return (
        f'<span class="dpa-token" tabindex="0" role="note" aria-label="{_spoken(group.rows, shown)}">{_visible(blanks)}'
        f'<span class="{" ".join(classes)}" style="background: {paint}">{_visible(first)}{_tip(group.rows, shown)}{_visible(line + rest)}</span></span>'
    )


# ---- numbers


def number(value: float, digits: int = 3, *, signed: bool = False) -> str:
    """A number with so many decimals, or in powers of ten where those would all be 0; its minus is a minus."""
    value = float(value) + 0.0
    small = value != 0 and abs(value) < 0.5 * 10**-digits
    text = f"{value:{'+' if signed and value else ''}{'.1e' if small else f'.{digits}f'}}"
    return text.replace("e-0", "e-").replace("-", MINUS)


def _with_unit(name: str, value: float, *, change: bool = False) -> str:
    if name == "weight":
        return number(value, 2, signed=change) + TIMES
    return number(value, signed=change or name == "relevance")


def _lines(row: int, shown: Shown) -> Iterator[tuple[str, list[str]]]:
    """(label, numbers) of a token under each model, and of their difference where there are two."""
    for label, numbers in zip(shown.names, shown.numbers, strict=True):
        yield label, [_with_unit(name, column[row]) for name, column in numbers.items()]
    if len(shown.numbers) == 2:
        before, after = shown.numbers
        yield "difference", [_with_unit(name, after[name][row] - before[name][row], change=True) for name in after]


def _tip(rows: Sequence[int], shown: Shown) -> str:
    """A small table: a line for each token of a group; for two models three lines, the third their difference."""
    two = len(shown.numbers) == 2
    heads = ["token", "id", *([""] if two else []), *shown.numbers[0]]
    classes = {0: "dpa-words", heads.index(shown.scale.measure): "dpa-chosen"}
    if two:
        classes[2] = "dpa-words dpa-model"

    def cell(column: int, content: str, also: str = "") -> str:
        names = f"{classes.get(column, '')} {also}".strip()
        return f'<span class="{names}">{content}</span>' if names else f"<span>{content}</span>"

    cells = [cell(i, name + (" (nats)" if name == "loss" else ""), "dpa-head") for i, name in enumerate(heads)]
    for row in rows:
        for line, (label, figures) in enumerate(_lines(row, shown)):
            word = plain(shown.words[row]).replace(" ", "␣")
            named = [f"<bdi>“{word}”</bdi>", str(shown.ids[row])] if line == 0 else ["", ""]
            middle = [f"<bdi>{label}</bdi>"] if two else []
            cells += [cell(i, content) for i, content in enumerate([*named, *middle, *figures])]
    # hidden in place: a page that takes our style away shows the text alone
    return f'<span class="dpa-tip" aria-hidden="true" style="display: none; grid-template-columns: repeat({len(heads)}, auto)">{"".join(cells)}</span>'


def _spoken(rows: Sequence[int], shown: Shown) -> str:
    """The numbers of a group for a reader who hears them."""
    parts = []
    for row in rows:
        lines = []
        for label, figures in _lines(row, shown):
            named = ", ".join(f"{name} {value}" for name, value in zip(shown.numbers[0], figures, strict=True))
            lines.append(f"{label}{': ' if label else ''}{named} nats")
        parts.append(f"token {plain(shown.words[row])}, id {shown.ids[row]}; {'; '.join(lines)}")
    return ". ".join(parts)
