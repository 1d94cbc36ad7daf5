"""The paper's tables beside our records: what is compared, the noise, what disagrees, every format; and a browser."""

import csv
import io
import json
import math
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import audit, formats
from benchmarks.formats import Sheet
from benchmarks.measured import (
    Measured,
    comparison,
    mean_of,
    measured,
    published_noise,
    read_records,
    recipe_of,
    sampling_noise,
)
from benchmarks.noise import difference_noise
from benchmarks.published import AVERAGES, NAMES, read_claims, read_numbers, tables
from benchmarks.sheets import differences_sheet, lab_sheet, sheet, sources
from benchmarks.suites import BENCHMARKS
from benchmarks.tables import main
from dpa.errors import InputError
from dpa.lineage import file_hash
from dpa.recipes import QWEN, QWEN_BLIP, RECIPES
from tests.conftest import ROOT

NUMBERS, CLAIMS = read_numbers(), read_claims()
PAPER = tables(NUMBERS)
EIGHT = AVERAGES["Avg"]


def record(model=QWEN_BLIP, benchmark="MMVP", value=40.0, half=5.0, seed=0, **fields):
    return {
        "model": model,
        "seed": seed,
        "mode": "seen",
        "benchmark": benchmark,
        "value": value,
        "low": value - half,
        "high": value + half,
        "official_data": True,
        "scorer": "kit",
        "prompt_line": "stock",
        "limit": None,
        "time": "2026-01-01",
    } | fields


def written(path, records):
    path.write_text("".join(json.dumps(line) + "\n" for line in records))
    return str(path)


def printed(capsys, *arguments):
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


# ---- the paper alone


def test_table_1_as_printed(capsys):
    """Every row, in order, with its nine cells; the groups of an LLM and a caption set above their methods."""
    out = printed(capsys, "--table", "1", "--records").split("\n\n- ")[0]
    rows = [line.split() for line in out.splitlines() if re.match(r"  (Vanilla|CAL|DPA) ", line)]
    assert [row[1:] for row in rows] == [[cell.value for cell in row.cells.values()] for row in PAPER["1"]]
    assert [row[0] for row in rows] == [row.method for row in PAPER["1"]]
    heads = [line for line in out.splitlines() if re.fullmatch(r"\S+, \S+", line)]
    assert heads == [f"{row.llm}, {row.captions}" for row in PAPER["1"][::3]]


def test_table_1_is_quick_and_without_torch():
    """In seconds of CPU, which other processes do not stretch: little more than scipy takes to be imported."""

    def spent(source):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done

    scipy, _ = spent("import scipy.stats")
    taken, done = spent(
        "import sys; from benchmarks.tables import main; code = main(['--table', '1', '--records']); "
        "print(sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr); sys.exit(code)"
    )
    assert "Qwen2.5-7B-Instruct, BLIP-LCS" in done.stdout and "'benchmarks'" in done.stderr
    for package in ("torch", "transformers", "pandas", "matplotlib", "datasets"):
        assert f"'{package}'" not in done.stderr
    assert taken < 5 and taken < 2.5 * scipy + 0.5


@pytest.mark.parametrize("table", NAMES)
def test_every_table_shows_every_cell(table, capsys):
    for layout in ([], ["--long"]):
        out = printed(capsys, "--table", table, *layout, "--records")
        for row in PAPER[table]:
            assert row.method in out and all(
                re.search(rf"(?<![\d.]){re.escape(c.value)}(?![\d.])", out) for c in row.cells.values()
            )
    said = out if table.startswith("cal") else re.search(r"Not measured: (\d+) of \1 cells", out)
    assert said and ("No recipe here makes these rows" in out) == table.startswith("cal")


def test_what_to_run(capsys):
    out = " ".join(printed(capsys, "--table", "1", "--records").split())
    assert "python -m dpa.train --recipe qwen2.5-7b_blip-lcs_vanilla --stage all" in out
    assert "benchmarks.run --suite all --data DIR --model runs/qwen2.5-7b_blip-lcs_vanilla/instruct" in out
    lines = list(
        csv.DictReader(io.StringIO(printed(capsys, "--table", "9", "3", "cal-1", "--format", "csv", "--records")))
    )
    assert len(lines) == 8 + 16 + 28 and {line["table"] for line in lines} == {"9", "3", "cal-1"}
    for line in lines:
        assert (f"--recipe {line['recipe']} --stage all" in line["to run"]) == bool(line["recipe"])
        assert ("benchmarks.run" in line["to run"]) == (line["table"] == "3")


def test_published_differences():
    """By hand, one cell; and the counts of those above noise by a loop of its own."""
    for method in ("DPA", "CAL"):
        shown = differences_sheet(PAPER, method)
        assert len(shown.blocks) == 9 and len(shown.head) == 11
        beyond = []
        for (line,), vanilla in zip(shown.blocks, PAPER["1"][::3], strict=True):
            own = next(
                r for r in PAPER["1"] if (r.llm, r.captions, r.method) == (vanilla.llm, vanilla.captions, method)
            )
            for name, cell in zip(EIGHT, line[2:10], strict=True):
                a, c = own.score(name), vanilla.score(name)
                noise = difference_noise(a, c, BENCHMARKS[name].units)
                assert cell.startswith(f"{a - c:+z.1f} ±{noise:.1f}") and cell.endswith("*") == (abs(a - c) > noise)
                beyond.append(abs(a - c) > noise)
            noises = [difference_noise(own.score(n), vanilla.score(n), BENCHMARKS[n].units) for n in EIGHT]
            gap = own.score("Avg") - vanilla.score("Avg")
            assert line[10].startswith(f"{gap:+z.1f} ±{math.sqrt(sum(n * n for n in noises)) / 8:.1f}")
        assert f"{sum(beyond)} of 72 cells" in shown.notes[0] and 0 < sum(beyond) < 36


def test_the_paper_has_the_averages_of_its_cells():
    for row in PAPER["1"]:
        points = [float(row.cells[name].value) / (10 if name == "OCRBench" else 1) for name in EIGHT]
        assert abs(sum(points) / 8 - float(row.cells["Avg"].value)) < 0.06
        assert row.mean("Avg") == pytest.approx(sum(points) / 8)
        assert row.mean("General Avg") == pytest.approx(sum(points[:4]) / 4)
        assert row.mean("Vision Avg") == pytest.approx(sum(points[4:]) / 4)


# ---- what disagrees


def changed(**new):
    """The paper's tables with cells replaced: keys TABLE|RECIPE|COLUMN."""
    wanted = {tuple(key.split("|")): value for key, value in new.items()}
    numbers = [replace(n, value=wanted.pop((n.table, n.recipe, n.benchmark), n.value)) for n in NUMBERS]
    assert not wanted
    return tables(numbers)


def cells_as(table, recipe, other, own=None):
    """The cells of a row of one table in another's, as keys of `changed`."""
    row = audit.row_of(PAPER, other, own or recipe)
    return {f"{table}|{recipe}|{name}": row.cells[name].value for name in EIGHT}


def averages_as(table, recipe, other, own=None, names=("General Avg", "Vision Avg")):
    row = audit.row_of(PAPER, other, own or recipe)
    return {f"{table}|{recipe}|{name}": f"{row.mean(name):.2f}" for name in names}


def raised(table, recipe, by, names=EIGHT):
    row = audit.row_of(PAPER, table, recipe)
    return {f"{table}|{recipe}|{n}": f"{float(row.cells[n].value) + by:g}" for n in names}


def mended():
    """For each check, tables and claims in which what it finds is not so."""
    vanilla = f"{QWEN}_vanilla"
    above = {}
    for first, second in audit.against_vanilla(PAPER, "DPA"):
        for name in EIGHT:
            if second.score(name) < first.score(name):
                above[f"1|{second.recipe}|{name}"] = first.cells[name].value
    for row in PAPER["14"][1:4:2]:
        above |= raised("14", row.recipe, 10)
    odd = (
        {f"15|{QWEN_BLIP}|{n}": audit.row_of(PAPER, "1", QWEN_BLIP).cells[n].value for n in EIGHT}
        | {
            f"4|{r}|{n}": audit.row_of(PAPER, "2", r).cells[n].value
            for r in (vanilla, QWEN)
            for n in ("General Avg", "Vision Avg")
        }
        | {
            f"6|{QWEN_BLIP}|{n}": audit.row_of(PAPER, "7", QWEN_BLIP).cells[n].value
            for n in ("General Avg", "Vision Avg")
        }
        | {f"2|{QWEN}_pmo|Vision Avg": "46.0"}
    )
    to_blip = {vanilla: f"{QWEN_BLIP}_vanilla", QWEN: QWEN_BLIP}
    return {
        audit.data_scale: (
            changed(**{k: v for r in PAPER["4"] for k, v in averages_as("4", r.recipe, "14").items()}),
            CLAIMS,
        ),
        audit.mixed_average: (
            changed(**{"8|qwen2.5-7b_mixed_vanilla|Avg": "50.40", "8|qwen2.5-7b_mixed|Avg": "52.93"}),
            CLAIMS,
        ),
        audit.hours: (
            changed(**{"9|llama-3.1-8b_blip-lcs_vanilla|Overall": "7.37"}),
            CLAIMS | {"overhead": replace(CLAIMS["overhead"], value="14.9")},
        ),
        audit.proxy_alone: (changed(**raised("11", f"{QWEN_BLIP}_pmo", 5)), CLAIMS),
        audit.rank_row: (changed(**cells_as("15", QWEN_BLIP, "1")), CLAIMS),
        audit.said_and_printed: (
            changed(**{f"2|{QWEN}_pmo|Vision Avg": "46.0"}),
            CLAIMS | {"vision_14b_vanilla": replace(CLAIMS["vision_14b_vanilla"], value="46.4")},
        ),
        audit.ablation_captions: (
            changed(
                **{
                    k: v
                    for r, b in to_blip.items()
                    for k, v in (cells_as("10", r, "1", b) | averages_as("2", r, "1", b)).items()
                }
            ),
            CLAIMS,
        ),
        audit.no_error_bars: (changed(**{f"1|{QWEN}|MMVP": "40.7±1.1"}), CLAIMS),
        audit.losses: (changed(**above), CLAIMS),
        audit.repeated_cells: (changed(**odd), CLAIMS),
        audit.pairs_of_mmvp: (
            changed(**{"13|qwen2.5-32b_blip-lcs_vanilla|MMVP": "48.0", "13|qwen2.5-32b_blip-lcs|MMVP": "54.7"}),
            CLAIMS,
        ),
        audit.scored_by: (PAPER, CLAIMS | {"scorer_cv": replace(CLAIMS["scorer_cv"], value="VLMEvalKit")}),
    }


MENDED = mended()


@pytest.mark.parametrize("check", MENDED, ids=lambda check: check.__name__)
def test_a_disagreement_is_found_and_goes_when_the_numbers_are_mended(check):
    found, gone = check(PAPER, CLAIMS), check(*MENDED[check])
    assert found.holds and not gone.holds and found.says != gone.says


@pytest.mark.parametrize(
    ("check", "cell"), [(audit.table_1_averages, f"1|{QWEN}|Avg"), (audit.other_averages, f"7|{QWEN_BLIP}|Vision Avg")]
)
def test_averages_that_agree_do_not_when_one_is_changed(check, cell):
    assert not check(PAPER, CLAIMS).holds
    off = check(changed(**{cell: "47.0"}), CLAIMS)
    assert off.holds and off.says != check(PAPER, CLAIMS).says


def test_the_half_mended_is_still_found():
    """Each half of a disagreement that has two."""
    assert audit.hours(MENDED[audit.hours][0], CLAIMS).holds and audit.hours(PAPER, MENDED[audit.hours][1]).holds
    paper, claims = MENDED[audit.said_and_printed]
    assert audit.said_and_printed(paper, CLAIMS).holds and audit.said_and_printed(PAPER, claims).holds
    one = changed(**{"8|qwen2.5-7b_mixed|Avg": "52.93"})
    assert audit.mixed_average(one, CLAIMS).holds and "1 of 2" in audit.mixed_average(one, CLAIMS).says


def test_what_is_known_of_the_nine():
    """The figures that were worked out by hand from the paper stand in what the code says."""
    says = [check(PAPER, CLAIMS).says for check in audit.KNOWN]
    for text, figures in zip(
        says,
        (
            ("19 of the 20", "16 of 16"),
            ("51.52", "50.40", "54.34", "52.93"),
            ("7.37", "6.37", "14.9 %", "33 %", "+35 %"),
            ("49.7", "50.0", "49.9"),
            ("75.0 against 75.8", "350 against 345"),
            ("46.6", "46.4", "46.1", "46.0"),
            ("16 of 16", "BLIP-LCS"),
            ("150 pairs", "0.67"),
            ("5%", "10%", "CVBench-3D", "65.4 against 70.4"),
        ),
        strict=True,
    ):
        assert all(figure in text for figure in figures), text


def test_findings_are_notes_of_the_tables_they_touch(capsys):
    found = [check(PAPER, CLAIMS) for check in (*audit.KNOWN, *audit.FURTHER)]
    for table in map(str, range(1, 17)):
        out = " ".join(printed(capsys, "--table", table, "--records").split())
        for finding in found:
            assert (" ".join(finding.says.split()) in out) == (finding.holds and table in finding.tables)
    out = " ".join(printed(capsys, "--audit", "--records").split())
    assert "9 of 9" in out and all(" ".join(finding.says.split()) in out for finding in found)


# ---- records beside the paper


def test_only_whole_official_scores_with_the_picture_count():
    fine = record()
    for wrong in (
        {"official_data": False},
        {"official_data": "true"},
        {"limit": 10},
        {"mode": "blind"},
        {"mode": "shuffled"},
        {"decoding": "temperature 1, seed 0"},
        {"official_data": None},
        {"official_data": None, "items": 149},
        {"model": "some/folder"},
        {"model": "lab_ornate_dpa"},
        {"llm": "tiny", "captions": "captions.json", "method": "dpa"},
    ):
        assert measured([fine | wrong])[0] == {}, wrong
    unpublished = {"official_data": None, "items": 150, "units": 75, "decoding": "greedy"}
    assert set(measured([fine | unpublished])[0]) == {(QWEN_BLIP, "MMVP")}, "no MD5 to compare, but all of its items"
    without = {key: value for key, value in fine.items() if key != "official_data"}
    assert measured([without])[0] == {} and set(measured([fine])[0]) == {(QWEN_BLIP, "MMVP")}


def test_whose_score_a_record_is():
    vanilla = f"{QWEN_BLIP}_vanilla"
    hub = RECIPES[vanilla].llm
    for model in (
        vanilla,
        f"runs/{vanilla}/instruct",
        f"/data/runs/{vanilla}-seed12/instruct",
        f"runs/{vanilla}/instruct/",
    ):
        assert recipe_of({"model": model}) == vanilla
        assert recipe_of({"model": model, "llm": f"/models/{hub.split('/')[1]}"}) == vanilla
        assert recipe_of({"model": model, "llm": "/models/Qwen2.5-0.5B"}) == ""
    assert recipe_of({"model": f"runs/{vanilla}/connector"}) == "" == recipe_of({"model": "runs/mine/instruct"})
    labels = {"llm": hub, "captions": RECIPES[vanilla].captions[0], "method": "vanilla"}
    assert recipe_of({"model": "elsewhere", **labels}) == vanilla
    assert recipe_of({"model": "elsewhere", **labels, "method": "sft"}) == ""
    assert recipe_of({"model": "lab_ornate", "llm": "/tmp/x/llm"}) == "lab_ornate"


def test_seeds_are_averaged_and_their_spread_is_apart_from_item_noise():
    runs, _ = measured([record(value=v, half=h, seed=s) for s, (v, h) in enumerate([(36, 7), (42, 8), (45, 6)])])
    own = runs[QWEN_BLIP, "MMVP"]
    assert (own.value, own.low, own.high) == pytest.approx((41, 34, 48))
    assert own.spread == pytest.approx(4.5825756949558)  # of 36, 42, 45
    assert measured([record()])[0][QWEN_BLIP, "MMVP"].spread is None


def test_the_newest_score_of_one_way_counts():
    lines = [
        record(value=30.0, time="2026-01-02"),
        record(value=20.0, time="2026-01-01"),
        record(value=50.0, seed=1, scorer="other", time="2026-01-01"),
    ]
    found, remarks = measured(lines)
    assert found[QWEN_BLIP, "MMVP"].runs == {0: (30.0, 25.0, 35.0)}
    assert len(remarks) == 1 and "scorer 'kit'" in remarks[0] and "1 other way" in remarks[0]
    found, remarks = measured([*lines[:2], record(value=33.0, time="2026-01-03", prompt_line="mine")])
    assert found[QWEN_BLIP, "MMVP"].value == 33 and "prompt line 'mine'" in remarks[0]
    again = [record(value=30.0), record(value=31.0, scorer="b"), record(value=32.0)]  # one set of answers, scored anew
    assert measured(again)[0][QWEN_BLIP, "MMVP"].value == 32
    assert measured(again[:2])[0][QWEN_BLIP, "MMVP"].value == 31


def test_averages_of_measured_cells():
    values = dict(zip(EIGHT, (70, 30, 34, 72, 60, 66, 40, 20), strict=True))
    lines = [record(benchmark=name, value=float(v), half=h) for h, (name, v) in enumerate(values.items(), 1)]
    found, _ = measured(lines)
    own = found[QWEN_BLIP, "Avg"]
    assert own.value == pytest.approx(49) and own.high - own.value == pytest.approx(math.sqrt(204) / 8)
    assert found[QWEN_BLIP, "General Avg"].value == pytest.approx(51.5)
    assert found[QWEN_BLIP, "Vision Avg"].value == pytest.approx(46.5)
    found, _ = measured(lines[:-1])
    assert (QWEN_BLIP, "Avg") not in found and (QWEN_BLIP, "Vision Avg") not in found
    assert (QWEN_BLIP, "General Avg") in found
    found, _ = measured([*lines, record(benchmark="MMVP", value=90.0, seed=1)])
    assert found[QWEN_BLIP, "Avg"].value == pytest.approx(49)  # only seeds that all benchmarks have


def test_noise_by_hand():
    row = audit.row_of(PAPER, "1", QWEN_BLIP)
    found = {(QWEN_BLIP, "MMVP"): Measured({0: (30.0, 23.0, 39.0)})}
    beside = comparison(row, row.cells["MMVP"], found)
    p = 0.387
    alone = 1.96 * 100 * math.sqrt(p * (1 - p) / 150)
    assert beside.difference == pytest.approx(30 - 38.7)
    assert published_noise(row, "MMVP") == pytest.approx(alone, rel=0.03)
    assert beside.noise == pytest.approx(
        math.hypot(9, alone), rel=0.03
    )  # the interval's side that looks at the printed one
    assert beside.within_noise
    found = {(QWEN_BLIP, "MMVP"): Measured({0: (60.0, 51.0, 64.0)})}
    beside = comparison(row, row.cells["MMVP"], found)
    assert beside.noise == pytest.approx(math.hypot(9, alone), rel=0.03) and not beside.within_noise
    assert comparison(row, row.cells["AI2D"], found) is None
    whole = math.sqrt(sum(published_noise(row, name) ** 2 for name in EIGHT)) / 8
    assert published_noise(row, "Avg") == pytest.approx(whole)
    short = audit.row_of(PAPER, "6", QWEN_BLIP)  # averages alone
    vision = [sampling_noise(45.7, BENCHMARKS[name].units) for name in AVERAGES["Vision Avg"]]
    assert published_noise(short, "Vision Avg") == pytest.approx(math.sqrt(sum(x * x for x in vision)) / 4)


def test_measured_lines_in_the_units_of_the_table(tmp_path, capsys):
    """OCRBench out of 1000 and Table 8's fractions; a whole row gets its averages."""
    name = "qwen2.5-7b_mixed"
    lines = [record(f"runs/{name}/instruct", b, value=39.4 if b == "OCRBench" else 50.0, half=2.0) for b in EIGHT]
    path = written(tmp_path / "records.jsonl", [*lines, record("lab_ornate", value=93.0)])
    found = sources(read_records([tmp_path / "records.jsonl"]))
    (_, (row, own, interval, difference, verdict)) = sheet("8", found).blocks
    assert row[:3] == ("DPA", "0.755", "394") and own[:4] == ("  measured", "0.500", "394", "50.000")
    assert interval[1:3] == ("0.480-0.520", "374-414") and difference[1:3] == ("-0.255", "+0")
    assert verdict[1:3] == ("no", "yes") and own[-1] == "48.67" and verdict[-1] == "no"
    out = printed(capsys, "--table", "8", "--records", path)
    assert "Not measured: 9 of 18 cells" in out and "training seeds are not in it" in " ".join(out.split())
    assert "93.0" not in out
    lines = list(csv.DictReader(io.StringIO(printed(capsys, "--table", "8", "--format", "csv", "--records", path))))
    assert [line["to run"] == "" for line in lines] == [False] * 9 + [True] * 9
    ocr = lines[10]
    assert (ocr["measured"], ocr["low"], ocr["high"], ocr["difference"], ocr["within noise?"]) == (
        "394",
        "374",
        "414",
        "+0",
        "yes",
    )
    out = printed(capsys, "--table", "8", "--long", "--records", path)
    assert re.search(r"DPA +OCRBench +394 +394 +374 +414 +\+0 +\d+ +yes", out)


def test_seeds_are_shown(tmp_path, capsys):
    path = written(
        tmp_path / "r.jsonl",
        [record(f"runs/{QWEN_BLIP}{s}/instruct", value=40.0 + i, seed=i) for i, s in enumerate(("", "-seed1"))],
    )
    out = printed(capsys, "--table", "11", "--records", path)
    assert "measured, 2 seeds" in out and "spread of seeds" in out and "±0.7" in out
    assert out.count("measured, 2 seeds") == 1  # the row of this recipe alone


def test_records_of_other_benchmarks_and_tables_of_others_do_not_meet(tmp_path, capsys):
    path = written(tmp_path / "r.jsonl", [record(benchmark="MMStar"), record(benchmark="POPE")])
    assert "measured," not in printed(capsys, "--table", "1", "cal-1", "9", "--records", path)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_a_mean_over_benchmarks(scores):
    parts = [Measured({0: tuple(sorted(score)[i] for i in (1, 0, 2))}) for score in scores]
    own = mean_of(parts)
    assert own.value == pytest.approx(sum(part.value for part in parts) / len(parts))
    widest = max(part.high - part.value for part in parts)
    assert -1e-9 <= own.high - own.value <= widest + 1e-9 and own.low <= own.value + 1e-9
    assert mean_of([parts[0]]).runs[0] == pytest.approx(parts[0].runs[0])


@given(st.floats(0, 100), st.integers(0, 26), st.sampled_from(EIGHT), st.floats(0, 20))
@settings(max_examples=100, deadline=None)
def test_noise_is_never_less_than_that_of_the_printed_score(value, at, name, half):
    row = PAPER["1"][at]
    found = {(row.recipe, name): Measured({0: (value, value - half, value + half)})}
    beside = comparison(row, row.cells[name], found)
    assert beside.noise >= max(half, published_noise(row, name)) - 1e-9
    assert beside.difference == pytest.approx(value - row.score(name))
    assert beside.within_noise == (abs(beside.difference) <= beside.noise)


# ---- the lab


def lab(seed, benchmark, value, **fields):
    return record("lab_ornate_vanilla", benchmark, value, seed=seed, data="lab", official_data=False, **fields)


def test_the_lab_in_table_1s_layout(tmp_path, capsys):
    lines = [lab(seed, name, value + seed) for seed in (0, 2) for name, value in (("MMVP", 50.0), ("OCRBench", 30.0))]
    lines += [
        lab(0, "MMVP", 10.0, mode="blind"),
        lab(0, "MMVP", 11.0, time="2025-12-31"),
        lab(1, "MMVP", 90.0, limit=5),
    ]
    lines += [record(value=77.0), record("runs/x/instruct", value=78.0, data="lab"), record(value=76.0, data="lab")]
    shown = lab_sheet(lines)
    assert shown.head == ("llm", "captions", "method", "seed", "OCRBench", "MMVP", "Avg")
    ((first, second, mean),) = shown.blocks
    assert first == ("lab", "lab/ornate", "vanilla", "0", "30.0 [25.0, 35.0]", "50.0 [45.0, 55.0]", "40.0 [36.5, 43.5]")
    assert second[3:5] == ("2", "32.0 [27.0, 37.0]")
    assert mean[3] == "mean" and mean[4] == "31.0 [18.3, 43.7]"  # t of two seeds
    assert "1 older" in " ".join(shown.notes) and "Not measured: MMBench" in " ".join(shown.notes)
    out = printed(capsys, "--table", "1", "--lab", "--records", written(tmp_path / "r.jsonl", lines))
    assert (
        "lab, lab/ornate, vanilla" in out
        and "77.0" not in out
        and "78.0" not in out
        and "76.0" not in out
        and "74.5" not in out
    )
    with pytest.raises(InputError, match="no record of the lab"):
        lab_sheet([record()])


# ---- input that is not as it should be


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--table", "17"], "no table '17'"),
        (["--table", "1", "--records", "gone.jsonl"], "gone.jsonl: no such file"),
        ([], "nothing asked for"),
        (["--lab", "--table", "2"], "--lab prints Table 1's layout alone"),
        (["--lab", "--records"], "no record of the lab"),
    ],
)
def test_a_wrong_command_is_told_in_one_line(arguments, said, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: no JSON"),
        ("[]", "line 2: no record"),
        ('{"model": "x"}', "'seed' is missing or wrong"),
        (json.dumps({**record(), "value": "40"}), "'value' is missing or wrong"),
        (json.dumps({**record(), "seed": True}), "'seed' is missing or wrong"),
        (json.dumps({**record(), "value": 140.0, "high": 145.0}), "should stand from 0 to 100"),
        (json.dumps({**record(), "low": 46.0}), "should stand from 0 to 100"),
        (json.dumps({**record(), "value": float("nan")}), "should stand from 0 to 100"),
    ],
)
def test_a_line_that_is_no_record_is_named(line, said, tmp_path, capsys):
    path = tmp_path / "records.jsonl"
    path.write_text(f"{json.dumps(record())}\n{line}\n")
    assert main(["--table", "1", "--records", str(path)]) == 2
    error = capsys.readouterr().err
    assert f"{path}, line 2" in error and said in error and error.count("\n") == 1


def test_a_line_that_a_kill_left_unfinished_is_left_out(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(record()) + "\n" + json.dumps(record(seed=1))[:40])
    assert len(read_records([path])) == 1
    path.write_bytes(b"\xff\n")
    with pytest.raises(InputError, match="no UTF-8 text"):
        read_records([path])


# ---- formats


HOSTILE = "a & b % $ # _ { } ~ ^ \\ < > | * \" ' ± -1"


def small(cell, note=""):
    return Sheet("s", cell, 1, ("method", "x"), (((cell, "1.0"),),), (note or cell,))


class Cells(HTMLParser):
    """Texts of a page's table cells and list items, and every attribute."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.attributes, self.tags, self.inside = [], [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag in ("td", "li", "h2"):
            self.texts.append("")
            self.inside = True

    def handle_endtag(self, tag):
        if tag in ("td", "li", "h2"):
            self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.texts[-1] += data


@given(
    st.one_of(
        st.just(HOSTILE),
        st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=30).map(lambda t: t.replace("`", "")),
    )
)
@settings(max_examples=150, deadline=None)
def test_nothing_in_a_cell_acts(text):
    page = Cells(formats.as_html([([small(text)], None)]))
    assert page.texts == [text, text, "1.0", text]
    plain = formats.latex(text)
    for known in sorted(formats.LATEX.values(), key=len, reverse=True):
        plain = plain.replace(known, "")
    plain = plain.removeprefix("$-$")
    assert not set(plain) & set("\\&%$#_{}~^<>")
    assert list(csv.reader(io.StringIO(formats.as_csv([small(text)]))))[1] == [text, "1.0"]
    row = formats.as_markdown(small(text)).splitlines()[4]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3 and not re.search(r"(?<!\\)\*", row)


@pytest.mark.parametrize("table", ["1", "8", "cal-2"])
def test_latex_has_as_many_cells_as_columns(table, capsys):
    text = printed(capsys, "--table", table, "--format", "latex", "--records")
    for block in re.findall(r"\\begin\{tabular\}\{(.+?)\}\n(.*?)\\end\{tabular\}", text, re.S):
        columns, body = block
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert rows and all(len(re.split(r"(?<!\\)&", row)) == len(columns) for row in rows)
        assert [body.count(rule) for rule in (r"\toprule", r"\bottomrule")] == [1, 1] and r"\hline" not in body
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == (3 if table == "1" else 1)
    if table == "1":
        assert text.split(r"\end{tabular}")[0].count(r"\midrule") == 1 + 8  # a rule between the nine groups


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex with booktabs")
def test_latex_compiles(tmp_path):
    assert main(["--table", "1", "8", "9", "--records", "--out", str(tmp_path)]) == 0
    inputs = "".join(f"\\input{{{name}}}\\clearpage" for name in ("table_1", "table_8", "table_9"))
    (tmp_path / "all.tex").write_text(
        f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}{inputs}\\end{{document}}"
    )
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    if "booktabs.sty' not found" in done.stdout:
        pytest.skip("needs booktabs")
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_kept_copy_is_what_the_numbers_give(tmp_path):
    """results/tables/, made anew from the published numbers and the records that its manifest names."""
    kept = ROOT / "results" / "tables"
    manifest = json.loads((kept / "manifest.json").read_text())
    assert manifest["inputs"] == {
        f"published/{n}": file_hash(ROOT / "results" / "published" / n) for n in ("numbers.csv", "claims.csv")
    }
    assert manifest["records"] == {file: file_hash(ROOT / file) for file in manifest["records"]}
    records = [str(ROOT / file) for file in manifest["records"]]
    assert main(["--table", *manifest["tables"], "--out", str(tmp_path), "--records", *records]) == 0
    names = {path.name for path in kept.iterdir()}
    assert names == {path.name for path in tmp_path.iterdir()} and len(names) == 3 * 20 + 2 + 2
    for name in names - {"manifest.json"}:
        assert (kept / name).read_text() == (tmp_path / name).read_text(), (
            f"{name} is stale: python -m benchmarks.tables --table all --out results/tables"
        )
    page = Cells((kept / "tables.html").read_text())
    assert not any(key in ("src", "href", "srcset", "action") for key, _ in page.attributes)
    assert not re.search(r"https?://|@import|url\(", formats.STYLE + formats.SCRIPT)
    assert page.tags.count("section") == 20 and len({n.place for n in NUMBERS} & set(page.texts)) == 699


def test_a_full_disk_leaves_the_old_files(tmp_path, monkeypatch, capsys):
    assert main(["--table", "9", "--records", "--out", str(tmp_path)]) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device", "table_9.md")

    monkeypatch.setattr("os.replace", full)
    assert main(["--table", "9", "--records", "--out", str(tmp_path)]) == 2
    assert "No space left" in capsys.readouterr().err
    assert all((tmp_path / name).read_bytes() == text for name, text in before.items())


def test_in_a_browser(tmp_path):
    """A head sorts by number, up, down and back, rows keep what was measured below; one table can be chosen; by keyboard too."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, of the dev extra")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver on PATH")
    path = written(tmp_path / "r.jsonl", [record(f"runs/{QWEN_BLIP}/instruct", "OCRBench", 40.0)])
    assert main(["--table", "1", "8", "14", "--records", path, "--out", str(tmp_path / "out")]) == 0
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        browser.get((tmp_path / "out" / "tables.html").as_uri())
        table = browser.find_element(By.CSS_SELECTOR, "#table_1 table")
        heads = table.find_elements(By.CSS_SELECTOR, "th")
        at = [head.text.split()[0] for head in heads].index("OCRBench")

        def column():
            return browser.execute_script(
                "return [...arguments[0].tBodies].map(b => b.rows[0].cells[arguments[1]].textContent)", table, at
            )

        first = column()
        assert first == [row.cells["OCRBench"].value for row in PAPER["1"]]
        heads[at].find_element(By.TAG_NAME, "button").click()
        assert [float(x) for x in column()] == sorted(map(float, first)) and heads[at].get_attribute(
            "aria-sort"
        ) == "ascending"
        browser.switch_to.active_element.send_keys(Keys.ENTER)
        assert [float(x) for x in column()] == sorted(map(float, first), reverse=True)
        assert heads[at].get_attribute("aria-sort") == "descending" and heads[0].get_attribute("aria-sort") == "none"
        below = browser.execute_script(
            "return [...arguments[0].tBodies].filter(b => b.rows.length > 1).map(b => b.innerText)", table
        )
        assert len(below) == 1 and "345" in below[0] and "400" in below[0] and "BLIP-LCS" in below[0]
        browser.switch_to.active_element.send_keys(Keys.SPACE)
        assert column() == first
        long = browser.find_element(By.CSS_SELECTOR, "#table_1 details table")  # cells that are empty stay last
        browser.execute_script("arguments[0].closest('details').open = true", long)
        names = [head.text.split(" ")[0] for head in long.find_elements(By.TAG_NAME, "th")]
        button = long.find_elements(By.CSS_SELECTOR, "th button")[names.index("measured")]
        for _ in range(2):
            browser.execute_script("arguments[0].click()", button)
            text = browser.execute_script(
                "return arguments[0].tBodies[0].rows[0].cells[arguments[1]].textContent", long, names.index("measured")
            )
            assert text == "400"
        table = browser.find_element(By.CSS_SELECTOR, "#table_14 table")  # 27 before 158: by number
        at = [head.text.split()[0] for head in table.find_elements(By.TAG_NAME, "th")].index("OCRBench")
        browser.execute_script("arguments[0].click()", table.find_elements(By.CSS_SELECTOR, "th button")[at])
        assert [float(x) for x in column()] == sorted(float(row.cells["OCRBench"].value) for row in PAPER["14"])
        Select(browser.find_element(By.TAG_NAME, "select")).select_by_value("table_8")
        assert [s.is_displayed() for s in browser.find_elements(By.TAG_NAME, "section")] == [False, True, False]
        assert browser.get_log("browser") == []
        backs = []
        for scheme in ("light", "dark"):
            browser.execute_cdp_cmd(
                "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            )
            backs.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
        assert backs[0] != backs[1]
    finally:
        browser.quit()
