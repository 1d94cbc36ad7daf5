"""Answers of one checkpoint to benchmark items, kept one a line.

    python -m benchmarks.predict --model DIR --items ITEMS.jsonl --images DIR --out seen.jsonl --blind-out blind.jsonl

The first line of a predictions file holds the settings that made it; a file of another checkpoint, another prompt or
other settings is never continued. A killed run loses at most the batch in flight: a torn last line is cut off, and the
items after it are asked again. Decoding is greedy. Prompts of like length share a batch; what an answer cannot differ in
(the same question about the same picture or, without pictures, the same question) is asked once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.records import cut_torn_line
from benchmarks.suites import Item
from dpa.errors import InputError, command
from dpa.lineage import folder_hash, local_model, provenance, write_json

BATCH_SIZE = 64
MAX_NEW_TOKENS = 16
# whatever the checkpoint's own settings say; use_cache is off in those of an LLM that a Trainer saved and of all made of
# it, and then each new token reads the prompt and the picture anew
GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "use_cache": True}


def read_items(path: Path) -> list[Item]:
    """The items of a JSON lines file written by `write_items`."""
    try:
        return [Item.from_json(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
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


def settings(model: str, items: Sequence[Item], images: Path, blind: bool, max_new_tokens: int) -> dict:
    """What decides the predictions: hashes of the checkpoint and of the questions, what is shown, how it decodes.

    A picture counts by its name and size in bytes, so that large sets need not be read twice.
    """
    digest = hashlib.sha256()
    sizes = {name: (images / name).stat().st_size for name in {i.image for i in items} if (images / name).is_file()}
    for item in items:
        shown = "" if blind else f"{item.image} {sizes.get(item.image)}"
        digest.update(f"{item.benchmark}\t{item.index}\t{shown}\t{item.prompt}\n".encode())
    checkpoint = folder_hash(local_model(model))
    return {
        "checkpoint": checkpoint,
        "questions": digest.hexdigest(),
        "blind": blind,
        "decoding": "greedy",
        "max_new_tokens": max_new_tokens,
    }


def read_predictions(path: Path, wanted: dict | None = None) -> dict[tuple[str, str], str]:
    """{(benchmark, index): answer} of a predictions file; {} if there is none. InputError when its settings are not `wanted`."""
    header, answers = _read(path)
    if header and wanted is not None and header["settings"] != wanted:
        part = next(key for key in wanted if header["settings"].get(key) != wanted[key])
        raise InputError(
            f"{path}: was made with another {part} ({header['settings'].get(part)}) than asked for now ({wanted[part]}); delete it to ask again"
        )
    return answers


def asked_by(path: Path) -> dict:
    """Provenance of the process that started a predictions file."""
    return _read(path)[0]["provenance"]


def _read(path: Path) -> tuple[dict, dict[tuple[str, str], str]]:
    if not path.is_file():
        return {}, {}
    data = path.read_bytes()
    lines = data[: data.rfind(b"\n") + 1].decode("utf-8", errors="replace").split("\n")[:-1]  # no torn last line
    if not lines:
        return {}, {}
    try:
        header, rows = json.loads(lines[0]), [json.loads(line) for line in lines[1:]]
        return {"settings": header["settings"], "provenance": header["provenance"]}, {
            (row["benchmark"], row["index"]): row["answer"] for row in rows
        }
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a predictions file ({error}); delete it to ask again") from None


def predict(
    model: str,
    items: Sequence[Item],
    images: Path,
    out: Path,
    *,
    blind: bool = False,
    batch_size: int = BATCH_SIZE,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> None:
    """Ask the checkpoint in folder (or hub id) `model` every item that `out` does not answer yet; append the answers.

    blind: the same prompts without the picture. `out` with the suffix `.seconds` says how long the last run took.
    """
    wanted = settings(model, items, images, blind, max_new_tokens)
    answered = read_predictions(out, wanted)
    open_items = [item for item in items if (item.benchmark, item.index) not in answered]
    if not open_items:
        if not out.with_suffix(".seconds").is_file():  # a kill came between the last answer and this
            write_json(out.with_suffix(".seconds"), 0.0)
        return
    start = time.time()
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        net = AutoModelForImageTextToText.from_pretrained(local_model(model), dtype="auto").to(device).eval()
        processor = AutoProcessor.from_pretrained(local_model(model))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{model}: not a checkpoint that transformers loads as an image-text model ({str(error).splitlines()[0][:200]})"
        ) from None
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_file():
        cut_torn_line(out)
    name = f"{'blind' if blind else 'seen'} answers of {Path(model).parent.name}"
    sizes = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
    with open(out, "a", encoding="utf-8") as file, tqdm(total=len(open_items), desc=name, unit="item") as progress:
        if file.tell() == 0:
            file.write(json.dumps({"settings": wanted, "provenance": provenance()}) + "\n")
        for batch in answers(net, processor, open_items, images, blind=blind, **sizes):
            for item, answer in batch:
                row = {"benchmark": item.benchmark, "index": item.index, "answer": answer}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            progress.update(len(batch))
    write_json(out.with_suffix(".seconds"), round(time.time() - start, 1))


def answers(
    net,
    processor,
    items: Sequence[Item],
    images: Path,
    *,
    blind: bool = False,
    batch_size: int = BATCH_SIZE,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Iterator[list[tuple[Item, str]]]:
    """The model's answers to `items`, batch by batch as they come, the longest prompts first.

    A batch asks `batch_size` different questions, padded at the left, and ends when the last of them is answered.
    InputError for a picture that is missing or has no readable header before anything is asked; for one that is broken
    further on when its batch's turn comes.
    """
    from dpa.images import open_image

    if not items:
        return
    questions: dict[tuple[str, str | None], list[Item]] = {}
    for item in items:
        questions.setdefault((item.prompt, None if blind else item.image), []).append(item)
    asked = list(questions.values())
    lengths = _num_tokens(processor, [same[0] for same in asked], images, blind)
    order = sorted(range(len(asked)), key=lambda index: -lengths[index])
    batches = [[asked[i] for i in order[start : start + batch_size]] for start in range(0, len(order), batch_size)]
    processor.tokenizer.padding_side = "left"
    for batch in batches:
        firsts = [same[0] for same in batch]
        texts = [prompt_text(processor, item.prompt, blind) for item in firsts]
        pictures = None if blind else [open_image(images, item.image, _where(item)) for item in firsts]
        inputs = processor(text=texts, images=pictures, padding=True, return_tensors="pt", add_special_tokens=False)
        ids = net.generate(**inputs.to(net.device), **GREEDY, max_new_tokens=max_new_tokens)
        said = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        yield [(item, answer) for same, answer in zip(batch, said, strict=True) for item in same]


def _num_tokens(processor, items: Sequence[Item], images: Path, blind: bool) -> list[int]:
    """Tokens of each item's prompt with its picture's, which differ in number where pictures are tiled (AnyRes)."""
    from dpa.images import image_size
    from dpa.processing import num_image_tokens

    texts = [prompt_text(processor, item.prompt, blind) for item in items]
    lengths = [len(ids) for ids in processor.tokenizer(texts, add_special_tokens=False).input_ids]
    if blind:
        return lengths
    sizes = [image_size(images, item.image, _where(item)) for item in items]
    if not hasattr(processor, "_get_num_multimodal_tokens"):  # a processor of another family
        return lengths
    return [
        length - 1 + num_image_tokens(processor, height, width)  # in place of the mark
        for length, (width, height) in zip(lengths, sizes, strict=True)
    ]


def _where(item: Item) -> str:
    return f"{item.benchmark} item {item.index}"


def prompt_text(processor, prompt: str, blind: bool) -> str:
    """The chat prompt as training wrote it: the picture first, then the question (`dpa.processing.PARTS_TO_TEXT`)."""
    content = [{"type": "text", "text": prompt}] if blind else [{"type": "image"}, {"type": "text", "text": prompt}]
    chat = [{"role": "user", "content": content}]
    return processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predict", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder or hub id of an image-text checkpoint")
    parser.add_argument("--items", required=True, type=Path, help="items as JSON lines")
    parser.add_argument("--images", required=True, type=Path, help="folder of the items' pictures")
    parser.add_argument("--out", required=True, type=Path, help="predictions file, continued if it is there")
    parser.add_argument("--blind-out", type=Path, help="also ask without the pictures, into this file")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--max-new-tokens", type=int, default=MAX_NEW_TOKENS)
    options = parser.parse_args(arguments)
    items = read_items(options.items)
    for out, blind in ((options.out, False), (options.blind_out, True)):
        if out is not None:
            predict(
                options.model,
                items,
                options.images,
                out,
                blind=blind,
                batch_size=options.batch_size,
                max_new_tokens=options.max_new_tokens,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
