"""How much faster texts are scored and items are answered together than one at a time: same model, same run.

    python -m benchmarks.throughput [--hidden 512 --layers 8 --vocab 32000 --text-tokens 12 --image-tokens 9]
                                    [--turns 7] [--device cuda] [--json] [--publish FILE]

`scoring`: tokens a second of `analysis.scoring` over captions whose lengths scatter as those of real ones, beside a loop
over texts that takes the logits of the model's own forward. `evaluation`: items a second of `benchmarks.predict` over
the lab's items in batches, beside the same with a batch of one. The LLaVA model has random weights, which cost what
trained ones cost. Turns are interleaved, a ratio is the median over turns of a pair's quotient. On a CPU measure with
OMP_NUM_THREADS=1 or on an idle machine: threads that wait for a core hold up small products most, and flatter the ratio.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dpa.errors import InputError, command
from dpa.lineage import local_model, provenance, write_json

TOGETHER = {"scoring": "tokens", "evaluation": "items"}
SCATTER = 0.4  # standard deviation over mean of a caption's length: 0.38 in BLIP-LCS, 0.52 in Localized Narratives
PATCH = 8  # pixels of a patch; the tower is small, and the same in all


def build(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """(a causal LM with random weights, the LLaVA model around it, its processor); bf16 on a GPU."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel

    from dpa.model import compose
    from dpa.processing import build_processor, load_tokenizer

    tokenizer = load_tokenizer(str(local_model("lab")))
    side, heads = math.isqrt(options.image_tokens), options.hidden // 64
    if side * side != options.image_tokens or options.hidden % 64 or options.vocab < len(tokenizer):
        raise InputError(
            f"--image-tokens should be a square, --hidden a multiple of 64, --vocab at least {len(tokenizer)}"
        )
    sizes = {"hidden_size": options.hidden, "num_hidden_layers": options.layers, "vocab_size": options.vocab}
    sizes |= {"intermediate_size": round(2.75 * options.hidden)}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": heads}
    marks = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    dtype = torch.bfloat16 if options.device.startswith("cuda") else torch.float32
    torch.manual_seed(0)
    with torch.device(options.device):
        config = AutoConfig.for_model("llama", **sizes, **marks, max_position_embeddings=8192)
        llm = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
        tower = CLIPVisionModel(CLIPVisionConfig(image_size=PATCH * side, patch_size=PATCH, **small)).to(dtype)
    llava = compose(llm, tower, tokenizer).to(options.device).eval()
    return llm, llava, build_processor(tokenizer, tower)


def captions(number: int, tokens: int) -> list[str]:
    """`number` captions of about `tokens` tokens each in the lab's vocabulary, at least two words."""
    from dpa.lab.world import COLOURS, KINDS

    rng = random.Random(0)
    lengths = [max(2, round(rng.gauss(tokens - 1, SCATTER * tokens))) for _ in range(number)]  # the newline is one
    return [" ".join(rng.choices([*COLOURS, *KINDS], k=length)) for length in lengths]


def one_at_a_time(model, tokenizer, texts: Sequence[str]) -> list[float]:
    """Nats of each text by the model's own forward, all its logits in float32."""
    import torch

    nats = []
    with torch.no_grad():
        for text in texts:
            ids = tokenizer(text.strip() + "\n", return_tensors="pt").input_ids.to(model.device)
            log_p = model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
            nats.append(-float(log_p.gather(-1, ids[0, 1:, None]).sum()))
    return nats


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """{"ratios", "per_second" (medians: tokens of scoring, items of evaluation), "shape"}."""
    import torch

    from analysis.scoring import text_scores
    from benchmarks.generation import answers
    from benchmarks.lab import lab_items
    from benchmarks.questions import questions

    llm, llava, processor = build(options)
    texts = captions(options.texts, options.text_tokens)
    number = {"scoring": sum(tokens for _, tokens, _ in text_scores(llm, processor.tokenizer, texts))}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "pictures"
        items = lab_items(images, single=-(-options.items // 4), pairs=0, groups=0)
        number["evaluation"] = len(items)
        asked = questions(items, images)

        def ask(batch_size: int) -> None:
            list(answers(llava, processor, asked, images, batch_size=batch_size, max_new_tokens=options.new_tokens))

        pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
            "scoring": (
                lambda: text_scores(llm, processor.tokenizer, texts),
                lambda: one_at_a_time(llm, processor.tokenizer, texts),
            ),
            "evaluation": (lambda: ask(options.batch_size), lambda: ask(1)),
        }
        taken: dict[str, list[list[float]]] = {name: [] for name in pairs}
        for turn in range(options.turns + 1):
            for name, pair in pairs.items():
                seconds = []
                for run in pair:
                    start = time.perf_counter()
                    run()  # ends with results on the CPU, so a GPU has done its work
                    seconds.append(time.perf_counter() - start)
                if turn:  # the first turn warms up
                    taken[name].append(seconds)
    rates: dict[str, float] = {}
    for name, unit in TOGETHER.items():
        for column, way in enumerate(("together", "one_at_a_time")):
            median = statistics.median(turn[column] for turn in taken[name])
            rates[f"{name}_{unit}_{way}"] = number[name] / median
    ratios = {f"{name}/one_at_a_time": statistics.median(one / ours for ours, one in taken[name]) for name in taken}
    shape = {key: value for key, value in vars(options).items() if key not in ("json", "publish")}
    shape |= {
        "items": len(items),
        "threads": torch.get_num_threads(),
        "mean_text_tokens": round(number["scoring"] / len(texts), 2),
    }
    return {"ratios": ratios, "per_second": rates, "shape": shape}


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--texts", type=int, default=80, help="captions scored in a turn")
    parser.add_argument("--text-tokens", type=int, default=12, help="tokens of a caption, on average")
    parser.add_argument("--items", type=int, default=32, help="items answered in a turn, a multiple of 4")
    parser.add_argument("--image-tokens", type=int, default=9)
    parser.add_argument("--new-tokens", type=int, default=4, help="tokens of an answer")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--turns", type=int, default=7, help="turns measured, after one to warm up")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object alone")
    parser.add_argument("--publish", type=Path, metavar="FILE", help="also write the record with its manifest")
    options = parser.parse_args(arguments)
    if min(value for value in vars(options).values() if type(value) is int) < 1:
        raise InputError("all numbers, such as --texts, --items and --turns, should be positive")
    record = measure(options)
    if options.publish:
        options.publish.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.publish, record | {"provenance": provenance()})
    if options.json:
        print(json.dumps(record))
        return 0
    for name, unit in TOGETHER.items():
        together, one = (record["per_second"][f"{name}_{unit}_{way}"] for way in ("together", "one_at_a_time"))
        print(
            f"{name:<12}{together:>10.1f} {unit}/s, one at a time {one:.1f}: ratio {record['ratios'][f'{name}/one_at_a_time']:.2f}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
