"""Weights normalised by sample, over the global batch, or by rank: the same steps however the batch is shared out, or not."""

import json

import pytest
import torch

from dpa import train
from dpa.loss import batch_loss
from dpa.methods import NONE, Weighting
from tests.conftest import command, weights
from tests.test_distributed import finish, torchrun
from tests.test_packing import llava_batches

BOUNDS = {"low": 0.0, "high": 1.0}  # tiny random models move probabilities by little


def result(folder):
    rows = json.loads((folder / "log.json").read_text())
    return weights(folder), {n: [row[n] for row in rows if n in row] for n in ("grad_norm", "loss")}


def run(tiny_models, data, output, how, micro, processes=1):
    flags = ["--normalise", how, "--use_cpu", "true", "--per_device_train_batch_size", str(micro)]
    flags += ["--gradient_accumulation_steps", str(8 // micro // processes)]
    words = command(tiny_models, data, output, recipe="small_cmo", stage="connector", steps=3) + flags
    if processes > 1:
        process = torchrun("-m", "dpa.train", *words, processes=processes)
        text = finish(process, 120)
        assert process.returncode == 0, text[-3000:]
    else:
        assert train.main(words) == 0
    return result(output / "small_cmo" / "connector")


@pytest.mark.parametrize("how", ["sample", "global"])
def test_8_x_1_is_1_x_8_is_2_processes_x_4(tiny_models, data, tmp_path, how):
    whole, told = run(tiny_models, data, tmp_path / "whole", how, 8)
    for name, micro, processes in (("split", 1, 1), ("two", 1, 2)):
        other, other_told = run(tiny_models, data, tmp_path / name, how, micro, processes)
        for figure, values in told.items():
            assert other_told[figure] == pytest.approx(values, rel=5e-4), (name, figure)
        for key in whole:
            torch.testing.assert_close(other[key], whole[key], atol=2e-5, rtol=1e-3)


def test_by_rank_the_micro_batch_decides(tiny_models, data, tmp_path):
    """A short caption beside a long one: by rank each token counts alike within the micro-batch, so sharing out matters."""
    _, whole = run(tiny_models, data, tmp_path / "whole", "rank", 8)
    _, split = run(tiny_models, data, tmp_path / "split", "rank", 1)
    _, sample = run(tiny_models, data, tmp_path / "sample", "sample", 8)
    assert split["loss"] == pytest.approx(sample["loss"], rel=1e-3)  # one sample in each micro-batch
    assert abs(whole["loss"][0] - sample["loss"][0]) > 1e-5


@pytest.mark.parametrize("form", ["paper", "released"])
def test_what_the_loss_of_a_batch_is(lab_tokenizer, form):
    """sum of w nll over sum of w, by hand from `batch_loss` of single samples."""
    model, padded, _ = llava_batches(lab_tokenizer, sizes=((9, True), (4, True), (6, True)))
    single = []
    for row in range(3):
        own = {name: tensor[row : row + 1] for name, tensor in padded.items()}
        single.append(batch_loss(model, own, Weighting("cmo", **BOUNDS, normalise="global")))
    together = batch_loss(model, padded, Weighting("cmo", **BOUNDS, normalise="global"))
    mass = sum(float(one.num_items) for one in single)
    assert float(together.num_items) == pytest.approx(mass, rel=1e-5)
    assert float(together.mean) == pytest.approx(sum(float(one.total) for one in single) / mass, rel=1e-5)
    means = [float(one.mean) for one in single]
    by_sample = batch_loss(model, padded, Weighting("cmo", **BOUNDS, normalise="sample", form="paper"))
    assert float(by_sample.mean) == pytest.approx(sum(means) / 3, rel=1e-5)
    assert float(by_sample.mean) != pytest.approx(float(together.mean), rel=1e-6)
    own = batch_loss(model, padded, Weighting("cmo", **BOUNDS, form=form))
    named = Weighting("cmo", **BOUNDS, form=form, normalise="sample" if form == "paper" else "rank")
    assert float(own.mean) == float(batch_loss(model, padded, named).mean)
    assert float(batch_loss(model, padded, NONE).mean) != pytest.approx(float(own.mean))


def test_naming_the_default_changes_nothing():
    from dpa.arguments import resolve
    from dpa.recipes import recipe
    from dpa.train import parse

    def weighting(*words):
        flags, _ = parse(["--recipe", "lab_ornate", *words])
        return resolve(flags).weighting

    assert weighting("--normalise", "sample") == weighting() == recipe("lab_ornate").weighting
    assert weighting("--normalise", "global").normalise == "global"
    assert weighting("--weighting-form", "released", "--normalise", "rank") == weighting("--weighting-form", "released")
    flags, _ = parse(["--recipe", "lab_ornate_vanilla", "--normalise", "global"])
    assert resolve(flags).weighting == NONE


def test_deepspeed_is_told_that_it_cannot(tiny_models, data, tmp_path, capsys, monkeypatch):
    from dpa.trainer import DPATrainer

    monkeypatch.setattr(DPATrainer, "is_deepspeed_enabled", True, raising=False)
    monkeypatch.setattr("transformers.Trainer.__init__", lambda self, *a, **k: None)
    words = command(tiny_models, data, tmp_path, "--normalise", "global", recipe="small_cmo", stage="connector")
    assert train.main(words) == 2
    assert "--normalise global" in capsys.readouterr().err
