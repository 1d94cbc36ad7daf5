"""The loss of a batch against a plain formulation, and golden parity on files that the test makes itself."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpa import parity
from dpa.loss import batch_loss, num_items
from dpa.methods import CAL, CMO, NONE, Weighting
from tests import oracle
from tests.conftest import FAMILIES, tiny_llm
from tests.test_blind import batch


def plain_loss(model, embeds, attention, image, labels, weighting):
    """Full-length passes, all logits, loops for the weights: mean loss with gradient (supervised slots start after text)."""
    positions = torch.arange(embeds.shape[1])[None].expand(len(embeds), -1)
    logits = (
        model(inputs_embeds=embeds, attention_mask=attention, position_ids=positions, use_cache=False)
        .logits[:, :-1]
        .float()
    )
    targets = labels[:, 1:]
    supervised = targets != -100
    log_p = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    if weighting.rule == "none":
        return -log_p[supervised].mean()
    with torch.no_grad():
        blind = (
            model(inputs_embeds=embeds, attention_mask=attention * ~image, position_ids=positions, use_cache=False)
            .logits[:, :-1]
            .float()
        )
        raw, raw_blind = (x.gather(-1, targets.clamp(min=0)[..., None])[..., 0] for x in (logits, blind))
        log_q = blind.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        relevance = log_p.exp() - log_q.exp() if weighting.rule == "cmo" else raw - raw_blind
    loops = oracle.paper_weights if weighting.form == "paper" else oracle.released_weights
    weight = torch.tensor(loops(relevance.tolist(), supervised.tolist(), weighting.low, weighting.high))
    total = -(weight * torch.where(supervised, log_p, torch.zeros_like(log_p))).sum()
    return total / (int(supervised.any(1).sum()) if weighting.form == "paper" else 1)


def released(rule: Weighting) -> Weighting:
    return Weighting(rule.rule, rule.low, rule.high, form="released")


@pytest.mark.parametrize("family", ("qwen2", "llama"))
@pytest.mark.parametrize(
    "rule",
    [NONE, CMO, CAL, released(CMO), released(CAL), Weighting("cmo", 0.0, 1.0, form="released")],
    ids=lambda r: f"{r.rule}-{r.form}-{r.low}",
)
def test_loss_and_gradient_equal_the_plain_formulation(family, rule):
    model = tiny_llm(family, seed=5)
    embeds, attention, image, labels = batch(seed=7)
    if rule.form == "paper":
        labels[:, 6] = -100  # the first text token's blind prediction differs by form; test_blind covers it
    ours_in, plain_in = embeds.clone().requires_grad_(), embeds.clone().requires_grad_()
    ours = batch_loss(
        model, {"inputs_embeds": ours_in, "attention_mask": attention, "image_mask": image, "labels": labels}, rule
    ).mean
    plain = plain_loss(model, plain_in, attention, image, labels, rule)
    ours.backward()
    plain.backward()
    assert ours.item() == pytest.approx(plain.item(), rel=2e-6)
    torch.testing.assert_close(ours_in.grad, plain_in.grad, atol=1e-6, rtol=1e-4)


def test_rules_differ():
    """Were the weights ignored, all rules would give one loss."""
    model = tiny_llm("qwen2", seed=5)
    embeds, attention, image, labels = batch(seed=7)
    inputs = {"inputs_embeds": embeds, "attention_mask": attention, "image_mask": image, "labels": labels}
    losses = {batch_loss(model, inputs, rule).mean.item() for rule in (NONE, CMO, CAL, released(CMO))}
    assert len({round(loss, 4) for loss in losses}) == 4


def test_what_a_loss_is_divided_by():
    labels = torch.tensor([[1, 2, -100, 3], [5, -100, -100, -100]])
    assert num_items({"labels": labels}, NONE) == 2  # the first token of a row has nothing that predicts it
    assert num_items({"labels": labels}, CMO) == 1
    assert num_items({"labels": labels}, released(CMO)) == 1


def golden_file(path, rule: Weighting, family: str = "qwen2"):
    model = tiny_llm(family, seed=11)
    embeds, attention, image, labels = batch(seed=13)
    embeds.requires_grad_()
    loss = plain_loss(model, embeds, attention, image, labels, rule)
    loss.backward()
    tensors = {f"state/{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    tensors |= {
        "inputs_embeds": embeds.detach(),
        "attention_mask": attention.to(torch.uint8),
        "image_mask": image.to(torch.uint8),
        "labels": labels,
    }
    tensors |= {"loss": loss.detach().reshape(1), "grad_inputs_embeds": embeds.grad}
    prefix = "logit" if rule.rule == "cal" else "delta"
    keys = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "tie_word_embeddings",
    ]
    config = {k: getattr(model.config, k) for k in keys if hasattr(model.config, k)}
    metadata = {
        "family": family,
        "config": json.dumps(config),
        f"{prefix}_min": str(rule.low),
        f"{prefix}_max": str(rule.high),
    }
    save_file(tensors, path, metadata=metadata | ({"rule": "cal"} if rule.rule == "cal" else {}))
    return metadata


@pytest.mark.parametrize("rule", [released(CMO), released(CAL)], ids=["cmo", "cal"])
def test_parity_command_on_a_file_of_our_own_oracle(tmp_path, capsys, rule):
    file = tmp_path / "own.safetensors"
    metadata = golden_file(file, rule)
    assert parity.main([str(file)]) == 0
    assert "ok" in capsys.readouterr().out
    tensors = load_file(file)
    tensors["loss"] = tensors["loss"] * (1 + 1e-4)
    save_file(tensors, file, metadata=metadata | ({"rule": "cal"} if rule.rule == "cal" else {}))
    assert parity.main([str(file)]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_parity_names_a_broken_file(tmp_path, capsys):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not safetensors")
    partial = tmp_path / "partial.safetensors"
    save_file({"loss": torch.ones(1)}, partial)
    for file, word in (
        (broken, "not a readable"),
        (partial, "tensors missing"),
        (tmp_path / "absent.safetensors", "not a readable"),
    ):
        assert parity.main([str(file)]) == 2
        error = capsys.readouterr().err
        assert word in error and file.name in error and error.count("\n") == 1


def test_parity_with_the_released_code(shared, capsys):
    files = sorted((shared / "golden").glob("*.safetensors"))
    assert len(files) >= 5
    assert parity.main([str(file) for file in files]) == 0
    assert capsys.readouterr().out.count("ok") == len(files)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_under_every_rule(family):
    model = tiny_llm(family, seed=5).train()
    embeds, attention, image, labels = batch(seed=7)
    for rule in (NONE, CMO, CAL, released(CMO)):
        loss = batch_loss(
            model, {"inputs_embeds": embeds, "attention_mask": attention, "image_mask": image, "labels": labels}, rule
        ).mean
        loss.backward()
        assert torch.isfinite(loss) and all(
            torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None
        )
