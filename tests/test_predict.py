"""Asking a real (tiny) checkpoint: prompts as in training, batches, a kill in between, a second run from what is kept."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from benchmarks import generation, predict, predictions, run
from benchmarks.lab import lab_items
from benchmarks.questions import MODES, How, questions
from benchmarks.suites import BENCHMARKS, Item, limited
from dpa.corpus import read_records
from dpa.data import Samples
from dpa.errors import InputError
from tests.conftest import ROOT, weights

SHORT = How(max_new_tokens=4)
BLIND = How("blind", max_new_tokens=4)


@pytest.fixture(autouse=True)
def nothing_kept():
    """No checkpoint of the test before."""
    predict._kept.clear()


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """(items, folder of their pictures), a few of each benchmark."""
    folder = tmp_path_factory.mktemp("asked") / "pictures"
    return lab_items(folder, single=3, pairs=2, groups=2), folder


@pytest.fixture(scope="module")
def checkpoint(finished):
    return finished / "small" / "instruct"


def test_the_prompt_is_the_one_of_training(checkpoint, data):
    """Ids of the evaluation prompt = ids of the training sample up to its answer."""
    processor = AutoProcessor.from_pretrained(checkpoint)
    record = read_records(data / "questions.json", "chat")[0]
    sample = Samples([record], "chat", processor)[0]
    question = record.turns[0][1].removeprefix("<image>\n")
    text = generation.prompt_text(processor, question, picture=True)
    ids = processor(text=[text], images=[sample_image(data, record)], return_tensors="pt", add_special_tokens=False)[
        "input_ids"
    ][0]
    answer = int((sample["labels"] != -100).nonzero()[0])
    assert ids.tolist() == sample["input_ids"][:answer].tolist()


def sample_image(folder, record):
    from dpa.images import open_image

    return open_image(folder, record.image, "test")


def test_batches_do_not_change_answers_and_a_cut_file_continues(checkpoint, asked, tmp_path):
    items, pictures = asked
    one, many = tmp_path / "one.jsonl", tmp_path / "many.jsonl"
    predict.predict(str(checkpoint), items, pictures, one, SHORT, batch_size=1)
    predict.predict(str(checkpoint), items, pictures, many, SHORT, batch_size=7)
    answers = predictions.read_predictions(one)
    assert answers == predictions.read_predictions(many) and len(answers) == len(items) >= 20
    assert len({len(item.prompt) for item in items}) > 9, "prompts of one length are no test of padding"
    assert len(set(answers.values())) > 1, "a model that says one thing is no test of batches"
    whole = many.read_bytes()
    many.write_bytes(whole[: len(whole) // 2])  # killed in the middle of a line
    predict.predict(str(checkpoint), items, pictures, many, SHORT, batch_size=7)
    assert predictions.read_predictions(many) == answers


def test_blind_answers_do_not_depend_on_the_pictures(checkpoint, asked, tmp_path):
    items, pictures = asked
    predict.predict(str(checkpoint), items, pictures, tmp_path / "a.jsonl", BLIND)
    predict.predict(str(checkpoint), items, tmp_path, tmp_path / "b.jsonl", BLIND)
    assert predictions.read_predictions(tmp_path / "a.jsonl") == predictions.read_predictions(tmp_path / "b.jsonl")


@pytest.fixture(scope="module")
def loaded(checkpoint):
    """(model, processor) of the checkpoint."""
    return AutoModelForImageTextToText.from_pretrained(checkpoint).eval(), AutoProcessor.from_pretrained(checkpoint)


def decoder_calls(model, run):
    """[batch, places] of each call of the model's decoder during `run`."""
    calls = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    try:
        run()
    finally:
        hook.remove()
    return calls


def test_prompts_are_read_once_whatever_the_checkpoint_says(loaded, asked, monkeypatch):
    """A Trainer leaves use_cache off in what it saves; each new token is read alone all the same."""
    model, processor = loaded
    for name, value in (("use_cache", False), ("eos_token_id", None)):  # None: every answer has all its tokens
        monkeypatch.setattr(model.generation_config, name, value)
    calls = decoder_calls(
        model, lambda: list(generation.answers(model, processor, questions(*asked), asked[1], max_new_tokens=4))
    )
    assert [places for _, places in calls[1:]] == [1, 1, 1] and calls[0][1] > 9


def test_a_batch_ends_with_its_last_answer(loaded, asked, monkeypatch):
    model, processor = loaded
    monkeypatch.setattr(model.generation_config, "eos_token_id", list(range(len(processor.tokenizer))))
    assert (
        len(
            decoder_calls(
                model, lambda: list(generation.answers(model, processor, questions(*asked), asked[1], max_new_tokens=4))
            )
        )
        == 1
    )


def test_the_same_question_is_asked_once(loaded, asked):
    """With pictures a question is a prompt and a picture, without them a prompt; every item gets its answer."""
    model, processor = loaded
    items, pictures = asked
    twice = [*items, *(replace(item, index=f"{item.index}-again") for item in items)]
    for mode, number in (("seen", len(items)), ("blind", len({item.prompt for item in items}))):
        found = []
        calls = decoder_calls(
            model,
            lambda mode=mode, found=found: found.extend(
                generation.answers(
                    model, processor, questions(twice, pictures, mode), pictures, batch_size=100, max_new_tokens=1
                )
            ),
        )
        assert [rows for rows, _ in calls] == [number] and number < len(twice)
        given = {(item.benchmark, item.index): answer for item, answer, _ in found[0]}
        assert len(given) == len(twice)
        assert all(given[item.benchmark, item.index] == given[item.benchmark, f"{item.index}-again"] for item in items)


@pytest.mark.parametrize("anyres", [False, True])
def test_batches_are_sorted_by_the_tokens_that_the_model_reads(tiny_models, asked, tmp_path, anyres):
    """Tiled pictures have unlike numbers of tokens, which prompts do not tell; the longest come first."""
    from PIL import Image

    from dpa.model import load_tower
    from dpa.processing import build_processor

    processor = build_processor(
        AutoTokenizer.from_pretrained(tiny_models["llm"]), load_tower(str(tiny_models["tower"])), anyres=anyres
    )
    items = []
    for number, (width, height) in enumerate([(24, 24), (90, 30), (30, 90), (100, 100), (50, 40)]):
        Image.new("RGB", (width, height)).save(tmp_path / f"{number}.png")
        items.append(replace(asked[0][3 * number], benchmark="POPE", image=f"{number}.png"))
    read = []

    class Model:
        device, dtype, generation_config = "cpu", torch.float32, SimpleNamespace(eos_token_id=None)

        def generate(self, input_ids, attention_mask, **_):
            read.append(int(attention_mask.sum()))
            return input_ids

    for mode in MODES:
        read.clear()
        asked_now = questions(items, tmp_path, mode)
        list(generation.answers(Model(), processor, asked_now, tmp_path, batch_size=1))
        assert read == sorted(read, reverse=True) and len(read) == len({item.prompt for item in items}) == 5
        assert read == sorted(generation._num_tokens(processor, asked_now, tmp_path), reverse=True)


def test_a_missing_picture_is_named_before_anything_is_asked(loaded, asked, monkeypatch):
    model, processor = loaded
    monkeypatch.setattr(model, "generate", lambda **_: pytest.fail("asked first"))
    items = [*asked[0], replace(asked[0][0], prompt="gem", image="no.png", index="lost")]  # its turn comes last
    with pytest.raises(InputError, match=r"CVBench-2D item lost: .*no\.png does not exist"):
        list(generation.answers(model, processor, questions(items, asked[1]), asked[1], batch_size=1))


def test_answers_before_a_broken_picture_are_kept(checkpoint, asked, tmp_path):
    """Its header can be read, so it is found when its batch's turn comes; the others need not be asked again."""
    items, pictures = asked[0][:3], asked[1]
    for item in items:
        (tmp_path / item.image).write_bytes((pictures / item.image).read_bytes())
    (tmp_path / "cut.png").write_bytes((pictures / items[0].image).read_bytes()[:120])
    items = [*items, replace(items[0], prompt="gem", image="cut.png", index="cut")]
    with pytest.raises(InputError, match=r"CVBench-2D item cut: .*cut\.png is broken"):
        predict.predict(str(checkpoint), items, tmp_path, tmp_path / "p.jsonl", How(max_new_tokens=2), batch_size=1)
    assert {index for _, index in predictions.read_predictions(tmp_path / "p.jsonl")} == {i.index for i in items[:3]}


def test_no_items_no_answers(loaded, tmp_path):
    assert list(generation.answers(*loaded, {}, tmp_path)) == []


def test_another_setting_never_continues_a_file(checkpoint, asked, tmp_path):
    items, pictures = asked
    out = tmp_path / "p.jsonl"
    how = How(max_new_tokens=2)
    predict.predict(str(checkpoint), items[:3], pictures, out, how)
    before = out.read_bytes()
    changes = {
        "max new tokens": {"max_new_tokens": 3},
        "mode": {"mode": "blank"},
        "prompt line": {"prompt_line": "letter"},
        "decoding": {"temperature": 0.5},
        "attention": {"attention": "eager"},
        "chat template": {"chat_template": "vicuna"},
        "engine": {"server": "http://localhost:1"},
    }
    for part, change in changes.items():
        with pytest.raises(InputError, match=f"was made with another {part} .* delete it to ask again"):
            predict.predict(str(checkpoint), items[:3], pictures, out, replace(how, **change))
    with pytest.raises(InputError, match="another questions"):
        predict.predict(str(checkpoint), items[:4], pictures, out, how)
    with pytest.raises(InputError, match="another questions"):
        predict.predict(str(checkpoint), [*items[:2], replace(items[2], prompt="what is blue")], pictures, out, how)
    assert out.read_bytes() == before
    predict.predict(str(checkpoint), items[2::-1], pictures, out, how)  # in another order
    assert out.read_bytes() == before


def test_a_file_of_before_there_were_modes_is_refused(checkpoint, asked, tmp_path):
    made = predict.settings(str(checkpoint), *asked)
    made.pop("mode")
    header = {"settings": made | {"blind": False}, "provenance": {}}
    (tmp_path / "p.jsonl").write_text(json.dumps(header) + "\n")
    with pytest.raises(InputError, match=r"another mode \(not recorded\)"):
        predict.predict(str(checkpoint), *asked, tmp_path / "p.jsonl")


@pytest.fixture
def offline(monkeypatch):
    """No socket connects; the addresses that were tried."""
    tried: list = []

    def refuse(*address, **_):
        tried.append(address)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(f"socket.socket.{name}", refuse)
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(f"socket.{name}", refuse)
    return tried


def test_no_socket_is_opened(checkpoint, asked, tmp_path, offline):
    predict.predict(str(checkpoint), asked[0][:2], asked[1], tmp_path / "p.jsonl", SHORT)
    assert len(predictions.read_predictions(tmp_path / "p.jsonl")) == 2 and offline == []


# what is shown


def pictures_of(folder, contents: dict[str, int]) -> None:
    """A picture of 3 x 2 pixels for each name, its colour by number."""
    from PIL import Image

    for name, colour in contents.items():
        Image.new("RGB", (3, 2), (colour, 0, 0)).save(folder / name)


def item(benchmark: str, index: str, image: str, prompt: str = "what is red") -> Item:
    return Item(benchmark, index, image, prompt, "ball", ("ball", "cube"), unit=index, task="")


@given(
    colours=st.dictionaries(
        st.sampled_from([f"{letter}.png" for letter in "abcdefghij"]), st.integers(0, 6), min_size=2
    ),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_shuffled_pictures_are_a_derangement_by_content(tmp_path_factory, colours, seed):
    """None keeps its own, nor a copy of it under another name; each content comes once; the order does not matter."""
    folder = tmp_path_factory.mktemp("shuffled")
    pictures_of(folder, colours)
    items = [item("POPE", name, name, prompt=name) for name in colours]
    if len(set(colours.values())) == 1:
        with pytest.raises(InputError, match="POPE: has one picture only"):
            questions(items, folder, "shuffled")
        return
    shown = {q.prompt: q.picture for q in questions(items, folder, "shuffled")}
    assert shown.keys() == colours.keys()
    to = {(colours[own], colours[other]) for own, other in shown.items()}
    assert all(own != other for own, other in to)
    assert len(to) == len({other for _, other in to}) == len(set(colours.values()))
    random.Random(seed).shuffle(items)
    assert {q.prompt: q.picture for q in questions(items, folder, "shuffled")} == shown


def test_the_derangement_is_the_same_for_ever(tmp_path):
    """Answers kept from an earlier version were made with it."""
    pictures_of(tmp_path, {f"{number}.png": number for number in range(5)})
    items = [item("POPE", str(number), f"{number}.png", prompt=str(number)) for number in range(5)]
    shown = {q.prompt: q.picture for q in questions(items, tmp_path, "shuffled")}
    assert shown == {"0": "1.png", "1": "4.png", "2": "0.png", "3": "2.png", "4": "3.png"}


def test_shuffled_pictures_stay_in_their_benchmark(asked):
    items, folder = asked
    own = {i.image: i.benchmark for i in items}
    for question, same in questions([i for i in items if i.benchmark != "MMVP"], folder, "shuffled").items():
        for one in same:
            assert own[question.picture] == one.benchmark and question.picture != one.image
            assert (folder / question.picture).read_bytes() != (folder / one.image).read_bytes()


def test_what_each_mode_shows(tmp_path, monkeypatch, loaded):
    """The pictures as the processor gets them: own, none, grey of the same size, the other's; grey ones of a size once."""
    from PIL import Image

    Image.new("RGB", (40, 20), "red").save(tmp_path / "red.png")
    Image.new("RGB", (40, 20), "blue").save(tmp_path / "blue.png")
    items = [item("POPE", name, f"{name}.png") for name in ("red", "blue")]
    model, processor = loaded
    got = []
    monkeypatch.setattr(
        type(processor), "__call__", lambda self, images, **_: got.append(images) or pytest.skip.Exception("enough")
    )
    shown = {}
    for mode in MODES:
        got.clear()
        with pytest.raises(Exception):  # noqa: B017  the stand-in returns nothing to answer
            list(generation.answers(model, processor, questions(items, tmp_path, mode), tmp_path))
        shown[mode] = got[0] and [(picture.size, picture.getpixel((0, 0))) for picture in got[0]]
    red, blue, grey = ((40, 20), (255, 0, 0)), ((40, 20), (0, 0, 255)), ((40, 20), (128, 128, 128))
    assert shown == {"seen": [red, blue], "blind": None, "blank": [grey], "shuffled": [blue, red]}


def test_modes_differ_and_are_recorded(checkpoint, asked, tmp_path):
    """The whole command, all four modes at once; a seen file is not continued as another mode."""
    items, folder = asked
    items = [i for i in items if i.benchmark != "MMVP" or i.unit != items[-1].unit]
    predict.write_items(tmp_path / "items.jsonl", items)
    about = ["--model", str(checkpoint), "--items", str(tmp_path / "items.jsonl"), "--images", str(folder)]
    files = {mode: tmp_path / f"{mode}.jsonl" for mode in MODES}
    assert predict.main([*about, *(f"--{m}={f}" for m, f in files.items()), "--max-new-tokens", "4"]) == 0
    given = {mode: predictions.read_predictions(file) for mode, file in files.items()}
    assert {len(answers) for answers in given.values()} == {len(items)}
    assert all(given["seen"] != given[mode] for mode in ("blind", "blank", "shuffled"))
    for mode, file in files.items():
        assert json.loads(file.read_text().split("\n")[0])["settings"]["mode"] == mode


def test_limited_keeps_units_whole(asked):
    items = asked[0]
    few = limited(items, 1)
    for name in {i.benchmark for i in items}:
        own, all_of_it = ([i for i in some if i.benchmark == name] for some in (few, items))
        assert len({i.unit for i in own}) == 1 and own == [i for i in all_of_it if i.unit == all_of_it[0].unit]
    assert limited(items, None) == limited(items, 10_000) == items
    assert len([i for i in few if i.benchmark == "NaturalBench"]) == 4 and BENCHMARKS["NaturalBench"].metric == "group"


def test_a_limited_file_is_continued_without_the_limit(checkpoint, asked, tmp_path):
    """The first units' answers, shuffled pictures and all, are those of the whole run."""
    items, folder = asked
    items = [i for i in items if i.benchmark != "MMVP"]
    how = How("shuffled", max_new_tokens=2)
    predict.predict(str(checkpoint), items, folder, tmp_path / "p.jsonl", how, limit=1)
    first = (tmp_path / "p.jsonl").read_text()
    assert len(predictions.read_predictions(tmp_path / "p.jsonl")) == len(limited(items, 1)) < len(items)
    predict.predict(str(checkpoint), items, folder, tmp_path / "p.jsonl", how)
    predict.predict(str(checkpoint), items, folder, tmp_path / "whole.jsonl", how)
    assert (tmp_path / "p.jsonl").read_text().startswith(first)
    assert predictions.read_predictions(tmp_path / "p.jsonl") == predictions.read_predictions(tmp_path / "whole.jsonl")


def test_a_dry_run_says_what_would_be_asked_without_torch(checkpoint, asked, tmp_path):
    items, folder = asked
    predict.write_items(tmp_path / "items.jsonl", items)
    predict.predict(str(checkpoint), items, folder, tmp_path / "p.jsonl", SHORT, limit=1)
    before = sorted(tmp_path.iterdir())
    about = ["--items", str(tmp_path / "items.jsonl"), "--images", str(folder), "--max-new-tokens", "4", "--dry-run"]
    code = (
        "import sys; from benchmarks import predict; "
        f"status = predict.main({[*about, '--model', str(checkpoint), '--seen', str(tmp_path / 'p.jsonl')]}); "
        f"status += predict.main({[*about, '--model', 'no/where', '--blank', str(tmp_path / 'q.jsonl')]}); "
        "sys.exit(status or 'torch' in sys.modules or 'openai' in sys.modules)"
    )
    run_of = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run_of.returncode == 0, run_of.stderr
    text = run_of.stdout
    assert (
        f"{len(items)} items (" in text
        and f"{len(limited(items, 1))} items answered" in text
        and "NaturalBench 8" in text
    )
    assert "mode: seen" in text and "first prompt" in text and items[0].prompt.split("\n")[0] in text
    assert "grey, 72 x 72" in text and "no/where, not a folder here" in text
    assert sorted(tmp_path.iterdir()) == before


# checkpoints of other families


def chat_tokenizer(more: list[str]):
    from dpa.lab.small import build_tokenizer

    tokenizer = build_tokenizer(["what is the colour of the red ball and of the small blue cube"] * 3)
    tokenizer.add_special_tokens({"extra_special_tokens": more})
    return tokenizer


TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
    "bos_token_id": None,
}


def qwen_vl(kind: str):
    """(tiny random Qwen2-VL or Qwen2.5-VL, its processor without the part for video, which wants torchvision)."""
    from transformers import AutoConfig, Qwen2_5_VLProcessor, Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    marks = {name: f"<|{name}|>" for name in ("vision_start", "vision_end", "image_pad", "video_pad")}
    tokenizer = chat_tokenizer(list(marks.values()))
    ids = {name: tokenizer.convert_tokens_to_ids(mark) for name, mark in marks.items()}
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{% if p.type == 'image' %}"
        "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    pictures = Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 64, "longest_edge": 4096})
    processor = (Qwen2VLProcessor if kind == "qwen2_vl" else Qwen2_5_VLProcessor)(
        pictures, tokenizer, None, chat_template=template
    )
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}
    text = TEXT | {"vocab_size": len(tokenizer), "rope_parameters": rope, "pad_token_id": tokenizer.pad_token_id}
    vision = {"depth": 2, "num_heads": 2, "patch_size": 4}
    if kind == "qwen2_vl":
        vision |= {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 32, "window_size": 16}
    config = AutoConfig.for_model(
        kind,
        text_config=text | {"eos_token_id": tokenizer.eos_token_id},
        vision_config=vision,
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config).eval(), processor


def stock_llava(folder, anyres: bool, template: str | None):
    """A stock LLaVA-1.5 or LLaVA-NeXT checkpoint, tiny and random, written by transformers' own classes."""
    from transformers import (
        AutoConfig,
        LlavaNextProcessor,
        LlavaProcessor,
    )
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "dpa" / "lab" / "foundations" / "llm")
    tokenizer.chat_template = None
    kind, sized = ("llava_next" if anyres else "llava"), {"shortest_edge": 24}
    crop = {"height": 24, "width": 24}
    pictures = (
        LlavaNextImageProcessorPil(size=sized, crop_size=crop, image_grid_pinpoints=[[24, 48], [48, 24], [48, 48]])
        if anyres
        else LlavaImageProcessorPil(size=sized, crop_size=crop)
    )
    (LlavaNextProcessor if anyres else LlavaProcessor)(
        pictures,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)
    vision = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "image_size": 24, "patch_size": 8}
    text = TEXT | {"model_type": "llama", "vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2}
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = AutoConfig.for_model(kind, text_config=text, vision_config=vision, image_token_id=image)
    if anyres:
        config.image_grid_pinpoints = [[24, 48], [48, 24], [48, 48]]
    torch.manual_seed(1)
    model = AutoModelForImageTextToText.from_config(config)
    for name, parameter in model.named_parameters():
        if "projector" in name or "newline" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


VICUNA_STOCK = (  # as the first LLaVA checkpoints have it: it leaves the start token to the tokenizer
    "{% for m in messages %}{{ 'USER: ' if m.role == 'user' else 'ASSISTANT: ' }}{% for p in m.content %}"
    "{{ '<image>\n' if p.type == 'image' else p.text }}{% endfor %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """(items, folder): prompts and pictures of several lengths and shapes."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("mixed")
    rng = random.Random(0)
    words = ["what", "is", "the", "colour", "of", "the", "red", "ball", "and", "of", "the", "small", "blue", "cube"]
    items = []
    for number, size in enumerate([(24, 24), (60, 30), (30, 70), (50, 50), (24, 40), (64, 20), (33, 33), (48, 24)]):
        picture = Image.new("RGB", size)
        picture.putdata([tuple(rng.randrange(256) for _ in range(3)) for _ in range(size[0] * size[1])])
        picture.save(folder / f"{number}.png")
        items.append(item("POPE", str(number), f"{number}.png", " ".join(rng.choices(words, k=rng.randint(1, 14)))))
    return items, folder


@pytest.mark.parametrize("kind", ["llava", "llava_next", "qwen2_vl", "qwen2_5_vl"])
def test_stock_checkpoints_answer_in_batches_as_one_by_one(kind, mixed, tmp_path, monkeypatch):
    items, folder = mixed
    if kind.startswith("qwen"):
        monkeypatch.setattr(
            "transformers.processing_utils.ProcessorMixin.check_argument_for_proper_class", lambda *_: None
        )
        model, processor = qwen_vl(kind)
    else:
        model, processor = generation.load(str(stock_llava(tmp_path, kind == "llava_next", VICUNA_STOCK)))
    given: dict = {}
    for mode in ("seen", "blind"):
        for batch_size in (1, 5):
            batches = generation.answers(
                model, processor, questions(items, folder, mode), folder, batch_size=batch_size, max_new_tokens=6
            )
            given[mode, batch_size] = {i.index: answer for batch in batches for i, answer, _ in batch}
    assert given["seen", 1] == given["seen", 5] and len(given["seen", 1]) == len(items)
    assert given["blind", 1] == given["blind", 5] != given["seen", 1]
    assert len(set(given["seen", 1].values())) > 4, "a model that says one thing is no test of batches"


def test_the_start_token_comes_once(mixed, tmp_path):
    """From the tokenizer when the template does not write it, from the template when it does."""
    for number, template in enumerate((VICUNA_STOCK, "{{ bos_token }}" + VICUNA_STOCK)):
        model, processor = generation.load(str(stock_llava(tmp_path / str(number), False, template)))
        read = []
        model.register_forward_pre_hook(
            lambda _, args, kwargs, read=read: read.append(kwargs["input_ids"]), with_kwargs=True
        )
        list(generation.answers(model, processor, questions(mixed[0][:1], mixed[1]), mixed[1], max_new_tokens=1))
        assert (read[0] == processor.tokenizer.bos_token_id).sum() == 1 and read[0][0, 0] == 1


def test_a_checkpoint_without_a_chat_template_is_named_and_can_be_given_one(mixed, tmp_path):
    folder = stock_llava(tmp_path / "m", False, None)
    out = tmp_path / "p.jsonl"
    with pytest.raises(InputError, match=r"has no chat template; .*--chat-template vicuna"):
        predict.predict(str(folder), *mixed, out, SHORT)
    with pytest.raises(InputError, match="unknown chat template 'v2'; there is vicuna"):
        predict.predict(str(folder), *mixed, out, replace(SHORT, chat_template="v2"))
    _, processor = generation.load(str(folder), How(chat_template="vicuna"))
    text = generation.prompt_text(processor, "what is red", picture=True)
    assert text.startswith("<s>A chat between") and text.endswith("USER: <image>\nwhat is red ASSISTANT:")
    predict.predict(str(folder), *mixed, out, replace(SHORT, chat_template="vicuna"))
    assert len(predictions.read_predictions(out)) == len(mixed[0])


def test_a_processor_for_video_too_names_what_it_lacks(mixed, tmp_path):
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        pytest.skip("torchvision is here, nothing is lacking")
    folder = tmp_path / "qwen"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.processing_utils.ProcessorMixin.check_argument_for_proper_class", lambda *_: None)
        model, processor = qwen_vl("qwen2_vl")
    model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    about = {"processor_class": "Qwen2VLProcessor", "image_processor_type": "Qwen2VLImageProcessor"}
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        fields = json.loads((folder / "preprocessor_config.json").read_text())
        (folder / name).write_text(json.dumps(fields | about))
    with pytest.raises(InputError, match="install torchvision"):
        predict.predict(str(folder), *mixed, tmp_path / "p.jsonl")


# memory, cut answers, sampling


def test_a_batch_that_does_not_fit_is_halved(loaded, asked, monkeypatch):
    model, processor = loaded
    folder = asked[1]
    whole = {
        i.index: a
        for b in generation.answers(model, processor, questions(*asked), folder, max_new_tokens=3)
        for i, a, _ in b
    }
    sizes = []
    generate = model.generate

    def small(input_ids, **kwargs):
        sizes.append(len(input_ids))
        if len(input_ids) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(model, "generate", small)
    batches = list(generation.answers(model, processor, questions(*asked), folder, batch_size=16, max_new_tokens=3))
    assert {i.index: a for b in batches for i, a, _ in b} == whole
    assert sizes[:3] == [16, 8, 4] and max(sizes[2:]) == 4 and sum(sizes[2:]) == len(questions(*asked))
    monkeypatch.setattr(model, "generate", lambda **_: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(InputError, match="memory is too small for this question alone"):
        list(generation.answers(model, processor, questions(*asked), folder))


def test_answers_that_were_cut_are_marked(checkpoint, loaded, asked, tmp_path, monkeypatch, capsys):
    model, processor = loaded
    items, folder = asked
    monkeypatch.setattr(predict, "load", lambda *_, **__: loaded)
    short, long = (How(max_new_tokens=number) for number in (1, 40))
    predict.predict(str(checkpoint), items, folder, tmp_path / "1.jsonl", short)
    predict.predict(str(checkpoint), items, folder, tmp_path / "40.jsonl", long)
    answers = predictions.read_predictions(tmp_path / "40.jsonl")
    cut = predictions.read_truncated(tmp_path / "1.jsonl")
    ids = {key: processor.tokenizer(text, add_special_tokens=False).input_ids for key, text in answers.items()}
    assert all(key in cut for key, own in ids.items() if len(own) > 1), "what goes on after one token was cut"
    assert predictions.read_truncated(tmp_path / "40.jsonl") <= cut
    monkeypatch.setattr(model.generation_config, "eos_token_id", list(range(len(processor.tokenizer))))
    predict.predict(str(checkpoint), items, folder, tmp_path / "end.jsonl", short)
    assert predictions.read_truncated(tmp_path / "end.jsonl") == set()


def test_sampling_is_by_seed(checkpoint, asked, tmp_path):
    items, folder = asked[0][:6], asked[1]
    given = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        how = How(max_new_tokens=6, temperature=3.0, seed=seed)
        predict.predict(str(checkpoint), items, folder, tmp_path / f"{name}.jsonl", how)
        given[name] = predictions.read_predictions(tmp_path / f"{name}.jsonl")
    assert given["a"] == given["b"] != given["c"]


# shards, kills, two runs at once


def test_each_batch_is_on_the_disk_before_the_next_is_asked(checkpoint, loaded, asked, tmp_path, monkeypatch):
    model, _ = loaded
    seen: list[int] = []
    generate = model.generate
    out = tmp_path / "p.jsonl"

    def counting(**kwargs):
        seen.append(len(predictions.read_predictions(out)))
        return generate(**kwargs)

    monkeypatch.setattr(predict, "load", lambda *_, **__: loaded)
    monkeypatch.setattr(model, "generate", counting)
    predict.predict(str(checkpoint), *asked, out, SHORT, batch_size=4)
    assert seen == list(range(0, len(asked[0]), 4)), "no batch in memory alone"


@pytest.fixture(scope="module")
def whole(checkpoint, asked, tmp_path_factory):
    """The answers of an undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "p.jsonl"
    predict.predict(str(checkpoint), *asked, out, SHORT)
    return predictions.read_predictions(out)


def no_parts(out):
    return [path.name for path in out.parent.iterdir() if "part" in path.name or "lock" in path.name] == []


def test_shares_of_machines_are_disjoint_and_merged(checkpoint, asked, whole, tmp_path, monkeypatch, loaded):
    """Machines 1 and 3 of 3 are done, one part torn; a plain run merges them and asks the rest, none twice."""
    monkeypatch.setattr(predict, "load", lambda *_, **__: loaded)
    out = tmp_path / "p.jsonl"
    for number in (1, 3):
        predict.predict(str(checkpoint), *asked, out, SHORT, shard=(number, 3))
    assert not out.exists()
    parts = [predictions.part_file(out, number, 3) for number in (1, 3)]
    assert predictions.part_files(out) == parts and parts[0].name == "p.part-1-of-3.jsonl"
    keys = [set(predictions.read_predictions(part)) for part in parts]
    assert not keys[0] & keys[1] and all(8 <= len(own) <= 10 for own in keys)
    parts[1].write_bytes(parts[1].read_bytes()[:-9])  # a torn last line
    asked_now = []
    monkeypatch.setattr(predict, "answers", spy(predict.answers, asked_now))
    predict.predict(str(checkpoint), *asked, out, SHORT, batch_size=3)
    assert predictions.read_predictions(out) == whole and no_parts(out)
    assert sum(len(same) for same in asked_now[0].values()) == len(whole) - len(keys[0]) - len(keys[1]) + 1
    rows = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    assert len({(row["benchmark"], row["index"]) for row in rows}) == len(rows) == len(whole)


def test_a_share_is_continued_and_knows_the_other_parts(checkpoint, asked, whole, tmp_path, monkeypatch, loaded):
    monkeypatch.setattr(predict, "load", lambda *_, **__: loaded)
    out, log = tmp_path / "p.jsonl", []
    monkeypatch.setattr(predict, "answers", spy(predict.answers, log))
    predict.predict(str(checkpoint), *asked, out, SHORT, shard=(1, 2))
    predict.predict(str(checkpoint), *asked, out, SHORT, shard=(1, 2))
    predict.predict(str(checkpoint), *asked, out, SHORT, shard=(1, 4))  # half of what 1 of 2 has, all of it answered
    assert len(log) == 1 and not out.exists()
    predict.predict(str(checkpoint), *asked, out, SHORT, shard=(1, 1))
    assert sum(map(len, log[1].values())) == len(whole) - sum(map(len, log[0].values()))


def spy(function, log):
    def called(net, processor, asked, *args, **kwargs):
        log.append(asked)
        return function(net, processor, asked, *args, **kwargs)

    return called


def test_merge_alone_asks_nothing(checkpoint, asked, tmp_path, monkeypatch, loaded, capsys):
    out = tmp_path / "p.jsonl"
    predict.write_items(tmp_path / "items.jsonl", asked[0])
    monkeypatch.setattr(predict, "load", lambda *_, **__: loaded)
    about = ["--model", str(checkpoint), "--items", str(tmp_path / "items.jsonl"), "--images", str(asked[1])]
    about += ["--seen", str(out), "--max-new-tokens", "4"]
    assert predict.main([*about, "--shard", "2/2"]) == 0
    monkeypatch.setattr(predict, "load", lambda *_, **__: pytest.fail("asked"))
    capsys.readouterr()
    assert predict.main([*about, "--merge"]) == 0
    number = len(predictions.read_predictions(out))
    assert f"{out}: {number} of {len(asked[0])} items answered" in capsys.readouterr().out and number > 5
    assert no_parts(out)


def test_a_kill_while_merging_costs_nothing(checkpoint, asked, whole, tmp_path, monkeypatch, loaded):
    """Merged, but the part not yet deleted: its rows are not taken twice."""
    monkeypatch.setattr(predict, "load", lambda *_, **__: loaded)
    out = tmp_path / "p.jsonl"
    predict.predict(str(checkpoint), *asked, out, SHORT, shard=(1, 2))
    part = predictions.part_file(out, 1, 2)
    kept = part.read_bytes()
    wanted = predict.settings(str(checkpoint), *asked, SHORT)
    predictions.merge(out, wanted)
    once = out.read_bytes()
    assert not part.exists() and once == kept
    part.write_bytes(kept)
    out.write_bytes(once[: len(once) * 2 // 3])  # torn in the middle of the merge
    predictions.merge(out, wanted)
    assert sorted(out.read_bytes().splitlines()) == sorted(once.splitlines()) and not part.exists()


def test_a_part_of_another_setting_is_refused(checkpoint, asked, tmp_path, monkeypatch, loaded):
    monkeypatch.setattr(predict, "load", lambda *_, **__: loaded)
    out = tmp_path / "p.jsonl"
    predict.predict(str(checkpoint), *asked, out, How(max_new_tokens=2), shard=(1, 2))
    with pytest.raises(InputError, match=r"part-1-of-2\.jsonl: was made with another max new tokens"):
        predict.predict(str(checkpoint), *asked, out, SHORT)
    assert predictions.part_files(out) and not out.exists()


def test_two_runs_at_once_are_refused(checkpoint, asked, tmp_path):
    out = tmp_path / "p.jsonl"
    for held in (out, predictions.part_file(out, 1, 2)):
        if held != out:
            held.write_text("")
        with predictions.lock(held), pytest.raises(InputError, match="another process is writing it"):
            predict.predict(str(checkpoint), *asked, out, SHORT)
    assert not out.exists()


class Here:
    """An executor that works in this process, in place of one with processes."""

    def __init__(self, shards, **_):
        self.shards = shards

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments):
        future: Future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_shards_give_the_same_answers(checkpoint, asked, whole, tmp_path, loaded, monkeypatch, real):
    """Two processes, over the answers that a part of another number of shards and a run cut short had left."""
    out = tmp_path / "p.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(predict, "load", lambda *_, **__: loaded)
        predict.predict(str(checkpoint), *asked, out, SHORT, limit=1)
        predict.predict(str(checkpoint), *asked, out, SHORT, shard=(2, 5))
    shares: list = []
    if not real:
        monkeypatch.setattr(predict, "ProcessPoolExecutor", Here)
        monkeypatch.setattr(predict, "load", lambda *arguments, **more: shares.append((arguments[2], more)) or loaded)
    predict.predict(str(checkpoint), *asked, out, SHORT, shards=2, batch_size=3)
    assert predictions.read_predictions(out) == whole and no_parts(out)
    assert out.with_suffix(".seconds").is_file()
    assert real or shares == [(0, {"one_thread": True})], "one process, which keeps the checkpoint for its second share"


def test_a_checkpoint_is_loaded_once_for_all_files(checkpoint, asked, tmp_path, loaded, monkeypatch):
    loads: list = []
    monkeypatch.setattr(predict, "load", lambda *arguments, **_: loads.append(arguments[0]) or loaded)
    for mode in ("seen", "blind", "blank"):
        predict.predict(str(checkpoint), *asked, tmp_path / f"{mode}.jsonl", replace(SHORT, mode=mode), limit=1)
    assert loads == [str(checkpoint)]
    other = replace(SHORT, attention="eager")
    predict.predict(str(checkpoint), *asked, tmp_path / "eager.jsonl", other, limit=1)
    assert len(loads) == 2 and len(predict._kept) == 1, "another way of attending is another model, and takes its place"


def start(checkpoint, asked, out, *more):
    """The command in a process of its own, a question a batch."""
    items = out.parent / "items.jsonl"
    predict.write_items(items, asked[0])
    command = [sys.executable, "-m", "benchmarks.predict", "--model", str(checkpoint), "--items", str(items)]
    command += ["--images", str(asked[1]), "--seen", str(out), "--max-new-tokens", "4", "--batch-size", "1", *more]
    return subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def wait_for(condition, seconds=300.0):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "waited in vain"
        time.sleep(0.002)


def number_of_rows(out):
    return sum(path.read_bytes().count(b"\n") - 1 for path in [out, *predictions.part_files(out)] if path.is_file())


def test_killed_and_run_again(checkpoint, asked, whole, tmp_path):
    """SIGKILL in the midst of it: every answer that was written stays as it is, the rest is asked."""
    out = tmp_path / "p.jsonl"
    process = start(checkpoint, asked, out)
    wait_for(lambda: number_of_rows(out) > 2)
    process.kill()
    process.communicate()
    kept = out.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    assert 2 < number_of_rows(out) < len(whole), "killed too late to be a test"
    predict.predict(str(checkpoint), *asked, out, SHORT)
    assert predictions.read_predictions(out) == whole
    assert out.read_bytes().startswith(kept) and number_of_rows(out) == len(whole)


@pytest.mark.slow
def test_shards_killed_at_random_and_run_again(checkpoint, asked, whole, tmp_path):
    """The parent or one of its shards is killed at random moments, and each time another number of shards goes on."""
    import psutil

    out, rng, rows = tmp_path / "p.jsonl", random.Random(0), 0
    for turn, target in enumerate(("child", "parent")):
        process = start(checkpoint, asked, out, "--shards", str(2 + turn % 2))
        children: list = []
        wait_for(lambda process=process: len(psutil.Process(process.pid).children(recursive=True)) >= 2)
        wait_for(lambda rows=rows: number_of_rows(out) > rows + rng.randint(0, 3))
        family = psutil.Process(process.pid)
        children = [c for c in family.children(recursive=True) if "spawn_main" in " ".join(c.cmdline())]
        if target == "parent":
            process.kill()
        else:
            rng.choice(children).send_signal(signal.SIGKILL)
        _, error = process.communicate(timeout=300)
        assert process.returncode == (-signal.SIGKILL if target == "parent" else 2)
        if target == "child":
            assert "a shard's process was killed" in error.splitlines()[-1], error
        psutil.wait_procs(children, timeout=20)
        assert not any(child.is_running() and child.status() != "zombie" for child in children), "orphans go on"
        assert number_of_rows(out) > rows, "what was written is kept"
        rows = number_of_rows(out)
    process = start(checkpoint, asked, out, "--shards", "2")
    assert process.wait(300) == 0
    assert predictions.read_predictions(out) == whole and no_parts(out)


def test_a_shard_that_stops_names_why_and_the_others_finish(checkpoint, asked, whole, tmp_path, loaded, monkeypatch):
    monkeypatch.setattr(predict, "load", lambda *_, **__: loaded)
    monkeypatch.setattr(predict, "ProcessPoolExecutor", Here)
    items, pictures = asked
    for name in {i.image for i in items}:
        (tmp_path / name).write_bytes((pictures / name).read_bytes())
    broken = tmp_path / items[-1].image
    data = broken.read_bytes()
    broken.write_bytes(data[:120] + bytes(len(data) - 120))
    out = tmp_path / "p.jsonl"
    with pytest.raises(InputError, match=rf"item .*{items[-1].image} is broken"):
        predict.predict(str(checkpoint), items, tmp_path, out, SHORT, shards=2, batch_size=1)
    assert number_of_rows(out) > len(items) // 2
    broken.write_bytes(data)
    predict.predict(str(checkpoint), items, tmp_path, out, SHORT)
    assert predictions.read_predictions(out) == whole and no_parts(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "m"], "--seen FILE"),
        (["--seen", "p", "--model", "m", "--server", "u", "--server-model", "n"], "give a checkpoint with --model, or"),
        (["--seen", "p", "--server", "http://localhost:1"], "give a checkpoint with --model, or"),
        (["--seen", "p"], "give a checkpoint with --model, or"),
        (["--seen", "p", "--model", "m", "--limit", "0"], "--limit should be a positive number, got 0"),
        (["--seen", "p", "--model", "m", "--temperature", "-1"], "--temperature should be 0 or more"),
        (["--seen", "p", "--model", "m", "--shards", "2", "--shard", "1/2"], "give one of them"),
        (["--seen", "p", "--server", "u", "--server-model", "n", "--shards", "2"], "--concurrency"),
        (["--seen", "p", "--model", "m"], "items.jsonl: no such items file"),
    ],
)
def test_a_mistyped_prediction_is_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert predict.main([*arguments, "--items", "items.jsonl", "--images", "."]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3"])
def test_a_share_is_i_of_n(text, capsys):
    with pytest.raises(SystemExit):
        predict.parse(["--items", "i", "--images", ".", "--shard", text])
    assert "should be i/N" in capsys.readouterr().err


def test_run_prints_the_same_table_twice(checkpoint, tmp_path, capsys, monkeypatch, asked):
    items, pictures = asked
    monkeypatch.setattr("benchmarks.lab_general.suite_parts", lambda names, output: {"lab": (items, pictures)})
    arguments = [
        "--model",
        str(checkpoint),
        "--output",
        str(tmp_path / "out"),
        "--publish",
        str(tmp_path / "results"),
        "--max-new-tokens",
        "4",
    ]
    tables = []
    for attempt in range(2):
        if attempt:
            monkeypatch.setattr(
                "transformers.AutoModelForImageTextToText.from_pretrained", lambda *a, **k: pytest.fail("asked again")
            )
        assert run.main(arguments) == 0
        tables.append(capsys.readouterr().out.split("records:")[0])
    assert tables[0] == tables[1] and "chance" in tables[0] and "  blind" in tables[0]
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"table.md", "records.jsonl", "manifest.json"}
    rows = [json.loads(line) for line in (tmp_path / "results" / "records.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and all(row["versions"] and row["data_hash"] and row["seconds"] >= 0 for row in rows)
    assert len((tmp_path / "out" / "records.jsonl").read_text().splitlines()) == 8, "a second run adds no record twice"


def test_a_lost_time_file_does_not_stop_the_table(checkpoint, asked, tmp_path):
    items, pictures = asked
    out = tmp_path / "p.jsonl"
    for _ in range(2):
        predict.predict(str(checkpoint), items[:3], pictures, out, How(max_new_tokens=2))
        assert out.with_suffix(".seconds").is_file()
        out.with_suffix(".seconds").unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "-1"], "--jobs should be a positive number"),
        (["--batch-size", "0"], "--batch-size should be a positive number"),
        (["--methods", "dap"], "unknown method 'dap'"),
        (["--suite", "vision"], "unknown suite 'vision'"),
        (["--model", "runs/no/such"], "no such folder, and no hub id"),
        (["--data", "items.jsonl"], "give them with --model"),
        (["--data", "items.jsonl", "--model", "m"], "give it with --images"),
        (["--data", "items.jsonl", "--model", "m", "--images", "d"], "items.jsonl: no such file"),
    ],
)
def test_a_mistyped_command_is_one_line(tmp_path, capsys, monkeypatch, asked, arguments, message):
    monkeypatch.setattr("benchmarks.lab_general.suite_parts", lambda names, output: {"lab": asked})
    monkeypatch.chdir(tmp_path)
    assert run.main([*arguments, "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path, capsys, monkeypatch, asked):
    monkeypatch.setattr("benchmarks.lab_general.suite_parts", lambda names, output: {"lab": asked})
    (tmp_path / "model").mkdir()
    assert run.main(["--model", str(tmp_path / "model"), "--output", str(tmp_path)]) == 2
    assert "no model files here" in capsys.readouterr().err


def test_perplexity_names_what_is_no_adapter(tiny_models, data, tmp_path, capsys):
    from analysis import perplexity

    arguments = ["--llm", str(tiny_models["llm"]), "--proxy", str(tmp_path), "--captions", str(data / "captions.json")]
    assert perplexity.main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error:") and "no LoRA adapter" in error


def test_perplexity_of_a_known_source(tiny_models):
    """A model that gives every token the same probability scores log V per token, whatever the text."""
    from analysis.scoring import text_scores
    from dpa.model import load_llm

    tokenizer = AutoTokenizer.from_pretrained(tiny_models["llm"])
    model = load_llm(str(tiny_models["llm"]))
    model.lm_head.weight.data.zero_()
    texts = ["a red ball", "x", "", "🙂 and more words than the others, by far"]
    for text, (nats, tokens, size) in zip(texts, text_scores(model, tokenizer, texts, budget=16), strict=True):
        assert tokens == len(tokenizer(text + "\n").input_ids) - 1  # all but the start token
        assert nats == pytest.approx(tokens * math.log(len(tokenizer)), rel=1e-5)
        assert size == len((text + "\n").encode())


def test_perplexity_does_not_depend_on_the_batch(tiny_models):
    from analysis.scoring import text_scores
    from dpa.model import load_llm

    tokenizer = AutoTokenizer.from_pretrained(tiny_models["llm"])
    model = load_llm(str(tiny_models["llm"]))
    texts = ["a red ball", "the small blue cube and the moon", "star"]
    alone = [text_scores(model, tokenizer, [text])[0][0] for text in texts]
    assert [nats for nats, _, _ in text_scores(model, tokenizer, texts)] == pytest.approx(alone, rel=1e-5)


def test_the_image_changes_the_loss_as_by_hand(finished, data):
    """batch_loss on pictures = batch_loss on the embeddings that the picture's features were put into."""
    from transformers import LlavaForConditionalGeneration

    from dpa.data import Collator
    from dpa.loss import batch_loss
    from dpa.methods import CAL, CMO, NONE, Weighting

    folder = finished / "small" / "instruct"
    model, processor = LlavaForConditionalGeneration.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    samples = Samples(read_records(data / "captions.json", "pair")[:3], "pair", processor)
    batch = Collator(0)([samples[i] for i in range(3)])
    mask = batch["input_ids"] == model.config.image_token_id
    with torch.no_grad():
        features = torch.cat(list(model.get_image_features(pixel_values=batch["pixel_values"]).pooler_output))
        embeds = model.get_input_embeddings()(batch["input_ids"]).masked_scatter(mask[..., None], features)
        by_hand = {
            "inputs_embeds": embeds,
            "image_mask": mask,
            "labels": batch["labels"],
            "attention_mask": batch["attention_mask"],
        }
        for rule in (NONE, CMO, CAL, Weighting("cmo", 0.05, 0.5, form="released")):
            assert batch_loss(model, batch, rule).mean.item() == pytest.approx(
                batch_loss(model, by_hand, rule).mean.item(), rel=1e-5
            )
    assert weights(folder)
