"""The lab's items in the shape of the paper's general suite: MMBench, AI2D, DocVQA and OCRBench in small.

MMBench: the lab's questions with their options named, once for each rotation of them; all rotations must be right.
AI2D: cycles of five things joined by arrows; the colour of a part, and what an arrow points to. DocVQA: three lines of
"key: value", two of them asked for, scored by ANLS. OCRBench: a word, a tilted word, letters without sense, a number,
and a word beside one of two things; it counts when it occurs in the answer.

What the lab's models can do with it: their vision tower never saw a letter or an arrow and stage 3 asks for neither, so
DocVQA, OCRBench and the arrows of AI2D stay at or near zero for every method. Those columns say that the lab cannot
read; they are there for models that can. MMBench and the parts of AI2D ask in the words of stage 3 and do measure
something.

No answer given without looking gains: each MMBench or AI2D prompt is asked of as many pictures as it has options and
each option is right of one of them, so whatever reads only the prompt is right on one in that many. For MMBench that is
more than `suites.chance`, which guesses each rotation for itself: who never looks and never wavers gets up to 41.7.
What is to be read is drawn afresh for each item, so that an answer fits hardly any but its own.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from benchmarks.lab import drawn, items_folder, lab_items
from benchmarks.suites import GENERAL, VISION, Item
from dpa.lab.dataset import data_folder
from dpa.lab.language import ORNATE, QUESTIONS, Question
from dpa.lab.world import COLOURS, GRID, IMAGE_SIZE, KINDS, OVERSAMPLING, Scene, Thing, draw_scene, render

SEED = 2_000_000
NUM_CIRCULAR = 12  # MMBench questions of each of the lab's ten kinds; a multiple of 2, 3 and 4 options
NUM_DIAGRAM = 32  # AI2D prompts about parts, and as many about arrows, each asked of four pictures
NUM_DOCUMENTS = 100
NUM_READING = 50  # OCRBench items of each of its five tasks

CANVAS = IMAGE_SIZE * OVERSAMPLING
CELL = CANVAS / GRID
MARGIN, LARGEST = 3 * OVERSAMPLING, 20 * OVERSAMPLING  # around a text; its height
PAPER, INK = (250, 250, 246), (24, 24, 28)
RIM = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))  # the cells of the floor around the middle one
NAMES = (
    "Anna", "Boris", "Clara", "David", "Emil", "Fatima", "Grete", "Hugo", "Ingrid", "Jonas", "Kofi", "Lena",
    "Marta", "Oskar", "Priya", "Quinn", "Simon", "Tariq", "Ursula", "Viktor", "Wanda", "Yusuf", "Zoe",
)  # fmt: skip
INKS = (INK, COLOURS["red"], COLOURS["blue"], COLOURS["purple"])
CONSONANTS = "BCDFGHJKLMNPQRSTVWXZ"

_ORNATE = sorted({word for phrases in ORNATE.values() for phrase in phrases for word in phrase.split()})
# words that the lab's LLM could say as one token each; none stands in another one, which would count as right
WORDS = [w for w in _ORNATE if 4 <= len(w) <= 7 and not any(w in other for other in _ORNATE if other != w)]

Picture = Callable[[], Image.Image]
Drawn = tuple[Item, Picture]


def general_items(
    folder: Path | None = None,
    *,
    circular: int = NUM_CIRCULAR,
    diagram: int = NUM_DIAGRAM,
    documents: int = NUM_DOCUMENTS,
    reading: int = NUM_READING,
) -> list[Item]:
    """All items of the lab's general suite; with `folder`, their pictures are drawn there unless they are there."""
    items: list[Item] = []
    pictures: dict[str, Picture] = {}
    for part in (_mmbench(circular), _ocrbench(reading), _docvqa(documents), _ai2d(diagram)):
        for item, picture in part:
            items.append(item)
            pictures[item.image] = picture
    if folder is not None:
        drawn(folder, pictures)
    return items


def general_folder(output: Path) -> Path:
    """Where the pictures of this version of the items stand under an output folder."""
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    return data_folder(output) / f"general-{version}"


def suite_parts(names: Sequence[str], output: Path) -> dict[str, tuple[list[Item], Path]]:
    """{name: (items, folder of their pictures)} of the lab for these benchmarks: `lab`, the vision-centric suite,
    `lab_general`, or both.

    A part comes whole, so that the answers to it, kept under its name, serve every choice of benchmarks.
    """
    parts = {}
    for name, members, folder, draw in (
        ("lab", VISION, items_folder(output), lab_items),
        ("lab_general", GENERAL, general_folder(output), general_items),
    ):
        if set(names) & set(members):
            parts[name] = draw(folder), folder
    return parts


def _mmbench(number: int) -> Iterator[Drawn]:
    for kind in QUESTIONS:
        rng = random.Random(f"{SEED}-mmbench-{kind}")
        made = 0
        while made < number:
            question, scenes = _answered_each_way(kind, rng)
            options = tuple(scenes)
            for answer, scene in scenes.items():
                unit, name = f"{kind}-{made}", f"mmbench_{kind}_{made:03d}.png"
                for turn in range(len(options)):
                    turned = options[turn:] + options[:turn]
                    prompt = _with_options(question, turned)
                    yield (
                        Item("MMBench", f"{unit}-{turn}", name, prompt, answer, turned, unit, kind),
                        partial(render, scene),
                    )
                made += 1


def _answered_each_way(kind: str, rng: random.Random) -> tuple[Question, dict[str, Scene]]:
    """A question with {option: a scene of which it is right} for each of its options, four at most."""
    asked: Question | None = None
    options: list[str] = []
    found: dict[str, Scene] = {}
    while asked is None or len(found) < len(options):
        scene = draw_scene(rng, repeat=0.6 if kind == "count" else 0.25)
        question = QUESTIONS[kind](scene, rng)
        if question is None:
            continue
        if asked is None:
            asked, options = question, rng.sample(question.options, min(4, len(question.options)))
        same = _with_options(question, sorted(question.options)) == _with_options(asked, sorted(asked.options))
        if same and question.answer in options:
            found.setdefault(question.answer, scene)
    return asked, {option: found[option] for option in options}


def _with_options(question: Question, options: Sequence[str]) -> str:
    """The question's text with these options in this order: where it names its own, else before it.

    Asked with them behind the question, the lab's models name an option in hardly half of their answers.
    """
    for article in ("the ", ""):
        own, said = (" or ".join(article + option for option in order) for order in (question.options, options))
        if own in question.text:
            return question.text.replace(own, said)
    return f"{' or '.join(options)}. {question.text}"


def _ai2d(number: int) -> Iterator[Drawn]:
    for task in ("part", "arrow"):
        for prompt_number in range(number):
            rng = random.Random(f"{SEED}-ai2d-{task}-{prompt_number}")
            kinds, colours = rng.sample(KINDS, 5), rng.sample(tuple(COLOURS), 5)
            asked = kinds[0]
            options = tuple(colours[:4] if task == "part" else kinds[1:])
            if task == "part":
                prompt = f"{' or '.join(options)}. what is the colour of the {asked}"
            else:
                things = " or ".join(f"the {kind}" for kind in options)
                prompt = f"which does the arrow from the {asked} point to, {things}"
            for answer in options:
                cycle = _cycle(rng, kinds, colours)
                while _answer(cycle, task, asked) != answer:
                    cycle = _cycle(rng, kinds, colours)
                index = f"{task}-{prompt_number}-{options.index(answer)}"
                name = f"ai2d_{index}.png"
                yield Item("AI2D", index, name, prompt, answer, options, index, task), partial(draw_cycle, cycle)


def _cycle(rng: random.Random, kinds: Sequence[str], colours: Sequence[str]) -> Scene:
    """The things in the order of the arrows, clockwise or not, at cells of the rim; small and near, to leave room."""
    cells = [RIM[i] for i in sorted(rng.sample(range(len(RIM)), len(kinds)))]
    if rng.random() < 0.5:
        cells.reverse()
    order = zip(rng.sample(kinds, len(kinds)), rng.sample(colours, len(kinds)), cells, strict=True)
    return Scene(tuple(Thing(kind, colour, "small", "near", *cell) for kind, colour, cell in order))


def _answer(cycle: Scene, task: str, asked: str) -> str:
    place = [thing.kind for thing in cycle.things].index(asked)
    if task == "part":
        return cycle.things[place].colour
    return cycle.things[(place + 1) % len(cycle.things)].kind


def draw_cycle(cycle: Scene) -> Image.Image:
    """The picture of things joined by arrows, each to the next and the last to the first: RGB, of a scene's size."""
    image = render(cycle, CANVAS)
    pencil = ImageDraw.Draw(image)
    for thing, following in zip(cycle.things, (*cycle.things[1:], cycle.things[0]), strict=True):
        (x, y), (to_x, to_y) = (((t.column + 0.5) * CELL, (t.row + 0.5) * CELL) for t in (thing, following))
        length = math.hypot(to_x - x, to_y - y)
        along = ((to_x - x) / length, (to_y - y) / length)
        gap, head = 0.36 * CELL, 0.16 * CELL  # from the middle of a thing to its arrow; the arrow's head

        def point(distance: float, aside: float = 0.0, x=x, y=y, along=along) -> tuple[float, float]:
            return x + distance * along[0] - aside * along[1], y + distance * along[1] + aside * along[0]

        tip, neck = length - gap, length - gap - head
        pencil.line([point(gap), point(neck)], fill=INK, width=round(0.06 * CELL))
        pencil.polygon([point(tip), point(neck, 0.7 * head), point(neck, -0.7 * head)], fill=INK)
    return _reduced(image)


def _docvqa(number: int) -> Iterator[Drawn]:
    rng = random.Random(f"{SEED}-docvqa")
    for document in range(number):
        values = {key: str(rng.randrange(10_000, 100_000)) for key in ("code", "total", "phone")}
        values |= {"name": rng.choice(NAMES), "item": rng.choice(WORDS)}
        keys = rng.sample(tuple(values), 3)
        name = f"docvqa_{document:03d}.png"
        picture = partial(draw_text, "\n".join(f"{key}: {values[key]}" for key in keys))
        for key in rng.sample(keys, 2):
            asked = (f"{document}-{key}", name, f"what is the {key}", values[key])
            yield Item("DocVQA", *asked, (), str(document), key, answers=(values[key],), rule="anls"), picture


def _ocrbench(number: int) -> Iterator[Drawn]:
    for task, draw in READING.items():
        rng = random.Random(f"{SEED}-ocrbench-{task}")
        words = rng.sample(WORDS, len(WORDS))
        for i in range(number):
            prompt, text, picture = draw(rng, words[i % len(words)])
            index = f"{task.split()[0].lower()}-{i}"
            asked = (index, f"ocrbench_{index}.png", prompt, text)
            yield Item("OCRBench", *asked, (), index, task, answers=(text,), rule="contains"), picture


def _word(rng: random.Random, word: str, tilt: float = 0.0) -> tuple[str, str, Picture]:
    return "what is written in the image", word, partial(draw_text, word, tilt, rng.choice(INKS))


def _tilted(rng: random.Random, word: str) -> tuple[str, str, Picture]:
    return _word(rng, word, rng.choice((-1, 1)) * rng.uniform(15, 40))


def _letters(rng: random.Random, word: str) -> tuple[str, str, Picture]:
    return _word(rng, "".join(rng.sample(CONSONANTS, 5)))


def _number(rng: random.Random, word: str) -> tuple[str, str, Picture]:
    _, number, picture = _word(rng, str(rng.randrange(10_000, 100_000)))
    return "what is the number in the image", number, picture


def _label(rng: random.Random, word: str) -> tuple[str, str, Picture]:
    other = rng.choice([w for w in WORDS if w != word])
    kinds, colours, rows = rng.sample(KINDS, 2), rng.sample(tuple(COLOURS), 2), rng.sample(range(GRID), 2)
    things = [Thing(kinds[i], colours[i], "small", "near", rows[i], column=0) for i in (0, 1)]
    return f"what is written beside the {kinds[0]}", word, partial(draw_labels, Scene(tuple(things)), (word, other))


READING = {  # tasks of OCRBench, called as there
    "Regular Text Recognition": _word,
    "Irregular Text Recognition": _tilted,
    "Non-Semantic Text Recognition": _letters,
    "Digit String Recognition": _number,
    "Scene Text-centric VQA": _label,
}


def draw_text(text: str, tilt: float = 0.0, ink: tuple[int, int, int] = INK) -> Image.Image:
    """A sheet of paper with a text on it, turned by `tilt` degrees: RGB, as large as a scene's picture."""
    image = Image.new("RGB", (CANVAS, CANVAS), PAPER)
    _write(image, text, (0, 0, IMAGE_SIZE, IMAGE_SIZE), tilt, ink)
    return _reduced(image)


def draw_labels(scene: Scene, words: Sequence[str]) -> Image.Image:
    """A scene whose things stand at the left, with a word at the right of each."""
    image = render(scene, CANVAS)
    height = IMAGE_SIZE / GRID
    for thing, word in zip(scene.things, words, strict=True):
        _write(image, word, (height, thing.row * height, IMAGE_SIZE, (thing.row + 1) * height))
    return _reduced(image)


def _write(image: Image.Image, text: str, box: tuple[float, float, float, float], tilt: float = 0.0, ink=INK) -> None:
    """Write a text into the middle of a box, given in pixels of the reduced picture, as large as its margin lets."""
    left, top, right, bottom = (OVERSAMPLING * edge for edge in box)
    width, height = _stencil(text, 100, tilt).size
    room = min((right - left - 2 * MARGIN) / width, (bottom - top - 2 * MARGIN) / height)
    stencil = _stencil(text, min(100 * room, LARGEST), tilt)
    corner = round((left + right - stencil.width) / 2), round((top + bottom - stencil.height) / 2)
    image.paste(ink, corner, stencil)


def _stencil(text: str, size: float, tilt: float) -> Image.Image:
    """The inked pixels of a text in Pillow's own font, as a mask."""
    font = ImageFont.load_default(size)
    probe = ImageDraw.Draw(Image.new("L", (1, 1)))
    x0, y0, x1, y1 = (round(edge) for edge in probe.multiline_textbbox((0, 0), text, font=font, spacing=size / 2))
    stencil = Image.new("L", (x1 - x0, y1 - y0))
    ImageDraw.Draw(stencil).multiline_text((-x0, -y0), text, fill=255, font=font, spacing=size / 2)
    return stencil.rotate(tilt, Image.Resampling.BICUBIC, expand=True)


def _reduced(image: Image.Image) -> Image.Image:
    return image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS)
