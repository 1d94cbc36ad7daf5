"""The loss of a batch: a seen pass, a blind pass where the rule asks for one, weights, weighted cross-entropy.

Two hops from the command: `dpa.train` -> `dpa.trainer` -> `batch_loss`. To try another rule, add it to `dpa.weighting`
and, if it needs something other than label scores, here.

Reference: the released code keeps about six float32 tensors of all positions x vocabulary, image positions included, and
runs its second pass in evaluation too. Here only the slots whose label counts reach the vocabulary, in both passes, a
chunk at a time (`dpa.scores`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpa.blind import blind_label_scores, completed
from dpa.errors import InputError
from dpa.methods import CMO, Weighting
from dpa.packing import sequence_ids
from dpa.scores import LabelScores, scoring, with_graph_of
from dpa.weighting import scored_slots, weights

IGNORE = -100
TINY = 1e-12


@dataclass(frozen=True)
class BatchLoss:
    """`total` is the numerator (scalar, with gradient) and `num_items` what to divide it by over the global batch."""

    total: Tensor
    num_items: int | Tensor
    nll: Tensor  # unweighted negative log-likelihood per label token, nats, without gradient: comparable between rules
    at_low: Tensor  # share of label tokens whose relevance was clipped at the lower bound, without gradient
    at_high: Tensor  # at the upper
    relevance: Tensor  # mean seen minus blind score of the label tokens, without gradient

    @property
    def mean(self) -> Tensor:
        """The loss of the batch taken alone."""
        number = self.num_items
        return self.total / (number.clamp(min=TINY) if isinstance(number, Tensor) else max(number, 1))


def num_items(batch: Mapping[str, Tensor], weighting: Weighting) -> int | None:
    """What the loss of a batch is divided by: label tokens (`none`), samples with labels (weights normalised by sample),
    1 (by `rank`). None for `global`: the sum of the weights, which is known once they are.

    The paper normalises the weights per sample and sums over samples; the mean over the global batch keeps the
    learning rate independent of the batch size.
    """
    supervised = batch["labels"][:, 1:] != IGNORE
    if weighting.rule == "none":
        return int(supervised.sum())
    if weighting.normalisation == "sample":
        return len(sample_numbers(batch)[:, :-1][supervised].unique())
    return 1 if weighting.normalisation == "rank" else None


def sample_numbers(batch: Mapping[str, Tensor]) -> Tensor:
    """Number of the sample that each place [B, L] of a batch belongs to; packed rows (`position_ids`) hold several."""
    if "position_ids" in batch:
        return sequence_ids(batch["position_ids"])
    rows = torch.arange(len(batch["labels"]), device=batch["labels"].device)
    return rows[:, None].expand_as(batch["labels"])


def text_model(model: torch.nn.Module) -> torch.nn.Module:
    """The decoder stack (embeddings to last hidden state) of a LLaVA model or of a causal LM, PEFT-wrapped or not."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(base.model, "language_model", base.model)


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


@dataclass(frozen=True)
class Weighed:
    """The label tokens of a batch, in row-major order: all fields but the first [N], and without gradient.

    seen.log_p alone has one. blind, relevance and weight are None where the rule compares nothing (`none`).
    """

    seen: LabelScores
    blind: LabelScores | None = None
    relevance: Tensor | None = None  # seen minus blind: probabilities (cmo) or logits (cal)
    weight: Tensor | None = None


def weigh(
    model: torch.nn.Module, batch: Mapping[str, Tensor], weighting: Weighting, unwrapped: torch.nn.Module | None = None
) -> Weighed:
    """Scores, relevance and weights of a micro-batch's label tokens (the paper's r, q, delta, w).

    model: a LLaVA model or a causal LM, possibly wrapped for data parallel (then `unwrapped` is the module inside).
    batch: attention_mask [B, L], labels [B, L] (-100: unsupervised, image positions included) and either input_ids
    [B, L] (with pixel_values [I, 3, S, S] if there are images; AnyRes: [I, P, 3, S, S], pictures with fewer tiles padded,
    and image_sizes [I, 2], height and width) or inputs_embeds [B, L, H] with image_mask [B, L]. Packed rows also have
    position_ids [B, L], from 0 in each sample and each stretch of padding, and no label at a sample's first token.
    blind_log_p, blind_logit [B, L], valid where labels are: p(token | text) from `dpa.blind_cache`, in place of the blind
    pass (paper form).
    InputError when there are not as many image tokens as image features.
    """
    inner = unwrapped if unwrapped is not None else model
    targets = batch["labels"][:, 1:]
    supervised = targets != IGNORE  # (B, T)
    contrastive = weighting.rule != "none"
    scored = scored_slots(supervised, weighting.form) if contrastive else supervised
    scored_labels = targets[scored].clamp(min=0)
    with scoring(inner, scored_labels) as found:
        returned = _forward(model, inner, batch, torch.nn.functional.pad(scored, (0, 1)))
    seen = with_graph_of(found[0], returned.logits)
    if not contrastive:
        return Weighed(seen)

    if "blind_log_p" in batch:
        kept = LabelScores(batch["blind_log_p"][:, 1:][scored], batch["blind_logit"][:, 1:][scored])
        blind = completed(kept, seen, inner.get_output_embeddings().out_features)
    else:
        features = getattr(returned, "image_hidden_states", None)
        blind = blind_scores(inner, batch, scored, scored_labels, seen, features, weighting)
    with torch.no_grad():
        difference = seen.log_p.exp() - blind.log_p.exp() if weighting.rule == "cmo" else seen.logit - blind.logit
        relevance = torch.zeros(scored.shape, dtype=torch.float32, device=scored.device)
        relevance[scored] = difference.float()
        weight = weights(relevance, supervised, weighting, sample_numbers(batch)[:, :-1])[supervised]
    own = supervised[scored]  # in the released form neighbours were scored too
    seen, blind = (LabelScores(scores.log_p[own], scores.logit[own]) for scores in (seen, blind))
    return Weighed(seen, blind, relevance[supervised], weight)


def batch_loss(
    model: torch.nn.Module, batch: Mapping[str, Tensor], weighting: Weighting, unwrapped: torch.nn.Module | None = None
) -> BatchLoss:
    """The loss of one micro-batch under a weighting rule; arguments and errors as of `weigh`."""
    tokens = weigh(model, batch, weighting, unwrapped)
    nll = -tokens.seen.log_p  # (N,)
    zero = nll.new_zeros(())
    if tokens.weight is None or tokens.relevance is None:
        return BatchLoss(nll.sum(), num_items(batch, weighting) or 0, nll.detach().mean(), zero, zero, zero)
    divisor = num_items(batch, weighting)
    return BatchLoss(
        (tokens.weight * nll).sum(),
        tokens.weight.sum() if divisor is None else divisor,
        nll.detach().mean(),
        (tokens.relevance <= weighting.low).float().mean(),
        (tokens.relevance >= weighting.high).float().mean(),
        tokens.relevance.mean(),
    )


def _forward(model: torch.nn.Module, inner: torch.nn.Module, batch: Mapping[str, Tensor], keep: Tensor) -> Any:
    """The seen pass, logits at `keep` [B, L]. InputError when the batch's image tokens do not fit its pictures."""
    names = ("input_ids", "inputs_embeds", "pixel_values", "image_sizes", "position_ids")
    inputs = {name: batch[name] for name in names if name in batch}
    if "position_ids" not in batch:  # packed rows are told by their positions, and have none
        inputs["attention_mask"] = batch["attention_mask"]
    is_llava = hasattr(inner.config, "image_token_id") and hasattr(inner.config, "text_config")
    if is_llava and "input_ids" in batch and "pixel_values" not in batch:
        _refuse_other_count(inner.config, batch)  # transformers would take the image token's embedding for a feature
    try:
        return model(**inputs, use_cache=False, logits_to_keep=keep)
    except ValueError:
        if is_llava and "input_ids" in batch:
            _refuse_other_count(inner.config, batch)
        raise


def blind_scores(
    inner: Any,
    batch: Mapping[str, Tensor],
    scored: Tensor,
    scored_labels: Tensor,
    seen: LabelScores,
    image_features: Tensor | None = None,
    weighting: Weighting = CMO,
) -> LabelScores:
    """The blind pass of a batch, at the scored slots [B, L-1]; seen: the scores there with the image, [N]."""
    decoder, head = text_model(inner), inner.get_output_embeddings()
    if hasattr(inner, "unshard"):  # FSDP2 may have sharded embeddings and head again after the forward they belong to
        inner.unshard()

    def score(hidden: Tensor, labels: Tensor) -> LabelScores:
        with scoring(inner, labels) as found:
            head(hidden)
        return found[0]

    embeds = batch.get("inputs_embeds")
    ids = batch["input_ids"] if embeds is None else batch["labels"]  # ids are not read where embeddings are given
    image_mask = batch["image_mask"].bool() if embeds is not None else ids == inner.config.image_token_id

    def embed(places: Tensor) -> Tensor:
        if embeds is not None:
            return embeds.detach().flatten(0, 1)[places]
        values = decoder.get_input_embeddings()(ids.flatten()[places])
        if image_features is None or weighting.form == "paper":
            return values
        number = (image_mask.flatten().cumsum(0) - 1)[places].clamp(min=0)
        own = image_features.detach().flatten(0, -2)[number].to(values.dtype)
        return torch.where(image_mask.flatten()[places, None], own, values)

    return blind_label_scores(
        decoder,
        score,
        embed,
        batch["attention_mask"].bool(),
        image_mask,
        scored,
        scored_labels,
        seen,
        form=weighting.form,
        positions=batch.get("position_ids"),
        vocab_size=head.out_features,  # its weight may be with other processes here
    )
