"""Pictures of the conflict.

    python -m analysis.plots conflict --runs runs --out results/figures

`conflict`: one scene of the lab, its caption in each style, and the text-only perplexity of unseen captions of each style
under the base LLM and under that style's proxy. Proxies that are not in RUNS are trained first (under a minute each).
Colours are Okabe and Ito's, which colour-blind readers tell apart; hatching tells them apart in print.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from dpa.errors import InputError, command

BASE_COLOUR, PROXY_COLOUR = "#0072B2", "#E69F00"
HELD_OUT_SEED, NUM_HELD_OUT = 3, 300


def conflict_data(runs: Path):
    """DataFrame (style, model, perplexity, ...) of unseen lab captions under the base LLM and each style's proxy."""
    import pandas as pd

    from analysis.perplexity import perplexity_table
    from dpa import train
    from dpa.lab import language
    from dpa.lab.dataset import data_folder, told_by_rows
    from dpa.lab.world import draw_scene

    frames = []
    for style, tell in language.STYLES.items():
        proxy = runs / f"lab_{style}" / "proxy"
        if train.main(["--recipe", f"lab_{style}", "--stage", "proxy", "--output", str(runs)]):
            raise InputError(f"{proxy}: training it failed, see the line above")
        held_out = data_folder(runs) / f"held_out_{style}.txt"
        held_out.parent.mkdir(parents=True, exist_ok=True)
        rngs = [random.Random(f"{HELD_OUT_SEED}-{index}") for index in range(NUM_HELD_OUT)]
        held_out.write_text(
            "\n".join(tell(told_by_rows(draw_scene(rng)), rng) for rng in rngs) + "\n", encoding="utf-8"
        )
        frames.append(perplexity_table("lab", proxy, [held_out]).assign(style=style))
    return pd.concat(frames, ignore_index=True)


def conflict_figure(data, seed: int = 24):
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
        values = [
            float(data.loc[(data["style"] == style) & (data["model"] == model), "perplexity"].iloc[0])
            for style in styles
        ]
        label = {"base": "base LLM", "proxy": "proxy LLM (LoRA on the style)"}[model]
        bars = right.bar(
            [i + 0.4 * offset for i in range(len(styles))],
            values,
            width=0.38,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=label,
        )
        right.bar_label(bars, fmt="%.2f", fontsize=9)
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


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.plots", description=__doc__.split("\n")[0])
    parser.add_argument("figure", choices=("conflict",))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("results/figures"))
    options = parser.parse_args(arguments)
    import matplotlib

    matplotlib.use("agg")
    from dpa.lineage import provenance, write_json

    data = conflict_data(options.runs)
    figure = conflict_figure(data)
    options.out.mkdir(parents=True, exist_ok=True)
    for ending in ("png", "svg"):
        figure.savefig(options.out / f"conflict.{ending}", dpi=130)
    data.to_csv(options.out / "conflict.csv", index=False)
    write_json(options.out / "conflict.manifest.json", provenance() | {"seed": HELD_OUT_SEED})
    print(data.to_string(index=False, float_format=lambda x: f"{x:.3f}"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
