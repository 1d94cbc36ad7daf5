"""The model card of a finished stage: what it is, how it was made, what it scored.

    python -m dpa.card FOLDER [--records FILE.jsonl]     write the card anew, with the scores in the records

Records are what `python -m benchmarks.run` keeps; of several of a benchmark the last counts. That command writes the
scores into the card by itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpa.errors import InputError, command
from dpa.lineage import read_lineage

CARD = "README.md"
WHAT = {
    "proxy": "a proxy LLM (stage 1): it was fitted to the text of captions, serves to train a connector on, and is then thrown away",
    "connector": "a vision-language connector (stage 2), `connector.safetensors`: two linear layers with a GELU between",
    "instruct": "a vision-language model (stage 3)",
}
LOADING = """```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(FOLDER)
processor = AutoProcessor.from_pretrained(FOLDER)
```
"""


def card(lineage: dict[str, Any], scores: Sequence[dict[str, Any]] = (), notes: Sequence[str] = ()) -> str:
    """The card as Markdown with the metadata that the hub reads, from a stage's lineage and score records."""
    stage, names = lineage["stage"], lineage["names"]
    metadata = ["---", "library_name: " + ("peft" if "lora_rank" in lineage["settings"] else "transformers")]
    if Path(names["llm"]).exists() or names["llm"].count("/") != 1:
        metadata.append("tags: [decoupled-proxy-alignment]")
    else:
        metadata += [f"base_model: {names['llm']}", "tags: [decoupled-proxy-alignment]"]
    if stage == "instruct":
        metadata.append("pipeline_tag: image-text-to-text")
    lines = [*metadata, "---", "", f"# {lineage['recipe']}, stage {stage}, seed {lineage['seed']}", ""]
    lines += [f"This is {WHAT[stage]}, trained with Decoupled Proxy Alignment (arXiv 2509.14735).", ""]
    if stage == "instruct":
        lines += [LOADING]
    lines += ["## How it was made", "", "| | |", "|---|---|"]
    made = {
        "LLM": names["llm"],
        "vision tower": names.get("vision_tower"),
        "data": ", ".join(f"{name} ({digest[:12]})" for name, digest in lineage["data"].items()),
        "records": lineage.get("records"),
        "from": ", ".join(f"{part} ({digest[:12]})" for part, digest in lineage.get("parents", {}).items()),
        "weighting": _weighting(lineage["settings"].get("weighting")),
        "steps": lineage.get("steps"),
        "settings": ", ".join(f"{k} {v}" for k, v in lineage["settings"].items() if k != "weighting"),
        "command": f"`{lineage['command']}`",
        "commit": lineage.get("commit"),
        "versions": ", ".join(f"{name} {version}" for name, version in lineage["versions"].items()),
        "made": lineage["time"],
    }
    lines += [f"| {name} | {value} |" for name, value in made.items() if value not in (None, "")]
    lines += ["", "The hashes of everything it was made from are in `lineage.json`.", ""]
    if notes:
        lines += ["## Elsewhere", "", *notes, ""]
    lines += ["## Scores", ""]
    if scores:
        scores = list({(row["benchmark"], row["mode"]): row for row in scores}.values())
        lines += [
            "| benchmark | score (0 to 100) | 95 % interval | units |",
            "|---|---|---|---|",
            *map(_score, scores),
            "",
        ]
    else:
        lines += ["Not evaluated yet: `python -m benchmarks.run --suite vision-centric --model FOLDER`.", ""]
    return "\n".join(lines)


def write_card(folder: Path, lineage: dict[str, Any], scores: Sequence[dict[str, Any]] = ()) -> None:
    """Write the card of a stage into its folder."""
    from dpa.export import NOTES

    notes = (folder / NOTES).read_text(encoding="utf-8").splitlines() if (folder / NOTES).is_file() else []
    (folder / CARD).write_text(card(lineage, scores, notes), encoding="utf-8")


def update(folder: Path, records: Path) -> None:
    """Write the card of a finished stage anew with its scores in a file of records. InputError when there are none."""
    lineage = read_lineage(folder)
    own = {(str(folder), None), (lineage["recipe"], lineage["seed"])}
    try:
        rows = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines() if line.strip()]
        scores = [row for row in rows if {(row["model"], None), (row["model"], row["seed"])} & own]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{records}: not readable as score records ({error!r})") from None
    if not scores:
        raise InputError(f"{records}: holds no score of {folder}; evaluate it with python -m benchmarks.run")
    try:
        write_card(folder, lineage, scores)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder}: its lineage or its scores in {records} lack what a card tells ({error!r})"
        ) from None


def _weighting(weighting: dict | None) -> str:
    if not weighting or weighting["rule"] == "none":
        return "none"
    return f"{weighting['rule']}, bounds {weighting['low']:g} and {weighting['high']:g}, {weighting['form']} form"


def _score(record: dict[str, Any]) -> str:
    picture = "" if record["mode"] == "seen" else f" ({record['mode']})"
    low, high = record["low"], record["high"]
    return f"| {record['benchmark']}{picture} | {record['value']:.1f} | {low:.1f} to {high:.1f} | {record['units']} |"


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dpa.card", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="a finished stage")
    parser.add_argument("--records", type=Path, help="score records, one JSON object a line")
    options = parser.parse_args(arguments)
    if options.records:
        update(options.folder, options.records)
    else:
        try:
            write_card(options.folder, read_lineage(options.folder))
        except (KeyError, TypeError) as error:
            raise InputError(f"{options.folder}: its lineage lacks what a card tells ({error!r})") from None
    print(options.folder / CARD)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
