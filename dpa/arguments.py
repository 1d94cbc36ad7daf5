"""The flags that say which recipe on which models and data; every command that reads a recipe takes the same ones."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

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
    if flags.weighting_form:
        weighting = dataclasses.replace(chosen.weighting, form=flags.weighting_form)
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
