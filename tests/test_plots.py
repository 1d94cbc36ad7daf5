"""Figures from tables: what they show is what the tables say; each is written as PNG and SVG by its command."""

import json

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("agg")
from matplotlib import pyplot as plt

from analysis import lab, outputs, plots
from analysis.figures import forecast_figure, matrix_figure, paradox_figure, relevance_figure
from analysis.plots import curves, curves_figure, sample_figure, words_of_sample
from dpa.errors import InputError
from dpa.methods import CAL
from tests.test_relevance import table as token_table


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def texts(figure):
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def test_matrix_frames_the_best_of_each_row():
    rows = [(c, m, 1.0 + (c != m) + 0.01 * i) for i, c in enumerate("ab") for m in ("base", "a", "b")]
    figure = matrix_figure(pd.DataFrame(rows, columns=["captions", "model", "bits_per_byte"]))
    frames = [(p.get_x() + 0.47, p.get_y() + 0.45) for p in figure.axes[0].patches]
    assert np.allclose(frames, [(1, 0), (2, 1)])
    assert texts(figure) == ["2.00", "1.00", "2.00", "2.01", "2.01", "1.01"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["base LLM", "proxy:\na", "proxy:\nb"]


def test_forecast_shows_shares_and_odds():
    table = pd.DataFrame(
        {"llm": "x", "captions": ["one", "two"], "visual_share": [0.6, 0.3], "visual_share_low": [0.5, 0.2], "visual_share_high": [0.7, 0.4],
         "p_best": [0.9, 0.1], "bits_per_byte": [1.0, 2.0], "bits_per_byte_saved": [0.2, 1.1]}
    )  # fmt: skip
    figure = forecast_figure(table)
    assert [bar.get_width() for bar in figure.axes[0].patches] == [0.6, 0.3]
    assert texts(figure)[:2] == ["0.60, first in 90% of draws", "0.30, first in 10% of draws"]


def test_paradox_has_a_panel_for_each_method_and_names_each_corpus():
    rows = [(m, f"l{n}", c, x, 50 + n) for m in ("vanilla", "dpa") for n in (0, 1) for c, x in (("a", 0.1), ("b", 0.5))]
    table = pd.DataFrame(rows, columns=["method", "llm", "captions", "bits_per_byte_saved", "score"]).assign(
        score_spread=1.0
    )
    figure = paradox_figure(table, "bits_per_byte_saved")
    assert [axis.get_title() for axis in figure.axes] == ["vanilla", "dpa"] and texts(figure) == ["a", "b"] * 4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["l0", "l1"]


@pytest.mark.parametrize("rule", [plots.CMO, CAL])
def test_relevance_says_the_share_below_the_bound(rule):
    values = np.array([-0.2, 0.1, 0.4, 0.8])
    figure = relevance_figure({("m", "c"): values}, rule)
    share = (values < rule.high).mean()
    assert f"m: {share:.1%} below {rule.high:g}" in texts(figure)


def test_curves_end_where_the_log_ends(finished, tmp_path):
    logs = curves({"tiny": finished / "small" / "connector"})
    rows = [row for row in json.loads((finished / "small" / "connector" / "log.json").read_text()) if "nll" in row]
    assert logs["tiny"] == [(row["step"], row["nll"]) for row in rows] and len(rows) == 4
    label = curves_figure(logs).axes[0].get_legend().get_texts()[0].get_text()
    assert label == f"tiny: ends at {np.mean([row['nll'] for row in rows]):.2f}"
    with pytest.raises(InputError, match=r"log\.json: cannot be read"):
        curves({"x": tmp_path})


def test_a_sample_word_by_word():
    tokens, samples = token_table(["a red ball"], [[0.1, -0.2, 0.5]])
    two = pd.concat(
        [tokens, tokens.iloc[[2]].assign(start=8, end=10, relevance=0.9), tokens.iloc[[2]].assign(start=10, end=10)],
        ignore_index=True,
    )
    found = words_of_sample(two, samples["text"][0])
    assert found["word"].tolist() == ["a", "red", "ball"], "a word once, though it has two tokens; the end not at all"
    assert found["relevance"].tolist() == [0.1, -0.2, 0.5], "that of its first token"
    figure = sample_figure(two, samples["text"][0])
    assert [bar.get_height() for bar in figure.axes[0].patches] == [0.1, -0.2, 0.5]
    assert figure.axes[0].patches[1].get_hatch() and not figure.axes[0].patches[0].get_hatch()


def test_figures_of_trained_stages(finished, tmp_path, monkeypatch):
    """The command, with a tiny run in place of the lab's recipes: files for each figure, numbers without a hole."""
    monkeypatch.setattr(lab, "trained", lambda runs, recipe, stage: finished / "small" / stage)
    monkeypatch.setattr(lab, "SAMPLES", 30)
    monkeypatch.setattr(lab, "NUM_HELD_OUT", 30)
    out = tmp_path / "out"
    tokens, _ = lab.lab_tokens(tmp_path, str(finished / "small" / "instruct"), "ornate", 30)
    monkeypatch.setattr(lab, "lab_tokens", lambda runs, stage, style, samples=30: lab_tokens(stage, samples))
    from analysis.pairs import open_checkpoint, samples_of, score_samples

    file = lab.held_out_captions(tmp_path, "ornate")

    def lab_tokens(stage, samples):
        checkpoint = open_checkpoint(stage)
        return score_samples(checkpoint, samples_of(checkpoint, file, file.parent), range(samples))

    assert plots.main(["1b", "3", "4", "6", "7", "--runs", str(tmp_path), "--out", str(out)]) == 0
    for name in ("1b", "3", "4", "6", "7"):
        for ending in ("png", "svg", "csv", "json", "manifest.json"):
            assert (out / f"figure_{name}.{ending}").stat().st_size, (name, ending)
    below = pd.read_csv(out / "figure_7.csv").set_index("model")["below_max"]
    assert below["stage 3, end"] == pytest.approx((tokens["relevance"] < 0.5).mean())
    assert set(pd.read_csv(out / "figure_3.csv")["recipe"]) == {"vanilla", "DPA"}


def test_relevance_and_words_of_a_recipe(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(lab, "trained", lambda runs, recipe, stage: finished / "small" / stage)
    monkeypatch.setattr(lab, "NUM_HELD_OUT", 20)
    assert lab.main(["--runs", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    for name in ("relevance/relevance.csv", "relevance/relevance.png", "words/classes.csv", "words/words.svg"):
        assert (tmp_path / "out" / name).stat().st_size


def test_held_out_scenes_are_told_in_every_style_and_drawn_once(tmp_path, monkeypatch):
    monkeypatch.setattr(lab, "NUM_HELD_OUT", 3)
    plain, ornate = (json.loads(lab.held_out_captions(tmp_path, style).read_text()) for style in ("plain", "ornate"))
    assert len(plain) == 3 and plain[0]["conversations"][1]["value"] != ornate[0]["conversations"][1]["value"]
    folder = lab.held_out_captions(tmp_path, "plain").parent
    before = (folder / "plain.json").stat().st_mtime_ns
    assert lab.held_out_captions(tmp_path, "plain").stat().st_mtime_ns == before
    assert all((folder / row["image"]).is_file() for row in plain)


def test_tables_are_whole_and_have_no_holes(tmp_path):
    frame = pd.DataFrame({"a": [1.0, np.inf], "b": ["x", 'y,"z"']})
    outputs.write_table(frame, tmp_path, "t")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv"), frame)
    assert json.loads((tmp_path / "t.json").read_text())[1] == {"a": None, "b": 'y,"z"'}
    with pytest.raises(ValueError, match="cells of a hold no number"):
        outputs.write_table(pd.DataFrame({"a": [np.nan]}), tmp_path, "bad")
    assert not list(tmp_path.glob("*bad*")) and not list(tmp_path.glob(".*"))


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        figure = plots.curves_figure({"a": [(1, 2.0), (2, 1.0)]})
        outputs.write_figure(figure, tmp_path / folder, "f")
    for ending in ("png", "svg"):
        assert (tmp_path / "one" / f"f.{ending}").read_bytes() == (tmp_path / "two" / f"f.{ending}").read_bytes()
