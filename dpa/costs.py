"""What a recipe costs: floating-point operations of a step, hours, memory. Plain arithmetic; imports nothing heavy.

    python -m dpa.recipes --show R --gpus 8 --gpu h100 --mfu 0.4     prints the estimate of a recipe

How operations are counted (1 multiply-add = 2): the forward pass costs 2 x matrix weights a token, and attention
4 x layers x heads x head_dim x context, of which causality leaves half. The backward pass costs the matrices once more
where they are frozen (gradients of the inputs alone) and twice more where they train; attention, whose two factors are
both activations, always twice. Logits count at supervised positions alone; the blind pass is forward only, over text
tokens only; the tower is forward only. What activation checkpointing computes again is work, but no model FLOP.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass, replace
from typing import Any

from dpa.errors import InputError
from dpa.methods import Stage
from dpa.recipes import Recipe

GIB = 2**30
CHUNK = 2**27  # logits that `dpa.scores` holds at a time on a GPU
FREE = 0.8  # of a device's memory, what an estimate may fill


@dataclass(frozen=True)
class Shape:
    """The sizes of a transformer that decide its cost; counts leave out norms and biases (below 0.2 %)."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int  # 0: a vision tower
    tied: bool  # one matrix for embedding and lm_head
    mlp_matrices: int = 3  # gate, up, down; 2 without a gate

    @classmethod
    def from_config(cls, config: Any) -> Shape:
        """The shape of a transformers text (gated MLP assumed) or vision configuration, by its usual attributes."""
        heads, vocab = config.num_attention_heads, getattr(config, "vocab_size", None) or 0
        return cls(
            hidden=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            intermediate=config.intermediate_size,
            vocab=vocab,
            tied=bool(getattr(config, "tie_word_embeddings", False)),
            mlp_matrices=3 if vocab else 2,
        )

    @property
    def matrices(self) -> int:
        """Weights of the layers: what every token is multiplied with."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = 2 * self.hidden * queries + 2 * self.hidden * keys
        return self.layers * (attention + self.mlp_matrices * self.hidden * self.intermediate)

    @property
    def head(self) -> int:
        """Weights of lm_head, and as many of the embedding."""
        return self.vocab * self.hidden

    @property
    def num_parameters(self) -> int:
        """All weights; a tied lm_head counts once."""
        return self.matrices + self.head * (1 if self.tied else 2)

    def adapters(self, rank: int) -> int:
        """Weights of LoRA at that rank on every linear layer but lm_head."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        ends = 2 * (self.hidden + queries) + 2 * (self.hidden + keys)
        return self.layers * rank * (ends + self.mlp_matrices * (self.hidden + self.intermediate))


SHAPES = {  # from the models' public configurations
    "Qwen/Qwen2.5-1.5B-Instruct": Shape(1536, 28, 12, 2, 128, 8960, 151_936, tied=True),
    "Qwen/Qwen2.5-3B-Instruct": Shape(2048, 36, 16, 2, 128, 11_008, 151_936, tied=True),
    "Qwen/Qwen2.5-7B-Instruct": Shape(3584, 28, 28, 4, 128, 18_944, 152_064, tied=False),
    "Qwen/Qwen2.5-14B-Instruct": Shape(5120, 48, 40, 8, 128, 13_824, 152_064, tied=False),
    "Qwen/Qwen2.5-32B-Instruct": Shape(5120, 64, 40, 8, 128, 27_648, 152_064, tied=False),
    "meta-llama/Llama-3.1-8B-Instruct": Shape(4096, 32, 32, 8, 128, 14_336, 128_256, tied=False),
    "google/gemma-2-9b-it": Shape(3584, 42, 16, 8, 256, 14_336, 256_000, tied=True),
    "lmsys/vicuna-7b-v1.5": Shape(4096, 32, 32, 32, 128, 11_008, 32_000, tied=False),
}
TOWER = Shape(1024, 24, 16, 16, 64, 4096, 0, tied=True, mlp_matrices=2)  # CLIP ViT-L/14
TOWER_TOKENS = 577  # 24 x 24 patches of a picture of 336 px, and the class token
PICTURE_TOKENS = 576  # of which the LLM reads the patches
ANYRES_TILES = 5  # assumed: the whole picture and four tiles


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a step, by part."""

    forward: float  # seen pass, connector included
    backward: float
    blind: float
    vision: float  # the tower
    recomputed: float  # by activation checkpointing

    @property
    def model(self) -> float:
        """Model FLOPs, the numerator of MFU: without what is computed again."""
        return self.forward + self.backward + self.blind + self.vision

    @property
    def executed(self) -> float:
        """All that is computed when every layer's activations are checkpointed."""
        return self.model + self.recomputed


def _attention(shape: Shape, tokens: float, context: float) -> float:
    """FLOPs of scores and weighted values for `tokens`, each of which sees `context` positions on average."""
    return 4.0 * shape.layers * shape.heads * shape.head_dim * context * tokens


def step_flops(
    llm: Shape,
    stage: Stage,
    *,
    text_tokens: float,
    supervised_tokens: float,
    mean_length: float,
    picture_tokens: float = 0,
    blind_tokens: float = 0,
    pictures: float = 0,
    lora_rank: int | None = None,
    tower: Shape = TOWER,
    tower_tokens: int = TOWER_TOKENS,
) -> Flops:
    """FLOPs of one step of a stage.

    Counts are those of the whole step, padding left out: text_tokens and picture_tokens of the seen pass,
    supervised_tokens, blind_tokens of the blind pass (0: the rule needs none), pictures (tiles of AnyRes each).
    mean_length: tokens a sample in the seen pass; for samples of unlike length the mean weighted by tokens is exact.
    lora_rank: of stage proxy; None: it trains all weights.
    """
    tokens = text_tokens + picture_tokens
    matrices = 2.0 * llm.matrices * tokens
    attention = _attention(llm, tokens, mean_length / 2)
    head = 2.0 * llm.head * supervised_tokens
    is_lora = stage == "proxy" and lora_rank is not None
    adapters = 2.0 * llm.adapters(lora_rank or 0) * tokens if is_lora else 0.0
    connector_in, connector_out = 2.0 * tower.hidden * llm.hidden, 2.0 * llm.hidden * llm.hidden
    connector = (connector_in + connector_out) * picture_tokens
    passes = 1 if stage == "connector" or is_lora else 2  # frozen matrices: gradients of their inputs alone
    backward = passes * (matrices + head) + 2 * attention + 2 * adapters
    backward += connector + connector_out * picture_tokens  # the tower below it is frozen
    blind = 0.0
    if blind_tokens:
        context = mean_length * blind_tokens / tokens / 2
        blind = 2.0 * llm.matrices * blind_tokens + _attention(llm, blind_tokens, context) + head
    used = replace(tower, layers=tower.layers - 1)  # features are those of the last layer but one
    vision = 2.0 * used.matrices * tower_tokens + _attention(used, tower_tokens, tower_tokens)
    return Flops(
        forward=matrices + attention + head + adapters + connector,
        backward=backward,
        blind=blind,
        vision=pictures * vision,
        recomputed=matrices + attention + adapters,
    )


# Dense bf16 peak by NVIDIA's data sheets, FLOP/s; the first pattern that a device's name matches. Laptop chips and
# parts not listed have none rather than a wrong one.
PEAKS = (
    (r"laptop|max-q", None),
    (r"\bh[12]00 nvl\b", 835e12),
    (r"\bh100 pcie\b", 756e12),
    (r"\bh[12]00\b", 989e12),
    (r"\ba100\b", 312e12),
    (r"\bl40s\b", 362e12),
    (r"\brtx 4090(?! d)\b", 165e12),
)
GPU_MEMORY = {"h100": 79.0, "h200": 139.0, "a100": 79.0}  # GiB that a process can use of 80, 141 and 80 GB


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 peak of a device in FLOP/s by its name ("NVIDIA H100 80GB HBM3", "h100"); None if unknown."""
    name = device_name.lower()
    return next((peak for pattern, peak in PEAKS if re.search(pattern, name)), None)


@dataclass(frozen=True)
class DataSet:
    """Size of a data set and, all three assumed, tokens of a record: mean text, mean supervised, text of a long one."""

    records: int
    text: int
    supervised: int
    long_text: int
    source: str


_UNKNOWN = "as used by the paper unknown"
DATA = {
    "blip_laion_cc_sbu_558k.json": DataSet(558_128, 20, 20, 100, "as published"),
    "share-captioner_coco_lcs_sam_1246k_1107.json": DataSet(1_246_000, 190, 190, 600, f"by its name; {_UNKNOWN}"),
    "pixmo_cap.parquet": DataSet(717_000, 230, 230, 1000, f"about, as published; {_UNKNOWN}"),
    "Cambrian737k.jsonl": DataSet(737_000, 250, 110, 4000, "by its name"),
}
ASSUMPTIONS = (
    "tokens of a record: text BLIP-LCS 20, ShareGPT4V-PT 190, PixMo-Cap 230, Cambrian 250 (110 supervised); one "
    "picture of 576 tokens each (AnyRes: five tiles, 2,880)",
    "hours: model FLOPs, recomputation not counted, at --mfu of the dense bf16 peak, without padding, loading "
    "and saving; stage proxy on short captions is bound by its many small steps and takes longer",
    "memory: bf16 weights and gradients, float32 master weights and Adam moments of what trains, activations of one "
    "micro-batch of long records (text of 100, 600 and 1,000 tokens, for Cambrian up to the stage's length), a chunk of "
    "logits; activations are checkpointed (*) only where they would fill more than 80 % of a GPU; buffers come on top",
)


def sources_of(recipe: Recipe, stage: Stage) -> list[tuple[DataSet, int]]:
    """The data sets of a stage and how many records are drawn from each; [] where one is not on record here."""
    files = (recipe.instructions,) if stage == "instruct" else recipe.captions
    cap = (recipe.caption_count if stage != "instruct" else None) or sys.maxsize
    known = all(file in DATA for file in files)
    return [(DATA[file], min(DATA[file].records, cap)) for file in files] if known else []


def records_of(recipe: Recipe, stage: Stage) -> int | None:
    """How many records a stage trains on; None where the size of its data is not on record here."""
    return round(sum(drawn for _, drawn in sources_of(recipe, stage)) * recipe.fraction) or None


def num_steps(recipe: Recipe, stage: Stage) -> int | None:
    """Optimiser steps of a stage; None where they follow from data whose size is not on record here."""
    settings, records = recipe.settings(stage), records_of(recipe, stage)
    if settings.max_steps > 0:
        return settings.max_steps
    return None if records is None else math.ceil(math.ceil(records / settings.global_batch) * settings.epochs)


def batch_plan(recipe: Recipe, stage: Stage, gpus: int) -> tuple[int, int]:
    """(micro-batch, accumulation) with micro-batch x GPUs x accumulation = global batch.

    The micro-batch is the largest that divides and is not above the recipe's. InputError when the GPUs do not divide the global batch.
    """
    total = recipe.settings(stage).global_batch
    if gpus < 1 or total % gpus:
        raise InputError(
            f"--gpus {gpus} does not divide the global batch of {total} of {recipe.name!r}; give a divisor"
        )
    limit = recipe.settings(stage).micro_batch or total
    micro = max(size for size in range(1, limit + 1) if total % (size * gpus) == 0)
    return micro, total // (micro * gpus)


@dataclass(frozen=True)
class StageEstimate:
    """The cost of one stage: FLOPs of all its steps, hours, and GiB a GPU by how the states are shared out."""

    records: int
    steps: int
    text_tokens: float  # a record, assumed
    picture_tokens: float
    supervised_tokens: float
    model_flops: float
    recomputed_flops: float
    gpu_hours: float
    hours: float
    memory: dict[str, float]
    checkpointed: list[str]  # of these ways, with activation checkpointing: it would not fit without


def memory_gib(
    recipe: Recipe,
    stage: Stage,
    gpus: int,
    samples: int,
    length: float,
    supervised: float,
    *,
    llm: Shape | None = None,
    checkpointing: bool | None = None,
) -> dict[str, float]:
    """GiB that each of `gpus` holds in a stage under DDP, ZeRO-2 and ZeRO-3 (FSDP2 alike).

    The micro-batch: `samples` of `length` tokens each, `supervised` of them with a label. llm: its shape where the
    recipe's LLM is not on record; checkpointing: of activations; None: as the recipe allows.
    """
    llm = llm or SHAPES[recipe.llm]
    checkpointing = recipe.activation_checkpointing if checkpointing is None else checkpointing
    rank = recipe.lora_rank if stage == "proxy" else None
    connector = TOWER.hidden * llm.hidden + llm.hidden**2
    if stage == "connector":
        trained, frozen = connector, llm.num_parameters + TOWER.matrices
    elif rank is not None:
        trained, frozen = llm.adapters(rank), llm.num_parameters
    else:
        trained = llm.num_parameters + (connector if stage == "instruct" else 0)
        frozen = TOWER.matrices if stage == "instruct" else 0
    weights, states = 2.0 * (trained + frozen), 14.0 * trained  # bf16; gradient 2, master 4, two moments 8
    queries, keys = llm.heads * llm.head_dim, llm.kv_heads * llm.head_dim
    tokens = samples * length
    # what a layer keeps for its backward pass, inputs of its matrices in bf16 and two norms in float32; below, twice
    # that with its gradients
    layer = tokens * (2.0 * (6 * llm.hidden + 2 * queries + 2 * keys + 4 * llm.intermediate) + 8.0 * llm.hidden)
    if recipe.attention == "eager":  # scores, their cap and the softmax of every pair of positions: 2 + 2 + 4 + 2 bytes
        layer += 10.0 * samples * llm.heads * length**2
    inputs = 2.0 * tokens * llm.hidden * llm.layers
    activations = inputs + 2 * layer if checkpointing else llm.layers * layer
    # a chunk: bf16 logits, float32 copies of logits and softmax; Gemma-2's cap adds one
    logits = (14.0 if "gemma-2" in recipe.llm else 10.0) * min(samples * supervised * llm.vocab, CHUNK)
    gathered = 2.0 * max(2 * llm.matrices // llm.layers, llm.head)  # ZeRO-3 holds a layer, the next, or the embedding
    held = {
        "DDP": weights + states,
        "ZeRO-2": weights + states / gpus,
        "ZeRO-3": (weights + states) / gpus + (gathered if gpus > 1 else 0),
    }
    return {how: (bytes_ + activations + logits) / GIB for how, bytes_ in held.items()}


def asks_for_checkpointing(
    recipe: Recipe, stage: Stage, llm: Shape, how: str, gpus: int, samples: int, longest: tuple[int, int], gib: float
) -> bool:
    """Whether activations have to be computed anew on devices of `gib` GiB: a micro-batch of `samples`, each of `longest`
    (tokens, those of the picture among them), would fill more than `FREE` of it; how: as in `memory_gib`.
    """
    length, picture = longest
    held = memory_gib(recipe, stage, gpus, samples, length, max(length - picture, 0), llm=llm, checkpointing=False)
    return held[how] > FREE * gib


def estimate(recipe: Recipe, gpus: int = 8, gpu: str = "h100", mfu: float = 0.4) -> dict[Stage, StageEstimate] | None:
    """The cost of each stage of a recipe on `gpus` devices; None where its LLM or its data are not on record here.

    mfu: model FLOPs over the device's peak, recomputation not counted, as in the log of a training. InputError for an unknown device.
    """
    peak = peak_flops(gpu)
    if peak is None:
        raise InputError(f"--gpu {gpu}: its peak is not on record; choose one of {', '.join(GPU_MEMORY)}")
    if not 0 < mfu <= 1:
        raise InputError(f"--mfu should be above 0 and at most 1, got {mfu:g}")
    if recipe.llm not in SHAPES or any(records_of(recipe, stage) is None for stage in recipe.stages):
        return None
    return {stage: _stage_estimate(recipe, stage, gpus, peak * mfu, GPU_MEMORY[gpu]) for stage in recipe.stages}


def _stage_estimate(recipe: Recipe, stage: Stage, gpus: int, speed: float, device: float) -> StageEstimate:
    llm, settings, sources = SHAPES[recipe.llm], recipe.settings(stage), sources_of(recipe, stage)
    records, steps = records_of(recipe, stage) or 0, num_steps(recipe, stage) or 0
    drawn = sum(n for _, n in sources)
    text, supervised = sum(n * s.text for s, n in sources) / drawn, sum(n * s.supervised for s, n in sources) / drawn
    tiles = 0 if stage == "proxy" else ANYRES_TILES if recipe.anyres else 1
    pictures = tiles * PICTURE_TOKENS
    seen = records * settings.epochs if settings.max_steps <= 0 else steps * settings.global_batch
    rank = recipe.lora_rank if stage == "proxy" else None
    flops = step_flops(
        llm,
        stage,
        text_tokens=seen * text,
        picture_tokens=seen * pictures,
        supervised_tokens=seen * supervised,
        blind_tokens=seen * text if recipe.weighting_of(stage).rule != "none" else 0,
        pictures=seen * tiles,
        mean_length=text + pictures,
        lora_rank=rank,
    )
    gpu_hours = flops.model / speed / 3600
    long_text = min(max(s.long_text for s, _ in sources), settings.max_length - pictures)
    samples, _ = batch_plan(recipe, stage, gpus)
    batch = (recipe, stage, gpus, samples, pictures + long_text, long_text * supervised / text)
    memory, small = memory_gib(*batch, checkpointing=False), memory_gib(*batch)
    checkpointed = [how for how, gib in memory.items() if recipe.activation_checkpointing and gib > FREE * device]
    memory |= {how: small[how] for how in checkpointed}
    hours, recomputed = gpu_hours / gpus, flops.recomputed
    return StageEstimate(
        records, steps, text, pictures, supervised, flops.model, recomputed, gpu_hours, hours, memory, checkpointed
    )
