"""Official data files: found, compared, read with their pictures, refused in one line when broken, fetched only when asked."""

from __future__ import annotations

import base64
import csv
import hashlib
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import cambrian, official, vlmevalkit
from benchmarks.linked import LETTER_LINE
from benchmarks.official import SOURCES, OfficialSet, download, find, load, main, with_line
from benchmarks.suites import BENCHMARKS
from dpa.errors import InputError
from tests import made_up
from tests.test_cambrian import unescaped

KIT_SETS = ("MMBench", "AI2D", "DocVQA", "OCRBench", "NaturalBench", "MMStar", "POPE")


@pytest.fixture(scope="module")
def kit() -> vlmevalkit.Kit:
    python = os.environ.get("VLMEVALKIT_PYTHON")
    try:
        return vlmevalkit.find(Path(python) if python else None)
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Any connection but to this machine is an error."""
    connect = socket.socket.connect

    def local_only(self, address):
        assert address[0] == "127.0.0.1", f"a connection to {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


def pixels(loaded: OfficialSet) -> dict[str, bytes]:
    shown = {}
    for item in loaded.items:
        with Image.open(loaded.images / item.image) as image:
            shown[item.index] = image.convert("RGB").tobytes()
    return shown


def test_every_benchmark_has_a_source():
    assert set(SOURCES) == set(BENCHMARKS) - {"CV-Bench"}  # that one is a file of ours
    assert {name: source.dataset for name, source in SOURCES.items()} == vlmevalkit.KIT_NAMES
    for source in SOURCES.values():
        assert re.fullmatch(r"[0-9a-f]{32}", source.md5)
        assert source.url.startswith("https://") and source.url.endswith(f"/{source.files[0]}")
        assert source.page.startswith("https://")


def test_md5s_and_addresses_are_the_kits(kit):
    code = "import importlib.util; print(importlib.util.find_spec('vlmeval').submodule_search_locations[0])"
    done = subprocess.run([kit.python, "-c", code], capture_output=True, text=True, check=True)
    text = "".join(
        p.read_text(encoding="utf-8") for p in sorted((Path(done.stdout.strip()) / "dataset").glob("image_*.py"))
    )
    joined = re.sub(r"'\s*\n\s*'", "", text)  # an address in two pieces
    for source in SOURCES.values():
        assert re.search(rf"['\"]{source.dataset}['\"]\s*:\s*['\"]{source.md5}['\"]", text), source.benchmark
        assert re.search(rf"['\"]{source.dataset}['\"]\s*:\s*\(?\s*['\"]{re.escape(source.url)}['\"]", joined), (
            source.benchmark
        )


@pytest.mark.parametrize("kind", ["2D", "3D"])
def test_cvbench_is_the_same_from_each_of_its_formats(tmp_path, kind):
    """Its repository's JSON lines, its parquet, the old parquet of both kinds, VLMEvalKit's table."""
    name = f"CVBench-{kind}"
    made_up.cvbench_folder(tmp_path / "lines", kind)
    made_up.cvbench_parquet(tmp_path / "parquet" / "CV-Bench", (kind,), f"test_{kind.lower()}.parquet")
    made_up.cvbench_parquet(tmp_path / "old", ("2D", "3D"), "test.parquet")
    made_up.cvbench_table(tmp_path / "table", kind)
    sets = [load(name, tmp_path / where, tmp_path / "cache") for where in ("lines", "parquet", "old", "table")]
    for other in sets[1:]:
        assert [replace(i, image="") for i in other.items] == [replace(i, image="") for i in sets[0].items]
        assert pixels(other) == pixels(sets[0]) and len(pixels(other)) == 6
        assert other.images.parent == tmp_path / "cache" and other.images.name == f"images-{other.md5[:12]}"
    assert [s.scorer for s in sets] == ["cambrian"] * 4 and not any(s.official for s in sets)
    assert sets[0].images == tmp_path / "lines"
    assert [i.options for i in sets[3].items[:1]] == [("None", "3", "007", "NA") if kind == "2D" else ("chair", "a")]


@pytest.mark.parametrize("first", [0, 1])
def test_mmvp_is_the_same_from_its_repository_and_from_the_kits_table(tmp_path, first):
    made_up.mmvp(tmp_path / "own" / "MMVP")
    made_up.mmvp_table(tmp_path / "kit", first=first)
    own, table = (load("MMVP", tmp_path / name, tmp_path / "cache") for name in ("own", "kit"))
    shift = [replace(i, index=str(int(i.index) - 1 + first), image="") for i in own.items]
    assert [replace(i, image="") for i in table.items] == shift
    assert list(pixels(table).values()) == list(pixels(own).values())
    assert table.items[0].image == f"{first}.jpg"  # as it was encoded, not once more
    assert (table.images / table.items[0].image).read_bytes() == made_up.picture(601, "JPEG")
    assert own.items[0].prompt == f"Is door 0 open or closed? Options:\nA. Open 0\nB. Closed\n{LETTER_LINE}"


def test_pictures_are_unpacked_once_and_mended(tmp_path):
    made_up.cvbench_table(tmp_path, "2D")
    loaded = load("CVBench-2D", tmp_path, tmp_path / "cache")
    paths = sorted(loaded.images.iterdir())
    assert len(paths) == 6 and not list(loaded.images.glob("*.tmp"))
    before = [(p.stat().st_mtime_ns, p.stat().st_ino) for p in paths]
    paths[2].write_bytes(b"")  # a power cut can leave a name without its content
    again = load("CVBench-2D", tmp_path, tmp_path / "cache")
    after = [(p.stat().st_mtime_ns, p.stat().st_ino) for p in paths]
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, True, False, True, True, True]
    assert pixels(again) == pixels(loaded)
    made_up.cvbench_table(tmp_path, "2D", count=4)  # another file of this name has a folder of its own
    assert load("CVBench-2D", tmp_path, tmp_path / "cache").images != loaded.images


def test_a_kill_leaves_no_half_picture(tmp_path, monkeypatch):
    made_up.cvbench_table(tmp_path, "2D")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(official.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            load("CVBench-2D", tmp_path, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_cell_may_name_the_row_that_has_the_picture(tmp_path):
    path = made_up.cvbench_table(tmp_path, "2D")
    rows = table(path)
    rows[1]["image"], rows[4]["image"] = "5", "0"  # a later row, an earlier one
    made_up.write_table(path, rows)
    shown = pixels(load("CVBench-2D", tmp_path, tmp_path / "cache"))
    assert shown["1"] == shown["5"] and shown["4"] == shown["0"] and len(set(shown.values())) == 4


def table(path: Path) -> list[dict]:
    csv.field_size_limit(2**30)
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"image": ""}, r"item 3 has no picture: its cell ''"),
        ({"image": "99"}, r"item 3 has no picture: its cell '99'"),
        ({"image": "*" * 100}, "picture of item 3 is no base64"),
        ({"image": base64.b64encode(b"<html>" * 20).decode()}, "item 3: its picture is not an image"),
        ({"image": base64.b64encode(made_up.picture(3)[:1500]).decode()}, "item 3: its picture is broken"),
        ({"image": "A" * 101}, "picture of item 3 is no base64"),
        ({"answer": "E"}, "'E' is none of its 4 options"),
        ({"answer": ""}, "'' is none of its 4 options"),
        ({"index": "2"}, r"index '2' stands in the file twice, first at .*line"),
        ({"source": "NYU"}, "source 'NYU' of item 3"),
    ],
)
def test_a_broken_row_is_named_in_one_line(tmp_path, change, names):
    path = made_up.cvbench_table(tmp_path, "2D")
    rows = table(path)
    rows[3] |= change
    made_up.write_table(path, rows)
    with pytest.raises(InputError, match=names) as error:
        load("CVBench-2D", tmp_path, tmp_path / "cache")
    text = str(error.value)
    assert f"{path} line " in text and "\n" not in text and "No such file" not in text
    assert not list((tmp_path / "cache").rglob("*.tmp"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"index\tquestion\n",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:3\n",
        b"\xff\xfe\x00bad\n1\n",
        b'index\timage\n1\t"open',
    ],
)
@pytest.mark.parametrize("name", ["CV-Bench-2D.tsv", "test_2d.jsonl", "test_2d.parquet", "Questions.csv"])
def test_a_file_of_another_kind_is_refused_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        load("MMVP" if name == "Questions.csv" else "CVBench-2D", tmp_path, tmp_path / "cache")
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_truncated_tables_are_refused(tmp_path):
    path = made_up.cvbench_table(tmp_path, "2D")
    whole = path.read_bytes()
    for cut in (len(whole) // 2, len(whole) - 12):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="truncated"):
            load("CVBench-2D", tmp_path, tmp_path / "cache")


def test_a_damaged_parquet_is_never_a_traceback(tmp_path):
    """Damage of a place that nothing reads goes unnoticed, for the format has no checksums; elsewhere it is one line."""
    path = made_up.cvbench_parquet(tmp_path)
    whole, refused = path.read_bytes(), 0
    for place in range(8, len(whole), len(whole) // 40):
        path.write_bytes(whole[:place] + bytes(b ^ 255 for b in whole[place : place + 40]) + whole[place + 40 :])
        try:
            load("CVBench-2D", tmp_path, tmp_path / "cache")
        except InputError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused > 20


def test_texts_are_kept_and_cells_may_be_long(tmp_path):
    path = made_up.cvbench_table(tmp_path, "2D")
    rows = table(path)
    rows[0]["question"] = "x" * 200_000
    rows[0]["prompt"] = rows[0]["question"] + '\nA None\nB "3"\tx\nC 007\nD NA'
    rows[0] |= {"A": "None", "B": '"3"\tx', "C": "007", "D": "NA", "answer": "B"}
    made_up.write_table(path, rows)
    csv.field_size_limit(131_072)  # Python's own
    item = load("CVBench-2D", tmp_path, tmp_path / "cache").items[0]
    assert item.options == ("None", '"3"\tx', "007", "NA") and item.answer == '"3"\tx'
    assert item.prompt == "x" * 200_000 + f'\n(A) None\n(B) "3"\tx\n(C) 007\n(D) NA\n{LETTER_LINE}'


@pytest.mark.parametrize("name", ["../outside.png", "/etc/hostname", "img/../../outside.png", "link.png"])
def test_paths_do_not_lead_out_of_the_folder(tmp_path, name):
    data = tmp_path / "data"
    path = made_up.cvbench_folder(data, "2D")
    (tmp_path / "outside.png").write_bytes(made_up.picture(1))
    (data / "link.png").symlink_to(tmp_path / "outside.png")
    items = [json.loads(line) for line in path.read_text().splitlines()]
    items[2]["filename"] = name
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    with pytest.raises(InputError, match=r"item 2: image path .* leads out of"):
        load("CVBench-2D", data, tmp_path / "cache")
    # a table whose pictures lie beside it names them likewise
    rows = [
        {k: v for k, v in row.items() if k != "image"} for row in table(made_up.cvbench_table(tmp_path / "t", "2D"))
    ]
    rows[2]["image_path"] = name
    shutil.rmtree(data)
    made_up.cvbench_folder(data, "2D").unlink()
    (data / "link.png").symlink_to(tmp_path / "outside.png")
    made_up.write_table(data / "CV-Bench-2D.tsv", rows)
    with pytest.raises(InputError, match=r"item 2: image path .* leads out of"):
        load("CVBench-2D", data, tmp_path / "cache")


def test_an_index_cannot_name_a_file_elsewhere(tmp_path):
    path = made_up.cvbench_table(tmp_path / "data", "2D")
    rows = table(path)
    rows[0]["index"], rows[1]["index"] = "../../evil", "/tmp/evil"
    made_up.write_table(path, rows)
    loaded = load("CVBench-2D", tmp_path / "data", tmp_path / "cache")
    assert len(list(loaded.images.iterdir())) == 6 and not list(tmp_path.rglob("evil*"))


def test_missing_pictures_are_named_unless_they_are_not_wanted(tmp_path):
    made_up.mmvp(tmp_path)
    (tmp_path / "MMVP Images" / "4.jpg").unlink()
    with pytest.raises(
        InputError,
        match=r"item 4: image .*4\.jpg does not exist; the pictures belong beside Questions\.csv, get them from https",
    ):
        load("MMVP", tmp_path, tmp_path / "cache")
    assert len(load("MMVP", tmp_path, tmp_path / "cache", pictures=False).items) == 6
    made_up.cvbench_parquet(tmp_path)
    for file in (tmp_path, made_up.cvbench_table(tmp_path / "table", "2D").parent):
        blind = load("CVBench-2D", file, tmp_path / "blind", pictures=False)
        assert not (tmp_path / "blind").exists()
        seen = load("CVBench-2D", file, tmp_path / "cache")
        assert [replace(i, image="") for i in blind.items] == [replace(i, image="") for i in seen.items]


def test_what_is_found_where_and_first(tmp_path):
    with pytest.raises(InputError, match="unknown benchmark 'MMMU'; there is MMBench"):
        find("MMMU", tmp_path)
    with pytest.raises(InputError) as error:
        load("CVBench-2D", tmp_path, tmp_path / "cache")
    for part in (
        "CV-Bench-2D.tsv, test_2d.parquet",
        str(tmp_path),
        "size not known",
        "https://",
        "--download CVBench-2D",
    ):
        assert part in str(error.value)
    made_up.cvbench_folder(tmp_path / "b", "2D")
    lines = find("CVBench-2D", tmp_path)
    made_up.cvbench_table(tmp_path / "a", "2D")
    assert lines == tmp_path / "b" / "test_2d.jsonl"
    assert find("CVBench-2D", tmp_path) == tmp_path / "a" / "CV-Bench-2D.tsv"  # the kit's, whose MD5 is known


def test_a_wrong_md5_is_recorded_and_not_refused(tmp_path, monkeypatch):
    path = made_up.cvbench_table(tmp_path, "2D")
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    assert (
        load("CVBench-2D", tmp_path, tmp_path / "c").md5,
        load("CVBench-2D", tmp_path, tmp_path / "c").official,
    ) == (md5, False)
    monkeypatch.setitem(SOURCES, "CVBench-2D", replace(SOURCES["CVBench-2D"], md5=md5))
    assert load("CVBench-2D", tmp_path, tmp_path / "c").official
    assert "CV-Bench-2D.tsv" in official.as_text(tmp_path) and "yes" in official.as_text(tmp_path)
    with open(path, "a") as file:  # touched since: read again
        file.write("\n")
    assert official.as_text(tmp_path).count("no ") and not official.is_official("CVBench-2D", path)


def test_prompt_lines_of_cambrian(tmp_path):
    made_up.cvbench_table(tmp_path, "3D")
    made_up.mmvp(tmp_path)
    for name in ("CVBench-3D", "MMVP"):
        asked = {
            line: load(name, tmp_path, tmp_path / "c", prompt_line=line).items[0].prompt
            for line in ("stock", "letter", "Say the letter.")
        }
        assert asked["stock"] == asked["letter"] and asked["stock"].endswith("\n" + LETTER_LINE)
        assert asked["Say the letter."] == asked["stock"].removesuffix(LETTER_LINE) + "Say the letter."


def test_prompt_lines_of_the_kit():
    choice = "Hint: h\nQuestion: q?\nOptions:\nA. x\nB. y\nPlease select the correct answer from the options above. \n"
    page = "q?\nAnswer the question using a single word or phrase."
    yes, letter = "q? Please answer Yes or No.", "q? Please output the letter corresponding to the correct option."
    quoted = "Please select the correct answer from the options above. Or do not."
    for prompt in (choice, page, yes, letter, "q?", quoted):
        assert with_line(prompt, "stock") == prompt
    assert with_line(choice, "letter") == f"Hint: h\nQuestion: q?\nOptions:\nA. x\nB. y\n{LETTER_LINE}"
    for prompt in (page, yes, letter, "q?", quoted):
        assert with_line(prompt, "letter") == prompt
    assert (
        with_line(page, "Short.") == "q?\nShort."
        and with_line(yes, "Short.") == with_line(letter, "Short.") == "q? Short."
    )
    assert with_line(quoted, "Short.") == quoted and with_line("q?", "Short.") == "q?"


def test_corrected_labels(tmp_path):
    made_up.mmvp(tmp_path, pairs=150)
    plain, corrected = (load("MMVP", tmp_path, tmp_path / "c", corrected_labels=wish).items for wish in (False, True))
    assert [a.index for a, b in zip(plain, corrected, strict=True) if a != b] == ["99", "100", "279", "280"]


@pytest.mark.slow
def test_the_kits_own_sets_go_through_the_kit(tmp_path, kit):
    """Every made-up table is asked in the kit's words, its pictures unpacked; of MMBench and AI2D the line is changed."""
    made_up.everything(tmp_path)
    for name in KIT_SETS:
        loaded = load(name, tmp_path, tmp_path / "cache", kit=kit, made_up=True)
        assert loaded.scorer == "vlmevalkit" and not loaded.official and len(pixels(loaded)) == len(loaded.items)
        asked = load(name, tmp_path, tmp_path / "cache", kit=kit, made_up=True, prompt_line="letter").items
        changed = [a.prompt.endswith("\n" + LETTER_LINE) for a in asked]
        assert set(changed) == {name in ("MMBench", "AI2D", "MMStar")}, name
        if not changed[0]:
            assert asked == loaded.items
    natural = load("NaturalBench", tmp_path, tmp_path / "cache", kit=kit, made_up=True).items
    assert (
        len({i.unit for i in natural}) == 2
        and natural[0].prompt == "Is there a thing 0 of group 0? Please answer Yes or No."
    )
    with pytest.raises(InputError, match=r"NaturalBench.*7,600"):
        load("NaturalBench", tmp_path, tmp_path / "cache", kit=kit)


def test_real_mmbench_samples_through_the_kit(tmp_path, kit, shared):
    """Real questions, options and photos, written as MMBench's table and read back by the kit."""
    folder = shared / "data" / "mmbench_samples"
    lines = (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [s for s in map(json.loads, lines) if s["set"] == "MMBench" and s["lang"] == "en"][:6]
    rows, expected = [], {}
    for sample in samples:
        options = [sample[letter] for letter in "ABCD" if sample.get(letter)]
        photo = (folder / "images" / sample["image"]).read_bytes()
        row = {
            "question": sample["question"],
            "hint": sample.get("hint") or "",
            "image": base64.b64encode(photo).decode(),
        }
        row |= {"category": sample["category"], "split": "dev"}
        rows += made_up.rotations(int(sample["index"]), row, options, "ABCD".index(sample["answer"]))
        with Image.open(folder / "images" / sample["image"]) as image:
            expected[str(sample["index"])] = (options["ABCD".index(sample["answer"])], image.size, len(options))
    made_up.write_table(tmp_path / "MMBench_DEV_EN.tsv", rows)
    loaded = load("MMBench", tmp_path, tmp_path / "cache", kit=kit)
    assert len(loaded.items) == sum(count for _, _, count in expected.values())
    for item in loaded.items:
        answer, size, count = expected[item.unit]
        assert (item.answer, len(item.options)) == (answer, count)
        listed = "".join(f"{letter}. {option}\n" for letter, option in zip("ABCD", item.options, strict=False))
        assert f"Options:\n{listed}Please select" in item.prompt
        with Image.open(loaded.images / item.image) as image:
            assert image.size == size


def test_real_mmvp_and_cvbench_without_their_pictures(tmp_path, shared):
    data = shared / "data"
    loaded = load("MMVP", data, tmp_path, pictures=False)
    assert (len(loaded.items), loaded.official) == (300, None)
    with pytest.raises(InputError, match=r"MMVP Images/1\.jpg does not exist"):
        load("MMVP", data, tmp_path)
    with open(data / "cvbench_gpt41" / "gpt-4.1_CV-Bench-2D.tsv", newline="", encoding="utf-8") as file:
        rows = [
            {name: unescaped(cell) for name, cell in row.items() if name != "prediction"}
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]
    made_up.write_table(tmp_path / "CV-Bench-2D.tsv", rows)
    items = load("CVBench-2D", tmp_path, tmp_path / "cache", pictures=False).items
    assert len(items) == len({item.unit for item in items}) == 1438
    assert items[0].prompt == (
        "How many organs are in the image? Select from the following choices.\n(A) 3\n(B) 2\n(C) 1\n(D) 0\n"
        + LETTER_LINE
    )
    assert items[0].image == "img/2D/count/ade20k_10.png"
    with pytest.raises(InputError, match=r"ade20k_10\.png does not exist"):
        load("CVBench-2D", tmp_path, tmp_path / "cache")
    assert set(cambrian.SETS["CVBench-2D"]) == {item.task for item in items}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A local web server over tmp_path/web; MMBench's address and MD5 are of what it has."""
    web = tmp_path / "web"
    web.mkdir()
    made_up.mmbench(web)
    promised = {}

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **keywords):
            super().__init__(*args, directory=str(web), **keywords)

        def send_header(self, keyword, value):
            super().send_header(keyword, promised.get(keyword, value))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        md5 = hashlib.md5((web / "MMBench_DEV_EN.tsv").read_bytes()).hexdigest()
        url = f"http://127.0.0.1:{running.server_port}/MMBench_DEV_EN.tsv"
        monkeypatch.setitem(SOURCES, "MMBench", replace(SOURCES["MMBench"], url=url, md5=md5))
        yield web / "MMBench_DEV_EN.tsv", promised
        running.shutdown()


def test_download_fetches_checks_and_keeps(tmp_path, server, capsys):
    web, _ = server
    data = tmp_path / "data"
    assert main(["--data", str(data), "--download", "MMBench"]) == 0
    assert (data / "MMBench_DEV_EN.tsv").read_bytes() == web.read_bytes()
    assert re.search(r"MMBench +MMBench_DEV_EN.tsv +yes", capsys.readouterr().out)
    (data / "MMBench_DEV_EN.tsv").write_bytes(b"mine")
    assert download("MMBench", data).read_bytes() == b"mine"  # never overwritten
    assert "is there already" in capsys.readouterr().out
    assert [path.name for path in data.iterdir()] == ["MMBench_DEV_EN.tsv"]


@pytest.mark.parametrize("trouble", ["md5", "short", "absent", "refused", "name"])
def test_download_that_fails_leaves_nothing(tmp_path, server, trouble, monkeypatch, capsys):
    web, promised = server
    if trouble == "md5":
        web.write_bytes(web.read_bytes() + b"x")
    elif trouble == "short":
        promised["Content-Length"] = str(web.stat().st_size + 5)
    elif trouble == "absent":
        web.unlink()
    elif trouble == "refused":
        monkeypatch.setitem(SOURCES, "MMBench", replace(SOURCES["MMBench"], url="http://127.0.0.1:9/x.tsv"))
    data = tmp_path / "data"
    assert main(["--data", str(data), "--download", "MMBenk" if trouble == "name" else "MMBench"]) == 2
    said = capsys.readouterr().err
    reason = {
        "md5": "instead of",
        "short": "bytes came|IncompleteRead",
        "absent": "404",
        "refused": "refused",
        "name": "unknown benchmark",
    }
    assert said.startswith("error: ") and said.count("\n") == 1 and re.search(reason[trouble], said), said
    assert not data.exists() or not list(data.iterdir())


def test_the_command_shows_what_is_there(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(official, "_fetch", lambda *_: pytest.fail("fetched unasked"))
    made_up.mmvp(tmp_path / "MMVP")
    made_up.ocrbench(tmp_path)
    assert main(["--data", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(SOURCES)
    by_name = {line.split()[0]: line for line in lines[1:]}
    assert "MMVP/Questions.csv  none to compare" in by_name["MMVP"]
    assert re.search(r"OCRBench.tsv +no ", by_name["OCRBench"])
    assert re.search(r"not there +3.07 GB +https://", by_name["NaturalBench"])
    assert main(["--data", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
