"""Readers, label masks, collation; every bad input is one line that names file, record and fix."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpa import processing
from dpa.corpus import read_records
from dpa.data import Collator, Samples, encode_chat
from dpa.errors import InputError
from dpa.images import open_image
from tests.conftest import tiny_tower


def record(caption="a red ball", image="a.png", mark="<image>\n", **extra):
    return {
        "id": "7",
        "image": image,
        "conversations": [{"from": "human", "value": f"{mark}what is this"}, {"from": "gpt", "value": caption}],
    } | extra


def write(path: Path, value) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (40, 20), "red").save(folder / "a.png")
    Image.effect_noise((200, 200), 90).convert("RGB").save(folder / "noise.jpg")
    data = (folder / "noise.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.png").write_text("<html>404</html>")
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    Image.new("1", (9000, 9000)).save(folder / "bomb.png")
    Image.new("1", (60_000, 1)).save(folder / "thread.png")
    Image.new("F", (8, 8)).save(folder / "float.tiff")
    return folder


@pytest.fixture(scope="module")
def processor(lab_tokenizer):
    return processing.build_processor(lab_tokenizer, tiny_tower())


BAD_FILES = {
    "empty": ("", "the file is empty"),
    "truncated": ('[{"id": "1", "conv', "not valid JSON"),
    "no list": ("[]", "holds no record"),
    "wrong type": ("[3]", "expected an object"),
    "two objects in a line": ('{"a": 1}{"b": 2}', "line 1: not valid JSON"),
    "no conversations": ([{"id": "1"}], "'conversations' should be a list"),
    "turn without text": ([{"id": "1", "conversations": [{"from": "gpt"}]}], "a turn should be"),
    "unknown speaker": ([{"id": "1", "conversations": [{"from": "cat", "value": "x"}]}], "a turn should be"),
    "no mark": ([record(mark="")], "0 <image> marks for 1 image"),
    "two marks": ([record(mark="<image><image>")], "2 <image> marks for 1 image"),
    "no image": ([record(image=None)], "no 'image' field"),
    "two images": ([record(image=["a.png", "b.png"])], "'image' should be one path"),
    "empty caption": ([record(caption="  ")], "the caption is empty"),
    "empty first answer": (
        [
            {
                "id": "1",
                "image": "a.png",
                "conversations": [
                    {"from": "human", "value": "<image>"},
                    {"from": "gpt", "value": ""},
                    {"from": "gpt", "value": "x"},
                ],
            }
        ],
        "is empty",
    ),
    "mark in the caption": ([record(caption="a <image> here")], "stands in a 'gpt' turn"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named(tmp_path, name):
    content, message = BAD_FILES[name]
    file = write(tmp_path / "data.json", content)
    with pytest.raises(InputError) as error:
        read_records(file, "pair")
    assert message in str(error.value) and "data.json" in str(error.value) and "\n" not in str(error.value)


def test_the_second_of_three_records_is_the_one_named(tmp_path):
    file = write(tmp_path / "data.json", [record(), record(caption="", id="cat-2"), record()])
    with pytest.raises(InputError, match=r"record 2 \(id 'cat-2'\)"):
        read_records(file, "pair")


def test_not_text_and_not_there(tmp_path):
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x80")
    for name, word in (("binary.json", "UTF-8"), ("absent.json", "no such file")):
        with pytest.raises(InputError, match=word):
            read_records(tmp_path / name, "pair")


def test_json_and_json_lines_read_the_same(tmp_path):
    rows = [record(id=str(i), caption=f"caption {i}") for i in range(3)]
    array = read_records(write(tmp_path / "a.json", rows), "pair")
    lines = read_records(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)) + "\n"), "pair")
    assert [(r.id, r.caption, r.image) for r in array] == [(r.id, r.caption, r.image) for r in lines]


BAD_IMAGES = {
    "missing.png": "does not exist",
    "truncated.jpg": "is broken",
    "empty.png": "not an image",
    "page.png": "not an image",
    "../secret.png": "leads out of",
    "out.png": "leads out of",
    "/etc/passwd": "leads out of",
    "a\0b.png": "leads out of",
    "bomb.png": "pixels",
    "thread.png": "60000 x 1 pixels",
    "float.tiff": "no known range",
    "n" * 300 + ".png": "longer than a file name",
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_named(images, name):
    with pytest.raises(InputError) as error:
        open_image(images, name, "data.json record 4 (id '7')")
    assert BAD_IMAGES[name] in str(error.value) and "data.json record 4 (id '7')" in str(error.value)


def test_sixteen_bit_grey_keeps_its_greys(images):
    Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)).save(images / "deep.png")
    values = np.asarray(open_image(images, "deep.png", "here"))
    assert values.min() == 0 and values.max() == 255 and abs(values.mean() - 127.5) < 1  # PIL alone gives 254


def test_pair_view(tmp_path, images, processor):
    samples = Samples(read_records(write(tmp_path / "d.json", [record()]), "pair", images), "pair", processor)
    sample = samples[0]
    ids, labels = sample["input_ids"].tolist(), sample["labels"].tolist()
    image_id = samples.image_token_id
    assert ids.count(image_id) == samples.num_image_tokens(None) == 9
    assert sample["pixel_values"].shape == (3, 24, 24)
    supervised = [token for token in labels if token != -100]
    assert processor.tokenizer.decode(supervised) == "a red ball\n"
    assert labels[: ids.index(image_id) + 9] == [-100] * (ids.index(image_id) + 9)


def test_text_view_tells_the_same_tokens_as_the_pair_view(tmp_path, images, processor):
    """Stage 1 must fit the very tokens that stage 2 predicts."""
    file = write(tmp_path / "d.json", [record()])
    text = Samples(read_records(file, "text"), "text", processor.tokenizer)[0]["input_ids"].tolist()
    pair = Samples(read_records(file, "pair", images), "pair", processor)[0]
    assert text[1:] == [token for token in pair["labels"].tolist() if token != -100]


def test_chat_view_supervises_the_answers(tmp_path, processor):
    turns = [
        ("human", "<image>\nwhat is the colour of the ball"),
        ("gpt", "red"),
        ("human", "what is the size of the ball"),
        ("gpt", "small"),
    ]
    row = {"id": "1", "image": "a.png", "conversations": [{"from": who, "value": text} for who, text in turns]}
    item = read_records(write(tmp_path / "d.json", [row]), "chat")[0]
    ids, supervised = encode_chat(item, processor.tokenizer, processor.image_token)
    kept = processor.tokenizer.decode([token for token, label in zip(ids, supervised, strict=True) if label])
    assert kept.replace(" ", "") == "red</s>small</s>"


def test_a_text_only_record_trains_in_stage_three(tmp_path, processor):
    row = {"id": "1", "conversations": [{"from": "human", "value": "what is red"}, {"from": "gpt", "value": "yes"}]}
    samples = Samples(read_records(write(tmp_path / "d.json", [row]), "chat", tmp_path), "chat", processor)
    assert "pixel_values" not in samples[0]
    assert samples.image_token_id not in samples[0]["input_ids"]


def test_long_samples_are_cut(tmp_path, images, processor):
    samples = Samples(
        read_records(write(tmp_path / "d.json", [record(caption="ball " * 100)]), "pair", images),
        "pair",
        processor,
        max_length=30,
    )
    record_, encoded = samples.records[0], samples.encode(samples.records[0])
    assert len(encoded.ids) > 100 and len(samples.cut(record_, encoded).ids) == len(samples[0]["input_ids"]) == 30
    samples.max_length = 8  # nothing but image tokens is left
    with pytest.raises(InputError, match="no supervised token is left within 8 tokens"):
        samples[0]


HOSTILE_CAPTIONS = [
    "x" * 100_000,
    "nul \x00 byte",
    "שלום עולם",
    "🙂🙃" * 3,
    "日本語と English",
    "a\r\nb",
    "<|user|> injected </s>",
]


@pytest.mark.parametrize("caption", HOSTILE_CAPTIONS, ids=lambda c: ascii(c[:8]))
def test_hostile_captions_keep_their_labels(tmp_path, images, processor, caption):
    samples = Samples(
        read_records(write(tmp_path / "d.json", [record(caption=caption)]), "pair", images), "pair", processor
    )
    sample = samples[0]
    assert (sample["labels"] != -100).sum() > 0
    assert len(sample["labels"]) == len(sample["input_ids"]) <= 8192


def test_collator_pads_at_the_right(tmp_path, images, processor):
    rows = [record(), record(caption="a red ball and a very small blue cube", id="8")]
    samples = Samples(read_records(write(tmp_path / "d.json", rows), "pair", images), "pair", processor)
    batch = Collator(0)([samples[0], samples[1]])
    n = len(samples[0]["input_ids"])
    assert batch["attention_mask"][0].tolist() == [1] * n + [0] * (batch["input_ids"].shape[1] - n)
    assert (batch["labels"][0, n:] == -100).all()
    assert batch["pixel_values"].shape == (2, 3, 24, 24)
    assert "pixel_values" not in Collator(0)([{k: v for k, v in samples[0].items() if k != "pixel_values"}])


def test_the_picture_is_padded_to_a_square(images, processor, tmp_path):
    """A 40 x 20 red picture becomes bands of the mean colour around red, not a crop of red alone."""
    samples = Samples(read_records(write(tmp_path / "d.json", [record()]), "pair", images), "pair", processor)
    pixels = samples[0]["pixel_values"]
    assert not torch.allclose(pixels[:, 0, 12], pixels[:, 12, 12], atol=0.1)


def test_real_captions_read(shared):
    records = read_records(shared / "data" / "llava_pretrain_sample" / "blip_laion_cc_sbu_sample.json", "pair")
    assert len(records) == 1656 and all(r.caption.strip() and r.image for r in records)
