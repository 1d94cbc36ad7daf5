"""What is asked, in parts: the lab's suites, the official sets of a folder, or real items at hand; and who scores them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.records import Score, score
from benchmarks.suites import BENCHMARKS, Item, limited
from benchmarks.vlmevalkit import Kit, KitScore
from dpa.errors import InputError
from dpa.lineage import file_hash

LAB_TOKENS, OFFICIAL_TOKENS = 16, 128  # the longest answer; the kit's own prompts do not always get a letter at once
AGREE = 1e-6  # points by which our sum of the kit's items may differ from the kit's score


@dataclass(frozen=True)
class Part:
    """Items that are asked together and answered in one file, with the folder of their pictures.

    file, md5, official: the data file that they are read from, and whether its MD5 is the official one (None: none is
    published). kit: the VLMEvalKit that scores them (`scorer` says so), or whose score stands beside Cambrian's. limit:
    only the first so many units of each benchmark are asked and scored.
    """

    name: str
    items: Sequence[Item]
    images: Path
    max_new_tokens: int
    scorer: str = "own rule"
    prompt_line: str = "stock"
    file: Path | None = None
    md5: str = ""
    official: bool | None = False
    made_up: bool = False
    corrected_labels: bool = False
    kit: Kit | None = None
    limit: int | None = None

    @property
    def benchmarks(self) -> list[str]:
        return list(dict.fromkeys(item.benchmark for item in self.items))

    @property
    def scored_by(self) -> str:
        """VLMEvalKit scores whole sets alone."""
        if self.scorer != "vlmevalkit" or self.kit is None:
            return self.scorer
        return "own rule" if self.limit is not None else f"vlmevalkit {self.kit.version}"

    def items_file(self, output: Path) -> Path:
        return output / "items" / f"{self.name}.jsonl"

    def scores(self, answers: Mapping[tuple[str, str], str]) -> list[Score]:
        """The score of each benchmark, by the part's scorer. InputError when an item has no answer.

        With a limit each item counts by its own rule, as VLMEvalKit scores whole sets alone.
        """
        asked = limited(self.items, self.limit)
        found = []
        for name in self.benchmarks:
            items = [item for item in asked if item.benchmark == name]
            own = score(items, answers)  # says what is missing
            if self.kit is None or self.limit is not None:
                found.append(own)
                continue
            told = self._kit_score(name, {item.index: answers[name, item.index] for item in items})
            if self.scorer == "cambrian":
                found.append(replace(own, detail=own.detail | {f"VLMEvalKit {self.kit.version}": told.value}))
                continue
            kits = score(items, answers, told.values, told.parsed)
            if abs(kits.value - told.value) > AGREE:
                raise InputError(
                    f"{self.file}: VLMEvalKit scores {name} {told.value:.4f} and its items add up to {kits.value:.4f}; the file is not laid out as the kit's own"
                )
            detail = kits.detail | {"own rule": own.value}
            if name == "MMBench":  # the kit's values are of whole questions, on each of their rows
                detail["single accuracy"] = own.detail["single accuracy"]
            found.append(replace(kits, detail=detail))
        return found

    def _kit_score(self, name: str, answers: dict[str, str]) -> KitScore:
        from benchmarks import vlmevalkit

        assert self.kit is not None and self.file is not None
        return vlmevalkit.evaluate(self.kit, name, self.file, answers, made_up=self.made_up)

    def about(self, output: Path) -> dict[str, Any]:
        """What a record says of its data: name, hash of the items, data file with MD5, whether official, scorer, limit."""
        told: dict[str, Any] = {"data": self.name, "data_hash": file_hash(self.items_file(output))}
        told["scorer"] = self.scored_by
        if self.file is not None:
            told |= {"data_file": self.file.name, "data_md5": self.md5}
        if self.corrected_labels:
            told["corrected_labels"] = True
        return told | {
            "official_data": False if self.corrected_labels else self.official,
            "prompt_line": self.prompt_line,
            "limit": self.limit,
        }


def lab_parts(names: Sequence[str], output: Path, max_new_tokens: int | None, limit: int | None) -> list[Part]:
    """The lab's items of these benchmarks, whose pictures are drawn under `output`."""
    from benchmarks.lab_general import suite_parts

    return [
        Part(name, items, images, max_new_tokens or LAB_TOKENS, limit=limit)
        for name, (items, images) in suite_parts(names, output).items()
    ]


def linked_part(file: Path, images: Path | None, max_new_tokens: int | None, limit: int | None) -> Part:
    """Real items of a JSON lines file whose photos are under `images`."""
    from benchmarks.linked import linked_items

    if images is None:
        raise InputError(f"--data {file} needs the folder of its photos; give it with --images")
    return Part(file.stem, linked_items(file, images), images, max_new_tokens or LAB_TOKENS, file=file, limit=limit)


def official_parts(
    names: Sequence[str],
    data: Path,
    cache: Path,
    *,
    find_kit: Callable[[], Kit],
    prompt_line: str,
    max_new_tokens: int | None,
    limit: int | None,
    made_up: bool,
    corrected_labels: bool,
) -> list[Part]:
    """A part for each benchmark, from its file under `data`, with what is needed of it to ask and to score.

    find_kit: gives the VLMEvalKit, or raises InputError where there is none; only CV-Bench and MMVP go without.
    """
    from benchmarks import official

    parts = []
    for name in names:
        if official.find(name, data) is None:
            raise InputError(official.missing(name, data))  # before anything is unpacked
    for name in names:
        kit = None
        try:
            kit = find_kit()
        except InputError:
            if name not in ("MMVP", "CVBench-2D", "CVBench-3D"):
                raise
        told = official.load(
            name,
            data,
            cache,
            kit=kit,
            prompt_line=prompt_line,
            corrected_labels=corrected_labels,
            made_up=made_up,
        )
        second = told.scorer == "vlmevalkit" or (told.file.suffix == ".tsv" and not corrected_labels)
        parts.append(
            Part(
                name,
                told.items,
                told.images,
                max_new_tokens or OFFICIAL_TOKENS,
                told.scorer,
                prompt_line,
                told.file,
                told.md5,
                told.official,
                made_up,
                corrected_labels and name == "MMVP",
                kit if second else None,
                limit,
            )
        )
    return parts


def described(parts: Sequence[Part]) -> list[str]:
    """One line a part: what would be asked, from where, scored by whom."""
    lines = []
    for part in parts:
        items = limited(part.items, part.limit)
        of = f" of {len(part.items)}" if len(items) < len(part.items) else ""
        verdict = {True: "official MD5", False: "MD5 is not the official one:", None: "no official MD5 to compare:"}
        source = f"{part.file} ({verdict[part.official]} {part.md5})" if part.md5 else ""
        units = len({(item.benchmark, item.unit) for item in items})
        lines.append(
            f"{part.name}: {len(items)}{of} items in {units} units, {len({item.image for item in items})} pictures under {part.images}; "
            f"answers of up to {part.max_new_tokens} tokens, prompt line {json.dumps(part.prompt_line)}, scored by {part.scored_by}"
            + (f"; {source}" if source else "")
        )
    return lines


def in_order(scores: Sequence[Score]) -> list[Score]:
    """Scores in the order of the paper's table, so that parts asked in another order make the same table."""
    order = list(BENCHMARKS)
    return sorted(scores, key=lambda s: order.index(s.benchmark))
