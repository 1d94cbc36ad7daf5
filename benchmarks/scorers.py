"""How one answer counts: rules that are pure functions of an item and a prediction, by name.

No judge, no key, no guess: an answer that names nothing is wrong, and counted apart. VLMEvalKit's own scorers are not
restated here, they run in `benchmarks.vlmevalkit`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.suites import LETTERS, Item


@dataclass(frozen=True)
class Rule:
    """value: what an answer scores, 0 to 1; parsed: whether it plainly names an option (any text, for open questions)."""

    value: Callable[[Item, str], float]
    parsed: Callable[[Item, str], bool]


def value(item: Item, prediction: str) -> float:
    """What a prediction scores by its item's rule, 0 to 1. An empty one scores nothing under any rule."""
    return RULES[item.rule].value(item, prediction) if prediction.strip() else 0.0


def is_parsed(item: Item, prediction: str) -> bool:
    """Whether a prediction plainly names an option; the others are wrong or read by force, and counted apart."""
    return bool(prediction.strip()) and RULES[item.rule].parsed(item, prediction)


def normalise(answer: str) -> str:
    """An answer as Cambrian's scorer reads it: lower case, without "answer is", "answer:" and the marks . : ( ) ,"""
    text = answer.lower().strip()
    for phrase in ("the answer is", "answer is", "answer:"):
        text = text.replace(phrase, "")
    return re.sub(r"[.:(),]", " ", text).strip()


def right_letter(item: Item) -> str:
    """The letter of the right option, lower case."""
    return LETTERS[item.options.index(item.answer)].lower()


def _names_option(item: Item, prediction: str) -> float:
    """The right option's letter or its text, and nothing else (Cambrian's MMVP)."""
    given, letter = normalise(prediction), right_letter(item)
    if given == normalise(item.answer):
        return 1.0
    return float(given == letter and letter not in map(normalise, item.options))


def _is_option(item: Item, prediction: str) -> bool:
    letters = {letter.lower() for letter in LETTERS[: len(item.options)]}
    return normalise(prediction) in letters | set(map(normalise, item.options))


def _first_character(item: Item, prediction: str) -> float:
    """Only the first character of the answer counts, as a letter (Cambrian's CV-Bench)."""
    return float(normalise(prediction)[:1] == right_letter(item))


def _starts_with_letter(item: Item, prediction: str) -> bool:
    letters = LETTERS[: len(item.options)]
    return bool(re.match(rf"\(?[{letters}]\b", prediction.strip())) or _is_option(item, prediction)


def _words(text: str) -> set[str]:
    return set(re.split(r"[^a-z]+", text.lower()))


def _pope(item: Item, prediction: str) -> float:
    """As POPE's authors read it: a first sentence with "no" or "not" is a no, any other answer a yes."""
    said = "no" if {"no", "not"} & _words(prediction.split(".")[0]) else "yes"
    return float(said == item.answer.lower())


def _says_yes_or_no(item: Item, prediction: str) -> bool:
    return bool({"yes", "no", "not"} & _words(normalise(prediction)))


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance in characters."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


ANLS_THRESHOLD = 0.5


def anls(answers: tuple[str, ...], prediction: str) -> float:
    """Average normalised Levenshtein similarity of one question, 0 to 1: that of the nearest answer, 0 below one half."""

    def similarity(answer: str) -> float:
        a, b = (" ".join(text.lower().split()) for text in (answer, prediction))
        longer = max(len(a), len(b))
        if longer == 0 or min(len(a), len(b)) < ANLS_THRESHOLD * longer:  # a gap in length alone is below the threshold
            return float(longer == 0)
        return 1 - edit_distance(a, b) / longer

    best = max(map(similarity, answers))
    return best if best >= ANLS_THRESHOLD else 0.0


def _contains(item: Item, prediction: str) -> float:
    """OCRBench: an accepted answer occurs in the prediction; formulas are compared without any space."""
    if item.task == "Handwritten Mathematical Expression Recognition":
        said, wanted = "".join(prediction.split()), ["".join(answer.split()) for answer in item.answers]
    else:
        said = " ".join(prediction.lower().strip().split("\n"))
        wanted = [answer.lower().strip().replace("\n", " ") for answer in item.answers]
    return float(any(answer in said for answer in wanted))


def _any_text(item: Item, prediction: str) -> bool:
    return True


RULES = {
    "option": Rule(_names_option, _is_option),
    "first-character": Rule(_first_character, _starts_with_letter),
    "pope": Rule(_pope, _says_yes_or_no),
    "anls": Rule(lambda item, prediction: anls(item.answers, prediction), _any_text),
    "contains": Rule(_contains, _any_text),
}
