"""A stage's trainer: models, samples and weighting put together as the recipe says."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dpa import model as models
from dpa import processing
from dpa.costs import TOWER, Shape, asks_for_checkpointing, step_flops
from dpa.data import Collator, Samples
from dpa.errors import InputError
from dpa.export import export_checkpoint
from dpa.inputs import LeftOut, stage_corpus
from dpa.lineage import local_model
from dpa.methods import Stage
from dpa.packing import carries_state, packs
from dpa.readers import VIEWS
from dpa.recipes import Recipe
from dpa.trainer import DPATrainer

if TYPE_CHECKING:
    from transformers import TrainingArguments


@contextmanager
def whole_weights(arguments: TrainingArguments) -> Iterator[None]:
    """Load and compose with whole weights under ZeRO-3, which else shards them while they are read; it shards the model
    when training starts.
    """
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    settings = getattr(arguments, "hf_deepspeed_config", None)
    if settings is not None:
        unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if settings is not None:
            set_hf_deepspeed_config(settings)


def build(
    chosen: Recipe,
    stage: Stage,
    found: dict[Stage, Path],
    flags: argparse.Namespace,
    arguments: TrainingArguments,
    left_out: LeftOut,
    *,
    by_memory: bool = True,
):
    """(trainer, export, about): the stage's trainer, the function that writes its result into a folder (given the whole
    weights where an engine shards them), and what else its lineage should tell.

    by_memory: on a GPU, activations are checkpointed only where the estimate of `dpa.costs` asks for it.
    """
    # a frozen LLM needs no master copy
    frozen = stage == "connector" or (stage == "proxy" and chosen.lora_rank is not None)
    dtype = torch.bfloat16 if arguments.bf16 and frozen else torch.float32
    llm, tower = str(local_model(chosen.llm, "llm")), str(local_model(chosen.vision_tower or "lab", "tower"))
    corpus = stage_corpus(chosen, stage, flags, seed=arguments.seed).without(left_out.indices, left_out.problems)
    tokenizer = processing.load_tokenizer(llm, chosen.chat_template)
    options = {"dtype": dtype, "attention": chosen.attention}
    if stage == "proxy":
        inner = models.load_llm(llm, **options)
        trained = inner
        if chosen.lora_rank is not None:
            trained = models.lora(inner, rank=chosen.lora_rank, alpha=chosen.lora_alpha)
        processor, vision = tokenizer, None

        def export(folder: Path, state: dict | None) -> None:
            trained.save_pretrained(folder, state_dict=state)
            tokenizer.save_pretrained(folder)
    else:
        use_proxy = "proxy" in found
        inner = models.load_proxy(llm, found["proxy"], **options) if use_proxy else models.load_llm(llm, **options)
        vision = models.load_tower(tower)
        trained = models.compose(
            inner, vision, tokenizer, seed=arguments.seed, anyres=chosen.anyres, image_scale=chosen.image_scale
        )
        processor = processing.build_processor(tokenizer, vision, anyres=chosen.anyres, pad=chosen.settings(stage).pad)
        if stage == "instruct":
            models.load_connector(trained, found["connector"])
        models.freeze_for(trained, stage)
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # what trains stays in float32
        models.connect_text_only(trained)

        def export(folder: Path, state: dict | None) -> None:
            if stage == "connector":
                models.save_connector(trained, folder, state)
            else:
                kept = torch.bfloat16 if arguments.bf16 else None  # what the passes computed with
                export_checkpoint(trained, processor, folder, state, dtype=kept)

    samples = Samples(corpus, VIEWS[stage], processor, max_length=chosen.settings(stage).max_length)
    weighting = chosen.weighting_of(stage)
    text_config = inner.config.get_text_config()
    # the released form pools over the batch as it is padded
    packed = chosen.settings(stage).packed and packs(text_config) and weighting.form == "paper"
    if weighting.rule != "none" and carries_state(text_config):
        raise InputError(
            f"{chosen.llm}: has layers other than attention, for which leaving the image out is not masking it; choose another LLM, or a recipe without weights (vanilla, pmo)"
        )
    shape = Shape.from_config(text_config)
    eyes = TOWER if vision is None else Shape.from_config(vision.config)
    rank = chosen.lora_rank if stage == "proxy" else None
    if arguments.activation_checkpointing and by_memory and torch.cuda.is_available():
        gib = torch.cuda.get_device_properties(arguments.device).total_memory / 2**30
        batch = (arguments.world_size, arguments.per_device_train_batch_size, samples.longest, gib)
        arguments.activation_checkpointing = asks_for_checkpointing(chosen, stage, shape, _engine(arguments), *batch)

    def flops(counts: dict[str, float]) -> float:
        text = counts["tokens"] - counts["image_tokens"]
        return step_flops(
            shape,
            stage,
            text_tokens=text,
            supervised_tokens=counts["labels"],
            mean_length=counts["tokens"] / counts["samples"],
            picture_tokens=counts["image_tokens"],
            blind_tokens=text if weighting.rule != "none" and samples.blind is None else 0,
            pictures=counts["tiles"] if samples.features is None else 0,
            lora_rank=rank,
            tower=eyes,
            tower_tokens=0 if vision is None else samples.patches + 1,
        ).model

    trainer = DPATrainer(
        model=trained,
        args=arguments,
        train_dataset=samples,
        data_collator=Collator(tokenizer.pad_token_id, packed=packed, flat="flash" in chosen.attention),
        weighting=weighting,
        step_flops=flops,
    )
    about = {"activation_checkpointing": arguments.activation_checkpointing}
    return (
        trainer,
        export,
        about | {"attention": models.attention_of(trained), "dtype": str(dtype).removeprefix("torch.")},
    )


def _engine(arguments: TrainingArguments) -> str:
    """How the states are shared out, by the names of `dpa.costs.memory_gib`."""
    settings = getattr(arguments, "hf_deepspeed_config", None)
    if settings is not None:
        return "ZeRO-3" if settings.is_zero3() else "ZeRO-2"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":  # by accelerate's launcher
        return "ZeRO-3" if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3" else "ZeRO-2"
    return "ZeRO-3" if os.environ.get("ACCELERATE_USE_FSDP") == "true" or arguments.fsdp else "DDP"
