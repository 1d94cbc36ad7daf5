"""Evaluate checkpoints on a suite and print its table.

    python -m benchmarks.run --suite vision-centric                  the lab: trains the five methods, then evaluates them
    python -m benchmarks.run --suite vision-centric --model DIR ...  evaluates the checkpoint(s) in DIR on the lab's items
    python -m benchmarks.run --model DIR --data linked_items.jsonl --images DIR   on real items whose photos are at hand

What is finished is kept: trained stages and predictions in OUTPUT, so a second run prints the same table in seconds.
Every cell is a score from 0 to 100 with its 95 % interval; below it the score without the picture (blind).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from tqdm import tqdm

from benchmarks import suites
from benchmarks.lab import lab_items
from benchmarks.predict import read_predictions, settings, write_items
from benchmarks.records import Score, append_records, average, score
from benchmarks.statistics import paired_interval, seed_interval
from benchmarks.suites import Item
from dpa.errors import InputError
from dpa.lineage import file_hash, is_complete, provenance, write_json

METHODS = ("vanilla", "cal", "pmo", "cmo", "dpa")
MODES = ("seen", "blind")


@dataclass(frozen=True)
class Subject:
    """A checkpoint to evaluate: a lab method with its seed and the recipe that trains it, or a given model."""

    name: str
    seed: int
    model: Path
    recipe: str | None = None

    @property
    def name_of_recipe(self) -> str:
        return self.recipe or self.name

    def predictions(self, output: Path, data: str, mode: str) -> Path:
        own = (
            self.model.parent / "predictions"
            if self.recipe
            else output / "predictions" / str(self.model).strip("/").replace("/", "_")
        )
        return own / f"{data}-{mode}.jsonl"


def lab_subjects(output: Path, captions: str, seeds: Sequence[int]) -> list[Subject]:
    from dpa.recipes import recipe
    from dpa.train import stage_folder

    names = {method: f"lab_{captions}" + ("" if method == "dpa" else f"_{method}") for method in METHODS}
    return [
        Subject(method, seed, stage_folder(output, recipe(names[method]), "instruct", seed), names[method])
        for seed in seeds
        for method in METHODS
    ]


def complete_lab(
    subjects: Sequence[Subject], items_file: Path, images: Path, output: Path, data: str, jobs: int
) -> None:
    """Train and question every lab subject that is not done, `jobs` at a time, each in processes of its own."""
    from dpa.recipes import recipe
    from dpa.train import stage_folder

    def answered(subject: Subject, mode: str) -> bool:
        return subject.predictions(output, data, mode).with_suffix(".done").is_file()

    wanted = [s for s in subjects if not (is_complete(s.model) and all(answered(s, mode) for mode in MODES))]
    if not wanted:
        return
    (output / "logs").mkdir(parents=True, exist_ok=True)
    proxy_locks = {subject.seed: Lock() for subject in wanted}  # one proxy a seed, shared by pmo and dpa
    bar = tqdm(
        total=sum(len(recipe(s.name_of_recipe).stages) + len(MODES) for s in wanted),
        desc="training and asking",
        unit="part",
    )
    failures: list[str] = []

    def work(subject: Subject) -> None:
        chosen = recipe(subject.name_of_recipe)
        log = output / "logs" / f"{chosen.name}-seed{subject.seed}.log"
        train = ["dpa.train", "--recipe", chosen.name, "--seed", str(subject.seed), "--output", str(output)]
        ask = ["benchmarks.predict", "--model", str(subject.model), "--items", str(items_file), "--images", str(images)]
        for stage in chosen.stages:
            with proxy_locks[subject.seed] if stage == "proxy" else nullcontext():
                if not is_complete(stage_folder(output, chosen, stage, subject.seed)):
                    _call([*train, "--stage", stage], log)
            bar.update()
        for mode in MODES:
            out, start = subject.predictions(output, data, mode), time.time()
            _call([*ask, "--out", str(out), *(["--blind"] if mode == "blind" else [])], log)
            write_json(
                out.with_suffix(".done"), {"predictions": file_hash(out), "seconds": round(time.time() - start, 1)}
            )
            bar.update()

    def guarded(subject: Subject) -> None:
        if not failures:
            try:
                work(subject)
            except InputError as error:
                failures.append(str(error))

    order = sorted(wanted, key=lambda s: (s.seed, ("pmo", "vanilla", "dpa", "cmo", "cal").index(s.name)))
    with bar, ThreadPoolExecutor(jobs) as pool:
        list(pool.map(guarded, order))
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


def ask_models(
    subjects: Sequence[Subject],
    items: Sequence[Item],
    images: Path,
    output: Path,
    data: str,
    batch_size: int,
    max_new_tokens: int,
) -> None:
    from benchmarks.predict import predict

    for subject in subjects:
        for mode in MODES:
            out = subject.predictions(output, data, mode)
            start = time.time()
            predict(
                str(subject.model),
                items,
                images,
                out,
                blind=mode == "blind",
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
            )
            if not out.with_suffix(".done").is_file():
                write_json(
                    out.with_suffix(".done"), {"predictions": file_hash(out), "seconds": round(time.time() - start, 1)}
                )


Table = dict[tuple[str, int, str], list[Score]]  # (subject, seed, mode) -> a score for each benchmark


def score_all(
    subjects: Sequence[Subject],
    items: Sequence[Item],
    names: Sequence[str],
    output: Path,
    data: str,
    max_new_tokens: int,
    records: Path,
) -> Table:
    """Scores of every subject and mode from the kept predictions; their records are appended to `records`."""
    import json

    table: Table = {}
    for subject in subjects:
        for mode in MODES:
            path = subject.predictions(output, data, mode)
            answers = read_predictions(path, settings(str(subject.model), items, mode == "blind", max_new_tokens))
            scores = [score([item for item in items if item.benchmark == name], answers) for name in names]
            table[subject.name, subject.seed, mode] = scores
            done = json.loads(path.with_suffix(".done").read_text(encoding="utf-8"))
            append_records(
                records,
                scores,
                model=subject.recipe or str(subject.model),
                seed=subject.seed,
                mode=mode,
                data=data,
                prediction_hash=file_hash(path),
                seconds=done["seconds"],
            )
    return table


def rows_of(table: Table, names: Sequence[str]) -> list[list[str]]:
    """The suite's table as text cells: a head row, then for each subject its scores and, below, its blind scores."""
    rows = [["method", *names, "Avg"]]
    seeds = sorted({seed for _, seed, _ in table})
    for name in dict.fromkeys(name for name, _, _ in table):
        for seed in seeds:
            if (name, seed, "seen") not in table:
                continue
            label = name if len(seeds) == 1 else f"{name}, seed {seed}"
            seen, blind = table[name, seed, "seen"], table[name, seed, "blind"]
            rows.append([label, *(_cell(s.value, s.low, s.high) for s in seen), _cell(*average(seen))])
            rows.append(["  blind", *(_cell(s.value, s.low, s.high) for s in blind), _cell(*average(blind))])
        if len(seeds) > 1:
            runs = [table[name, seed, "seen"] for seed in seeds]
            means = [seed_interval([run[i].value for run in runs]) for i in range(len(names))]
            rows.append(
                [
                    f"{name}, mean of {len(seeds)}",
                    *(_cell(*m) for m in means),
                    _cell(*seed_interval([average(run)[0] for run in runs])),
                ]
            )
    first = next(iter(table.values()))
    rows.append(["chance", *(f"{s.chance:.1f}" for s in first), f"{sum(s.chance for s in first) / len(first):.1f}"])
    return rows


def differences(table: Table) -> list[str]:
    """One line a method and seed: its average minus vanilla's on the same items, and whether that is more than noise."""
    lines = []
    for (name, seed, mode), scores in table.items():
        if mode == "seen" and name != "vanilla" and ("vanilla", seed, "seen") in table:
            base = table["vanilla", seed, "seen"]
            mean, low, high = (100 * x for x in paired_interval([s.samples for s in scores], [s.samples for s in base]))
            verdict = "more than item noise" if low > 0 or high < 0 else "within item noise"
            lines.append(f"{name} - vanilla, seed {seed}: {mean:+.1f} [{low:+.1f}, {high:+.1f}], {verdict}")
    return lines


def _cell(value: float, low: float, high: float) -> str:
    return f"{value:.1f}" if low in (float("-inf"),) else f"{value:.1f} [{low:.1f}, {high:.1f}]"


def as_text(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    body = ["| " + " | ".join(cell.strip() for cell in row) + " |" for row in rows]
    return "\n".join([body[0], "|" + "---|" * len(rows[0]), *body[1:]])


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
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="training seeds of the lab's methods")
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


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        _run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
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
        items, images, data = linked_items(options.data, options.images), options.images, options.data.stem
        names: Sequence[str] = tuple(dict.fromkeys(item.benchmark for item in items))
    else:
        names = suites.suite(options.suite)
        images = output / "lab-data" / "items"
        items, data = lab_items(images), "lab"
    write_items(output / "items" / f"{data}.jsonl", items)
    if options.model:
        subjects = [Subject(model, 0, Path(model)) for model in options.model]
        ask_models(subjects, items, images, output, data, options.batch_size, options.max_new_tokens)
    else:
        subjects = lab_subjects(output, options.captions, options.seeds)
        jobs = options.jobs or (1 if Path("/proc/driver/nvidia").exists() else os.cpu_count() or 1)
        complete_lab(subjects, output / "items" / f"{data}.jsonl", images, output, data, jobs)
    records = output / "records.jsonl"
    table = score_all(subjects, items, names, output, data, options.max_new_tokens, records)
    rows = rows_of(table, names)
    title = f"{options.suite if data == 'lab' else data}: score 0 to 100 [95 % interval over {'items, pairs and groups' if data == 'lab' else 'items'}]"
    if not options.model:
        title += f", lab, {options.captions} captions"
    notes = [
        f"unparsed answers, counted as wrong: {n} ({name} seed {seed}, {mode})"
        for (name, seed, mode), scores in table.items()
        if mode == "seen" and (n := sum(s.unparsed for s in scores))
    ]
    lines = differences(table)
    print("\n".join([title, "", as_text(rows), "", *lines, *notes]), flush=True)
    print(f"\nrecords: {records}   wall time {time.time() - start:.0f} s")
    if options.publish:
        publish(options.publish, title, rows, [*lines, *notes], table, subjects, output, data, start)


def publish(
    folder: Path,
    title: str,
    rows,
    lines,
    table: Table,
    subjects: Sequence[Subject],
    output: Path,
    data: str,
    start: float,
) -> None:
    """Write the table, the per-item-set records of this table and the manifest of the run that made them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(
        f"{title}\n\n{as_markdown(rows)}\n\n" + "\n".join(f"- {line}" for line in lines) + "\n", encoding="utf-8"
    )
    (folder / "records.jsonl").unlink(missing_ok=True)
    hashes = {}
    for subject in subjects:
        for mode in MODES:
            path = subject.predictions(output, data, mode)
            hashes[f"{subject.name}-seed{subject.seed}-{mode}"] = file_hash(path)
            append_records(
                folder / "records.jsonl",
                table[subject.name, subject.seed, mode],
                model=subject.recipe or str(subject.model),
                seed=subject.seed,
                mode=mode,
                data=data,
                prediction_hash=file_hash(path),
                seconds=0.0,
            )
    seeds = sorted({s.seed for s in subjects})
    write_json(
        folder / "manifest.json",
        provenance()
        | {
            "seeds": seeds,
            "items": file_hash(output / "items" / f"{data}.jsonl"),
            "predictions": hashes,
            "seconds": round(time.time() - start, 1),
        },
    )


if __name__ == "__main__":
    raise SystemExit(main())
