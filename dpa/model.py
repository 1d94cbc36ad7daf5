"""Assemble a LLaVA or LLaVA-NeXT model from a text LLM and a CLIP or SigLIP tower, on the stock transformers classes.

The LLM and the tower are put in as modules, so nothing is copied and their weights stay what they were. The image token
is a token that the vocabulary already has, so the LLM's embeddings keep their shape and proxy and base are exchangeable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipVisionModel,
)
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from dpa.errors import InputError, first_line
from dpa.methods import Stage
from dpa.processing import Tower, grids, image_token

VISION_FEATURE_LAYER = -2  # released code and LLaVA: the last layer but one, patches without the class token
CONNECTOR = "connector.safetensors"
PROJECTOR, NEWLINE = "model.multi_modal_projector.", "model.image_newline"  # the connector's names in a model
ATTENTION = ("sdpa", "eager", "flash_attention_2")
RESCALED = ("logit_scale", "logits_scaling", "lm_head_multiplier", "logits_soft_cap")  # Cohere, Granite, Falcon-H1, ...
TOWERS = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}
TOWERS |= {f"{family}_vision_model": tower for family, tower in TOWERS.items()}
Llava: TypeAlias = LlavaForConditionalGeneration | LlavaNextForConditionalGeneration
ImageScale = Literal["unit", "embedding"]


def load_llm(path_or_id: str, *, dtype: torch.dtype = torch.float32, attention: str | None = None) -> PreTrainedModel:
    """The causal LM of a folder or hub id, in `dtype`. InputError when there is none, or when it cannot run `attention`.

    attention: one of `ATTENTION`; None leaves the choice to transformers (sdpa, for Gemma-2 eager).
    """
    _known_attention(path_or_id, attention)
    try:
        llm = AutoModelForCausalLM.from_pretrained(path_or_id, dtype=dtype, attn_implementation=attention)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        if attention is not None and "attention" in str(error).lower():
            fix = {"sdpa": "choose eager", "eager": "choose sdpa"}.get(attention, "install flash-attn or choose sdpa")
            raise InputError(f"{path_or_id}: attention {attention} cannot run ({first_line(error)}); {fix}") from None
        raise InputError(
            f"{path_or_id}: cannot load a causal LM from it ({first_line(error)}); give a folder or hub id with --llm"
        ) from None
    for name in RESCALED:
        if getattr(llm.config, name, None) not in (None, 1, 1.0):
            raise InputError(
                f"{path_or_id}: its forward changes the logits by {name}, which transformers' LLaVA leaves out; choose an LLM without it"
            )
    return llm


def load_proxy(path_or_id: str, adapter: Path, **options) -> PreTrainedModel:
    """The proxy LLM: the base LLM with the LoRA adapter of stage 1 merged in (the paper's PMO), in float32; or, where
    stage 1 trained all weights, the LLM that it left.
    """
    from peft import PeftModel

    if not (adapter / "adapter_config.json").is_file() and (adapter / "config.json").is_file():
        return load_llm(str(adapter), **options)
    dtype = options.pop("dtype", torch.float32)
    base = load_llm(path_or_id, dtype=torch.float32, **options)
    try:
        return PeftModel.from_pretrained(base, adapter).merge_and_unload().to(dtype)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{adapter}: no LoRA adapter that fits {path_or_id} ({first_line(error)}); give a finished stage 1"
        ) from None


def load_tower(path_or_id: str, *, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Tower:
    """The CLIP or SigLIP vision tower of a folder or hub id (a whole CLIP or SigLIP checkpoint will do).

    SigLIP comes without its pooling head, which no patch feature passes. InputError when there is no such tower, or
    when its files leave a weight open, which transformers would fill at random.
    """
    _known_attention(path_or_id, attention)
    return _read_tower(path_or_id, {"dtype": dtype, "attn_implementation": attention})


def tower_skeleton(path_or_id: str) -> Tower:
    """The tower without its weights (on the meta device), enough for `build_processor`. InputError as `load_tower`."""
    return _read_tower(path_or_id, None)


def _read_tower(path_or_id: str, options: dict[str, Any] | None) -> Tower:
    try:
        family = AutoConfig.from_pretrained(path_or_id).model_type
        if family not in TOWERS:
            raise ValueError(f"it is a {family} model")
        config = TOWERS[family].config_class.from_pretrained(path_or_id)
        if family.startswith("siglip"):
            config.vision_use_head = False
        if options is None:
            config._name_or_path = path_or_id
            with torch.device("meta"):
                return TOWERS[family](config)
        tower, loading = TOWERS[family].from_pretrained(path_or_id, config=config, output_loading_info=True, **options)
        if loading["missing_keys"]:
            raise ValueError(f"no weights for {sorted(loading['missing_keys'])[0]}")
        return tower
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise InputError(
            f"{path_or_id}: cannot load a CLIP or SigLIP vision tower from it ({first_line(error)}); give one with --vision-tower"
        ) from None


def compose(
    llm: PreTrainedModel,
    tower: Tower,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 0,
    anyres: bool = False,
    image_scale: ImageScale = "unit",
) -> Llava:
    """A stock LLaVA model around `llm` and `tower` (both are put in, not copied) with a new two-layer GELU connector.

    anyres: LLaVA-NeXT, which sees a picture whole and in up to four tiles; its row break `image_newline` belongs to the
    connector. image_scale: "embedding" multiplies the connector's output at its start by the factor sqrt(hidden) that
    Gemma multiplies its text embeddings with; InputError for a family that has none.

    Reference: in the paper's stack Gemma-2 multiplied image features by sqrt(hidden) together with the embeddings;
    transformers from 5.4 multiplies the embeddings alone. With "embedding" the first image features are what that stack
    fed, at the same weights otherwise. Adam's later steps act on the scaled parameters, so only the start is equal.
    """
    scale = _image_scale(llm, image_scale)
    vision = tower.config
    clip = isinstance(tower, CLIPVisionModel)
    fields: dict[str, Any] = {
        "vision_config": vision,
        "text_config": llm.config,
        "image_token_id": tokenizer.convert_tokens_to_ids(image_token(tokenizer)),
        "vision_feature_layer": VISION_FEATURE_LAYER,
        "vision_feature_select_strategy": "default" if clip else "full",  # SigLIP has no class token to drop
        "image_seq_length": (vision.image_size // vision.patch_size) ** 2,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": bool(llm.config.tie_word_embeddings),
    } | ({"image_grid_pinpoints": grids(vision.image_size)} if anyres else {})
    attention = llm.config._attn_implementation, vision._attn_implementation
    with torch.device("meta"):
        if anyres:
            model = LlavaNextForConditionalGeneration(LlavaNextConfig(**fields))
        else:
            model = LlavaForConditionalGeneration(LlavaConfig(**fields))
    # the skeleton wrote its own choice of attention into both parts' settings
    llm.config._attn_implementation, vision._attn_implementation = attention
    dtype = llm.get_input_embeddings().weight.dtype
    hidden = llm.config.hidden_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the connector's first weights follow from the seed alone
        projector = type(model.model.multi_modal_projector)(model.config)
        newline = torch.randn(hidden) / math.sqrt(hidden) if anyres else torch.zeros(0)
    for weight in (projector.linear_2.weight, projector.linear_2.bias, newline):
        weight.data *= scale
    model.model.multi_modal_projector = projector.to(dtype)
    if anyres:
        model.model.image_newline = torch.nn.Parameter(newline.to(dtype))
    model.model.language_model = llm.model
    model.model.vision_tower = tower.to(dtype)
    model.lm_head = llm.get_output_embeddings()
    model.config.dtype = dtype
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = llm.generation_config.eos_token_id
    model.generation_config.bos_token_id = llm.generation_config.bos_token_id
    # accelerate's FSDP2 wraps these and stops at one that is not there, as the classes of CLIP's and SigLIP's text side
    model._no_split_modules &= {type(module).__name__ for module in model.modules()}
    if remaining := [name for name, tensor in model.named_parameters() if tensor.is_meta]:
        raise RuntimeError(f"weights left without values: {remaining[:3]}")
    return model


def attention_of(model: torch.nn.Module) -> dict[str, str]:
    """The attention that each part of a LLaVA model or causal LM runs with: "llm" and, with one, "vision_tower"."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    parts = {"llm": getattr(base.model, "language_model", base.model)}
    if hasattr(base.model, "vision_tower"):
        parts["vision_tower"] = base.model.vision_tower
    return {name: part.config._attn_implementation for name, part in parts.items()}


def connect_text_only(model: Llava) -> None:
    """Let a batch without pictures run tower and connector too, in training: once per model, before it is wrapped.

    Data parallel, FSDP2 and ZeRO-3 need every rank to run the same modules and to have a gradient for every trained
    weight. So a blank picture goes through, and 0 times its features is added to the embeddings: the loss and all other
    gradients stay what they were, the connector's are exactly 0.
    """
    inner = model.model
    text_only = False

    def look(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal text_only
        pictures = [kwargs.get("pixel_values"), kwargs.get("mm_encoder_outputs"), *args[1:2]]
        text_only = module.training and all(given is None for given in pictures)

    # Added at the decoder's door, where sharded weights of the model itself (image_newline) are gathered already. The
    # blind pass enters there too, but by itself, so it finds the switch off.
    def add(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        nonlocal text_only
        if not text_only:
            return None
        text_only = False
        embeds, size = kwargs["inputs_embeds"], inner.config.vision_config.image_size
        blank = embeds.new_zeros(1, 3, size, size, dtype=inner.vision_tower.dtype)
        if shape := getattr(inner, "features_shape", None):  # the tower runs on no process (`dpa.vision_cache`)
            blank = embeds.new_zeros(1, *shape, dtype=inner.vision_tower.dtype)
        options = {}
        if hasattr(inner, "image_newline"):
            rows, columns = get_anyres_image_grid_shape((size, size), inner.config.image_grid_pinpoints, size)
            blank = blank[None].repeat(1, 1 + rows * columns, 1, 1, 1)
            options["image_sizes"] = torch.tensor([[size, size]], device=embeds.device)
        features = inner.get_image_features(pixel_values=blank, return_dict=True, **options).pooler_output
        return args, kwargs | {"inputs_embeds": embeds + 0.0 * sum(one.float().sum() for one in features)}

    inner.register_forward_pre_hook(look, with_kwargs=True)
    inner.language_model.register_forward_pre_hook(add, with_kwargs=True)


def freeze_for(model: PreTrainedModel, stage: Stage) -> list[str]:
    """Set what trains in a stage and return the names of the trained parameters (paper table of stages).

    connector: the connector alone, with AnyRes its row break too; instruct: connector and LLM; the vision tower never.
    Stage proxy trains the LoRA weights, which peft unfreezes by itself.
    """
    if stage == "proxy":
        raise ValueError("stage proxy has no vision model to freeze; wrap the LLM with `lora` instead")
    trained = (
        (PROJECTOR, NEWLINE) if stage == "connector" else (PROJECTOR, NEWLINE, "model.language_model.", "lm_head.")
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


def save_connector(model: Llava, folder: Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
    """The connector alone, as `connector.safetensors` with names relative to `multi_modal_projector`; AnyRes: `image_newline`.

    state_dict: the model's, by its own names, where its weights are sharded.
    """
    state = model.state_dict() if state_dict is None else state_dict
    connector = {
        name.removeprefix(PROJECTOR).removeprefix("model."): tensor.detach().contiguous().cpu()
        for name, tensor in state.items()
        if name.startswith((PROJECTOR, NEWLINE))
    }
    save_file(connector, folder / CONNECTOR, metadata={"format": "pt"})


def load_connector(model: Llava, folder: Path) -> None:
    """Put the connector of a finished stage 2 into `model`. InputError when its shapes are another model's."""
    try:
        state = load_file(folder / CONNECTOR)
        if hasattr(model.model, "image_newline"):
            model.model.image_newline.data.copy_(state.pop("image_newline"))
        model.model.multi_modal_projector.load_state_dict(state)
    except (OSError, RuntimeError, KeyError, SafetensorError) as error:
        raise InputError(
            f"{folder / CONNECTOR}: does not fit this LLM and vision tower ({first_line(error)})"
        ) from None


def _image_scale(llm: PreTrainedModel, image_scale: ImageScale) -> float:
    """1, or the factor on the LLM's text embeddings, sqrt(hidden) in Gemma. InputError for a family without one."""
    if image_scale not in get_args(ImageScale):
        raise ValueError(f"unknown image scale {image_scale!r}")
    scale = getattr(llm.get_input_embeddings(), "scalar_embed_scale", 1.0) if image_scale == "embedding" else None
    if scale == 1.0:
        raise InputError(
            f"{llm.name_or_path or llm.config.model_type}: this LLM does not scale its embeddings; use image scale 'unit'"
        )
    return scale or 1.0


def _known_attention(path_or_id: str, attention: str | None) -> None:
    if attention is not None and attention not in ATTENTION:
        raise InputError(f"{path_or_id}: no attention is called {attention!r}; choose one of {', '.join(ATTENTION)}")
