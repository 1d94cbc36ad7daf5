"""Asking a real (tiny) checkpoint: prompts as in training, batches, a kill in between, a second run from what is kept."""

import json
import math

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer

from benchmarks import predict, run
from benchmarks.lab import lab_items
from dpa.corpus import read_records
from dpa.data import Samples
from dpa.errors import InputError
from tests.conftest import weights


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """(items, folder of their pictures), a few of each benchmark."""
    folder = tmp_path_factory.mktemp("asked") / "pictures"
    return lab_items(folder, single=3, pairs=2, groups=2), folder


@pytest.fixture(scope="module")
def checkpoint(finished):
    return finished / "small" / "instruct"


def test_the_prompt_is_the_one_of_training(checkpoint, data):
    """Ids of the evaluation prompt = ids of the training sample up to its answer."""
    processor = AutoProcessor.from_pretrained(checkpoint)
    record = read_records(data / "questions.json", "chat")[0]
    sample = Samples([record], "chat", processor)[0]
    question = record.turns[0][1].removeprefix("<image>\n")
    text = predict.prompt_text(processor, question, blind=False)
    ids = processor(text=[text], images=[sample_image(data, record)], return_tensors="pt", add_special_tokens=False)[
        "input_ids"
    ][0]
    answer = int((sample["labels"] != -100).nonzero()[0])
    assert ids.tolist() == sample["input_ids"][:answer].tolist()


def sample_image(folder, record):
    from dpa.images import open_image

    return open_image(folder, record.image, "test")


def test_batches_do_not_change_answers_and_a_cut_file_continues(checkpoint, asked, tmp_path):
    items, pictures = asked
    one, many = tmp_path / "one.jsonl", tmp_path / "many.jsonl"
    predict.predict(str(checkpoint), items, pictures, one, batch_size=1, max_new_tokens=4)
    predict.predict(str(checkpoint), items, pictures, many, batch_size=7, max_new_tokens=4)
    answers = predict.read_predictions(one)
    assert answers == predict.read_predictions(many) and len(answers) == len(items)
    whole = many.read_bytes()
    many.write_bytes(whole[: len(whole) // 2])  # killed in the middle of a line
    predict.predict(str(checkpoint), items, pictures, many, batch_size=7, max_new_tokens=4)
    assert predict.read_predictions(many) == answers


def test_blind_answers_do_not_depend_on_the_pictures(checkpoint, asked, tmp_path):
    items, pictures = asked
    predict.predict(str(checkpoint), items, pictures, tmp_path / "a.jsonl", blind=True, max_new_tokens=4)
    predict.predict(str(checkpoint), items, tmp_path, tmp_path / "b.jsonl", blind=True, max_new_tokens=4)
    assert predict.read_predictions(tmp_path / "a.jsonl") == predict.read_predictions(tmp_path / "b.jsonl")


def test_another_setting_never_continues_a_file(checkpoint, asked, tmp_path):
    items, pictures = asked
    out = tmp_path / "p.jsonl"
    predict.predict(str(checkpoint), items[:3], pictures, out, max_new_tokens=2)
    for changed in ({"max_new_tokens": 3}, {"blind": True}):
        with pytest.raises(InputError, match="was made with another"):
            predict.predict(str(checkpoint), items[:3], pictures, out, **({"max_new_tokens": 2} | changed))
    with pytest.raises(InputError, match="another questions"):
        predict.predict(str(checkpoint), items[:4], pictures, out, max_new_tokens=2)


def test_run_prints_the_same_table_twice(checkpoint, tmp_path, capsys, monkeypatch, asked):
    items, pictures = asked
    monkeypatch.setattr(run, "lab_items", lambda folder: items)
    monkeypatch.setattr(run, "items_folder", lambda output: pictures)
    arguments = [
        "--model",
        str(checkpoint),
        "--output",
        str(tmp_path / "out"),
        "--publish",
        str(tmp_path / "results"),
        "--max-new-tokens",
        "4",
    ]
    tables = []
    for attempt in range(2):
        if attempt:
            monkeypatch.setattr(
                "transformers.AutoModelForImageTextToText.from_pretrained", lambda *a, **k: pytest.fail("asked again")
            )
        assert run.main(arguments) == 0
        tables.append(capsys.readouterr().out.split("records:")[0])
    assert tables[0] == tables[1] and "chance" in tables[0] and "  blind" in tables[0]
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"table.md", "records.jsonl", "manifest.json"}
    rows = [json.loads(line) for line in (tmp_path / "results" / "records.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and all(row["versions"] and row["data_hash"] and row["seconds"] >= 0 for row in rows)
    assert len((tmp_path / "out" / "records.jsonl").read_text().splitlines()) == 8, "a second run adds no record twice"


def test_a_lost_time_file_does_not_stop_the_table(checkpoint, asked, tmp_path):
    items, pictures = asked
    out = tmp_path / "p.jsonl"
    for _ in range(2):
        predict.predict(str(checkpoint), items[:3], pictures, out, max_new_tokens=2)
        assert out.with_suffix(".seconds").is_file()
        out.with_suffix(".seconds").unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "-1"], "--jobs should be a positive number"),
        (["--batch-size", "0"], "--batch-size should be a positive number"),
        (["--methods", "dap"], "unknown method 'dap'"),
        (["--suite", "vision"], "unknown suite 'vision'"),
        (["--model", "runs/no/such"], "no such folder, and no hub id"),
        (["--data", "items.jsonl"], "give them with --model"),
        (["--data", "items.jsonl", "--model", "m"], "give it with --images"),
        (["--data", "items.jsonl", "--model", "m", "--images", "d"], "items.jsonl: no such file"),
    ],
)
def test_a_mistyped_command_is_one_line(tmp_path, capsys, monkeypatch, asked, arguments, message):
    monkeypatch.setattr(run, "lab_items", lambda folder: asked[0])
    monkeypatch.chdir(tmp_path)
    assert run.main([*arguments, "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path, capsys, monkeypatch, asked):
    monkeypatch.setattr(run, "lab_items", lambda folder: asked[0])
    (tmp_path / "model").mkdir()
    assert run.main(["--model", str(tmp_path / "model"), "--output", str(tmp_path)]) == 2
    assert "no model files here" in capsys.readouterr().err


def test_perplexity_names_what_is_no_adapter(tiny_models, data, tmp_path, capsys):
    from analysis import perplexity

    arguments = ["--llm", str(tiny_models["llm"]), "--proxy", str(tmp_path), "--captions", str(data / "captions.json")]
    assert perplexity.main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error:") and "no LoRA adapter" in error


def test_perplexity_of_a_known_source(tiny_models):
    """A model that gives every token the same probability scores log V per token, whatever the text."""
    from analysis.perplexity import text_scores
    from dpa.model import load_llm

    tokenizer = AutoTokenizer.from_pretrained(tiny_models["llm"])
    model = load_llm(str(tiny_models["llm"]))
    model.lm_head.weight.data.zero_()
    texts = ["a red ball", "x", "", "🙂 and more words than the others, by far"]
    for text, (nats, tokens, size) in zip(texts, text_scores(model, tokenizer, texts, batch_size=2), strict=True):
        assert tokens == len(tokenizer(text + "\n").input_ids) - 1  # all but the start token
        assert nats == pytest.approx(tokens * math.log(len(tokenizer)), rel=1e-5)
        assert size == len((text + "\n").encode())


def test_perplexity_does_not_depend_on_the_batch(tiny_models):
    from analysis.perplexity import text_scores
    from dpa.model import load_llm

    tokenizer = AutoTokenizer.from_pretrained(tiny_models["llm"])
    model = load_llm(str(tiny_models["llm"]))
    texts = ["a red ball", "the small blue cube and the moon", "star"]
    alone = [text_scores(model, tokenizer, [text])[0][0] for text in texts]
    assert [nats for nats, _, _ in text_scores(model, tokenizer, texts)] == pytest.approx(alone, rel=1e-5)


def test_the_image_changes_the_loss_as_by_hand(finished, data):
    """batch_loss on pictures = batch_loss on the embeddings that the picture's features were put into."""
    from transformers import LlavaForConditionalGeneration

    from dpa.data import Collator
    from dpa.loss import batch_loss
    from dpa.methods import CAL, CMO, NONE, Weighting

    folder = finished / "small" / "instruct"
    model, processor = LlavaForConditionalGeneration.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    samples = Samples(read_records(data / "captions.json", "pair")[:3], "pair", processor)
    batch = Collator(0)([samples[i] for i in range(3)])
    mask = batch["input_ids"] == model.config.image_token_id
    with torch.no_grad():
        features = torch.cat(list(model.get_image_features(pixel_values=batch["pixel_values"]).pooler_output))
        embeds = model.get_input_embeddings()(batch["input_ids"]).masked_scatter(mask[..., None], features)
        by_hand = {
            "inputs_embeds": embeds,
            "image_mask": mask,
            "labels": batch["labels"],
            "attention_mask": batch["attention_mask"],
        }
        for rule in (NONE, CMO, CAL, Weighting("cmo", 0.05, 0.5, form="released")):
            assert batch_loss(model, batch, rule).mean.item() == pytest.approx(
                batch_loss(model, by_hand, rule).mean.item(), rel=1e-5
            )
    assert weights(folder)
