"""p(token | text): the pass without the image, over the text tokens alone.

Image tokens are dropped and the positions of the rest kept, which equals masking them in attention (1e-6 in float32)
at a fraction of the length. What follows a sample's last label is dropped too, samples are packed without padding, and only
the slots asked for reach the vocabulary. Under a frozen LLM the scores are constants of the data: `dpa.blind_cache`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dpa.methods import Form
from dpa.packing import decode
from dpa.scores import LabelScores


@torch.no_grad()
def blind_label_scores(
    decoder: torch.nn.Module,
    score: Callable[[Tensor, Tensor], LabelScores],
    embed: Callable[[Tensor], Tensor],
    real: Tensor,
    image_mask: Tensor,
    scored: Tensor,
    labels: Tensor,
    seen: LabelScores,
    *,
    form: Form = "paper",
    positions: Tensor | None = None,
    vocab_size: int,
) -> LabelScores:
    """Scores of the labels without the image, for the `scored` slots in row-major order ([N]).

    decoder: the text model; score: (hidden [n, H], labels [n]) -> their scores, through lm_head; embed: indices [n] of
    places in the flattened batch -> their embeddings [n, H] in the pass with the image.
    real, image_mask [B, L] bool: no padding; image tokens.
    scored [B, L-1] bool: the slots of the shifted grid; labels [N]: the tokens they predict; seen: their scores with
    the image. positions [B, L]: of packed rows, from 0 in each sample; None: a row is a sample, padded at the right.

    The token after the image has no text slot of its own to be predicted from. Paper form: what stands before the image
    predicts it, s_j given s_<j. Where nothing stands before, no text-only prediction exists and the label gets the
    uniform probability 1/V (as a logit: uniform at the seen row's partition). Samples without an image have the seen
    scores: nothing is computed for them.
    Reference: in the released form the last image patch's own embedding stays as a query that sees only the text, and
    the unsupervised neighbours (image and padding slots) are scored likewise.
    """
    slots = torch.nn.functional.pad(scored, (0, 1)).flatten().nonzero()[:, 0]  # (N,) in the flattened batch
    log_p, logit = seen.log_p.detach().clone(), seen.logit.detach().clone()
    if positions is None:
        positions = torch.arange(real.shape[1], device=real.device).expand_as(real)
    position, image = positions.flatten(), image_mask.flatten()
    text = real.flatten() & ~image
    index = torch.arange(len(position), device=real.device)
    first = torch.where(position == 0, index, 0).cummax(0).values  # where its sample begins
    last_text = torch.where(text, index, -1).cummax(0).values  # the text token at or before a place
    has_text = last_text >= first  # in the same sample
    known = has_text[slots]
    if form == "paper":
        has_image = torch.zeros_like(text).index_fill(0, first[image], True)[first[slots]]  # of each slot's sample
        predictors, asked = last_text[slots], known & has_image
        log_p = torch.where(has_image, -math.log(vocab_size), log_p)
        logit = torch.where(has_image, seen.log_partition.detach() - math.log(vocab_size), logit)
        query = torch.zeros_like(text)
    else:
        predictors, asked = slots, known
        log_p = torch.full_like(log_p, -math.log(vocab_size))
        logit = seen.log_partition.detach() - math.log(vocab_size)
        query = torch.zeros_like(text).index_fill(0, slots[known], True) & ~text
    wanted = predictors[asked]
    if not len(wanted):
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # weights that an engine shards are gathered by all processes together, and the others may have images
            score(decode(decoder, embed(index[:1]), position[:1], [1]), labels[:1])
        return LabelScores(log_p, logit)
    # the last place of each sample that anything asked for depends on; -1: nothing of the sample is
    needed = torch.full_like(index, -1).scatter_reduce(0, first[wanted], wanted, "amax")[first]
    kept = ((text | query) & (index <= needed)).nonzero()[:, 0]
    lengths = first[kept].unique_consecutive(return_counts=True)[1].tolist()
    keys = None if form == "paper" else text[kept]
    hidden = decode(decoder, embed(kept), position[kept], lengths, keys)
    place = torch.zeros_like(index).index_copy(0, kept, torch.arange(len(kept), device=kept.device))
    scores = score(hidden[place[wanted]], labels[asked])
    log_p[asked], logit[asked] = scores.log_p.to(log_p.dtype), scores.logit.to(logit.dtype)
    return LabelScores(log_p, logit)


UNSEEN = LabelScores(torch.tensor(math.inf), torch.tensor(-math.inf))  # stands where a score is made of the seen one


@torch.no_grad()
def completed(kept: LabelScores, seen: LabelScores, vocab_size: int) -> LabelScores:
    """Scores [N] that were computed without a seen pass (`UNSEEN` as their seen ones), with what they lack of it: the seen
    scores of samples without an image, and the logit of a label that no text stands before.
    """
    as_seen = kept.log_p.isposinf()
    uniform = torch.where(kept.logit.isneginf(), seen.log_partition - math.log(vocab_size), kept.logit)
    return LabelScores(torch.where(as_seen, seen.log_p, kept.log_p), torch.where(as_seen, seen.logit, uniform))
