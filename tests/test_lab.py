"""The lab: the world is seeded, pictures and texts tell the same facts, the shipped foundations read and see."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpa.errors import InputError
from dpa.lab import foundations, language
from dpa.lab.dataset import ensure
from dpa.lab.world import BACKGROUND, COLOURS, COLUMNS, DEPTHS, KINDS, ROWS, SIZES, Scene, Thing, draw_scene, render

seeds = st.integers(0, 10**6)


def thing(**changes) -> Thing:
    return Thing(
        **({"kind": "ball", "colour": "red", "size": "large", "depth": "near", "row": 1, "column": 1} | changes)
    )


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_a_seed_names_a_scene_and_its_texts(seed):
    def draw():
        rng = random.Random(seed)
        scene = draw_scene(rng)
        return scene, [tell(scene, rng) for tell in language.STYLES.values()], language.ask(scene, rng)

    assert draw() == draw()
    scene = draw()[0]
    assert 2 <= len(scene.things) <= 4 and len({t.place for t in scene.things}) == len(scene.things)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_every_style_tells_every_fact(seed):
    rng = random.Random(seed)
    scene = draw_scene(rng)
    for style in ("plain", "terse"):
        text = language.STYLES[style](scene, rng)
        for t in scene.things:
            for fact in (t.kind, t.colour, t.size, t.depth, ROWS[t.row], COLUMNS[t.column]):
                assert fact in text
    text = language.ornate(scene, rng)
    for t in scene.things:
        for fact in (t.kind, t.colour, t.size, t.depth, ROWS[t.row], COLUMNS[t.column]):
            assert any(phrase in text for phrase in language.ORNATE[fact]), fact


@settings(max_examples=150, deadline=None)
@given(seeds)
def test_questions_are_answered_by_the_scene(seed):
    """Each answer worked out again from the scene by other means."""
    rng = random.Random(seed)
    scene = draw_scene(rng)
    by_kind = {t.kind: t for t in scene.things}
    for kind, ask in language.QUESTIONS.items():
        question = ask(scene, rng)
        if question is None:
            continue
        assert question.answer in question.options and len(set(question.options)) == len(question.options)
        words = question.text.replace(",", "").split()
        named = [by_kind[w] for w in words if w in by_kind]
        if kind == "count":
            assert language.NUMBERS.index(question.answer) == sum(t.kind == words[-1] for t in scene.things)
        elif kind == "relation":
            reference, asked = named
            offset = (asked.column - reference.column) if "left" in words else (asked.row - reference.row)
            assert {"left": offset < 0, "right": offset > 0, "above": offset < 0, "below": offset > 0}[question.answer]
        elif kind == "depth":
            assert by_kind[question.answer].depth == "near" and {t.depth for t in named} == {"near", "far"}
        elif kind == "distance":
            reference, *others = named
            beside = [t for t in others if abs(t.row - reference.row) <= 1 and abs(t.column - reference.column) <= 1]
            assert [question.answer] == [t.kind for t in beside]
        elif kind == "exists":
            name, colour = words[-2:]
            assert question.answer == (
                "yes" if any((t.colour, t.kind) == (colour, name) for t in scene.things) else "no"
            )


def test_depth_shows_in_scale_haze_and_overlap():
    def ink(scene):
        return sum(pixel != BACKGROUND for pixel in render(scene).get_flattened_data())

    near, far = Scene((thing(),)), Scene((thing(depth="far"),))
    assert ink(near) > 1.5 * ink(far)
    assert render(near).getpixel((36, 36)) == COLOURS["red"] != render(far).getpixel((36, 36))
    left = thing(column=0, jitter=(0.4, 0.0))
    right = thing(column=1, jitter=(-0.3, 0.0), colour="blue", depth="far")
    for order in ((left, right), (right, left)):
        assert render(Scene(order)).getpixel((26, 36)) == COLOURS["red"], "the near thing covers the far one"


def test_all_kinds_look_different():
    pictures = {render(Scene((thing(kind=kind),))).tobytes() for kind in KINDS}
    assert len(pictures) == len(KINDS)
    with pytest.raises(ValueError, match="the world has no"):
        render(Scene((thing(kind="cat"),)))


def test_lab_words_are_single_tokens(lab_tokenizer):
    for word in (*KINDS, *COLOURS, *SIZES, *DEPTHS, *ROWS, *COLUMNS, *language.NUMBERS):
        assert len(lab_tokenizer.encode(word, add_special_tokens=False)) == 1, word


@pytest.mark.parametrize("text", ["Zürich 你好 🙂", "UPPER case", "tab\tnew\nline", "nul\x00byte", "שלום"])
def test_unseen_text_round_trips(lab_tokenizer, text):
    assert lab_tokenizer.decode(lab_tokenizer.encode(text, add_special_tokens=False)) == text


def test_data_sets_are_made_once_and_named(tmp_path, monkeypatch):
    from dpa.lab import dataset

    monkeypatch.setattr(dataset, "NUM_CAPTIONS", 5)
    file, folder = ensure(tmp_path, "lab/terse")
    rows = json.loads(file.read_text())
    assert len(rows) == 5 and all((folder / row["image"]).is_file() for row in rows)
    stamp = file.stat().st_mtime_ns
    assert ensure(tmp_path, "lab/terse")[0].stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="lab has no such data"):
        ensure(tmp_path, "lab/baroque")


def test_styles_stand_at_growing_distance_from_the_base_llm():
    manifest = json.loads((foundations.SHIPPED / "manifest.json").read_text())
    found = foundations.evaluate()
    assert found["perplexity"]["plain"] < found["perplexity"]["terse"] < found["perplexity"]["ornate"]
    for part in ("reading", "seeing", "perplexity"):
        assert found[part] == pytest.approx(manifest["evaluation"][part], rel=1e-3), (
            "the manifest tells of other weights"
        )
    assert found["reading"]["all"] >= foundations.MIN_READING
    assert min(found["seeing"].values()) >= foundations.MIN_SEEING


@pytest.mark.slow
def test_check_command():
    assert foundations.main(["--check"]) == 0
