"""Sequences of unlike length in few rows, without the padding: who lies where, and a decoder run over them.

A packed row holds several sequences one after the other, each with positions of its own; none attends to another. So the
scores of a sequence are those that it has alone (to rounding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

WIDTH = 256  # tokens: attention over rows of so many costs little beside the matrices, also in small LLMs
WORTH = 0.1  # share of the places that rows must save to be shared
PACKING = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "phi3", "olmo2", "smollm3")
ATTENTION = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Rows:
    """Where sequences lie: sequence i starts at `offsets[i]` of row `rows[i]`, in a grid of `num_rows` x `width`."""

    rows: list[int]
    offsets: list[int]
    num_rows: int
    width: int

    @property
    def is_packed(self) -> bool:
        """Whether some row holds more than one sequence."""
        return self.num_rows < len(self.rows)

    def places(self, lengths: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Index in the flattened grid of each token of the sequences, one after the other: [sum of lengths]."""
        starts = [row * self.width + offset for row, offset in zip(self.rows, self.offsets, strict=True)]
        counts = torch.tensor(lengths, device=device)
        first = counts.cumsum(0) - counts
        shift = torch.tensor(starts, device=device) - first
        return torch.arange(sum(lengths), device=device) + shift.repeat_interleave(counts)


def arrange(lengths: Sequence[int], *, flat: bool = False) -> Rows:
    """Put sequences into rows, long ones first, each into the first row with room left; rows are as long as the longest
    sequence, or a multiple of it up to `WIDTH` where that leaves fewer empty places. Each keeps a row of its own where
    sharing rows would save less than `WORTH` of the places: masks of packed rows cost too.

    flat: all in one row, for kernels that take sequences end to end (flash attention).
    """
    if flat:
        ends = list(accumulate(lengths))
        return Rows([0] * len(lengths), [0, *ends[:-1]], 1, ends[-1])
    longest = max(lengths, default=0)
    widths = range(longest, max(longest, min(WIDTH, sum(lengths))) + 1, max(longest, 1))
    best = min((_fit(lengths, width) for width in widths), key=lambda rows: rows.num_rows * rows.width)
    apart = _apart(lengths)
    return best if best.num_rows * best.width <= (1 - WORTH) * len(lengths) * longest else apart


def _apart(lengths: Sequence[int]) -> Rows:
    return Rows(list(range(len(lengths))), [0] * len(lengths), len(lengths), max(lengths, default=0))


def _fit(lengths: Sequence[int], width: int) -> Rows:
    used: list[int] = []
    rows, offsets = [0] * len(lengths), [0] * len(lengths)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, taken in enumerate(used) if taken + lengths[i] <= width), len(used))
        if row == len(used):
            used.append(0)
        rows[i], offsets[i] = row, used[row]
        used[row] += lengths[i]
    return Rows(rows, offsets, len(used), max(used, default=0))


def packs(config: Any) -> bool:
    """Whether an LLM keeps the sequences of a packed row apart: tried family by family (`tests/test_packing.py`). Others
    carry state from one to the next (recurrent ones), or do not tell their masks the positions.
    """
    return config.model_type in PACKING


def carries_state(config: Any) -> bool:
    """Whether an LLM has layers other than attention: leaving tokens out is not masking them there."""
    return bool(set(getattr(config, "layer_types", None) or ()) - ATTENTION) or hasattr(config, "mamba_d_state")


def sequence_ids(positions: Tensor) -> Tensor:
    """Number of the sequence that each place of a packed batch [R, W] belongs to, in row-major order; padding has its own.

    positions [R, W]: from 0 up within each sequence.
    """
    return (positions == 0).flatten().cumsum(0).view_as(positions) - 1


def decode(
    decoder: torch.nn.Module, embeds: Tensor, positions: Tensor, lengths: Sequence[int], keys: Tensor | None = None
) -> Tensor:
    """Last hidden states [T, H] of sequences that follow one another in `embeds` [T, H], T = sum of `lengths`.

    decoder: a text model of transformers. positions [T]: of each token in its sequence, growing, gaps allowed: what
    stood in a gap is as if masked, also for sliding windows (which flash attention counts in tokens present). keys [T]
    bool: tokens that others, and they themselves, may attend to; None: all.
    """
    device, config = embeds.device, decoder.config
    is_flash = "flash" in (config._attn_implementation or "")
    rows = arrange(lengths, flat=is_flash) if is_flash or packs(config) else _apart(lengths)
    place = rows.places(lengths, device)
    shape = (rows.num_rows, rows.width)

    def grid(values: Tensor, filler: float) -> Tensor:
        full = values.new_full((rows.num_rows * rows.width, *values.shape[1:]), filler)
        return full.index_copy(0, place, values).view(*shape, *values.shape[1:])

    position = grid(positions, 0)
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    options: dict = {}
    if is_flash:
        ends = torch.tensor([0, *lengths], device=device, dtype=torch.int32).cumsum(0, dtype=torch.int32)
        options = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": max(lengths)}
        options |= {"max_length_k": max(lengths), "attention_mask": None}
    elif not rows.is_packed and (window is None or int(position.max()) < window):
        # 2-D always: without it a jump in positions reads as packing
        options["attention_mask"] = grid(torch.ones_like(positions) if keys is None else keys.long(), 0)
    else:
        number = torch.arange(len(lengths), device=device).repeat_interleave(torch.tensor(lengths, device=device))
        options["attention_mask"] = _masks(
            grid(number, -1),
            position,
            None if keys is None else grid(keys.long(), 0).bool(),
            config,
            window,
            embeds.dtype,
        )
    hidden = decoder(inputs_embeds=grid(embeds, 0.0), position_ids=position, use_cache=False, **options)
    return hidden.last_hidden_state.flatten(0, 1)[place]


def _masks(
    number: Tensor, position: Tensor, keys: Tensor | None, config: Any, window: int | None, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """Attention masks [R, 1, W, W] of packed rows; by kind of layer where some see a window of positions only."""
    same = number[:, :, None] == number[:, None, :]
    allowed = same & torch.ones_like(same[0]).tril()
    if keys is not None:
        allowed &= keys[:, None, :]
    allowed |= (number == -1)[:, :, None] & torch.eye(number.shape[1], dtype=torch.bool, device=number.device)

    def form(mask: Tensor) -> Tensor:
        mask = mask[:, None]
        if config._attn_implementation != "eager":
            return mask
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)

    if window is None:
        return form(allowed)
    near = form(allowed & (position[:, :, None] - position[:, None, :] < window))
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    return near if "full_attention" not in kinds else {"full_attention": form(allowed), "sliding_attention": near}
