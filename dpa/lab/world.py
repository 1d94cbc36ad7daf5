"""Scenes of the lab's world and their pictures.

A scene is two to four objects on a 3 x 3 floor. Every object has a kind, a colour, a size, a place and a depth; depth
shows in the picture as scale, as haze (far colours fade into the background) and as overlap (near objects cover far
ones). Everything is drawn from the `random.Random` that is handed in, so a seed names a world.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

KINDS = ("ball", "cube", "star", "ring", "cone", "cross", "moon", "gem")
COLOURS = {
    "red": (214, 48, 49),
    "blue": (41, 98, 214),
    "green": (39, 158, 82),
    "yellow": (240, 200, 40),
    "purple": (136, 64, 190),
    "orange": (240, 130, 40),
}
SIZES = ("small", "large")
DEPTHS = ("near", "far")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")
GRID = 3
IMAGE_SIZE = 72  # pixels; one 24-pixel patch of the lab's vision tower for each cell of the floor
BACKGROUND = (226, 228, 232)
OVERSAMPLING = 4


@dataclass(frozen=True)
class Thing:
    """One object. `row` and `column` are 0..2 from the top left; `jitter` is its offset in cells, -0.15..0.15."""

    kind: str
    colour: str
    size: str
    depth: str
    row: int
    column: int
    jitter: tuple[float, float] = (0.0, 0.0)

    @property
    def place(self) -> tuple[int, int]:
        return self.row, self.column

    def steps(self, other: Thing) -> int:
        """King's moves between the cells of two things: 1 beside or cornerwise, 2 across the floor."""
        return max(abs(self.row - other.row), abs(self.column - other.column))


@dataclass(frozen=True)
class Scene:
    """An ordered tuple of things; the order is the order of telling and carries no meaning."""

    things: tuple[Thing, ...]

    def count(self, kind: str) -> int:
        return sum(thing.kind == kind for thing in self.things)

    def unique(self) -> tuple[Thing, ...]:
        """The things whose kind occurs once: those that "the ball" can name."""
        return tuple(thing for thing in self.things if self.count(thing.kind) == 1)

    def with_thing(self, old: Thing, **changes) -> Scene:
        """The same scene with one thing changed: the twin pictures of MMVP and NaturalBench items."""
        return Scene(tuple(replace(t, **changes) if t is old else t for t in self.things))


def draw_scene(
    rng: random.Random, *, repeat: float = 0.25, sizes: tuple[float, float, float] = (0.4, 0.4, 0.2)
) -> Scene:
    """A random scene of two, three or four things, at the odds `sizes`.

    `repeat` is the chance that a further thing is of a kind already there, so that counts vary.
    """
    places = rng.sample(
        [(row, column) for row in range(GRID) for column in range(GRID)], rng.choices((2, 3, 4), sizes)[0]
    )
    things: list[Thing] = []
    for row, column in places:
        kinds = sorted({thing.kind for thing in things}) if things and rng.random() < repeat else KINDS
        things.append(
            Thing(
                kind=rng.choice(kinds),
                colour=rng.choice(tuple(COLOURS)),
                size=rng.choice(SIZES),
                depth=rng.choice(DEPTHS),
                row=row,
                column=column,
                jitter=(rng.uniform(-0.12, 0.12), rng.uniform(-0.12, 0.12)),
            )
        )
    return Scene(tuple(things))


def render(scene: Scene, size: int = IMAGE_SIZE) -> Image.Image:
    """The picture of a scene: RGB, `size` x `size` pixels, far things drawn first."""
    canvas = size * OVERSAMPLING
    image = Image.new("RGB", (canvas, canvas), BACKGROUND)
    pencil = ImageDraw.Draw(image)
    cell = canvas / GRID
    for thing in sorted(scene.things, key=lambda t: DEPTHS.index(t.depth), reverse=True):
        radius = cell * (0.30 if thing.size == "small" else 0.46) * (1.0 if thing.depth == "near" else 0.68)
        x = (thing.column + 0.5 + thing.jitter[0]) * cell
        y = (thing.row + 0.5 + thing.jitter[1]) * cell
        _draw_shape(pencil, thing.kind, x, y, radius, _haze(COLOURS[thing.colour], thing.depth))
    return image.resize((size, size), Image.Resampling.LANCZOS)


def _haze(colour: tuple[int, int, int], depth: str) -> tuple[int, ...]:
    share = 0.0 if depth == "near" else 0.45
    return tuple(round(c * (1 - share) + b * share) for c, b in zip(colour, BACKGROUND, strict=True))


def _draw_shape(pencil: ImageDraw.ImageDraw, kind: str, x: float, y: float, r: float, colour: tuple[int, ...]) -> None:
    def polygon(points: list[tuple[float, float]]) -> None:
        pencil.polygon([(x + r * px, y + r * py) for px, py in points], fill=colour)

    circle = (x - r, y - r, x + r, y + r)
    if kind == "ball":
        pencil.ellipse(circle, fill=colour)
    elif kind == "cube":
        polygon([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)])
    elif kind == "star":
        spokes = [(math.sin(k * math.pi / 5), -math.cos(k * math.pi / 5)) for k in range(10)]
        polygon(
            [
                (sx * (1.1 if k % 2 == 0 else 0.45), sy * (1.1 if k % 2 == 0 else 0.45))
                for k, (sx, sy) in enumerate(spokes)
            ]
        )
    elif kind == "ring":
        pencil.ellipse(circle, outline=colour, width=max(1, round(0.38 * r)))
    elif kind == "cone":
        polygon([(0, -1.0), (0.95, 0.85), (-0.95, 0.85)])
    elif kind == "cross":
        arm = 0.32
        polygon(
            [
                (-arm, -1),
                (arm, -1),
                (arm, -arm),
                (1, -arm),
                (1, arm),
                (arm, arm),
                (arm, 1),
                (-arm, 1),
                (-arm, arm),
                (-1, arm),
                (-1, -arm),
                (-arm, -arm),
            ]
        )
    elif kind == "moon":
        outer = [(math.cos(a), math.sin(a)) for a in (math.pi / 3 + k * (4 * math.pi / 3) / 24 for k in range(25))]
        inner = [(0.55 + 0.867 * math.cos(a), 0.867 * math.sin(a)) for a in (4.655 - k * 3.027 / 24 for k in range(25))]
        polygon(outer + inner)
    elif kind == "gem":
        polygon([(0, -1.1), (0.75, 0), (0, 1.1), (-0.75, 0)])
    else:
        raise ValueError(f"the world has no {kind!r}; kinds are {', '.join(KINDS)}")
