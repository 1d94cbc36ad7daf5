"""p(token | text): the pass without the image, over the text tokens alone.

Image tokens are dropped and the positions of the rest kept, which equals masking them in attention (1e-6 in float32)
at a fraction of the length. Only the slots asked for reach the vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dpa.methods import Form


@dataclass(frozen=True)
class LabelScores:
    """What a model says of each label: `log_p` in nats and the raw `logit`, both [N] float32."""

    log_p: Tensor
    logit: Tensor

    @property
    def log_partition(self) -> Tensor:
        """logsumexp of the logits, [N]."""
        return self.logit - self.log_p


def label_scores(logits: Tensor, labels: Tensor, softcap: float | None = None) -> LabelScores:
    """Scores of `labels` [N] under `logits` [N, V]; `softcap` is Gemma-2's final tanh cap, in logits."""
    logits = logits.float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logit = logits.gather(-1, labels[:, None])[:, 0]
    return LabelScores(logit - logits.logsumexp(-1), logit)


def compact(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Indices [B, K] of the kept positions of each row, in order, and which of the K are real (bool [B, K])."""
    lengths = keep.sum(1)
    width = int(lengths.max())
    order = torch.sort((~keep).int(), dim=1, stable=True).indices[:, :width]
    return order, torch.arange(width, device=keep.device)[None] < lengths[:, None]


@torch.no_grad()
def blind_label_scores(
    decoder: torch.nn.Module,
    lm_head: torch.nn.Module,
    inputs_embeds: Tensor,
    attention_mask: Tensor,
    image_mask: Tensor,
    scored: Tensor,
    labels: Tensor,
    seen: LabelScores,
    *,
    form: Form = "paper",
    softcap: float | None = None,
) -> LabelScores:
    """Scores of the labels without the image, for the `scored` slots in row-major order ([N]).

    decoder: the text model, called with embeddings [B, K, H]; lm_head: hidden -> logits.
    inputs_embeds [B, L, H] of the pass with the image; attention_mask, image_mask [B, L] bool, padding at the right.
    scored [B, L-1] bool: the slots of the shifted grid; labels [N]: the tokens they predict; seen: their scores with
    the image.

    The token after the image has no text slot of its own to be predicted from. Paper form: what stands before the image
    predicts it, s_j given s_<j. Where nothing stands before, no text-only prediction exists and the label gets the
    uniform probability 1/V (as a logit: uniform at the seen row's partition).
    Reference: in the released form the last image patch's own embedding stays as a query that sees only the text, and
    the unsupervised neighbours (image and padding slots) are scored likewise.
    """
    if not bool(scored.any()):
        return LabelScores(seen.log_p.new_zeros(0), seen.logit.new_zeros(0))
    text = attention_mask.bool() & ~image_mask.bool()
    has_text = text.cumsum(1) > 0  # (B, L) some text at or before the position
    index = torch.arange(text.shape[1], device=text.device).expand_as(text)
    rows, slots = scored.nonzero(as_tuple=True)
    known = has_text[rows, slots]
    if form == "paper":
        keep = text
        last_text = torch.where(text, index, -1).cummax(1).values
        predictors = last_text[rows, slots]
    else:
        keep = text | (torch.nn.functional.pad(scored, (0, 1)) & has_text)
        predictors = slots
    order, real = compact(keep)
    place = torch.zeros_like(index).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order).contiguous()
    )
    hidden = decoder(
        inputs_embeds=inputs_embeds.gather(1, order[..., None].expand(-1, -1, inputs_embeds.shape[-1])),
        attention_mask=(
            text.gather(1, order) & real
        ).long(),  # 2-D always: without it a jump in positions reads as packing
        position_ids=order,
        use_cache=False,
    ).last_hidden_state
    hidden = hidden[rows, place[rows, predictors.clamp(min=0)]]
    logits = lm_head(hidden)
    scores = label_scores(logits, labels, softcap)
    log_p = torch.where(known, scores.log_p, torch.full_like(scores.log_p, -math.log(logits.shape[-1])))
    logit = torch.where(known, scores.logit, seen.log_partition.detach() - math.log(logits.shape[-1]))
    return LabelScores(log_p, logit)
