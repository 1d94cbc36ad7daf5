"""Chunked label scores: value and gradient of the plain formulation, whatever the chunk; dtypes; what is held in memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpa import scores as scores_module
from dpa.scores import label_scores, scoring, softcap_of, with_graph_of
from tests.conftest import FAMILIES, tiny_llm


def plain(hidden, weight, labels, bias=None, softcap=None):
    logits = hidden @ weight.T
    logits = logits if bias is None else logits + bias
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0], logits.gather(-1, labels[:, None])[:, 0]


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 9),
    vocab=st.integers(2, 11),
    chunk=st.integers(1, 10),
    softcap=st.sampled_from([None, 3.0]),
    with_bias=st.booleans(),
    frozen=st.booleans(),
    tied=st.booleans(),
    seed=st.integers(0, 99),
)
def test_value_and_gradient_equal_the_plain_formulation(count, vocab, chunk, softcap, with_bias, frozen, tied, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocab, 4, generator=generator, dtype=torch.float64) * 2
    bias = torch.randn(vocab, generator=generator, dtype=torch.float64) if with_bias else None
    labels = torch.randint(0, vocab, (count,), generator=generator)
    rows = torch.randint(0, vocab, (count,), generator=generator)
    hidden = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    by = torch.rand(count, generator=generator, dtype=torch.float64)  # weights that came after the scores
    results = []
    for function in (lambda *a, **k: label_scores(*a, chunk=chunk, **k).log_p, lambda *a, **k: plain(*a, **k)[0]):
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_(not frozen)]
        leaves += [bias.clone().requires_grad_(not frozen)] if bias is not None else []
        seen = leaves[0] + leaves[1][rows] if tied else leaves[0]  # the same matrix embeds
        log_p = function(seen, leaves[1], labels, bias=leaves[2] if with_bias else None, softcap=softcap)
        (by * log_p).sum().backward()
        results.append([log_p.detach(), *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk", [2, 9])
def test_gradcheck(chunk, softcap):
    torch.manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in ((5, 4), (7, 4), (7,))
    )
    labels = torch.randint(0, 7, (5,))
    assert torch.autograd.gradcheck(
        lambda h, w, b: label_scores(h, w, labels, bias=b, softcap=softcap, chunk=chunk).log_p, (hidden, weight, bias)
    )


def test_logit_and_partition():
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(6, 4), torch.randn(9, 4), torch.randint(0, 9, (6,))
    found = label_scores(hidden, weight, labels, chunk=4)
    torch.testing.assert_close(found.logit, plain(hidden, weight, labels)[1])
    torch.testing.assert_close(found.log_partition, (hidden @ weight.T).logsumexp(-1))
    assert label_scores(hidden[:0], weight, labels[:0]).log_p.shape == (0,)


def test_bfloat16_accumulates_in_float32():
    """The error is that of bf16 products, not of a softmax in bf16; the weights' gradient over chunks likewise."""
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(64, 32), torch.randn(500, 32) * 0.3, torch.randint(0, 500, (64,))
    exact = plain(hidden.bfloat16().double(), weight.bfloat16().double(), labels)[0]
    small = [hidden.bfloat16().requires_grad_(), weight.clone().requires_grad_()]
    found = label_scores(*small, labels, chunk=10)
    assert found.log_p.dtype == torch.float32
    assert (found.log_p - exact).abs().max() < 0.03
    found.log_p.sum().backward()
    wide = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    plain(*wide, labels)[0].sum().backward()
    for one, other in zip(small, wide, strict=True):
        assert (one.grad - other.grad).norm() < 0.02 * other.grad.norm()
    assert small[1].grad.dtype == torch.float32 and small[0].grad.dtype == torch.bfloat16


def test_autocast_decides_the_precision_of_the_products():
    torch.manual_seed(0)
    hidden, weight, labels = (
        torch.randn(8, 16, requires_grad=True),
        torch.randn(50, 16, requires_grad=True),
        torch.arange(8),
    )
    with torch.autocast("cpu", torch.bfloat16):
        low = label_scores(hidden, weight, labels, chunk=3).log_p
    bf16 = label_scores(hidden.bfloat16(), weight, labels, chunk=8).log_p
    torch.testing.assert_close(low, bf16, rtol=0, atol=1e-6)
    assert (low - label_scores(hidden, weight, labels).log_p).abs().max() > 1e-4
    low.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32


@pytest.mark.parametrize("trains", [False, True])
def test_the_vocabulary_is_read_in_chunks_and_not_kept(monkeypatch, trains):
    """No tensor of the graph is as large as one chunk of logits, where there are several."""
    monkeypatch.setitem(scores_module.CHUNK, "cpu", 4 * 1000)
    sizes = []
    original = scores_module._linear

    def watched(*arguments):
        sizes.append(original(*arguments).numel())
        return original(*arguments)

    monkeypatch.setattr(scores_module, "_linear", watched)
    hidden, weight = torch.randn(11, 8, requires_grad=True), torch.randn(1000, 8, requires_grad=trains)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        label_scores(hidden, weight, torch.arange(11)).log_p.sum().backward()
    assert max(sizes) == 4000 and len(sizes) == (6 if trains else 3)
    assert max(kept) <= 8000  # lm_head itself; 11,000 logits are not


@pytest.mark.parametrize("family", [*FAMILIES, "gemma3_text"])
@pytest.mark.parametrize("tied", [False, True])
def test_in_the_forward_of_a_causal_lm(family, tied):
    """lm_head scores inside the model's forward; afterwards it is what it was. Gemma-2's cap is applied once."""
    model = tiny_llm(family, tied=tied)
    ids = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(0))
    keep = torch.zeros(2, 7, dtype=torch.bool)
    keep[0, 2:5] = keep[1, :3] = True
    labels = torch.arange(6)
    logits = model(input_ids=ids).logits
    expected = logits[keep].log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    with scoring(model, labels) as found:
        returned = model(input_ids=ids, logits_to_keep=keep).logits
    assert returned.shape == (6, 1)
    scores = with_graph_of(found[0], returned)
    torch.testing.assert_close(scores.log_p, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(model(input_ids=ids).logits, logits)
    gradients = torch.autograd.grad(scores.log_p.sum(), list(model.parameters()), allow_unused=True)
    plainly = torch.autograd.grad(expected.sum(), list(model.parameters()), allow_unused=True)
    for one, other in zip(gradients, plainly, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_lm_head_is_given_back_after_an_error():
    model = tiny_llm("llama")
    before = model.lm_head.forward
    with pytest.raises(RuntimeError), scoring(model, torch.arange(3)):
        model.lm_head(torch.randn(2, 99))
    assert model.lm_head.forward == before and "forward" not in vars(model.lm_head)


def test_what_a_forward_returns_may_be_rounded():
    """An engine's bf16 output is on the graph, and not in the value."""
    log_p = torch.tensor([-1.2345678], requires_grad=True)
    found = with_graph_of(scores_module.LabelScores(log_p * 1, log_p.detach()), (log_p * 1)[:, None].bfloat16())
    assert found.log_p.item() == pytest.approx(-1.2345678, abs=1e-7)
    found.log_p.sum().backward()
    assert log_p.grad.item() == 1.0


def test_softcap_is_applied_to_the_scores():
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[10.0], [-10.0], [0.0]])
    capped = label_scores(hidden, weight, torch.tensor([0]), softcap=2.0)
    assert capped.log_p.item() == pytest.approx(
        plain(hidden, weight, torch.tensor([0]), softcap=2.0)[0].item(), abs=1e-6
    )
    assert capped.log_p.item() != pytest.approx(label_scores(hidden, weight, torch.tensor([0])).log_p.item(), abs=1e-3)
    assert softcap_of(tiny_llm("gemma2").config) == 5.0 and softcap_of(tiny_llm("qwen2").config) is None
