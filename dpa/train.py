"""Train a recipe, stage by stage.

    python -m dpa.train --recipe lab_ornate --stage all
    python -m dpa.train --recipe qwen2.5-7b_sharegpt4v --stage connector --data captions.json --images DIR [--bf16 ...]

Stages: `proxy` fits the LLM to the caption text (LoRA), `connector` trains the connector on the frozen proxy (or, in
recipes without one, on the frozen base LLM), `instruct` trains connector and original LLM on instructions. A finished
stage stands in `OUTPUT/RECIPE/STAGE` and is not run again; one that was cut short resumes from its last checkpoint.
Every argument of transformers' TrainingArguments is accepted too and wins over the recipe.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dpa.errors import InputError, command
from dpa.lineage import (
    LINEAGE,
    file_hash,
    folder_hash,
    is_complete,
    local_model,
    provenance,
    read_lineage,
    without_secrets,
    write_json,
)
from dpa.methods import STAGES, Stage
from dpa.recipes import Recipe, recipe

SETTINGS = "settings.json"
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


def parse(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """(our flags, the rest for TrainingArguments)."""
    parser = argparse.ArgumentParser(
        prog="python -m dpa.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", required=True, help="a name from `python -m dpa.recipes`")
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    parser.add_argument("--llm", help="folder or hub id of the base LLM, in place of the recipe's")
    parser.add_argument("--vision-tower", help="folder or hub id of the CLIP tower, in place of the recipe's")
    parser.add_argument("--data", help="image-caption records (LLaVA JSON or JSON lines)")
    parser.add_argument("--images", type=Path, help="folder that the caption records' image paths start from")
    parser.add_argument("--instruct-data", help="instruction records (LLaVA or Cambrian)")
    parser.add_argument(
        "--instruct-images", type=Path, help="folder that the instruction records' image paths start from"
    )
    parser.add_argument(
        "--weighting-form",
        choices=("paper", "released"),
        help="the paper's equations (default) or the released code's",
    )
    return parser.parse_known_args(arguments)


def resolve(flags: argparse.Namespace) -> Recipe:
    """The recipe with the flags' values in it."""
    chosen = recipe(flags.recipe)
    if flags.stage == "proxy" and not chosen.proxy:
        raise InputError(f"recipe {chosen.name!r} has no proxy stage; its method trains the connector on the base LLM")
    given = {
        "llm": flags.llm,
        "vision_tower": flags.vision_tower,
        "captions": flags.data,
        "instructions": flags.instruct_data,
    }
    chosen = dataclasses.replace(chosen, **{name: value for name, value in given.items() if value is not None})
    if flags.weighting_form:
        weighting = dataclasses.replace(chosen.weighting, form=flags.weighting_form)
        chosen = dataclasses.replace(chosen, weighting=weighting)
    needs = {"llm": "--llm", "captions": "--data", "vision_tower": "--vision-tower", "instructions": "--instruct-data"}
    unneeded = {"proxy": ("vision_tower", "instructions"), "connector": ("instructions",), "instruct": ("captions",)}
    for name, flag in needs.items():
        if name not in unneeded.get(flags.stage, ()) and not getattr(chosen, name):
            raise InputError(f"recipe {chosen.name!r} leaves {name} open; give {flag}")
    return chosen


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


def training_arguments(chosen: Recipe, stage: Stage, folder: Path, rest: list[str]):
    """The recipe's TrainingArguments with the command line's on top; the micro-batch defaults to the global batch."""
    from transformers import HfArgumentParser, TrainingArguments

    settings = chosen.settings(stage)
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "learning_rate": settings.learning_rate,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps,
        "warmup_steps": settings.warmup,  # a share below 1 is taken of all steps
        "lr_scheduler_type": settings.schedule,
        "weight_decay": settings.weight_decay,
        "per_device_train_batch_size": None,
        "gradient_accumulation_steps": None,
        "save_strategy": "steps",
        "save_steps": 500,
        "save_total_limit": 2,
        "logging_steps": 25,
        "logging_nan_inf_filter": False,  # the default hides a loss that is no number, from HealthCheck too
        "report_to": "none",
        "seed": 0,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
    }
    if "output_dir" in given_arguments(rest):
        raise InputError("--output_dir is set by the stage; choose the folder of all runs with --output")
    parser = HfArgumentParser(TrainingArguments)
    known = {action.dest for action in parser._actions}
    if unknown := defaults.keys() - known:  # set_defaults would drop them silently
        raise RuntimeError(f"this transformers has no TrainingArguments {sorted(unknown)}")
    parser.set_defaults(**defaults)
    namespace, unknown_flags = parser.parse_known_args(rest)
    if unknown_flags:
        raise InputError(
            f"unknown flag {unknown_flags[0]!r}; `python -m dpa.train --help` lists ours, all others are TrainingArguments"
        )
    batch, accumulate = namespace.per_device_train_batch_size, namespace.gradient_accumulation_steps
    namespace.per_device_train_batch_size = batch or settings.global_batch
    namespace.gradient_accumulation_steps = accumulate or 1
    values = {f.name: getattr(namespace, f.name) for f in dataclasses.fields(TrainingArguments) if f.init}
    try:
        arguments = TrainingArguments(**values)
    except (ValueError, TypeError) as error:
        raise InputError(f"these TrainingArguments do not go together: {str(error).splitlines()[0]}") from None
    if arguments.n_gpu > 1:
        raise InputError(
            f"{arguments.n_gpu} GPUs are visible to one process; start with torchrun, or set CUDA_VISIBLE_DEVICES"
        )
    processes = max(arguments.world_size, 1)
    if accumulate is None:  # keep the recipe's global batch: from the micro-batch that is given, or by sharing it out
        if batch is None and settings.global_batch % processes == 0:
            arguments.per_device_train_batch_size = settings.global_batch // processes
        share = arguments.per_device_train_batch_size * processes
        if settings.global_batch % share:
            raise InputError(
                f"recipe {chosen.name!r} has a global batch of {settings.global_batch}, which {share} samples a step do not divide; change --per_device_train_batch_size"
            )
        arguments.gradient_accumulation_steps = settings.global_batch // share
    return arguments


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
    _refuse_other(made, wanted, folder)
    if made.get("sources") != wanted["sources"]:
        print(
            f"note: {folder} was trained by other code than this ({made.get('commit')}); delete it to train it again",
            file=sys.stderr,
        )
    return True


def _refuse_other(made: dict, wanted: dict, folder: Path) -> None:
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


def _refuse_foreign_parents(
    chosen: Recipe, stage: Stage, flags: argparse.Namespace, lineage: dict
) -> dict[Stage, Path]:
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


def run_stage(chosen: Recipe, stage: Stage, flags: argparse.Namespace, rest: list[str]) -> Path:
    """Train one stage unless it is finished, and return its folder. Several processes at one stage wait for each other."""
    from filelock import FileLock
    from transformers import set_seed

    partial = stage_folder(flags.output, chosen, stage, seed_of(rest))
    folder, partial = partial, partial.with_name(f"{partial.name}.partial")
    arguments = training_arguments(chosen, stage, partial, rest)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{stage}.lock")) if arguments.process_index == 0 else nullcontext():
        if finished(chosen, stage, flags, rest):
            print(f"{folder}: finished before, kept", flush=True)
            return folder
        lineage = stage_lineage(chosen, stage, flags, rest)
        found = _refuse_foreign_parents(chosen, stage, flags, lineage)
        with arguments.main_process_first(desc="opening the stage"):
            checkpoint = _open_partial(partial, lineage, clean=arguments.process_index == 0)
        set_seed(arguments.seed)
        start = time.time()
        trainer, export = _build(chosen, stage, found, flags, arguments)
        how = f"resuming from {checkpoint.name}" if checkpoint else "training"
        print(f"{folder}: {how}, {len(trainer.train_dataset)} records", flush=True)
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if cut := trainer.train_dataset.num_cut:
            limit = chosen.settings(stage).max_length
            print(f"{folder}: {cut} samples were longer than {limit} tokens and were cut at the right", file=sys.stderr)
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            made = {"recipe": chosen.name, "steps": result.global_step, "seconds": round(time.time() - start, 1)}
            made["flags"] = without_secrets(rest)
            writing = folder.with_name(f"{folder.name}.writing")
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir(parents=True)
            _write(export, writing)
            write_json(writing / "log.json", trainer.state.log_history)
            write_json(writing / LINEAGE, lineage | made | provenance())
            os.rename(writing, folder)
            shutil.rmtree(partial)
        trainer.accelerator.wait_for_everyone()
    return folder


def _write(export, folder: Path) -> None:
    """Export, with a disk that fails as an OSError, whichever library was writing."""
    from safetensors import SafetensorError

    try:
        export(folder)
    except (SafetensorError, RuntimeError) as error:
        raise InputError(
            f"{folder}: the result could not be written ({str(error).splitlines()[0][:160]}); free space and run again to resume"
        ) from None


def _open_partial(partial: Path, lineage: dict, *, clean: bool) -> Path | None:
    """Start or continue the folder of an unfinished stage; its newest complete checkpoint, if it has one.

    InputError when it was started with other settings.
    """
    from dpa.trainer import newest_checkpoint

    settings = partial / SETTINGS
    if settings.is_file():
        _refuse_other(json.loads(settings.read_text(encoding="utf-8")), lineage, partial)
    elif clean:
        partial.mkdir(parents=True, exist_ok=True)
        write_json(settings, lineage)
    return newest_checkpoint(partial, clean=clean)


def _build(chosen: Recipe, stage: Stage, found: dict[Stage, Path], flags: argparse.Namespace, arguments):
    """(trainer, export): the stage's trainer, and the function that writes its result into a folder."""
    import torch

    from dpa import model as models
    from dpa.data import VIEWS, Collator, Samples, read_records
    from dpa.methods import NONE
    from dpa.trainer import DPATrainer

    # the frozen LLM of stage 2 needs no master copy
    dtype = torch.bfloat16 if arguments.bf16 and stage == "connector" else torch.float32
    llm, tower = str(local_model(chosen.llm, "llm")), str(local_model(chosen.vision_tower or "lab", "tower"))
    file, images = data_source(chosen, stage, flags)
    records = read_records(file, VIEWS[stage])
    tokenizer = models.load_tokenizer(llm)
    max_length = chosen.settings(stage).max_length
    if stage == "proxy":
        trained = models.lora(models.load_llm(llm), rank=chosen.lora_rank, alpha=chosen.lora_alpha)
        samples = Samples(records, VIEWS[stage], tokenizer, max_length=max_length)

        def export(folder: Path) -> None:
            trained.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    else:
        inner = (
            models.load_proxy(llm, found["proxy"], dtype=dtype)
            if "proxy" in found
            else models.load_llm(llm, dtype=dtype)
        )
        vision = models.load_tower(tower)
        trained = models.compose(inner, vision, tokenizer, seed=arguments.seed)
        processor = models.build_processor(tokenizer, vision)
        if stage == "instruct":
            models.load_connector(trained, found["connector"])
        else:
            trained.model.multi_modal_projector.float()  # what trains stays in float32
        models.freeze_for(trained, stage)
        samples = Samples(records, VIEWS[stage], processor, images=images, max_length=max_length)

        def export(folder: Path) -> None:
            if stage == "connector":
                models.save_connector(trained, folder)
            else:
                trained.save_pretrained(folder)
                processor.save_pretrained(folder)

    trainer = DPATrainer(
        model=trained,
        args=arguments,
        train_dataset=samples,
        data_collator=Collator(tokenizer.pad_token_id),
        weighting=NONE if stage == "proxy" else chosen.weighting,
    )
    return trainer, export


def check_inputs(chosen: Recipe, stages: Sequence[Stage], flags: argparse.Namespace) -> None:
    """Find the models, read all records and look at all pictures of the stages to run, before any of them trains."""
    from dpa.data import VIEWS, check_images, read_records

    local_model(chosen.llm, "llm")
    if any(stage != "proxy" for stage in stages):
        local_model(chosen.vision_tower, "tower")
    for stage in stages:
        file, images = data_source(chosen, stage, flags)
        records = read_records(file, VIEWS[stage])
        if VIEWS[stage] != "text":
            check_images(records, images)


@command
def main(arguments: list[str] | None = None) -> int:
    flags, rest = parse(arguments)
    chosen = resolve(flags)
    stages = chosen.stages if flags.stage == "all" else (flags.stage,)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*pin_memory.*|.*is_gradient_checkpointing.*")
    if flags.stage != "all":
        finished_parents(chosen, flags.stage, flags.output, seed_of(rest))
    if unfinished := [stage for stage in stages if not finished(chosen, stage, flags, rest)]:
        check_inputs(chosen, unfinished, flags)
    for stage in stages:
        run_stage(chosen, stage, flags, rest)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
