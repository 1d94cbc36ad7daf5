"""Assembly on stock classes: proxy in and out leaves the base bit-equal, freezing per stage, the image token, towers,
the connector's file, attention, the scale of image features."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel, SiglipVisionConfig, SiglipVisionModel

from dpa import model as models
from dpa import processing
from dpa.errors import InputError
from dpa.lab.small import build_tokenizer
from tests.conftest import FAMILIES, tiny_llm, tiny_tower


class Vocabulary:
    """As much of a tokenizer as assembly needs."""

    name_or_path = "tiny"
    pad_token_id = 0

    def __init__(self, *tokens):
        self.tokens = tokens

    def get_vocab(self):
        return {token: 90 + i for i, token in enumerate(self.tokens)}

    def convert_tokens_to_ids(self, token):
        return self.get_vocab()[token]


def tiny_siglip(seed: int = 0):
    torch.manual_seed(seed)
    fields = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return SiglipVisionModel(SiglipVisionConfig(image_size=24, patch_size=8, vision_use_head=False, **fields)).eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_compose_puts_the_llm_in_unchanged(family, tied):
    llm = tiny_llm(family, tied=tied)
    before = {name: tensor.clone() for name, tensor in llm.state_dict().items()}
    ids = torch.randint(3, 90, (2, 7))
    text_logits = llm(input_ids=ids, use_cache=False).logits
    model = models.compose(llm, tiny_tower(), Vocabulary("<|image_pad|>"))
    assert all(torch.equal(before[name], tensor) for name, tensor in llm.state_dict().items())
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    cap = getattr(llm.config, "final_logit_softcapping", None)
    if cap:  # transformers leaves Gemma-2's final cap out inside LLaVA; dpa.loss puts it back
        logits = cap * torch.tanh(logits / cap)
    assert torch.allclose(logits, text_logits, atol=1e-5)
    if tied:
        assert model.lm_head.weight.data_ptr() == model.model.language_model.get_input_embeddings().weight.data_ptr()


def test_compose_on_the_meta_device_leaves_nothing_behind():
    model = models.compose(tiny_llm("qwen2"), tiny_tower(), Vocabulary("<image>"))
    assert not any(t.is_meta for t in [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize("tower", [tiny_tower, tiny_siglip])
def test_the_layers_that_fsdp_wraps_are_there(tower):
    model = models.compose(tiny_llm("qwen2"), tower(), Vocabulary("<image>"))
    wrapped = {type(module).__name__ for module in model.modules()} & model._no_split_modules
    assert wrapped == model._no_split_modules and {"Qwen2DecoderLayer"} < wrapped
    assert any(name.endswith("EncoderLayer") for name in wrapped)


def test_the_connector_follows_from_the_seed():
    def weight(seed):
        return models.compose(
            tiny_llm("qwen2"), tiny_tower(), Vocabulary("<image>"), seed=seed
        ).model.multi_modal_projector.linear_1.weight

    assert torch.equal(weight(1), weight(1)) and not torch.equal(weight(1), weight(2))


def test_freezing_per_stage():
    model = models.compose(tiny_llm("llama"), tiny_tower(), Vocabulary("<image>"))
    connector = models.freeze_for(model, "connector")
    assert connector and all("multi_modal_projector" in name for name in connector)
    instruct = models.freeze_for(model, "instruct")
    assert any("language_model" in name for name in instruct) and any("lm_head" in name for name in instruct)
    assert not any("vision_tower" in name for name in instruct)
    with pytest.raises(ValueError, match="proxy"):
        models.freeze_for(model, "proxy")


def test_proxy_in_proxy_out(tmp_path):
    """LoRA, saved, merged into a fresh base: the folder of the base LLM is what it was, the merged logits are LoRA's."""
    tiny_llm("qwen2").save_pretrained(tmp_path / "base")
    before = (tmp_path / "base" / "model.safetensors").read_bytes()
    wrapped = models.lora(models.load_llm(str(tmp_path / "base")), rank=4, alpha=8)
    assert not any("lm_head" in name for name, p in wrapped.named_parameters() if p.requires_grad)
    torch.manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    wrapped.save_pretrained(tmp_path / "proxy")
    ids = torch.randint(3, 90, (2, 7))
    with torch.no_grad():
        adapted, merged = (
            wrapped(input_ids=ids).logits,
            models.load_proxy(str(tmp_path / "base"), tmp_path / "proxy")(input_ids=ids).logits,
        )
        base = models.load_llm(str(tmp_path / "base"))
        plain = base(input_ids=ids).logits
    assert torch.allclose(adapted, merged, atol=1e-5 * adapted.abs().max())
    assert (adapted - plain).abs().max() > 1e-2
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == before
    for name, tensor in tiny_llm("qwen2").state_dict().items():
        assert torch.equal(tensor, base.state_dict()[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_with_default_attention(tmp_path, family):
    """Gemma-2 refuses sdpa; the default must not ask for it."""
    llm = tiny_llm(family)
    llm.save_pretrained(tmp_path)
    ids = torch.randint(3, 90, (2, 7))
    assert torch.allclose(models.load_llm(str(tmp_path))(input_ids=ids).logits, llm(input_ids=ids).logits, atol=1e-4)


def test_a_text_template_takes_content_in_parts():
    """The checkpoint's template writes a picture as training does, for an LLM whose own template knows only text."""
    tokenizer = build_tokenizer(["a red ball and a blue cube"])
    processor = processing.build_processor(tokenizer, tiny_tower())
    question = {"role": "user", "content": "what is it"}
    parts = [{"type": "image"}, {"type": "text", "text": "what is it"}]
    plain = tokenizer.apply_chat_template(
        [question | {"content": "<|image_pad|>\nwhat is it"}], tokenize=False, add_generation_prompt=True
    )
    assert processor.apply_chat_template([question | {"content": parts}], add_generation_prompt=True) == plain
    assert processor.apply_chat_template([question | {"content": parts[1:]}], add_generation_prompt=True) == (
        tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    )
    assert "<|image_pad|>\nwhat" in plain


def test_image_token_is_one_that_is_there():
    assert processing.image_token(Vocabulary("x", "<|image_pad|>")) == "<|image_pad|>"
    assert processing.image_token(Vocabulary("<unused99>", "<image>")) == "<image>"
    with pytest.raises(InputError, match="no spare token"):
        processing.image_token(Vocabulary("x"))


def test_a_connector_of_another_shape_is_refused(tmp_path):
    model = models.compose(tiny_llm("qwen2"), tiny_tower(), Vocabulary("<image>"))
    models.save_connector(model, tmp_path)
    models.load_connector(model, tmp_path)
    model.model.multi_modal_projector.linear_1 = torch.nn.Linear(8, 32)
    with pytest.raises(InputError, match="does not fit"):
        models.load_connector(model, tmp_path)


@pytest.mark.parametrize("load", [models.load_llm, processing.load_tokenizer, models.load_tower])
def test_a_model_that_is_not_there_is_named(tmp_path, load):
    with pytest.raises(InputError) as error:
        load(str(tmp_path / "absent"))
    assert "absent" in str(error.value) and "\n" not in str(error.value)


def whole_checkpoints(root):
    """Folders of a whole CLIP and a whole SigLIP checkpoint and of each tower alone, with the tower's weights by name."""
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    text, vision = size | {"vocab_size": 50, "num_hidden_layers": 1}, size | {"num_hidden_layers": 2, "image_size": 24}
    vision["patch_size"] = 8
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision))
    siglip = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    for name, whole in (("clip", clip), ("siglip", siglip)):
        whole.save_pretrained(root / f"{name}-whole")
        whole.vision_model.save_pretrained(root / f"{name}-tower")
    return {"clip": clip.vision_model.state_dict(), "siglip": siglip.vision_model.state_dict()}


def test_towers_load_from_whole_and_from_tower_checkpoints(tmp_path):
    trained = whole_checkpoints(tmp_path)
    for name, expected in trained.items():
        for kind in ("whole", "tower"):
            tower = models.load_tower(str(tmp_path / f"{name}-{kind}"))
            assert type(tower) is models.TOWERS[name] and tower.config._attn_implementation == "sdpa"
            skeleton = models.tower_skeleton(str(tmp_path / f"{name}-{kind}"))
            assert all(parameter.is_meta for parameter in skeleton.parameters())
            assert type(skeleton) is type(tower) and skeleton.config.image_size == 24
            state = tower.state_dict()
            assert all(torch.equal(tensor, expected[key]) for key, tensor in state.items())
            assert {key.split(".")[0] for key in expected.keys() - state.keys()} == (
                {"head"} if name == "siglip" else set()
            )


def test_a_folder_that_is_no_whole_tower_is_refused(tmp_path):
    """Not an LLM, and not a tower with a weight missing, which transformers would fill at random with a warning."""
    tiny_llm("llama").save_pretrained(tmp_path / "llm")
    for load in (models.load_tower, models.tower_skeleton):
        with pytest.raises(InputError, match="it is a llama model"):
            load(str(tmp_path / "llm"))
    tiny_tower().save_pretrained(tmp_path / "tower")
    file = tmp_path / "tower" / "model.safetensors"
    state = load_file(file)
    del state[next(name for name in state if name.endswith("layers.1.mlp.fc1.weight"))]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"no weights for .*layers\.1\.mlp\.fc1\.weight"):
        models.load_tower(str(tmp_path / "tower"))


def test_pixels_are_normalised_as_the_tower_was_trained(tmp_path):
    tokenizer = build_tokenizer(["a red ball"])
    tiny_tower().save_pretrained(tmp_path)
    tower = models.load_tower(str(tmp_path))
    white = Image.new("RGB", (24, 24), "white")

    def first_pixel(tower, **options):
        processor = processing.build_processor(tokenizer, tower, **options)
        return processor.image_processor(white, return_tensors="pt")["pixel_values"].flatten()[0].item()

    assert first_pixel(tower) == pytest.approx((1 - 0.48145466) / 0.26862954, abs=1e-5)  # CLIP's own
    assert first_pixel(tiny_siglip()) == first_pixel(tiny_siglip(), anyres=True) == 1.0  # SigLIP's: (1 - 0.5) / 0.5
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"image_mean": [0.2, 0, 0], "image_std": [0.1, 1, 1]}))
    assert first_pixel(tower) == pytest.approx(8.0, abs=1e-5)
    assert first_pixel(models.tower_skeleton(str(tmp_path))) == first_pixel(tower)
    for broken in (
        "{",
        "{}",
        '{"image_mean": 0.5, "image_std": 0.5}',
        '{"image_mean": [0, 0, 0], "image_std": [1, 1, 0]}',
    ):
        file.write_text(broken)
        with pytest.raises(InputError, match=r"preprocessor_config\.json: no usable"):
            processing.pixel_statistics(tower)


def test_anyres_adds_a_row_break_to_the_connector(tmp_path):
    def build(seed, anyres=True):
        return models.compose(tiny_llm("qwen2"), tiny_tower(), Vocabulary("<image>"), seed=seed, anyres=anyres)

    model = build(1)
    assert model.config.image_grid_pinpoints == [[24, 48], [48, 24], [48, 48], [72, 24], [24, 72]]
    assert torch.equal(model.model.image_newline, build(1).model.image_newline)
    assert not torch.equal(model.model.image_newline, build(2).model.image_newline)
    plain = build(1, anyres=False)
    for name, tensor in plain.model.multi_modal_projector.state_dict().items():
        assert torch.equal(tensor, model.model.multi_modal_projector.state_dict()[name])
    for stage in ("connector", "instruct"):
        assert "model.image_newline" in models.freeze_for(model, stage)
    models.save_connector(model, tmp_path)
    assert "image_newline" in load_file(tmp_path / models.CONNECTOR)
    other = build(2)
    models.load_connector(other, tmp_path)
    assert torch.equal(other.model.image_newline, model.model.image_newline)
    assert torch.equal(
        other.model.multi_modal_projector.linear_1.weight, model.model.multi_modal_projector.linear_1.weight
    )
    with pytest.raises(InputError, match="does not fit"):
        models.load_connector(plain, tmp_path)
    newline = load_file(tmp_path / models.CONNECTOR)
    save_file(newline | {"image_newline": torch.zeros(3)}, tmp_path / models.CONNECTOR)
    with pytest.raises(InputError, match="does not fit"):
        models.load_connector(model, tmp_path)
    gathered = {name: tensor + 1 for name, tensor in plain.state_dict().items()}
    models.save_connector(plain, tmp_path, gathered)
    saved = load_file(tmp_path / models.CONNECTOR)
    assert set(saved) == {f"linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}  # plain LLaVA, as before
    assert torch.equal(saved["linear_1.bias"], plain.model.multi_modal_projector.linear_1.bias + 1)
    with pytest.raises(InputError, match="image_newline"):
        models.load_connector(model, tmp_path)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tower_attention", ["sdpa", "eager"])
@pytest.mark.parametrize("anyres", [False, True])
def test_attention_is_what_was_chosen(tmp_path, monkeypatch, attention, tower_attention, anyres):
    """As recorded, and as run: assembling the model must not change it."""
    tiny_llm("llama").save_pretrained(tmp_path / "llm")
    tiny_tower().save_pretrained(tmp_path / "tower")
    llm = models.load_llm(str(tmp_path / "llm"), attention=attention)
    assert models.attention_of(llm) == {"llm": attention}
    assert models.attention_of(
        models.lora(models.load_llm(str(tmp_path / "llm"), attention=attention), rank=2, alpha=2)
    ) == {"llm": attention}
    tower = models.load_tower(str(tmp_path / "tower"), attention=tower_attention)
    model = models.compose(llm, tower, Vocabulary("<image>"), anyres=anyres)
    assert models.attention_of(model) == {"llm": attention, "vision_tower": tower_attention}
    calls, real = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *a, **k: calls.append(a[0].shape[-1]) or real(*a, **k),
    )
    model.model.language_model(input_ids=torch.tensor([[3, 4, 5]]))
    assert len(calls) == (2 if attention == "sdpa" else 0)
    model.model.vision_tower(torch.zeros(1, 3, 24, 24))
    assert len(calls) == 2 * (attention == "sdpa") + 2 * (tower_attention == "sdpa")


def test_attention_that_cannot_run_is_one_sentence(tmp_path, monkeypatch):
    tiny_llm("gemma2").save_pretrained(tmp_path / "gemma2")
    tiny_tower().save_pretrained(tmp_path / "tower")
    with pytest.raises(InputError, match=r"attention sdpa cannot run .*choose eager"):
        models.load_llm(str(tmp_path / "gemma2"), attention="sdpa")
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match=r"attention flash_attention_2 .*install flash-attn or choose sdpa"):
            models.load_llm(str(tmp_path / "gemma2"), attention="flash_attention_2")
    for load in (models.load_llm, models.load_tower):
        with pytest.raises(
            InputError, match="no attention is called 'sdp'; choose one of sdpa, eager, flash_attention_2"
        ):
            load(str(tmp_path / "tower"), attention="sdp")


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
@torch.no_grad()
def test_image_features_at_the_scale_of_the_embeddings(family):
    """At the start, "embedding" feeds the LLM the same features times sqrt(hidden), as the older stack did."""
    unit, scaled = (
        models.compose(tiny_llm(family), tiny_tower(), Vocabulary("<image>"), seed=3, anyres=True, image_scale=scale)
        for scale in ("unit", "embedding")
    )
    factor = unit.config.text_config.hidden_size**0.5
    sizes, pixels = torch.tensor([[50, 30]]), torch.randn(1, 5, 3, 24, 24)
    features, larger = (
        torch.cat(model.get_image_features(pixels, image_sizes=sizes).pooler_output) for model in (unit, scaled)
    )
    torch.testing.assert_close(larger, factor * features)
    weights = scaled.model.language_model.get_input_embeddings().weight
    torch.testing.assert_close(
        scaled.model.language_model.get_input_embeddings()(torch.tensor([5]))[0], factor * weights[5]
    )


def test_an_llm_that_does_not_scale_its_embeddings_has_no_such_scale():
    for family in ("qwen2", "llama"):
        with pytest.raises(InputError, match="does not scale its embeddings"):
            models.compose(tiny_llm(family), tiny_tower(), Vocabulary("<image>"), image_scale="embedding")
    with pytest.raises(ValueError, match="unknown image scale"):
        models.compose(tiny_llm("gemma2"), tiny_tower(), Vocabulary("<image>"), image_scale="unity")


def test_an_llm_that_rescales_its_logits_is_named(tmp_path):
    """LLaVA reads lm_head alone: Granite's or Cohere's factor on the logits would be lost without a word."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "granite", vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    for factor in (1.0, 4.0):
        config.logits_scaling = factor
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / str(factor))
    models.load_llm(str(tmp_path / "1.0"))
    with pytest.raises(InputError, match="logits_scaling"):
        models.load_llm(str(tmp_path / "4.0"))
