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

from analysis.figures import BASE_COLOUR, BLUE, COLOURS, DASHES, ORANGE, PROXY_COLOUR, relevance_figure
from dpa.errors import InputError, command
from dpa.methods import CMO

if TYPE_CHECKING:
    import pandas as pd

FIGURES = ("conflict", "1b", "3", "4", "6", "7")


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


def sample_figure(tokens: pd.DataFrame, text: str, image=None, a_row: int = 32):
    """Figure 6: one caption word by word, relevance as bars and the weight as a line, `a_row` words a row."""
    from matplotlib import pyplot as plt

    words = words_of_sample(tokens, text)
    num_rows = max(1, -(-len(words) // a_row))
    columns = 2 if image is not None else 1
    figure = plt.figure(figsize=(14, 0.8 + 1.45 * num_rows), layout="constrained")
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

        tokens, samples = lab_tokens(runs, str(trained(runs, f"lab_{style}", "connector")), style, samples=1)
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
