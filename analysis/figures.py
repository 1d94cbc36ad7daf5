"""Figures of the tables that the other commands make: the matrix of styles, forecast, paradox (1a), relevance (7).

Colours are Okabe and Ito's, which colour-blind readers tell apart; hatching, dashes and marks tell them apart in print.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from dpa.methods import CMO, Weighting

if TYPE_CHECKING:
    import pandas as pd

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#767676"
BASE_COLOUR, PROXY_COLOUR = BLUE, ORANGE
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#D55E00", "#56B4E9", "#000000")
DASHES, HATCHES, MARKS = ("-", "--", ":", "-."), ("", "//", "..", "xx"), "osD^vP*"


def matrix_figure(table: pd.DataFrame):
    """Figure: bits per byte of each corpus (rows) under the base LLM and each proxy (columns), of `perplexity_table`; the
    best model of a row is framed.
    """
    from matplotlib import pyplot as plt

    from analysis.perplexity import matrix

    wide = matrix(table)
    values = wide.to_numpy()
    figure, axis = plt.subplots(
        figsize=(2.6 + 1.15 * values.shape[1] + 0.05 * max(map(len, wide.index)), 1.9 + 0.5 * len(values)),
        layout="constrained",
    )
    relative = values / values.min(axis=1, keepdims=True)  # rows differ in how hard they are
    image = axis.imshow(relative, cmap="cividis_r", aspect="auto", vmin=1, vmax=max(relative.max(), 1.01))
    for (row, column), value in np.ndenumerate(values):
        dark = image.norm(relative[row, column]) > 0.5
        axis.text(
            column, row, f"{value:.2f}", ha="center", va="center", color="white" if dark else "black", fontsize=10
        )
    for row, column in enumerate(values.argmin(1)):
        axis.add_patch(
            plt.Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, fill=False, edgecolor="#D55E00", linewidth=2.5)
        )
    names = ["base LLM" if name == "base" else f"proxy:\n{_wrapped(name, 14)}" for name in wide.columns]
    axis.set_xticks(range(len(names)), names, fontsize=8)
    axis.set_yticks(range(len(wide)), [_wrapped(name, 24) for name in wide.index], fontsize=9)
    axis.set_ylabel("held-out captions")
    axis.set_title("bits per byte, the picture withheld; framed: best model of the row", fontsize=10, loc="left")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axis, shrink=0.9)
    bar.set_label("times the row's best", fontsize=9)
    return figure


def _wrapped(name: str, width: int) -> str:
    import textwrap

    return textwrap.fill(name.replace("_", " "), width)


def forecast_figure(table: pd.DataFrame):
    """Figure of `forecast_table`: visual share with interval and the probability of being first; conflict and length."""
    from matplotlib import pyplot as plt

    places = np.arange(len(table))[::-1]
    figure, (left, right) = plt.subplots(
        1,
        2,
        figsize=(11, 1.6 + 0.55 * len(table)),
        sharey=True,
        gridspec_kw={"width_ratios": (1.6, 1)},
        layout="constrained",
    )
    share = table["visual_share"]
    reach = np.stack([share - table["visual_share_low"], table["visual_share_high"] - share]).clip(min=0)
    left.barh(places, share, xerr=reach, color=BLUE, height=0.6, error_kw={"elinewidth": 1.5, "capsize": 4})
    for place, value, high, best in zip(places, share, table["visual_share_high"], table["p_best"], strict=True):
        left.text(max(value, high) + 0.01, place, f"{value:.2f}, first in {best:.0%} of draws", va="center", fontsize=9)
    left.set_yticks(places, [_wrapped(name, 24) for name in table["captions"]])
    widest = min(1.0, 1.05 * float(table["visual_share_high"].max()))
    left.set_xlim(0, 1.75 * widest)  # room for the words behind the bars
    left.set_xticks([tick for tick in left.get_xticks() if tick <= 1.0])
    left.set_xlabel("visual share of the text's nats (95 % interval)")
    left.set_title(f"forecast for {table['llm'].iloc[0]}: best first", loc="left", fontsize=11)
    saved = table["bits_per_byte_saved"]
    right.barh(places, table["bits_per_byte"], color="#BBBBBB", height=0.6, label="base LLM")
    right.barh(
        places, saved, color=ORANGE, height=0.3, hatch="//", edgecolor="white", label="conflict: what a proxy saves"
    )
    right.set_xlabel("bits per byte, text only")
    right.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def paradox_figure(table: pd.DataFrame, x: str):
    """Figure 1a from `analysis.paradox.cells`: score against `x`, a panel for each method, LLMs by colour and mark, corpora
    by name; bars are the spread over training seeds (one standard deviation).
    """
    from matplotlib import pyplot as plt

    methods = list(dict.fromkeys(table["method"]))
    llms = list(dict.fromkeys(table["llm"]))
    figure, axes = plt.subplots(
        1, len(methods), figsize=(1 + 5.2 * len(methods), 4.4), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, method in zip(axes[0], methods, strict=True):
        own = table[table["method"] == method]
        for number, llm in enumerate(llms):
            rows = own[own["llm"] == llm].sort_values(x)
            colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
            axis.errorbar(
                rows[x],
                rows["score"],
                yerr=rows["score_spread"],
                color=colour,
                marker=mark,
                linestyle=DASHES[number % 4],
                linewidth=1,
                capsize=3,
                markersize=7,
                label=llm,
                alpha=0.9,
            )
            for _, row in rows.iterrows():
                axis.annotate(
                    row["captions"],
                    (row[x], row["score"]),
                    xytext=(5, 5),
                    textcoords="offset points",
                    fontsize=8,
                    color=colour,
                )
        axis.set_title(method)
        axis.set_xlabel(AXES.get(x, x.replace("_", " ")))
        axis.spines[["top", "right"]].set_visible(False)
        if (own[x] > 0).all() and own[x].max() > 20 * own[x].min():
            axis.set_xscale("log")
        axis.margins(x=0.15)
    axes[0, 0].set_ylabel("score, mean over benchmarks and seeds (0 to 100)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), title="base LLM", frameon=False, loc="outside right center")
    return figure


AXES = {
    "bits_per_byte_saved": "conflict: bits per byte that a proxy saves",
    "visual_share": "forecast: visual share of the text's nats",
}


def relevance_figure(values: Mapping[tuple[str, str], np.ndarray], weighting: Weighting = CMO):
    """Figure 7: distribution of relevance, {(model, corpus): [N]}; below, its cumulative share; the bounds are marked."""
    from matplotlib import pyplot as plt

    rule = weighting if weighting.rule != "none" else CMO
    limits = (
        (-1.0, 1.0) if rule.rule == "cmo" else tuple(np.quantile(np.concatenate(list(values.values())), [0.001, 0.999]))
    )
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(7.5, 6), sharex=True, layout="constrained")
    corpora = {corpus for _, corpus in values}
    for number, ((model, corpus), own) in enumerate(values.items()):
        name = model if len(corpora) == 1 else f"{model}, {corpus}"
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        own = np.clip(own, *limits)
        upper.hist(
            own,
            bins=np.linspace(limits[0], limits[1], 81).tolist(),
            weights=np.full(len(own), 1 / len(own)),
            histtype="step",
            color=colour,
            linestyle=dash,
            linewidth=1.6,
            label=name,
        )
        ordered = np.sort(own)
        lower.plot(ordered, np.arange(1, len(own) + 1) / len(own), color=colour, linestyle=dash, linewidth=1.6)
        below = float((own < rule.high).mean())
        lower.text(
            0.98,
            0.06 + 0.09 * number,
            f"{name}: {below:.1%} below {rule.high:g}",
            transform=lower.transAxes,
            ha="right",
            color=colour,
            fontsize=9,
        )
    for axis in (upper, lower):
        for bound, name in ((rule.low, "delta_min"), (rule.high, "delta_max")):
            axis.axvline(bound, color="#000000", linewidth=0.8, linestyle=(0, (4, 3)))
            if axis is upper:
                axis.text(bound, 0.97, f" {name} {bound:g}", transform=axis.get_xaxis_transform(), fontsize=8, va="top")
        axis.spines[["top", "right"]].set_visible(False)
    upper.set_yscale("log")
    upper.set_ylabel("share of label tokens (log)")
    upper.legend(frameon=False, fontsize=9, loc="upper left")
    lower.set_ylabel("share at or below")
    lower.set_xlabel(
        "relevance: p(token | picture, text) - p(token | text)"
        if rule.rule == "cmo"
        else "relevance: difference of logits"
    )
    return figure
