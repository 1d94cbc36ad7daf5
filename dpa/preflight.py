"""Name every record that training would stumble over, before a GPU hour is spent.

    python -m dpa.preflight --recipe R [--data FILE ... --images DIR] [--json REPORT]   with label masks and lengths
    python -m dpa.preflight --data FILE ... --images DIR                                the records and pictures alone
    python -m dpa.preflight --data FILE ... --images DIR --llm L --stage instruct       with an LLM's label masks

Reads each record, each picture's header (`--decode`: the whole picture), each label mask; prints what is bad by source,
line, id and reason, how often, and how long the samples are. Exit status 1 when a record is bad.
Training makes the same checks and keeps to `--max-bad-samples`.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jinja2 import TemplateError
from tqdm import tqdm

from dpa.errors import InputError, command
from dpa.images import image_path, image_size, open_image
from dpa.lineage import provenance, write_json
from dpa.readers import IMAGE_MARK, VIEWS, Problem, Record, source_hash

if TYPE_CHECKING:
    from dpa.corpus import Corpus
    from dpa.data import Samples

Look = Literal["exists", "header", "decode"]
LOOKS = {"exists": image_path, "header": image_size, "decode": open_image}
KEPT = ("cut", "duplicate")  # kinds that stay in training
SMALL = 20_000  # up to this many pictures and records training looks at all of them whole
CHUNK = 200  # records a process takes at a time
SHOWN = 20  # problems printed
EDGES = (0, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass
class Findings:
    """What a scan found: problems by index of the corpus, and the length of each sample encoded (tokens; -1: not)."""

    problems: dict[int, Problem] = field(default_factory=dict)
    lengths: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    num_pictures: int = 0  # distinct ones looked at

    @property
    def bad(self) -> list[int]:
        """Indices that training has to leave out."""
        return [index for index, problem in self.problems.items() if problem.kind not in KEPT]


@dataclass(frozen=True)
class Scan:
    """The work on some records, for one process: look at pictures, encode samples."""

    corpus: Any
    samples: Any
    look: Look

    def __call__(self, work: tuple[Sequence[int], Sequence[int]]) -> list[tuple[int, Problem | None, int]]:
        """[(index, problem, length)] for pictures to look at and samples to encode."""
        found: list[tuple[int, Problem | None, int]] = []
        for index in work[0]:
            record: Record = self.corpus[index]
            assert record.image is not None
            try:
                LOOKS[self.look](record.images, record.image, record.where)
            except InputError as error:
                found.append((index, _problem(record, error, "image"), -1))
        for index in work[1]:
            record, problem, length = self.corpus[index], None, -1
            try:
                encoded = self.samples.encode(record)
                length = len(encoded.ids)
                kept = self.samples.cut(record, encoded)
            except InputError as error:
                problem = _problem(record, error, "labels")
            else:
                if cut := length - len(kept.ids):
                    labels = sum(encoded.supervised) - sum(kept.supervised)
                    reason = f"{length} tokens, {cut} more than the limit; they would be cut at the right, {labels} of them supervised"
                    problem = Problem(record.where, record.id, reason, "cut")
            found.append((index, problem, length))
        return found


def _problem(record: Record, error: InputError, kind: str) -> Problem:
    return Problem(record.where, record.id, str(error).removeprefix(f"{record.where}: "), kind)


def scan(
    corpus: Corpus,
    samples: Samples | None,
    *,
    look: Look = "header",
    encode: Iterable[int] | None = None,
    jobs: int | None = None,
) -> Findings:
    """Look at every distinct picture of the corpus and encode samples (those at `encode`; None: all, if `samples`).

    jobs: processes; None: one a core that may be used.
    """
    findings = Findings(lengths=np.full(len(corpus), -1, np.int64))
    pictures, first = _pictures(corpus) if corpus.view != "text" else ([], {})
    encode = (range(len(corpus)) if encode is None else encode) if samples is not None else ()
    findings.num_pictures = len(pictures)
    work = _chunks(pictures, list(encode))
    jobs = min(jobs or usable_cpus(), len(work)) or 1
    title = f"checking {Path(corpus.parts[0].source).name}"
    task = Scan(corpus, samples, look)
    total = sum(len(a) + len(b) for a, b in work)
    with tqdm(total=total, desc=title, unit="check", leave=False, delay=2) as bar:
        for (a, b), results in zip(work, _run(task, work, jobs), strict=True):
            for index, problem, length in results:
                if problem is not None:
                    findings.problems.setdefault(index, problem)
                if length >= 0:
                    findings.lengths[index] = length
            bar.update(len(a) + len(b))
    for index, one in first.items():  # a picture is looked at once, and told of each record that asks for it
        if one in findings.problems and findings.problems[one].kind == "image":
            record = corpus[index]
            reason = findings.problems[one].reason
            findings.problems[index] = Problem(record.where, record.id, reason, "image")
    return findings


def _pictures(corpus: Corpus) -> tuple[list[int], dict[int, int]]:
    """(one index for each distinct picture, {index of a further record: the index looked at for it})."""
    seen: dict[tuple[int, str], int] = {}
    further: dict[int, int] = {}
    for index, key in enumerate(corpus.pictures()):
        if key is not None and seen.setdefault(key, index) != index:
            further[index] = seen[key]
    return list(seen.values()), further


def _chunks(pictures: Sequence[int], encode: Sequence[int]) -> list[tuple[Sequence[int], Sequence[int]]]:
    looks = [(pictures[i : i + CHUNK], ()) for i in range(0, len(pictures), CHUNK)]
    return looks + [((), encode[i : i + CHUNK]) for i in range(0, len(encode), CHUNK)]


def _run(task: Scan, work: Sequence, jobs: int) -> Iterator[list]:
    if jobs == 1 or len(work) < 4:
        yield from map(task, work)
        return
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the processes are the parallelism
    with ProcessPoolExecutor(jobs, initializer=_start, initargs=(task,)) as pool:
        yield from pool.map(_work, work)


_task: Scan


def _start(task: Scan) -> None:
    global _task
    _task = task


def _work(work: tuple[Sequence[int], Sequence[int]]) -> list:
    return _task(work)


def usable_cpus() -> int:
    """Cores that this process may use (macOS cannot tell a restriction)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def duplicates(corpus: Corpus) -> dict[int, Problem]:
    """Records whose id an earlier record of the same source has; training keeps them."""
    first: dict[tuple[int, str], int] = {}
    found = {}
    for index, key in enumerate(corpus.ids()):
        if key is not None and (earlier := first.setdefault(key, index)) != index:
            record = corpus[index]
            reason = f"its id stands at {corpus[earlier].where.split(' (id')[0]} already; both are kept"
            found[index] = Problem(record.where, record.id, reason, "duplicate")
    return found


def for_training(corpus: Corpus, samples: Samples, budget: int) -> Findings:
    """What training checks before it starts: everything of up to `SMALL` records and pictures; of more, that pictures
    exist (with a budget above 0 their headers), and the label masks of samples that could be too long, that spell the
    image token, or whose turns are the first of their kind.
    """
    pictures = len({key for key in corpus.pictures() if key is not None}) if corpus.view != "text" else 0
    look: Look = "decode" if pictures <= SMALL else "header" if budget else "exists"
    encode = None if len(corpus) <= SMALL else _doubtful(corpus, samples)
    return scan(corpus, samples, look=look, encode=encode)


def _doubtful(corpus: Corpus, samples: Samples) -> np.ndarray:
    """Indices of samples whose label mask may be bad: one of each sequence of roles (which a chat template may refuse),
    texts that spell the image token, and what may be longer than the limit, since no tokenizer makes more tokens than a text has bytes.
    """
    doubtful = np.zeros(len(corpus), bool)
    if samples.view == "chat":
        first: dict[tuple[str, ...], int] = {}
        for index, roles in enumerate(corpus.role_sequences()):
            first.setdefault(roles, index)
        kinds = set(_refused(corpus, samples, first))
        doubtful |= np.fromiter((roles in kinds for roles in corpus.role_sequences()), bool, len(corpus))
    if samples.view != "text" and samples.processor.image_token != IMAGE_MARK:  # the records' marks are counted already
        doubtful |= corpus.spells(samples.processor.image_token)
    return np.flatnonzero(doubtful | _may_be_long(corpus, samples))


def _refused(corpus: Corpus, samples: Samples, first: dict[tuple[str, ...], int]) -> Iterator[tuple[str, ...]]:
    """The sequences of roles whose first record cannot be encoded."""
    for roles, index in first.items():
        try:
            samples.encode(corpus[index])
        except InputError:
            yield roles


def _may_be_long(corpus: Corpus, samples: Samples) -> np.ndarray:
    room = samples.max_length - 4
    if samples.view == "chat":
        turns = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
        try:
            template = len(samples.tokenizer.apply_chat_template(turns, tokenize=False).encode())
        except (TemplateError, ValueError, TypeError):  # none, or one that refuses empty turns
            return np.ones(len(corpus), bool)
        sizes = corpus.sizes + template * corpus.num_turns
    else:
        sizes = corpus.sizes + 1
    if samples.view != "text":
        # four tiles at most and the whole picture, each as many as a square picture's, and a newline a row
        sizes = sizes + corpus.has_image * samples.num_image_tokens(None) * (6 if samples.tiled else 1)
    return sizes > room


def report(corpus: Corpus, findings: Findings, sources: Sequence[str], look: Look, unit: str) -> dict:
    """The report as one JSON-able dict; `bad` names every record, also the kept ones, with its kind."""
    problems = list(chain(corpus.problems, (findings.problems[i] for i in sorted(findings.problems))))
    lengths = findings.lengths[findings.lengths >= 0]
    return {
        "sources": {source: source_hash(source) for source in sources},
        "records": len(corpus) + len(corpus.problems),
        "usable": len(corpus) - len(findings.bad),
        "problems": dict(Counter(problem.kind for problem in problems)),
        "bad": [asdict(problem) for problem in problems],
        "pictures": {"distinct": findings.num_pictures, "checked": look},
        "lengths": {
            "unit": unit,
            "mean": round(float(lengths.mean()), 1) if len(lengths) else None,
            "median_p90_p99_max": [int(q) for q in np.quantile(lengths, (0.5, 0.9, 0.99, 1))] if len(lengths) else None,
            "histogram": _histogram(lengths),
        },
    }


def _histogram(lengths: np.ndarray) -> list[tuple[int, int, int]]:
    """(from, below, count) with edges that double; empty ends are left out."""
    edges = (*EDGES, max(int(lengths.max(initial=0)) + 1, EDGES[-1] + 1))
    counts, _ = np.histogram(lengths, edges)
    filled = np.flatnonzero(counts)
    if not len(filled):
        return []
    rows = range(filled[0], filled[-1] + 1)
    return [(edges[i], edges[i + 1], int(counts[i])) for i in rows]


def as_text(whole: dict) -> str:
    """The report for a terminal: counts, histogram, the first problems."""
    lines = [f"{', '.join(whole['sources'])}: {whole['records']:,} records, {whole['usable']:,} usable"]
    pictures = whole["pictures"]
    if pictures["distinct"]:
        lines.append(f"pictures: {pictures['distinct']:,} distinct, checked: {pictures['checked']}")
    if rows := whole["lengths"]["histogram"]:
        lines.append(f"length in {whole['lengths']['unit']}, mean {whole['lengths']['mean']}")
        top = max(count for *_, count in rows)
        lines += [
            f"  {low:>6} to {high - 1:>6}  {count:>9,}  {'█' * round(40 * count / top)}" for low, high, count in rows
        ]
    if not whole["bad"]:
        return "\n".join([*lines, "no bad record"])
    counted = ", ".join(f"{number:,} {kind}" for kind, number in whole["problems"].items())
    lines.append(f"{len(whole['bad']):,} problems ({counted}):")
    lines += [f"  {row['where']}: {row['reason']}" for row in whole["bad"][:SHOWN]]
    if (more := len(whole["bad"]) - SHOWN) > 0:
        lines.append(f"  and {more:,} more; --json FILE writes them all")
    return "\n".join(lines)


@command
def main(arguments: list[str] | None = None) -> int:
    from dpa.arguments import add_recipe_flags, fill_without_recipe, resolve, stages_of
    from dpa.corpus import open_corpus
    from dpa.data import Samples
    from dpa.inputs import stage_corpus, stage_processor, stage_sources

    parser = argparse.ArgumentParser(
        prog="python -m dpa.preflight", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_recipe_flags(parser, required=False)
    parser.add_argument("--decode", action="store_true", help="decode each picture, not only its header")
    parser.add_argument("--jobs", type=int, help="processes (default: one a core)")
    parser.add_argument("--seed", type=int, default=0, help="of the training, which draws its records by it")
    parser.add_argument("--json", type=Path, metavar="REPORT", help="also write the whole report as JSON")
    flags = parser.parse_args(arguments)
    if flags.jobs is not None and flags.jobs < 1:
        raise InputError(f"--jobs should be at least 1, got {flags.jobs}")
    look: Look = "decode" if flags.decode else "header"
    reports = {}
    if flags.data and flags.llm and not flags.recipe:
        fill_without_recipe(flags)
    if flags.recipe:
        chosen = resolve(flags)
        for stage in stages_of(chosen, flags):
            corpus = stage_corpus(chosen, stage, flags, seed=flags.seed)
            processor = stage_processor(chosen, stage)
            samples = Samples(corpus, VIEWS[stage], processor, max_length=chosen.settings(stage).max_length)
            findings = scan(corpus, samples, look=look, jobs=flags.jobs)
            findings.problems = duplicates(corpus) | findings.problems
            reports[stage] = report(corpus, findings, stage_sources(chosen, stage, flags)[0], look, "tokens")
    elif flags.data:
        stage = "connector" if flags.stage == "all" else flags.stage
        corpus = open_corpus(flags.data, VIEWS[stage], images=flags.images or [None], cache=flags.output / "records")
        findings = scan(corpus, None, look=look, jobs=flags.jobs)
        findings.problems = duplicates(corpus) | findings.problems
        findings.lengths = corpus.sizes
        reports[stage] = report(corpus, findings, flags.data, look, "bytes of text")
    else:
        raise InputError("nothing to check; give --recipe, or --data and --images")
    for stage, whole in reports.items():
        print(f"stage {stage}\n{as_text(whole)}\n")
    if flags.json:
        write_json(flags.json, {"stages": reports, "provenance": provenance()})
        print(f"whole report: {flags.json}")
    return int(any(whole["bad"] for whole in reports.values()))


if __name__ == "__main__":
    raise SystemExit(main())
