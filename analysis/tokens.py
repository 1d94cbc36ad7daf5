"""One sample as coloured tokens beside its picture: in a notebook, or as a page that stands alone and fetches nothing.

    python -m analysis.tokens --model PATH[@start] --data FILE --images DIR [--index N | --id ID] [--measure loss] --html out.html

Colour is one measure of each token: its `relevance`, its `weight` against that of a plain token, its `loss`; or, with a
second model, the difference. Pointing at a token, or reaching it with the tab key, shows all of its numbers; a click keeps
them. There is no script in it. Captions are data of strangers: what they hold is escaped, characters that would act
(controls, marks of direction) stand as signs, and every other one stands there once, in order.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import math
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np

from dpa.errors import InputError, command

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

Measure = Literal["relevance", "weight", "loss"]
COLUMNS = ("record", "place", "token_id", "token", "start", "end")
SCORES = ("log_p_seen", "log_p_blind", "logit_seen", "logit_blind", "relevance", "weight")
UNITS = {"probability": ("log_p_seen", "log_p_blind", np.exp), "logit": ("logit_seen", "logit_blind", np.positive)}

MINUS, TIMES = "\u2212", "\u00d7"  # which no reader takes for a hyphen or a letter
# The ends of the scales, light enough for INK on any mixture with white. Blue and orange are told apart by readers of any
# colour vision; a mixture with white falls in every channel, so its lightness falls with the value.
WHITE, INK, MUTED = "#ffffff", "#16191d", "#59616b"
BLUE, ORANGE, PURPLE = "#4a97cf", "#e8862e", "#a684cc"
ROUNDING = 1 + 1e-6  # of float32: 0.80000001 is 0.8
LEAST_LIMIT = 0.01  # of a scale: what is smaller is rounding, and shall not look like a finding
MARKED = 0.05  # of a scale's limit below zero: from there on a token is underlined, for prints without colour
NICE = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
MAX_SIDE = 480  # pixels of a picture in the page
LOSSLESS = 60_000  # bytes that a picture may have as PNG, though it has fewer as JPEG
FILLERS = "\u115f\u1160\u3164\uffa0"  # letters by their category, and invisible
JOINERS = "\u200c\u200d"  # act on their neighbours alone, and emoji are made with them

STYLE = f"""
.dpa-tokens {{ all: initial; display: block; box-sizing: border-box; max-width: 1100px; padding: 14px 18px; color-scheme: light;
  background: {WHITE}; color: {INK}; font: 16px/1.5 "Source Sans 3", "Segoe UI", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere; forced-color-adjust: none; -webkit-print-color-adjust: exact; print-color-adjust: exact; }}
.dpa-tokens .dpa-title {{ font-weight: 600; font-size: 17px; }}
.dpa-tokens .dpa-about {{ color: {MUTED}; font-size: 13px; margin-bottom: 12px; }}
.dpa-tokens .dpa-columns {{ display: flex; flex-wrap: wrap; gap: 12px 26px; align-items: flex-start; }}
.dpa-tokens .dpa-picture {{ display: block; flex: 0 1 auto; box-sizing: border-box; width: 230px; max-width: 100%; height: auto;
  margin: 5px 0 0; padding: 0; border: 1px solid #d5d9de; border-radius: 3px; }}
.dpa-tokens .dpa-small {{ image-rendering: pixelated; }}
.dpa-tokens .dpa-main {{ position: relative; flex: 1 1 340px; min-width: 0; }}
.dpa-tokens .dpa-text {{ white-space: pre-wrap; unicode-bidi: plaintext; line-height: 1.85; }}
.dpa-tokens .dpa-token {{ outline: none; cursor: default; scroll-margin-bottom: 130px; }}
.dpa-tokens .dpa-ink {{ padding: 2px 0; border-radius: 2px; box-shadow: inset 1px 0 {WHITE}; color: {INK};
  -webkit-box-decoration-break: clone; box-decoration-break: clone; }}
.dpa-tokens .dpa-below {{ text-decoration: underline dotted #3c444d 1px; text-underline-offset: 4px; text-decoration-skip-ink: none; }}
.dpa-tokens .dpa-token:hover .dpa-ink, .dpa-tokens .dpa-token:focus .dpa-ink {{ outline: 2px solid {INK}; }}
.dpa-tokens .dpa-mark::before {{ content: "\\25CC"; }}
.dpa-tokens .dpa-blank::before {{ content: "\\2423"; color: {INK}; }}
.dpa-tokens .dpa-end::before {{ content: "\\220E"; padding: 0 3px; }}
.dpa-tokens .dpa-line {{ font-style: normal; }}
.dpa-tokens .dpa-last {{ white-space: normal; }}
.dpa-tokens .dpa-line::before {{ content: "\\21B5"; color: {MUTED}; padding: 0 2px; }}
.dpa-tokens .dpa-ink .dpa-line::before {{ color: {INK}; }}
.dpa-tokens .dpa-sign {{ font: normal 0.72em "DejaVu Sans Mono", Consolas, monospace; border: 1px solid; border-radius: 3px; padding: 0 2px;
  unicode-bidi: isolate; direction: ltr; }}
.dpa-tokens .dpa-unscored {{ color: {MUTED}; }}
.dpa-tokens .dpa-tip {{ position: absolute; z-index: 10; left: 0; right: 0; box-sizing: border-box; width: fit-content; max-width: 100%;
  margin: 33px auto 0; padding: 6px 12px 7px; gap: 1px 14px; background: {WHITE}; color: {INK}; border: 1px solid #8b939c; border-radius: 4px;
  box-shadow: 0 3px 12px rgba(0, 0, 0, 0.22); font-size: 12.5px; line-height: 1.45; font-variant-numeric: tabular-nums; white-space: normal;
  text-align: right; text-indent: 0; text-decoration: none; direction: ltr; unicode-bidi: isolate; pointer-events: none; }}
.dpa-tokens .dpa-token:hover .dpa-tip, .dpa-tokens .dpa-token:focus .dpa-tip {{ display: inline-grid !important; }}
@supports (anchor-scope: none) {{
  .dpa-tokens .dpa-token {{ anchor-scope: --dpa-token; }}
  .dpa-tokens .dpa-ink {{ anchor-name: --dpa-token; }}
  .dpa-tokens .dpa-tip {{ position-anchor: --dpa-token; justify-self: anchor-center; margin: 33px 0 0; }}
}}
.dpa-tokens:has(.dpa-token:hover) .dpa-token:focus:not(:hover) .dpa-tip {{ display: none !important; }}
.dpa-tokens .dpa-tip span {{ overflow-wrap: break-word; }}
.dpa-tokens .dpa-tip .dpa-words {{ text-align: left; min-width: 3em; max-width: 16em; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }}
.dpa-tokens .dpa-tip .dpa-model {{ min-width: 5.2em; }}
.dpa-tokens .dpa-tip .dpa-head {{ color: {MUTED}; overflow-wrap: normal; }}
.dpa-tokens .dpa-tip .dpa-chosen {{ font-weight: 700; color: {INK}; }}
.dpa-tokens .dpa-legend {{ margin-top: 14px; padding-top: 9px; border-top: 1px solid #e3e6ea; font-size: 13px; line-height: 1.4;
  display: flex; flex-wrap: wrap; gap: 4px 30px; }}
.dpa-tokens .dpa-range {{ flex: 0 1 270px; min-width: 0; padding: 0 16px; font-variant-numeric: tabular-nums; }}
.dpa-tokens .dpa-bar {{ display: block; height: 11px; margin-top: 4px; border: 1px solid #b8bec5; border-radius: 2px; }}
.dpa-tokens .dpa-dots {{ display: block; height: 0; border-bottom: 1px dotted #3c444d; margin-top: 2px; }}
.dpa-tokens .dpa-ticks {{ position: relative; display: block; height: 1.4em; }}
.dpa-tokens .dpa-ticks span {{ position: absolute; transform: translateX(-50%); white-space: nowrap; }}
.dpa-tokens .dpa-sides {{ display: flex; justify-content: space-between; gap: 12px; margin: 0 -16px; color: {MUTED}; }}
.dpa-tokens .dpa-sides span:last-child {{ text-align: right; }}
.dpa-tokens .dpa-notes {{ flex: 1 1 210px; min-width: 0; }}
.dpa-tokens .dpa-notes div {{ color: {MUTED}; }}
.dpa-tokens .dpa-notes .dpa-what {{ color: {INK}; }}
@media (max-width: 560px) {{ .dpa-tokens .dpa-tip {{ padding: 5px 8px; gap: 1px 8px; font-size: 11px; }} }}
@media print {{ .dpa-tokens .dpa-tip {{ box-shadow: none; }} }}
"""

LINE_END = '<i class="dpa-line">\n</i>'
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class TokenView:
    """A sample's coloured tokens as HTML: `fragment` stands in any page, `title` names the page of its own (plain text)."""

    fragment: str
    title: str

    def _repr_html_(self) -> str:
        return self.fragment

    def save(self, path: Path | str) -> None:
        """Write a page that stands alone: no script, no request, its picture inside; whole or not at all."""
        path = Path(path)
        page = (
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
            f"<title>{_plain(self.title)}</title>\n</head>\n"
            f'<body style="margin: 0; background: {WHITE}">\n{self.fragment}\n</body>\n</html>\n'
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            partial.write_text(page, encoding="utf-8", newline="\n")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def token_view(
    tokens: pd.DataFrame,
    text: str,
    *,
    measure: Measure = "relevance",
    other: pd.DataFrame | None = None,
    image: Path | str | Image.Image | None = None,
    title: str = "",
    names: tuple[str, str] = ("before", "after"),
    limit: float | None = None,
) -> TokenView:
    """The label tokens of one sample in its `text`, coloured by `measure`.

    tokens: the sample's rows of the per-token table. measure: `relevance` (around 0), `weight` (how many times a plain
    token's, 1/n of the sample's sum) or `loss` (nats). other: the same tokens under the model to compare with, named
    names[0]; shown is `tokens` minus `other`. limit: end of the colour scale, in the measure's unit; None: a round number
    at or above the sample's largest, so views share a scale only with a limit.

    Tokens that share a character (bytes of one, say) share an element, striped; one without characters stands as a sign
    behind the token before it. InputError when the rows are not one sample's, do not fit `text` or `other`, or the picture
    cannot be read.
    """
    if measure not in get_args(Measure):
        raise InputError(f"measure {measure!r}: choose one of {', '.join(get_args(Measure))}")
    frame = _checked(tokens, text)
    record = str(frame["record"].iloc[0])
    tables = [frame]
    if other is not None:
        tables = [_same_tokens(_checked(other, text), frame), frame]
    units = {_relevance_unit(table) for table in tables} - {"any"}
    if len(units) > 1:
        raise InputError(
            f"{record}: relevance is of {' in one table and of '.join(sorted(units))} in the other; score both under one rule"
        )
    values = _values(tables[-1], measure)
    if other is not None:
        values = values - _values(tables[0], measure)
    scale = _scale(measure, values, next(iter(units), "probability"), names if other is not None else None, limit)
    groups = _groups(frame, text)
    told = Told(
        [str(word) for word in frame["token"]],
        frame["token_id"].tolist(),
        [_numbers(table) for table in tables],
        [_plain(str(name)) for name in names] if other is not None else [""],
        measure,
    )

    body: list[str] = []
    gaps: list[str] = []
    at = 0
    for group in groups:
        gaps.append(text[at : group.start])
        body.append(_unscored(gaps[-1]))
        body.append(_element(group, text, values, scale, told))
        at = group.end
    gaps.append(text[at:])
    body.append(_unscored(text[at:]))
    shown = "".join(body)
    if text.endswith("\n"):  # nothing but signs stand behind it, which need no line of their own
        head, _, tail = shown.rpartition(LINE_END)
        shown = head + LINE_END.replace("dpa-line", "dpa-line dpa-last") + tail
    room = max(_room(group, len(text), len(tables)) for group in groups)
    notes = _notes(scale, groups, has_unscored=any(gap.strip() for gap in gaps))
    fragment = (
        f'<style>{STYLE}</style>\n<div class="dpa-tokens">'
        + (f'<div class="dpa-title"><bdi>{_plain(title)}</bdi></div>' if title else "")
        + f'<div class="dpa-about">{_about(record, tables, names)}</div>'
        + f'<div class="dpa-columns">{_picture(image, record)}<div class="dpa-main" style="padding-bottom: {room:.1f}em">'
        + f'<div class="dpa-text" lang="">{shown}</div>{_legend(scale, notes)}</div></div></div>'
    )
    return TokenView(fragment, title or record)


# ---- the table


def _checked(tokens: pd.DataFrame, text: str) -> pd.DataFrame:
    """The rows in the order of `place`; InputError unless they are one sample's, whole, finite and within the text."""
    missing = [name for name in (*COLUMNS, *SCORES) if name not in tokens]
    if missing:
        raise InputError(f"token table: lacks {', '.join(missing)}; make it with analysis.pairs")
    records = tokens["record"].unique()
    if len(records) != 1:
        raise InputError(f"token table: holds {len(records)} samples, a view shows one; choose the rows of one record")
    frame = tokens.sort_values("place", kind="stable").reset_index(drop=True)
    record = str(records[0])
    for name in SCORES:
        bad = np.flatnonzero(~np.isfinite(frame[name].to_numpy(dtype=np.float64)))
        if len(bad):
            raise InputError(f"{record}: {name} of token {bad[0]} is no finite number; score the sample again")
    start, end = frame["start"].to_numpy(), frame["end"].to_numpy()
    bad = np.flatnonzero((start < 0) | (end < start) | (end > len(text)))
    if len(bad):
        raise InputError(
            f"{record}: token {bad[0]} is said to span characters {start[bad[0]]} to {end[bad[0]]} of a text of {len(text)}; give the text that was scored"
        )
    return frame


def _same_tokens(other: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """`other`; InputError when its tokens are not those of `frame`."""
    fix = "score both models with one tokenizer and view"
    record = frame["record"].iloc[0]
    if len(other) != len(frame):
        raise InputError(f"{record}: {len(frame)} tokens under one model and {len(other)} under the other; {fix}")
    differ = np.flatnonzero(other["token_id"].to_numpy() != frame["token_id"].to_numpy())
    if len(differ):
        place = int(differ[0])
        mine, theirs = (f"{t['token_id'][place]} {t['token'][place]!r}" for t in (frame, other))
        raise InputError(f"{record}: token {place} is {mine} under one model and {theirs} under the other; {fix}")
    return other


def _relevance_unit(frame: pd.DataFrame) -> str:
    """What relevance is a difference of, told by the numbers: probability, logit; any (all zero, say), other (neither)."""
    relevance = frame["relevance"].to_numpy(dtype=np.float64)
    fitting = []
    for unit, (seen, blind, of) in UNITS.items():
        difference = of(frame[seen].to_numpy(dtype=np.float64)) - of(frame[blind].to_numpy(dtype=np.float64))
        if np.allclose(relevance, difference, rtol=1e-2, atol=1e-3):
            fitting.append(unit)
    if len(fitting) == len(UNITS) or not np.any(relevance):
        return "any"
    return fitting[0] if fitting else "other"


def _values(frame: pd.DataFrame, measure: Measure) -> np.ndarray:
    """The measure of each token, [N] float64; weight as a multiple of a plain token's share of the sample."""
    if measure == "loss":
        return 0.0 - frame["log_p_seen"].to_numpy(dtype=np.float64)
    found = frame[measure].to_numpy(dtype=np.float64)
    if measure == "weight":
        total = found.sum()
        found = found * len(found) / total if total > 0 else np.zeros_like(found)
    return found


class Told(NamedTuple):
    """What is told of the tokens beside their colour: words and ids by row number, numbers of each model by heading."""

    words: list[str]
    ids: list[int]
    numbers: list[dict[str, np.ndarray]]
    labels: list[str]  # the models' names, as HTML; of one model ""
    measure: Measure


def _numbers(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    p_seen, p_blind = (np.exp(frame[name].to_numpy(dtype=np.float64)) for name in ("log_p_seen", "log_p_blind"))
    return {"p seen": p_seen, "p blind": p_blind} | {name: _values(frame, name) for name in get_args(Measure)}


class Group(NamedTuple):
    """Tokens (row numbers) that share the characters `start` to `end` of the text; none are shared with another group."""

    start: int
    end: int
    rows: list[int]


def _groups(frame: pd.DataFrame, text: str) -> list[Group]:
    """The tokens as groups, in the order of the text; one without characters is a group of its own."""
    groups: list[Group] = []
    waiting: list[int] = []  # tokens without characters since the last group
    for row, (start, end) in enumerate(zip(frame["start"].tolist(), frame["end"].tolist(), strict=True)):
        if start == end:
            waiting.append(row)
            continue
        last = groups[-1] if groups else Group(0, 0, [])
        if start < last.start:
            raise InputError(
                f"{frame['record'][0]}: token {row} starts before the one ahead of it; give spans in the order of the text"
            )
        if start < last.end:
            groups[-1] = Group(last.start, max(end, last.end), [*last.rows, *waiting, row])
        else:
            groups += [Group(last.end, last.end, [lone]) for lone in waiting]
            groups.append(Group(start, end, [row]))
        waiting = []
    return groups + [Group(len(text), len(text), [lone]) for lone in waiting]


def _room(group: Group, length: int, models: int) -> float:
    """Room that a group's numbers need below the legend, in em: a notebook cuts what stands out of the box."""
    rows = len(group.rows) * (3 if models == 2 else 1)
    lines_below = (length - group.end) // 130  # at least: a full line of the widest box
    return max(0.0, 1.2 * rows - 4 - 1.85 * lines_below)


# ---- colours


class Scale(NamedTuple):
    """Colours of a measure from `low` to `high`: `ends` at the two (and white at 0 where low is negative)."""

    measure: Measure
    low: float
    high: float
    ends: tuple[str, str]
    what: str  # the measure and its unit, as HTML
    sides: tuple[str, str] | None = None  # what the two ends mean, as HTML
    clipped: tuple[bool, bool] = (False, False)

    def colour(self, value: float) -> str:
        share = value / (self.high if value >= 0 else -self.low or 1.0)
        return mixture(self.ends[value >= 0], max(0.0, min(1.0, share if value >= 0 else -share)))

    @property
    def threshold(self) -> float:
        """Below it a token is underlined."""
        return MARKED * self.low if self.low < 0 else -math.inf


def mixture(colour: str, share: float) -> str:
    """`share` (0 to 1) of a colour #rrggbb in white, mixed as a browser's gradient mixes."""
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 + share * (channel - 255)):02x}" for channel in channels)


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours #rrggbb as WCAG 2 defines it, 1 to 21; text is to have 4.5 at least."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance of a colour #rrggbb (WCAG 2), 0 to 1."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return sum(share * value for share, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _scale(
    measure: Measure, values: np.ndarray, unit: str, names: tuple[str, str] | None, limit: float | None
) -> Scale:
    if limit is not None and not (math.isfinite(limit) and limit > 0):
        raise InputError(f"limit {limit}: the end of a colour scale is a number above 0")
    most = float(np.abs(values).max())
    diverging = names is not None or measure == "relevance"
    least = 2.0 if measure == "weight" and not diverging else LEAST_LIMIT  # equal weights, 1 each, are no full colour
    end = limit if limit is not None else _round_up(max(most, least))
    what = {
        "relevance": {"probability": f"p seen {MINUS} p blind", "logit": f"logit seen {MINUS} logit blind"}.get(
            unit, ""
        ),
        "weight": "times the share of a plain token",
        "loss": "nats",
    }[measure]
    about = f"<b>{measure}</b>{', ' + what if what else ''}"
    clipped = (diverging and float(values.min()) < -end * ROUNDING, float(values.max()) > end * ROUNDING)
    if not diverging:
        return Scale(measure, 0.0, end, (WHITE, PURPLE if measure == "loss" else ORANGE), about, None, clipped)
    sides = ("less with the picture", "more with the picture")
    if names is not None:
        before, after = (f"<bdi>{_plain(str(name))}</bdi>" for name in names)
        about = f"<b>{measure}, {after} {MINUS} {before}</b>{', ' + what if what else ''}"
        sides = (f"{before} higher", f"{after} higher")
    return Scale(measure, -end, end, (BLUE, ORANGE), about, sides, clipped)


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return next((step * power for step in NICE if step * power >= value / ROUNDING), 10 * power)


# ---- HTML


def _sign(character: str) -> str:
    """What stands for a character that would act instead of being seen, or that HTML cannot hold; "" for all others."""
    code = ord(character)
    if character == "\t":
        return "⇥"
    acts = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in JOINERS
    is_noncharacter = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    return f"U+{code:04X}" if acts or is_noncharacter or character in FILLERS else ""


def _plain(text: str) -> str:
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
    return f'<span class="dpa-unscored">{_visible(text)}</span>' if text.strip() else _visible(text)


def _element(group: Group, text: str, values: np.ndarray, scale: Scale, told: Told) -> str:
    """A group of tokens: their characters, coloured, and their numbers, which are seen when it is pointed at."""
    own = text[group.start : group.end]
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
        f'<span class="dpa-token" tabindex="0" role="note" aria-label="{_spoken(group.rows, told)}">{_visible(blanks)}'
        f'<span class="{" ".join(classes)}" style="background: {paint}">{_visible(first)}{_tip(group.rows, told)}{_visible(line + rest)}</span></span>'
    )


def _number(value: float, digits: int = 3, *, signed: bool = False) -> str:
    """A number with so many decimals, or in powers of ten where those would all be 0; its minus is a minus."""
    value = float(value) + 0.0
    small = value != 0 and abs(value) < 0.5 * 10**-digits
    text = f"{value:{'+' if signed and value else ''}{'.1e' if small else f'.{digits}f'}}"
    return text.replace("e-0", "e-").replace("-", MINUS)


def _with_unit(name: str, value: float, *, change: bool = False) -> str:
    if name == "weight":
        return _number(value, 2, signed=change) + TIMES
    return _number(value, signed=change or name == "relevance")


def _lines(row: int, told: Told) -> Iterator[tuple[str, list[str]]]:
    """(label, numbers) of a token under each model, and of their difference where there are two."""
    for label, numbers in zip(told.labels, told.numbers, strict=True):
        yield label, [_with_unit(name, column[row]) for name, column in numbers.items()]
    if len(told.numbers) == 2:
        before, after = told.numbers
        yield "difference", [_with_unit(name, after[name][row] - before[name][row], change=True) for name in after]


def _tip(rows: Sequence[int], told: Told) -> str:
    """A small table: a line for each token of a group; for two models three lines, the third their difference."""
    two = len(told.numbers) == 2
    heads = ["token", "id", *([""] if two else []), *told.numbers[0]]
    classes = {0: "dpa-words", heads.index(told.measure): "dpa-chosen"} | ({2: "dpa-words dpa-model"} if two else {})

    def cell(column: int, content: str, also: str = "") -> str:
        names = f"{classes.get(column, '')} {also}".strip()
        return f'<span class="{names}">{content}</span>' if names else f"<span>{content}</span>"

    cells = [cell(i, name + (" (nats)" if name == "loss" else ""), "dpa-head") for i, name in enumerate(heads)]
    for row in rows:
        for number, (label, shown) in enumerate(_lines(row, told)):
            named = [f"<bdi>{_quoted(told.words[row])}</bdi>", str(told.ids[row])] if number == 0 else ["", ""]
            middle = [f"<bdi>{label}</bdi>"] if two else []
            cells += [cell(i, content) for i, content in enumerate([*named, *middle, *shown])]
    # hidden in place: a page that takes our style away shows the text alone
    return f'<span class="dpa-tip" aria-hidden="true" style="display: none; grid-template-columns: repeat({len(heads)}, auto)">{"".join(cells)}</span>'


def _quoted(word: str, most: int = 40) -> str:
    """A token's own text, with its blanks seen."""
    return f"“{_plain(word[:most] + ('…' if len(word) > most else '')).replace(' ', '␣')}”"


def _spoken(rows: Sequence[int], told: Told) -> str:
    """The numbers of a group for a reader who hears them."""
    parts = []
    for row in rows:
        lines = []
        for label, shown in _lines(row, told):
            named = ", ".join(f"{name} {value}" for name, value in zip(told.numbers[0], shown, strict=True))
            lines.append(f"{label}{': ' if label else ''}{named} nats")
        parts.append(f"token {_plain(told.words[row])}, id {told.ids[row]}; {'; '.join(lines)}")
    return ". ".join(parts)


def _about(record: str, tables: Sequence[pd.DataFrame], names: tuple[str, str]) -> str:
    means = [float(_values(table, "loss").mean()) for table in tables]
    loss = f"mean loss {_number(means[-1])} nats"
    if len(tables) == 2:
        before, after = (f"<bdi>{_plain(str(name))}</bdi>" for name in names)
        loss = f"mean loss {before} {_number(means[0])}, {after} {_number(means[1])} nats"
    number = len(tables[-1])
    return f"<bdi>{_plain(record)}</bdi> · {number} token{'s' * (number != 1)} · {loss}"


def _notes(scale: Scale, groups: Sequence[Group], has_unscored: bool) -> list[str]:
    notes = []
    if scale.low < 0:
        notes.append(f'<span class="dpa-below">dotted underline</span>: below {_tick(scale.threshold)}')
    if scale.measure == "weight" and scale.low == 0:
        notes.append("1 is what every token has in the plain loss")
    if any(len(group.rows) > 1 for group in groups):
        notes.append("stripes: tokens that share a character")
    if any(group.start == group.end for group in groups):
        notes.append("∎ a token past the text (its last newline, end of sequence)")
    if has_unscored:
        notes.append("grey text: not scored")
    return notes


def _tick(value: float, signed: bool = False) -> str:
    text = f"{value:.3g}"
    return (("+" if signed and value > 0 else "") + text).replace("-", MINUS)


def _legend(scale: Scale, notes: Sequence[str]) -> str:
    colours = [scale.ends[0], WHITE, scale.ends[1]] if scale.low < 0 else list(scale.ends)
    at = [scale.low, 0.0, scale.high] if scale.low < 0 else [0.0, scale.high / 2, scale.high]
    if scale.measure == "weight" and scale.low == 0 and 0.15 <= 1 / scale.high <= 0.85:
        at[1] = 1.0
    ticks = []
    for value in at:
        text = _tick(value, scale.low < 0)
        if (value, True) in zip((scale.low, scale.high), scale.clipped, strict=True):
            text = ("≤ " if value == scale.low else "≥ ") + text
        ticks.append(f'<span style="left: {100 * (value - scale.low) / (scale.high - scale.low):.4g}%">{text}</span>')
    dots = f'<span class="dpa-dots" style="width: {50 - 50 * MARKED:.4g}%"></span>' if scale.low < 0 else ""
    sides = "".join(f"<span>{side}</span>" for side in scale.sides or ())
    return (
        f'<div class="dpa-legend"><div class="dpa-range"><span class="dpa-bar" style="background: linear-gradient(90deg, {", ".join(colours)})"></span>'
        f'{dots}<span class="dpa-ticks">{"".join(ticks)}</span><span class="dpa-sides">{sides}</span></div>'
        f'<div class="dpa-notes"><div class="dpa-what">{scale.what}</div>{"".join(f"<div>{note}</div>" for note in notes)}</div></div>'
    )


# ---- the picture


def _picture(image: Path | str | Image.Image | None, record: str) -> str:
    """The picture as an <img> that holds it, its long side at most MAX_SIDE; "" for none."""
    if image is None or image == "":
        return ""
    from PIL import Image as Pictures

    if isinstance(image, str | Path):
        from dpa.images import open_image

        path = Path(image).resolve()
        picture: Image.Image = open_image(path.parent, path.name, record)
    else:
        picture = image
    if picture.mode[0] in "IF":
        raise InputError(f"{record}: values of a picture of mode {picture.mode} have no known range; convert it to RGB")
    try:
        picture = picture.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # one that was opened and not yet read
        raise InputError(f"{record}: its picture is broken ({error}); replace it") from None
    is_small = max(picture.size) < 120
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Pictures.Resampling.LANCZOS)
    picture.info = {}  # a place or a camera's number stays with the file
    kinds = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 88})):
        held = io.BytesIO()
        picture.save(held, kind, **options)
        kinds[kind] = held.getvalue()
    kind = "png" if len(kinds["png"]) < max(LOSSLESS, len(kinds["jpeg"])) else "jpeg"
    address = f"data:image/{kind};base64,{base64.b64encode(kinds[kind]).decode()}"
    return f'<img class="dpa-picture{" dpa-small" * is_small}" alt="picture of {_plain(record)}" src="{address}">'


# ---- the command


def _short(model: str, before: str) -> tuple[str, str]:
    """(before, model) without the folders that both lie in, to be told apart by."""
    pair = [name.split("/") for name in (before, model)]
    while min(map(len, pair)) > 1 and pair[0][0] == pair[1][0]:
        pair = [parts[1:] for parts in pair]
    return "/".join(pair[0]), "/".join(pair[1])


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.tokens", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, metavar="PATH[@start]", help="a finished stage; @start: as it began")
    parser.add_argument(
        "--before", metavar="PATH[@start]", help="a model to compare with: shown is --model minus --before"
    )
    parser.add_argument("--data", required=True, help="records, as for training")
    parser.add_argument("--images", type=Path, help="the folder that their pictures lie in")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--index", type=int, default=0, help="number of the record, from 0 (default: 0)")
    chosen.add_argument("--id", help="id of the record")
    parser.add_argument("--view", choices=("pair", "chat"), default="pair", help="as a caption or as a conversation")
    parser.add_argument("--measure", choices=get_args(Measure), default="relevance")
    parser.add_argument(
        "--rule", choices=("cmo", "cal", "none"), default="cmo", help="what relevance and weight are by"
    )
    parser.add_argument("--html", type=Path, required=True, help="the page to write")
    options = parser.parse_args(arguments)

    from analysis.pairs import open_checkpoint, samples_of, score_samples
    from dpa.methods import CAL, CMO, NONE

    weighting = {"cmo": CMO, "cal": CAL, "none": NONE}[options.rule]
    tables: list[pd.DataFrame] = []
    index = options.index
    for name in filter(None, (options.before, options.model)):
        checkpoint = open_checkpoint(name)
        samples = samples_of(checkpoint, options.data, options.images, options.view)
        if options.id is not None:
            index = next((i for i, record in enumerate(samples.records) if record.id == options.id), -1)
        if not 0 <= index < len(samples):
            wanted = f"id {options.id!r}" if options.id is not None else f"number {index}"
            raise InputError(f"{options.data}: no record with {wanted} among its {len(samples):,}; choose another")
        tokens, told = score_samples(checkpoint, samples, [index], weighting)
        tables.append(tokens)
        sample = told.iloc[0]
        del checkpoint, samples  # one model in memory at a time
    view = token_view(
        tables[-1],
        str(sample["text"]),
        measure=options.measure,
        other=tables[0] if options.before else None,
        image=str(sample["image"]),
        title=f"{options.before} → {options.model}" if options.before else options.model,
        names=_short(options.model, options.before) if options.before else ("before", "after"),
    )
    view.save(options.html)
    print(f"{options.html}: {len(tables[-1])} tokens of {sample['record']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
