"""The lab's general suite: each item answered from its picture, none from its words, all legible."""

import hashlib
import math
import subprocess
import sys
from collections import Counter, defaultdict
from functools import partial

import pytest
from PIL import Image

from benchmarks import lab, lab_general
from benchmarks.lab_general import (
    WORDS,
    draw_cycle,
    draw_labels,
    draw_text,
    general_folder,
    general_items,
    suite_parts,
)
from benchmarks.records import score
from benchmarks.scorers import value
from benchmarks.suites import BENCHMARKS, chance, check_complete, suite
from dpa.lab.language import NUMBERS
from dpa.lab.world import COLUMNS, IMAGE_SIZE, ROWS, Scene, Thing

SMALL = {"circular": 2, "diagram": 1, "documents": 2, "reading": 1}


@pytest.fixture(scope="module")
def items():
    return general_items()


@pytest.fixture(scope="module")
def scenes():
    """{picture's name: scene} of the MMBench and AI2D items."""
    parts = (*lab_general._mmbench(12), *lab_general._ai2d(4))
    return {item.image: picture.args[0] for item, picture in parts}


def of(items, benchmark):
    return [item for item in items if item.benchmark == benchmark]


def asked_alike(items):
    """Units of one benchmark whose prompts are the same: what reads only prompts answers them the same."""
    units = defaultdict(list)
    for item in items:
        units[item.unit].append(item)
    alike = defaultdict(list)
    for unit in units.values():
        alike[frozenset(item.prompt for item in unit)].append(unit)
    return list(alike.values())


def test_all_of_the_suite_is_there_whole_and_named_by_its_seed(items):
    check_complete(items)
    assert {item.benchmark for item in items} == set(suite("general"))
    assert len({(item.benchmark, item.index) for item in items}) == len(items)
    units = {name: len({item.unit for item in of(items, name)}) for name in suite("general")}
    assert units == {"MMBench": 120, "OCRBench": 250, "DocVQA": 100, "AI2D": 256}
    assert {len(item.options) for item in of(items, "AI2D")} == {4}
    assert general_items(**SMALL) == general_items(**SMALL)
    assert {(i.benchmark, i.prompt) for i in general_items(**SMALL)} <= {(i.benchmark, i.prompt) for i in items}


def test_who_sees_is_right_on_all_and_letters_count_too(items):
    assert all(value(item, item.answer) == 1 for item in items)
    for item in items:
        if item.rule == "option":
            assert value(item, "ABCD"[item.options.index(item.answer)]) == 1
            assert [value(item, option) for option in item.options].count(1) == 1
    answers = {(item.benchmark, item.index): item.answer for item in items}
    for name in suite("general"):
        found = score(of(items, name), answers)
        assert found.value == 100 and 0 <= chance(of(items, name)) < 30, name


def test_rotations_name_the_options_in_their_order_and_ask_the_same(items):
    units = defaultdict(list)
    for item in of(items, "MMBench"):
        units[item.unit].append(item)
    for unit in units.values():
        assert len({(item.image, item.answer) for item in unit}) == 1
        assert {item.options.index(item.answer) for item in unit} == set(range(len(unit))), "each place is right once"
        for item in unit:
            words = item.prompt.replace(",", "").replace(".", "").split()
            assert [word for word in words if word in item.options] == list(item.options), item.prompt


def test_what_reads_only_the_words_is_right_on_one_in_as_many_as_there_are_options(items):
    bounds = {}
    for name in ("MMBench", "AI2D"):
        alike = asked_alike(of(items, name))
        for units in alike:
            shares = Counter(unit[0].answer for unit in units)
            assert set(shares) == set(units[0][0].options) and len(set(shares.values())) == 1, units[0][0].prompt
        best = sum(max(Counter(unit[0].answer for unit in units).values()) for units in alike)
        bounds[name] = 100 * best / sum(map(len, alike))
    assert bounds["AI2D"] == 25 == chance(of(items, "AI2D"))
    assert bounds["MMBench"] == pytest.approx(41.7, abs=0.05)  # as the module says
    first = {(item.benchmark, item.index): item.options[0] for item in of(items, "MMBench")}
    assert score(of(items, "MMBench"), first).value == 0, "the option named first is right in one rotation only"


def test_no_answer_fits_many_of_the_items_to_read(items):
    for name, by_prompt, overall in (("DocVQA", 0.10, 0.04), ("OCRBench", 0.05, 0.02)):
        asked = of(items, name)
        golds = {item.answer for item in asked}
        prompts = defaultdict(list)
        for item in asked:
            prompts[item.prompt].append(item)

        def best(some, golds=golds):
            return max(sum(value(item, gold) for item in some) for gold in golds)

        assert best(asked) / len(asked) < overall
        assert sum(best(some) for some in prompts.values()) / len(asked) < by_prompt


def solved(scene: Scene, item) -> str:
    """The answer to an MMBench item worked out from the scene, by other means than the questions'."""
    words = item.prompt.replace(",", "").replace(".", "").split()
    kinds = {thing.kind: thing for thing in scene.things}
    named = [kinds[word] for word in words if word in kinds]
    if item.task == "count":
        return NUMBERS[sum(thing.kind == words[-1] for thing in scene.things)]
    if item.task == "relation":
        reference, asked = named
        if "left" in words:
            return "left" if asked.column < reference.column else "right"
        return "above" if asked.row < reference.row else "below"
    if item.task == "depth":
        return next(thing.kind for thing in named if thing.depth == "near")
    if item.task == "distance":
        reference, *others = named
        return min(others, key=lambda t: max(abs(t.row - reference.row), abs(t.column - reference.column))).kind
    if item.task == "exists":
        there = any((thing.kind, thing.colour) == tuple(words[-2:]) for thing in scene.things)
        return "yes" if there else "no"
    (thing,) = named
    facts = {"colour": thing.colour, "size": thing.size, "range": thing.depth}
    return (facts | {"row": ROWS[thing.row], "column": COLUMNS[thing.column]})[item.task]


def test_mmbench_answers_are_those_of_the_scenes(items, scenes):
    for item in of(items, "MMBench"):
        assert solved(scenes[item.image], item) == item.answer, item
        if item.task not in ("count", "exists"):
            kinds = Counter(thing.kind for thing in scenes[item.image].things)
            named = [word for word in kinds if word in item.prompt]
            assert all(kinds[kind] == 1 for kind in named), "a thing that is asked about is the only one of its kind"


def leads(picture: Image.Image, one: Thing, other: Thing) -> bool:
    """Whether dark pixels run from one thing to the other, more of them beside the line at the other's end: a head."""
    cell, fine = IMAGE_SIZE / 3, 8
    large = picture.resize((IMAGE_SIZE * fine,) * 2, Image.Resampling.BILINEAR)
    (x, y), (to_x, to_y) = (((t.column + 0.5) * cell, (t.row + 0.5) * cell) for t in (one, other))
    length = math.dist((x, y), (to_x, to_y))
    along = (to_x - x) / length, (to_y - y) / length

    def light(distance: float, aside: float = 0.0) -> int:  # of the lightest channel: the things have one, ink has none
        spot = x + distance * along[0] - aside * along[1], y + distance * along[1] + aside * along[0]
        return max(large.getpixel((round(fine * spot[0]), round(fine * spot[1]))))

    tail, head = 0.45 * cell, length - 0.45 * cell
    joined = all(light(tail + (head - tail) * step / 20) < 140 for step in range(21))
    return joined and all(light(head, aside) < light(tail, aside) - 30 for aside in (-1.2, 1.2))


def test_arrows_in_the_picture_lead_to_the_answer(items, scenes):
    """Read from the pixels: an arrow is wider at its head, which is at the answer, than at its tail."""
    asked = [item for item in of(items, "AI2D") if item.image in scenes]
    assert len(asked) == 32
    for item in asked:
        things = {thing.kind: thing for thing in scenes[item.image].things}
        picture = draw_cycle(scenes[item.image])
        assert picture.size == (IMAGE_SIZE, IMAGE_SIZE) and len(things) == 5
        words = item.prompt.replace(",", "").split()
        if item.task == "part":
            assert item.answer == things[words[-1]].colour
            assert set(item.options) <= {thing.colour for thing in things.values()}
            continue
        start = things[words[words.index("from") + 2]]
        for kind in item.options:
            assert leads(picture, start, things[kind]) == (kind == item.answer), (item, kind)


def test_cycles_run_either_way(scenes):
    """Else who knows the way needs no arrow. Twice the area inside is positive clockwise, as rows count downwards."""
    cycles = [scene.things for name, scene in scenes.items() if name.startswith("ai2d")]
    areas = [
        sum(a.column * b.row - b.column * a.row for a, b in zip(things, (*things[1:], things[0]), strict=True))
        for things in cycles
    ]
    assert 0.3 < sum(area > 0 for area in areas) / len(areas) < 0.7 and 0 not in areas


def bands(image: Image.Image) -> list[int]:
    """Heights in pixels of the lines of dark pixels, from the top."""
    dark = [any(min(image.getpixel((x, y))) < 170 for x in range(image.width)) for y in range(image.height)]
    heights, run = [], 0
    for row in [*dark, False]:
        heights, run = (heights, run + 1) if row else ([*heights, run] if run else heights, 0)
    return heights


def test_texts_are_large_enough_to_read_and_end_inside_the_picture(items):
    for _, picture in list(lab_general._docvqa(8))[::2]:
        heights = bands(picture())
        assert len(heights) == 3 and min(heights) >= 6, picture.args
    for text, tilt in (("within", 0.0), ("counterpoint", 0.0), ("63103", 0.0), ("starlet", 40.0), ("starlet", -15.0)):
        image = draw_text(text, tilt)
        edge = [image.getpixel((x, y)) for x in range(72) for y in range(72) if {x, y} & {0, 1, 70, 71}]
        assert all(min(pixel) > 240 for pixel in edge), text
        assert max(bands(image)) >= (20 if tilt else 8), text
    lefts = [min(y for y in range(72) if min(draw_text("starlet", tilt).getpixel((12, y))) < 170) for tilt in (30, -30)]
    assert lefts[0] > 36 > lefts[1], "turned against the clock it rises from the left"


def test_labels_stand_beside_their_things():
    scene = Scene((Thing("ball", "red", "small", "near", 2, 0), Thing("gem", "blue", "small", "near", 1, 0)))
    both, other = draw_labels(scene, ("horizon", "lush")), draw_labels(scene, ("horizon", "rich"))
    changed = [y for y in range(72) for x in range(72) if both.getpixel((x, y)) != other.getpixel((x, y))]
    assert changed and 24 <= min(changed) <= max(changed) < 48, "the second word stands on the gem's row"
    for item, picture in lab_general._ocrbench(10):
        if item.task == "Scene Text-centric VQA":
            scene, words = picture.args
            assert words[[thing.kind for thing in scene.things].index(item.prompt.split()[-1])] == item.answer
        else:
            assert picture.args[0] == item.answer
    for item, picture in lab_general._docvqa(10):
        assert f"{item.task}: {item.answer}" in picture.args[0].split("\n") and item.prompt.endswith(item.task)


def test_the_llm_knows_the_words(items, lab_tokenizer):
    assert len(WORDS) > 50, "so that each of a task's fifty words is another"
    assert all(len(lab_tokenizer.encode(word, add_special_tokens=False)) == 1 for word in WORDS)
    for item in of(items, "MMBench") + [item for item in of(items, "AI2D") if item.task == "part"]:
        words = item.prompt.replace(",", " ,").replace(".", " .").split()
        assert len(lab_tokenizer.encode(item.prompt, add_special_tokens=False)) <= len(words) + 1, item.prompt


def test_pictures_are_drawn_once_and_whole(tmp_path):
    folder = tmp_path / "lab" / "items"
    found = general_items(folder, **SMALL)
    for name in {item.image for item in found}:
        with Image.open(folder / name) as image:
            assert image.size == (IMAGE_SIZE, IMAGE_SIZE) and image.mode == "RGB"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert general_items(folder, **SMALL) == found
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before and len(list(tmp_path.iterdir())) == 1

    def fails():
        raise OSError("disk full")

    picture = partial(draw_text, "rich")
    with pytest.raises(OSError, match="disk full"):
        lab.drawn(tmp_path / "half", {"a.png": picture, "b.png": fails})
    assert not (tmp_path / "half").exists()

    def overtaken():
        (tmp_path / "raced").mkdir()
        (tmp_path / "raced" / "a.png").write_bytes(b"of the other run")
        return picture()

    lab.drawn(tmp_path / "raced", {"a.png": overtaken})
    assert (tmp_path / "raced" / "a.png").read_bytes() == b"of the other run"
    assert not list(tmp_path.glob("raced.*"))


def test_parts_of_the_lab_by_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(lab_general, "lab_items", partial(lab.lab_items, single=2, pairs=1, groups=1))
    monkeypatch.setattr(lab_general, "general_items", partial(general_items, **SMALL))
    assert list(suite_parts(suite("vision-centric"), tmp_path)) == ["lab"]
    assert list(suite_parts(("DocVQA",), tmp_path)) == ["lab_general"]
    parts = suite_parts(suite("all"), tmp_path)
    assert list(parts) == ["lab", "lab_general"]
    assert {item.benchmark for some, _ in parts.values() for item in some} <= set(BENCHMARKS)
    assert parts["lab"][1] == lab.items_folder(tmp_path) != parts["lab_general"][1] == general_folder(tmp_path)
    for some, images in parts.values():
        assert all((images / item.image).is_file() for item in some)


def test_the_vision_centric_items_are_those_of_the_published_results():
    asked = "".join(f"{i.benchmark}\t{i.index}\t{i.image}\t{i.prompt}\t{i.answer}\n" for i in lab.lab_items())
    assert hashlib.sha256(asked.encode()).hexdigest()[:16] == "dded6ffee4e7fbb3"


def test_items_are_made_without_torch():
    code = "import sys, benchmarks.lab_general; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
