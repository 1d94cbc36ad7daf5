"""Visual relevance -> weight of each label token: the whole of CMO and CAL as pure functions of tensors.

All tensors live on the shifted grid [B, T], T = L - 1: slot t of a row holds what position t says about the token at
t + 1. `supervised` marks the slots whose label counts. Relevance is read only at `scored_slots`, so that nothing of
the size of the vocabulary is needed anywhere else.

Two forms, chosen by name (`dpa.methods.Weighting`):

`paper`     the paper's CMO equations: per sample, over its own label tokens only.
`released`  what the released code (and CAL's) computes. It differs in how it pools and normalises, marked `Reference:`
            below, and in the blind prediction of the token after the image (`dpa.blind`).

Reference: a sample without a picture has relevance 0 everywhere. The released form gives each of its tokens the weight
delta_min, so beside pictures such samples hardly count; the paper form normalises per sample, which makes them plain.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from dpa.methods import Form, Weighting

WINDOW = 3  # of the average pooling, in tokens: the paper (AvgPool3) and CAL
RELEASED_EPSILON = 1e-6  # the released code adds it to the sum of weights


def scored_slots(supervised: Tensor, form: Form) -> Tensor:
    """Slots [B, T] (bool) whose relevance `weights` reads: the supervised ones, and in the released form their neighbours.

    Reference: the released code pools over the flattened batch, so the slot before the first label and the one after
    the last (a prompt, image or padding slot, or another sample's) pull at the weight; it scores them with label id 0.
    """
    if form == "paper":
        return supervised
    flat = supervised.flatten()
    scored = flat.clone()
    scored[1:] |= flat[:-1]
    scored[:-1] |= flat[1:]
    return scored.view_as(supervised)


def weights(relevance: Tensor, supervised: Tensor, weighting: Weighting, samples: Tensor | None = None) -> Tensor:
    """Weights [B, T] float32 of the label tokens, 0 at unsupervised slots; without gradient (the paper's w).

    relevance [B, T]: seen minus blind score, valid at `scored_slots(supervised, form)`. samples [B, T]: number of the
    sample that a slot belongs to, where a row holds several (below B x (T + 1)); None: a row is a sample.
    Normalised by name: each sample's weights sum to 1 (0 for a sample without labels); or all of them together do
    (`rank`); `global` ones are left as they are, since their sum is known only when the whole batch has been seen.
    """
    clipped = relevance.detach().float().clamp(weighting.low, weighting.high)
    number = (samples if samples is not None else torch.arange(len(clipped), device=clipped.device)[:, None]).expand_as(
        supervised
    )
    pooled = _pool_within_samples(clipped, supervised, number) if weighting.form == "paper" else _pool_flat(clipped)
    pooled = pooled * supervised
    if weighting.normalisation == "global":
        return pooled
    if weighting.normalisation == "rank":
        # Reference: over the micro-batch, so a sample of low relevance (or a short one) gets a smaller share.
        total = pooled.sum() + (RELEASED_EPSILON if weighting.form == "released" else 0.0)
    else:
        sums = pooled.new_zeros(number.numel() + len(number)).index_add(0, number.flatten(), pooled.flatten())
        total = sums[number]
    return pooled / torch.where(total > 0, total, torch.ones_like(total))


def _pool_within_samples(values: Tensor, supervised: Tensor, number: Tensor) -> Tensor:
    """Mean of each label token and its neighbours among the label tokens of the same sample, [B, T]."""
    sample = number[supervised]  # (N,) of each label token, in order
    flat = values[supervised]  # (N,)
    total, count = flat.clone(), torch.ones_like(flat)
    same = (sample[1:] == sample[:-1]).to(flat.dtype)
    total[1:] += flat[:-1] * same
    total[:-1] += flat[1:] * same
    count[1:] += same
    count[:-1] += same
    pooled = torch.zeros_like(values)
    pooled[supervised] = total / count
    return pooled


def _pool_flat(values: Tensor) -> Tensor:
    """Reference: the window runs over the flattened batch, across samples and over unsupervised slots."""
    pooled = avg_pool1d(values.reshape(1, 1, -1), WINDOW, stride=1, padding=WINDOW // 2, count_include_pad=False)
    return pooled.view_as(values)
