"""Recipes: every row of the paper's tables has one, its values are the paper's, and what it costs adds up."""

import csv
import json
from dataclasses import fields

import pytest

from dpa import recipes
from dpa.errors import InputError
from dpa.methods import CMO, METHODS, NONE, STAGES, Weighting
from dpa.recipes import BEYOND, LLMS, RECIPES, SOURCES, TABLES, UNCOUNTED, Recipe, StageSettings, changes, recipe

PAPER = {name: row for name, row in RECIPES.items() if row.llm in LLMS.values()}

# The words of published_numbers.csv -> the parts of a recipe's name.
MODELS = {
    **{f"Qwen2.5-{size}B-Instruct": f"qwen2.5-{size}b" for size in ("1.5", "3", "7", "14", "32")},
    "Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "Gemma-2-9B-it": "gemma-2-9b",
}
_BLIP = ("BLIP-LCS", "BLIP-LCS(A.4 default)", "BLIP-LCS(A.4 default; last row equals Table1)")
_SHAREGPT = ("", "(inferred; A.4 default says BLIP-LCS)", "(inferred; rows equal Table1)", "+Cambrian-1 subsets 100%")
DATA = {
    **dict.fromkeys(_BLIP, "blip-lcs"),
    **{f"ShareGPT4V-PT{words}": "sharegpt4v" for words in _SHAREGPT},
    **{f"ShareGPT4V-PT+Cambrian-1 subsets {share}%": f"sharegpt4v_data-{share}" for share in (5, 10, 25, 50)},
    "PixMo-Cap": "pixmo-cap",
    "Mixed 200K BLIP-LCS+200K ShareGPT4V-PT+200K PixMo-Cap": "mixed",
}
ROWS = {
    **dict.fromkeys(("DPA", "PMO + CMO", "DPA stage3 init=Target LLM", "DPA clamp [0.05;0.5]"), ""),
    **dict.fromkeys(("DPA with LoRA r=256", "DPA with LoRA r=256 alpha=512", "CMO[PT=yes;IT=yes] (PMO assumed)"), ""),
    **dict.fromkeys(("PMO", "+ PMO", "DPA w/o CMO", "CMO[PT=no;IT=no] (PMO assumed)"), "_pmo"),
    **dict.fromkeys(("+ CMO", "DPA w/o PMO"), "_cmo"),
    "Vanilla": "_vanilla",
    "CAL": "_cal",
    "PMO + CAL": "_pmo+cal",
    "DPA w/o LoRA": "_no-lora",
    **dict.fromkeys(("DPA with LoRA r=128", "DPA with LoRA r=128 alpha=256"), "_lora-128"),
    **dict.fromkeys(("DPA with LoRA r=512", "DPA with LoRA r=512 alpha=1024"), "_lora-512"),
    "DPA stage3 init=Proxy LLM": "_init-proxy",
    "CMO[PT=yes;IT=no] (PMO assumed)": "_cmo-connector",
    "CMO[PT=no;IT=yes] (PMO assumed)": "_cmo-instruct",
    "DPA clamp [0;1]": "_clip-0-1",
    "DPA clamp [0;0.5]": "_clip-0-0.5",
    "DPA clamp [0.05;1]": "_clip-0.05-1",
}


def test_every_published_row_has_a_recipe(shared):
    with open(shared / "paper" / "published_numbers.csv", newline="") as file:
        published = {
            (row["table"], row["model"], row["pretrain_data"], row["method"])
            for row in csv.DictReader(file)
            if row["table"].startswith("Table")
        }
    assert {table for table, *_ in published} == {f"Table{number}" for number in range(1, 17)}
    wanted: dict[str, set[str]] = {}
    for table, model, data, method in published:
        name = f"{MODELS[model]}_{DATA[data]}{ROWS[method]}"
        number = table.removeprefix("Table")
        assert name in RECIPES and number in RECIPES[name].tables, (table, model, data, method)
        wanted.setdefault(number, set()).add(name)
    # and nothing stands under a table that does not report it
    assert wanted == {table: set(rows) for table, rows in TABLES.items() if table.isdigit()}


def test_tables_and_recipes_agree():
    assert list(TABLES) == [*map(str, range(1, 17)), "Fig. 1a"]
    assert [name for name, row in RECIPES.items() if not row.parent] == ["qwen2.5-7b_sharegpt4v", "lab_ornate", "small"]
    for table, rows in TABLES.items():
        assert len(set(rows)) == len(rows) and all(table in RECIPES[name].tables for name in rows)
    for name, row in RECIPES.items():
        reported = tuple(table for table, rows in TABLES.items() if name in rows)
        assert row.name == name
        assert row.tables == (reported or ((BEYOND,) if name in PAPER else ()))
    assert set(TABLES["Fig. 1a"]) == {
        f"{llm}_{captions}_vanilla" for llm in ("vicuna-7b", "qwen2.5-7b") for captions in ("blip-lcs", "sharegpt4v")
    }


@pytest.mark.parametrize("name", PAPER)
def test_values_are_those_of_the_paper_and_the_scripts(name):
    row = PAPER[name]
    everywhere = {"global_batch": 256, "epochs": 1.0, "max_steps": -1, "warmup": 0.03, "schedule": "cosine"}
    everywhere |= {"weight_decay": 0.0, "group_by_length": True}
    per_stage = {
        "proxy": {"learning_rate": 4e-5, "max_length": 8192},
        "connector": {"learning_rate": 2e-3, "max_length": 8192, "pad": False},
        "instruct": {"learning_rate": 4e-5, "max_length": 4096 if row.anyres else 2048, "pad": True},
    }
    for stage in STAGES:
        for field, value in (everywhere | per_stage[stage]).items():
            assert getattr(row.settings(stage), field) == value, (stage, field)
    assert row.vision_tower == "openai/clip-vit-large-patch14-336"
    assert row.instructions == "Cambrian737k.jsonl"
    assert row.activation_checkpointing
    is_gemma = row.llm == "google/gemma-2-9b-it"
    assert (row.image_scale, row.attention) == (("embedding", "eager") if is_gemma else ("unit", "sdpa"))
    if "lora" not in name:
        assert (row.lora_rank, row.lora_alpha) == (256, 512)
    if "data-" not in name:
        assert row.fraction == 1.0
    assert row.weighting.rule != "cmo" or "clip" in name or (row.weighting.low, row.weighting.high) == (0.05, 0.5)
    assert row.weighting.rule != "cal" or (row.weighting.low, row.weighting.high) == (1.0, 5.0)


def test_single_recipes():
    """What distinguishes a row of the smaller tables, typed from the paper."""
    blip = {"captions": ("blip_laion_cc_sbu_558k.json",), "llm": "Qwen/Qwen2.5-7B-Instruct"}
    for name, values in {
        "qwen2.5-7b_blip-lcs": blip | {"weighting": Weighting("cmo", 0.05, 0.5), "proxy": True},
        "qwen2.5-7b_blip-lcs_lora-512": blip | {"lora_rank": 512, "lora_alpha": 1024},
        "qwen2.5-7b_blip-lcs_no-lora": blip | {"lora_rank": None, "proxy": True},
        "qwen2.5-7b_blip-lcs_init-proxy": blip | {"instruct_from": "proxy"},
        "qwen2.5-7b_blip-lcs_clip-0-1": blip | {"weighting": Weighting("cmo", 0.0, 1.0)},
        "qwen2.5-7b_sharegpt4v_data-50_vanilla": {"fraction": 0.5, "proxy": False, "weighting": NONE},
        "qwen2.5-7b_mixed": {"caption_count": 200_000, "anyres": False},
        "qwen2.5-7b_sharegpt4v_anyres_vanilla": {"anyres": True, "proxy": False},
        "qwen2.5-1.5b_blip-lcs": blip | {"llm": "Qwen/Qwen2.5-1.5B-Instruct"},
        "vicuna-7b_blip-lcs_vanilla": blip | {"llm": "lmsys/vicuna-7b-v1.5"},
    }.items():
        assert {field: getattr(RECIPES[name], field) for field in values} == values, name
    assert len(RECIPES["qwen2.5-7b_mixed"].captions) == 3
    for stage, other in (("connector", "instruct"), ("instruct", "connector")):
        row = RECIPES[f"qwen2.5-7b_blip-lcs_cmo-{stage}"]
        assert (row.weighting_of("proxy"), row.weighting_of(stage), row.weighting_of(other)) == (NONE, CMO, NONE)


@pytest.mark.parametrize("name", [name for name, row in RECIPES.items() if row.parent])
def test_a_recipe_changes_one_to_three_things_of_its_parent(name):
    row, parent = RECIPES[name], RECIPES[RECIPES[name].parent]
    differ = [f.name for f in fields(Recipe) if getattr(row, f.name) != getattr(parent, f.name)]
    counted = [field for field in differ if field not in UNCOUNTED]
    assert 1 <= len(counted) <= 3 and 1 <= len(changes(row)) <= 3
    method = {"proxy": row.proxy, "weighting": row.weighting}
    if (suffix := name.rpartition("_")[2]) in METHODS:
        assert method == METHODS[suffix] and set(counted) <= {"proxy", "weighting"}


def test_a_family_is_what_shares_stage_1():
    shared: dict[tuple, set[str]] = {}
    for row in RECIPES.values():
        stage_1 = (row.llm, row.captions, row.caption_count, row.fraction, row.lora_rank, row.lora_alpha)
        shared.setdefault((*stage_1, row.attention, row.proxy_stage), set()).add(row.family)
    assert all(len(families) == 1 for families in shared.values())
    assert len(set.union(*shared.values())) == len(shared)
    assert all(row.family in RECIPES for row in RECIPES.values())


def test_the_lab_is_what_it_was():
    for style in ("plain", "terse", "ornate"):
        row = RECIPES[f"lab_{style}"]
        assert (row.llm, row.vision_tower, row.captions) == ("lab", "lab", (f"lab/{style}",))
        assert (row.lora_rank, row.lora_alpha, row.tables, row.note) == (32, 64, (), "")
        assert row.proxy_stage == StageSettings(2e-3, global_batch=16, max_steps=200)
        assert row.connector_stage == StageSettings(5e-3, global_batch=16, max_steps=550)
        assert row.instruct_stage == StageSettings(1e-3, global_batch=16, max_steps=900, max_length=2048)
    small = RECIPES["small"]
    assert (small.llm, small.captions, small.instructions) == ("", (), "") and not small.activation_checkpointing
    assert small.proxy_stage == StageSettings(1e-3, global_batch=32, epochs=2.0, group_by_length=False, pad=True)
    assert small.connector_stage == StageSettings(2e-3, global_batch=32, epochs=3.0)
    assert small.instruct_stage == StageSettings(5e-4, global_batch=16, epochs=3.0, max_length=2048)


def test_every_value_says_where_it_stands():
    own = {f.name for f in fields(Recipe)} - set(UNCOUNTED) - {f"{stage}_stage" for stage in STAGES}
    for field in own | {f.name for f in fields(StageSettings)} - {"pad"}:
        assert SOURCES[field].startswith(("paper", "released scripts", "ours: ")), field
    assert {name.rpartition(".")[2] for name in SOURCES} == own | {f.name for f in fields(StageSettings)}
    assert {f"{stage}.pad" for stage in STAGES} <= SOURCES.keys()
    row = RECIPES["qwen2.5-7b_sharegpt4v_anyres"]
    assert recipes.source_of(row, "max_length", "instruct") == "ours, see the note" and "4,096" in row.note
    assert recipes.source_of(RECIPES["small"], "learning_rate", "proxy") == "ours"


def test_notes_tell_what_does_not_agree():
    for name, words in (
        ("qwen2.5-7b_sharegpt4v_cmo", ("A.4", "46.1", "unknown")),
        ("qwen2.5-7b_sharegpt4v_data-5", ("Tables 4 and 14",)),
        ("llama-3.1-8b_blip-lcs", ("7.37", "14.9 %")),
        ("qwen2.5-7b_blip-lcs_no-lora", ("does not say", "PMO-only")),
        ("qwen2.5-7b_blip-lcs_cmo-connector", ("assumed",)),
        ("qwen2.5-14b_blip-lcs_vanilla", ("46.4", "46.6")),
        ("qwen2.5-7b_mixed", ("50.40",)),
    ):
        assert all(word in RECIPES[name].note for word in words), name


@pytest.mark.parametrize("name", RECIPES)
def test_show_tells_every_recipe(name, capsys):
    row = RECIPES[name]
    assert recipes.main(["--show", name]) == 0
    told = capsys.readouterr().out
    for stage in STAGES:
        assert (f"\nstage {stage}\n" in told) == (stage in row.stages)
    assert told.startswith(name) and ("GPU hours" in told) == (name in PAPER)
    assert all(line in told for line in row.note.split("\n"))
    assert recipes.main(["--show", name, "--json", "--gpus", "2"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.keys() == {"recipe", "sources", "stages", "batch", "estimate"}
    assert told["recipe"]["name"] == name and list(told["stages"]) == list(row.stages) == list(told["batch"])
    for stage, plan in told["batch"].items():
        assert plan["micro_batch"] * 2 * plan["accumulation"] == row.settings(stage).global_batch
        assert told["stages"][stage]["weighting"]["value"]["rule"] == row.weighting_of(stage).rule
    assert (told["estimate"] is not None) == (name in PAPER)


def test_listing_goes_by_table(capsys):
    assert recipes.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if not line.startswith(" ")]
    assert heads == [*(f"Table {n}" for n in range(1, 17)), "Fig. 1a", BEYOND, "lab", "small"]
    assert {line.split()[0] for line in lines if line.startswith(" ")} == set(RECIPES)
    assert recipes.main(["--table", "12"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Table 12" and [line.split()[0] for line in lines[1:]] == list(TABLES["12"])
    assert lines[1].endswith("as qwen2.5-7b_blip-lcs: weighting cmo [0, 1], paper form")


def test_mistakes_end_in_one_line(capsys):
    for arguments, words in (
        (["--show", "qwen2.5-7b_sharegpt4"], ("unknown recipe", "did you mean qwen2.5-7b_sharegpt4v")),
        (["--show", "xyzzy"], ("unknown recipe 'xyzzy'", "there are ")),
        (["--table", "17"], ("no table '17'", "Fig. 1a")),
        (["--show", "lab_ornate", "--gpus", "3"], ("--gpus 3 does not divide",)),
        (["--show", "qwen2.5-7b_mixed", "--gpus", "0"], ("--gpus 0",)),
        (["--show", "qwen2.5-7b_mixed", "--mfu", "1.5"], ("--mfu",)),
    ):
        assert recipes.main(arguments) == 2, arguments
        told = capsys.readouterr().err
        assert told.startswith("error: ") and told.count("\n") == 1 and all(word in told for word in words)
    with pytest.raises(InputError, match="did you mean"):
        recipe("lab_ornat")


# --- costs
