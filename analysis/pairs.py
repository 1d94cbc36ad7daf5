"""What a multimodal model says of each label token with the picture and without it: the per-token table.

A checkpoint is a finished stage of ours or any LLaVA checkpoint; `DIR@start` is the model that the stage started from
(stage 2: the frozen LLM with a connector that has seen nothing; stage 3: the original LLM with the trained connector).

The table (`TOKENS`, one row a label token, in order; written as parquet by `python -m analysis.relevance`):

    record       source, number and id of the sample            place        0.. among the sample's label tokens
    id           the sample's own                               token_id     in the vocabulary
    corpus       name of the source                             token        the token's text, decoded alone
    start, end   span in the sample's text, in characters; equal for a token that is none of it (end of sequence)
    log_p_seen, log_p_blind      log-probability with and without the picture, nats, float32
    logit_seen, logit_blind      the label's logit, float32
    relevance    difference of probabilities (rule cmo), of logits (cal): the paper's delta
    weight       under the chosen rule; a sample's weights sum to 1 in the paper form. Loss of a token: -log_p_seen

The sample table (`SAMPLES`) has record, id, corpus, text, and image (its path, "" without one).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from analysis.captions import name_left_out, source_name
from dpa import model as models
from dpa import processing
from dpa.blind import LabelScores
from dpa.data import Collator, Samples, messages_of, rendered
from dpa.errors import InputError, first_line
from dpa.lineage import file_hash, folder_hash, is_complete, local_model, read_lineage, write_json
from dpa.loss import IGNORE, weigh
from dpa.methods import CMO, Weighting
from dpa.readers import IMAGE_MARK, Record, View, problem_for

if TYPE_CHECKING:
    import pandas as pd

START = "@start"
MAX_LENGTH = 8192  # tokens, as in the paper's stage 2
BLOCK = 64  # samples of a part file, whose pictures are in memory together, and the most that a killed run does again
BUDGET = {"cpu": 4096, "cuda": 65_536}  # places of a batch, pictures included
CODE = (
    "analysis/pairs.py",
    *(f"dpa/{name}.py" for name in ("blind", "data", "loss", "packing", "scores", "weighting")),
)
TOKENS = ("record", "id", "corpus", "place", "token_id", "token", "start", "end")
SCORES = ("log_p_seen", "log_p_blind", "logit_seen", "logit_blind", "relevance", "weight")
SAMPLES = ("record", "id", "corpus", "text", "image")


@dataclass(frozen=True)
class Checkpoint:
    """A model with its processor; `digest` says which weights it has, `max_length` where its samples are cut."""

    name: str
    model: Any
    processor: Any
    digest: str
    max_length: int = MAX_LENGTH


def open_checkpoint(name: str, *, device: str | None = None, dtype: str | None = None) -> Checkpoint:
    """The model of a folder, DIR or DIR@start (see above). InputError when there is none, or its parts are gone.

    device, dtype: None for a GPU in bfloat16 where there is one, else the CPU in float32.
    """
    path, at_start = Path(name.removesuffix(START)), name.endswith(START)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind: torch.dtype = getattr(torch, dtype or ("bfloat16" if device.startswith("cuda") else "float32"))
    if is_complete(path):
        lineage = read_lineage(path)
        if lineage.get("stage") == "proxy":
            raise InputError(f"{path}: a proxy sees no pictures; give a stage 2 or 3, or use analysis.perplexity")
        if lineage.get("stage") == "connector" or at_start:
            model, processor = _composed(path, lineage, at_start, kind)
            length = lineage["settings"].get("max_length", MAX_LENGTH)
            return Checkpoint(name, model.to(device).eval(), processor, _digest(path, lineage, at_start), length)
    elif at_start:
        raise InputError(
            f"{path}: not a finished stage of ours, so where it started is not known; give it without {START}"
        )
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        folder = local_model(str(path))
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=kind).to(device).eval()
        processor = AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: not a checkpoint that transformers loads as an image-text model ({first_line(error)})"
        ) from None
    if not hasattr(model.config, "image_token_id") or not hasattr(processor, "image_token"):
        raise InputError(f"{path}: not a LLaVA-like checkpoint (no image token); give a LLaVA or LLaVA-NeXT model")
    return Checkpoint(name, model, processor, folder_hash(folder))


def _composed(path: Path, lineage: dict, at_start: bool, dtype: torch.dtype) -> tuple[Any, Any]:
    """LLM, tower and connector of a stage, put together as training does it; (model, processor)."""
    names, settings = lineage["names"], lineage["settings"]
    llm, tower = str(local_model(names["llm"])), str(local_model(names["vision_tower"], "tower"))
    instruct = lineage["stage"] == "instruct"
    on_proxy = "proxy" in lineage.get("parents", {}) and (not instruct or settings.get("llm") == "proxy")
    parts = {part: _parent(path, names, part) for part in ("proxy",) * on_proxy + ("connector",) * instruct}
    attention = (lineage.get("attention") or {}).get("llm")  # of flash attention the scores are sdpa's, to rounding
    options: dict[str, Any] = {"attention": "sdpa" if "flash" in (attention or "") else attention, "dtype": dtype}
    model = models.load_proxy(llm, parts["proxy"], **options) if on_proxy else models.load_llm(llm, **options)
    tokenizer, vision = (
        processing.load_tokenizer(llm, settings.get("chat_template")),
        models.load_tower(tower, dtype=dtype),
    )
    anyres = settings.get("anyres", False)
    scale = settings.get("image_scale", "unit")
    whole = models.compose(model, vision, tokenizer, seed=lineage["seed"], anyres=anyres, image_scale=scale)
    if instruct or not at_start:
        models.load_connector(whole, parts["connector"] if instruct else path)
    pad = settings.get("pad", True)
    return whole, processing.build_processor(tokenizer, vision, anyres=anyres, pad=pad)


def _parent(path: Path, names: dict, stage: str) -> Path:
    """The folder of a stage that `path` was made from: as it was named then, or beside it where all runs have moved."""
    named = Path(names.get(stage, stage))
    for folder in (named, path.resolve().parents[1] / named.parent.name / named.name):
        if is_complete(folder):
            return folder
    raise InputError(f"{path}: was made from {named}, which is gone; run stage {stage} again")


def _digest(path: Path, lineage: dict, at_start: bool) -> str:
    own = {"weights": None if at_start else lineage.get("weights"), "parents": lineage.get("parents")}
    own |= {part: lineage.get(part) for part in ("llm", "vision_tower", "seed", "stage", "settings")}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def samples_of(
    checkpoint: Checkpoint, data: str | Path, images: Path | None, view: View = "pair", *, cache: Path | None = None
) -> Samples:
    """The records of a source as the checkpoint reads them; those that cannot be used are named on standard error.

    view: `pair` (picture, caption, newline, as in stage 2) or `chat` (answers in the LLM's chat template, as in stage 3).
    """

    from dpa.corpus import open_corpus

    corpus = open_corpus([str(data)], view, images=[images], cache=cache)
    name_left_out(list(map(str, corpus.problems)), data)
    if not len(corpus):
        raise InputError(f"{data}: no record can be used; the first: {corpus.problems[0].reason}")
    return Samples(corpus, view, checkpoint.processor, max_length=checkpoint.max_length)


def score_samples(
    checkpoint: Checkpoint,
    samples: Samples,
    indices: Sequence[int],
    weighting: Weighting = CMO,
    *,
    bad: list[str] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(token table, sample table) of some samples, in the order of `indices`; rule none: relevance as cmo, equal weights.

    bad: where given, samples that cannot be used (no label within their length, a broken picture) are told there and left
    out; None: the first is an InputError. InputError for a tokenizer without offsets.
    """
    import pandas as pd

    if not samples.tokenizer.is_fast:
        name = samples.tokenizer.name_or_path
        raise InputError(f"{name}: a slow tokenizer tells no offsets; give one with tokenizer.json")
    items = []
    for index in indices:
        try:
            items.append(_item(samples, index))
        except InputError as error:
            if bad is None:
                raise
            bad.append(str(error))
    rows: dict[int, pd.DataFrame] = {}
    for batch in _batches([len(item.ids) for item in items], checkpoint.model.device.type):
        for number, frame in zip(
            batch, _scored(checkpoint, samples, [items[n] for n in batch], weighting), strict=True
        ):
            rows[number] = frame
    about = pd.DataFrame([item.about for item in items], columns=list(SAMPLES))
    if not rows:
        return pd.DataFrame(columns=[*TOKENS, *SCORES]), about
    return pd.concat([rows[number] for number in range(len(items))], ignore_index=True), about


@dataclass(frozen=True)
class _Item:
    sample: dict[str, torch.Tensor]
    ids: list[int]
    labels: list[int]
    spans: list[tuple[int, int]]  # of each label token that something predicts
    about: dict[str, str]


def _item(samples: Samples, index: int) -> _Item:
    record, sample = samples.records[index], samples[index]
    ids, labels = sample["input_ids"].tolist(), sample["labels"].tolist()
    size = tuple(sample["image_sizes"].tolist()[::-1]) if "image_sizes" in sample else None
    text, spans = _spans(samples, index, size)
    if len(spans) < len(ids):
        raise RuntimeError(f"{record.where}: {len(spans)} spans for {len(ids)} tokens")
    own = [spans[place] for place in range(1, len(ids)) if labels[place] != IGNORE]
    image = str(record.images / record.image) if record.image is not None else ""
    parts = getattr(samples.records, "parts", None)
    corpus = source_name(parts[0].source) if parts else record.where
    about = {"record": record.where, "id": record.id, "corpus": corpus, "text": text, "image": image}
    return _Item(sample, ids, labels, own, about)


def _spans(samples: Samples, index: int, size: tuple[int, ...] | None) -> tuple[str, list[tuple[int, int]]]:
    """(text, span of each token in it, uncut); an image token has an empty one. size: of its picture, where tiles count."""
    record, tokenizer = samples.records[index], samples.tokenizer
    if samples.view == "chat":
        messages = messages_of(record, samples.processor.image_token)
        text, shift = rendered(messages, tokenizer, record.where), 0
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    else:
        mark = samples.processor.image_token if record.image is not None else ""
        text, shift = record.caption.strip() + "\n", len(mark)
        encoded = tokenizer(mark + text, return_offsets_mapping=True)
    spans = [(max(start - shift, 0), max(end - shift, 0)) for start, end in encoded.offset_mapping]
    image = samples.image_token_id
    if image in encoded.input_ids:
        place = encoded.input_ids.index(image)
        number = samples.num_image_tokens((size[0], size[1]) if size else None)
        spans = spans[:place] + [(0, 0)] * number + spans[place + 1 :]
    if samples.view != "chat":  # the newline that ends a caption is no part of it
        end = len(text) - 1
        text, spans = text[:-1], [(min(a, end), min(b, end)) for a, b in spans]
    return text, spans


def _batches(lengths: Sequence[int], device: str) -> list[list[int]]:
    """Numbers of samples of like length, as many as fit the budget side by side."""
    found: list[list[int]] = []
    budget, width = BUDGET.get(device, BUDGET["cuda"]), 0
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        if not found or (len(found[-1]) + 1) * width > budget:
            found.append([])
            width = lengths[number]
        found[-1].append(number)
    return found


def _scored(
    checkpoint: Checkpoint, samples: Samples, items: Sequence[_Item], weighting: Weighting
) -> Iterator[pd.DataFrame]:
    import pandas as pd

    model, tokenizer = checkpoint.model, samples.tokenizer
    collate = Collator(tokenizer.pad_token_id or 0)
    batch = {name: tensor.to(model.device) for name, tensor in collate([item.sample for item in items]).items()}
    if "pixel_values" in batch:
        batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    with torch.no_grad():
        found = weigh(model, batch, CMO if weighting.rule == "none" else weighting)
    assert found.blind is not None and found.relevance is not None and found.weight is not None
    blind: LabelScores = found.blind
    columns = (found.seen.log_p, blind.log_p, found.seen.logit, blind.logit, found.relevance, found.weight)
    values = torch.stack([column.float().cpu() for column in columns], 1).numpy()  # (N, 6)
    labels = batch["labels"][:, 1:].cpu().numpy()
    ends = np.cumsum((labels != IGNORE).sum(1))
    for item, row, own in zip(items, labels, np.split(values, ends[:-1]), strict=True):
        ids = row[row != IGNORE]
        about = {name: item.about[name] for name in ("record", "id", "corpus")}
        frame = pd.DataFrame(about, index=range(len(ids)))
        frame["place"], frame["token_id"] = np.arange(len(ids), dtype=np.int32), ids.astype(np.int32)
        frame["token"] = [tokenizer.decode([token]) for token in ids.tolist()]
        frame["start"], frame["end"] = np.array(item.spans, np.int32).reshape(-1, 2).T
        frame[list(SCORES)] = own
        if weighting.rule == "none":
            frame["weight"] = np.float32(1 / max(len(ids), 1))
        yield frame


def score_to_disk(
    checkpoint: Checkpoint,
    samples: Samples,
    indices: Sequence[int],
    weighting: Weighting,
    folder: Path,
    *,
    key: dict[str, Any],
) -> list[Path]:
    """The token table of many samples as parquet parts of `BLOCK` samples each, with the sample table's beside them
    (`samples-...`) and the samples that could not be used (`left_out-...json`); memory holds one part. A run that was
    killed goes on with the first part that is not there.

    key: what made the numbers, to which code, libraries, precision and the pictures' sizes and times are added;
    InputError when the folder holds another key's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = key | _circumstances(checkpoint, samples, indices)
    settings = folder / "settings.json"
    if settings.is_file():
        before = json.loads(settings.read_text(encoding="utf-8"))
        if before != json.loads(json.dumps(key)):
            part = next((name for name in key if before.get(name) != key[name]), "settings")
            raise InputError(f"{folder}: holds the table of another {part}; delete it or choose another --out")
    else:
        write_json(settings, key)
    parts: list[Path] = []
    blocks = range(0, len(indices), BLOCK)
    for number, first in enumerate(
        tqdm(blocks, f"scoring {checkpoint.name}", unit=f"{BLOCK} samples", leave=False, delay=2)
    ):
        table = folder / f"tokens-{number:05d}.parquet"
        parts.append(table)
        if table.is_file():
            continue
        bad: list[str] = []
        tokens, about = score_samples(checkpoint, samples, indices[first : first + BLOCK], weighting, bad=bad)
        write_json(folder / f"left_out-{number:05d}.json", bad)
        for frame, path in ((about, folder / f"samples-{number:05d}.parquet"), (tokens, table)):  # the table last
            partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
            frame.to_parquet(partial, index=False)
            os.replace(partial, path)
    return parts


def _circumstances(checkpoint: Checkpoint, samples: Samples, indices: Sequence[int]) -> dict[str, Any]:
    """For a key: how a checkpoint computes, and which pictures it sees, by name, size and time."""
    package = Path(__file__).parents[1]
    code = "".join(file_hash(package / name) for name in CODE)
    pictures = hashlib.sha256()
    for index in indices:
        record = samples.records[index]
        path = record.images / record.image if record.image is not None else None
        if path is not None and path.is_file():
            status = path.stat()
            pictures.update(f"{record.image} {status.st_size} {status.st_mtime_ns}\n".encode())
    return {
        "code": hashlib.sha256(code.encode()).hexdigest(),
        "libraries": [f"{name} {metadata.version(name)}" for name in ("torch", "transformers")],
        "precision": f"{checkpoint.model.dtype} on {checkpoint.model.device.type}",
        "pictures": pictures.hexdigest(),
        "block": BLOCK,
    }


def sample_of(checkpoint: Checkpoint, image: Path, caption: str) -> Samples:
    """One picture with a caption of your own, for `score_samples`. InputError for a picture that is not there."""
    from dpa.images import image_path

    where = f"{image.name} with a caption of your own"
    image_path(image.parent, image.name, where)
    turns = (("user", IMAGE_MARK), ("assistant", caption))
    record = Record(where, image.stem, image.name, turns, image.parent)
    if reason := problem_for("pair", record.image, turns):
        raise InputError(f"{where}: {reason}")
    return Samples([record], "pair", checkpoint.processor, max_length=checkpoint.max_length)
