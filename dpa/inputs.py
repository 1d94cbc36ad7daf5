"""What a stage reads: its sources, its corpus, its processor, and what has to be left out before it trains."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa.errors import InputError
from dpa.lineage import local_model
from dpa.methods import Stage
from dpa.readers import HUB, VIEWS, Problem
from dpa.recipes import Recipe

if TYPE_CHECKING:
    from dpa.corpus import Corpus

LEFT_OUT = "left_out.jsonl"


def stage_sources(chosen: Recipe, stage: Stage, flags: argparse.Namespace) -> tuple[list[str], list[Path | None]]:
    """(sources, folder of pictures of each or one for all) of a stage; the lab's are made if absent."""
    names = (chosen.instructions,) if stage == "instruct" else chosen.captions
    images = [flags.instruct_images] if stage == "instruct" else list(flags.images or [None])
    if any(name.startswith("lab/") for name in names):
        from dpa.lab.dataset import ensure

        if len(names) > 1:
            raise InputError(f"{', '.join(names)}: the lab's data are not mixed with others; give them alone")
        file, folder = ensure(flags.output, names[0])
        return [str(file)], [folder]
    for name in names:
        if not name.startswith(HUB) and not Path(name).exists():
            which = "--instruct-data" if stage == "instruct" else "--data"
            raise InputError(f"{name}: no such file; give the records of stage {stage} with {which}")
    return list(names), images


def stage_corpus(chosen: Recipe, stage: Stage, flags: argparse.Namespace, *, seed: int) -> Corpus:
    """The records of a stage as the recipe draws them; what cannot be read as a record is in its `problems`."""
    from dpa.corpus import open_corpus

    sources, images = stage_sources(chosen, stage, flags)
    if stage != "proxy":
        for folder in images:
            if folder is not None and not folder.is_dir():
                raise InputError(f"{folder}: no such image folder; give it with --images (or --instruct-images)")
    return open_corpus(
        sources,
        VIEWS[stage],
        images=images,
        cache=flags.output / "records",
        count=chosen.caption_count if stage != "instruct" else None,
        fraction=chosen.fraction,
        seed=seed,
    )


def stage_processor(chosen: Recipe, stage: Stage) -> Any:
    """The tokenizer of stage proxy, the LLaVA processor of the others."""
    from dpa import model as models
    from dpa import processing

    tokenizer = processing.load_tokenizer(str(local_model(chosen.llm, "llm")), chosen.chat_template)
    if stage == "proxy":
        return tokenizer
    tower = models.tower_skeleton(str(local_model(chosen.vision_tower or "lab", "tower")))
    return processing.build_processor(tokenizer, tower, anyres=chosen.anyres, pad=chosen.settings(stage).pad)


@dataclass(frozen=True)
class LeftOut:
    """What training does without: `indices` of the stage's corpus, and every problem found, cut samples included."""

    indices: tuple[int, ...] = ()
    problems: tuple[Problem, ...] = ()

    def write(self, folder: Path) -> None:
        """Name it all in the stage's folder; nothing is written when there is nothing to tell."""
        from dpa.preflight import KEPT

        if self.problems:
            rows = [asdict(p) | {"action": "cut" if p.kind in KEPT else "left out"} for p in self.problems]
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            (folder / LEFT_OUT).write_text("\n".join(lines) + "\n", encoding="utf-8")


def find_left_out(chosen: Recipe, stage: Stage, flags: argparse.Namespace, *, seed: int) -> LeftOut:
    """What the checks of `dpa.preflight.for_training` find. InputError when it is more than `--max-bad-samples`."""
    from dpa.data import Samples
    from dpa.preflight import for_training

    corpus = stage_corpus(chosen, stage, flags, seed=seed)
    samples = Samples(
        corpus, VIEWS[stage], stage_processor(chosen, stage), max_length=chosen.settings(stage).max_length
    )
    budget = flags.max_bad_samples
    findings = for_training(corpus, samples, budget)
    problems = (*corpus.problems, *findings.problems.values())
    if len(problems) > budget:
        raise InputError(_refusal(problems, budget, stage))
    if len(findings.bad) == len(corpus):
        raise InputError(f"{corpus.parts[0].source}: no record is left to train on; {problems[0]}")
    return LeftOut(tuple(findings.bad), problems)


def _refusal(problems: Sequence[Problem], budget: int, stage: Stage) -> str:
    if len(problems) == 1:
        return str(problems[0])
    counted = ", ".join(f"{number:,} {kind}" for kind, number in Counter(p.kind for p in problems).items())
    return f"{problems[0]}; {len(problems):,} such samples in stage {stage} ({counted}), {budget:,} are allowed (--max-bad-samples); `python -m dpa.preflight` names all"
