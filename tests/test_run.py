"""The command from checkpoint to table: official sets through the kit, baselines, limits, refusals, and what it records."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import run, vlmevalkit
from benchmarks.asked import Part, official_parts
from benchmarks.lab import lab_items
from benchmarks.predictions import read_predictions
from benchmarks.suites import SUITES
from dpa.errors import InputError
from tests import made_up
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def kit() -> vlmevalkit.Kit:
    try:
        return vlmevalkit.find(Path(found) if (found := os.environ.get("DPA_KIT_PYTHON")) else None)
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    """All eight benchmarks, made up, in one folder."""
    folder = tmp_path_factory.mktemp("sets")
    made_up.mmbench(folder)
    made_up.choices(folder, "AI2D_TEST")
    made_up.docvqa(folder)
    made_up.ocrbench(folder)
    made_up.naturalbench(folder)
    made_up.mmvp(folder / "MMVP")
    for kind in ("2D", "3D"):
        made_up.cvbench_table(folder, kind)
    return folder


@pytest.fixture(scope="module")
def checkpoint(finished) -> Path:
    return finished / "small" / "instruct"


def command(kit, checkpoint, sets, output, *more):
    own = ["--vlmevalkit-python", str(kit.python), "--output", str(output), "--max-new-tokens", "4"]
    return ["--model", str(checkpoint), "--data", str(sets), "--made-up", *own, *more]


def parts_of(names, kit, sets, cache) -> list[Part]:
    told = {"prompt_line": "stock", "max_new_tokens": None, "limit": None, "made_up": True, "corrected_labels": False}
    return official_parts(names, sets, cache, find_kit=lambda: kit, **told)


@pytest.fixture(scope="module")
def whole(kit, checkpoint, sets, tmp_path_factory) -> Path:
    """The output folder of a run of all suites with every baseline."""
    output = tmp_path_factory.mktemp("whole")
    baselines = ["--blind", "--blank", "--shuffled"]
    assert run.main(command(kit, checkpoint, sets, output, "--suite", "all", *baselines)) == 0
    return output


def records(output) -> list[dict]:
    return [json.loads(line) for line in (output / "records.jsonl").read_text().splitlines()]


def test_all_suites_and_baselines_are_asked_scored_and_recorded(whole, kit):
    found = records(whole)
    asked = {(row["benchmark"], row["mode"]) for row in found}
    assert asked == {(name, mode) for name in SUITES["all"] for mode in ("seen", "blind", "blank", "shuffled")}
    for row in found:
        assert row["official_data"] is (None if row["benchmark"] == "MMVP" else False), (
            "no MD5 of Questions.csv is published"
        )
        assert len(row["data_md5"]) == 32 and row["prompt_line"] == "stock"
        by_kit = row["benchmark"] not in ("MMVP", "CVBench-2D", "CVBench-3D")
        assert row["scorer"] == (f"vlmevalkit {kit.version}" if by_kit else "cambrian")
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 100
        assert (row["engine"], row["decoding"], row["max_new_tokens"]) == ("transformers", "greedy", 4)
    photos = [row for row in found if row["benchmark"] == "CVBench-3D"]
    assert {(row["units"], row["items"]) for row in photos} == {(3, 6)}, "two items a photo"
    second = [row for row in found if row["benchmark"] == "CVBench-2D"]
    assert all(f"VLMEvalKit {kit.version}" in row["detail"] for row in second), "the kit's own beside Cambrian's"


def test_a_second_run_asks_nothing_and_records_nothing_new(whole, kit, checkpoint, sets, capsys, monkeypatch):
    before = (whole / "records.jsonl").read_text()
    monkeypatch.setattr("benchmarks.predict.load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert run.main(command(kit, checkpoint, sets, whole, "--suite", "all")) == 0
    assert (whole / "records.jsonl").read_text() == before
    out = capsys.readouterr().out
    assert "OCRBench (/1000)" in out and "not the official file" in out


def test_perfect_answers_earn_everything_and_empty_ones_nothing(kit, sets, tmp_path):
    parts = parts_of(SUITES["all"], kit, sets, tmp_path)
    for part in parts:
        perfect = {(i.benchmark, i.index): right(part, i) for i in part.items}
        (found,) = part.scores(perfect)
        assert found.value == pytest.approx(100) and found.unparsed == 0, part.name
        (found,) = part.scores(dict.fromkeys(perfect, ""))
        assert found.value == 0, part.name


def test_a_rotation_missed_costs_the_question_and_one_answer(kit, sets, tmp_path):
    (part,) = parts_of(("MMBench",), kit, sets, tmp_path)
    answers = {(i.benchmark, i.index): right(part, i) for i in part.items}
    answers["MMBench", part.items[-1].index] = ""
    (found,) = part.scores(answers)
    questions, rows = len({i.unit for i in part.items}), len(part.items)
    assert found.value == pytest.approx(100 * (questions - 1) / questions)
    assert found.detail["single accuracy"] == pytest.approx(100 * (rows - 1) / rows)


def right(part: Part, item) -> str:
    from benchmarks.suites import LETTERS

    if not item.options:
        return item.answers[0]
    if part.name == "NaturalBench" and set(item.options) == {"Yes", "No"}:
        return item.answer
    return LETTERS[item.options.index(item.answer)]


def test_a_limit_is_told_and_kept_apart(kit, checkpoint, sets, tmp_path, capsys):
    assert run.main(command(kit, checkpoint, sets, tmp_path, "--suite", "all", "--limit", "1")) == 0
    assert "the first 1 units of each alone" in capsys.readouterr().out
    found = records(tmp_path)
    assert {(row["limit"], row["units"]) for row in found if row["benchmark"] == "MMVP"} == {(1, 1)}
    assert {row["scorer"] for row in found if row["benchmark"] == "MMBench"} == {"own rule"}


def test_another_prompt_line_never_continues_a_file(whole, kit, checkpoint, sets, capsys):
    assert run.main(command(kit, checkpoint, sets, whole, "--suite", "general", "--prompt-line", "letter")) == 2
    assert "another prompt line" in capsys.readouterr().err
    assert read_predictions(next(whole.glob("predictions/*/MMBench-seen.jsonl")))


def test_a_checkpoint_that_was_moved_is_scored_and_says_what_is_not_known(checkpoint, tmp_path, monkeypatch, capsys):
    moved = tmp_path / "moved" / "model"
    shutil.copytree(checkpoint, moved)
    lineage = json.loads((moved / "lineage.json").read_text())
    lineage["names"]["connector"] = "gone/connector"
    (moved / "lineage.json").write_text(json.dumps(lineage))
    items = lab_items(tmp_path / "pictures", single=2, pairs=1, groups=1)
    monkeypatch.setattr("benchmarks.lab_general.suite_parts", lambda *_: {"lab": (items, tmp_path / "pictures")})
    assert run.main(["--model", str(moved), "--output", str(tmp_path), "--max-new-tokens", "2"]) == 0
    assert "do not say which captions" in capsys.readouterr().out
    assert all("captions" not in row and row["llm_hash"] for row in records(tmp_path))


def test_part_of_the_answers_is_no_score(kit, sets, tmp_path):
    (part,) = parts_of(("MMVP",), kit, sets, tmp_path)
    answers = {(i.benchmark, i.index): "A" for i in part.items[1:]}
    with pytest.raises(InputError, match="1 of 6 items have no prediction"):
        part.scores(answers)


def test_half_a_pair_is_refused_before_anything_is_asked(kit, checkpoint, tmp_path, capsys):
    made_up.mmvp(tmp_path / "MMVP", rows=made_up.mmvp_questions()[:-1])
    for kind in ("2D", "3D"):
        made_up.cvbench_table(tmp_path, kind)
    made_up.naturalbench(tmp_path)
    assert run.main(command(kit, checkpoint, tmp_path, tmp_path / "out")) == 2
    assert "MMVP" in capsys.readouterr().err and not (tmp_path / "out" / "predictions").exists()


def test_a_missing_set_says_where_it_is_had(kit, checkpoint, tmp_path, capsys):
    assert run.main(command(kit, checkpoint, tmp_path, tmp_path / "out", "--suite", "general")) == 2
    error = capsys.readouterr().err
    assert "MMBench_DEV_EN.tsv" in error and "--download MMBench" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--suite", "some"], "there is vision-centric"),
        (["--model", "m", "--limit", "0"], "--limit should be a positive number"),
        (["--data", "nowhere"], "give them with --model or --server"),
        (["--model", "m", "--data", "nowhere"], "nowhere: not there"),
        (["--server", "http://localhost:1/v1"], "go together"),
        (["--server", "u", "--server-model", "n", "--model", "m"], "not both"),
        (["--methods", "dbo"], "unknown method 'dbo'"),
        (["--temperature", "0.5"], "--temperature is about given models"),
        (["--model", "m", "--prompt-line", "letter"], "--prompt-line is about the official sets"),
        (["--made-up"], "--made-up is about the official sets"),
        (["--model", "m", "--temperature", "-1"], "--temperature should be 0 or more"),
        (["--server", "u", "--server-model", "n", "--shards", "2"], "a server is asked by --concurrency"),
    ],
)
def test_wrong_options_are_one_line(arguments, said, capsys):
    assert run.main([*arguments, "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_dry_run_opens_no_model_no_socket_and_writes_no_answer(kit, checkpoint, sets, tmp_path):
    program = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('a socket')\n"
        "socket.socket.connect = refuse\n"
        "from benchmarks import run\n"
        f"status = run.main({[*command(kit, checkpoint, sets, tmp_path, '--suite', 'all'), '--dry-run']!r})\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "raise SystemExit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 16 and "to ask, into" in lines[-1] and "scored by vlmevalkit" in done.stdout
    assert not list(tmp_path.rglob("*.jsonl"))


def test_no_socket_is_opened_by_a_whole_run(kit, checkpoint, sets, tmp_path, monkeypatch):
    def refuse(self, address):
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert run.main(command(kit, checkpoint, sets, tmp_path, "--suite", "all", "--limit", "1")) == 0
