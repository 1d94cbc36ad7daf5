"""Answers of one checkpoint to benchmark items, kept one a line.

    python -m benchmarks.predict --model DIR --items ITEMS.jsonl --images DIR --seen seen.jsonl [--blind blind.jsonl]
    python -m benchmarks.predict --server URL --server-model NAME ...    a model that an OpenAI-compatible server runs
    ... --shards 4                                                       four processes, on four GPUs where there are

A killed run loses at most the batch in flight (of each shard) and is continued by the same command, also with another
number of shards; `benchmarks.predictions` says what the files hold and what is never continued. Decoding is greedy unless
a temperature is given. Prompts of like length share a batch, the longest first; what an answer cannot differ in (the same
question about the same picture or, without pictures, the same question) is asked once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import server
from benchmarks.generation import BATCH_SIZE, answers, load
from benchmarks.predictions import (
    Predictions,
    lock,
    merge,
    part_file,
    read_all_parts,
    read_predictions,
    read_truncated,
)
from benchmarks.questions import GREEDILY, MAX_NEW_TOKENS, MODES, How, Question, questions
from benchmarks.server import CONCURRENCY
from benchmarks.suites import Item, limited
from dpa.errors import InputError, command
from dpa.lineage import folder_hash, local_model, write_json


def read_items(path: Path) -> list[Item]:
    """The items of a JSON lines file written by `write_items`."""
    try:
        return [Item.from_json(json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except FileNotFoundError:
        raise InputError(f"{path}: no such items file; `python -m benchmarks.run` writes it") from None
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not an items file ({error})") from None


def write_items(path: Path, items: Sequence[Item]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(
        "".join(json.dumps(item.to_json(), ensure_ascii=False) + "\n" for item in items), encoding="utf-8"
    )
    os.replace(temporary, path)


def settings(model: str, items: Sequence[Item], images: Path, how: How = GREEDILY) -> dict:
    """What decides the predictions: hash of the checkpoint (of a server's, its name), of the questions, and `how`.

    A picture counts by its name and size in bytes, so that large sets need not be read twice. The order of items does
    not count.
    """
    names = {item.image for item in items} if how.mode != "blind" else set()
    sizes = {name: (images / name).stat().st_size for name in names if (images / name).is_file()}
    lines = []
    for item in items:
        shown = "" if how.mode == "blind" else f"{item.image} {sizes.get(item.image)}"
        lines.append(f"{item.benchmark}\t{item.index}\t{shown}\t{item.prompt}\n")
    found = {
        "engine": "server" if how.server else "transformers",
        "checkpoint": model if how.server else folder_hash(local_model(model)),
        "mode": how.mode,
        "prompt_line": how.prompt_line,  # before the questions, which differ with both: the first that differs is named
        "questions": hashlib.sha256("".join(sorted(lines)).encode()).hexdigest(),
        "decoding": f"temperature {how.temperature:g}, seed {how.seed}" if how.temperature else "greedy",
        "max_new_tokens": how.max_new_tokens,
    }
    if not how.server:
        found |= {"attention": how.attention or "default", "chat_template": how.chat_template or "its own"}
    return found


def predict(
    model: str,
    items: Sequence[Item],
    images: Path,
    out: Path,
    how: How = GREEDILY,
    *,
    batch_size: int = BATCH_SIZE,
    concurrency: int = CONCURRENCY,
    shards: int = 1,
    shard: tuple[int, int] | None = None,
    limit: int | None = None,
    pool: ProcessPoolExecutor | None = None,
) -> None:
    """Ask the checkpoint in folder (or hub id) `model` every item that `out` does not answer yet; append the answers.

    shards: so many processes share the work, those of `pool` (of `shard_pool`) if it is given. shard (i of N, from 1): the share of this one machine alone, into a part
    beside `out` that a later call without it merges. limit: only the first so many units of each benchmark are asked,
    into a file that a call without it continues. concurrency: questions a server has at a time; `model` is then the name
    of its model. `out` with the suffix `.seconds` says how long the last run took.
    """
    wanted = settings(model, items, images, how)
    target = part_file(out, *shard) if shard else out
    with lock(target):
        if not shard:
            merge(out, wanted)
        answered = read_all_parts(out, wanted)
        chosen = {(item.benchmark, item.index) for item in limited(items, limit)} - answered.keys()
        asked = {}
        for position, (question, same) in enumerate(questions(items, images, how.mode).items()):
            open_items = [item for item in same if (item.benchmark, item.index) in chosen]
            # by its place among all, so that machines that start at different times share the same way
            if open_items and (shard is None or position % shard[1] == shard[0] - 1):
                asked[question] = open_items
        if not asked:
            if (
                shard is None and not out.with_suffix(".seconds").is_file()
            ):  # a kill came between the last answer and this
                write_json(out.with_suffix(".seconds"), 0.0)
            return
        start = time.time()
        if how.server:
            wanted = wanted | server.served(server.connect(how.server), model)
            read_all_parts(out, wanted)
        work = _Work(model, images, wanted, how, batch_size, concurrency)
        if shards > 1:
            with nullcontext(pool) if pool is not None else shard_pool(shards) as processes:
                _share(work, asked, out, shards, processes)
            merge(out, wanted)
        else:
            _ask(work, asked, target, shard[0] - 1 if shard else 0)
        if shard is None:
            write_json(out.with_suffix(".seconds"), round(time.time() - start, 1))


@dataclass(frozen=True)
class _Work:
    """What a process needs to know to ask its share."""

    model: str
    images: Path
    wanted: dict
    how: How
    batch_size: int
    concurrency: int


@contextmanager
def shard_pool(shards: int) -> Iterator[ProcessPoolExecutor]:
    """Processes for `predict`, each on a GPU of its own (counted round), that keep the checkpoint between its calls."""
    spawn = multiprocessing.get_context("spawn")  # a fork would share the parent's threads and CUDA
    started = spawn.Value("i", 0)
    with ProcessPoolExecutor(shards, mp_context=spawn, initializer=_start_shard, initargs=(started,)) as pool:
        yield pool


def _share(
    work: _Work, asked: Mapping[Question, Sequence[Item]], out: Path, shards: int, pool: ProcessPoolExecutor
) -> None:
    """Ask in the processes of the pool, each every so-manieth question into a part file of its own."""
    pairs = list(asked.items())
    try:
        futures = [
            pool.submit(
                _ask_part, work, dict(pairs[number::shards]), part_file(out, number + 1, shards), number, shards
            )
            for number in range(shards)
        ]
        for error in [future.exception() for future in futures]:
            if error is not None:
                raise error
    except BrokenProcessPool:
        raise InputError(
            f"{out}: a shard's process was killed (too little memory for {shards} of them?); run again, it continues"
        ) from None


_own_number = 0  # of a shard's process, in the order of their starts


def _start_shard(started: Any) -> None:
    """Give this process its number, and have it end when the one that started it does, however it ends."""
    global _own_number
    with started.get_lock():
        _own_number = started.value
        started.value += 1
    parent = multiprocessing.parent_process()

    def watch() -> None:
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own lock is shared by processes, and left behind by one that is killed


def _ask(work: _Work, asked: Mapping[Question, Sequence[Item]], out: Path, number: int, shards: int = 1) -> None:
    """Ask and append to `out`. number: of this share, from 0; of several each has one thread."""
    if not asked:  # more shards than questions
        return
    how = work.how
    if how.server:
        client = server.connect(how.server)
        batches = server.answers(client, work.model, asked, work.images, how, concurrency=work.concurrency)
    else:
        net, processor = _loaded(work, _own_number if shards > 1 else number, one_thread=shards > 1)
        batches = answers(
            net,
            processor,
            asked,
            work.images,
            batch_size=work.batch_size,
            max_new_tokens=how.max_new_tokens,
            temperature=how.temperature,
            seed=how.seed,
        )
    name = f"{how.mode} answers of {work.model if how.server else Path(work.model).parent.name or work.model}"
    name += f", shard {number + 1} of {shards}" if shards > 1 else ""
    total = sum(map(len, asked.values()))
    with (
        Predictions(out, work.wanted) as file,
        tqdm(total=total, desc=name, unit="item", position=number if shards > 1 else None) as progress,
    ):
        for batch in batches:
            file.append(batch)
            progress.update(len(batch))


def _ask_part(work: _Work, asked: Mapping[Question, Sequence[Item]], out: Path, number: int, shards: int) -> None:
    with lock(out):
        _ask(work, asked, out, number, shards)


_kept: dict[tuple, tuple[Any, Any]] = {}  # the checkpoint in use, for the next predictions file


def _loaded(work: _Work, number: int, *, one_thread: bool) -> tuple[Any, Any]:
    """As `load`; the same checkpoint is not loaded twice in a row."""
    key = (work.wanted.get("checkpoint"), work.how.attention, work.how.chat_template, number)
    if key not in _kept:
        _kept.clear()  # first: there may be no room for two
        _kept[key] = load(work.model, work.how, number, one_thread=one_thread)
    return _kept[key]


def outlook(model: str, items: Sequence[Item], images: Path, out: Path, how: How, limit: int | None) -> str:
    """What a run would ask, in lines: numbers, settings, the first prompt. Nothing is fetched, loaded or written."""
    fetched = how.server is not None or model == "lab" or Path(model).is_dir()
    wanted = settings(model if fetched else "lab", items, images, how)
    if not fetched:  # a hub id
        wanted.pop("checkpoint")
    answered = read_all_parts(out, wanted)
    chosen = {(item.benchmark, item.index) for item in limited(items, limit)}
    asked = questions(items, images, how.mode)
    counts = Counter(item.benchmark for item in limited(items, limit))
    different = sum(any((item.benchmark, item.index) in chosen for item in same) for same in asked.values())
    lines = [
        f"{out}: {len(chosen)} items ({', '.join(f'{name} {number}' for name, number in counts.items())}),"
        f" {different} different questions, {len(chosen & answered.keys())} items answered",
        *(f"  {name.replace('_', ' ')}: {value}" for name, value in wanted.items()),
    ]
    if not fetched:
        lines.append(f"  checkpoint: {model}, not a folder here; a run fetches it from the hub")
    if asked:
        question = next(iter(asked))
        shown = f"grey, {question.picture[0]} x {question.picture[1]}" if isinstance(question.picture, tuple) else None
        lines.append(f"  first prompt (picture: {shown or question.picture or 'none'}):")
        lines += [f"    {line}" for line in question.prompt.split("\n")]
    return "\n".join(lines)


def _shard(text: str) -> tuple[int, int]:
    """(i, N) of "i/N"."""
    try:
        number, of = map(int, text.split("/"))
    except ValueError:
        number, of = 0, 0
    if not 1 <= number <= of:
        raise argparse.ArgumentTypeError(f"{text!r} should be i/N with i from 1 to N, say 1/4")
    return number, of


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder or hub id of an image-text checkpoint")
    parser.add_argument("--server", metavar="URL", help="or an OpenAI-compatible server, as http://localhost:8000/v1")
    parser.add_argument("--server-model", metavar="NAME", help="the name that the server gives the model")
    parser.add_argument("--items", required=True, type=Path, help="items as JSON lines")
    parser.add_argument("--images", required=True, type=Path, help="folder of the items' pictures")
    told = {
        "seen": "with their pictures",
        "blind": "without pictures",
        "blank": "with a grey picture of the same size",
        "shuffled": "with the picture of another item",
    }
    for mode in MODES:
        parser.add_argument(f"--{mode}", type=Path, metavar="FILE", help=f"predictions file of the items {told[mode]}")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--max-new-tokens", type=int, default=MAX_NEW_TOKENS)
    parser.add_argument("--prompt-line", default="stock", help="name of how the prompts end, recorded (default: stock)")
    parser.add_argument("--temperature", type=float, default=0.0, help="sample, in place of greedy decoding")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    parser.add_argument("--attention", choices=("sdpa", "eager", "flash_attention_2"))
    parser.add_argument("--chat-template", metavar="NAME", help="for a checkpoint without one: vicuna")
    parser.add_argument("--shards", type=int, default=1, help="processes that share the work, one a GPU")
    parser.add_argument("--shard", type=_shard, metavar="i/N", help="only this share of it, on this machine")
    parser.add_argument("--merge", action="store_true", help="ask nothing, merge what the shares have answered")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N units of each benchmark")
    parser.add_argument(
        "--concurrency", type=int, default=CONCURRENCY, help=f"questions at a server at a time (default: {CONCURRENCY})"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be asked")
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> None:
    """InputError for flags that make no sense, alone or together."""
    for flag in ("batch_size", "max_new_tokens", "shards", "limit", "concurrency"):
        value = getattr(options, flag)
        if value is not None and value < 1:
            raise InputError(f"--{flag.replace('_', '-')} should be a positive number, got {value}")
    if not 0 <= options.temperature < float("inf"):
        raise InputError(f"--temperature should be 0 or more, got {options.temperature}")
    if bool(options.server) != bool(options.server_model) or bool(options.server) == bool(options.model):
        raise InputError("give a checkpoint with --model, or a server's with --server and --server-model")
    if options.server and options.shards > 1:
        raise InputError("--shards is for checkpoints run here; a server is asked by --concurrency")
    if options.shards > 1 and options.shard:
        raise InputError("--shards shares the work on this machine, --shard takes one share of it; give one of them")


@command
def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    check(options)
    files = {mode: getattr(options, mode) for mode in MODES if getattr(options, mode) is not None}
    if not files:
        raise InputError("name a file to keep the answers in: --seen FILE, or one of the other modes")
    items = read_items(options.items)
    model = options.server_model or options.model
    for mode, out in files.items():
        how = How(
            mode,
            options.prompt_line,
            options.max_new_tokens,
            options.temperature,
            options.seed,
            options.attention,
            options.chat_template,
            options.server,
        )
        if options.dry_run:
            print(outlook(model, items, options.images, out, how, options.limit))
            continue
        if options.merge:
            wanted = settings(model, items, options.images, how)
            with lock(out):
                merge(out, wanted)
        else:
            predict(
                model,
                items,
                options.images,
                out,
                how,
                batch_size=options.batch_size,
                concurrency=options.concurrency,
                shards=options.shards,
                shard=options.shard,
                limit=options.limit,
            )
        kept = part_file(out, *options.shard) if options.shard else out
        print(f"{kept}: {_told(kept, items, options.limit)}")
    return 0


def _told(kept: Path, items: Sequence[Item], limit: int | None) -> str:
    answered, cut = read_predictions(kept), read_truncated(kept)
    text = f"{len(answered)} of {len(limited(items, limit))} items answered"
    return text + (f", {len(cut)} answers cut at --max-new-tokens" if cut else "")


if __name__ == "__main__":
    raise SystemExit(main())
