"""A bridge in place of a proxy: the base LLM's probabilities mixed with an n-gram model of the captions.

It costs a count instead of a training, and tells from below what a proxy would save: it knows the set's phrases, not what
they mean. Interpolated n-grams after Witten and Bell (1991): p(w | h) = (c(hw) + t(h) p(w | h')) / (c(h) + t(h)), with t(h)
the number of different tokens seen behind h, and the uniform distribution at the bottom.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np

ORDER = 3


class NGrams:
    """Interpolated n-gram probabilities over token ids."""

    def __init__(self, texts: Iterable[Iterable[int]], vocab_size: int, order: int = ORDER) -> None:
        """texts: token ids of each text, without its start token."""
        self.order, self.vocab_size = order, vocab_size
        self.counts: list[dict[tuple[int, ...], Counter[int]]] = [defaultdict(Counter) for _ in range(order)]
        for ids in texts:
            for history, token in self._events(ids):
                for length in range(order):
                    self.counts[length][history[len(history) - length :]][token] += 1
        self.totals = [{h: sum(c.values()) for h, c in level.items()} for level in self.counts]

    def log_p(self, ids: Iterable[int]) -> np.ndarray:
        """Natural log-probability of each token of a text given those before it, [N] float64."""
        events = list(self._events(ids))
        found = np.empty(len(events))
        for place, (history, token) in enumerate(events):
            p = 1.0 / self.vocab_size
            for length in range(self.order):
                own = history[len(history) - length :]
                behind = self.counts[length].get(own)
                if behind is None:
                    break
                kinds = len(behind)
                p = (behind.get(token, 0) + kinds * p) / (self.totals[length][own] + kinds)
            found[place] = np.log(p)
        return found

    def _events(self, ids: Iterable[int]) -> Iterable[tuple[tuple[int, ...], int]]:
        padded = [-1] * (self.order - 1) + [int(token) for token in ids]  # -1 stands before a text
        for place in range(self.order - 1, len(padded)):
            yield tuple(padded[place - self.order + 1 : place]), padded[place]


def share_of_llm(llm: np.ndarray, ngram: np.ndarray, rounds: int = 50) -> float:
    """The weight of the LLM in the mixture that makes held-out tokens most probable (EM); log-probabilities [N] each."""
    if not len(llm):
        return 1.0
    share, ratio = 0.5, np.exp(np.clip(ngram.astype(np.float64) - llm, -500, 500))
    for _ in range(rounds):
        share = float(np.mean(share / (share + (1 - share) * ratio)))
    return share


def mixed(llm: np.ndarray, ngram: np.ndarray, share: float) -> np.ndarray:
    """log(share p_llm + (1 - share) p_ngram), [N]."""
    with np.errstate(divide="ignore"):
        return np.logaddexp(np.log(share) + llm, np.log1p(-share) + ngram)
