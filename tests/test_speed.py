"""The speed comparison compares the same thing, and prints what it says; hours follow from rates by hand-made sums."""

import csv
import json
import subprocess
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from benchmarks import projection, speed, steps
from dpa import costs
from dpa.loss import batch_loss
from dpa.methods import Weighting
from dpa.recipes import QWEN_BLIP, recipe

SIZES = {"hidden": 64, "layers": 2, "vocab": 400, "image-tokens": 9, "text-tokens": 6, "batch": 2}
TINY = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
OPTIONS = speed.parse(TINY)
OURS = ("vanilla", "cmo", "cmo_cached")
KEYS = {
    f"{pair}{kind}"
    for pair in ("cmo_cached/vanilla", "cmo/vanilla", "cmo/released", "vanilla/stock")
    for kind in ("", "_memory")
}


@pytest.fixture
def in_process(monkeypatch):
    """The memory is measured in this process, which is quicker."""
    monkeypatch.setattr(speed, "memory_of", speed.peak_memory)


def telling():
    """A model and batch whose weights differ from label to label: the picture changes what is said, and half of the
    labels are likely.
    """
    model, batch = speed.build(OPTIONS)
    for weight in model.parameters():
        weight.data *= 5
    with torch.no_grad():
        likely = model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"]).logits.argmax(-1)
    batch["labels"][:, -3:] = likely[:, -4:-1]
    return model, batch


def gradient_of(model, loss):
    """(loss, gradient of a weight of the connector)."""
    model.zero_grad()
    loss.backward()
    return loss.detach(), model.model.multi_modal_projector.linear_1.weight.grad.clone()


def test_the_plain_reference_is_the_released_form():
    """Value and gradient of the reference equal ours, so both sides of the ratio compute one loss."""
    model, batch = telling()
    ours = Weighting("cmo", 0.05, 0.5, form="released")
    results = [gradient_of(model, f) for f in (speed.released_loss(model, batch), batch_loss(model, batch, ours).mean)]
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=2e-6)


def test_vanilla_is_stocks_loss():
    model, batch = speed.build(OPTIONS)
    functions = speed.losses(model, batch)
    torch.testing.assert_close(functions["vanilla"](), functions["stock"](), rtol=1e-5, atol=1e-6)


def test_cached_is_cmo_in_value_and_gradient(monkeypatch):
    model, batch = telling()
    functions = speed.losses(model, batch)
    plain = gradient_of(model, functions["cmo"]())
    assert not torch.allclose(plain[0], gradient_of(model, functions["vanilla"]())[0], rtol=1e-3)
    with monkeypatch.context() as patch:
        patch.setattr("dpa.loss.blind_scores", None)  # the cached step has no blind pass to call
        cached = gradient_of(model, functions["cmo_cached"]())
    torch.testing.assert_close(cached, plain, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("more", [[], ["--activation-checkpointing"], ["--trainable", "all"]])
def test_the_frozen_tower_runs_once_a_step_and_records_no_gradient(more):
    model, batch = speed.build(speed.parse([*TINY, *more]))
    tower, runs = model.model.vision_tower, []
    tower.register_forward_hook(lambda module, given, out: runs.append(out))
    layers, recorded = tower.encoder.layers if hasattr(tower, "encoder") else tower.vision_model.encoder.layers, []
    layers[0].register_forward_hook(lambda module, given, out: recorded.append(out))
    functions = speed.losses(model, batch)
    assert not runs  # the cached scores need no picture
    for name in OURS:
        runs.clear(), recorded.clear()
        loss = functions[name]()
        assert len(runs) == len(recorded) == 1, name
        assert not any(state.requires_grad for state in runs[0].hidden_states if state is not None), name
        loss.backward()
        assert len(runs) == len(recorded) == 1, name  # nor again under checkpointing
        assert all(weight.grad is None and not weight.requires_grad for weight in tower.parameters()), name
        assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
        model.zero_grad()


def test_every_formulation_stands_at_every_place():
    planned = speed.turns(speed.FORMULATIONS, 10)
    for names, orders in (
        (speed.FORMULATIONS, [turn for turn in planned if len(turn) == 5]),
        (OURS, [turn for turn in planned if len(turn) == 3][:6]),
    ):
        places = Counter((place, name) for turn in orders for place, name in enumerate(turn))
        assert places == {(place, name): 2 for place in range(len(names)) for name in names}
        assert sum(turn.index("cmo") < turn.index("vanilla") for turn in orders) == len(orders) / 2
    assert Counter(name for turn in planned for name in turn) == {"stock": 10, "released": 10} | dict.fromkeys(OURS, 30)
    assert speed.turns(["stock"], 2) == [["stock"], ["stock"]]


def test_a_ratio_is_the_median_over_turns_that_both_took_part_in(monkeypatch):
    taken = {"vanilla": {1: 2.0, 2: 2.0, 3: 4.0}, "cmo": {1: 3.0, 2: 2.2, 3: 4.8}, "released": {2: 4.4}}
    config = SimpleNamespace(text_config=SimpleNamespace(hidden_size=64, num_hidden_layers=2, vocab_size=400))
    monkeypatch.setattr(speed, "seconds", lambda options, names: (taken, {"stock": "no"}, config))
    mib = {"cmo": 30.0, "released": 60.0, "vanilla": None}
    monkeypatch.setattr(speed, "memory_of", lambda o, name: {"above_mib": mib.get(name), "failed": None})
    record = speed.measure(OPTIONS)
    assert record["ratios"]["cmo/vanilla"] == pytest.approx(1.2)  # of 1.5, 1.1, 1.2
    assert record["quartiles"]["cmo/vanilla"] == pytest.approx([1.15, 1.35])
    assert record["ratios"]["cmo/released"] == record["ratios"]["cmo/released_memory"] == 0.5
    assert record["ratios"]["cmo/vanilla_memory"] is None and record["seconds"]["vanilla"] == 2.0


def test_one_json_object_with_ratios_of_time_and_memory(capsys):
    assert speed.main([*TINY, "--steps", "2", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["ratios"].keys() == KEYS and all(value > 0 for value in record["ratios"].values())
    for pair, (low, high) in record["quartiles"].items():
        assert low <= record["ratios"][pair] <= high
    assert record["turns"] == {"stock": 2, "released": 2, "vanilla": 6, "cmo": 6, "cmo_cached": 6}
    assert record["shape"]["hidden"] == 64 and record["seconds"].keys() == set(speed.FORMULATIONS)
    assert "gpu" not in record and not record["left_out"]


def test_the_table_on_a_cpu_has_ratios_alone(capsys, in_process):
    assert speed.main([*TINY, "--steps", "1", "--trainable", "all"]) == 0
    head, title, *rows = capsys.readouterr().out.splitlines()
    assert "2 x (9 image + 6 text tokens, 3 of these supervised); trained: all; cpu" in head
    assert title.split() == ["ratio", "time", "quartiles", "turns", "memory"] and len(rows) == 5
    assert rows[0].split() == ["cmo_cached/vanilla", "-", "-", "-"]  # its values would be another step's
    assert rows[1].split()[:1] == ["cmo/vanilla"] and rows[4].startswith("cmo_cached: left out, the LLM trains")


def test_all_of_a_caption_is_supervised_and_of_an_instruction_the_share_of_costs(monkeypatch):
    assert OPTIONS.supervised_tokens == 6
    assert speed.parse(["--text-tokens", "200", "--trainable", "all"]).supervised_tokens == 88  # 110 of 250
    assert speed.parse(["--text-tokens", "200", "--supervised-tokens", "7"]).supervised_tokens == 7
    data = costs.DATA["Cambrian737k.jsonl"]
    monkeypatch.setitem(costs.DATA, "Cambrian737k.jsonl", costs.replace(data, supervised=25))
    options = speed.parse([*TINY, "--text-tokens", "20", "--trainable", "all"])
    assert options.supervised_tokens == 2
    labels = speed.build(options)[1]["labels"]
    assert (labels[:, -2:] != -100).all() and (labels[:, :-2] == -100).all()


@pytest.mark.parametrize("known_beforehand", [True, False])
def test_a_formulation_that_memory_does_not_suffice_for_is_null(known_beforehand, capsys, monkeypatch, in_process):
    def too_much(model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 90.00 GiB.")

    monkeypatch.setattr(speed, "released_loss", too_much)
    if not known_beforehand:
        fits = {"above_mib": 8.0, "peak_gib": None, "failed": None}
        monkeypatch.setattr(speed, "memory_of", lambda options, name: fits)
    assert speed.main([*TINY, "--steps", "2", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["ratios"].keys() == KEYS and record["ratios"]["cmo/released"] is None
    assert (record["ratios"]["cmo/released_memory"] is None) == known_beforehand
    assert record["left_out"] == {"released": "out of memory: CUDA out of memory. Tried to allocate 90.00 GiB."}
    assert record["seconds"]["released"] is None and record["turns"]["released"] == 0
    assert record["ratios"]["vanilla/stock"] > 0 and record["turns"]["cmo"] == 6


def test_another_error_than_memory_is_no_gap(monkeypatch, in_process):
    def broken(model, batch):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(speed, "released_loss", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        speed.main([*TINY, "--steps", "1"])


def test_a_process_that_the_system_kills_ran_out_of_memory(monkeypatch):
    ended = subprocess.CompletedProcess([], -9, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *given, **more: ended)
    assert "out of memory" in speed.memory_of(OPTIONS, "stock")["failed"]
    ended.returncode, ended.stderr = 1, "Traceback\nValueError: no"
    with pytest.raises(speed.InputError, match=r"'stock' could not be measured.*ValueError: no"):
        speed.memory_of(OPTIONS, "stock")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image-tokens", "10"], "--image-tokens should be a square"),
        (["--supervised-tokens", "31"], "--supervised-tokens should be"),
        (["--shape", "qwen2.5-7b", "--vocab", "500"], "leave them out"),
        (["--shape", "small"], "--shape takes a paper's recipe"),
        (["--shape", "qwen"], "unknown recipe 'qwen'"),
        (["--device", "cuda"], "no GPU here"),
        (["--beside", "FILE"], "--device cuda alone"),
    ],
)
def test_what_cannot_be_is_named(arguments, message, capsys):
    assert speed.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_recipes_shape_is_built_by_its_name_or_its_llms():
    less = ["--layers", "1", "--hidden", "64", "--tower-layers", "2", "--text-tokens", "5"]
    model, batch = speed.build(speed.parse(["--shape", "qwen2.5-7b", *less]))
    assert model.config.text_config.model_type == "qwen2" and model.lm_head.weight.shape == (152_064, 64)
    assert batch["input_ids"].shape == (1, 1 + 576 + 5) and batch["pixel_values"].shape == (1, 3, 336, 336)
    assert (batch["input_ids"] == model.config.image_token_id).sum() == 576
    assert speed.chosen_shape("gemma-2-9b_pixmo-cap_cal").llm == speed.chosen_shape("gemma-2-9b").llm
    assert steps.TOWER["num_hidden_layers"] == costs.TOWER.layers and steps.TOWER["hidden_size"] == costs.TOWER.hidden


def test_figures_of_a_step_by_hand():
    """A token and 6 of text beside 9 of the picture, 6 labels, twice; all sums of `dpa.costs` done by hand."""
    config = speed.build(OPTIONS)[0].config
    seen = 7_462_912 + 7_741_440 + 1_361_920  # forward, backward to the connector, tower
    shape, seconds = vars(OPTIONS), {"vanilla": 2.0, "cmo": 4.0, "cmo_cached": None, "stock": 1.0}
    rows = projection.step_figures(shape, seconds, config, "connector", peak=1e9, ceiling=5e8, lead=1)
    assert rows.keys() == {"vanilla", "cmo"}
    assert rows["vanilla"] == {
        "seconds": 2.0,
        "model_flops": seen,
        "tokens_per_s": 2 * 16 / 2.0,
        "model_flops_per_s": seen / 2,
        "mfu": pytest.approx(seen / 2 / 1e9),
        "of_ceiling": pytest.approx(seen / 1e9),
    }
    assert rows["cmo"]["model_flops"] == seen + 3_041_280  # 6 tokens of the blind pass, twice
    assert projection.utilisation(6.0, 2.0, 8, peak=None)["mfu"] is None
    assert projection.rates_of(rows) == {"vanilla": seen / 2, "cmo": (seen + 3_041_280) / 4}


def test_the_ceiling_is_the_median_product(monkeypatch):
    """Rounds of 2 products of 16 x 16 that take 9, 9 (warm-up), then 4, 1, 2 seconds: 2 x 2 x 16^3 operations in 2."""
    marks = iter([0, 9, 10, 19, 20, 24, 30, 31, 40, 42])
    monkeypatch.setattr(projection.time, "perf_counter", lambda: next(marks))
    assert projection.matmul_ceiling("cpu", size=16, rounds=3, products=2) == 2 * 2 * 16**3 / 2


def test_hours_are_flops_over_rates():
    rates = {"connector": {"vanilla": 4e14, "cmo": 2e14}, "instruct": {"vanilla": 5e14, "cmo": 1e14}}
    found = projection.hours(rates)
    flops = {m: costs.estimate(recipe(name)) for m, name in projection.PROJECTED.items()}
    assert flops["dpa"]["connector"].model_flops > flops["vanilla"]["connector"].model_flops  # the blind pass
    for method, stage, rate, rate_of, own in (
        ("vanilla", "connector", 4e14, "connector/vanilla", True),
        ("vanilla", "instruct", 5e14, "instruct/vanilla", True),
        ("dpa", "proxy", 4e14, "connector/vanilla", False),
        ("dpa", "connector", 2e14, "connector/cmo", True),
        ("dpa", "instruct", 1e14, "instruct/cmo", True),
    ):
        work = flops[method][stage].model_flops
        row = {"model_flops": work, "rate_of": rate_of, "own": own, "hours": pytest.approx(work / (8 * rate * 3600))}
        assert found[method]["stages"][stage] == row
    assert found["vanilla"]["stages"].keys() == {"connector", "instruct"} and len(found["dpa"]["stages"]) == 3
    assert found["dpa"]["hours"] == pytest.approx(sum(row["hours"] for row in found["dpa"]["stages"].values()))
    assert (found["vanilla"]["paper_sum"], found["dpa"]["paper_sum"]) == (7.37, 8.47)
    # 826 tokens x 6 and, the LLM frozen, 596 x 4, times records, times 6.53e9 weights; tower and attention on top
    by_hand = (737_000 * 826 * 6 + 558_128 * 596 * 4) * 6.53e9
    assert sum(one.model_flops for one in flops["vanilla"].values()) == pytest.approx(1.05 * by_hand, rel=0.05)


def test_a_stage_that_was_not_measured_goes_at_anothers_rate():
    for rates, expected in (
        ({"instruct": {"vanilla": 1.0, "cmo": 1.0}}, ["instruct/vanilla", "instruct/cmo", "instruct/cmo"]),
        ({"connector": {"vanilla": 1.0}}, ["connector/vanilla"] * 3),
        (
            {"connector": {"vanilla": 1.0}, "instruct": {"cmo": 1.0}},
            ["connector/vanilla", "instruct/cmo", "instruct/cmo"],
        ),
    ):
        stages = projection.hours(rates)["dpa"]["stages"]
        assert [stages[stage]["rate_of"] for stage in ("proxy", "connector", "instruct")] == expected
    with pytest.raises(ValueError, match="no rate"):
        projection.hours({"connector": {}})


def test_table_9_is_as_published(shared):
    stages = {
        "Other(stage1)": "proxy",
        "Pretraining": "connector",
        "Instruction Tuning": "instruct",
        "Overall": "overall",
    }
    published: dict[str, dict[str, float]] = {"vanilla": {}, "dpa": {}}
    with open(shared / "paper" / "published_numbers.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["table"] == "Table9" and row["benchmark"].startswith("time ") and row["score"] != "-":
                stage = stages[row["benchmark"].removeprefix("time ")]
                published[row["method"].lower()][stage] = float(row["score"].removesuffix("h"))
    assert published == projection.TABLE_9


@pytest.fixture
def gpu(monkeypatch):
    """A machine with an H200 by name, whose large products run at 800 TFLOP/s."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(projection, "matmul_ceiling", lambda device: 800e12)


def record_of(trainable, supervised, seconds, **more):
    """The part of a record that the GPU's figures are made of, at 7B and a batch of 8, and its model configuration."""
    from dpa.lab.small import family_config

    shape = {
        "batch": 8,
        "text_tokens": 200,
        "supervised_tokens": supervised,
        "trainable": trainable,
        "tower_layers": None,
    }
    vision = SimpleNamespace(**steps.TOWER)
    config = SimpleNamespace(
        text_config=family_config(recipe(QWEN_BLIP).llm), vision_config=vision, image_seq_length=576
    )
    return {"shape": shape | more, "seconds": seconds}, config


def test_the_gpu_part_has_utilisation_and_hours_of_both_kinds_of_step(gpu, tmp_path):
    seconds = {"vanilla": 0.25, "cmo": 0.26, "cmo_cached": 0.25}
    record, config = record_of("connector", 200, seconds)
    record["gpu"] = found = projection.gpu(record, config, "connector", {"vanilla": 40.0}, lead=1, beside={})
    row = found["steps"]["vanilla"]
    assert found["peak_flops"] == 989e12 and row["tokens_per_s"] == 8 * 777 / 0.25 and row["peak_gib"] == 40.0
    assert (
        row["mfu"] == pytest.approx(row["of_ceiling"] * 800 / 989) == pytest.approx(row["model_flops"] / 0.25 / 989e12)
    )
    assert row["model_flops"] == pytest.approx(4 * 6.53e9 * 8 * 777, rel=0.1)
    assert not found["hours"]["vanilla"]["stages"]["instruct"]["own"]  # all at the rate of stage 2's step so far
    (tmp_path / "connector.json").write_text(json.dumps(record))

    beside = projection.rates_beside(tmp_path / "connector.json", "instruct")
    record, config = record_of("all", 88, {"vanilla": 0.9, "cmo": 0.95})
    both = projection.gpu(record, config, "instruct", {}, lead=1, beside=beside)
    assert [s["rate_of"] for s in both["hours"]["dpa"]["stages"].values()] == [
        "connector/vanilla",
        "connector/cmo",
        "instruct/cmo",
    ]
    assert both["hours"]["vanilla"]["stages"]["connector"] == found["hours"]["vanilla"]["stages"]["connector"]
    lines = "\n".join(projection.report(both))
    assert "989 by the data sheet, 800 in a large product" in lines and "(7.37, printed 6.37)" in lines
    assert "(8.47): proxy" in lines and "communication" in lines and "proxy at connector/vanilla" in lines
    for stage, path in (("connector", "connector.json"), ("instruct", "none.json")):  # of the same kind; not there
        with pytest.raises((speed.InputError, OSError), match=r"not the other|none\.json"):
            projection.rates_beside(tmp_path / path, stage)
    (tmp_path / "cpu.json").write_text(json.dumps({"shape": {"trainable": "connector"}, "ratios": {}}))
    with pytest.raises(speed.InputError, match=r"no record of benchmarks.speed on a GPU"):
        projection.rates_beside(tmp_path / "cpu.json", "instruct")


def test_the_command_on_a_gpu_tells_all_of_it(gpu, monkeypatch, capsys, tmp_path):
    """With everything measured for it: from the options to the table, and one kind of step beside the other."""
    config = record_of("connector", 200, {})[1]
    taken = {"vanilla": {1: 0.25, 2: 0.25}, "cmo": {1: 0.3, 2: 0.3}}
    monkeypatch.setattr(speed, "seconds", lambda options, names: (taken, {"stock": "out of memory: 90 GiB"}, config))
    peak = {"above_mib": 9000.0, "peak_gib": 42.5, "failed": None}
    monkeypatch.setattr(speed, "memory_of", lambda options, name: peak)
    published = tmp_path / "new" / "connector.json"
    run = ["--shape", "qwen2.5-7b", "--device", "cuda", "--batch", "8", "--text-tokens", "200"]
    assert speed.main([*run, "--publish", str(published)]) == 0
    record, lines = json.loads(published.read_text()), capsys.readouterr().out
    assert record["gpu"]["steps"]["cmo"]["peak_gib"] == 42.5 and record["shape"]["hidden"] == 3584
    assert "qwen2.5-7b: hidden 3584, 28 layers, vocabulary 152,064; 8 x (576 image + 200 text" in lines
    assert "stock: left out, out of memory: 90 GiB" in lines and "instruct at connector/cmo" in lines
    assert speed.main([*run, "--trainable", "all", "--beside", str(published), "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["gpu"]["hours"]["dpa"]["stages"]
    assert [row["rate_of"] for row in stages.values()] == ["connector/vanilla", "connector/cmo", "instruct/cmo"]


def test_no_hours_from_a_smaller_shape_or_from_nothing(gpu):
    record, config = record_of("connector", 200, {"vanilla": 1.0}, tower_layers=2)
    found = projection.gpu(record, config, "connector", {}, lead=1, beside={})
    assert found["hours"] is None and "nothing made smaller" in projection.report(found)[-1]
    record, config = record_of("connector", 200, {"vanilla": None})
    assert (
        projection.gpu(record, config, "connector", {}, lead=1, beside={})["no_hours"] == "no step of ours was measured"
    )


@pytest.mark.slow
@pytest.mark.parametrize("vocab", ["32000", "128000"])
def test_the_weighted_step_stays_near_the_plain_and_far_below_the_released_one(vocab, capsys):
    """Generous bounds on ratios, for a busy machine; results/speed has the measured ones."""
    shape = ["--hidden", "256", "--layers", "4", "--vocab", vocab, "--text-tokens", "30"]
    assert speed.main([*shape, "--json"]) == 0
    ratios = json.loads(capsys.readouterr().out)["ratios"]
    assert ratios["cmo_cached/vanilla"] < 1.15 and ratios["cmo/vanilla"] < 1.3
    assert ratios["cmo/released"] < 0.6 and ratios["vanilla/stock"] < 0.95
    assert ratios["cmo/released_memory"] < (0.6 if vocab == "32000" else 0.4)
