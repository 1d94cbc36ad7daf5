"""What the laptop lab gives to look at: trained stages, captions of unseen scenes, a stage's view of them.

    python -m analysis.lab [--captions terse] [--method vanilla] [--out results/lab_terse]

Relevance and words of unseen captions before and after stage 2 of a lab recipe, by `analysis.relevance` and
`analysis.words`; the stage is trained first if RUNS lacks it (one to four minutes).
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import TYPE_CHECKING

from dpa.errors import InputError, command
from dpa.methods import METHODS, Stage

if TYPE_CHECKING:
    import pandas as pd

HELD_OUT_SEED, NUM_HELD_OUT = 3, 300
SAMPLES = 200  # unseen scenes that a model is asked about


def trained(runs: Path, recipe: str, stage: Stage) -> Path:
    """The folder of a stage of a lab recipe, trained if it is not there."""
    from dpa import train
    from dpa.recipes import recipe as named
    from dpa.stages import stage_folder

    chosen = named(recipe)
    for step in chosen.stages[: chosen.stages.index(stage) + 1]:
        if train.main(["--recipe", recipe, "--stage", step, "--output", str(runs), "--disable_tqdm", "true"]):
            raise InputError(f"{recipe}: stage {step} could not be trained, see the line above")
    return stage_folder(runs, chosen, stage, 0)


def held_out_captions(runs: Path, style: str) -> Path:
    """Records of `NUM_HELD_OUT` scenes that no training draws, with their pictures, told in a style of the lab."""
    from dpa.lab import language
    from dpa.lab.dataset import CAPTION_PROMPT, data_folder, told_by_rows
    from dpa.lab.world import draw_scene, render
    from dpa.lineage import write_json

    folder = data_folder(runs) / f"held_out_{style}"
    file = folder / f"{style}.json"
    if file.is_file():
        return file
    (folder / "images").mkdir(parents=True, exist_ok=True)
    records = []
    for index in range(NUM_HELD_OUT):
        rng = random.Random(f"{HELD_OUT_SEED}-{index}")
        scene = told_by_rows(draw_scene(rng))
        image = f"images/{index:05d}.png"
        render(scene).save(folder / image)
        turns = [
            {"from": "human", "value": CAPTION_PROMPT},
            {"from": "gpt", "value": language.STYLES[style](scene, rng)},
        ]
        records.append({"id": f"{index:05d}", "image": image, "conversations": turns})
    write_json(file, records)  # last
    return file


def lab_tokens(runs: Path, stage: str, style: str, samples: int = SAMPLES) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(token table, sample table) of unseen scenes told in a style, under a stage (folder, or folder@start)."""
    from analysis.pairs import open_checkpoint, samples_of, score_samples

    file = held_out_captions(runs, style)
    checkpoint = open_checkpoint(stage)
    return score_samples(checkpoint, samples_of(checkpoint, file, file.parent), range(samples))


def changes_by_training(runs: Path, recipe: str, style: str) -> pd.DataFrame:
    """`word_changes` of unseen captions from the start of a recipe's stage 2 to its end, with labels.

    Reference: the paper does not say between which checkpoints. The lab's stage 3 holds questions alone, so that captions
    are forgotten in it; what a caption set teaches shows in stage 2.
    """
    from analysis.labels import label_words
    from analysis.words import word_changes, word_losses

    stage = trained(runs, recipe, "connector")
    before, after = (word_losses(*lab_tokens(runs, name, style)) for name in (f"{stage}@start", str(stage)))
    return label_words(word_changes(before, after))


def conflict_data(runs: Path) -> pd.DataFrame:
    """`perplexity_table` of unseen lab captions of each style under the base LLM and that style's proxy, with `style`."""
    import pandas as pd

    from analysis.captions import read_all
    from analysis.perplexity import perplexity_table, score
    from dpa.lab import language

    frames = []
    for style in language.STYLES:
        proxy = trained(runs, f"lab_{style}", "proxy")
        captions = read_all([held_out_captions(runs, style)])
        table = perplexity_table(score("lab", {"proxy": proxy}, captions, cache=runs / "scores"))
        frames.append(table.assign(style=style))
    return pd.concat(frames, ignore_index=True)


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", choices=("plain", "terse", "ornate"), default="terse")
    parser.add_argument("--method", choices=METHODS, default="vanilla")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("results/lab_terse"))
    options = parser.parse_args(arguments)
    from analysis import relevance, words

    recipe = f"lab_{options.captions}" + ("" if options.method == "dpa" else f"_{options.method}")
    stage = str(trained(options.runs, recipe, "connector"))
    file = held_out_captions(options.runs, options.captions)
    data = ["--data", str(file), "--images", str(file.parent), "--samples", str(SAMPLES)]
    failed = relevance.main(["--model", f"{stage}@start", stage, *data, "--out", str(options.out / "relevance")])
    return failed or words.main(
        ["--before", f"{stage}@start", "--after", stage, *data, "--out", str(options.out / "words")]
    )


if __name__ == "__main__":
    raise SystemExit(main())
