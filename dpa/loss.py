"""The loss of a batch: a seen pass, a blind pass where the rule asks for one, weights, weighted cross-entropy.

Two hops from the command: `dpa.train` -> `dpa.trainer` -> `batch_loss`. To try another rule, add it to `dpa.weighting`
and, if it needs something other than label scores, here.

Reference: the released code keeps about six float32 tensors of all positions x vocabulary, image positions included, and
runs its second pass in evaluation too. Here only the slots whose label counts reach the vocabulary, in both passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpa.blind import blind_label_scores, label_scores
from dpa.errors import InputError
from dpa.methods import Weighting
from dpa.weighting import scored_slots, weights

IGNORE = -100


@dataclass(frozen=True)
class BatchLoss:
    """`total` is the numerator (scalar, with gradient) and `num_items` what to divide it by over the global batch."""

    total: Tensor
    num_items: int
    nll: Tensor  # unweighted negative log-likelihood per label token, nats, without gradient: comparable between rules
    at_low: Tensor  # share of label tokens whose relevance was clipped at the lower bound, without gradient
    at_high: Tensor  # at the upper
    relevance: Tensor  # mean seen minus blind score of the label tokens, without gradient

    @property
    def mean(self) -> Tensor:
        """The loss of the batch taken alone."""
        return self.total / max(self.num_items, 1)


def num_items(labels: Tensor, weighting: Weighting) -> int:
    """What the loss of labels [B, L] is divided by: label tokens (`none`), samples with labels (paper form), 1 (released).

    The paper normalises the weights per sample and sums over samples; the mean over the global batch keeps the
    learning rate independent of the batch size.
    """
    supervised = labels[:, 1:] != IGNORE
    if weighting.rule == "none":
        return int(supervised.sum())
    return int(supervised.any(1).sum()) if weighting.form == "paper" else 1


def text_model(model: torch.nn.Module) -> torch.nn.Module:
    """The decoder stack (embeddings to last hidden state) of a LLaVA model or of a causal LM, PEFT-wrapped or not."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(base.model, "language_model", base.model)


def _softcap(model: torch.nn.Module) -> float | None:
    """Gemma-2's final cap where transformers leaves it out: inside LLaVA and LLaVA-NeXT. A causal LM's forward applies it.

    Reference: the released CMO path drops the cap; vanilla training with the released code keeps it. We keep it, since
    the probabilities that the weights compare are those the LLM was trained with.
    """
    return getattr(model.config.get_text_config(), "final_logit_softcapping", None)


def num_image_features(config: Any, num_images: int, image_sizes: Tensor | None = None) -> int:
    """How many features a LLaVA model makes of pictures; image_sizes [I, 2] are (height, width), needed for AnyRes alone."""
    if not hasattr(config, "image_grid_pinpoints"):
        return num_images * config.image_seq_length
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    vision, total = config.vision_config, 0
    side = vision.image_size // vision.patch_size
    for size in [] if image_sizes is None else image_sizes.tolist():
        rows, columns = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, vision.image_size)
        _, height, width = unpad_image(torch.empty(1, rows * side, columns * side, device="meta"), size).shape
        total += side * side + height * (width + 1)
    return total


def _refuse_other_count(config: Any, batch: Mapping[str, Tensor]) -> None:
    """InputError when the batch's image tokens are not as many as the features of its pictures."""
    tokens = int((batch["input_ids"] == config.image_token_id).sum())
    pictures = len(batch["pixel_values"]) if "pixel_values" in batch else 0
    features = num_image_features(config, pictures, batch.get("image_sizes"))
    if tokens != features:
        raise InputError(
            f"batch: {tokens} image tokens for the {features} image features of {pictures} pictures; give every picture its own tokens and let no cut (max_length) go through them"
        )


def batch_loss(
    model: torch.nn.Module, batch: Mapping[str, Tensor], weighting: Weighting, unwrapped: torch.nn.Module | None = None
) -> BatchLoss:
    """The loss of one micro-batch under a weighting rule.

    model: a LLaVA model or a causal LM, possibly wrapped for data parallel (then `unwrapped` is the module inside).
    batch: attention_mask [B, L], labels [B, L] (-100: unsupervised, image positions included) and either input_ids
    [B, L] (with pixel_values [I, 3, S, S] if there are images; AnyRes: [I, P, 3, S, S], pictures with fewer tiles padded,
    and image_sizes [I, 2], height and width) or inputs_embeds [B, L, H] with image_mask [B, L].
    InputError when there are not as many image tokens as image features.
    """
    inner = unwrapped if unwrapped is not None else model
    labels, attention_mask = batch["labels"], batch["attention_mask"]
    targets = labels[:, 1:]
    supervised = targets != IGNORE  # (B, T)
    contrastive = weighting.rule != "none"
    scored = scored_slots(supervised, weighting.form) if contrastive else supervised
    inputs = {key: batch[key] for key in ("input_ids", "inputs_embeds", "pixel_values", "image_sizes") if key in batch}
    is_llava = hasattr(inner.config, "image_token_id") and hasattr(inner.config, "text_config")
    if is_llava and "input_ids" in batch and "pixel_values" not in batch:
        _refuse_other_count(inner.config, batch)  # transformers would take the image token's embedding for a feature
    try:
        outputs = model(
            **inputs,
            attention_mask=attention_mask,
            use_cache=False,
            logits_to_keep=torch.nn.functional.pad(scored, (0, 1)),
        )
    except ValueError:
        if is_llava and "input_ids" in batch:
            _refuse_other_count(inner.config, batch)
        raise
    seen = label_scores(outputs.logits, targets[scored].clamp(min=0), _softcap(inner) if is_llava else None)
    nll = -seen.log_p[supervised[scored]]  # (N,)

    zero = nll.new_zeros(())
    if not contrastive:
        return BatchLoss(nll.sum(), num_items(labels, weighting), nll.detach().mean(), zero, zero, zero)

    decoder = text_model(inner)
    if hasattr(inner, "unshard"):  # FSDP2 may have sharded embeddings and head again after the forward they belong to
        inner.unshard()
    image_mask = (
        batch["image_mask"].bool() if "image_mask" in batch else batch["input_ids"] == inner.config.image_token_id
    )
    embeds = batch["inputs_embeds"] if "inputs_embeds" in batch else decoder.get_input_embeddings()(batch["input_ids"])
    image_features = getattr(outputs, "image_hidden_states", None)
    if image_features is not None and weighting.form == "released":
        embeds = embeds.detach().masked_scatter(image_mask[..., None], image_features.detach().to(embeds.dtype))
    blind = blind_label_scores(
        decoder,
        inner.get_output_embeddings(),
        embeds.detach(),
        attention_mask,
        image_mask,
        scored,
        targets[scored].clamp(min=0),
        seen,
        form=weighting.form,
        softcap=_softcap(inner),
    )
    with torch.no_grad():
        difference = seen.log_p.exp() - blind.log_p.exp() if weighting.rule == "cmo" else seen.logit - blind.logit
        relevance = torch.zeros(scored.shape, dtype=torch.float32, device=scored.device)
        relevance[scored] = difference
        weight = weights(relevance, supervised, weighting)
        label_relevance = relevance[supervised]
        at_low = (label_relevance <= weighting.low).float().mean()
        at_high = (label_relevance >= weighting.high).float().mean()
    return BatchLoss(
        (weight[supervised] * nll).sum(),
        num_items(labels, weighting),
        nll.detach().mean(),
        at_low,
        at_high,
        label_relevance.mean(),
    )
