"""One sample as coloured tokens beside its picture: in a notebook, or as a page that stands alone and fetches nothing.

    python -m analysis.tokens --model PATH[@start] --data FILE --images DIR [--index N | --id ID] [--measure loss] --html out.html

Colour is one measure of each token: its `relevance`, its `weight` against that of a plain token, its `loss`; or, with a
second model, the difference. Pointing at a token, or reaching it with the tab key, shows all of its numbers; a click keeps
them. What is measured and on which scale is decided here; `analysis.token_html` and `analysis.token_page` draw it.
"""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from analysis import token_page
from analysis.token_html import MINUS, Group, Scale, Shown, plain
from dpa.errors import InputError, command

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

Measure = Literal["relevance", "weight", "loss"]
COLUMNS = ("record", "place", "token_id", "token", "start", "end")
SCORES = ("log_p_seen", "log_p_blind", "logit_seen", "logit_blind", "relevance", "weight")
UNITS = {"probability": ("log_p_seen", "log_p_blind", np.exp), "logit": ("logit_seen", "logit_blind", np.positive)}

ROUNDING = 1 + 1e-6  # of float32: 0.80000001 is 0.8
LEAST_LIMIT = 0.01  # of a scale: what is smaller is rounding, and shall not look like a finding
NICE = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)


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
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            partial.write_text(token_page.page(self.fragment, self.title), encoding="utf-8", newline="\n")
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
    shown = Shown(
        record=record,
        text=text,
        words=[str(word) for word in frame["token"]],
        ids=frame["token_id"].tolist(),
        values=values,
        names=[plain(str(name)) for name in names] if other is not None else [""],
        numbers=[_numbers(table) for table in tables],
        groups=_groups(frame, text),
        scale=_scale(measure, values, next(iter(units), "probability"), other is not None, limit),
    )
    return TokenView(token_page.fragment(shown, title, image), title or record)


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


def _numbers(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    p_seen, p_blind = (np.exp(frame[name].to_numpy(dtype=np.float64)) for name in ("log_p_seen", "log_p_blind"))
    return {"p seen": p_seen, "p blind": p_blind} | {name: _values(frame, name) for name in get_args(Measure)}


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


def _scale(measure: Measure, values: np.ndarray, relevance_unit: str, compares: bool, limit: float | None) -> Scale:
    """The scale of `values`, [N]: around 0 for relevance and where two models are compared, else from 0."""
    if limit is not None and not (math.isfinite(limit) and limit > 0):
        raise InputError(f"limit {limit}: the end of a colour scale is a number above 0")
    diverging = compares or measure == "relevance"
    least = 2.0 if measure == "weight" and not diverging else LEAST_LIMIT  # equal weights, 1 each, are no full colour
    end = limit if limit is not None else _round_up(max(float(np.abs(values).max()), least))
    of = {"probability": f"p seen {MINUS} p blind", "logit": f"logit seen {MINUS} logit blind"}.get(relevance_unit, "")
    unit = {"relevance": of, "weight": "times the share of a plain token", "loss": "nats"}[measure]
    clipped = (diverging and float(values.min()) < -end * ROUNDING, float(values.max()) > end * ROUNDING)
    return Scale(measure, unit, -end if diverging else 0.0, end, clipped)


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return next((step * power for step in NICE if step * power >= value / ROUNDING), 10 * power)


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
