"""Assembly on stock classes: proxy in and out leaves the base bit-equal, freezing per stage, the image token."""

import pytest
import torch

from dpa import model as models
from dpa.errors import InputError
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
    from dpa.lab.small import build_tokenizer

    tokenizer = build_tokenizer(["a red ball and a blue cube"])
    processor = models.build_processor(tokenizer, tiny_tower())
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
    assert models.image_token(Vocabulary("x", "<|image_pad|>")) == "<|image_pad|>"
    assert models.image_token(Vocabulary("<unused99>", "<image>")) == "<image>"
    with pytest.raises(InputError, match="no spare token"):
        models.image_token(Vocabulary("x"))


def test_a_connector_of_another_shape_is_refused(tmp_path):
    model = models.compose(tiny_llm("qwen2"), tiny_tower(), Vocabulary("<image>"))
    models.save_connector(model, tmp_path)
    models.load_connector(model, tmp_path)
    model.model.multi_modal_projector.linear_1 = torch.nn.Linear(8, 32)
    with pytest.raises(InputError, match="does not fit"):
        models.load_connector(model, tmp_path)


@pytest.mark.parametrize("load", [models.load_llm, models.load_tokenizer, models.load_tower])
def test_a_model_that_is_not_there_is_named(tmp_path, load):
    with pytest.raises(InputError) as error:
        load(str(tmp_path / "absent"))
    assert "absent" in str(error.value) and "\n" not in str(error.value)
