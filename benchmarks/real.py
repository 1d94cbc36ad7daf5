"""The three stages on real records, with small models: LLaVA-Pretrain captions, COCO photos, real benchmark items.

    python -m benchmarks.real [--shared ../shared] [--output runs/real] [--publish results/real_small]

Builds a small LLM and tower, holds out a tenth of the captions, trains `small` (DPA) and `small_vanilla` through
`python -m dpa.train`, and scores the real items whose photos are at hand through `python -m benchmarks.run`. With such
models the scores are near chance; what counts is that every step works on real records and that losses fall.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import zipfile
from pathlib import Path

from dpa.errors import InputError, command
from dpa.lineage import file_hash, is_complete, provenance, write_json

HELD_OUT = 10  # every tenth caption
RECIPES = ("small", "small_vanilla")
QUESTION = "Describe the photo in one sentence."


def prepare(shared: Path, folder: Path) -> dict[str, Path]:
    """Unpack the pictures and write the records: captions (trained, held out) and instructions from captioned photos.

    Photos that the benchmark items ask about are left out of the instructions.
    """
    pretrain, coco = shared / "data" / "llava_pretrain_sample", shared / "data" / "coco_images_224"
    for archive, images in (
        (pretrain / "images_128.zip", folder / "pretrain_images"),
        (coco / "images_free.zip", folder / "coco_images"),
    ):
        if not archive.is_file():
            raise InputError(f"{archive}: not there; give the folder of shared data with --shared")
        if not images.is_dir():
            try:
                with zipfile.ZipFile(archive) as packed:
                    packed.extractall(images.with_suffix(".partial"))
            except zipfile.BadZipFile as error:
                raise InputError(f"{archive}: not a readable zip file ({error})") from None
            os.rename(images.with_suffix(".partial"), images)
    rows = json.loads((pretrain / "blip_laion_cc_sbu_sample.json").read_text(encoding="utf-8"))
    pairs = [json.loads(line) for line in (coco / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    asked = {
        json.loads(line)["image"] for line in (coco / "linked_items.jsonl").read_text(encoding="utf-8").splitlines()
    }
    pairs = [p for p in pairs if (folder / "coco_images" / p["image"]).is_file() and p["image"] not in asked]
    instructions = [
        {
            "id": f"{pair['coco_id']}-{number}",
            "image": pair["image"],
            "conversations": [
                {"from": "human", "value": f"<image>\n{QUESTION}"},
                {"from": "gpt", "value": caption.strip()},
            ],
        }
        for pair in pairs
        for number, caption in enumerate(pair["captions"])
    ]
    write_json(folder / "captions.json", [row for i, row in enumerate(rows) if i % HELD_OUT])
    write_json(folder / "held_out.json", [row for i, row in enumerate(rows) if i % HELD_OUT == 0])
    write_json(folder / "instructions.json", instructions)
    return {
        "captions": folder / "captions.json",
        "held_out": folder / "held_out.json",
        "instructions": folder / "instructions.json",
    }


def run(
    shared: Path, output: Path, *, publish: Path | None = None, llm_steps: int = 400, extra: list[str] | None = None
) -> dict:
    """Everything, and the report: perplexity of held-out captions (base, proxy), first and last losses, real scores."""
    from analysis.captions import read_all
    from analysis.perplexity import perplexity_table, score
    from benchmarks import run as benchmark_run
    from dpa import train
    from dpa.lab import small

    start = time.time()
    output.mkdir(parents=True, exist_ok=True)
    files = prepare(shared, output)
    models = output / "models"
    if not (models / "tower" / "config.json").is_file():
        books = sorted((shared / "data" / "public_domain_books").glob("*.md")) + sorted(
            (shared / "data" / "wikitext2").glob("*.txt")
        )
        captions = [
            row["conversations"][1]["value"] for row in json.loads(files["captions"].read_text(encoding="utf-8"))
        ]
        small.build(
            [path.read_text(encoding="utf-8") for path in books], models, tokenizer_texts=captions, steps=llm_steps
        )
    for recipe in RECIPES:
        status = train.main(
            [
                *(
                    "--recipe",
                    recipe,
                    "--output",
                    str(output),
                    "--llm",
                    str(models / "llm"),
                    "--vision-tower",
                    str(models / "tower"),
                ),
                *("--data", str(files["captions"]), "--images", str(output / "pretrain_images")),
                *(
                    "--instruct-data",
                    str(files["instructions"]),
                    "--instruct-images",
                    str(output / "coco_images"),
                    "--logging_steps",
                    "5",
                ),
                *(extra or []),
            ]
        )
        if status:
            raise InputError(f"training {recipe} failed, see the line above")
    folders = [output / recipe / "instruct" for recipe in RECIPES]
    assert all(map(is_complete, folders))
    status = benchmark_run.main(
        [
            "--model",
            *map(str, folders),
            "--data",
            str(shared / "data" / "coco_images_224" / "linked_items.jsonl"),
            "--images",
            str(output / "coco_images"),
            "--output",
            str(output),
        ]
        + (["--publish", str(publish)] if publish else [])
    )
    if status:
        raise InputError("scoring failed, see the line above")
    proxies = {"proxy": output / "small" / "proxy"}
    perplexity = perplexity_table(
        score(str(models / "llm"), proxies, read_all([files["held_out"]]), cache=output / "scores")
    )
    report = {
        "held_out_captions": {
            row.model: {
                "texts": int(row.texts),
                "perplexity": round(row.perplexity, 2),
                "bits_per_byte": round(row.bits_per_byte, 4),
            }
            for row in perplexity.itertuples()
        },
        "loss_per_token_first_and_last": {
            f"{recipe}/{stage}": losses(output / recipe / stage)
            for recipe in RECIPES
            for stage in ("proxy", "connector", "instruct")
            if is_complete(output / recipe / stage)
        },
        "data": {name: file_hash(path) for name, path in files.items()},
        "seconds": round(time.time() - start, 1),
    }
    print(json.dumps(report, indent=2))
    if publish:
        write_json(publish / "report.json", report | {"provenance": provenance()})
    return report


def losses(stage: Path) -> tuple[float, float]:
    """Mean negative log-likelihood per label token (nats) of the first and of the last log line of a stage."""
    values = [row["nll"] for row in json.loads((stage / "log.json").read_text(encoding="utf-8")) if "nll" in row]
    return values[0], values[-1]


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--shared",
        type=Path,
        default=Path(os.environ.get("DPA_SHARED", "../shared")),
        help="folder of the shared data (default: ../shared)",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/real"))
    parser.add_argument(
        "--publish", type=Path, metavar="DIR", help="also write table, records, manifest and report to DIR"
    )
    options = parser.parse_args(arguments)
    run(options.shared, options.output, publish=options.publish)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
