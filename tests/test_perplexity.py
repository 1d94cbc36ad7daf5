"""Perplexity of held-out captions: a source of known entropy, what is left out, paired differences, hostile texts."""

import json
import math
import random

import numpy as np
import pytest
import torch

from analysis import perplexity
from analysis.captions import read_all, read_captions
from analysis.perplexity import conflict_table, matrix, perplexity_table, score
from dpa.corpus import text_hashes
from dpa.errors import InputError
from tests.conftest import command, tiny_llm

LETTERS = "abcdefgh"


def chain(seed):
    """A Markov chain over `LETTERS` with an end: transition matrix [9, 9], row 0 the start, column 0 the end."""
    rng = np.random.default_rng(seed)
    steps = rng.dirichlet(np.full(9, 0.5), size=9)
    steps[:, 0] = 0.02  # of ending
    steps[0, 0] = 0.0
    return steps / steps.sum(1, keepdims=True)


def told(steps, number, seed):
    rng, rows, texts = random.Random(seed), [row.tolist() for row in steps], []
    for _ in range(number):
        text = ""
        while state := rng.choices(range(9), rows[LETTERS.index(text[-1]) + 1 if text else 0])[0]:
            text += LETTERS[state - 1]
        texts.append(text)
    return texts


def write_bigram_llm(folder, steps):
    """An LLM that is the chain: one-hot embeddings, layers that add nothing, lm_head the logs of the transitions.

    Tokens: 0 pad, 1 start, 2 newline (the end), 3.. letters.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<s>": 1, "\n": 2, **{letter: 3 + n for n, letter in enumerate(LETTERS)}, "<unk>": 11}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    size = len(vocabulary)
    config = LlamaConfig(
        **{
            "vocab_size": size,
            "hidden_size": size,
            "intermediate_size": 4,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
        },
        **{
            "rms_norm_eps": 1e-12,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        parameter.data.fill_(1.0 if "norm" in name else 0.0)
    model.model.embed_tokens.weight.data = torch.eye(size)
    logits = torch.full((size, size), -100.0)  # [next, previous]
    for row, previous in enumerate([1, *range(3, 11)]):
        for column, following in enumerate([2, *range(3, 11)]):
            logits[following, previous] = math.log(max(steps[row, column], 1e-30))
    model.lm_head.weight.data = logits / math.sqrt(size)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="\n", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)


def entropy(steps):
    """(bits per byte, nats per token) of the chain's texts, a newline at the end of each: exactly, by its stationary flow."""
    inner = steps[1:, 1:]
    visits = np.concatenate([[1.0], np.linalg.solve(np.eye(8) - inner.T, steps[0, 1:])])  # of each state in a text
    with np.errstate(divide="ignore", invalid="ignore"):
        nats = -np.nansum(np.where(steps > 0, steps * np.log(steps), 0.0), axis=1)
    return visits @ nats / visits.sum() / math.log(2), visits @ nats / visits.sum()


def test_bits_per_byte_of_a_source_of_known_entropy(tmp_path):
    steps = chain(0)
    write_bigram_llm(tmp_path / "llm", steps)
    texts = told(steps, 1500, 1)
    (tmp_path / "chain.txt").write_text("\n".join(texts) + "\n")
    found = score(str(tmp_path / "llm"), {}, [read_captions(tmp_path / "chain.txt")], cache=tmp_path / "scores")
    row = perplexity_table(found).iloc[0]
    bits, nats = entropy(steps)
    assert row["repeated"] < 300  # short texts recur
    assert row["bits_per_byte"] == pytest.approx(bits, rel=0.01) and row["nats_per_token"] == pytest.approx(
        nats, rel=0.01
    )
    assert row["bits_per_byte_low"] < row["bits_per_byte"] < row["bits_per_byte_high"]
    assert row["bits_per_byte_high"] - row["bits_per_byte_low"] < 0.05 * bits
    assert row["perplexity"] == pytest.approx(math.exp(row["nats_per_token"]))
    other = tmp_path / "other"
    write_bigram_llm(other, chain(5))
    worse = perplexity_table(score(str(other), {}, [read_captions(tmp_path / "chain.txt")], cache=tmp_path / "scores"))
    assert worse["bits_per_byte"].iloc[0] > 1.2 * bits


@pytest.fixture(scope="module")
def proxy(tiny_models, data, tmp_path_factory):
    """A finished stage 1 of the tiny LLM on the forty captions of `data`."""
    from dpa import train

    output = tmp_path_factory.mktemp("proxy")
    assert train.main(command(tiny_models, data, output, stage="proxy")) == 0
    return output / "small" / "proxy"


def captions_of(data):
    return [row["conversations"][1]["value"] for row in json.loads((data / "captions.json").read_text())]


def test_captions_that_the_proxy_was_trained_on_are_left_out(tiny_models, data, proxy, tmp_path):
    """By their text, in whatever file they stand, for the base LLM too."""
    trained = captions_of(data)
    unseen = [f"a red ball, number {n}" for n in range(12)]
    (tmp_path / "mixed.txt").write_text("\n".join([*trained[:5], *unseen, *unseen[:3]]) + "\n\n")
    parts = read_all([tmp_path / "mixed.txt"])
    assert (len(parts[0]), parts[0].repeated) == (17, 3)
    found = score(str(tiny_models["llm"]), {"p": proxy}, parts, cache=tmp_path / "scores")
    table = perplexity_table(found)
    assert table["texts"].tolist() == [12, 12] and table["trained_on"].tolist() == [5, 5]
    assert table["model"].tolist() == ["base", "p"]
    assert list(found.captions["mixed"]) == unseen == [found.captions["mixed"][n] for n in range(12)]
    with pytest.raises(InputError, match="all 40 captions are among those"):
        score(str(tiny_models["llm"]), {"p": proxy}, read_all([data / "captions.json"]), cache=tmp_path)


def test_the_paired_difference_is_that_of_the_columns(tiny_models, proxy, tmp_path):
    (tmp_path / "a.txt").write_text(
        "".join(f"the {w} cube {'near ' * n}\n" for n, w in enumerate(["red", "blue"] * 10))
    )
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"caption": f"ring {n}\nand gem"}) + "\n" for n in range(15)))
    found = score(
        str(tiny_models["llm"]), {"p": proxy}, read_all([tmp_path / "a.txt", tmp_path / "b.jsonl"]), cache=tmp_path
    )
    table, conflict = perplexity_table(found), conflict_table(found)
    wide = matrix(table)
    assert wide.index.tolist() == ["a", "b"] and wide.columns.tolist() == ["base", "p"]
    for row in conflict.to_dict("records"):
        saved = wide.loc[row["captions"], "base"] - wide.loc[row["captions"], "p"]
        assert row["bits_per_byte_saved"] == pytest.approx(saved, abs=1e-9)
        assert row["bits_per_byte_saved_low"] <= saved <= row["bits_per_byte_saved_high"]
        assert row["perplexity_ratio"] == pytest.approx(math.exp(row["nats_per_token_saved"]))
    one, paired = (frame.iloc[0] for frame in (table, conflict))
    assert (
        paired["bits_per_byte_saved_high"] - paired["bits_per_byte_saved_low"]
        < one["bits_per_byte_high"] - one["bits_per_byte_low"]
    )


def test_a_proxy_that_does_not_tell_and_one_of_another_llm(tiny_models, proxy, lab_tokenizer, tmp_path):
    import shutil

    (tmp_path / "a.txt").write_text("a red ball\na blue cube\n")
    parts = read_all([tmp_path / "a.txt"])
    silent = tmp_path / "silent"
    shutil.copytree(proxy, silent)
    (silent / "trained_on.npy").unlink()
    with pytest.raises(InputError, match="does not tell which captions it was trained on; name them with --trained-on"):
        score(str(tiny_models["llm"]), {"p": silent}, parts, cache=tmp_path)
    found = score(
        str(tiny_models["llm"]), {"p": silent}, parts, cache=tmp_path, trained_on=text_hashes(["a blue cube"])
    )
    assert list(found.captions["a"]) == ["a red ball"]
    (silent / "trained_on.npy").write_bytes(b"\x93NUMPY cut")
    with pytest.raises(InputError, match=r"trained_on.npy: cannot be read .*; train the proxy again"):
        score(str(tiny_models["llm"]), {"p": silent}, parts, cache=tmp_path)
    tiny_llm("llama", vocab_size=len(lab_tokenizer), seed=9).save_pretrained(tmp_path / "other")
    lab_tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="was made for another LLM"):
        score(str(tmp_path / "other"), {"p": proxy}, parts, cache=tmp_path)


HOSTILE = [
    *(
        "ball",
        "🙂🙂",
        "東京の猫 и кот على",
        "\x00NUL\x00",
        "x\u2028y\x0bz\x85w",
        "ball " * 20_000,
        "\u202eright to left",
        "<s></s>",
    ),
    *("ein Käfig", "\ufeffmark", "tab\tbed", "z"),
]


def test_hostile_captions_give_numbers_and_are_named(capsys, tmp_path):
    """Under the lab's LLM, whose words are few: no NaN, no infinity; what is left out is counted and named."""
    rows = [{"caption": text} for text in [*HOSTILE, "ball", "", "  \n "]] + ["no record", {"caption": 3}]
    (tmp_path / "hostile.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{torn\n")
    assert (
        perplexity.main(
            [
                "--llm",
                "lab",
                "--captions",
                str(tmp_path / "hostile.jsonl"),
                "--cache",
                str(tmp_path / "s"),
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    table = json.loads((tmp_path / "out" / "perplexity.json").read_text())
    assert [(row["texts"], row["repeated"], row["unusable"]) for row in table] == [(len(HOSTILE), 1, 5)]
    assert all(math.isfinite(value) for value in table[0].values() if isinstance(value, float))
    told_of = capsys.readouterr().err
    assert "line 14 (id '14'): the caption is empty" in told_of and "2 more" in told_of
    for ending in ("csv", "json"):
        assert (tmp_path / "out" / f"perplexity.{ending}").stat().st_size
    for ending in ("png", "svg"):
        assert (tmp_path / "out" / f"matrix.{ending}").stat().st_size
    assert "NaN" not in (tmp_path / "out" / "perplexity.csv").read_text()


def test_a_text_file_ends_lines_at_line_feeds_alone(tmp_path):
    texts = [text.replace("\n", " ") for text in HOSTILE if text.strip() and text[0] != "\ufeff"] + ["one\rcaption"]
    (tmp_path / "t.txt").write_bytes("\r\n".join(["", *texts, "", " "]).encode())
    assert list(read_captions(tmp_path / "t.txt")) == [text.strip() for text in texts]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"t.txt: holds no record"),
        (b"\n \n", r"t.txt: holds no record"),
        (b"\xff\xfe caption", r"t.txt: cannot be read as UTF-8 text .*; save it as UTF-8"),
    ],
)
def test_unreadable_files_are_one_line(content, message, tmp_path):
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_captions(tmp_path / "t.txt")


def test_sources_of_one_name(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(f"caption {folder}\n")
    files = [tmp_path / "one" / "a.txt", tmp_path / "two" / "a.txt"]
    assert [part.name for part in read_all(files)] == ["one/a", "two/a"]
    with pytest.raises(InputError, match="one/a: given twice"):
        read_all([files[0], files[0]])


def test_flags(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a red ball\n")
    base = ["--llm", "lab", "--captions", str(tmp_path / "a.txt"), "--cache", str(tmp_path)]
    for more, message in (
        (["--proxy", "nowhere"], "no folder nowhere"),
        (["--proxy", f"base={tmp_path}"], "a second model called 'base'"),
        (["--samples", "0"], "--samples should be a positive number"),
    ):
        assert perplexity.main([*base, *more]) == 2
        assert message in capsys.readouterr().err
    assert perplexity.main(["--llm", "lab", "--captions", str(tmp_path / "none.txt")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_a_matrix_of_proxies_fitted_on_the_spot(tiny_models, tmp_path, capsys):
    """Two styles of other words: each fitted proxy is the best of its own row; the picture and tables are written."""
    rng = np.random.default_rng(0)
    for name, words in (("one", ["red", "blue", "green", "ball"]), ("two", ["near", "far", "cube", "gem"])):
        texts = {" ".join(rng.choice(words, 8)) for _ in range(120)}
        (tmp_path / f"{name}.txt").write_text("\n".join(sorted(texts)) + "\n")
    out = tmp_path / "out"
    arguments = [
        "--llm",
        str(tiny_models["llm"]),
        "--captions",
        str(tmp_path / "one.txt"),
        str(tmp_path / "two.txt"),
        "--fit",
    ]
    arguments += ["--steps", "60", "--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "s"), "--out", str(out)]
    assert perplexity.main(arguments) == 0
    rows = json.loads((out / "perplexity.json").read_text())
    bits = {(row["captions"], row["model"]): row["bits_per_byte"] for row in rows}
    for own, other in (("one", "two"), ("two", "one")):
        assert bits[own, own] < min(bits[own, "base"], bits[own, other])
    assert all(row["trained_on"] > 60 and row["texts"] >= 10 for row in rows)
    manifest = json.loads((out / "manifest.json").read_text())
    assert (
        manifest["seed"] == 0 and set(manifest["captions"]) == {"one", "two"} and manifest["llm"] and manifest["commit"]
    )


def test_real_styles_are_read_and_scored(shared, tmp_path):
    """A few captions of every shared style under the lab's LLM: numbers everywhere, in the order of the files."""
    files = sorted(f for f in (shared / "data" / "caption_styles").glob("*.txt") if f.name != "SOURCE.txt")
    table = perplexity_table(score("lab", {}, read_all(files), cache=tmp_path, samples=5))
    assert table["captions"].tolist() == [file.stem for file in files] and (table["texts"] == 5).all()
    assert np.isfinite(table[["nats_per_token", "perplexity", "bits_per_byte"]].to_numpy()).all()
