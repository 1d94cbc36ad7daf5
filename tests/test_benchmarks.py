"""Scorers, chance, intervals, the lab's items, predictions that survive a kill and refuse strangers."""

import json
import random
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import predictions, suites
from benchmarks.formats import markdown_table, text_table
from benchmarks.lab import lab_items
from benchmarks.linked import linked_items
from benchmarks.records import append_records, average, cut_torn_line, score
from benchmarks.scorers import is_parsed, value
from benchmarks.suite_table import differences, suite_rows, unparsed
from benchmarks.suites import Item, chance, check_complete, natural_accuracies, suite, unit_scores
from dpa.errors import InputError
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return lab_items(single=40, pairs=20, groups=20)


def of(items, name):
    return [item for item in items if item.benchmark == name]


def item(**changes) -> Item:
    return replace(
        Item("MMVP", "1", "a.png", "what", "a red ball", ("a red ball", "a blue cube"), "0", "colour"), **changes
    )


@pytest.mark.parametrize(
    ("answer", "right", "parsed"),
    [
        ("a red ball", True, True),
        ("A red ball.", True, True),
        ("A", True, True),
        ("(A)", True, True),
        ("The answer is: A.", True, True),
        ("b", False, True),
        ("a blue cube", False, True),
        ("a red", False, False),
        ("", False, False),
        ("   ", False, False),
        ("None", False, False),
        ("NA", False, False),
        ("007", False, False),
        ("a red ball " * 20_000, False, False),
    ],
)
def test_cambrian_scorer(answer, right, parsed):
    assert (value(item(), answer) == 1) is right
    assert is_parsed(item(), answer) is parsed


def test_cv_bench_reads_the_first_character():
    counted = item(benchmark="CV-Bench", rule="first-character", answer="3", options=("2", "3"))
    assert value(counted, "(B) 3") and value(counted, "B") and is_parsed(counted, "(B) 3")
    assert not value(counted, "A 3") and not value(counted, "3")
    assert not is_parsed(counted, "a man riding a wave"), "it counts as A by the protocol, and as unparsed here"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes", "yes"),
        ("No, there is not.", "no"),
        ("There is not a tv", "no"),
        ("there is. No doubt", "yes"),
        ("nothing", "yes"),
    ],
)
def test_pope_reads_the_first_sentence(answer, said):
    asked = item(benchmark="POPE", rule="pope", answer="yes", options=("yes", "no"))
    assert (value(asked, answer) == 1) is (said == "yes")


def test_lab_items_are_balanced_and_right(items):
    check_complete(items)
    assert {i.benchmark for i in items} == set(suite("vision-centric"))
    assert len({(i.benchmark, i.index) for i in items}) == len(items)
    for name in ("CVBench-2D", "CVBench-3D"):
        for task in {i.task for i in of(items, name)}:
            asked = [i for i in of(items, name) if i.task == task]
            first = sum(i.options.index(i.answer) == 0 for i in asked) / len(asked)
            assert abs(first - (0.25 if task in ("count",) else 0.5)) < 0.13, (task, first)
    groups = {}
    for i in of(items, "NaturalBench"):
        groups.setdefault(i.unit, {})[i.slot] = i
    for group in groups.values():
        for question in (0, 1):
            assert group[question, 0].prompt == group[question, 1].prompt
            assert group[question, 0].answer != group[question, 1].answer
        assert group[0, 0].image == group[1, 0].image != group[0, 1].image
    pairs = {}
    for i in of(items, "MMVP"):
        pairs.setdefault(i.unit, []).append(i)
    assert all(a.prompt == b.prompt and a.answer != b.answer for a, b in pairs.values())
    assert items == lab_items(single=40, pairs=20, groups=20), "a seed names the items"


def test_a_constant_answer_earns_no_pair_and_no_group(items):
    for name in ("MMVP", "NaturalBench"):
        asked = of(items, name)
        for constant in {i.answer for i in asked}:
            right = [value(i, constant) for i in asked]
            assert sum(s for s, _ in unit_scores(asked, right)[""]) == 0


def test_natural_accuracies_by_hand():
    def group(unit, hits):
        return [
            (item(benchmark="NaturalBench", unit=unit, slot=(q, i)), hits[2 * q + i]) for q in (0, 1) for i in (0, 1)
        ]

    rows = group("a", [1, 1, 1, 1]) + group("b", [1, 1, 1, 0]) + group("c", [1, 0, 1, 0]) + group("d", [0, 0, 0, 0])
    found = natural_accuracies([i for i, _ in rows], [bool(h) for _, h in rows])
    assert found == {"question": 3 / 8, "image": 4 / 8, "group": 1 / 4}


def test_chance_is_what_guessing_scores(items):
    rng = random.Random(0)
    for name in suite("vision-centric"):
        asked = of(items, name)
        runs = []
        for _ in range(300):
            scores = unit_scores(asked, [rng.choice(i.options) == i.answer for i in asked])
            runs.append(np.mean([sum(s for s, _ in units) / sum(n for _, n in units) for units in scores.values()]))
        assert 100 * np.mean(runs) == pytest.approx(chance(asked), abs=1.6)


def test_incomplete_pairs_and_groups_are_refused(items):
    for name in ("MMVP", "NaturalBench"):
        with pytest.raises(InputError, match="of its"):
            check_complete(of(items, name)[1:])


def test_score_needs_every_answer(items):
    asked = of(items, "MMVP")
    answers = {("MMVP", i.index): i.answer for i in asked}
    assert score(asked, answers).value == 100
    del answers["MMVP", asked[5].index]
    with pytest.raises(InputError, match="1 of 40 items have no prediction"):
        score(asked, answers)


def test_perfect_and_hopeless_scores_keep_an_interval(items):
    for right, worth in ((True, 100.0), (False, 0.0)):
        result = score(of(items, "MMVP"), {("MMVP", i.index): i.answer if right else "" for i in of(items, "MMVP")})
        assert result.value == worth and result.high - result.low > 5
        assert result.unparsed == (0 if right else 40)


def test_table_reads_well(items):
    names = suite("vision-centric")
    answers = {(i.benchmark, i.index): i.answer for i in items}
    wrong = dict.fromkeys(answers, "")
    table = {
        ("vanilla", 0, mode): [score(of(items, n), a) for n in names]
        for mode, a in (("seen", answers), ("blind", wrong))
    }
    rows = suite_rows(table, names)
    assert rows[0] == ["method", *names, "Avg"] and rows[-1][0] == "chance"
    assert rows[1][1].startswith("100.0 [") and rows[2][1].startswith("0.0 [")
    text = text_table(rows)
    assert len({line.index("100.0") for line in text.splitlines() if "100.0" in line}) == 1
    assert markdown_table(rows).count("\n") == len(rows)
    assert average(table["vanilla", 0, "seen"])[0] == 100
    table |= {("dpa", 0, mode): table["vanilla", 0, "blind"] for mode in ("seen", "blind")}
    assert differences(table) == ["dpa - vanilla, seed 0: -100.0 [-100.0, -100.0], more than item noise"]
    assert unparsed(table) == [f"dpa, seed 0: {len(items)} answers named no option and count as wrong"]


def test_records_are_appended_once(tmp_path, items):
    path = tmp_path / "records.jsonl"
    scores = [score(of(items, "MMVP"), {("MMVP", i.index): i.answer for i in of(items, "MMVP")})]

    def append(digest):
        about = {"model": "m", "seed": 0, "mode": "seen", "seconds": 1.0}
        append_records(
            path,
            scores,
            **about,
            data={"data": "lab", "data_hash": "d"},
            trained={},
            prediction_hash=digest,
            asked_by={"commit": "c"},
        )

    append("a")
    append("a")
    with open(path, "a") as file:
        file.write('{"model": "torn by a ki')
    append("b")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["predictions"] for row in rows] == ["a", "b"]
    assert all(row["value"] == 100 and row["commit"] == "c" for row in rows)


def test_predictions_file_survives_a_kill_and_refuses_strangers(tmp_path):
    path = tmp_path / "p.jsonl"
    made = {"checkpoint": "abc", "questions": "q", "blind": False}
    whole = (
        json.dumps({"settings": made, "provenance": {}})
        + "\n"
        + json.dumps({"benchmark": "MMVP", "index": "1", "answer": "007"})
        + "\n"
    )
    path.write_bytes(whole.encode() + '{"benchmark": "MMVP", "index": "2", "answer": "é'.encode()[:-1])
    assert predictions.read_predictions(path, made) == {("MMVP", "1"): "007"}
    cut_torn_line(path)
    assert path.read_text() == whole
    with pytest.raises(InputError, match="another checkpoint"):
        predictions.read_predictions(path, made | {"checkpoint": "xyz"})
    path.write_text("no json\n")
    with pytest.raises(InputError, match="not a predictions file"):
        predictions.read_predictions(path)
    path.write_text('{"settings"')
    assert predictions.read_predictions(path, made) == {}


def test_answers_keep_their_text(tmp_path):
    path = tmp_path / "p.jsonl"
    answers = ["", "None", "NA", "007", "x" * 200_000, "a\nb\tc", "\u2028"]
    path.write_text(
        json.dumps({"settings": {}, "provenance": {}})
        + "\n"
        + "".join(
            json.dumps({"benchmark": "b", "index": str(n), "answer": a}, ensure_ascii=False) + "\n"
            for n, a in enumerate(answers)
        ),
        encoding="utf-8",
    )
    assert list(predictions.read_predictions(path).values()) == answers


def test_unknown_suite_is_named():
    with pytest.raises(InputError, match="there is vision-centric"):
        suites.suite("vision")


def test_real_linked_items(shared, tmp_path):
    folder = shared / "data" / "coco_images_224"
    with zipfile.ZipFile(folder / "images_free.zip") as packed:
        packed.extractall(tmp_path)
    found = linked_items(folder / "linked_items.jsonl", tmp_path)
    assert Counter(i.benchmark for i in found) == {"POPE": 72, "CV-Bench": 36}
    assert len({i.unit for i in of(found, "POPE")}) == 4, "72 questions about 4 photos"
    assert len({(i.benchmark, i.index) for i in found}) == 108


def test_linked_items_are_asked_by_protocol(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    rows = [
        {
            "bench": "POPE",
            "split": "random",
            "image": "a.jpg",
            "question": "Is there a dog?",
            "answer": "no",
            "question_id": 3,
        },
        {
            "bench": "CV-Bench",
            "split": "Count",
            "image": "a.jpg",
            "question": "How many dogs?",
            "A": "2",
            "B": "0",
            "answer": "B",
            "index": "9",
        },
        {"bench": "COCO_VAL", "image": "a.jpg"},
    ]
    file = tmp_path / "items.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    pope, count = linked_items(file, tmp_path)
    assert (pope.answer, count.answer, count.options) == ("no", "0", ("2", "0"))
    assert "(B) 0" in count.prompt and count.prompt.endswith("from the given choices directly.")
    rows[1]["answer"] = "Z"
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match="line 2: CV-Bench item lacks"):
        linked_items(file, tmp_path)


def test_light_commands_do_not_import_torch():
    for command in (["benchmarks.run", "--help"], ["dpa.recipes"], ["dpa.train", "--help"]):
        program = f"import sys, runpy; sys.argv = {command!r}\ntry: runpy.run_module({command[0]!r}, run_name='__main__')\nexcept SystemExit: pass\nassert 'torch' not in sys.modules, 'torch was imported'"
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
        assert result.returncode == 0, (command, result.stderr[-500:])
