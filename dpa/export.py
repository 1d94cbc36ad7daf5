"""The final checkpoint, as transformers 5.x, transformers 4.57 and vLLM load it.

What `save_pretrained` of transformers 5 writes, 4.57 reads wrongly with no more than a warning (the tower's names lack
`vision_model.`, so it stays random; `rope_theta` is missing, so the LLM gets its family's default) and its tokenizer not
at all. Here the names are the canonical ones, which all three know, and the settings stand in both spellings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from torch import Tensor
from transformers import LlavaNextProcessor, LlavaProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dpa.errors import InputError
from dpa.model import Llava

MAX_SHARD_SIZE = "5GB"
NOTES = "COMPATIBILITY.txt"
# How vLLM renames a checkpoint's weights (`hf_to_vllm_mapper` of its LLaVA and LLaVA-NeXT); what matches none stays.
VLLM_MAPPING = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.image_newline": "image_newline",
    "lm_head.": "language_model.lm_head.",
}
GEMMA2_NOTE = (
    "Gemma-2: transformers 4.57 and vLLM multiply image features by sqrt(hidden_size) together with the embeddings, "
    "transformers from 5.4, where this model was trained, multiplies the embeddings alone: answers to pictures differ "
    'there. transformers 4.57 also needs attn_implementation="eager": with sdpa it drops the attention soft-cap silently.'
)


def canonical_name(name: str) -> str:
    """The name in the checkpoint of a weight that a model calls `name`: LLaVA's original names, which all tools know."""
    for prefix, canonical in VLLM_MAPPING.items():
        if name.startswith(prefix):
            name = canonical + name.removeprefix(prefix)
            break
    tower = "vision_tower."
    if name.startswith(tower):  # transformers 5 calls the tower's inside without it
        name = f"{tower}vision_model." + name.removeprefix(tower).removeprefix("vision_model.")
    return name


def export_checkpoint(
    model: Llava,
    processor: LlavaProcessor | LlavaNextProcessor,
    folder: Path,
    state_dict: Mapping[str, Tensor] | None = None,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> list[str]:
    """Write model and processor into `folder`; returns (and writes beside it) what other tools compute differently.

    state_dict: the model's whole state by its own names, where its weights are sharded; dtype: cast floating-point
    weights to it (None: as they are); max_shard_size: bytes of a weights file, or text such as "5GB". InputError when
    the folder cannot be written.
    """
    state = dict(model.state_dict() if state_dict is None else state_dict)
    tied = bool(model.config.tie_word_embeddings)
    if tied:
        state.pop("lm_head.weight", None)
    expected = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if absent := sorted(expected - state.keys() - ({"lm_head.weight"} if tied else set())):
        raise RuntimeError(f"the state lacks {len(absent)} of the model's weights, {absent[0]} among them")
    weights = {canonical_name(name): _alone(tensor, dtype) for name, tensor in state.items()}
    notes = [GEMMA2_NOTE] if model.config.text_config.model_type == "gemma2" else []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_torch_state_dict(weights, folder, max_shard_size=max_shard_size)
        written = next(tensor.dtype for name, tensor in weights.items() if name.startswith("language_model."))
        _write(folder / "config.json", settings(model, written))
        model.generation_config.save_pretrained(folder)
        _save_processor(processor, folder)
        if notes:
            (folder / NOTES).write_text("\n".join(notes) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{folder}: the checkpoint could not be written ({error}); free space or choose another"
        ) from None
    return notes


def _alone(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The weight, cast; a view of a larger block, as optimizers flatten them, becomes a tensor of its own."""
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(dtype)
    return tensor.detach().clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor.detach()


def settings(model: Llava, dtype: torch.dtype) -> dict[str, Any]:
    """The model's config.json: what 4.57 reads under older names stands beside the new ones."""
    config = json.loads(model.config.to_json_string())
    name = str(dtype).removeprefix("torch.")
    text, vision = config["text_config"], config["vision_config"]
    config["architectures"] = [type(model).__name__.removeprefix("FSDP")]
    text["architectures"] = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[text["model_type"]]]  # vLLM builds the LLM by it
    vision["architectures"] = [type(model.model.vision_tower).__name__.removeprefix("FSDP")]
    for part in (config, text):
        part["tie_word_embeddings"] = bool(model.config.tie_word_embeddings)  # 4.57 takes an absent one for true
    for part in (config, text, vision):
        part |= {"dtype": name, "torch_dtype": name}
        part.pop("_name_or_path", None)  # a folder of this machine
    text |= _rope(text.get("rope_parameters") or {})
    return config


def _rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and, for Gemma-3's two kinds of layers, `rope_local_base_freq` from `rope_parameters`."""
    old: dict[str, Any] = {}
    if "full_attention" in rope:
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    if "rope_theta" in rope:
        old["rope_theta"] = rope["rope_theta"]
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    return old | {"rope_scaling": scaling if scaling.get("rope_type", "default") != "default" else None}


def _save_processor(processor: LlavaProcessor | LlavaNextProcessor, folder: Path) -> None:
    """Tokenizer, picture settings and chat template, in the files that 4.57 looks for; 5.x reads those too."""
    processor.save_pretrained(folder)
    file = folder / "processor_config.json"
    fields = _read(file)
    # in this file of their own alone: 4.57 passes over settings nested in the other one
    _write(folder / "preprocessor_config.json", fields.pop("image_processor"))
    _write(file, fields)
    file = folder / "tokenizer_config.json"
    fields = _read(file)
    named, listed = {"image_token": processor.image_token}, fields.get("extra_special_tokens")
    if isinstance(listed, list) and listed:
        fields["additional_special_tokens"] = listed
    elif isinstance(listed, dict):
        named |= listed
    fields |= {"tokenizer_class": "PreTrainedTokenizerFast", "extra_special_tokens": named}
    fields["model_input_names"] = list(processor.tokenizer.model_input_names)  # 4.57 would add token_type_ids
    if isinstance(processor.chat_template, str):
        fields["chat_template"] = processor.chat_template
    _write(file, fields)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _write(file: Path, fields: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
