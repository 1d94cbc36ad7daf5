"""Activation checkpointing computes the LLM's layers again and nothing else, and changes no weight."""

import pytest
import torch

from dpa import train
from tests.conftest import command, weights


@pytest.mark.parametrize("stage", ["proxy", "connector", "instruct"])
def test_the_tower_is_not_computed_again(tiny_models, data, tmp_path, monkeypatch, stage):
    from transformers.models.clip.modeling_clip import CLIPMLP
    from transformers.models.llama.modeling_llama import LlamaMLP

    calls = {"CLIPMLP": 0, "LlamaMLP": 0}

    def count(kind):
        forward = kind.forward

        def counted(self, *arguments, **options):
            calls[kind.__name__] += torch.is_grad_enabled()  # not in the blind pass
            return forward(self, *arguments, **options)

        monkeypatch.setattr(kind, "forward", counted)

    results, counts = [], []
    before = {"instruct": "connector"}.get(stage)
    flags = ["--gradient_accumulation_steps", "1"]
    for name in ("plain", "checkpointed"):
        if before:
            words = command(tiny_models, data, tmp_path / name, *flags, recipe="small_cmo", stage=before)
            assert train.main(words) == 0
        count(CLIPMLP)
        count(LlamaMLP)
        calls.update(dict.fromkeys(calls, 0))
        recipe = "small" if stage == "proxy" else "small_cmo"
        more = ["--activation_checkpointing", str(name == "checkpointed"), *flags]
        assert train.main(command(tiny_models, data, tmp_path / name, *more, recipe=recipe, stage=stage)) == 0
        monkeypatch.undo()
        results.append(weights(tmp_path / name / recipe / stage))
        counts.append(dict(calls))
    (plain, again), layers, steps = counts, 2, 4
    assert plain["CLIPMLP"] == again["CLIPMLP"] == (0 if stage == "proxy" else layers * steps)
    assert again["LlamaMLP"] == 2 * plain["LlamaMLP"] == 2 * layers * steps
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, atol=1e-6, rtol=1e-5)
