"""The command end to end on small data: stages, resume after SIGKILL, accumulation, bad input, a stock reload."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from dpa import stages, train
from dpa.errors import InputError
from tests.conftest import ROOT, command, weights


def test_all_stages_leave_standard_checkpoints_with_lineage(finished, tiny_models):
    run = finished / "small"
    assert {path.name for path in run.iterdir() if not path.name.startswith(".")} == {"proxy", "connector", "instruct"}
    assert (run / "proxy" / "adapter_model.safetensors").is_file()
    assert set(weights(run / "connector")) == {"linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"}
    lineages = {
        stage: json.loads((run / stage / "lineage.json").read_text()) for stage in ("proxy", "connector", "instruct")
    }
    assert lineages["instruct"]["parents"].keys() == {"connector"} and lineages["connector"]["parents"].keys() == {
        "proxy"
    }
    assert lineages["connector"]["settings"]["weighting"]["rule"] == "cmo"
    assert all(
        lineage["versions"]["torch"] and lineage["command"].startswith("python -m") for lineage in lineages.values()
    )


def test_the_proxy_finds_its_captions_more_probable(finished, tiny_models, data):
    from analysis.scoring import text_scores
    from dpa.corpus import read_records
    from dpa.model import load_llm, load_proxy
    from dpa.processing import load_tokenizer

    captions, llm = list(read_records(data / "captions.json", "text").captions()), str(tiny_models["llm"])
    models = (load_llm(llm).eval(), load_proxy(llm, finished / "small" / "proxy").eval())
    sums = [np.sum(text_scores(model, load_tokenizer(llm), captions), axis=0) for model in models]
    base, proxy = (nats / tokens for nats, tokens, _ in sums)
    assert proxy < base - 0.05


def test_the_effective_batch_is_part_of_the_lineage():
    flags, _ = train.parse(["--recipe", "lab_ornate"])
    chosen = train.resolve(flags)

    def settings(*rest):
        return stages.changed_settings(chosen, "connector", rest)

    recipe = settings()
    assert settings("--per_device_train_batch_size", "2") == recipe, "accumulation fills up to the same global batch"
    assert settings("--learning_rate", "5e-3", "--max_steps=550") == recipe, "what repeats the recipe changes nothing"
    assert settings("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1") != recipe
    assert settings("--dataloader_drop_last", "true") != recipe
    assert settings("--learning_rate", "1e-3") != recipe
    released = train.resolve(train.parse(["--recipe", "lab_ornate", "--weighting-form", "released"])[0])
    assert stages.changed_settings(released, "connector", ["--per_device_train_batch_size", "2"])["micro_batch"] == 2


def test_instruct_starts_from_the_original_llm(tiny_models, data, finished, tmp_path):
    """At learning rate 0 stage 3 leaves the base LLM bit-equal: the proxy is gone, the connector is stage 2's."""
    import shutil

    shutil.copytree(finished / "small" / "proxy", tmp_path / "small" / "proxy")
    shutil.copytree(finished / "small" / "connector", tmp_path / "small" / "connector")
    assert (
        train.main(
            command(
                tiny_models, data, tmp_path, "--learning_rate", "0", "--save_steps", "100", stage="instruct", steps=1
            )
        )
        == 0
    )
    base = weights(tiny_models["llm"])
    made = weights(tmp_path / "small" / "instruct")
    found = {
        name.removeprefix("language_model."): tensor
        for name, tensor in made.items()
        if name.startswith("language_model.")
    }
    assert found, list(made)[:5]
    for name, tensor in base.items():
        match = found.get(name, made.get(name, found.get(name.removeprefix("model."))))
        assert match is not None and torch.equal(match, tensor), name
    connector = weights(finished / "small" / "connector")
    for name, tensor in connector.items():
        assert torch.equal(made[f"multi_modal_projector.{name}"], tensor)


def test_a_finished_stage_is_kept_and_another_setting_refused(finished, tiny_models, data, capsys):
    before = (finished / "small" / "connector" / "connector.safetensors").stat().st_mtime_ns
    assert train.main(command(tiny_models, data, finished)) == 0
    assert (finished / "small" / "connector" / "connector.safetensors").stat().st_mtime_ns == before
    capsys.readouterr()
    harmless = ["--seed", "0", "--save_steps", "7", "--per_device_train_batch_size", "4"]
    assert train.main(command(tiny_models, data, finished, *harmless)) == 0, (
        "what cannot change a weight is no other run"
    )
    capsys.readouterr()
    for changed in (
        command(tiny_models, data, finished, steps=5),
        command(tiny_models, data, finished, "--bf16", "--use_cpu"),
    ):
        assert train.main(changed) == 2
        error = capsys.readouterr().err
        assert "was made with other settings" in error and error.count("\n") == 1


def test_a_stage_whose_parent_was_made_anew_is_refused(finished, tiny_models, data, tmp_path, capsys):
    import shutil

    shutil.copytree(finished / "small", tmp_path / "small")
    connector = tmp_path / "small" / "connector" / "connector.safetensors"
    connector.write_bytes(connector.read_bytes()[:-1] + b"\x01")  # another connector than stage 3 was made from
    assert "was made from another connector" in fails(command(tiny_models, data, tmp_path, stage="instruct"), capsys)


def test_stock_transformers_loads_the_result_in_a_fresh_process(finished, data):
    program = f"""
import sys, torch
sys.path = [p for p in sys.path if p not in ("", {str(ROOT)!r})]
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained({str(finished / "small" / "instruct")!r})
processor = AutoProcessor.from_pretrained({str(finished / "small" / "instruct")!r})
chat = [{{"role": "user", "content": [{{"type": "image"}}, {{"type": "text", "text": "what is the colour of the ball"}}]}}]
text = processor.apply_chat_template(chat, add_generation_prompt=True)
inputs = processor(text=text, images=[Image.open({str(data / "0.png")!r})], return_tensors="pt")
ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
print("TOKENS", int((inputs["input_ids"] == model.config.image_token_id).sum()))
print("DPA" if any(name.split(".")[0] == "dpa" for name in sys.modules) else "STOCK")
torch.save(model.state_dict(), sys.argv[1])
"""
    target = finished / "stock.pt"
    result = subprocess.run(
        [sys.executable, "-c", program, str(target)], capture_output=True, text=True, cwd="/", check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "TOKENS 9" in result.stdout and "STOCK" in result.stdout
    assert "newly initialized" not in result.stderr and "MISSING" not in result.stderr, result.stderr[-2000:]
    loaded = torch.load(target, weights_only=True)
    saved = weights(finished / "small" / "instruct")
    assert sum(t.numel() for t in saved.values()) <= sum(t.numel() for t in loaded.values())
    tower = next(t for name, t in loaded.items() if "vision_tower" in name and "patch_embedding" in name)
    assert any(torch.equal(tower, t) for name, t in saved.items() if "patch_embedding" in name)


@pytest.mark.parametrize("recipe", ["small", "small_vanilla"])
def test_accumulation_gives_the_same_weights(tiny_models, data, tmp_path, recipe):
    """A batch of 8 at once, and 1 x 8 accumulated (captions of unequal length): the same steps."""
    results = []
    for name, size in (("whole", 8), ("split", 1)):
        output = tmp_path / name
        flags = ["--per_device_train_batch_size", str(size), "--gradient_accumulation_steps", str(8 // size)]
        if recipe == "small":
            assert train.main(command(tiny_models, data, output, recipe=recipe, stage="proxy", steps=1)) == 0
        assert train.main([*command(tiny_models, data, output, recipe=recipe, stage="connector", steps=3), *flags]) == 0
        folder = output / recipe / "connector"
        results.append(
            (
                weights(folder),
                [row["grad_norm"] for row in json.loads((folder / "log.json").read_text()) if "grad_norm" in row],
            )
        )
    (whole, norms), (split, split_norms) = results
    assert split_norms == pytest.approx(norms, rel=2e-4)
    for name in whole:
        torch.testing.assert_close(whole[name], split[name], atol=2e-5, rtol=1e-3)


def test_resume_after_kill_gives_the_same_weights(tiny_models, data, tmp_path):
    """SIGKILL in stage 2 at a random moment after the first checkpoint; the resumed run ends bit-equal to an unbroken one."""
    arguments = [
        *command(
            tiny_models,
            data,
            tmp_path / "killed",
            "--save_steps",
            "5",
            recipe="small_cmo",
            stage="connector",
            steps=200,
        )
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "dpa.train", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    partial = tmp_path / "killed" / "small_cmo" / "connector.partial"
    deadline = time.time() + 120
    while not list(partial.glob("checkpoint-*/complete")) and time.time() < deadline:
        time.sleep(0.02)
    time.sleep(random.uniform(0, 0.2))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "the run ended before it was killed; give it more steps"
    assert not (tmp_path / "killed" / "small_cmo" / "connector").exists()
    (partial / "checkpoint-999").mkdir()  # cut short: no marker
    assert train.main(arguments) == 0
    unbroken = command(tiny_models, data, tmp_path / "unbroken", recipe="small_cmo", stage="connector", steps=200)
    assert train.main(unbroken) == 0
    ends = [weights(tmp_path / name / "small_cmo" / "connector") for name in ("killed", "unbroken")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])
    assert not partial.exists()


def fails(arguments, capsys) -> str:
    capsys.readouterr()
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "Traceback" not in error
    return lines[0]


def test_bad_input_is_one_line_and_leaves_nothing(tiny_models, data, tmp_path, capsys):
    output = tmp_path / "runs"
    assert "unknown recipe 'smal'; did you mean small" in fails(
        command(tiny_models, data, output, recipe="smal"), capsys
    )
    assert "which is not finished; run --stage proxy first" in fails(
        command(tiny_models, data, output, stage="connector"), capsys
    )
    assert "has no proxy stage" in fails(
        command(tiny_models, data, output, recipe="small_vanilla", stage="proxy"), capsys
    )
    assert "unknown flag '--learning_speed'" in fails(
        command(tiny_models, data, output, "--learning_speed", "3"), capsys
    )
    assert "--seed should be a whole number, got 'abc'" in fails(
        command(tiny_models, data, output, "--seed", "abc"), capsys
    )
    assert "leaves llm open; give --llm" in fails(["--recipe", "small", "--output", str(output)], capsys)
    broken = data / "broken.json"
    rows = json.loads((data / "captions.json").read_text())
    rows[3]["image"] = "gone.png"
    broken.write_text(json.dumps(rows))
    arguments = command(tiny_models, data, output, recipe="small_vanilla", stage="connector")
    arguments[arguments.index("--data") + 1] = str(broken)
    message = fails(arguments, capsys)
    assert "record 4 (id '3')" in message and "gone.png does not exist" in message
    assert not (output / "small_vanilla" / "connector").exists()


def test_a_loss_that_is_no_number_stops_the_run(tiny_models, data, tmp_path, capsys):
    message = fails(
        command(
            tiny_models,
            data,
            tmp_path,
            "--learning_rate",
            "1e30",
            "--max_grad_norm",
            "0",
            recipe="small_vanilla",
            stage="connector",
            steps=20,
        ),
        capsys,
    )
    assert "the loss is" in message or "no number" in message
    assert not (tmp_path / "small_vanilla" / "connector").exists()


def test_read_only_output_is_one_line(tiny_models, data, tmp_path, capsys):
    blocker = tmp_path / "file"
    blocker.write_text("")
    assert "free or change it and run again" in fails(
        command(tiny_models, data, blocker / "runs", recipe="small_vanilla", stage="connector"), capsys
    )


def test_seen_and_blind_pass_run_at_one_precision(tiny_models, data, tmp_path, monkeypatch):
    """Under bf16 both passes are autocast; a blind pass in float32 would compare two precisions, not picture and text."""
    from dpa import loss

    seen_by_blind = []
    original = loss.blind_label_scores

    def spy(*args, **kwargs):
        seen_by_blind.append(torch.is_autocast_enabled("cpu"))
        return original(*args, **kwargs)

    monkeypatch.setattr(loss, "blind_label_scores", spy)
    flags = ["--bf16", "true", "--use_cpu", "true"]
    assert train.main(command(tiny_models, data, tmp_path, *flags, recipe="small_cmo", steps=2)) == 0
    assert seen_by_blind and all(seen_by_blind)
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "small_cmo" / "instruct").values())


def test_a_full_disk_is_one_line_and_the_run_resumes(tiny_models, data, tmp_path):
    """The file size limit stands in for a full disk: the same failed write, in whichever library is writing."""
    import resource

    arguments = command(tiny_models, data, tmp_path, "--save_steps", "2", recipe="small_vanilla", stage="instruct")
    assert train.main([*command(tiny_models, data, tmp_path, recipe="small_vanilla", stage="connector")]) == 0
    limited = subprocess.run(
        [sys.executable, "-m", "dpa.train", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)),
        check=False,
    )
    assert limited.returncode == 2, limited.stderr[-800:]
    lines = [line for line in limited.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "Traceback" not in limited.stderr, limited.stderr[-800:]
    assert not (tmp_path / "small_vanilla" / "instruct").exists()
    assert train.main(arguments) == 0


def test_a_broken_picture_in_a_worker_is_one_line(tiny_models, data, tmp_path, capsys, monkeypatch):
    """Beyond the number of pictures that are decoded at the start, a broken one is found while training, in a worker."""
    import shutil

    from dpa import preflight

    monkeypatch.setattr(preflight, "SMALL", 0)
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    (copy / "5.png").write_bytes((copy / "5.png").read_bytes()[:60])
    workers = ["--dataloader_num_workers", "1"]
    message = fails(
        command(tiny_models, copy, tmp_path / "runs", *workers, recipe="small_vanilla", stage="connector", steps=20),
        capsys,
    )
    assert "record 6 (id '5')" in message and "5.png is" in message


def test_our_flags_stay_few():
    import argparse
    from unittest import mock

    with mock.patch.object(
        argparse.ArgumentParser,
        "parse_known_args",
        lambda self, arguments: [a for a in self._actions if a.dest != "help"],
    ):
        assert len(train.parse([])) <= 15


def test_every_recipe_resolves():
    from dpa.methods import METHODS
    from dpa.recipes import RECIPES

    for name, row in RECIPES.items():
        assert row.name == name and (row.parent is None or row.parent in RECIPES)
        assert row.stages == (("proxy",) if row.proxy else ()) + ("connector", "instruct")
    assert {(m["proxy"], m["weighting"].rule) for m in METHODS.values()} == {
        (p, r) for p in (True, False) for r in ("none", "cal", "cmo")
    }
    with pytest.raises(InputError, match="did you mean"):
        from dpa.recipes import recipe

        recipe("qwen2.5-7b_sharegpt4")
