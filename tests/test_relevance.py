"""Summaries of relevance: constructed tables with known answers, classes of tokens, the command."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import relevance
from analysis.intervals import ratio_interval
from analysis.pairs import SAMPLES, SCORES, TOKENS
from analysis.relevance import by_sample, drawn, quantiles, summary, visual_minus_style, with_classes
from dpa.methods import CAL, CMO


def table(texts, values):
    """A token for each word of each text (the blank before it included), with these relevances; and the sample table."""
    rows = []
    for number, (text, own) in enumerate(zip(texts, values, strict=True)):
        place = 0
        for index, (word, value) in enumerate(zip(text.split(" "), own, strict=True)):
            start, place = place, place + len(word) + (index > 0)
            rows.append(
                (
                    f"r{number}",
                    f"{number}",
                    "c",
                    index,
                    7,
                    word,
                    start,
                    place,
                    np.log(0.5 + value / 2),
                    np.log(0.5 - value / 2),
                    0.0,
                    0.0,
                    value,
                    1 / len(own),
                )
            )
    tokens = pd.DataFrame(rows, columns=[*TOKENS, *SCORES])
    samples = pd.DataFrame([(f"r{n}", f"{n}", "c", text, "") for n, text in enumerate(texts)], columns=SAMPLES)
    return tokens, samples


TEXTS = ["a red ball", "the image captures two dogs", "overall a cat"]
VALUES = [[0.0, 0.6, 0.5], [0.01, -0.2, 0.02, 0.3, 0.9], [0.05, 0.0, 0.4]]


def test_tokens_belong_to_the_word_of_their_first_character():
    tokens = with_classes(*table(TEXTS, VALUES))
    told = dict(zip(tokens["token"], tokens["words"], strict=True))
    assert [told[w] for w in ("red", "ball", "dogs", "cat", "two")] == ["visual"] * 5
    assert [told[w] for w in ("a", "the", "captures", "overall", "image")] == ["style"] * 5
    classes = dict(zip(tokens["token"], tokens["word class"], strict=True))
    assert (classes["ball"], classes["red"], classes["the"], classes["captures"]) == (
        "noun",
        "adjective",
        "determiner",
        "verb",
    )
    assert tokens["position"].tolist()[:5] == ["0", "1", "2", "0", "1"]


def test_tokens_that_are_no_text_and_marks():
    tokens, samples = table(["a cat ."], [[0.1, 0.2, 0.3]])
    ending = tokens.iloc[[-1]].assign(place=3, token="\n", start=7, end=7)
    found = with_classes(pd.concat([tokens, ending], ignore_index=True), samples)
    assert found["word class"].tolist() == ["determiner", "noun", "punctuation", "end"]
    assert found["words"].tolist() == ["style", "visual", "no word", "no word"]


def test_places_have_their_bins():
    tokens, samples = table([" ".join(["cat"] * 130)], [[0.0] * 130])
    bins = with_classes(tokens, samples)["position"]
    assert bins.drop_duplicates().tolist() == [
        "0",
        "1",
        "2",
        "3 to 4",
        "5 to 9",
        "10 to 19",
        "20 to 49",
        "50 to 99",
        "100 on",
    ]
    assert (bins == "5 to 9").sum() == 5 and (bins == "100 on").sum() == 30


def test_summary_of_a_table_counted_by_hand():
    sums = by_sample(with_classes(*table(TEXTS, VALUES)))
    found = summary(sums).set_index(["kind", "group"])
    flat = np.concatenate(VALUES)
    whole = found.loc[("all", "all")]
    assert whole["tokens"] == 11 and whole["samples"] == 3
    assert whole["relevance"] == pytest.approx(flat.mean())
    assert whole["below_max"] == pytest.approx((flat < 0.5).mean()) and whole["at_min"] == pytest.approx(
        (flat <= 0.05).mean()
    )
    assert whole["weight"] == pytest.approx(1), "multiples of a plain token's share"
    assert whole["loss"] == pytest.approx(-np.log(0.5 + flat / 2).mean())
    assert found.loc[("words", "visual"), "relevance"] == pytest.approx(np.mean([0.6, 0.5, 0.3, 0.9, 0.4]))
    assert found.loc[("position", "0"), "relevance"] == pytest.approx(np.mean([0.0, 0.01, 0.05]))
    for name in ("relevance", "below_max", "at_min", "weight", "loss"):
        assert (found[f"{name}_low"] <= found[name] + 1e-12).all() and (
            found[name] <= found[f"{name}_high"] + 1e-12
        ).all()
        assert not found[[name, f"{name}_low", f"{name}_high"]].isna().to_numpy().any()
    gap = visual_minus_style(sums)
    assert gap.value == pytest.approx(np.mean([0.6, 0.5, 0.3, 0.9, 0.4]) - np.mean([0.0, 0.01, -0.2, 0.02, 0.05, 0.0]))
    assert gap.low < gap.value < gap.high


def test_a_sample_without_the_class_is_drawn_too():
    """Cats in 6 of 30 samples: the interval is that over 30 documents, 24 of them empty."""
    texts = ["cat"] * 6 + ["the"] * 24
    values = [[0.1 * n] for n in range(6)] + [[0.0]] * 24
    row = summary(by_sample(with_classes(*table(texts, values)))).set_index(["kind", "group"]).loc[("words", "visual")]
    top, bottom = np.array([v[0] for v in values]), np.array([1.0] * 6 + [0.0] * 24)
    wanted = ratio_interval(top * bottom, bottom)
    assert (row["relevance_low"], row["relevance_high"]) == pytest.approx((wanted.low, wanted.high))
    alone = ratio_interval(top[:6], bottom[:6])
    assert wanted.low != pytest.approx(alone.low), "the empty ones make no difference: the test says nothing"


def test_classes_that_are_not_there():
    assert visual_minus_style(by_sample(with_classes(*table(["the of"], [[0.1, 0.2]])))) is None
    alone = summary(by_sample(with_classes(*table(["cat"], [[0.1]])))).iloc[0]
    assert alone["relevance"] == alone["relevance_low"] == alone["relevance_high"] == 0.1
    assert alone["note"] == "one sample: no interval" and (alone["below_max_low"], alone["below_max_high"]) == (0, 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(-1, 1), min_size=1, max_size=6), min_size=1, max_size=6), st.integers(1, 5))
def test_parts_add_up(values, cut):
    """Sums of each sample do not depend on how the table was cut into parts; groups of a kind add up to all."""
    words = ["cat", "the", "red", "of", "image", "two"]
    texts = [" ".join(words[: len(own)]) for own in values]
    tokens, samples = table(texts, [[0.98 * v for v in own] for own in values])
    tokens = with_classes(tokens, samples)
    whole = by_sample(tokens, CAL)
    records = list(dict.fromkeys(tokens["record"]))
    parts = [tokens[tokens["record"].isin(records[n : n + cut])] for n in range(0, len(records), cut)]
    joined = pd.concat([by_sample(part, CAL) for part in parts], ignore_index=True)
    keys = ["kind", "group", "record"]
    pd.testing.assert_frame_equal(
        whole.sort_values(keys).reset_index(drop=True), joined.sort_values(keys).reset_index(drop=True)
    )
    totals = whole.groupby("kind")[["tokens", "relevance", "weight", "loss"]].sum()
    for kind in totals.index:
        np.testing.assert_allclose(totals.loc[kind], totals.loc["all"], atol=1e-9)


def test_quantiles_and_drawing():
    found = quantiles(np.linspace(-1, 1, 2001))
    assert (
        found["q05"] == pytest.approx(-0.9) and found["q50"] == pytest.approx(0) and found["q99"] == pytest.approx(0.98)
    )
    assert drawn(10, 0, 0).tolist() == list(range(10))
    assert (
        len(drawn(10, 4, 0)) == 4
        and drawn(10, 4, 1).tolist() == drawn(10, 4, 1).tolist()
        and (np.diff(drawn(10, 4, 1)) > 0).all()
    )


def test_the_command_before_and_after(finished, data, tmp_path, capsys):
    folder, out = finished / "small", tmp_path / "out"
    arguments = [
        "--model",
        f"{folder / 'connector'}@start",
        str(folder / "connector"),
        "--data",
        str(data / "captions.json"),
    ]
    arguments += ["--images", str(data), "--samples", "12", "--out", str(out)]
    assert relevance.main(arguments) == 0
    told = capsys.readouterr().out
    assert "share below delta_max 0.5" in told and "visual words minus style words" in told and "@start on" in told
    rows = json.loads((out / "relevance.json").read_text())
    assert {row["model"] for row in rows} == {f"{folder / 'connector'}@start", str(folder / "connector")}
    assert {row["kind"] for row in rows} == {"all", "position", "word class", "words"}
    parts = sorted((out / "tokens").glob("*/tokens-*.parquet"))
    assert len(parts) == 2
    tokens = pd.read_parquet(parts[0])
    assert [*TOKENS, *SCORES] == list(tokens.columns)
    overall = next(row for row in rows if row["kind"] == "all" and row["model"].endswith("@start"))
    start = next(pd.read_parquet(part) for part in parts if "start" in str(part))
    assert overall["tokens"] == len(start) and overall["relevance"] == pytest.approx(
        start["relevance"].mean(), abs=1e-6
    )
    assert (
        (out / "relevance.png").stat().st_size
        and (out / "relevance.svg").stat().st_size
        and (out / "manifest.json").is_file()
    )
    assert relevance.main([*arguments, "--rule", "cal"]) == 2
    assert "holds the table of another rule" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--low", "0.9"], "--low, --high: weighting bounds must be ordered"),
        (["--samples", "-1"], "--samples should be 0"),
        (["--images", "a", "b"], "2 image folders for 1 sources"),
    ],
)
def test_flags(finished, data, more, message, capsys):
    base = ["--model", str(finished / "small" / "connector"), "--data", str(data / "captions.json")]
    assert relevance.main([*base, *([] if "--images" in more else ["--images", str(data)]), *more]) == 2
    assert message in capsys.readouterr().err


def test_the_rule_of_the_flags():
    import argparse

    options = argparse.Namespace(rule="cmo", low=0.1, high=None)
    assert (relevance.rule_of(options).low, relevance.rule_of(options).high) == (0.1, CMO.high)
