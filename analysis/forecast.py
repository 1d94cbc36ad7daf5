"""Before any training: which caption set will align best with this LLM?

    python -m analysis.forecast --llm ID --captions A B C [--bridge lora|ngram] [--out DIR]

A caption set teaches pictures at its visual words; everything else that makes its text improbable for the LLM is what
training can learn without looking. So the forecast is the **visual share** of a set: of the nats that its text costs the
base LLM, those that stand at visual words and are still there once the set's style is known (to a short proxy, or to an
n-gram bridge). A set in a foreign style, and one that says little of what can be seen, has a small share. The sets are
ranked by it, with the probability that each is first when other captions had been drawn.

Beside it: the conflict (bits per byte that the proxy saves), visual words, length, diversity. What it assumes stands under
every table (`ASSUMPTIONS`). `python -m analysis.paradox` holds it against what training gave.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from analysis.captions import Captions, read_all
from analysis.intervals import SHARE, ratio_interval
from analysis.perplexity import add_model_flags
from analysis.proxies import LEARNING_RATE, STEPS, fit_proxy, split
from dpa.errors import InputError, command

if TYPE_CHECKING:
    import pandas as pd

Bridge = Literal["lora", "ngram"]
SAMPLES = 500  # held-out captions of each set
DRAWS = 2000
KNOWN = 0.5  # share of words in the lexicon below which the command says so
DIVERSITY_TOKENS = 5000  # of each set alike, since longer texts repeat more
ASSUMPTIONS = (
    "Training is the plain recipe (no proxy, no weights): DPA removes much of what is ranked here.",
    "A word is visual if the lexicon says so (or --visual FILE), whether or not this picture shows it; wrong captions are not noticed.",
    "Every set is trained for as many captions; a larger set may make up for a smaller share.",
    "The short proxy has learned the style and none of the pictures; what it cannot tell at visual words is what pictures tell.",
)


@dataclass(frozen=True)
class Nats:
    """Of each held-out caption of a set: nats under the base LLM, under the bridge, under it at visual words; tokens, bytes,
    words, visual words, all [N]; and its token ids and visual words.
    """

    base: np.ndarray
    bridged: np.ndarray
    visual: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray
    words: np.ndarray
    visual_words: np.ndarray
    ids: list[np.ndarray]


def visual_tokens(tokenizer, text: str, visual) -> tuple[np.ndarray, int, int]:
    """(mask [N] of the tokens of text and newline that lie in a visual word, number of words, of visual words).

    visual: word -> whether it is. The tokens are those that `analysis.scoring` scores, behind the start token.
    """
    from analysis.lexicon import words_of

    if not tokenizer.is_fast:
        raise InputError(f"{tokenizer.name_or_path}: a slow tokenizer tells no offsets; give one with tokenizer.json")
    words = words_of(text)
    spans = [(start, end) for start, end in words if visual(text[start:end])]
    encoded = tokenizer(text + "\n", return_offsets_mapping=True)
    offsets = encoded.offset_mapping
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if encoded.input_ids[:1] == [start]:
        offsets = offsets[1:]
    inside = np.zeros(len(text) + 1, bool)
    for first, last in spans:
        inside[first:last] = True
    mask = np.array([bool(inside[first:last].any()) for first, last in offsets], bool)
    return mask, len(words), len(spans)


def measure(
    llm: str, captions: Captions, *, bridge: Bridge, proxy: Path | None, samples: int, seed: int, visual, model
) -> Nats:
    """Nats of held-out captions. model: (base LLM, its tokenizer), loaded; proxy: of these captions, for bridge `lora`."""
    from analysis.scoring import token_scores

    base_model, tokenizer = model
    fitted, held_out = split(captions)
    held_out = held_out.part(samples, seed=seed)
    texts = list(held_out)
    base = token_scores(base_model, tokenizer, texts)
    if bridge == "lora":
        from dpa.model import load_proxy

        assert proxy is not None
        device = base_model.get_input_embeddings().weight
        adapted = load_proxy(llm, proxy, dtype=device.dtype).to(device.device).eval()
        bridged = [scores.log_p.astype(np.float64) for scores in token_scores(adapted, tokenizer, texts)]
        del adapted
    else:
        bridged = _bridged_by_ngrams(base_model, tokenizer, fitted, base, samples, seed)
    rows = []
    for text, own, known in zip(texts, base, bridged, strict=True):
        mask, words, seen = visual_tokens(tokenizer, text, visual)
        size = len((text + "\n").encode())
        rows.append(
            (-float(own.log_p.sum(dtype=np.float64)), -known.sum(), -known[mask].sum(), len(own.ids), size, words, seen)
        )
    base_nats, bridged_nats, visual_nats, tokens, size, words, visual_words = np.array(rows, np.float64).T
    ids = [scores.ids for scores in base]
    return Nats(base_nats, bridged_nats, visual_nats, tokens, size, words, visual_words, ids)


def _bridged_by_ngrams(model, tokenizer, fitted: Captions, base, samples: int, seed: int) -> list[np.ndarray]:
    from dataclasses import replace

    from analysis.ngram import NGrams, mixed, share_of_llm
    from analysis.scoring import token_scores

    tuned = fitted.hashes % 10 == 1  # texts to find the mixture with, apart from those that are counted
    if not tuned.any() or tuned.all():
        raise InputError(f"{fitted.name}: too few captions for an n-gram bridge; give more, or --bridge lora")
    counted, tuning = (replace(fitted, chosen=fitted.chosen[m], hashes=fitted.hashes[m]) for m in (~tuned, tuned))
    ids = (tokenizer(text + "\n", add_special_tokens=False).input_ids for text in counted)
    ngrams = NGrams(ids, model.get_output_embeddings().out_features)
    scores = token_scores(model, tokenizer, list(tuning.part(samples, seed=seed)))
    known = np.concatenate([ngrams.log_p(own.ids) for own in scores])
    share = share_of_llm(np.concatenate([own.log_p for own in scores]), known)
    return [mixed(own.log_p.astype(np.float64), ngrams.log_p(own.ids), share) for own in base]


def forecast_table(
    llm: str, llm_hash: str, found: dict[str, Nats], *, hashes: dict[str, str] | None = None, seed: int = 0
) -> pd.DataFrame:
    """A row for each caption set, best first: `visual_share` with its interval and `p_best`, and the columns beside it.

    visual_share: nats at visual words under the bridge over all nats under the base LLM. bits_per_byte_saved: base minus
    bridge (the conflict). tokens, visual_words: per caption; visual_word_share: of the words; distinct_pairs: share of
    different neighbours among the first `DIVERSITY_TOKENS` tokens.
    """
    import pandas as pd

    rows = []
    for name, own in found.items():
        row: dict[str, Any] = {"llm": llm, "llm_hash": llm_hash, "captions": name, "texts": len(own.base)}
        saved = (own.base - own.bridged) / math.log(2)
        for column, interval in (
            ("visual_share", ratio_interval(own.visual, own.base, bounds=SHARE)),
            ("bits_per_byte", ratio_interval(own.base / math.log(2), own.bytes)),
            ("bits_per_byte_saved", ratio_interval(saved, own.bytes)),
            (
                "visual_word_share",
                ratio_interval(own.visual_words, np.maximum(own.words, own.visual_words), bounds=SHARE),
            )
            if own.words.sum()
            else ("visual_word_share", (0.0, 0.0, 0.0)),
        ):
            row |= dict(zip((column, f"{column}_low", f"{column}_high"), interval, strict=True))
        row |= {"captions_hash": hashes.get(name, "") if hashes else ""}
        row |= {"tokens": own.tokens.mean(), "visual_words": own.visual_words.mean()}
        rows.append(row | {"distinct_pairs": distinct_pairs(own.ids)})
    shares = _draws(list(found.values()), seed)  # (R, sets)
    best = (shares == shares.max(1, keepdims=True)) / (shares == shares.max(1, keepdims=True)).sum(1, keepdims=True)
    table = pd.DataFrame(rows).assign(p_best=best.mean(0)).sort_values("visual_share", ascending=False, kind="stable")
    return table.assign(rank=range(1, len(table) + 1)).reset_index(drop=True)


def _draws(found: Sequence[Nats], seed: int) -> np.ndarray:
    """Visual shares [R, sets] of captions drawn anew."""
    rng, columns = np.random.default_rng(seed), []
    for own in found:
        sums = np.stack([own.visual, own.base], 1)
        n = len(sums)
        drawn = [sums[rng.integers(0, n, n)].sum(0) for _ in range(DRAWS)]
        top, bottom = np.array(drawn).T
        columns.append(top / np.maximum(bottom, 1e-12))
    return np.stack(columns, 1)


def distinct_pairs(texts: Sequence[np.ndarray], tokens: int = DIVERSITY_TOKENS) -> float:
    """Share of different pairs of neighbours among the pairs of the first `tokens` tokens (0 for texts without a pair)."""
    pairs: list[tuple[int, int]] = []
    for ids in texts:
        pairs += zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True)
        if len(pairs) >= tokens:
            break
    pairs = pairs[:tokens]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def forecast(
    llm: str,
    captions: Sequence[Captions],
    folder: Path,
    *,
    bridge: Bridge = "lora",
    samples: int = SAMPLES,
    seed: int = 0,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
    visual=None,
    device: str | None = None,
    dtype: str | None = None,
) -> pd.DataFrame:
    """`forecast_table` of an LLM (folder, hub id or `lab`) over caption sets; short proxies are kept in `folder`.

    visual: word -> whether it names something to be seen; None: the lexicon.
    """
    import torch

    from analysis.lexicon import label
    from dpa.lineage import folder_hash, local_model
    from dpa.model import load_llm
    from dpa.processing import load_tokenizer

    path = str(local_model(llm, "llm"))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    digest = folder_hash(Path(path))
    proxies: dict[str, Path | None] = {part.name: None for part in captions}
    if bridge == "lora":
        options: dict[str, Any] = {
            "steps": steps,
            "learning_rate": learning_rate,
            "seed": seed,
            "half": dtype == "bfloat16",
        }
        proxies = {part.name: fit_proxy(llm, part, folder, **options) for part in captions}
    model = load_llm(path, dtype=getattr(torch, dtype)).to(device).eval()
    tokenizer = load_tokenizer(path)
    is_visual = visual or (lambda word: label(word) == "visual")
    found = {
        part.name: measure(
            path,
            part,
            bridge=bridge,
            proxy=proxies[part.name],
            samples=samples,
            seed=seed,
            visual=is_visual,
            model=(model, tokenizer),
        )
        for part in captions
    }
    for part in captions if visual is None else ():
        if (known := _known_share(list(part.part(samples, seed=seed)))) < KNOWN:
            print(
                f"note: {part.name}: the lexicon knows {known:.0%} of its words (it is English), so its visual share says little; give your own words with --visual",
                file=sys.stderr,
            )
    return forecast_table(llm, digest, found, hashes={part.name: part.source_hash for part in captions}, seed=seed)


def _known_share(texts: Sequence[str]) -> float:
    """Share of the words of some texts that the lexicon labels; 0 where there is no word."""
    from analysis.lexicon import label, words_of

    labels = [label(text[start:end]) != "other" for text in texts for start, end in words_of(text)]
    return float(np.mean(labels)) if labels else 0.0


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.forecast", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_flags(parser)
    parser.add_argument("--captions", nargs="+", required=True, help="caption sets to choose from: records, or .txt")
    parser.add_argument(
        "--bridge", choices=("lora", "ngram"), default="lora", help="a short proxy (default), or n-grams: no training"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of the short proxy (default: {STEPS})")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE, help="of the short proxy (7B LLMs: 2e-4)")
    parser.add_argument(
        "--samples", type=int, default=SAMPLES, help=f"held-out captions of each set (default: {SAMPLES})"
    )
    parser.add_argument(
        "--visual",
        type=Path,
        metavar="FILE",
        help="visual words in place of the lexicon's: JSON as of analysis.words --labels",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/forecast"), help="folder of the short proxies")
    parser.add_argument("--out", type=Path, help="also write table, picture and manifest there")
    options = parser.parse_args(arguments)
    if options.samples < 1 or options.steps < 1:
        raise InputError("--samples and --steps should be positive numbers")
    from analysis.outputs import shown, write_figure, write_manifest, write_table

    visual = None
    if options.visual:
        from analysis.labels import read_labels

        labels = read_labels(options.visual)
        visual = lambda word: labels.get(word.casefold()) == "visual"  # noqa: E731
    captions = read_all(options.captions, cache=options.cache / "records")
    table = forecast(
        options.llm,
        captions,
        options.runs,
        bridge=options.bridge,
        samples=options.samples,
        seed=options.seed,
        steps=options.steps,
        learning_rate=options.learning_rate,
        visual=visual,
        device=options.device,
        dtype=options.dtype,
    )
    columns = ["rank", "captions", "visual_share", "visual_share_low", "visual_share_high", "p_best", "bits_per_byte"]
    columns += ["bits_per_byte_saved", "tokens", "visual_words", "visual_word_share", "distinct_pairs"]
    print(f"forecast for {options.llm}, best first:\n{shown(table[columns])}\n\nassuming:")
    for assumption in ASSUMPTIONS:
        print(f"  - {assumption}")
    if options.out:
        from analysis.figures import forecast_figure

        write_table(table, options.out, "forecast")
        write_figure(forecast_figure(table), options.out, "forecast")
        write_manifest(
            options.out,
            captions={part.name: part.source_hash for part in captions},
            seed=options.seed,
            bridge=options.bridge,
            assumptions=ASSUMPTIONS,
        )
        print(f"\ntable and picture: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
