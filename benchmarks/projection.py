"""What measured steps say of a GPU and of a whole training: utilisation, and hours beside the paper's Table 9.

`benchmarks.speed --device cuda` prints all of it, `benchmarks.steps` its utilisation. Arithmetic on `dpa.costs`; only
`matmul_ceiling` measures.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from dpa.costs import SHAPES, Flops, Shape, estimate, peak_flops, step_flops
from dpa.errors import InputError
from dpa.methods import Stage
from dpa.recipes import QWEN_BLIP, recipe

GPUS = 8
PROJECTED = {"vanilla": f"{QWEN_BLIP}_vanilla", "dpa": QWEN_BLIP}  # BLIP-LCS and Cambrian-737K in both
# Table 9 as published, hours on 8 GPUs: Llama-3.1-8B on the same data.
# Reference: it prints 6.37 h for vanilla's sum of 7.37 h, and so 33 % for an overhead of 15 %.
TABLE_9: dict[str, dict[str, float]] = {
    "vanilla": {"connector": 1.37, "instruct": 6.0, "overall": 6.37},
    "dpa": {"proxy": 0.5, "connector": 1.85, "instruct": 6.12, "overall": 8.47},
}
ASSUMED = (
    "a stage's model FLOPs (dpa.costs: its records and their tokens) over 8 x the model FLOP/s of the measured step",
    "communication between GPUs, optimiser, loading, padding and saving are not in it; samples of one length",
    "stage connector counts the blind pass once a record, in the step or into the cache alike",
    "paper: Llama-3.1-8B on the same data; it prints 6.37 h where its vanilla stages add up to 7.37 h",
)


def step_cost(
    config: Any, stage: Stage, *, samples: int, text_tokens: int, supervised_tokens: int, blind_tokens: int
) -> Flops:
    """FLOPs of a step on `samples` samples alike, a picture each; the other counts are those of one sample.

    config: of a LLaVA model. text_tokens: all but the picture's; blind_tokens: what the blind pass reads, 0 without.
    """
    picture = config.image_seq_length
    return step_flops(
        Shape.from_config(config.text_config),
        stage,
        text_tokens=samples * text_tokens,
        picture_tokens=samples * picture,
        supervised_tokens=samples * supervised_tokens,
        blind_tokens=samples * blind_tokens,
        pictures=samples,
        mean_length=text_tokens + picture,
        tower=Shape.from_config(config.vision_config),
        tower_tokens=picture + 1,
    )


def matmul_ceiling(device: str, *, size: int = 8192, rounds: int = 9, products: int = 20) -> float:
    """FLOP/s that the device reaches in bf16 products of random size x size matrices: median of `rounds` after two."""
    import torch

    cuda = device.startswith("cuda")
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    out, seconds = torch.empty_like(one), []
    for _ in range(rounds + 2):
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(products):
            torch.matmul(one, other, out=out)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return products * 2 * size**3 / statistics.median(seconds[2:])


def utilisation(
    flops: float, seconds: float, tokens: float, *, peak: float | None, ceiling: float | None = None
) -> dict[str, float | None]:
    """Figures of a step of `flops` model FLOPs on `tokens` tokens, pictures included, that took `seconds`.

    peak, ceiling: FLOP/s by the data sheet (`dpa.costs.peak_flops`) and measured; None: unknown, its share too.
    {"tokens_per_s", "model_flops_per_s", "mfu": share of the peak, "of_ceiling": share of the ceiling}.
    """
    speed = flops / seconds
    shares = {"mfu": peak, "of_ceiling": ceiling}
    return {"tokens_per_s": tokens / seconds, "model_flops_per_s": speed} | {
        name: speed / whole if whole else None for name, whole in shares.items()
    }


def hours(rates: Mapping[Stage, Mapping[str, float]], gpus: int = GPUS) -> dict[str, dict[str, Any]]:
    """Hours of `PROJECTED` on `gpus` GPUs at measured rates, beside the paper's Table 9, by method.

    rates: {stage whose kind of step was measured: {"vanilla", "cmo": model FLOP/s of one GPU}}. A stage goes at the
    rate of its own kind of step under its own rule; where that was not measured, at another's, by preference under the
    same rule, and `own` is False. The LoRA step of stage proxy never is measured: one with a frozen LLM stands for it.
    Each method: {"stages": {stage: {"model_flops", "rate_of": "connector/cmo", "own", "hours"}}, "hours", "paper",
    "paper_sum"}. ValueError where nothing was measured.
    """
    found: dict[str, dict[str, Any]] = {}
    for method, name in PROJECTED.items():
        chosen, cost, stages = recipe(name), estimate(recipe(name), gpus), {}
        assert cost is not None, "the sizes of this recipe's data are on record"
        for stage, one in cost.items():
            rules = ("vanilla", "cmo") if chosen.weighting_of(stage).rule == "none" else ("cmo", "vanilla")
            kinds: tuple[Stage, ...] = ("instruct", "connector") if stage == "instruct" else ("connector", "instruct")
            known = [(kind, rule) for rule, kind in product(rules, kinds) if rates.get(kind, {}).get(rule)]
            if not known:
                raise ValueError("no rate of a measured step to project hours from")
            kind, rule = known[0]
            stages[stage] = {
                "model_flops": one.model_flops,
                "rate_of": f"{kind}/{rule}",
                "own": (kind, rule) == (stage, rules[0]),
                "hours": one.model_flops / (gpus * rates[kind][rule]) / 3600,
            }
        paper = TABLE_9[method]
        found[method] = {
            "stages": stages,
            "hours": sum(row["hours"] for row in stages.values()),
            "paper": paper,
            "paper_sum": round(sum(value for name, value in paper.items() if name != "overall"), 2),
        }
    return found


def gpu(
    record: Mapping[str, Any],
    config: Any,
    stage: Stage,
    peak_gib: Mapping[str, float | None],
    *,
    lead: int,
    beside: Mapping[Stage, Mapping[str, float]],
) -> dict[str, Any]:
    """The GPU part of a record of `benchmarks.speed`: name, `peak_flops` and `ceiling_flops` of this machine's GPU,
    `steps` (figures of our formulations) and `hours`, None without what they need, for the reason in `no_hours`.

    config: of the LLaVA model measured; stage: what its steps are those of; lead: text tokens before the picture;
    beside: `rates_beside`.
    """
    import torch

    name = torch.cuda.get_device_name()
    ceiling, peak = matmul_ceiling("cuda"), peak_flops(name)
    rows = step_figures(record["shape"], record["seconds"], config, stage, peak=peak, ceiling=ceiling, lead=lead)
    for formulation, row in rows.items():
        row["peak_gib"] = peak_gib.get(formulation)
    found = {
        "name": name,
        "peak_flops": peak,
        "ceiling_flops": ceiling,
        "steps": rows,
        "hours": None,
        "assumed": ASSUMED,
    }
    rates: dict[Stage, Mapping[str, float]] = {**beside, stage: rates_of(rows)}
    if Shape.from_config(config.text_config) != SHAPES[recipe(QWEN_BLIP).llm] or record["shape"]["tower_layers"]:
        return found | {"no_hours": f"they are projected from steps at --shape {QWEN_BLIP}, nothing made smaller"}
    if not any(rates.values()):
        return found | {"no_hours": "no step of ours was measured"}
    return found | {"hours": hours(rates), "no_hours": None}


def step_figures(
    shape: Mapping[str, Any],
    seconds: Mapping[str, float | None],
    config: Any,
    stage: Stage,
    *,
    peak: float | None,
    ceiling: float | None,
    lead: int,
) -> dict[str, dict[str, Any]]:
    """{our formulation that was measured: `utilisation`, its `seconds` and `model_flops`}; arguments as in `gpu`."""
    rows: dict[str, dict[str, Any]] = {}
    samples, text = shape["batch"], shape["text_tokens"]
    for name in ("vanilla", "cmo", "cmo_cached"):
        if not (taken := seconds.get(name)):
            continue
        flops = step_cost(
            config,
            stage,
            samples=samples,
            text_tokens=lead + text,
            supervised_tokens=shape["supervised_tokens"],
            blind_tokens=lead + text - 1 if name == "cmo" else 0,  # the last label predicts nothing
        ).model
        tokens = samples * (lead + text + config.image_seq_length)
        used = utilisation(flops, taken, tokens, peak=peak, ceiling=ceiling)
        rows[name] = {"seconds": taken, "model_flops": flops, **used}
    return rows


def rates_of(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The rates that `hours` takes of `step_figures`."""
    return {name: rows[name]["model_flops_per_s"] for name in ("vanilla", "cmo") if name in rows}


def rates_beside(path: Path | None, stage: Stage) -> dict[Stage, dict[str, float]]:
    """{the other stage: its rates} from a record that `benchmarks.speed` published; {} without one.

    stage: whose steps this run measures. InputError without a GPU, and for a record that is none, of the same stage, of
    another GPU or of a shape that no hours were projected from.
    """
    import torch

    if not torch.cuda.is_available():
        raise InputError("no GPU here; without --device cuda the ratios alone are measured")
    if path is None:
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        other: Stage = "connector" if record["shape"]["trainable"] == "connector" else "instruct"
        own, rows = record["gpu"], record["gpu"]["steps"]
        fits = other != stage and own["hours"] and own["name"] == torch.cuda.get_device_name()
        rates = rates_of(rows)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no record of benchmarks.speed on a GPU ({error!r})") from None
    if not fits:
        raise InputError(
            f"{path}: not the other --trainable at --shape {QWEN_BLIP} on this GPU; measure it with --publish"
        )
    return {other: rates}


def report(gpu: Mapping[str, Any]) -> list[str]:
    """The GPU part of a record of `benchmarks.speed` as lines."""
    peak = f"{gpu['peak_flops'] / 1e12:.0f}" if gpu["peak_flops"] else "unknown"
    lines = [
        f"{gpu['name']}: bf16 TFLOP/s {peak} by the data sheet, {gpu['ceiling_flops'] / 1e12:.0f} in a large product",
        f"{'step':<12}{'seconds':>9}{'tokens/s':>11}{'TFLOP/s':>9}{'MFU':>7}{'of ceiling':>12}{'peak GiB':>10}",
    ]
    for name, row in gpu["steps"].items():
        mfu, gib = (f"{row[key]:.{n}f}" if row[key] else "-" for key, n in (("mfu", 3), ("peak_gib", 1)))
        lines.append(
            f"{name:<12}{row['seconds']:>9.4f}{row['tokens_per_s']:>11,.0f}{row['model_flops_per_s'] / 1e12:>9.0f}"
            f"{mfu:>7}{row['of_ceiling']:>12.3f}{gib:>10}"
        )
    if not (projected := gpu["hours"]):
        return [*lines, f"hours: none, {gpu['no_hours']}"]
    lines.append(f"hours on {GPUS} GPUs, {QWEN_BLIP}; in brackets the paper's Table 9")
    for method, row in projected.items():
        paper, stages = row["paper"], row["stages"]
        told = [f"{s} {one['hours']:.2f}{'' if one['own'] else '*'} ({paper[s]:g})" for s, one in stages.items()]
        printed = "" if row["paper_sum"] == paper["overall"] else f", printed {paper['overall']:g}"
        lines.append(f"  {method:<8} {row['hours']:.2f} ({row['paper_sum']:g}{printed}): {', '.join(told)}")
    at = {
        f"{s} at {one['rate_of']}" for row in projected.values() for s, one in row["stages"].items() if not one["own"]
    }
    lines += [f"  *: its kind of step was not measured, at another's rate: {', '.join(sorted(at))}"] if at else []
    return [*lines, *(f"  assumed: {line}" for line in ASSUMED)]
