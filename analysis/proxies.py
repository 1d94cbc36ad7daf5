"""Short proxies of caption sets, to measure a conflict before any training: LoRA on part of the captions, the rest held out.

Stage 1 at a small scale, by `python -m dpa.train` and its recipe `small`; and, where even that is too much, an n-gram model
of the captions beside the base LLM (`analysis.ngram`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from analysis.captions import Captions
from dpa.errors import InputError

HELD_OUT = 5  # every fifth text, by its hash
STEPS, LEARNING_RATE = 200, 1e-3
RECIPE = "small"


def split(captions: Captions, *, least: int = 10) -> tuple[Captions, Captions]:
    """(to fit a proxy to, held out): parted by the hash of the text, so that a text has one side in every corpus.

    InputError when fewer than `least` texts are on a side.
    """
    from dataclasses import replace

    held = captions.hashes % HELD_OUT == 0
    sides = [replace(captions, chosen=captions.chosen[m], hashes=captions.hashes[m]) for m in (~held, held)]
    if min(map(len, sides)) < least:
        raise InputError(
            f"{captions.name}: {len(captions):,} different captions are too few to fit a proxy to some and try it on others; give {least * HELD_OUT} or more"
        )
    return sides[0], sides[1]


def fit_proxy(
    llm: str,
    captions: Captions,
    folder: Path,
    *,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
    half: bool = False,
) -> Path:
    """The folder of a proxy of `llm` fitted to the first side of `split`; kept in `folder`, by LLM, captions and settings.

    half: train in bfloat16. InputError when training fails.
    """
    from dpa import train
    from dpa.lineage import folder_hash, local_model
    from dpa.recipes import recipe
    from dpa.stages import stage_folder

    fitted, _ = split(captions)
    made = repr((fitted.hashes.tobytes(), steps, learning_rate, seed, half)).encode()
    name = f"{captions.name.replace('/', '_')}-{hashlib.sha256(made).hexdigest()[:8]}"
    own = folder / folder_hash(local_model(llm))[:12] / name
    file = own / "captions.jsonl"
    own.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    with open(partial, "w", encoding="utf-8") as out:
        for text in fitted:
            out.write(json.dumps({"caption": text}, ensure_ascii=False) + "\n")
    os.replace(partial, file)
    arguments = ["--recipe", RECIPE, "--stage", "proxy", "--llm", llm, "--data", str(file), "--output", str(own)]
    arguments += ["--max_steps", str(steps), "--learning_rate", str(learning_rate), "--seed", str(seed)]
    arguments += ["--bf16", "true"] if half else []
    if train.main([*arguments, "--logging_steps", "50"]):
        raise InputError(f"{own}: a proxy could not be fitted to {captions.name}, see the line above")
    return stage_folder(own, recipe(RECIPE), "proxy", seed)


def fit_proxies(llm: str, captions: Sequence[Captions], folder: Path, **options) -> dict[str, Path]:
    """{name of the captions: folder of its proxy}."""
    return {part.name: fit_proxy(llm, part, folder, **options) for part in captions}
