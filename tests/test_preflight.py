"""Preflight: every bad record named with file, line, id and reason; counted; training keeps to its budget."""

import json
import time

import pytest
from PIL import Image

from dpa import images, preflight, processing
from dpa.corpus import open_corpus
from dpa.data import Samples
from tests.conftest import tiny_tower


def record(number, image=None, caption="a red ball", mark="<image>\n", **extra):
    turns = [{"from": "human", "value": f"{mark}what?"}, {"from": "gpt", "value": caption}]
    return {"id": f"r{number}", "image": image or "good.png", "conversations": turns} | extra


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    Image.new("RGB", (40, 20), "red").save(root / "good.png")
    Image.effect_noise((200, 200), 90).convert("RGB").save(root / "noise.jpg")
    (root / "cut.jpg").write_bytes((root / "noise.jpg").read_bytes()[:3000])
    (root / "zero.png").write_bytes(b"")
    (root / "page.jpg").write_text("<html>404</html>")
    (root / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    Image.new("1", (9000, 9000)).save(root / "bomb.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    return root


BAD = {  # image or record -> the reason that is named, and its kind
    "missing.png": ("does not exist", "image"),
    "zero.png": ("not an image", "image"),
    "page.jpg": ("not an image", "image"),
    "script.eps": ("not an image", "image"),
    "bomb.png": ("pixels", "image"),
    "../secret.png": ("leads out of", "image"),
    "/etc/passwd": ("leads out of", "image"),
    "link.png": ("leads out of", "image"),
}


def test_every_bad_record_is_named_and_counted(tmp_path, folder, capsys):
    rows = [record(0), record(0), *(record(i, image) for i, image in enumerate(BAD, start=1))]
    rows += [record(20, mark=""), record(21, mark="<image><image>"), record(22, caption=" "), 7]
    file = tmp_path / "data.json"
    file.write_text(json.dumps(rows))
    report = tmp_path / "report.json"
    arguments = [
        "--data",
        str(file),
        "--images",
        str(folder),
        "--json",
        str(report),
        "--output",
        str(tmp_path / "runs"),
    ]
    assert preflight.main(arguments) == 1
    whole = json.loads(report.read_text())["stages"]["connector"]
    assert (whole["records"], whole["usable"]) == (len(rows), 2)
    assert whole["problems"] == {"record": 4, "duplicate": 1, "image": len(BAD)}
    named = {row["id"]: row for row in whole["bad"]}
    for number, (reason, kind) in enumerate(BAD.values(), start=1):
        row = named[f"r{number}"]
        assert reason in row["reason"] and row["kind"] == kind and f"record {number + 2} " in row["where"]
    assert "0 <image> marks" in named["r20"]["reason"] and "2 <image> marks" in named["r21"]["reason"]
    assert "caption is empty" in named["r22"]["reason"] and "expected an object" in named[""]["reason"]
    assert "record 1 already" in named["r0"]["reason"]
    shown = capsys.readouterr().out
    assert "14 records, 2 usable" in shown and "13 problems (4 record, 1 duplicate, 8 image)" in shown


def test_a_truncated_picture_is_found_by_decoding_it(tmp_path, folder):
    (tmp_path / "d.json").write_text(json.dumps([record(0), record(1, "cut.jpg"), record(2, "cut.jpg")]))
    corpus = open_corpus([str(tmp_path / "d.json")], "pair", images=[folder])
    assert not preflight.scan(corpus, None, look="header", jobs=1).problems
    found = preflight.scan(corpus, None, look="decode", jobs=1)
    assert found.bad == [1, 2] and found.num_pictures == 2  # looked at once, told of both
    assert found.problems[2].where.endswith("record 3 (id 'r2')") and "broken" in found.problems[2].reason


def test_label_masks_and_lengths(tmp_path, folder, lab_tokenizer):
    captions = ["a red ball", "ball " * 60, "ball " * 30]
    (tmp_path / "d.json").write_text(json.dumps([record(i, caption=c) for i, c in enumerate(captions)]))
    corpus = open_corpus([str(tmp_path / "d.json")], "pair", images=[folder])
    samples = Samples(corpus, "pair", processing.build_processor(lab_tokenizer, tiny_tower()), max_length=50)
    found = preflight.scan(corpus, samples, jobs=1)
    assert found.lengths.tolist() == [len(samples.encode(r).ids) for r in corpus]
    assert list(found.problems) == [1] and not found.bad and found.problems[1].kind == "cut"
    extra = int(found.lengths[1]) - 50
    assert (
        f"{extra} more than the limit" in found.problems[1].reason
        and f"{extra} of them supervised" in found.problems[1].reason
    )
    samples.max_length = 9  # the image alone fills it
    found = preflight.scan(corpus, samples, jobs=1)
    assert found.bad == [0, 1, 2] and "no supervised token is left" in found.problems[0].reason


def test_several_processes_find_what_one_finds(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(preflight, "CHUNK", 3)
    rows = [record(i, f"{i}.png") for i in range(40)]
    for i in range(0, 40, 3):
        Image.new("RGB", (4, 4)).save(folder / f"{i}.png")
    (tmp_path / "d.json").write_text(json.dumps(rows))
    corpus = open_corpus([str(tmp_path / "d.json")], "pair", images=[folder])
    one, two = (preflight.scan(corpus, None, jobs=jobs) for jobs in (1, 2))
    assert one.problems == two.problems and one.bad == [i for i in range(40) if i % 3]


def test_only_samples_that_could_be_too_long_are_encoded(tmp_path, folder, lab_tokenizer, monkeypatch):
    """Of many records training encodes those alone whose bytes exceed the limit; it finds the same."""
    rows = [record(i, caption="ball " * (i % 25 * 6 + 1)) for i in range(200)]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    for view in ("pair", "chat", "text"):
        corpus = open_corpus([str(tmp_path / "d.json")], view, images=[folder])
        processor = lab_tokenizer if view == "text" else processing.build_processor(lab_tokenizer, tiny_tower())
        samples = Samples(corpus, view, processor, max_length=110)
        every = preflight.scan(corpus, samples, jobs=1)
        assert every.problems
        monkeypatch.setattr(preflight, "SMALL", 10)
        some = preflight.for_training(corpus, samples, 0)
        assert some.problems == every.problems, view
        assert (some.lengths >= 0).sum() < len(corpus)
        monkeypatch.setattr(preflight, "SMALL", 20_000)


def test_headers_are_read_fast(folder):
    """3,000 a second and core is asked for; 14,000 to 24,000 measured. The bound is for a busy one."""
    for number in range(300):
        Image.effect_noise((336, 252), 90).convert("RGB").save(folder / f"{number}.jpg")
    images.image_size(folder, "0.jpg", "warm")
    start = time.perf_counter()
    for number in range(300):
        assert images.image_size(folder, f"{number}.jpg", "here") == (336, 252)
    assert 300 / (time.perf_counter() - start) > 1000


def test_turns_that_a_template_refuses_are_found_among_many(tmp_path, folder, lab_tokenizer, monkeypatch):
    """Beyond SMALL a label mask is looked at where it may be bad: one of each sequence of roles, then all of a bad one."""
    import copy

    rows = [record(i) for i in range(60)]
    for number in (7, 30):
        rows[number]["conversations"].insert(0, {"from": "system", "value": "be kind"})
    (tmp_path / "d.json").write_text(json.dumps(rows))
    corpus = open_corpus([str(tmp_path / "d.json")], "chat", images=[folder])
    tokenizer = copy.deepcopy(lab_tokenizer)
    refusing = "{%- if messages[0]['role'] == 'system' -%}{{- raise_exception('no system') -}}{%- endif -%}"
    tokenizer.chat_template = refusing + tokenizer.chat_template
    samples = Samples(corpus, "chat", processing.build_processor(tokenizer, tiny_tower()), max_length=2000)
    monkeypatch.setattr(preflight, "SMALL", 10)
    found = preflight.for_training(corpus, samples, 5)
    assert found.bad == [7, 30] and (found.lengths >= 0).sum() < 10


def test_a_report_is_written_when_every_record_is_bad(tmp_path, folder):
    (tmp_path / "d.json").write_text(json.dumps([record(i, caption=" ") for i in range(3)]))
    arguments = ["--data", str(tmp_path / "d.json"), "--images", str(folder), "--output", str(tmp_path)]
    assert preflight.main([*arguments, "--json", str(tmp_path / "r.json")]) == 1
    whole = json.loads((tmp_path / "r.json").read_text())["stages"]["connector"]
    assert (whole["records"], whole["usable"], len(whole["bad"])) == (3, 0, 3)


def test_nothing_to_check_is_said(capsys):
    assert preflight.main([]) == 2
    assert "give --recipe, or --data" in capsys.readouterr().err
