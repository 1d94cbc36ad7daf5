"""What a log line tells, and runs that are not training stopped with a diagnosis."""

import json
from types import SimpleNamespace

import pytest
import torch

from dpa.errors import InputError
from dpa.methods import CMO
from dpa.trainer import PATIENCE, GroupedByLength, HealthCheck, refuse_other_engine


def test_each_log_line_tells_speed_padding_and_weights(finished):
    rows = [row for row in json.loads((finished / "small" / "connector" / "log.json").read_text()) if "nll" in row]
    assert rows
    for row in rows:
        assert row["model_tflops"] > 0
        assert {
            "loss",
            "nll",
            "at_low",
            "at_high",
            "relevance",
            "tokens_per_s",
            "samples_per_s",
            "padding",
        } <= row.keys()
        assert 0 <= row["padding"] < 1 and row["tokens_per_s"] > row["samples_per_s"] > 0
        assert 0 <= row["at_low"] <= 1 and 0 <= row["at_high"] <= 1 and row["max_length"] > 9
    plain = json.loads((finished / "small" / "proxy" / "log.json").read_text())
    assert "nll" in plain[0] and "at_low" not in plain[0]


def test_padding_is_the_share_of_places_without_a_token(finished, data, tiny_models):
    """By hand from the samples: one batch of all captions."""
    from dpa.corpus import read_records
    from dpa.data import Collator, Samples
    from dpa.methods import NONE
    from dpa.processing import load_tokenizer
    from dpa.trainer import COUNTED, DPATrainer

    samples = Samples(read_records(data / "captions.json", "text"), "text", load_tokenizer(str(tiny_models["llm"])))
    batch = Collator(0)([samples[i] for i in range(8)])
    lengths = [len(samples[i]["input_ids"]) for i in range(8)]
    fake = SimpleNamespace(_sums=dict.fromkeys(COUNTED, 0.0), _longest=0, weighting=NONE, step_flops=None)
    zero = torch.zeros(())
    loss = SimpleNamespace(nll=zero, at_low=zero, at_high=zero, relevance=zero)
    DPATrainer._count(fake, batch, loss)
    assert fake._sums["labels"] == (batch["labels"] != -100).sum() and fake._sums["image_tokens"] == 0
    counts = {name: float(value) for name, value in fake._sums.items()}
    measured = DPATrainer._measures(fake, counts, 2.0)
    assert measured["padding"] == pytest.approx(1 - sum(lengths) / (8 * max(lengths)), abs=1e-4)
    assert measured["tokens_per_s"] == pytest.approx(sum(lengths) / 2, abs=0.1) and measured["samples_per_s"] == 4


def check(health: HealthCheck, step: int, **logs) -> None:
    health.on_log(None, SimpleNamespace(global_step=step), None, logs=logs)


@pytest.mark.parametrize(
    ("logs", "words"),
    [
        ({"loss": float("nan")}, "the loss is nan"),
        ({"loss": 0.0, "nll": 0.0}, "the loss is exactly 0"),
        ({"loss": 1.0, "grad_norm": float("inf")}, "the gradient is inf"),
        ({"loss": 1.0, "grad_norm": 0.0, "learning_rate": 0.1}, "the gradient is exactly 0"),
    ],
)
def test_a_run_that_does_not_train_is_stopped(logs, words):
    with pytest.raises(InputError, match=f"step 7: {words}"):
        check(HealthCheck(CMO), 7, **logs)


def test_healthy_lines_pass():
    health = HealthCheck(CMO)
    check(health, 1, loss=1.0, nll=2.0, grad_norm=0.0, learning_rate=0.0)  # warm-up
    check(health, 2, loss=0.0, nll=2.0)  # weights may round a loss to 0, the labels' own does not
    check(health, 3, train_runtime=3.0)


@pytest.mark.parametrize(("bound", "value"), [("at_low", "0.05"), ("at_high", "0.5")])
def test_weights_all_at_one_bound_stop_the_run_after_a_while(bound, value):
    health = HealthCheck(CMO)
    for step in range(1, PATIENCE + 1):
        check(health, step, loss=1.0, nll=1.0, **{bound: 1.0})
    health_again = HealthCheck(CMO)
    for step in range(1, 3 * PATIENCE):
        check(health_again, step, loss=1.0, nll=1.0, **{bound: 1.0 if step % 50 else 0.99})
    with pytest.raises(InputError, match=f"every label lay at the bound {value}"):
        check(health, PATIENCE + 1, loss=1.0, nll=1.0, **{bound: 1.0})


def test_grouping_by_length_saves_padding_and_repeats():
    lengths = torch.randint(5, 200, (512,), generator=torch.Generator().manual_seed(0)).tolist()

    def padding(order) -> float:
        batches = [[lengths[i] for i in order[start : start + 8]] for start in range(0, len(order), 8)]
        return 1 - sum(map(sum, batches)) / sum(len(batch) * max(batch) for batch in batches)

    sampler = GroupedByLength(64, lengths, seed=3)
    order = list(sampler)
    assert sorted(order) == list(range(512)) and order == list(GroupedByLength(64, lengths, seed=3))
    assert padding(order) < 0.5 * padding(list(range(512)))
    means = torch.tensor(lengths)[order].float().view(8, 64).mean(1)  # of steps: as if drawn at random
    assert means.std() < 2 * torch.tensor(lengths).float().std() / 8
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != order and second != list(GroupedByLength(64, lengths, seed=5))
    sampler.set_epoch(1)
    assert list(sampler) == second  # as a resumed run draws it


@pytest.mark.parametrize(
    ("made", "now", "refused"),
    [
        (("plain", 1), ("plain", 8), False),
        (("fsdp", 8), ("fsdp", 4), False),
        (("deepspeed", 8), ("deepspeed", 8), False),
        (("deepspeed", 8), ("deepspeed", 4), True),
        (("plain", 8), ("fsdp", 8), True),
    ],
)
def test_a_checkpoint_of_another_engine_is_refused(tmp_path, made, now, refused):
    engines = [dict(zip(("engine", "processes"), pair, strict=True)) for pair in (made, now)]
    (tmp_path / "complete").write_text(json.dumps(engines[0]))
    if not refused:
        refuse_other_engine(tmp_path, engines[1])
        return
    with pytest.raises(InputError, match=f"written by {made[1]} processes with engine {made[0]}"):
        refuse_other_engine(tmp_path, engines[1])
