"""Answers of a checkpoint that runs here: the engine of `benchmarks.predict` on transformers, beside `benchmarks.server`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.questions import GREEDILY, MAX_NEW_TOKENS, How, Question, shown_picture, where_of
from benchmarks.suites import Item
from dpa.errors import InputError, first_line
from dpa.images import image_size
from dpa.lineage import local_model

BATCH_SIZE = 64
# whatever the checkpoint's own settings say; use_cache is off in those of an LLM that a Trainer saved and of all made of
# it, and then each new token reads the prompt and the picture anew
PLAIN = {"num_beams": 1, "repetition_penalty": 1.0, "use_cache": True}
GREEDY = PLAIN | {"do_sample": False}


def load(model: str, how: How = GREEDILY, number: int = 0, *, one_thread: bool = False):
    """(model, processor) of a checkpoint, on the `number`-th GPU (counted round) where there is one."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from dpa.processing import CHAT_TEMPLATES, PARTS_TO_TEXT

    if one_thread:
        torch.set_num_threads(1)
    gpus = torch.cuda.device_count()
    device = f"cuda:{number % gpus}" if gpus else "cpu"
    folder = local_model(model)
    if how.chat_template not in (None, *CHAT_TEMPLATES):
        raise InputError(f"unknown chat template {how.chat_template!r}; there is {', '.join(CHAT_TEMPLATES)}")
    try:
        # pixels from PIL, as in training; torchvision's differ by up to 2 of 255
        processor = AutoProcessor.from_pretrained(folder, backend="pil")
        net = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", attn_implementation=how.attention)
    except (OSError, ValueError, ImportError, AttributeError, KeyError) as error:
        fix = "; its processor also handles video, install torchvision" if _lacks_torchvision(folder) else ""
        raise InputError(
            f"{model}: not a checkpoint that transformers loads as an image-text model ({first_line(error)}){fix}"
        ) from None
    if how.chat_template is not None:
        mark = processor.image_token
        processor.chat_template = PARTS_TO_TEXT.replace("IMAGE", mark) + CHAT_TEMPLATES[how.chat_template]
    if not processor.chat_template and not processor.tokenizer.chat_template:
        raise InputError(
            f"{model}: has no chat template; name the one it was tuned with, --chat-template {' | '.join(CHAT_TEMPLATES)}"
        )
    if processor.tokenizer.pad_token_id is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return net.to(device).eval(), processor


def _lacks_torchvision(folder: Path) -> bool:
    """Whether the checkpoint's processor has a part for video, which transformers has for torchvision alone."""
    from transformers.utils import is_torchvision_available

    return (folder / "video_preprocessor_config.json").is_file() and not is_torchvision_available()


def answers(
    net,
    processor,
    asked: Mapping[Question, Sequence[Item]],
    images: Path,
    *,
    batch_size: int = BATCH_SIZE,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[list[tuple[Item, str, bool]]]:
    """(item, the model's answer, whether it was cut at `max_new_tokens`), batch by batch as they come, the longest prompts first.

    A batch asks `batch_size` different questions, padded at the left, and ends when the last of them is answered; one that
    the GPU's memory cannot hold is halved, and with it all that follow. InputError for a picture that is missing or has no
    readable header before anything is asked; for one that is broken further on when its batch's turn comes.
    """
    import torch

    if not asked:
        return
    pairs = list(asked.items())
    lengths = _num_tokens(processor, asked, images)
    order = sorted(range(len(pairs)), key=lambda index: -lengths[index])
    processor.tokenizer.padding_side = "left"
    ends = net.generation_config.eos_token_id
    start = 0
    while start < len(order):
        batch = [pairs[index] for index in order[start : start + batch_size]]
        texts, special = _prompts(processor, [question for question, _ in batch])
        pictures = [shown_picture(q, images, where_of(same[0])) for q, same in batch if q.picture is not None] or None
        inputs = processor(text=texts, images=pictures, padding=True, return_tensors="pt", add_special_tokens=special)
        decoding = GREEDY
        if temperature:
            decoding = PLAIN | {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
            first = batch[0][1][0]  # a continued run should not draw the numbers again that the killed one drew
            torch.manual_seed(int(hashlib.sha256(f"{seed} {where_of(first)}".encode()).hexdigest()[:15], 16))
        try:
            with torch.inference_mode():
                ids = net.generate(**inputs.to(net.device, dtype=net.dtype), **decoding, max_new_tokens=max_new_tokens)
        except torch.OutOfMemoryError:
            ids = None
        if ids is None:  # out here, where the error no longer holds the batch's tensors
            if len(batch) == 1:
                where = where_of(batch[0][1][0])
                raise InputError(f"{where}: the GPU's memory is too small for this question alone; use a larger one")
            batch_size = len(batch) // 2
            torch.cuda.empty_cache()
            continue
        new = ids[:, inputs["input_ids"].shape[1] :]
        ended = torch.isin(new.cpu(), torch.tensor([] if ends is None else ends, dtype=torch.long)).any(-1)
        said = processor.batch_decode(new, skip_special_tokens=True)
        yield [
            (item, answer, not done)
            for (_, same), answer, done in zip(batch, said, ended.tolist(), strict=True)
            for item in same
        ]
        start += len(batch)


def _num_tokens(processor, asked: Mapping[Question, Sequence[Item]], images: Path) -> list[int]:
    """Tokens of each prompt with its picture's, which differ in number where pictures are tiled (AnyRes)."""
    from dpa.processing import num_image_tokens

    texts, special = _prompts(processor, list(asked))
    lengths = [len(ids) for ids in processor.tokenizer(texts, add_special_tokens=special).input_ids]
    for index, (question, same) in enumerate(asked.items()):
        if question.picture is None:
            continue
        picture = question.picture
        width, height = picture if isinstance(picture, tuple) else image_size(images, picture, where_of(same[0]))
        if hasattr(processor, "_get_num_multimodal_tokens"):  # else a processor of another family
            lengths[index] += num_image_tokens(processor, height, width) - 1  # in place of the mark
    return lengths


def _prompts(processor, asked: Sequence[Question]) -> tuple[list[str], bool]:
    """(the questions' chat prompts, whether the tokenizer should add its special tokens).

    It should where the template does not write the start token itself, as those of the first LLaVA checkpoints do not.
    """
    texts = [prompt_text(processor, question.prompt, question.picture is not None) for question in asked]
    start = processor.tokenizer.bos_token
    return texts, not (start and texts[0].startswith(start))


def prompt_text(processor, prompt: str, picture: bool) -> str:
    """The chat prompt as training wrote it: the picture first, then the question (`dpa.processing.PARTS_TO_TEXT`)."""
    content = [{"type": "image"}, {"type": "text", "text": prompt}] if picture else [{"type": "text", "text": prompt}]
    chat = [{"role": "user", "content": content}]
    return processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
