"""p(token | text) of a data set under a frozen LLM, computed once and kept on disk (stage 2).

    python -m dpa.blind_cache --recipe R [--data FILE --images DIR ...]    fills the cache of a recipe's stage 2

Stage 2 fills it by itself before it trains, and every run over the same captions with the same LLM reads it: other seeds,
bounds and rules, any number of processes. The scores are computed in batches that the captions alone decide, in order of
length, so a run does not depend on who filled the cache, nor on a kill in between. 8 bytes a label token.

The key is what decides the numbers: weights of the LLM and of its proxy, tokenizer, precision, attention, kind of device,
the code and its libraries, and each record's token ids and labels (so template, cut and picture size too). So a proxy, and
with it each seed of a recipe that has one, and each selection of captions has a cache of its own; what nobody needs any
more may be deleted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from dpa.blind import UNSEEN
from dpa.cache import RowCache, circumstances, filled
from dpa.data import Collator, Samples
from dpa.errors import InputError, command
from dpa.loss import IGNORE, blind_scores
from dpa.scores import LabelScores

if TYPE_CHECKING:
    from dpa.trainer import DPATrainer

FOLDER = "blind"
TOKENS = 8192  # text tokens of a batch
CODE = ("blind.py", "blind_cache.py", "loss.py", "packing.py", "scores.py")  # decides the numbers, and so the key
COLUMNS = ("log_p", "logit")


def columns(model: torch.nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{"blind_log_p", "blind_logit"}: [B, L] float32 for the labels of a batch (those of `batch_loss`), 0 elsewhere.

    The image is not looked at; what a score lacks without the seen pass is marked, see `dpa.blind.completed`.
    """
    scored = batch["labels"][:, 1:] != IGNORE
    labels = batch["labels"][:, 1:][scored]
    nothing = LabelScores(*(t.to(labels.device).expand(len(labels)) for t in (UNSEEN.log_p, UNSEEN.logit)))
    with torch.no_grad():
        found = blind_scores(model, batch, scored, labels, nothing)
    grids = {}
    for name, values in (("blind_log_p", found.log_p), ("blind_logit", found.logit)):
        grids[name] = torch.zeros(batch["labels"].shape, dtype=torch.float32, device=labels.device)
        grids[name][:, 1:][scored] = values.float()
    return grids


class Told(NamedTuple):
    """Of each record: labels [N] that something predicts, text tokens [N], hash [N, 32] bytes of its tokens and labels."""

    labels: np.ndarray
    text: np.ndarray
    hashes: np.ndarray


def told_of(samples: Samples, share: tuple[int, int] = (0, 1), *, show: bool = True) -> Told:
    """Tokenise the records of a share: number, number + processes, ..."""
    indices = range(share[0], len(samples), share[1])
    labels, text = np.zeros(len(indices), np.int64), np.zeros(len(indices), np.int64)
    hashes = np.zeros((len(indices), 32), np.uint8)
    for place, index in enumerate(
        tqdm(indices, "reading captions", unit="rec", leave=False, delay=2, disable=not show)
    ):
        ids, marked = (np.asarray(row, dtype="<i4") for row in samples.tokens(index))
        labels[place] = (marked[1:] != IGNORE).sum()
        text[place] = (ids != samples.image_token_id).sum()
        hashes[place] = np.frombuffer(hashlib.sha256(ids.tobytes() + marked.tobytes()).digest(), np.uint8)
    return Told(labels, text, hashes)


def joined(shares: Sequence[Told]) -> Told:
    """The shares of all processes, in their order, as one."""
    whole = []
    for parts in zip(*shares, strict=True):
        out = np.zeros((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
        for number, part in enumerate(parts):
            out[number :: len(parts)] = part
        whole.append(out)
    return Told(*whole)


class BlindCache:
    """The cache of `samples` (view `pair`): `fill` it, then `samples.blind = cache.rows` adds the scores to each sample."""

    def __init__(self, root: Path, key: Mapping[str, Any], samples: Samples, told: Told, *, show: bool = True) -> None:
        """key: what made the LLM (hashes, precision); told: all records of `told_of`. InputError for a damaged cache."""
        self.samples, self.show, self.text = samples, show, told.text
        key = {**key, "records": hashlib.sha256(told.hashes.tobytes()).hexdigest()}
        self.rows = RowCache.open(root, FOLDER, key, told.labels.tolist(), len(COLUMNS))

    def batches(self) -> list[list[int]]:
        """Indices of the records that are scored together: of like length, decided by the records alone."""
        groups: list[list[int]] = []
        width = taken = 0
        for index in np.argsort(-self.text, kind="stable").tolist():
            if not groups or taken + width > TOKENS:
                groups.append([])
                width, taken = int(self.text[index]), 0
            groups[-1].append(index)
            taken += width
        return groups

    def fill(
        self,
        model: torch.nn.Module,
        *,
        share: tuple[int, int] = (0, 1),
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> int:
        """Score what is missing, of the share (number, of how many processes) of this one; how many records were scored.

        model: a LLaVA model whose LLM is frozen, on the device to compute on. A batch of which anything is missing is
        scored whole, so that what a kill left behind changes nothing.
        """
        missing = set(self.rows.missing().tolist())
        device = model.get_input_embeddings().weight.device
        collate, done = Collator(0), 0
        batches = [group for group in self.batches()[share[0] :: share[1]] if not missing.isdisjoint(group)]
        title = f"p(token | text) of {len(missing):,} captions"
        for group in tqdm(batches, title, unit="batch", leave=False, delay=2, disable=not self.show):
            pairs = [self.samples.tokens(index) for index in group]
            batch = collate([{"input_ids": torch.tensor(i), "labels": torch.tensor(label)} for i, label in pairs])
            with autocast():
                grids = columns(model, {name: tensor.to(device) for name, tensor in batch.items()})
            kept = batch["labels"] != IGNORE
            kept[:, 0] = False
            values = torch.stack([grids[f"blind_{name}"].cpu() for name in COLUMNS], -1)
            for row, index in enumerate(group):
                if index in missing:
                    self.rows.write(index, values[row][kept[row]].numpy())
                    done += 1
        return done


def use(trainer: DPATrainer, root: Path, lineage: Mapping[str, Any], *, always: bool = False) -> RowCache | None:
    """Have a stage-2 trainer's samples carry the cached scores, filling what is missing; every process calls it.

    None, and nothing happens, where the scores are no constants (the released form looks at image features), where the
    rule needs none, or, unless `always`, where the run sees only part of the records.
    """
    arguments, samples, weighting = trainer.args, trainer.train_dataset, trainer.weighting
    assert isinstance(samples, Samples)
    seen = arguments.max_steps * arguments.train_batch_size * arguments.gradient_accumulation_steps
    whole = seen * arguments.world_size >= len(samples) if arguments.max_steps > 0 else arguments.num_train_epochs >= 1
    if weighting.rule == "none" or weighting.form == "released" or not (whole or always):
        return None
    model, processes = trainer.model, (arguments.process_index, arguments.world_size)
    dtype = str(model.get_input_embeddings().weight.dtype)
    key = {"llm": lineage["llm"], "proxy": lineage["parents"].get("proxy"), "tokenizer": lineage["tokenizer"]}
    key |= circumstances(Path(__file__).parent, CODE, dtype, arguments, model.config.get_text_config())

    told = told_of(samples, processes, show=processes[0] == 0)
    if processes[1] > 1:
        told = joined(gather_object([told]))

    def opened() -> tuple[RowCache, Callable[[], None]]:
        cache = BlindCache(root / FOLDER, key, samples, told, show=processes[0] == 0)
        return cache.rows, lambda: fill(cache)

    def fill(cache: BlindCache) -> None:
        if trainer.shards_weights:  # not yet: the model is whole, and still on the CPU
            model.to(arguments.device)
        cache.fill(model, share=processes, autocast=trainer.accelerator.autocast)
        if trainer.shards_weights:
            model.to("cpu")

    samples.blind = filled(root / FOLDER, FOLDER, key, processes, trainer.accelerator.wait_for_everyone, opened)
    return samples.blind


@command
def main(arguments: list[str] | None = None) -> int:
    from dpa.arguments import resolve
    from dpa.train import fill_blind_cache, parse

    flags, rest = parse(arguments, prog="python -m dpa.blind_cache", description=__doc__)
    flags.stage = "connector"
    chosen = resolve(flags)
    if chosen.weighting_of("connector").rule == "none":
        raise InputError(
            f"recipe {chosen.name!r} compares nothing with the text alone in stage 2; it has no use for it"
        )
    fill_blind_cache(chosen, flags, rest)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
