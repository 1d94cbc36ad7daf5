"""Visual relevance token by token: what the picture contributes to each label token, p seen minus p blind.

    python -m analysis.relevance --model DIR [DIR@start ...] --data FILE ... --images DIR ... [--rule cmo] [--out DIR]

The paper's delta (CMO) and its distribution (Fig. 7: about 96 % of tokens below delta_max = 0.5), by position in the
caption, by part of speech, by visual and style words, by corpus; several checkpoints beside each other, a stage's start
(`DIR@start`) before its end. Intervals are over samples. With --out the per-token table is kept as parquet, in parts:
`analysis.pairs` says what its columns are. A run that was killed goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.intervals import SHARE, Interval, difference_interval, ratio_interval
from dpa.errors import InputError, command
from dpa.methods import CAL, CMO, NONE, Weighting

if TYPE_CHECKING:
    import pandas as pd

RULES = {"cmo": CMO, "cal": CAL, "none": NONE}
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
POSITIONS = (0, 1, 2, 3, 5, 10, 20, 50, 100)  # first place of each bin
SUMS = ("tokens", "relevance", "below_max", "at_min", "weight", "loss")
BOUNDS = {"below_max": SHARE, "at_min": SHARE, "weight": (0.0, np.inf), "loss": (0.0, np.inf)}
KINDS = ("all", "position", "word class", "words")


def with_classes(tokens: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """The token table with what each token belongs to: `position` (a bin of places), `word class` (part of speech of the
    word that its first character stands in; "end" for a token that is no text) and `words` (visual, style, other; "no word").
    """
    from analysis.lexicon import label, word_classes, words_of

    texts = dict(zip(samples["record"], samples["text"], strict=True))
    classes, words = np.full(len(tokens), "end", object), np.full(len(tokens), "no word", object)
    groups = tokens.reset_index(drop=True).groupby("record", sort=False)
    for record, rows in groups:
        text = texts[record]
        kinds, labels = np.full(len(text), "other", object), np.full(len(text), "no word", object)  # of each character
        for first, last, name in word_classes(text):
            kinds[first:last] = name
        for first, last in words_of(text):
            labels[first:last] = label(text[first:last])
        for place, start, end in zip(rows.index, rows["start"].tolist(), rows["end"].tolist(), strict=True):
            if start == end:
                continue
            while start < end - 1 and text[start].isspace():  # a blank may be one token with the word behind it
                start += 1
            classes[place], words[place] = kinds[start], labels[start]
    edges = np.array(POSITIONS)
    bins = np.searchsorted(edges, tokens["place"].to_numpy(), side="right") - 1
    names = [str(a) if b == a + 1 else f"{a} to {b - 1}" for a, b in zip(edges, [*edges[1:], 0], strict=True)]
    names[-1] = f"{edges[-1]} on"
    return tokens.assign(position=np.array(names, object)[bins], **{"word class": classes, "words": words})


def by_sample(tokens: pd.DataFrame, weighting: Weighting = CMO) -> pd.DataFrame:
    """Sums of each sample (rows: kind, group, record; columns `SUMS`), from a table of `with_classes`: what intervals over
    samples need, and all that has to be held of a large table. weight counts in multiples of a plain token's share.
    """
    import pandas as pd

    low, high = (weighting.low, weighting.high) if weighting.rule != "none" else (CMO.low, CMO.high)
    relevance = tokens["relevance"].to_numpy(np.float64)
    labels = tokens.groupby("record", sort=False)["record"].transform("size").to_numpy()
    values = pd.DataFrame(
        {
            "record": tokens["record"].to_numpy(),
            "tokens": 1.0,
            "relevance": relevance,
            "below_max": (relevance < high).astype(float),
            "at_min": (relevance <= low).astype(float),
            "weight": tokens["weight"].to_numpy(np.float64) * labels,
            "loss": -tokens["log_p_seen"].to_numpy(np.float64),
        }
    )
    parts = []
    for kind in KINDS:
        group = np.full(len(tokens), "all", object) if kind == "all" else tokens[kind].to_numpy()
        sums = values.assign(group=group).groupby(["group", "record"], sort=False)[list(SUMS)].sum().reset_index()
        parts.append(sums.assign(kind=kind))
    return pd.concat(parts, ignore_index=True)


def summary(sums: pd.DataFrame) -> pd.DataFrame:
    """A row for each kind and group of `by_sample`: tokens, samples, mean relevance, share of tokens below delta_max and at
    delta_min or under it, mean weight (1: a plain token's), mean loss (nats); each with its 95 % interval over samples.
    """
    import pandas as pd

    records = sums.loc[sums["kind"] == "all", "record"]
    rows = []
    for (kind, group), own in sums.groupby(["kind", "group"], sort=False):
        columns = own.set_index("record").reindex(records)[list(SUMS)].fillna(0.0)  # a sample without it is one too
        row: dict[str, Any] = {
            "kind": kind,
            "group": group,
            "tokens": int(columns["tokens"].sum()),
            "samples": len(own),
        }
        for name in SUMS[1:]:
            interval = ratio_interval(columns[name], columns["tokens"], bounds=BOUNDS.get(name, (-np.inf, np.inf)))
            if not np.isfinite([interval.low, interval.high]).all():  # a single sample: its spread is not known
                interval = Interval(interval.value, interval.value, interval.value)
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), interval, strict=True))
        rows.append(row | {"note": "one sample: no interval" if len(records) == 1 else ""})
    order = {name: number for number, name in enumerate(KINDS)}
    table = pd.DataFrame(rows)
    first = table["group"].map(lambda name: int(name.split()[0]) if name[:1].isdigit() else 0)
    return (
        table.assign(a=table["kind"].map(order), b=first)
        .sort_values(["a", "b"], kind="stable")
        .drop(columns=["a", "b"])
    )


def visual_minus_style(sums: pd.DataFrame) -> Interval | None:
    """Mean relevance of tokens of visual words minus that of style words, with its interval; None where one is missing."""
    records = sums.loc[sums["kind"] == "all", "record"]
    words = sums[sums["kind"] == "words"]
    pairs = []
    for name in ("visual", "style"):
        own = words[words["group"] == name].set_index("record").reindex(records)[["relevance", "tokens"]].fillna(0.0)
        if not own["tokens"].sum():
            return None
        pairs.append((own["relevance"], own["tokens"]))
    return difference_interval(*pairs)


def quantiles(relevance: np.ndarray) -> dict[str, float]:
    """{"q01": ...}: quantiles of the relevance of all tokens [N]."""
    found = np.quantile(np.asarray(relevance, np.float64), QUANTILES)
    return {f"q{round(100 * level):02d}": float(value) for level, value in zip(QUANTILES, found, strict=True)}


def read_parts(parts: Iterable[Path]):
    """(token table, sample table) of each part file that `analysis.pairs.score_to_disk` wrote, one after the other."""
    import pandas as pd

    for part in parts:
        yield pd.read_parquet(part), pd.read_parquet(part.with_name(part.name.replace("tokens", "samples")))


def left_out(parts: Iterable[Path]) -> list[str]:
    """What `analysis.pairs.score_to_disk` could not use, and why."""
    found = []
    for part in parts:
        found += json.loads(part.with_name(part.name.replace("tokens", "left_out")).with_suffix(".json").read_text())
    return found


def add_pair_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of every command that looks at a model's tokens: data, view, rule, samples."""
    parser.add_argument("--data", nargs="+", required=True, help="image-caption records, one source or several")
    parser.add_argument("--images", type=Path, nargs="+", help="folder of the pictures; one for all, or one each")
    parser.add_argument(
        "--view", choices=("pair", "chat"), default="pair", help="as in stage 2 (default) or in the LLM's chat template"
    )
    add_rule_flags(parser)
    parser.add_argument(
        "--samples", type=int, default=1000, help="at most so many of each source (default: 1000; 0: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="by which samples are drawn")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on a GPU")


def add_rule_flags(parser: argparse.ArgumentParser) -> None:
    """The weighting rule and its bounds."""
    parser.add_argument("--rule", choices=RULES, default="cmo", help="weighting rule (default: cmo)")
    parser.add_argument("--low", type=float, help="the rule's lower bound, delta_min (default: the paper's)")
    parser.add_argument("--high", type=float, help="its upper bound, delta_max")


def rule_of(options: argparse.Namespace) -> Weighting:
    """The weighting that the flags name. InputError for bounds that are not ordered."""
    import dataclasses

    rule = RULES[options.rule]
    given = {name: getattr(options, name) for name in ("low", "high") if getattr(options, name) is not None}
    try:
        return dataclasses.replace(rule, **given)
    except ValueError as error:
        raise InputError(f"--low, --high: {error}") from None


def drawn(number: int, samples: int, seed: int) -> np.ndarray:
    """Ascending indices of at most `samples` of `number` (0: of all), drawn by `seed`."""
    if samples < 0:
        raise InputError(f"--samples should be 0 (all) or more, got {samples}")
    order = np.random.default_rng(seed).permutation(number)
    return np.sort(order[: samples or number])


def folders_of(images: Sequence[Path] | None, sources: Sequence[str]) -> list[Path | None]:
    """The picture folder of each source. InputError unless there is one for all or one each."""
    given: list[Path | None] = [*images] if images else [None]
    if len(given) not in (1, len(sources)):
        raise InputError(f"{len(given)} image folders for {len(sources)} sources; give one for all, or one each")
    return given * len(sources) if len(given) == 1 else given


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.relevance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", nargs="+", required=True, metavar="DIR[@start]", help="stages of ours, or LLaVA checkpoints"
    )
    add_pair_flags(parser)
    parser.add_argument("--out", type=Path, help="also write tables, the per-token tables and pictures there")
    options = parser.parse_args(arguments)
    weighting, folders = rule_of(options), folders_of(options.images, options.data)
    import pandas as pd

    from analysis.captions import name_left_out, names_of
    from analysis.outputs import write_figure, write_manifest, write_table
    from analysis.pairs import open_checkpoint, samples_of, score_samples, score_to_disk
    from dpa.readers import source_hash

    tables, histograms, facts = [], {}, {}
    sources = list(zip(names_of(options.data), options.data, folders, strict=True))
    for name in options.model:
        checkpoint = open_checkpoint(name, device=options.device, dtype=options.dtype)
        facts[name] = checkpoint.digest
        for corpus, data, images in sources:
            bad: list[str] = []
            samples = samples_of(checkpoint, data, images, options.view)
            indices = drawn(len(samples), options.samples, options.seed).tolist()
            if options.out:
                key = {
                    "model": checkpoint.digest,
                    "data": source_hash(data),
                    "images": str(images),
                    "view": options.view,
                }
                key |= {"rule": repr(weighting), "samples": options.samples, "seed": options.seed}
                own = options.out / "tokens" / f"{_slug(name)}-{_slug(corpus)}"
                parts = score_to_disk(checkpoint, samples, indices, weighting, own, key=key)
                bad += left_out(parts)
                pairs = read_parts(parts)
            else:
                pairs = iter([score_samples(checkpoint, samples, indices, weighting, bad=bad)])
            sums, values = [], []
            for tokens, about in pairs:
                sums.append(by_sample(with_classes(tokens, about), weighting))
                values.append(tokens["relevance"].to_numpy())
            name_left_out(bad, data)
            whole, relevance = pd.concat(sums, ignore_index=True), np.concatenate(values)
            if not len(relevance):
                raise InputError(f"{data}: no sample is left to look at; {bad[0] if bad else 'it holds none'}")
            table = summary(whole)
            about_run = {"model": name, "corpus": corpus}
            tables.append(table.assign(**about_run)[[*about_run, *table.columns]])
            histograms[name, corpus] = relevance
            _print(name, data, weighting, table, relevance, visual_minus_style(whole))
    if options.out:
        from analysis.figures import relevance_figure

        everything = pd.concat(tables, ignore_index=True)
        write_table(everything, options.out, "relevance")
        rows = [{"model": m, "corpus": c} | quantiles(values) for (m, c), values in histograms.items()]
        write_table(pd.DataFrame(rows), options.out, "quantiles")
        write_figure(relevance_figure(histograms, weighting), options.out, "relevance")
        write_manifest(options.out, models=facts, data={d: source_hash(d) for d in options.data}, seed=options.seed)
        print(f"\ntables, per-token tables and pictures: {options.out}")
    return 0


def _print(name, data, weighting: Weighting, table, relevance: np.ndarray, gap: Interval | None) -> None:
    from analysis.outputs import shown

    first = table.iloc[0]
    bounds = weighting if weighting.rule != "none" else CMO
    print(f"\n{name} on {data}: {first['tokens']:,} label tokens of {first['samples']:,} samples")
    for column, what in (
        ("relevance", "mean relevance"),
        ("below_max", f"share below delta_max {bounds.high:g}"),
        ("at_min", f"share at or below delta_min {bounds.low:g}"),
    ):
        print(f"  {what:<34}{first[column]:.4f} [{first[column + '_low']:.4f}, {first[column + '_high']:.4f}]")
    told = "  ".join(f"{level} {value:.3f}" for level, value in quantiles(relevance).items())
    print(f"  {'quantiles':<34}{told}")
    if gap is not None:
        print(f"  {'visual words minus style words':<34}{gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]")
    columns = ["kind", "group", "tokens", "relevance", "relevance_low", "relevance_high", "below_max", "weight", "loss"]
    print(shown(table.iloc[1:][columns]))


def _slug(name: str) -> str:
    """A name as part of a folder's; other names give other folders."""
    plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in name.strip("/"))[-80:]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


if __name__ == "__main__":
    raise SystemExit(main())
