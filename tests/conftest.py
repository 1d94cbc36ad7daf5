"""Shared fixtures: the folder of shared data, tiny random models of several families, a tiny tokenizer."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the tests are about CPU numbers
torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]


def shared_folder() -> Path | None:
    for candidate in (os.environ.get("DPA_SHARED"), ROOT.parent / "shared"):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    return None


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = shared_folder()
    if folder is None:
        pytest.skip("needs the shared data folder: ../shared, or the path in DPA_SHARED")
    return folder


FAMILIES = ("qwen2", "llama", "gemma2")


def tiny_llm(family: str, *, vocab_size: int = 97, seed: int = 0, tied: bool = False):
    """A random two-layer causal LM; its weights are large enough for probabilities to differ from uniform."""
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family == "gemma2":
        fields |= {
            "final_logit_softcapping": 5.0,
            "attn_logit_softcapping": 20.0,
            "sliding_window": 256,
            "query_pre_attn_scalar": 8,
        }
    if family == "gemma3_text":
        fields |= {
            "sliding_window": 256,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        }
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **fields)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    if not tied:
        model.lm_head.weight.data *= 1.5
    return model


def tiny_tower(seed: int = 0):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(seed)
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=24,
            patch_size=8,
        )
    ).eval()


@pytest.fixture(scope="session")
def lab_tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ROOT / "dpa" / "lab" / "foundations" / "llm")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory, lab_tokenizer) -> dict[str, Path]:
    """Folders of a tiny random LLM (Llama, with the lab's tokenizer: for a Qwen2 configuration AutoTokenizer would remake it) and of a tiny CLIP tower."""
    root = tmp_path_factory.mktemp("models")
    tiny_llm("llama", vocab_size=len(lab_tokenizer), seed=3).save_pretrained(root / "llm")
    lab_tokenizer.save_pretrained(root / "llm")
    tiny_tower().save_pretrained(root / "tower")
    return {"llm": root / "llm", "tower": root / "tower"}


SMALL = ["--per_device_train_batch_size", "8", "--logging_steps", "1", "--disable_tqdm", "true"]


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Forty captioned scenes and twenty with questions, in the LLaVA layout."""
    from dpa.lab.dataset import CAPTION_PROMPT
    from dpa.lab.language import ask, ornate
    from dpa.lab.world import draw_scene, render

    folder = tmp_path_factory.mktemp("data")
    captions, questions = [], []
    for index in range(40):
        rng = random.Random(index)
        scene = draw_scene(rng)
        render(scene, 24).save(folder / f"{index}.png")
        captions.append(
            {
                "id": str(index),
                "image": f"{index}.png",
                "conversations": [
                    {"from": "human", "value": CAPTION_PROMPT},
                    {"from": "gpt", "value": ornate(scene, rng)},
                ],
            }
        )
        if index < 20:
            question = ask(scene, rng)
            questions.append(
                {
                    "id": str(index),
                    "image": f"{index}.png",
                    "conversations": [
                        {"from": "human", "value": f"<image>\n{question.text}"},
                        {"from": "gpt", "value": question.answer},
                    ],
                }
            )
    questions.append(
        {"id": "text", "conversations": [{"from": "human", "value": "what is red"}, {"from": "gpt", "value": "yes"}]}
    )
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "questions.json").write_text(json.dumps(questions))
    return folder


def command(tiny_models, data, output, *more, recipe="small", stage="all", steps=4):
    return [
        *(
            "--recipe",
            recipe,
            "--stage",
            stage,
            "--output",
            str(output),
            "--llm",
            str(tiny_models["llm"]),
            "--vision-tower",
            str(tiny_models["tower"]),
        ),
        *(
            "--data",
            str(data / "captions.json"),
            "--images",
            str(data),
            "--instruct-data",
            str(data / "questions.json"),
            "--instruct-images",
            str(data),
        ),
        *("--max_steps", str(steps), *SMALL, *more),
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*.safetensors")))


@pytest.fixture(scope="session")
def finished(tiny_models, data, tmp_path_factory) -> Path:
    from dpa import train

    output = tmp_path_factory.mktemp("runs")
    assert train.main(command(tiny_models, data, output)) == 0
    return output
