"""Small made-up sets in the formats of the official files, with real pictures: what a test can read offline."""

from __future__ import annotations

import base64
import csv
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

LETTERS = "ABCDEF"


def picture(number: int, kind: str = "PNG") -> bytes:
    """An encoded picture of 32 x 24 pixels of noise that differs with the number."""
    pixels = random.Random(number).randbytes(32 * 24 * 3)
    buffer = io.BytesIO()
    Image.frombytes("RGB", (32, 24), pixels).save(buffer, kind)
    return buffer.getvalue()


def packed(number: int, kind: str = "PNG") -> str:
    """A picture as VLMEvalKit's tables hold it: base64 without line breaks."""
    return base64.b64encode(picture(number, kind)).decode()


def write_table(path: Path, rows: Sequence[dict], separator: str = "\t") -> Path:
    """The rows, which may differ in their columns, as a table with a header; missing cells are empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", delimiter=separator, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def rotations(index: int, row: dict, options: Sequence[str], right: int) -> list[dict]:
    """A question in all rotations of its options, as MMBench lists them: copies are 1,000,000 apart in index.

    The picture is in the first only; the others name its index.
    """
    rows = []
    for turn in range(len(options)):
        turned = [options[(k + turn) % len(options)] for k in range(len(options))]
        letters = dict(zip(LETTERS, turned, strict=False))
        answer = LETTERS[turned.index(options[right])]
        image = row["image"] if turn == 0 else str(index)
        rows.append(row | letters | {"index": index + turn * 1_000_000, "answer": answer, "image": image})
    return rows


def mmbench(folder: Path, questions: int = 3) -> Path:
    """MMBench_DEV_EN.tsv: questions of two to four options in all their rotations, one with a hint."""
    rows = []
    for n in range(questions):
        options = [f"thing {n}{k}" for k in range(2 + n % 3)]
        row = {
            "question": f"Which thing is shown in picture {n}?",
            "hint": "look closely" if n == 1 else "",
            "image": packed(n, "JPEG"),
            "category": ("identity", "counting")[n % 2],
            "l2-category": "coarse",
            "split": "dev",
        }
        rows += rotations(241 + n, row, options, n % len(options))
    return write_table(folder / "MMBench_DEV_EN.tsv", sorted(rows, key=lambda row: row["index"]))


def choices(folder: Path, name: str, count: int = 4) -> Path:
    """AI2D_TEST.tsv or MMStar.tsv: one question a row with four options."""
    rows = [
        {"index": n, "image": packed(100 + n), "question": f"What does part {n} show?", "category": "life"}
        | {letter: f"{word} {n}" for letter, word in zip("ABCD", ("leaf", "root", "stem", "bud"), strict=True)}
        | {"answer": "ABCD"[n % 4], "l2_category": "parts"}
        for n in range(count)
    ]
    return write_table(folder / f"{name}.tsv", rows)


def docvqa(folder: Path, documents: int = 2) -> Path:
    """DocVQA_VAL.tsv: two questions about each document, whose picture the first has; answers as a list."""
    rows = []
    for n in range(documents):
        for k in (0, 1):
            answers = ["007", "None"] if k == 0 else [f"Total {n}", f"total {n}.00"]
            image = packed(200 + n) if k == 0 else str(2 * n)
            rows.append(
                {
                    "index": 2 * n + k,
                    "question": f"What is field {k} of page {n}?",
                    "answer": str(answers),
                    "image": image,
                }
            )
    return write_table(folder / "DocVQA_VAL.tsv", rows)


def ocrbench(folder: Path) -> Path:
    """OCRBench.tsv: one item of three of its categories."""
    kinds = ("Regular Text Recognition", "Doc-oriented VQA", "Handwritten Mathematical Expression Recognition")
    rows = [
        {
            "index": n,
            "image": packed(300 + n),
            "question": "what is written?",
            "answer": str([f"WORD {n}"]),
            "category": kind,
        }
        for n, kind in enumerate(kinds)
    ]
    return write_table(folder / "OCRBench.tsv", rows)


def naturalbench(folder: Path, groups: int = 2) -> Path:
    """NaturalBenchDataset.tsv: groups of two questions about two pictures, answers the other way round on the second."""
    rows = []
    for group in range(groups):
        kind = ("yes_no", "multiple_choice")[group % 2]
        for question in (0, 1):
            for image in (0, 1):
                first = question == image
                answer = ("Yes" if first else "No") if kind == "yes_no" else ("A" if first else "B")
                text = f"Is there a thing {question} of group {group}?"
                text += "" if kind == "yes_no" else "\nOption: A:one; B:two;"
                cell = packed(400 + 2 * group + image)
                rows.append({"index": len(rows), "image": cell, "question": text, "answer": answer, "type": kind})
    return write_table(folder / "NaturalBenchDataset.tsv", rows)


def pope(folder: Path) -> Path:
    """POPE.tsv: a yes and a no of each category."""
    rows = [
        {"index": n, "image": packed(500 + n), "question": "Is there a cat in the image? Please answer yes or no."}
        | {"answer": ("Yes", "No")[n % 2], "category": ("random", "popular", "adversarial")[n // 2]}
        for n in range(6)
    ]
    return write_table(folder / "POPE.tsv", rows)


def mmvp_questions(pairs: int = 3) -> list[dict]:
    """Rows of MMVP's Questions.csv: two a pair, equal but for the answer; the first column's name is spelt as there."""
    return [
        {
            "lndex": 2 * pair + half + 1,
            "Question": f"Is door {pair} open or closed?",
            "Options": f"(a) Open {pair} (b) Closed",
            "Correct Answer": ("(a)", "(b)")[(half + pair) % 2],
        }
        for pair in range(pairs)
        for half in (0, 1)
    ]


def mmvp(folder: Path, pairs: int = 3, rows: Sequence[dict] | None = None) -> Path:
    """MMVP as its repository has it: Questions.csv and the pictures in "MMVP Images"."""
    rows = mmvp_questions(pairs) if rows is None else rows
    (folder / "MMVP Images").mkdir(parents=True, exist_ok=True)
    for row in rows:
        (folder / "MMVP Images" / f"{row['lndex']}.jpg").write_bytes(picture(600 + row["lndex"], "JPEG"))
    return write_table(folder / "Questions.csv", rows, ",")


def mmvp_table(folder: Path, pairs: int = 3, first: int = 1) -> Path:
    """MMVP.tsv as VLMEvalKit has it, of the same questions; first: the index of the first row."""
    rows = [
        {
            "index": row["lndex"] - 1 + first,
            "image": packed(600 + row["lndex"], "JPEG"),
            "question": row["Question"],
            "A": row["Options"].removeprefix("(a) ").partition(" (b) ")[0],
            "B": row["Options"].partition(" (b) ")[2],
            "answer": row["Correct Answer"].strip("()").upper(),
        }
        for row in mmvp_questions(pairs)
    ]
    return write_table(folder / "MMVP.tsv", rows)


def cvbench(kind: str, count: int = 6) -> list[dict]:
    """Items of CV-Bench as its own files have them, of "2D" or "3D"; in 3D two items share a photo."""
    items = []
    for n in range(count):
        source = ("ADE20K", "COCO")[n % 2] if kind == "2D" else "Omni3D"
        options = ["None", "3", "007", "NA"] if kind == "2D" else ["chair", "a"]
        right = n % len(options)
        listed = "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
        question = f"How many things are in picture {n}?"
        items.append(
            {
                "idx": n if kind == "2D" else 1438 + n,
                "type": kind,
                "task": "Count" if kind == "2D" else "Depth",
                "question": question,
                "choices": options,
                "answer": f"({LETTERS[right]})",
                "prompt": f"{question} Select from the following choices.\n{listed}",
                "filename": f"img/{kind}/count/{source.lower()}_{n}.png",
                "source": source,
                "source_dataset": f"{source} Validation Set",
                "source_filename": f"photo_{n if kind == '2D' else n // 2}.jpg",
                "target_class": None,
            }
        )
    return items


def cvbench_folder(folder: Path, kind: str, count: int = 6) -> Path:
    """CV-Bench as its repository has it: test_2d.jsonl (or 3d) and the pictures under img."""
    path = folder / f"test_{kind.lower()}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for item in cvbench(kind, count):
            photo = folder / item["filename"]
            photo.parent.mkdir(parents=True, exist_ok=True)
            photo.write_bytes(picture(700 + item["idx"]))
            file.write(json.dumps(item) + "\n")
    return path


def cvbench_parquet(folder: Path, kinds: Sequence[str] = ("2D",), name: str = "test_2d.parquet") -> Path:
    """CV-Bench's parquet file of the given kinds, pictures inside."""
    import pyarrow
    import pyarrow.parquet as parquet

    folder.mkdir(parents=True, exist_ok=True)
    items = [
        item | {"image": {"bytes": picture(700 + item["idx"]), "path": None}}
        for kind in kinds
        for item in cvbench(kind)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(items), folder / name)
    return folder / name


def cvbench_table(folder: Path, kind: str, count: int = 6) -> Path:
    """CV-Bench-2D.tsv (or 3D) as VLMEvalKit has it, of the same items: other names, and options listed as "A 3"."""
    rows = []
    for item in cvbench(kind, count):
        options = dict(zip(LETTERS, item["choices"], strict=False))
        listed = "\n".join(f"{letter} {option}" for letter, option in options.items())
        rows.append(
            {
                "index": item["idx"],
                "image": packed(700 + item["idx"]),
                "question": item["question"],
                "prompt": f"{item['question']} Select from the following choices.\n{listed}",
                "answer": item["answer"].strip("()"),
                "category": item["task"],
                "image_path": item["filename"],
                "split": kind,
            }
            | {name: item[name] for name in ("source", "source_dataset", "source_filename")}
            | options
        )
    return write_table(folder / f"CV-Bench-{kind}.tsv", rows)


def everything(folder: Path) -> dict[str, Path]:
    """{benchmark: file} of one small set for each benchmark, as VLMEvalKit's tables, in `folder`."""
    return {
        "MMBench": mmbench(folder),
        "OCRBench": ocrbench(folder),
        "DocVQA": docvqa(folder),
        "AI2D": choices(folder, "AI2D_TEST"),
        "CVBench-2D": cvbench_table(folder, "2D"),
        "CVBench-3D": cvbench_table(folder, "3D"),
        "MMVP": mmvp_table(folder),
        "NaturalBench": naturalbench(folder),
        "MMStar": choices(folder, "MMStar"),
        "POPE": pope(folder),
    }
