"""Tables, figures and manifests as files: CSV beside JSON, PNG beside SVG, each written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa.lineage import provenance, write_json

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def write_table(frame: pd.DataFrame, folder: Path, name: str) -> None:
    """`frame` as NAME.csv and NAME.json (a list of rows; an unbounded interval is null there).

    ValueError when a cell holds no number: a table tells what is missing in words.
    """
    holes = [str(column) for column in frame.columns if frame[column].isna().any()]
    if holes:
        raise ValueError(f"table {name}: cells of {', '.join(holes)} hold no number")
    folder.mkdir(parents=True, exist_ok=True)
    _whole(folder / f"{name}.csv", lambda path: frame.to_csv(path, index=False))
    _whole(
        folder / f"{name}.json",
        lambda path: frame.to_json(path, orient="records", indent=1, force_ascii=False, double_precision=10),
    )


def write_figure(figure: Figure, folder: Path, name: str) -> None:
    """`figure` as NAME.png and NAME.svg; the same picture gives the same bytes."""
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        _whole(folder / f"{name}.png", lambda path: figure.savefig(path, dpi=130, format="png"))
        _whole(folder / f"{name}.svg", lambda path: figure.savefig(path, format="svg", metadata={"Date": None}))


def write_manifest(folder: Path, name: str = "manifest", **facts: Any) -> None:
    """NAME.json: command, commit, versions and hardware of this process, with the facts given (seeds, hashes)."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", provenance() | facts)


def shown(frame: pd.DataFrame, digits: int = 3) -> str:
    """A table for a terminal."""
    return frame.to_string(index=False, float_format=lambda x: f"{x:.{digits}f}")


def _whole(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
