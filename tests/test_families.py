"""Five families of LLMs, two towers, square and AnyRes pictures, through the three stages on tiny random models."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPVisionConfig, LlavaNextConfig, SiglipVisionConfig
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel, image_size_to_num_patches

from dpa import model as models
from dpa import processing
from dpa.errors import InputError
from dpa.lab.small import build_tokenizer
from dpa.loss import batch_loss, num_image_features
from dpa.methods import CAL, CMO, NONE
from tests.conftest import tiny_llm, tiny_tower
from tests.test_loss import plain_loss, released
from tests.test_model import Vocabulary, tiny_siglip

FAMILIES = ("qwen2", "llama", "gemma2", "qwen3", "gemma3_text")
TOWER_KINDS = {"clip": tiny_tower, "siglip": tiny_siglip}
SQUARE = [(family, "clip", False) for family in FAMILIES]
OTHERS = [
    (family, *kind) for family in ("qwen2", "gemma2") for kind in (("siglip", False), ("clip", True), ("siglip", True))
]
IMAGE = 90  # the image token of `Vocabulary`


def build(family: str, kind: str = "clip", anyres: bool = False, seed: int = 0):
    """A model in training mode whose connector's features are as large as its text embeddings, so that they matter."""
    model = models.compose(tiny_llm(family, seed=seed), TOWER_KINDS[kind](seed), Vocabulary("<image>"), anyres=anyres)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.startswith((models.PROJECTOR, models.NEWLINE)):
            torch.nn.init.normal_(parameter, std=0.3)
    return model.train()


def ragged(model, seed: int = 0) -> dict[str, torch.Tensor]:
    """Three rows of different lengths: text, a picture and text; text alone; a picture of another shape and text."""
    torch.manual_seed(seed)
    config = model.config
    anyres = hasattr(config, "image_grid_pinpoints")
    sizes = torch.tensor([[40, 30], [20, 90]])  # height, width
    tiles = [image_size_to_num_patches(size, config.image_grid_pinpoints, 24) for size in sizes] if anyres else []
    counts = [num_image_features(config, 1, size[None]) for size in sizes]
    texts = torch.randint(3, 89, (3, 9))
    rows = [
        [1, *texts[0, :2].tolist(), *[IMAGE] * counts[0], *texts[0].tolist()],
        [1, *texts[1, :6].tolist()],
        [1, *[IMAGE] * counts[1], *texts[2, :7].tolist()],
    ]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    attention = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    batch = {"input_ids": ids, "attention_mask": attention}
    batch["labels"] = ids.masked_fill((ids == IMAGE) | (attention == 0) | (torch.arange(width) < 2), -100)
    if anyres:
        assert len(set(tiles)) == 2, "the two pictures should have different numbers of tiles"
        batch["image_sizes"] = sizes
        batch["pixel_values"] = torch.randn(2, max(tiles), 3, 24, 24)
        for picture, number in zip(batch["pixel_values"], tiles, strict=True):
            picture[number:] = 0.0  # as the processor pads them
    else:
        batch["pixel_values"] = torch.randn(2, 3, 24, 24)
    return batch


def gradients(model, batch, rule):
    """(loss, gradients by name) of one batch."""
    model.zero_grad()
    loss = batch_loss(model, batch, rule).mean
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_stage_proxy(tmp_path, family):
    """One LoRA step on text; the merged proxy says what the adapter says, and the base on disk is bit for bit the same."""
    tiny_llm(family).save_pretrained(tmp_path / "base")
    before = (tmp_path / "base" / "model.safetensors").read_bytes()
    wrapped = models.lora(models.load_llm(str(tmp_path / "base"), attention="eager"), rank=4, alpha=8).train()
    batch = text_only()
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=1.0)
    first = batch_loss(wrapped, batch, NONE).mean
    for _ in range(2):  # the first step moves B alone, which starts at 0
        optimizer.zero_grad()
        batch_loss(wrapped, batch, NONE).mean.backward()
        torch.nn.utils.clip_grad_norm_(wrapped.parameters(), 0.5)
        optimizer.step()
    assert "lm_head" not in " ".join(name for name, p in wrapped.named_parameters() if p.requires_grad)
    wrapped.save_pretrained(tmp_path / "proxy")
    with torch.no_grad():
        adapted = wrapped.eval()(input_ids=batch["input_ids"]).logits
        proxy = models.load_proxy(str(tmp_path / "base"), tmp_path / "proxy", attention="eager")
        merged, plain = (llm(input_ids=batch["input_ids"]).logits for llm in (proxy, tiny_llm(family)))
    assert batch_loss(wrapped, batch, NONE).mean < first and (adapted - plain).abs().max() > 1e-2
    assert torch.allclose(adapted, merged, atol=1e-5 * adapted.abs().max())
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == before
    base = models.load_llm(str(tmp_path / "base")).state_dict()
    assert all(torch.equal(tensor, base[name]) for name, tensor in tiny_llm(family).state_dict().items())


@pytest.mark.parametrize(("family", "kind", "anyres"), SQUARE + OTHERS)
def test_stages_connector_and_instruct(family, kind, anyres):
    """CMO on a ragged batch: who has a gradient, in float32, under bfloat16 autocast and with activation checkpointing."""
    model = build(family, kind, anyres)
    batch = ragged(model)
    connector = {name for name, _ in model.named_parameters() if name.startswith((models.PROJECTOR, models.NEWLINE))}
    assert len(connector) == 4 + anyres
    runs: list[int] = []
    model.model.language_model.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    for stage, others in (("connector", set()), ("instruct", {"language_model"})):
        trained = set(models.freeze_for(model, stage))
        loss, exact = gradients(model, batch, CMO)
        assert trained == set(exact) and connector <= trained
        assert {name.split(".")[1] for name in trained - connector if name != "lm_head.weight"} == others
        for name in connector | ({"lm_head.weight"} if others else set()):
            assert exact[name].abs().sum() > 0, name
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough, inexact = gradients(model, batch, CMO)
        assert all(torch.isfinite(gradient).all() for gradient in inexact.values()) and rough != loss
        assert rough.item() == pytest.approx(loss.item(), rel=0.1)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        runs.clear()
        again, recomputed = gradients(model, batch, CMO)
        assert len(runs) == 3  # the seen pass, the blind one, and the seen one again on the way back
        model.gradient_checkpointing_disable()
        torch.testing.assert_close(again, loss, rtol=1e-6, atol=1e-6)
        assert exact.keys() == recomputed.keys()
        for name in exact:
            torch.testing.assert_close(
                recomputed[name], exact[name], rtol=1e-6, atol=1e-6 * float(exact[name].abs().max())
            )


@pytest.mark.parametrize("rule", [CMO, released(CMO), released(CAL)], ids=lambda rule: f"{rule.rule}-{rule.form}")
@pytest.mark.parametrize(
    ("family", "kind", "anyres"),
    [("qwen2", "clip", True), ("llama", "siglip", True), ("gemma3_text", "clip", True), ("qwen3", "siglip", False)],
)
def test_dropping_a_picture_equals_masking_it(family, kind, anyres, rule):
    """Loss and gradients with pictures of several sizes, against full-length passes over embeddings merged here."""
    model = build(family, kind, anyres)
    models.freeze_for(model, "connector")
    batch = ragged(model)
    image = batch["input_ids"] == IMAGE
    first = torch.nn.functional.pad(image, (1, -1)) & ~image  # its blind prediction differs by form, see test_blind
    if rule.form == "paper":
        batch["labels"][first] = -100
    loss, ours = gradients(model, batch, rule)
    model.zero_grad()
    options = {"image_sizes": batch["image_sizes"]} if anyres else {}
    features = torch.cat(list(model.get_image_features(batch["pixel_values"], **options).pooler_output))
    assert len(features) == image.sum()
    embeds = model.get_input_embeddings()(batch["input_ids"]).masked_scatter(image[..., None], features)
    plain = plain_loss(model, embeds, batch["attention_mask"], image, batch["labels"], rule)
    plain.backward()
    assert loss.item() == pytest.approx(plain.item(), rel=5e-6)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(
                ours[name], parameter.grad, rtol=1e-4, atol=1e-5 * float(parameter.grad.abs().max())
            )
    other = batch | {"pixel_values": batch["pixel_values"].flip(0)}
    assert anyres or batch_loss(model, other, rule).mean.item() != pytest.approx(loss.item(), rel=1e-3)


COMPOSED = {}


def composed(kind: str, anyres: bool):
    """(model, processor), built once."""
    if (kind, anyres) not in COMPOSED:
        tokenizer, tower = build_tokenizer(["a red ball"]), TOWER_KINDS[kind]()
        llm = tiny_llm("qwen2", vocab_size=len(tokenizer))
        COMPOSED[kind, anyres] = (
            models.compose(llm, tower, tokenizer, anyres=anyres).eval(),
            processing.build_processor(tokenizer, tower, anyres=anyres),
        )
    return COMPOSED[kind, anyres]


@pytest.mark.parametrize("kind", TOWER_KINDS)
@pytest.mark.parametrize("anyres", [False, True])
@settings(max_examples=150, deadline=None)
@given(height=st.integers(1, 3000), width=st.integers(1, 3000))
def test_image_tokens_are_as_many_as_the_models_features(kind, anyres, height, width):
    """Both counts, the processor's and the loss's, against what the model makes of a picture of that size."""
    model, processor = composed(kind, anyres)
    options, pixels = {}, torch.zeros(1, 3, 24, 24)
    if anyres:  # five tiles at most; the model takes as many as the size asks for
        options, pixels = {"image_sizes": torch.tensor([[height, width]])}, torch.zeros(1, 5, 3, 24, 24)
    with torch.no_grad():
        features = model.get_image_features(pixels, **options).pooler_output
    count = len(features[0])
    assert processing.num_image_tokens(processor, height, width) == count
    assert num_image_features(model.config, 1, options.get("image_sizes")) == count
    assert anyres or count == 9


@pytest.mark.parametrize("kind", TOWER_KINDS)
@pytest.mark.parametrize("anyres", [False, True])
@torch.no_grad()
def test_the_processors_pictures_and_tokens_fit_the_model(kind, anyres):
    """Two pictures of different shapes in one batch, through the stock processor and the model."""
    model, processor = composed(kind, anyres)
    sizes = [(100, 30), (31, 47)]  # width, height
    inputs = processor(
        images=[Image.new("RGB", size, "red") for size in sizes],
        text=["<|image_pad|>what", "<|image_pad|>a red"],
        return_tensors="pt",
        padding=True,
    )
    assert torch.isfinite(model(**inputs).logits).all()
    for row, (width, height) in zip(inputs["input_ids"], sizes, strict=True):
        assert (row == model.config.image_token_id).sum() == processing.num_image_tokens(processor, height, width)
    assert inputs["pixel_values"].dim() == (5 if anyres else 4)


@pytest.mark.parametrize(
    "tower",
    [CLIPVisionConfig(image_size=336, patch_size=14), SiglipVisionConfig(image_size=384, patch_size=14)],
    ids=["clip", "siglip"],
)
@settings(max_examples=200, deadline=None)
@given(height=st.integers(1, 6000), width=st.integers(1, 6000))
def test_image_features_of_real_towers_are_counted_right(tower, height, width):
    """27 patches a side do not fill SigLIP's 384 pixels; features of width 1 through the model's own merge."""
    size, side = tower.image_size, tower.image_size // tower.patch_size
    config = LlavaNextConfig(vision_config=tower, image_grid_pinpoints=processing.grids(size))
    tiles = image_size_to_num_patches((height, width), config.image_grid_pinpoints, size)
    merged, lengths = LlavaNextModel.pack_image_features(
        SimpleNamespace(config=config),
        [torch.zeros(tiles, side * side, 1)],
        torch.tensor([[height, width]]),
        "full",
        image_newline=torch.zeros(1),
    )
    assert num_image_features(config, 1, torch.tensor([[height, width]])) == len(merged[0]) == lengths.item()


def text_only(seed=0):
    torch.manual_seed(seed)
    ids = torch.randint(3, 90, (3, 12))
    attention = torch.ones_like(ids)
    attention[1, 9:] = 0
    return {"input_ids": ids, "attention_mask": attention, "labels": ids.masked_fill(attention == 0, -100)}


@pytest.mark.parametrize("anyres", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("given_as", ["input_ids", "inputs_embeds"])
@pytest.mark.parametrize("rule", [NONE, CMO], ids=["none", "cmo"])
def test_a_batch_without_pictures_reaches_the_connector(anyres, checkpointing, given_as, rule):
    """Loss and the LLM's gradients bit-equal to those without the hook; the connector's there and exactly 0."""
    model = models.compose(tiny_llm("qwen2"), tiny_tower(), Vocabulary("<image>"), anyres=anyres).train()
    trained = models.freeze_for(model, "instruct")
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch = text_only()
    if given_as == "inputs_embeds":
        batch["inputs_embeds"] = model.get_input_embeddings()(batch.pop("input_ids")).detach()
        batch["image_mask"] = torch.zeros_like(batch["attention_mask"])
    loss, before = gradients(model, batch, rule)
    models.connect_text_only(model)
    towers = []
    model.model.vision_tower.register_forward_hook(lambda *_: towers.append(1))
    connected, after = gradients(model, batch, rule)
    assert len(towers) == 1  # one picture in the seen pass, none in the blind one
    assert torch.equal(loss, connected)
    assert all(torch.equal(before[name], after[name]) for name in before)
    connector = {name for name in trained if name.startswith((models.PROJECTOR, models.NEWLINE))}
    assert set(after) - set(before) == connector and len(connector) == 4 + anyres
    assert all((after[name] == 0).all() for name in connector)


@pytest.mark.parametrize("anyres", [False, True])
def test_the_hook_leaves_pictures_and_evaluation_alone(anyres):
    model, processor = composed("clip", anyres)
    inputs = dict(
        processor(images=Image.new("RGB", (70, 30), "red"), text="<|image_pad|>what is it", return_tensors="pt")
    )
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.image_token_id, -100)
    model = models.compose(
        tiny_llm("qwen2", vocab_size=len(processor.tokenizer)), tiny_tower(), processor.tokenizer, anyres=anyres
    ).train()
    before = gradients(model, inputs, CMO)
    models.connect_text_only(model)
    calls = []
    model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    after = gradients(model, inputs, CMO)
    assert torch.equal(before[0], after[0]) and len(calls) == 1
    assert all(torch.equal(before[1][name], after[1][name]) for name in before[1])
    assert any(after[1][name].abs().sum() > 0 for name in after[1] if "projector" in name)
    model.eval()
    model(input_ids=torch.tensor([[3, 4]]))
    assert len(calls) == 1


@pytest.mark.parametrize("anyres", [False, True])
def test_tokens_that_do_not_match_the_pictures_are_counted(anyres):
    """A cut through the image, a picture without tokens, tokens without a picture: both counts are named."""
    model, processor = composed("clip", anyres)
    picture = Image.new("RGB", (70, 30), "red")
    inputs = dict(processor(images=picture, text="<|image_pad|>what is it", return_tensors="pt"))
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.image_token_id, -100)
    count = processing.num_image_tokens(processor, 30, 70)
    assert count == int((inputs["input_ids"] == model.config.image_token_id).sum())
    batch_loss(model, inputs, NONE)
    cut = inputs | {key: inputs[key][:, 2:] for key in ("input_ids", "attention_mask", "labels")}
    with pytest.raises(InputError, match=f"{count - 2} image tokens for the {count} image features of 1 pictures"):
        batch_loss(model, cut, NONE)
    without = {key: inputs[key] for key in ("input_ids", "attention_mask", "labels")}
    with pytest.raises(InputError, match=f"{count} image tokens for the 0 image features of 0 pictures"):
        batch_loss(model, without, CMO)
    with pytest.raises(ValueError) as other:  # an error of another kind stays what it is
        batch_loss(model, inputs | {"pixel_values": inputs["pixel_values"][..., :8]}, NONE)
    assert not isinstance(other.value, InputError)
