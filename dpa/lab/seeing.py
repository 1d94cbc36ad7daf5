"""What the lab's vision tower sees and how well: pretraining on pictures alone, with linear read-outs of each cell."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from dpa.lab.reading import schedule
from dpa.lab.world import COLOURS, DEPTHS, GRID, IMAGE_SIZE, KINDS, SIZES, draw_scene, render


def tower_config():
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=IMAGE_SIZE // GRID,
        projection_dim=96,
    )


TARGETS = {"kind": KINDS, "colour": tuple(COLOURS), "size": SIZES, "depth": DEPTHS}
NOTHING = -100


def _pictures(seed: int, batch_size: int) -> Iterator[tuple]:
    """(pixel_values [B, 3, S, S], {attribute: [B, 9] index or NOTHING}, counts [B, kinds]) without end."""
    import torch

    processor = _image_processor()
    rng = random.Random(seed)
    while True:
        scenes = [draw_scene(rng) for _ in range(batch_size)]
        pixels = processor([render(scene) for scene in scenes], return_tensors="pt")["pixel_values"]
        targets = {name: torch.full((batch_size, GRID * GRID), NOTHING) for name in TARGETS}
        targets["kind"].fill_(len(KINDS))  # an empty cell is a kind of its own
        for row, scene in enumerate(scenes):
            for thing in scene.things:
                for name, values in TARGETS.items():
                    targets[name][row, thing.row * GRID + thing.column] = values.index(getattr(thing, name))
        counts = torch.tensor([[scene.count(kind) for kind in KINDS] for scene in scenes])
        yield pixels, targets, counts


def _image_processor():
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    return LlavaImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, do_pad=True
    )


def read_outs():
    """Linear read-outs: each attribute from a cell's patch, the count of each kind from the pooled picture."""
    import torch

    width = tower_config().hidden_size
    sizes = {name: len(values) + (name == "kind") for name, values in TARGETS.items()}
    return torch.nn.ModuleDict(
        {name: torch.nn.Linear(width, n) for name, n in sizes.items()}
        | {"count": torch.nn.Linear(width, len(KINDS) * 5)}
    )


def pretrain_tower(*, steps: int, seed: int = 0, batch_size: int = 64, learning_rate: float = 1e-3, report: int = 500):
    """The vision tower after `steps` steps, the read-outs it was trained with, and its history [(step, loss, accuracy)].

    The read-outs stand on the layer that LLaVA takes its features from (the last but one); the counts on the pooled last
    one. No caption and no word of any style is involved.
    """
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import CLIPVisionModel

    torch.manual_seed(seed)
    tower, heads = CLIPVisionModel(tower_config()), read_outs()
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps))
    history, start = [], time.time()
    for step, (pixels, targets, counts) in enumerate(_pictures(seed, batch_size)):
        tower.train()
        outputs = tower(pixels, output_hidden_states=True)
        patches = outputs.hidden_states[-2][:, 1:]
        loss = sum(
            cross_entropy(heads[name](patches).flatten(0, 1), target.flatten(), ignore_index=NOTHING)
            for name, target in targets.items()
        )
        loss = loss + 0.3 * cross_entropy(heads["count"](outputs.pooler_output).view(-1, 5), counts.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if (step + 1) % report == 0 or step + 1 == steps:
            accuracy = seeing_accuracy(tower, heads)
            history.append((step + 1, loss.item(), accuracy))
            print(
                f"tower step {step + 1}/{steps} loss {loss.item():.3f} {time.time() - start:.0f}s "
                + " ".join(f"{k} {v:.3f}" for k, v in accuracy.items()),
                flush=True,
            )
        if step + 1 == steps:
            return tower.eval(), heads.eval(), history


def seeing_accuracy(tower, heads, *, batches: int = 4, seed: int = 10_007) -> dict[str, float]:
    """Share of cells (with something in them, but for `kind`) whose attribute the linear read-out names, unseen scenes."""
    import torch

    tower.eval()
    right, total = dict.fromkeys(TARGETS, 0), dict.fromkeys(TARGETS, 0)
    with torch.no_grad():
        for _, (pixels, targets, _) in zip(range(batches), _pictures(seed, 64), strict=False):
            patches = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
            for name, target in targets.items():
                asked = targets["colour"] != NOTHING
                right[name] += int((heads[name](patches).argmax(-1) == target)[asked].sum())
                total[name] += int(asked.sum())
    return {name: right[name] / total[name] for name in TARGETS}
