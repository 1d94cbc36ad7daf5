"""Answers of one checkpoint to benchmark items, kept one a line.

    python -m benchmarks.predict --model DIR --items ITEMS.jsonl --images DIR --out predictions.jsonl [--blind]

The first line of a predictions file holds the settings that made it; a file of another checkpoint, another prompt or
other settings is never continued. A killed run loses at most the batch in flight: a torn last line is cut off, and the
items after it are asked again. Decoding is greedy.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.suites import Item
from dpa.errors import InputError
from dpa.lineage import model_fingerprint

BATCH_SIZE = 64
MAX_NEW_TOKENS = 16


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


def settings(model: str, items: Sequence[Item], blind: bool, max_new_tokens: int) -> dict:
    """What decides the predictions: the checkpoint's hash, the prompts' hash, what the model is shown, how it decodes."""
    import hashlib

    prompts = hashlib.sha256(
        "".join(f"{i.benchmark}\t{i.index}\t{i.image}\t{i.prompt}\n" for i in items).encode()
    ).hexdigest()
    return {
        "checkpoint": model_fingerprint(model),
        "prompts": prompts,
        "blind": blind,
        "decoding": "greedy",
        "max_new_tokens": max_new_tokens,
    }


def read_predictions(path: Path, wanted: dict | None = None) -> dict[tuple[str, str], str]:
    """{(benchmark, index): answer} of a predictions file; {} if there is none. InputError when its settings are not `wanted`."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")
    lines.pop()  # what stands behind the last newline was torn
    if not lines:
        return {}
    try:
        made, rows = json.loads(lines[0])["settings"], [json.loads(line) for line in lines[1:]]
        answers = {(row["benchmark"], row["index"]): row["answer"] for row in rows}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a predictions file ({error}); delete it or choose another --out") from None
    if wanted is not None and made != wanted:
        part = next(key for key in wanted if made.get(key) != wanted[key])
        raise InputError(
            f"{path}: was made with another {part} ({made.get(part)}) than asked for now ({wanted[part]}); delete it or choose another --out"
        )
    return answers


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

    blind: the same prompts without the picture.
    """
    wanted = settings(model, items, blind, max_new_tokens)
    answered = read_predictions(out, wanted)
    open_items = [item for item in items if (item.benchmark, item.index) not in answered]
    if not open_items:
        return
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from dpa.data import open_image

    try:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        net = AutoModelForImageTextToText.from_pretrained(model, dtype="auto").to(device).eval()
        processor = AutoProcessor.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{model}: not a checkpoint that transformers loads as an image-text model ({str(error).splitlines()[0][:200]})"
        ) from None
    processor.tokenizer.padding_side = "left"
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_file():
        _cut_torn_line(out)
    with open(out, "a", encoding="utf-8") as file:
        if file.tell() == 0:
            file.write(json.dumps({"settings": wanted}) + "\n")
        open_items = sorted(open_items, key=lambda item: len(item.prompt))  # little padding
        batches = [open_items[start : start + batch_size] for start in range(0, len(open_items), batch_size)]
        for batch in tqdm(
            batches, desc=f"{'blind' if blind else 'seen'} answers of {Path(model).parent.name}", unit="batch"
        ):
            texts = [prompt_text(processor, item.prompt, blind) for item in batch]
            pictures = (
                None
                if blind
                else [open_image(images, item.image, f"{item.benchmark} item {item.index}") for item in batch]
            )
            inputs = processor(
                text=texts, images=pictures, padding=True, return_tensors="pt", add_special_tokens=False
            ).to(device)
            with torch.no_grad():
                ids = net.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
            answers = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for item, answer in zip(batch, answers, strict=True):
                file.write(
                    json.dumps({"benchmark": item.benchmark, "index": item.index, "answer": answer}, ensure_ascii=False)
                    + "\n"
                )
            file.flush()
            os.fsync(file.fileno())


def prompt_text(processor, prompt: str, blind: bool) -> str:
    """The chat prompt as training wrote it: the picture first, a newline, the question.

    Templates that know pictures get them as content parts; a text LLM's own template gets the image token in its text.
    """
    template = processor.chat_template or processor.tokenizer.chat_template
    if "image" in (template or ""):
        content = ([] if blind else [{"type": "image"}]) + [{"type": "text", "text": prompt}]
        return processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
    text = prompt if blind else f"{processor.image_token}\n{prompt}"
    return processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )


def _cut_torn_line(path: Path) -> None:
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with open(path, "r+b") as file:
            file.truncate(whole)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predict", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder or hub id of an image-text checkpoint")
    parser.add_argument("--items", required=True, type=Path, help="items as JSON lines")
    parser.add_argument("--images", required=True, type=Path, help="folder of the items' pictures")
    parser.add_argument("--out", required=True, type=Path, help="predictions file, continued if it is there")
    parser.add_argument("--blind", action="store_true", help="ask without the pictures")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--max-new-tokens", type=int, default=MAX_NEW_TOKENS)
    options = parser.parse_args(arguments)
    try:
        predict(
            options.model,
            read_items(options.items),
            options.images,
            options.out,
            blind=options.blind,
            batch_size=options.batch_size,
            max_new_tokens=options.max_new_tokens,
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
