"""What a causal LM says of texts alone, token by token: sorted by length, packed without padding, within a token budget.

A text counts as a caption is trained on: stripped, with a newline, after a start token. Every token is scored: a
tokenizer without a beginning-of-sequence token gets its end-of-sequence token in that place, or the bytes of the first
token would count and its nats would not. A text has the scores that it has alone (to rounding); none is cut: one of more
than `WINDOW` tokens, or than the LLM's context, is read in windows that overlap by half, each token scored where at least half a window precedes it.

`corpus_scores` keeps what it finds on disk, document by document: a run that was killed goes on, and a second one reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from dpa.cache import RowCache
from dpa.errors import InputError
from dpa.lineage import file_hash
from dpa.loss import text_model
from dpa.packing import decode
from dpa.scores import label_scores, softcap_of

BUDGET = {
    "cpu": 1024,
    "cuda": 16_384,
}  # tokens of a batch; more fill a processor's caches to no use, fewer a GPU's cores not
BLOCK = 1000  # texts tokenised at a time, and the most that a killed run does again
WINDOW = 2048  # tokens read at a time; attention over more costs memory that grows with the square
COLUMNS = ("nats", "tokens", "bytes")
CODE = ("analysis/scoring.py", "dpa/packing.py", "dpa/scores.py")  # decides the numbers, and so the key


@dataclass(frozen=True)
class TokenScores:
    """The tokens of a text behind its start token: `ids` [N] int32, their `log_p` [N] float32 in nats."""

    ids: np.ndarray
    log_p: np.ndarray


def token_scores(model, tokenizer, texts: Sequence[str], *, budget: int | None = None) -> list[TokenScores]:
    """Token ids and log-probabilities of each text under a causal LM (or a LLaVA model's LLM), in the order of `texts`.

    budget: tokens of a batch, which bound the memory; a longer text is a batch of its own. None: `BUDGET`. InputError
    when the tokenizer has no token to start with.
    """
    samples = _samples(tokenizer, texts)
    found = [TokenScores(ids[1:], np.empty(0, np.float32)) for ids in samples]
    for index, log_p in _log_p(model, samples, budget):
        found[index] = TokenScores(samples[index][1:], log_p)
    return found


def text_scores(model, tokenizer, texts: Sequence[str], *, budget: int | None = None) -> list[tuple[float, int, int]]:
    """(nats, tokens, bytes) of each text, in the order of `texts`: the sums of `token_scores`, with UTF-8 bytes."""
    samples = _samples(tokenizer, texts)
    nats = [0.0] * len(texts)
    for index, log_p in _log_p(model, samples, budget):
        nats[index] = -float(log_p.sum(dtype=np.float64))
    return [
        (total, len(ids) - 1, len(_text(text).encode())) for total, ids, text in zip(nats, samples, texts, strict=True)
    ]


def corpus_scores(
    model,
    tokenizer,
    texts: Sequence[str],
    *,
    root: Path,
    key: dict[str, Any],
    title: str = "",
    budget: int | None = None,
) -> np.ndarray:
    """[N, 3] float64: nats, tokens and bytes (`COLUMNS`) of each text, kept under `root` by `key` (what makes the model)
    and the texts. Memory: the texts of `BLOCK` documents, and 12 bytes for each of all; `texts` may stay on disk.
    """
    digest, sizes = hashlib.sha256(), np.zeros(len(texts), np.int64)
    for index, text in enumerate(texts):
        size = len(encoded := _text(text).encode())
        digest.update(size.to_bytes(8, "little") + encoded)
        sizes[index] = size
    package = Path(__file__).parents[1]
    code = "".join(file_hash(package / name) for name in CODE)
    key = {**key, "texts": digest.hexdigest(), "code": hashlib.sha256(code.encode()).hexdigest()}
    key["libraries"] = [f"{name} {metadata.version(name)}" for name in ("torch", "transformers")]
    root.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    with FileLock(root / f".scores-{name}.lock"):  # of two runs over the same captions the second waits, and reads
        cache = RowCache.open(root, "scores", key, [1] * len(texts), len(COLUMNS))
        _fill(cache, model, tokenizer, texts, sizes, title, budget)
        cache.finish()
    return np.concatenate([cache.read(index) for index in range(len(texts))]).astype(np.float64)


def _fill(cache: RowCache, model, tokenizer, texts: Sequence[str], sizes: np.ndarray, title: str, budget: int | None):
    missing = cache.missing()
    if len(missing):
        order = missing[np.argsort(-sizes[missing], kind="stable")]  # like lengths together, the longest first
        with tqdm(
            total=len(texts),
            initial=len(texts) - len(order),
            desc=f"scoring {title}".strip(),
            unit="text",
            leave=False,
            delay=2,
        ) as bar:
            for first in range(0, len(order), BLOCK):
                block = order[first : first + BLOCK].tolist()
                found = text_scores(model, tokenizer, [texts[index] for index in block], budget=budget)
                for index, row in zip(block, found, strict=True):
                    if not np.isfinite(row[0]):
                        raise InputError(
                            f"{title or 'a text'}: the model gives {texts[index][:60]!r} no finite probability; score it in another precision (--dtype float32 or bfloat16)"
                        )
                    cache.write(index, np.array([row]))
                bar.update(len(block))


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of `lengths` in batches of at most `budget` tokens together, or of one: long ones first, so that a batch
    holds like lengths and the first is the one that needs the most memory. What is empty is left out.
    """
    found: list[list[int]] = []
    room = 0
    for index in sorted((i for i, length in enumerate(lengths) if length), key=lambda i: -lengths[i]):
        if not found or lengths[index] > room:
            found.append([])
            room = budget
        found[-1].append(index)
        room -= lengths[index]
    return found


def _text(text: str) -> str:
    return text.strip() + "\n"


def _samples(tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each text, the start token first, [N + 1] int32."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise InputError(f"{tokenizer.name_or_path}: no token to start a text with; set its bos_token or eos_token")
    samples = []
    for first in range(0, len(texts), BLOCK):
        for ids in tokenizer([_text(text) for text in texts[first : first + BLOCK]]).input_ids:
            samples.append(np.array(ids if ids[:1] == [start] else [start, *ids], dtype=np.int32))
    return samples


def _windows(length: int, window: int) -> list[tuple[int, int, int]]:
    """(first, first scored, end) of the windows over `length` tokens to predict from; each is scored in one of them."""
    windows, scored = [(0, 0, min(length, window))], min(length, window)
    while scored < length:
        end = min(scored + window // 2, length)
        windows.append((end - window, scored, end))
        scored = end
    return windows


def _log_p(model, samples: Sequence[np.ndarray], budget: int | None) -> Iterator[tuple[int, np.ndarray]]:
    """(index, log-probabilities [N] float32 of its tokens after the first) of each sample that has any."""
    decoder, embed, head = text_model(model), model.get_input_embeddings(), model.get_output_embeddings()
    softcap, device = softcap_of(model.config), embed.weight.device
    # nothing comes after the last token, so it is not read
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or WINDOW
    size = min(WINDOW, context)
    pieces = [(index, *window) for index, ids in enumerate(samples) for window in _windows(len(ids) - 1, size)]
    parts: dict[int, list[tuple[int, np.ndarray]]] = {}
    left = [0] * len(samples)
    for index, *_ in pieces:
        left[index] += 1
    lengths = [end - first for _, first, _, end in pieces]
    for batch in batches(lengths, budget or BUDGET.get(device.type, BUDGET["cuda"])):
        counts = [lengths[number] for number in batch]
        ids, labels = (
            torch.from_numpy(
                np.concatenate(
                    [
                        samples[index][first + shift : end + shift]
                        for index, first, _, end in map(pieces.__getitem__, batch)
                    ]
                )
            )
            .long()
            .to(device)
            for shift in (0, 1)
        )
        positions = torch.cat([torch.arange(count) for count in counts]).to(device)
        with torch.no_grad():
            hidden = decode(decoder, embed(ids), positions, counts)
            log_p: Tensor = label_scores(hidden, head.weight, labels, bias=head.bias, softcap=softcap).log_p
        split = np.split(log_p.float().cpu().numpy(), np.cumsum(counts)[:-1])
        for number, values in zip(batch, split, strict=True):
            index, first, scored, _ = pieces[number]
            parts.setdefault(index, []).append((number, values[scored - first :]))
            left[index] -= 1
            if not left[index]:
                yield index, np.concatenate([own for _, own in sorted(parts.pop(index), key=lambda part: part[0])])
