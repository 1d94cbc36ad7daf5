"""Loss of words before and after training: the first token's, joined word by word, with answers known by hand."""

import json
import sys
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import words
from analysis.intervals import ratio_interval
from analysis.labels import label_words
from analysis.lexicon import words_of
from dpa.errors import InputError


def sample_table(texts):
    """Samples r0, r1, ... of one corpus."""
    rows = [{"record": f"r{i}", "id": str(i), "corpus": "c", "text": text, "image": ""} for i, text in enumerate(texts)]
    return pd.DataFrame(rows, columns=["record", "id", "corpus", "text", "image"])


def token_table(samples, pieces, losses=None, relevance=None):
    """Tokens of each sample: pieces, {record: spans}; losses and relevance count up from 1 and 0.01 where not given."""
    rows = [(record, place, *span) for record, spans in pieces.items() for place, span in enumerate(spans)]
    frame = pd.DataFrame(rows, columns=["record", "place", "start", "end"])
    numbers = np.arange(1, len(frame) + 1, dtype=np.float32)
    frame["log_p_seen"] = -np.asarray(numbers if losses is None else losses, np.float32)
    frame["relevance"] = np.asarray(numbers / 100 if relevance is None else relevance, np.float32)
    return frame


def losses_of(texts, pieces, **columns):
    samples = sample_table(texts)
    return words.word_losses(
        token_table(samples, {f"r{i}": spans for i, spans in enumerate(pieces)}, **columns), samples
    )


def table(rows):
    """A table of word losses from (record, word, loss before, relevance) rows; a word starts at its number in the record."""
    frame = pd.DataFrame(rows, columns=["record", "word", "loss", "relevance"])
    frame["start"] = frame.groupby("record").cumcount() * 10
    return frame.assign(end=frame["start"] + 5, corpus="c", word_class="noun", num_tokens=1)


# word_losses -----------------------------------------------------------------------------------------------------------


def test_a_word_has_the_loss_of_the_token_with_its_first_character():
    """ "A" in one token, " reddish" in three, " dog-house" begun by a token of its blank alone, "." no word, end of sequence."""
    text = "A reddish  dog-house."
    pieces = [(0, 1), (1, 5), (5, 7), (7, 9), (9, 11), (11, 14), (14, 20), (20, 21), (21, 21)]
    found = losses_of([text], [pieces])
    assert found["word"].tolist() == ["a", "reddish", "dog-house"]
    assert found["loss"].tolist() == [1, 2, 6] and found["num_tokens"].tolist() == [1, 3, 2]
    np.testing.assert_allclose(found["relevance"], [0.01, 0.02, 0.06], rtol=1e-6)
    assert found[["start", "end"]].to_numpy().tolist() == [[0, 1], [2, 9], [11, 20]]
    assert found["word_class"].tolist() == ["determiner", "adjective", "adjective"] and found.attrs["unscored"] == 0
    assert found.columns.tolist() == words.COLUMNS and set(found["corpus"]) == {"c"}


def test_words_in_one_token_share_it_and_parts_of_a_character_count_from_the_first():
    found = losses_of(["New York \u6771\u4eac"], [[(0, 8), (8, 10), (9, 10), (9, 10), (10, 11)]])
    assert found["word"].tolist() == ["new", "york", "\u6771", "\u4eac"]
    assert found["loss"].tolist() == [1, 1, 2, 5] and found["num_tokens"].tolist() == [1, 1, 3, 1]


def test_the_order_of_places_and_not_of_rows_says_which_token_is_first():
    samples = sample_table(["\u6771"])
    tokens = token_table(samples, {"r0": [(0, 1), (0, 1), (0, 1)]})[::-1]
    assert words.word_losses(tokens, samples)["loss"].tolist() == [1]


def test_words_without_a_label_token_are_counted():
    """The prompt's words, the one that a cut took, and those of a sample without any token."""
    found = losses_of(["say it: a dog runs", "a cat"], [[(7, 9), (9, 13)], []])
    assert found["word"].tolist() == ["a", "dog"] and found.attrs["unscored"] == 5


@pytest.mark.parametrize("text", ["", "   ", "\0", "\U0001f642\U0001f642", "...", "\n"])
def test_captions_without_a_word(text):
    spans = [(i, i + 1) for i in range(len(text))]
    found = losses_of([text, "dog"], [[*spans, (len(text), len(text))], [(0, 3)]])
    assert found["word"].tolist() == ["dog"] and found["loss"].tolist() == [len(spans) + 2]
    assert {found[name].dtype.kind for name in ("start", "end", "num_tokens")} == {"i"}
    alone = losses_of([text], [spans])
    assert len(alone) == 0 and alone.columns.tolist() == words.COLUMNS and alone.attrs["unscored"] == 0


def test_no_samples():
    found = losses_of([], [])
    assert len(found) == 0 and words.word_changes(found, found).empty
    assert words.class_changes(found, found, label_words(found)).empty


def slow_losses(text, spans, losses):
    """The rule once more, as loops: (loss, tokens) of each word that a token begins or crosses into."""
    for start, end in words_of(text):
        holders = [i for i, (a, b) in enumerate(spans) if a <= start < b]
        inside = [i for i, (a, b) in enumerate(spans) if a < b and a < end and b > start]
        if holders:
            yield losses[holders[0]], len(inside)


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("ab -'.\u6771\u0301\U0001f642\0"), max_size=30), st.data())
def test_first_tokens_as_loops_find_them(text, data):
    """Any cut of any text into tokens, some of them empty or twice as where a character is split."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    spans = [span for span in pairwise(cuts) for _ in range(data.draw(st.integers(1, 2)))]
    found = losses_of([text], [spans])
    expected = list(slow_losses(text, spans, range(1, len(spans) + 1)))
    assert list(zip(found["loss"], found["num_tokens"], strict=True)) == expected
    assert len(found) + found.attrs["unscored"] == len(words_of(text))


def test_a_log_probability_above_0_by_rounding_is_no_negative_loss():
    assert losses_of(["dog"], [[(0, 3)]], losses=[-1e-8])["loss"].tolist() == [0.0]


def test_tables_that_do_not_belong_together_are_named():
    samples = sample_table(["a dog", "a cat"])
    tokens = token_table(samples, {"r0": [(0, 5)], "r1": [(0, 5)]})
    with pytest.raises(InputError, match="r1: has tokens but no sample"):
        words.word_losses(tokens, samples[:1])
    with pytest.raises(InputError, match="r0: stands twice in the sample table"):
        words.word_losses(tokens, pd.concat([samples, samples[:1]]))
    for span in ((3, 6), (-1, 2), (4, 2)):
        with pytest.raises(InputError, match="r0: a token lies outside"):
            words.word_losses(token_table(samples, {"r0": [span]}), samples)
    for broken in (np.nan, np.inf):
        with pytest.raises(InputError, match="r1: a loss or relevance is no finite number"):
            words.word_losses(tokens.assign(log_p_seen=[0.0, -broken]), samples)
        with pytest.raises(InputError, match="r1: a loss or relevance is no finite number"):
            words.word_losses(tokens.assign(relevance=[0.0, broken]), samples)


# word_changes ----------------------------------------------------------------------------------------------------------

BEFORE = table(
    [
        ("r0", "dog", 2.0, 0.1),
        ("r0", "dog", 4.0, 0.1),
        ("r0", "a", 1.0, 0.0),
        ("r1", "dog", 6.0, 0.1),
        ("r1", "a", 3.0, 0.0),
    ]
)
AFTER = BEFORE.assign(loss=[1.0, 1.0, 2.0, 4.0, 2.0], relevance=[0.3, 0.2, 0.0, 0.1, 0.04])


def test_changes_known_by_hand():
    """dog: mean 4 to 2, so -50 %; a: mean 2 to 2."""
    found = words.word_changes(BEFORE, AFTER, min_count=2)
    assert found["word"].tolist() == ["dog", "a"]
    assert found["count"].tolist() == [3, 2] and found["documents"].tolist() == [2, 2]
    np.testing.assert_allclose(found["loss_before"], [4, 2])
    np.testing.assert_allclose(found["loss_after"], [2, 2])
    np.testing.assert_allclose(found["change_percent"], [-50, 0])
    np.testing.assert_allclose(found["relevance"], [0.2, 0.02])
    pd.testing.assert_frame_equal(words.word_changes(BEFORE, AFTER[::-1], min_count=2), found)
    assert label_words(found)["label"].tolist() == ["visual", "style"]


def test_rare_words_and_words_without_a_loss_are_counted():
    assert words.word_changes(BEFORE, AFTER, min_count=3)["word"].tolist() == ["dog"]
    assert words.word_changes(BEFORE, AFTER, min_count=3).attrs == {"rare": 1, "without_percent": []}
    found = words.word_changes(
        BEFORE.assign(loss=BEFORE["loss"].where(BEFORE["word"] == "dog", 0.0)), AFTER, min_count=2
    )
    assert found["word"].tolist() == ["dog"] and found.attrs == {"rare": 0, "without_percent": ["a"]}
    assert words.word_changes(BEFORE, AFTER).empty and words.word_changes(BEFORE, AFTER).attrs["rare"] == 2


@pytest.mark.parametrize(
    ("after", "record"),
    [
        (AFTER[:4], "r1"),
        (AFTER[1:], "r0"),
        (AFTER.assign(record=AFTER["record"].replace("r1", "r2")), "r1"),
        (AFTER.assign(word=["cat", *AFTER["word"][1:]]), "r0"),
        (AFTER.assign(end=[5, 15, 25, 6, 15]), "r1"),
    ],
)
def test_records_whose_words_differ_are_named(after, record):
    for call in (words.word_changes, lambda a, b: words.class_changes(a, b, label_words(a))):
        with pytest.raises(InputError, match=f"{record}: its words before and after training differ") as error:
            call(BEFORE, after)
        assert "\n" not in str(error.value)


def test_a_word_twice_is_named():
    with pytest.raises(InputError, match="r1: a word stands twice in the table after training"):
        words.word_changes(BEFORE, pd.concat([AFTER, AFTER[3:4]]))


# class_changes ---------------------------------------------------------------------------------------------------------


def test_classes_known_by_hand():
    found = words.class_changes(BEFORE, AFTER, label_words(BEFORE)).set_index("class")
    assert found.index.tolist() == ["visual", "style", "all"]
    assert found[["words", "occurrences", "documents"]].to_numpy().tolist() == [[1, 3, 2], [1, 2, 2], [2, 5, 2]]
    np.testing.assert_allclose(found["loss_before"], [4, 2, 16 / 5])
    np.testing.assert_allclose(found["loss_after"], [2, 2, 10 / 5])
    np.testing.assert_allclose(found["change_nats"], [-2, 0, -6 / 5])
    np.testing.assert_allclose(found["change_percent"], [-50, 0, -100 * 6 / 16])
    measured = ("loss_before", "loss_after", "change_nats", "change_percent")
    assert all((found[f"{c}_low"] <= found[c]).all() and (found[c] <= found[f"{c}_high"]).all() for c in measured)
    left_out = words.class_changes(BEFORE, AFTER, label_words(BEFORE)).attrs["left_out"]
    assert left_out == {"other": "no words"} and not found.isna().any().any()


def test_intervals_are_over_documents():
    """Those of the sums of each document, also of documents without a word of the class."""
    rng = np.random.default_rng(5)
    rows = [
        (f"r{i}", word, loss, 0.0)
        for i in range(30)
        for word, loss in zip(("dog", "a", "the")[i % 2 :], rng.gamma(2, 1, 3), strict=False)
    ]
    before = table(rows)
    after = before.assign(loss=before["loss"] * rng.uniform(0.5, 1.2, len(before)))
    (row,) = (
        words.class_changes(before, after, label_words(before), seed=3).query("`class` == 'visual'").to_dict("records")
    )
    own = before["word"] == "dog"
    old, new, number = (
        values.where(own, 0.0).groupby(before["record"]).sum().to_numpy()
        for values in (before["loss"], after["loss"], pd.Series(1.0, before.index))
    )
    order = pd.factorize(before.sort_values("record")["record"])[1]
    assert list(order) == sorted(before["record"].unique())  # documents as pandas sorts them, in both
    for name, top, bottom, times in (
        *(("loss_before", old, number, 1), ("loss_after", new, number, 1)),
        *(("change_nats", new - old, number, 1), ("change_percent", new - old, old, 100)),
    ):
        expected = np.array(list(ratio_interval(top, bottom, seed=3))) * times
        np.testing.assert_allclose([row[name], row[f"{name}_low"], row[f"{name}_high"]], expected)
        assert expected[1] < expected[0] < expected[2]
    assert row["documents"] == 15 and row["occurrences"] == 15


def test_an_equal_change_everywhere_has_no_width():
    found = words.class_changes(BEFORE, BEFORE.assign(loss=BEFORE["loss"] * 1.1), label_words(BEFORE))
    for end in ("", "_low", "_high"):
        np.testing.assert_allclose(found[f"change_percent{end}"], 10)


def test_a_single_document_leaves_the_interval_open():
    one = BEFORE[BEFORE["record"] == "r0"]
    found = words.class_changes(one, one.assign(loss=1.0), label_words(one))
    assert (found["change_percent_low"] == -np.inf).all() and (found["change_percent_high"] == np.inf).all()
    assert (found["loss_after_low"] == 0).all() and not found.isna().any().any()


def test_a_class_without_a_loss_before_is_left_out_by_name():
    silent = BEFORE.assign(loss=BEFORE["loss"].where(BEFORE["word"] == "dog", 0.0))
    found = words.class_changes(silent, AFTER, label_words(BEFORE))
    assert found["class"].tolist() == ["visual", "all"]
    assert found.attrs["left_out"]["style"] == "a loss of 0 before training, which has no percent"


def test_a_word_without_a_label_is_named():
    with pytest.raises(InputError, match="the word 'a' has no label"):
        words.class_changes(BEFORE, AFTER, label_words(BEFORE[:2]))


# the figure and the command --------------------------------------------------------------------------------------------


def changes_of(**groups):
    rows = [(f"{name}{i}", name, value) for name, values in groups.items() for i, value in enumerate(values)]
    return pd.DataFrame(rows, columns=["word", "label", "change_percent"])


def texts_in(ax):
    ax.figure.canvas.draw()
    return [text.get_text() for text in (*ax.texts, *ax.get_xticklabels()) if text.get_text()]


@pytest.fixture(autouse=True)
def closed_figures():
    import matplotlib

    matplotlib.use("agg")
    yield
    from matplotlib import pyplot as plt

    plt.close("all")


@pytest.mark.filterwarnings("error")
def test_the_figure_tells_classes_quartiles_and_extremes():
    ax = words.violin(changes_of(visual=range(-40, 41), style=[*range(-10, 11), 900, 1000]))
    texts = texts_in(ax)
    assert {"visual\n81 words", "style\n23 words", "other\n0 words", "no words"} <= set(texts)
    assert "visual80, visual79" in texts and "visual0, visual1" in texts and "style22, style21" in texts
    assert "2 words above +140 %, drawn there" in texts and ax.get_ylim()[1] < 200
    colours = {
        tuple(body.get_facecolor()[0][:3]) for body in ax.collections if hasattr(body, "get_hatch") and body.get_alpha()
    }
    assert len(colours) == 2 and len({body.get_hatch() for body in ax.collections if body.get_alpha()}) == 2
    levels = [line for lines in ax.collections if not lines.get_alpha() for line in lines.get_segments()]
    assert sorted({float(line[0, 1]) for line in levels if line[0, 0] < 0.5}) == [-20, 0, 20]
    assert any(np.allclose(line.get_ydata(), 0) and len(set(line.get_xdata())) == 2 for line in ax.lines)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "groups",
    [
        {},
        {"visual": [3.0]},
        {"style": [0.0] * 5},
        {"visual": [1e9], "style": [-100.0], "other": [0.0]},
        {"other": [1, 2]},
    ],
)
def test_the_figure_with_few_words_or_none(groups):
    from matplotlib import pyplot as plt

    _, axes = plt.subplots(1, 2, sharey=True)
    changes = changes_of(**groups)
    assert words.violin(changes, ax=axes[0]) is axes[0]
    assert texts_in(axes[0]).count("no words") == 3 - len(groups)
    points = [len(line.get_xdata()) for line in axes[0].lines if line.get_marker() == "o"]
    assert points == [len(values) for values in groups.values() if len(set(values)) == 1]  # no density to draw
    words.violin(changes_of(visual=range(5)), ax=axes[1])


@pytest.fixture
def stand_in(monkeypatch):
    """`analysis.pairs` with models that have as loss of a token its number (before) or half of it (after)."""
    texts = [f"a {'red' if i % 2 else 'serene'} dog sits there, perhaps" for i in range(12)]
    scored = []

    def open_checkpoint(name):
        if "absent" in name:
            raise InputError(f"{name}: no such folder")
        return SimpleNamespace(name=name, digest=f"digest of {name}")

    def score_samples(checkpoint, samples, indices, weighting, bad=None):
        scored.append((checkpoint.name, list(indices), weighting.rule))
        about = sample_table(texts).iloc[list(indices)]
        pieces = {row.record: words_of(row.text) for row in about.itertuples()}
        number = sum(map(len, pieces.values()))
        losses = np.arange(1, number + 1) / (1 if checkpoint.name.endswith("@start") else 2)
        return token_table(about, pieces, losses=losses), about

    pairs = SimpleNamespace(
        open_checkpoint=open_checkpoint, samples_of=lambda checkpoint, data, images: texts, score_samples=score_samples
    )
    monkeypatch.setitem(sys.modules, "analysis.pairs", pairs)
    return scored


def command(tmp_path, *more):
    (tmp_path / "data.json").write_text("[]")
    given = [
        "--before",
        "run@start",
        "--after",
        "run",
        "--data",
        str(tmp_path / "data.json"),
        "--images",
        str(tmp_path),
    ]
    return [*given, "--samples", "10", "--seed", "1", *more]


def test_the_command_writes_what_it_prints(tmp_path, stand_in, capsys):
    assert words.main(command(tmp_path, "--out", str(tmp_path / "out"))) == 0
    printed = capsys.readouterr().out
    assert [name for name, _, _ in stand_in] == ["run@start", "run"] and {rule for _, _, rule in stand_in} == {"cmo"}
    (_, first, _), (_, second, _) = stand_in
    assert first == second == sorted(first) and len(set(first)) == 10
    out = tmp_path / "out"
    made = {"words", "classes", "agreement"}
    assert {path.name for path in out.iterdir()} == {
        *(f"{name}.{end}" for name in made for end in ("csv", "json")),
        *("words.png", "words.svg", "manifest.json"),
    }
    classes = pd.read_csv(out / "classes.csv").set_index("class")
    assert classes.index.tolist() == ["visual", "style", "all"] and (classes["change_percent"].round(6) == -50).all()
    found = pd.read_csv(out / "words.csv").set_index("word")
    assert (
        found.loc["dog", "label"] == found.loc["dog", "label_lexicon"] == "visual" and found.loc["dog", "count"] == 10
    )
    assert found.loc["a", "label"] == "style"
    assert found.loc["there", "label_relevance"] == "visual" and found.loc["there", "relevance"] > 0.05
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["seed"] == 1 and manifest["samples"] == 10 and len(manifest["data_hash"]) == 64
    assert manifest["checkpoints"] == {"run@start": "digest of run@start", "run": "digest of run"}
    for told in ("no row for other: no words", "words that rose most", "words that fell most", "left out: "):
        assert told in printed


def test_the_command_with_labels_of_ones_own(tmp_path, stand_in, capsys):
    file = tmp_path / "mine.json"
    file.write_text('{"visual": ["there"], "style": ["dog", "a"]}')
    assert words.main(command(tmp_path, "--labels", str(file), "--out", str(tmp_path / "out"))) == 0
    agreed = pd.read_csv(tmp_path / "out" / "agreement.csv")
    assert set(map(tuple, agreed[["first", "second"]].to_numpy())) == {
        ("lexicon", "relevance"),
        ("lexicon", "json"),
        ("relevance", "json"),
    }
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["labels_hash"]
    assert "other" in pd.read_csv(tmp_path / "out" / "classes.csv")["class"].tolist()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--samples", "0"), "should be positive"),
        (("--min-count", "0"), "should be positive"),
        (("--seed", "-1"), "should be positive"),
        (("--labels", "absent.json"), "absent.json: cannot be read"),
        (("--after", "absent"), "absent: no such folder"),
    ],
)
def test_the_command_names_what_is_wrong(tmp_path, stand_in, capsys, more, message):
    assert words.main(command(tmp_path, *more)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert stand_in == [] or "absent" in more  # before any model is asked


def test_the_command_where_no_word_is_frequent_enough(tmp_path, stand_in, capsys):
    assert words.main(command(tmp_path, "--min-count", "99", "--out", str(tmp_path / "out"))) == 0
    assert "words that occur less than 99 times" in capsys.readouterr().out
    assert (tmp_path / "out" / "words.svg").is_file()
