"""How one answer counts: rules that are pure functions of an item and a prediction, by name.

No judge, no key, no guess: an answer that names nothing is wrong, and counted apart. VLMEvalKit's own scorers are not
restated here, they run in `benchmarks.vlmevalkit`; one of its former parsers is, because published scores need it.
Cambrian's stand in `benchmarks.cambrian`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein

from benchmarks import cambrian
from benchmarks.suites import LETTERS, Item


@dataclass(frozen=True)
class Rule:
    """value: what an answer scores, 0 to 1; parsed: whether it plainly names an option (any text, for open questions)."""

    value: Callable[[Item, str], float]
    parsed: Callable[[Item, str], bool]


def value(item: Item, prediction: str, rule: str = "") -> float:
    """What a prediction scores, 0 to 1, by its item's rule or another. An empty one scores nothing under any rule."""
    return RULES[rule or item.rule].value(item, prediction) if prediction.strip() else 0.0


def is_parsed(item: Item, prediction: str, rule: str = "") -> bool:
    """Whether a prediction plainly names an option; the others are wrong or read by force, and counted apart."""
    return bool(prediction.strip()) and RULES[rule or item.rule].parsed(item, prediction)


def _offered(item: Item) -> dict[str, str]:
    """{letter: text} of the options; a table may leave cells between them empty."""
    return {letter: text for letter, text in zip(LETTERS, item.options, strict=False) if text}


def _bare(answer: str) -> str:
    """An answer in lower case, without "answer is", "answer:" and the marks . : ( ) ,"""
    text = answer.lower().strip()
    for phrase in ("the answer is", "answer is", "answer:"):
        text = text.replace(phrase, "")
    return re.sub(r"[.:(),]", " ", text).strip()


def _names_option(item: Item, prediction: str) -> float:
    """The right option's letter or its text, and nothing else; a letter that is itself an option's text is no letter."""
    given, letter = _bare(prediction), item.letter.lower()
    if given == _bare(item.answer):
        return 1.0
    return float(given == letter and letter not in map(_bare, item.options))


def _is_option(item: Item, prediction: str) -> bool:
    return _bare(prediction) in {*map(str.lower, _offered(item)), *map(_bare, item.options)}


def _first_character(item: Item, prediction: str) -> float:
    """Only the first character of what Cambrian's scorers take for the answer counts, as a letter."""
    return float(cambrian.extracted(prediction)[:1] == item.letter.lower())


def _starts_with_letter(item: Item, prediction: str) -> bool:
    letters = LETTERS[: len(item.options)]
    return bool(re.match(rf"\(?[{letters}]\b", prediction.strip())) or _is_option(item, prediction)


YES_NO = {"yes", "no"}
ASKED_FOR_WORDS = ("POPE", "NaturalBench")  # of their yes-or-no questions the options have no letters


def _plain_letter(item: Item, prediction: str) -> str:
    """The letter of the option that the answer plainly names, "" if it names none.

    It begins with the letter ("B", "(B)", "B. a dog", "B a dog" where that is the option's text: "A dog" names no A), or
    is an option's text and nothing else. To a yes-or-no question it begins with one of the two words.
    """
    text, options = prediction.strip(), _offered(item)
    words = {option.lower(): letter for letter, option in options.items()}
    if words.keys() == YES_NO:
        word = re.match(r"(yes|no)\b", text, re.IGNORECASE)
        if word or item.benchmark in ASKED_FOR_WORDS:
            return words[word[1].lower()] if word else ""
    alone = re.fullmatch(r"\(?([A-Za-z])\)?[.:,]?", text)
    marked = re.match(r"\(([A-Z])\)|([A-Z])[).:,\n]", text)
    spaced = re.match(r"([A-Z])\s+", text)
    letter = (alone or marked or spaced or [""])[0].strip("().:,\n ").upper()
    if letter in options and (alone or marked or text[2:].strip().lower().startswith(options[letter].lower())):
        return letter
    said = text.rstrip(".").lower()
    named = [letter for letter, option in options.items() if option.strip().rstrip(".").lower() == said]
    return named[0] if len(named) == 1 else ""


MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


def _letter_anywhere(item: Item, prediction: str) -> str:
    """The letter of the one option whose letter stands alone in the answer or, where none or several do, whose text is in it.

    Reference: VLMEvalKit's parser as of 2024. The present one also wants the letter among the last five words, and does not
    look for texts in an answer more than twice as long as all options; a "Z" has always been its word for none of them.
    """
    words, options = set(prediction.translate(MARKS).split()), _offered(item)
    named = [letter for letter in options if letter in words]
    if len(named) > 1 or (not named and "Z" not in words):
        named = [letter for letter, option in options.items() if option.lower() in prediction.lower()]
    return named[0] if len(named) == 1 else ""


def _first_word(item: Item, prediction: str) -> str:
    """The first word, lower case and without closing marks: Cambrian's MMStar, POPE."""
    return prediction.lower().split()[0].rstrip(".:,")


def _first_word_right(item: Item, prediction: str) -> float:
    wanted = item.answer if item.benchmark in ASKED_FOR_WORDS else item.letter
    return float(_first_word(item, prediction) == wanted.lower())


def _first_word_parsed(item: Item, prediction: str) -> bool:
    offered = item.options if item.benchmark in ASKED_FOR_WORDS else _offered(item)
    return _first_word(item, prediction) in set(map(str.lower, offered))


def _names(letter: Callable[[Item, str], str]) -> Rule:
    """The rule of a parser that gives the letter of an option or ""."""
    return Rule(
        lambda item, prediction: float(letter(item, prediction) == item.letter),
        lambda item, prediction: letter(item, prediction) != "",
    )


def _pope_says(prediction: str) -> str:
    """As POPE's authors read it: a first sentence with the word No, no or not is a no, any other answer a yes."""
    words = prediction.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def _says_yes_or_no(item: Item, prediction: str) -> bool:
    return bool({"yes", "no", "not"} & set(re.split(r"[^a-z]+", prediction.lower())))


def _earlier_word(item: Item, prediction: str) -> str:
    """The letter of the option whose word stands first in the answer: Yes or No, else the letters, in either case; "" if
    none does (NaturalBench).
    """
    options = _offered(item)
    words = options if {option.lower() for option in options.values()} == YES_NO else {c: c for c in options}
    places = {c: re.search(rf"\b{word}\b", prediction, re.IGNORECASE) for c, word in words.items()}
    found = {letter: place.start() for letter, place in places.items() if place}
    return min(found, key=lambda letter: found[letter]) if found else ""


ANLS_THRESHOLD = 0.5


def anls(answers: tuple[str, ...], prediction: str) -> float:
    """Average normalised Levenshtein similarity of one question, 0 to 1: that of the nearest answer, 0 below one half.

    Reference: as the official scorer of DocVQA (rrc.cvc.uab.es) and VLMEvalKit: the distance is that of the texts in lower
    case with single spaces, the length it is divided by that of the longer text as given, so spaces too many cost nothing
    at first but make the text longer. The papers' formula gives 0 at exactly one half; the scorers keep it.
    """

    def similarity(answer: str) -> float:
        longer = max(len(answer.upper()), len(prediction.upper()))
        first, second = (" ".join(text.lower().split()) for text in (answer, prediction))
        # a distance over half of the length is not worked out: texts of 200,000 characters would take minutes
        return 1 - Levenshtein.distance(first, second, score_cutoff=longer // 2 + 1) / longer if longer else 1.0

    best = max(map(similarity, answers))
    return best if best >= ANLS_THRESHOLD else 0.0


PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(n) for n, word in enumerate(re.findall(r"\w+", NUMBER_WORDS))} | {"none": "0"}


def _vqa_normalised(text: str) -> str:
    """A text after the normalisation of VQA: lower case, no punctuation and articles, numbers to ten as digits.

    Reference: its table of contractions ("dont" for "don't") is left out; no accepted answer of DocVQA's validation set
    has a form that it changes. A mark beside a space goes, one between letters becomes a space, unless the text holds a
    number like 1,000: then all of them go. Full stops that no digit follows go, the first 32 of them (the flag of a
    regular expression stands where a count belongs).
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    joined, cleaned = re.search(r"\d,\d", text), text
    for mark in PUNCTUATION:
        cleaned = cleaned.replace(mark, "" if joined or f"{mark} " in text or f" {mark}" in text else " ")
    words = re.sub(r"\.(?!\d)", "", cleaned, count=32).lower().split()
    return " ".join(NUMBERS.get(word, word) for word in words if word not in ("a", "an", "the"))


def _word_match(item: Item, prediction: str) -> float:
    """An accepted answer occurs as whole words in the prediction, both normalised (MultimodalOCR's DocVQA)."""
    said = _vqa_normalised(prediction)
    return float(any(re.search(rf"\b{re.escape(_vqa_normalised(answer))}\b", said) for answer in item.answers))


FORMULAS = "Handwritten Mathematical Expression Recognition"


def _contains(item: Item, prediction: str) -> float:
    """OCRBench: an accepted answer occurs in the prediction, in either case; formulas are compared without spaces."""

    def form(text: str) -> str:
        flat = text.strip().replace("\n", " ")
        return flat.replace(" ", "") if item.task == FORMULAS else flat.lower()

    return float(any(form(answer) in form(prediction) for answer in item.answers))


def _any_text(item: Item, prediction: str) -> bool:
    return True


RULES = {
    "option": Rule(_names_option, _is_option),
    "first-character": Rule(_first_character, _starts_with_letter),
    "cambrian-mmvp": Rule(cambrian.mmvp_value, cambrian.mmvp_parsed),
    "cambrian-first-letter": Rule(cambrian.cvbench_value, cambrian.cvbench_parsed),
    "first-word": Rule(_first_word_right, _first_word_parsed),
    "letter": _names(_plain_letter),
    "letter-anywhere": _names(_letter_anywhere),
    "earlier-word": _names(_earlier_word),
    "pope": Rule(lambda item, prediction: float(_pope_says(prediction) == item.answer.lower()), _says_yes_or_no),
    "anls": Rule(lambda item, prediction: anls(item.answers, prediction), _any_text),
    "word-match": Rule(_word_match, _any_text),
    "contains": Rule(_contains, _any_text),
}
