"""MMVP and CV-Bench by Cambrian's protocol: its prompts, and its scorers as functions of one item and one answer.

Reference: `eval/eval/{mmvp,coco,omni}` of cambrian-mllm/cambrian at a220b3f and 0d7ca41. Two things are kept apart from
it: answers are found by index, not by the order of lines (a dropped line shifts all its pairs), and a pair that lacks a
half is refused. What its scorers read is kept as it is, oddities included: "answer is: B" is wrong, for only the text
behind "answer is" is read and it begins with a colon; of a CV-Bench answer the first character counts, so that
"because" is a B.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from benchmarks.linked import LETTER_LINE
from benchmarks.suites import LETTERS, Item
from dpa.errors import InputError

# The labels of these two pairs stand the wrong way round (tsb0601/MMVP issues 14 and 30); scores are published with them.
SWAPPED = (99, 100, 279, 280)
SETS = {"CVBench-2D": ("ADE20K", "COCO"), "CVBench-3D": ("Omni3D",)}  # averaged with equal weight

Row = tuple[str, Mapping[str, str]]  # where it stands, and its fields as text; `picture` is the path of its picture


def mmvp_items(rows: Iterable[Row], line: str = LETTER_LINE, corrected: bool = False) -> list[Item]:
    """MMVP's items, of its own Questions.csv or of VLMEvalKit's table; the unit is the pair, 1 to 150.

    line: the last line of the prompt. corrected: turn the labels that are known to be swapped.
    InputError for a pair without its other half, or whose halves do not belong together.
    """
    items, numbers = [], []
    places: dict[str, str] = {}
    for where, fields in rows:
        index = _index(fields, where, places)
        if not index.isdecimal():
            raise InputError(f"{where}: index {index!r} is no number, and numbers tell which two questions are a pair")
        numbers.append(int(index))
        question = _field(fields, where, "question", "Question")
        options = _choices(fields) or _in_brackets(_field(fields, where, "Options"))
        if len(options) != 2:
            raise InputError(f"{where}: MMVP item {index} has {len(options)} options instead of two: {options}")
        answer = _right(_field(fields, where, "answer", "Correct Answer"), options, where)
        listed = "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
        prompt = f"{question} Options:{listed}\n{line}"
        item = Item("MMVP", index, fields["picture"], prompt, answer, options, index, "MMVP", rule="cambrian-mmvp")
        items.append(item)
    base = 0 if 0 in numbers else 1  # VLMEvalKit's tables may count from 0
    pairs: dict[int, list[Item]] = {}
    for place, (item, number) in enumerate(zip(items, numbers, strict=True)):
        count = number - base + 1
        if corrected and count in SWAPPED:
            item = replace(item, answer=item.options[1 - item.options.index(item.answer)])
        items[place] = replace(item, unit=str((count + 1) // 2))
        pairs.setdefault((count + 1) // 2, []).append(items[place])
    for pair, halves in pairs.items():
        first, second = halves[0], halves[-1]
        if len(halves) != 2:
            raise InputError(
                f"{places[first.index]}: MMVP item {first.index} lacks its other half (pair {pair}); a score over part of the pairs would mean something else, get the whole file"
            )
        if first.prompt != second.prompt or first.answer == second.answer:
            raise InputError(
                f"{places[first.index]}: MMVP items {first.index} and {second.index} (pair {pair}) should be one question with two answers; a row is missing or was renumbered, get the whole file"
            )
    return items


def cvbench_items(benchmark: str, rows: Iterable[Row], line: str = LETTER_LINE) -> list[Item]:
    """CV-Bench's 2D or 3D items, of its own files or of VLMEvalKit's tables; task: ADE20K, COCO or Omni3D.

    The unit is the photo: no two of the 1,438 2D items share one, 3D items may. VLMEvalKit's tables list the options as
    "A 3"; Cambrian's prompt has "(A) 3", which is put back.
    """
    items = []
    places: dict[str, str] = {}
    for where, fields in rows:
        kind = _field(fields, where, "split", "type")
        if f"CVBench-{kind}" != benchmark:
            continue
        index = _index(fields, where, places)
        options = _choices(fields)
        answer = _right(_field(fields, where, "answer"), options, where)
        letter = () if options.count(answer) == 1 else (_field(fields, where, "answer").strip(" ()").upper(),)
        prompt = _field(fields, where, "prompt")
        bare = "".join(f"\n{letter} {option}" for letter, option in zip(LETTERS, options, strict=False))
        if prompt.endswith(bare):
            marked = "".join(f"\n({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
            prompt = prompt.removesuffix(bare) + marked
        task = _field(fields, where, "source")
        if task not in SETS[benchmark]:
            raise InputError(f"{where}: source {task!r} of item {index} is none of {', '.join(SETS[benchmark])}")
        photo = f"{fields.get('source_dataset', '')}/{fields.get('source_filename') or fields['picture']}"
        prompt = f"{prompt}\n{line}"
        item = Item(benchmark, index, fields["picture"], prompt, answer, options, photo, task, answers=letter)
        items.append(replace(item, rule="cambrian-first-letter"))
    return items


def extracted(prediction: str) -> str:
    """What Cambrian's scorers take for the answer: lower case, the text behind the last "answer is" or "answer:",
    without closing .:, and brackets around it.
    """
    text = prediction.lower().strip()
    for phrase in ("answer is", "answer:"):
        text = text.split(phrase)[-1]
    return text.strip().rstrip(".:,").lstrip("(").rstrip(")")


def mmvp_value(item: Item, prediction: str) -> float:
    """1 when the answer is the right option's letter or its text (mmvp_test.py), else 0."""
    return float(extracted(prediction) in (item.letter.lower(), item.answer.lower()))


def mmvp_parsed(item: Item, prediction: str) -> bool:
    """Whether the answer is one of the options' letters or texts."""
    return extracted(prediction) in {*LETTERS[: len(item.options)].lower(), *map(str.lower, item.options)}


def cvbench_value(item: Item, prediction: str) -> float:
    """1 when the answer's first character is the right option's letter (coco_test.py), else 0.

    For 3D an option's text of a single character counts too (omni_test.py).
    """
    said = extracted(prediction)[:1]
    return float(said == item.letter.lower() or (item.task == "Omni3D" and said == item.answer))


def cvbench_parsed(item: Item, prediction: str) -> bool:
    """Whether the answer begins with an option's letter that stands by itself; "because" scores as B but says nothing."""
    return re.match(rf"[{LETTERS[: len(item.options)].lower()}]\b", extracted(prediction)) is not None


def cvbench_total(two: float, three: float) -> float:
    """CV-Bench's one number: the mean of its 2D and its 3D score, whatever their numbers of items."""
    return (two + three) / 2


def _field(fields: Mapping[str, str], where: str, *names: str) -> str:
    """The first of the named fields that the row has. InputError when it has none."""
    for name in names:
        if name in fields:
            return fields[name]
    raise InputError(f"{where}: has no column {' or '.join(names)}, so it is no file of this benchmark")


def _index(fields: Mapping[str, str], where: str, places: dict[str, str]) -> str:
    """The row's index, kept in `places` with where it stands. InputError for one that is there: an answer would count twice."""
    index = _field(fields, where, "index", "idx", "lndex", "Index")
    if index in places:
        raise InputError(f"{where}: index {index!r} stands in the file twice, first at {places[index]}; remove one")
    places[index] = where
    return index


def _choices(fields: Mapping[str, str]) -> tuple[str, ...]:
    """Options given one a column, A and on; () where there are none."""
    options = []
    for letter in LETTERS:
        if not fields.get(letter):
            break
        options.append(fields[letter])
    return tuple(options)


def _in_brackets(text: str) -> tuple[str, ...]:
    """Options written as "(a) Open (b) Closed"."""
    return tuple(part.split(")", 1)[-1].strip() for part in text.split("(")[1:])


def _right(answer: str, options: tuple[str, ...], where: str) -> str:
    """The text of the right option, given as "(a)" or "A"."""
    letter = answer.strip().strip("()").upper()
    if len(letter) != 1 or letter not in LETTERS[: len(options)]:
        raise InputError(f"{where}: the answer {answer!r} is none of its {len(options)} options")
    return options[LETTERS.index(letter)]
