"""The lab's grid: several base LLMs x caption styles x methods x seeds, trained and asked.

    python -m benchmarks.grid [--methods vanilla dpa] [--seeds 0 1] [--publish results/grid [--forecast]]

Which caption set suits which LLM? The base LLMs differ in what they have read (`DIALECTS`): the shipped one, and three
made from it in two to four minutes each by `dpa.lab.foundations --exposure`. Every cell is trained and asked by `benchmarks.run`.
With --forecast each LLM's caption sets are ranked by `analysis.forecast` (both bridges), and `analysis.paradox` holds
ranking and conflict against what training gave.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpa.errors import InputError, command
from dpa.lineage import file_hash, folder_hash, provenance, write_json

# LLM -> (shares of the styles among the captions it meets beyond the shipped one, steps); None: the shipped one
DIALECTS: dict[str, tuple[dict[str, float], int] | None] = {
    "shipped": None,
    "plain": ({"plain": 1.0}, 600),  # forgets the little it has read of the others
    "terse": ({"plain": 0.2, "terse": 0.8}, 400),
    "ornate": ({"plain": 0.2, "ornate": 0.8}, 400),
}
STYLES = ("plain", "terse", "ornate")
SHARED = ("records", "vision")  # folders that all LLMs' runs have in common


def base_llm(name: str, folder: Path) -> Path:
    """The folder of a base LLM of `DIALECTS`, made under `folder` if it is not there."""
    from dpa.lab.foundations import SHIPPED, ship
    from dpa.lineage import local_model

    dialect = DIALECTS[name]
    if dialect is None:
        return local_model("lab")
    made, (shares, steps) = folder / name, dialect
    if (made / "manifest.json").is_file():  # written last
        told = json.loads((made / "manifest.json").read_text(encoding="utf-8"))
        if (told["exposure"], told["exposure_steps"]) != (shares, steps):
            raise InputError(
                f"{made}: was made with exposure {told['exposure']}, {told['exposure_steps']} steps; delete it to make it again"
            )
    else:
        made.mkdir(parents=True, exist_ok=True)
        ship(made, exposure_steps=steps, exposure=shares, reading=SHIPPED)
    return made / "llm"


def run_grid(output: Path, llms: Sequence[str], methods: Sequence[str], seeds: Sequence[int], jobs: int) -> list[Path]:
    """Train and ask every cell that is not done; the records file of each LLM."""
    from benchmarks import run
    from dpa.lab.dataset import data_folder

    found = []
    for name in llms:
        own = output / name
        own.mkdir(parents=True, exist_ok=True)
        for shared in (*SHARED, data_folder(output).name):
            (output / shared).mkdir(parents=True, exist_ok=True)
            if not (own / shared).exists():
                (own / shared).symlink_to(Path("..") / shared)
        llm = base_llm(name, output / "llms")
        for style in STYLES:
            arguments = ["--captions", style, "--llm", str(llm), "--output", str(own), "--jobs", str(jobs)]
            arguments += ["--methods", *methods, "--seeds", *map(str, seeds)]
            if run.main(arguments):
                raise InputError(f"{own}: the methods on {style} captions could not be finished, see the line above")
        found.append(own / "records.jsonl")
    return found


def forecast_and_compare(output: Path, llms: Sequence[str], folder: Path) -> None:
    """Write forecast_lora, forecast_ngram to `folder`, and the folders of `analysis.paradox` for the conflict and for each
    forecast, over the records that are there.
    """
    import pandas as pd

    from analysis import paradox
    from analysis.captions import read_all
    from analysis.forecast import Bridge, forecast
    from analysis.outputs import write_table
    from dpa.lab.dataset import ensure

    captions = read_all([ensure(output, f"lab/{style}")[0] for style in STYLES])
    bridges: tuple[Bridge, ...] = ("lora", "ngram")
    for bridge in bridges:
        tables = [
            forecast(str(base_llm(n, output / "llms")), captions, output / "proxies", bridge=bridge) for n in llms
        ]
        write_table(pd.concat(tables, ignore_index=True), folder, f"forecast_{bridge}")
    records = ["--records", str(folder / "records.jsonl")]
    for name, bridge, column in (
        ("by_conflict", "lora", "bits_per_byte_saved"),
        ("by_forecast", "lora", "visual_share"),
        ("by_forecast_ngram", "ngram", "visual_share"),
    ):
        given = ["--conflict", str(folder / f"forecast_{bridge}.csv"), *records, "--x", column]
        if paradox.main([*given, "--out", str(folder / name)]):
            raise InputError(f"{folder / name}: could not be made, see the line above")


@command
def main(arguments: list[str] | None = None) -> int:
    from dpa.preflight import usable_cpus

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.grid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llms", nargs="+", choices=DIALECTS, default=list(DIALECTS))
    parser.add_argument("--methods", nargs="+", default=["vanilla"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=0, help="trainings side by side (default: one a core)")
    parser.add_argument("--output", type=Path, default=Path("runs/grid"))
    parser.add_argument("--publish", type=Path, metavar="DIR", help="also write all records and their manifest to DIR")
    parser.add_argument(
        "--forecast",
        action="store_true",
        help="with --publish: also forecast every cell, and compare (20 minutes more)",
    )
    options = parser.parse_args(arguments)
    files = run_grid(options.output, options.llms, options.methods, options.seeds, options.jobs or usable_cpus())
    if options.publish:
        options.publish.mkdir(parents=True, exist_ok=True)
        text = "".join(file.read_text(encoding="utf-8") for file in files)
        (options.publish / "records.jsonl").write_text(text, encoding="utf-8")
        seeds = sorted({json.loads(line)["seed"] for line in text.splitlines()})
        made: dict[str, Any] = {"seeds": seeds, "llms": {}, "records": file_hash(options.publish / "records.jsonl")}
        for name in options.llms:
            folder = base_llm(name, options.output / "llms")
            made["llms"][name] = {"exposure": DIALECTS[name], "hash": folder_hash(folder)}
        write_json(options.publish / "manifest.json", made | provenance())
        if options.forecast:
            forecast_and_compare(options.output, options.llms, options.publish)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
