"""The published numbers as data: every cell of the transcript with its value, place, unit and recipe."""

import csv
import json
import re
import shutil

import pytest

from benchmarks.published import (
    FOLDER,
    NAMES,
    OTHERS,
    Number,
    main,
    numbers_of,
    read_claims,
    read_numbers,
    tables,
)
from dpa.errors import InputError
from dpa.lineage import file_hash
from dpa.methods import METHODS
from dpa.recipes import RECIPES as ALL
from dpa.recipes import TABLES


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "published")
    return tmp_path / "published"


def test_all_numbers_of_the_transcript_are_there_in_order(shared):
    with open(shared / "paper" / "published_numbers.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    numbers = read_numbers()
    assert len(lines) == len(numbers) == 699
    for line, number in zip(lines, numbers, strict=True):
        assert number.value + ("h" if line["score"].endswith("h") else "") == line["score"], number.place
        assert number.llm == line["model"]
        assert line["pretrain_data"].startswith(number.captions) and line["method"].startswith(number.method)
        assert line["benchmark"].removeprefix("time ").startswith(number.benchmark.split(" (")[0])
        label = OTHERS[number.table][0] if number.table in OTHERS else f"Table{number.table}"
        assert line["table"] == label
        dropped = re.findall(r"\((.*)\)$", line["pretrain_data"])
        assert all(text in number.remark for text in dropped)  # nothing that was said of a row is lost


def test_the_command_writes_what_is_there_and_names_what_differs(shared, folder, capsys):
    source = shared / "paper" / "published_numbers.csv"
    before = (folder / "numbers.csv").read_bytes()
    assert main(["--source", str(source), "--write", "--folder", str(folder)]) == 0
    assert (folder / "numbers.csv").read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "claims.csv", "manifest.json", "numbers.csv"]
    assert json.loads((folder / "manifest.json").read_text())["source"] == {source.name: file_hash(source)}
    assert "699 numbers of 20 tables" in capsys.readouterr().out
    text = before.decode()
    (folder / "numbers.csv").write_text(text.replace(",MMVP,40.0,", ",MMVP,41.3,", 1))
    assert main(["--source", str(source), "--folder", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "Table 1, row 1, column 7" in said and "value '40.0'" in said and said.count("\n") == 1
    (folder / "numbers.csv").write_text(text.rsplit("\n", 2)[0] + "\n")
    assert main(["--source", str(source), "--folder", str(folder)]) == 2
    assert "698 numbers, should be 699" in capsys.readouterr().err


def test_the_manifest_is_of_these_files():
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    assert manifest["files"] == {name: file_hash(FOLDER / name) for name in ("numbers.csv", "claims.csv")}
    assert "benchmarks.published" in manifest["command"]


def test_tables_and_places():
    numbers = read_numbers()
    found = tables(numbers)
    assert tuple(found) == NAMES and {name: len(rows) for name, rows in found.items() if name in ("1", "9", "14")} == {
        "1": 27,
        "9": 2,
        "14": 10,
    }
    assert len({number.place for number in numbers}) == 699
    for table, rows in found.items():
        for at, row in enumerate(rows, 1):
            for column, cell in enumerate(row.cells.values(), 1):
                assert cell.place.endswith(f", row {at}, column {column}")
                assert not table.isdigit() or f"Table {table}," in cell.place


def test_rows_belong_to_recipes_that_do_what_the_row_says():
    """Where the label names LLM, captions and method, the recipe has just these."""
    switches = {
        "Vanilla": "vanilla",
        "CAL": "cal",
        "PMO": "pmo",
        "+ PMO": "pmo",
        "+ CMO": "cmo",
        "PMO + CAL": "pmo+cal",
        "PMO + CMO": "dpa",
        "DPA": "dpa",
        "DPA w/o PMO": "cmo",
        "DPA w/o CMO": "pmo",
    }
    captions = {"BLIP-LCS": "blip_laion", "ShareGPT4V-PT": "share-captioner", "PixMo-Cap": "pixmo_cap"}
    checked = 0
    for table, rows in tables(read_numbers()).items():
        if table in TABLES:
            assert sorted(row.recipe for row in rows) == sorted(TABLES[table])
            assert tuple(row.recipe for row in rows) == TABLES[table]
        for row in rows:
            if not row.recipe:
                assert table.startswith("cal-")
                continue
            recipe = ALL[row.recipe]
            assert recipe.llm.split("/")[-1].lower().startswith(row.llm.lower())
            if row.captions in captions:
                assert len(recipe.captions) == 1 and recipe.captions[0].startswith(captions[row.captions])
            if percent := re.search(r"(\d+)%", row.captions):
                assert recipe.fraction == int(percent[1]) / 100
            if row.method in switches:
                assert {"proxy": recipe.proxy, "weighting": recipe.weighting} == METHODS[switches[row.method]], row
                checked += 1
    assert checked > 70


def test_scores_stand_from_0_to_100():
    numbers = {(n.table, n.recipe, n.benchmark): n for n in read_numbers()}
    vanilla = "qwen2.5-7b_blip-lcs_vanilla"
    assert numbers["1", vanilla, "OCRBench"].score == pytest.approx(34.1)
    assert numbers["1", vanilla, "OCRBench"].rounding == 0 and numbers["1", vanilla, "MMVP"].rounding == 0.05
    assert numbers["8", "qwen2.5-7b_mixed", "MMVP"].score == pytest.approx(45.3)
    assert numbers["8", "qwen2.5-7b_mixed", "MMVP"].rounding == pytest.approx(0.05)
    assert numbers["8", "qwen2.5-7b_mixed", "DocVQA"].score == pytest.approx(37.229)
    assert numbers["9", "llama-3.1-8b_blip-lcs", "Overall"].score is None
    assert all(n.score is None or 0 <= n.score <= 100 for n in numbers.values())
    assert {n.unit for n in numbers.values()} <= {"/1", "/100", "/1000", "h", "CIDEr"}
    error_bar = Number("1", "", "", "", "MMVP", "40.0±1.3", "/100", "", "", "")
    assert error_bar.score == 40 and error_bar.digits == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda text: text.replace("recipe,", "recipes,", 1), "line 2: should have the columns"),
        (lambda text: text.replace(",74.5,", ",many,", 1), "line 2: no number with a unit: 'many'"),
        (lambda text: text.replace(",74.5,/100", ",74.5,/99", 1), "line 2: no number with a unit"),
        (lambda text: text + "1,2\n", "line 701: should have the columns"),
    ],
)
def test_a_broken_file_is_named(folder, changed, said):
    path = folder / "numbers.csv"
    path.write_text(changed(path.read_text()))
    with pytest.raises(InputError, match=said):
        read_numbers(folder)


def test_a_missing_file_and_an_unknown_table_are_named(tmp_path):
    with pytest.raises(InputError, match=r"numbers\.csv: not there"):
        read_numbers(tmp_path)
    source = tmp_path / "numbers.csv"
    source.write_text("table,model,pretrain_data,method,benchmark,score,source\nTable99,a,b,c,MMVP,1,d\n")
    with pytest.raises(InputError, match="table 'Table99'"):
        numbers_of(source)


def test_claims_have_places():
    claims = read_claims()
    assert set(claims) == {"vision_14b_vanilla", "overhead", "ablation_captions", "scorer", "scorer_cv"}
    assert all(claim.place and claim.says for claim in claims.values())
