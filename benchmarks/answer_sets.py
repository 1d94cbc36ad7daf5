"""Sets of answers that are already there: the items they are to, with the gold answers, and one text for each item.

VLMEvalKit's tables, JSON lines of Cambrian, LLaVA and MultimodalOCR, and our own predictions. The gold answers stand in
most of them; where they do not, the benchmark's own file gives them, matched by index and checked by question.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import cambrian
from benchmarks.answer_files import Row, read_rows
from benchmarks.suites import BENCHMARKS, LETTERS, Item, check_complete
from dpa.errors import InputError

OPEN = {"DocVQA": "anls", "OCRBench": "contains"}
ROTATION = 1_000_000  # MMBench: index modulo this names the question, the rest its rotation
NATURAL_GROUPS = 1900
POPE_FILE = re.compile(r"random|popular|adversarial")


@dataclass(frozen=True)
class Answers:
    """The items of a benchmark, what was answered to each (by index), and what a reader of the scores should know."""

    items: list[Item]
    texts: dict[str, str]
    notes: list[str]


def read_answers(
    benchmark: str, predictions: Sequence[Path], data: Sequence[Path] = (), *, corrected: bool = False
) -> Answers:
    """Items and answers of one set of predictions, which may be cut into several files (Cambrian's ADE20K and COCO).

    data: files or folders with the gold answers. corrected: turn the MMVP labels that are known to be swapped.
    InputError when a row, an answer, a gold answer or half of a pair is missing, or answers are of other questions.
    """
    files = [(path, read_rows(path)) for path in predictions]
    own = ["settings" in rows[0][1] and "answer" not in rows[0][1] for _, rows in files]
    said: list[Said] = []
    for (path, rows), ours in zip(files, own, strict=True):
        kept = [row for row in rows[1:] if row[1].get("benchmark") == benchmark] if ours else rows
        if not kept:
            raise InputError(f"{path}: holds no answer to {benchmark}; give another file or --benchmark")
        stem = f"{path.stem}:" if len(files) > 1 and not ours else ""
        said += [_said(where, fields, f"{stem}{_index(fields, place)}") for place, (where, fields) in enumerate(kept)]
    source = ", ".join(map(str, predictions))
    if data:
        items, questions = _gold(benchmark, data, corrected)
        if benchmark == "POPE":
            said = _pope_numbered(said, items, source)
        known = {item.index for item in items}
        if benchmark == "MMVP" and "0" not in known and "0" in {row.index for row in said}:  # Cambrian counts from 0
            said = [replace(row, index=str(int(row.index) + 1)) for row in said if row.index.isdecimal()]
        texts = _matched(said, items, questions, source)
    elif any(own):
        raise InputError(f"{source}: our predictions name their items by index; give the items file with --data")
    else:
        rows = [(s.where, s.fields | {"index": s.index, **_guessed_source(benchmark, s)}) for s in said]
        items, _ = _items(benchmark, rows, corrected, source, answers=True)
        texts = _matched(said, items, {}, source)
        if benchmark == "NaturalBench" and len(items) != 4 * NATURAL_GROUPS:
            raise InputError(
                f"{source}: has {len(items):,} rows, NaturalBench 1,900 groups of four; give them all, or the set that was asked with --data"
            )
        if benchmark == "OCRBench" and len(items) != BENCHMARKS[benchmark].units:
            raise InputError(
                f"{source}: has {len(items):,} rows, OCRBench 1,000, and its score counts them; give them all, or the set that was asked with --data"
            )
    return Answers(items, texts, _notes(benchmark, items))


@dataclass(frozen=True)
class Said:
    """One answered row: where it stands, its index, the answer, the question if it has it, and all fields."""

    where: str
    index: str
    text: str
    question: str
    fields: dict[str, Any]


def _said(where: str, fields: dict[str, Any], index: str) -> Said:
    name = _answer_field(fields)
    if name == "text" and "label" in fields:
        raise InputError(f"{where}: is one of POPE's questions and not an answer; give this file with --data")
    if name is None:
        raise InputError(
            f"{where}: has no field prediction, text or answer ({', '.join(map(str, fields))[:80]}); not a row of predictions"
        )
    text = fields[name]
    if not isinstance(text, str):
        raise InputError(
            f'{where}: {name} is {json.dumps(text)[:40]} and not a text; write "" for an empty answer, quote a number'
        )
    return Said(where, index, text, _first(fields, "question", "Question", "prompt"), fields)


def _answer_field(fields: Mapping[str, Any]) -> str | None:
    """VLMEvalKit's and Cambrian's MMBench `prediction`, LLaVA's `text`, Cambrian's, MultimodalOCR's and our `answer`."""
    return next((name for name in ("prediction", "text", "answer") if name in fields), None)


INDICES = ("index", "question_id", "questionId", "idx", "lndex", "Index")


def _index(fields: Mapping[str, Any], place: int) -> str:
    """The row's own number or name; of files without one the place in the file, from 0."""
    name = next((name for name in INDICES if name in fields), None)
    return str(place) if name is None else str(fields[name])


def _first(fields: Mapping[str, Any], *names: str) -> str:
    return next((str(fields[name]) for name in names if fields.get(name) not in (None, "")), "")


# ---- items


def _gold(benchmark: str, data: Sequence[Path], corrected: bool) -> tuple[list[Item], dict[str, str]]:
    """Items of the benchmark's own files, or of an items file of ours, and the question of each by index."""
    paths = [path for place in data for path in _data_files(benchmark, place)]
    rows = [(path, row) for path in paths for row in read_rows(path)]
    if {"benchmark", "rule", "unit"} <= rows[0][1][1].keys():
        try:
            items = [Item.from_json(fields) for _, (_, fields) in rows if fields["benchmark"] == benchmark]
        except (TypeError, KeyError) as error:
            raise InputError(f"{paths[0]}: is no items file of ours ({error})") from None
        if not items:
            raise InputError(f"{paths[0]}: holds no item of {benchmark}")
        if len({item.index for item in items}) != len(items):
            raise InputError(f"{paths[0]}: an index of {benchmark} stands twice; remove one of the lines")
        check_complete(items, str(paths[0]))
        return items, {}  # an item's prompt is what our own predictions were asked
    if benchmark.startswith("CVBench"):  # its own file has both
        kinds = {"2D": "CVBench-2D", "3D": "CVBench-3D"}
        rows = [row for row in rows if kinds.get(_first(row[1][1], "split", "type"), benchmark) == benchmark]
    if benchmark == "POPE":
        rows = [(path, (where, _pope_row(path, fields))) for path, (where, fields) in rows]
    named = [(where, fields | {"index": _index(fields, place)}) for place, (_, (where, fields)) in enumerate(rows)]
    return _items(benchmark, named, corrected, ", ".join(map(str, paths)), answers=False)


def _data_files(benchmark: str, place: Path) -> list[Path]:
    """The file, or those of a folder that belong to a benchmark, by their official names."""
    if not place.is_dir():
        return [place]
    pope = sorted(place.glob("coco_pope_*.json")) if benchmark == "POPE" else []
    if pope:
        return pope
    from benchmarks.official import SOURCES

    others = {"NaturalBench": ("test_set.json",), "OCRBench": ("OCRBench.json",)}
    names = (*SOURCES[benchmark].files, *others.get(benchmark, ()))
    found = [place / name for name in names if (place / name).is_file() and not name.endswith(".parquet")]
    if not found:
        raise InputError(f"{place}: has none of {', '.join(names)}; name the file with the gold answers of {benchmark}")
    return found[:1]


def _pope_row(path: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """A row of POPE's own files as VLMEvalKit's table has it; its category is in the name of the file."""
    if "label" not in fields:
        return fields
    category = POPE_FILE.search(path.name)
    if category is None:
        raise InputError(f"{path}: its name says neither random, popular nor adversarial; keep POPE's names")
    named = {"category": category[0], "question": fields.get("text", ""), "answer": fields["label"]}
    return {"index": f"{category[0]}-{_index(fields, 0)}", "image_path": fields.get("image", "")} | named


def _guessed_source(benchmark: str, said: Said) -> dict[str, str]:
    """CV-Bench's source where Cambrian's answer files leave it out: it evaluates ADE20K, COCO and Omni3D apart."""
    if not benchmark.startswith("CVBench") or said.fields.get("source"):
        return {}
    hint = f"{said.fields.get('image', '')} {Path(said.where).name}".lower()
    return {
        "source": "Omni3D"
        if benchmark == "CVBench-3D"
        else "ADE20K"
        if "ade" in hint
        else "COCO"
        if "coco" in hint
        else ""
    }


def _items(
    benchmark: str, rows: Iterable[Row], corrected: bool, source: str, *, answers: bool
) -> tuple[list[Item], dict[str, str]]:
    """The items of rows that carry the gold answer, and the question of each by index. answers: the rows also have predictions."""
    rows = list(rows)
    first = int("0" not in {fields["index"] for _, fields in rows})  # NaturalBench's tables count from 0 or from 1
    items, seen, questions = [], set(), {}
    for where, fields in rows:
        index = fields["index"]
        if index in seen:
            raise InputError(f"{where}: index {index!r} stands twice; remove one of the rows")
        seen.add(index)
        questions[index] = _first(fields, "question", "Question", "prompt")
        items.append(_item(benchmark, where, fields, answers, first))
    if benchmark == "MMVP":
        items = _paired(items, corrected, source)
    if benchmark == "NaturalBench":
        items = _grouped(_by_unit(items), source)
    if benchmark == "MMBench":
        check_complete(items, source)
    return items, questions


def _by_unit(items: Sequence[Item]) -> dict[str, list[Item]]:
    units: dict[str, list[Item]] = {}
    for item in items:
        units.setdefault(item.unit, []).append(item)
    return units


def _gold_answer(benchmark: str, where: str, fields: Mapping[str, Any], answers: bool) -> Any:
    names = ["gt_answer", "gt_answers", "label", "Correct Answer", "answers"]
    if not answers or _answer_field(fields) != "answer":
        names.append("answer")
    for name in names:
        if fields.get(name) not in (None, ""):
            return fields[name]
    raise InputError(f"{where}: carries no gold answer; give the file that has them with --data")


def _item(benchmark: str, where: str, fields: Mapping[str, Any], answers: bool, first: int) -> Item:
    index, gold = fields["index"], _gold_answer(benchmark, where, fields, answers)
    question, task = (
        _first(fields, "question", "Question", "prompt"),
        _first(fields, "category", "question_type", "type"),
    )
    image = _first(fields, "image_path", "image")
    if len(image) > 300:  # a picture packed into the cell
        image = ""
    item = Item(benchmark, index, image, question, str(gold), (), unit=index, task=task, rule="letter")
    if benchmark in OPEN:
        if fields.get("A") and fields.get("B"):
            raise InputError(f"{where}: has options A and B, {benchmark} has none; is --benchmark right?")
        golds = _list(gold)
        document = _first(fields, "docId", "ucsf_document_id") or image.rsplit("_", 1)[0]
        unit = document if benchmark == "DocVQA" and document else index
        return replace(item, answer=golds[0], answers=golds, unit=unit, rule=OPEN[benchmark])
    if benchmark == "POPE":
        word = str(gold).strip().lower()
        if word not in ("yes", "no"):
            raise InputError(f"{where}: gold answer {gold!r} is neither yes nor no")
        unit = image if "COCO" in image else index
        return replace(item, answer=word, options=("yes", "no"), unit=unit, rule="pope")
    if benchmark == "NaturalBench":
        right = str(gold).strip().capitalize()
        words = next((both for both in (("Yes", "No"), ("A", "B")) if right in both), None)
        if words is None or not str(index).isdecimal():
            raise InputError(f"{where}: {gold!r} of item {index!r} is not Yes, No, A or B of a numbered row")
        group, place = divmod(int(index) - first, 4)
        return replace(item, answer=right, options=words, unit=str(group), slot=divmod(place, 2), rule="earlier-word")
    options, letter = _options(where, fields), str(gold).strip().strip("().: ").upper()
    if letter.isdecimal():  # AI2D's own numbers from 0
        letter = LETTERS[int(letter)] if int(letter) < len(options) else letter
    if letter in LETTERS and letter in fields:  # a table may have lost the text of an option, "None" say
        options += ("",) * (LETTERS.index(letter) + 1 - len(options))
    if len(letter) != 1 or letter not in LETTERS[: len(options)]:
        raise InputError(f"{where}: gold answer {gold!r} of item {index} is none of its {len(options)} options")
    item = replace(item, answer=options[LETTERS.index(letter)], options=options, answers=(letter,))
    if benchmark == "MMBench":
        if not index.isdecimal():
            raise InputError(f"{where}: index {index!r} is no number, and numbers tell the rotations of a question")
        return replace(item, unit=_first(fields, "g_index") or str(int(index) % ROTATION))
    if benchmark.startswith("CVBench"):
        source = _first(fields, "source")
        if source not in cambrian.SETS[benchmark]:
            raise InputError(
                f"{where}: source {source!r} of item {index} is none of {', '.join(cambrian.SETS[benchmark])}; give the questions with --data"
            )
        photo = _first(fields, "source_filename") or image or index
        return replace(item, task=source, unit=f"{source}/{photo}", rule="cambrian-first-letter")
    return replace(item, rule="cambrian-mmvp") if benchmark == "MMVP" else item


def _list(gold: Any) -> tuple[str, ...]:
    """Accepted answers: a list, a list written as text (VLMEvalKit), or one answer."""
    if isinstance(gold, str) and gold[:1] == "[" and gold[-1:] == "]":
        with contextlib.suppress(ValueError, SyntaxError):
            gold = ast.literal_eval(gold)
    return tuple(map(str, gold)) if isinstance(gold, list) and gold else (str(gold),)


def _options(where: str, fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Options in columns A, B, ..., in a list, or as "(a) Open (b) Closed"."""
    columns = [str(fields[letter] or "") if letter in fields else "" for letter in LETTERS]
    if "source_id" in fields:  # Cambrian's MMBench writes an option that there is not as nan
        columns = ["" if text == "nan" else text for text in columns]
    while columns and not columns[-1]:
        columns.pop()
    if columns:
        return tuple(columns)
    for name in ("options", "choices", "text_options"):
        if isinstance(fields.get(name), list) and fields[name]:
            return tuple(map(str, fields[name]))
    if fields.get("Options"):
        return tuple(part.split(")", 1)[-1].strip() for part in str(fields["Options"]).split("(")[1:])
    raise InputError(f"{where}: has no options (A, B, ..., options or choices); give the questions with --data")


def _paired(items: list[Item], corrected: bool, source: str) -> list[Item]:
    """MMVP's items with their pairs as units, 1 to 150: rows 1 and 2, 3 and 4, ..., counted from 0 in some files."""
    numbers = [int(item.index) if item.index.isdecimal() else -1 for item in items]
    if min(numbers) < 0:
        raise InputError(
            f"{source}: MMVP index {items[numbers.index(-1)].index!r} is no number, and numbers tell the pairs"
        )

    def pairs(base: int) -> dict[int, list[Item]]:
        found: dict[int, list[Item]] = {}
        for item, number in sorted(zip(items, numbers, strict=True), key=lambda entry: entry[1]):
            found.setdefault((number - base) // 2 + 1, []).append(item)
        return found

    def broken(pair: list[Item]) -> bool:
        return len(pair) != 2 or pair[0].prompt != pair[1].prompt or pair[0].answer == pair[1].answer

    base = min((0, 1), key=lambda start: sum(map(broken, pairs(start).values())))
    units: dict[str, str] = {}
    for unit, pair in pairs(base).items():
        if broken(pair):
            raise InputError(
                f"{source}: MMVP pair {unit} lacks its other half, or is not one question with two answers (items {', '.join(i.index for i in pair)}); a score over part of it would mean something else, give them all"
            )
        units |= {item.index: str(unit) for item in pair}
    found = []
    for item, number in zip(items, numbers, strict=True):
        if corrected and number - base + 1 in cambrian.SWAPPED:
            other = 1 - item.options.index(item.answer)
            item = replace(item, answer=item.options[other], answers=(LETTERS[other],))
        found.append(replace(item, unit=units[item.index]))
    return found


def _grouped(units: Mapping[str, list[Item]], source: str) -> list[Item]:
    """NaturalBench's items, checked: four a group, each question answered differently for its two pictures."""
    for unit, group in units.items():
        grid = {item.slot: item for item in group}
        if len(group) != 4:
            raise InputError(
                f"{source}: NaturalBench group {unit} has {len(group)} of its 4 questions; a score over part of it would mean something else, give them all"
            )
        if any(grid[q, 0].answer == grid[q, 1].answer for q in (0, 1)):
            raise InputError(
                f"{source}: NaturalBench group {unit}: one question has the same answer for both pictures; a row is missing before it or out of order"
            )
    return [item for group in units.values() for item in group]


# ---- answers to items


def _matched(said: Sequence[Said], items: Sequence[Item], questions: Mapping[str, str], source: str) -> dict[str, str]:
    """{index: answer} of every item. InputError for an answer twice, to nothing or to another question, or none."""
    known = {item.index for item in items}
    texts: dict[str, str] = {}
    for row in said:
        if row.index in texts:
            raise InputError(f"{row.where}: index {row.index!r} is answered twice; remove one of the rows")
        if row.index not in known:
            raise InputError(
                f"{row.where}: answers item {row.index!r}, which the gold answers lack; give their whole file"
            )
        if not _same_question(row.question, questions.get(row.index, "")):
            raise InputError(
                f"{row.where}: asks {row.question[:60]!r} where the gold answers have {questions[row.index][:60]!r} as item {row.index}; these are answers to another set"
            )
        texts[row.index] = row.text
    missing = [item.index for item in items if item.index not in texts]
    if missing:
        raise InputError(
            f"{source}: {len(missing):,} of {len(items):,} items have no answer (first: {missing[0]}); a score over part of them would mean something else, predict them too"
        )
    return texts


def _same_question(said: str, gold: str) -> bool:
    """Whether two texts hold one question; a prompt has more around it, and not every file has the question at all."""
    first, second = ("".join(text.split()) for text in (said, gold))
    return len(first) < 2 or not second or first in second or second in first


def _pope_numbered(said: list[Said], items: Sequence[Item], source: str) -> list[Said]:
    """Answers numbered as POPE's items: by their own category, or, of LLaVA's file, by number and question.

    LLaVA puts the three sets behind one another and renumbers them (1, 10000001 and 20000001 on): in the order of the
    numbers each set's questions must agree from the first to the last.
    """
    known = {item.index for item in items}
    for named in (said, [replace(row, index=f"{row.fields.get('category')}-{row.index}") for row in said]):
        if {row.index for row in named} <= known:
            return named
    if len(said) != len(items):
        raise InputError(
            f"{source}: has {len(said):,} answers to the {len(items):,} questions of --data; give them all"
        )
    if not all(row.index.isdecimal() for row in said) or len({row.index for row in said}) != len(said):
        ordered = said
    else:
        ordered = sorted(said, key=lambda row: int(row.index))
    sets: dict[str, list[Item]] = {}
    for item in items:
        sets.setdefault(item.task, []).append(item)
    agreed = []
    for order in itertools.permutations(sets.values()):
        asked = [item for part in order for item in part]
        wrong = (
            n
            for n, (row, item) in enumerate(zip(ordered, asked, strict=True))
            if len(row.question) < 2 or not _same_question(row.question, item.prompt)
        )
        agreed.append((next(wrong, len(asked)), asked))
    count, asked = max(agreed, key=lambda entry: entry[0])
    if count < len(asked):
        row = ordered[count]
        raise InputError(
            f"{row.where}: asks {row.question[:60]!r} where the gold answers have {asked[count].prompt[:60]!r} in any order of their sets; these are answers to another set"
        )
    return [replace(row, index=item.index) for row, item in zip(ordered, asked, strict=True)]


# of the published versions; VLMEvalKit's and that of today have 3,000 everywhere, the first random one 2,910
POPE_ROWS = {"random": (2910, 3000), "popular": (3000,), "adversarial": (3000,)}


def _notes(benchmark: str, items: Sequence[Item]) -> list[str]:
    about, notes = BENCHMARKS[benchmark], []
    units = {item.unit for item in items} if about.metric != "accuracy" else {item.index for item in items}
    if about.units and len(units) != about.units:
        notes.append(f"{len(units):,} {about.unit}; the paper's set has {about.units:,}")
    lost = [item.index for item in items if item.options and not item.answer]
    if lost:
        notes.append(
            f"{len(lost):,} items whose right option is an empty cell, which only its letter can name: {', '.join(lost[:3])}"
        )
    if benchmark == "POPE":
        sizes = {c: sum(c in item.task.split(",") for item in items) for c in POPE_ROWS}
        if short := [f"{c} {n:,}" for c, n in sizes.items() if n not in POPE_ROWS[c]]:
            notes.append(f"rows of POPE's categories that are not the published sets': {', '.join(short)}")
    missing = [task for task in cambrian.SETS.get(benchmark, ()) if task not in {item.task for item in items}]
    if missing:
        notes.append(f"no item of {', '.join(missing)}: not the whole of {benchmark}")
    return notes
