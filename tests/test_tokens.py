"""Token views: every character once and in order, nothing in a caption acts, numbers and colours by hand; and a browser."""
# ruff: noqa: RUF001  signs are what is tested

import base64
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from analysis.token_html import BLUE, INK, MUTED, ORANGE, PURPLE, WHITE, mixture
from analysis.token_page import STYLE
from analysis.tokens import main, token_view
from dpa.errors import InputError
from tests.conftest import ROOT

HOSTILE = "<script>window.pwned = 1</script> &amp; \"q\" 'a' \x00\x07\r\t\x85 \u202eevil\u202c \u2066x\u2069 e\u0301 👩\u200d👩\u200d👧 🇩🇪 قطة שלום \u200b\ufeff\u2028\ufffe\n\nend"
TAGS = {"style", "div", "span", "bdi", "i", "b", "img"}
ATTRIBUTES = {"class", "style", "tabindex", "role", "aria-label", "aria-hidden", "data-code", "lang", "alt", "src"}


def table(text, spans, *, seed=0, rule="cmo", record="records.json, record 3, id 7", ids=None, **columns):
    """A sample's rows of the per-token table with drawn scores; `columns` replace some."""
    rng = np.random.default_rng(seed)
    number = len(spans)
    seen, blind = np.log(rng.beta(2, 1, number)), np.log(rng.beta(1, 2, number))
    weight = rng.random(number) + 0.1
    fields = {
        "record": record,
        "id": "7",
        "corpus": "lab",
        "place": np.arange(number, dtype=np.int32),
        "token_id": np.array(range(1000, 1000 + number) if ids is None else ids, dtype=np.int32),
        "token": [text[start:end].encode("utf-8", "replace").decode() or "</s>" for start, end in spans],
        "start": np.array([start for start, _ in spans], dtype=np.int32),
        "end": np.array([end for _, end in spans], dtype=np.int32),
        "log_p_seen": seen.astype(np.float32),
        "log_p_blind": blind.astype(np.float32),
        "logit_seen": (seen + 9).astype(np.float32),
        "logit_blind": (blind + 6).astype(np.float32),
        "weight": (weight / weight.sum()).astype(np.float32),
    } | columns
    frame = pd.DataFrame(fields)
    if "relevance" not in columns:
        of = np.exp if rule == "cmo" else np.positive
        name = {"cmo": "log_p", "cal": "logit"}[rule]
        frame["relevance"] = (of(frame[f"{name}_seen"]) - of(frame[f"{name}_blind"])).astype(np.float32)
    return frame


class Page(HTMLParser):
    """What a view's HTML holds: the text that it shows, its tips' cells, all tags and attributes."""

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.tips, self.cells, self.tags, self.attributes = [], "", [], None, set(), []
        self.code = None
        self.feed(page)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.add(tag)
        self.attributes += attributes
        if tag in ("img", "meta", "link"):
            return
        self.open.append((tag, given.get("class", "")))
        if "dpa-tip" in given.get("class", ""):
            self.tips.append([])
        elif self.inside("dpa-tip") and tag == "span":
            self.tips[-1].append("")
        if "dpa-sign" in given.get("class", "") and self.inside("dpa-text"):
            self.code = given["data-code"]

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.inside("dpa-tip"):
            self.tips[-1][-1] += data
        elif self.code is not None:
            self.text += chr(int(self.code, 16))
            self.code = None
        elif self.inside("dpa-text"):
            self.text += data

    def inside(self, name):
        return any(name in classes.split() for _, classes in self.open)

    def rows(self):
        """Cells of the tips, heading lines left out."""
        columns = 7
        return [
            cells[i : i + columns] for cells in self.tips for i in range(columns, len(cells), columns)
        ]  # of views of one model


CHARACTERS = st.one_of(st.characters(), st.sampled_from(HOSTILE), st.just("\ud800"), st.sampled_from("ab \n"))
# in a list, that is: `st.text` makes one alphabet of them, in which a blank is as rare as any other character


@st.composite
def split_text(draw):
    """A text and spans of tokens in its order: gaps, overlaps, several in one character, some empty."""
    text = "".join(draw(st.integers(0, 40).flatmap(lambda n: st.lists(CHARACTERS, min_size=n, max_size=n))))
    spans, start = [], 0
    for step, length in draw(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1, max_size=25)):
        start = min(start + step, len(text))
        spans.append((start, min(start + length, len(text))))
    return text, spans


@settings(max_examples=300, deadline=None)
@given(split_text())
def test_every_character_stands_once_and_in_order(sample):
    text, spans = sample
    page = Page(token_view(table(text, spans), text).fragment)
    assert page.text == text
    assert [int(row[1]) for row in page.rows()] == list(range(1000, 1000 + len(spans)))
    assert page.tags <= TAGS and {name for name, _ in page.attributes} <= ATTRIBUTES


@settings(max_examples=100, deadline=None)
@given(split_text())
def test_tokens_share_an_element_where_they_share_a_character_and_nowhere_else(sample):
    text, spans = sample
    page = Page(token_view(table(text, spans), text).fragment)
    together = [{int(cells[i]) - 1000 for i in range(8, len(cells), 7)} for cells in page.tips]
    for group in together:
        for one in group:
            others = [spans[row] for row in group if row != one]
            start, end = spans[one]
            assert not others or start == end or any(s < end and start < e for s, e in others)
    of = {row: number for number, group in enumerate(together) for row in group}
    for one, (start, end) in enumerate(spans):
        for other, (s, e) in enumerate(spans):
            assert not (s < end and start < e and s < e and start < end) or of[one] == of[other]


def test_nothing_in_a_caption_acts(tmp_path):
    """In any field of it; and a page holds no address but those of data."""
    spans = [(i, i + 3) for i in range(0, len(HOSTILE) - 3, 3)]
    frames = [table(HOSTILE, spans, seed=seed, record=HOSTILE, token=[HOSTILE] * len(spans)) for seed in (0, 1)]
    view = token_view(
        frames[1], HOSTILE, other=frames[0], image=picture(), title=HOSTILE, names=(HOSTILE, "</style>" + HOSTILE)
    )
    view.save(tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8").split(">", 1)[1])
    assert page.tags == TAGS | {"html", "head", "meta", "link", "title", "body"}
    assert {name for name, _ in page.attributes} == ATTRIBUTES | {
        "http-equiv",
        "content",
        "charset",
        "name",
        "rel",
        "href",
    }
    assert all(value.startswith("data:") for name, value in page.attributes if name in ("src", "href"))
    held = "".join(value for name, value in page.attributes if name in ("style", "src", "href", "content"))
    assert "url(" not in STYLE + held and "@import" not in STYLE
    raw = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "http" not in raw.replace("http-equiv", "") and "<script" not in raw
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b\ufeff\u2028\ufffe]", raw)


def test_a_lone_surrogate_is_shown_and_saved(tmp_path):
    token_view(table("a\ud800b", [(0, 1), (1, 2)]), "a\ud800b", title="\udfff").save(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert '<i class="dpa-sign" data-code="D800">U+D800</i>' in page and "<title>U+DFFF</title>" in page


def test_rules_of_style_reach_no_other_element():
    """Views share a page with a notebook: every selector begins at our own box, no element has an id."""
    style = re.sub(r"@(media|supports) [^{]*\{", "", STYLE)
    selectors = re.findall(r"([^{}]+)\{", style)
    assert len(selectors) > 20
    for selector in ",".join(selectors).split(","):
        assert re.match(r"\s*\.dpa-tokens(:has\(\S+\))?(\s|$)", selector), selector
    view = token_view(table("a b", [(0, 1), (1, 3)]), "a b")
    assert view._repr_html_() == view.fragment and " id=" not in view.fragment


# ---- numbers


def test_the_numbers_of_a_token():
    """By hand: p = exp(log p), weight against 1/n, loss = -log p."""
    frame = table(
        "a red ball",
        [(0, 1), (1, 5), (5, 10)],
        ids=[5, 77, 8],
        log_p_seen=np.log([0.5, 0.75, 0.25]),
        log_p_blind=np.log([0.5, 0.125, 0.75]),
        weight=[0.5, 0.375, 0.125],
    )
    rows = Page(token_view(frame, "a red ball").fragment).rows()
    assert rows == [
        ["“a”", "5", "0.500", "0.500", "0.000", "1.50×", "0.693"],
        ["“␣red”", "77", "0.750", "0.125", "+0.625", "1.12×", "0.288"],
        ["“␣ball”", "8", "0.250", "0.750", "−0.500", "0.38×", "1.386"],
    ]
    spoken = [
        value for name, value in Page(token_view(frame, "a red ball").fragment).attributes if name == "aria-label"
    ]
    assert (
        spoken[1] == "token  red, id 77; p seen 0.750, p blind 0.125, relevance +0.625, weight 1.12×, loss 0.288 nats"
    )


def backgrounds(view):
    return re.findall(r'<span class="dpa-ink[^"]*" style="background: ([^"]*)">', view.fragment)


def test_colours_and_marks():
    text, spans = "a b c d", [(0, 1), (1, 3), (3, 5), (5, 7)]
    frame = table(
        text,
        spans,
        log_p_seen=np.log([0.9, 0.1, 0.5, 0.49]),
        log_p_blind=np.log([0.1, 0.9, 0.5, 0.5]),
        weight=[0.25, 0.5, 0.125, 0.125],
    )
    relevance = token_view(frame, text)
    assert backgrounds(relevance) == [ORANGE, BLUE, WHITE, mixture(BLUE, 0.01 / 0.8)]
    marked = re.findall(r'class="(dpa-ink[^"]*)"', relevance.fragment)
    assert ["dpa-below" in classes for classes in marked] == [False, True, False, False]  # -0.01 is not worth a mark
    assert "below −0.04" in relevance.fragment and "p seen − p blind" in relevance.fragment
    assert f"linear-gradient(90deg, {BLUE}, {WHITE}, {ORANGE})" in relevance.fragment
    for tick in ("−0.8", "0", "+0.8"):
        assert f">{tick}</span>" in relevance.fragment
    weight = token_view(frame, text, measure="weight")
    assert backgrounds(weight) == [mixture(ORANGE, share) for share in (0.5, 1.0, 0.25, 0.25)]  # of 2 times 1/n
    loss = token_view(frame, text, measure="loss")
    found = [min(-math.log(p) / 2.5, 1) for p in (0.9, 0.1, 0.5, 0.49)]
    assert backgrounds(loss) == [mixture(PURPLE, share) for share in found]
    assert f"linear-gradient(90deg, {WHITE}, {PURPLE})" in loss.fragment
    assert "<b>loss</b>, nats" in loss.fragment and "dpa-below" not in weight.fragment.split("</style>")[1]
    clipped = token_view(frame, text, measure="loss", limit=1.0)
    assert backgrounds(clipped)[1] == PURPLE and "≥ 1</span>" in clipped.fragment and "≥" not in loss.fragment


def test_a_difference_is_after_minus_before():
    text, spans = "a b", [(0, 1), (1, 3)]
    before, after = (
        table(text, spans, ids=[1, 2], log_p_seen=np.log(seen), log_p_blind=np.log([0.5, 0.5]), weight=[0.5, 0.5])
        for seen in ([0.5, 0.25], [0.25, 0.5])
    )
    view = token_view(after, text, measure="loss", other=before, names=("vanilla", "dpa"))
    assert backgrounds(view) == [mixture(ORANGE, math.log(2) / 0.8), mixture(BLUE, math.log(2) / 0.8)]
    cells = Page(view.fragment).tips[1]
    lines = [cells[i : i + 8] for i in range(8, len(cells), 8)]
    assert lines == [
        ["“␣b”", "2", "vanilla", "0.250", "0.500", "−0.250", "1.00×", "1.386"],
        ["", "", "dpa", "0.500", "0.500", "0.000", "1.00×", "0.693"],
        ["", "", "difference", "+0.250", "0.000", "+0.250", "0.00×", "−0.693"],
    ]
    assert "loss, <bdi>dpa</bdi> − <bdi>vanilla</bdi>" in view.fragment
    assert "<bdi>vanilla</bdi> 1.040, <bdi>dpa</bdi> 1.040 nats" in view.fragment


def test_the_unit_of_relevance_is_told_by_its_numbers():
    text, spans = "a b", [(0, 1), (1, 3)]
    assert "logit seen − logit blind" in token_view(table(text, spans, rule="cal"), text).fragment
    assert "<b>relevance</b></div>" in token_view(table(text, spans, relevance=[3.0, -2.0]), text).fragment
    same = {"log_p_seen": [-1.0, -1.0], "log_p_blind": [-1.0, -1.0]}
    plain = table(text, spans, relevance=[0.0, 0.0], logit_seen=[1.0, 1.0], logit_blind=[1.0, 1.0], **same)
    for rule in ("cmo", "cal"):  # a sample without a picture has relevance 0 under either
        token_view(table(text, spans, rule=rule), text, other=plain)
    with pytest.raises(InputError, match="relevance is of logit in one table and of probability in the other"):
        token_view(table(text, spans, rule="cal"), text, other=table(text, spans))


def test_equal_weights_are_no_full_colour():
    frame = table("a b", [(0, 1), (1, 3)], weight=[0.5, 0.5])
    assert backgrounds(token_view(frame, "a b", measure="weight")) == [mixture(ORANGE, 0.5)] * 2


def test_rounding_does_not_look_like_a_finding():
    """The same model scored twice: differences of 1e-7 stay white."""
    text, spans = "a b", [(0, 1), (1, 3)]
    frame = table(text, spans)
    nearly = frame.assign(log_p_seen=frame["log_p_seen"] + np.float32(1e-6))
    view = token_view(nearly, text, measure="loss", other=frame)
    assert backgrounds(view) == [WHITE, WHITE] and "−0.01</span>" in view.fragment


def test_bytes_of_a_character_share_an_element_in_stripes():
    text = "hm 🙂\n"
    frame = table(text, [(0, 2), (2, 4), (3, 4), (3, 4), (4, 5), (5, 5)])
    view = token_view(frame, text, measure="loss")
    page = Page(view.fragment)
    assert [len(cells) // 7 - 1 for cells in page.tips] == [1, 3, 1, 1]
    stripes = backgrounds(view)[1]
    limit = float(re.findall(r"left: 100%\">([\d.]+)</span>", view.fragment)[0])
    colours = [mixture(PURPLE, min(-p / limit, 1)) for p in frame["log_p_seen"][1:4].astype(float)]
    assert re.findall("#[0-9a-f]{6}", stripes) == colours and stripes.startswith("linear-gradient(90deg")
    assert "stripes: tokens that share a character" in view.fragment
    assert "∎ a token past the text" in view.fragment and "grey text" not in view.fragment


def test_ends_of_turns_stand_behind_their_turn_and_unscored_text_is_told():
    text = "yes\nwhat else? no\n"
    frame = table(text, [(0, 3), (3, 3), (15, 17), (18, 18)])
    fragment = token_view(frame, text).fragment.split("</style>")[1]
    assert Page(fragment).text == text
    body = re.sub(r'<span class="dpa-tip".*?</span></span>', "", fragment)
    places = [body.index(mark) for mark in (">yes<", "dpa-end", "dpa-unscored", ">no<")]
    assert places == sorted(places) and body.count("dpa-end") == 2 and body.rindex("dpa-end") > body.rindex("</i>")
    assert "grey text: not scored" in fragment


# ---- colours


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours #rrggbb as WCAG 2 defines it, 1 to 21; text is to have 4.5 at least."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance of a colour #rrggbb (WCAG 2), 0 to 1."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return sum(share * value for share, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_keeps_its_contrast_on_every_background():
    assert contrast("#000000", "#ffffff") == pytest.approx(21) and contrast("#fff000", "#fff000") == 1
    assert contrast("#767676", WHITE) == pytest.approx(4.54, abs=0.01)  # the grey that just passes, as is well known
    for end in (BLUE, ORANGE, PURPLE):
        assert all(contrast(INK, mixture(end, share)) >= 4.5 for share in np.linspace(0, 1, 101))
    assert contrast(MUTED, WHITE) >= 4.5
    for name in re.findall(r"[^-]color: (#[0-9a-f]+)", STYLE):
        assert contrast(name, WHITE) >= 4.5


def test_scales_read_in_grey_and_by_the_colour_blind():
    """Lightness falls with the value; blue and orange stay apart for each kind of dichromat (matrices of Machado 2009)."""
    for end in (BLUE, ORANGE, PURPLE):
        shades = [luminance(mixture(end, share)) for share in np.linspace(0, 1, 41)]
        assert all(one > following for one, following in pairwise(shades))
        assert shades[0] - shades[-1] > 0.5
    kinds = (
        ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
        ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
        ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
    )
    rgb = [(np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) / 255) ** 2.2 for c in (BLUE, ORANGE)]
    for kind in kinds:
        one, other = (np.array(kind) @ colour for colour in rgb)
        assert np.linalg.norm(one - other) > 0.4


# ---- what cannot be shown


@pytest.mark.parametrize(
    "change, message",
    [
        ({"drop": "weight"}, "token table: lacks weight"),
        ({"record": ["a", "b"]}, "holds 2 samples, a view shows one"),
        ({"log_p_seen": [np.nan, -1.0]}, "record 3, id 7: log_p_seen of token 0 is no finite number"),
        ({"weight": [0.5, np.inf]}, "record 3, id 7: weight of token 1 is no finite number"),
        ({"end": [1, 9]}, "token 1 is said to span characters 1 to 9 of a text of 3"),
        ({"start": [-1, 1]}, "token 0 is said to span"),
        ({"start": [2, 1], "end": [3, 3]}, "token 1 starts before the one ahead of it"),
    ],
)
def test_tables_that_do_not_fit_are_named(change, message):
    frame = table("a b", [(0, 1), (1, 3)])
    frame = frame.drop(columns=change["drop"]) if "drop" in change else frame.assign(**change)
    with pytest.raises(InputError, match=re.escape(message)):
        token_view(frame, "a b")


def test_arguments_that_do_not_fit_are_named():
    frame = table("a b", [(0, 1), (1, 3)])
    with pytest.raises(InputError, match="holds 0 samples"):
        token_view(frame[:0], "a b")
    with pytest.raises(InputError, match="measure 'p': choose one of relevance, weight, loss"):
        token_view(frame, "a b", measure="p")
    for limit in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="number above 0"):
            token_view(frame, "a b", limit=limit)


def test_only_the_same_tokens_are_compared():
    frame = table("a b", [(0, 1), (1, 3)], ids=[4, 5])
    with pytest.raises(
        InputError, match="record 3, id 7: token 1 is 5 ' b' under one model and 6 ' b' under the other; score"
    ):
        token_view(frame, "a b", other=table("a b", [(0, 1), (1, 3)], ids=[4, 6]))
    with pytest.raises(InputError, match="2 tokens under one model and 1 under the other"):
        token_view(frame, "a b", other=table("a b", [(0, 1)], ids=[4]))


def test_rows_are_read_in_the_order_of_their_places():
    frame = table("a b", [(0, 1), (1, 3)])
    assert token_view(frame[::-1], "a b") == token_view(frame, "a b")


def test_weights_that_are_all_zero_have_no_share():
    rows = Page(token_view(table("ab", [(0, 1), (1, 2)], weight=[0.0, 0.0]), "ab", measure="weight").fragment).rows()
    assert [row[5] for row in rows] == ["0.00×", "0.00×"]


# ---- the picture


def picture(size=(90, 60), mode="RGB"):
    return Image.linear_gradient("L").resize(size).convert(mode)


def held_picture(view):
    kind, data = re.search(r'src="data:image/(png|jpeg);base64,([^"]*)"', view.fragment).groups()
    return kind, Image.open(io.BytesIO(base64.b64decode(data)))


def test_the_picture_is_inside_bounded_and_without_its_file_s_secrets(tmp_path):
    noise = Image.effect_noise((1000, 500), 80).convert("RGB")
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a camera", 6
    noise.save(tmp_path / "big.jpg", exif=exif, icc_profile=b"p" * 200, comment=b"a place")
    view = token_view(table("a", [(0, 1)]), "a", image=tmp_path / "big.jpg")
    kind, held = held_picture(view)
    assert kind == "jpeg" and held.size == (480, 240)
    assert not held.getexif() and {"icc_profile", "comment", "exif"}.isdisjoint(held.info)
    drawing = picture((90, 60), "P")
    kind, held = held_picture(token_view(table("a", [(0, 1)]), "a", image=drawing))
    assert kind == "png" and held.size == (90, 60) and drawing.mode == "P"
    assert "dpa-small" in token_view(table("a", [(0, 1)]), "a", image=drawing).fragment.split("</style>")[1]
    assert "<img" not in token_view(table("a", [(0, 1)]), "a", image="").fragment


def test_a_picture_that_is_linked_to_is_read(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    picture().save(tmp_path / "a" / "x.png")
    (tmp_path / "b" / "link.png").symlink_to(tmp_path / "a" / "x.png")
    assert held_picture(token_view(table("a", [(0, 1)]), "a", image=str(tmp_path / "b" / "link.png")))[1].size == (
        90,
        60,
    )


def test_pictures_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"record 3, id 7: .*broken\.png is not an image"):
        token_view(table("a", [(0, 1)]), "a", image=tmp_path / "broken.png")
    with pytest.raises(InputError, match=r"absent\.png does not exist"):
        token_view(table("a", [(0, 1)]), "a", image=tmp_path / "absent.png")
    with pytest.raises(InputError, match="mode F"):
        token_view(table("a", [(0, 1)]), "a", image=picture(mode="F"))
    picture((300, 300)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:200])
    with pytest.raises(InputError, match="its picture is broken"):
        token_view(table("a", [(0, 1)]), "a", image=Image.open(tmp_path / "cut.png"))


# ---- the page and the command


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    view = token_view(table("a", [(0, 1)]), "a")
    path = tmp_path / "new" / "page.html"
    view.save(path)
    page = path.read_text(encoding="utf-8")
    assert (
        page.startswith('<!DOCTYPE html>\n<html lang="en">') and "<title>records.json, record 3, id 7</title>" in page
    )
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page

    def full(*paths):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        token_view(table("b", [(0, 1)]), "b").save(path)
    assert path.read_text(encoding="utf-8") == page and list(path.parent.iterdir()) == [path]


def test_the_module_loads_nothing_heavy():
    code = "import sys, analysis.tokens; print(*{'torch', 'pandas', 'PIL', 'transformers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


@pytest.fixture
def scored(monkeypatch, tmp_path):
    """Stands in for the models of `analysis.pairs`; what was asked of them."""
    asked = []
    picture().save(tmp_path / "x.png")

    def score_samples(checkpoint, samples, indices, weighting):
        asked.append((checkpoint, weighting.rule, list(indices)))
        told = {"record": "r", "id": "b", "corpus": "d.json", "text": "a b", "image": str(tmp_path / "x.png")}
        return table("a b", [(0, 1), (1, 3)], seed=len(checkpoint), record="r"), pd.DataFrame([told])

    class Samples(list):
        records = property(list)

    records = Samples([SimpleNamespace(id=name) for name in "abc"])
    pairs = SimpleNamespace(
        open_checkpoint=lambda name: name, samples_of=lambda *arguments: records, score_samples=score_samples
    )
    monkeypatch.setitem(sys.modules, "analysis.pairs", pairs)
    return asked


def test_the_command_writes_a_page(scored, tmp_path, capsys):
    html = tmp_path / "out.html"
    some = ["--data", "d.json", "--images", str(tmp_path), "--html", str(html)]
    assert main(["--model", "runs/a/dpa", "--id", "b", "--rule", "cal", *some]) == 0
    assert scored == [("runs/a/dpa", "cal", [1])] and "2 tokens of r" in capsys.readouterr().out
    assert Page(html.read_text().split(">", 1)[1]).text == "a b" and "data:image/png" in html.read_text()
    two = ["--model", "runs/a/dpa", "--before", "runs/b@start", "--index", "2", "--measure", "loss"]
    assert main([*two, *some]) == 0
    assert scored[1:] == [("runs/b@start", "cmo", [2]), ("runs/a/dpa", "cmo", [2])]
    assert "loss, <bdi>a/dpa</bdi> − <bdi>b@start</bdi>" in html.read_text()
    assert "<title>runs/b@start → runs/a/dpa</title>" in html.read_text()


@pytest.mark.parametrize(
    "which, message", [(["--index", "3"], "number 3"), (["--index", "-1"], "number -1"), (["--id", "z"], "id 'z'")]
)
def test_the_command_names_a_record_that_is_not_there(scored, tmp_path, capsys, which, message):
    assert main(["--model", "m", "--data", "d.json", "--html", str(tmp_path / "x.html"), *which]) == 2
    assert capsys.readouterr().err == f"error: d.json: no record with {message} among its 3; choose another\n"
    assert not (tmp_path / "x.html").exists() and not scored


# ---- in a browser


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, of the dev extra")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver on PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


WORDS = "amid quiet harmony, a spiky asterisk in fresh verdant, of modest stature, stands serene in the upper reaches. "


def caption(number=150):
    text = (WORDS * 20)[:10_000]
    spans = [match.span() for match in re.finditer(r" ?\w{1,6}|[,.]", text)][: number - 5]
    text = text[: spans[-1][1]] + " 🙂\n"
    at = len(text)
    return text, [*spans, (at - 3, at - 1), (at - 2, at - 1), (at - 2, at - 1), (at - 1, at), (at, at)]


def pointed_at(browser, element):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).move_to_element(element).perform()


def seen_tips(browser):
    """Elements of the numbers that are shown; their own display is asked for first, which is quick."""
    tips = browser.execute_script(
        "return [...document.querySelectorAll('.dpa-tip')].filter(e => getComputedStyle(e).display != 'none')"
    )
    return [tip for tip in tips if tip.is_displayed()]


def test_in_a_browser(browser, tmp_path):
    """Pointing and the tab key show the numbers; the picture is there; nothing is fetched, complained of or cut."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    text, spans = caption()
    frame = table(text, spans)
    token_view(frame, text, image=picture((300, 200)), title="a sample").save(tmp_path / "page.html")
    browser.set_window_size(800, 700)
    browser.get_log("performance")
    browser.get((tmp_path / "page.html").as_uri())
    assert browser.title == "a sample" and browser.execute_script("return window.innerWidth") == 800
    assert browser.execute_script("return document.images[0].naturalWidth") == 300
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 800
    elements = browser.find_elements(By.CLASS_NAME, "dpa-token")
    assert len(elements) == 150 - 2 and not seen_tips(browser)  # three tokens share the last character but one

    def shown(row):
        (tip,) = seen_tips(browser)
        cells = [cell.text for cell in tip.find_elements(By.TAG_NAME, "span")]
        values = frame.iloc[row]
        assert cells[7 + 1 : 7 + 4] == [
            str(values["token_id"]),
            f"{math.exp(values['log_p_seen']):.3f}",
            f"{math.exp(values['log_p_blind']):.3f}",
        ]
        assert cells[7 + 6] == f"{-values['log_p_seen']:.3f}"
        return cells

    pointed_at(browser, elements[20])
    shown(20)
    pointed_at(browser, elements[145])
    assert len(shown(145)) == 4 * 7
    pointed_at(browser, browser.find_element(By.CLASS_NAME, "dpa-about"))
    assert not seen_tips(browser)
    body = browser.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    shown(0)
    browser.switch_to.active_element.send_keys(Keys.TAB)
    shown(1)
    pointed_at(browser, elements[30])  # one at a time: what is pointed at comes first
    shown(30)
    assert browser.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    addresses = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
    assert (tmp_path / "page.html").as_uri() in addresses, "the log says nothing: the test neither"
    assert all(a == (tmp_path / "page.html").as_uri() or a.startswith("data:") for a in addresses), addresses


@pytest.mark.parametrize("anchors", [True, False], ids=["anchored", "centred"])
@pytest.mark.parametrize("width", [500, 900])
def test_numbers_are_cut_at_no_edge_and_move_nothing(browser, tmp_path, width, anchors):
    """Wherever the token stands, with and without what new browsers know of anchors; a box that cuts holds them too."""
    from selenium.webdriver.common.by import By

    text, spans = caption(60)
    frames = [table(text, spans, seed=seed) for seed in (0, 1)]
    view = token_view(
        frames[1],
        text,
        other=frames[0],
        image=picture(),
        names=("vanilla", "runs/a_name_that_is_rather_long_and_has_no_blank/connector@start"),
    )
    fragment = view.fragment if anchors else view.fragment.replace("anchor-scope: none", "no-such: thing")
    page = f'<!DOCTYPE html><meta charset="utf-8"><body style="background: #111"><div id="cell" style="overflow: auto">{fragment}</div>'
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    browser.set_window_size(width, 1000)
    browser.get((tmp_path / "page.html").as_uri())
    box = "return arguments[0].getBoundingClientRect().toJSON()"
    elements = browser.find_elements(By.CLASS_NAME, "dpa-token")
    before = browser.execute_script(
        "return [...document.querySelectorAll('.dpa-ink')].map(e => e.getBoundingClientRect().toJSON())"
    )
    main_box = browser.execute_script(box, browser.find_element(By.CLASS_NAME, "dpa-main"))
    for element in [*elements[:3], *elements[8:50:7], *elements[-4:]]:
        pointed_at(browser, element)
        (tip,) = seen_tips(browser)
        place = browser.execute_script(box, tip)
        ink = browser.execute_script(box, element.find_element(By.CLASS_NAME, "dpa-ink"))
        assert place["left"] >= main_box["left"] - 0.5 and place["right"] <= main_box["right"] + 0.5
        assert ink["bottom"] < place["top"] < ink["bottom"] + 16
        assert browser.execute_script(
            "let c = document.getElementById('cell'); return [c.scrollWidth - c.clientWidth, c.scrollHeight - c.clientHeight]"
        ) == [0, 0]
        if anchors:
            middle = (ink["left"] + ink["right"]) / 2
            assert place["left"] - 0.5 <= middle <= place["right"] + 0.5
    after = browser.execute_script(
        "return [...document.querySelectorAll('.dpa-ink')].map(e => e.getBoundingClientRect().toJSON())"
    )
    assert after == before


def test_numbers_of_many_bytes_stay_in_the_box(browser, tmp_path):
    """A character of four tokens under two models has twelve lines of numbers, below a text and a legend of few."""
    from selenium.webdriver.common.by import By

    frames = [table("🙂", [(0, 1)] * 4, seed=seed) for seed in (0, 1)]
    fragment = token_view(frames[1], "🙂", other=frames[0]).fragment
    (tmp_path / "page.html").write_text(f'<meta charset="utf-8"><div id="cell" style="overflow: auto">{fragment}</div>')
    browser.set_window_size(900, 1000)
    browser.get((tmp_path / "page.html").as_uri())
    pointed_at(browser, browser.find_element(By.CLASS_NAME, "dpa-token"))
    (tip,) = seen_tips(browser)
    assert tip.rect["height"] > 12 * 15
    assert (
        browser.execute_script("let c = document.getElementById('cell'); return c.scrollHeight - c.clientHeight") == 0
    )


def test_a_hostile_caption_in_a_browser(browser, tmp_path):
    """The real parser finds the text too; no script of it runs, and its marks of direction turn nothing."""
    spans = [(i, i + 2) for i in range(0, len(HOSTILE) - 2, 2)]
    token_view(table(HOSTILE, spans, record=HOSTILE), HOSTILE, title=HOSTILE).save(tmp_path / "page.html")
    browser.get((tmp_path / "page.html").as_uri())
    text = browser.execute_script(
        "let copy = document.querySelector('.dpa-text').cloneNode(true);"
        "copy.querySelectorAll('.dpa-tip').forEach(e => e.remove());"
        "copy.querySelectorAll('.dpa-sign').forEach(e => e.replaceWith('{' + e.dataset.code + '}')); return copy.textContent"
    )
    signs = "\x00\x07\r\t\x85\u202e\u202c\u2066\u2069\u200b\ufeff\u2028\ufffe"
    assert text == "".join(f"{{{ord(c):X}}}" if c in signs else c for c in HOSTILE)
    assert browser.execute_script("return window.pwned") is None and browser.get_log("browser") == []
