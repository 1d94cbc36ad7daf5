"""The frozen tower's features of all pictures, computed once and kept on disk: for runs of many epochs on few pictures.

`python -m dpa.train --cache blind vision` (the lab's default) fills OUTPUT/vision before stages 2 and 3, and every run with the
same tower over the same pictures reads it in place of opening pictures. 2.4 MB a picture for CLIP ViT-L/14 at 336
pixels in float32, so it is nothing for half a million of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dpa.cache import RowCache, circumstances, filled
from dpa.data import Samples
from dpa.images import image_path
from dpa.lineage import file_hash

if TYPE_CHECKING:
    from dpa.trainer import DPATrainer

FOLDER = "vision"
PICTURES = 64  # of a batch
CODE = ("data.py", "images.py", "processing.py", "vision_cache.py")  # decides the numbers, and so the key


def use(trainer: DPATrainer, root: Path, tower_hash: str) -> RowCache:
    """Have a trainer's samples carry the tower's features, filling what is missing; every process calls it."""
    arguments, samples, model = trainer.args, trainer.train_dataset, trainer.model
    assert isinstance(samples, Samples) and model is not None
    processes, dtype = (arguments.process_index, arguments.world_size), str(model.model.vision_tower.dtype)
    key = {"tower": tower_hash, "layer": model.config.vision_feature_layer} | circumstances(
        Path(__file__).parent, CODE, dtype, arguments, model.model.vision_tower.config
    )
    key["picture"] = json.loads(json.dumps(samples.processor.image_processor.to_dict(), default=str))

    def opened() -> tuple[RowCache, Callable[[], None]]:
        cache = open_cache(root / FOLDER, key, samples, model)
        return cache, lambda: fill_share(cache)

    def fill_share(cache: RowCache) -> None:
        fill(cache, samples, model, processes, arguments.device, trainer.accelerator.autocast)
        if trainer.shards_weights:  # the engine shards the model from the CPU
            model.model.vision_tower.to("cpu")

    samples.features = filled(root / FOLDER, FOLDER, key, processes, trainer.accelerator.wait_for_everyone, opened)
    take_features(model)
    return samples.features


def open_cache(root: Path, key: dict[str, Any], samples: Samples, model: Any) -> RowCache:
    """The cache of the samples' pictures, by their contents: [P, D] each, P with the class token if the tower has one."""
    digest, rows = hashlib.sha256(), []
    places = num_places(model)
    for record in samples.records:
        picture = None if record.image is None else file_hash(image_path(record.images, record.image, record.where))
        digest.update(f"{picture}\n".encode())
        rows.append(0 if picture is None else places)
    return RowCache.open(
        root, FOLDER, key | {"pictures": digest.hexdigest()}, rows, model.model.vision_tower.config.hidden_size
    )


@torch.no_grad()
def fill(
    cache: RowCache,
    samples: Samples,
    model: Any,
    share: tuple[int, int],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> None:
    """Compute what is missing, of the share (number, of how many processes) of this one; batches follow from the data."""
    tower, layer, missing = model.model.vision_tower.to(device), model.config.vision_feature_layer, set(cache.missing())
    pictured = [index for index in range(len(samples)) if cache.offsets[index] < cache.offsets[index + 1]]
    batches = [pictured[start : start + PICTURES] for start in range(0, len(pictured), PICTURES)]
    batches = [batch for batch in batches[share[0] :: share[1]] if not missing.isdisjoint(batch)]
    title = f"features of {len(missing):,} pictures"
    for batch in tqdm(batches, title, unit="batch", leave=False, delay=2, disable=share[0] > 0):
        pixels = torch.stack([samples[index]["pixel_values"] for index in batch]).to(device, tower.dtype)
        with autocast():
            features = tower(pixels, output_hidden_states=True).hidden_states[layer].float().cpu().numpy()
        for index, values in zip(batch, features, strict=True):
            if index in missing:
                cache.write(index, values)


def num_places(model: Any) -> int:
    """Features of a picture, P: its patches, and the class token if the tower has one."""
    tower = model.model.vision_tower.config
    return (tower.image_size // tower.patch_size) ** 2 + (model.config.vision_feature_select_strategy == "default")


def take_features(model: Any) -> None:
    """Let the model's tower pass on features [I, P, D] that stand where pixels [I, 3, S, S] would."""
    tower, layer = model.model.vision_tower, model.config.vision_feature_layer
    look = tower.forward
    model.model.features_shape = (num_places(model), tower.config.hidden_size)

    def forward(pixel_values: Tensor, **options: Any) -> Any:
        if pixel_values.dim() != 3:
            return look(pixel_values, **options)
        states = {layer: pixel_values.to(tower.dtype)}
        return BaseModelOutputWithPooling(hidden_states=states)

    tower.forward = forward
