"""The flags that say which recipe on which models and data, the same for every command that reads a recipe; and the
TrainingArguments that follow from them.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpa.errors import InputError
from dpa.methods import STAGES, Stage
from dpa.recipes import Recipe, recipe


def add_recipe_flags(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Recipe, stage, models and data, in place of what the recipe names."""
    parser.add_argument("--recipe", required=required, help="a name from `python -m dpa.recipes`")
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    parser.add_argument("--llm", help="folder or hub id of the base LLM, in place of the recipe's")
    parser.add_argument("--vision-tower", help="folder or hub id of the CLIP or SigLIP tower, in place of the recipe's")
    parser.add_argument("--data", nargs="+", help="image-caption records: JSON, JSON lines, parquet, folders, hub:NAME")
    parser.add_argument(
        "--images",
        type=Path,
        nargs="+",
        help="folder that the caption records' image paths start from; one, or one each",
    )
    parser.add_argument("--instruct-data", help="instruction records, likewise")
    parser.add_argument(
        "--instruct-images", type=Path, help="folder that the instruction records' image paths start from"
    )
    parser.add_argument(
        "--weighting-form",
        choices=("paper", "released"),
        help="the paper's equations (default) or the released code's",
    )
    parser.add_argument(
        "--normalise",
        choices=("sample", "rank", "global"),
        help="what the weights are divided by: their sum over the sample (paper), a process's micro-batch (released) or the global batch",
    )
    parser.add_argument(
        "--attention", choices=("sdpa", "eager", "flash_attention_2"), help="of the LLM, in place of the recipe's"
    )


def resolve(flags: argparse.Namespace) -> Recipe:
    """The recipe with the flags' values in it. InputError for a flag that is missing or does not fit."""
    chosen = recipe(flags.recipe)
    if flags.stage == "proxy" and not chosen.proxy:
        raise InputError(f"recipe {chosen.name!r} has no proxy stage; its method trains the connector on the base LLM")
    given = {
        "llm": flags.llm,
        "vision_tower": flags.vision_tower,
        "captions": tuple(flags.data) if flags.data else None,
        "instructions": flags.instruct_data,
        "attention": flags.attention,
    }
    chosen = dataclasses.replace(chosen, **{name: value for name, value in given.items() if value is not None})
    if chosen.weighting.rule != "none" and (flags.weighting_form or flags.normalise):
        weighting = dataclasses.replace(chosen.weighting, form=flags.weighting_form or chosen.weighting.form)
        if flags.normalise and flags.normalise != weighting.normalisation:
            weighting = dataclasses.replace(weighting, normalise=flags.normalise)
        chosen = dataclasses.replace(chosen, weighting=weighting)
    if chosen.weighting.form == "released" and chosen.weighting.rule != "none" and "flash" in chosen.attention:
        raise InputError(
            "--weighting-form released keeps an image position that nothing attends to, which flash attention leaves out; choose --attention sdpa"
        )
    needs = {"llm": "--llm", "captions": "--data", "vision_tower": "--vision-tower", "instructions": "--instruct-data"}
    unneeded = {"proxy": ("vision_tower", "instructions"), "connector": ("instructions",), "instruct": ("captions",)}
    for name, flag in needs.items():
        if name not in unneeded.get(flags.stage, ()) and not getattr(chosen, name):
            raise InputError(f"recipe {chosen.name!r} leaves {name} open; give {flag}")
    return chosen


def fill_without_recipe(flags: argparse.Namespace) -> None:
    """For looking at data without a recipe: one stage (connector, unless another is given) of `small` on `--data`, with the
    lab's LLM and tower where none is given.
    """
    flags.recipe, flags.stage = "small", "connector" if flags.stage == "all" else flags.stage
    flags.llm, flags.vision_tower = flags.llm or "lab", flags.vision_tower or "lab"
    if flags.stage == "instruct" and flags.data and not flags.instruct_data:
        flags.instruct_data, flags.instruct_images = flags.data[0], (flags.images or [None])[0]


def stages_of(chosen: Recipe, flags: argparse.Namespace) -> tuple[Stage, ...]:
    """The stages that `--stage` asks for."""
    return chosen.stages if flags.stage == "all" else (flags.stage,)


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


def training_arguments(chosen: Recipe, stage: Stage, folder: Path, rest: list[str]):
    """The recipe's TrainingArguments with the command line's on top; the micro-batch defaults to the recipe's,
    at most a process's share of the global batch, and accumulation fills up to it exactly.

    InputError for an unknown flag, for batches that do not divide, and for what would break resuming.
    """
    from transformers import HfArgumentParser, TrainingArguments

    from dpa.preflight import usable_cpus

    settings = chosen.settings(stage)
    by_length = settings.group_by_length
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
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # the default hides a loss that is no number, from HealthCheck too
        "report_to": "none",
        "seed": 0,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "use_cache": True,  # what the Trainer writes into the checkpoint, for generation; training passes its own
        "ddp_timeout": 6 * 3600,  # seconds: the main process fetches models and checks data while the others wait
        "ddp_find_unused_parameters": False,  # every trained weight has a gradient, see `connect_text_only`
        "train_sampling_strategy": "group_by_length" if by_length else "random",
        "bf16": chosen.bf16,
        "activation_checkpointing": chosen.activation_checkpointing,
        "dataloader_num_workers": min(chosen.num_workers, usable_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))),
    }
    given = given_arguments(rest)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" or "fsdp" in given:
        # else each micro-batch but the last leaves whole gradients on every GPU
        defaults["accelerator_config"] = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    if "output_dir" in given:
        raise InputError("--output_dir is set by the stage; choose the folder of all runs with --output")
    parser = HfArgumentParser(TrainingArguments, allow_abbrev=False)
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
    # keep the recipe's global batch: from the micro-batch that is given, or by sharing it out; before an engine reads it
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if batch is None:
        share = max(settings.global_batch // processes, 1)
        batch = min(settings.micro_batch or share, share)
    if accumulate is None and settings.global_batch % (batch * processes):
        raise InputError(
            f"recipe {chosen.name!r} has a global batch of {settings.global_batch}, which {batch * processes} samples a step do not divide; change --per_device_train_batch_size"
        )
    namespace.per_device_train_batch_size = batch
    namespace.gradient_accumulation_steps = accumulate or settings.global_batch // (batch * processes)
    values = {f.name: getattr(namespace, f.name) for f in dataclasses.fields(TrainingArguments) if f.init}
    try:
        arguments = TrainingArguments(**values)
    except (ValueError, TypeError) as error:
        if "use_cpu" in str(error):
            raise InputError(
                f"recipe {chosen.name!r} trains in bf16 on a GPU, and there is none; --use_cpu true runs it here, and python -m benchmarks.rehearsal rehearses it small"
                if chosen.bf16
                else "--bf16 wants a GPU, and there is none; add --use_cpu true to have it on the CPU"
            ) from None
        raise InputError(f"these TrainingArguments do not go together: {str(error).splitlines()[0]}") from None
    if arguments.n_gpu > 1:
        raise InputError(
            f"{arguments.n_gpu} GPUs are visible to one process; start with torchrun, or set CUDA_VISIBLE_DEVICES"
        )
    if arguments.save_only_model:
        raise InputError(
            "--save_only_model leaves out what a run resumes from; the result is written apart in any case"
        )
    if arguments.save_total_limit == 1:
        raise InputError("--save_total_limit 1 leaves no complete checkpoint while the next is written; give 2 or more")
    return arguments
