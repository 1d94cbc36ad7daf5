"""Making the word list: our own goes first, the command makes what is shipped, and the source says what it holds."""

from collections import Counter
from pathlib import Path

import pytest

from analysis import wordnet
from analysis.lexicon import LABELS, label
from dpa.errors import InputError

FOLDER = Path(wordnet.__file__).parent / "lexicon"
WORDNET = Path("/usr/share/wordnet")


def test_the_source_tells_what_the_list_holds():
    rows = [line.split("\t") for line in (FOLDER / "words.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    text = (FOLDER / "SOURCE.md").read_text(encoding="utf-8")
    counts = Counter(kind for _, kind, _ in rows)
    assert (
        f"labels {len(rows):,} words: {counts['visual']:,} visual, {counts['style']:,} style, {counts['other']:,} other"
        in text
    )
    table = [line.split("|")[2:5] for line in text.splitlines() if line.startswith("| ") and "why" not in line]
    sums = [sum(int(cell.replace(",", "")) for cell in column) for column in zip(*table, strict=True)]
    assert sums == [counts[kind] for kind in LABELS]
    for part in ("WordNet 3.0 Copyright 2006 by Princeton University", "IMPLIED", "appear on ALL copies", "hand.tsv"):
        assert part in text


def test_our_own_list_goes_first():
    """A word in it is labelled as it says, whether the shipped list had to keep it or finds it by another."""
    hand = wordnet.by_hand()
    assert len(hand) > 800
    assert {word: label(word) for word, (kind, _) in hand.items() if label(word) != kind} == {}


@pytest.mark.parametrize("line", ["nice\tx\tred", "visual\tcolour\tred blue red"])
def test_a_mistake_in_our_own_list_is_named(tmp_path, monkeypatch, line):
    (tmp_path / "hand.tsv").write_text(f"class\twhy\twords\n{line}\n", encoding="utf-8")
    monkeypatch.setattr(wordnet, "FOLDER", tmp_path)
    with pytest.raises(InputError, match=r"hand.tsv line 2: 'red'"):
        wordnet.by_hand()


@pytest.mark.slow
def test_the_command_makes_the_shipped_list_again(tmp_path):
    if not (WORDNET / "data.noun").is_file():
        pytest.skip("needs WordNet 3.0 (Debian package wordnet-base)")
    assert wordnet.main(["--wordnet", str(WORDNET), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "words.tsv").read_bytes() == (FOLDER / "words.tsv").read_bytes()
    shipped = (FOLDER / "SOURCE.md").read_text(encoding="utf-8")
    assert (tmp_path / "SOURCE.md").read_text(encoding="utf-8") == shipped.replace(
        "analysis/lexicon\n", f"{tmp_path}\n", 1
    )


def test_a_folder_without_wordnet_is_named(tmp_path, capsys):
    assert wordnet.main(["--wordnet", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "cntlist.rev: not there" in capsys.readouterr().err
    (tmp_path / "cntlist.rev").write_text("not wordnet\n")
    assert wordnet.main(["--wordnet", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "not the database files of WordNet 3.0" in error and error.count("\n") == 1
    (tmp_path / "data.noun").write_text("  1 WordNet 3.1 Copyright 2011 by Princeton University.\n00001740 03 n\n")
    with pytest.raises(InputError, match=r"not WordNet 3\.0"):
        wordnet.licence_of(tmp_path)
    assert not (tmp_path / "out").exists()
