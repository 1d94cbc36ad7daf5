"""Text-only perplexity of captions under the base LLM and under its proxy: the size of the language prior conflict.

    python -m analysis.perplexity --llm lab --proxy runs/lab_ornate/proxy --captions FILE ...

The paper does not measure this. A caption counts as it is trained on (caption and newline, after a start token); bits per byte compare across tokenizers.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from dpa.errors import InputError, command


def read_captions(path: Path) -> list[str]:
    """Captions of a LLaVA JSON file, or the lines of a plain text file; empty lines are passed over."""
    if path.suffix in (".json", ".jsonl"):
        from dpa.corpus import read_records

        return [record.caption for record in read_records(path, "text")]
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    if not lines:
        raise InputError(f"{path}: holds no text; expected one caption a line or a LLaVA JSON file")
    return lines


def perplexity_table(llm: str, proxy: Path | None, captions: Sequence[Path]):
    """DataFrame: for each caption file and model the number of texts, nats per token, perplexity and bits per byte."""
    import pandas as pd

    from analysis.scoring import text_scores
    from dpa.lineage import local_model
    from dpa.model import load_llm, load_proxy
    from dpa.processing import load_tokenizer

    llm = str(local_model(llm, "llm"))
    tokenizer = load_tokenizer(llm)
    models = {"base": load_llm(llm).eval()} | ({"proxy": load_proxy(llm, proxy).eval()} if proxy else {})
    rows = []
    for path in captions:
        texts = read_captions(path)
        for name, model in models.items():
            nats, tokens, size = (sum(column) for column in zip(*text_scores(model, tokenizer, texts), strict=True))
            rows.append(
                {
                    "captions": path.stem,
                    "model": name,
                    "texts": len(texts),
                    "nats_per_token": nats / tokens,
                    "perplexity": math.exp(nats / tokens),
                    "bits_per_byte": nats / math.log(2) / size,
                }
            )
    return pd.DataFrame(rows)


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.perplexity", description=__doc__.split("\n")[0])
    parser.add_argument("--llm", required=True, help="folder or hub id of the base LLM, or `lab`")
    parser.add_argument("--proxy", type=Path, help="folder of a finished stage 1 (its LoRA adapter)")
    parser.add_argument(
        "--captions",
        type=Path,
        nargs="+",
        required=True,
        help="LLaVA JSON files, or text files with one caption a line",
    )
    options = parser.parse_args(arguments)
    print(
        perplexity_table(options.llm, options.proxy, options.captions).to_string(
            index=False, float_format=lambda x: f"{x:.3f}"
        )
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
