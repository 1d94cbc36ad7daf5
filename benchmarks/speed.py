"""What a weighted step costs beside a plain one, stock transformers and the released formulation, on the same weights.

    python -m benchmarks.speed [--hidden 512 --layers 8 --vocab 32000 --image-tokens 576 --text-tokens 30 --batch 1]
                               [--trainable connector|all] [--supervised-tokens N] [--activation-checkpointing]
                               [--json] [--publish FILE]
    python -m benchmarks.speed --shape qwen2.5-7b_blip-lcs --device cuda --batch 8 --text-tokens 200 --trainable all
                               [--beside FILE, published by a run with --trainable connector]

Steps (forward and backward, no optimiser, which all share) of five formulations are interleaved and compared pair by
pair; medians and quartiles. `stock`: transformers' LLaVA with its own loss. `vanilla`, `cmo`: `dpa.loss`. `cmo_cached`:
the same with p(token | text) in the batch, as `dpa.blind_cache` hands it over; only where the LLM is frozen
(`--trainable connector`), elsewhere it changes with every step. `released`: what the released code computes, written
here plainly: a second full-length pass with the image masked in attention, and float32 logits at every position, image
positions included. Peak memory above the weights, of tensors in use, is measured of each in a process of its own. What
could not be measured (memory ran out) is null, and `left_out` says why.

A sample is a token, a picture and text, whose last `--supervised-tokens` have labels: by default all of a caption
(`--trainable connector`), and of an instruction (`all`) the share that `dpa.costs` assumes of Cambrian-737K.

Ratios say something anywhere, best on an idle machine; seconds on a GPU alone. There the record also has utilisation,
against the data sheet and against a large matrix product measured in the same run, and, at the true size of
qwen2.5-7b, hours of a training (`benchmarks.projection`).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import projection, steps
from dpa.costs import SHAPES, sources_of
from dpa.errors import InputError, command, first_line
from dpa.lineage import provenance, write_json
from dpa.methods import Stage
from dpa.recipes import LLMS, QWEN_BLIP, Recipe, recipe

FORMULATIONS = ("stock", "vanilla", "cmo", "cmo_cached", "released")
CLOSE = ("vanilla", "cmo", "cmo_cached")  # nearly equal, and cheap: measured in more turns
MORE = 2  # turns of these alone after each turn of all
RATIOS = (("cmo_cached", "vanilla"), ("cmo", "vanilla"), ("cmo", "released"), ("vanilla", "stock"))
STAGE: dict[str, Stage] = {"connector": "connector", "all": "instruct"}
SMALL = (512, 8, 32_000)  # hidden, layers, vocabulary by default
UNTOLD = ("json", "publish", "beside", "rates", "memory_of", "given")  # options that are no part of what was measured
PICTURE = 576  # tokens of a picture by default, and at a recipe's shape
LEAD = 1  # text tokens before the picture


def chosen_shape(name: str) -> Recipe:
    """The recipe that `--shape` names, by its own name or by its LLM's. InputError for another."""
    return recipe(f"{name}_blip-lcs" if name in LLMS else name)


def supervised_share() -> float:
    """Share of an instruction's text tokens that have labels, as `dpa.costs` assumes it of stage 3's data."""
    ((data, _),) = sources_of(recipe(QWEN_BLIP), "instruct")
    return data.supervised / data.text


def build(options: argparse.Namespace) -> tuple[Any, dict]:
    """(a LLaVA model with random weights, float32 on a CPU, bf16 on a GPU, what the stage trains unfrozen; a batch)."""
    import torch

    dtype = torch.bfloat16 if options.device.startswith("cuda") else torch.float32
    if options.shape:
        sizes = {name: getattr(options, name) for name in ("layers", "hidden", "tower_layers")}
        model = steps.build(chosen_shape(options.shape), device=options.device, dtype=dtype, **sizes)
    else:
        side = math.isqrt(options.image_tokens)
        model = steps.small(side, options.hidden, options.layers, options.vocab, device=options.device, dtype=dtype)
    from dpa.model import freeze_for

    freeze_for(model.train(), STAGE[options.trainable])
    if options.activation_checkpointing:
        steps.checkpoint_activations(model)
    text, supervised = options.text_tokens, options.supervised_tokens
    counts = {"samples": options.batch, "text_tokens": text, "supervised_tokens": supervised}
    return model, steps.batch_of(model, **counts, lead=LEAD, seed=1)


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


def losses(model: Any, batch: dict, names: Sequence[str] = FORMULATIONS) -> dict[str, Callable[[], Any]]:
    """{formulation: a function that computes its loss}. The cached scores are computed here, not in the step."""
    from dpa.blind_cache import columns
    from dpa.loss import batch_loss
    from dpa.methods import CMO, NONE

    cached = batch | columns(model, batch) if "cmo_cached" in names else batch
    functions: dict[str, Callable[[], Any]] = {
        "stock": lambda: model(**batch, use_cache=False).loss,
        "vanilla": lambda: batch_loss(model, batch, NONE).mean,
        "cmo": lambda: batch_loss(model, batch, CMO).mean,
        "cmo_cached": lambda: batch_loss(model, cached, CMO).mean,
        "released": lambda: released_loss(model, batch),
    }
    return {name: functions[name] for name in names}


def turns(names: Sequence[str], number: int) -> list[list[str]]:
    """The formulations of each turn in their order: `number` turns of all, each followed by `MORE` of the close ones.

    The order is reversed from one turn to the next and rotated every two, so that a drift of the machine or what the
    step before left in its caches favours none: in 2 n turns each of n stands twice at every place.
    """
    close = [name for name in names if name in CLOSE]

    def order(group: Sequence[str], turn: int) -> list[str]:
        first = turn // 2 % len(group) if group else 0
        rotated = [*group[first:], *group[:first]]
        return rotated[::-1] if turn % 2 else rotated

    planned = []
    for turn in range(number):
        planned += [order(names, turn), *(order(close, MORE * turn + more) for more in range(MORE))]
    return [turn for turn in planned if turn]


def ran_out(error: Exception) -> bool:
    """Whether memory ran out, on a GPU or on the CPU."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def seconds(
    options: argparse.Namespace, names: Sequence[str]
) -> tuple[dict[str, dict[int, float]], dict[str, str], Any]:
    """({formulation: {turn: seconds of its step}}, {formulation that ran out of memory: reason}, the configuration)."""
    import torch

    cuda = options.device.startswith("cuda")
    model, batch = build(options)
    functions = losses(model, batch, names)
    taken: dict[str, dict[int, float]] = {name: {} for name in names}
    failed: dict[str, str] = {}
    for turn, order in enumerate([list(names), *turns(names, options.steps)]):  # the first turn warms up
        for name in order:
            if name in failed:
                continue
            try:
                if cuda:
                    torch.cuda.synchronize()
                start = time.perf_counter()
                functions[name]().backward()
                if cuda:
                    torch.cuda.synchronize()
                if turn:
                    taken[name][turn] = time.perf_counter() - start
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
                failed[name] = f"out of memory: {first_line(error)}"
                del taken[name]
            model.zero_grad()
    return taken, failed, model.config


def peak_memory(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Peak memory of two steps of a formulation, after one to warm up.

    {"above_mib": MiB above what stands there before them; "peak_gib": GiB in all, GPU alone; "failed": the reason where
    memory ran out}. None: cannot be told.
    """
    import torch

    cuda = options.device.startswith("cuda")
    found: dict[str, Any] = {"above_mib": None, "peak_gib": None, "failed": None}
    try:
        model, batch = build(options)
        function = losses(model, batch, [name])[name]

        def step() -> None:
            function().backward()
            model.zero_grad()

        step()  # what libraries keep for good is no formulation's own
        if not (cuda or _reset_peak()):
            return found
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if cuda else _resident("VmRSS")
        step()
        step()
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        return found | {"failed": f"out of memory: {first_line(error)}"}
    peak = torch.cuda.max_memory_allocated() if cuda else _resident("VmHWM")
    return found | {"above_mib": (peak - before) / 2**20, "peak_gib": peak / 2**30 if cuda else None}


def _reset_peak() -> bool:
    """Have this process give back what it has freed and count its peak from here; False where it cannot (not Linux)."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError, TypeError):
        return False
    return True


def _resident(field: str) -> int:
    """Bytes of a memory field of this process (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def memory_of(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """`peak_memory` in a process of its own. InputError when it fails of anything but memory."""
    command_line = [sys.executable, "-m", "benchmarks.speed", *options.given, "--memory-of", name]
    # glibc gives every freed tensor back, so that the peak is that of tensors in use, as on a GPU, and repeats to 1 %
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command_line, capture_output=True, text=True, env=environment)
    if done.returncode == -9:
        return {"above_mib": None, "peak_gib": None, "failed": "killed by the system, out of memory it seems"}
    if done.returncode:
        raise InputError(f"the memory of {name!r} could not be measured: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """{"ratios", "quartiles", "turns", "seconds" (medians), "memory_mib", "left_out", "shape"}, on a GPU also "gpu".

    A ratio is the median over turns of a pair's quotient, its quartiles are the quotients'; `_memory`: of the peaks.
    All of `RATIOS` and `FORMULATIONS` are there, null where not measured, for the reason in `left_out`.
    """
    left_out: dict[str, str] = {}
    if options.trainable == "all":
        left_out["cmo_cached"] = "the LLM trains, so p(token | text) changes with every step"
    peaks = {name: memory_of(options, name) for name in FORMULATIONS if name not in left_out}  # while the GPU is free
    left_out |= {name: peak["failed"] for name, peak in peaks.items() if peak["failed"]}
    if not (names := [name for name in FORMULATIONS if name not in left_out]):
        raise InputError(f"memory suffices for no formulation ({left_out['vanilla']}); give a smaller --batch or shape")
    taken, failed, config = seconds(options, names)
    left_out |= failed
    memory = {name: peaks.get(name, {}).get("above_mib") for name in FORMULATIONS}
    ratios: dict[str, float | None] = {}
    quartiles: dict[str, list[float] | None] = {}
    for one, other in RATIOS:
        key = f"{one}/{other}"
        a, b = taken.get(one, {}), taken.get(other, {})
        pairs = [a[turn] / b[turn] for turn in a if turn in b]
        ratios[key] = statistics.median(pairs) if pairs else None
        quartiles[key] = statistics.quantiles(pairs, n=4, method="inclusive")[::2] if len(pairs) > 1 else None
        mine, its = memory[one], memory[other]
        ratios[f"{key}_memory"] = mine / its if mine is not None and its else None
    record: dict[str, Any] = {
        "ratios": ratios,
        "quartiles": quartiles,
        "turns": {name: len(taken.get(name, ())) for name in FORMULATIONS},
        "seconds": {name: statistics.median(taken[name].values()) if name in taken else None for name in FORMULATIONS},
        "memory_mib": memory,
        "left_out": left_out,
        "shape": {key: value for key, value in vars(options).items() if key not in UNTOLD},
    }
    sizes = {"hidden": "hidden_size", "layers": "num_hidden_layers", "vocab": "vocab_size"}
    record["shape"] |= {key: getattr(config.text_config, name) for key, name in sizes.items()}
    if options.device.startswith("cuda"):
        whole = {name: peaks[name]["peak_gib"] for name in taken}
        record["gpu"] = projection.gpu(record, config, STAGE[options.trainable], whole, lead=LEAD, beside=options.rates)
    return record


def report(record: Mapping[str, Any]) -> list[str]:
    """A record as lines: the shape, the ratios, why some are missing; of a GPU its figures too."""
    told, ratios = record["shape"], record["ratios"]
    lines = [
        f"{told['shape'] or 'Llama'}: hidden {told['hidden']}, {told['layers']} layers, vocabulary {told['vocab']:,}; "
        f"{told['batch']} x ({told['image_tokens']} image + {told['text_tokens']} text tokens, "
        f"{told['supervised_tokens']} of these supervised); trained: {told['trainable']}; {told['device']}"
        + (", activations checkpointed" if told["activation_checkpointing"] else ""),
        f"{'ratio':<20}{'time':>8}{'quartiles':>16}{'turns':>7}{'memory':>9}",
    ]
    for one, other in RATIOS:
        key, number = f"{one}/{other}", min(record["turns"][one], record["turns"][other])
        time_, memory = (f"{value:.3f}" if value else "-" for value in (ratios[key], ratios[f"{key}_memory"]))
        quartiles = " to ".join(f"{value:.3f}" for value in record["quartiles"][key] or ())
        lines.append(f"{key:<20}{time_:>8}{quartiles:>16}{number or '-':>7}{memory:>9}")
    lines += [f"{name}: left out, {reason}" for name, reason in record["left_out"].items()]
    return lines + (projection.report(record["gpu"]) if "gpu" in record else [])


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, complete; `given`: the words that they came from. InputError for a shape that cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", metavar="RECIPE", help="the true size of a recipe (or of an LLM: qwen2.5-7b)")
    parser.add_argument("--hidden", type=int, help="512; with --shape a narrower LLM")
    parser.add_argument("--layers", type=int, help="8; with --shape fewer layers")
    parser.add_argument("--vocab", type=int, help="32,000")
    parser.add_argument("--tower-layers", type=int, help="with --shape: a small tower of so many layers")
    parser.add_argument("--image-tokens", type=int, default=PICTURE)
    parser.add_argument("--text-tokens", type=int, default=30)
    parser.add_argument("--supervised-tokens", type=int, help="of a sample's text, at its end")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--trainable", choices=tuple(STAGE), default="connector")
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument(
        "--steps",
        type=int,
        default=7,
        help=f"turns of all, after one to warm up; of the close ones {1 + MORE} times it",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--beside", type=Path, metavar="FILE", help="a record of the other --trainable, for the hours")
    parser.add_argument("--json", action="store_true", help="print one JSON object alone")
    parser.add_argument("--publish", type=Path, metavar="FILE", help="also write the record with its manifest")
    parser.add_argument("--memory-of", choices=FORMULATIONS, help=argparse.SUPPRESS)  # how each gets its own process
    options = parser.parse_args(arguments)
    options.given = sys.argv[1:] if arguments is None else arguments
    if options.shape:
        chosen = chosen_shape(options.shape)
        if options.vocab or options.image_tokens != PICTURE or chosen.llm not in SHAPES:
            raise InputError(
                "--shape takes a paper's recipe, and has its own --vocab and --image-tokens; leave them out"
            )
    else:
        options.hidden, options.layers, options.vocab = (
            given or default
            for given, default in zip((options.hidden, options.layers, options.vocab), SMALL, strict=True)
        )
        side = math.isqrt(options.image_tokens)
        if side * side != options.image_tokens or options.hidden % 64 or options.vocab < 300:
            raise InputError("--image-tokens should be a square, --hidden a multiple of 64, --vocab at least 300")
    if options.supervised_tokens is None:
        share = 1.0 if options.trainable == "connector" else supervised_share()
        options.supervised_tokens = max(1, round(share * options.text_tokens))
    if not 0 < options.supervised_tokens <= options.text_tokens:
        raise InputError("--supervised-tokens should be above 0 and at most --text-tokens")
    return options


@command
def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.memory_of:
        print(json.dumps(peak_memory(options, options.memory_of)))
        return 0
    if options.device.startswith("cuda"):
        options.rates = projection.rates_beside(options.beside, STAGE[options.trainable])
    elif options.beside:
        raise InputError("--beside is for hours, which are projected with --device cuda alone")
    record = measure(options)
    if options.publish:
        options.publish.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.publish, record | {"provenance": provenance()})
    print(json.dumps(record) if options.json else "\n".join(report(record)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
