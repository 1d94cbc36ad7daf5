"""Short proxies of caption sets, to measure a conflict before any training: LoRA on part of the captions, the rest held out.

Stage 1 at a small scale, by `python -m dpa.train` and its recipe `small`; and, where even that is too much, an n-gram model
of the captions beside the base LLM (`analysis.ngram`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

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
    extra: Sequence[str] = (),
) -> Path:
    """The folder of a proxy of `llm` fitted to the first side of `split`; one that is there is kept (in `folder`, by LLM).

    extra: further TrainingArguments. InputError when training fails or what is there was made otherwise.
    """
    from dpa import train
    from dpa.lineage import folder_hash, local_model
    from dpa.recipes import recipe
    from dpa.stages import stage_folder

    fitted, _ = split(captions)
    own = folder / folder_hash(local_model(llm))[:12] / captions.name.replace("/", "_")
    file = own / "captions.jsonl"
    own.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    with open(partial, "w", encoding="utf-8") as out:
        for text in fitted:
            out.write(json.dumps({"caption": text}, ensure_ascii=False) + "\n")
    os.replace(partial, file)
    arguments = ["--recipe", RECIPE, "--stage", "proxy", "--llm", llm, "--data", str(file), "--output", str(own)]
    arguments += ["--max_steps", str(steps), "--learning_rate", str(learning_rate), "--seed", str(seed)]
    if train.main([*arguments, "--logging_steps", "50", *extra]):
        raise InputError(f"{own}: a proxy could not be fitted to {captions.name}, see the line above")
    return stage_folder(own, recipe(RECIPE), "proxy", seed)


def fit_proxies(llm: str, captions: Sequence[Captions], folder: Path, **options) -> dict[str, Path]:
    """{name of the captions: folder of its proxy}."""
    return {part.name: fit_proxy(llm, part, folder, **options) for part in captions}


def trained_hashes(captions: Sequence[Captions]) -> np.ndarray:
    """The hashes of all texts that `fit_proxy` fits to."""
    return np.concatenate([split(part)[0].hashes for part in captions])
