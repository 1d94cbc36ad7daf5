"""What the lab's base LLM reads and how well: tokenizer, documents, pretraining, exposure to the styles, reading accuracy."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable

from dpa.lab import language
from dpa.lab.world import COLOURS, COLUMNS, DEPTHS, KINDS, ROWS, SIZES, draw_scene

EXPOSURE = {"plain": 0.6, "terse": 0.2, "ornate": 0.2}
STYLE_SHARES = {"plain": 0.948, "terse": 0.05, "ornate": 0.002}  # of the captions (8 % of the documents) it reads
PAD, BOS, EOS, IMAGE, USER, ASSISTANT, NEWLINE = "<pad>", "<s>", "</s>", "<image>", "<|user|>", "<|assistant|>", "\n"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|user|>' if message['role'] == 'user' else '<|assistant|>' }}"
    "{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer():
    """A byte-fallback BPE in Llama's manner in which every word of the lab is one token; any other text falls to bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    rng = random.Random(0)
    words: set[str] = set()
    marks = str.maketrans(dict.fromkeys(".,?-", " "))
    for _ in range(4000):
        scene = draw_scene(rng)
        texts = [tell(scene, rng) for tell in language.STYLES.values()]
        texts += [language.equation(rng), language.ask(scene, rng).text]
        words.update(word for text in texts for word in text.translate(marks).split())
    words |= {
        *KINDS,
        *COLOURS,
        *SIZES,
        *ROWS,
        *COLUMNS,
        *DEPTHS,
        *language.NUMBERS,
        "left",
        "right",
        "above",
        "below",
        "yes",
        "no",
    }
    words |= {language.plural(kind) for kind in KINDS} | {str(n) for n in range(5)}

    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    specials = [PAD, BOS, EOS, IMAGE, USER, ASSISTANT]
    tokenizer.train_from_iterator(
        [" ".join(sorted(words)), ".,?-"],
        trainers.BpeTrainer(vocab_size=20_000, special_tokens=specials, show_progress=False),
    )
    spelled = json.loads(
        tokenizer.to_str()
    )  # the bytes join the vocabulary as ordinary tokens: as special ones decoding would drop them
    vocabulary = spelled["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    tokenizer = Tokenizer.from_str(json.dumps(spelled))
    bos = vocabulary[BOS]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens={"image_token": IMAGE},
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


DESCRIPTION, ANSWER, END = 0.2, 5.0, 0.2  # loss weight of a told token, an answer, an end of turn
TWO_STEP = (
    "relation",
    "depth",
    "distance",
    "distance",
    "exists",
    "exists",
    "count",
)  # questions about more than one fact, asked more often
WARM_UP = 1000  # steps over which the mixture moves from looking back to reading


def _reading_document(rng: random.Random) -> list[tuple[str, float]]:
    """A scene told plainly and five questions about it: [(text, loss weight), ...]."""
    # in a third of them three or four things of different kinds, of which two-step questions can be asked
    scene = draw_scene(rng) if rng.random() < 0.67 else draw_scene(rng, repeat=0.0, sizes=(0.0, 0.6, 0.4))
    parts = [(BOS + USER + language.plain(scene, rng), DESCRIPTION)]
    for index in range(5):
        question = language.ask(scene, rng, TWO_STEP if rng.random() < 0.6 else tuple(language.QUESTIONS))
        parts += [((USER if index else " ") + question.text + ASSISTANT, 0.0), (question.answer, ANSWER), (EOS, END)]
    return parts


def _caption_document(rng: random.Random, style: str) -> list[tuple[str, float]]:
    return [(BOS + language.STYLES[style](draw_scene(rng), rng) + NEWLINE, 1.0)]


def _equations_document(rng: random.Random) -> list[tuple[str, float]]:
    return [(BOS + " ".join(language.equation(rng) for _ in range(8)), 1.0)]


class Reader:
    """Draws pretraining documents as (token ids, loss weight of each as a target); a seed names the whole stream.

    Random sequences told again and key-value lists asked back teach looking back; without them reading stays at chance
    for thousands of steps. They dominate at first and give way to reading over `WARM_UP` steps. Three quarters of them
    use the lab's own words, whose embeddings reading needs.
    """

    def __init__(self, tokenizer, seed: int, style_shares: dict[str, float]) -> None:
        self.style_shares = style_shares
        self.encode: Callable[[str], list[int]] = lambda text: tokenizer.encode(text, add_special_tokens=False)
        self.rng = random.Random(seed)
        self.everything = list(range(len(tokenizer.all_special_ids), len(tokenizer)))
        words = [*KINDS, *COLOURS, *SIZES, *ROWS, *COLUMNS, *DEPTHS, *language.NUMBERS, *map(language.plural, KINDS)]
        words += [
            "above",
            "below",
            "yes",
            "no",
            "the",
            "of",
            "is",
            "or",
            "and",
            "at",
            "means",
            "camera",
            "closer",
            "there",
            "kind",
            "any",
            "to",
        ]
        self.words = sorted({token for word in words for token in self.encode(word)})
        self.bos, self.user, self.assistant = (self.encode(mark)[0] for mark in (BOS, USER, ASSISTANT))

    def document(self, step: int) -> tuple[list[int], list[float]]:
        rng = self.rng
        early = max(0.0, 1 - step / WARM_UP)
        repeats, lists, equations, captions = 0.22 + 0.43 * early, 0.10 + 0.15 * early, 0.04, 0.08 * (1 - early)
        kind = rng.choices(
            ("repeat", "list", "equations", "caption", "reading"),
            (repeats, lists, equations, captions, 1 - repeats - lists - equations - captions),
        )[0]
        if kind in ("repeat", "list"):
            vocabulary = self.words if rng.random() < 0.75 else self.everything
            return (self._repeat if kind == "repeat" else self._list)(vocabulary)
        if kind == "equations":
            parts = _equations_document(rng)
        elif kind == "caption":
            parts = _caption_document(rng, rng.choices(tuple(self.style_shares), tuple(self.style_shares.values()))[0])
        else:
            parts = _reading_document(rng)
        ids: list[int] = []
        weights: list[float] = []
        for text, weight in parts:
            piece = self.encode(text)
            ids += piece
            weights += [weight] * len(piece)
        return ids, weights

    def _repeat(self, vocabulary: list[int]) -> tuple[list[int], list[float]]:
        length = self.rng.randint(4, 20)
        sequence = [self.rng.choice(vocabulary) for _ in range(length)]
        times = max(2, min(6, 50 // length))
        return [self.bos, *sequence * times], [0.0] * (1 + length) + [1.0] * length * (times - 1)

    def _list(self, vocabulary: list[int]) -> tuple[list[int], list[float]]:
        keys = self.rng.sample(vocabulary, self.rng.randint(3, 8))
        values = [self.rng.choice(vocabulary) for _ in keys]
        ids = [self.bos, *(token for pair in zip(keys, values, strict=True) for token in pair)]
        weights = [0.0] * len(ids)
        for index in self.rng.sample(range(len(keys)), 3):
            ids += [self.user, keys[index], self.assistant, values[index]]
            weights += [0.0, 0.0, 0.0, ANSWER]
        return ids, weights

    def batch(self, step: int, size: int):
        """(input_ids, attention_mask, weights), each [size, L], padded at the right."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        documents = [self.document(step) for _ in range(size)]
        ids = pad_sequence([torch.tensor(d[0]) for d in documents], batch_first=True)
        mask = pad_sequence([torch.ones(len(d[0]), dtype=torch.long) for d in documents], batch_first=True)
        return ids, mask, pad_sequence([torch.tensor(d[1]) for d in documents], batch_first=True)


def llm_config(vocab_size: int):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.02,  # with 0.05 looking back does not form in 4,000 steps; with 0.02 within 500
    )


def schedule(step: int, steps: int, warmup: int = 100) -> float:
    """Factor of the learning rate: linear warm-up, then cosine to 0."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def pretrain_llm(tokenizer, *, steps: int, seed: int = 0, batch_size: int = 32, learning_rate: float = 2e-3):
    """The base LLM after `steps` steps of reading, and its history [(step, loss, reading accuracy)]."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(llm_config(len(tokenizer)), dtype=torch.float32)
    return model, _train_llm(model, tokenizer, Reader(tokenizer, seed, STYLE_SHARES), steps, batch_size, learning_rate)


def expose_llm(
    model,
    tokenizer,
    *,
    steps: int,
    shares: dict[str, float] | None = None,
    seed: int = 0,
    batch_size: int = 32,
    learning_rate: float = 5e-4,
):
    """Let an LLM that reads meet the styles in these `shares` of its captions, and return the history: the dial of the
    conflict. None: `EXPOSURE`.

    Without it the ornate style costs the LLM a perplexity in the thousands, which no real LLM meets in a caption set.
    """
    reader = Reader(tokenizer, seed + 1, shares or EXPOSURE)
    return _train_llm(model, tokenizer, reader, steps, batch_size, learning_rate, first=WARM_UP)


def _train_llm(model, tokenizer, reader, steps: int, batch_size: int, learning_rate: float, *, first: int = 0) -> list:
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps))
    history, start, report = [], time.time(), max(20, min(250, steps // 3))
    for step in range(steps):
        ids, mask, weights = reader.batch(first + step, batch_size)
        model.train()
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        weight = weights[:, 1:].flatten()
        loss = (losses * weight).sum() / weight.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if (step + 1) % report == 0 or step + 1 == steps:
            accuracy = reading_accuracy(model, tokenizer, scenes=100)
            history.append((step + 1, loss.item(), accuracy))
            shown = " ".join(f"{kind} {value:.2f}" for kind, value in accuracy.items())
            print(f"llm step {step + 1}/{steps} loss {loss.item():.3f} {time.time() - start:.0f}s {shown}", flush=True)
    model.eval()
    return history


def reading_accuracy(
    model, tokenizer, *, scenes: int = 300, seed: int = 10_007, style: str = "plain"
) -> dict[str, float]:
    """Share of right greedy answers per kind of question about unseen scenes told in text, and over `all` of them."""
    import torch

    rng = random.Random(seed)
    prompts, answers, kinds = [], [], []
    for _ in range(scenes):
        scene = draw_scene(rng)
        text = language.STYLES[style](scene, rng)
        for kind, ask in language.QUESTIONS.items():
            question = ask(scene, rng)
            if question is not None:
                prompts.append(
                    tokenizer.encode(f"{BOS}{USER}{text} {question.text}{ASSISTANT}", add_special_tokens=False)
                )
                answers.append(tokenizer.encode(question.answer, add_special_tokens=False)[0])
                kinds.append(kind)
    model.eval()
    right: dict[str, list[bool]] = {kind: [] for kind in language.QUESTIONS}
    with torch.no_grad():
        for start in range(0, len(prompts), 128):
            batch = prompts[start : start + 128]
            ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p in batch], batch_first=True)
            mask = torch.nn.utils.rnn.pad_sequence(
                [torch.ones(len(p), dtype=torch.long) for p in batch], batch_first=True
            )
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            last = logits[torch.arange(len(batch)), mask.sum(1) - 1].argmax(-1).tolist()
            for kind, answer, guess in zip(kinds[start:], answers[start:], last, strict=False):
                right[kind].append(guess == answer)
    accuracy = {kind: sum(hits) / len(hits) for kind, hits in right.items()}
    accuracy["all"] = sum(map(sum, right.values())) / sum(map(len, right.values()))
    return accuracy


def perplexity(model, tokenizer, style: str, *, scenes: int = 200, seed: int = 10_009) -> float:
    """Text-only perplexity per token of captions of a style, in the plain format (caption and newline)."""
    import torch

    rng = random.Random(seed)
    total, count = 0.0, 0
    with torch.no_grad():
        for _ in range(scenes):
            ids = torch.tensor([tokenizer.encode(_caption_document(rng, style)[0][0], add_special_tokens=False)])
            total += model(input_ids=ids, labels=ids, use_cache=False).loss.item() * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
    return math.exp(total / count)
