"""Evaluate checkpoints on a suite and print its table.

    python -m benchmarks.run --suite vision-centric                  the lab: trains the five methods, then evaluates them
    python -m benchmarks.run --suite vision-centric --model DIR ...  evaluates the checkpoint(s) in DIR on the lab's items
    python -m benchmarks.run --model DIR --data linked_items.jsonl --images DIR   on real items whose photos are at hand

What is finished is kept: trained stages and predictions in OUTPUT, so a second run prints the same table in seconds.
Every cell is a score from 0 to 100 with its 95 % interval; below it the score without the picture (blind).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks import suites
from benchmarks.lab import items_folder, lab_items
from benchmarks.predict import asked_by, read_predictions, settings, write_items
from benchmarks.records import append_records, score, trained_as
from benchmarks.suite_table import Table, as_markdown, as_text, differences, suite_rows, unparsed
from benchmarks.suites import Item
from dpa import card
from dpa.errors import InputError, command
from dpa.lineage import LINEAGE, file_hash, is_complete, provenance, read_lineage, write_json
from dpa.preflight import usable_cpus

METHODS = ("vanilla", "cal", "pmo", "cmo", "dpa")  # the default rows; any of dpa.methods.METHODS can be asked for
MODES = ("seen", "blind")


@dataclass(frozen=True)
class Asked:
    """What is asked: items under a name, their pictures, the benchmarks among them, the length of an answer.

    captions: the lab's caption set that the methods are trained on.
    """

    name: str
    items: Sequence[Item]
    images: Path
    benchmarks: Sequence[str]
    max_new_tokens: int
    captions: str

    def file(self, output: Path) -> Path:
        return output / "items" / f"{self.name}.jsonl"


@dataclass(frozen=True)
class Subject:
    """A checkpoint to evaluate: a lab method with its seed and the recipe that trains it, or a given model."""

    name: str
    seed: int
    model: Path
    recipe: str | None = None

    def predictions(self, output: Path, data: str, mode: str) -> Path:
        own = (
            self.model.parent / "predictions"
            if self.recipe
            else output / "predictions" / str(self.model).strip("/").replace("/", "_")
        )
        return own / f"{data}-{mode}.jsonl"

    def settings(self, asked: Asked, mode: str) -> dict:
        return settings(str(self.model), asked.items, asked.images, mode == "blind", asked.max_new_tokens)

    def is_answered(self, asked: Asked, output: Path, mode: str) -> bool:
        """Whether every item has an answer. InputError when the answers were made otherwise than asked for now."""
        answers = read_predictions(self.predictions(output, asked.name, mode), self.settings(asked, mode))
        return all((item.benchmark, item.index) in answers for item in asked.items)


def lab_subjects(output: Path, captions: str, methods: Sequence[str], seeds: Sequence[int]) -> list[Subject]:
    """The methods on one of the lab's caption sets, for each seed."""
    from dpa.recipes import recipe
    from dpa.stages import stage_folder

    names = {method: f"lab_{captions}" + ("" if method == "dpa" else f"_{method}") for method in dict.fromkeys(methods)}
    return [
        Subject(method, seed, stage_folder(output, recipe(name), "instruct", seed), name)
        for seed in dict.fromkeys(seeds)
        for method, name in names.items()
    ]


def complete_lab(subjects: Sequence[Subject], asked: Asked, output: Path, jobs: int, llm: str | None = None) -> None:
    """Train and question every lab subject that is not done, `jobs` at a time, each in processes of its own.

    llm: folder of a base LLM in place of the shipped one.

    What is there is re-used only if it was made from the same settings, foundations and data; else it is named.
    """
    from dpa import stages, train
    from dpa.arguments import resolve
    from dpa.lab.dataset import ensure

    for name in ("lab/questions", f"lab/{asked.captions}"):  # once, before two trainings would both draw them
        ensure(output, name)

    def command_line(subject: Subject) -> list[str]:
        own = ["--llm", llm] if llm else []
        return ["--recipe", str(subject.recipe), "--output", str(output), "--seed", str(subject.seed), *own]

    def open_parts(subject: Subject) -> list[Path]:
        """What is still to be made, in order: a file for each unfinished stage and for each mode not asked."""
        flags, rest = train.parse(command_line(subject))
        chosen = resolve(flags)
        unfinished = [stage for stage in chosen.stages if not stages.finished(chosen, stage, flags, rest)]
        parts = [stages.stage_folder(output, chosen, stage, subject.seed) / LINEAGE for stage in unfinished]
        for mode in MODES:
            seconds = subject.predictions(output, asked.name, mode).with_suffix(".seconds")
            if not (is_complete(subject.model) and subject.is_answered(asked, output, mode) and seconds.is_file()):
                parts.append(seconds)
        return parts

    wanted = {subject: parts for subject in subjects if (parts := open_parts(subject))}
    if not wanted:
        return
    (output / "logs").mkdir(parents=True, exist_ok=True)
    files = {path for parts in wanted.values() for path in parts}
    failures: list[str] = []

    def work(subject: Subject) -> None:
        if failures:
            return
        log = output / "logs" / f"{subject.recipe}-seed{subject.seed}.log"
        seen, blind = (str(subject.predictions(output, asked.name, mode)) for mode in MODES)
        ask = ["--model", str(subject.model), "--out", seen, "--blind-out", blind]
        of = ["--items", str(asked.file(output)), "--images", str(asked.images)]
        try:
            _call(["dpa.train", *command_line(subject), "--stage", "all"], log)
            _call(["benchmarks.predict", *ask, *of, "--max-new-tokens", str(asked.max_new_tokens)], log)
        except InputError as error:
            failures.append(str(error))

    # Of two methods that share a proxy the second waits for the first, so they do not start side by side.
    first = {"pmo": 0, "vanilla": 1}
    order = sorted(wanted, key=lambda s: (s.seed, first.get(s.name, 2)))
    bar = tqdm(total=len(files), desc="training and asking", unit="part")
    with bar, ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, subject) for subject in order]
        while not all(future.done() for future in futures):
            bar.update(sum(path.is_file() for path in files) - bar.n)
            time.sleep(1)
        bar.update(sum(path.is_file() for path in files) - bar.n)
    for future in futures:
        future.result()
    if failures:
        raise InputError(failures[0])


def _call(command: Sequence[str], log: Path) -> None:
    """Run `python -m command` with its output in `log`; InputError with its last line when it fails."""
    # one thread each: two OpenMP threads on a machine with two busy processes are several times slower than one
    environment = os.environ | {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    with open(log, "a", encoding="utf-8") as file:
        result = subprocess.run(
            [sys.executable, "-m", *command], stdout=file, stderr=subprocess.STDOUT, env=environment, check=False
        )
    if result.returncode:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        last = lines[-1].removeprefix("error: ") if lines else "no output"
        raise InputError(f"`python -m {' '.join(command)}` failed: {last} (whole output: {log})")


def ask_models(subjects: Sequence[Subject], asked: Asked, output: Path, batch_size: int) -> None:
    """Question given checkpoints, one after the other in this process."""
    from benchmarks.predict import predict

    for subject in subjects:
        for mode in MODES:
            out = subject.predictions(output, asked.name, mode)
            predict(
                str(subject.model),
                asked.items,
                asked.images,
                out,
                blind=mode == "blind",
                batch_size=batch_size,
                max_new_tokens=asked.max_new_tokens,
            )


def score_all(subjects: Sequence[Subject], asked: Asked, output: Path, records: Path) -> Table:
    """Scores of every subject and mode from the kept predictions; their records are appended to `records`."""
    table: Table = {}
    for subject in subjects:
        for mode in MODES:
            path = subject.predictions(output, asked.name, mode)
            answers = read_predictions(path, subject.settings(asked, mode))
            scores = [
                score([item for item in asked.items if item.benchmark == name], answers) for name in asked.benchmarks
            ]
            table[subject.name, subject.seed, mode] = scores
            append_records(
                records,
                scores,
                model=subject.recipe or str(subject.model),
                trained=trained_as(subject.model),
                seed=subject.seed,
                mode=mode,
                data=asked.name,
                data_hash=file_hash(asked.file(output)),
                prediction_hash=file_hash(path),
                seconds=json.loads(path.with_suffix(".seconds").read_text(encoding="utf-8")),
                asked_by=asked_by(path),
            )
        if is_complete(subject.model):  # one of ours: its card tells its scores
            card.update(subject.model, records)
    return table


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", default="vision-centric", help=f"one of {', '.join(suites.SUITES)}")
    parser.add_argument(
        "--model", nargs="+", help="checkpoints to evaluate; without it the lab's five methods are trained"
    )
    parser.add_argument("--data", type=Path, help="real items (JSON lines) in place of the lab's")
    parser.add_argument("--images", type=Path, help="folder of the real items' photos")
    parser.add_argument(
        "--captions", choices=("plain", "terse", "ornate"), default="ornate", help="the lab's caption set"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=METHODS,
        metavar="M",
        help=f"rows of the lab's table (default: {' '.join(METHODS)})",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="training seeds of the lab's methods")
    parser.add_argument(
        "--llm", help="folder of another base LLM for the lab's methods (it needs an --output of its own)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs"), help="folder of runs and predictions (default: runs)"
    )
    parser.add_argument(
        "--publish", type=Path, metavar="DIR", help="also write table.md, records.jsonl and manifest.json to DIR"
    )
    parser.add_argument(
        "--jobs", type=int, default=0, help="lab trainings side by side (default: one a core, one on a GPU machine)"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    return parser.parse_args(arguments)


@command
def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    for flag in ("jobs", "batch_size", "max_new_tokens"):
        if getattr(options, flag) < (flag != "jobs"):
            raise InputError(f"--{flag.replace('_', '-')} should be a positive number, got {getattr(options, flag)}")
    from dpa.methods import METHODS as known

    if unknown := [method for method in options.methods if method not in known]:
        raise InputError(f"unknown method {unknown[0]!r}; there is {', '.join(known)}")
    _run(options)
    return 0


def _run(options: argparse.Namespace) -> None:
    start = time.time()
    output: Path = options.output
    if options.data is not None:
        from benchmarks.linked import linked_items

        if options.model is None:
            raise InputError("--data evaluates given checkpoints on real items; give them with --model")
        if options.images is None:
            raise InputError("--data needs the folder of its photos; give it with --images")
        items = linked_items(options.data, options.images)
        asked = Asked(
            options.data.stem,
            items,
            options.images,
            tuple(dict.fromkeys(item.benchmark for item in items)),
            options.max_new_tokens,
            options.captions,
        )
        title = f"real items of {options.data.name}"
    else:
        names = suites.suite(options.suite)
        images = items_folder(output)
        asked = Asked("lab", lab_items(images), images, names, options.max_new_tokens, options.captions)
        title = f"{options.suite}, the lab's items"
    write_items(asked.file(output), asked.items)
    if options.model:
        subjects = [Subject(model, 0, Path(model)) for model in options.model]
        ask_models(subjects, asked, output, options.batch_size)
    else:
        subjects = lab_subjects(output, options.captions, options.methods, options.seeds)
        title += f", methods trained on its {options.captions} captions"
        jobs = options.jobs or (1 if Path("/proc/driver/nvidia").exists() else usable_cpus())
        complete_lab(subjects, asked, output, jobs, options.llm)
    records = output / "records.jsonl"
    table = score_all(subjects, asked, output, records)
    title += ": scores from 0 to 100 [95 % interval]"
    rows = suite_rows(table, asked.benchmarks)
    lines = [*differences(table), *unparsed(table)]
    print("\n".join([title, "", as_text(rows), "", *lines]), flush=True)
    print(f"\nrecords: {records}   wall time {time.time() - start:.0f} s")
    if options.publish:
        publish(options.publish, title, rows, lines, subjects, asked, output)


def publish(
    folder: Path,
    title: str,
    rows: Sequence[Sequence[str]],
    lines: Sequence[str],
    subjects: Sequence[Subject],
    asked: Asked,
    output: Path,
) -> None:
    """Write the table, its records and the manifest of the run that made them."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f"{title}\n\n{as_markdown(rows)}\n\n" + "".join(f"- {line}\n" for line in lines)
    (folder / "table.md").write_text(text, encoding="utf-8")
    (folder / "records.jsonl").unlink(missing_ok=True)
    score_all(subjects, asked, output, folder / "records.jsonl")
    made = {
        "seeds": sorted({subject.seed for subject in subjects}),
        "items": file_hash(asked.file(output)),
        "predictions": {
            f"{subject.name}-seed{subject.seed}-{mode}": file_hash(subject.predictions(output, asked.name, mode))
            for subject in subjects
            for mode in MODES
        },
        "training": {
            f"{folder.parent.name}/{folder.name}": {
                key: read_lineage(folder)[key] for key in ("data", "commit", "seconds")
            }
            for subject in subjects
            for folder in sorted(subject.model.parent.glob("*/"))
            if is_complete(folder)
        },
    }
    write_json(folder / "manifest.json", provenance() | made)


if __name__ == "__main__":
    raise SystemExit(main())
