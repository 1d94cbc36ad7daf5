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
    local_model,
    provenance,
    without_secrets,
    write_json,
)
from dpa.methods import STAGES, Stage
from dpa.recipes import Recipe, recipe
from dpa.stages import (
    data_source,
    finished,
    finished_parents,
    given_arguments,
    refuse_foreign_parents,
    refuse_other,
    seed_of,
    stage_folder,
    stage_lineage,
)

SETTINGS = "settings.json"


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
        found = refuse_foreign_parents(chosen, stage, flags, lineage)
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
        refuse_other(json.loads(settings.read_text(encoding="utf-8")), lineage, partial)
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
