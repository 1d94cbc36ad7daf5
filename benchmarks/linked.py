"""Real CV-Bench and POPE items whose COCO photos are at hand (JSON lines), asked by Cambrian's protocol.

Relation items ask about "the red box", which CV-Bench draws into its pictures; the plain photos do not have it, so those
items are asked as they are and can only be guessed at. Several items share a photo, so photos are what is resampled.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.suites import LETTERS, Item
from dpa.errors import InputError

LETTER_LINE = "Answer with the option's letter from the given choices directly."  # Cambrian's prompt line
POPE_LINE = "Answer the question using a single word or phrase."  # LLaVA-1.5's prompt line


def linked_items(path: Path, images: Path) -> list[Item]:
    """The CV-Bench and POPE items of the file, each with a photo under `images`; rows of other benchmarks are passed over."""
    from dpa.images import image_path
    from dpa.readers import read_json_records

    items = []
    options: tuple[str, ...]
    for where, row in read_json_records(path):
        if not isinstance(row, dict):
            raise InputError(
                f"{where}: {row if isinstance(row, ValueError) else 'not an object'}; expected one item a line"
            )
        bench = row.get("bench")
        if bench not in ("CV-Bench", "POPE"):
            continue
        try:
            split, image = row["split"].lower(), row["image"]
            if bench == "POPE":
                index, options, answer = f"{split}-{row['question_id']}", ("yes", "no"), row["answer"]
                prompt = f"{row['question']}\n{POPE_LINE}"
            else:
                options = tuple(str(row[letter]) for letter in LETTERS if row.get(letter))
                index, answer = str(row["index"]), options[LETTERS.index(row["answer"])]
                choices = "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
                prompt = f"{row['question']} Select from the following choices.\n{choices}\n{LETTER_LINE}"
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            raise InputError(
                f"{where}: {bench} item lacks a usable {error}; see linked_items.jsonl for the layout: {json.dumps(row)[:120]}"
            ) from None
        image_path(images, image, where)
        rule = "pope" if bench == "POPE" else "first-character"
        items.append(Item(bench, index, image, prompt, answer, options, unit=image, task=split, rule=rule))
    if not items:
        raise InputError(f"{path}: holds no CV-Bench or POPE item")
    return items
