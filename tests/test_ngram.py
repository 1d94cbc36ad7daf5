"""The n-gram bridge: probabilities that sum to one, the textbook numbers, a source it learns, the mixture."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.ngram import NGrams, mixed, share_of_llm

texts = st.lists(st.lists(st.integers(0, 4), max_size=8), max_size=8)


@settings(max_examples=60, deadline=None)
@given(texts, st.lists(st.integers(0, 4), max_size=5), st.integers(1, 4))
def test_probabilities_behind_any_history_sum_to_one(corpus, history, order):
    ngrams = NGrams(corpus, 5, order)
    total = sum(np.exp(ngrams.log_p([*history, token])[-1]) for token in range(5))
    assert total == pytest.approx(1)


def test_witten_bell_by_hand():
    """Corpus "0 1", "0 0" over two words: p(0) = (3 + 2 / 2) / (4 + 2), p(1 | 0) by the bigrams 0 1 and 0 0."""
    ngrams = NGrams([[0, 1], [0, 0]], 2, order=2)
    p0 = (3 + 2 * 0.5) / (4 + 2)
    p1_after_0 = (1 + 2 * (1 - p0)) / (2 + 2)
    start = (2 + 1 * p0) / (2 + 1)
    np.testing.assert_allclose(ngrams.log_p([0, 1]), np.log([start, p1_after_0]))
    assert NGrams([], 4).log_p([3]) == pytest.approx(np.log(0.25))
    assert len(NGrams([], 4).log_p([])) == 0


def test_it_comes_near_the_entropy_of_a_bigram_source():
    rng = np.random.default_rng(0)
    steps = rng.dirichlet(np.full(6, 0.4), size=6)
    cumulative, state, draws = steps.cumsum(1), 0, []
    for u in rng.random(60_000):
        state = min(int((u > cumulative[state]).sum()), 5)
        draws.append(state)
    values, vectors = np.linalg.eig(steps.T)
    stationary = np.real(vectors[:, np.argmax(np.real(values))])
    stationary /= stationary.sum()
    entropy = -(stationary[:, None] * steps * np.log(np.maximum(steps, 1e-300))).sum()
    fitted = NGrams([draws[:50_000]], 6, order=2)
    assert -fitted.log_p(draws[50_000:]).mean() == pytest.approx(entropy, rel=0.02)
    assert -NGrams([draws[:50_000]], 6, order=1).log_p(draws[50_000:]).mean() > 1.1 * entropy


def test_the_share_is_the_one_that_fits_best():
    rng = np.random.default_rng(1)
    llm, ngram = -rng.exponential(2, 4000), -rng.exponential(1.5, 4000)
    share = share_of_llm(llm, ngram, rounds=500)
    best = mixed(llm, ngram, share).mean()
    assert 0 < share < 1
    for other in (share - 0.05, share + 0.05):
        assert mixed(llm, ngram, other).mean() < best
    assert share_of_llm(np.zeros(10), np.full(10, -50.0)) == pytest.approx(1)
    assert share_of_llm(np.empty(0), np.empty(0)) == 1
    np.testing.assert_allclose(mixed(llm, ngram, 1.0), llm)
