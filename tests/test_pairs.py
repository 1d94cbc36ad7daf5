"""What a model says with and without the picture: exact on a model whose probabilities are known, equal to the stock forward
on others, the same in any batch, kept part by part.
"""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import pairs
from analysis.pairs import Checkpoint, open_checkpoint, samples_of, score_samples, score_to_disk
from dpa import processing
from dpa.errors import InputError
from dpa.methods import CAL, CMO, NONE, Weighting
from dpa.model import compose
from tests.conftest import tiny_llm, tiny_tower

TEXTS = ["a red ball", "star", "the small blue cube, near the moon. 🙂 東京"]


@pytest.fixture(scope="module")
def captions(tmp_path_factory, data):
    """Three captions with pictures, and one text that has none."""
    folder = tmp_path_factory.mktemp("captions")
    rows = [{"id": f"c{n}", "image": f"{n}.png", "caption": text} for n, text in enumerate(TEXTS)]
    (folder / "few.json").write_text(json.dumps(rows))
    return folder / "few.json", data


def known_llm(size, hidden, seed, words):
    """A Llama of one layer whose attention is the plain mean over what it may see, whose MLP adds nothing, and which says
    hardly anything but the tokens `words`.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": hidden}
    config = LlamaConfig(
        vocab_size=size, hidden_size=hidden, intermediate_size=4, num_hidden_layers=1, tie_word_embeddings=False,
        rms_norm_eps=1e-9, pad_token_id=0, bos_token_id=1, eos_token_id=2, **heads,
    )  # fmt: skip
    llm = LlamaForCausalLM(config).eval()
    layer = llm.model.layers[0]
    for weight in (layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight, layer.mlp.down_proj.weight):
        weight.data.zero_()
    for weight in (layer.self_attn.v_proj.weight, layer.self_attn.o_proj.weight):
        weight.data.normal_(0, 0.5)
    llm.model.embed_tokens.weight.data.normal_()
    llm.lm_head = torch.nn.Linear(hidden, size)
    llm.lm_head.weight.data.normal_(0, 1.0)
    llm.lm_head.bias.data.fill_(-20.0)
    llm.lm_head.bias.data[words] = 0.0
    return llm


def known_log_p(llm, vectors, targets):
    """Log-probabilities of targets [n] behind each of the vectors [n, H], by the equations, one place at a time."""
    layer = llm.model.layers[0]
    value, out, head = (
        w.weight.detach().double().numpy() for w in (layer.self_attn.v_proj, layer.self_attn.o_proj, llm.lm_head)
    )

    def norm(x):
        return x / np.sqrt((x * x).mean() + 1e-9)

    found = []
    for place, target in enumerate(targets):
        mean = sum(value @ norm(vectors[j]) for j in range(place + 1)) / (place + 1)
        logits = head @ norm(vectors[place] + out @ mean) + llm.lm_head.bias.detach().double().numpy()
        found.append(logits[target] - np.log(np.exp(logits - logits.max()).sum()) - logits.max())
    return np.array(found)


def test_relevance_is_exact_where_both_probabilities_are_known(lab_tokenizer, captions):
    """Every image feature is one known vector, so that p seen and p blind are known for every token."""
    words = sorted({token for text in TEXTS for token in lab_tokenizer(text + "\n").input_ids})
    llm, tower = known_llm(len(lab_tokenizer), 12, 0, words), tiny_tower()
    model = compose(llm, tower, lab_tokenizer).eval()
    picture = np.random.default_rng(0).normal(size=12)
    projector = model.model.multi_modal_projector
    projector.linear_2.weight.data.zero_()
    projector.linear_2.bias.data = torch.tensor(picture, dtype=torch.float32)
    checkpoint = Checkpoint("known", model, processing.build_processor(lab_tokenizer, tower), "known")
    samples = samples_of(checkpoint, *captions)
    tokens, about = score_samples(checkpoint, samples, range(3))
    embeddings = llm.model.embed_tokens.weight.detach().double().numpy()
    for index, text in enumerate(TEXTS):
        own = tokens[tokens["record"] == about["record"][index]]
        ids = lab_tokenizer(text + "\n").input_ids  # starts with <s>
        assert own["token_id"].tolist() == ids[1:] and about["text"][index] == text
        seen = known_log_p(llm, [embeddings[ids[0]], *[picture] * 9, *embeddings[ids[1:-1]]], [0] * 9 + ids[1:])[9:]
        blind = known_log_p(llm, embeddings[ids[:-1]], ids[1:])
        np.testing.assert_allclose(own["log_p_seen"], seen, atol=2e-5)
        np.testing.assert_allclose(own["log_p_blind"], blind, atol=2e-5)
        np.testing.assert_allclose(own["relevance"], np.exp(seen) - np.exp(blind), atol=1e-6)
        clipped = np.clip(np.exp(seen) - np.exp(blind), CMO.low, CMO.high)
        pooled = [clipped[max(0, j - 1) : j + 2].mean() for j in range(len(clipped))]
        np.testing.assert_allclose(own["weight"], np.array(pooled) / np.sum(pooled), atol=1e-5)
    assert tokens["relevance"].max() > 0.2 and tokens["weight"].nunique() > 5, (
        "the picture does nothing: the test is void"
    )


@pytest.fixture(scope="module")
def tiny(lab_tokenizer):
    llm, tower = tiny_llm("llama", vocab_size=len(lab_tokenizer)), tiny_tower()
    model = compose(llm, tower, lab_tokenizer).eval()
    model.model.multi_modal_projector.linear_2.weight.data *= 20
    return Checkpoint("tiny", model, processing.build_processor(lab_tokenizer, tower), "tiny")


def test_seen_scores_are_those_of_the_stock_forward(tiny, captions):
    samples = samples_of(tiny, *captions)
    tokens, _ = score_samples(tiny, samples, [2, 0])
    assert tokens["id"].unique().tolist() == ["c2", "c0"], "the order asked for"
    sample = samples[2]
    inputs = {name: sample[name][None] for name in ("input_ids", "pixel_values")}
    with torch.no_grad():
        log_p = tiny.model(**inputs).logits[0, :-1].log_softmax(-1)
    labels = sample["labels"][1:]
    wanted = log_p.gather(-1, labels.clamp(min=0)[:, None])[labels >= 0, 0]
    own = tokens[tokens["id"] == "c2"]
    np.testing.assert_allclose(own["log_p_seen"], wanted, atol=1e-5)
    assert own["place"].tolist() == list(range(len(own)))


@pytest.mark.parametrize("weighting", [CMO, CAL, NONE, Weighting("cmo", 0.0, 1.0)])
def test_a_sample_has_the_scores_that_it_has_alone(tiny, captions, weighting):
    samples = samples_of(tiny, *captions)
    together, _ = score_samples(tiny, samples, range(3), weighting)
    alone = pd.concat([score_samples(tiny, samples, [n], weighting)[0] for n in range(3)], ignore_index=True)
    pd.testing.assert_frame_equal(together, alone, atol=1e-5)
    np.testing.assert_allclose(together.groupby("record")["weight"].sum(), 1, atol=1e-5)
    if weighting.rule == "none":
        assert together.groupby("record")["weight"].nunique().eq(1).all()
    if weighting.rule == "cal":
        np.testing.assert_allclose(together["relevance"], together["logit_seen"] - together["logit_blind"], atol=1e-4)


def test_spans_lie_in_the_text_and_cover_its_words(tiny, captions):
    samples = samples_of(tiny, *captions)
    tokens, about = score_samples(tiny, samples, range(3))
    for record, text in zip(about["record"], about["text"], strict=True):
        own = tokens[tokens["record"] == record]
        assert (own["start"] >= 0).all() and (own["end"] <= len(text)).all() and (own["start"] <= own["end"]).all()
        covered = np.zeros(len(text), bool)
        for start, end in zip(own["start"], own["end"], strict=True):
            covered[start:end] = True
        assert all(covered[i] for i, character in enumerate(text) if not character.isspace())
        assert own["start"].iloc[-1] == own["end"].iloc[-1] == len(text)  # the newline


def test_chat_view_scores_the_answers(tiny, data):
    samples = samples_of(tiny, data / "questions.json", data, "chat")
    tokens, about = score_samples(tiny, samples, [0, len(samples) - 1])
    for index, sample in enumerate((0, len(samples) - 1)):
        answer = samples.records[sample].caption
        own = tokens[tokens["record"] == about["record"][index]]
        text = about["text"][index]
        assert (
            "".join(text[a:b] for a, b in zip(own["start"], own["end"], strict=True)).removesuffix("</s>").strip()
            == answer
        )
    assert about["image"].iloc[1] == "" and (own["relevance"] == 0).all(), "without a picture nothing is relevant"
    assert (tokens.loc[tokens["record"] == about["record"][0], "relevance"] != 0).any()


def test_stages_and_where_they_started(finished, captions):
    """DIR@start of stage 2 is the frozen LLM with a new connector, of stage 3 the original LLM with the trained one."""
    folder = finished / "small"
    names = [
        str(folder / "connector@start"),
        str(folder / "connector"),
        str(folder / "instruct@start"),
        str(folder / "instruct"),
    ]
    opened = [open_checkpoint(name) for name in names]
    assert len({checkpoint.digest for checkpoint in opened}) == 4

    def weights(checkpoint, part):
        return {k: v for k, v in checkpoint.model.state_dict().items() if part in k}

    def equal(first, second, part):
        one, two = weights(first, part), weights(second, part)
        return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)

    start, trained, begun, end = opened
    assert equal(start, trained, "language_model") and not equal(start, trained, "multi_modal_projector")
    assert equal(trained, begun, "multi_modal_projector") and not equal(trained, begun, "language_model"), (
        "the proxy went"
    )
    assert not equal(begun, end, "language_model")
    losses = [-score_samples(c, samples_of(c, *captions), range(3))[0]["log_p_seen"].mean() for c in opened]
    assert len(set(losses)) == 4


def test_what_cannot_be_opened(finished, tmp_path, tiny_models):
    for name, message in (
        (str(finished / "small" / "proxy"), "a proxy sees no pictures"),
        (str(tmp_path / "none"), "no such folder"),
        (str(tiny_models["llm"]) + "@start", "not a finished stage of ours"),
        (str(tiny_models["llm"]), "not a checkpoint that transformers loads as an image-text model"),
    ):
        with pytest.raises(InputError, match=message):
            open_checkpoint(name)


def test_a_parent_that_has_moved_with_its_run_is_found_and_a_lost_one_named(finished, tmp_path):
    import shutil

    moved = tmp_path / "moved"
    shutil.copytree(finished / "small", moved / "small")
    for stage in ("connector", "instruct"):
        file = moved / "small" / stage / "lineage.json"
        lineage = json.loads(file.read_text())
        lineage["names"] |= {k: f"gone/small/{k}" for k in ("proxy", "connector") if k in lineage["names"]}
        file.write_text(json.dumps(lineage))
    open_checkpoint(str(moved / "small" / "connector"))
    shutil.rmtree(moved / "small" / "connector")
    with pytest.raises(
        InputError, match=r"was made from gone/small/connector, which is gone; run stage connector again"
    ):
        open_checkpoint(str(moved / "small" / "instruct@start"))


def test_bad_records_are_named_and_left_out(tiny, data, tmp_path, capsys):
    rows = [{"image": "0.png", "caption": "a red ball"}, {"image": "1.png", "caption": " "}, {"caption": "no picture"}]
    (tmp_path / "mixed.json").write_text(json.dumps(rows))
    assert len(samples_of(tiny, tmp_path / "mixed.json", data)) == 1
    told = capsys.readouterr().err
    assert "record 2 (id '2'): the caption is empty" in told and "record 3 (id '3'): no 'image' field" in told
    (tmp_path / "bad.json").write_text(json.dumps(rows[1:]))
    with pytest.raises(InputError, match="no record can be used; the first: the caption is empty"):
        samples_of(tiny, tmp_path / "bad.json", data)
    (tmp_path / "lost.json").write_text(json.dumps([{"image": "lost.png", "caption": "a"}]))
    with pytest.raises(InputError, match=r"lost\.png does not exist"):
        score_samples(tiny, samples_of(tiny, tmp_path / "lost.json", data), [0])


def test_a_sample_that_cannot_be_used_is_told_and_left_out(tiny, data, tmp_path):
    (tmp_path / "one.png").write_bytes(b"no picture")
    rows = [{"image": str(data / "0.png"), "caption": "out"}, {"image": "one.png", "caption": "broken"}]
    rows += [{"image": "two.png", "caption": "a red ball"}]
    (tmp_path / "two.png").write_bytes((data / "0.png").read_bytes())
    (tmp_path / "r.json").write_text(json.dumps(rows))
    samples, bad = samples_of(tiny, tmp_path / "r.json", tmp_path), []
    tokens, about = score_samples(tiny, samples, range(3), bad=bad)
    assert about["text"].tolist() == ["a red ball"] and tokens["record"].nunique() == 1
    assert len(bad) == 2 and "leads out of" in bad[0] and "record 2" in bad[1]
    parts = score_to_disk(tiny, samples, range(3), CMO, tmp_path / "t", key={})
    assert json.loads((tmp_path / "t" / "left_out-00000.json").read_text()) == bad and len(
        pd.read_parquet(parts[0])
    ) == len(tokens)


def test_parts_are_kept_and_a_cut_run_goes_on(tiny, captions, tmp_path, monkeypatch):
    samples, key = samples_of(tiny, *captions), {"model": "tiny", "seed": 0}
    whole, _ = score_samples(tiny, samples, range(3))
    monkeypatch.setattr(pairs, "BLOCK", 1)
    done, scored = [], pairs.score_samples

    def counted(*args, **options):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(args[2])
        return scored(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pairs, "score_samples", counted)
        with pytest.raises(KeyboardInterrupt):
            score_to_disk(tiny, samples, [0, 1, 2], CMO, tmp_path / "t", key=key)
    assert sorted(p.name for p in (tmp_path / "t").glob("tokens*")) == ["tokens-00000.parquet", "tokens-00001.parquet"]
    parts = score_to_disk(tiny, samples, [0, 1, 2], CMO, tmp_path / "t", key=key)
    together = pd.concat([pd.read_parquet(part) for part in parts], ignore_index=True)
    pd.testing.assert_frame_equal(together, whole, atol=1e-5)
    assert together.dtypes["place"] == np.int32 and together.dtypes["relevance"] == np.float32
    assert [len(pd.read_parquet(tmp_path / "t" / f"samples-0000{n}.parquet")) for n in range(3)] == [1, 1, 1]
    (data := captions[1] / "0.png").touch()
    with pytest.raises(InputError, match="holds the table of another pictures"):
        score_to_disk(tiny, samples, [0, 1, 2], CMO, tmp_path / "t", key=key)
    assert data.is_file()
    with pytest.raises(InputError, match="holds the table of another seed; delete it or choose another --out"):
        score_to_disk(tiny, samples, [0, 1, 2], CMO, tmp_path / "t", key=key | {"seed": 1})
