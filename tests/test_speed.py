"""The speed comparison compares the same thing, and prints what it says."""

import argparse
import json

import pytest
import torch

from benchmarks import speed
from dpa.loss import batch_loss
from dpa.methods import Weighting

TINY = [
    "--hidden",
    "64",
    "--layers",
    "2",
    "--vocab",
    "400",
    "--image-tokens",
    "9",
    "--text-tokens",
    "6",
    "--batch",
    "2",
]
OPTIONS = argparse.Namespace(
    hidden=64, layers=2, vocab=400, image_tokens=9, text_tokens=6, batch=2, trainable="connector", device="cpu", steps=1
)


def test_the_plain_reference_is_the_released_form():
    """Value and gradient of the reference equal ours, so both sides of the ratio compute one loss."""
    model, batch = speed.build(OPTIONS)
    results = []
    ours = Weighting("cmo", 0.05, 0.5, form="released")
    for loss in (speed.released_loss(model, batch), batch_loss(model, batch, ours).mean):
        model.zero_grad()
        loss.backward()
        results.append((loss.detach(), model.model.multi_modal_projector.linear_1.weight.grad.clone()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-7)


def test_vanilla_is_stocks_loss():
    model, batch = speed.build(OPTIONS)
    functions = speed.losses(model, batch)
    torch.testing.assert_close(functions["vanilla"](), functions["stock"](), rtol=1e-5, atol=1e-6)


def test_one_json_object_with_ratios_of_time_and_memory(capsys):
    assert speed.main([*TINY, "--steps", "2", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    for pair in ("cmo/vanilla", "cmo/released", "vanilla/stock"):
        assert record["ratios"][pair] > 0 and f"{pair}_memory" in record["ratios"]
    assert record["shape"]["hidden"] == 64 and record["seconds"].keys() == set(speed.FORMULATIONS)


def test_a_shape_that_cannot_be_is_named(capsys):
    assert speed.main(["--image-tokens", "10"]) == 2
    assert "--image-tokens should be a square" in capsys.readouterr().err


@pytest.mark.slow
def test_the_weighted_step_stays_far_below_the_released_one(capsys):
    """Generous bounds on ratios, for a busy machine; results/speed has the measured ones."""
    shape = ["--hidden", "256", "--layers", "4", "--vocab", "32000", "--text-tokens", "30"]
    assert speed.main([*shape, "--json"]) == 0
    ratios = json.loads(capsys.readouterr().out)["ratios"]
    assert ratios["cmo/released"] < 0.6 and ratios["cmo/released_memory"] < 0.6
    assert ratios["cmo/vanilla"] < 1.5 and ratios["vanilla/stock"] < 1.0
