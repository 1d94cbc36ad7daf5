"""A packed row gives each sequence the scores that it has alone: layout, decoder, whole batches under every rule."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpa.data import Collator
from dpa.loss import batch_loss, num_items
from dpa.methods import CAL, CMO, NONE, Weighting
from dpa.packing import PACKING, arrange, carries_state, decode, packs, sequence_ids
from tests.conftest import FAMILIES, tiny_llm

LENGTHS = [7, 3, 2, 6, 1, 5]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.booleans())
def test_sequences_lie_apart_within_the_grid(lengths, flat):
    rows = arrange(lengths, flat=flat)
    places = rows.places(lengths)
    assert len(set(places.tolist())) == sum(lengths)
    assert max(lengths) <= rows.width <= (sum(lengths) if flat else max(256, *lengths))
    assert int(places.max()) < rows.num_rows * rows.width
    for i, start in enumerate(torch.tensor([0, *lengths]).cumsum(0)[:-1].tolist()):
        own = places[start : start + lengths[i]]
        assert own.tolist() == list(range(int(own[0]), int(own[0]) + lengths[i]))
        assert len(set((own // rows.width).tolist())) == 1
    assert not flat or rows.num_rows == 1
    assert rows.num_rows * rows.width <= len(lengths) * max(lengths)  # never more than with padding


def test_sequence_ids_are_told_by_positions():
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]])
    assert sequence_ids(positions).tolist() == [[0, 0, 0, 1, 1], [2, 2, 3, 3, 3]]


def jumping(lengths, gap=9):
    """Positions of sequences whose second token follows a gap, as where an image stood."""
    return torch.cat([torch.tensor([0, *range(1 + gap, gap + n)]) for n in lengths])


def alone(model, embeds, positions, lengths):
    """Each sequence in a full-length pass of its own, the gap masked in attention."""
    results, start = [], 0
    for n in lengths:
        own, place = embeds[start : start + n], positions[start : start + n]
        width = int(place.max()) + 1
        full = torch.randn(1, width, embeds.shape[1])  # what stands in the gap must not matter
        full[0, place] = own
        mask = torch.zeros(1, width, dtype=torch.long)
        mask[0, place] = 1
        results.append(
            model.model(inputs_embeds=full, attention_mask=mask, use_cache=False).last_hidden_state[0, place]
        )
        start += n
    return torch.cat(results)


@pytest.mark.parametrize("family", [*FAMILIES, "gemma3_text"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("lengths", [LENGTHS, [4], [5, 5]], ids=str)
def test_a_packed_sequence_is_computed_as_if_alone(family, attention, lengths):
    if (family, attention) == ("gemma2", "sdpa"):
        pytest.skip("transformers has no sdpa for Gemma-2, whose scores are capped")
    model = tiny_llm(family)
    model.set_attn_implementation(attention)
    torch.manual_seed(1)
    embeds, positions = torch.randn(sum(lengths), 32), jumping(lengths)
    with torch.no_grad():
        packed = decode(model.model, embeds, positions, lengths)
        expected = alone(model, embeds, positions, lengths)
        together = model.model(inputs_embeds=embeds[None], position_ids=positions[None]).last_hidden_state[0]
    torch.testing.assert_close(packed, expected, atol=2e-5, rtol=1e-4)
    if len(lengths) > 1:
        assert (together - expected).abs().max() > 1e-2  # attention across sequences would show


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "mistral"])
@pytest.mark.parametrize("lengths", [LENGTHS, [6]], ids=str)
def test_a_sliding_window_counts_positions_not_tokens_present(family, lengths):
    """With a window shorter than the gap, a token does not see what stands before it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model = tiny_llm("gemma2" if family == "mistral" else family)
    if family == "mistral":
        fields = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = AutoConfig.for_model("mistral", vocab_size=97, num_key_value_heads=2, sliding_window=4, **fields)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.config.sliding_window = 4
    for layer in model.model.layers:
        if getattr(layer.self_attn, "sliding_window", None):
            layer.self_attn.sliding_window = 4
    torch.manual_seed(1)
    embeds, positions = torch.randn(sum(lengths), 32), jumping(lengths)
    with torch.no_grad():
        packed = decode(model.model, embeds, positions, lengths)
        expected = alone(model, embeds, positions, lengths)
        wide = alone(model, embeds, jumping(lengths, gap=0), lengths)
    torch.testing.assert_close(packed, expected, atol=2e-5, rtol=1e-4)
    assert (wide - expected).abs().max() > 1e-3


def test_flash_attention_gets_the_sequences_end_to_end(monkeypatch):
    """The kernel is not here: one that reads what it would be handed stands in."""
    from torch.nn.functional import scaled_dot_product_attention as sdpa
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    handed = []

    def varlen(module, query, key, value, mask, scaling=None, cu_seq_lens_q=None, max_length_q=None, **rest):
        assert mask is None and rest["cu_seq_lens_k"] is cu_seq_lens_q
        handed.append(cu_seq_lens_q.tolist())
        groups = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(groups, 1) for t in (key, value))
        ends = cu_seq_lens_q.tolist()
        parts = [
            sdpa(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], is_causal=True, scale=scaling)
            for a, b in pairwise(ends)
        ]
        return torch.cat(parts, 2).transpose(1, 2), None

    model = tiny_llm("llama")
    torch.manual_seed(1)
    embeds, positions = torch.randn(sum(LENGTHS), 32), jumping(LENGTHS)
    with torch.no_grad():
        expected = decode(model.model, embeds, positions, LENGTHS)
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", varlen)
        model.config._attn_implementation = "flash_attention_2"
        packed = decode(model.model, embeds, positions, LENGTHS)
    torch.testing.assert_close(packed, expected, atol=1e-5, rtol=1e-4)
    assert handed[0] == [0, 7, 10, 12, 18, 19, 24]


def test_keys_hide_tokens_from_all():
    model = tiny_llm("qwen2")
    torch.manual_seed(1)
    embeds, positions = torch.randn(sum(LENGTHS), 32), jumping(LENGTHS)
    keys = torch.ones(sum(LENGTHS), dtype=torch.bool)
    keys[[2, 9, 17]] = False
    with torch.no_grad():
        before = decode(model.model, embeds, positions, LENGTHS, keys)
        embeds[[2, 9, 17]] += 1
        after = decode(model.model, embeds, positions, LENGTHS, keys)
    changed = (before - after).abs().amax(1) > 1e-6
    assert changed.nonzero()[:, 0].tolist() == [2, 9, 17]


def llava_batches(tokenizer, seed=0, sizes=((9, True), (4, False), (6, True), (3, False), (12, True))):
    """(a LLaVA model, the samples padded, the same packed)."""
    from dpa.model import compose
    from tests.conftest import tiny_tower

    model = compose(tiny_llm("qwen2", vocab_size=len(tokenizer), seed=seed), tiny_tower(), tokenizer)
    image, generator = model.config.image_token_id, torch.Generator().manual_seed(seed)
    samples = []
    for text, with_picture in sizes:
        ids = torch.randint(20, 90, (1 + 9 * with_picture + text,), generator=generator)
        labels = ids.clone()
        labels[: 1 + 9 * with_picture + text // 3] = -100
        if with_picture:
            ids[1:10] = image
        sample = {"input_ids": ids, "labels": labels}
        if with_picture:
            sample["pixel_values"] = torch.randn(3, 24, 24, generator=generator)
        samples.append(sample)
    return model, Collator(0)(samples), Collator(0, packed=True)(samples)


@pytest.mark.parametrize(
    "rule",
    [NONE, CMO, CAL, Weighting("cmo", 0.05, 0.5, normalise="rank"), Weighting("cmo", 0.05, 0.5, normalise="global")],
    ids=lambda r: f"{r.rule}-{r.normalisation}",
)
def test_a_packed_batch_has_the_loss_and_gradient_of_the_padded_one(lab_tokenizer, rule):
    model, padded, packed = llava_batches(lab_tokenizer)
    assert packed["input_ids"].shape[0] < padded["input_ids"].shape[0]
    results = []
    for batch in (padded, packed):
        model.zero_grad()
        loss = batch_loss(model, batch, rule)
        loss.mean.backward()
        results.append((loss, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (one, gradients), (other, packed_gradients) = results
    torch.testing.assert_close(one.mean, other.mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(one.relevance, other.relevance, atol=1e-6, rtol=1e-4)
    assert num_items(padded, rule) == num_items(packed, rule)
    for a, b in zip(gradients, packed_gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(2, 14), st.booleans()), min_size=1, max_size=6), st.integers(0, 9))
def test_any_mixture_packs(lab_tokenizer, sizes, seed):
    model, padded, packed = llava_batches(lab_tokenizer, seed, sizes)
    with torch.no_grad():
        losses = [batch_loss(model, batch, CMO).mean for batch in (padded, packed)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    assert int((packed["labels"] != -100).sum()) == int((padded["labels"][:, 1:] != -100).sum())


@pytest.mark.parametrize("family", PACKING)
def test_families_that_are_packed_keep_their_samples_apart(family):
    model = tiny_llm(family).train()
    generator = torch.Generator().manual_seed(0)
    samples = [torch.randint(3, 97, (n,), generator=generator) for n in (11, 4, 6, 3, 9, 5)]
    batches = [Collator(0, packed=p)([{"input_ids": s, "labels": s} for s in samples]) for p in (False, True)]
    assert packs(model.config) and len(batches[1]["labels"]) < len(batches[0]["labels"])
    with torch.no_grad():
        padded, packed = (batch_loss(model, batch, NONE).mean for batch in batches)
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=1e-5)


def test_other_families_are_not_packed():
    """LFM2 carries state from sample to sample; GPT-OSS does not tell its masks the positions."""
    from transformers import AutoConfig

    recurrent = AutoConfig.for_model("lfm2", num_hidden_layers=2, layer_types=["conv", "full_attention"])
    masked = AutoConfig.for_model("gpt_oss")
    assert not packs(recurrent) and not packs(masked)
    assert carries_state(recurrent) and not carries_state(masked)
    assert carries_state(AutoConfig.for_model("falcon_h1")) and carries_state(AutoConfig.for_model("qwen3_next"))
    assert not any(carries_state(tiny_llm(family).config) for family in PACKING)


def test_text_alone_costs_no_blind_pass(lab_tokenizer, monkeypatch):
    """Where no sample has an image, seen and blind are one, and nothing is computed twice."""
    import dpa.blind

    model, padded, _ = llava_batches(lab_tokenizer, sizes=((5, False), (8, False)))
    monkeypatch.setattr(dpa.blind, "decode", lambda *a: pytest.fail("a pass that nothing needs"))
    loss = batch_loss(model, padded, CMO)
    assert float(loss.relevance) == 0.0 and float(loss.at_low) == 1.0
