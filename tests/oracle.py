"""The paper's CMO equations and the released code's behaviour as slow loops over Python floats."""

from __future__ import annotations

import math


def paper_weights(
    relevance: list[list[float]], supervised: list[list[bool]], low: float, high: float
) -> list[list[float]]:
    """Clip, pool over a window of three label tokens of the sample, normalise per sample."""
    result = []
    for values, marks in zip(relevance, supervised, strict=True):
        slots = [t for t, mark in enumerate(marks) if mark]
        clipped = [min(max(values[t], low), high) for t in slots]
        pooled = []
        for j in range(len(slots)):
            window = [clipped[k] for k in (j - 1, j, j + 1) if 0 <= k < len(slots)]
            pooled.append(sum(window) / len(window))
        total = sum(pooled)
        row = [0.0] * len(values)
        for t, w in zip(slots, pooled, strict=True):
            row[t] = w / total if total > 0 else 0.0
        result.append(row)
    return result


def released_weights(
    relevance: list[list[float]], supervised: list[list[bool]], low: float, high: float
) -> list[list[float]]:
    """Clip, pool over the flattened batch, drop unsupervised slots, normalise over the batch (plus 1e-6)."""
    flat = [min(max(v, low), high) for row in relevance for v in row]
    marks = [m for row in supervised for m in row]
    pooled = []
    for i in range(len(flat)):
        window = [flat[k] for k in (i - 1, i, i + 1) if 0 <= k < len(flat)]
        pooled.append(sum(window) / len(window) if marks[i] else 0.0)
    total = sum(pooled) + 1e-6
    width = len(relevance[0])
    return [[w / total for w in pooled[r * width : (r + 1) * width]] for r in range(len(relevance))]


def log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    norm = top + math.log(sum(math.exp(x - top) for x in row))
    return [x - norm for x in row]
