"""Parity with released code: our loss and gradient against tensors that the authors' own classes computed.

    python -m dpa.parity FILE.safetensors ...

A file holds a tiny causal LM (`state/*`, configuration in the metadata), one batch (`inputs_embeds`, `attention_mask`,
`image_mask`, `labels`) and the released `loss` and `grad_inputs_embeds`. Exit status 1 above a relative error of 1e-5
in the loss or 1e-4 in the gradient, 2 for a file that cannot be read as one of these.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dpa.errors import InputError, command
from dpa.methods import Weighting

MAX_LOSS_ERROR = 1e-5
MAX_GRADIENT_ERROR = 1e-4


def load_golden(path: Path):
    """(causal LM, batch, weighting, released loss, released gradient) of one golden file."""
    import torch
    from safetensors import SafetensorError, safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  safe_open is no mapping
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None
    needed = {"inputs_embeds", "attention_mask", "image_mask", "labels", "loss", "grad_inputs_embeds"}
    if missing := needed - tensors.keys():
        raise InputError(f"{path}: tensors missing: {', '.join(sorted(missing))}")
    try:
        fields = json.loads(metadata["config"])
        family = metadata["family"]
        is_cal = metadata.get("rule") == "cal"
        low, high = (float(metadata[f"{'logit' if is_cal else 'delta'}_{end}"]) for end in ("min", "max"))
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: metadata lacks a usable {error}") from None
    fields.pop("architectures", None)
    model_type = fields.pop("model_type", "qwen2" if "qwen2" in family else "llama")
    config = AutoConfig.for_model(
        model_type if model_type in ("qwen2", "llama") else ("qwen2" if "qwen" in family else "llama"), **fields
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    state = {name.removeprefix("state/"): tensor for name, tensor in tensors.items() if name.startswith("state/")}
    try:
        absent, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise InputError(
            f"{path}: weights do not fit the configuration ({str(error).splitlines()[-1].strip()[:160]})"
        ) from None
    absent = [name for name in absent if not (name == "lm_head.weight" and config.tie_word_embeddings)]
    if absent or unexpected:
        raise InputError(
            f"{path}: weights do not fit a {config.model_type} model (absent {absent[:3]}, unexpected {unexpected[:3]})"
        )
    model.tie_weights()
    batch = {name: tensors[name] for name in ("inputs_embeds", "attention_mask", "image_mask", "labels")}
    batch["attention_mask"] = batch["attention_mask"].long()
    weighting = Weighting("cal" if is_cal else "cmo", low, high, form="released")
    return model.eval(), batch, weighting, tensors["loss"], tensors["grad_inputs_embeds"]


def relative_errors(path: Path) -> tuple[float, float]:
    """Relative error of our released-form loss, and of its gradient with respect to the embeddings (largest norm)."""
    from dpa.loss import batch_loss

    model, batch, weighting, loss, gradient = load_golden(path)
    batch["inputs_embeds"] = batch["inputs_embeds"].clone().requires_grad_()
    ours = batch_loss(model, batch, weighting).mean
    ours.backward()
    grad = batch["inputs_embeds"].grad
    loss_error = (ours.detach() - loss.squeeze()).abs() / loss.squeeze().abs()
    gradient_error = (grad - gradient).abs().max() / gradient.abs().max()
    return float(loss_error), float(gradient_error)


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dpa.parity", description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.safetensors")
    options = parser.parse_args(arguments)
    status = 0
    width = max(len(path.name) for path in options.files)
    for path in options.files:
        try:
            loss_error, gradient_error = relative_errors(path)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 2
            continue
        passed = loss_error <= MAX_LOSS_ERROR and gradient_error <= MAX_GRADIENT_ERROR
        print(
            f"{path.name:<{width}}  loss {loss_error:.1e}  gradient {gradient_error:.1e}  {'ok' if passed else 'FAILED'}"
        )
        status = status if passed else max(status, 1)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
