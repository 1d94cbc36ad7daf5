"""Labels of words: by the lexicon, by relevance, by files of any content; their agreement, with answers known by hand."""

import re

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import labels
from dpa.errors import InputError

BEFORE = pd.DataFrame({"word": ["dog", "dog", "a", "dog", "a"], "relevance": [0.1, 0.1, 0.0, 0.1, 0.0]})
AFTER = BEFORE.assign(relevance=[0.3, 0.2, 0.0, 0.1, 0.04])


def test_labels_by_the_lexicon_and_by_relevance():
    assert labels.label_words(BEFORE)["label"].tolist() == ["visual", "visual", "style", "visual", "style"]
    by_mean = labels.label_words(AFTER, by="relevance", threshold=0.2 - 1e-9)
    assert by_mean["label"].tolist() == ["visual", "visual", "style", "visual", "style"]  # dog: 0.3, 0.2, 0.1
    assert set(labels.label_words(AFTER, by="relevance", threshold=0.21)["label"]) == {"style"}
    assert set(labels.label_words(BEFORE.assign(relevance=0.05), by="relevance")["label"]) == {
        "visual"
    }  # at the threshold
    other = labels.label_words(BEFORE, by="relevance", relevance=AFTER.assign(relevance=[0.0, 0.0, 1.0, 0.0, 1.0]))
    assert other["label"].tolist() == ["style", "style", "visual", "style", "visual"]
    with pytest.raises(InputError, match="the word 'a' has no relevance"):
        labels.label_words(BEFORE, by="relevance", relevance=AFTER[:1])
    with pytest.raises(ValueError, match="unknown labels 'guess'"):
        labels.label_words(BEFORE, by="guess")


def test_labels_by_a_file(tmp_path):
    file = tmp_path / "labels.json"
    for content in (
        '{"Dog": "style"}',
        '{"style": ["DOG", "dog"], "visual": ["cat"]}',
        '\ufeff{"dog": "style", "dog": "style"}',
    ):
        file.write_text(content, encoding="utf-8")
        labelled = labels.label_words(BEFORE, by="json", file=file)
        assert labelled["label"].tolist() == ["style", "style", "other", "style", "other"]
    file.write_text('{"visual": "style", "style": "visual", "other": "other"}')  # words that are called as labels are
    assert labels.read_labels(file) == {"visual": "style", "style": "visual", "other": "other"}
    with pytest.raises(ValueError, match="need a file"):
        labels.label_words(BEFORE, by="json")


HOSTILE = {
    "": "is no JSON",
    "{": "is no JSON",
    '{"a": "visual"': "is no JSON",
    "[" * 100_000: "is no JSON",
    '"visual"': "is no JSON object",
    "17": "is no JSON object",
    "null": "is no JSON object",
    '["dog"]': "is no JSON object",
    '[["dog", "visual"]]': "is no JSON object",
    '[{"dog": "visual"}]': "is no JSON object",
    "{}": "labels no word",
    "[]": "labels no word",
    '{"dog": "nice"}': "entry 'dog': 'nice' is no label",
    '{"dog": "Visual"}': "entry 'dog': 'Visual' is no label",
    '{"dog": 1}': "entry 'dog': neither",
    '{"dog": null}': "entry 'dog': neither",
    '{"dog": NaN}': "entry 'dog': neither",
    '{"visual": ["dog"], "cat": "visual"}': "entry 'visual': neither",
    '{"nice": ["dog"]}': "entry 'nice': no label",
    '{"visual": []}': "entry 'visual': lists no word",
    '{"visual": [1]}': "entry 1 under visual: not a single word",
    '{"visual": [["dog"]]}': r"entry \['dog'\] under visual: not a single word",
    '{"visual": {"dog": 1}}': r"entry \('dog', 1\) under visual: not a single word",
    '{"visual": ["fire truck"]}': "entry 'fire truck' under visual: not a single word",
    '{" dog": "visual"}': "entry ' dog' under visual: not a single word",
    '{"": "visual"}': "entry '' under visual: not a single word",
    '{"do\\u0000g": "visual"}': r"entry 'do\\x00g' under visual: not a single word",
    '{"\\ud800": "visual"}': r"entry '\\ud800' under visual: not a single word",
    '{"a\\nb": "visual"}': r"entry 'a\\nb' under visual: not a single word",
    '{"dog": "visual", "Dog": "style"}': "entry 'dog': labelled visual and style",
    '{"dog": "visual", "dog": "style"}': "entry 'dog': labelled visual and style",
    '{"visual": ["dog"], "style": ["dog"]}': "entry 'dog': labelled visual and style",
    '{"visual": ["dog"], "visual": ["cat"], "other": ["cat"]}': "entry 'cat': labelled visual and other",
}


@pytest.mark.parametrize(("content", "message"), HOSTILE.items(), ids=[text[:40] for text in HOSTILE])
def test_files_that_cannot_be_used_say_why(tmp_path, content, message):
    file = tmp_path / "labels.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=f"^{re.escape(str(file))}: {message}") as error:
        labels.read_labels(file)
    assert "\n" not in str(error.value) and str(error.value).isprintable() and len(str(error.value)) < 400


def test_files_that_cannot_be_read_say_why(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe{\x00")
    for name, message in (("absent", "cannot be read"), (".", "cannot be read"), ("binary", "is no JSON")):
        with pytest.raises(InputError, match=message):
            labels.read_labels(tmp_path / name)


# agreement -------------------------------------------------------------------------------------------------------------


def two(pairs, counts=None):
    frame = pd.DataFrame(pairs, columns=["one", "two"])
    return frame.assign(word=[f"w{i}" for i in range(len(frame))], count=1 if counts is None else counts)


def test_kappa_by_hand():
    """20 both visual, 15 both style, 5 and 10 apart: agreement 0.7, by chance 0.5, so kappa 0.4; other words do not count."""
    pairs = (
        [("visual", "visual")] * 20 + [("visual", "style")] * 5 + [("style", "visual")] * 10 + [("style", "style")] * 15
    )
    found = labels.agreement(two([*pairs, ("other", "visual"), ("style", "other")]))
    (row,) = found.to_dict("records")
    assert (row["first"], row["second"], row["words"], row["occurrences"], row["note"]) == ("one", "two", 50, 50, "")
    assert row["agreement"] == pytest.approx(0.7) and row["kappa"] == pytest.approx(0.4)
    assert row["agreement_by_occurrence"] == pytest.approx(0.7) and row["kappa_by_occurrence"] == pytest.approx(0.4)


def test_occurrences_weigh():
    """Four words as often as the cells of the table above: the same by occurrence, chance level by type."""
    cells = [("visual", "visual"), ("visual", "style"), ("style", "visual"), ("style", "style")]
    (row,) = labels.agreement(two(cells, [20, 5, 10, 15])).to_dict("records")
    assert row["agreement"] == 0.5 and row["kappa"] == 0.0 and row["occurrences"] == 50
    assert row["agreement_by_occurrence"] == pytest.approx(0.7) and row["kappa_by_occurrence"] == pytest.approx(0.4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from(("visual", "style"))] * 2), min_size=1, max_size=30), st.data())
def test_kappa_as_another_package_has_it(pairs, data):
    agreement = pytest.importorskip("nltk.metrics.agreement")
    counts = data.draw(st.lists(st.integers(1, 4), min_size=len(pairs), max_size=len(pairs)))
    (row,) = labels.agreement(two(pairs, counts)).to_dict("records")
    for ending, repeated in (
        ("", pairs),
        ("_by_occurrence", [p for p, n in zip(pairs, counts, strict=True) for _ in range(n)]),
    ):
        task = agreement.AnnotationTask([(who, i, pair[who]) for i, pair in enumerate(repeated) for who in (0, 1)])
        assert row["agreement" + ending] == pytest.approx(task.avg_Ao())
        if len({kind for pair in repeated for kind in pair}) == 2:
            assert row["kappa" + ending] == pytest.approx(task.kappa(), abs=1e-9)
        else:
            assert row["kappa" + ending] == labels.UNDEFINED


def test_what_is_not_defined_is_said_in_words():
    always = labels.agreement(two([("visual", "visual")] * 3))
    assert always["agreement"].tolist() == [1.0] and always["kappa"].tolist() == ["undefined"]
    assert always["note"].tolist() == ["kappa undefined: one labels every word visual, two labels every word visual"]
    for table in (two([("other", "visual")]), two([])):
        none = labels.agreement(table)
        assert none[["words", "agreement", "kappa"]].to_numpy().tolist() == [[0, "undefined", "undefined"]]
        assert none["note"].tolist() == ["no word is visual or style in both"]
    opposite = labels.agreement(two([("visual", "style")] * 3))
    assert opposite["agreement"].tolist() == [0.0] and opposite["kappa"].tolist() == [0.0]
    constant = labels.agreement(two([("visual", "style"), ("style", "style")]))
    assert constant["kappa"].tolist() == [0.0] and constant["note"].tolist() == ["kappa 0: two labels every word style"]
    three = labels.agreement(two([("visual", "style")]).assign(three="visual"))
    assert three[["first", "second"]].to_numpy().tolist() == [["one", "two"], ["one", "three"], ["two", "three"]]
    assert not pd.concat([always, none, three]).isna().any().any()
    assert labels.agreement(two([("visual", "style")]).drop(columns="two")).empty
