"""The blind pass: dropping image tokens equals masking them, in every family; the ragged corner cases."""

import math

import pytest
import torch

from dpa.blind import blind_label_scores
from dpa.scores import LabelScores, label_scores, softcap_of
from tests.conftest import FAMILIES, tiny_llm

V, H = 97, 32


def batch(seed: int = 0, *, image_at: int = 1, lengths=(14, 11, 9)):
    """Rows of BOS, five image tokens (from `image_at`), text, padding: (embeddings, attention_mask, image_mask, labels)."""
    torch.manual_seed(seed)
    width = max(lengths)
    attention = torch.tensor([[1] * n + [0] * (width - n) for n in lengths])
    image = torch.zeros_like(attention, dtype=torch.bool)
    image[:, image_at : image_at + 5] = True
    labels = torch.randint(3, V, attention.shape)
    labels[(attention == 0) | image] = -100
    labels[:, :image_at] = -100
    return torch.randn(*attention.shape, H) * 0.5, attention, image, labels


def masked_scores(model, embeds, attention, image, labels, scored):
    """The slow way: the whole sequence with image tokens masked in attention, all logits."""
    with torch.no_grad():
        logits = model(
            inputs_embeds=embeds,
            attention_mask=attention * ~image,
            position_ids=torch.arange(embeds.shape[1])[None].expand(len(embeds), -1),
            use_cache=False,
        ).logits
    return logits[:, :-1][scored].float().log_softmax(-1).gather(-1, labels[:, 1:][scored].clamp(min=0)[:, None])[:, 0]


def blind(model, embeds, attention, image, labels, scored, form):
    targets = labels[:, 1:][scored].clamp(min=0)
    seen = LabelScores(torch.zeros(len(targets)), torch.zeros(len(targets)))

    def score(hidden, wanted):
        return label_scores(hidden, model.lm_head.weight, wanted, softcap=softcap_of(model.config))

    return blind_label_scores(
        model.model,
        score,
        lambda places: embeds.flatten(0, 1)[places],
        attention.bool(),
        image,
        scored,
        targets,
        seen,
        form=form,
        vocab_size=V,
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("image_at", [1, 4])
def test_dropping_equals_masking(family, image_at):
    model = tiny_llm(family)
    embeds, attention, image, labels = batch(image_at=image_at)
    scored = labels[:, 1:] != -100
    ours = blind(model, embeds, attention, image, labels, scored, "released")
    slow = masked_scores(model, embeds, attention, image, labels, scored)
    assert (ours.log_p - slow).abs().max() < 1e-5
    # the test can fail: with the text moved together, the same labels at the same slots score otherwise
    text = (attention * ~image).bool()
    order = torch.sort((~text).int(), dim=1, stable=True).indices[:, : int(text.sum(1).max())]
    place = torch.zeros_like(labels).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order).contiguous())
    with torch.no_grad():
        moved = model(
            inputs_embeds=embeds.gather(1, order[..., None].expand(-1, -1, H)),
            attention_mask=(attention * ~image).gather(1, order),
            use_cache=False,
        ).logits
    rows, slots = (scored & ~image[:, :-1]).nonzero(as_tuple=True)
    wrong = moved[rows, place[rows, slots]].float().log_softmax(-1).gather(-1, labels[rows, slots + 1][:, None])[:, 0]
    grid = torch.zeros(scored.shape)
    grid[scored] = slow
    assert (wrong - grid[rows, slots]).abs().max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_the_token_after_the_image_is_predicted_from_the_text_before_it(family):
    model = tiny_llm(family)
    embeds, attention, image, labels = batch(image_at=2)
    scored = torch.zeros_like(labels[:, 1:], dtype=torch.bool)
    scored[:, 6] = True  # position 6 is the last image token; it predicts position 7, the first text after the image
    ours = blind(model, embeds, attention, image, labels, scored, "paper")
    with torch.no_grad():
        text = model(inputs_embeds=embeds[:, :2], use_cache=False).logits[:, -1].log_softmax(-1)
    assert torch.allclose(ours.log_p, text.gather(-1, labels[:, 7, None])[:, 0], atol=1e-5)


def test_without_any_text_before_it_the_label_is_uniform():
    model = tiny_llm("qwen2")
    embeds, attention, image, labels = batch(image_at=0)
    scored = torch.zeros_like(labels[:, 1:], dtype=torch.bool)
    scored[:, 4] = True
    for form in ("paper", "released"):
        scores = blind(model, embeds, attention, image, labels, scored, form)
        assert scores.log_p.tolist() == pytest.approx([-math.log(V)] * 3)
        assert torch.isfinite(scores.logit).all()


def test_neighbouring_rows_stay_apart():
    """A row alone and the same row beside longer ones get the same scores."""
    model = tiny_llm("llama")
    embeds, attention, image, labels = batch()
    scored = labels[:, 1:] != -100
    together = blind(model, embeds, attention, image, labels, scored, "paper").log_p
    n = int(scored[0].sum())
    alone = blind(model, embeds[:1], attention[:1], image[:1], labels[:1], scored[:1], "paper").log_p
    assert torch.allclose(together[:n], alone, atol=1e-5)


def test_nothing_scored_is_nothing():
    model = tiny_llm("qwen2")
    embeds, attention, image, labels = batch()
    assert (
        len(
            blind(
                model, embeds, attention, image, labels, torch.zeros_like(labels[:, 1:], dtype=torch.bool), "paper"
            ).log_p
        )
        == 0
    )
