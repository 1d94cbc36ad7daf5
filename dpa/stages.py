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

from dpa.errors import InputError
from dpa.lineage import file_hash, folder_hash, is_complete, local_model, read_lineage
from dpa.methods import Stage
from dpa.recipes import Recipe

WEIGHTS = {"proxy": "adapter_model.safetensors", "connector": "connector.safetensors"}  # what a later stage builds on
# TrainingArguments that cannot change a weight beyond rounding: a resumed run may give them anew.
HARMLESS = (
    *("save_", "logging_", "disable_tqdm", "report_to", "run_name", "hub_", "push_to_hub", "ddp_timeout"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "dataloader_persistent_workers"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "seed"),
)
# Names of TrainingArguments for the settings of a recipe.
NAMES = {"num_train_epochs": "epochs", "warmup_steps": "warmup", "lr_scheduler_type": "schedule"}
# The sources that decide what a stage learns.
SOURCES = ("blind.py", "data.py", "loss.py", "methods.py", "model.py", "trainer.py", "weighting.py")


def stage_folder(output: Path, chosen: Recipe, stage: Stage, seed: int) -> Path:
    """Where a stage of a recipe stands. The proxy is the same for all methods of a family, so they share one folder."""
    owner = chosen.family if stage == "proxy" else chosen.name
    return output / (owner if seed == 0 else f"{owner}-seed{seed}") / stage


def given_arguments(rest: Sequence[str]) -> dict[str, str]:
    """{name: value} of TrainingArguments on a command line; a flag without a value is "true"."""
    given: dict[str, str] = {}
    name = None
    for word in rest:
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            name = name.replace("-", "_")
            given[name] = value or "true"
        elif name is not None:
            given[name] = word if given[name] == "true" else f"{given[name]} {word}"
    return given


def seed_of(rest: Sequence[str]) -> int:
    """The seed on a command line, 0 if none is given."""
    value = given_arguments(rest).get("seed", "0")
    if not value.isdigit():
        raise InputError(f"--seed should be a whole number, got {value!r}")
    return int(value)


def changed_settings(chosen: Recipe, stage: Stage, rest: Sequence[str]) -> dict:
    """The stage's settings with what the command line changes of them; what it repeats or cannot matter is left out."""
    settings = dataclasses.asdict(chosen.settings(stage))
    given = given_arguments(rest)
    for name, text in sorted(given.items()):
        if not name.startswith(HARMLESS):
            try:
                value = json.loads(text.lower())
            except json.JSONDecodeError:
                value = text
            settings[NAMES.get(name, name)] = value
    if "gradient_accumulation_steps" in given:
        micro = int(given.get("per_device_train_batch_size", settings["global_batch"]))
        settings["global_batch"] = (
            micro * int(given["gradient_accumulation_steps"]) * int(os.environ.get("WORLD_SIZE", 1))
        )
    if stage != "proxy" and chosen.weighting.rule != "none" and chosen.weighting.form == "released":
        # the released form normalises within the micro-batch, so its size decides the loss
        settings["micro_batch"] = int(given.get("per_device_train_batch_size", settings["global_batch"]))
    return settings


def data_source(chosen: Recipe, stage: Stage, flags: argparse.Namespace) -> tuple[Path, Path]:
    """(data file, image folder) of a stage; the lab's are made if absent. Without --images: the data file's folder."""
    if stage == "instruct":
        name, images = chosen.instructions, flags.instruct_images
    else:
        name, images = chosen.captions, flags.images
    if name.startswith("lab/"):
        from dpa.lab.dataset import ensure

        return ensure(flags.output, name)
    file = Path(name)
    if not file.is_file():
        which = "--instruct-data" if stage == "instruct" else "--data"
        raise InputError(f"{file}: no such file; give the records of stage {stage} with {which}")
    return file, images if images is not None else file.parent


def stage_lineage(chosen: Recipe, stage: Stage, flags: argparse.Namespace, rest: Sequence[str]) -> dict:
    """What decides a stage's result: settings, models, data, and the parents' weights as far as they are there."""
    seed, settings = seed_of(rest), changed_settings(chosen, stage, rest)
    file, _ = data_source(chosen, stage, flags)
    lineage: dict[str, Any] = {"stage": stage, "seed": seed, "llm": folder_hash(local_model(chosen.llm, "llm"))}
    if stage == "proxy":
        lineage["settings"] = settings | {"lora_rank": chosen.lora_rank, "lora_alpha": chosen.lora_alpha}
    else:
        lineage["settings"] = settings | {"weighting": dataclasses.asdict(chosen.weighting)}
        lineage["vision_tower"] = folder_hash(local_model(chosen.vision_tower, "tower"))
    lineage["data"] = {file.name: file_hash(file)}
    found = {parent: stage_folder(flags.output, chosen, parent, seed) for parent in parents(chosen, stage)}
    lineage["parents"] = {
        parent: file_hash(folder / WEIGHTS[parent]) for parent, folder in found.items() if is_complete(folder)
    }
    lineage["sources"] = hashlib.sha256(
        "".join(file_hash(Path(__file__).parent / s) for s in SOURCES).encode()
    ).hexdigest()
    return lineage


def parents(chosen: Recipe, stage: Stage) -> tuple[Stage, ...]:
    """The stages that a stage builds on."""
    if stage == "connector":
        return ("proxy",) if chosen.proxy else ()
    return ("connector",) if stage == "instruct" else ()


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
    return True


def refuse_other(made: dict, wanted: dict, folder: Path) -> None:
    for part in ("seed", "settings", "llm", "vision_tower", "data"):
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
    """The folders of the parents. InputError for one that was made for another LLM or tower."""
    found = finished_parents(chosen, stage, flags.output, lineage["seed"])
    for parent, folder in found.items():
        made = read_lineage(folder)
        for part in ("llm", "vision_tower"):
            if part in made and made[part] != lineage.get(part):
                raise InputError(
                    f"{folder}: this {parent} was made with another {part} ({made[part][:12]}) than the one given ({lineage[part][:12]}); train it again or give the same one"
                )
    return found
