"""VLMEvalKit's own prompts and scores for our items, by a worker process in the kit's environment (`make harness`).

The kit is never imported here: its import switches TLS verification off, seeds the generator and changes PIL's limits. The
worker (`vlmevalkit_worker.py`) gets a clean environment without keys, judge or network. An answer that the kit's parser
cannot read is wrong; nothing is guessed.

Reference: where the kit reads an option cell "None" or "NA" as absent and leaves it out of the prompt (3 of MMStar's 1,500
rows), so do we: published scores are made that way.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.suites import LETTERS, Item
from dpa.errors import InputError

KIT_NAMES = {
    "MMBench": "MMBench_DEV_EN",
    "AI2D": "AI2D_TEST",
    "DocVQA": "DocVQA_VAL",
    "OCRBench": "OCRBench",
    "NaturalBench": "NaturalBenchDataset",
    "CVBench-2D": "CV-Bench-2D",
    "CVBench-3D": "CV-Bench-3D",
    "MMVP": "MMVP",
    "MMStar": "MMStar",
    "POPE": "POPE",
}
PINNED = "0.0.20"  # of ms-vlmeval; the contract test is about this one
WORKER = Path(__file__).with_name("vlmevalkit_worker.py")
ENVIRONMENT = ".venv-vlmevalkit"
RULES = {
    "CVBench-2D": "first-character",
    "CVBench-3D": "first-character",
    "POPE": "pope",
}  # of items; "option" of others
OPTION_LIST = re.compile(
    r"Option:\s*A:\s*(.*?);\s*B:\s*(.*?);?\s*$", re.DOTALL
)  # at the end of a NaturalBench question


@dataclass(frozen=True)
class Kit:
    """python: of the environment that holds the kit; root: a checkout used in place of an installed kit; full: import all of it."""

    python: Path
    root: Path | None
    version: str
    full: bool = False


@dataclass(frozen=True)
class KitScore:
    """The kit's score, 0 to 100, and what it is made of.

    values: of each row by its index, 0 to 1 (MMBench: of the row's question in all its rotations); parsed: whether the
    kit's parser found an option in the answer (any text, for open questions); raw: the kit's own report, in its own
    scale; version: the kit's.
    """

    value: float
    values: dict[str, float]
    parsed: dict[str, bool]
    raw: dict
    version: str


def find(python: Path | None = None, root: Path | None = None, full: bool = False) -> Kit:
    """The kit of an environment, by default that of `make harness`, or of a checkout. InputError where it does not load."""
    if python is None:
        places = [folder / ENVIRONMENT / "bin" / "python" for folder in (Path.cwd(), Path(__file__).parents[1])]
        python = next((place for place in places if place.exists()), None)
        if python is None:
            raise InputError(
                f"{ENVIRONMENT}: no VLMEvalKit here; run `make harness`, it builds the kit's own environment"
            )
    if root is not None and not (root / "vlmeval" / "dataset").is_dir():
        raise InputError(f"{root}: holds no vlmeval/dataset; give the folder of a VLMEvalKit checkout")
    kit = Kit(python.absolute(), root.absolute() if root is not None else None, "", full)
    version = _ask(kit, "info", f"{python}")["version"]
    if root is not None:
        version += _revision(root)
    if version != PINNED:
        print(f"note: VLMEvalKit {version}, not {PINNED}; prompts and parsers differ between versions", file=sys.stderr)
    return Kit(kit.python, kit.root, version, full)


def prompts(kit: Kit, benchmark: str, file: Path, cache: Path, *, made_up: bool = False) -> tuple[list[Item], Path]:
    """(items with the kit's own prompts, the folder below `cache` that their images are relative to) of an official TSV file.

    The pictures are decoded as the kit does. Options whose text repeats carry their letter ("B. 3"), so that only the
    letter names them. made_up: NaturalBench may have another number of rows than the official 7,600.
    InputError names file and row.
    """
    _check_name(benchmark)
    if not file.is_file():
        raise InputError(f"{file}: no such file; download {KIT_NAMES[benchmark]}.tsv and give its path")
    with open(file, "rb") as opened:
        folder = cache / KIT_NAMES[benchmark] / hashlib.file_digest(opened, "sha256").hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)  # one for each content of the file: the kit goes by a picture's name
    request = {
        "benchmark": benchmark,
        "file": str(file.absolute()),
        "cache": str(folder.absolute()),
        "made_up": made_up,
    }
    rows = _ask(kit, "prompts", str(file), **request)
    units = _units(benchmark, rows, folder)
    return [_item(benchmark, asked, *units[asked["index"]]) for asked in rows], folder


def evaluate(kit: Kit, benchmark: str, file: Path, answers: Mapping[str, str], *, made_up: bool = False) -> KitScore:
    """The kit's own score of answers, by index, to the rows of an official TSV file; they must cover the file exactly.

    InputError names the first row without an answer, or says why a score would be wrong: a NaturalBench of another size
    than the official one (unless it is `made_up`), half an MMVP pair, a question without all its rotations.
    """
    _check_name(benchmark)
    if not file.is_file():
        raise InputError(f"{file}: no such file; download {KIT_NAMES[benchmark]}.tsv and give its path")
    return _score(kit, benchmark, str(file), answers, made_up, file=str(file.absolute()))


def rescore(
    kit: Kit, benchmark: str, rows: Sequence[Mapping[str, str]], *, made_up: bool = False, where: str = "predictions"
) -> KitScore:
    """The kit's own score of a table of predictions that carries its questions and golds, as VLMEvalKit writes them.

    rows: column to text (index, question, answer, options A.., category, split, source, type, prediction). where: what
    errors name. InputError as for `evaluate`.
    """
    _check_name(benchmark)
    if not rows:
        raise InputError(f"{where}: holds no row")
    answers: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        if "index" not in row or "prediction" not in row:
            raise InputError(f"{where}: row {number} has no index or no prediction; such a table cannot be scored")
        if row["index"] in answers:
            raise InputError(f"{where}: index {row['index']} stands there twice")
        answers[row["index"]] = row["prediction"]
    carried = [{key: text for key, text in row.items() if key != "prediction"} for row in rows]
    return _score(kit, benchmark, where, answers, made_up, rows=carried)


def _score(kit: Kit, benchmark: str, where: str, answers: Mapping[str, str], made_up: bool, **source: Any) -> KitScore:
    for index, text in answers.items():
        if not isinstance(text, str):
            raise InputError(f"{where}: the answer of {index} is no text but {text!r}")
    request = {"benchmark": benchmark, "answers": dict(answers), "made_up": made_up}
    reply = _ask(kit, "evaluate", where, **request, **source)
    return KitScore(reply["value"], reply["values"], reply["parsed"], reply["raw"], kit.version)


def _check_name(benchmark: str) -> None:
    if benchmark not in KIT_NAMES:
        raise InputError(f"VLMEvalKit does not score {benchmark!r} here; it does {', '.join(KIT_NAMES)}")


def _ask(kit: Kit, command: str, where: str, **request: Any) -> Any:
    """The worker's reply. InputError with its last line when it fails in any way, so that a half-made score is never read."""
    with tempfile.TemporaryDirectory(prefix="vlmevalkit-") as home:
        asked, replied = Path(home) / "request.json", Path(home) / "reply.json"
        asked.write_text(json.dumps(request), encoding="utf-8")
        line = [str(kit.python), "-I", "-X", "utf8"]  # -I: no PYTHON* variables, and benchmarks/ is not on the path
        if request.get("made_up"):
            line.append("-O")  # the kit asserts NaturalBench's 7,600 rows
        line += [str(WORKER), command, "--request", str(asked), "--reply", str(replied)]
        line += ["--vlmevalkit-root", str(kit.root)] if kit.root is not None else []
        line += ["--full"] if kit.full else []
        try:
            done = subprocess.run(
                line,
                env=_environment(home, request.get("cache", home)),
                cwd=home,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
        except OSError as error:
            raise InputError(f"{kit.python}: cannot be run ({error.strerror}); run `make harness`") from None
        if done.returncode != 0 or not replied.is_file():
            said = [text.strip() for text in done.stderr.splitlines() if text.strip()]
            reason = said[-1] if said else f"the kit's process ended with exit status {done.returncode}"
            raise InputError(f"{where}: {reason}")
        return json.loads(replied.read_text(encoding="utf-8"))


def _environment(home: str, pictures: str) -> dict[str, str]:
    """A clean environment: no key, no judge, none of the variables that change the kit's scores, and its own home.

    pictures: where the kit puts them.
    """
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "LANG") if name in os.environ}
    return kept | {"HOME": home, "TMPDIR": home, "LMUData": pictures, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def _revision(root: Path) -> str:
    """ " at <commit>" of a checkout, "" where git knows none."""
    git = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    try:
        return " at " + subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _units(benchmark: str, rows: list[dict], folder: Path) -> dict[str, tuple[str, tuple[int, int]]]:
    """{index: (what is resampled together, NaturalBench's (question, image))}."""
    if benchmark == "MMBench":
        return {r["index"]: (r["row"].get("g_index") or str(int(r["index"]) % 1_000_000), (0, 0)) for r in rows}
    if benchmark == "DocVQA":
        return {r["index"]: (_document(r, folder), (0, 0)) for r in rows}
    if benchmark in ("MMVP", "NaturalBench"):
        size = 2 if benchmark == "MMVP" else 4
        ordered = sorted((r["index"] for r in rows), key=int)
        slots = [(0, 0)] * 2 if benchmark == "MMVP" else [(0, 0), (0, 1), (1, 0), (1, 1)]
        return {index: (str(place // size), slots[place % size]) for place, index in enumerate(ordered)}
    return {r["index"]: (r["index"], (0, 0)) for r in rows}


def _document(asked: dict, folder: Path) -> str:
    """The document a DocVQA page is of: by its id, by the page's file name without the page number, else the page itself."""
    row = asked["row"]
    for name in ("docId", "ucsf_document_id"):
        if row.get(name):
            return row[name]
    if row.get("image_path"):
        return Path(row["image_path"]).stem.rpartition("_")[0] or Path(row["image_path"]).stem
    return hashlib.sha256((folder / asked["image"]).read_bytes()).hexdigest()[:16]


def _item(benchmark: str, asked: dict, unit: str, slot: tuple[int, int]) -> Item:
    row = asked["row"]
    task = row.get("source" if benchmark.startswith("CVBench") else "category", "")
    answers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    rule = RULES.get(benchmark, "option")
    if benchmark in ("DocVQA", "OCRBench"):
        answers, rule = _accepted(row["answer"]), "anls" if benchmark == "DocVQA" else "contains"
        answer = answers[0]
    elif benchmark == "POPE":
        options, answer = ("Yes", "No"), row["answer"]
    elif benchmark == "NaturalBench":
        named = OPTION_LIST.search(row["question"])
        options = ("Yes", "No") if row["type"] == "yes_no" else named.groups() if named else ("A", "B")
        answer = options[row["answer"] in ("No", "B")]
    else:
        texts = [row.get(letter, "") for letter in LETTERS]
        offered = texts[: max(place for place, text in enumerate(texts, 1) if text)]
        often = Counter(offered)
        options = tuple(f"{a}. {t}" if often[t] > 1 else t for a, t in zip(LETTERS, offered, strict=False))
        answer = options[LETTERS.index(row["answer"])]
    return Item(
        benchmark, asked["index"], asked["image"], asked["prompt"], answer, options, unit, task, slot, answers, rule
    )


def _accepted(cell: str) -> tuple[str, ...]:
    """The accepted answers of an open question's cell: a list as Python writes it, or one text."""
    try:
        golds = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return (cell,)
    return tuple(golds) if isinstance(golds, list) else (cell,)
