"""Train a recipe, stage by stage.

    python -m dpa.train --recipe lab_ornate --stage all
    python -m dpa.train --recipe qwen2.5-7b_sharegpt4v --stage connector --data captions.json --images DIR [--bf16 ...]

Stages: `proxy` fits the LLM to the caption text (LoRA), `connector` trains the connector on the frozen proxy (or, in
recipes without one, on the frozen base LLM), `instruct` trains connector and original LLM on instructions. A finished
stage stands in `OUTPUT/RECIPE/STAGE` and is not run again; one that was cut short resumes from its last checkpoint.
Every argument of transformers' TrainingArguments is accepted too and wins over the recipe. On several GPUs: torchrun or
accelerate launch, with the configurations in `dpa/launch/`.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa.arguments import add_recipe_flags, given_arguments, resolve, stages_of, training_arguments
from dpa.card import write_card
from dpa.errors import InputError, command
from dpa.inputs import LEFT_OUT, LeftOut, find_left_out
from dpa.lineage import (
    LINEAGE,
    flush,
    local_model,
    provenance,
    without_secrets,
    write_json,
)
from dpa.methods import Stage
from dpa.recipes import Recipe
from dpa.stages import (
    TRAINED_ON,
    finished,
    finished_parents,
    refuse_foreign_parents,
    refuse_other,
    seed_of,
    stage_folder,
    stage_lineage,
    weights_hash,
)

if TYPE_CHECKING:
    from transformers import TrainingArguments

SETTINGS = "settings.json"


def parse(
    arguments: list[str] | None = None, prog: str = "python -m dpa.train", description: str | None = __doc__
) -> tuple[argparse.Namespace, list[str]]:
    """(our flags, the rest for TrainingArguments)."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_recipe_flags(parser)
    parser.add_argument(
        "--max-bad-samples",
        type=_count,
        default=0,
        help="how many bad (left out) or too long (cut) samples a stage may have; the stage's left_out.jsonl names them",
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on from the last checkpoint of a stage that was cut short (default); --no-resume starts it again",
    )
    parser.add_argument(
        "--cache",
        nargs="*",
        choices=("blind", "vision"),
        help="keep in OUTPUT for all runs: `blind`, p(token | text) of stage 2's captions under its frozen LLM; `vision`, the frozen tower's features of all pictures (default: blind, in the lab both; nothing behind --cache: neither)",
    )
    return parser.parse_known_args(arguments)


def kept(chosen: Recipe, stage: Stage, flags: argparse.Namespace) -> set[str]:
    """Which caches a stage uses: those of `--cache` that it has, or the default."""
    sources = (chosen.instructions,) if stage == "instruct" else chosen.captions
    in_lab = any(source.startswith("lab/") for source in sources)
    names = {"blind", "vision"} if in_lab else {"blind"}
    names = names if flags.cache is None else set(flags.cache)
    if "vision" in names and chosen.anyres:
        raise InputError(f"recipe {chosen.name!r} cuts pictures into tiles; --cache vision keeps square ones only")
    return names & {"proxy": set(), "connector": {"blind", "vision"}, "instruct": {"vision"}}[stage]


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"should be 0 or more, got {text!r}")
    return int(text)


def run_stage(
    chosen: Recipe, stage: Stage, flags: argparse.Namespace, rest: list[str], left_out: LeftOut | None = None
) -> Path:
    """Train one stage unless it is finished, and return its folder. Several processes at one stage wait for each other.

    left_out: what the checks found (`check_inputs`).
    """
    import numpy as np
    import torch
    from filelock import FileLock
    from transformers import set_seed

    from dpa import blind_cache, vision_cache
    from dpa.build import build, whole_weights
    from dpa.corpus import text_hashes
    from dpa.trainer import refuse_other_engine

    partial = stage_folder(flags.output, chosen, stage, seed_of(rest))
    folder, partial = partial, partial.with_name(f"{partial.name}.partial")
    arguments = training_arguments(chosen, stage, partial, rest)
    folder.parent.mkdir(parents=True, exist_ok=True)
    main_process = arguments.process_index == 0
    with FileLock(folder.with_name(f".{stage}.lock")) if main_process else nullcontext():
        if _from_main(lambda: finished(chosen, stage, flags, rest), arguments):
            if main_process:
                print(f"{folder}: finished before, kept", flush=True)
            return folder
        lineage = _from_main(lambda: stage_lineage(chosen, stage, flags, rest), arguments)
        found = _from_main(lambda: refuse_foreign_parents(chosen, stage, flags, lineage), arguments)
        left_out = left_out or LeftOut()
        if main_process and not flags.resume:
            shutil.rmtree(partial, ignore_errors=True)
        caches = kept(chosen, stage, flags)
        checkpoint = _from_main(lambda: _open_partial(partial, lineage, left_out, sorted(caches)), arguments)
        set_seed(arguments.seed)
        start = time.time()
        with whole_weights(arguments):
            by_memory = "activation_checkpointing" not in given_arguments(rest)
            trainer, export, about = build(chosen, stage, found, flags, arguments, left_out, by_memory=by_memory)
        if checkpoint:
            refuse_other_engine(checkpoint, trainer.engine())
        if "blind" in caches:
            blind_cache.use(trainer, flags.output, lineage)
        if "vision" in caches:
            vision_cache.use(trainer, flags.output, lineage["vision_tower"])
        if main_process:
            how = f"resuming from {checkpoint.name}" if checkpoint else "training"
            print(f"{folder}: {how}, {len(trainer.train_dataset)} records", flush=True)
            for problem in left_out.problems[:3]:
                print(f"{folder}: {problem}", file=sys.stderr)
            if left_out.problems:
                print(
                    f"{folder}: {len(left_out.problems)} samples left out or cut, all named in {partial / LEFT_OUT}",
                    file=sys.stderr,
                )
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        state = trainer.gathered_state() if trainer.shards_weights else None  # every process takes part
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            made = {"recipe": chosen.name, "steps": result.global_step, "seconds": round(time.time() - start, 1)}
            made |= {"flags": without_secrets(rest), "records": len(trainer.train_dataset)} | about | trainer.engine()
            made["cached"] = [
                name for name in ("blind", "features") if getattr(trainer.train_dataset, name) is not None
            ]
            writing = folder.with_name(f"{folder.name}.writing")
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir(parents=True)
            _write(export, writing, state)
            flush(writing)
            made["weights"] = weights_hash(writing)
            left_out.write(writing)
            if stage == "proxy":  # so that held-out captions can be told from those that it has read
                hashes = text_hashes(trainer.train_dataset.records.captions())
                np.save(writing / TRAINED_ON, np.unique(hashes), allow_pickle=False)
            write_json(writing / "log.json", trainer.state.log_history)
            whole = lineage | made | provenance()
            write_card(writing, whole)
            write_json(writing / LINEAGE, whole)
            os.rename(writing, folder)
            shutil.rmtree(partial)
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.free_memory()  # an engine's hooks would keep the model beside the next stage's
    del trainer, export, state
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return folder


def fill_blind_cache(chosen: Recipe, flags: argparse.Namespace, rest: list[str]) -> None:
    """Fill the cache that stage 2 of a recipe reads, and say where it is; its parents have to be finished."""
    from dpa import blind_cache
    from dpa.build import build, whole_weights

    folder = stage_folder(flags.output, chosen, "connector", seed_of(rest))
    arguments = training_arguments(chosen, "connector", folder.with_name(f"{folder.name}.partial"), rest)
    lineage = _from_main(lambda: stage_lineage(chosen, "connector", flags, rest), arguments)
    found = _from_main(lambda: refuse_foreign_parents(chosen, "connector", flags, lineage), arguments)
    left_out = _from_main(lambda: find_left_out(chosen, "connector", flags, seed=arguments.seed), arguments)
    with whole_weights(arguments):
        trainer, _, _ = build(chosen, "connector", found, flags, arguments, left_out)
    cache = blind_cache.use(trainer, flags.output, lineage, always=True)
    if cache is None:
        raise InputError("--weighting-form released looks at image features, which train; it has no cache")
    if arguments.process_index == 0:
        print(f"{cache.folder}: {len(trainer.train_dataset)} captions, {cache.offsets[-1] // 2:,} label tokens")


def _from_main(what: Callable[[], Any], arguments: TrainingArguments) -> Any:
    """What the main process finds, on every process; an InputError of it is raised on every process."""
    if arguments.world_size <= 1:
        return what()
    from accelerate.utils import broadcast_object_list

    answer: list[Any] = [None, None]
    if arguments.process_index == 0:
        try:
            answer[0] = what()
        except InputError as error:
            answer[1] = str(error)
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise InputError(answer[1])
    return answer[0]


def _write(export: Callable[[Path, dict | None], None], folder: Path, state: dict | None) -> None:
    """Export, with a disk that fails as an OSError, whichever library was writing."""
    from safetensors import SafetensorError

    from dpa.trainer import is_disk_error

    try:
        export(folder, state)
    except (SafetensorError, RuntimeError) as error:
        if not is_disk_error(error):
            raise
        raise InputError(
            f"{folder}: the result could not be written ({str(error).splitlines()[0][:160]}); free space and run again to resume"
        ) from None


def _open_partial(partial: Path, lineage: dict, left_out: LeftOut, caches: Sequence[str] = ()) -> Path | None:
    """Start or continue the folder of an unfinished stage; its newest complete checkpoint, if it has one.

    InputError when it was started with other settings, or on other samples.
    """
    from dpa.trainer import newest_checkpoint

    settings = partial / SETTINGS
    started = lineage | {"left_out": list(left_out.indices), "cache": list(caches)}
    if settings.is_file():
        try:
            before = json.loads(settings.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{settings}: not readable ({error}); start the stage again with --no-resume") from None
        refuse_other(before, lineage, partial)
        if before.get("cache", started["cache"]) != started["cache"]:
            raise InputError(
                f"{partial}: was started with --cache {' '.join(before['cache'])}, now it is {' '.join(caches) or 'empty'}; give it as before, or --no-resume to start the stage again"
            )
        if before.get("left_out", []) != started["left_out"]:
            raise InputError(
                f"{partial}: was started without {len(before.get('left_out', []))} bad samples, now there are {len(left_out.indices)}; put the pictures back as they were, or delete it to start the stage again"
            )
    else:
        partial.mkdir(parents=True, exist_ok=True)
        write_json(settings, started)
    left_out.write(partial)
    return newest_checkpoint(partial)


def check_inputs(chosen: Recipe, stages: Sequence[Stage], flags: argparse.Namespace, seed: int) -> dict[Stage, LeftOut]:
    """Find the models, read all records and look at pictures and label masks of the stages to run, before any trains."""
    local_model(chosen.llm, "llm")
    if any(stage != "proxy" for stage in stages):
        local_model(chosen.vision_tower, "tower")
    return {stage: find_left_out(chosen, stage, flags, seed=seed) for stage in stages}


@command
def main(arguments: list[str] | None = None) -> int:
    flags, rest = parse(arguments)
    chosen = resolve(flags)
    stages = stages_of(chosen, flags)
    seed = seed_of(rest)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*pin_memory.*|.*is_gradient_checkpointing.*")
    if flags.stage != "all":
        finished_parents(chosen, flags.stage, flags.output, seed)
    first = stage_folder(flags.output, chosen, stages[0], seed)
    together = training_arguments(chosen, stages[0], first.with_name(f"{first.name}.partial"), rest)

    def checks() -> dict[Stage, LeftOut]:
        unfinished = [stage for stage in stages if not finished(chosen, stage, flags, rest)]
        return check_inputs(chosen, unfinished, flags, seed)

    left_out = _from_main(checks, together)
    for stage in stages:
        run_stage(chosen, stage, flags, rest, left_out.get(stage))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
