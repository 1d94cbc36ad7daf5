"""Both ways of each pair do the same work, and the command prints their ratio."""

import argparse
import json
from itertools import zip_longest

import pytest

from analysis.scoring import text_scores
from benchmarks import throughput

TINY = ["--hidden", "64", "--layers", "1", "--vocab", "1000", "--texts", "3", "--items", "4", "--turns", "2"]


@pytest.fixture
def built():
    return throughput.build(argparse.Namespace(hidden=64, layers=2, vocab=1000, image_tokens=4, device="cpu"))


def test_both_ways_of_scoring_give_the_same_nats(built):
    llm, _, processor = built
    texts = throughput.captions(9, 12)
    ours = [nats for nats, _, _ in text_scores(llm, processor.tokenizer, texts)]
    assert ours == pytest.approx(throughput.one_at_a_time(llm, processor.tokenizer, texts), rel=1e-5)


def test_captions_have_the_lengths_asked_for(lab_tokenizer):
    """A word is a token, so that lengths scatter about the mean, newline included."""
    lengths = [len(lab_tokenizer(text + "\n").input_ids) - 1 for text in throughput.captions(400, 12)]
    assert sum(lengths) / len(lengths) == pytest.approx(12, abs=0.6) and min(lengths) >= 3 and len(set(lengths)) > 12


def test_the_pairs_are_batches_beside_one_at_a_time(monkeypatch):
    """What each way hands to the model: batches of `--batch-size` questions and of one, the same number in all."""
    from benchmarks import generation

    asked = []

    def answers(llava, processor, items, images, *, batch_size, max_new_tokens):
        asked.append((len(items), batch_size, max_new_tokens))
        return zip_longest([])

    monkeypatch.setattr(generation, "answers", answers)
    assert throughput.main([*TINY, "--batch-size", "3", "--new-tokens", "2", "--json"]) == 0
    assert asked == [(4, 3, 2), (4, 1, 2)] * 3  # a turn to warm up and two


def test_one_json_object_with_the_ratios(capsys, tmp_path):
    assert throughput.main([*TINY, "--json", "--publish", str(tmp_path / "new" / "record.json")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["ratios"].keys() == {"scoring/one_at_a_time", "evaluation/one_at_a_time"}
    assert min(record["ratios"].values()) > 0 and record["shape"]["items"] == 4 and record["shape"]["threads"] >= 1
    rates = record["per_second"]
    assert min(rates.values()) > 0 and rates.keys() >= {"scoring_tokens_together", "evaluation_items_one_at_a_time"}
    published = json.loads((tmp_path / "new" / "record.json").read_text())
    assert published.pop("provenance")["versions"]["torch"] and published == record


def test_without_json_a_line_for_each(capsys):
    assert throughput.main(TINY) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["scoring", "evaluation"] and all("ratio" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image-tokens", "10"], "--image-tokens should be a square"),
        (["--turns", "0"], "--turns, should be positive"),
    ],
)
def test_a_shape_that_cannot_be_is_named(capsys, arguments, message):
    assert throughput.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_together_is_faster(capsys):
    """Generous bounds for a busy machine and one thread, on a small model; the products of a large one fill a CPU with one
    text already, and the ratio is lower.
    """
    shape = ["--hidden", "128", "--layers", "8", "--vocab", "4000", "--turns", "7"]
    assert throughput.main([*shape, "--json"]) == 0
    ratios = json.loads(capsys.readouterr().out)["ratios"]
    assert ratios["scoring/one_at_a_time"] > 2.5 and ratios["evaluation/one_at_a_time"] > 1.5
