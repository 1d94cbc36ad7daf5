"""What a weighted step costs beside a plain one, stock transformers and the released formulation: same weights, same run.

    python -m benchmarks.speed [--hidden 512 --layers 8 --vocab 32000 --image-tokens 576 --text-tokens 30 --batch 1]
                               [--trainable connector|all] [--device cuda] [--json]

Steps (forward and backward, no optimiser, which all share) of four formulations are interleaved and compared pair by
pair; medians. `stock`: transformers' LLaVA with its own loss. `vanilla`, `cmo`: `dpa.loss`. `released`: what the released
code computes, written here plainly: a second full-length pass with the image masked in attention, and float32 logits at
every position, image positions included. Peak memory above the weights is measured of each in a process of its own.
Ratios say something anywhere, seconds on a GPU alone.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dpa.errors import InputError, command
from dpa.lineage import provenance, write_json

FORMULATIONS = ("stock", "vanilla", "cmo", "released")
RATIOS = (("cmo", "vanilla"), ("cmo", "released"), ("vanilla", "stock"))
PATCH = 2  # pixels; the tower is small, and the same in all


def build(options: argparse.Namespace) -> tuple[Any, dict]:
    """(a LLaVA model with random weights, one batch: a token, the picture, a caption; all of it supervised)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel

    from dpa.lab.small import build_tokenizer
    from dpa.model import compose, freeze_for

    side = math.isqrt(options.image_tokens)
    if side * side != options.image_tokens or options.hidden % 64 or options.vocab < 300:
        raise InputError("--image-tokens should be a square, --hidden a multiple of 64, --vocab at least 300")
    torch.manual_seed(0)
    with torch.device(options.device):
        config = AutoConfig.for_model(
            "llama",
            vocab_size=options.vocab,
            hidden_size=options.hidden,
            intermediate_size=round(2.75 * options.hidden),
            num_hidden_layers=options.layers,
            num_attention_heads=options.hidden // 64,
            num_key_value_heads=options.hidden // 64,
            max_position_embeddings=8192,
        )
        dtype = torch.bfloat16 if options.device.startswith("cuda") else torch.float32
        llm = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        tower = CLIPVisionModel(CLIPVisionConfig(image_size=PATCH * side, patch_size=PATCH, **sizes)).to(dtype)
    model = compose(llm, tower, build_tokenizer(["a"])).to(options.device).train()
    freeze_for(model, "connector" if options.trainable == "connector" else "instruct")
    generator = torch.Generator().manual_seed(1)
    length = 1 + options.image_tokens + options.text_tokens
    ids = torch.randint(270, options.vocab, (options.batch, length), generator=generator)
    labels = ids.clone()
    ids[:, 1 : 1 + options.image_tokens] = model.config.image_token_id
    labels[:, : 1 + options.image_tokens] = -100
    pixels = torch.randn(options.batch, 3, PATCH * side, PATCH * side, generator=generator).to(dtype)
    batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    return model, {name: tensor.to(options.device) for name, tensor in batch.items()}


def released_loss(model: Any, batch: Mapping[str, Any]) -> Any:
    """The released formulation's CMO loss of a batch with all its tensors of tokens x vocabulary."""
    import torch
    from torch.nn.functional import cross_entropy

    from dpa.methods import Weighting
    from dpa.weighting import weights

    ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
    image = ids == model.config.image_token_id
    outputs = model(input_ids=ids, pixel_values=batch["pixel_values"], attention_mask=mask, use_cache=False)
    logits = outputs.logits.float()[:, :-1]
    targets = labels[:, 1:]
    with torch.no_grad():
        features = outputs.image_hidden_states
        embeds = model.get_input_embeddings()(ids)
        embeds = embeds.masked_scatter(image[..., None], features.to(embeds.dtype))
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        blind = model(
            inputs_embeds=embeds, attention_mask=mask * ~image, position_ids=positions, use_cache=False
        ).logits.float()[:, :-1]
        picked = targets.clamp(min=0)[..., None]
        relevance = (logits.softmax(-1).gather(-1, picked) - blind.softmax(-1).gather(-1, picked))[..., 0]
        weight = weights(relevance, targets != -100, Weighting("cmo", 0.05, 0.5, form="released"))
    entropies = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none")
    return (weight.flatten() * entropies).sum()


def losses(model: Any, batch: dict) -> dict[str, Callable[[], Any]]:
    """{formulation: a function that computes its loss}."""
    from dpa.loss import batch_loss
    from dpa.methods import CMO, NONE

    return {
        "stock": lambda: model(**batch, use_cache=False).loss,
        "vanilla": lambda: batch_loss(model, batch, NONE).mean,
        "cmo": lambda: batch_loss(model, batch, CMO).mean,
        "released": lambda: released_loss(model, batch),
    }


def seconds(options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each formulation's steps, in the order they were taken, turn by turn."""
    import torch

    model, batch = build(options)
    functions = losses(model, batch)
    taken: dict[str, list[float]] = {name: [] for name in FORMULATIONS}
    cuda = options.device.startswith("cuda")
    for turn in range(options.steps + 1):
        for name in FORMULATIONS:
            if cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            functions[name]().backward()
            if cuda:
                torch.cuda.synchronize()
            if turn:  # the first turn warms up
                taken[name].append(time.perf_counter() - start)
            model.zero_grad()
    return taken


def peak_memory(options: argparse.Namespace, name: str) -> float | None:
    """Peak memory in MiB of two steps of a formulation above what stands there before them; None where it cannot be told."""
    import torch

    model, batch = build(options)
    function = losses(model, batch)[name]
    if options.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        except OSError:
            return None
        before = _resident("VmRSS")
    for _ in range(2):
        function().backward()
        model.zero_grad()
    peak = torch.cuda.max_memory_allocated() if options.device.startswith("cuda") else _resident("VmHWM")
    return (peak - before) / 2**20


def _resident(field: str) -> int:
    """Bytes of a memory field of this process (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def measure(options: argparse.Namespace) -> dict:
    """{"ratios", "seconds" (medians), "memory_mib", "shape"}; a ratio is the median over turns of a pair's quotient."""
    taken = seconds(options)
    memory: dict[str, float | None] = {}
    for name in FORMULATIONS:
        arguments = [word for word in sys.argv[1:] if word != "--json"] if options.given is None else options.given
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.speed", *arguments, "--memory-of", name], capture_output=True, text=True
        )
        if done.returncode:
            raise InputError(f"the memory of {name!r} could not be measured: {done.stderr.strip().splitlines()[-1:]}")
        memory[name] = json.loads(done.stdout)
    ratios: dict[str, float] = {}
    for one, other in RATIOS:
        pairs = [a / b for a, b in zip(taken[one], taken[other], strict=True)]
        ratios[f"{one}/{other}"] = statistics.median(pairs)
        a, b = memory[one], memory[other]
        if a is not None and b:
            ratios[f"{one}/{other}_memory"] = a / b
    shape = {k: v for k, v in vars(options).items() if k not in ("json", "publish", "memory_of", "given")}
    medians = {name: statistics.median(values) for name, values in taken.items()}
    return {"ratios": ratios, "seconds": medians, "memory_mib": memory, "shape": shape}


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--image-tokens", type=int, default=576)
    parser.add_argument("--text-tokens", type=int, default=30)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--trainable", choices=("connector", "all"), default="connector")
    parser.add_argument("--steps", type=int, default=7, help="turns measured, after one to warm up")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object alone")
    parser.add_argument("--publish", type=Path, metavar="FILE", help="also write the record with its manifest")
    parser.add_argument("--memory-of", choices=FORMULATIONS, help=argparse.SUPPRESS)  # how each gets its own process
    options = parser.parse_args(arguments)
    options.given = None if arguments is None else [word for word in arguments if word != "--json"]
    if options.memory_of:
        print(json.dumps(peak_memory(options, options.memory_of)))
        return 0
    record = measure(options)
    if options.publish:
        options.publish.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.publish, record | {"provenance": provenance()})
    if options.json:
        print(json.dumps(record))
        return 0
    print(f"{'ratio':<18}{'time':>8}{'memory':>10}")
    for one, other in RATIOS:
        key = f"{one}/{other}"
        memory = record["ratios"].get(f"{key}_memory")
        print(f"{key:<18}{record['ratios'][key]:>8.3f}" + (f"{memory:>10.3f}" if memory is not None else ""))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
