"""A paper-size recipe end to end, everything as at full size but the LLM's and the tower's depth and width.

    python -m benchmarks.rehearsal --recipe qwen2.5-7b_sharegpt4v [--shared ../shared] [--publish results/rehearsal]

Builds an LLM of the recipe's class and vocabulary size with two layers and a CLIP tower of 336 px with two layers (576
image tokens), both random, and trains the recipe's three stages through `torchrun -m dpa.train` on two processes on real
LLaVA-Pretrain pairs and captioned COCO photos. The run is killed (SIGKILL) in stage 2 and started again; a second run
goes through unbroken, and the two must end in the same weights. Rehearse so before you pay for GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.real import losses, prepare
from dpa.errors import InputError, command
from dpa.lineage import file_hash, is_complete, provenance, read_lineage, write_json
from dpa.recipes import Recipe, recipe

PATIENCE = 1800  # seconds that a run may take to its first checkpoint


def build(chosen: Recipe, texts: list[str], folder: Path, *, hidden: int) -> None:
    """FOLDER/llm: the recipe's class and vocabulary size at two layers, with a tokenizer of the texts; FOLDER/tower."""
    import torch
    from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel

    from dpa.lab.small import build_tokenizer, family_config

    torch.manual_seed(0)
    tokenizer = build_tokenizer(texts)
    config = family_config(chosen.llm, layers=2, hidden=hidden)
    config.update(
        {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    tower = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=336, patch_size=14
    )
    CLIPVisionModel(tower).save_pretrained(folder / "tower")


def launch(arguments: list[str], log: Path, processes: int) -> subprocess.Popen:
    """`torchrun -m dpa.train` with its output in `log`, in a process group of its own."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    launcher += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", "-m", "dpa.train"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with open(log, "a", encoding="utf-8") as file:
        return subprocess.Popen(
            [sys.executable, *launcher, *arguments], stdout=file, stderr=file, env=environment, start_new_session=True
        )


def kill_after_checkpoint(process: subprocess.Popen, partial: Path, log: Path) -> int:
    """SIGKILL the processes once a checkpoint of the unfinished stage is complete; the step of the last one."""
    deadline = time.time() + PATIENCE
    while not (found := list(partial.glob("checkpoint-*/complete"))):
        if process.poll() is not None or time.time() > deadline:
            _kill(process)
            raise InputError(f"{partial}: the run ended before it could be killed; its output is in {log}")
        time.sleep(0.05)
    _kill(process)
    return max(int(path.parent.name.rsplit("-", 1)[1]) for path in found)


def _kill(process: subprocess.Popen) -> None:
    """SIGKILL the launcher and what it started, which is in sessions of its own."""
    import psutil

    if process.poll() is None:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.send_signal(signal.SIGKILL)
    process.wait()


def difference(one: Path, other: Path) -> float:
    """The largest difference between the weights of two stage folders, in absolute value."""
    from safetensors.torch import load_file

    largest = 0.0
    for file in sorted(one.glob("*.safetensors")):
        a, b = load_file(file), load_file(other / file.name)
        if a.keys() != b.keys():
            raise InputError(f"{other / file.name}: holds other weights than {file}")
        largest = max(largest, *(float((a[name].float() - b[name].float()).abs().max()) for name in a))
    return largest


def run(chosen: Recipe, shared: Path, output: Path, *, processes: int, hidden: int, extra: list[str]) -> dict:
    """Everything, and the report."""
    output.mkdir(parents=True, exist_ok=True)
    files = prepare(shared, output)
    rows = json.loads(files["captions"].read_text(encoding="utf-8"))
    models = output / "models"
    if not (models / "tower" / "config.json").is_file():
        build(chosen, [turn["value"] for row in rows for turn in row["conversations"]], models, hidden=hidden)
    common = ["--recipe", chosen.name, "--llm", str(models / "llm"), "--vision-tower", str(models / "tower")]
    common += ["--data", str(files["captions"]), "--images", str(output / "pretrain_images")]
    common += ["--instruct-data", str(files["instructions"]), "--instruct-images", str(output / "coco_images")]
    common += ["--use_cpu", "true", "--save_steps", "1", "--logging_steps", "1", "--disable_tqdm", "true", *extra]
    stages, seconds = {}, {}
    killed_at = None
    for name in ("killed", "unbroken"):
        log, start = output / f"{name}.log", time.time()
        folder = output / name / chosen.name
        arguments = [*common, "--output", str(output / name)]
        if name == "killed" and not is_complete(folder / "connector"):
            process = launch(arguments, log, processes)
            killed_at = kill_after_checkpoint(process, folder / "connector.partial", log)
        if launch(arguments, log, processes).wait():
            last = log.read_text(encoding="utf-8").strip().splitlines()[-1]
            raise InputError(f"the {name} run failed: {last} (whole output: {log})")
        seconds[name] = round(time.time() - start, 1)
    for stage in chosen.stages:
        one, other = (output / name / chosen.name / stage for name in ("killed", "unbroken"))
        lineage = read_lineage(one)
        rows = json.loads((one / "log.json").read_text(encoding="utf-8"))
        stages[stage] = {
            "steps": lineage["steps"],
            "records": lineage["records"],
            "processes": lineage["processes"],
            "attention": lineage["attention"],
            "nll_first_and_last": losses(one),
            "padding": [row["padding"] for row in rows if "padding" in row],
            "largest_difference_to_unbroken": difference(one, other),
        }
    if unlike := [stage for stage, row in stages.items() if row["largest_difference_to_unbroken"]]:
        raise InputError(
            f"{output}: the resumed run ended in other weights than the unbroken one in {', '.join(unlike)}"
        )
    return {
        "recipe": chosen.name,
        "killed_after_step_of_connector": killed_at,
        "stages": stages,
        "seconds": seconds,
        "data": {name: file_hash(path) for name, path in files.items()},
        "model": {"hidden": hidden, "layers": 2, "vocabulary": family_vocabulary(models / "llm")},
    }


def family_vocabulary(folder: Path) -> int:
    """Rows of the LLM's embedding."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rehearsal", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="qwen2.5-7b_sharegpt4v")
    parser.add_argument(
        "--shared",
        type=Path,
        default=Path(os.environ.get("DPA_SHARED", "../shared")),
        help="folder of the shared data (default: ../shared)",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/rehearsal"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=128, help="width of the two-layer LLM")
    parser.add_argument("--publish", type=Path, metavar="DIR", help="also write the report with its manifest to DIR")
    options, extra = parser.parse_known_args(arguments)
    report = run(
        recipe(options.recipe),
        options.shared,
        options.output,
        processes=options.processes,
        hidden=options.hidden,
        extra=extra,
    )
    print(json.dumps(report, indent=2))
    if options.publish:
        options.publish.mkdir(parents=True, exist_ok=True)
        write_json(options.publish / f"{options.recipe}.json", report | {"provenance": provenance()})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
