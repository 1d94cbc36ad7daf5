"""How training changes the loss of single words: visual words against words of style.

    python -m analysis.words --before DIR@start --after DIR --data FILE --images DIR [--samples 100] [--seed 0]
                             [--min-count 5] [--labels lexicon|relevance|FILE.json] [--out DIR]

The paper's Figures 1b and 3: 100 random samples a set; the loss of a word is that of its first token; its change from
before to after training in percent of the loss before, by kind of word. Under language prior conflict visual words lose.

Labels are the lexicon's, or by the model's relevance, or a file of yours (`analysis.labels`); all that there are get compared.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.intervals import Interval, ratio_interval
from analysis.labels import By, agreement, label_words, read_labels
from analysis.lexicon import LABELS, word_classes, words_of
from dpa.errors import InputError, command
from dpa.methods import CMO

if TYPE_CHECKING:
    import pandas as pd

SAMPLES, MIN_COUNT = 100, 5  # samples: the paper's
KEY = ["record", "start", "end"]
COLUMNS = ["record", "corpus", "word", "start", "end", "word_class", "loss", "relevance", "num_tokens"]
COLOURS = {"visual": "#0072B2", "style": "#E69F00", "other": "#999999"}  # Okabe and Ito's, and grey
HATCHES = {"visual": "", "style": "//", "other": ".."}


def word_losses(tokens: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """A row for each word of the samples that has a label token, in order: record, corpus, word (case folded), start and
    end in the sample's text, word_class (part of speech), loss (nats) and relevance of its first token, num_tokens.

    tokens, samples: the tables of `analysis.pairs`. A word's first token is the one in which its first character lies (of
    several, as where tokens split the character, the first); two words in one token share it. Words without a label token,
    as of a prompt or behind a cut, are left out and counted in `attrs["unscored"]`. InputError for a record without a
    sample or with two, a token outside of its text, or a number that is none.
    """
    import pandas as pd

    if samples["record"].duplicated().any():
        record = samples["record"][samples["record"].duplicated()].iloc[0]
        raise InputError(f"{record}: stands twice in the sample table; give each record once")
    if not (known := tokens["record"].isin(samples["record"])).all():
        raise InputError(f"{tokens['record'][~known].iloc[0]}: has tokens but no sample; score the two together")
    groups = dict(iter(tokens.sort_values("place", kind="stable").groupby("record", sort=False)))
    parts, unscored = [], 0
    for record, corpus, text in samples[["record", "corpus", "text"]].itertuples(index=False):
        classes = {start: name for start, _, name in word_classes(text)}
        spans = np.array(words_of(text), np.int64).reshape(-1, 2)  # (W, 2)
        first, sizes = _first_tokens(groups.get(record, tokens[:0]), record, text, spans)
        scored = first >= 0
        unscored += int((~scored).sum())
        own = groups[record].iloc[first[scored]] if scored.any() else tokens[:0]
        about = [(text[a:b].casefold(), a, b, classes[a]) for a, b in spans[scored].tolist()]
        frame = pd.DataFrame(about, columns=["word", "start", "end", "word_class"]).assign(record=record, corpus=corpus)
        frame["loss"] = np.maximum(-own["log_p_seen"].to_numpy(np.float64), 0.0)  # rounding may give log p above 0
        frame["relevance"] = own["relevance"].to_numpy(np.float64)
        frame["num_tokens"] = sizes[scored]
        if not np.isfinite(frame[["loss", "relevance"]].to_numpy(np.float64)).all():
            raise InputError(f"{record}: a loss or relevance is no finite number; score it again, in float32")
        if len(frame):
            parts.append(frame[COLUMNS])
    found = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)
    found.attrs["unscored"] = unscored
    return found


def _first_tokens(rows: pd.DataFrame, record: str, text: str, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([W] the row of each word's first token, -1 without one; [W] how many tokens lie in the word) of a record."""
    starts, ends = rows["start"].to_numpy(), rows["end"].to_numpy()
    if len(rows) and not ((starts >= 0) & (starts <= ends) & (ends <= len(text))).all():
        raise InputError(f"{record}: a token lies outside of the sample's text; score the two together")
    holder = np.full(len(text), -1)
    for number in range(len(rows) - 1, -1, -1):  # the first to hold a character is written last
        holder[starts[number] : ends[number]] = number
    full = starts < ends
    before_end = np.searchsorted(np.sort(starts[full]), spans[:, 1], "left")
    before_start = np.searchsorted(np.sort(ends[full]), spans[:, 0], "right")
    return holder[spans[:, 0]], before_end - before_start


def word_changes(before: pd.DataFrame, after: pd.DataFrame, *, min_count: int = MIN_COUNT) -> pd.DataFrame:
    """A row for each word that occurs `min_count` times or more, the most frequent first: word, count, documents,
    loss_before and loss_after (mean nats), change_percent (of the means, in percent of the one before), relevance (mean,
    after training).

    before, after: of `word_losses`, of the same records. Rarer words are counted in `attrs["rare"]`; those with a loss of 0
    before, which has no percent, are named in `attrs["without_percent"]`. InputError naming a record whose words differ.
    """
    table = _joined(before, after)
    grouped = table.groupby("word", sort=True)
    found = grouped.agg(
        count=("loss", "size"),
        documents=("record", "nunique"),
        loss_before=("loss", "mean"),
        loss_after=("loss_after", "mean"),
        relevance=("relevance_after", "mean"),
    ).reset_index()
    frequent = found["count"] >= min_count
    without = found.loc[frequent & (found["loss_before"] == 0), "word"].tolist()
    kept = found[frequent & (found["loss_before"] > 0)].copy()
    kept["change_percent"] = 100 * (kept["loss_after"] - kept["loss_before"]) / kept["loss_before"]
    kept = kept.sort_values(["count", "word"], ascending=[False, True], ignore_index=True)
    kept.attrs = {"rare": int((~frequent).sum()), "without_percent": without}
    return kept[["word", "count", "documents", "loss_before", "loss_after", "change_percent", "relevance"]]


def _joined(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """`before` with loss_after and relevance_after of the same words."""
    for name, table in (("before", before), ("after", after)):
        if (twice := table.duplicated(KEY)).any():
            raise InputError(f"{table['record'][twice].iloc[0]}: a word stands twice in the table {name} training")
    joined = before.merge(
        after[[*KEY, "word", "loss", "relevance"]], "outer", on=KEY, suffixes=("", "_after"), indicator="in"
    )
    differs = (joined["in"] != "both") | (joined["word"] != joined["word_after"])
    if differs.any():
        row = joined[differs].iloc[0]
        raise InputError(
            f"{row['record']}: its words before and after training differ, at character {row['start']}; score the same "
            "records with both"
        )
    return joined.drop(columns=["in", "word_after"])


def class_changes(before: pd.DataFrame, after: pd.DataFrame, labels: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """A row for each kind of word (`class`: visual, style, other, all): words, occurrences, documents, and loss_before,
    loss_after, change_nats (mean nats an occurrence), change_percent (of the means), each with _low and _high, the ends of
    its 95 % interval over documents.

    labels: of `label_words`, with every word. A class without words, or without a loss before, has no row; `attrs["left_out"]`
    says so. InputError naming a record whose words differ, or a word without a label.
    """
    import pandas as pd

    table = _joined(before, after)
    kinds = labels.drop_duplicates("word").set_index("word")["label"]
    if not (known := table["word"].isin(kinds.index)).all():
        raise InputError(f"the word {table['word'][~known].iloc[0]!r} has no label; label all words of the table")
    kind = kinds.reindex(table["word"]).to_numpy()
    document, names = pd.factorize(table["record"])

    def sums(values: np.ndarray, own: np.ndarray) -> np.ndarray:
        return np.bincount(document[own], weights=values[own], minlength=len(names))

    first, last = table["loss"].to_numpy(np.float64), table["loss_after"].to_numpy(np.float64)
    rows, left_out = [], {}
    for name in (*LABELS, "all"):
        own = np.full(len(table), True) if name == "all" else kind == name
        number = sums(np.ones(len(table)), own)
        old, new = sums(first, own), sums(last, own)
        if not own.any() or not old.sum() > 0:
            left_out[name] = "no words" if not own.any() else "a loss of 0 before training, which has no percent"
            continue
        row: dict[str, Any] = {
            "class": name,
            "words": table["word"][own].nunique(),
            "occurrences": int(own.sum()),
            "documents": int((number > 0).sum()),
        }
        percent = Interval(*(100 * end for end in ratio_interval(new - old, old, seed=seed)))
        for column, interval in (
            ("loss_before", ratio_interval(old, number, bounds=(0.0, np.inf), seed=seed)),
            ("loss_after", ratio_interval(new, number, bounds=(0.0, np.inf), seed=seed)),
            ("change_nats", ratio_interval(new - old, number, seed=seed)),
            ("change_percent", percent),
        ):
            row |= {column: interval.value, f"{column}_low": interval.low, f"{column}_high": interval.high}
        rows.append(row)
    measured = ("loss_before", "loss_after", "change_nats", "change_percent")
    columns = [f"{column}{end}" for column in measured for end in ("", "_low", "_high")]
    found = pd.DataFrame(rows, columns=["class", "words", "occurrences", "documents", *columns])
    found.attrs["left_out"] = left_out
    return found


def _with_intervals(classes: pd.DataFrame) -> pd.DataFrame:
    """The table of `class_changes` for people: a value and its interval in one cell."""
    found = classes[["class", "words", "occurrences", "documents"]].copy()
    for name, digits in (("loss_before", 3), ("loss_after", 3), ("change_nats", 3), ("change_percent", 1)):
        cells = classes[[name, f"{name}_low", f"{name}_high"]].itertuples(index=False)
        found[name] = [f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]" for value, low, high in cells]
    return found


def violin(changes: pd.DataFrame, ax=None):
    """Axes with the distribution of change_percent over the words of each class: violins with median and quartiles, the
    number of words, the words that moved most.

    changes: of `label_words(word_changes(...))`. Words far above the others (three interquartile ranges above the upper
    quartile) are drawn at that height, and the figure says how many.
    """
    if ax is None:
        from matplotlib import pyplot as plt

        _, ax = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
    groups = {name: changes[changes["label"] == name].sort_values("change_percent") for name in LABELS}
    fences = [_fence(own["change_percent"].to_numpy()) for own in groups.values() if len(own)]
    top = max(fences, default=100.0)
    above = int((changes["change_percent"] > top).sum())
    for place, (name, own) in enumerate(groups.items()):
        values = np.minimum(own["change_percent"].to_numpy(np.float64), top)
        if not len(values):
            ax.text(place, 0.6, "no words", transform=ax.get_xaxis_transform(), ha="center", va="center", color="0.4")
            continue
        if np.ptp(values) > 1e-9:  # a density needs a spread
            body = ax.violinplot([values], positions=[place], widths=0.75, showextrema=False)["bodies"][0]
            body.set(facecolor=COLOURS[name], edgecolor="black", linewidth=0.8, alpha=0.65, hatch=HATCHES[name])
        else:
            ax.plot([place] * len(values), values, "o", color=COLOURS[name], markeredgecolor="black")
        lower, middle, upper = np.quantile(values, [0.25, 0.5, 0.75])
        ax.hlines(middle, place - 0.2, place + 0.2, color="black", linewidth=2)
        ax.hlines([lower, upper], place - 0.13, place + 0.13, color="black", linewidth=1, linestyle="--")
        ends = ((-1, own["word"].iloc[:-3:-1], 3, "bottom"), (0, own["word"].iloc[:2], -3, "top"))
        for number, words, shift, side in ends[: 2 if len(own) > 3 else 1]:
            told = ", ".join(word if len(word) <= 16 else word[:15] + "…" for word in words)
            at = {"xy": (place, values[number]), "xytext": (0, shift), "textcoords": "offset points"}
            ax.annotate(told, **at, ha="center", va=side, fontsize=7)
    ax.axhline(0, color="black", linewidth=0.8, zorder=0)
    ax.set_xticks(range(len(groups)), [f"{name}\n{_told(len(own))}" for name, own in groups.items()])
    ax.set_xlim(-0.6, len(groups) - 0.4)
    ax.margins(y=0.12)
    ax.set_ylabel("change of a word's loss by training (%)")
    if above:
        note = f"{_told(above)} above {top:+,.0f} %, drawn there"
        ax.text(0.99, 0.99, note, transform=ax.transAxes, ha="right", va="top", fontsize=7, color="0.3")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _told(number: int) -> str:
    return f"{number:,} word" + "s" * (number != 1)


def _fence(values: np.ndarray) -> float:
    lower, upper = np.quantile(values, [0.25, 0.75])
    return max(50.0, float(upper + 3 * (upper - lower)))


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.words", description=__doc__.split("\n")[0])
    parser.add_argument("--before", required=True, help="checkpoint before training: DIR@start, or a folder")
    parser.add_argument("--after", required=True, help="checkpoint after it")
    parser.add_argument("--data", required=True, help="captioned pictures, in any format that training reads")
    parser.add_argument("--images", type=Path, required=True, help="folder of the pictures")
    parser.add_argument(
        "--samples", type=int, default=SAMPLES, help=f"drawn at random (default: {SAMPLES}, the paper's)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw and of the intervals")
    parser.add_argument("--min-count", type=int, default=MIN_COUNT, help=f"of a word in the table ({MIN_COUNT})")
    parser.add_argument("--labels", default="lexicon", help="lexicon (default), relevance, or a JSON file of your own")
    parser.add_argument("--out", type=Path, help="folder for tables, figure and manifest")
    options = parser.parse_args(arguments)
    if options.samples < 1 or options.min_count < 1 or options.seed < 0:
        raise InputError("--samples and --min-count should be positive numbers, --seed 0 or more")
    by: By = options.labels if options.labels in ("lexicon", "relevance") else "json"
    file = Path(options.labels) if by == "json" else None
    if file is not None:
        read_labels(file)  # what is wrong with it should show before the models are asked
    import matplotlib

    matplotlib.use("agg")
    from analysis.captions import name_left_out
    from analysis.outputs import shown, write_figure, write_manifest, write_table
    from analysis.pairs import open_checkpoint, samples_of, score_samples
    from dpa.lineage import file_hash

    tables, digests = [], {}
    for name in (options.before, options.after):
        checkpoint = open_checkpoint(name)
        samples = samples_of(checkpoint, options.data, options.images)
        drawn = np.random.default_rng(options.seed).permutation(len(samples))[: options.samples]
        bad: list[str] = []
        tables.append(word_losses(*score_samples(checkpoint, samples, sorted(drawn.tolist()), CMO, bad=bad)))
        name_left_out(bad, options.data)
        digests[name] = checkpoint.digest
        del checkpoint, samples  # one model at a time
    before, after = tables
    changes = word_changes(before, after, min_count=options.min_count)
    labellings: list[By] = ["lexicon", "relevance", *([by] if by == "json" else [])]
    labelled = {name: label_words(after, by=name, file=file) for name in labellings}
    for name, table in labelled.items():
        kinds = table.drop_duplicates("word").set_index("word")["label"]
        changes[f"label_{name}"] = kinds.reindex(changes["word"]).to_numpy()
    changes["label"] = changes[f"label_{by}"]
    classes = class_changes(before, after, labelled[by], seed=options.seed)
    columns = {f"label_{name}": name for name in labellings}
    agreed = agreement(changes[["word", "count", *columns]].rename(columns=columns))
    print(
        f"loss of words in nats, {len(drawn):,} samples, labels by {options.labels} [95 % interval over samples]:\n"
        f"{shown(_with_intervals(classes))}"
    )
    for name, why in classes.attrs["left_out"].items():
        print(f"  no row for {name}: {why}")
    print(f"\nlabellings beside each other, words that occur {options.min_count} times or more:\n{shown(agreed)}")
    brief = changes.sort_values("change_percent")[
        ["word", "label", "count", "loss_before", "loss_after", "change_percent"]
    ]
    print(f"\nwords that rose most:\n{shown(brief[::-1][:10])}\n\nwords that fell most:\n{shown(brief[:10])}")
    print(
        f"\nleft out: {changes.attrs['rare']:,} words that occur less than {options.min_count} times, "
        f"{len(changes.attrs['without_percent']):,} without a loss before, "
        f"{before.attrs['unscored']:,} occurrences without a token of their own"
    )
    if options.out:
        for table, name in ((changes, "words"), (classes, "classes"), (agreed, "agreement")):
            write_table(table, options.out, name)
        write_figure(violin(changes).figure, options.out, "words")
        data = Path(options.data)
        write_manifest(
            options.out,
            seed=options.seed,
            samples=len(drawn),
            min_count=options.min_count,
            labels=options.labels,
            labels_hash=file_hash(file) if file else None,
            data_hash=file_hash(data) if data.is_file() else None,
            checkpoints=digests,
            left_out=changes.attrs | {"unscored": before.attrs["unscored"], "classes": classes.attrs["left_out"]},
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
