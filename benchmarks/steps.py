"""Stage-2 and stage-3 steps at a recipe's true shape with random weights: seconds, tokens/s, MFU, peak memory.

    python -m benchmarks.steps --recipe qwen2.5-7b_sharegpt4v --device cuda [--publish results/gpu_steps]
    python -m benchmarks.steps --recipe R --device cpu --layers 2 --hidden 64 --tower-layers 2    rehearsal on a laptop

Random weights cost what trained ones cost. One device holds it all: weights, gradients and Adam's moments in bf16,
where a training on 8 GPUs shares float32 ones; the arithmetic of a step is the same. Beside the measured figures stand
those of `dpa.costs`, which `python -m dpa.recipes --show` tells. Times say something on a GPU alone.
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
PATCH = 2  # pixels, of the tower of `small`
SMALL_TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}


def build(
    chosen: Recipe,
    *,
    device: str,
    dtype: Any,
    layers: int | None = None,
    hidden: int | None = None,
    tower_layers: int | None = None,
) -> Any:
    """The recipe's LLaVA model (576 image tokens) with random weights in the torch `dtype` on the device.

    layers, hidden: fewer layers of the LLM, a narrower one; tower_layers: so many of a small tower in place of CLIP
    ViT-L/14. None: the true size. InputError for an LLM whose shape is not on record.
    """
    import torch
    from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel

    from dpa.lab.small import build_tokenizer, family_config
    from dpa.model import compose

    sizes = SMALL_TOWER | {"num_hidden_layers": tower_layers} if tower_layers else TOWER
    with torch.device(device):
        torch.manual_seed(0)
        config = family_config(chosen.llm, layers=layers, hidden=hidden)
        llm = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=chosen.attention)
        vision = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=336, patch_size=14)).to(dtype)
        model = compose(llm, vision, build_tokenizer(["a"]), anyres=False)
    return model.to(device)


def small(side: int, hidden: int, layers: int, vocab: int, *, device: str, dtype: Any) -> Any:
    """A LLaVA model of the Llama class in these sizes, random weights, a small tower; a picture is side x side tokens.

    hidden: a multiple of 64, the size of a head. vocab: above 270, below which the special tokens are.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel

    from dpa.lab.small import build_tokenizer
    from dpa.model import compose

    torch.manual_seed(0)
    with torch.device(device):
        config = AutoConfig.for_model(
            "llama",
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=round(2.75 * hidden),
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=hidden // 64,
            max_position_embeddings=8192,
        )
        llm = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=PATCH * side, patch_size=PATCH)).to(dtype)
    return compose(llm, vision, build_tokenizer(["a"])).to(device)


def checkpoint_activations(model: Any) -> None:
    """Activation checkpointing of a LLaVA model, which computes every layer again in the backward pass.

    transformers also has the embeddings ask for gradients, the frozen tower's too, and would then send a backward pass
    through the tower; that is for reentrant checkpointing alone, so it is taken back.
    """
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.disable_input_require_grads()


def batch_of(
    model: Any, *, samples: int, text_tokens: int, supervised_tokens: int, lead: int = 0, seed: int = 0
) -> dict[str, Any]:
    """One micro-batch of random samples: `lead` tokens, a picture, `text_tokens` tokens, the last of them with labels.

    On the model's device: {"input_ids", "labels", "attention_mask": [samples, lead + picture + text_tokens],
    "pixel_values": [samples, 3, S, S]}.
    """
    import torch

    config, number = model.config, model.config.image_seq_length
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(270, config.text_config.vocab_size, (samples, lead + number + text_tokens), generator=generator)
    ids[:, lead : lead + number] = config.image_token_id  # below 270, as all special tokens are
    labels = torch.full_like(ids, -100)
    labels[:, -supervised_tokens:] = ids[:, -supervised_tokens:]
    side = config.vision_config.image_size
    pixels = torch.randn(samples, 3, side, side, generator=generator).to(model.dtype)
    batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def measure(chosen: Recipe, stage: Stage, options: argparse.Namespace) -> dict:
    """The figures of one stage, medians over `--steps` steps after two to warm up."""
    import torch

    from benchmarks.projection import step_cost, utilisation
    from dpa.costs import memory_gib, peak_flops
    from dpa.loss import batch_loss
    from dpa.model import freeze_for

    cuda = options.device.startswith("cuda")
    model = build(
        chosen,
        device=options.device,
        dtype=torch.bfloat16 if options.dtype == "bf16" else torch.float32,
        layers=options.layers,
        hidden=options.hidden,
        tower_layers=options.tower_layers,
    ).train()
    freeze_for(model, stage)
    if chosen.activation_checkpointing:
        checkpoint_activations(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=cuda)
    text, supervised = options.text_tokens, options.supervised_tokens
    batch = batch_of(model, samples=options.micro_batch, text_tokens=text, supervised_tokens=supervised)
    weighting = chosen.weighting_of(stage)
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
    middle, length = statistics.median(seconds[2:]), text + model.config.image_seq_length
    flops = step_cost(
        model.config,
        stage,
        samples=options.micro_batch,
        text_tokens=text,
        supervised_tokens=supervised,
        blind_tokens=text if weighting.rule != "none" else 0,
    )
    peak = peak_flops(torch.cuda.get_device_name()) if cuda else None
    used = utilisation(flops.model, middle, options.micro_batch * length, peak=peak)
    figures = {
        "seconds_a_step": middle,
        "seconds_all": seconds[2:],
        "samples_per_s": options.micro_batch / middle,
        "tokens_per_s": used["tokens_per_s"],
        "model_flops_a_step": flops.model,
        "executed_flops_a_step": flops.executed if chosen.activation_checkpointing else flops.model,
        "weights_gib": weights / 2**30,
        "loss": loss.mean.item(),
    }
    if options.layers is None and options.hidden is None:  # the estimate has float32 states, 8 bytes a weight more
        whole = memory_gib(chosen, stage, 1, options.micro_batch, length, supervised)["DDP"]
        figures["estimated_gib"] = whole - 8.0 * sum(p.numel() for p in trained) / 2**30
    if cuda:
        figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if peak:
            figures["mfu"] = used["mfu"]
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
