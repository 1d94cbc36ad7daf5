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
from pathlib import Path

from dpa.errors import InputError
from dpa.lineage import LINEAGE, file_hash, is_complete, model_fingerprint, provenance, read_lineage, write_json
from dpa.methods import STAGES, Stage
from dpa.recipes import Recipe, recipe

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
        "--weighting-form", choices=("paper", "released"), help="the paper's equations (default) or the released code's"
    )
    return parser.parse_known_args(arguments)


def resolve(flags: argparse.Namespace) -> Recipe:
    """The recipe with the flags' values in it."""
    chosen = recipe(flags.recipe)
    given = {
        "llm": flags.llm,
        "vision_tower": flags.vision_tower,
        "captions": flags.data,
        "instructions": flags.instruct_data,
    }
    chosen = dataclasses.replace(chosen, **{name: value for name, value in given.items() if value is not None})
    if flags.weighting_form:
        chosen = dataclasses.replace(chosen, weighting=dataclasses.replace(chosen.weighting, form=flags.weighting_form))
    needs = {"llm": "--llm", "vision_tower": "--vision-tower", "captions": "--data", "instructions": "--instruct-data"}
    for name, flag in needs.items():
        needed = name != "instructions" or flags.stage in ("instruct", "all")
        if needed and not getattr(chosen, name):
            raise InputError(f"recipe {chosen.name!r} leaves {name} open; give {flag}")
    return chosen


def stage_folder(output: Path, chosen: Recipe, stage: Stage, seed: int) -> Path:
    """Where a stage of a recipe stands. The proxy is the same for all methods of a family, so they share one folder."""
    owner = chosen.family if stage == "proxy" else chosen.name
    return output / (owner if seed == 0 else f"{owner}-seed{seed}") / stage


def training_arguments(chosen: Recipe, stage: Stage, folder: Path, rest: list[str]):
    """The recipe's TrainingArguments with the command line's on top; the micro-batch defaults to the global batch."""
    from transformers import HfArgumentParser, TrainingArguments

    settings = chosen.settings(stage)
    defaults = {
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
        "logging_nan_inf_filter": False,  # the default hides a loss that is no number from the log, and from HealthCheck
        "report_to": "none",
        "seed": 0,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
    }
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
    namespace.per_device_train_batch_size, namespace.gradient_accumulation_steps = (
        batch or settings.global_batch,
        accumulate or 1,
    )
    arguments = TrainingArguments(
        **{f.name: getattr(namespace, f.name) for f in dataclasses.fields(TrainingArguments) if f.init}
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
    name, images = (
        (chosen.instructions, flags.instruct_images) if stage == "instruct" else (chosen.captions, flags.images)
    )
    if name.startswith("lab/"):
        from dpa.lab.dataset import ensure

        return ensure(flags.output / "lab-data", name)
    file = Path(name)
    return file, images if images is not None else file.parent


def parents(chosen: Recipe, stage: Stage, output: Path, seed: int) -> dict[str, Path]:
    """The finished stages that this one builds on, by stage name. InputError for one that is missing."""
    builds_on: dict[Stage, tuple[Stage, ...]] = {
        "proxy": (),
        "connector": ("proxy",) if chosen.proxy else (),
        "instruct": ("connector",),
    }
    found: dict[str, Path] = {}
    for parent in builds_on[stage]:
        folder = stage_folder(output, chosen, parent, seed)
        if not is_complete(folder):
            raise InputError(
                f"{folder}: stage {stage} of {chosen.name!r} builds on stage {parent}, which is not finished; run --stage {parent} first, or --stage all"
            )
        found[parent] = folder
    return found


def local_model(name: str, kind: str) -> str:
    """The lab's shipped foundation for the name `lab`, any other path or hub id as it is."""
    return str(Path(__file__).parent / "lab" / "foundations" / kind) if name == "lab" else name


def run_stage(chosen: Recipe, stage: Stage, flags: argparse.Namespace, rest: list[str]) -> Path:
    """Train one stage unless it is finished, and return its folder."""
    from transformers import set_seed

    from dpa.data import VIEWS, check_images, read_records

    probe = training_arguments(chosen, stage, flags.output, rest)
    folder = stage_folder(flags.output, chosen, stage, probe.seed)
    file, images = data_source(chosen, stage, flags)
    llm, tower = local_model(chosen.llm, "llm"), local_model(chosen.vision_tower, "tower")
    lineage = {
        "stage": stage,
        "recipe": chosen.name,
        "seed": probe.seed,
        "settings": dataclasses.asdict(chosen.settings(stage))
        | ({} if stage == "proxy" else {"weighting": dataclasses.asdict(chosen.weighting)}),
        "flags": rest,
        "llm": model_fingerprint(llm),
        "data": {file.name: file_hash(file)} if file.is_file() else {},
    }
    if stage == "proxy":
        lineage["settings"] |= {"lora_rank": chosen.lora_rank, "lora_alpha": chosen.lora_alpha}
    else:
        lineage["vision_tower"] = model_fingerprint(tower)
    if is_complete(folder):
        _refuse_other(read_lineage(folder), lineage, folder)
        print(f"{folder}: finished before, kept", flush=True)
        return folder
    found = parents(chosen, stage, flags.output, probe.seed)
    for parent, where in found.items():
        made = read_lineage(where)
        for part in ("llm", "vision_tower"):
            if part in made and made[part] != lineage.get(part):
                raise InputError(
                    f"{where}: this {parent} was made with another {part} ({made[part][:16]}) than the one given ({lineage[part][:16]}); train it again or give the same one"
                )
        lineage.setdefault("parents", {})[parent] = file_hash(where / LINEAGE)

    view = VIEWS[stage]
    records = read_records(file, view)
    if view != "text":
        check_images(records, images)

    partial = folder.with_name(f"{folder.name}.partial")
    arguments = training_arguments(chosen, stage, partial, rest)
    _open_partial(partial, lineage)
    set_seed(arguments.seed)
    start = time.time()
    trainer, export = _build(chosen, stage, llm, tower, found, records, view, images, arguments)

    from dpa.trainer import newest_checkpoint

    checkpoint = newest_checkpoint(partial)
    print(
        f"{folder}: {'resuming from ' + checkpoint.name if checkpoint else 'training'}, {len(records)} records from {file}",
        flush=True,
    )
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if cut := trainer.train_dataset.num_cut:
        print(
            f"{folder}: {cut} samples were longer than {chosen.settings(stage).max_length} tokens and were cut at the right",
            file=sys.stderr,
        )
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        finished = folder.with_name(f"{folder.name}.writing")
        shutil.rmtree(finished, ignore_errors=True)
        finished.mkdir(parents=True)
        export(finished)
        write_json(finished / "log.json", trainer.state.log_history)
        write_json(
            finished / LINEAGE,
            lineage | provenance() | {"steps": result.global_step, "seconds": round(time.time() - start, 1)},
        )
        os.rename(finished, folder)
        shutil.rmtree(partial)
    trainer.accelerator.wait_for_everyone()
    return folder


def _open_partial(partial: Path, lineage: dict) -> None:
    """Start or continue the folder of an unfinished stage; refuse one that was started with other settings."""
    settings = partial / SETTINGS
    if settings.is_file():
        _refuse_other(json.loads(settings.read_text(encoding="utf-8")), lineage, partial)
    else:
        partial.mkdir(parents=True, exist_ok=True)
        write_json(settings, lineage)


def _refuse_other(made: dict, wanted: dict, folder: Path) -> None:
    """InputError when a folder was made from other models, data, parents or settings than those wanted now."""
    for part in ("seed", "settings", "flags", "llm", "vision_tower", "data", "parents"):
        if part in made and part in wanted and made[part] != wanted[part]:
            if part == "flags" and _numbers_only(made[part]) == _numbers_only(wanted[part]):
                continue
            raise InputError(
                f"{folder}: was made with other {part} ({_short(made[part])}) than asked for now ({_short(wanted[part])}); delete it or choose another --output"
            )


def _numbers_only(flags: list[str]) -> list[str]:
    """Flags without those that cannot change a weight, so that a resumed run may save or report more often."""
    harmless = ("--save_steps", "--logging_steps", "--disable_tqdm", "--report_to", "--save_total_limit")
    kept, skip = [], False
    for flag in flags:
        if not (skip or flag.startswith(harmless)):
            kept.append(flag)
        skip = flag in harmless
    return kept


def _short(value) -> str:
    return (value if isinstance(value, str) else json.dumps(value))[:120]


def _build(
    chosen: Recipe, stage: Stage, llm: str, tower: str, found: dict[str, Path], records, view, images, arguments
):
    """(trainer, export): the stage's trainer, and the function that writes its result into a folder."""
    import torch

    from dpa import model as models
    from dpa.data import Collator, Samples
    from dpa.methods import NONE
    from dpa.trainer import DPATrainer

    dtype = (
        torch.bfloat16 if arguments.bf16 and stage == "connector" else torch.float32
    )  # frozen weights need no master copy
    tokenizer = models.load_tokenizer(llm)
    max_length = chosen.settings(stage).max_length
    if stage == "proxy":
        trained = models.lora(models.load_llm(llm), rank=chosen.lora_rank, alpha=chosen.lora_alpha)
        samples = Samples(records, view, tokenizer, max_length=max_length)

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
        samples = Samples(records, view, processor, images=images, max_length=max_length)

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


def main(arguments: list[str] | None = None) -> int:
    flags, rest = parse(arguments)
    try:
        chosen = resolve(flags)
        stages = chosen.stages if flags.stage == "all" else (flags.stage,)
        if flags.stage == "proxy" and not chosen.proxy:
            raise InputError(
                f"recipe {chosen.name!r} has no proxy stage; its method trains the connector on the base LLM"
            )
        logging.getLogger("transformers").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        for stage in stages:
            run_stage(chosen, stage, flags, rest)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a read-only folder
        print(
            f"error: {error.filename or flags.output}: {error.strerror or error}; free space or choose another --output, then run again to resume",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
