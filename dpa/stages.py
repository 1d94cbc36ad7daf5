"""The stages of a recipe: where they stand, what they build on, what decides their result, whether they are finished.

Imports nothing heavy, so that a command can tell what is left to do before it loads torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpa.arguments import given_arguments
from dpa.errors import InputError, first_line
from dpa.inputs import stage_sources
from dpa.lineage import file_hash, folder_hash, is_complete, local_model, read_lineage, tokenizer_hash
from dpa.methods import Stage
from dpa.readers import source_hash
from dpa.recipes import Recipe

# TrainingArguments that cannot change a weight beyond rounding: a resumed run may give them anew.
HARMLESS = (
    *("save_", "logging_", "disable_tqdm", "report_to", "run_name", "hub_", "push_to_hub", "ddp_timeout"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "dataloader_persistent_workers"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "seed"),
    *("use_cpu", "ddp_", "fsdp", "deepspeed", "activation_checkpointing", "local_rank", "project", "tf32"),
)
TRAINED_ON = "trained_on.npy"
# Names of TrainingArguments for the settings of a recipe.
NAMES = {"num_train_epochs": "epochs", "warmup_steps": "warmup", "lr_scheduler_type": "schedule"}
# The sources that decide what a stage learns.
SOURCES = (
    *("blind.py", "blind_cache.py", "build.py", "corpus.py", "data.py", "images.py", "loss.py", "methods.py"),
    *("model.py", "packing.py", "processing.py", "readers.py", "scores.py", "trainer.py", "vision_cache.py"),
    *("weighting.py",),
)


def stage_folder(output: Path, chosen: Recipe, stage: Stage, seed: int) -> Path:
    """Where a stage of a recipe stands. The proxy is the same for all methods of a family, so they share one folder."""
    owner = chosen.family if stage == "proxy" else chosen.name
    return output / (owner if seed == 0 else f"{owner}-seed{seed}") / stage


def seed_of(rest: Sequence[str]) -> int:
    """The seed on a command line, 0 if none is given."""
    value = given_arguments(rest).get("seed", "0")
    if not value.isdigit():
        raise InputError(f"--seed should be a whole number, got {value!r}")
    return int(value)


def changed_settings(chosen: Recipe, stage: Stage, rest: Sequence[str]) -> dict:
    """The stage's settings with what the command line changes of them; what it repeats or cannot matter is left out."""
    settings = dataclasses.asdict(chosen.settings(stage)) | {"bf16": chosen.bf16}
    del settings["micro_batch"], settings["packed"]  # accumulation fills up to the global batch, however it lies
    given = given_arguments(rest)
    if (strategy := given.get("train_sampling_strategy")) in ("group_by_length", "random"):
        settings["group_by_length"] = strategy == "group_by_length"
    for name, text in sorted(given.items()):
        if not name.startswith(HARMLESS) and name != "train_sampling_strategy":
            try:
                value = json.loads(text.lower())
            except json.JSONDecodeError:
                value = text
            settings[NAMES.get(name, name)] = value
    processes = int(os.environ.get("WORLD_SIZE", 1))
    share = settings["global_batch"] // processes
    micro = int(given.get("per_device_train_batch_size", min(chosen.settings(stage).micro_batch or share, share)))
    if "gradient_accumulation_steps" in given:
        settings["global_batch"] = micro * int(given["gradient_accumulation_steps"]) * processes
    weighting = chosen.weighting_of(stage)
    if weighting.rule != "none" and (weighting.form == "released" or weighting.normalisation == "rank"):
        # normalised (and in the released form pooled) within the micro-batch, so its size decides the loss
        settings["micro_batch"] = micro
    return settings


def stage_lineage(chosen: Recipe, stage: Stage, flags: argparse.Namespace, rest: Sequence[str]) -> dict:
    """What decides a stage's result: settings, models, data, and the parents' weights as far as they are there."""
    seed, settings = seed_of(rest), changed_settings(chosen, stage, rest)
    llm = local_model(chosen.llm, "llm")
    lineage: dict[str, Any] = {"stage": stage, "seed": seed, "llm": folder_hash(llm), "tokenizer": tokenizer_hash(llm)}
    lineage["names"] = {"llm": chosen.llm, "tokenizer": chosen.llm}
    settings |= {"fraction": chosen.fraction}
    if stage != "instruct":
        settings |= {"caption_count": chosen.caption_count}
    if stage == "proxy":
        settings |= {"lora_rank": chosen.lora_rank, "lora_alpha": chosen.lora_alpha}
    else:
        weighting = {k: v for k, v in dataclasses.asdict(chosen.weighting_of(stage)).items() if v is not None}
        settings |= {"weighting": weighting, "anyres": chosen.anyres}
        settings |= {"image_scale": chosen.image_scale} if stage == "connector" else {"llm": chosen.instruct_from}
        settings |= {"chat_template": chosen.chat_template} if stage == "instruct" else {}
        lineage["vision_tower"] = folder_hash(local_model(chosen.vision_tower, "tower"))
        lineage["names"]["vision_tower"] = chosen.vision_tower
    lineage["settings"] = settings
    sources, images = stage_sources(chosen, stage, flags)
    lineage["data"] = {  # in order, and each by itself where several have one name
        Path(source).name if len(sources) == 1 else f"{number} {Path(source).name}": source_hash(source)
        for number, source in enumerate(sources, start=1)
    }
    if stage != "proxy":
        lineage["images"] = [str(folder.resolve()) if folder else None for folder in images]
    lineage["parents"] = {}
    for parent in parents(chosen, stage):
        folder = stage_folder(flags.output, chosen, parent, seed)
        if is_complete(folder):
            lineage["parents"][parent] = weights_hash(folder)
            lineage["names"][parent] = str(folder)
    lineage["sources"] = hashlib.sha256(
        "".join(file_hash(Path(__file__).parent / s) for s in SOURCES).encode()
    ).hexdigest()
    return lineage


def weights_hash(folder: Path) -> str:
    """SHA-256 of the weights that a finished stage hands on: its adapter or connector, else all of a model's files."""
    for name in ("adapter_model.safetensors", "connector.safetensors"):
        if (folder / name).is_file():
            return file_hash(folder / name)
    return folder_hash(folder)


def trained_captions(proxy: Path) -> np.ndarray | None:
    """`text_hashes` of the captions that a finished stage 1 was trained on, ascending; None where it does not tell."""
    file = proxy / TRAINED_ON
    if not file.is_file():
        return None
    try:
        return np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{file}: cannot be read ({first_line(error)}); train the proxy again") from None


def parents(chosen: Recipe, stage: Stage) -> tuple[Stage, ...]:
    """The stages that a stage builds on."""
    if stage == "connector":
        return ("proxy",) if chosen.proxy else ()
    if stage == "instruct":
        return ("connector", "proxy") if chosen.instruct_from == "proxy" else ("connector",)
    return ()


def finished_parents(chosen: Recipe, stage: Stage, output: Path, seed: int) -> dict[Stage, Path]:
    """The folders of the stages that a stage builds on. InputError for one that is not finished."""
    found: dict[Stage, Path] = {}
    for parent in parents(chosen, stage):
        found[parent] = stage_folder(output, chosen, parent, seed)
        if not is_complete(found[parent]):
            raise InputError(
                f"{found[parent]}: stage {stage} of {chosen.name!r} builds on stage {parent}, which is not finished; run --stage {parent} first, or --stage all"
            )
    return found


def finished(chosen: Recipe, stage: Stage, flags: argparse.Namespace, rest: Sequence[str]) -> bool:
    """Whether a stage is finished. InputError when what stands in its folder was made otherwise than asked for now."""
    folder = stage_folder(flags.output, chosen, stage, seed_of(rest))
    if not is_complete(folder):
        return False
    made, wanted = read_lineage(folder), stage_lineage(chosen, stage, flags, rest)
    refuse_other(made, wanted, folder)
    if made.get("sources") != wanted["sources"]:
        print(
            f"note: {folder} was trained by other code than this ({made.get('commit')}); delete it to train it again",
            file=sys.stderr,
        )
    if made.get("images") != wanted.get("images"):
        print(
            f"note: {folder} was trained with the pictures of {made.get('images')}, not of {wanted.get('images')}; delete it to train it again",
            file=sys.stderr,
        )
    return True


def refuse_other(made: dict, wanted: dict, folder: Path) -> None:
    for part in ("seed", "settings", "llm", "tokenizer", "vision_tower", "data"):
        if made.get(part) != wanted.get(part):
            raise InputError(
                f"{folder}: was made with other {part} ({_short(made.get(part), wanted.get(part))}) than asked for now ({_short(wanted.get(part), made.get(part))}); delete it or choose another --output"
            )
    for parent, digest in wanted["parents"].items():
        if made.get("parents", {}).get(parent, digest) != digest:
            raise InputError(
                f"{folder}: was made from another {parent} than the one that is there now; delete it to make it again"
            )


def _short(value, other) -> str:
    """The part of a value in which it differs from another."""
    if isinstance(value, dict) and isinstance(other, dict):
        value = {key: item for key, item in value.items() if other.get(key) != item}
    return (value if isinstance(value, str) else json.dumps(value))[:120]


def refuse_foreign_parents(chosen: Recipe, stage: Stage, flags: argparse.Namespace, lineage: dict) -> dict[Stage, Path]:
    """The folders of the parents. InputError for one that was made for another LLM, tokenizer, tower or proxy."""
    found = finished_parents(chosen, stage, flags.output, lineage["seed"])
    for parent, folder in found.items():
        made = read_lineage(folder)
        if made.get("weights", lineage["parents"][parent]) != lineage["parents"][parent]:
            raise InputError(
                f"{folder}: its weights are not those that stage {parent} wrote (a damaged or replaced file); delete it and train it again"
            )
        wanted = {part: lineage[part] for part in ("llm", "tokenizer", "vision_tower") if part in lineage}
        names = dict(lineage["names"])
        if parent == "connector" and chosen.proxy:
            proxy = stage_folder(flags.output, chosen, "proxy", lineage["seed"])
            if is_complete(proxy):  # it may have been thrown away, as the paper does
                wanted["proxy"], names["proxy"] = weights_hash(proxy), str(proxy)
        known = made | made.get("parents", {})
        if parent == "proxy":
            wanted.pop("vision_tower", None)
        for part, digest in wanted.items():
            if known.get(part) != digest:
                before = made.get("names", {}).get(part, "unknown")
                raise InputError(
                    f"{folder}: this {parent} was made for the {part} {before} ({str(known.get(part))[:12]}), not for {names[part]} ({digest[:12]}); train it again, or give the one it was made for"
                )
    return found
