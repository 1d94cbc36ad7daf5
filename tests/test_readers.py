"""Readers of every layout, and the corpus that keeps them on disk: the same records, bad ones named, little memory."""

import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from dpa import corpus as corpora
from dpa import readers
from dpa.corpus import open_corpus, read_records
from dpa.errors import InputError
from dpa.readers import picture_name, read_json_records, source_hash

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.floats(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def llava(number: int, caption: str = "a red ball", **extra) -> dict:
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": f"{caption} {number}"}]
    return {"id": f"r{number}", "image": f"{number}.png", "conversations": turns} | extra


def texts(corpus) -> list[tuple]:
    return [(record.id, record.image, record.caption) for record in corpus]


@given(st.lists(JSON, max_size=6), st.sampled_from([None, 1]), st.integers(1, 40), st.sampled_from(["", " \n"]))
def test_an_array_read_in_pieces_is_the_array(tmp_path_factory, values, indent, chunk, around):
    file = tmp_path_factory.mktemp("json") / "a.json"
    file.write_text(around + json.dumps(values, indent=indent) + around, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "CHUNK", chunk)
        assert [value for _, value in read_json_records(file)] == values


@given(st.lists(st.dictionaries(st.text(max_size=3), st.integers()), min_size=1, max_size=4), st.data())
def test_no_array_cut_short_is_taken_for_whole(tmp_path_factory, values, data):
    whole = json.dumps(values)
    file = tmp_path_factory.mktemp("json") / "a.json"
    file.write_text(whole[: data.draw(st.integers(1, len(whole) - 1))], encoding="utf-8")
    with pytest.raises(InputError, match="truncated"):
        list(read_json_records(file))


@pytest.mark.parametrize("text", ["[1] [2]", "[1],", "[1 2]", "[1,]", "[,1]", '[{"a": 1}}'])
def test_an_array_with_something_behind_or_between_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match="line 1"):
        list(read_json_records(tmp_path / "a.json"))


def test_all_layouts_hold_the_same_records(tmp_path):
    rows = [llava(number) for number in range(5)]
    wanted = [(row["id"], row["image"], row["conversations"][1]["value"]) for row in rows]
    (tmp_path / "array.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "bom.json").write_text(json.dumps(rows), encoding="utf-8-sig")
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    table = [{"id": i, "image": name, "caption": caption} for i, name, caption in wanted]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "chat.parquet")
    parquet.write_table(pa.Table.from_pylist(table), tmp_path / "table.parquet")
    (tmp_path / "shards").mkdir()
    parquet.write_table(pa.Table.from_pylist(table[:2]), tmp_path / "shards" / "0.parquet")
    parquet.write_table(pa.Table.from_pylist(table[2:]), tmp_path / "shards" / "1.parquet")
    from datasets import Dataset

    Dataset.from_list(table).save_to_disk(tmp_path / "saved")
    for name in ("array.json", "bom.json", "lines.jsonl", "chat.parquet", "table.parquet", "shards", "saved"):
        assert texts(open_corpus([str(tmp_path / name)], "pair", cache=tmp_path / "cache")) == wanted, name


def test_a_folder_of_pictures_with_texts(tmp_path):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.jpg", "sub/b.png"):
        Image.new("RGB", (4, 4)).save(folder / name)
        (folder / name).with_suffix(".txt").write_text(f"caption of {name}")
    Image.new("RGB", (4, 4)).save(folder / "silent.png")
    corpus = open_corpus([str(folder)], "pair", cache=tmp_path / "cache")
    assert texts(corpus) == [("a.jpg", "a.jpg", "caption of a.jpg"), ("sub/b.png", "sub/b.png", "caption of sub/b.png")]
    assert [str(problem) for problem in corpus.problems] == [
        f"{folder} picture silent.png (id 'silent.png'): the caption is empty; give the 'gpt' turn a text or take the record out"
    ]
    assert corpus[0].images == folder


def test_pixmo_cap_by_address_and_with_pictures_inside(tmp_path):
    url = "https://example.org/cat.jpg"
    rows = [{"image_url": url, "caption": "a cat", "transcripts": ["so this is a cat"]}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "pixmo.parquet")
    corpus = open_corpus([str(tmp_path / "pixmo.parquet")], "pair", cache=tmp_path / "cache")
    assert texts(corpus) == [("1", picture_name(url), "a cat")] and corpus[0].images == tmp_path
    inside = io.BytesIO()
    Image.new("RGB", (5, 3), "red").save(inside, "PNG")
    rows = [{"image": {"bytes": inside.getvalue(), "path": "x.png"}, "caption": "red"}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "inside.parquet")
    for images in (None, tmp_path / "elsewhere"):  # what a record holds itself is not looked for elsewhere
        record = open_corpus([str(tmp_path / "inside.parquet")], "pair", cache=tmp_path / "cache", images=[images])[0]
    with Image.open(record.images / record.image) as image:
        assert image.size == (5, 3)


def test_a_set_of_the_hub_is_read_as_a_stream(tmp_path, monkeypatch):
    """No hub here: what stands behind the two calls to it is a local table, streamed by the same library."""
    import datasets

    parquet.write_table(pa.Table.from_pylist([{"image_url": "u", "caption": "x"}]), tmp_path / "0.parquet")
    local = datasets.load_dataset("parquet", data_files=str(tmp_path / "0.parquet"), split="train", streaming=True)
    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        return local

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(readers, "_hub_revision", lambda source: "abc")
    corpus = open_corpus(["hub:allenai/pixmo-cap@main"], "text", cache=tmp_path / "cache")
    assert texts(corpus) == [("1", picture_name("u"), "x")]
    assert asked == [("allenai/pixmo-cap", {"split": "train", "streaming": True, "revision": "abc"})]


HOSTILE = {
    "not an object": (3, "expected an object"),
    "half a surrogate": (llava(1, "\ud800"), "surrogate"),
    "two pictures": (llava(1, image=["a", "b"]), "one image a record"),
    "wrong types": ({"id": 1, "image": 5, "conversations": "x"}, "should be one path"),
    "no turns": ({"id": "1", "conversations": []}, "list of turns"),
    "caption null": ({"id": "1", "image": "a.png", "caption": None}, "list of turns"),
    "half a surrogate in the id": (llava(1) | {"id": "\ud800"}, "surrogate"),
    "half a surrogate in the image": (llava(1, image="\ud800.png"), "surrogate"),
    "two answers": (
        {"id": "1", "image": "a.png", "conversations": llava(1)["conversations"] + [{"from": "gpt", "value": "more"}]},
        "2 answers, and one caption a record",
    ),
    "caption a number": ({"id": "1", "image": "a.png", "caption": 7}, "a turn should be"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_one_bad_record_among_good_ones_is_named_and_nothing_takes_its_place(tmp_path, name):
    row, reason = HOSTILE[name]
    (tmp_path / "d.json").write_text(json.dumps([llava(0), row, llava(2)]))
    corpus = open_corpus([str(tmp_path / "d.json")], "pair")
    assert [record.id for record in corpus] == ["r0", "r2"]
    assert len(corpus.problems) == 1 and reason in str(corpus.problems[0]) and "record 2" in str(corpus.problems[0])
    with pytest.raises(InputError, match="record 2"):
        read_records(tmp_path / "d.json", "pair")


def test_lines_that_overwhelm_the_parser_are_named(tmp_path):
    lines = [json.dumps(llava(0)), "[" * 100_000, "9" * 5000, json.dumps(llava(3))]
    (tmp_path / "d.jsonl").write_text("\n".join([lines[0], '{"a":' + lines[1], '{"a":' + lines[2] + "}", lines[3]]))
    corpus = open_corpus([str(tmp_path / "d.jsonl")], "pair")
    assert [record.id for record in corpus] == ["r0", "r3"]
    assert [problem.where.rsplit(" ", 1)[-1] for problem in corpus.problems] == ["2", "3"]
    (tmp_path / "d.json").write_text('[{"a":' + "[" * 100_000)
    with pytest.raises(InputError, match="not valid JSON at line 1"):
        open_corpus([str(tmp_path / "d.json")], "pair")


def test_a_set_saved_with_splits_is_read_from_train_and_a_cut_one_named(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{"id": "1", "image": "a.png", "caption": "x"}])
    DatasetDict({"train": rows, "test": rows.select([])}).save_to_disk(tmp_path / "saved")
    assert texts(open_corpus([str(tmp_path / "saved")], "pair", cache=tmp_path / "c")) == [("1", "a.png", "x")]
    arrow = next((tmp_path / "saved" / "train").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(InputError, match=r"train: cannot be read as datasets.save_to_disk"):
        open_corpus([str(tmp_path / "saved")], "pair", cache=tmp_path / "c")


def test_a_damaged_cache_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "IN_MEMORY", 0)
    (tmp_path / "d.json").write_text(json.dumps([llava(i) for i in range(3000)]))
    whole = texts(open_corpus([str(tmp_path / "d.json")], "pair", cache=tmp_path / "cache"))
    file = next((tmp_path / "cache").glob("*.arrow"))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))  # as a power cut leaves it
    assert texts(open_corpus([str(tmp_path / "d.json")], "pair", cache=tmp_path / "cache")) == whole


def test_views_and_mended_data_draw_the_same_records(tmp_path):
    rows = [llava(i) for i in range(200)]
    for number in range(0, 200, 9):
        rows[number]["image"] = None  # no pair, but a text
    (tmp_path / "d.json").write_text(json.dumps(rows))
    text, pair = (open_corpus([str(tmp_path / "d.json")], view, fraction=0.2, seed=1) for view in ("text", "pair"))
    drawn = {record.id for record in text}
    assert len(drawn) == 40 and {record.id for record in pair} == {i for i in drawn if int(i[1:]) % 9}
    assert len(pair.problems) == 40 - len(pair) > 0  # those drawn, not all of the file's


def test_records_without_ids_are_no_duplicates_and_a_page_is_no_picture(tmp_path):
    table = [{"image": f"{i}.png", "caption": str(i)} for i in range(2)]
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        parquet.write_table(pa.Table.from_pylist(table), tmp_path / "shards" / f"{shard}.parquet")
    corpus = open_corpus([str(tmp_path / "shards")], "pair", cache=tmp_path / "cache")
    assert len(corpus) == 4 and list(corpus.ids()) == [None] * 4
    chat = {"id": "1", "url": "https://example.org", "conversations": llava(1, "<x>")["conversations"]}
    chat["conversations"][0]["value"] = "what?"
    (tmp_path / "chat.json").write_text(json.dumps([chat]))
    assert read_records(tmp_path / "chat.json", "chat")[0].image is None


def test_which_records_spell_a_token(tmp_path, monkeypatch):
    rows = [llava(i, "a <|image_pad|> b" if i % 3 == 1 else "plain") for i in range(2500)]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    corpus = open_corpus([str(tmp_path / "d.json")], "chat").without([0], [])
    assert corpus.spells("<|image_pad|>").tolist() == [i % 3 == 1 for i in range(1, 2500)]
    assert set(corpus.role_sequences()) == {("user", "assistant")}


@pytest.mark.parametrize("name", ["absent.json", "empty", "no.parquet"])
def test_a_source_without_records_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(InputError) as error:
        open_corpus([str(tmp_path / name)], "text", cache=tmp_path / "cache")
    assert name in str(error.value) and "\n" not in str(error.value)
    assert not list((tmp_path / "cache").glob("*.arrow")) if (tmp_path / "cache").exists() else True


def test_mixing_counts_and_fractions(tmp_path):
    for name, number in (("a", 40), ("b", 60)):
        rows = [llava(i, name) for i in range(number)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    sources = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    mixed = open_corpus(sources, "pair", images=[Path("A"), Path("B")], count=10, seed=3)
    assert len(mixed) == 20 and {record.images for record in mixed[:10]} == {Path("A")}
    assert {record.images for record in mixed[10:]} == {Path("B")}
    assert len({record.caption for record in mixed}) == 20  # without replacement
    assert texts(mixed) == texts(open_corpus(sources, "pair", count=10, seed=3))
    assert texts(mixed) != texts(open_corpus(sources, "pair", count=10, seed=4))
    parts = [
        {row[2] for row in texts(open_corpus(sources, "pair", fraction=share, seed=1))} for share in (0.1, 0.5, 1.0)
    ]
    assert [len(part) for part in parts] == [10, 50, 100] and parts[0] < parts[1] < parts[2]
    with pytest.raises(InputError, match="holds 40 usable records, and 41 are to be drawn"):
        open_corpus(sources, "pair", count=41)
    with pytest.raises(InputError, match="3 image folders for 2 data files"):
        open_corpus(sources, "pair", images=[None] * 3)


def test_from_disk_as_from_memory_and_rebuilt_when_the_source_changes(tmp_path, monkeypatch):
    file = tmp_path / "d.jsonl"
    file.write_text("\n".join(json.dumps(llava(i)) for i in range(2500)))
    memory = open_corpus([str(file)], "pair")
    monkeypatch.setattr(corpora, "IN_MEMORY", 0)
    disk = open_corpus([str(file)], "pair", cache=tmp_path / "cache")
    assert texts(disk) == texts(memory) and len(disk) == 2500
    assert np.array_equal(disk.sizes, memory.sizes) and disk.has_image.all() and set(disk.num_turns) == {2}
    assert texts(pickle.loads(pickle.dumps(disk))) == texts(disk)  # as a data loader's worker gets it
    one = list((tmp_path / "cache").glob("*.arrow"))
    open_corpus([str(file)], "chat", cache=tmp_path / "cache")
    assert list((tmp_path / "cache").glob("*.arrow")) == one
    before = source_hash(str(file))
    file.write_text("\n".join(json.dumps(llava(i)) for i in range(3)))
    assert len(open_corpus([str(file)], "pair", cache=tmp_path / "cache")) == 3 and source_hash(str(file)) != before


def test_sizes_bound_tokens(tmp_path, lab_tokenizer):
    captions = ["a red ball", "🙂" * 9, "日本語", "x" * 50, "<|user|>"]
    (tmp_path / "d.json").write_text(json.dumps([llava(i, caption) for i, caption in enumerate(captions)]))
    corpus = open_corpus([str(tmp_path / "d.json")], "text")
    for record, size in zip(corpus, corpus.sizes, strict=True):
        assert len(lab_tokenizer(record.caption).input_ids) <= size + 1  # a token that begins the text


START = """
import resource, sys, time
start = time.time()
from pathlib import Path
from torch.utils.data import DataLoader
from dpa.corpus import open_corpus
from dpa.data import Collator, Samples
from dpa.processing import load_tokenizer
tokenizer = load_tokenizer("dpa/lab/foundations/llm")
corpus = open_corpus([sys.argv[1]], "text", cache=Path(sys.argv[2]))
batch = next(iter(DataLoader(Samples(corpus, "text", tokenizer), 32, shuffle=True, collate_fn=Collator(0), num_workers=2)))
peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 2**20
print(len(corpus), len(batch["input_ids"]), time.time() - start, peak)
"""


def test_a_hundred_thousand_records_start_in_seconds_and_little_memory(tmp_path):
    rows = (json.dumps(llava(i, "a photo of " + "some thing " * 40)) for i in range(100_000))
    (tmp_path / "d.json").write_text("[" + ",\n".join(rows) + "]")
    assert (tmp_path / "d.json").stat().st_size > corpora.IN_MEMORY
    done = subprocess.run(
        [sys.executable, "-c", START, tmp_path / "d.json", tmp_path / "cache"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    records, batch, seconds, gib = map(float, done.stdout.split())
    assert (records, batch) == (100_000, 32)
    assert seconds < 30 and gib < 1.0  # 5 s and 0.5 GiB when measured; the limit of 10 s is for an idle machine
