"""Cambrian's protocol: prompts and scores equal to its scripts, restated here line by line; broken files refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks import cambrian, scorers
from benchmarks.linked import LETTER_LINE
from benchmarks.records import score
from benchmarks.suites import Item, unit_scores
from dpa.errors import InputError
from tests import made_up


def script_mmvp_prompt(question: str, options: str, line: str) -> str:
    """The prompt as mmvp_eval.py builds it from a row of Questions.csv."""
    prompt = question + " Options:"
    parts = [part.strip().replace("(a)", "A.").replace("(b)", "B.") for part in options.split("(b)")]
    if len(parts) > 1:
        parts[1] = "B. " + parts[1]
    for part in parts:
        prompt += "\n" + part
    return prompt + "\n" + line


def script_text(answer: str, closing: str, first_only: bool) -> str:
    """What extract_mcq_answer of the three scripts reads."""
    text = answer.lower().strip()
    for keyword in ["answer is", "answer is:", "answer:"]:
        if keyword in text:
            text = text.split(keyword)[-1]
    text = text.strip().rstrip(closing).lstrip("(").rstrip(")")
    if first_only and len(text) > 1:
        text = text[0]
    return text


def script_mmvp_hit(answer: str, right: str, options: list[str]) -> bool:
    letter = right.lower()[1]
    said = script_text(answer, ".:,", first_only=False)
    return letter == said or said == [option.lower() for option in options][ord(letter) - ord("a")]


def script_mmvp_accuracy(hits: list[bool]) -> float:
    """mmvp_test.py's running count: a second half counts, or takes the first one's hit back."""
    correct = 0
    for line, hit in enumerate(hits):
        if hit:
            if line % 2 == 0 or correct % 2 == 1:
                correct += 1
        elif line % 2 == 1 and correct % 2 == 1:
            correct -= 1
    return 100 * correct / len(hits)


def script_cvbench_hit(answer: str, right: str, options: list[str], source: str) -> bool:
    letter = right.lower()[1]
    if source == "Omni3D":  # omni_test.py
        said = script_text(answer, ".:,", first_only=True)
        return said == letter or said == options[ord(letter) - ord("a")]
    return script_text(answer, ".", first_only=True) == letter  # coco_test.py


def mmvp_rows(rows):
    return [
        (f"row {n}", {name: str(cell) for name, cell in row.items()} | {"picture": "p.jpg"})
        for n, row in enumerate(rows)
    ]


def cvbench_rows(items):
    from benchmarks.official import _as_text

    return [(f"row {n}", _as_text(item) | {"picture": item["filename"]}) for n, item in enumerate(items)]


ANSWERS = st.lists(
    st.sampled_from(
        [
            "A",
            "B",
            "a",
            "b",
            "c",
            "(",
            ")",
            ".",
            ":",
            ",",
            " ",
            "\n",
            "Open",
            "Closed",
            "answer is",
            "The answer is: ",
            "Answer:",
            "because",
            "İ",
            "**",
            "1",
        ]
    )
    | st.text(max_size=4),
    max_size=7,
).map("".join)


@given(
    ANSWERS,
    st.sampled_from(["Open", "Closed", "b", "a", "A", "12", "İ"]),
    st.sampled_from(["Closed", "c", "1"]),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_mmvp_answers_score_as_the_script_scores_them(said, first, second, turned):
    options = [second, first] if turned else [first, second]
    for letter, answer in zip("ab", options, strict=True):
        item = Item("MMVP", "1", "", "", answer, tuple(options), "1", "")
        if options[0] != options[1]:
            assert cambrian.mmvp_value(item, said) == script_mmvp_hit(said, f"({letter})", options), said


@given(ANSWERS, st.sampled_from(["ADE20K", "COCO", "Omni3D"]), st.integers(0, 2))
@settings(max_examples=300, deadline=None)
@example("c", "Omni3D", 0)
@example("c", "COCO", 0)
def test_cvbench_answers_score_as_the_scripts_score_them(said, source, right):
    options = ["c", "chair", "İ"]
    item = Item("CVBench-2D", "1", "", "", options[right], tuple(options), "1", source)
    expected = script_cvbench_hit(said, f"({'ABC'[right]})", options, source)
    assert cambrian.cvbench_value(item, said) == expected, said


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_pairs_count_as_the_scripts_running_count(halves):
    items = cambrian.mmvp_items(mmvp_rows(made_up.mmvp_questions(len(halves))))
    hits = [hit for pair in halves for hit in pair]
    units = unit_scores(items, [float(hit) for hit in hits])[""]
    assert 100 * sum(s for s, _ in units) / len(units) == pytest.approx(script_mmvp_accuracy(hits))


def test_the_oddities_of_the_scripts_are_kept():
    item = Item("MMVP", "1", "", "", "Open", ("Open", "Closed"), "1", "")
    right = [
        "A",
        "a.",
        "(A)",
        "A)",
        " (a",
        "open",
        "Answer: A",
        "The answer is A.",
        "(A).",
        "x answer is B answer is A",
    ]
    wrong = ["", "The answer is: A", "A. Open", "Open door", "**A**", "A.)", "B", "Closed", "None"]
    assert [s for s in right if not cambrian.mmvp_value(item, s)] == []
    assert [s for s in wrong if cambrian.mmvp_value(item, s)] == []
    assert cambrian.mmvp_parsed(item, "Closed.") and not cambrian.mmvp_parsed(item, "A. Open")
    count = Item("CVBench-2D", "1", "", "", "3", ("0", "3"), "1", "COCO")
    assert cambrian.cvbench_value(count, "because") == 1 and not cambrian.cvbench_parsed(count, "because")
    assert cambrian.cvbench_value(count, "(B) 3") == 1 and cambrian.cvbench_parsed(count, "(B) 3")
    assert cambrian.cvbench_value(count, "3") == 0 and not cambrian.cvbench_parsed(count, "c")


@given(st.text(st.characters(exclude_characters="()"), min_size=1).map(str.strip).filter(bool), st.booleans())
def test_mmvp_prompt_is_the_scripts(text, spaced):
    options = f" (a) {text} (b) Closed " if spaced else f"(a) {text} (b) Closed"
    rows = [
        {"lndex": n, "Question": "Is it open?", "Options": options, "Correct Answer": answer}
        for n, answer in ((1, "(a)"), (2, "(b)"))
    ]
    first, second = cambrian.mmvp_items(mmvp_rows(rows), line="Say a letter.")
    assert first.prompt == second.prompt == script_mmvp_prompt("Is it open?", options, "Say a letter.")
    assert (first.answer, second.answer) == (text, "Closed")


def test_mmvp_is_keyed_by_index_and_refuses_pieces():
    rows = made_up.mmvp_questions(4)
    items = cambrian.mmvp_items(mmvp_rows(rows))
    turned = cambrian.mmvp_items(mmvp_rows(rows[::-1]))
    assert {item.index: item for item in items} == {item.index: item for item in turned}
    assert [item.unit for item in items] == ["1", "1", "2", "2", "3", "3", "4", "4"]
    from_zero = cambrian.mmvp_items(mmvp_rows([row | {"lndex": row["lndex"] - 1} for row in rows]))
    assert [(i.index, i.unit) for i in from_zero] == [(str(n), i.unit) for n, i in enumerate(items)]
    for lost in range(8):  # any row: its pair lacks a half, or, counted from another first index, its halves differ
        with pytest.raises(InputError, match=r"pair|index"):
            cambrian.mmvp_items(mmvp_rows(rows[:lost] + rows[lost + 1 :]))
    with pytest.raises(InputError, match="renumbered"):
        cambrian.mmvp_items(mmvp_rows([row | {"lndex": n} for n, row in enumerate(rows[1:-1], start=1)]))
    with pytest.raises(InputError, match=r"row 1: MMVP item 2 lacks its other half \(pair 1\)"):
        cambrian.mmvp_items([row for row in mmvp_rows(rows) if row[1]["lndex"] != "1"])
    for change in ({"Question": "Is it open?"}, {"Correct Answer": rows[3]["Correct Answer"]}):
        with pytest.raises(InputError, match=r"items 3 and 4 \(pair 2\) should be one question with two answers"):
            cambrian.mmvp_items(mmvp_rows([*rows[:2], rows[2] | change, *rows[3:]]))
    with pytest.raises(InputError, match="stands in the file twice"):
        cambrian.mmvp_items(mmvp_rows([*rows, rows[3]]))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"lndex": "x"}, "index 'x' is no number"),
        ({"Correct Answer": "(c)"}, r"'\(c\)' is none of its 2 options"),
        ({"Correct Answer": ""}, "is none of its 2 options"),
        ({"Options": "(a) Open"}, "1 options instead of two"),
        ({"Options": "(a) Open (it is) (b) Closed"}, "3 options instead of two"),
    ],
)
def test_mmvp_names_a_broken_row(change, names):
    rows = made_up.mmvp_questions(1)
    with pytest.raises(InputError, match=names) as error:
        cambrian.mmvp_items(mmvp_rows([rows[0] | change, rows[1]]))
    assert "row 0" in str(error.value)


def test_swapped_labels_are_turned_only_when_asked():
    rows = mmvp_rows(made_up.mmvp_questions(150))
    original, corrected = cambrian.mmvp_items(rows), cambrian.mmvp_items(rows, corrected=True)
    assert {a.index for a, b in zip(original, corrected, strict=True) if a != b} == {"99", "100", "279", "280"}
    changed = corrected[98]
    assert changed == replace(original[98], answer=original[99].answer)


def test_cvbench_prompts_tasks_and_units():
    for kind, tasks in (("2D", {"ADE20K", "COCO"}), ("3D", {"Omni3D"})):
        raw = made_up.cvbench(kind)
        items = cambrian.cvbench_items(f"CVBench-{kind}", cvbench_rows(raw))
        assert [i.prompt for i in items] == [f"{r['prompt']}\n{LETTER_LINE}" for r in raw]
        assert [i.options for i in items] == [tuple(r["choices"]) for r in raw]
        assert {i.task for i in items} == tasks
    assert len({i.unit for i in items}) == 3  # of six 3D items, two a photo
    alone = cambrian.cvbench_items("CVBench-3D", cvbench_rows([raw[0] | {"source_filename": None}]))
    assert alone[0].unit == f"Omni3D Validation Set/{raw[0]['filename']}"  # no photo is named: the picture
    assert cambrian.cvbench_items("CVBench-2D", cvbench_rows(raw)) == []  # 3D rows are no 2D items
    with pytest.raises(InputError, match="source 'NYU' of item 1438"):
        cambrian.cvbench_items("CVBench-3D", cvbench_rows([raw[0] | {"source": "NYU"}]))
    with pytest.raises(InputError, match="has no column source"):
        cambrian.cvbench_items("CVBench-3D", cvbench_rows([{k: v for k, v in raw[0].items() if k != "source"}]))
    assert cambrian.cvbench_total(80.0, 60.0) == 70.0


def test_options_that_read_the_same_are_told_apart_by_letter():
    row = made_up.cvbench("2D")[0] | {"choices": ["2", "3", "3"], "answer": "(C)"}
    (item,) = cambrian.cvbench_items("CVBench-2D", cvbench_rows([row]))
    assert [cambrian.cvbench_value(item, said) for said in "ABC"] == [0, 0, 1]


def test_scores_of_items_are_cambrians():
    """Through the records: a pair counts when both halves are right; 2D is the mean of its two sources, not of its items."""
    items = cambrian.mmvp_items(mmvp_rows(made_up.mmvp_questions(4)))
    said = {(i.benchmark, i.index): "(A)" for i in items}
    assert (score(items, said).value, score(items, said).detail["single accuracy"]) == (0.0, 50.0)
    said = {(i.benchmark, i.index): i.answer if i.unit != "2" else "The answer is: A" for i in items}
    assert (score(items, said).value, score(items, said).unparsed) == (75.0, 2)
    raw = [item | {"source": "ADE20K" if item["idx"] < 5 else "COCO"} for item in made_up.cvbench("2D")]
    items = cambrian.cvbench_items("CVBench-2D", cvbench_rows(raw))
    said = {(i.benchmark, i.index): r["answer"] if i.task == "COCO" else "" for i, r in zip(items, raw, strict=True)}
    assert score(items, said).value == 50.0
    assert scorers.value(items[0], "A because") == 1.0


def unescaped(text: str) -> str:
    return text.replace("\\n", "\n").replace("\\t", "\t").replace("\\\\", "\\")


def test_real_mmvp_questions(shared):
    """All 300 prompts are the script's; the scorer reads the real options as it does."""
    with open(shared / "data" / "mmvp_items" / "Questions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    items = cambrian.mmvp_items(mmvp_rows(rows))
    assert len(items) == 300 and len({item.unit for item in items}) == 150
    for item, row in zip(items, rows, strict=True):
        assert item.prompt == script_mmvp_prompt(row["Question"], row["Options"], LETTER_LINE)
        options = [part.split(")")[1].strip() for part in row["Options"].split("(")[1:]]
        for said in (*options, "A", "B", "(a)", f"Answer: {options[0]}", f"A. {options[0]}", "Yes"):
            assert cambrian.mmvp_value(item, said) == script_mmvp_hit(said, row["Correct Answer"], options)


def test_real_cvbench_and_the_published_score(shared):
    """All 1,438 2D prompts; GPT-4.1's judged hits give the published .7887 through our tasks; no two items share a photo."""
    folder = shared / "data" / "cvbench_gpt41"
    rows = []
    with open(folder / "gpt-4.1_CV-Bench-2D.tsv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            rows.append({name: unescaped(cell) for name, cell in row.items()})
    items = cambrian.cvbench_items("CVBench-2D", [(row["index"], row | {"picture": row["image_path"]}) for row in rows])
    assert len(items) == len({item.unit for item in items}) == 1438
    for item, row in zip(items, rows, strict=True):
        options = [row[letter] for letter in "ABCDEF" if row[letter]]
        listed = "\n".join(f"({letter}) {option}" for letter, option in zip("ABCDEF", options, strict=False))
        assert item.prompt == f"{row['question']} Select from the following choices.\n{listed}\n{LETTER_LINE}"
        right = f"({row['answer']})"
        for said in (row["prediction"], *options, *"ABCDEF"):
            assert cambrian.cvbench_value(item, said) == script_cvbench_hit(said, right, options, row["source"])
    judged = json.loads((folder / "gpt-4.1_CV-Bench-2D_judge.json").read_text())
    units = unit_scores(items, [float(judged[item.index]["hit"]) for item in items])
    means = {task: sum(s for s, _ in pairs) / len(pairs) for task, pairs in units.items()}
    assert {task: round(mean, 4) for task, mean in means.items()} == {"ADE20K": 0.7488, "COCO": 0.8286}
    assert round(sum(means.values()) / 2, 4) == 0.7887
