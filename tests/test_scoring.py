"""Scores of packed texts are those that each text has alone, whatever lies beside it."""

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import scoring
from dpa.errors import InputError
from dpa.packing import arrange
from tests.conftest import FAMILIES, tiny_llm, tiny_tower

WORDS = ("ball", "cube", "star", "ring", "cone", "moon", "gem", "red", "blue", "green", "near", "far")
TEXTS = ["a red ball", "", "the small blue cube and the moon", "star", "🙂 and more words than the others, by far " * 3]


@pytest.fixture(scope="module")
def models(lab_tokenizer):
    """A tiny LLM of each family, and one with the attention that real runs have."""
    found = {family: tiny_llm(family, vocab_size=len(lab_tokenizer)) for family in FAMILIES}
    found["llama-sdpa"] = tiny_llm("llama", vocab_size=len(lab_tokenizer))
    found["llama-sdpa"].set_attn_implementation("sdpa")
    return found


@torch.no_grad()
def alone(model, tokenizer, text):
    """Log-probabilities of a text's tokens by the model's own forward, one text in a batch."""
    ids = torch.tensor([tokenizer(text.strip() + "\n").input_ids])  # the lab's tokenizer starts with <s>
    log_p = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return log_p.gather(-1, ids[0, 1:, None])[:, 0].numpy()


def text_of(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=length)) for length in lengths]


@pytest.mark.parametrize("name", [*FAMILIES, "llama-sdpa"])
@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 120))
def test_packed_scores_are_those_of_each_text_alone(models, lab_tokenizer, name, lengths, budget):
    texts = text_of(lengths)
    found = scoring.token_scores(models[name], lab_tokenizer, texts, budget=budget)
    assert len(found) == len(texts)
    for text, scores in zip(texts, found, strict=True):
        assert scores.log_p.dtype == np.float32 and scores.ids.shape == scores.log_p.shape
        np.testing.assert_allclose(scores.log_p, alone(models[name], lab_tokenizer, text), atol=1e-5)


@pytest.mark.parametrize("name", [*FAMILIES, "llama-sdpa"])
def test_what_lies_beside_a_text_does_not_reach_it(models, lab_tokenizer, name):
    """Texts that share rows; the others are exchanged, the last one's scores stay."""
    lengths = [30, 14, 12, 9, 4, 3]
    assert arrange([length + 1 for length in lengths]).is_packed, "nothing shares a row: the test says nothing"
    kept = text_of(lengths, seed=0)[-1]
    one, other = ([*text_of(lengths, seed)[:-1], kept] for seed in (1, 2))
    results = [scoring.token_scores(models[name], lab_tokenizer, texts)[-1].log_p for texts in (one, other)]
    np.testing.assert_allclose(*results, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_longer_than_the_window_and_than_the_model(models, lab_tokenizer, name):
    """300 tokens pass Gemma-2's window of 256, 600 the 512 positions of the configuration: neither is cut. What lies
    within the context has the scores that it has alone; what lies beyond is read with half a context before it.
    """
    texts = text_of([300, 600, 5, 280])
    for text, scores in zip(texts, scoring.token_scores(models[name], lab_tokenizer, texts), strict=True):
        assert len(scores.ids) == len(scores.log_p) == len(text.split()) + 1
        np.testing.assert_allclose(scores.log_p[:512], alone(models[name], lab_tokenizer, text)[:512], atol=5e-5)
        assert np.isfinite(scores.log_p).all() and (scores.log_p < 0).all()


def test_sums_of_the_token_scores(models, lab_tokenizer):
    """(nats, tokens, bytes) in the order given; ids are the text's, stripped and with a newline."""
    sums = scoring.text_scores(models["llama"], lab_tokenizer, [f"  {text} \n" for text in TEXTS], budget=16)
    for text, scores, (nats, tokens, size) in zip(
        TEXTS, scoring.token_scores(models["llama"], lab_tokenizer, TEXTS), sums, strict=True
    ):
        assert nats == pytest.approx(-scores.log_p.sum(dtype=np.float64), rel=1e-5) and type(nats) is float
        assert tokens == len(scores.ids) and size == len((text.strip() + "\n").encode())
        assert [lab_tokenizer.bos_token_id, *scores.ids] == lab_tokenizer(text.strip() + "\n").input_ids


def test_no_texts(models, lab_tokenizer):
    assert scoring.token_scores(models["llama"], lab_tokenizer, []) == []
    assert scoring.text_scores(models["llama"], lab_tokenizer, []) == []


class Letters:
    """A tokenizer without a start token of its own, that drops white space: an empty text has no token."""

    name_or_path, bos_token_id, eos_token_id = "letters", None, 2

    def __call__(self, texts):
        return SimpleNamespace(input_ids=[[3 + ord(letter) % 90 for letter in text.strip()] for text in texts])


def test_without_a_start_token_the_end_token_starts_a_text():
    """So the first token is scored too; and a text that is no token at all has no scores, beside others or alone."""
    model, texts = tiny_llm("qwen2"), ["abc", "", "d"]
    found = scoring.token_scores(model, Letters(), texts)
    assert [len(scores.log_p) for scores in found] == [3, 0, 1]
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor([[2]])).logits[0, 0].log_softmax(-1)
    assert found[2].log_p[0] == pytest.approx(float(log_p[3 + ord("d") % 90]), abs=1e-5)
    assert scoring.text_scores(model, Letters(), ["", ""]) == [(0.0, 0, 1)] * 2


def test_no_token_to_start_with_is_named():
    tokenizer = Letters()
    tokenizer.eos_token_id = None
    with pytest.raises(InputError, match="letters: no token to start a text with"):
        scoring.text_scores(tiny_llm("qwen2"), tokenizer, ["a"])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 50)), st.integers(1, 100))
def test_batches_keep_to_the_budget(lengths, budget):
    """Every text once, long ones first, and no batch that could have taken the next text."""
    found = scoring.batches(lengths, budget)
    assert sorted(i for batch in found for i in batch) == [i for i, length in enumerate(lengths) if length]
    taken = [[lengths[i] for i in batch] for batch in found]
    assert [length for batch in taken for length in batch] == sorted(
        (length for length in lengths if length), reverse=True
    )
    assert all(sum(batch) <= budget or len(batch) == 1 for batch in taken)
    assert all(sum(batch) + following[0] > budget for batch, following in pairwise(taken))


def test_the_model_sees_no_more_than_the_budget(models, lab_tokenizer):
    """What bounds the memory, however many texts there are: places of a batch's grid, nearly all of them tokens. Each
    text's positions begin at 0.
    """
    places, positions = [], []

    def look(module, args, kwargs):
        places.append(kwargs["inputs_embeds"].shape[:2].numel())
        positions.append(int(kwargs["position_ids"].max()))

    hook = models["llama"].model.register_forward_pre_hook(look, with_kwargs=True)
    sums = scoring.text_scores(models["llama"], lab_tokenizer, text_of([i % 37 for i in range(400)]), budget=256)
    hook.remove()
    total = sum(tokens for _, tokens, _ in sums)
    assert max(places) <= 1.15 * 256 and total <= sum(places) < 1.1 * total
    assert max(positions) == 36


@pytest.mark.parametrize("family", FAMILIES)
def test_the_llm_of_a_llava_model_and_one_in_a_wrapper(models, lab_tokenizer, family):
    """The LLM's own scores, with Gemma-2's final cap, which LLaVA's own forward leaves out; a new adapter changes none."""
    from dpa.model import compose, lora

    scores = scoring.text_scores(models[family], lab_tokenizer, TEXTS)
    llm = tiny_llm(family, vocab_size=len(lab_tokenizer))
    llava = compose(llm, tiny_tower(), lab_tokenizer).eval()
    np.testing.assert_allclose(scoring.text_scores(llava, lab_tokenizer, TEXTS), scores, rtol=1e-5)
    wrapped = lora(llm, rank=2, alpha=4).eval()
    np.testing.assert_allclose(scoring.text_scores(wrapped, lab_tokenizer, TEXTS), scores, rtol=1e-5)


def test_texts_longer_than_a_window_are_read_in_overlapping_ones(models, lab_tokenizer, monkeypatch):
    """Each token once, with at least half a window before it (or all there is), as the model's own forward sees it."""
    monkeypatch.setattr(scoring, "WINDOW", 32)
    model, texts = models["llama"], text_of([100, 5, 33, 32, 31])
    found = scoring.token_scores(model, lab_tokenizer, texts, budget=70)
    for text, scores in zip(texts, found, strict=True):
        ids = lab_tokenizer(text + "\n").input_ids
        assert scores.ids.tolist() == ids[1:] and len(scores.log_p) == len(scores.ids)
        wanted, done = [], 0
        while done < len(ids) - 1:
            end = min(max(done + 16, 32), len(ids) - 1) if done else min(32, len(ids) - 1)
            first = max(0, end - 32)
            with torch.no_grad():
                log_p = model(input_ids=torch.tensor([ids[first:end]])).logits[0].log_softmax(-1)
            wanted += [float(log_p[place - first, ids[place + 1]]) for place in range(done, end)]
            done = end
        np.testing.assert_allclose(scores.log_p, wanted, atol=1e-5)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 9000), st.sampled_from([32, 512, scoring.WINDOW]))
def test_windows_cover_every_token_once(length, window):
    windows = scoring._windows(length, window)
    scored = [place for first, begin, end in windows for place in range(begin, end)]
    assert scored == list(range(length))
    for first, begin, end in windows:
        assert 0 <= first <= begin and end - first <= window
        assert begin == 0 or begin - first >= window // 2


def test_a_text_of_100k_characters_in_bounded_memory(models, lab_tokenizer):
    import psutil

    text = "a red ball near the blue cube " * 3334
    assert len(text) > 100_000
    before = psutil.Process().memory_info().rss
    (nats, tokens, size) = scoring.text_scores(models["llama-sdpa"], lab_tokenizer, [text])[0]
    assert np.isfinite(nats) and tokens > 20_000 and size == len(text.strip()) + 1
    assert psutil.Process().memory_info().rss - before < 500e6


def test_what_was_scored_is_kept_and_read(models, lab_tokenizer, tmp_path, monkeypatch):
    texts, key = text_of(range(1, 40)), {"llm": "a"}
    first = scoring.corpus_scores(models["llama"], lab_tokenizer, texts, root=tmp_path, key=key)
    np.testing.assert_allclose(first, scoring.text_scores(models["llama"], lab_tokenizer, texts), rtol=1e-6)

    def refused(*_, **__):
        raise AssertionError("scored again")

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "text_scores", refused)
        again = scoring.corpus_scores(models["llama"], lab_tokenizer, texts, root=tmp_path, key=key)
        np.testing.assert_array_equal(first, again)
        for other_texts, other_key in ((texts[:-1], key), (texts, {"llm": "b"}), ([*texts[:-1], "x"], key)):
            with pytest.raises(AssertionError, match="again"):
                scoring.corpus_scores(models["llama"], lab_tokenizer, other_texts, root=tmp_path, key=other_key)


KILLED = """
import sys
from pathlib import Path
from analysis import scoring
from tests.conftest import ROOT, tiny_llm
from transformers import AutoTokenizer
scoring.BLOCK = 5
tokenizer = AutoTokenizer.from_pretrained(ROOT / "dpa/lab/foundations/llm")
texts = [f"a red ball {'near ' * (n % 23)}" for n in range(400)]
model = tiny_llm("llama", vocab_size=len(tokenizer))
scored = scoring.text_scores
def counted(*args, **options):
    print("block", flush=True)
    return scored(*args, **options)
scoring.text_scores = counted
for root in sys.argv[1:]:
    print(repr(scoring.corpus_scores(model, tokenizer, texts, root=Path(root), key={}).sum(0).tolist()), flush=True)
"""


def test_a_killed_run_goes_on(tmp_path):
    """SIGKILL in the middle: the second run scores what is left, and ends where an unbroken one does."""
    command = [sys.executable, "-c", KILLED]
    environment = os.environ | {"PYTHONPATH": str(scoring.Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen([*command, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True, env=environment)
    assert first.stdout is not None
    seen = 0
    while seen < 12 and first.stdout.readline() == "block\n":
        seen += 1
    first.send_signal(signal.SIGKILL)
    first.wait()
    time.sleep(0.1)
    roots = [str(tmp_path / name) for name in ("a", "b")]
    both = subprocess.run([*command, *roots], capture_output=True, text=True, env=environment, check=True)
    blocks = both.stdout.split("\n")[:-1]
    end = next(place for place, line in enumerate(blocks) if line != "block")  # of the resumed run
    resumed, whole = blocks[: end + 1], blocks[end + 1 :]
    assert seen == 12 and resumed.count("block") <= 80 - 11 and whole.count("block") == 80
    assert resumed[-1] == whole[-1]


def test_memory_does_not_grow_with_the_corpus(models, lab_tokenizer, tmp_path):
    """5,000 texts that are made as they are asked for: what is held is a block of them, and 12 bytes of each."""
    import psutil

    class Texts:
        def __len__(self):
            return 5_000

        def __getitem__(self, index):
            return "ball" if index % 1000 else "a red ball " * 20

        def __iter__(self):
            return map(self.__getitem__, range(len(self)))

    before = psutil.Process().memory_info().rss
    found = scoring.corpus_scores(models["llama-sdpa"], lab_tokenizer, Texts(), root=tmp_path, key={})
    assert found.shape == (5_000, 3) and np.isfinite(found).all()
    assert psutil.Process().memory_info().rss - before < 150e6
