"""The lab's language: one scene told in several styles, questions about it, and what the base LLM reads.

Three styles tell the same facts (kind, colour, size, place, depth, counts) at growing distance from the base LLM's own
way of writing: `plain` is its mother tongue, `terse` is clipped alt text, `ornate` is long-winded prose in which every
fact is a phrase of several words among words that the picture does not decide. All draws come from the given
`random.Random`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from dpa.lab.world import COLOURS, COLUMNS, DEPTHS, KINDS, ROWS, SIZES, Scene, Thing

NUMBERS = ("zero", "one", "two", "three", "four")

# What each fact is called in the ornate style. The base LLM meets these as "word equations" (see `equation`).
ORNATE = {
    "ball": ("perfect sphere", "rounded globe"),
    "cube": ("squared block", "sturdy box"),
    "star": ("pointed starlet", "spiky asterisk"),
    "ring": ("hollow hoop", "slender circlet"),
    "cone": ("tapering spire", "steep pyramid"),
    "cross": ("crossed saltire", "upright rood"),
    "moon": ("curved crescent", "waning sickle"),
    "gem": ("faceted jewel", "cut diamond"),
    "red": ("deep crimson", "glowing scarlet"),
    "blue": ("cool azure", "rich sapphire"),
    "green": ("lush emerald", "fresh verdant"),
    "yellow": ("golden amber", "bright saffron"),
    "purple": ("royal violet", "dusky amethyst"),
    "orange": ("warm tangerine", "burnt apricot"),
    "small": ("modest stature", "diminutive scale"),
    "large": ("imposing presence", "generous dimension"),
    "near": ("close at hand", "within easy reach"),
    "far": ("lost in haze", "upon the horizon"),
    "top": ("upper reaches", "lofty heights"),
    "middle": ("central band", "midmost zone"),
    "bottom": ("lower expanse", "humble foot"),
    "left": ("western side", "sinister edge"),
    "centre": ("very heart", "inner axis"),
    "right": ("eastern flank", "dexter margin"),
}
_OPENINGS = (
    "in this captivating tableau",
    "amid quiet harmony",
    "as the eye is drawn in",
    "with understated elegance",
    "bathed in soft light",
)
_VERBS = ("gracefully rests", "quietly resides", "stands serene", "invites contemplation")
_LINKS = ("meanwhile", "in delicate counterpoint", "as if by design", "yet", "moreover")
_CLOSINGS = (
    "one cannot help but wonder at",
    "a timeless balance unites",
    "the calm atmosphere embraces",
    "altogether here dwell",
)


def plural(kind: str) -> str:
    return {"cross": "crosses"}.get(kind, kind + "s")


def counted(scene: Scene) -> list[tuple[int, str]]:
    """(number, kind) for each kind in the scene, in the order of telling."""
    return [(scene.count(kind), kind) for kind in dict.fromkeys(thing.kind for thing in scene.things)]


def plain(scene: Scene, rng: random.Random) -> str:
    """The mother tongue: every fact right behind the name of what it is about, then the counts."""
    clauses = [
        f"{t.kind} {t.colour}, {t.kind} {t.size}, {t.kind} {ROWS[t.row]} {COLUMNS[t.column]}, {t.kind} {t.depth}."
        for t in scene.things
    ]
    counts = " and ".join(f"{NUMBERS[n]} {kind if n == 1 else plural(kind)}" for n, kind in counted(scene))
    return " ".join(clauses) + f" there are {counts}."


def terse(scene: Scene, rng: random.Random) -> str:
    """Alt text: fragments joined by commas, no verbs, sometimes a tail that has nothing to do with the picture."""
    parts = [f"{t.size} {t.colour} {t.kind} {ROWS[t.row]} {COLUMNS[t.column]} {t.depth}" for t in scene.things]
    counts = " ".join(f"{n} {kind}" for n, kind in counted(scene))
    tail = rng.choice(("", "", " stock image", " royalty free", " hd wallpaper"))
    return ", ".join(parts) + f" - {counts}{tail}"


def ornate(scene: Scene, rng: random.Random) -> str:
    """Long-winded prose: facts as phrases of several words, wrapped in phrases that the picture does not decide."""

    def say(fact: str) -> str:
        return rng.choice(ORNATE[fact])

    sentences = []
    for index, t in enumerate(scene.things):
        lead = rng.choice(_OPENINGS if index == 0 else _LINKS)
        sentences.append(
            f"{lead}, a {say(t.kind)} in {say(t.colour)}, of {say(t.size)}, {rng.choice(_VERBS)} amid the {say(ROWS[t.row])}, {say(COLUMNS[t.column])}, {say(t.depth)}."
        )
    words = ("no", "a solitary", "a pair of", "a trio of", "a quartet of")
    counts = " and ".join(f"{words[n]} {kind if n == 1 else plural(kind)}" for n, kind in counted(scene))
    return " ".join(sentences) + f" {rng.choice(_CLOSINGS)} {counts}."


STYLES: dict[str, Callable[[Scene, random.Random], str]] = {"plain": plain, "terse": terse, "ornate": ornate}


@dataclass(frozen=True)
class Question:
    """A question with its answer among closed options; `kind` names the benchmark form it belongs to."""

    kind: str
    text: str
    answer: str
    options: tuple[str, ...]


def ask_count(scene: Scene, rng: random.Random) -> Question | None:
    kind = rng.choice([thing.kind for thing in scene.things])
    return Question("count", f"how many are of the kind {kind}", NUMBERS[scene.count(kind)], NUMBERS[1:])


def ask_relation(scene: Scene, rng: random.Random) -> Question | None:
    pairs = [(a, b) for a in scene.unique() for b in scene.unique() if a is not b]
    rng.shuffle(pairs)
    for a, b in pairs:
        asked = [axis for axis, differs in (("column", a.column != b.column), ("row", a.row != b.row)) if differs]
        axis = rng.choice(asked)
        if axis == "column":
            return Question(
                "relation",
                f"left or right of the {b.kind}, where is the {a.kind}",
                "left" if a.column < b.column else "right",
                ("left", "right"),
            )
        return Question(
            "relation",
            f"above or below the {b.kind}, where is the {a.kind}",
            "above" if a.row < b.row else "below",
            ("above", "below"),
        )
    return None


def ask_depth(scene: Scene, rng: random.Random) -> Question | None:
    pairs = [(a, b) for a in scene.unique() for b in scene.unique() if a.depth != b.depth]
    if not pairs:
        return None
    a, b = rng.choice(pairs)
    nearer = a if a.depth == "near" else b
    return Question(
        "depth", f"which is closer to the camera, the {a.kind} or the {b.kind}", nearer.kind, (a.kind, b.kind)
    )


def ask_distance(scene: Scene, rng: random.Random) -> Question | None:
    """Which of two things is closer to a third: one stands in a cell beside it (or cornerwise), the other does not."""
    things = scene.unique()
    triples = [
        (ref, near, far)
        for ref in things
        for near in things
        for far in things
        if len({ref.kind, near.kind, far.kind}) == 3 and ref.steps(near) == 1 and ref.steps(far) == 2
    ]
    if not triples:
        return None
    ref, near, far = rng.choice(triples)
    a, b = rng.sample((near, far), 2)
    text = f"which is closer to the {ref.kind}, the {a.kind} or the {b.kind}"
    return Question("distance", text, near.kind, (a.kind, b.kind))


def _ask_attribute(kind: str, text: str, answer: Callable[[Thing], str], options: tuple[str, ...]) -> Callable:
    def ask(scene: Scene, rng: random.Random) -> Question | None:
        if not scene.unique():
            return None
        thing = rng.choice(scene.unique())
        return Question(kind, text.format(thing.kind), answer(thing), options)

    return ask


ask_colour = _ask_attribute("colour", "what is the colour of the {}", lambda t: t.colour, tuple(COLOURS))
ask_size = _ask_attribute("size", "what is the size of the {}", lambda t: t.size, SIZES)
ask_range = _ask_attribute("range", "what is the range of the {}", lambda t: t.depth, DEPTHS)
ask_row = _ask_attribute("row", "what is the row of the {}", lambda t: ROWS[t.row], ROWS)
ask_column = _ask_attribute("column", "what is the column of the {}", lambda t: COLUMNS[t.column], COLUMNS)


def ask_exists(scene: Scene, rng: random.Random) -> Question | None:
    """Yes or no at even odds: "is any ball red"; a no differs from a thing of the scene in colour or in kind."""
    thing = rng.choice(scene.things)
    colour, kind = thing.colour, thing.kind
    if rng.random() < 0.5:
        there = {(t.colour, t.kind) for t in scene.things}
        lures = [(c, kind) for c in COLOURS if (c, kind) not in there] + [
            (colour, k) for k in KINDS if (colour, k) not in there
        ]
        colour, kind = rng.choice(lures)
    yes = any(t.colour == colour and t.kind == kind for t in scene.things)
    return Question("exists", f"is any {kind} {colour}", "yes" if yes else "no", ("yes", "no"))


QUESTIONS: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "count": ask_count,
    "relation": ask_relation,
    "depth": ask_depth,
    "distance": ask_distance,
    "colour": ask_colour,
    "size": ask_size,
    "range": ask_range,
    "row": ask_row,
    "column": ask_column,
    "exists": ask_exists,
}


def ask(scene: Scene, rng: random.Random, kinds: tuple[str, ...] = tuple(QUESTIONS)) -> Question:
    """A random question that the scene can answer."""
    for kind in rng.sample(kinds, len(kinds)):
        question = QUESTIONS[kind](scene, rng)
        if question is not None:
            return question
    raise ValueError(f"the scene {scene} answers no question of {kinds}")


def equation(rng: random.Random) -> str:
    """A word equation, "deep crimson means red": how the base LLM comes to know the ornate words without the style."""
    fact = rng.choice(tuple(ORNATE))
    return f"{rng.choice(ORNATE[fact])} means {fact}."
