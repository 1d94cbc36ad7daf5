"""The lab's data sets, written in the same formats as the real ones: LLaVA JSON and a folder of pictures.

    python -m dpa.lab.dataset --style ornate --out DIR     write the captions and the questions to look at

Caption records tell one scene in one style; instruction records ask several questions about one scene. The two, and the
benchmarks' items (seeds from 1,000,000), are drawn from different seeds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from pathlib import Path

from tqdm import tqdm

from dpa.errors import InputError, command
from dpa.lab import language
from dpa.lab.world import Scene, draw_scene, render
from dpa.lineage import file_hash, write_json

SOURCES = ("world.py", "language.py", "dataset.py")
NUM_CAPTIONS = 4000
NUM_INSTRUCTIONS = 3000
QUESTIONS_A_SCENE = 4
CAPTION_SEED, INSTRUCTION_SEED = 1, 2
CAPTION_PROMPT = "<image>\ndescribe the image."


def world_version() -> str:
    """A short hash of the sources that decide what the lab's data look like; part of their folders' names."""
    here = Path(__file__).parent
    return hashlib.sha256("".join(file_hash(here / name) for name in SOURCES).encode()).hexdigest()[:8]


def data_folder(output: Path) -> Path:
    """Where the lab's data of this version of the world stand under an output folder."""
    return output / f"lab-data-{world_version()}"


def ensure(output: Path, name: str) -> tuple[Path, Path]:
    """(data file, image folder) of the lab data set `lab/STYLE` or `lab/questions`, made under `output` if absent."""
    kind = name.removeprefix("lab/")
    if kind != "questions" and kind not in language.STYLES:
        there = ", ".join("lab/" + style for style in language.STYLES)
        raise InputError(f"{name}: the lab has no such data; it has lab/questions and {there}")
    folder = data_folder(output) / ("questions" if kind == "questions" else f"captions_{kind}")
    file = folder / "records.json"
    if file.is_file():
        return file, folder
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(
        folder.with_name(f".{folder.name}.lock")
    ):  # of two trainings started together one draws and the other waits
        if not file.is_file():
            folder.mkdir(exist_ok=True)
            write_json(
                file, _questions(folder) if kind == "questions" else _captions(folder, kind)
            )  # last, in one step
    return file, folder


def told_by_rows(scene: Scene) -> Scene:
    """The scene with its things in reading order, which is how captions tell them, so that a caption can be learned."""
    return Scene(tuple(sorted(scene.things, key=lambda t: t.place)))


def _captions(folder: Path, style: str) -> list[dict]:
    records = []
    for index in tqdm(range(NUM_CAPTIONS), desc=f"drawing lab/{style}", unit="img", leave=False, delay=2):
        rng = random.Random(f"{CAPTION_SEED}-{index}")  # the same scenes in every style
        scene = draw_scene(rng)
        scene = told_by_rows(scene)
        records.append(_record(folder, index, scene, [(CAPTION_PROMPT, language.STYLES[style](scene, rng))]))
    return records


def _questions(folder: Path) -> list[dict]:
    records = []
    for index in tqdm(range(NUM_INSTRUCTIONS), desc="drawing lab/questions", unit="img", leave=False, delay=2):
        rng = random.Random(f"{INSTRUCTION_SEED}-{index}")
        scene = draw_scene(rng)
        asked = [language.ask(scene, rng) for _ in range(QUESTIONS_A_SCENE)]
        turns = [(("<image>\n" if i == 0 else "") + question.text, question.answer) for i, question in enumerate(asked)]
        records.append(_record(folder, index, scene, turns))
    return records


def _record(folder: Path, index: int, scene, turns: list[tuple[str, str]]) -> dict:
    image = f"images/{index:05d}.png"
    (folder / "images").mkdir(exist_ok=True)
    render(scene).save(folder / image)
    conversations = [
        {"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn, strict=True)
    ]
    return {"id": f"{index:05d}", "image": image, "conversations": conversations}


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dpa.lab.dataset", description=__doc__.split("\n")[0])
    parser.add_argument("--style", choices=language.STYLES, default="ornate")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    options = parser.parse_args(arguments)
    for name in (f"lab/{options.style}", "lab/questions"):
        file, _ = ensure(options.out, name)
        first = json.loads(file.read_text(encoding="utf-8"))[0]
        print(f"{name}: {file}\n  first record: {json.dumps(first)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
