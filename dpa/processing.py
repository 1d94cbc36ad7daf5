"""From records' text and pictures to a model's inputs: tokenizer, chat template, the stock LLaVA processors.

The image token is a token that the vocabulary already has, so the LLM's embeddings keep their shape.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeAlias

from safetensors import SafetensorError
from transformers import (
    AutoTokenizer,
    CLIPVisionModel,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    SiglipVisionModel,
)
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from dpa.errors import InputError, first_line

Tower: TypeAlias = CLIPVisionModel | SiglipVisionModel
# Unused tokens of the paper's families that can stand for the image, tried in order.
IMAGE_TOKENS = ("<image>", "<|image_pad|>", "<|reserved_special_token_0|>", "<unused99>")
# For LLMs whose tokenizer has none, by the name that a recipe gives. "vicuna": LLaVA-1.5's conversation, version 1.
CHAT_TEMPLATES = {
    "vicuna": "{{- bos_token -}}{%- if messages[0]['role'] == 'system' -%}{{- messages[0]['content'] -}}"
    "{%- set messages = messages[1:] -%}{%- else -%}{{- 'A chat between a curious user and an artificial intelligence "
    "assistant. The assistant gives helpful, detailed, and polite answers to the user\\'s questions.' -}}{%- endif -%}"
    "{%- for message in messages -%}{%- if message['role'] == 'user' -%}{{- (' ' if loop.first else '') + 'USER: ' + "
    "message['content'] -}}{%- else -%}{{- ' ASSISTANT: ' + message['content'] + eos_token -}}{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- ' ASSISTANT:' -}}{%- endif -%}"
}


def load_tokenizer(path_or_id: str, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """The LLM's tokenizer, with a padding token (its end-of-sequence token where it has none).

    chat_template: one of `CHAT_TEMPLATES`, in place of the tokenizer's own.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path_or_id)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"{path_or_id}: cannot load a tokenizer from it ({first_line(error)}); give a folder or hub id with --llm"
        ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if chat_template is not None:
        tokenizer.chat_template = CHAT_TEMPLATES[chat_template]
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


def pixel_statistics(tower: Tower) -> tuple[list[float], list[float]]:
    """(mean, standard deviation) per colour channel, of pixels in [0, 1], that the tower was trained with.

    From preprocessor_config.json in the folder it was loaded from, else its family's. InputError for a file without them.
    """
    file = Path(tower.name_or_path) / "preprocessor_config.json"
    if not tower.name_or_path or not file.is_file():
        if isinstance(tower, CLIPVisionModel):
            return list(OPENAI_CLIP_MEAN), list(OPENAI_CLIP_STD)
        return list(IMAGENET_STANDARD_MEAN), list(IMAGENET_STANDARD_STD)
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        mean, std = ([float(value) for value in fields[key]] for key in ("image_mean", "image_std"))
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError("three of each are needed, the deviations above 0")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: no usable image_mean, image_std ({first_line(error)}); mend or remove it") from None
    return mean, std


def grids(size: int) -> list[list[int]]:
    """LLaVA-NeXT's five resolutions (height, width) for tiles of `size` pixels."""
    return [[size, 2 * size], [2 * size, size], [2 * size, 2 * size], [3 * size, size], [size, 3 * size]]


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


def build_processor(
    tokenizer: PreTrainedTokenizerBase, tower: Tower, *, anyres: bool = False, pad: bool = True
) -> LlavaProcessor | LlavaNextProcessor:
    """The stock processor: pictures padded to a square (`pad`, as LLaVA-1.5 tunes and evaluates) and scaled to the tower.

    anyres: LLaVA-NeXT's, which pads each picture to the nearest of `grids` in any case. Its chat template is the LLM's
    own behind `PARTS_TO_TEXT`. The PIL backend is named so that CPU and GPU runs see the same pixels; torchvision's
    differs by up to 2 of 255.
    """
    size = tower.config.image_size
    mark = image_token(tokenizer)
    tokenizer.image_token = mark
    template = tokenizer.chat_template
    clip = isinstance(tower, CLIPVisionModel)
    mean, std = pixel_statistics(tower)
    square = {"height": size, "width": size}
    fields = {"size": {"shortest_edge": size}, "crop_size": square, "image_mean": mean, "image_std": std}
    return (LlavaNextProcessor if anyres else LlavaProcessor)(
        image_processor=LlavaNextImageProcessorPil(image_grid_pinpoints=grids(size), **fields)
        if anyres
        else LlavaImageProcessorPil(do_pad=pad, **fields),
        tokenizer=tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy="default" if clip else "full",
        num_additional_image_tokens=int(clip),
        chat_template=PARTS_TO_TEXT.replace("IMAGE", mark) + template if template else None,
    )


def num_image_tokens(processor: LlavaProcessor | LlavaNextProcessor, height: int, width: int) -> int:
    """How many image tokens stand for a picture of `height` x `width` pixels."""
    return processor._get_num_multimodal_tokens(image_sizes=[(height, width)]).num_image_tokens[0]
