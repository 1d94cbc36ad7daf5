"""The final checkpoint: canonical names, settings in both spellings, equal logits in transformers 5 and in 4.57."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from dpa import export, processing
from dpa import model as models
from dpa.errors import InputError
from dpa.lab.small import build_tokenizer
from tests.conftest import tiny_llm, tiny_tower
from tests.test_model import tiny_siglip

MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a red ball"}]}]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES = ("qwen2-clip", "qwen2-clip-tied", "llama-clip", "llama-siglip", "llama-clip-anyres", "gemma2-clip-anyres")


def build(case: str, *, seed: int = 0):
    """(model, processor) of "family-tower[-tied][-anyres]", with rotary settings that are not the family's own."""
    family, tower_kind, *more = case.split("-")
    tokenizer = build_tokenizer(["a red ball and a blue cube"])
    llm = tiny_llm(family, vocab_size=len(tokenizer), seed=seed, tied="tied" in more)
    if family in ("llama", "qwen2"):
        llm.config.rope_parameters = (
            LLAMA3 if family == "llama" else {"rope_type": "default", "rope_theta": 77.0}
        ).copy()
        llm.model.rotary_emb = type(llm.model.rotary_emb)(llm.config)
    tower = tiny_siglip(seed) if tower_kind == "siglip" else tiny_tower(seed)
    tower.config._attn_implementation = "eager"  # as both versions are asked for below
    anyres = "anyres" in more
    model = models.compose(llm, tower, tokenizer, seed=seed, anyres=anyres).eval()
    for name, parameter in model.named_parameters():
        if "projector" in name or "newline" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model, processing.build_processor(tokenizer, tower, anyres=anyres)


def ask(processor):
    """Processor's inputs for a question about a picture that is not square."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 90, 3), dtype=np.uint8))
    text = processor.apply_chat_template(MESSAGES, add_generation_prompt=True)
    return picture, text, processor(images=picture, text=text, return_tensors="pt")


def reload(folder):
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
    return model, AutoProcessor.from_pretrained(folder)


def vllm_name(name: str) -> str:
    """The rename that vLLM's WeightsMapper does: the first prefix that matches."""
    for old, new in export.VLLM_MAPPING.items():
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def saved_names(folder) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_what_is_loaded_is_what_was_trained(tmp_path, case):
    model, processor = build(case)
    export.export_checkpoint(model, processor, tmp_path)
    picture, text, inputs = ask(processor)
    loaded, again = reload(tmp_path)
    assert ask(again)[1] == text
    back = again(images=picture, text=text, return_tensors="pt")
    assert back.keys() == inputs.keys()
    assert all(torch.equal(back[key], inputs[key]) for key in inputs)
    torch.testing.assert_close(loaded(**back).logits, model(**inputs).logits, atol=1e-5, rtol=0)
    pointers = {module.weight.data_ptr() for module in (loaded.lm_head, loaded.get_input_embeddings())}
    assert len(pointers) == (1 if "tied" in case else 2)
    assert loaded.generation_config.eos_token_id == model.generation_config.eos_token_id
    # the comparison can fail: another model's weights give other logits
    assert (build(case, seed=1)[0](**inputs).logits - model(**inputs).logits).abs().max() > 0.1


@pytest.mark.parametrize("case", CASES)
def test_names_are_canonical_and_cover_every_weight(tmp_path, case):
    model, processor = build(case)
    export.export_checkpoint(model, processor, tmp_path)
    names = saved_names(tmp_path)
    assert {vllm_name(name) for name in names} == names, "vLLM would rename what is canonical already"
    allowed = ("language_model.model.", "language_model.lm_head.weight", "vision_tower.vision_model.")
    assert all(name.startswith((*allowed, "multi_modal_projector.", "image_newline")) for name in names)
    assert ("image_newline" in names) == ("anyres" in case)
    assert ("language_model.lm_head.weight" in names) == ("tied" not in case)
    every = {
        vllm_name(name).replace("vision_tower.", "vision_tower.vision_model.") for name, _ in model.named_parameters()
    }
    assert names == every


def test_settings_stand_in_both_spellings(tmp_path):
    model, processor = build("llama-clip")
    export.export_checkpoint(model, processor, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    text = config["text_config"]
    assert text["rope_theta"] == 500000.0 and text["rope_parameters"] == LLAMA3
    assert text["rope_scaling"] == {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    assert config["torch_dtype"] == config["dtype"] == text["torch_dtype"] == "float32"
    assert config["tie_word_embeddings"] is False and text["tie_word_embeddings"] is False
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert text["architectures"] == ["LlamaForCausalLM"]
    assert config["vision_config"]["model_type"] == "clip_vision_model"
    assert {"image_token_index", "vision_feature_layer", "vision_feature_select_strategy"} <= config.keys()
    tokenizer = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["chat_template"] == (tmp_path / "chat_template.jinja").read_text() == processor.chat_template
    assert "image_processor" not in json.loads((tmp_path / "processor_config.json").read_text())
    pictures = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert pictures["image_processor_type"] == "LlavaImageProcessor" and pictures["do_pad"] is True
    assert "_name_or_path" not in (tmp_path / "config.json").read_text()


def test_gemma3_has_two_rotary_bases(tmp_path):
    tokenizer = build_tokenizer(["a red ball"])
    llm = tiny_llm("gemma3_text", vocab_size=len(tokenizer))
    llm.config.rope_parameters["sliding_attention"]["rope_theta"] = 55.0
    llm.config.rope_parameters["full_attention"] |= {"rope_type": "linear", "factor": 8.0}
    model = models.compose(llm, tiny_tower(), tokenizer)
    text = export.settings(model, torch.float32)["text_config"]
    assert (text["rope_theta"], text["rope_local_base_freq"]) == (1000000.0, 55.0)
    assert text["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


def test_shards_a_cast_and_a_gathered_state(tmp_path):
    """Small shards with an index, bfloat16, from a state whose weights are views of one block, as optimizers keep them."""
    model, processor = build("llama-clip-anyres")
    state = model.state_dict()
    block = torch.cat([tensor.flatten() for tensor in state.values()])
    views = {
        name: view.view(state[name].shape)
        for name, view in zip(state, block.split([tensor.numel() for tensor in state.values()]), strict=True)
    }
    export.export_checkpoint(model, processor, tmp_path / "views", views)
    with safe_open(tmp_path / "views" / "model.safetensors", "pt") as file:
        for name, tensor in state.items():
            assert torch.equal(file.get_tensor(export.canonical_name(name)), tensor)
    export.export_checkpoint(model, processor, tmp_path, views, dtype=torch.bfloat16, max_shard_size=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2 and set(index["weight_map"].values()) == {shard.name for shard in shards}
    assert all(tensor.dtype == torch.bfloat16 for shard in shards for tensor in load_file(shard).values())
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name].bfloat16()), name


def test_a_state_that_lacks_a_weight_is_refused(tmp_path):
    model, processor = build("qwen2-clip")
    state = model.state_dict()
    del state["model.multi_modal_projector.linear_1.bias"]
    with pytest.raises(RuntimeError, match=r"lacks 1 .*linear_1\.bias"):
        export.export_checkpoint(model, processor, tmp_path, state)


def test_special_tokens_of_the_llm_survive(tmp_path):
    model, processor = build("qwen2-clip")
    processor.tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>"]})
    export.export_checkpoint(model, processor, tmp_path)
    tokenizer = AutoProcessor.from_pretrained(tmp_path).tokenizer
    assert set(tokenizer.all_special_tokens) == {*processor.tokenizer.all_special_tokens, "<|image_pad|>"}
    assert tokenizer.image_token == "<|image_pad|>"
    assert tokenizer("<|im_start|>user a ball").input_ids == processor.tokenizer("<|im_start|>user a ball").input_ids


def test_a_difference_elsewhere_is_said(tmp_path):
    model, processor = build("gemma2-clip-anyres")
    notes = export.export_checkpoint(model, processor, tmp_path / "gemma2")
    assert notes == [export.GEMMA2_NOTE] and (tmp_path / "gemma2" / export.NOTES).read_text() == notes[0] + "\n"
    model, processor = build("qwen2-clip")
    assert export.export_checkpoint(model, processor, tmp_path / "qwen2") == []
    assert not (tmp_path / "qwen2" / export.NOTES).exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    model, processor = build("qwen2-clip")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as error:
        export.export_checkpoint(model, processor, tmp_path / "file" / "out")
    assert "file" in str(error.value) and "\n" not in str(error.value)


OLD = ("transformers==4.57.6", "tokenizers<0.23", "huggingface_hub<1.0")
OLD_NEEDS = ("requests", "idna", "charset_normalizer", "urllib3", "certifi")
READ_WITH_OLD = """
import json, sys
from pathlib import Path
import torch, transformers
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor
messages = json.loads(sys.argv[1])
results = {"version": transformers.__version__}
for folder in map(Path, sys.argv[2:]):
    model, loading = AutoModelForImageTextToText.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    processor = AutoProcessor.from_pretrained(folder)
    stored = load_file(folder / "asked.safetensors")
    logits, text_logits = stored.pop("logits"), stored.pop("text_logits")
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=Image.open(folder / "picture.png"), text=text, return_tensors="pt")
    result = {"missing": len(loading["missing_keys"]), "unexpected": len(loading["unexpected_keys"])}
    with torch.no_grad():
        result["inputs"] = sorted(inputs) == sorted(stored) and all(
            torch.equal(inputs[key].float(), stored[key].float()) for key in stored
        )
        result["logits"] = float((model(**stored).logits - logits).abs().max())
        result["text_logits"] = float((model(input_ids=stored["input_ids"][:, -6:]).logits - text_logits).abs().max())
        result["generates"] = model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1]
        factor = model.config.text_config.hidden_size ** -0.5
        for weight in (model.model.multi_modal_projector.linear_2.weight, model.model.multi_modal_projector.linear_2.bias):
            weight.mul_(factor)
        if hasattr(model.model, "image_newline"):
            model.model.image_newline.mul_(factor)
        result["logits_of_smaller_features"] = float((model(**stored).logits - logits).abs().max())
    results[folder.name] = result
print("RESULTS" + json.dumps(results))
"""


@pytest.fixture(scope="module")
def old_transformers(tmp_path_factory):
    """A folder with transformers 4.57 and what it needs beside this environment's torch, to be put first on PYTHONPATH."""
    target = tmp_path_factory.mktemp("old")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    done = subprocess.run([*command, *OLD, *OLD_NEEDS], capture_output=True, text=True, check=False)
    unreachable = ("No matching distribution", "Could not fetch", "ConnectionError", "Max retries")
    if done.returncode and any(sign in done.stderr for sign in unreachable):
        pytest.skip(f"pip cannot reach the packages: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return target


@pytest.mark.slow
def test_transformers_4_57_computes_the_same(tmp_path, old_transformers):
    """Logits to 1e-5 of a stored question with a picture. Gemma-2 alone differs, by the scale of its image features."""
    cases = (*CASES, "qwen2-siglip-anyres", "gemma2-clip-tied", "qwen3-clip", "gemma3_text-clip-anyres")
    for case in cases:
        model, processor = build(case)
        export.export_checkpoint(model, processor, tmp_path / case)
        picture, _, inputs = ask(processor)
        picture.save(tmp_path / case / "picture.png")
        loaded, _ = reload(tmp_path / case)
        with torch.no_grad():
            asked = {
                "logits": loaded(**inputs).logits,
                "text_logits": loaded(input_ids=inputs["input_ids"][:, -6:]).logits,
            }
        save_file(
            {key: tensor.contiguous() for key, tensor in (dict(inputs) | asked).items()},
            tmp_path / case / "asked.safetensors",
        )
    environment = os.environ | {"PYTHONPATH": str(old_transformers), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READ_WITH_OLD, json.dumps(MESSAGES), *(str(tmp_path / case) for case in cases)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "newly initialized" not in done.stderr + done.stdout
    results = json.loads(done.stdout.split("RESULTS")[1])
    assert results.pop("version").startswith("4.57")
    for case in cases:
        result = results[case]
        assert result["missing"] == result["unexpected"] == 0 and result["inputs"], (case, result)
        assert result["text_logits"] < 1e-5, (case, result)
        if case.startswith("gemma2"):  # 4.57 multiplies image features by sqrt(hidden) too; that is the only difference
            assert result["logits"] > 0.1 and result["logits_of_smaller_features"] < 1e-5, (case, result)
        else:
            assert result["logits"] < 1e-5, (case, result)
