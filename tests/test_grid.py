"""The lab's grid: which cells it asks for, what records say of a model, the dial of a base LLM."""

import json

import pytest

from benchmarks import grid, run
from benchmarks.records import method_of, trained_as
from dpa.errors import InputError
from dpa.lab import foundations
from dpa.lineage import file_hash, folder_hash
from dpa.recipes import RECIPES


def test_records_say_what_a_model_was_trained_on(finished, tiny_models, data, tmp_path):
    told = trained_as(finished / "small" / "instruct")
    assert told == {
        "llm": str(tiny_models["llm"]),
        "llm_hash": folder_hash(tiny_models["llm"]),
        "captions": "captions.json",
        "captions_hash": file_hash(data / "captions.json"),
        "method": "dpa",
    }
    assert trained_as(tmp_path) == {}


@pytest.mark.parametrize(
    ("recipe", "method"),
    [
        ("lab_terse_vanilla", "vanilla"),
        ("lab_ornate", "dpa"),
        ("qwen2.5-7b_blip-lcs_pmo+cal", "pmo+cal"),
        ("gemma-2-9b_pixmo-cap_cal", "cal"),
        ("lab_ornate_no-lora", "lab_ornate_no-lora"),
        ("qwen2.5-7b_blip-lcs_lora-128", "qwen2.5-7b_blip-lcs_lora-128"),
        ("qwen2.5-7b_blip-lcs_clip-0-1", "qwen2.5-7b_blip-lcs_clip-0-1"),
        ("qwen2.5-7b_sharegpt4v_data-5", "qwen2.5-7b_sharegpt4v_data-5"),
    ],
)
def test_a_recipe_that_varies_more_is_no_plain_method(recipe, method):
    assert method_of(RECIPES[recipe]) == method


def test_every_cell_is_asked_for_once_and_llms_share_the_data(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(run, "main", lambda arguments: asked.append(arguments) or 0)
    monkeypatch.setattr(grid, "base_llm", lambda name, folder: folder / name / "llm")
    files = grid.run_grid(tmp_path, ["shipped", "terse"], ["vanilla", "dpa"], [0, 3], 1)
    assert files == [tmp_path / name / "records.jsonl" for name in ("shipped", "terse")]
    cells = [tuple(row[row.index(flag) + 1] for flag in ("--llm", "--captions", "--output")) for row in asked]
    assert len(set(cells)) == 6 and all("vanilla dpa" in " ".join(row) and "0 3" in " ".join(row) for row in asked)
    (tmp_path / "vision" / "x").write_text("kept")
    assert (tmp_path / "terse" / "vision" / "x").read_text() == "kept"
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert (moved / "terse" / "vision" / "x").read_text() == "kept", "links survive a move"


def test_an_llm_is_made_once_from_the_shipped_one(tmp_path, monkeypatch):
    made = []

    def ship(folder, **options):
        made.append(options)
        about = {"exposure": options["exposure"], "exposure_steps": options["exposure_steps"]}
        (folder / "manifest.json").write_text(json.dumps(about))

    monkeypatch.setattr(foundations, "ship", ship)
    assert grid.base_llm("terse", tmp_path) == grid.base_llm("terse", tmp_path) == tmp_path / "terse" / "llm"
    assert (
        len(made) == 1
        and made[0]["exposure"] == {"plain": 0.2, "terse": 0.8}
        and made[0]["reading"] == foundations.SHIPPED
    )
    assert grid.base_llm("shipped", tmp_path).name == "llm" and len(made) == 1
    monkeypatch.setitem(grid.DIALECTS, "terse", ({"terse": 1.0}, 400))
    with pytest.raises(InputError, match=r"was made with exposure .*; delete it to make it again"):
        grid.base_llm("terse", tmp_path)


@pytest.mark.parametrize("text", ["ornate", "nothing=0.5", "ornate=2", "ornate=x"])
def test_a_share_that_is_none(text, capsys):
    with pytest.raises(SystemExit):
        foundations.main(["--exposure", text])
    assert "should be STYLE=SHARE with a style of plain, terse, ornate" in capsys.readouterr().err


@pytest.mark.slow
def test_more_of_a_style_makes_it_less_surprising(tmp_path):
    """Forty steps of exposure to ornate captions alone: their perplexity falls, and reading stays."""
    foundations.ship(tmp_path, exposure_steps=40, exposure={"ornate": 1.0}, reading=foundations.SHIPPED)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    before = json.loads((foundations.SHIPPED / "manifest.json").read_text())["evaluation"]
    assert manifest["exposure"] == {"ornate": 1.0}
    assert manifest["evaluation"]["perplexity"]["ornate"] < 0.9 * before["perplexity"]["ornate"]
    assert manifest["evaluation"]["reading"]["all"] > 0.9
