"""The lab's items in the shape of the paper's vision-centric suite.

CVBench-2D: count and relation. CVBench-3D: depth and distance. MMVP: pairs of pictures that differ in one thing, the
same question, both must be right. NaturalBench: two pictures x two questions whose answers differ between the
pictures, so that no answer given without looking earns a group.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from benchmarks.suites import Item
from dpa.lab.dataset import data_folder
from dpa.lab.language import QUESTIONS, Question
from dpa.lab.world import COLOURS, COLUMNS, DEPTHS, ROWS, SIZES, Scene, Thing, draw_scene, render

SEED = 1_000_000
NUM_SINGLE = 250  # items for each of count, relation, depth, distance
NUM_PAIRS = 150  # as many as MMVP has
NUM_GROUPS = 150


def lab_items(
    folder: Path | None = None, *, single: int = NUM_SINGLE, pairs: int = NUM_PAIRS, groups: int = NUM_GROUPS
) -> list[Item]:
    """All items of the lab's vision-centric suite; with `folder`, their pictures are drawn there unless they are there."""
    items: list[Item] = []
    pictures: dict[str, Scene] = {}
    for benchmark, tasks in (("CVBench-2D", ("count", "relation")), ("CVBench-3D", ("depth", "distance"))):
        for task in tasks:
            for index, scene, question in _balanced(task, single):
                name = f"{task}_{index:04d}.png"
                pictures[name] = scene
                items.append(_item(benchmark, f"{task}-{index}", name, question, unit=f"{task}-{index}", task=task))
    for index in range(pairs):
        rng = random.Random(f"{SEED}-mmvp-{index}")
        (first, second), (question, other) = _twins(rng)
        for half, scene, asked in ((0, first, question), (1, second, other)):
            name = f"mmvp_{index:04d}_{half}.png"
            pictures[name] = scene
            items.append(_item("MMVP", f"{2 * index + half + 1}", name, asked, unit=str(index), task=asked.kind))
    for index in range(groups):
        rng = random.Random(f"{SEED}-natural-{index}")
        scenes, questions = _natural_group(rng)
        for image, scene in enumerate(scenes):
            name = f"natural_{index:04d}_{image}.png"
            pictures[name] = scene
            for number in (0, 1):
                items.append(
                    _item(
                        "NaturalBench",
                        f"{index}-q{number}-i{image}",
                        name,
                        questions[number][image],
                        unit=str(index),
                        task=questions[number][image].kind,
                        slot=(number, image),
                    )
                )
    if folder is not None:
        drawn(folder, {name: partial(render, scene) for name, scene in pictures.items()})
    return items


def drawn(folder: Path, pictures: Mapping[str, Callable[[], Image.Image]]) -> None:
    """Draw pictures under their names into a folder, which is there whole or not at all; nothing if it is there."""
    if folder.is_dir():
        return
    drawing = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    drawing.mkdir(parents=True, exist_ok=True)
    for name, picture in tqdm(pictures.items(), desc="drawing the lab's items", unit="img", leave=False, delay=2):
        picture().save(drawing / name)
    try:
        drawing.rename(folder)
    except OSError:  # of two runs started together the other one was first
        if not folder.is_dir():
            raise
        shutil.rmtree(drawing)


def items_folder(output: Path) -> Path:
    """Where the pictures of this version of the items stand under an output folder."""
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    return data_folder(output) / f"items-{version}"


def _item(
    benchmark: str, index: str, image: str, question: Question, *, unit: str, task: str, slot: tuple[int, int] = (0, 0)
) -> Item:
    return Item(benchmark, index, image, question.text, question.answer, question.options, unit, task, slot)


def _balanced(task: str, number: int):
    """`number` (index, scene, question) whose answers are spread evenly, so that no constant answer gains.

    Where the options are fixed (count) each answer gets the same share; where they are two things, the right one is
    named first in half of the items.
    """
    taken: dict[str, int] = {}
    index = 0
    for attempt in range(number * 200):
        rng = random.Random(f"{SEED}-{task}-{attempt}")
        scene = draw_scene(rng, repeat=0.6 if task == "count" else 0.25)
        question = QUESTIONS[task](scene, rng)
        if question is None:
            continue
        key = question.answer if task in ("count", "relation") else str(question.options.index(question.answer))
        shares = 4 if task in ("count", "relation") else 2
        if taken.get(key, 0) >= -(-number // shares):
            continue
        taken[key] = taken.get(key, 0) + 1
        yield index, scene, question
        index += 1
        if index == number:
            return
    raise RuntimeError(f"the world gave only {index} of {number} {task} items")


_CHANGES: dict[str, tuple[str, ...]] = {"colour": tuple(COLOURS), "size": SIZES, "row": ROWS, "column": COLUMNS}


def _changed(scene: Scene, rng: random.Random) -> tuple[str, Thing, Scene, str] | None:
    """(attribute, thing, twin scene, new value): the scene with one attribute of one nameable thing changed."""
    if not scene.unique():
        return None
    thing = rng.choice(scene.unique())
    attribute = rng.choice(tuple(_CHANGES))
    old = getattr(thing, attribute)
    value = rng.choice(
        [v for v in _CHANGES[attribute] if v != (_CHANGES[attribute][old] if isinstance(old, int) else old)]
    )
    stored = _CHANGES[attribute].index(value) if isinstance(old, int) else value
    twin = scene.with_thing(thing, **{attribute: stored})
    if len({t.place for t in twin.things}) < len(twin.things):
        return None
    return attribute, thing, twin, value


def _until(draw: Callable, rng: random.Random):
    for _ in range(1000):
        found = draw(draw_scene(rng), rng)
        if found is not None:
            return found
    raise RuntimeError("no such scene in 1000 draws")


def _twins(rng: random.Random) -> tuple[tuple[Scene, Scene], tuple[Question, Question]]:
    def draw(scene: Scene, rng: random.Random):
        changed = _changed(scene, rng)
        if changed is None:
            return None
        attribute, thing, twin, value = changed
        old = getattr(thing, attribute)
        before = _CHANGES[attribute][old] if isinstance(old, int) else old
        options = _CHANGES[attribute]  # the question names none of them, so all can be guessed
        text = f"what is the {attribute} of the {thing.kind}"
        return (scene, twin), (Question(attribute, text, before, options), Question(attribute, text, value, options))

    return _until(draw, rng)


# kind of question -> the attribute it is about
_FORMS = {"exists": "colour", "colour": "colour", "size": "size", "range": "depth"}
_VALUES = {"colour": tuple(COLOURS), "size": SIZES, "depth": DEPTHS}


def _natural_group(rng: random.Random):
    """Two scenes that differ in one attribute of two things, and a question about each of the two.

    As in NaturalBench a question is answered yes or no ("is any ball red") or by one of several values.
    """

    def draw(scene: Scene, rng: random.Random):
        if len(scene.unique()) < 2:
            return None
        things = rng.sample(scene.unique(), 2)
        twin, questions = scene, []
        for thing in things:
            kind = rng.choice(("exists", "exists", "colour", "size", "range"))
            attribute = _FORMS[kind]
            old = getattr(thing, attribute)
            new = rng.choice([value for value in _VALUES[attribute] if value != old])
            twin = twin.with_thing(thing, **{attribute: new})
            options: tuple[str, ...]
            if kind == "exists":
                asked = rng.choice((old, new))
                text, options = f"is any {thing.kind} {asked}", ("yes", "no")
                answers = tuple("yes" if value == asked else "no" for value in (old, new))
            else:
                text, options, answers = f"what is the {kind} of the {thing.kind}", _VALUES[attribute], (old, new)
            questions.append(tuple(Question(kind, text, answer, options) for answer in answers))
        return (scene, twin), questions

    return _until(draw, rng)
