"""Weights against the slow restatement of the equations, and against values worked out by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpa.methods import CAL, CMO, Weighting
from dpa.weighting import scored_slots, weights
from tests import oracle


@st.composite
def grids(draw):
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    relevance = draw(
        st.lists(st.lists(st.floats(-1, 1, width=32), min_size=width, max_size=width), min_size=rows, max_size=rows)
    )
    supervised = draw(st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=rows, max_size=rows))
    low = draw(st.sampled_from((0.0, 0.01, 0.05, 0.25)))
    return relevance, supervised, low, low + draw(st.floats(0.01, 0.6))


@settings(max_examples=200, deadline=None)
@given(grids(), st.sampled_from(("paper", "released")), st.sampled_from((None, "sample", "rank", "global")))
def test_weights_equal_the_loops(grid, form, normalise):
    relevance, supervised, low, high = grid
    rule = Weighting("cmo", low, high, form=form, normalise=normalise)
    ours = weights(torch.tensor(relevance), torch.tensor(supervised), rule)
    function = oracle.paper_weights if form == "paper" else oracle.released_weights
    loops = function(relevance, supervised, low, high, rule.normalisation)
    torch.testing.assert_close(ours, torch.tensor(loops, dtype=torch.float32), atol=2e-6, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(grids(), st.sampled_from(("sample", "rank", "global")))
def test_samples_behind_one_another_in_a_row_weigh_as_in_rows_of_their_own(grid, normalise):
    relevance, supervised, low, high = grid
    rule = Weighting("cmo", low, high, normalise=normalise)
    grid_of = torch.tensor(relevance), torch.tensor(supervised)
    apart = weights(*grid_of, rule)
    numbers = torch.arange(len(relevance)).repeat_interleave(len(relevance[0]))[None]
    packed = weights(grid_of[0].reshape(1, -1), grid_of[1].reshape(1, -1), rule, numbers)
    torch.testing.assert_close(packed.view_as(apart), apart, atol=1e-6, rtol=1e-5)


def test_each_form_has_its_normalisation():
    assert Weighting("cmo").normalisation == "sample" and Weighting("cmo", form="released").normalisation == "rank"
    assert Weighting("cmo", normalise="global").normalisation == "global"


@settings(max_examples=100, deadline=None)
@given(grids())
def test_each_sample_with_labels_weighs_one_in_the_paper_form(grid):
    relevance, supervised, low, high = grid
    low = max(low, 0.01)
    ours = weights(
        torch.tensor(relevance), torch.tensor(supervised), Weighting("cmo", low, max(high, low), form="paper")
    )
    for total, marks in zip(ours.sum(1).tolist(), supervised, strict=True):
        assert total == pytest.approx(1.0 if any(marks) else 0.0, abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(grids())
def test_unscored_slots_do_not_matter(grid):
    relevance, supervised, low, high = grid
    marks = torch.tensor(supervised)
    for form in ("paper", "released"):
        rule = Weighting("cmo", low, high, form=form)
        read = scored_slots(marks, form)
        noisy = torch.where(read, torch.tensor(relevance), torch.full_like(torch.tensor(relevance), 7.0))
        assert torch.equal(weights(noisy, marks, rule), weights(torch.tensor(relevance), marks, rule))


def test_one_token_answer_by_hand():
    relevance = torch.tensor([[0.0, 0.5, 0.0]])
    supervised = torch.tensor([[False, True, False]])
    # paper: the only label token of its sample carries all the weight
    assert weights(relevance, supervised, CMO).tolist() == [[0.0, 1.0, 0.0]]
    # released: neighbours clipped to 0.05 pull 0.5 down to 0.2 before normalising; seen beside a second sample at 0.05
    both = torch.tensor([[0.0, 0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    marks = torch.tensor([[False, True, False, False, False], [False, False, False, True, False]])
    released = weights(both, marks, Weighting("cmo", 0.05, 0.5, form="released"))
    assert released[0, 1] / released[1, 3] == pytest.approx(0.2 / 0.05, rel=1e-4)


def test_a_sample_without_relevance_is_weighted_evenly():
    supervised = torch.tensor([[False, True, True, True, True]])
    assert torch.allclose(weights(torch.zeros(1, 5), supervised, CMO)[0, 1:], torch.full((4,), 0.25))
    assert torch.allclose(weights(torch.zeros(1, 5), supervised, CAL)[0, 1:], torch.full((4,), 0.25))


def test_weights_carry_no_gradient():
    relevance = torch.rand(2, 5, requires_grad=True)
    assert not weights(relevance, torch.ones(2, 5, dtype=torch.bool), CMO).requires_grad


@pytest.mark.parametrize(
    "bad", [{"rule": "cosmos"}, {"form": "draft"}, {"normalise": "world"}, {"low": 0.9, "high": 0.1}]
)
def test_a_wrong_rule_is_named(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        Weighting(**({"rule": "cmo"} | bad))
