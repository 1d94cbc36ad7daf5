"""The paper's CMO equations and the released code's behaviour as slow loops over Python floats."""

from __future__ import annotations

import math


def paper_weights(
    relevance: list[list[float]], supervised: list[list[bool]], low: float, high: float, normalise: str = "sample"
) -> list[list[float]]:
    """Clip, pool over a window of three label tokens of the sample, normalise (the paper: per sample)."""
    result = []
    for values, marks in zip(relevance, supervised, strict=True):
        slots = [t for t, mark in enumerate(marks) if mark]
        clipped = [min(max(values[t], low), high) for t in slots]
        row = [0.0] * len(values)
        for j, t in enumerate(slots):
            window = [clipped[k] for k in (j - 1, j, j + 1) if 0 <= k < len(slots)]
            row[t] = sum(window) / len(window)
        result.append(row)
    return normalised(result, normalise, 0.0)


def released_weights(
    relevance: list[list[float]], supervised: list[list[bool]], low: float, high: float, normalise: str = "rank"
) -> list[list[float]]:
    """Clip, pool over the flattened batch, drop unsupervised slots, normalise (released: the batch, plus 1e-6)."""
    flat = [min(max(v, low), high) for row in relevance for v in row]
    marks = [m for row in supervised for m in row]
    pooled = []
    for i in range(len(flat)):
        window = [flat[k] for k in (i - 1, i, i + 1) if 0 <= k < len(flat)]
        pooled.append(sum(window) / len(window) if marks[i] else 0.0)
    width = len(relevance[0])
    return normalised([pooled[r * width : (r + 1) * width] for r in range(len(relevance))], normalise, 1e-6)


def normalised(rows: list[list[float]], how: str, epsilon: float) -> list[list[float]]:
    """Divided by the sum of the sample, or of the micro-batch (`rank`); `global` ones wait for the whole batch."""
    if how == "global":
        return rows
    if how == "rank":
        total = sum(map(sum, rows)) + epsilon
        return [[w / total if total > 0 else 0.0 for w in row] for row in rows]
    return [[w / sum(row) if sum(row) > 0 else 0.0 for w in row] for row in rows]


def log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    norm = top + math.log(sum(math.exp(x - top) for x in row))
    return [x - norm for x in row]
