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
from typing import Any, Literal, get_args

from tqdm import tqdm

from benchmarks import server
from benchmarks.predictions import (
    Predictions,
    lock,
    merge,
    part_file,
    read_all_parts,
    read_predictions,
    read_truncated,
)
from benchmarks.server import CONCURRENCY
from benchmarks.suites import Item, limited
from dpa.errors import InputError, command, first_line
from dpa.images import image_size, open_image
from dpa.lineage import file_hash, folder_hash, local_model, write_json

Mode = Literal["seen", "blind", "blank", "shuffled"]
MODES: tuple[Mode, ...] = get_args(Mode)
GREY = (128, 128, 128)
SHUFFLE_SEED = 0  # part of what `shuffled` means: every checkpoint is shown the same wrong pictures
BATCH_SIZE = 64
MAX_NEW_TOKENS = 16
# whatever the checkpoint's own settings say; use_cache is off in those of an LLM that a Trainer saved and of all made of
# it, and then each new token reads the prompt and the picture anew
PLAIN = {"num_beams": 1, "repetition_penalty": 1.0, "use_cache": True}
GREEDY = PLAIN | {"do_sample": False}


@dataclass(frozen=True)
class How:
    """How items are asked; all of it stands in the settings of the predictions file.

    mode: what is shown: the item's picture (seen), none (blind), a grey one of its size (blank), another item's of the
    same benchmark (shuffled). prompt_line: a name for how the prompts end; the items carry the line itself. temperature:
    0 is greedy, more is sampling by `seed`, whose answers also depend on the batch. attention: of `dpa.model.ATTENTION`;
    None leaves it to transformers. chat_template: of `dpa.processing.CHAT_TEMPLATES`, for a checkpoint that has none.
    server: address of an OpenAI-compatible server that is asked in place of a checkpoint here.
    """

    mode: Mode = "seen"
    prompt_line: str = "stock"
    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 0.0
    seed: int = 0
    attention: str | None = None
    chat_template: str | None = None
    server: str | None = None


@dataclass(frozen=True)
class Question:
    """What an answer can differ in. picture: a name under the images' folder, or (width, height) of a grey one."""

    prompt: str
    picture: str | tuple[int, int] | None


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


def settings(model: str, items: Sequence[Item], images: Path, how: How = How()) -> dict:
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


def questions(items: Sequence[Item], images: Path, mode: Mode = "seen") -> dict[Question, list[Item]]:
    """{question: the items that ask it}, in the order of the items.

    mode "shuffled" gives each picture of a benchmark another one in its place, a fixed derangement of the benchmark's
    different pictures, so hand over all its items. InputError when there is but one.
    """
    others = _deranged(items, images) if mode == "shuffled" else {}
    asked: dict[Question, list[Item]] = {}
    for item in items:
        picture: str | tuple[int, int] | None = item.image
        if mode == "blind":
            picture = None
        elif mode == "blank":
            picture = image_size(images, item.image, _where(item))
        elif mode == "shuffled":
            picture = others[item.benchmark, item.image]
        asked.setdefault(Question(item.prompt, picture), []).append(item)
    return asked


def _deranged(items: Sequence[Item], images: Path) -> dict[tuple[str, str], str]:
    """{(benchmark, picture): another picture of the benchmark}, the same whatever the order of the items.

    Pictures are told apart by content, as a benchmark may hold one under several names (the rotations of a question).
    """
    names: dict[str, set[str]] = {}
    for item in items:
        image_size(images, item.image, _where(item))  # names the item of a picture that is missing or no picture
        names.setdefault(item.benchmark, set()).add(item.image)
    found = {}
    for benchmark, own in names.items():
        sizes = Counter((images / name).stat().st_size for name in own)
        by_content: dict[str, list[str]] = {}
        for name in sorted(own):
            alone = sizes[(images / name).stat().st_size] == 1  # then no other can be equal, and it need not be read
            by_content.setdefault(name if alone else file_hash(images / name), []).append(name)
        if len(by_content) == 1:
            raise InputError(
                f"{benchmark}: has one picture only, so there is none to show in its place; leave --shuffled out"
            )
        groups = list(by_content.values())
        groups.sort(key=lambda group: hashlib.sha256(f"{SHUFFLE_SEED} {group[0]}".encode()).digest())
        for group, following in zip(groups, groups[1:] + groups[:1], strict=True):  # one cycle through all
            found.update({(benchmark, name): following[0] for name in group})
    return found


def shown_picture(question: Question, images: Path, where: str):
    """The PIL picture of a question that has one, RGB. InputError for one that is missing or broken."""
    from PIL import Image

    if isinstance(question.picture, tuple):
        return Image.new("RGB", question.picture, GREY)
    return open_image(images, str(question.picture), where)


def predict(
    model: str,
    items: Sequence[Item],
    images: Path,
    out: Path,
    how: How = How(),
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


def load(model: str, how: How = How(), number: int = 0, *, one_thread: bool = False):
    """(model, processor) of a checkpoint, on the `number`-th GPU (counted round) where there is one."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from dpa.processing import CHAT_TEMPLATES, PARTS_TO_TEXT

    if one_thread:
        torch.set_num_threads(1)
    gpus = torch.cuda.device_count()
    device = f"cuda:{number % gpus}" if gpus else "cpu"
    folder = local_model(model)
    if how.chat_template not in (None, *CHAT_TEMPLATES):
        raise InputError(f"unknown chat template {how.chat_template!r}; there is {', '.join(CHAT_TEMPLATES)}")
    try:
        # pixels from PIL, as in training; torchvision's differ by up to 2 of 255
        processor = AutoProcessor.from_pretrained(folder, backend="pil")
        net = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", attn_implementation=how.attention)
    except (OSError, ValueError, ImportError, AttributeError, KeyError) as error:
        fix = "; its processor also handles video, install torchvision" if _lacks_torchvision(folder) else ""
        raise InputError(
            f"{model}: not a checkpoint that transformers loads as an image-text model ({first_line(error)}){fix}"
        ) from None
    if how.chat_template is not None:
        mark = processor.image_token
        processor.chat_template = PARTS_TO_TEXT.replace("IMAGE", mark) + CHAT_TEMPLATES[how.chat_template]
    if not processor.chat_template and not processor.tokenizer.chat_template:
        raise InputError(
            f"{model}: has no chat template; name the one it was tuned with, --chat-template {' | '.join(CHAT_TEMPLATES)}"
        )
    if processor.tokenizer.pad_token_id is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return net.to(device).eval(), processor


def _lacks_torchvision(folder: Path) -> bool:
    """Whether the checkpoint's processor has a part for video, which transformers has for torchvision alone."""
    from transformers.utils import is_torchvision_available

    return (folder / "video_preprocessor_config.json").is_file() and not is_torchvision_available()


def answers(
    net,
    processor,
    asked: Mapping[Question, Sequence[Item]],
    images: Path,
    *,
    batch_size: int = BATCH_SIZE,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[list[tuple[Item, str, bool]]]:
    """(item, the model's answer, whether it was cut at `max_new_tokens`), batch by batch as they come, the longest prompts first.

    A batch asks `batch_size` different questions, padded at the left, and ends when the last of them is answered; one that
    the GPU's memory cannot hold is halved, and with it all that follow. InputError for a picture that is missing or has no
    readable header before anything is asked; for one that is broken further on when its batch's turn comes.
    """
    import torch

    if not asked:
        return
    pairs = list(asked.items())
    lengths = _num_tokens(processor, asked, images)
    order = sorted(range(len(pairs)), key=lambda index: -lengths[index])
    processor.tokenizer.padding_side = "left"
    ends = net.generation_config.eos_token_id
    start = 0
    while start < len(order):
        batch = [pairs[index] for index in order[start : start + batch_size]]
        texts, special = _prompts(processor, [question for question, _ in batch])
        pictures = [shown_picture(q, images, _where(same[0])) for q, same in batch if q.picture is not None] or None
        inputs = processor(text=texts, images=pictures, padding=True, return_tensors="pt", add_special_tokens=special)
        decoding = GREEDY
        if temperature:
            decoding = PLAIN | {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
            first = batch[0][1][0]  # a continued run should not draw the numbers again that the killed one drew
            torch.manual_seed(int(hashlib.sha256(f"{seed} {_where(first)}".encode()).hexdigest()[:15], 16))
        try:
            with torch.inference_mode():
                ids = net.generate(**inputs.to(net.device, dtype=net.dtype), **decoding, max_new_tokens=max_new_tokens)
        except torch.OutOfMemoryError:
            ids = None
        if ids is None:  # out here, where the error no longer holds the batch's tensors
            if len(batch) == 1:
                where = _where(batch[0][1][0])
                raise InputError(f"{where}: the GPU's memory is too small for this question alone; use a larger one")
            batch_size = len(batch) // 2
            torch.cuda.empty_cache()
            continue
        new = ids[:, inputs["input_ids"].shape[1] :]
        ended = torch.isin(new.cpu(), torch.tensor([] if ends is None else ends, dtype=torch.long)).any(-1)
        said = processor.batch_decode(new, skip_special_tokens=True)
        yield [
            (item, answer, not done)
            for (_, same), answer, done in zip(batch, said, ended.tolist(), strict=True)
            for item in same
        ]
        start += len(batch)


def _num_tokens(processor, asked: Mapping[Question, Sequence[Item]], images: Path) -> list[int]:
    """Tokens of each prompt with its picture's, which differ in number where pictures are tiled (AnyRes)."""
    from dpa.processing import num_image_tokens

    texts, special = _prompts(processor, list(asked))
    lengths = [len(ids) for ids in processor.tokenizer(texts, add_special_tokens=special).input_ids]
    for index, (question, same) in enumerate(asked.items()):
        if question.picture is None:
            continue
        picture = question.picture
        width, height = picture if isinstance(picture, tuple) else image_size(images, picture, _where(same[0]))
        if hasattr(processor, "_get_num_multimodal_tokens"):  # else a processor of another family
            lengths[index] += num_image_tokens(processor, height, width) - 1  # in place of the mark
    return lengths


def _where(item: Item) -> str:
    return f"{item.benchmark} item {item.index}"


def _prompts(processor, asked: Sequence[Question]) -> tuple[list[str], bool]:
    """(the questions' chat prompts, whether the tokenizer should add its special tokens).

    It should where the template does not write the start token itself, as those of the first LLaVA checkpoints do not.
    """
    texts = [prompt_text(processor, question.prompt, question.picture is not None) for question in asked]
    start = processor.tokenizer.bos_token
    return texts, not (start and texts[0].startswith(start))


def prompt_text(processor, prompt: str, picture: bool) -> str:
    """The chat prompt as training wrote it: the picture first, then the question (`dpa.processing.PARTS_TO_TEXT`)."""
    content = [{"type": "image"}, {"type": "text", "text": prompt}] if picture else [{"type": "text", "text": prompt}]
    chat = [{"role": "user", "content": content}]
    return processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)


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
