"""What `python -m dpa.recipes --show` tells beside a recipe: batches, and the estimate of `dpa.costs`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dpa.costs import ASSUMPTIONS, GPU_MEMORY, batch_plan, estimate, num_steps, records_of, sources_of
from dpa.recipes import Recipe


def plan(recipe: Recipe, gpus: int, gpu: str, mfu: float) -> dict[str, Any]:
    """What `--show` tells beside the recipe, ready for JSON: `batch` by stage and `estimate`."""
    batch: dict[str, dict[str, Any]] = {}
    for stage in recipe.stages:
        micro, accumulation = batch_plan(recipe, stage, gpus)
        batch[stage] = {
            "micro_batch": micro,
            "gpus": gpus,
            "accumulation": accumulation,
            "global_batch": micro * gpus * accumulation,
            "steps": num_steps(recipe, stage),
            "records": records_of(recipe, stage),
            "records_source": "; ".join(
                dict.fromkeys(s.source if n == s.records else "from larger sets" for s, n in sources_of(recipe, stage))
            ),
        }
    cost = estimate(recipe, gpus, gpu, mfu)
    told: dict[str, Any] | None = None
    if cost:
        told = {"gpu": gpu, "gpus": gpus, "mfu": mfu, "memory_gib": GPU_MEMORY[gpu], "assumptions": list(ASSUMPTIONS)}
        told["stages"] = {stage: asdict(one) for stage, one in cost.items()}
    return {"batch": batch, "estimate": told}


def report(planned: dict[str, Any]) -> list[str]:
    """A plan as lines."""
    lines = ["batch: micro-batch x GPUs x accumulation"]
    for stage, b in planned["batch"].items():
        counts = ", ".join(f"{b[k]:,} {k}" if b[k] else f"{k} by the data" for k in ("steps", "records"))
        arithmetic = f"{b['micro_batch']} x {b['gpus']} x {b['accumulation']} = {b['global_batch']}"
        lines.append(f"  {stage:<12}{arithmetic:<20}{counts}" + (b["records_source"] and f" ({b['records_source']})"))
    if not (cost := planned["estimate"]):
        return [*lines, "", "estimate: none, the sizes of this LLM or of its data are not on record"]
    free = 0.9 * cost["memory_gib"]
    lines += ["", f"estimate on {cost['gpus']} x {cost['gpu'].upper()} at {cost['mfu']:g} of the peak"]
    for stage, e in cost["stages"].items():
        marks = {how: "*" if how in e["checkpointed"] else "" for how in e["memory"]}
        memory = ", ".join(
            f"{how} {gib:.0f}{marks[how]}{'' if gib < free else ' (too much)'}" for how, gib in e["memory"].items()
        )
        hours = f"{e['gpu_hours']:.1f} GPU hours, {e['hours']:.2f} h"
        lines.append(f"  {stage:<12}{e['model_flops']:.2e} model FLOPs, {hours:<26} GiB a GPU: {memory}")
    total = sum(e["gpu_hours"] for e in cost["stages"].values())
    lines.append(f"  {'all':<12}{total:.1f} GPU hours, {total / cost['gpus']:.2f} h")
    return [*lines, *(f"  assumed: {line}" for line in cost["assumptions"])]
