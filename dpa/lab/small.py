"""A small LLM and CLIP tower built from configuration, for real records on a laptop.

    python -m dpa.lab.small --text FILE ... --out DIR

The tokenizer is trained on the texts, the LLM (Qwen2, two layers) learns from them for a few minutes, so that it has a
prior of its own; the tower keeps its random weights. Nothing here replaces a pretrained model: it lets every step of the
real path run on real records.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dpa.errors import InputError, command

VOCABULARY, BLOCK = 4000, 128
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(texts: Sequence[str]):
    """A byte-level BPE of Qwen2.5's shape (chat marks, a reserved image token, no beginning-of-sequence token)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )


FAMILIES = {"Qwen/": "qwen2", "meta-llama/": "llama", "lmsys/": "llama", "google/gemma-2": "gemma2"}


def family_config(llm: str, *, layers: int | None = None, hidden: int | None = None):
    """The transformers configuration of a paper-size LLM by its hub id, from `dpa.costs.SHAPES`; with `layers` and
    `hidden` a small one of the same class and vocabulary size.
    """
    from transformers import AutoConfig

    from dpa.costs import SHAPES

    family = next((name for prefix, name in FAMILIES.items() if llm.startswith(prefix)), None)
    if llm not in SHAPES or family is None:
        raise InputError(f"{llm}: its shape is not known; there are {', '.join(SHAPES)}")
    shape = SHAPES[llm]
    width = hidden or shape.hidden
    heads = shape.heads if hidden is None else 4
    fields = {
        "vocab_size": shape.vocab,
        "hidden_size": width,
        "intermediate_size": shape.intermediate if hidden is None else round(2.75 * hidden),
        "num_hidden_layers": layers or shape.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shape.kv_heads if hidden is None else 2,
        "head_dim": shape.head_dim if hidden is None else width // heads,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": shape.tied,
    }
    return AutoConfig.for_model(family, **fields)


def build(
    texts: Sequence[str], out: Path, *, tokenizer_texts: Sequence[str] = (), steps: int = 400, seed: int = 0
) -> None:
    """Write OUT/llm (trained on `texts`) and OUT/tower (random). `tokenizer_texts`: further text for the tokenizer alone."""
    import torch
    from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, Qwen2Config, TrainingArguments

    from dpa.data import Collator
    from dpa.methods import NONE
    from dpa.trainer import DPATrainer

    torch.manual_seed(seed)
    tokenizer = build_tokenizer([*texts, *tokenizer_texts])
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    llm = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    ids = torch.tensor(tokenizer("\n".join(texts)).input_ids)
    blocks = ids[: len(ids) // BLOCK * BLOCK].view(-1, BLOCK)
    if not len(blocks):
        raise InputError(f"the texts hold {len(ids)} tokens, fewer than one block of {BLOCK}; give more text")
    arguments = TrainingArguments(
        output_dir=str(out / "llm.partial"),
        max_steps=steps,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        warmup_steps=0.05,
        lr_scheduler_type="cosine",
        save_strategy="no",
        report_to="none",
        seed=seed,
        dataloader_pin_memory=False,
        logging_steps=50,
        remove_unused_columns=False,
    )
    samples = [{"input_ids": block, "labels": block} for block in blocks]
    DPATrainer(
        model=llm, args=arguments, train_dataset=samples, data_collator=Collator(tokenizer.pad_token_id), weighting=NONE
    ).train()
    llm.save_pretrained(out / "llm")
    tokenizer.save_pretrained(out / "llm")
    tower = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=96, patch_size=16
    )
    CLIPVisionModel(tower).save_pretrained(out / "tower")


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dpa.lab.small", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--text", type=Path, nargs="+", required=True, help="text files that the LLM and tokenizer learn from"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args(arguments)
    missing = [path for path in options.text if not path.is_file()]
    if missing:
        raise InputError(f"{missing[0]}: no such text file; give plain text with --text")
    build([path.read_text(encoding="utf-8") for path in options.text], options.out, steps=options.steps)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
