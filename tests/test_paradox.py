"""The paradox: conflicts joined with records, correlations of known answer, pairs, what does not fit named."""

import json

import numpy as np
import pandas as pd
import pytest

from analysis import paradox
from analysis.paradox import cells, correlations, llm_name, pairs, plain_name, read_conflicts, read_records, verdict
from dpa.errors import InputError

BENCHMARKS = ("A", "B")


def record(llm="l1", captions="lab/plain", method="vanilla", seed=0, benchmark="A", value=50.0, **more):
    return {
        "model": "m",
        "llm": llm,
        "captions": captions,
        "method": method,
        "seed": seed,
        "mode": "seen",
        "benchmark": benchmark,
        "value": value,
    } | more


def written(tmp_path, rows, name="records.jsonl"):
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [tmp_path / name]


def conflict_file(tmp_path, rows, name="forecast.csv"):
    pd.DataFrame(
        rows, columns=["llm", "llm_hash", "captions", "bits_per_byte_saved", "visual_words", "visual_share"]
    ).to_csv(tmp_path / name, index=False)
    return [tmp_path / name]


STYLES = {"plain": (0.1, 20.0), "terse": (0.2, 15.0), "ornate": (0.8, 30.0)}


@pytest.fixture
def lab(tmp_path):
    """Two LLMs x three styles x two methods: under vanilla the score falls with the conflict, under dpa it does not."""
    conflicts, rows = [], []
    for n, llm in enumerate(("l1", "l2")):
        for style, (saved, rich) in STYLES.items():
            own = saved + 0.05 * n
            conflicts.append((llm, f"h{n}", f"captions_{style}", own, rich, 1 - own))
            for method, slope in (("vanilla", -40), ("dpa", 5)):
                for seed in (0, 1):
                    for b, benchmark in enumerate(BENCHMARKS):
                        value = 70 + slope * own + seed + 10 * b
                        rows.append(
                            record(f"path/{llm}/llm", f"lab/{style}", method, seed, benchmark, value, llm_hash=f"h{n}")
                        )
    return written(tmp_path, rows), conflict_file(tmp_path, conflicts)


def test_cells_are_means_over_benchmarks_and_seeds(lab):
    records, conflicts = lab
    table = cells(read_conflicts(conflicts), read_records(records))
    assert len(table) == 12 and set(table["llm"]) == {"l1", "l2"} and (table["seeds"] == 2).all()
    row = table[(table["llm"] == "l1") & (table["captions"] == "ornate") & (table["method"] == "vanilla")].iloc[0]
    assert row["score"] == pytest.approx(70 - 40 * 0.8 + 0.5 + 5) and row["score_spread"] == pytest.approx(
        np.std([0, 1], ddof=1)
    )
    assert row["A"] == pytest.approx(70 - 32 + 0.5) and row["bits_per_byte_saved"] == pytest.approx(0.8)


def test_correlations_and_pairs_of_a_constructed_paradox(lab):
    records, conflicts = lab
    table = cells(read_conflicts(conflicts), read_records(records))
    found = correlations(table).set_index(["method", "over"])
    assert found.loc[("vanilla", "all cells"), "rho"] == pytest.approx(-1)
    assert found.loc[("dpa", "within LLMs"), "rho"] == pytest.approx(1)
    assert (found["p"] < 0.2).all() and not found.isna().to_numpy().any()
    by_share = correlations(table, "visual_share").set_index(["method", "over"])
    assert by_share.loc[("vanilla", "all cells"), "rho"] == pytest.approx(1)
    gaps = pairs(table)
    assert len(gaps) == 12
    ornate = gaps[(gaps["method"] == "vanilla") & (gaps["richer"] == "ornate")]
    assert ornate["paradox"].all() and (ornate["score_gap"] < 0).all()
    assert verdict(gaps) == [
        "dpa: the richer corpus loses in 0 of 4 where it conflicts more, 2 of 2 where it does not",
        "vanilla: the richer corpus loses in 4 of 4 where it conflicts more, 0 of 2 where it does not",
    ]


def test_the_command_writes_what_it_says(lab, tmp_path, capsys):
    records, conflicts = lab
    out = tmp_path / "out"
    arguments = ["--conflict", str(conflicts[0]), "--records", str(records[0]), "--out", str(out)]
    assert paradox.main(arguments) == 0
    told = capsys.readouterr().out
    assert "rank correlation of bits_per_byte_saved" in told and "vanilla: the richer corpus loses in 4 of 4" in told
    for name in (
        "cells.csv",
        "cells.json",
        "correlation.csv",
        "pairs.csv",
        "paradox.png",
        "paradox.svg",
        "manifest.json",
    ):
        assert (out / name).stat().st_size
    assert paradox.main([*arguments, "--x", "nothing"]) == 2
    assert "--x nothing: no such number among" in capsys.readouterr().err
    assert paradox.main([*arguments, "--benchmarks", "C"]) == 2
    assert "no record of benchmark 'C'; there are A, B" in capsys.readouterr().err


def test_records_of_csv_and_what_is_no_record_of_ours(tmp_path):
    rows = [
        record(),
        record(mode="blind", value=1.0),
        {"model": "elsewhere", "benchmark": "A", "value": 3.0, "mode": "seen"},
        record(value=60.0),
    ]
    table = read_records(written(tmp_path, rows))
    assert table["value"].tolist() == [60.0], "the last record of a cell counts; blind ones and strangers do not"
    pd.DataFrame(
        [{"llm": "Vicuna", "captions": "b.json", "method": "vanilla", "benchmark": "CV", "value": 1.5}]
    ).to_csv(tmp_path / "r.csv", index=False)
    found = read_records([tmp_path / "r.csv"]).iloc[0]
    assert (found["llm"], found["captions"], found["seed"], found["llm_hash"]) == ("Vicuna", "b", 0, "")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (record(value=101.0), r"records.jsonl line 1: 'value' is 101.0"),
        (record(value="x"), r"line 1: 'value' is 'x'"),
        (record(method=None), r"line 1: 'method' is None; give llm, captions, method, benchmark and value"),
        (3, r"line 1: not a record"),
        ({"model": "m"}, r"holds no record of a model whose LLM and captions are known"),
    ],
)
def test_bad_records_are_one_line(row, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_records(written(tmp_path, [row]))


def test_what_does_not_meet_is_named(lab, tmp_path):
    records, conflicts = read_records(lab[0]), read_conflicts(lab[1])
    with pytest.raises(
        InputError, match=r"no record meets a conflict: records of .*; measure the same LLM and captions"
    ):
        cells(conflicts.assign(llm_hash="other", llm_key="other"), records)
    cut = records.drop(index=records.index[0])
    with pytest.raises(InputError, match="no record of A; a mean over other benchmarks does not compare"):
        cells(conflicts, cut)
    (tmp_path / "x.csv").write_text("llm,captions\na,b\n")
    with pytest.raises(InputError, match="no column 'bits_per_byte_saved'"):
        read_conflicts([tmp_path / "x.csv"])
    with pytest.raises(InputError, match="not a readable CSV"):
        read_conflicts([tmp_path / "none.csv"])


def test_sets_of_one_name_are_told_apart_by_what_they_hold(tmp_path):
    """By hash where both sides know it; by name where one does not; two sets of one name are refused, not mixed."""
    frame = pd.DataFrame(
        [("l", "h", "a/x", "c1", 0.1, 20.0), ("l", "h", "b/x", "c2", 0.9, 30.0)],
        columns=["llm", "llm_hash", "captions", "captions_hash", "bits_per_byte_saved", "visual_words"],
    )
    frame.to_csv(tmp_path / "f.csv", index=False)
    conflicts = read_conflicts([tmp_path / "f.csv"])
    assert conflicts["captions"].tolist() == ["a/x", "b/x"]
    rows = [record("p/l/llm", "x.json", llm_hash="h", captions_hash=f"c{n}", value=10.0 * n) for n in (1, 2)]
    table = cells(conflicts, read_records(written(tmp_path, rows)))
    assert sorted(zip(table["bits_per_byte_saved"], table["score"], strict=True)) == [(0.1, 10.0), (0.9, 20.0)]
    frame.assign(captions="x").to_csv(tmp_path / "f.csv", index=False)
    with pytest.raises(InputError, match="two caption sets or LLMs are called l x x; rename one"):
        read_conflicts([tmp_path / "f.csv"])


def test_one_llm_under_two_paths_is_one_cell(tmp_path):
    rows = [record(f"{path}/llm", seed=seed, llm_hash="h", value=50.0 + seed) for seed, path in enumerate("ab")]
    conflicts = conflict_file(tmp_path, [("z", "h", "plain", 0.1, 3.0, 0.9)])
    table = cells(read_conflicts(conflicts), read_records(written(tmp_path, rows)))
    assert table["seeds"].tolist() == [2] and table["score"].tolist() == [50.5]


def test_other_items_under_one_benchmark_are_refused(tmp_path):
    rows = [record(data_hash="a"), record(captions="lab/terse", data_hash="b")]
    with pytest.raises(InputError, match="A was asked with other items in some records"):
        read_records(written(tmp_path, rows))


def test_tables_of_both_kinds_are_read_together(tmp_path, capsys):
    """conflict.csv has no visual words: richness is then tokens a caption; nothing is empty; a mistyped one is refused."""
    files = conflict_file(tmp_path, [("l1", "", "2023", 0.1, 3.0, 0.9)])
    pd.DataFrame(
        [("l1", "h", "b", "p", 0.2, 7.0)],
        columns=["llm", "llm_hash", "captions", "proxy", "bits_per_byte_saved", "tokens"],
    ).to_csv(tmp_path / "conflict.csv", index=False)
    table = read_conflicts([*files, tmp_path / "conflict.csv"])
    assert table["captions"].tolist() == ["2023", "b"] and not table.isna().to_numpy().any()
    rows = [record(captions=c, benchmark=b) for c in ("2023", "b") for b in BENCHMARKS]
    out = ["--conflict", str(tmp_path / "conflict.csv"), "--records", str(written(tmp_path, rows)[0])]
    assert paradox.main(out) == 0 and "richness: tokens" in capsys.readouterr().out
    assert paradox.main([*out, "--richness", "wrods"]) == 2
    assert "--richness wrods: no such number among" in capsys.readouterr().err


def test_no_association_within_llms_is_seldom_found():
    """4 LLMs x 3 corpora of pure noise, LLMs apart: p below 5 % in about 5 % of draws, not in the 10 % of a naive test."""
    rng, hits, outside = np.random.default_rng(0), 0, 0
    for _ in range(300):
        llms = np.repeat(np.arange(4), 3)
        frame = pd.DataFrame(
            {"method": "m", "llm": llms, "x": rng.normal(size=12) + 5 * llms, "score": rng.normal(size=12) - 9 * llms}
        )
        row = correlations(frame, "x").iloc[1]
        hits += row["p"] < 0.05
        outside += not row["rho_low"] <= 0 <= row["rho_high"]
    assert hits / 300 < 0.085 and outside / 300 < 0.085


def test_too_few_cells_say_so(tmp_path):
    rows = [record(benchmark=b) for b in BENCHMARKS]
    conflicts = conflict_file(tmp_path, [("l1", "", "plain", 0.1, 3.0, 0.9)])
    found = correlations(cells(read_conflicts(conflicts), read_records(written(tmp_path, rows))))
    assert found["note"].str.contains("four rows").all() and (found["rho_low"] == -1).all() and (found["p"] == 1).all()


def test_names_meet():
    assert {plain_name(n) for n in ("lab/ornate", "captions_ornate", "ornate.json", "ornate")} == {"ornate"}
    assert plain_name("a/x.json") == "a/x" and plain_name("lab/a + lab/b") == "lab/a + lab/b"
    assert plain_name("hub:a/b") == "hub:a/b"
    assert (llm_name("runs/terse/llm"), llm_name("lab"), llm_name("Qwen/Q")) == ("terse", "lab", "Qwen/Q")
    assert llm_name("/x/dpa/lab/foundations/llm") == "lab"
