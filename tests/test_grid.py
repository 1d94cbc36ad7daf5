"""The lab's grid: which cells it asks for, what records say of a model, the dial of a base LLM."""

import json

import pytest

from benchmarks import grid, run
from benchmarks.records import trained_as
from dpa.lab import foundations
from dpa.lineage import folder_hash


def test_records_say_what_a_model_was_trained_on(finished, tiny_models, tmp_path):
    told = trained_as(finished / "small" / "instruct")
    assert told == {
        "llm": str(tiny_models["llm"]),
        "llm_hash": folder_hash(tiny_models["llm"]),
        "captions": "captions.json",
        "method": "dpa",
    }
    assert trained_as(tmp_path) == {}


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
        (folder / "manifest.json").write_text("{}")

    monkeypatch.setattr(foundations, "ship", ship)
    assert grid.base_llm("terse", tmp_path) == grid.base_llm("terse", tmp_path) == tmp_path / "terse" / "llm"
    assert (
        len(made) == 1
        and made[0]["exposure"] == {"plain": 0.2, "terse": 0.8}
        and made[0]["reading"] == foundations.SHIPPED
    )
    assert grid.base_llm("shipped", tmp_path).name == "llm" and len(made) == 1


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
