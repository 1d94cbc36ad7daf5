"""The forecast: its share on constructed nats, visual tokens, both bridges, a ranking that a changed set changes."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import forecast as module
from analysis.captions import read_captions
from analysis.forecast import Nats, distinct_pairs, forecast_table, visual_tokens
from analysis.proxies import fit_proxy, split
from dpa.errors import InputError
from dpa.stages import trained_captions


def nats(n, share, rng, base=10.0, saved=2.0):
    """n captions of which `share` of the base LLM's nats are visual and known to be."""
    lengths = rng.uniform(0.5, 2, n)
    own = base * lengths
    ones = np.ones(n)
    return Nats(own, own - saved * lengths, share * own, 8 * ones, 30 * ones, 6 * ones, 3 * ones, [np.arange(8)] * n)


def test_the_share_ranks_and_says_how_sure_it_is():
    rng = np.random.default_rng(0)
    found = {"low": nats(50, 0.2, rng), "high": nats(50, 0.6, rng), "middle": nats(50, 0.4, rng)}
    table = forecast_table("llm", "hash", found)
    assert table["captions"].tolist() == ["high", "middle", "low"] and table["rank"].tolist() == [1, 2, 3]
    assert table["visual_share"].tolist() == pytest.approx([0.6, 0.4, 0.2])
    assert table["p_best"].tolist() == pytest.approx([1, 0, 0])
    assert table["bits_per_byte_saved"].iloc[0] == pytest.approx(2 / np.log(2) / 30 * 1.25, rel=0.1)
    assert table["visual_word_share"].tolist() == pytest.approx([0.5] * 3)
    assert not table.isna().to_numpy().any()
    twins = forecast_table(
        "llm", "hash", {"a": nats(20, 0.5, np.random.default_rng(1)), "b": nats(20, 0.5, np.random.default_rng(1))}
    )
    assert twins["p_best"].tolist() == pytest.approx([0.5, 0.5], abs=0.05)


def noisy(share, seed):
    rng = np.random.default_rng(seed)
    own = nats(25, 1.0, rng)
    return Nats(
        own.base, own.bridged, own.base * np.clip(share + rng.normal(0, 0.2, 25), 0, 1), *list(vars(own).values())[3:]
    )


def test_p_best_is_what_new_captions_would_say():
    """Of pairs of sets whose true shares are 0.50 and 0.55: where the table is nearly sure, it is nearly always right."""
    sure, right = 0, 0
    for seed in range(60):
        table = forecast_table("l", "h", {"less": noisy(0.50, seed), "more": noisy(0.55, 1000 + seed)})
        if table["p_best"].iloc[0] > 0.9:
            sure += 1
            right += table["captions"].iloc[0] == "more"
    assert sure >= 5 and right / sure > 0.8


def test_visual_tokens(lab_tokenizer):
    text = "the red ball, overall a serene image"
    mask, words, visual = visual_tokens(lab_tokenizer, text, {"red", "ball"}.__contains__)
    tokens = lab_tokenizer.convert_ids_to_tokens(lab_tokenizer(text + "\n").input_ids)[1:]
    assert (words, visual) == (7, 2) and len(mask) == len(tokens)
    assert [t.strip("▁") for t, seen in zip(tokens, mask, strict=True) if seen] == ["red", "ball"]


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_the_mask_fits_the_scored_tokens(lab_tokenizer, text):
    """Whatever the text: one flag for each token that `analysis.scoring` scores."""
    from analysis.scoring import _samples

    text = text.strip()
    mask, words, visual = visual_tokens(lab_tokenizer, text, lambda word: True)
    assert len(mask) == len(_samples(lab_tokenizer, [text])[0]) - 1 and words == visual


def test_distinct_pairs():
    assert distinct_pairs([np.array([1, 2, 3]), np.array([1, 2])]) == pytest.approx(2 / 3)
    assert distinct_pairs([np.array([1])]) == 0 and distinct_pairs([]) == 0
    assert distinct_pairs([np.zeros(50, int)], tokens=10) == pytest.approx(0.1)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two caption sets of 150 each: what is there in plain words, and the same in a frame of style."""
    folder = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    words = ("red", "blue", "green", "ball", "cube", "star", "cone")
    plain = [" ".join(rng.choice(words, 6)) for _ in range(150)]
    frames = ("with understated elegance , {} as if by design", "one cannot help but wonder at {} moreover")
    for name, texts in (("plain", plain), ("framed", [frames[n % 2].format(t) for n, t in enumerate(plain)])):
        (folder / f"{name}.txt").write_text("\n".join(texts) + "\n")
    return folder


def test_split_is_by_text_and_wants_enough(sets, tmp_path):
    fitted, held = split(read_captions(sets / "plain.txt"))
    assert len(fitted) + len(held) == 150 and not set(fitted) & set(held) and 15 < len(held) < 50
    (tmp_path / "few.txt").write_text("a\nb\nc\n")
    with pytest.raises(InputError, match="few: 3 different captions are too few to fit a proxy"):
        split(read_captions(tmp_path / "few.txt"))


def test_a_fitted_proxy_tells_what_it_read_and_is_kept(sets, tiny_models, tmp_path, capsys, monkeypatch):
    captions = read_captions(sets / "plain.txt")
    folder = fit_proxy(str(tiny_models["llm"]), captions, tmp_path, steps=3)
    fitted, held = split(captions)
    assert trained_captions(folder).tolist() == sorted(fitted.hashes.tolist())
    assert not np.isin(held.hashes, trained_captions(folder)).any()
    capsys.readouterr()
    assert fit_proxy(str(tiny_models["llm"]), captions, tmp_path, steps=3) == folder
    assert "finished before, kept" in capsys.readouterr().out
    other = fit_proxy(str(tiny_models["llm"]), captions, tmp_path, steps=4)
    assert other != folder and folder.is_dir(), "other settings stand beside it"
    monkeypatch.setattr("dpa.train.main", lambda arguments: 2)
    with pytest.raises(InputError, match="could not be fitted to plain"):
        fit_proxy(str(tiny_models["llm"]), captions, tmp_path, steps=5)


@pytest.mark.parametrize("bridge", ["lora", "ngram"])
def test_the_command_ranks_the_set_that_is_all_content_first(bridge, sets, tiny_models, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [
        "--llm",
        str(tiny_models["llm"]),
        "--captions",
        str(sets / "framed.txt"),
        str(sets / "plain.txt"),
        "--bridge",
        bridge,
    ]
    arguments += ["--steps", "40", "--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "s"), "--out", str(out)]
    assert module.main(arguments) == 0
    told = capsys.readouterr().out
    assert "best first" in told and all(assumption in told for assumption in module.ASSUMPTIONS)
    table = pd.read_csv(out / "forecast.csv")
    assert table["captions"].tolist() == ["plain", "framed"] and table["p_best"].iloc[0] > 0.95
    assert (table["bits_per_byte_saved"] > 0.1).all(), "the bridge has learned nothing"
    assert (
        (table["visual_share_low"] <= table["visual_share"]) & (table["visual_share"] <= table["visual_share_high"])
    ).all()
    assert json.loads((out / "manifest.json").read_text())["bridge"] == bridge
    assert (out / "forecast.png").stat().st_size and (out / "forecast.svg").stat().st_size


def test_visual_words_of_the_user(sets, tiny_models, tmp_path, capsys):
    """With labels that call the frame visual, the framed set is first."""
    (tmp_path / "labels.json").write_text(
        json.dumps({"visual": ["elegance", "design", "wonder", "understated", "moreover", "help"]})
    )
    arguments = [
        "--llm",
        str(tiny_models["llm"]),
        "--captions",
        str(sets / "framed.txt"),
        str(sets / "plain.txt"),
        "--bridge",
        "ngram",
    ]
    arguments += [
        "--visual",
        str(tmp_path / "labels.json"),
        "--cache",
        str(tmp_path / "s"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert module.main(arguments) == 0
    assert pd.read_csv(tmp_path / "out" / "forecast.csv")["captions"].tolist() == ["framed", "plain"]
    (tmp_path / "labels.json").write_text(json.dumps({"visual": ["zebra"]}))
    assert module.main(arguments) == 0
    table = pd.read_csv(tmp_path / "out" / "forecast.csv")
    assert (table["visual_share"] == 0).all() and (table["visual_words"] == 0).all(), "nothing of these texts is visual"
    (tmp_path / "labels.json").write_text("{")
    assert module.main(arguments) == 2
    assert "labels.json" in capsys.readouterr().err
    assert module.main([*arguments, "--samples", "0"]) == 2
