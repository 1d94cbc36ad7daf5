"""Words and their kinds: every text has its words where they stand, and the list says what people would say."""

import re
import socket
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import lexicon
from analysis.lexicon import LABELS, label, word_classes, words_of
from dpa.lab import language

FOLDER = Path(lexicon.__file__).parent / "lexicon"
VISUAL = """dog zebra bird man woman child surfer chef tree flower grass pizza banana sandwich hand beard head car bus bicycle
table chair lamp shirt umbrella laptop skateboard building street bridge mountain beach sky water snow sand wood circle
triangle red crimson turquoise striped plaid wooden metallic tiny huge tall round curly wet bald left right above behind
between beside corner background two seven dozen several walk jump ride hold wear smile eat stand lean pour shadow sunset
crowd herd bed seed feed king wedding baseball tennis sign logo"""
STYLE = """the a of and with this that which it is was are can might not or but while image picture photo scene view overall
atmosphere ambiance sense mood captures showcasing suggesting depicts portrays exudes conveys evokes highlighting adding
creating serene beautiful captivating stunning majestic elegant harmonious peaceful cozy vibrant quaint perhaps possibly
seemingly beautifully gracefully meanwhile moreover however therefore additionally joy nostalgia tranquility hope idea
belief reason story narrative think believe know wonder imagine suggest say describe essence charm elegance testament"""
OTHER = """time day morning evening year week government economy paris london monday photosynthesis zzyzx hot cold
trade election health manage govern process progress february december"""


@pytest.mark.parametrize(("kind", "words"), [("visual", VISUAL), ("style", STYLE), ("other", OTHER)])
def test_words_that_everybody_would_label_so(kind, words):
    assert {word: label(word) for word in words.split() if label(word) != kind} == {}
    assert len(words.split()) >= (60 if kind != "other" else 20)


@pytest.mark.parametrize(
    ("form", "lemma"),
    [
        *(
            ("dogs", "dog"),
            ("boxes", "box"),
            ("berries", "berry"),
            ("knives", "knife"),
            ("men", "man"),
            ("feet", "foot"),
        ),
        *(("mice", "mouse"), ("children", "child"), ("holding", "hold"), ("riding", "ride"), ("running", "run")),
        *(("parked", "park"), ("carried", "carry"), ("worn", "wear"), ("taller", "tall"), ("biggest", "big")),
        *(("believed", "believe"), ("thought", "think"), ("stories", "story"), ("paintings", "painting")),
        *(
            ("skateboarders", "skateboarder"),
            ("menus", "menu"),
            ("taxis", "taxi"),
            ("flowers", "flower"),
            ("tomatoes", "tomato"),
            ("buses", "bus"),
        ),
        *(("DOGS", "dog"), ("dog's", "dog"), ("dog\u2019s", "dog"), ("dogs'", "dog"), ("isn't", "is"), ("it's", "it")),
        *(("fire-truck", "truck"), ("wood\u2011paneled", "paneled"), ("blue-ish", "blue"), ("self-belief", "belief")),
    ],
)
def test_a_form_is_what_its_word_is(form, lemma):
    assert label(form) == label(lemma) != "other"


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        *(
            ("evening", "other"),
            ("2", "visual"),
            ("100", "visual"),
            ("2017", "other"),
            ("\u00b2", "other"),
            ("", "other"),
        ),
        *(("'", "other"), ("-", "other"), ("brightly", "style"), ("zzyzxly", "other"), ("\u6771", "other")),
        *(("glass", "visual"), ("bus", "visual"), ("this", "style"), ("during", "style"), ("bring", label("bring"))),
    ],
)
def test_words_that_are_no_form_of_another(word, kind):
    assert label(word) == kind


def test_words_of_the_lab_are_labelled_as_any_others():
    facts = {word for phrase in (*language.ORNATE, *language.NUMBERS) for word in phrase.split()}
    assert {word for word in facts if label(word) != "visual"} == set()
    told = {word for phrase in language._CLOSINGS + language._LINKS for word in phrase.split()}
    assert Counter(label(word) for word in told)["style"] > 0.75 * len(told) and label("tableau") == "style"
    assert label("crimson") == label("starlet") == label("saltire") == "visual"


def test_the_shipped_list_is_whole_and_small():
    lines = (FOLDER / "words.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines[1:]]
    assert lines[0] == "word\tclass\twhy" and {len(row) for row in rows} == {3}
    words = [word for word, _, _ in rows]
    assert words == sorted(set(words)) and all(word == word.casefold() and not re.search(r"\s", word) for word in words)
    assert {kind for _, kind, _ in rows} == set(LABELS) and all(why for _, _, why in rows)
    assert (FOLDER / "words.tsv").stat().st_size < 700_000
    assert lexicon.lexicon() == {word: kind for word, kind, _ in rows}


def texts():
    """Texts of all kinds of characters, and of those that words are made of."""
    pieces = st.sampled_from(
        [
            "don't",
            "ha\u00efr",
            "e\u0301",
            "3.5",
            "\u6771\u4eac",
            "\u30c6\u30b9\u30c8",
            "\U0001f642",
            "\0",
            "'",
            "-",
            "...",
            " ",
            "\n",
        ]
    )
    return st.one_of(st.text(max_size=80), st.lists(pieces, max_size=20).map("".join))


@settings(max_examples=300, deadline=None)
@given(texts())
def test_spans_are_ordered_disjoint_and_leave_out_white_space_alone(text):
    spans = [span[:2] for span in word_classes(text)]
    ends = [0, *(end for _, end in spans)]
    assert all(before <= start < end for before, (start, end) in zip(ends, spans, strict=False))
    gaps = [text[end:start] for end, (start, _) in zip(ends, [*spans, (len(text), 0)], strict=True)]
    assert all(not gap or gap.isspace() for gap in gaps)
    words = words_of(text)
    assert set(words) <= set(spans) and sorted(words) == words
    inside = "".join(text[start:end] for start, end in words)
    outside = "".join(text[start:end] for start, end in spans if (start, end) not in set(words))
    assert not any(char.isalnum() for char in outside) and not any(char.isspace() for char in inside)
    # "Cn": letters that are younger than Python's tables
    assert all(text[start].isalnum() or unicodedata.category(text[start]) == "Cn" for start, _ in words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A dog's well-lit tail, isn't it?", ["A", "dog's", "well-lit", "tail", "isn't", "it"]),
        ("'tis -- the dogs' 1,000 steps (3.5 m).", ["tis", "the", "dogs", "1,000", "steps", "3.5", "m"]),
        ("\u6771\u4eac\u30bf\u30ef\u30fc 2", ["\u6771", "\u4eac", "\u30bf", "\u30ef", "\u30fc", "2"]),
        (
            "\u0928\u092e\u0938\u094d\u0924\u0947 \u0434\u0440\u0443\u0433 e\u0301te\u0301",
            ["\u0928\u092e\u0938\u094d\u0924\u0947", "\u0434\u0440\u0443\u0433", "e\u0301te\u0301"],
        ),
        ("a\0b \U0001f642 snow_man", ["a", "b", "snow", "man"]),
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467\ufe0f !?... \u2014", []),
        ("", []),
    ],
)
def test_words_of_known_texts(text, words):
    assert [text[start:end] for start, end in words_of(text)] == words


def test_parts_of_speech_of_a_caption():
    text = "The two dogs quickly chased Paris\u2019s red ball, and it wasn't left \U0001f642 there in \u6771."
    found = [(text[start:end], name) for start, end, name in word_classes(text)]
    assert found == [
        *(("The", "determiner"), ("two", "number"), ("dogs", "noun"), ("quickly", "adverb"), ("chased", "verb")),
        *(("Paris\u2019s", "proper noun"), ("red", "adjective"), ("ball", "noun"), (",", "punctuation")),
        *(
            ("and", "conjunction"),
            ("it", "pronoun"),
            ("wasn't", "verb"),
            ("left", "adjective"),
            ("\U0001f642", "other"),
        ),
        *(("there", "pronoun"), ("in", "preposition"), ("\u6771", "other"), (".", "punctuation")),
    ]


def test_a_capital_at_the_start_of_a_sentence_makes_no_name():
    names = {text: word_classes(text)[-1][2] for text in ("Xylorimbas", "Stop. Xylorimbas", "the Xylorimbas")}
    assert names == {"Xylorimbas": "noun", "Stop. Xylorimbas": "noun", "the Xylorimbas": "proper noun"}


def test_long_texts_and_no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("asks the network")

    monkeypatch.setattr(socket, "socket", refuse)
    lexicon._part_of_speech.cache_clear()
    for text in ("x" * 100_000, "a-" * 50_000, "-" * 100_000, "a red ball \U0001f642 " * 8000, "\0" * 1000, "'" * 9999):
        spans = word_classes(text)
        assert sum(end - start for start, end, _ in spans) == len(text) - text.count(" ")
        assert label(text[:60_000]) in LABELS


def test_few_words_of_people_are_in_neither_list(shared):
    for name, most in (
        ("crowd_coco", 0.03),
        ("spoken_localized_narratives", 0.02),
        ("model_paragraph_vila13b_coco", 0.04),
    ):
        text = (shared / "data" / "caption_styles" / f"{name}.txt").read_text(encoding="utf-8")
        counts = Counter(label(text[start:end]) for start, end in words_of(text))
        assert counts["other"] / counts.total() < most
        assert counts["visual"] / counts.total() > 0.3
