"""What kind of word a word is: `visual` (it says what can be seen), `style` (it says how the caption is written), `other`.

The paper had GPT-4.1 label the words. Here a list does that the package ships, `lexicon/words.tsv`, made from WordNet and
from our own `lexicon/hand.tsv` (`analysis.wordnet`); a form that it does not hold is looked up as the word it is a form of.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from importlib import resources
from typing import Literal, cast, get_args

import regex

Label = Literal["visual", "style", "other"]
LABELS: tuple[Label, ...] = get_args(Label)
FOLDER = resources.files("analysis") / "lexicon"

# Regular inflection: ending>what stands in its place in the lemma, in the order tried.
INFLECTION = """s> ches>ch shes>sh sses>ss xes>x zes>z oes>o ies>y ves>f ves>fe men>man es> ied>y ed>e ed> ing>e ing>
ier>y iest>y er>e er> est>e est>"""
ENDINGS = [(ending, stem) for ending, _, stem in (pair.partition(">") for pair in INFLECTION.split())]
ADVERB = (("ily", "y"), ("ly", "le"), ("ally", ""), ("ly", ""))
DOUBLED = re.compile(r"(.*[aeiouy]([bdgklmnprtvz]))\2(?:ed|ing|er|est)")
CLITIC = re.compile(r"(?:n't|'(?:s|re|m|ve|d|ll))?'?$")
NUMBER = re.compile(r"\d{1,3}")
PLAINER = str.maketrans("\u2019\uff07\u2010\u2011", "''--", "\u00ad")  # apostrophes and hyphens as on a keyboard

# Words of any script: letters, digits and their marks, with apostrophes and hyphens inside, points inside numbers.
# Chinese and Japanese characters stand one by one; other scripts without blanks (Thai) give long words.
_HAN = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
_LETTERS = rf"(?:[[\p{{L}}\p{{N}}]--{_HAN}][\p{{M}}\u200c\u200d]*+)++"
_INSIDE = r"(?:['\u2019\uff07\-\u2010\u2011\u00ad]|(?<=\p{Nd})[.,](?=\p{Nd}))"
_WORD = rf"[{_HAN}&&[\p{{L}}\p{{N}}]]\p{{M}}*+|{_LETTERS}(?:{_INSIDE}{_LETTERS})*+"
PIECE = regex.compile(rf"(?V1)(?P<word>{_WORD})|(?P<mark>(\p{{P}})\3*+)|[^\s\p{{L}}\p{{N}}\p{{P}}]++")
# Coarse classes by how the Penn Treebank's tags begin; the first that fits.
CLASSES = {
    "proper noun": ("NNP",),
    "noun": ("NN",),
    "verb": ("VB", "MD"),
    "adjective": ("JJ",),
    "adverb": ("RB", "WRB"),
    "pronoun": ("PRP", "WP", "WDT", "EX"),
    "determiner": ("DT", "PDT"),
    "preposition": ("IN", "TO", "RP"),
    "number": ("CD",),
    "conjunction": ("CC",),
}
# Words whose most frequent tag is not that of captions, or that the Treebank counts among prepositions.
SUBORDINATING = ("if", "because", "although", "though", "unless", "whereas", "while", "whilst", "whether")
OWN_CLASS = {
    **dict.fromkeys(("bear", "leaves", "setting", "sink"), "noun"),
    **dict.fromkeys(SUBORDINATING, "conjunction"),
    **{"left": "adjective", "that": "pronoun"},
}


def words_of(text: str) -> list[tuple[int, int]]:
    """(start, end) of each word of a text in any script, in characters and in order; punctuation is in none."""
    return [match.span() for match in PIECE.finditer(text) if match["word"]]


def word_classes(text: str) -> list[tuple[int, int, str]]:
    """(start, end, part of speech) of each word of `words_of`, and of what stands between them but white space, in order.

    noun, proper noun, verb, adjective, adverb, pronoun, determiner, preposition, number, conjunction, punctuation, other:
    words without a Latin letter, emoji and other signs. English, each word by itself: its most frequent tag, or one by its
    ending (TextBlob's tagger, whose rules of context made captions worse: they have "of" a verb).
    """
    found, starts = [], True
    for match in PIECE.finditer(text):
        if word := match["word"]:
            found.append((*match.span(), _part_of_speech(word, starts)))
            starts = False
        else:
            found.append((*match.span(), "punctuation" if match["mark"] else "other"))
            starts = starts or match[0][0] in ".!?:\n"
    return found


@lru_cache(maxsize=100_000)
def _part_of_speech(word: str, starts_sentence: bool) -> str:
    if not regex.search(r"\p{Latin}", word):
        return "number" if regex.fullmatch(r"[\p{N}.,'-]+", word) else "other"
    from textblob.en import lexicon as known
    from textblob.en import parser

    word = CLITIC.sub("", word.translate(PLAINER)) or word
    if starts_sentence and word not in known:
        word = word.lower()  # not a name for its capital
    if word.lower() in OWN_CLASS:
        return OWN_CLASS[word.lower()]
    ((_, tag),) = parser.find_tags([word])
    return next((name for name, starts in CLASSES.items() if tag.startswith(starts)), "other")


@lru_cache(maxsize=1)
def lexicon() -> dict[str, str]:
    """{word: visual, style or other} of the shipped words: lemmas and irregular forms, lower case.

    `other` blocks a word that lookup would take for a form of another ("evening" for "even").
    """
    lines = (FOLDER / "words.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return {word: kind for word, kind, _ in (line.split("\t") for line in lines)}


@lru_cache(maxsize=100_000)
def label(word: str) -> Label:
    """The kind of a word in any case or form: as it stands, without 's and n't, or as a regular form of a word.

    Numbers of up to three digits are visual (they count things), longer ones (years) other. An unknown word with hyphens
    is what its last part is, or else its first; one formed with -ly from a known one is style. What is left is other.
    """
    return cast(Label, kind_in(word.casefold().translate(PLAINER), lexicon()) or "other")


def kind_in(word: str, known: dict[str, str]) -> str | None:
    """The kind of a lower-case word in `known`, {word: kind}, by the rules of `label`; None when it is in no form."""
    if word in known:
        return known[word]
    word = CLITIC.sub("", word)
    if word.isdigit():
        return "visual" if NUMBER.fullmatch(word) else "other"
    for form in forms_of(word):
        if form in known:
            return known[form]
    parts = [part for part in word.split("-") if part]
    for part in (parts[-1], parts[0]) if len(parts) > 1 else ():
        if (kind := kind_in(part, known)) in ("visual", "style"):
            return kind
    if any(word.endswith(ending) and word.removesuffix(ending) + stem in known for ending, stem in ADVERB):
        return "style"
    return None


def forms_of(word: str) -> Iterator[str]:
    """The word and what it may be a regular form of."""
    yield word
    for ending, instead in ENDINGS:
        stem = word.removesuffix(ending)
        if stem != word and len(stem + instead) > 1:
            yield stem + instead
    if doubled := DOUBLED.fullmatch(word):
        yield doubled[1]
    if word.endswith(("ings", "ers")):
        yield from forms_of(word.removesuffix("s"))
