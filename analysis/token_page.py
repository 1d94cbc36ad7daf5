"""What stands around the coloured tokens of a sample: style, title, picture, legend; and the page that holds them alone.

There is no script in it, and nothing is fetched: the picture is inside.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.token_html import INK, MARKED, MINUS, MUTED, UNSCORED, WHITE, Shown, body, number, plain
from dpa.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

MAX_SIDE = 480  # pixels of a picture in the page
LOSSLESS = 60_000  # bytes of a PNG above which the picture is a JPEG
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

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


def page(fragment: str, title: str) -> str:
    """A page that stands alone with a view's HTML; its title is plain text."""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{plain(title)}</title>\n</head>\n"
        f'<body style="margin: 0; background: {WHITE}">\n{fragment}\n</body>\n</html>\n'
    )


def fragment(shown: Shown, title: str, image: Path | str | Image.Image | None) -> str:
    """A view's HTML: its style, and one box with the coloured text, its legend and the picture.

    InputError when the picture cannot be read.
    """
    text = body(shown)
    lines = max(len(group.rows) for group in shown.groups) * (3 if len(shown.numbers) == 2 else 1)
    room = max(0.0, 1.2 * lines - 3.5)  # em, for numbers that reach below the legend: a notebook cuts what stands out
    return (
        f'<style>{STYLE}</style>\n<div class="dpa-tokens">'
        + (f'<div class="dpa-title"><bdi>{plain(title)}</bdi></div>' if title else "")
        + f'<div class="dpa-about">{_about(shown)}</div>'
        + f'<div class="dpa-columns">{_picture(image, shown.record)}<div class="dpa-main" style="padding-bottom: {room:.1f}em">'
        + f'<div class="dpa-text" lang="">{text}</div>{_legend(shown, _notes(shown, has_unscored=UNSCORED in text))}</div></div></div>'
    )


def _about(shown: Shown) -> str:
    means = [number(float(numbers["loss"].mean())) for numbers in shown.numbers]
    told = ", ".join(
        f"<bdi>{name}</bdi> {mean}" if name else mean for name, mean in zip(shown.names, means, strict=True)
    )
    tokens = len(shown.words)
    return f"<bdi>{plain(shown.record)}</bdi> · {tokens} token{'s' * (tokens != 1)} · mean loss {told} nats"


def _notes(shown: Shown, has_unscored: bool) -> list[str]:
    scale, groups, notes = shown.scale, shown.groups, []
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


def _legend(shown: Shown, notes: list[str]) -> str:
    scale = shown.scale
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
    what, sides = scale.measure, ["less with the picture", "more with the picture"] if scale.low < 0 else []
    if len(shown.names) == 2:
        before, after = (f"<bdi>{name}</bdi>" for name in shown.names)
        what, sides = f"{what}, {after} {MINUS} {before}", [f"{before} higher", f"{after} higher"]
    what = f"<b>{what}</b>" + (f", {scale.unit}" if scale.unit else "")
    return (
        f'<div class="dpa-legend"><div class="dpa-range"><span class="dpa-bar" style="background: linear-gradient(90deg, {", ".join(colours)})"></span>'
        f'{dots}<span class="dpa-ticks">{"".join(ticks)}</span><span class="dpa-sides">{"".join(f"<span>{side}</span>" for side in sides)}</span></div>'
        f'<div class="dpa-notes"><div class="dpa-what">{what}</div>{"".join(f"<div>{note}</div>" for note in notes)}</div></div>'
    )


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
    held, kind = io.BytesIO(), "png"
    picture.save(held, kind, optimize=True)
    if held.tell() > LOSSLESS:
        held, kind = io.BytesIO(), "jpeg"
        picture.save(held, kind, quality=88)
    address = f"data:image/{kind};base64,{base64.b64encode(held.getvalue()).decode()}"
    return f'<img class="dpa-picture{" dpa-small" * is_small}" alt="picture of {plain(record)}" src="{address}">'
