"""The cache of rows on disk: what is read is what was written, whatever was killed, cut, flipped or full meanwhile."""

import errno
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpa import cache
from dpa.cache import RowCache
from dpa.errors import InputError

ROWS = [3, 0, 1, 5, 2]
FORK = multiprocessing.get_context("fork")


def row_cache(root: Path, rows=ROWS, columns=2, **options) -> RowCache:
    return RowCache.open(root, "blind", {"llm": "abc", "template": 1}, rows, columns, **options)


def values(index: int, rows=ROWS, columns=2) -> np.ndarray:
    return np.arange(rows[index] * columns, dtype=np.float32).reshape(-1, columns) - 8 * index


def filled(root: Path) -> RowCache:
    made = row_cache(root)
    for index in range(len(ROWS)):
        made.write(index, values(index))
    made.finish()
    return made


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 5), max_size=8).flatmap(
        lambda rows: st.tuples(st.just(rows), st.permutations(range(len(rows))))
    ),
    st.integers(1, 3),
    st.sampled_from(["float32", "float16"]),
    st.sampled_from([1, 7, 1 << 22]),
)
def test_round_trip(rows_order, columns, dtype, chunk):
    rows, order = rows_order
    with tempfile.TemporaryDirectory() as root, mock.patch.object(cache, "CHUNK", chunk):
        made = row_cache(Path(root), rows, columns, dtype=dtype)
        absent = {index for index, count in enumerate(rows) if count}
        for index in order:
            assert made.missing().tolist() == sorted(absent)
            made.write(index, values(index, rows, columns))
            absent.discard(index)
        made.finish()
        made.finish()
        again = row_cache(Path(root), rows, columns, dtype=dtype)
        assert again.complete and again.missing().tolist() == []
        for index in order:
            read = again.read(index)
            assert read.dtype == dtype and read.shape == (rows[index], columns)
            assert (read == values(index, rows, columns)).all()


def test_what_is_not_whole_is_missing(tmp_path):
    made = row_cache(tmp_path)
    assert not made.complete and made.missing().tolist() == [0, 2, 3, 4]
    with open(made.folder / "values.bin", "r+b") as file:  # all of record 0 but its last number
        file.write(np.ones(5, np.float32).tobytes())
    made.write(3, values(3))
    assert made.missing().tolist() == [0, 2, 4]
    with pytest.raises(ValueError, match="record 0 is not whole"):
        made.read(0)
    with pytest.raises(RuntimeError, match="3 records are missing, record 0 first"):
        made.finish()
    assert not made.complete and made.read(1).shape == (0, 2) and (made.read(3) == values(3)).all()


def test_what_cannot_be_kept_is_refused(tmp_path):
    made = row_cache(tmp_path, dtype="float16")
    for bad, word in (
        (np.zeros((2, 2)), "shape"),
        (np.zeros((3, 1)), "shape"),
        (np.zeros(6), "shape"),
        (np.array([[0, 1], [2, 3], [4, np.nan]]), "NaN"),
        (np.full((3, 2), 1e5), "too large"),
    ):
        with pytest.raises(ValueError, match=word):
            made.write(0, bad)
    for index in (-1, len(ROWS)):
        with pytest.raises(IndexError, match="no record"):
            made.read(index)
        with pytest.raises(IndexError, match="no record"):
            made.write(index, values(index % len(ROWS)))
    assert made.missing().tolist() == [0, 2, 3, 4]
    made.write(0, np.full((3, 2), -np.inf))
    assert (made.read(0) == -np.inf).all()
    finished = filled(tmp_path / "other")
    with pytest.raises(RuntimeError, match="complete"):
        finished.write(0, values(0))
    for wrong in ({"rows": [1, -1]}, {"columns": 0}, {"dtype": "int32"}):
        with pytest.raises(ValueError, match="are needed"):
            row_cache(tmp_path, **wrong)


def test_a_copy_is_read(tmp_path):
    made = filled(tmp_path)
    made.read(0)[:] = 7
    assert (made.read(0) == values(0)).all()


def test_another_key_is_another_folder(tmp_path):
    key = {"llm": "abc", "template": 1}
    asked = [
        ("blind", key, ROWS, 2, "float32"),
        ("tower", key, ROWS, 2, "float32"),
        ("blind", key | {"llm": "abd"}, ROWS, 2, "float32"),
        ("blind", key, ROWS[::-1], 2, "float32"),
        ("blind", key, ROWS, 3, "float32"),
        ("blind", key, ROWS, 2, "float16"),
    ]
    folders = {RowCache.open(tmp_path, *one).folder for one in asked}
    assert len(folders) == len(asked) and set(tmp_path.iterdir()) == folders
    reordered = RowCache.open(tmp_path, "blind", {"template": 1, "llm": "abc"}, np.array(ROWS), 2)
    assert reordered.folder in folders


def flip(folder: Path):
    with open(folder / "values.bin", "r+b") as file:
        file.seek(21)
        byte = file.read(1)[0]
        file.seek(21)
        file.write(bytes([byte ^ 1]))
    os.utime(folder / "values.bin", (1, 1))  # file_hash reads a file again when its time has changed


def cut(folder: Path):
    os.truncate(folder / "values.bin", os.path.getsize(folder / "values.bin") - 4)  # noqa: PTH202


def exchange(folder: Path):
    other = RowCache.open(folder.parent, "blind", {"llm": "other", "template": 1}, ROWS, 2).folder
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


DAMAGES = {
    "flipped byte": (flip, "a byte has changed"),
    "cut short": (cut, "84 bytes instead of 88"),
    "no values": (lambda folder: (folder / "values.bin").unlink(), "0 bytes instead of 88"),
    "foreign": (exchange, "foreign or stale"),
    "empty header": (lambda folder: (folder / "header.json").write_text(""), "header.json"),
    "no header": (lambda folder: (folder / "header.json").unlink(), "header.json"),
    "header not text": (lambda folder: (folder / "header.json").write_bytes(b"\xff"), "header.json"),
    "header a list": (lambda folder: (folder / "header.json").write_text("[]"), "foreign or stale"),
    "marker cut": (lambda folder: (folder / "complete.json").write_text('{"sha256": "0'), "complete.json"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_cache_is_refused(tmp_path, name):
    damage, message = DAMAGES[name]
    folder = filled(tmp_path).folder
    damage(folder)
    with pytest.raises(InputError) as error:
        row_cache(tmp_path)
    line = str(error.value)
    assert line.startswith(f"{folder}: ") and message in line and "delete the folder" in line and "\n" not in line
    shutil.rmtree(folder)
    assert row_cache(tmp_path).missing().tolist() == [0, 2, 3, 4]  # the fix that the line names


def in_fork(work, *arguments):
    process = FORK.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


MANY = [index % 40 for index in range(3000)]


def fill_most(root: Path, pipe):
    made = row_cache(root, MANY)
    for index in range(2900):
        made.write(index, values(index, MANY))
        if index == 100:
            pipe.send("going")
    signal.pause()


def test_a_killed_filler_loses_nothing(tmp_path):
    here, there = FORK.Pipe()
    process = in_fork(fill_most, tmp_path, there)
    assert here.poll(30) and here.recv() == "going"
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    made = row_cache(tmp_path, MANY)
    missing = made.missing().tolist()
    assert len(missing) > 75 and missing == [index for index in range(missing[0], 3000) if MANY[index]]
    assert missing[0] > 100
    for index in set(range(3000)) - set(missing):
        assert (made.read(index) == values(index, MANY)).all()
    for index in missing:
        made.write(index, values(index, MANY))
    made.finish()
    assert row_cache(tmp_path, MANY).complete


def killed_at(work, where: str, call: int = 0):
    calls = iter(range(call))
    owner, name = (os, where) if hasattr(os, where) else (cache, where)
    real = getattr(owner, name)

    def killing(*arguments):
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    setattr(owner, name, killing)
    cache.CHUNK = 8
    work()


@pytest.mark.parametrize(
    ("where", "call"), [("pwrite", 0), ("pwrite", 2), ("write_json", 0), ("flush", 0), ("rename", 0)]
)
def test_a_killed_creator_leaves_no_cache(tmp_path, where, call):
    process = in_fork(killed_at, lambda: row_cache(tmp_path), where, call)
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert not list(tmp_path.glob("blind-*"))
    made = row_cache(tmp_path)
    assert made.missing().tolist() == [0, 2, 3, 4] and list(tmp_path.iterdir()) == [made.folder]


@pytest.mark.parametrize("where", ["flush", "file_hash", "replace"])
def test_killed_while_finishing_is_not_complete(tmp_path, where):
    made = row_cache(tmp_path)
    for index in range(len(ROWS)):
        made.write(index, values(index))
    process = in_fork(killed_at, made.finish, where)
    process.join(30)
    assert process.exitcode == -signal.SIGKILL and not made.complete
    again = row_cache(tmp_path)
    again.finish()
    assert row_cache(tmp_path).complete and (again.read(4) == values(4)).all()


def test_finishing_again_does_not_bless_a_flipped_byte(tmp_path):
    made = filled(tmp_path)
    flip(made.folder)
    made.finish()
    with pytest.raises(InputError, match="a byte has changed"):
        row_cache(tmp_path)


def open_and_fill(root: Path, barrier, rank: int):
    barrier.wait(30)
    made = row_cache(root)
    for index in range(rank, len(ROWS), 3):
        made.write(index, values(index))


def test_creators_at_the_same_time(tmp_path):
    barrier = FORK.Barrier(3)
    processes = [in_fork(open_and_fill, tmp_path, barrier, rank) for rank in range(3)]
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    made = row_cache(tmp_path)
    made.finish()
    assert all((made.read(index) == values(index)).all() for index in range(len(ROWS)))
    assert list(tmp_path.iterdir()) == [made.folder]


@pytest.mark.parametrize("where", ["write_json", "rename"])
def test_who_comes_second_uses_the_first_cache(tmp_path, monkeypatch, where):
    owner = os if where == "rename" else cache
    real = getattr(owner, where)

    def late(*arguments):
        monkeypatch.setattr(owner, where, real)
        row_cache(tmp_path).write(0, values(0))  # removes our temporary folder, too
        return real(*arguments)

    monkeypatch.setattr(owner, where, late)
    made = row_cache(tmp_path)
    assert made.missing().tolist() == [2, 3, 4] and (made.read(0) == values(0)).all()
    assert list(tmp_path.iterdir()) == [made.folder]


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk(tmp_path, monkeypatch):
    for step in (os.pwrite, os.fsync):
        with (
            monkeypatch.context() as patch,
            pytest.raises(InputError, match=r"blind-\w+: the disk is full; free space"),
        ):
            patch.setattr(os, step.__name__, no_space)
            row_cache(tmp_path)
        assert not list(tmp_path.iterdir())
    made = row_cache(tmp_path)
    made.write(0, values(0))
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"blind-\w+: the disk is full; free space"):
        patch.setattr(os, "pwrite", no_space)
        made.write(2, values(2))
    assert made.missing().tolist() == [2, 3, 4]
    for index in (2, 3, 4):
        made.write(index, values(index))
    with monkeypatch.context() as patch, pytest.raises(InputError, match="free space"):
        patch.setattr(os, "fsync", no_space)
        made.finish()
    assert not made.complete
    made.finish()
    assert row_cache(tmp_path).complete


def test_a_disk_that_takes_a_few_bytes_at_a_time(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, place: real(file, data[:5], place))
    made = filled(tmp_path)
    assert all((made.read(index) == values(index)).all() for index in range(len(ROWS)))


def test_a_pickle_reads_and_writes_and_is_small(tmp_path):
    made = row_cache(tmp_path, [2000, 3])
    made.write(0, np.ones((2000, 2)))
    made.read(0)
    pickled = pickle.dumps(made)
    assert len(pickled) < 2000
    other = pickle.loads(pickled)
    assert (other.read(0) == 1).all()
    other.write(1, np.full((3, 2), 5))
    assert (made.read(1) == 5).all() and made.missing().tolist() == []


def test_missing_holds_little_in_memory(tmp_path, monkeypatch):
    made = row_cache(tmp_path, [1000] * 100)
    monkeypatch.setattr(cache, "CHUNK", 5000)
    tracemalloc.start()
    assert len(made.missing()) == 100
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000  # of 200 000 numbers


def test_the_header_says_what_made_the_values(tmp_path):
    header = json.loads((row_cache(tmp_path).folder / "header.json").read_text())
    assert header["key"] == {"llm": "abc", "template": 1} and header["columns"] == 2 and header["dtype"] == "float32"


def test_nothing_heavy_is_imported():
    code = "import sys, dpa.cache; sys.exit(bool({'torch', 'transformers', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
