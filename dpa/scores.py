"""What a model says of given labels, without ever holding the logits of all of them: lm_head and softmax in chunks.

The log-probabilities have a gradient (`label_scores`), so that a loss may weight each of them afterwards: weights may
depend on the very probabilities, and value and gradient still come from one pass over the vocabulary. With a frozen
lm_head nothing of the vocabulary's size outlives its chunk; with a trained one the chunks, if there are several, are
computed once more in the backward pass, for the gradient of its weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK = {"cpu": 2**24, "cuda": 2**27}  # logits held at a time, in float32: 64 and 512 MiB


@dataclass(frozen=True)
class LabelScores:
    """What a model says of each label: `log_p` in nats and the raw `logit`, both [N] float32; `log_p` has the gradient."""

    log_p: Tensor
    logit: Tensor

    @property
    def log_partition(self) -> Tensor:
        """logsumexp of the logits, [N]."""
        return self.logit - self.log_p


def label_scores(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk: int | None = None,
) -> LabelScores:
    """Scores of `labels` [N] where lm_head (`weight` [V, H], `bias` [V]) reads `hidden` [N, H].

    Matrix products run in hidden's dtype, or autocast's where that is on; everything after them in float32 (float64
    stays float64). softcap: Gemma-2's final tanh cap, in logits. chunk: labels at a time; None: as many as `CHUNK` holds.
    Gradients reach hidden, weight and bias through `log_p` alone.
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        hidden = hidden.to(torch.get_autocast_dtype(kind))
    chunk = chunk or max(1, CHUNK.get(kind, CHUNK["cuda"]) // len(weight))
    record = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (hidden, weight, bias))
    log_p, logit = _LabelScores.apply(hidden, weight, bias, labels, softcap, chunk, record)
    return LabelScores(log_p, logit)


def softcap_of(config: Any) -> float | None:
    """Gemma-2's final cap. A causal LM's own forward applies it, LLaVA's and LLaVA-NeXT's leaves it out.

    Reference: the released CMO path drops the cap; vanilla training with the released code keeps it. We keep it, since
    the probabilities that the weights compare are those the LLM was trained with.
    """
    return getattr(config.get_text_config(), "final_logit_softcapping", None)


@contextmanager
def scoring(model: torch.nn.Module, labels: Tensor) -> Iterator[list[LabelScores]]:
    """Within, the model's lm_head gives scores of `labels` [N] in place of logits; they are put into the list.

    So lm_head is read inside the model's own forward, where data parallel, FSDP and ZeRO-3 have its weights at hand and
    see them used. The forward (with `logits_to_keep`: N positions) returns [N, 1] as `logits`; a loss has to depend on
    it, or an engine does not learn that the backward pass has begun: `with_graph_of`.
    """
    head: Any = model.get_output_embeddings()
    softcap, found, before = softcap_of(model.config), [], head.__dict__.get("forward")

    def forward(hidden: Tensor) -> Tensor:
        found.append(label_scores(hidden, head.weight, labels, bias=head.bias, softcap=softcap))
        return found[-1].log_p[:, None]

    head.forward = forward
    try:
        yield found
    finally:
        del head.forward
        if before is not None:
            head.forward = before


def with_graph_of(scores: LabelScores, returned: Tensor) -> LabelScores:
    """The scores as they were computed, in float32, on the graph of what the forward returned of them: an engine may have
    rounded that to bf16 or capped it.
    """
    return LabelScores(scores.log_p + 0.0 * returned[:, 0].float(), scores.logit)


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    """Logits [n, V], in float32 at least."""
    logits = hidden @ weight.T
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    if bias is not None:
        logits += bias
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def _error(logits: Tensor, labels: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """(log p of the labels [n], d(-log p) / d(lm_head's output) [n, V]); `logits` is used up."""
    slope = None if softcap is None else 1 - (logits / softcap).square_()
    everything = logits.log_softmax(-1)
    log_p = everything.gather(-1, labels[:, None])
    error = everything.exp_()
    error.scatter_add_(-1, labels[:, None], error.new_full(log_p.shape, -1.0))
    return log_p[:, 0], error if slope is None else error.mul_(slope)


class _LabelScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Any, labels: Tensor, softcap: Any, chunk: int, record: bool
    ) -> Any:
        wide = hidden.dtype if hidden.dtype.itemsize >= 4 else torch.float32
        log_p, logit = (torch.empty(len(labels), dtype=wide, device=hidden.device) for _ in range(2))
        trains = record and any(ctx.needs_input_grad[1:3])
        slopes = torch.empty_like(hidden) if record else None  # d log p / d hidden
        kept = None  # the error, where lm_head trains and one chunk holds all
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(hidden.dtype)
            for start in range(0, len(labels), chunk):
                part = slice(start, start + chunk)
                logits = _linear(hidden[part], matrix, bias, softcap)
                logit[part] = logits.gather(-1, labels[part, None])[:, 0]
                if slopes is None:
                    log_p[part] = logit[part] - logits.logsumexp(-1)
                    continue
                log_p[part], error = _error(logits, labels[part], softcap)
                del logits
                error = error.to(hidden.dtype)
                slopes[part] = (error @ matrix).neg_()
                kept = error if trains and len(labels) <= chunk else None
        ctx.softcap, ctx.chunk, ctx.trains = softcap, chunk, trains
        ctx.save_for_backward(slopes, *((kept, hidden, weight, bias, labels) if trains else ()))
        ctx.mark_non_differentiable(logit)
        return log_p, logit

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Any:
        slopes, *rest = ctx.saved_tensors
        to_hidden = (slopes * gradient[:, None]).to(slopes.dtype) if ctx.needs_input_grad[0] else None
        if not ctx.trains:
            return to_hidden, *[None] * 6
        kept, hidden, weight, bias, labels = rest
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        to_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        with torch.autocast(hidden.device.type, enabled=False):
            scaled, matrix = (hidden * -gradient[:, None]).to(hidden.dtype), weight.to(hidden.dtype)
            for start in range(0, len(labels), ctx.chunk):
                part, error = slice(start, start + ctx.chunk), kept
                if error is None:
                    logits = _linear(hidden[part], matrix, bias, ctx.softcap)
                    error = _error(logits, labels[part], ctx.softcap)[1].to(hidden.dtype)
                    del logits
                if to_bias is not None:
                    to_bias -= error.T.to(gradient.dtype) @ gradient[part]
                if to_weight is None:
                    continue
                if hidden.dtype == to_weight.dtype:
                    to_weight.addmm_(error.T, scaled[part])
                else:
                    to_weight += error.T @ scaled[part]
        return to_hidden, to_weight, to_bias, *[None] * 4
