"""The real path on real records, shortened: every step works, perplexity and losses go the right way."""

import json

import pytest

from benchmarks import real


@pytest.mark.slow
def test_three_stages_on_real_records(shared, tmp_path):
    short = ["--max_steps", "30", "--logging_steps", "1", "--disable_tqdm", "true"]
    report = real.run(shared, tmp_path / "runs", publish=tmp_path / "results", llm_steps=60, extra=short)
    captions = report["held_out_captions"]
    assert captions["base"]["texts"] == captions["proxy"]["texts"] == 166
    assert captions["proxy"]["perplexity"] < captions["base"]["perplexity"]
    for stage, (first, last) in report["loss_per_token_first_and_last"].items():
        assert last < first, stage
    rows = [json.loads(line) for line in (tmp_path / "results" / "records.jsonl").read_text().splitlines()]
    assert {(row["benchmark"], row["units"]) for row in rows} >= {("POPE", 4)}
    asked = {
        row["image"] for row in map(json.loads, (shared / "data" / "coco_images_224" / "linked_items.jsonl").open())
    }
    taught = {row["image"] for row in json.loads((tmp_path / "runs" / "instructions.json").read_text())}
    assert taught and not asked & taught, "no benchmark photo is trained on"


def test_missing_shared_data_is_one_line(tmp_path, capsys):
    assert real.main(["--shared", str(tmp_path / "nowhere"), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "give the folder of shared data with --shared" in error and error.count("\n") == 1
