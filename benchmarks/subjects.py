"""Who is asked: a checkpoint, a server's model, or a method of the lab, which is trained first; and where answers are kept."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from benchmarks.asked import Part
from benchmarks.predict import predict, settings, shard_pool
from benchmarks.predictions import read_all_parts
from benchmarks.questions import How, Mode
from benchmarks.suites import limited
from dpa.errors import InputError
from dpa.lineage import LINEAGE, is_complete


@dataclass(frozen=True)
class Subject:
    """A checkpoint to evaluate: a lab method with its seed and the recipe that trains it, or a given model.

    how: how it is asked; a part decides the length of answers and the prompt line, and each mode is asked.
    """

    name: str
    seed: int
    model: Path
    recipe: str | None = None
    how: How = field(default_factory=How)

    def predictions(self, output: Path, part: Part, mode: Mode) -> Path:
        asked = str(self.model).strip("/").replace("/", "_")
        own = self.model.parent / "predictions" if self.recipe else output / "predictions" / asked
        return own / f"{part.name}-{mode}.jsonl"

    def asked_as(self, part: Part, mode: Mode) -> How:
        return replace(self.how, mode=mode, prompt_line=part.prompt_line, max_new_tokens=part.max_new_tokens)

    def settings(self, part: Part, mode: Mode) -> dict:
        return settings(str(self.model), part.items, part.images, self.asked_as(part, mode))

    def answers(self, part: Part, output: Path, mode: Mode) -> dict[tuple[str, str], str]:
        """What is answered yet. InputError when it was asked otherwise than now."""
        return read_all_parts(self.predictions(output, part, mode), self.settings(part, mode))

    def is_answered(self, part: Part, output: Path, mode: Mode) -> bool:
        """Whether every item has an answer. InputError when the answers were made otherwise than asked for now."""
        answers = self.answers(part, output, mode)
        return all((item.benchmark, item.index) in answers for item in limited(part.items, part.limit))


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


def ask(
    subjects: Sequence[Subject],
    parts: Sequence[Part],
    output: Path,
    modes: Sequence[Mode],
    *,
    batch_size: int,
    concurrency: int,
    shards: int,
) -> None:
    """Ask given models what is open; the sizes are those of `benchmarks.predict.predict`."""
    with shard_pool(shards) if shards > 1 else nullcontext() as pool:
        for subject in subjects:
            for part in parts:
                for mode in modes:
                    predict(
                        str(subject.model),
                        part.items,
                        part.images,
                        subject.predictions(output, part, mode),
                        subject.asked_as(part, mode),
                        limit=part.limit,
                        batch_size=batch_size,
                        concurrency=concurrency,
                        shards=shards,
                        pool=pool,
                    )


def complete_lab(
    subjects: Sequence[Subject],
    parts: Sequence[Part],
    output: Path,
    captions: str,
    modes: Sequence[Mode],
    jobs: int,
    llm: str | None = None,
) -> None:
    """Train and question every lab subject that is not done, `jobs` at a time, each in processes of its own.

    llm: folder of a base LLM in place of the shipped one.

    What is there is re-used only if it was made from the same settings, foundations and data; else it is named.
    """
    from dpa import stages, train
    from dpa.arguments import resolve
    from dpa.lab.dataset import ensure

    for name in ("lab/questions", f"lab/{captions}"):  # once, before two trainings would both draw them
        ensure(output, name)

    def command_line(subject: Subject) -> list[str]:
        own = ["--llm", llm] if llm else []
        return ["--recipe", str(subject.recipe), "--output", str(output), "--seed", str(subject.seed), *own]

    def open_parts(subject: Subject) -> list[Path]:
        """What is still to be made, in order: a file for each unfinished stage, for each part and mode not asked."""
        flags, rest = train.parse(command_line(subject))
        chosen = resolve(flags)
        unfinished = [stage for stage in chosen.stages if not stages.finished(chosen, stage, flags, rest)]
        found = [stages.stage_folder(output, chosen, stage, subject.seed) / LINEAGE for stage in unfinished]
        trained = is_complete(subject.model)
        for part in parts:
            for mode in modes:
                seconds = subject.predictions(output, part, mode).with_suffix(".seconds")
                if not (trained and seconds.is_file() and subject.is_answered(part, output, mode)):
                    found.append(seconds)
        return found

    wanted = {subject: found for subject in subjects if (found := open_parts(subject))}
    if not wanted:
        return
    (output / "logs").mkdir(parents=True, exist_ok=True)
    files = {path for found in wanted.values() for path in found}
    failures: list[str] = []

    def work(subject: Subject) -> None:
        if failures:
            return
        log = output / "logs" / f"{subject.recipe}-seed{subject.seed}.log"
        try:
            _call(["dpa.train", *command_line(subject), "--stage", "all"], log)
            for part in parts:
                out = [word for m in modes for word in (f"--{m}", str(subject.predictions(output, part, m)))]
                of = ["--items", str(part.items_file(output)), "--images", str(part.images)]
                told = ["--max-new-tokens", str(part.max_new_tokens), "--prompt-line", part.prompt_line]
                limit = ["--limit", str(part.limit)] if part.limit is not None else []
                _call(["benchmarks.predict", "--model", str(subject.model), *out, *of, *told, *limit], log)
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
