"""Text-only perplexity of held-out captions under the base LLM and under proxies: the size of the language prior conflict.

    python -m analysis.perplexity --llm lab --proxy runs/lab_ornate/proxy --captions FILE ... [--out DIR]
    python -m analysis.perplexity --llm ID --proxy a=DIR b=DIR --captions a.txt b.json     does a's proxy fit b?
    python -m analysis.perplexity --llm ID --fit --captions a.txt b.txt   the same with short proxies fitted on the spot

The paper does not measure this. A caption counts as it is trained on (caption and newline, after a start token). Bits per
byte compare across tokenizers; perplexities do not. Captions that a proxy was trained on are left out of all columns, by
the hash of their text. Intervals are over documents. What is scored is kept in --cache: a killed run goes on.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analysis.captions import Captions, read_all
from analysis.intervals import Interval, ratio_interval
from analysis.proxies import LEARNING_RATE, STEPS, fit_proxies
from dpa.errors import InputError, command

BASE = "base"
POSITIVE = (0.0, math.inf)
ALONE = "one caption: no interval"
CACHE = Path("runs/scores")


@dataclass(frozen=True)
class Scores:
    """What each model says of each corpus: `sums[corpus][model]` [N, 3] nats, tokens, bytes of the same N captions."""

    llm: str
    llm_hash: str
    captions: dict[str, Captions]
    sums: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


def score(
    llm: str,
    proxies: Mapping[str, Path],
    captions: Sequence[Captions],
    *,
    cache: Path = CACHE,
    trained_on: np.ndarray | None = None,
    samples: int | None = None,
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
) -> Scores:
    """Nats, tokens and bytes of every caption under the base LLM and under each proxy (a finished stage 1).

    Captions that any proxy was trained on are left out for all models. trained_on: `text_hashes` of what was trained on,
    for proxies that do not tell. samples: at most so many of each corpus, drawn by `seed`. device, dtype: None for a GPU in bfloat16 where there is one, else the CPU in float32.
    InputError for a proxy of another LLM, or one that does not tell its captions.
    """
    import torch

    from analysis.scoring import corpus_scores
    from dpa.lineage import folder_hash, is_complete, local_model, read_lineage, tokenizer_hash
    from dpa.model import load_llm, load_proxy
    from dpa.processing import load_tokenizer
    from dpa.stages import trained_captions, weights_hash

    folder = local_model(llm, "llm")
    digest = folder_hash(folder)
    seen = [np.empty(0, np.uint64) if trained_on is None else trained_on]
    for name, proxy in proxies.items():
        if is_complete(proxy) and (made := read_lineage(proxy).get("llm")) != digest:
            raise InputError(
                f"{proxy}: this proxy was made for another LLM ({str(made)[:12]}) than {llm} ({digest[:12]}); give the one it was made for with --llm"
            )
        if not any((proxy / file).is_file() for file in ("adapter_config.json", "config.json")):
            raise InputError(f"{proxy}: no LoRA adapter here, and no LLM; give a finished stage 1")
        own = trained_captions(proxy)
        if own is None and trained_on is None:
            raise InputError(
                f"{proxy}: proxy {name!r} does not tell which captions it was trained on; name them with --trained-on FILE (or `none`)"
            )
        seen += [own] if own is not None else []
    held_out = {part.name: part.without(np.concatenate(seen)) for part in captions}
    if samples is not None:
        held_out = {name: part.part(samples, seed=seed) for name, part in held_out.items()}
    tokenizer = load_tokenizer(str(folder))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    found = Scores(llm, digest, held_out, {name: {} for name in held_out})
    key = {"llm": digest, "tokenizer": tokenizer_hash(folder), "precision": dtype, "device": device.split(":")[0]}
    for name, adapter in [(BASE, None), *proxies.items()]:
        options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
        model = load_llm(str(folder), **options) if adapter is None else load_proxy(str(folder), adapter, **options)
        model = model.to(device).eval()
        key["attention"] = model.config._attn_implementation
        own_key = key | {"proxy": weights_hash(adapter) if adapter is not None else None}
        for corpus, texts in held_out.items():
            found.sums[corpus][name] = corpus_scores(
                model, tokenizer, texts, root=cache, key=own_key, title=f"{corpus} under {name}"
            )
        del model
    return found


def perplexity_table(scores: Scores):
    """DataFrame, a row for each corpus and model: texts, how many records were left out and why, tokens, bytes, nats per
    token, perplexity and bits per byte, each with its 95 % interval over documents (`_low`, `_high`).
    """
    import pandas as pd

    rows = []
    for corpus, models in scores.sums.items():
        texts = scores.captions[corpus]
        about = {"repeated": texts.repeated, "unusable": texts.unusable, "trained_on": texts.excluded}
        for name, sums in models.items():
            nats, tokens, size = sums.T
            row: dict[str, Any] = {"llm": scores.llm, "captions": corpus, "model": name, "texts": len(texts), **about}
            row |= {"tokens": int(tokens.sum()), "bytes": int(size.sum())}
            per_token = _known(ratio_interval(nats, tokens, bounds=POSITIVE))
            row |= _cells("nats_per_token", per_token)
            row |= _cells("perplexity", [_exp(value) for value in per_token])
            row |= _cells("bits_per_byte", _known(ratio_interval(nats / math.log(2), size, bounds=POSITIVE)))
            rows.append(row | {"note": ALONE if len(texts) == 1 else ""})
    return pd.DataFrame(rows)


def conflict_table(scores: Scores):
    """DataFrame, a row for each corpus and proxy: what the proxy saves, base minus proxy on the same captions, in bits per
    byte and nats per token, and the ratio of perplexities, with paired 95 % intervals over documents; tokens: a caption's.
    """
    import pandas as pd

    rows = []
    for corpus, models in scores.sums.items():
        base, tokens, size = models[BASE].T
        for name, sums in models.items():
            if name == BASE:
                continue
            saved = base - sums[:, 0]
            row: dict[str, Any] = {"llm": scores.llm, "llm_hash": scores.llm_hash, "captions": corpus, "proxy": name}
            row |= {"texts": len(base), "tokens": tokens.mean(), "captions_hash": scores.captions[corpus].source_hash}
            row |= _cells("bits_per_byte_saved", _known(ratio_interval(saved / math.log(2), size)))
            per_token = _known(ratio_interval(saved, tokens))
            row |= _cells("nats_per_token_saved", per_token)
            row |= _cells("perplexity_ratio", [_exp(value) for value in per_token])
            rows.append(row | {"note": ALONE if len(base) == 1 else ""})
    return pd.DataFrame(rows)


def matrix(table):
    """DataFrame: bits per byte of each corpus (rows) under the base LLM and each proxy (columns), from `perplexity_table`."""
    wide = table.pivot(index="captions", columns="model", values="bits_per_byte")
    return wide.loc[list(dict.fromkeys(table["captions"])), list(dict.fromkeys(table["model"]))]


def _known(interval: Interval) -> Interval:
    """The interval; of a single document, whose spread is not known, its value in place of the bounds (`ALONE` says so)."""
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        return interval
    return Interval(interval.value, interval.value, interval.value)


def _cells(name: str, interval) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), interval, strict=True))


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # e^700 is about the largest number there is


def proxies_of(given: Sequence[str]) -> dict[str, Path]:
    """{name: folder} of NAME=DIR or DIR; a folder `proxy` is called by the one it stands in."""
    found: dict[str, Path] = {}
    for text in given:
        name, mark, path = text.rpartition("=")
        folder = Path(path)
        name = name if mark else (folder.resolve().parent.name if folder.name == "proxy" else folder.name)
        if name in found or name == BASE:
            raise InputError(f"--proxy {text}: a second model called {name!r}; name it otherwise, NAME={path}")
        if not folder.is_dir():
            raise InputError(
                f"--proxy {text}: no folder {folder}; give a finished stage 1 (python -m dpa.train --stage proxy)"
            )
        found[name] = folder
    return found


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of every command that scores: which LLM, where scores are kept, on what it runs."""
    parser.add_argument("--llm", required=True, help="folder or hub id of the base LLM, or `lab`")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"folder of kept scores (default: {CACHE})")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on a GPU, else float32"
    )


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.perplexity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_flags(parser)
    parser.add_argument("--proxy", nargs="+", default=[], metavar="[NAME=]DIR", help="finished stages 1 of this LLM")
    parser.add_argument(
        "--captions",
        nargs="+",
        required=True,
        help="records (JSON, JSON lines, parquet, folders, hub:NAME) or .txt, one caption a line",
    )
    parser.add_argument(
        "--trained-on",
        nargs="+",
        default=[],
        help="captions that proxies made elsewhere were trained on, or `none` if they are not known",
    )
    parser.add_argument(
        "--fit",
        action="store_true",
        help="fit a short proxy to four fifths of each caption set (analysis.proxies), kept in --runs",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/forecast"), help="folder of the short proxies")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of a short proxy (default: {STEPS})")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE, help="of a short proxy (7B LLMs: 2e-4)")
    parser.add_argument("--samples", type=int, help="at most so many captions of each source (drawn by --seed)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write tables (CSV, JSON), pictures and the manifest there")
    options = parser.parse_args(arguments)
    for flag in ("samples", "steps"):
        if getattr(options, flag) is not None and getattr(options, flag) < 1:
            raise InputError(f"--{flag} should be a positive number, got {getattr(options, flag)}")
    from analysis.captions import read_captions
    from analysis.outputs import shown, write_figure, write_manifest, write_table

    proxies = proxies_of(options.proxy)
    records = options.cache / "records"
    captions = read_all(options.captions, cache=records)
    if options.fit:
        proxies |= fit_proxies(
            options.llm,
            captions,
            options.runs,
            steps=options.steps,
            learning_rate=options.learning_rate,
            seed=options.seed,
            half=options.dtype == "bfloat16",
        )
    known = None
    if options.trained_on:
        files = [name for name in options.trained_on if name != "none"]
        known = np.concatenate([np.empty(0, np.uint64), *(read_captions(name, cache=records).hashes for name in files)])
    scores = score(
        options.llm,
        proxies,
        captions,
        cache=options.cache,
        trained_on=known,
        samples=options.samples,
        seed=options.seed,
        device=options.device,
        dtype=options.dtype,
    )
    table, conflict = perplexity_table(scores), conflict_table(scores)
    columns = ["captions", "model", "texts", "trained_on", "nats_per_token", "perplexity", "bits_per_byte"]
    print(shown(table[[*columns, "bits_per_byte_low", "bits_per_byte_high"]]))
    if proxies:
        print("\nwhat the proxy saves (base - proxy, paired over documents, 95 %):")
        print(
            shown(
                conflict.drop(
                    columns=[
                        "llm",
                        "llm_hash",
                        "captions_hash",
                        "note",
                        "nats_per_token_saved_low",
                        "nats_per_token_saved_high",
                    ]
                )
            )
        )
    if options.out:
        from analysis.figures import matrix_figure
        from dpa.stages import weights_hash

        write_table(table, options.out, "perplexity")
        if proxies:
            write_table(conflict, options.out, "conflict")
        write_figure(matrix_figure(table), options.out, "matrix")
        write_manifest(
            options.out,
            seed=options.seed,
            llm=scores.llm_hash,
            captions={name: part.source_hash for name, part in scores.captions.items()},
            proxies={name: weights_hash(folder) for name, folder in proxies.items()},
        )
        print(f"\ntables and pictures: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
