"""Stage-2 and stage-3 steps at a recipe's true shape with random weights: seconds, tokens/s, MFU, peak memory.

    python -m benchmarks.steps --recipe qwen2.5-7b_sharegpt4v --device cuda [--publish results/gpu_steps]
    python -m benchmarks.steps --recipe R --device cpu --layers 2 --hidden 64 --tower-layers 2    rehearsal on a laptop

Random weights cost what trained ones cost. One device holds it all: weights, gradients and Adam's moments in bf16, where
a training on 8 GPUs shares float32 ones; the arithmetic of a step is the same. Beside the measured figures stand those of
`dpa.costs`, which `python -m dpa.recipes --show` tells. Times say something on a GPU alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from dpa.errors import InputError, command
from dpa.lineage import provenance, write_json
from dpa.methods import STAGES, Stage
from dpa.recipes import Recipe, recipe

TOWER = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}


def build(chosen: Recipe, options: argparse.Namespace) -> Any:
    """The recipe's LLaVA model with random weights on the device."""
    import torch
    from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel

    from dpa.lab.small import build_tokenizer, family_config
    from dpa.model import compose

    dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    tower = (
        TOWER if not options.tower_layers else {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    )
    layers = {"num_hidden_layers": options.tower_layers} if options.tower_layers else {}
    with torch.device(options.device):
        torch.manual_seed(0)
        config = family_config(chosen.llm, layers=options.layers, hidden=options.hidden)
        llm = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=chosen.attention)
        vision = CLIPVisionModel(CLIPVisionConfig(**tower | layers, image_size=336, patch_size=14)).to(dtype)
        model = compose(llm, vision, build_tokenizer(["a"]), anyres=False)
    return model.to(options.device)


def batch_of(model: Any, options: argparse.Namespace) -> dict:
    """One micro-batch: a picture, a prompt of `text - supervised` tokens and `supervised` labels in each sample."""
    import torch

    image, number = model.config.image_token_id, model.config.image_seq_length
    size, text = options.micro_batch, options.text_tokens
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30_000, (size, text + number), generator=generator).clamp(
        max=model.config.text_config.vocab_size - 1
    )
    ids[ids == image] = 999
    ids[:, :number] = image
    labels = torch.full_like(ids, -100)
    labels[:, -options.supervised_tokens :] = ids[:, -options.supervised_tokens :]
    pixels = torch.randn(size, 3, 336, 336, generator=generator).to(model.dtype)
    batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    return {name: tensor.to(options.device) for name, tensor in batch.items()}


def measure(chosen: Recipe, stage: Stage, options: argparse.Namespace) -> dict:
    """The figures of one stage, medians over `--steps` steps after two to warm up."""
    import torch

    from dpa.costs import Shape, memory_gib, peak_flops, step_flops
    from dpa.loss import batch_loss
    from dpa.model import freeze_for

    cuda = options.device.startswith("cuda")
    model = build(chosen, options).train()
    freeze_for(model, stage)
    if chosen.activation_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=cuda)
    batch, weighting = batch_of(model, options), chosen.weighting_of(stage)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(options.steps + 2):
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        loss = batch_loss(model, batch, weighting)
        loss.mean.backward()
        optimizer.step()
        optimizer.zero_grad()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    middle, number = statistics.median(seconds[2:]), model.config.image_seq_length * options.micro_batch
    text = options.text_tokens * options.micro_batch
    flops = step_flops(
        Shape.from_config(model.config.text_config),
        stage,
        text_tokens=text,
        picture_tokens=number,
        supervised_tokens=options.supervised_tokens * options.micro_batch,
        blind_tokens=text if weighting.rule != "none" else 0,
        pictures=options.micro_batch,
        mean_length=(text + number) / options.micro_batch,
        tower=Shape.from_config(model.config.vision_config),
        tower_tokens=model.config.image_seq_length + 1,
    )
    figures = {
        "seconds_a_step": middle,
        "seconds_all": seconds[2:],
        "samples_per_s": options.micro_batch / middle,
        "tokens_per_s": (text + number) / middle,
        "model_flops_a_step": flops.model,
        "executed_flops_a_step": flops.executed if chosen.activation_checkpointing else flops.model,
        "weights_gib": weights / 2**30,
        "loss": loss.mean.item(),
    }
    if options.layers is None and options.hidden is None:  # the estimate has float32 states, 8 bytes a weight more
        length = options.text_tokens + model.config.image_seq_length
        whole = memory_gib(chosen, stage, 1, options.micro_batch, length, options.supervised_tokens)["DDP"]
        figures["estimated_gib"] = whole - 8.0 * sum(p.numel() for p in trained) / 2**30
    if cuda:
        figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if peak := peak_flops(torch.cuda.get_device_name()):
            figures["mfu"] = flops.model / middle / peak
            figures["hardware_utilisation"] = figures["executed_flops_a_step"] / middle / peak
            figures["estimated_seconds_at_mfu_0.4"] = flops.model / (0.4 * peak)
    return figures


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.steps", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", nargs="+", default=["qwen2.5-7b_sharegpt4v"])
    parser.add_argument("--stage", nargs="+", choices=STAGES[1:], default=list(STAGES[1:]))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--text-tokens", type=int, default=200, help="of a sample, picture apart")
    parser.add_argument("--supervised-tokens", type=int, default=190)
    parser.add_argument("--steps", type=int, default=9, help="measured, after two to warm up")
    parser.add_argument("--layers", type=int, help="fewer layers of the LLM than the recipe's")
    parser.add_argument("--hidden", type=int, help="a narrower LLM")
    parser.add_argument("--tower-layers", type=int, help="a small tower of so many layers")
    parser.add_argument("--publish", type=Path, metavar="DIR")
    options = parser.parse_args(arguments)
    if not 0 < options.supervised_tokens <= options.text_tokens:
        raise InputError("--supervised-tokens should be above 0 and at most --text-tokens")
    import torch

    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("no GPU here; --device cpu with --layers, --hidden and --tower-layers rehearses the command")
    report: dict[str, Any] = {}
    for name in options.recipe:
        for stage in options.stage:
            report[f"{name}/{stage}"] = figures = measure(recipe(name), stage, options)
            told = {key: value for key, value in figures.items() if key != "seconds_all"}
            print(f"{name} {stage}: " + ", ".join(f"{key} {value:.4g}" for key, value in told.items()), flush=True)
            if options.device.startswith("cuda"):
                torch.cuda.empty_cache()
    if options.publish:
        options.publish.mkdir(parents=True, exist_ok=True)
        shape = {key: str(value) for key, value in vars(options).items() if key != "publish"}
        write_json(options.publish / "steps.json", {"figures": report, "asked": shape, "provenance": provenance()})
    print(json.dumps({name: round(row["seconds_a_step"], 4) for name, row in report.items()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
