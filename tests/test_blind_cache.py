"""The blind cache: the scores of the blind pass, whoever filled it; shared between runs, killed, foreign, on two processes."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from dpa import blind_cache, train
from dpa.blind_cache import BlindCache, columns, joined, told_of
from dpa.data import Collator
from dpa.errors import InputError
from dpa.loss import IGNORE, batch_loss
from dpa.methods import CAL, CMO
from tests.conftest import ROOT, command, weights
from tests.test_distributed import finish, torchrun
from tests.test_packing import llava_batches


def copy_of(cache: BlindCache) -> list[np.ndarray]:
    return [cache.rows.read(index) for index in range(len(cache.samples))]


class Few:
    """Samples without files: what `BlindCache` asks of `Samples`."""

    def __init__(self, image_token_id: int, batch: dict) -> None:
        self.image_token_id = image_token_id
        self.rows = [
            (ids[mask == 1].tolist(), labels[mask == 1].tolist())
            for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def tokens(self, index: int) -> tuple[list[int], list[int]]:
        return self.rows[index]


@pytest.mark.parametrize("rule", [CMO, CAL], ids=["cmo", "cal"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("image_first", [False, True])
def test_cached_scores_give_the_loss_of_the_blind_pass(lab_tokenizer, rule, packed, image_first):
    """Also where nothing stands before the image (Qwen writes no start token), and beside samples without one."""
    model, padded, _ = llava_batches(lab_tokenizer)
    if image_first:
        for name in ("input_ids", "labels", "attention_mask"):
            padded[name] = padded[name][:, 1:]
        padded["labels"][:, 9] = padded["input_ids"][:, 9]  # predicted by nothing but the image, where there is one
    grids = columns(model, padded)
    samples, pictures = [], iter(padded["pixel_values"])
    for row in range(len(padded["labels"])):
        n = int(padded["attention_mask"][row].sum())
        sample = {name: tensor[row, :n] for name, tensor in (padded | grids).items() if name != "pixel_values"}
        if (sample["input_ids"] == model.config.image_token_id).any():
            sample["pixel_values"] = next(pictures)
        samples.append(sample)
    batch = Collator(0, packed=packed)(samples)
    results = []
    for own in ({name: t for name, t in batch.items() if "blind" not in name}, batch):
        model.zero_grad()
        loss = batch_loss(model, own, rule)
        loss.mean.backward()
        results.append((loss, model.model.multi_modal_projector.linear_1.weight.grad.clone()))
    (plain, gradient), (cached, cached_gradient) = results
    torch.testing.assert_close(cached.mean, plain.mean, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(cached.relevance, plain.relevance, atol=1e-8, rtol=1e-5)
    torch.testing.assert_close(cached_gradient, gradient, atol=1e-6, rtol=1e-4)
    moved = batch | {"blind_log_p": batch["blind_log_p"] - 1, "blind_logit": batch["blind_logit"] - 1}
    assert abs(float(batch_loss(model, moved, rule).relevance - plain.relevance)) > 1e-4  # it is read


def test_filling_in_parts_and_anew_gives_the_same_bits(lab_tokenizer, tmp_path, monkeypatch):
    model, padded, _ = llava_batches(lab_tokenizer, sizes=[(3 + n % 7, True) for n in range(23)])
    samples = Few(model.config.image_token_id, padded)
    monkeypatch.setattr(blind_cache, "TOKENS", 24)
    whole = BlindCache(tmp_path / "a", {"llm": "x"}, samples, told_of(samples))
    assert whole.fill(model) == 23 and not len(whole.rows.missing())
    assert 4 < len(whole.batches()) < 23
    told = joined([told_of(samples, (number, 3)) for number in range(3)])
    parts = BlindCache(tmp_path / "b", {"llm": "x"}, samples, told)
    assert parts.rows.folder.name == whole.rows.folder.name
    for number in (2, 0):
        parts.fill(model, share=(number, 3))
    parts.rows._values  # noqa: B018  mapped before the rest is written
    assert 0 < len(parts.rows.missing()) < 23
    parts.fill(model)
    for one, other in zip(copy_of(whole), copy_of(parts), strict=True):
        assert np.array_equal(one, other)
    late = BlindCache(tmp_path / "c", {"llm": "x"}, samples, told)
    for number in range(2):  # the second begins when the first has written all of its share
        late.fill(model, share=(number, 2))
    assert not len(late.rows.missing())
    _, labels = samples.tokens(4)
    assert len(copy_of(whole)[4]) == sum(label != IGNORE for label in labels)
    assert all(math.isfinite(v) and v < 0 for v in copy_of(whole)[4][:, 0])


@pytest.fixture(scope="module")
def runs(tiny_models, data, tmp_path_factory):
    """Stage 2 by cmo with the cache and without, then by cal and with another seed."""
    output = tmp_path_factory.mktemp("cached")
    flags = {"stage": "connector", "steps": 12}
    assert train.main(command(tiny_models, data, output / "on", recipe="small_cmo", **flags)) == 0
    assert train.main(command(tiny_models, data, output / "off", "--cache", recipe="small_cmo", **flags)) == 0
    return output


def caches(folder):
    return sorted(path for path in (folder / "blind").glob("blind-*"))


def log(folder, name):
    return [row[name] for row in json.loads((folder / "log.json").read_text()) if name in row]


def test_a_run_fills_its_cache_and_trains_as_without(runs):
    (cache,) = caches(runs / "on")
    assert (cache / "complete.json").is_file() and not (runs / "off" / "blind").exists()
    for name in ("loss", "grad_norm", "relevance", "nll"):
        on, off = (log(runs / way / "small_cmo" / "connector", name) for way in ("on", "off"))
        assert on == pytest.approx(off, rel=1e-3, abs=1e-5), name
    assert log(runs / "on" / "small_cmo" / "connector", "relevance")[-1] != 0
    lineages = [
        json.loads((runs / way / "small_cmo" / "connector" / "lineage.json").read_text()) for way in ("on", "off")
    ]
    assert [lineage["cached"] for lineage in lineages] == [["blind"], []]


def test_other_rules_and_seeds_read_it_and_other_captions_do_not(runs, tiny_models, data, tmp_path, monkeypatch):
    shutil.copytree(runs / "on" / "blind", tmp_path / "blind")
    (before,) = caches(tmp_path)
    monkeypatch.setattr(BlindCache, "fill", lambda *a, **k: pytest.fail("filled again"))
    for words in (["--seed", "3"], []):
        recipe = "small_cmo" if words else "small_cal"
        assert train.main(command(tiny_models, data, tmp_path, *words, recipe=recipe, stage="connector", steps=12)) == 0
    assert caches(tmp_path) == [before]
    monkeypatch.undo()
    rows = json.loads((data / "captions.json").read_text())
    rows[5]["conversations"][1]["value"] += " and a red ball"
    (tmp_path / "other.json").write_text(json.dumps(rows))
    more = ["--data", str(tmp_path / "other.json"), "--seed", "4"]
    assert train.main(command(tiny_models, data, tmp_path, *more, recipe="small_cmo", stage="connector", steps=12)) == 0
    assert len(caches(tmp_path)) == 2


@pytest.mark.parametrize("cached", [False, True])
def test_the_weights_of_lm_head_are_read_in_its_forward_alone(lab_tokenizer, cached):
    """ZeRO-3 gives a module its weights for its forward, and takes them away."""
    model, padded, _ = llava_batches(lab_tokenizer)
    batch = padded | (columns(model, padded) if cached else {})
    with torch.no_grad():
        expected = batch_loss(model, batch, CAL).total
        whole = model.lm_head.weight.data
        model.lm_head.register_forward_pre_hook(lambda head, _: setattr(head.weight, "data", whole))
        model.lm_head.register_forward_hook(lambda head, *_: setattr(head.weight, "data", whole[:0, 0]))
        model.lm_head.weight.data = whole[:0, 0]
        assert torch.equal(batch_loss(model, batch, CAL).total, expected)


def test_another_choice_of_caches_does_not_resume(tiny_models, data, tmp_path, capsys):
    from dpa.inputs import LeftOut
    from dpa.train import _open_partial

    lineage = {"parents": {}}
    _open_partial(tmp_path / "x.partial", lineage, LeftOut(), ["blind"])
    _open_partial(tmp_path / "x.partial", lineage, LeftOut(), ["blind"])
    with pytest.raises(InputError, match="--cache blind"):
        _open_partial(tmp_path / "x.partial", lineage, LeftOut(), [])


def test_a_proxy_has_a_cache_of_its_own(runs, tiny_models, data, tmp_path):
    shutil.copytree(runs / "on" / "blind", tmp_path / "blind")
    assert train.main(command(tiny_models, data, tmp_path, stage="proxy", steps=12)) == 0
    assert train.main(command(tiny_models, data, tmp_path, stage="connector", steps=12)) == 0
    assert len(caches(tmp_path)) == 2


def test_a_run_that_sees_a_part_of_the_captions_fills_nothing(tiny_models, data, tmp_path):
    few = ["--gradient_accumulation_steps", "1"]  # 2 x 8 of 40
    assert train.main(command(tiny_models, data, tmp_path, *few, recipe="small_cmo", stage="connector", steps=2)) == 0
    assert not (tmp_path / "blind").exists()


def test_a_damaged_cache_is_refused(runs, tiny_models, data, tmp_path, capsys):
    shutil.copytree(runs / "on" / "blind", tmp_path / "blind")
    (cache,) = caches(tmp_path)
    values = bytearray((cache / "values.bin").read_bytes())
    values[40] ^= 1
    (cache / "values.bin").write_bytes(values)
    assert train.main(command(tiny_models, data, tmp_path, recipe="small_cmo", stage="connector", steps=12)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and cache.name in error and "delete" in error


def test_the_command_fills_it_beforehand(runs, tiny_models, data, tmp_path, capsys):
    words = command(tiny_models, data, tmp_path, recipe="small_cmo", stage="connector", steps=2)
    assert blind_cache.main(words) == 0
    (cache,) = caches(tmp_path)
    assert str(cache) in capsys.readouterr().out
    (from_run,) = caches(runs / "on")
    assert (cache / "values.bin").read_bytes() == (from_run / "values.bin").read_bytes()
    assert not (tmp_path / "small_cmo" / "connector").exists()
    vanilla = command(tiny_models, data, tmp_path, recipe="small_vanilla", stage="connector", steps=2)
    assert blind_cache.main(vanilla) == 2 and "no use for it" in capsys.readouterr().err


def test_two_processes_fill_it_together(runs, tiny_models, data, tmp_path):
    words = command(tiny_models, data, tmp_path, "--use_cpu", "true", recipe="small_cmo", stage="connector", steps=12)
    process = torchrun("-m", "dpa.blind_cache", *words, "--per_device_train_batch_size", "4")
    output = finish(process, 120)
    assert process.returncode == 0, output[-3000:]
    (cache,), (alone,) = caches(tmp_path), caches(runs / "on")
    assert cache.name == alone.name
    assert (cache / "values.bin").read_bytes() == (alone / "values.bin").read_bytes()


def test_killed_while_filling_and_run_again(tiny_models, data, tmp_path, monkeypatch):
    """The run after a SIGKILL ends with the weights of one that was not killed, bit for bit."""
    flags = {"recipe": "small_cmo", "stage": "connector", "steps": 6}
    words = command(tiny_models, data, tmp_path / "killed", **flags)
    slow = (
        "import sys, time; from dpa import blind_cache, cache, train\n"
        "blind_cache.TOKENS, write = 64, cache.RowCache.write\n"
        "cache.RowCache.write = lambda *a: (time.sleep(0.2), write(*a))\n"
        "train.main(sys.argv[1:])"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *words], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
    )
    deadline = time.time() + 90
    while time.time() < deadline:
        found = caches(tmp_path / "killed")
        if found and not np.isnan(np.fromfile(found[0] / "values.bin", "<f4")).all():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (cache,) = caches(tmp_path / "killed")
    assert np.isnan(np.fromfile(cache / "values.bin", "<f4")).any() and not (cache / "complete.json").exists()
    monkeypatch.setattr(blind_cache, "TOKENS", 64)
    assert train.main(words) == 0
    assert train.main(command(tiny_models, data, tmp_path / "whole", **flags)) == 0
    for name, tensor in weights(tmp_path / "whole" / "small_cmo" / "connector").items():
        assert torch.equal(weights(tmp_path / "killed" / "small_cmo" / "connector")[name], tensor)
