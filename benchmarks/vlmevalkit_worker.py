"""VLMEvalKit's own prompts and scores, given by its own code. Started by `benchmarks.vlmevalkit` inside the kit's environment.

    KIT/bin/python -I -X utf8 vlmevalkit_worker.py info|prompts|evaluate --request FILE --reply FILE [--vlmevalkit-root DIR] [--full]

It has the standard library, pandas and the kit, and nothing of ours. The kit's data set classes are loaded without
`vlmeval/__init__`, which imports every model and switches TLS verification off; `--full` imports the whole kit instead and
gives the same scores. The kit's prompts, parsers and `evaluate()` run unchanged. What is changed is what they stand on, so
that no answer is scored as another text than it is:

- tables that the kit writes and reads back between its steps stay in memory: nothing stale is found, and "", "None",
  "NA", "007" or 200,000 characters keep their text;
- `eval` of cells reads literals only, so data cannot run code;
- the data set file is read by its path: no MD5 that starts a download, no conversion of large files;
- connecting to anything is an error.

Cells other than the question, the gold and the answer are read as the kit reads them: an option "None" counts as absent,
and a column of numbers with gaps reads "6.0" for 6. Reply, or one line on stderr and exit status 1.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import csv
import functools
import importlib
import importlib.metadata
import importlib.util
import io
import json
import math
import os
import re
import ssl
import string
import sys
import tempfile
import types
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

DATASETS = {  # our benchmark: the kit's module, class and data set
    "MMBench": ("image_mcq", "ImageMCQDataset", "MMBench_DEV_EN"),
    "AI2D": ("image_mcq", "ImageMCQDataset", "AI2D_TEST"),
    "DocVQA": ("image_vqa", "ImageVQADataset", "DocVQA_VAL"),
    "OCRBench": ("image_vqa", "OCRBench", "OCRBench"),
    "NaturalBench": ("image_mcq", "NaturalBenchDataset", "NaturalBenchDataset"),
    "CVBench-2D": ("image_mcq", "CVBench", "CV-Bench-2D"),
    "CVBench-3D": ("image_mcq", "CVBench", "CV-Bench-3D"),
    "MMVP": ("image_mcq", "ImageMCQDataset", "MMVP"),
    "MMStar": ("image_mcq", "ImageMCQDataset", "MMStar"),
    "POPE": ("image_yorn", "ImageYORNDataset", "POPE"),
}
CHOICE = ("MMBench", "AI2D", "CVBench-2D", "CVBench-3D", "MMVP", "MMStar")
TEXTS = ("question", "answer")  # columns whose cells keep their text whatever they look like
NEEDED = {  # beside index, question and answer
    "OCRBench": ("category",),
    "POPE": ("category",),
    "NaturalBench": ("type",),
    "CVBench-2D": ("split", "source", "A"),
    "CVBench-3D": ("split", "A"),
    "MMBench": ("A",),
    "AI2D": ("A",),
    "MMVP": ("A",),
    "MMStar": ("A",),
}
SCORED = {"index", "g_index", "question", "hint", "answer", "category", "l2-category", "split", "source", "type"}
OCR_TASKS = (
    "Regular Text Recognition",
    "Irregular Text Recognition",
    "Artistic Text Recognition",
    "Handwriting Recognition",
    "Digit String Recognition",
    "Non-Semantic Text Recognition",
    "Scene Text-centric VQA",
    "Doc-oriented VQA",
    "Key Information Extraction",
    "Handwritten Mathematical Expression Recognition",
)
NATURAL_ROWS = 7600  # 1,900 groups of four
NATURAL_GOLD = (1, 0, 0, 1)  # what the kit takes a group's answers to be: 1 is Yes or A, 0 is No or B
NOTHING = "\ue000"  # a character of private use: what an empty answer is handed over as, for no gold holds it
OFFLINE = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")


class Refused(ValueError):
    """Input that would give a wrong score; the message is for the user."""


def load_kit(root: str | None, full: bool) -> tuple[Path, str]:
    """The kit's folder and version; its data set modules are importable afterwards. Refused where there is none."""
    if root is not None:
        sys.path.insert(0, root)
    spec = importlib.util.find_spec("vlmeval")
    folder = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
    if folder is None or not (folder / "dataset" / "image_mcq.py").is_file():
        raise Refused(f"{root or sys.executable}: holds no VLMEvalKit (module vlmeval)")
    if full:
        verified = ssl._create_default_https_context
        importlib.import_module("vlmeval")
        importlib.import_module("vlmeval.dataset")
        ssl._create_default_https_context = verified
    else:
        for name, path in (("vlmeval", folder), ("vlmeval.dataset", folder / "dataset")):
            module = types.ModuleType(name)
            module.__path__ = [str(path)]
            sys.modules[name] = module
    for name in ("smp.file", "smp.misc", "dataset.image_mcq", "dataset.image_vqa", "dataset.image_yorn"):
        importlib.import_module(f"vlmeval.{name}")
    for name in ("multiple_choice", "vqa_eval", "yorn", "naturalbench"):
        importlib.import_module(f"vlmeval.dataset.utils.{name}")
    return folder, version(folder, root)


def version(folder: Path, root: str | None) -> str:
    """The version of the installed distribution; of a checkout, what its `__init__` says."""
    if root is None:
        for distribution in ("ms-vlmeval", "vlmeval"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                return importlib.metadata.version(distribution)
    found = re.search(r"__version__ = ['\"](.+?)['\"]", (folder / "__init__.py").read_text(encoding="utf-8"))
    return f"checkout {found[1] if found else 'of no version'}"


def kit(name: str) -> Any:
    """A module of the kit by its name below `vlmeval`."""
    return sys.modules[f"vlmeval.{name}"]


def stand_in(cache: Path | None) -> dict[str, Any]:
    """What the kit's modules call for files, pools and `eval` is replaced; the tables they write are in the dict returned."""
    tables: dict[str, Any] = {}

    def dump(data: Any, path: Any, **_: Any) -> None:
        tables[str(path)] = copy.deepcopy(data)

    def load(path: Any, fmt: str | None = None) -> Any:
        data = copy.deepcopy(tables[str(path)])
        return data.reset_index(drop=True) if hasattr(data, "reset_index") else data  # as a file has no row labels

    def each(func: Any, tasks: Any, save: Any = None, **_: Any) -> list:
        dump({}, save)  # the kit's own writes all results again after every one
        return [func(**task) for task in tasks]

    def save_picture(text: str, path: str, target_size: int = -1) -> None:
        target = Path(path)
        if cache is None or not target.resolve().is_relative_to(cache.resolve()):
            raise Refused(f"picture {path} lies outside the folder of pictures")
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{os.getpid()}-{target.name}")  # half a picture would be taken for a whole one
        try:
            kit("smp.vlm").decode_base64_to_image(text, target_size).save(part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    theirs: dict[Any, Any] = {getattr(kit("smp.file"), name): own for name, own in (("load", load), ("dump", dump))}
    theirs[kit("utils.mp_util").track_progress_rich] = each
    theirs[kit("smp.vlm").decode_base64_to_image_file] = save_picture
    for module in [m for name, m in sys.modules.items() if name.startswith("vlmeval.") and m is not None]:
        for name, value in list(vars(module).items()):
            if isinstance(value, types.FunctionType) and value in theirs:
                setattr(module, name, theirs[value])
    for name in ("smp.misc", "dataset.image_vqa", "dataset.utils.vqa_eval"):
        kit(name).eval = ast.literal_eval
    kit("dataset.image_vqa").mp = types.SimpleNamespace(Pool=ThreadPool)  # sixteen processes that are never closed
    kit("smp.vlm").Image.MAX_IMAGE_PIXELS = 64_000_000  # the kit lifts it to a thousand million
    return tables


def read_table(read: Any, columns: Any) -> Any:
    """A data set's table as the kit reads it, but for TEXTS. read: pandas.read_csv of the table, but for its options."""
    try:
        frame = read(sep="\t", usecols=columns)
        texts = read(sep="\t", usecols=lambda name: name in TEXTS, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        raise Refused(f"no table of tab-separated columns ({first_line(error)})") from None
    frame = frame.drop(columns=[c for c in frame if c not in string.ascii_uppercase and frame[c].isna().all()])
    return frame.assign(**texts)


def check_table(benchmark: str, frame: Any, made_up: bool) -> None:
    """Refused when the kit would score this table as something that it is not."""
    needed = ("index", "question", "answer", *NEEDED.get(benchmark, ()))
    missing = [name for name in needed if name not in frame]
    if missing:
        raise Refused(f"has no column {missing[0]}, or an empty one; {benchmark} needs {', '.join(needed)}")
    if frame["index"].isna().any():
        raise Refused("a row has no index")
    twice = frame["index"][frame["index"].duplicated()]
    if len(twice):
        raise Refused(f"index {twice.iloc[0]} stands there twice")
    for index, answer in zip(frame["index"], frame["answer"], strict=True):
        check_gold(benchmark, index, answer)
    whole = all(isinstance(index, int) for index in frame["index"].tolist())
    if benchmark in ("MMBench", "NaturalBench", "MMVP") and not whole:
        raise Refused(f"indices must be whole numbers: {benchmark}'s groups are found by them")
    if "split" in frame and (frame["split"].nunique(dropna=False) > 1) and benchmark != "DocVQA":
        raise Refused("has rows of several splits; score each split for itself")
    if benchmark in ("CVBench-2D", "CVBench-3D") and set(frame["split"]) != {benchmark[-2:]}:
        raise Refused(f"column split must read {benchmark[-2:]} in {benchmark}")
    if benchmark == "OCRBench" and not set(frame["category"]) <= set(OCR_TASKS):
        raise Refused(f"unknown category {sorted(set(map(str, frame['category'])) - set(OCR_TASKS))[0]!r}")
    if benchmark == "NaturalBench":
        check_groups(frame, made_up)
    if benchmark == "MMVP":
        check_pairs(frame)
    if benchmark == "MMBench":
        check_rotations(frame)


def check_gold(benchmark: str, index: Any, answer: str) -> None:
    if not answer.strip():
        raise Refused(f"row {index}: has no answer; a set without answers cannot be scored")
    if benchmark in CHOICE and answer not in string.ascii_uppercase:
        raise Refused(f"row {index}: the answer must be a letter, not {answer[:40]!r}")
    if benchmark == "POPE" and answer not in ("Yes", "No"):
        raise Refused(f"row {index}: the answer must be Yes or No, not {answer[:40]!r}")
    if benchmark in ("OCRBench", "DocVQA"):
        accepted(benchmark, index, answer)


def accepted(benchmark: str, index: Any, answer: str) -> list[str]:
    """The accepted answers of an open question: a list as Python writes it, in DocVQA also one plain text."""
    golds: Any = None
    with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        golds = ast.literal_eval(answer)
    if not isinstance(golds, list):
        if benchmark == "OCRBench":
            raise Refused(f"row {index}: the answer must be a list such as ['text'], not {answer[:40]!r}")
        return [answer]
    if not golds or not all(isinstance(gold, str) and gold.strip() for gold in golds):
        raise Refused(f"row {index}: an accepted answer is empty or no text: {answer[:60]}")
    return golds


def check_groups(frame: Any, made_up: bool) -> None:
    """NaturalBench: whole, and each group's golds in the order that the kit takes for granted."""
    if len(frame) != NATURAL_ROWS and not made_up:
        raise Refused(
            f"has {len(frame):,} of NaturalBench's {NATURAL_ROWS:,} rows; a score over part of it would mean something else"
        )
    if len(frame) % 4:
        raise Refused(f"has {len(frame):,} rows; NaturalBench's groups have four")
    for position, row in enumerate(frame.sort_values("index").to_dict("records")):
        if row["type"] not in ("yes_no", "multiple_choice"):
            raise Refused(f"row {row['index']}: unknown type {row['type']!r}")
        words = ("No", "Yes") if row["type"] == "yes_no" else ("B", "A")
        wanted = words[NATURAL_GOLD[position % 4]]
        if row["answer"] != wanted:
            raise Refused(
                f"row {row['index']}: answer {row['answer']!r} where the kit takes {wanted!r} for granted; a row is missing or out of order"
            )


def check_pairs(frame: Any) -> None:
    """MMVP: rows by two, each pair one question."""
    rows = frame.sort_values("index")[["index", "question"]].values.tolist()
    for first, second in zip(rows[::2], [*rows[1::2], [None, None]], strict=False):
        if second[0] != first[0] + 1 or second[1] != first[1]:
            raise Refused(
                f"row {first[0]}: the other half of its pair is missing; a score over part of MMVP would mean something else"
            )


def check_rotations(frame: Any) -> None:
    """MMBench: a question has as many rows as it has options that move; "all of the above" keeps its place."""
    letters = [name for name in string.ascii_uppercase if name in frame]
    units = frame["g_index"] if "g_index" in frame else frame["index"] % 1_000_000
    for unit, group in frame.groupby(units):
        moving = sum(group[letter].nunique(dropna=False) > 1 for letter in letters)
        if unit not in set(group["index"]) or len(group) != moving:
            raise Refused(
                f"question {unit} has {len(group)} of its rotations; a score over part of them would mean something else"
            )


def data_set(benchmark: str, frame: Any) -> Any:
    """The kit's data set over a table that is already read."""
    module, name, official = DATASETS[benchmark]
    cls = getattr(kit(f"dataset.{module}"), name)
    return type(name, (cls,), {"load_data": lambda self, _: frame, "DATASET_MD5": {}})(official)


def prompts(request: dict) -> list[dict]:
    """{index, prompt, image below the cache, row as written} of every row of a data set file, pictures decoded."""
    import pandas as pd

    benchmark, cache = request["benchmark"], Path(request["cache"])
    stand_in(cache)
    read = functools.partial(pd.read_csv, request["file"])
    frame = read_table(read, None)
    check_table(benchmark, frame, request["made_up"])
    written = read(sep="\t", dtype=str, keep_default_na=False, usecols=lambda name: name != "image")
    check_pictures(frame)
    rows = written.to_dict("records")
    dataset = data_set(benchmark, frame)
    asked = []
    for position, index in enumerate(dataset.data["index"]):
        try:
            parts = dataset.build_prompt(position)
        except Refused as error:
            raise Refused(f"row {index}: {error}") from None
        except Exception as error:  # whatever PIL says of bytes that are no picture
            raise Refused(
                f"row {index}: its picture or prompt cannot be made ({type(error).__name__}: {first_line(error)})"
            ) from None
        pictures = [part["value"] for part in parts if part["type"] == "image"]
        if len(pictures) != 1 or not Path(pictures[0]).resolve().is_relative_to(cache.resolve()):
            raise Refused(f"row {index}: needs one picture in the file, has {pictures}")
        text = "\n".join(part["value"] for part in parts if part["type"] == "text")
        image = Path(pictures[0]).resolve().relative_to(cache.resolve()).as_posix()
        asked.append({"index": str(index), "prompt": text, "image": image, "row": rows[position]})
    return asked


def check_pictures(frame: Any) -> None:
    """Every row has its picture, and no two pictures share a name: the kit would show the first for both."""
    if "image" not in frame:
        raise Refused("has no column image; pictures must be in the file")
    cells = {str(index): cell for index, cell in zip(frame["index"], frame["image"], strict=True)}
    for index, cell in cells.items():
        if not isinstance(cell, str) or (len(cell) <= 64 and len(str(cells.get(cell))) <= 64):
            raise Refused(f"row {index}: has no picture")
    if "image_path" in frame:
        seen: dict[str, str] = {}
        for index, name, cell in zip(frame["index"], frame["image_path"], frame["image"], strict=True):
            picture = cells.get(cell, cell)
            if seen.setdefault(str(name), picture) != picture:
                raise Refused(f"row {index}: another picture has its name {name}")


def evaluate(request: dict) -> dict:
    """{value 0 to 100, values and parsed by index, raw} of answers to a data set file, or to rows that carry their own golds."""
    import pandas as pd

    benchmark, answers = request["benchmark"], request["answers"]
    tables = stand_in(None)

    def wanted(name: str) -> bool:
        return name in SCORED or name in string.ascii_uppercase

    if "rows" in request:
        text = pd.DataFrame(request["rows"]).to_csv(sep="\t", index=False, quoting=csv.QUOTE_ALL)

        def read(**options: Any) -> Any:
            return pd.read_csv(io.StringIO(text), **options)
    else:
        read = functools.partial(pd.read_csv, request["file"])
    frame = read_table(read, wanted)
    check_table(benchmark, frame, request["made_up"])
    if benchmark == "NaturalBench":
        frame = frame.sort_values("index").reset_index(drop=True)  # the kit takes the types in the file's order
    dataset = data_set(benchmark, frame)
    indices = [str(index) for index in dataset.data["index"]]
    unanswered = [index for index in indices if index not in answers]
    if unanswered:
        raise Refused(
            f"{len(unanswered)} of {len(indices)} rows have no answer (first: {unanswered[0]}); part of a benchmark is no score"
        )
    unknown = sorted(set(answers) - set(indices))
    if unknown:
        raise Refused(
            f"has no row {unknown[0]}, which was answered ({len(unknown)} such); other answers than this set's"
        )
    data = dataset.data.copy()
    golds = data["answer"].tolist()
    said = [answers[index] for index in indices]
    data["prediction"] = pd.Series(
        [text if text.strip() else NOTHING * len(gold) for text, gold in zip(said, golds, strict=True)], dtype=object
    ).values
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/answers.tsv"  # the name of a table in memory; no file is there
        kit("smp.file").dump(data, path)
        raw = dataset.evaluate(path, model="exact_matching")
    rows = {name.removeprefix(f"{folder}/answers"): table for name, table in tables.items()}
    value, values, parsed = SCORERS.get(benchmark, of_choices)(benchmark, dataset, data, raw, rows)
    parsed = [bool(kept and text.strip()) for kept, text in zip(parsed, said, strict=True)]
    by_index = dict(zip(indices, values, strict=True))
    empty = [index for index, text in zip(indices, said, strict=True) if not text.strip() and by_index[index] > 0]
    if empty:
        raise Refused(f"row {empty[0]}: an empty answer scores here; the kit's parser has changed")
    return {"value": value, "values": by_index, "parsed": dict(zip(indices, parsed, strict=True)), "raw": plain(raw)}


def agree(overall: float, values: float) -> float:
    """The kit's overall score, or Refused when its rows add up to another one."""
    if not math.isclose(overall, values, rel_tol=0, abs_tol=1e-9 * max(1.0, abs(overall))):
        raise Refused(f"the kit says {overall} in all but {values} by its rows; this version scores in another way")
    return overall


def mean(values: Any) -> float:
    listed = [float(value) for value in values]
    return sum(listed) / len(listed)


def record(rows: dict, ending: str) -> Any:
    """The one table that the kit wrote under a name of this ending, whatever its format."""
    found = [table for name, table in rows.items() if name.rsplit(".", 1)[0] == ending and hasattr(table, "columns")]
    if len(found) != 1:
        raise Refused(f"the kit wrote no table {ending}; this version scores in another way")
    return found[0]


def of_choices(benchmark: str, dataset: Any, data: Any, raw: Any, rows: dict) -> tuple[float, list, list]:
    """Multiple choice: a hit a row; MMBench the hit of its question for each of its rows."""
    choice = kit("dataset.utils.multiple_choice")
    table = record(rows, "_exact_matching_result")
    hits = dict(zip(table["index"].tolist(), map(float, table["hit"]), strict=True))
    indices = data["index"].tolist()
    if benchmark == "MMBench":
        units = data["g_index"].tolist() if "g_index" in data else [index % 1_000_000 for index in indices]
    else:
        units = indices
    values = [hits[unit] for unit in units]
    by_row: float
    if benchmark == "MMVP":
        ordered = [hits[index] for index in sorted(indices)]
        by_row = mean(a * b for a, b in zip(ordered[::2], ordered[1::2], strict=True))
    elif benchmark == "CVBench-2D":
        grouped: dict[str, list[float]] = {}
        for source, value in zip(data["source"], values, strict=True):
            grouped.setdefault(source, []).append(value)
        by_row = mean(map(mean, grouped.values()))
    else:
        by_row = mean(hits.values())
    found = [choice.prefetch_answer(row) for row in data.to_dict("records")]
    offered = [choice.build_choices(row) for row in data.to_dict("records")]
    parsed = [bool(letter) and letter in letters for letter, letters in zip(found, offered, strict=True)]
    return agree(100 * float(raw["Overall"].iloc[0]), 100 * by_row), values, parsed


def of_texts(benchmark: str, dataset: Any, data: Any, raw: Any, rows: dict) -> tuple[float, list, list]:
    """DocVQA: ANLS of every row."""
    matches = [{"match": match} for match in record(rows, "_results")["eval_match"]]
    values = [float(v) for v in kit("dataset.utils.vqa_eval").hit_calculate(matches, dataset.dataset_name)]
    return agree(float(raw["Overall"].iloc[0]), 100 * mean(values)), values, [True] * len(values)


def of_ocr(benchmark: str, dataset: Any, data: Any, raw: dict, rows: dict) -> tuple[float, list, list]:
    """OCRBench: a point a row, by the kit's own evaluate() of that row alone; points in percent of the rows (of 1,000, points / 10)."""
    values = []
    for position in range(len(data)):
        kit("smp.file").dump(data.iloc[[position]], "row.tsv")
        values.append(float(dataset.evaluate("row.tsv")["Final Score"]))
    return agree(100 * float(raw["Final Score"]) / len(data), 100 * mean(values)), values, [True] * len(values)


def of_groups(benchmark: str, dataset: Any, data: Any, raw: dict, rows: dict) -> tuple[float, list, list]:
    """NaturalBench: whether a row is right; the score is that of whole groups."""
    extract = kit("dataset.utils.naturalbench").extract_answer
    found = [extract(text, kind) for text, kind in zip(data["prediction"], data["type"], strict=True)]
    values = [float(answer == NATURAL_GOLD[position % 4]) for position, answer in enumerate(found)]
    groups = [min(values[first : first + 4]) for first in range(0, len(values), 4)]
    agree(100 * float(raw["Acc"]), 100 * mean(values))
    return agree(100 * float(raw["G_Acc"]), 100 * mean(groups)), values, [answer != -1 for answer in found]


def of_yes_no(benchmark: str, dataset: Any, data: Any, raw: Any, rows: dict) -> tuple[float, list, list]:
    """POPE: whether a row is right; the score is F1 of "yes", a row counting once in each of its categories."""
    table = record(rows, "_auxmatch").set_index("index").loc[data["index"].tolist()]
    values = [float(hit) for hit in table["score"]]
    times = [len(str(category).split(",")) for category in table["category"]]
    agree(float(raw["acc"].iloc[0]), 100 * sum(v * n for v, n in zip(values, times, strict=True)) / sum(times))
    return float(raw["Overall"].iloc[0]), values, [answer != "Unknown" for answer in table["extracted"]]


SCORERS = {"DocVQA": of_texts, "OCRBench": of_ocr, "NaturalBench": of_groups, "POPE": of_yes_no}


def plain(raw: Any) -> dict:
    """The kit's own report as JSON values: one row as it is, several by their split."""
    if isinstance(raw, dict):
        return {str(key): float(value) for key, value in raw.items()}
    rows = [{str(k): v if isinstance(v, str) else number(v) for k, v in row.items()} for row in raw.to_dict("records")]
    return rows[0] if len(rows) == 1 else {str(row.pop("split")): row for row in rows}


def number(value: Any) -> float | None:
    return None if math.isnan(float(value)) else float(value)


def first_line(error: BaseException) -> str:
    return (str(error).strip().split("\n")[0] or "no reason given")[:200]


def offline(event: str, _: tuple) -> None:
    if event in OFFLINE:
        raise Refused(f"the kit tried to reach the network ({event}); nothing is downloaded or sent here")


def answer(arguments: argparse.Namespace) -> Any:
    request = json.loads(Path(arguments.request).read_text(encoding="utf-8"))
    folder, found = load_kit(arguments.vlmevalkit_root, arguments.full)
    if arguments.command == "info":
        return {"version": found, "folder": str(folder)}
    return {"prompts": prompts, "evaluate": evaluate}[arguments.command](request)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("command", choices=("info", "prompts", "evaluate"))
    parser.add_argument(
        "--request", required=True, metavar="FILE", help="JSON: benchmark, and file, answers, cache ..."
    )
    parser.add_argument("--reply", required=True, metavar="FILE", help="JSON, written only when all went well")
    parser.add_argument("--vlmevalkit-root", metavar="DIR", help="a checkout that holds vlmeval/")
    parser.add_argument("--full", action="store_true", help="import the whole kit")
    arguments = parser.parse_args()
    sys.addaudithook(offline)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            reply = answer(arguments)
    except Refused as error:
        print(error, file=sys.stderr)
        return 1
    except Exception as error:
        print(f"VLMEvalKit failed ({type(error).__name__}: {first_line(error)})", file=sys.stderr)
        return 1
    Path(arguments.reply).write_text(json.dumps(reply), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
