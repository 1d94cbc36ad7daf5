"""The tower's features from the disk: the same training without opening a picture; other pictures are other features."""

import shutil

import pytest
import torch
from PIL import Image

from dpa import data as data_module
from dpa import train
from tests.conftest import command, weights
from tests.test_blind_cache import log


@pytest.fixture(scope="module")
def runs(tiny_models, data, tmp_path_factory):
    """Stages 2 and 3 by cmo, with the cache and without."""
    output = tmp_path_factory.mktemp("vision")
    for name, flags in (("on", ["--cache", "vision"]), ("off", ["--cache"])):
        for stage in ("connector", "instruct"):
            assert train.main(command(tiny_models, data, output / name, *flags, recipe="small_cmo", stage=stage)) == 0
    return output


def test_a_run_trains_as_with_the_pictures(runs):
    assert len(list((runs / "on" / "vision").glob("vision-*/complete.json"))) == 2  # captions' and questions' pictures
    assert not (runs / "off" / "vision").exists()
    for stage in ("connector", "instruct"):
        on, off = (runs / name / "small_cmo" / stage for name in ("on", "off"))
        for name in ("loss", "grad_norm", "relevance"):
            assert log(on, name) == pytest.approx(log(off, name), rel=1e-3, abs=1e-5)
        for name, tensor in weights(off).items():
            torch.testing.assert_close(weights(on)[name], tensor, atol=2e-5, rtol=1e-3)


def test_no_picture_is_opened_and_the_tower_does_not_run(runs, tiny_models, data, tmp_path, monkeypatch):
    from transformers import CLIPVisionModel

    shutil.copytree(runs / "on" / "vision", tmp_path / "vision")
    monkeypatch.setattr(data_module, "open_image", lambda *a: pytest.fail("a picture was opened"))
    monkeypatch.setattr(CLIPVisionModel, "forward", lambda *a, **k: pytest.fail("the tower ran"))
    words = command(
        tiny_models, data, tmp_path, "--cache", "vision", "--seed", "2", recipe="small_cmo", stage="connector"
    )
    assert train.main(words) == 0


def test_another_picture_is_another_cache(runs, tiny_models, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    shutil.copytree(runs / "on" / "vision", tmp_path / "runs" / "vision")
    Image.new("RGB", (24, 24), "red").save(tmp_path / "data" / "7.png")
    words = command(
        tiny_models, tmp_path / "data", tmp_path / "runs", "--cache", "vision", recipe="small_cmo", stage="connector"
    )
    assert train.main(words) == 0
    assert len(list((tmp_path / "runs" / "vision").glob("vision-*"))) == 3


def test_which_caches_a_stage_uses():
    from dataclasses import replace

    from dpa.errors import InputError
    from dpa.recipes import recipe
    from dpa.train import kept, parse

    flags, _ = parse(["--recipe", "small_cmo", "--cache", "vision", "blind"])
    with pytest.raises(InputError, match="tiles"):
        kept(replace(recipe("small_cmo"), anyres=True, captions=("x",)), "connector", flags)
    assert kept(recipe("lab_ornate"), "instruct", flags) == {"vision"}
    flags, _ = parse(["--recipe", "lab_ornate"])
    assert kept(recipe("lab_ornate"), "connector", flags) == {"blind", "vision"}
    assert kept(recipe("qwen2.5-7b_sharegpt4v"), "connector", flags) == {"blind"}
    assert kept(recipe("lab_ornate"), "proxy", flags) == set()
    assert kept(recipe("small_cmo"), "instruct", flags) == set()  # needs no captions


def test_without_a_picture_no_process_runs_the_tower(lab_tokenizer, monkeypatch):
    """Where the others read features, one that ran the tower would wait for them (FSDP2, ZeRO-3)."""
    from dpa.loss import batch_loss
    from dpa.methods import CMO
    from dpa.model import connect_text_only
    from dpa.vision_cache import take_features
    from tests.test_packing import llava_batches

    model, text, _ = llava_batches(lab_tokenizer, sizes=((5, False), (8, False)))
    connect_text_only(model.train())
    calls = []
    model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    real = type(model.model.vision_tower).forward
    monkeypatch.setattr(type(model.model.vision_tower), "forward", lambda *a, **k: calls.append(2) or real(*a, **k))
    batch_loss(model, text, CMO).mean.backward()
    assert 2 in calls
    calls.clear()
    take_features(model)
    batch_loss(model, text, CMO).mean.backward()
    assert calls == [1] and float(model.model.multi_modal_projector.linear_1.weight.grad.abs().sum()) == 0.0
