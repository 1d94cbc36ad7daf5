"""Which words are visual and which are style: by the lexicon, by the model's relevance, or by a file; how far these agree.

Reference: GPT-4.1 labelled the paper's words. Here the lexicon does (`analysis.lexicon`), or the model's relevance, or a
file of yours. Labels by relevance are not independent of the loss: a word that the trained model predicts well with the
picture is likely to be called visual.
"""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from analysis.lexicon import LABELS, label, words_of
from dpa.errors import InputError, first_line
from dpa.methods import CMO

if TYPE_CHECKING:
    import pandas as pd

By = Literal["lexicon", "relevance", "json"]
THRESHOLD = CMO.low  # mean relevance from which a word is visual: below delta_min CMO tells no tokens apart
UNDEFINED = "undefined"


def label_words(
    words: pd.DataFrame,
    *,
    by: By = "lexicon",
    relevance: pd.DataFrame | None = None,
    threshold: float = THRESHOLD,
    file: Path | None = None,
) -> pd.DataFrame:
    """`words` (of `word_losses` or `word_changes` in `analysis.words`) with a column `label`: visual, style or other.

    by: `lexicon`, that of `analysis.lexicon`; `relevance`, visual where the mean relevance of the word in the table
    `relevance` (None: `words`) is `threshold` or more, else style; `json`, what `file` says (`read_labels`), the words that
    it does not name being other. InputError for a word without relevance, or a file that cannot be used.
    """
    if by not in get_args(By):
        raise ValueError(f"unknown labels {by!r}: choose one of {', '.join(get_args(By))}")
    own = words["word"]
    if by == "lexicon":
        return words.assign(label=[label(word) for word in own])
    if by == "json":
        if file is None:
            raise ValueError("labels by json need a file")
        listed = read_labels(file)
        return words.assign(label=[listed.get(word, "other") for word in own])
    table = words if relevance is None else relevance
    means = table.groupby("word")["relevance"].mean()
    if not (known := own.isin(means.index)).all():
        raise InputError(f"the word {own[~known].iloc[0]!r} has no relevance in the table given; label by another")
    return words.assign(label=np.where(means.reindex(own).to_numpy() >= threshold, "visual", "style").astype(object))


def read_labels(path: Path) -> dict[str, str]:
    """{word, case folded: visual, style or other} of a JSON file, {"word": "visual", ...} or {"visual": ["word", ...], ...}.

    InputError when it cannot be read, an entry is no single word or label, or a word has two labels.
    """

    def fail(what: str) -> InputError:
        return InputError(f"{path}: {what}")

    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=list)
    except OSError as error:
        raise fail(f"cannot be read ({error.strerror or error}); give a JSON file of labels") from None
    except (ValueError, RecursionError) as error:  # json's and the encoding's errors are ValueErrors
        raise fail(f"is no JSON in UTF-8 ({first_line(error)}); mend it there") from None
    shape = 'expected {"word": "visual", ...} or {"visual": ["word", ...], "style": [...]}'
    if not isinstance(found, list) or not all(isinstance(pair, tuple) for pair in found):
        raise fail(f"is no JSON object; {shape}")
    if not found:
        raise fail(f"labels no word; {shape}")
    by_label = all(isinstance(value, list) for _, value in found)
    if not by_label and (odd := [key for key, value in found if not isinstance(value, str)]):
        raise fail(f"entry {odd[0]!r}: neither a label nor a list of words beside others of its kind; {shape}")
    pairs = [(word, key) for key, words in found for word in words or ()] if by_label else found
    labels: dict[str, str] = {}
    for key, words in found if by_label else ():
        if key not in LABELS:
            raise fail(f"entry {key!r}: no label; use {', '.join(LABELS)}")
        if not words:
            raise fail(f"entry {key!r}: lists no word; add some or take it out")
    for word, kind in pairs:
        if kind not in LABELS:
            raise fail(f"entry {word!r}: {kind!r} is no label; use {', '.join(LABELS)}")
        if not isinstance(word, str) or words_of(word) != [(0, len(word))]:
            raise fail(f"entry {word!r} under {kind}: not a single word; give words one by one, without blanks")
        folded = word.casefold()
        if labels.setdefault(folded, kind) != kind:
            raise fail(f"entry {folded!r}: labelled {labels[folded]} and {kind}; keep one")
    return labels


def agreement(labels: pd.DataFrame) -> pd.DataFrame:
    """How far labellings agree, a row for each two: share of the words that both label visual or style on which they agree,
    and Cohen's kappa, over word types and weighted by occurrences.

    labels: word, count, and a column of labels for each labelling. What is not defined (no word in common; kappa where both
    give all words the same label) is the word "undefined", and `note` says why; where one gives all words one label, kappa is 0
    whatever the other says, and `note` says so too.
    """
    import pandas as pd

    rows = []
    for one, other in combinations([name for name in labels.columns if name not in ("word", "count")], 2):
        both = labels[labels[[one, other]].isin(("visual", "style")).all(axis=1)]
        first, second = ((both[name] == "visual").to_numpy() for name in (one, other))
        count = both["count"].to_numpy(np.float64)
        row: dict[str, Any] = {"first": one, "second": other, "words": len(both), "occurrences": int(count.sum())}
        for name, weights in (("", np.ones(len(both))), ("_by_occurrence", count)):
            share, kappa = _kappa(first, second, weights)
            row |= {"agreement" + name: share, "kappa" + name: kappa}
        row["note"] = ""
        if not len(both):
            row["note"] = "no word is visual or style in both"
        elif constant := [
            f"{name} labels every word {'visual' if column.all() else 'style'}"
            for name, column in ((one, first), (other, second))
            if column.all() or not column.any()
        ]:
            row["note"] = f"kappa {row['kappa'] if row['kappa'] == UNDEFINED else 0}: " + ", ".join(constant)
        rows.append(row)
    columns = ["first", "second", "words", "agreement", "kappa", "occurrences"]
    return pd.DataFrame(rows, columns=[*columns, "agreement_by_occurrence", "kappa_by_occurrence", "note"])


def _kappa(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> tuple[float | str, float | str]:
    """(share of agreement, Cohen's kappa) of two columns of yes and no."""
    if not weights.sum() > 0:
        return UNDEFINED, UNDEFINED
    p, q, agreed = (float(np.average(column, weights=weights)) for column in (first, second, first == second))
    if p in (0, 1) or q in (0, 1):  # one label for all: nothing beyond chance to be had
        return agreed, UNDEFINED if p == q else 0.0
    chance = p * q + (1 - p) * (1 - q)
    return agreed, (agreed - chance) / (1 - chance)
