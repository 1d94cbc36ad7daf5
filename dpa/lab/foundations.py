"""How the lab's base LLM and vision tower were pretrained, and the check that the shipped ones are what they claim.

    python -m dpa.lab.foundations            pretrain both from scratch and write them to dpa/lab/foundations/
    python -m dpa.lab.foundations --check    retrain a short piece of each and evaluate the shipped ones
    python -m dpa.lab.foundations --reading dpa/lab/foundations --exposure plain=0.2 terse=0.8 --out DIR
                                             another base LLM: the shipped one with more of some styles behind it

The LLM learns to read (`dpa.lab.reading`): scenes told plainly with questions about them, random sequences told again,
key-value lists asked back, word equations, and, in the end, a few captions of each style. How many (`EXPOSURE`,
`--exposure-steps`) is the dial of the conflict: what the base LLM has hardly read, it finds improbable.
The vision tower (`dpa.lab.seeing`) is a CLIP ViT trained to name the
content of each cell of the floor from its patch; it never meets a caption, so no style can reach it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from dpa.errors import command
from dpa.lab import language
from dpa.lab.reading import (
    EXPOSURE,
    STYLE_SHARES,
    build_tokenizer,
    expose_llm,
    perplexity,
    pretrain_llm,
    reading_accuracy,
)
from dpa.lab.seeing import pretrain_tower, read_outs, seeing_accuracy

SHIPPED = Path(__file__).parent / "foundations"
LLM_STEPS, EXPOSURE_STEPS, TOWER_STEPS = 4500, 280, 1200
MIN_READING, MIN_SEEING = 0.95, 0.95


def ship(
    folder: Path,
    *,
    llm_steps: int = LLM_STEPS,
    exposure_steps: int = EXPOSURE_STEPS,
    tower_steps: int = TOWER_STEPS,
    seed: int = 0,
    reading: Path | None = None,
    exposure: dict[str, float] | None = None,
) -> None:
    """Pretrain both foundations and write them with their manifest: history, evaluation, versions, hashes.

    exposure: {style: share} of the captions that the LLM meets in the end; None: `EXPOSURE`.

    reading: a folder that this command wrote before; its LLM (and tower) are taken instead of being trained again, and
    only the exposure to the styles is trained on top. To turn the dial of the conflict in a minute.
    """
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, CLIPVisionModel

    from dpa.lineage import file_hash, provenance, write_json

    start = time.time()
    tokenizer = build_tokenizer()
    earlier: dict = {}
    if reading is None:
        llm, llm_history = pretrain_llm(tokenizer, steps=llm_steps, seed=seed)
        tower, heads, tower_history = pretrain_tower(steps=tower_steps, seed=seed)
    else:
        earlier = json.loads((reading / "manifest.json").read_text(encoding="utf-8"))
        llm, llm_history = AutoModelForCausalLM.from_pretrained(reading / "llm"), earlier["llm_history"]
        tower, heads, tower_history = (
            CLIPVisionModel.from_pretrained(reading / "tower"),
            read_outs(),
            earlier["tower_history"],
        )
        heads.load_state_dict(load_file(reading / "tower_heads.safetensors"))
        llm_steps, tower_steps, seed = earlier["llm_steps"], earlier["tower_steps"], earlier["seed"]
    exposure = exposure or EXPOSURE
    llm_history = llm_history + expose_llm(llm, tokenizer, steps=exposure_steps, shares=exposure, seed=seed)
    llm.save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    tower.save_pretrained(folder / "tower")
    save_file(heads.state_dict(), folder / "tower_heads.safetensors", metadata={"format": "pt"})
    manifest = {
        "seed": seed,
        "llm_steps": llm_steps,
        "exposure_steps": exposure_steps,
        "tower_steps": tower_steps,
        "style_shares": STYLE_SHARES,
        "exposure": exposure,
        "reading_from": {key: earlier[key] for key in ("command", "commit", "files", "seconds")} if earlier else None,
        "evaluation": evaluate(folder),
        "llm_history": llm_history,
        "tower_history": tower_history,
        "files": {str(path.relative_to(folder)): file_hash(path) for path in sorted(folder.rglob("*.safetensors"))},
        "seconds": round(time.time() - start, 1),
    }
    write_json(folder / "manifest.json", manifest | provenance())


def evaluate(folder: Path = SHIPPED) -> dict:
    """What the foundations in `folder` can do: reading and seeing accuracy (0 to 1), perplexity of each style."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPVisionModel

    tokenizer = AutoTokenizer.from_pretrained(folder / "llm")
    llm = AutoModelForCausalLM.from_pretrained(folder / "llm", dtype=torch.float32).eval()
    tower, heads = CLIPVisionModel.from_pretrained(folder / "tower", dtype=torch.float32).eval(), read_outs()
    heads.load_state_dict(load_file(folder / "tower_heads.safetensors"))
    return {
        "reading": reading_accuracy(llm, tokenizer),
        "seeing": seeing_accuracy(tower, heads),
        "perplexity": {style: perplexity(llm, tokenizer, style) for style in language.STYLES},
    }


def check(folder: Path = SHIPPED) -> bool:
    """Evaluate the shipped foundations and retrain the first steps of each; print both; True if all is as claimed.

    The short retraining must lower the losses from their start, which a broken pretraining command would not.
    """
    from dpa.lineage import file_hash

    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    changed = [name for name, digest in manifest["files"].items() if file_hash(folder / name) != digest]
    found = evaluate(folder)
    print("shipped:", json.dumps(found, indent=2))
    tokenizer = build_tokenizer()
    _, first = pretrain_llm(tokenizer, steps=60)
    _, _, second = pretrain_tower(steps=60, report=20)
    verdicts = {
        "files are those of the manifest": not changed,
        f"the LLM reads (at least {MIN_READING:.0%} right)": found["reading"]["all"] >= MIN_READING,
        f"the tower sees (each attribute at least {MIN_SEEING:.0%})": min(found["seeing"].values()) >= MIN_SEEING,
        "retraining the LLM lowers its loss": first[-1][1] < first[0][1],
        "retraining the tower lowers its loss": second[-1][1] < second[0][1],
    }
    for claim, holds in verdicts.items():
        print(f"{'ok    ' if holds else 'FAILED'}  {claim}")
    return all(verdicts.values())


def _share(text: str) -> tuple[str, float]:
    style, _, share = text.partition("=")
    try:
        if style not in language.STYLES or not 0 <= float(share) <= 1:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"should be STYLE=SHARE with a style of {', '.join(language.STYLES)} and a share from 0 to 1, got {text!r}"
        ) from None
    return style, float(share)


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dpa.lab.foundations", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="evaluate the shipped foundations and retrain a short piece"
    )
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder to write to (default: the shipped one)")
    parser.add_argument("--llm-steps", type=int, default=LLM_STEPS)
    parser.add_argument("--exposure-steps", type=int, default=EXPOSURE_STEPS)
    parser.add_argument("--tower-steps", type=int, default=TOWER_STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--reading", type=Path, help="take the LLM and tower of this earlier output, train the exposure only"
    )
    parser.add_argument(
        "--exposure",
        nargs="+",
        type=_share,
        metavar="STYLE=SHARE",
        help="of the captions that the LLM meets in the end",
    )
    options = parser.parse_args(arguments)
    if options.check:
        return 0 if check(options.out) else 1
    steps = {name: getattr(options, name) for name in ("llm_steps", "exposure_steps", "tower_steps")}
    exposure = dict(options.exposure) if options.exposure else None
    ship(options.out, **steps, seed=options.seed, reading=options.reading, exposure=exposure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
