"""Label masks under each family's chat template: the assistant's words and their end, nothing else, in every turn.

The templates are the families' formats, written down here; the tokenizers themselves are on the hub.
"""

import json

import pytest

from dpa import data as reading
from dpa.corpus import read_records
from dpa.data import Samples, encode_chat
from dpa.errors import InputError
from dpa.lab.small import build_tokenizer
from dpa.processing import CHAT_TEMPLATES, build_processor
from tests.conftest import tiny_tower

CHATML = (
    "{%- if messages[0]['role'] != 'system' -%}{{- '<|im_start|>system\\nYou help.<|im_end|>\\n' -}}{%- endif -%}"
    "{%- for m in messages -%}{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
LLAMA3 = (
    "{{- bos_token -}}{%- for m in messages -%}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + "
    "m['content'] | trim + '<|eot_id|>' -}}{%- endfor -%}{%- if add_generation_prompt -%}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"
)
GEMMA = (
    "{{- bos_token -}}{%- if messages[0]['role'] == 'system' -%}{{- raise_exception('System role not supported') -}}"
    "{%- endif -%}{%- for m in messages -%}{%- set role = 'model' if m['role'] == 'assistant' else m['role'] -%}"
    "{{- '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"
)
FAMILIES = {  # template, and what stands behind an answer's text
    "qwen2.5": (CHATML, "<|im_end|>\n"),
    "llama-3.1": (LLAMA3, "<|eot_id|>"),
    "gemma-2": (GEMMA, "<end_of_turn>\n"),
    "vicuna": (CHAT_TEMPLATES["vicuna"], "<|im_end|>"),  # its end-of-sequence token
}
TURNS = [("human", "<image>\nwhat is it?"), ("gpt", "a red ball"), ("human", "and now?"), ("gpt", "still a ball")]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(["what is it? a red ball, and now? still a ball. You help. system user assistant model"] * 3)


def record(tmp_path, turns, image="a.png"):
    row = {"id": "1", "image": image, "conversations": [{"from": who, "value": text} for who, text in turns]}
    (tmp_path / "d.json").write_text(json.dumps([row if image else {k: v for k, v in row.items() if k != "image"}]))
    return read_records(tmp_path / "d.json", "chat")[0]


def masked(encoded, tokenizer) -> list[str]:
    """The supervised runs as text."""
    runs: list[list[int]] = []
    before = False
    for token, label in zip(encoded.ids, encoded.supervised, strict=True):
        if label:
            runs += [] if before else [[]]
            runs[-1].append(token)
        before = label
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answers_and_their_ends_are_supervised(family, tokenizer, tmp_path):
    template, end = FAMILIES[family]
    tokenizer.chat_template, tokenizer.bos_token = template, "<|endoftext|>"
    encoded = encode_chat(record(tmp_path, TURNS), tokenizer, "<|image_pad|>")
    assert [run.strip(" ") for run in masked(encoded, tokenizer)] == ["a red ball" + end, "still a ball" + end]
    whole = tokenizer.decode(encoded.ids)
    assert whole.count("<|image_pad|>") == 1 and "what is it?" in whole
    if family == "vicuna":
        assert whole.startswith("<|endoftext|>A chat between") and "questions. USER: <|image_pad|>\nwhat" in whole
        assert "ASSISTANT: a red ball<|im_end|>USER: and now? ASSISTANT: still" in whole


@pytest.mark.parametrize("family", ["qwen2.5", "llama-3.1", "vicuna"])
def test_a_system_turn_is_read_and_not_supervised(family, tokenizer, tmp_path):
    tokenizer.chat_template, tokenizer.bos_token = FAMILIES[family][0], "<|endoftext|>"
    encoded = encode_chat(record(tmp_path, [("system", "You help."), *TURNS[:2]]), tokenizer, "<|image_pad|>")
    assert len(masked(encoded, tokenizer)) == 1 and "You help." in tokenizer.decode(encoded.ids)


QWEN3 = (  # a thought, empty here, stands before the last answer and is taken out of earlier ones
    "{%- for m in messages -%}{{- '<|im_start|>' + m['role'] + '\\n' -}}{%- if m['role'] == 'assistant' and loop.last -%}"
    "{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}{{- m['content'].strip() + '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
HEADED = (  # knows no generation prompt
    "{%- for m in messages -%}{{- m['role'] + ': ' + m['content'] + '<|im_end|>' -}}{%- endfor -%}"
)


@pytest.mark.parametrize("template", [QWEN3, HEADED])
def test_templates_whose_rendering_does_not_only_grow(template, tokenizer, tmp_path):
    tokenizer.chat_template = template
    encoded = encode_chat(record(tmp_path, TURNS), tokenizer, "<|image_pad|>")
    assert [run.strip() for run in masked(encoded, tokenizer)] == ["a red ball<|im_end|>", "still a ball<|im_end|>"]


def test_a_chat_that_begins_with_the_assistant(tokenizer, tmp_path):
    tokenizer.chat_template = CHATML
    turns = [("gpt", "a red ball"), *TURNS[:1], ("gpt", "still a ball")]
    encoded = encode_chat(record(tmp_path, turns), tokenizer, "<|image_pad|>")
    assert [run.strip() for run in masked(encoded, tokenizer)] == ["a red ball<|im_end|>", "still a ball<|im_end|>"]


def test_a_template_that_rewrites_the_answers_is_refused(tokenizer, tmp_path):
    tokenizer.chat_template = "{%- for m in messages -%}{{- m['role'] + ': ' + m['content'] | upper -}}{%- endfor -%}"
    with pytest.raises(InputError, match="rewrites the texts of turns"):
        encode_chat(record(tmp_path, TURNS), tokenizer, "<|image_pad|>")


def test_no_template_is_named(tokenizer, tmp_path):
    tokenizer.chat_template = None
    with pytest.raises(InputError, match=r"id '1'\).*chat template"):
        encode_chat(record(tmp_path, TURNS), tokenizer, "<|image_pad|>")


def test_a_turn_that_the_template_refuses_is_named(tokenizer, tmp_path):
    tokenizer.chat_template, tokenizer.bos_token = GEMMA, "<|endoftext|>"
    with pytest.raises(InputError, match=r"id '1'\).*System role not supported"):
        encode_chat(record(tmp_path, [("system", "You help."), *TURNS]), tokenizer, "<|image_pad|>")


def test_text_alone_has_no_image_token(tokenizer, tmp_path):
    tokenizer.chat_template = CHATML
    item = record(tmp_path, [("human", "and now?"), ("gpt", "a ball")], image=None)
    processor = build_processor(tokenizer, tiny_tower())
    sample = Samples([item], "chat", processor)[0]
    assert "pixel_values" not in sample and processor.image_token not in tokenizer.decode(sample["input_ids"])


def test_the_command_shows_each_stage_token_by_token(data, tiny_models, tmp_path, capsys):
    flags = ["--recipe", "small", "--llm", str(tiny_models["llm"]), "--vision-tower", str(tiny_models["tower"])]
    flags += ["--data", str(data / "captions.json"), "--instruct-data", str(data / "questions.json")]
    flags += ["--output", str(tmp_path), "--show", "1"]
    assert reading.main(flags) == 0
    told = capsys.readouterr().out
    assert "stage proxy: 40 records" in told and "stage instruct: 21 records" in told and "\x1b" not in told
    pair, chat = told.split("stage connector")[1], told.split("stage instruct")[1]
    assert "[image, 9 tokens]⟦" in pair.split("stage instruct")[0]  # the caption alone is supervised
    question = json.loads((data / "questions.json").read_text())[0]["conversations"]
    assert f"⟦{question[1]['value']}" in chat and question[0]["value"].split("\n")[1][:12] in chat.split("⟦")[0]
    assert reading.main([*flags, "--color", "always", "--stage", "proxy"]) == 0
    assert "\x1b[1;36m⟦" in capsys.readouterr().out


def test_data_are_shown_and_checked_without_a_recipe(data, tmp_path, capsys):
    from dpa import preflight

    flags = ["--data", str(data / "questions.json"), "--output", str(tmp_path)]
    assert reading.main([*flags, "--stage", "instruct", "--show", "1"]) == 0
    assert "stage instruct: 21 records" in capsys.readouterr().out
    assert preflight.main([*flags, "--stage", "instruct", "--llm", "lab"]) == 0
    assert "length in tokens" in capsys.readouterr().out
    assert reading.main(["--data", str(data / "captions.json"), "--show", "1", "--output", str(tmp_path)]) == 0
    assert "[image, 9 tokens]⟦" in capsys.readouterr().out
    assert reading.main(["--show", "1"]) == 2
    assert "give --data" in capsys.readouterr().err
