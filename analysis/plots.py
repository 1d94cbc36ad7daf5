"""The paper's figures from our data, and pictures of the conflict.

    python -m analysis.plots FIGURE [...] [--captions terse] [--runs runs] [--out results/figures]

conflict   a scene of the lab, its caption in each style, the perplexity of each style under base LLM and proxy
1b, 3      change of the loss of visual and of style words by stage 2, one recipe (1b) and two beside each other (3)
4          loss curves of stage 2: without a proxy, with a LoRA proxy, with a proxy of which all weights were trained
6          one caption word by word: relevance and weight
7          distribution of the relevance of label tokens
(1a and the matrix of styles are written by `analysis.paradox` and `analysis.perplexity`, which have their data.)

All from the lab (`--captions` a caption style of it); what RUNS lacks is trained first (one to four minutes a recipe).
Colours are Okabe and Ito's, which colour-blind readers tell apart; hatching and dashes tell them apart in print.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa.errors import InputError, command
from dpa.methods import CMO, Weighting

if TYPE_CHECKING:
    import pandas as pd

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#767676"
BASE_COLOUR, PROXY_COLOUR = BLUE, ORANGE
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#D55E00", "#56B4E9", "#000000")
DASHES, HATCHES, MARKS = ("-", "--", ":", "-."), ("", "//", "..", "xx"), "osD^vP*"
FIGURES = ("conflict", "1b", "3", "4", "6", "7")


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


def curves_figure(logs: Mapping[str, Sequence[tuple[float, float]]], smooth: int = 25):
    """Figure 4: loss per caption token over the steps of stage 2, {name: [(step, nats), ...]}; lines are running means."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for number, (name, points) in enumerate(logs.items()):
        steps, losses = np.array(points, float).T
        colour = COLOURS[number % len(COLOURS)]
        axis.plot(steps, losses, color=colour, alpha=0.2, linewidth=0.7)
        width = min(smooth, len(losses))
        running = np.convolve(losses, np.ones(width) / width, mode="valid")
        axis.plot(
            steps[width - 1 :],
            running,
            color=colour,
            linestyle=DASHES[number % 4],
            linewidth=1.8,
            label=f"{name}: ends at {running[-1]:.2f}",
        )
    axis.set_xlabel("step of stage 2")
    axis.set_ylabel("loss per caption token (nats)")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def words_of_sample(tokens: pd.DataFrame, text: str) -> pd.DataFrame:
    """A row for each word of one sample (and each mark between them that is a token of its own): word, relevance and weight
    of its first token, the weight in multiples of a plain token's share.
    """
    from analysis.lexicon import words_of

    rows: list[dict[str, Any]] = []
    spans = words_of(text)
    for start, end, relevance, weight in zip(
        *(tokens[c].tolist() for c in ("start", "end", "relevance", "weight")), strict=True
    ):
        if start == end:
            continue
        while start < end - 1 and text[start].isspace():
            start += 1
        word = next(((a, b) for a, b in spans if a <= start < b), (start, end))
        if rows and rows[-1]["span"] == word:
            continue
        rows.append(
            {"span": word, "word": text[word[0] : word[1]], "relevance": relevance, "weight": weight * len(tokens)}
        )
    import pandas as pd

    return pd.DataFrame(rows, columns=["span", "word", "relevance", "weight"])


def sample_figure(tokens: pd.DataFrame, text: str, image=None, a_row: int = 22):
    """Figure 6: one caption word by word, relevance as bars and the weight as a line, `a_row` words a row."""
    from matplotlib import pyplot as plt

    words = words_of_sample(tokens, text)
    num_rows = max(1, -(-len(words) // a_row))
    columns = 2 if image is not None else 1
    figure = plt.figure(figsize=(12, 0.9 + 1.75 * num_rows), layout="constrained")
    grid = figure.add_gridspec(num_rows, columns, width_ratios=(1, 4) if columns == 2 else (1,))
    if image is not None:
        left = figure.add_subplot(grid[:, 0])
        left.imshow(image)
        left.set_axis_off()
    low, high = min([-0.05, *words["relevance"]]), max([0.1, *words["relevance"]])
    most = max([1.0, *words["weight"]])
    for number in range(num_rows):
        axis = figure.add_subplot(grid[number, columns - 1])
        own = words.iloc[number * a_row : (number + 1) * a_row]
        places = np.arange(len(own))
        colours = [BLUE if value >= 0 else ORANGE for value in own["relevance"]]
        axis.bar(places, own["relevance"], color=colours, width=0.7)
        for place, value in zip(places, own["relevance"], strict=True):
            if value < 0:
                axis.patches[place].set_hatch("//")
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set_ylim(1.1 * low, 1.1 * high)
        axis.set_xlim(-0.6, a_row - 0.4)
        axis.set_xticks(places, own["word"], rotation=35, ha="right", fontsize=8)
        other = axis.twinx()
        other.plot(places, own["weight"], color="black", marker=".", linewidth=1, linestyle=":")
        other.set_ylim(0, 1.15 * most)
        for side in (axis, other):
            side.spines["top"].set_visible(False)
        if number == 0:
            axis.set_ylabel("relevance (bars)", fontsize=8)
            other.set_ylabel("weight, x plain\n(dotted)", fontsize=8)
    return figure


def violins_figure(changes: Mapping[str, pd.DataFrame]):
    """Figures 1b and 3: `analysis.words.violin` for each {recipe: table of `word_changes` with labels}, on one scale."""
    from matplotlib import pyplot as plt

    from analysis.words import violin

    figure, axes = plt.subplots(
        1, len(changes), figsize=(1 + 4.6 * len(changes), 4.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (name, own) in zip(axes[0], changes.items(), strict=True):
        violin(own, ax=axis)
        axis.set_title(name)
    return figure


def conflict_figure(data: pd.DataFrame, seed: int = 24):
    """Figure: a scene, its three tellings, and the perplexities of `data` (of `conflict_data`) on a log axis."""
    import textwrap

    from matplotlib import pyplot as plt

    from dpa.lab import language
    from dpa.lab.dataset import told_by_rows
    from dpa.lab.world import draw_scene, render

    rng = random.Random(seed)
    scene = told_by_rows(draw_scene(rng))
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(13, 4), gridspec_kw={"width_ratios": (1, 1.6, 1.3)}, layout="constrained"
    )
    left.imshow(render(scene, 360))
    left.set_axis_off()
    left.set_title("a scene of the lab")
    middle.set_axis_off()
    middle.set_title("told in three styles")
    parts = [f"{style}\n" + textwrap.fill(tell(scene, rng), 60) for style, tell in language.STYLES.items()]
    middle.text(0, 1, "\n\n".join(parts), va="top", fontsize=9, family="monospace", transform=middle.transAxes)
    styles = list(language.STYLES)
    for offset, (model, colour, hatch) in enumerate((("base", BASE_COLOUR, ""), ("proxy", PROXY_COLOUR, "//"))):
        own = [data[(data["style"] == style) & (data["model"] == model)].iloc[0] for style in styles]
        values = np.array([row["perplexity"] for row in own])
        reach = np.abs(np.array([[row["perplexity_low"], row["perplexity_high"]] for row in own]).T - values)
        label = {"base": "base LLM", "proxy": "proxy LLM (LoRA on the style)"}[model]
        bars = right.bar(
            [i + 0.4 * offset for i in range(len(styles))],
            values,
            yerr=reach,
            width=0.38,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=label,
            error_kw={"elinewidth": 1},
        )
        right.bar_label(bars, fmt="%.2f", fontsize=9, padding=3)
    right.set_yscale("log")
    ticks = [1, 2, 5, 10, 20, 50, 100]
    right.set_yticks(ticks, [str(tick) for tick in ticks])
    right.minorticks_off()
    right.set_ylim(1, 1.6 * float(data["perplexity"].max()))
    right.set_xticks([i + 0.2 for i in range(len(styles))], styles)
    right.set_ylabel("text-only perplexity per token (log)")
    right.set_title("what the captions cost before any picture")
    right.legend(frameon=False)
    right.spines[["top", "right"]].set_visible(False)
    return figure


def curves(stages: Mapping[str, Path]) -> dict[str, list[tuple[float, float]]]:
    """{name: [(step, nats a label token), ...]} from the logs of finished stages."""
    found = {}
    for name, folder in stages.items():
        try:
            rows = json.loads((folder / "log.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{folder / 'log.json'}: cannot be read ({error}); give a finished stage") from None
        found[name] = [(row["step"], row["nll"]) for row in rows if "nll" in row]
    return found


def draw(figure: str, runs: Path, style: str):
    """(figure, its numbers as a table) of one of `FIGURES`, from the lab."""
    import pandas as pd

    from analysis.lab import changes_by_training, conflict_data, lab_tokens, trained

    if figure == "conflict":
        data = conflict_data(runs)
        return conflict_figure(data), data
    if figure in ("1b", "3"):
        recipes = {"vanilla": f"lab_{style}_vanilla", "DPA": f"lab_{style}"}
        names = ["vanilla"] if figure == "1b" else list(recipes)
        changes = {name: changes_by_training(runs, recipes[name], style) for name in names}
        table = pd.concat([own.assign(recipe=name) for name, own in changes.items()], ignore_index=True)
        return violins_figure(changes), table
    if figure == "4":
        recipes = {
            "base LLM, no proxy": f"lab_{style}_cmo",
            "LoRA proxy": f"lab_{style}",
            "proxy, all weights": f"lab_{style}_no-lora",
        }
        logs = curves({name: trained(runs, recipe, "connector") for name, recipe in recipes.items()})
        rows = [{"run": name, "step": int(s), "nats": loss} for name, points in logs.items() for s, loss in points]
        return curves_figure(logs), pd.DataFrame(rows)
    stage = trained(runs, f"lab_{style}", "instruct")
    if figure == "6":
        from PIL import Image

        tokens, samples = lab_tokens(runs, str(stage), style, samples=1)
        return sample_figure(tokens, samples["text"].iloc[0], Image.open(samples["image"].iloc[0])), tokens
    from analysis.relevance import quantiles

    start = trained(runs, f"lab_{style}", "connector")
    folders = {"stage 2, start": f"{start}@start", "stage 2, end": str(start), "stage 3, end": str(stage)}
    values = {name: lab_tokens(runs, folder, style)[0]["relevance"].to_numpy() for name, folder in folders.items()}
    rows = [
        {
            "model": n,
            "tokens": len(v),
            "below_max": float((v < CMO.high).mean()),
            "at_min": float((v <= CMO.low).mean()),
        }
        | quantiles(v)
        for n, v in values.items()
    ]
    return relevance_figure({(name, style): own for name, own in values.items()}), pd.DataFrame(rows)


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.plots", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", nargs="+", choices=FIGURES)
    parser.add_argument(
        "--captions", default="ornate", choices=("plain", "terse", "ornate"), help="the lab's caption style"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("results/figures"))
    options = parser.parse_args(arguments)
    import matplotlib

    matplotlib.use("agg")
    from analysis.lab import HELD_OUT_SEED
    from analysis.outputs import shown, write_figure, write_manifest, write_table

    for name in options.figure:
        figure, table = draw(name, options.runs, options.captions)
        file = name if name == "conflict" else f"figure_{name}"
        write_figure(figure, options.out, file)
        write_table(table, options.out, file)
        write_manifest(options.out, f"{file}.manifest", seed=HELD_OUT_SEED, captions=options.captions)
        print(f"{options.out / file}.png\n{shown(table.head(12))}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
