"""Evaluate checkpoints on a suite and print its table.

    python -m benchmarks.run --suite vision-centric|general|all      the lab: trains the five methods, then evaluates them
    python -m benchmarks.run --suite all --model DIR ...             evaluates the checkpoint(s) in DIR on the lab's items
    python -m benchmarks.run --suite all --model DIR --data DATA     on the official sets in the folder DATA
    python -m benchmarks.run --suite all --server URL --server-model NAME --data DATA       a model that a server runs
    python -m benchmarks.run --model DIR --data linked_items.jsonl --images DIR    on real items whose photos are at hand

What is finished is kept: trained stages and predictions in OUTPUT, so a second run prints the same table in seconds.
Every cell is a score in the paper's unit with its 95 % interval; below it the same without the picture (blind), with a
grey one (blank) or with another item's (shuffled). --dry-run says what would be asked and loads no model.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks import suites
from benchmarks.asked import Part, described, in_order, lab_parts, linked_part, official_parts
from benchmarks.formats import markdown_table, text_table
from benchmarks.predict import write_items
from benchmarks.predictions import asked_by, read_truncated, settings_of
from benchmarks.questions import How, Mode
from benchmarks.records import append_records, trained_as
from benchmarks.subjects import Subject, ask, complete_lab, lab_subjects
from benchmarks.suite_table import (
    Table,
    difference_rows,
    differences,
    suite_rows,
    unparsed,
)
from dpa import card
from dpa.errors import InputError, command
from dpa.lineage import file_hash, is_complete, provenance, read_lineage, write_json
from dpa.preflight import usable_cpus

METHODS = ("vanilla", "cal", "pmo", "cmo", "dpa")  # the default rows; any of dpa.methods.METHODS can be asked for
OF_MODELS = ("temperature", "attention", "chat_template", "shards", "batch_size", "concurrency")
OF_SETS = ("prompt_line", "corrected_labels", "made_up", "vlmevalkit_python", "vlmevalkit_root")
POSITIVE = ("batch_size", "max_new_tokens", "limit", "shards", "concurrency")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", default="vision-centric", help=f"one of {', '.join(suites.SUITES)}")
    parser.add_argument("--dry-run", action="store_true", help="say what would be asked, and stop")
    parser.add_argument(
        "--publish", type=Path, metavar="DIR", help="also write table.md, records.jsonl and manifest.json to DIR"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs"), help="folder of runs and predictions (default: runs)"
    )
    given = parser.add_argument_group("given models")
    given.add_argument(
        "--model", nargs="+", help="checkpoints to evaluate; without it the lab's five methods are trained"
    )
    given.add_argument("--server", metavar="URL", help="OpenAI-compatible server, as http://localhost:8000/v1")
    given.add_argument("--server-model", nargs="+", metavar="NAME", help="the server's names of the models")
    given.add_argument("--attention", choices=("sdpa", "eager", "flash_attention_2"))
    given.add_argument("--chat-template", metavar="NAME", help="for a checkpoint without one: vicuna")
    given.add_argument("--batch-size", type=int, default=64)
    given.add_argument("--concurrency", type=int, default=16, help="questions that a server has at a time")
    given.add_argument("--shards", type=int, default=1, help="processes that share the work, one a GPU")
    given.add_argument("--temperature", type=float, default=0.0, help="sample, in place of greedy decoding")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", type=Path, help="folder of the official sets, or real items (JSON lines), in place of the lab's"
    )
    data.add_argument("--images", type=Path, help="folder of the real items' photos")
    data.add_argument("--limit", type=int, metavar="N", help="only the first N units of each benchmark")
    data.add_argument("--prompt-line", default="stock", help="stock | letter | the line that ends a prompt")
    data.add_argument("--max-new-tokens", type=int, help="of an answer (16; official sets: 128)")
    data.add_argument("--corrected-labels", action="store_true", help="MMVP: turn the four labels known to be swapped")
    data.add_argument("--made-up", action="store_true", help="the sets are made up: NaturalBench may have any size")
    for mode, told in (
        ("blind", "no picture (the lab's default)"),
        ("blank", "a grey one"),
        ("shuffled", "another item's"),
    ):
        data.add_argument(f"--{mode}", action="store_true", help=f"also ask with {told}")
    kit = parser.add_argument_group("VLMEvalKit, for the official sets (`make harness` builds its environment)")
    kit.add_argument("--vlmevalkit-python", type=Path, metavar="FILE", help="python of another environment that has it")
    kit.add_argument("--vlmevalkit-root", type=Path, metavar="DIR", help="a checkout in place of the installed one")
    lab = parser.add_argument_group("the lab")
    lab.add_argument("--captions", choices=("plain", "terse", "ornate"), default="ornate", help="its caption set")
    lab.add_argument(
        "--methods", nargs="+", default=METHODS, metavar="M", help=f"its table's rows (default: {' '.join(METHODS)})"
    )
    lab.add_argument("--seeds", type=int, nargs="+", default=[0], help="training seeds of its methods")
    lab.add_argument("--llm", help="folder of another base LLM for its methods (it needs an --output of its own)")
    lab.add_argument(
        "--jobs", type=int, default=0, help="trainings side by side (default: one a core, one on a GPU machine)"
    )
    return parser.parse_args(arguments)


@command
def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    _check(options)
    start = time.time()
    output: Path = options.output
    parts = _parts(options)
    modes: list[Mode] = ["seen"]
    modes += [mode for mode in ("blind", "blank", "shuffled") if getattr(options, mode)]
    if not _is_folder(options.data) and "blind" not in modes:
        modes.insert(1, "blind")
    subjects = _subjects(options)
    if options.dry_run:
        print("\n".join([*described(parts), *_open(subjects, parts, output, modes)]))
        return 0
    for part in parts:
        write_items(part.items_file(output), part.items)
    if options.model or options.server:
        sizes = {name: getattr(options, name) for name in ("batch_size", "concurrency", "shards")}
        ask(subjects, parts, output, modes, **sizes)
    else:
        jobs = options.jobs or (1 if Path("/proc/driver/nvidia").exists() else usable_cpus())
        complete_lab(subjects, parts, output, options.captions, modes, jobs, options.llm)
    records = output / "records.jsonl"
    published = options.publish / "records.jsonl" if options.publish else None
    if published:
        published.unlink(missing_ok=True)
    table = score_all(subjects, parts, output, modes, [records, published] if published else [records])
    names = [s.benchmark for s in next(iter(table.values()))]
    base = subjects[0].name if options.model or options.server else "vanilla"
    sheets = [rows for rows in (suite_rows(table, names), difference_rows(table, base)) if rows]
    lines = [*differences(table, base), *unparsed(table), *_notes(subjects, parts, output)]
    title = _title(options)
    print("\n\n".join([title, *map(text_table, sheets), "\n".join(lines)]), flush=True)
    print(f"\nrecords: {records}   wall time {time.time() - start:.0f} s")
    if options.publish:
        publish(options.publish, title, sheets, lines, subjects, parts, output, modes)
    return 0


def _check(options: argparse.Namespace) -> None:
    for flag in POSITIVE:
        value = getattr(options, flag)
        if value is not None and value < 1:
            raise InputError(f"--{flag.replace('_', '-')} should be a positive number, got {value}")
    if not 0 <= options.temperature < float("inf"):
        raise InputError(f"--temperature should be 0 or more, got {options.temperature}")
    if options.server and options.shards > 1:
        raise InputError("--shards are for checkpoints that run here; a server is asked by --concurrency")
    if options.jobs < 0:
        raise InputError(f"--jobs should be a positive number, got {options.jobs}")
    from dpa.methods import METHODS as known

    if unknown := [method for method in options.methods if method not in known]:
        raise InputError(f"unknown method {unknown[0]!r}; there is {', '.join(known)}")
    if bool(options.server) != bool(options.server_model):
        raise InputError("--server and --server-model go together: where it listens, and what it calls the model")
    if options.server and options.model:
        raise InputError("give --model for a checkpoint here, or --server and --server-model, not both")
    if options.data is not None and not (options.model or options.server):
        raise InputError("--data evaluates given checkpoints; give them with --model or --server")
    if _is_folder(options.data) and not options.data.is_dir():
        raise InputError(
            f"{options.data}: not there; give the folder of the official sets (`python -m benchmarks.official --data {options.data}` says what belongs there) or a file of real items"
        )
    usual = parse([])
    for flags, holds, what in (
        (OF_MODELS, options.model or options.server, "given models; name one with --model or --server"),
        (OF_SETS, _is_folder(options.data), "the official sets; give their folder with --data"),
    ):
        named = [flag for flag in flags if getattr(options, flag) != getattr(usual, flag)]
        if named and not holds:
            raise InputError(f"--{named[0].replace('_', '-')} is about {what}")


def _is_folder(data: Path | None) -> bool:
    """Whether --data names a folder of official sets, and not a file of real items."""
    return data is not None and (data.is_dir() or not data.suffix)


def _parts(options: argparse.Namespace) -> list[Part]:
    names = suites.suite(options.suite)
    if options.data is None:
        return lab_parts(names, options.output, options.max_new_tokens, options.limit)
    if not _is_folder(options.data):
        return [linked_part(options.data, options.images, options.max_new_tokens, options.limit)]

    @lru_cache
    def find_kit() -> Any:
        from benchmarks import vlmevalkit

        return vlmevalkit.find(options.vlmevalkit_python, options.vlmevalkit_root)

    return official_parts(
        names,
        options.data,
        options.output / "pictures",
        find_kit=find_kit,
        prompt_line=options.prompt_line,
        max_new_tokens=options.max_new_tokens,
        limit=options.limit,
        made_up=options.made_up,
        corrected_labels=options.corrected_labels,
    )


def _subjects(options: argparse.Namespace) -> list[Subject]:
    if not (options.model or options.server):
        return lab_subjects(options.output, options.captions, options.methods, options.seeds)
    told = {name: getattr(options, name) for name in ("temperature", "attention", "chat_template", "server")}
    names = options.server_model or options.model
    return [Subject(name, 0, Path(name), how=How(**told)) for name in dict.fromkeys(names)]


def _title(options: argparse.Namespace) -> str:
    if options.data is None:
        title = f"{options.suite}, the lab's items"
    elif not _is_folder(options.data):
        title = f"real items of {options.data.name}"
    else:
        title = f"{options.suite}, the official sets in {options.data}"
    if not (options.model or options.server):
        title += f", methods trained on its {options.captions} captions"
    if options.limit is not None:
        title += f", the first {options.limit} units of each alone"
    return title + ": scores from 0 to 100 [95 % interval]"


def _open(subjects: Sequence[Subject], parts: Sequence[Part], output: Path, modes: Sequence[Mode]) -> list[str]:
    """One line for each file of predictions: what it holds and what would be asked."""
    lines = []
    for subject in subjects:
        for part in parts:
            for mode in modes:
                path = subject.predictions(output, part, mode)
                told = f"{subject.name}, seed {subject.seed}, {mode}: "
                if subject.how.server is None and not subject.model.is_dir():
                    lines.append(f"{told}no checkpoint in {subject.model} yet; would go into {path}")
                    continue
                try:
                    answered = subject.answers(part, output, mode)
                except InputError as error:
                    lines.append(f"{told}{error}")
                    continue
                asked = suites.limited(part.items, part.limit)
                still = sum((item.benchmark, item.index) not in answered for item in asked)
                lines.append(f"{told}{still} of {len(asked)} items to ask, into {path}")
    return lines


def _notes(subjects: Sequence[Subject], parts: Sequence[Part], output: Path) -> list[str]:
    """What a reader of the table should know of its data."""
    lines = []
    if others := [part.name for part in parts if part.md5 and part.official is False]:
        lines.append(
            f"not the official files by their MD5: {', '.join(others)}; do not put these scores beside published ones"
        )
    asking = [part for part in parts if part.prompt_line != "stock"]
    if asking and asking[0].prompt_line == "letter":  # changes no other of the eight
        asking = [part for part in asking if part.name in ("MMBench", "AI2D")]
    if asking:
        line = asking[0].prompt_line
        told = (
            "MMBench and AI2D ask for the letter in Cambrian's words"
            if line == "letter"
            else f"prompts end on {line!r}"
        )
        lines.append(f"{told}, in place of the harness's own line")
    if any(part.scorer == "vlmevalkit" and part.limit is not None for part in parts):
        lines.append("each item is scored by its own rule: VLMEvalKit scores whole sets alone")
    for subject in subjects:
        if (trained := trained_as(subject.model)) and "captions" not in trained:
            lines.append(
                f"{subject.name}: its stage connector is not at hand, so its records do not say which captions it was trained on"
            )
        cut = {}
        for part in parts:
            asked = {(item.benchmark, item.index) for item in suites.limited(part.items, part.limit)}
            cut[part.name, part.max_new_tokens] = len(read_truncated(subject.predictions(output, part, "seen")) & asked)
        if any(cut.values()):
            told = ", ".join(f"{name} {number} at {most}" for (name, most), number in cut.items() if number)
            lines.append(f"{subject.name}, seed {subject.seed}: answers that were cut off, at how many tokens: {told}")
    return lines


def score_all(
    subjects: Sequence[Subject], parts: Sequence[Part], output: Path, modes: Sequence[Mode], records: Sequence[Path]
) -> Table:
    """Scores of every subject and mode from the kept predictions; their records are appended to each file of `records`."""
    table: Table = {}
    for subject in subjects:
        trained = trained_as(subject.model)
        for mode in modes:
            found = []
            for part in parts:
                path = subject.predictions(output, part, mode)
                made = settings_of(path)
                scores = part.scores(subject.answers(part, output, mode))
                found += scores
                about = part.about(output) | {key: made[key] for key in ("engine", "decoding", "max_new_tokens")}
                for file in records:
                    append_records(
                        file,
                        scores,
                        model=subject.recipe or str(subject.model),
                        trained=trained,
                        seed=subject.seed,
                        mode=mode,
                        data=about,
                        prediction_hash=file_hash(path),
                        seconds=json.loads(path.with_suffix(".seconds").read_text(encoding="utf-8")),
                        asked_by=asked_by(path),
                    )
            table[subject.name, subject.seed, mode] = in_order(found)
        if is_complete(subject.model):  # one of ours: its card tells its scores
            card.update(subject.model, records[0])
    return table


def publish(
    folder: Path,
    title: str,
    sheets: Sequence[Sequence[Sequence[str]]],
    lines: Sequence[str],
    subjects: Sequence[Subject],
    parts: Sequence[Part],
    output: Path,
    modes: Sequence[Mode],
) -> None:
    """Write the table and the manifest of the run that made it, beside its records."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join([title, *map(markdown_table, sheets), ""]) + "".join(f"- {line}\n" for line in lines)
    (folder / "table.md").write_text(text, encoding="utf-8")
    made = {
        "seeds": sorted({subject.seed for subject in subjects}),
        "items": {part.name: file_hash(part.items_file(output)) for part in parts},
        "data": {part.name: part.md5 for part in parts if part.md5},
        "predictions": {
            f"{subject.name}-seed{subject.seed}-{part.name}-{mode}": file_hash(subject.predictions(output, part, mode))
            for subject in subjects
            for part in parts
            for mode in modes
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
