"""Assemble a LLaVA model from a text LLM and a CLIP tower, on the stock transformers classes; freeze it per stage.

The LLM and the tower are put in as modules, so nothing is copied and their weights stay what they were. The image token
is a token that the vocabulary already has, so the LLM's embeddings keep their shape and proxy and base are exchangeable.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from dpa.errors import InputError
from dpa.methods import Stage

VISION_FEATURE_LAYER = -2  # released code and LLaVA: the last layer but one, patches without the class token
CONNECTOR = "connector.safetensors"
# Unused tokens of the paper's families that can stand for the image, tried in order.
IMAGE_TOKENS = ("<image>", "<|image_pad|>", "<|reserved_special_token_0|>", "<unused99>")


def load_llm(path_or_id: str, *, dtype: torch.dtype = torch.float32, attention: str | None = None) -> PreTrainedModel:
    """The causal LM of a folder or hub id, in `dtype`. InputError when there is none.

    attention: transformers' name of an implementation; None leaves the choice to it (sdpa, for Gemma-2 eager).
    """
    try:
        return AutoModelForCausalLM.from_pretrained(path_or_id, dtype=dtype, attn_implementation=attention)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"{path_or_id}: cannot load a causal LM from it ({_first_line(error)}); give a folder or hub id with --llm"
        ) from None


def load_proxy(path_or_id: str, adapter: Path, **options) -> PreTrainedModel:
    """The proxy LLM: the base LLM with the LoRA adapter of stage 1 merged in (the paper's PMO). Merge in float32."""
    from peft import PeftModel

    dtype = options.pop("dtype", torch.float32)
    base = load_llm(path_or_id, dtype=torch.float32, **options)
    try:
        return PeftModel.from_pretrained(base, adapter).merge_and_unload().to(dtype)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{adapter}: no LoRA adapter that fits {path_or_id} ({_first_line(error)}); give a finished stage 1"
        ) from None


def load_tokenizer(path_or_id: str) -> PreTrainedTokenizerBase:
    """The LLM's tokenizer, with a padding token (its end-of-sequence token where it has none)."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path_or_id)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"{path_or_id}: cannot load a tokenizer from it ({_first_line(error)}); give a folder or hub id with --llm"
        ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def image_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """The vocabulary's token that stands for an image patch. InputError when the vocabulary has no spare one."""
    vocabulary = tokenizer.get_vocab()
    for token in IMAGE_TOKENS:
        if token in vocabulary:
            return token
    raise InputError(
        f"{tokenizer.name_or_path}: no spare token for the image among {', '.join(IMAGE_TOKENS)}; add '<image>' to the tokenizer's special tokens"
    )


def load_tower(path_or_id: str, *, dtype: torch.dtype = torch.float32) -> CLIPVisionModel:
    """The CLIP vision tower of a folder or hub id (a whole CLIP checkpoint will do)."""
    try:
        return CLIPVisionModel.from_pretrained(path_or_id, dtype=dtype)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"{path_or_id}: cannot load a CLIP vision tower from it ({_first_line(error)}); give one with --vision-tower"
        ) from None


def compose(
    llm: PreTrainedModel, tower: CLIPVisionModel, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0
) -> LlavaForConditionalGeneration:
    """A stock LLaVA model around `llm` and `tower` (both are put in, not copied) with a new two-layer GELU connector."""
    vision = tower.config
    config = LlavaConfig(
        vision_config=vision,
        text_config=llm.config,
        image_token_id=tokenizer.convert_tokens_to_ids(image_token(tokenizer)),
        vision_feature_layer=VISION_FEATURE_LAYER,
        vision_feature_select_strategy="default",
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        projector_hidden_act="gelu",
        tie_word_embeddings=bool(llm.config.tie_word_embeddings),
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    dtype = llm.get_input_embeddings().weight.dtype
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the connector's first weights follow from the seed alone
        projector = LlavaMultiModalProjector(config)
    model.model.multi_modal_projector = projector.to(dtype)
    model.model.language_model = llm.model
    model.model.vision_tower = tower.to(dtype)
    model.lm_head = llm.get_output_embeddings()
    model.config.dtype = dtype
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = llm.generation_config.eos_token_id
    model.generation_config.bos_token_id = llm.generation_config.bos_token_id
    if remaining := [name for name, tensor in model.named_parameters() if tensor.is_meta]:
        raise RuntimeError(f"weights left without values: {remaining[:3]}")
    return model


# Put before a text LLM's own chat template: content given as parts (as image-text pipelines do) becomes one text, the
# image as its token and a newline, which is how `dpa.data.encode_chat` writes it in training.
PARTS_TO_TEXT = (
    "{%- set all = namespace(messages=[]) -%}{%- for message in messages -%}{%- if message['content'] is string -%}"
    "{%- set all.messages = all.messages + [message] -%}{%- else -%}{%- set one = namespace(text='') -%}"
    "{%- for part in message['content'] -%}{%- if part['type'] == 'image' -%}{%- set one.text = one.text + 'IMAGE\\n' -%}"
    "{%- else -%}{%- set one.text = one.text + part['text'] -%}{%- endif -%}{%- endfor -%}"
    "{%- set all.messages = all.messages + [{'role': message['role'], 'content': one.text}] -%}{%- endif -%}"
    "{%- endfor -%}{%- set messages = all.messages -%}"
)


def build_processor(tokenizer: PreTrainedTokenizerBase, tower: CLIPVisionModel, *, pad: bool = True) -> LlavaProcessor:
    """The stock processor: pictures padded to a square (`pad`, as LLaVA-1.5 tunes and evaluates) and scaled to the tower.

    Its chat template is the LLM's own behind `PARTS_TO_TEXT`. The PIL backend is named so that CPU and GPU runs see the
    same pixels; torchvision's differs by up to 2 of 255.
    """
    size = tower.config.image_size
    mark = image_token(tokenizer)
    tokenizer.image_token = mark
    template = tokenizer.chat_template
    return LlavaProcessor(
        image_processor=LlavaImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}, do_pad=pad
        ),
        tokenizer=tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=PARTS_TO_TEXT.replace("IMAGE", mark) + template if template else None,
    )


def freeze_for(model: PreTrainedModel, stage: Stage) -> list[str]:
    """Set what trains in a stage and return the names of the trained parameters (paper table of stages).

    connector: the connector alone; instruct: connector and LLM; the vision tower never. Stage proxy trains the LoRA
    weights, which peft unfreezes by itself.
    """
    if stage == "proxy":
        raise ValueError("stage proxy has no vision model to freeze; wrap the LLM with `lora` instead")
    trained = (
        ("model.multi_modal_projector.",)
        if stage == "connector"
        else ("model.multi_modal_projector.", "model.language_model.", "lm_head.")
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def lora(llm: PreTrainedModel, *, rank: int, alpha: int):
    """The LLM with LoRA on every linear layer but lm_head, dropout 0 (the paper: r 256, alpha 512)."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        llm, LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    )


def save_connector(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """The connector alone, as `connector.safetensors` with names relative to `multi_modal_projector`."""
    state = {
        name: tensor.detach().contiguous().cpu()
        for name, tensor in model.model.multi_modal_projector.state_dict().items()
    }
    save_file(state, folder / CONNECTOR, metadata={"format": "pt"})


def load_connector(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Put the connector of a finished stage 2 into `model`. InputError when its shapes are another model's."""
    try:
        model.model.multi_modal_projector.load_state_dict(load_file(folder / CONNECTOR))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{folder / CONNECTOR}: does not fit this LLM and vision tower ({_first_line(error)})"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
