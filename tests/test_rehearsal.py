"""The commands that stand between a laptop and a GPU cluster: steps at a recipe's shape, the rehearsal of a whole recipe."""

import json

import pytest

from benchmarks import rehearsal, steps
from dpa.costs import SHAPES, Shape
from dpa.lab.small import FAMILIES, family_config

TINY = ["--device", "cpu", "--layers", "1", "--hidden", "16", "--tower-layers", "1", "--micro-batch", "1"]


@pytest.mark.parametrize("llm", SHAPES)
def test_configurations_have_the_recipe_llms_shapes(llm):
    config = family_config(llm)
    assert Shape.from_config(config) == SHAPES[llm] and config.model_type in FAMILIES.values()
    small = family_config(llm, layers=2, hidden=64)
    assert (small.num_hidden_layers, small.hidden_size, small.vocab_size) == (2, 64, SHAPES[llm].vocab)
    assert type(small) is type(config)


def test_steps_are_measured_and_published(tmp_path, capsys):
    more = ["--text-tokens", "8", "--supervised-tokens", "4", "--steps", "3", "--dtype", "fp32"]
    assert steps.main(["--recipe", "llama-3.1-8b_blip-lcs", *TINY, *more, "--publish", str(tmp_path)]) == 0
    whole = json.loads((tmp_path / "steps.json").read_text())
    assert whole["figures"].keys() == {"llama-3.1-8b_blip-lcs/connector", "llama-3.1-8b_blip-lcs/instruct"}
    for row in whole["figures"].values():
        assert len(row["seconds_all"]) == 3 and row["seconds_a_step"] > 0 and "mfu" not in row
        assert row["tokens_per_s"] == pytest.approx((8 + 576) / row["seconds_a_step"])
        assert row["executed_flops_a_step"] > row["model_flops_a_step"] > 0
    assert whole["provenance"]["commit"]
    capsys.readouterr()
    assert steps.main(["--recipe", "llama-3.1-8b_blip-lcs", *TINY, "--supervised-tokens", "999"]) == 2
    assert "--supervised-tokens should be" in capsys.readouterr().err


@pytest.mark.slow
def test_a_rehearsal_killed_and_resumed_ends_like_an_unbroken_one(shared, tmp_path):
    few = ["--max_steps", "8", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1"]
    arguments = ["--shared", str(shared), "--output", str(tmp_path / "runs"), "--hidden", "32", *few]
    assert rehearsal.main([*arguments, "--publish", str(tmp_path / "results")]) == 0
    report = json.loads((tmp_path / "results" / "qwen2.5-7b_sharegpt4v.json").read_text())
    assert report["killed_after_step_of_connector"] >= 1 and report["model"]["vocabulary"] == 152_064
    for stage in ("proxy", "connector", "instruct"):
        row = report["stages"][stage]
        assert (row["steps"], row["processes"]) == (8, 2) and row["largest_difference_to_unbroken"] == 0.0
