"""Recipes: the rows of the paper's tables, each a parent and one to three changes.

    python -m dpa.recipes            every recipe, with what it changes
    python -m dpa.recipes --show R   its full resolved configuration as JSON

A method is two switches, as in the paper: `proxy` (PMO) and `weighting` (CMO, CAL). So the six methods are six settings
of one recipe and no code path of their own:

    vanilla  proxy no,  none      cal      proxy no,  cal       pmo      proxy yes, none
    cmo      proxy no,  cmo       dpa      proxy yes, cmo       pmo+cal  proxy yes, cal
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, field, replace

from dpa.errors import InputError, command
from dpa.methods import CMO, METHODS, STAGES, Stage, Weighting


@dataclass(frozen=True)
class StageSettings:
    """What one stage trains with. `max_steps` > 0 overrides `epochs`."""

    learning_rate: float
    global_batch: int = 256  # paper
    epochs: float = 1.0  # paper
    max_steps: int = -1
    max_length: int = 8192  # released scripts
    warmup: float = 0.03  # released scripts; share of the steps
    schedule: str = "cosine"  # released scripts
    weight_decay: float = 0.0  # released scripts


@dataclass(frozen=True)
class Recipe:
    """One row: which LLM on which captions by which method. `lab` data names are made on the spot by `dpa.lab.dataset`."""

    name: str
    parent: str | None
    llm: str
    vision_tower: str
    captions: str  # image-caption records, LLaVA JSON
    instructions: str  # instruction records, LLaVA or Cambrian JSON lines
    proxy: bool = True
    weighting: Weighting = CMO
    lora_rank: int = 256  # paper
    lora_alpha: int = 512  # paper
    proxy_stage: StageSettings = field(default_factory=lambda: StageSettings(4e-5))  # paper
    connector_stage: StageSettings = field(default_factory=lambda: StageSettings(2e-3))  # paper
    instruct_stage: StageSettings = field(
        default_factory=lambda: StageSettings(4e-5, max_length=2048)
    )  # paper; the length: released scripts
    family: str = ""  # recipes of one family share stage 1

    def settings(self, stage: Stage) -> StageSettings:
        return getattr(self, f"{stage}_stage")

    @property
    def stages(self) -> tuple[Stage, ...]:
        return STAGES if self.proxy else STAGES[1:]


LLMS = {  # paper
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "gemma-2-9b": "google/gemma-2-9b-it",
}
CAPTION_SETS = {
    "blip-lcs": "blip_laion_cc_sbu_558k.json",
    "sharegpt4v": "share-captioner_coco_lcs_sam_1246k_1107.json",
    "pixmo-cap": "pixmo_cap.json",
}
LAB_STYLES = ("plain", "terse", "ornate")


def _recipes() -> dict[str, Recipe]:
    recipes: dict[str, Recipe] = {}

    def add(recipe: Recipe) -> Recipe:
        recipes[recipe.name] = recipe
        return recipe

    def add_methods(dpa: Recipe) -> None:
        """Table 1's other methods, and PMO and CMO alone, on the same LLM and captions."""
        for method, switches in METHODS.items():
            if method != "dpa":
                add(replace(dpa, name=f"{dpa.name}_{method}", parent=dpa.name, **switches))

    # Table 1: three LLMs x three caption sets. The name of a set is the file its authors publish.
    first = Recipe(
        name="qwen2.5-7b_sharegpt4v",
        parent=None,
        llm=LLMS["qwen2.5-7b"],
        vision_tower="openai/clip-vit-large-patch14-336",  # released scripts; the paper says CLIP ViT-L/14
        captions=CAPTION_SETS["sharegpt4v"],
        instructions="Cambrian737k.jsonl",  # paper
        family="qwen2.5-7b_sharegpt4v",
    )
    for llm, llm_id in LLMS.items():
        for captions, file in CAPTION_SETS.items():
            name = f"{llm}_{captions}"
            add_methods(
                add(
                    first
                    if name == first.name
                    else replace(first, name=name, parent=first.name, llm=llm_id, captions=file, family=name)
                )
            )

    # The laptop lab: the same three stages on shipped foundations. Learning rates and steps are the lab's own.
    lab = Recipe(
        name="lab_ornate",
        parent=None,
        llm="lab",
        vision_tower="lab",
        captions="lab/ornate",
        instructions="lab/questions",
        lora_rank=32,
        lora_alpha=64,
        proxy_stage=StageSettings(2e-3, global_batch=16, max_steps=200),
        connector_stage=StageSettings(5e-3, global_batch=16, max_steps=550),
        instruct_stage=StageSettings(1e-3, global_batch=16, max_steps=900, max_length=2048),
        family="lab_ornate",
    )
    for style in LAB_STYLES:
        name = f"lab_{style}"
        add_methods(
            add(
                lab
                if name == lab.name
                else replace(lab, name=name, parent=lab.name, captions=f"lab/{style}", family=name)
            )
        )

    # Real records with small models: the file formats at a laptop's scale. Pass --llm, --vision-tower and the data.
    small = replace(
        lab,
        name="small",
        llm="",
        vision_tower="",
        captions="",
        instructions="",
        family="small",
        proxy_stage=StageSettings(1e-3, global_batch=32, epochs=2.0),
        connector_stage=StageSettings(2e-3, global_batch=32, epochs=3.0),
        instruct_stage=StageSettings(5e-4, global_batch=16, epochs=3.0, max_length=2048),
    )
    add_methods(add(small))
    return recipes


RECIPES = _recipes()


def recipe(name: str) -> Recipe:
    """The recipe of that name; InputError naming near ones otherwise."""
    try:
        return RECIPES[name]
    except KeyError:
        import difflib

        near = difflib.get_close_matches(name, RECIPES, n=3)
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else f"there are {', '.join(sorted({r.family for r in RECIPES.values()}))}"
        )
        raise InputError(f"unknown recipe {name!r}; {hint} `python -m dpa.recipes` lists all") from None


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dpa.recipes", description=__doc__.split("\n")[0])
    parser.add_argument("--show", metavar="R", help="print the resolved configuration of one recipe as JSON")
    options = parser.parse_args(arguments)
    if options.show:
        try:
            print(json.dumps(asdict(recipe(options.show)), indent=2))
        except InputError as error:
            parser.exit(2, f"error: {error}\n")
        return 0
    for row in RECIPES.values():
        parent = RECIPES.get(row.parent or "")
        changes = {k: v for k, v in asdict(row).items() if parent is None or v != asdict(parent)[k]}
        shown = {
            k: v["rule"] if k == "weighting" else v
            for k, v in changes.items()
            if k not in ("name", "parent", "family") and not k.endswith("_stage")
        }
        print(
            f"{row.name:<34} {'' if parent is None else 'as ' + parent.name + ', '}"
            + ", ".join(f"{k} {v}" for k, v in shown.items())
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
