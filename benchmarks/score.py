"""Scores of answers that are already there, under each scorer that applies, and where the scorers disagree.

    python -m benchmarks.score --benchmark NAME --predictions FILE [--data FILE_OR_DIR ...] [--judge FILE] [--json]

Reads VLMEvalKit's tables (TSV, XLSX), JSON lines of Cambrian and LLaVA, and our own predictions. The gold answers stand in
most of them; otherwise --data names the benchmark's own file. VLMEvalKit's scorer runs in its own environment where
`make harness` built it. No judge is asked: one that was is read from its log. An answer that no scorer can read is wrong,
an empty one scores nothing, and nothing is guessed.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import scorers
from benchmarks.answer_files import read_rows
from benchmarks.answer_sets import ROTATION, Answers, read_answers
from benchmarks.statistics import LEVEL, RESAMPLES, mean_interval
from benchmarks.suites import BENCHMARKS, Item, natural_accuracies, unit_scores
from dpa.errors import InputError, command

NAMES = [name for name in BENCHMARKS if name != "CV-Bench"]
KIT = "VLMEvalKit's own scorer, exact matching"
KIT_2024 = (
    "vlmevalkit-2024",
    "letter-anywhere",
    "VLMEvalKit's parser of 2024: the one letter in it, else the one text",
)
LETTER = ("letter", "letter", "plain: begins with the letter, or is an option's text")
FIRST = ("cambrian", "first-character", "Cambrian's: the first character behind 'answer is'")
FIRST_WORD = ("cambrian", "first-word", "Cambrian's: the first word")
BY_RULE: dict[str, tuple[tuple[str, str, str], ...]] = {  # benchmark -> (scorer, rule, what it is)
    "MMBench": (KIT_2024, FIRST, LETTER),
    "AI2D": (KIT_2024, FIRST, LETTER),
    "MMStar": (KIT_2024, FIRST_WORD, LETTER),
    "CVBench-2D": (("cambrian", "cambrian-first-letter", FIRST[2]), KIT_2024, LETTER),
    "CVBench-3D": (("cambrian", "cambrian-first-letter", FIRST[2]), KIT_2024, LETTER),
    "MMVP": (("cambrian", "cambrian-mmvp", "Cambrian's: the letter or the text and nothing else"), KIT_2024, LETTER),
    "NaturalBench": (("naturalbench", "earlier-word", "its authors': whichever of the two words comes first"), LETTER),
    "POPE": (("pope", "pope", "its authors': no or not in the first sentence is a no, else yes"), FIRST_WORD, LETTER),
    "DocVQA": (
        ("anls", "anls", "ANLS as the official scorer has it"),
        ("word-match", "word-match", "MultimodalOCR's: a gold answer occurs as whole words"),
    ),
    "OCRBench": (("contains", "contains", "OCRBench's: a gold answer occurs in it"),),
}
OCR_GROUPS = {
    "Scene Text-centric VQA": "Scene Text-centric VQA",
    "Doc-oriented VQA": "Doc-oriented VQA",
    "Key Information Extraction": "Key Information Extraction",
    scorers.FORMULAS: scorers.FORMULAS,
}  # any other task belongs to Text Recognition
GUESSED = "randomly generate"  # what VLMEvalKit's log says where neither parser nor judge found an option


@dataclass(frozen=True)
class Measured:
    """One scorer's score in the benchmark's own unit with its 95 % interval, and what it is made of.

    metrics: further numbers in the same unit; values: of each item, 0 to 1; parsed: whether an answer could be read.
    """

    scorer: str
    what: str
    value: float
    low: float
    high: float
    metrics: dict[str, float]
    values: dict[str, float]
    parsed: dict[str, bool]

    @property
    def unparsed(self) -> int:
        return sum(not found for found in self.parsed.values())


def by_rule(items: Sequence[Item], texts: Mapping[str, str]) -> list[Measured]:
    """The benchmark's scorers that are rules of `benchmarks.scorers`, after the items' own rule where that is another."""
    found, name = [], items[0].benchmark
    affirmative = [replace(item, answer="yes", answers=()) for item in items] if name == "POPE" else []
    rows = BY_RULE[name]
    own = {item.rule for item in items} - {rule for _, rule, _ in rows}  # of items files of ours, the lab's say
    for scorer, rule, what in (*((rule, rule, "the rule of the items") for rule in sorted(own)), *rows):
        values = {item.index: scorers.value(item, texts[item.index], rule) for item in items}
        parsed = {item.index: scorers.is_parsed(item, texts[item.index], rule) for item in items}
        # an answer to POPE is a yes if it would be right were yes the gold answer
        affirmed = [scorers.value(item, texts[item.index], rule) == 1 for item in affirmative] or None
        found.append(measured(scorer, what, items, values, parsed, affirmed))
    return found


def measured(
    scorer: str,
    what: str,
    items: Sequence[Item],
    values: dict[str, float],
    parsed: dict[str, bool],
    affirmed: Sequence[bool] | None = None,
) -> Measured:
    """Score, interval and further metrics of items that score `values` (0 to 1, by index).

    affirmed: POPE, whether each answer says yes; by default as value and parsed tell.
    """
    benchmark = BENCHMARKS[items[0].benchmark]
    worth = [values[item.index] for item in items]
    scale = benchmark.scale
    if benchmark.name == "POPE":
        if affirmed is None:
            hits = zip(items, worth, strict=True)
            affirmed = [v == 1 if i.answer.lower() == "yes" else v == 0 and parsed[i.index] for i, v in hits]
        value, low, high, metrics = f1_scores(items, affirmed, worth)
    else:
        tasks = unit_scores(items, worth)
        value, low, high = mean_interval([list(tasks.values())])
        metrics = _metrics(items, worth)
    further = {name: scale * number for name, number in metrics.items()}
    return Measured(scorer, what, scale * value, scale * low, scale * high, further, values, parsed)


def _metrics(items: Sequence[Item], worth: Sequence[float]) -> dict[str, float]:
    """The benchmark's further metrics, 0 to 1; OCRBench's are points per item of all."""
    benchmark = BENCHMARKS[items[0].benchmark]
    pairs = list(zip(items, worth, strict=True))

    def mean(chosen: Sequence[float]) -> float:
        return sum(chosen) / len(chosen)

    metrics: dict[str, float] = {}
    if benchmark.metric == "circular":
        first = [value for item, value in pairs if item.index.isdecimal() and int(item.index) < ROTATION]
        metrics = ({"vanilla (unrotated rows)": mean(first)} if first else {}) | {"single accuracy": mean(worth)}
    elif benchmark.metric == "group":
        metrics = natural_accuracies(items, [value == 1 for value in worth])
        metrics = {f"{name} accuracy": value for name, value in metrics.items()} | {"single accuracy": mean(worth)}
    elif benchmark.metric == "pair":
        metrics = {"single accuracy": mean(worth)}
    elif benchmark.name == "OCRBench":
        groups = {"Text Recognition": 0.0} | dict.fromkeys(OCR_GROUPS, 0.0)
        for item, value in pairs:
            groups[OCR_GROUPS.get(item.task, "Text Recognition")] += value / len(worth)
        return groups
    elif benchmark.by_task or benchmark.name == "MMStar":
        tasks = sorted({item.task for item in items if item.task})
        metrics = {task: mean([value for item, value in pairs if item.task == task]) for task in tasks}
        if benchmark.by_task:
            metrics["plain mean"] = mean(worth)
    return metrics


def f1_scores(
    items: Sequence[Item], affirmed: Sequence[bool], worth: Sequence[float]
) -> tuple[float, float, float, dict[str, float]]:
    """(mean over categories of the F1 of "yes", low, high, further metrics), all 0 to 1; an item may be of several categories.

    Photos are drawn together, with all their questions in all categories.
    """
    kinds = [item.task.split(",") if item.task else ["all"] for item in items]
    categories = sorted({category for row in kinds for category in row})
    places = {unit: place for place, unit in enumerate(dict.fromkeys(item.unit for item in items))}
    counts = np.zeros((len(places), len(categories), 2))  # twice the true yeses; that and all false answers
    for item, row, yes in zip(items, kinds, affirmed, strict=True):
        gold = item.answer.lower() == "yes"
        for category in row:
            counts[places[item.unit], categories.index(category)] += (2 * (yes and gold), int(yes) + int(gold))

    def f1(sums: np.ndarray) -> np.ndarray:  # (..., 2) -> (...)
        return np.divide(sums[..., 0], sums[..., 1], out=np.zeros(sums.shape[:-1]), where=sums[..., 1] > 0)

    rng = np.random.default_rng(0)
    flat = counts.reshape(len(places), -1)
    drawn = np.stack(
        [np.bincount(rng.integers(0, len(places), len(places)), minlength=len(places)) @ flat for _ in range(RESAMPLES)]
    )
    means = f1(drawn.reshape(RESAMPLES, len(categories), 2)).mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    each = f1(counts.sum(axis=0))
    metrics = {f"F1 {category}": float(value) for category, value in zip(categories, each, strict=True)}
    metrics["F1 of all rows"] = float(f1(counts.sum(axis=(0, 1))))
    hits = [value for value, row in zip(worth, kinds, strict=True) for _ in row]
    metrics["accuracy"] = sum(hits) / len(hits)
    metrics["share of yes"] = sum(affirmed) / len(affirmed)
    return float(each.mean()), float(low), float(high), metrics


def by_kit(kit: Any, items: Sequence[Item], texts: Mapping[str, str], where: str) -> Measured:
    """The score that VLMEvalKit itself gives. InputError when the kit refuses, or its rows do not add up to its score."""
    from benchmarks import vlmevalkit

    name = items[0].benchmark
    numbers = _kit_numbers(items)
    rows = [_kit_row(item, numbers[item.index]) | {"prediction": texts[item.index]} for item in items]
    made_up = name == "NaturalBench" and len(items) != 4 * BENCHMARKS[name].units
    score = vlmevalkit.rescore(kit, name, rows, made_up=made_up, where=where)
    values = {item.index: score.values[numbers[item.index]] for item in items}
    parsed = {item.index: score.parsed[numbers[item.index]] for item in items}
    found = measured("vlmevalkit", f"{KIT}, version {score.version}", items, values, parsed)
    if name == "POPE":
        own = found.metrics["F1 of all rows"]
    elif name == "MMBench":  # a row has the hit of its question
        found.metrics.clear()
        own = found.value
    else:
        own = 100 * found.value / BENCHMARKS[name].scale
    if abs(own - score.value) > 1e-6:
        raise InputError(f"{where}: VLMEvalKit says {score.value:.4f}, its rows say {own:.4f}; its scoring has changed")
    return found


def _kit_numbers(items: Sequence[Item]) -> dict[str, str]:
    """{index: number} for VLMEvalKit, which wants numbers as indices; those of the items where they are."""
    if all(re.fullmatch(r"0|[1-9][0-9]{0,17}", item.index) for item in items):
        return {item.index: item.index for item in items}
    return {item.index: str(place) for place, item in enumerate(items)}


def _kit_row(item: Item, number: str) -> dict[str, str]:
    """An item as a row of VLMEvalKit's table, without its picture."""
    row = {"index": number, "question": item.prompt, "category": item.task}
    if item.benchmark in ("DocVQA", "OCRBench"):
        return row | {"answer": repr(list(item.answers))}
    if item.benchmark == "POPE":
        return row | {"answer": item.answer.capitalize()}
    if item.benchmark == "NaturalBench":
        words = {option.lower() for option in item.options} == scorers.YES_NO
        gold = item.answer.capitalize() if words else item.letter
        return row | {"answer": gold, "type": "yes_no" if words else "multiple_choice"}
    row |= dict(zip(scorers.LETTERS, item.options, strict=False)) | {"answer": item.letter}
    if item.benchmark.startswith("CVBench"):
        return row | {"source": item.task, "split": item.benchmark.removeprefix("CVBench-")}
    return row | ({"g_index": item.unit} if item.benchmark == "MMBench" else {})


def by_judge(path: Path, items: Sequence[Item], texts: Mapping[str, str]) -> tuple[Measured, list[str]]:
    """The score of a judge's log, {index: {hit, log}}, and notes. InputError when it is not of these very answers.

    VLMEvalKit's log quotes the answer, or what the judge made of it: an option's letter.
    """
    rows = read_rows(path)
    if len(rows) != 1:
        raise InputError(f"{path}: is no judge's log, which is one object: {{index: {{hit, log}}}}")
    hits = rows[0][1]
    known = {item.index for item in items}
    if set(hits) != known:
        odd = sorted(set(hits) ^ known)
        raise InputError(
            f"{path}: judged {len(hits):,} items of which {len(odd):,} differ from the {len(known):,} answered (first: {odd[0]}); it is of other predictions"
        )
    values, parsed, guessed = {}, {}, 0
    for item in items:
        row = hits[item.index]
        if not isinstance(row, dict) or row.get("hit") not in (0, 1) or not isinstance(row.get("log", ""), str):
            raise InputError(f"{path}: item {item.index} is no {{hit: 0 or 1, log: text}}: {json.dumps(row)[:60]}")
        said = re.fullmatch(r"Match Log: (.*)\. ", row.get("log", ""), re.DOTALL)
        chance = GUESSED in row.get("log", "")
        if said and not chance and said[1] != texts[item.index] and not re.fullmatch(r"\W*[A-Z]\W*", said[1]):
            raise InputError(
                f"{path}: item {item.index} was judged for {said[1][:40]!r}, the prediction is {texts[item.index][:40]!r}; it is of other predictions"
            )
        guessed += chance
        values[item.index] = float(row["hit"]) if texts[item.index].strip() else 0.0
        parsed[item.index] = (
            bool(texts[item.index].strip()) and not chance and not (said and said[1].strip(" .") == "Z")
        )
    notes = [f"{path}: {guessed} hits and misses are random guesses of the judge's program"] if guessed else []
    return measured("judge", f"the judge's log {path.name}", items, values, parsed), notes


def disagreements(items: Sequence[Item], found: Sequence[Measured]) -> list[Item]:
    """Items that one scorer counts and another does not. VLMEvalKit's circular hits are of questions and take no part;
    DocVQA's scorers of degree are also compared by their values.
    """
    taking_part = [m for m in found if not (m.scorer == "vlmevalkit" and items[0].benchmark == "MMBench")]
    degrees = [m for m in taking_part if m.scorer in ("anls", "vlmevalkit")] if items[0].benchmark == "DocVQA" else []
    differ = []
    for item in items:
        counts = {m.values[item.index] > 0 for m in taking_part}
        exact = {round(m.values[item.index], 9) for m in degrees}
        if len(counts) > 1 or len(exact) > 1:
            differ.append(item)
    return differ


def published_beside(predictions: Path, found: Sequence[Measured], scale: int) -> list[str]:
    """What score files that lie beside the predictions say, and which scorer gives the same number."""
    stem, lines = predictions.with_suffix(""), []
    for path in (
        *(stem.with_name(f"{stem.name}{ending}") for ending in ("_acc.csv", "_score.csv", "_score.json")),
        stem.with_name(f"result_{stem.name}.json"),
    ):
        if not path.is_file():
            continue
        try:
            fields = read_rows(path)[0][1]
            name = next(key for key in ("Overall", "Final Score", *fields) if key in fields)
            number = float(fields[name])
        except (InputError, ValueError, TypeError, StopIteration):
            continue  # not a score
        numbers = {m.scorer: m.value for m in found}
        numbers |= {f"{m.scorer} ({key})": value for m in found for key, value in m.metrics.items()}
        same = [
            key
            for key, value in numbers.items()
            for unit in (1, 100, scale)
            if abs(value / scale * unit - number) < 1e-6
        ]
        told = f"reproduced by {', '.join(dict.fromkeys(same))}" if same else "reproduced by no scorer here"
        lines.append(f"published beside it: {path.name} says {name} {number:.6g}; {told}")
    return lines


def as_json(
    benchmark: str, answers: Answers, found: Sequence[Measured], differ: Sequence[Item], notes: list[str], shown: int
) -> dict:
    """All numbers as JSON values."""
    about = BENCHMARKS[benchmark]
    rows = [
        {
            "scorer": m.scorer,
            "what": m.what,
            "value": m.value,
            "low": m.low,
            "high": m.high,
            "scale": about.scale,
            "unparsed": m.unparsed,
            "metrics": m.metrics,
        }
        for m in found
    ]
    return {
        "benchmark": benchmark,
        "items": len(answers.items),
        "units": len({item.unit for item in answers.items}),
        "unit": about.unit,
        "scorers": rows,
        "disagreements": {"count": len(differ), "first": _rows(differ[:shown], answers, found)},
        "notes": notes,
    }


def _rows(items: Sequence[Item], answers: Answers, found: Sequence[Measured]) -> list[dict]:
    rows = []
    for item in items:
        gold = " | ".join(item.answers) if not item.options else item.answer
        letter = item.letter if item.options and item.benchmark not in scorers.ASKED_FOR_WORDS else ""
        row: dict[str, Any] = {
            "index": item.index,
            "unit": item.unit,
            "task": item.task,
            "gold": f"{letter}. {gold}" if letter else gold,
        }
        row |= {m.scorer: round(m.values[item.index], 6) for m in found}
        rows.append({name: _writable(cell) for name, cell in (row | {"answer": answers.texts[item.index]}).items()})
    return rows


def _writable(cell: Any) -> Any:
    """Half a surrogate pair, which JSON can hold and UTF-8 cannot, as its escape."""
    return cell.encode("utf-8", "backslashreplace").decode() if isinstance(cell, str) else cell


def as_text(
    benchmark: str, answers: Answers, found: Sequence[Measured], differ: Sequence[Item], notes: list[str], shown: int
) -> str:
    """The table for a terminal."""
    about, items = BENCHMARKS[benchmark], answers.items
    digits = 0 if about.scale == 1000 else 2
    metric = {"circular": "questions right in all rotations", "pair": "pairs", "group": "groups"}.get(about.metric, "")
    metric = {"POPE": "mean F1 of the categories", "DocVQA": "mean over questions"}.get(benchmark, metric or "accuracy")
    metric += ", mean of the sources" if about.by_task else ""
    empty = sum(not text.strip() for text in answers.texts.values())
    lines = [
        f"{benchmark}: {len(items):,} answers ({empty:,} empty), {len({i.unit for i in items}):,} units drawn together; {metric}, of {about.scale}",
        *(f"note: {note}" for note in answers.notes),
        "",
    ]
    width = max(len(m.scorer) for m in found)
    lines.append(f"{'scorer':{width}}  {'score':>7}  {'95 % interval':>16}  unparsed  what it is")
    for m in found:
        interval = f"{m.low:.{digits}f} to {m.high:.{digits}f}"
        lines.append(f"{m.scorer:{width}}  {m.value:7.{digits}f}  {interval:>16}  {m.unparsed:8,}  {m.what}")
    if any(m.metrics for m in found):
        lines.append("")
    for m in found:
        if m.metrics:
            shown_metrics = ", ".join(f"{name} {value:.{digits}f}" for name, value in m.metrics.items())
            lines.append(f"{m.scorer:{width}}  {shown_metrics}")
    lines += [
        "",
        f"scorers disagree on {len(differ):,} items"
        + (f", the first {min(shown, len(differ))}:" if differ and shown else ""),
    ]
    for row in _rows(differ[:shown], answers, found):
        counted = ", ".join(f"{m.scorer} {row[m.scorer]:.3g}" for m in found)
        lines.append(f"  {row['index']}  {counted}  gold {_short(row['gold'])}  answer {_short(row['answer'])}")
    others = [note for note in notes if note not in answers.notes]
    return "\n".join(lines + (["", *others] if others else []))


def _short(text: str) -> str:
    quoted = json.dumps(text[:70], ensure_ascii=False)
    return quoted + (f" and {len(text) - 70:,} characters" if len(text) > 70 else "")


def write(
    folder: Path, benchmark: str, answers: Answers, found: Sequence[Measured], differ: Sequence[Item], facts: dict
) -> None:
    """scores.csv, disagreements.csv (both also as JSON) and a manifest under `folder`."""
    import pandas as pd

    from analysis.outputs import write_manifest, write_table

    table = [
        {"scorer": m.scorer, "metric": name, "value": value, "low": low, "high": high, "unparsed": m.unparsed}
        for m in found
        for name, value, low, high in (
            (benchmark, m.value, m.low, m.high),
            *((key, number, "", "") for key, number in m.metrics.items()),
        )
    ]
    write_table(pd.DataFrame(table), folder, "scores")
    columns = ["index", "unit", "task", "gold", *(m.scorer for m in found), "answer"]
    write_table(pd.DataFrame(_rows(differ, answers, found), columns=columns), folder, "disagreements")
    write_manifest(folder, benchmark=benchmark, **facts)


def benchmark_named(name: str) -> str:
    """The benchmark of a name, in any case and with or without hyphens (CV-Bench-2D is CVBench-2D)."""
    plain = {re.sub(r"[^a-z0-9]", "", known.lower()): known for known in NAMES}
    try:
        return plain[re.sub(r"[^a-z0-9]", "", name.lower())]
    except KeyError:
        raise InputError(f"unknown benchmark {name!r}; there is {', '.join(NAMES)}") from None


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.score", description=__doc__.split("\n")[0])
    parser.add_argument("--benchmark", required=True, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--predictions", required=True, type=Path, nargs="+", metavar="FILE", help="one set of answers")
    parser.add_argument(
        "--data", type=Path, nargs="+", default=[], metavar="FILE_OR_DIR", help="where the gold answers are"
    )
    parser.add_argument("--judge", type=Path, metavar="FILE", help="a judge's log: JSON {index: {hit, log}}")
    parser.add_argument("--corrected-labels", action="store_true", help="turn MMVP's two pairs of swapped labels")
    parser.add_argument(
        "--vlmevalkit-python", type=Path, metavar="FILE", help="python of an environment with VLMEvalKit"
    )
    parser.add_argument("--vlmevalkit-root", type=Path, metavar="DIR", help="a checkout of VLMEvalKit")
    parser.add_argument("--no-vlmevalkit", action="store_true", help="leave VLMEvalKit's own scorer out")
    parser.add_argument("--disagreements", type=int, default=5, metavar="N", help="how many to print (default: 5)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write the tables and all disagreements to DIR")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args(arguments)
    benchmark = benchmark_named(options.benchmark)
    if options.corrected_labels and benchmark != "MMVP":
        raise InputError(f"--corrected-labels is about MMVP, not {benchmark}; leave it out")
    answers = read_answers(benchmark, options.predictions, options.data, corrected=options.corrected_labels)
    items, texts, notes = answers.items, answers.texts, list(answers.notes)
    found = by_rule(items, texts)
    judge = options.judge or options.predictions[0].with_name(f"{options.predictions[0].stem}_judge.json")
    if options.judge or judge.is_file():
        try:
            judged, about = by_judge(judge, items, texts)
            found.append(judged)
            notes += about
            beside = "was read"
        except InputError as error:
            if options.judge:
                raise
            beside = f"was not: {error}"
        if not options.judge:
            notes.append(f"the judge's log {judge} lies beside the predictions and {beside}")
    if not options.no_vlmevalkit:
        asked = options.vlmevalkit_python is not None or options.vlmevalkit_root is not None
        try:
            from benchmarks import vlmevalkit

            kit = vlmevalkit.find(options.vlmevalkit_python, options.vlmevalkit_root)
            found.insert(0, by_kit(kit, items, texts, str(options.predictions[0])))
        except InputError as error:
            if asked:
                raise
            notes.append(f"without VLMEvalKit's own scorer: {error}")
    differ = disagreements(items, found)
    if len(options.predictions) == 1:
        notes += published_beside(options.predictions[0], found, BENCHMARKS[benchmark].scale)
    if options.out is not None:
        from dpa.lineage import file_hash

        files = [*options.predictions, *(path for path in options.data if path.is_file())]
        facts = {"files": {str(path): file_hash(path) for path in files}, "notes": notes}
        facts |= {"corrected_labels": options.corrected_labels, "scorers": {m.scorer: m.what for m in found}}
        write(options.out, benchmark, answers, found, differ, facts)
    shown = max(0, options.disagreements)
    if options.json:
        print(json.dumps(as_json(benchmark, answers, found, differ, notes, shown), ensure_ascii=True, indent=1))
    else:
        print(as_text(benchmark, answers, found, differ, notes, shown))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
