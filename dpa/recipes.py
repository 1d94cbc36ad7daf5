"""Recipes: the rows of the paper's tables, each a parent and one to three changes.

    python -m dpa.recipes                 every recipe under the tables that report it, with what it changes
    python -m dpa.recipes --table 11      those of one table
    python -m dpa.recipes --show R        one recipe: every value and where it stands, batch arithmetic, cost (--json)

A method is two switches, as in the paper: `proxy` (PMO) and `weighting` (CMO, CAL). So the six methods are six settings
of one recipe and no code path of their own:

    vanilla  proxy no,  none      cal      proxy no,  cal       pmo      proxy yes, none
    cmo      proxy no,  cmo       dpa      proxy yes, cmo       pmo+cal  proxy yes, cal
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from dpa.errors import InputError, command
from dpa.methods import CMO, METHODS, NONE, STAGES, Stage, Weighting
from dpa.sources import SOURCES


@dataclass(frozen=True)
class StageSettings:
    """What one stage trains with; SOURCES says where each value stands. `max_steps` > 0 overrides `epochs`."""

    learning_rate: float
    global_batch: int = 256
    epochs: float = 1.0
    max_steps: int = -1
    max_length: int = 8192  # tokens, pictures included
    warmup: float = 0.03  # share of the steps
    schedule: str = "cosine"
    weight_decay: float = 0.0
    micro_batch: int | None = None  # samples a GPU takes at a time, at most; None: its share of the global batch
    group_by_length: bool = False  # samples of like length share a batch
    packed: bool = True  # several samples share a row where that leaves fewer empty places; the loss is the same
    pad: bool = True  # picture padded to a square; False: shorter side scaled, centre cropped ("square")


PAPER_STAGES: dict[Stage, StageSettings] = {
    "proxy": StageSettings(4e-5, micro_batch=8, group_by_length=True),
    "connector": StageSettings(2e-3, micro_batch=4, group_by_length=True, pad=False),
    "instruct": StageSettings(4e-5, max_length=2048, micro_batch=2, group_by_length=True),
}
SHORT_PROXY = replace(PAPER_STAGES["proxy"], micro_batch=32)  # 20 tokens a caption


@dataclass(frozen=True)
class Recipe:
    """One row: which LLM on which captions by which method. `dpa.lab.dataset` makes the data of `lab/` names."""

    name: str
    parent: str | None
    llm: str
    vision_tower: str
    captions: tuple[str, ...]  # image-caption records, LLaVA JSON; one or several sources
    instructions: str  # instruction records, LLaVA or Cambrian JSON lines
    caption_count: int | None = None  # records drawn from each caption source; None: all
    fraction: float = 1.0  # share of captions and of instructions that is trained on
    proxy: bool = True
    weighting: Weighting = CMO
    weighted_stages: tuple[Stage, ...] = ("connector", "instruct")  # stages in which `weighting` holds
    lora_rank: int | None = 256  # None: stage 1 trains all weights of the LLM
    lora_alpha: int = 512
    instruct_from: Literal["base", "proxy"] = "base"  # which LLM stage 3 starts from
    chat_template: str | None = None  # of dpa.processing.CHAT_TEMPLATES, for LLMs whose tokenizer has none
    anyres: bool = False  # LlavaNext: several tiles a picture
    image_scale: Literal["unit", "embedding"] = "unit"  # connector's first output scale; "embedding": sqrt(hidden)
    attention: str = "sdpa"  # sdpa | eager | flash_attention_2
    activation_checkpointing: bool = False  # allowed: on a GPU, used where memory asks for it
    bf16: bool = False
    num_workers: int = 0  # processes that read samples, for each training process
    proxy_stage: StageSettings = PAPER_STAGES["proxy"]
    connector_stage: StageSettings = PAPER_STAGES["connector"]
    instruct_stage: StageSettings = PAPER_STAGES["instruct"]
    family: str = ""  # recipes of one family share stage 1
    tables: tuple[str, ...] = ()  # where the paper reports the row
    note: str = ""  # what the paper leaves open or says in two ways, a line each

    def settings(self, stage: Stage) -> StageSettings:
        return getattr(self, f"{stage}_stage")

    def weighting_of(self, stage: Stage) -> Weighting:
        """The rule that holds in a stage: none in stage proxy, and none outside `weighted_stages` (paper Table 11)."""
        return self.weighting if stage != "proxy" and stage in self.weighted_stages else NONE

    @property
    def stages(self) -> tuple[Stage, ...]:
        return STAGES if self.proxy else STAGES[1:]


TABLE_LLMS = ("qwen2.5-7b", "llama-3.1-8b", "gemma-2-9b")
SIZES = ("1.5b", "3b", "14b", "32b")
LLMS = {
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "gemma-2-9b": "google/gemma-2-9b-it",
    **{f"qwen2.5-{size}": f"Qwen/Qwen2.5-{size.upper()}-Instruct" for size in SIZES},
    "vicuna-7b": "lmsys/vicuna-7b-v1.5",
}
CAPTION_SETS = {  # the file that a set's authors publish; PixMo-Cap comes as a table, its file is ours
    "blip-lcs": "blip_laion_cc_sbu_558k.json",
    "sharegpt4v": "share-captioner_coco_lcs_sam_1246k_1107.json",
    "pixmo-cap": "pixmo_cap.parquet",
}
LAB_STYLES = ("plain", "terse", "ornate")
PERCENTS = (5, 10, 25, 50)
BOUNDS = {"clip-0-1": (0.0, 1.0), "clip-0-0.5": (0.0, 0.5), "clip-0.05-1": (0.05, 1.0)}
BEYOND = "beyond the paper"
QWEN, QWEN_BLIP = "qwen2.5-7b_sharegpt4v", "qwen2.5-7b_blip-lcs"


def _rows(*families: str, methods: tuple[str, ...] = ("vanilla", "dpa")) -> tuple[str, ...]:
    return tuple(f"{family}_{method}".removesuffix("_dpa") for family in families for method in methods)


_ROWS = {  # the rows of the paper's tables, in order; an average and its detail are two tables of the same rows
    ("1",): _rows(*(f"{a}_{b}" for a in TABLE_LLMS for b in CAPTION_SETS), methods=("vanilla", "cal", "dpa")),
    ("2",): _rows(QWEN, methods=("vanilla", "pmo", "cmo", "dpa")),
    ("10",): _rows(QWEN, methods=("vanilla", "cmo", "pmo", "dpa")),  # "w/o PMO" comes first
    ("3", "13"): _rows(*(f"qwen2.5-{size}_blip-lcs" for size in SIZES)),
    ("4", "14"): _rows(*(f"{QWEN}_data-{percent}" for percent in PERCENTS), QWEN),
    ("5",): _rows(*(f"{llm}_sharegpt4v" for llm in TABLE_LLMS), methods=("pmo", "pmo+cal", "dpa")),
    ("6", "15"): _rows(QWEN_BLIP, methods=("no-lora", "lora-128", "dpa", "lora-512")),
    ("7", "16"): _rows(QWEN_BLIP, methods=("init-proxy", "dpa")),
    ("8",): _rows("qwen2.5-7b_mixed"),
    ("9",): _rows("llama-3.1-8b_blip-lcs"),
    ("11",): _rows(QWEN_BLIP, methods=("pmo", "cmo-connector", "cmo-instruct", "dpa")),
    ("12",): _rows(QWEN_BLIP, methods=(*BOUNDS, "dpa")),
    ("Fig. 1a",): _rows("vicuna-7b_blip-lcs", "vicuna-7b_sharegpt4v", QWEN_BLIP, QWEN, methods=("vanilla",)),
}
_ORDER = (*map(str, range(1, 17)), "Fig. 1a")
TABLES = {table: rows for table in _ORDER for tables, rows in _ROWS.items() if table in tables}

# What the paper leaves open or says in two ways, by table, LLM, caption file or recipe; each recipe carries its own.
NOTES = {
    "2": "Table 2 carries ShareGPT4V-PT rows, though A.4 says BLIP-LCS; it says 46.1 where Table 5 says 46.0.",
    "3": "Table 3 says 46.4 for the vision average of 14B vanilla, section 6.2 says 46.6.",
    "4": "Tables 4 and 14 differ in every row but one cell; Table 14 agrees with Table 1.",
    "6": "Tables 6 and 15: the row of rank 256 is not Table 1's DPA (75.0 / 350 against 75.8 / 345) but has the "
    "CVBench and MMVP cells of Table 11's row without CMO: PMO-only runs, it seems. The recipes are DPA, as they say.",
    "8": "Table 8: its cells average 50.40 and 52.93, it prints 51.52 and 54.34; how the 200K are drawn is not said.",
    "9": "Table 9: 1.37 h + 6 h is 7.37 h, printed 6.37 h; the overhead is 14.9 %, printed 33 %.",
    "10": "Table 10 carries ShareGPT4V-PT rows (equal to Table 1's), though A.4 says BLIP-LCS.",
    "11": "Table 11 does not say whether PMO is on; assumed, since its last row is Table 1's DPA.",
    "14": "Table 14: DPA is below vanilla at 5 % and 10 % of the data; how the shares are drawn is not said.",
    "Fig. 1a": "Fig. 1a reports CVBench alone.",
    "google/gemma-2-9b-it": "Gemma-2: the released file imports a module that is not in the release, and its CMO path "
    "drops the final soft-cap of the logits, which is kept here.",
    CAPTION_SETS["sharegpt4v"]: "ShareGPT4V-PT: the number of records that the paper used is unknown.",
    CAPTION_SETS["pixmo-cap"]: "PixMo-Cap: the number of records that the paper used is unknown.",
    f"{QWEN_BLIP}_no-lora": '"w/o LoRA" may mean that stage 1 trains all weights of the LLM, as here, or that there is '
    f"no proxy at all, which would be {QWEN_BLIP}_cmo; the paper does not say.",
    f"{QWEN}_anyres": "Five tiles are up to 2,880 tokens, above the 2,048 of stage 3 in the scripts; 4,096 here.",
}

UNCOUNTED = ("name", "parent", "family", "tables", "note")  # what a row is called and said of it, not what it changes


def source_of(chosen: Recipe, field: str, stage: Stage | None = None) -> str:
    """Where a value of a recipe, or of one of its stages, stands."""
    if chosen.llm not in LLMS.values():
        return "ours"
    if stage and getattr(chosen.settings(stage), field) != getattr(PAPER_STAGES[stage], field):
        return "ours, see the note"
    return SOURCES.get(f"{stage}.{field}", "") or SOURCES[field]


def flat(chosen: Recipe) -> dict[str, Any]:
    """{field or "stage.field": value} of a recipe, without what is merely said of it."""
    own = {f.name: getattr(chosen, f.name) for f in fields(Recipe) if f.name not in UNCOUNTED}
    stages = {f"{stage}.{k}": v for stage in STAGES for k, v in asdict(own.pop(f"{stage}_stage")).items()}
    return own | stages


def changes(chosen: Recipe) -> dict[str, Any]:
    """What of `flat` differs from the recipe's parent; nothing where it has none."""
    before = flat(RECIPES[chosen.parent]) if chosen.parent else flat(chosen)
    return {name: value for name, value in flat(chosen).items() if before[name] != value}


def _recipes() -> dict[str, Recipe]:
    recipes: dict[str, Recipe] = {}

    def add(base: Recipe, *methods: str) -> Recipe:
        """The recipe, and the same by other methods."""
        for method in ("dpa", *methods):
            own = base if method == "dpa" else replace(base, parent=base.name, **METHODS[method])
            name = f"{base.name}_{method}".removesuffix("_dpa")
            tables = tuple(table for table, rows in TABLES.items() if name in rows)
            tables = tables or ((BEYOND,) if base.llm in LLMS.values() else ())
            files = base.captions if base.caption_count is None else ()
            note = "\n".join(NOTES[key] for key in (*tables, base.llm, *files, base.name) if key in NOTES)
            recipes[name] = replace(own, name=name, tables=tables, note=note)
        return recipes[base.name]

    def vary(parent: Recipe, name: str, *methods: str, family: str = "", **changed: Any) -> Recipe:
        """A recipe that differs from its parent in what is given; its own family, unless one is given."""
        return add(replace(parent, name=name, parent=parent.name, family=family or name, **changed), *methods)

    others = tuple(method for method in METHODS if method != "dpa")
    first = Recipe(
        name=QWEN,
        parent=None,
        llm=LLMS["qwen2.5-7b"],
        vision_tower="openai/clip-vit-large-patch14-336",
        captions=(CAPTION_SETS["sharegpt4v"],),
        instructions="Cambrian737k.jsonl",
        activation_checkpointing=True,
        bf16=True,
        num_workers=4,
        family=QWEN,
    )
    add(first, *others)
    for llm in (*TABLE_LLMS, "vicuna-7b"):  # Table 1 and Fig. 1a: every LLM on ShareGPT4V-PT, then on the other sets
        own = {"image_scale": "embedding", "attention": "eager"} if llm == "gemma-2-9b" else {}
        own = {"chat_template": "vicuna"} if llm == "vicuna-7b" else own
        name = f"{llm}_sharegpt4v"
        parent = first if name == QWEN else vary(first, name, *others, llm=LLMS[llm], **own)
        for captions in ("blip-lcs",) if llm == "vicuna-7b" else ("blip-lcs", "pixmo-cap"):
            stage_1: dict[str, Any] = {"proxy_stage": SHORT_PROXY} if captions == "blip-lcs" else {}
            vary(parent, f"{llm}_{captions}", *others, captions=(CAPTION_SETS[captions],), **stage_1)
    blip = recipes[QWEN_BLIP]
    for size in SIZES:  # Tables 3, 13
        vary(blip, f"qwen2.5-{size}_blip-lcs", *others, llm=LLMS[f"qwen2.5-{size}"])
    for percent in PERCENTS:  # Tables 4, 14
        vary(first, f"{QWEN}_data-{percent}", "vanilla", fraction=percent / 100)
    for rank in (128, 512):  # Tables 6, 15
        vary(blip, f"{QWEN_BLIP}_lora-{rank}", lora_rank=rank, lora_alpha=2 * rank)
    vary(blip, f"{QWEN_BLIP}_no-lora", lora_rank=None)
    vary(blip, f"{QWEN_BLIP}_init-proxy", family=QWEN_BLIP, instruct_from="proxy")  # Tables 7, 16
    files = tuple(CAPTION_SETS.values())
    long = PAPER_STAGES["proxy"]
    vary(blip, "qwen2.5-7b_mixed", "vanilla", captions=files, caption_count=200_000, proxy_stage=long)  # Table 8
    for stage in STAGES[1:]:  # Table 11
        vary(blip, f"{QWEN_BLIP}_cmo-{stage}", family=QWEN_BLIP, weighted_stages=(stage,))
    for bounds, (low, high) in BOUNDS.items():  # Table 12
        vary(blip, f"{QWEN_BLIP}_{bounds}", family=QWEN_BLIP, weighting=Weighting("cmo", low, high))
    longer = replace(first.instruct_stage, max_length=4096)
    vary(first, f"{QWEN}_anyres", "vanilla", family=QWEN, anyres=True, instruct_stage=longer)

    # The laptop lab: the same three stages on shipped foundations. Learning rates and steps are the lab's own.
    lab = Recipe(
        name="lab_ornate",
        parent=None,
        llm="lab",
        vision_tower="lab",
        captions=("lab/ornate",),
        instructions="lab/questions",
        lora_rank=32,
        lora_alpha=64,
        proxy_stage=StageSettings(2e-3, global_batch=16, max_steps=200),
        connector_stage=StageSettings(5e-3, global_batch=16, max_steps=550),
        instruct_stage=StageSettings(1e-3, global_batch=16, max_steps=900, max_length=2048),
        family="lab_ornate",
    )
    add(lab, *others)
    for style in LAB_STYLES:
        if style != "ornate":
            vary(lab, f"lab_{style}", *others, captions=(f"lab/{style}",))
        vary(recipes[f"lab_{style}"], f"lab_{style}_no-lora", lora_rank=None)  # Fig. 4
    # Real records with small models: the file formats at a laptop's scale. Pass --llm, --vision-tower and the data.
    small = replace(
        lab,
        name="small",
        llm="",
        vision_tower="",
        captions=(),
        instructions="",
        family="small",
        proxy_stage=StageSettings(1e-3, global_batch=32, epochs=2.0),
        connector_stage=StageSettings(2e-3, global_batch=32, epochs=3.0),
        instruct_stage=StageSettings(5e-4, global_batch=16, epochs=3.0, max_length=2048),
    )
    add(small, *others)
    return recipes


RECIPES = _recipes()


def recipe(name: str) -> Recipe:
    """The recipe of that name; InputError naming near ones otherwise."""
    try:
        return RECIPES[name]
    except KeyError:
        import difflib

        near = difflib.get_close_matches(name, RECIPES, n=3) or [row for row in RECIPES if row.startswith(name)][:3]
        begin = ", ".join(sorted({row.split("_")[0] for row in RECIPES}))
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are names that begin with {begin};"
        raise InputError(f"unknown recipe {name!r}; {hint} `python -m dpa.recipes` lists all") from None


def text(value: Any) -> str:
    """A value as a person writes it."""
    if isinstance(value, Weighting):
        normalised = f", normalised by {value.normalise}" if value.normalise else ""
        bounds = f" [{value.low:g}, {value.high:g}], {value.form} form{normalised}"
        return value.rule + (bounds if value.rule != "none" else "")
    if isinstance(value, tuple):
        return " + ".join(value) or "(give it)"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value) or "(give it)"


def title(table: str) -> str:
    return f"Table {table}" if table.isdigit() else table


def shown(chosen: Recipe, plan: dict[str, Any]) -> str:
    """A recipe for reading: its values and where they stand, stage by stage, and the plan of `dpa.plans`."""
    from dpa.plans import report

    def rows(values: dict[str, Any], stage: Stage | None = None) -> list[str]:
        return [f"  {k:<26}{text(v):<46}  {source_of(chosen, k, stage)}" for k, v in values.items()]

    changed = ", ".join(f"{name} {text(value)}" for name, value in changes(chosen).items())
    lines = [f"{chosen.name}: as {chosen.parent}, but {changed}" if chosen.parent else chosen.name]
    lines += [f"reported in: {', '.join(map(title, chosen.tables)) or 'none, ours'}", ""]
    unused = {"lora_alpha"} if chosen.lora_rank is None else set()
    unused |= set() if chosen.proxy else {"lora_rank", "lora_alpha", "instruct_from"}
    lines += rows({name: value for name, value in flat(chosen).items() if "." not in name and name not in unused})
    for stage in chosen.stages:
        lines += ["", f"stage {stage}", f"  {'weighting':<26}{text(chosen.weighting_of(stage)):<46}  as above"]
        lines += rows(asdict(chosen.settings(stage)), stage)
    lines += ["", *report(plan)]
    return "\n".join([*lines, "", "note", *(f"  {line}" for line in chosen.note.split("\n"))] if chosen.note else lines)


def as_json(chosen: Recipe, plan: dict[str, Any]) -> str:
    """The same as one JSON object: recipe, sources, stages, batch, estimate."""
    stages = {
        stage: {name: {"value": v, "source": source_of(chosen, name, stage)} for name, v in values.items()}
        | {"weighting": {"value": asdict(chosen.weighting_of(stage)), "source": source_of(chosen, "weighting")}}
        for stage, values in ((stage, asdict(chosen.settings(stage))) for stage in chosen.stages)
    }
    sources = {name: source_of(chosen, name) for name in flat(chosen) if "." not in name}
    return json.dumps({"recipe": asdict(chosen), "sources": sources, "stages": stages, **plan}, indent=2)


def listing(only: str | None) -> str:
    """The recipes under the tables that report them, each with what it changes against its parent."""
    groups = {**TABLES, BEYOND: tuple(r.name for r in RECIPES.values() if r.tables == (BEYOND,))}
    groups |= {own: tuple(name for name in RECIPES if name.startswith(own)) for own in ("lab", "small")}
    if only is not None and only not in groups:
        raise InputError(f"no table {only!r}; there are {', '.join(groups)}")
    lines = []
    for group in [only] if only else groups:
        lines += [title(group)]
        for name in groups[group]:
            told = ", ".join(f"{k} {text(v)}" for k, v in changes(RECIPES[name]).items())
            lines.append(f"  {name:<37} {f'as {RECIPES[name].parent}: {told}' if told else 'a first row'}")
    return "\n".join(lines)


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dpa.recipes", description=__doc__.split("\n")[0])
    parser.add_argument("--show", metavar="R", help="one recipe: every value, where it stands, batches, cost")
    parser.add_argument("--json", action="store_true", help="with --show: as one JSON object")
    parser.add_argument("--table", metavar="N", help='only the recipes of a table: 1 to 16, "Fig. 1a", lab, small')
    parser.add_argument("--gpus", type=int, help="share the batch among N devices (default: 8; the lab: 1)")
    parser.add_argument("--gpu", choices=("h100", "h200", "a100"), default="h100", help="for the estimate")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak assumed in the estimate")
    options = parser.parse_args(arguments)
    if options.show is None:
        print(listing(options.table))
        return 0
    from dpa.plans import plan

    chosen = recipe(options.show)
    gpus = options.gpus if options.gpus is not None else 8 if chosen.llm in LLMS.values() else 1
    print((as_json if options.json else shown)(chosen, plan(chosen, gpus, options.gpu, options.mfu)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
