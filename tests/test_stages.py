"""What a stage may build on, what it leaves out, what it tells of itself."""

import json
import shutil
from dataclasses import replace

import pytest
from PIL import Image

from dpa import card, train
from dpa.card import write_card
from dpa.lineage import read_lineage
from dpa.recipes import recipe
from dpa.stages import parents
from tests.conftest import command, tiny_llm, tiny_tower
from tests.test_train import fails


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run without its last stage."""
    shutil.copytree(finished / "small", tmp_path / "runs" / "small", ignore=shutil.ignore_patterns("instruct", ".*"))
    return tmp_path / "runs"


def test_a_connector_made_for_another_llm_is_refused(run, tiny_models, data, tmp_path, capsys, lab_tokenizer):
    other = tmp_path / "other"
    tiny_llm("llama", vocab_size=len(lab_tokenizer), seed=99).save_pretrained(other)
    lab_tokenizer.save_pretrained(other)
    message = fails(command(tiny_models | {"llm": other}, data, run, stage="instruct"), capsys)
    assert f"this connector was made for the llm {tiny_models['llm']} (" in message and f"not for {other} (" in message


def test_a_connector_made_for_another_tokenizer_is_refused(run, tiny_models, data, tmp_path, capsys):
    """The same weights, one token renamed: the LLM's folder differs too, so its hash is made to agree."""
    other = tmp_path / "other"
    shutil.copytree(tiny_models["llm"], other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    from dpa.lineage import folder_hash

    lineage = json.loads((run / "small" / "connector" / "lineage.json").read_text())
    (run / "small" / "connector" / "lineage.json").write_text(json.dumps(lineage | {"llm": folder_hash(other)}))
    message = fails(command(tiny_models | {"llm": other}, data, run, stage="instruct"), capsys)
    assert f"was made for the tokenizer {tiny_models['llm']}" in message and f"not for {other}" in message


def test_a_connector_made_for_another_tower_is_refused(run, tiny_models, data, tmp_path, capsys):
    tiny_tower(seed=7).save_pretrained(tmp_path / "tower")
    message = fails(command(tiny_models | {"tower": tmp_path / "tower"}, data, run, stage="instruct"), capsys)
    assert f"was made for the vision_tower {tiny_models['tower']}" in message
    assert f"not for {tmp_path / 'tower'}" in message


def test_a_connector_made_for_another_proxy_is_refused(run, tiny_models, data, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    file = run / "small" / "proxy" / "adapter_model.safetensors"
    state = load_file(file)
    save_file({name: tensor + 1 for name, tensor in state.items()}, file)
    message = fails(command(tiny_models, data, run, stage="instruct"), capsys)
    assert "was made for the proxy " in message and f"not for {run / 'small' / 'proxy'}" in message


@pytest.mark.parametrize("stage", ["proxy", "connector"])
def test_a_flipped_byte_in_a_parent_is_refused(run, tiny_models, data, capsys, stage):
    name = {"proxy": "adapter_model.safetensors", "connector": "connector.safetensors"}[stage]
    content = bytearray((run / "small" / stage / name).read_bytes())
    content[-9] ^= 1
    (run / "small" / stage / name).write_bytes(content)
    following = {"proxy": "connector", "connector": "instruct"}[stage]
    if stage == "proxy":
        shutil.rmtree(run / "small" / "connector")
    message = fails(command(tiny_models, data, run, stage=following), capsys)
    assert f"its weights are not those that stage {stage} wrote" in message


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, capsys):
    from dpa.trainer import _hashes, newest_checkpoint

    for step in (5, 10, 15):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "part").mkdir(parents=True)
        (folder / "part" / "weights").write_bytes(bytes(range(step)))
        if step < 15:  # the last was cut short: it has no marker
            (folder / "complete").write_text(json.dumps({"engine": "plain", "processes": 1, "files": _hashes(folder)}))
    assert newest_checkpoint(tmp_path, clean=False) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-10" / "part" / "weights").write_bytes(b"flipped")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert "checkpoint-10: its files are not those that were written" in capsys.readouterr().err
    assert not (tmp_path / "checkpoint-15").exists()


def test_the_proxy_may_be_thrown_away(run, tiny_models, data, capsys):
    shutil.rmtree(run / "small" / "proxy")
    assert train.main(command(tiny_models, data, run, stage="instruct")) == 0


def test_stage_3_from_the_proxy_builds_on_it(tiny_models, data, tmp_path, monkeypatch):
    """Tables 7 and 16: the LLM of stage 3 starts as the merged proxy, not as the original."""
    from dpa import recipes
    from tests.conftest import weights

    monkeypatch.setitem(recipes.RECIPES, "small", replace(recipe("small"), instruct_from="proxy"))
    assert parents(recipes.RECIPES["small"], "instruct") == ("connector", "proxy")
    frozen = ["--learning_rate", "1e-12"]
    assert train.main(command(tiny_models, data, tmp_path, stage="proxy")) == 0
    assert train.main(command(tiny_models, data, tmp_path, stage="connector")) == 0
    assert train.main([*command(tiny_models, data, tmp_path, stage="instruct"), *frozen]) == 0
    from dpa.model import load_proxy

    merged = load_proxy(str(tiny_models["llm"]), tmp_path / "small" / "proxy").state_dict()
    result = weights(tmp_path / "small" / "instruct")
    name = "layers.0.self_attn.q_proj.weight"
    found = next(tensor for key, tensor in result.items() if key.endswith(name) and "vision" not in key)
    assert (found - merged[f"model.{name}"]).abs().max() < 1e-6
    original = weights(tiny_models["llm"])[f"model.{name}"]
    assert (found - original).abs().max() > 1e-5


def test_stage_1_without_lora_trains_all_weights(tiny_models, data, tmp_path, monkeypatch):
    from dpa import recipes

    monkeypatch.setitem(recipes.RECIPES, "small", replace(recipe("small"), lora_rank=None))
    assert train.main(command(tiny_models, data, tmp_path, stage="proxy")) == 0
    assert (tmp_path / "small" / "proxy" / "model.safetensors").is_file()
    assert train.main(command(tiny_models, data, tmp_path, stage="connector")) == 0
    lineage = read_lineage(tmp_path / "small" / "connector")
    assert lineage["parents"].keys() == {"proxy"} and lineage["settings"]["weighting"]["rule"] == "cmo"


def test_bad_samples_within_the_budget_are_left_out_and_named(tiny_models, data, tmp_path, capsys, monkeypatch):
    from dpa import recipes

    small = recipe("small_vanilla")
    short = replace(small, connector_stage=replace(small.connector_stage, max_length=256))
    monkeypatch.setitem(recipes.RECIPES, "small_vanilla", short)
    rows = json.loads((data / "captions.json").read_text())
    rows[3]["image"] = "gone.png"
    rows[5]["conversations"][1]["value"] = " "
    rows[9]["conversations"][1]["value"] = "ball " * 400
    (tmp_path / "bad.json").write_text(json.dumps(rows))
    arguments = command(tiny_models, data, tmp_path / "runs", recipe="small_vanilla", stage="connector")
    arguments[arguments.index("--data") + 1] = str(tmp_path / "bad.json")
    message = fails(arguments, capsys)
    assert "3 such samples in stage connector (1 record, 1 image, 1 cut), 0 are allowed" in message
    assert "2 are allowed" in fails([*arguments, "--max-bad-samples", "2"], capsys)
    assert train.main([*arguments, "--max-bad-samples", "3"]) == 0
    folder = tmp_path / "runs" / "small_vanilla" / "connector"
    named = [json.loads(line) for line in (folder / "left_out.jsonl").read_text().splitlines()]
    assert {(row["id"], row["action"]) for row in named} == {("3", "left out"), ("5", "left out"), ("9", "cut")}
    assert read_lineage(folder)["records"] == 38
    assert "3 samples left out or cut" in capsys.readouterr().err


def test_a_resumed_stage_keeps_to_the_samples_it_started_with(tiny_models, data, tmp_path, capsys):
    from dpa.inputs import LeftOut
    from dpa.train import _open_partial

    lineage = {"seed": 0, "parents": {}}
    _open_partial(tmp_path / "p", lineage, LeftOut((3,)))
    assert _open_partial(tmp_path / "p", lineage, LeftOut((3,))) is None
    from dpa.errors import InputError

    with pytest.raises(InputError, match="was started without 1 bad samples, now there are 0"):
        _open_partial(tmp_path / "p", lineage, LeftOut())


def test_cards_tell_recipe_parents_and_scores(finished, tmp_path, capsys):
    folder = tmp_path / "instruct"
    shutil.copytree(finished / "small" / "instruct", folder)
    write_card(folder, read_lineage(folder))
    text = (folder / "README.md").read_text()
    for words in (
        "# small, stage instruct, seed 0",
        "AutoModelForImageTextToText",
        "cmo, bounds 0.05 and 0.5",
        "Not evaluated",
    ):
        assert words in text, words
    assert "library_name: peft" in (finished / "small" / "proxy" / "README.md").read_text()
    row = {
        "model": "small",
        "seed": 0,
        "benchmark": "MMVP",
        "value": 1.0,
        "low": 0,
        "high": 2,
        "units": 150,
        "mode": "seen",
    }
    rows = [row, row | {"value": 41.25}, row | {"mode": "blind"}, row | {"model": "other", "benchmark": "POPE"}]
    (tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert card.main([str(folder), "--records", str(tmp_path / "records.jsonl")]) == 0
    text = (folder / "README.md").read_text()
    assert "| MMVP | 41.2 | 0.0 to 2.0 | 150 |" in text and "| MMVP (blind) | 1.0 |" in text
    assert "Not evaluated" not in text and "POPE" not in text
    (tmp_path / "records.jsonl").write_text(json.dumps(row | {"model": "other"}) + "\n")
    capsys.readouterr()
    assert card.main([str(folder), "--records", str(tmp_path / "records.jsonl")]) == 2
    assert "holds no score of" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(24, 24), (40, 20)])
def test_pictures_are_cropped_or_padded_as_the_stage_says(size, lab_tokenizer, tmp_path):
    """Released scripts: stage 2 scales and crops, stage 3 pads; a square picture is the same either way."""
    from dpa.processing import build_processor

    image = Image.effect_noise(size, 90).convert("RGB")
    cropped, padded = (
        build_processor(lab_tokenizer, tiny_tower(), pad=pad).image_processor(image, return_tensors="pt")[
            "pixel_values"
        ]
        for pad in (False, True)
    )
    assert cropped.shape == padded.shape == (1, 3, 24, 24)
    assert cropped.equal(padded) == (size[0] == size[1])
    assert recipe("qwen2.5-7b_sharegpt4v").connector_stage.pad is False
    assert recipe("qwen2.5-7b_sharegpt4v").instruct_stage.pad is True


def test_an_unfinished_stage_can_be_started_again(tiny_models, data, tmp_path, capsys):
    """What stands in the way of a run with other settings is an unfinished stage; --no-resume takes it away."""
    partial = tmp_path / "small_vanilla" / "connector.partial"
    partial.mkdir(parents=True)
    (partial / "settings.json").write_text(json.dumps({"seed": 0, "settings": {"epochs": 99}}))
    arguments = command(tiny_models, data, tmp_path, recipe="small_vanilla", stage="connector")
    assert "was made with other settings" in fails([*arguments, "--resume"], capsys)
    assert train.main([*arguments, "--no-resume"]) == 0


def test_two_sources_of_one_name_are_told_apart_and_the_lab_is_not_mixed(tiny_models, data, tmp_path, capsys):
    rows = json.loads((data / "captions.json").read_text())
    for name, some in (("a", rows[:20]), ("b", rows[20:])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "captions.json").write_text(json.dumps(some))
    files = [str(tmp_path / name / "captions.json") for name in "ab"]
    arguments = command(tiny_models, data, tmp_path / "runs", recipe="small_vanilla", stage="connector")
    place = arguments.index("--data")
    both = [*arguments[: place + 1], *files, *arguments[place + 2 :]]
    assert train.main(both) == 0
    for other in ([files[1], files[0]], [files[1], files[1]], files[1:]):
        assert "other data" in fails([*arguments[: place + 1], *other, *arguments[place + 2 :]], capsys)
    assert train.main(both) == 0
    lab = [*arguments[: place + 1], "lab/plain", files[0], *arguments[place + 2 :]]
    assert "are not mixed with others" in fails(lab, capsys)


def test_flags_that_would_break_resuming_or_are_misspelt_are_refused(tiny_models, data, tmp_path, capsys):
    arguments = command(tiny_models, data, tmp_path, recipe="small_vanilla", stage="connector")
    assert "--save_only_model leaves out" in fails([*arguments, "--save_only_model", "true"], capsys)
    assert "--save_total_limit 1 leaves no" in fails([*arguments, "--save_total_limit", "1"], capsys)
    assert "unknown flag '--see'" in fails([*arguments, "--see", "3"], capsys)


@pytest.mark.parametrize("marker", [b"{", b"{}", b"\xff", b""])
def test_an_unreadable_marker_is_a_damaged_checkpoint(tmp_path, marker):
    from dpa.trainer import newest_checkpoint

    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "weights").write_bytes(b"x")
    (tmp_path / "checkpoint-3" / "complete").write_bytes(marker)
    (tmp_path / "checkpoint-best").mkdir()
    assert newest_checkpoint(tmp_path) is None
    moved = [path.name for path in tmp_path.glob("damaged-checkpoint-3-*")]
    assert len(moved) == 1 and not (tmp_path / "checkpoint-3").exists()  # kept, out of the way of new steps
