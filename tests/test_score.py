"""Rescoring of answer files: published scores from real logs, texts kept as they are, refusals in one line."""

import csv
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import openpyxl
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import score, vlmevalkit
from benchmarks.answer_files import read_rows
from benchmarks.answer_sets import read_answers
from benchmarks.scorers import RULES
from benchmarks.suites import Item
from dpa.errors import InputError

WEIRD = [
    "",
    "None",
    "NA",
    "nan",
    "007",
    "1e5",
    " a ",
    "שלום ABC",
    "🙂",
    "a\tb\nc\\n",
    'say "x"',
    "x\x00y",
    "=1+1",
    "é" * 99,
]


def run(capsys, *arguments) -> dict:
    """What --json prints. VLMEvalKit's own scorer has tests of its own."""
    line = ["--no-vlmevalkit", "--json", *map(str, arguments)]
    assert score.main(line) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refusal(capsys, *arguments) -> str:
    assert score.main(["--no-vlmevalkit", *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1, printed.err
    return printed.err


def of(printed: dict, scorer: str) -> dict:
    return next(row for row in printed["scorers"] if row["scorer"] == scorer)


def escaped(rows: list[dict]) -> str:
    """A table as those of the shared data: no quoting, \\n, \\t and \\\\ for what would break a line."""

    def cell(text):
        return str(text).replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")

    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    return "".join("\t".join(map(cell, line)) + "\n" for line in lines)


def json_lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def workbook(path: Path, rows: list[dict]) -> Path:
    book = openpyxl.Workbook()
    book.active.append(list(rows[0]))
    for row in rows:
        book.active.append(list(row.values()))
    book.save(path)
    return path


def choice_rows(number: int, answers=("A", "B. no", "", "None")) -> list[dict]:
    return [
        {
            "index": str(i),
            "question": f"What is {i}?",
            "A": "yes",
            "B": "no",
            "answer": "AB"[i % 2],
            "category": "x",
            "prediction": answers[i % len(answers)],
        }
        for i in range(number)
    ]


# ---- published scores


def test_llava_mmbench_from_its_table_and_from_its_answers(shared, capsys):
    folder = shared / "data" / "llava15_eval"
    table = folder / "mmbench_dev_llava-v1.5-13b.tsv"
    answers = folder / "mmbench_dev_answers_llava-v1.5-13b.jsonl"
    direct = run(capsys, "--benchmark", "MMBench", "--predictions", table)
    keyed = run(capsys, "--benchmark", "MMBench", "--predictions", answers, "--data", table)
    assert direct["scorers"] == keyed["scorers"]
    for row in direct["scorers"]:
        assert round(row["value"], 2) == 67.69 and row["unparsed"] == 0, row
        assert round(row["metrics"]["vanilla (unrotated rows)"], 2) == 75.43
        assert row["low"] < 67.69 < row["high"]
    assert direct["disagreements"]["count"] == 0


def test_llava_pope(shared, capsys):
    answers = shared / "data" / "llava15_eval" / "pope_answers_llava-v1.5-13b.jsonl"
    gold = shared / "data" / "pope_coco_2023"
    printed = run(capsys, "--benchmark", "POPE", "--predictions", answers, "--data", gold)
    pope = of(printed, "pope")
    assert round(pope["value"], 2) == 85.95 and printed["units"] == 500, "photos are drawn together"
    each = [pope["metrics"][f"F1 {kind}"] for kind in ("adversarial", "popular", "random")]
    assert sum(each) / 3 == pytest.approx(pope["value"]) and pope["low"] < 85.9 < pope["high"]


def test_popes_three_sets_are_told_apart(tmp_path):
    rows = []  # as LLaVA has them: one numbering, the sets behind one another
    for place, kind in enumerate(("adversarial", "random", "popular")):
        golds = [{"question_id": n, "text": f"Is there {kind[0]}{n % 3}?", "label": "yes"} for n in range(1, 9 + place)]
        (tmp_path / f"coco_pope_{kind}.json").write_text(json_lines(golds))
        rows += [
            {
                "question_id": 10**7 * place + g["question_id"],
                "prompt": g["text"] + "\nShort.",
                "text": f"{kind} {g['question_id']}",
            }
            for g in golds
        ]
    random.Random(0).shuffle(rows)
    file = tmp_path / "answers.jsonl"

    def read(rows):
        file.write_text(json_lines(rows), encoding="utf-8")
        return read_answers("POPE", [file], [tmp_path]).texts

    texts = read(rows)
    assert len(texts) == 27 and all(text == index.replace("-", " ") for index, text in texts.items()), (
        "by number, not by line"
    )
    kinds = ("adversarial", "random", "popular")
    named = [
        row | {"category": kinds[row["question_id"] // 10**7], "question_id": row["question_id"] % 10**7}
        for row in rows
    ]
    assert read(named) == texts
    first, second = (next(row for row in rows if row["question_id"] == number) for number in (10_000_003, 10_000_004))
    swapped = [
        row | {"prompt": {3: second, 4: first}[n]["prompt"]} if (n := row["question_id"] - 10**7) in (3, 4) else row
        for row in rows
    ]
    with pytest.raises(InputError, match=r"asks 'Is there r1.*where the gold answers have 'Is there r0"):
        read(swapped)
    with pytest.raises(InputError, match="26 answers to the 27"):
        read(rows[1:])
    with pytest.raises(InputError, match="answers to another set"):
        read([row | {"prompt": ""} for row in rows])


def test_vila(shared, capsys, tmp_path):
    folder = shared / "data" / "vila_vlmevalkit"
    ocr = run(capsys, "--benchmark", "OCRBench", "--predictions", folder / "vila_8b_OCRBench.tsv")
    assert of(ocr, "contains")["value"] == pytest.approx(438, abs=1e-9)
    published = json.loads((folder / "vila_8b_OCRBench_score.json").read_text())
    for group, points in of(ocr, "contains")["metrics"].items():
        assert points == pytest.approx(published[group], abs=1e-9)
    star = run(capsys, "--benchmark", "MMStar", "--predictions", folder / "vila_8b_MMStar.tsv", "--disagreements", 99)
    scores = pd.read_csv(folder / "vila_8b_MMStar_acc.csv").iloc[0]
    then = of(star, "vlmevalkit-2024")
    assert then["value"] == pytest.approx(100 * scores["Overall"])
    for category, value in then["metrics"].items():
        assert value == pytest.approx(100 * scores[category]), category
    assert {round(of(star, name)["value"] * 15) for name in ("cambrian", "letter")} == {629, 616}
    assert star["disagreements"]["count"] == len(star["disagreements"]["first"]) > 0
    assert any("Overall 0.416667; reproduced by vlmevalkit-2024" in note for note in star["notes"])
    rows = [fields for _, fields in read_rows(folder / "vila_8b_MMStar.tsv")]
    sheet = workbook(tmp_path / "vila_8b_MMStar.xlsx", rows)
    assert run(capsys, "--benchmark", "mmstar", "--predictions", sheet)["scorers"] == star["scorers"]
    pope = run(capsys, "--benchmark", "POPE", "--predictions", folder / "vila_8b_POPE.tsv")
    scores = pd.read_csv(folder / "vila_8b_POPE_score.csv").set_index("split")
    metrics = of(pope, "pope")["metrics"]
    assert metrics["F1 of all rows"] == pytest.approx(scores.loc["Overall", "Overall"])
    assert metrics["accuracy"] == pytest.approx(scores.loc["Overall", "acc"])
    for kind in ("adversarial", "popular", "random"):
        assert metrics[f"F1 {kind}"] == pytest.approx(scores.loc[kind, "Overall"])


def test_gpt_cv_bench_from_the_judges_log(shared, capsys, tmp_path):
    table = shared / "data" / "cvbench_gpt41" / "gpt-4.1_CV-Bench-2D.tsv"
    printed = run(capsys, "--benchmark", "CV-Bench-2D", "--predictions", table)
    judge = of(printed, "judge")
    scores = pd.read_csv(table.with_name("gpt-4.1_CV-Bench-2D_acc.csv")).iloc[0]
    assert judge["value"] == pytest.approx(100 * scores["Overall"])
    assert [judge["metrics"][name] for name in ("ADE20K", "COCO")] == pytest.approx(
        [100 * scores[n] for n in ("ADE20K", "COCO")]
    )
    assert judge["metrics"]["plain mean"] == pytest.approx(79.35, abs=0.005)
    assert any("lies beside the predictions" in note for note in printed["notes"])
    rows = [fields for _, fields in read_rows(table)]
    rows[7]["prediction"] = "Another answer"
    stale = tmp_path / table.name
    stale.write_text(escaped(rows), encoding="utf-8")
    log = table.with_name(f"{table.stem}_judge.json")
    assert "item 7 was judged for" in refusal(
        capsys, "--benchmark", "CVBench-2D", "--predictions", stale, "--judge", log
    )
    stale.write_text(escaped(rows[:7] + rows[8:]), encoding="utf-8")
    assert "1 differ" in refusal(capsys, "--benchmark", "CVBench-2D", "--predictions", stale, "--judge", log)


@pytest.mark.parametrize(("name", "hits"), [("LLaVA", 240), ("T5", 260)])
def test_docvqa_by_its_own_metric(shared, capsys, name, hits):
    folder = shared / "data" / "docvqa_val_runs"
    printed = run(capsys, "--benchmark", "DocVQA", "--predictions", folder / f"{name}.jsonl")
    published = json.loads((folder / f"result_{name}.json").read_text())["docVQA"]
    assert of(printed, "word-match")["value"] / 100 == pytest.approx(published, abs=1e-15)
    assert published == hits / 5349 and printed["items"] == 5349 and printed["units"] == 938, "documents, not pages"
    assert any(f"result_{name}.json" in note and "reproduced by word-match" in note for note in printed["notes"])


# ---- Cambrian's and our own layouts


def mmvp_answers(shared, answer) -> list[dict]:
    rows = [fields for _, fields in read_rows(shared / "data" / "mmvp_items" / "Questions.csv")]
    return [
        {
            "question_id": place,
            "prompt": f"{row['Question']} Options:",
            "answer": answer(place, row["Correct Answer"]),
            "gt_answer": row["Correct Answer"],
            "model_id": "m",
            "text_options": [part.split(")")[1].strip() for part in row["Options"].split("(")[1:]],
        }
        for place, row in enumerate(rows)
    ]


def test_mmvp_pairs_and_the_swapped_labels(shared, capsys, tmp_path):
    file = tmp_path / "mmvp.jsonl"
    rows = mmvp_answers(shared, lambda place, gold: "A." if place % 4 == 1 else gold)  # one pair in two is half right
    file.write_text(json_lines(rows), encoding="utf-8")
    printed = run(capsys, "--benchmark", "MMVP", "--predictions", file)
    cambrian = of(printed, "cambrian")
    wrong = sum(row["gt_answer"] == "(b)" for row in rows[1::4])
    assert cambrian["value"] == pytest.approx(100 * (150 - wrong) / 150)
    assert cambrian["metrics"]["single accuracy"] == pytest.approx(100 * (300 - wrong) / 300)
    turned = run(capsys, "--benchmark", "MMVP", "--predictions", file, "--corrected-labels")
    assert of(turned, "cambrian")["metrics"]["single accuracy"] < cambrian["metrics"]["single accuracy"]
    true = mmvp_answers(shared, lambda place, gold: "ab"[gold == "(a)"] if place in (98, 99, 278, 279) else gold)
    file.write_text(json_lines(true), encoding="utf-8")
    assert (
        of(run(capsys, "--benchmark", "MMVP", "--predictions", file, "--corrected-labels"), "cambrian")["value"] == 100
    )
    keyed = run(capsys, "--benchmark", "MMVP", "--predictions", file, "--data", shared / "data" / "mmvp_items")
    assert of(keyed, "cambrian")["value"] == pytest.approx(100 * 148 / 150), "counted from 0 and from 1"
    random.Random(1).shuffle(true)
    file.write_text(json_lines(true), encoding="utf-8")
    assert of(run(capsys, "--benchmark", "MMVP", "--predictions", file), "cambrian")["value"] == pytest.approx(
        100 * 148 / 150
    )


@pytest.mark.parametrize("lost", [0, 1, 150, 299])
def test_half_a_pair_is_refused(shared, capsys, tmp_path, lost):
    rows = mmvp_answers(shared, lambda place, gold: gold)
    file = tmp_path / "mmvp.jsonl"
    file.write_text(json_lines(rows[:lost] + rows[lost + 1 :]), encoding="utf-8")
    assert "lacks its other half" in refusal(capsys, "--benchmark", "MMVP", "--predictions", file)


def test_naturalbench(shared, capsys, tmp_path):
    gold = shared / "data" / "naturalbench_items" / "test_set.json"
    rows = json.loads(gold.read_text(encoding="utf-8"))
    said = [
        {"question_id": n, "prompt": row[0], "text": f"{row[2]}." if n % 16 else "neither"}
        for n, row in enumerate(rows)
    ]
    file = tmp_path / "nb.jsonl"
    file.write_text(json_lines(said), encoding="utf-8")
    found = of(run(capsys, "--benchmark", "NaturalBench", "--predictions", file, "--data", gold), "naturalbench")
    groups, wrong = len(rows) // 4, -(-len(rows) // 16)
    assert found["value"] == pytest.approx(100 * (groups - wrong) / groups) and found["unparsed"] == wrong
    assert found["metrics"]["question accuracy"] == pytest.approx(100 * (2 * groups - wrong) / (2 * groups))
    file.write_text(json_lines(said[:-1]), encoding="utf-8")
    assert "1 of 3,800 items have no answer" in refusal(
        capsys, "--benchmark", "NaturalBench", "--predictions", file, "--data", gold
    )
    own = [row | {"answer": rows[n][2], "prediction": row["text"]} for n, row in enumerate(said)]
    file.write_text(json_lines(own), encoding="utf-8")
    assert "1,900 groups" in refusal(capsys, "--benchmark", "NaturalBench", "--predictions", file)
    file.write_text(json_lines(own[:-1]), encoding="utf-8")
    assert "3 of its 4" in refusal(capsys, "--benchmark", "NaturalBench", "--predictions", file)
    file.write_text(json_lines([row | {"question_id": n} for n, row in enumerate(own[1:])]), encoding="utf-8")
    assert "out of order" in refusal(capsys, "--benchmark", "NaturalBench", "--predictions", file)


def test_cambrians_parts_of_cv_bench_are_one_set(shared, capsys, tmp_path):
    table = shared / "data" / "cvbench_gpt41" / "gpt-4.1_CV-Bench-2D.tsv"
    rows = [fields for _, fields in read_rows(table)]
    files = []
    for source, name in (("ADE20K", "answers_ade"), ("COCO", "answers_coco")):
        part = [row for row in rows if row["source"] == source]
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text(
            json_lines(
                [
                    {
                        "questionId": number,
                        "prompt": row["prompt"],
                        "answer": row["prediction"],
                        "gt_answer": f"({row['answer']})",
                        "category": row["category"],
                        "options": [row[letter] for letter in "ABCDEF" if row[letter]],
                    }
                    for number, row in enumerate(part)
                ]
            ),
            encoding="utf-8",
        )
    whole = run(capsys, "--benchmark", "CV-Bench-2D", "--predictions", table)
    parts = run(capsys, "--benchmark", "cvbench2d", "--predictions", *files)
    assert [of(parts, n)["value"] for n in ("cambrian", "letter")] == [
        of(whole, n)["value"] for n in ("cambrian", "letter")
    ]
    half = run(capsys, "--benchmark", "CV-Bench-2D", "--predictions", files[0])
    assert any("no item of COCO" in note for note in half["notes"])
    files[0].rename(tmp_path / "part.jsonl")
    assert "with --data" in refusal(capsys, "--benchmark", "CV-Bench-2D", "--predictions", tmp_path / "part.jsonl")


def test_cv_bench_3d_and_what_was_published_beside_it(capsys, tmp_path):
    rows = [
        row
        | {
            "source": "Omni3D",
            "split": "3D",
            "category": ("Depth", "Distance")[n // 8],
            "source_filename": f"{n // 2}.jpg",
        }
        for n, row in enumerate(choice_rows(12, ("A",)))
    ]
    sheet = workbook(tmp_path / "model_CV-Bench-3D.xlsx", rows)
    (tmp_path / "model_CV-Bench-3D_acc.csv").write_text('"split","Overall","Depth"\n"3D","0.5","0.5"\n')
    printed = run(capsys, "--benchmark", "CV-Bench-3D", "--predictions", sheet)
    assert of(printed, "cambrian")["value"] == 50 and printed["units"] == 6, "photos are drawn together"
    assert any("says Overall 0.5; reproduced by cambrian" in note for note in printed["notes"])
    assert any("1,200" in note for note in printed["notes"])
    (tmp_path / "model_CV-Bench-3D_acc.csv").write_text('"split","Overall"\n"3D","0.51"\n')
    assert any(
        "by no scorer" in note for note in run(capsys, "--benchmark", "CV-Bench-3D", "--predictions", sheet)["notes"]
    )
    (tmp_path / "model_CV-Bench-3D_acc.csv").write_text("no score")
    assert not any(
        "published" in note for note in run(capsys, "--benchmark", "CV-Bench-3D", "--predictions", sheet)["notes"]
    )


def test_the_labs_items_keep_their_rule(capsys, tmp_path):
    options = ("red", "green")
    items = [
        Item("NaturalBench", str(n), "a.png", "What?", options[n % 2], options, "0", "", (n // 2, n % 2))
        for n in range(4)
    ]
    asked, file = tmp_path / "items.jsonl", tmp_path / "seen.jsonl"
    asked.write_text(json_lines([item.to_json() for item in items]), encoding="utf-8")
    said = [{"benchmark": "NaturalBench", "index": item.index, "answer": item.answer} for item in items]
    file.write_text(json_lines([{"settings": {}, "provenance": {}}, *said]), encoding="utf-8")
    printed = run(capsys, "--benchmark", "NaturalBench", "--predictions", file, "--data", asked)
    assert printed["scorers"][0]["scorer"] == "option" and of(printed, "option")["value"] == 100


def test_our_own_predictions(capsys, tmp_path):
    items = [Item("AI2D", f"q-{n}", "a.png", "What?", "no", ("yes", "no"), f"q-{n}", "") for n in range(6)]
    others = [Item("MMStar", "q-0", "a.png", "What?", "no", ("yes", "no"), "q-0", "")]
    asked = tmp_path / "items.jsonl"
    asked.write_text(json_lines([item.to_json() for item in items + others]), encoding="utf-8")
    said = [{"benchmark": "AI2D", "index": f"q-{n}", "answer": ["B", "no", "A"][n % 3]} for n in range(6)]
    said.append({"benchmark": "MMStar", "index": "q-0", "answer": "A"})
    file = tmp_path / "seen.jsonl"
    file.write_text(json_lines([{"settings": {}, "provenance": {}}, *said]), encoding="utf-8")
    printed = run(capsys, "--benchmark", "AI2D", "--predictions", file, "--data", asked)
    assert printed["items"] == 6 and of(printed, "letter")["value"] == pytest.approx(100 * 4 / 6)
    assert "--data" in refusal(capsys, "--benchmark", "AI2D", "--predictions", file)
    file.write_text(json_lines([{"settings": {}, "provenance": {}}, *said[1:]]), encoding="utf-8")
    assert "1 of 6 items have no answer (first: q-0)" in refusal(
        capsys, "--benchmark", "AI2D", "--predictions", file, "--data", asked
    )
    asked.write_text(json_lines([item.to_json() for item in items[:1] + items]), encoding="utf-8")
    assert "stands twice" in refusal(capsys, "--benchmark", "AI2D", "--predictions", file, "--data", asked)
    halves = [Item("MMVP", f"q-{n}", "a.png", "What?", "no", ("yes", "no"), f"q-{n}", "") for n in range(2)]
    asked.write_text(json_lines([item.to_json() for item in halves]), encoding="utf-8")
    file.write_text(json_lines([said[0] | {"benchmark": "MMVP"}]), encoding="utf-8")
    assert "1 of its 2" in refusal(capsys, "--benchmark", "MMVP", "--predictions", file, "--data", asked)
    file.write_text(json_lines([{"settings": {}, "provenance": {}}, *said]), encoding="utf-8")
    assert "no answer to POPE" in refusal(capsys, "--benchmark", "POPE", "--predictions", file, "--data", asked)


# ---- texts


def check_texts(path: Path, texts: list[str]) -> None:
    rows = read_rows(path)
    assert [fields["prediction"] for _, fields in rows] == texts
    assert all(fields["mark"] == '5" pipe' and fields["index"].isdecimal() for _, fields in rows)


def rows_of(texts: list[str]) -> list[dict]:
    return [{"index": str(n), "prediction": text, "mark": '5" pipe'} for n, text in enumerate(texts)]


ANY = st.text(st.characters(exclude_categories=["Cs"]))
SHEET = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"], include_characters="\n\t"), max_size=50)
FEW = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@given(st.lists(ANY, min_size=1, max_size=4))
@FEW
def test_texts_come_back_from_tables_and_json_lines(tmp_path, drawn):
    for texts in (drawn, [*WEIRD, *drawn]):
        rows, file = rows_of(texts), tmp_path / "texts.tsv"
        for quoting in (0, 1):
            pd.DataFrame(rows).to_csv(file, sep="\t", index=False, quoting=quoting)
            check_texts(file, texts)
        pd.DataFrame(rows).to_csv(file.with_suffix(".csv"), index=False)
        check_texts(file.with_suffix(".csv"), texts)
        file.write_bytes(escaped(rows).encode())
        check_texts(file, texts)
        file.write_bytes(("\ufeff" + escaped(rows)).replace("\n", "\r\n").encode())
        check_texts(file, texts)
        for form in (json_lines(rows), json_lines(rows).rstrip("\n")):
            file.with_suffix(".jsonl").write_bytes(form.encode())
            check_texts(file.with_suffix(".jsonl"), texts)
        file.with_suffix(".json").write_text(json.dumps(rows))
        check_texts(file.with_suffix(".json"), texts)


@given(st.lists(SHEET.filter(lambda text: not re.search("_x[0-9A-Fa-f]{4}_", text)), min_size=1, max_size=4))
@FEW
def test_texts_come_back_from_workbooks(tmp_path, texts):
    texts = [*texts, *(text for text in WEIRD if "\x00" not in text)]
    check_texts(workbook(tmp_path / "texts.xlsx", rows_of(texts)), texts)


def test_numbers_and_control_characters_of_workbooks(tmp_path):
    rows = [{"index": 1, "prediction": 7.0, "mark": '5" pipe'}, {"index": 2.0, "prediction": 0.5, "mark": '5" pipe'}]
    rows.append({"index": 1e16, "prediction": -1e16, "mark": '5" pipe'})
    path = workbook(tmp_path / "a.xlsx", [*rows, {"index": 3, "prediction": "a_x0007_b", "mark": '5" pipe'}])
    check_texts(path, ["7", "0.5", "-10000000000000000", "a\x07b"])
    assert [fields["index"] for _, fields in read_rows(path)] == ["1", "2", "10000000000000000", "3"]


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl"])
def test_a_long_answer_is_one_answer(capsys, tmp_path, suffix):
    rows = choice_rows(8)
    rows[1]["prediction"] = "Hm\n\t\\" * 40_000
    file = tmp_path / f"long{suffix}"
    file.write_text(escaped(rows) if suffix == ".tsv" else json_lines(rows), encoding="utf-8")
    assert read_answers("MMStar", [file]).texts["1"] == rows[1]["prediction"]
    if suffix == ".tsv":  # and as the csv module writes it, which by default reads no cell above 131,072
        pd.DataFrame(rows).to_csv(file, sep="\t", index=False)
        before = csv.field_size_limit(131_072)
        assert read_answers("MMStar", [file]).texts["1"] == rows[1]["prediction"]
        csv.field_size_limit(before)
    printed = run(capsys, "--benchmark", "MMStar", "--predictions", file)
    # A A | "" None and again, of golds A B A B
    assert of(printed, "letter")["unparsed"] == 5 and of(printed, "letter")["value"] == pytest.approx(100 * 3 / 8)


# ---- refusals


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tsv", "", "holds no row"),
        ("a.jsonl", "\n", "holds no row"),
        ("a.tsv", "index\tprediction\n", "holds no row"),
        ("a.tsv", "index\tanswer\tprediction\n1\tA\n", "line 2: has 2 cells under 3 columns"),
        ("a.tsv", 'index\tanswer\tprediction\n1\tA\t"cut', "carries|no options|cut off"),
        ("a.tsv", "index\tindex\n1\tA\n", "two columns have one name"),
        ("a.tsv", escaped(choice_rows(3) + choice_rows(1)), "line 5: index '0' stands twice"),
        ("a.tsv", escaped([{"index": 1, "question": "x"}]), "line 2: has no field prediction"),
        ("a.tsv", escaped([{"index": 1, "A": "x", "B": "y", "prediction": "A"}]), "carries no gold answer"),
        (
            "a.tsv",
            escaped([{"index": 1, "A": "x", "B": "y", "answer": "C", "prediction": "A"}]),
            "none of its 2 options",
        ),
        ("a.tsv", escaped([{"index": 1, "answer": "C", "prediction": "A"}]), "has no options"),
        ("a.jsonl", json_lines(choice_rows(2))[:-9], "line 2: is no whole JSON object"),
        ("a.jsonl", "[1, 2]\n", "line 1: .* is no JSON object"),
        ("a.jsonl", '{"index": 1, "prediction": null, "answer": "A"}\n', "prediction is null and not a text"),
        ("a.jsonl", '{"index": 1, "prediction": 7, "answer": "A"}\n', "prediction is 7 and not a text"),
        ("a.jsonl", "[" * 100_000, "no whole JSON object"),
        ("a.json", "[1, 2]", "no list of objects"),
        ("a.json", "{", "no whole JSON object"),
        ("a.xlsx", "not a workbook", "cannot be read as a workbook"),
        ("a.txt", "x", "give a .tsv"),
        ("a.tsv", b"index\tprediction\n1\t\xff\n", "not UTF-8 at byte 19"),
    ],
)
def test_files_that_are_none(capsys, tmp_path, name, content, said):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refusal(capsys, "--benchmark", "MMStar", "--predictions", file)
    assert re.search(said, line) and str(file) in line, line


def test_answers_to_other_questions_are_refused(capsys, tmp_path):
    gold, file = tmp_path / "gold.tsv", tmp_path / "said.jsonl"
    gold.write_text(escaped(choice_rows(3)), encoding="utf-8")
    said = [{"question_id": n, "prompt": f"Look. What is {n}? A. yes", "text": "A"} for n in range(3)]
    arguments = ["--benchmark", "MMStar", "--predictions", file, "--data", gold]
    file.write_text(json_lines(said), encoding="utf-8")
    assert run(capsys, *arguments)["items"] == 3
    file.write_text(json_lines([*said[:2], said[2] | {"prompt": "What is 1?"}]), encoding="utf-8")
    assert "line 3: asks 'What is 1?' where the gold answers have 'What is 2?'" in refusal(capsys, *arguments)
    file.write_text(json_lines([*said, said[0] | {"question_id": 7}]), encoding="utf-8")
    assert "line 4: answers item '7'" in refusal(capsys, *arguments)
    file.write_text(json_lines([*said, said[0]]), encoding="utf-8")
    assert "line 4: index '0' is answered twice" in refusal(capsys, *arguments)
    assert "has none of" in refusal(capsys, *arguments[:-1], tmp_path)
    assert "unknown benchmark" in refusal(capsys, "--benchmark", "MME", "--predictions", file)
    assert "about MMVP" in refusal(capsys, *arguments, "--corrected-labels")


def test_rotations_are_whole(capsys, tmp_path):
    options = ["cat", "dog", "cow", "all of them"]
    rows = [
        {
            "index": unit + 1_000_000 * turn,
            "question": "Which?",
            **{letter: [*options[turn:3], *options[:turn], options[3]][n] for n, letter in enumerate("ABCD")},
            "answer": "D" if unit == 1 else "ACB"[turn],
            "prediction": "D" if unit == 1 else "A",
        }
        for unit in (1, 2)
        for turn in range(3)
    ]
    file = tmp_path / "a.tsv"
    file.write_text(escaped(rows), encoding="utf-8")
    found = of(run(capsys, "--benchmark", "MMBench", "--predictions", file), "letter")
    assert found["value"] == 50 and found["metrics"]["vanilla (unrotated rows)"] == 100, (
        "three move, one keeps its place"
    )
    for kept in (1, 2):
        file.write_text(escaped(rows[: 3 + kept]), encoding="utf-8")
        assert f"question 2 has {kept} of its" in refusal(capsys, "--benchmark", "MMBench", "--predictions", file)


def test_a_judges_log_of_another_shape(capsys, tmp_path):
    file, log = tmp_path / "a.tsv", tmp_path / "a_judge.json"
    file.write_text(escaped(choice_rows(4)), encoding="utf-8")
    good = {str(n): {"hit": 1, "log": "Failed to predict, thus randomly generate one. "} for n in range(4)}
    log.write_text(json.dumps(good))
    printed = run(capsys, "--benchmark", "MMStar", "--predictions", file)
    assert of(printed, "judge")["value"] == 75, "the empty answer never scores"
    assert of(printed, "judge")["unparsed"] == 4 and any(
        "4 hits and misses are random guesses" in n for n in printed["notes"]
    )
    for broken, said in (
        ({"0": 1}, "differ"),
        (good | {"1": {"hit": 2}}, "item 1 is no"),
        (good | {"1": []}, "item 1 is no"),
    ):
        log.write_text(json.dumps(broken))
        assert said in refusal(capsys, "--benchmark", "MMStar", "--predictions", file, "--judge", log)
        printed = run(capsys, "--benchmark", "MMStar", "--predictions", file)
        assert not any(m["scorer"] == "judge" for m in printed["scorers"]), "one that merely lies there stops nothing"
        assert any("was not: " in note and said in note for note in printed["notes"])
    log.write_text("[]")
    assert "holds no row" in refusal(capsys, "--benchmark", "MMStar", "--predictions", file, "--judge", log)


# ---- the command


def test_table_files_and_manifest(capsys, tmp_path):
    file, out = tmp_path / "a.tsv", tmp_path / "out"
    rows = choice_rows(12, ("B", "The answer is B", "no\ud800"[:2], ""))
    file.write_text(escaped(rows), encoding="utf-8")
    assert (
        score.main(
            [
                "--no-vlmevalkit",
                "--benchmark",
                "MMStar",
                "--predictions",
                str(file),
                "--out",
                str(out),
                "--disagreements",
                "2",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "12 answers (3 empty)" in printed and "scorers disagree on 3 items, the first 2:" in printed
    assert 'gold "B. no"  answer "The answer is B"' in printed
    table = pd.read_csv(out / "disagreements.csv", keep_default_na=False)
    assert list(table["answer"]) == ["The answer is B"] * 3 and set(table["letter"]) == {0.0}
    assert json.loads((out / "scores.json").read_text())[0]["metric"] == "MMStar"
    manifest = json.loads((out / "manifest.json").read_text())
    assert list(manifest["files"]) == [str(file)] and manifest["benchmark"] == "MMStar"


def test_vlmevalkits_own_scorer_stands_first(capsys, tmp_path, monkeypatch):
    file = tmp_path / "a.tsv"
    file.write_text(escaped(choice_rows(4, ("A",))), encoding="utf-8")
    handed = []

    def rescore(kit, benchmark, rows, *, made_up, where):
        handed.extend(rows)
        values = {row["index"]: float(row["index"] != "3") for row in rows}
        return vlmevalkit.KitScore(75.0, values, dict.fromkeys(values, True), {}, "0.0")

    monkeypatch.setattr(vlmevalkit, "find", lambda python, root: "kit")
    monkeypatch.setattr(vlmevalkit, "rescore", rescore)
    arguments = ["--benchmark", "MMStar", "--predictions", str(file), "--json"]
    assert score.main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["scorers"][0]["scorer"], printed["scorers"][0]["value"]) == ("vlmevalkit", 75)
    assert handed[1] == {
        "index": "1",
        "question": "What is 1?",
        "category": "x",
        "A": "yes",
        "B": "no",
        "answer": "B",
        "prediction": "A",
    }
    monkeypatch.setattr(
        vlmevalkit,
        "rescore",
        lambda *_, **__: vlmevalkit.KitScore(
            60.0, {str(n): 1.0 for n in range(4)}, {str(n): True for n in range(4)}, {}, ""
        ),
    )
    assert score.main(arguments) == 0
    assert any("its rows say 100" in note for note in json.loads(capsys.readouterr().out)["notes"]), (
        "and the others still run"
    )

    def absent(python, root):
        raise InputError("no VLMEvalKit here; run `make harness`")

    monkeypatch.setattr(vlmevalkit, "find", absent)
    assert score.main(arguments) == 0
    assert any("make harness" in note for note in json.loads(capsys.readouterr().out)["notes"])
    assert score.main([*arguments, "--vlmevalkit-python", "nowhere"]) == 2


@pytest.mark.slow
def test_vlmevalkit_agrees_item_by_item(shared):
    """The rules that restate what VLMEvalKit also does, against VLMEvalKit; needs `make harness`."""
    try:
        kit = vlmevalkit.find()
    except InputError as error:
        pytest.skip(str(error))
    data = shared / "data"
    for name, file, rule in (
        ("DocVQA", data / "docvqa_val_runs" / "T5.jsonl", "anls"),
        ("DocVQA", data / "docvqa_val_runs" / "LLaVA.jsonl", "anls"),
        ("OCRBench", data / "vila_vlmevalkit" / "vila_8b_OCRBench.tsv", "contains"),
        ("POPE", data / "vila_vlmevalkit" / "vila_8b_POPE.tsv", "pope"),
        ("MMBench", data / "llava15_eval" / "mmbench_dev_llava-v1.5-13b.tsv", "vlmevalkit-2024"),
    ):
        answers = read_answers(name, [file])
        theirs = score.by_kit(kit, answers.items, answers.texts, str(file))
        ours = next(m for m in score.by_rule(answers.items, answers.texts) if m.scorer == rule)
        assert theirs.value == pytest.approx(ours.value)
        if name != "MMBench":
            assert theirs.values == pytest.approx(ours.values)


def test_every_scorer_is_a_rule():
    assert set(score.BY_RULE) == set(score.NAMES)
    assert {rule for rows in score.BY_RULE.values() for _, rule, _ in rows} <= set(RULES)


def test_scoring_needs_no_torch():
    code = "import sys, benchmarks.score; sys.exit(bool({'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_broken_workbook_is_one_line(capsys, tmp_path):
    """Bytes lost anywhere in a workbook: as an archive, in a compressed sheet, in its XML."""
    import zipfile

    file = tmp_path / "whole.xlsx"
    workbook(file, choice_rows(4))
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as packed:
        parts = {name: packed.read(name) for name in packed.namelist()}
    broken = tmp_path / "broken.xlsx"
    with zipfile.ZipFile(broken, "w") as packed:
        for name, content in parts.items():
            packed.writestr(name, content[: len(content) // 2] if "sheet1" in name else content)
    refusal(capsys, "--benchmark", "MMStar", "--predictions", broken)
    rng = random.Random(0)
    for _ in range(25):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[rng.randrange(len(damaged))] ^= 0xFF
        broken.write_bytes(bytes(damaged))
        assert score.main(["--benchmark", "MMStar", "--predictions", str(broken)]) in (0, 2)
        capsys.readouterr()


def test_part_of_ocrbench_is_no_score(capsys, tmp_path):
    rows = [
        {"index": n, "question": "?", "answer": "['a']", "category": "Regular Text Recognition", "prediction": "a"}
        for n in range(9)
    ]
    (tmp_path / "a.tsv").write_text(escaped(rows), encoding="utf-8")
    assert "9 rows, OCRBench 1,000" in refusal(capsys, "--benchmark", "OCRBench", "--predictions", tmp_path / "a.tsv")


def test_popes_questions_are_no_answers(capsys, tmp_path):
    (tmp_path / "coco_pope_random.json").write_text(
        '{"question_id": 1, "image": "a", "text": "Is it?", "label": "yes"}\n'
    )
    assert "give this file with --data" in refusal(
        capsys, "--benchmark", "POPE", "--predictions", tmp_path / "coco_pope_random.json"
    )
