"""Asking a real (tiny) checkpoint: prompts as in training, batches, a kill in between, a second run from what is kept."""

import json
import math
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

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
    assert answers == predict.read_predictions(many) and len(answers) == len(items) >= 20
    assert len({len(item.prompt) for item in items}) > 9, "prompts of one length are no test of padding"
    assert len(set(answers.values())) > 1, "a model that says one thing is no test of batches"
    whole = many.read_bytes()
    many.write_bytes(whole[: len(whole) // 2])  # killed in the middle of a line
    predict.predict(str(checkpoint), items, pictures, many, batch_size=7, max_new_tokens=4)
    assert predict.read_predictions(many) == answers


def test_blind_answers_do_not_depend_on_the_pictures(checkpoint, asked, tmp_path):
    items, pictures = asked
    predict.predict(str(checkpoint), items, pictures, tmp_path / "a.jsonl", blind=True, max_new_tokens=4)
    predict.predict(str(checkpoint), items, tmp_path, tmp_path / "b.jsonl", blind=True, max_new_tokens=4)
    assert predict.read_predictions(tmp_path / "a.jsonl") == predict.read_predictions(tmp_path / "b.jsonl")


@pytest.fixture(scope="module")
def loaded(checkpoint):
    """(model, processor) of the checkpoint."""
    return AutoModelForImageTextToText.from_pretrained(checkpoint).eval(), AutoProcessor.from_pretrained(checkpoint)


def decoder_calls(model, run):
    """[batch, places] of each call of the model's decoder during `run`."""
    calls = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    try:
        run()
    finally:
        hook.remove()
    return calls


def test_prompts_are_read_once_whatever_the_checkpoint_says(loaded, asked, monkeypatch):
    """A Trainer leaves use_cache off in what it saves; each new token is read alone all the same."""
    model, processor = loaded
    for name, value in (("use_cache", False), ("eos_token_id", None)):  # None: every answer has all its tokens
        monkeypatch.setattr(model.generation_config, name, value)
    calls = decoder_calls(model, lambda: list(predict.answers(model, processor, *asked, max_new_tokens=4)))
    assert [places for _, places in calls[1:]] == [1, 1, 1] and calls[0][1] > 9


def test_a_batch_ends_with_its_last_answer(loaded, asked, monkeypatch):
    model, processor = loaded
    monkeypatch.setattr(model.generation_config, "eos_token_id", list(range(len(processor.tokenizer))))
    assert len(decoder_calls(model, lambda: list(predict.answers(model, processor, *asked, max_new_tokens=4)))) == 1


def test_the_same_question_is_asked_once(loaded, asked):
    """With pictures a question is a prompt and a picture, without them a prompt; every item gets its answer."""
    model, processor = loaded
    items, pictures = asked
    twice = [*items, *(replace(item, index=f"{item.index}-again") for item in items)]
    for blind, number in ((False, len(items)), (True, len({item.prompt for item in items}))):
        found = []
        calls = decoder_calls(
            model,
            lambda blind=blind, found=found: found.extend(
                predict.answers(model, processor, twice, pictures, blind=blind, batch_size=100, max_new_tokens=1)
            ),
        )
        assert [rows for rows, _ in calls] == [number] and number < len(twice)
        given = {(item.benchmark, item.index): answer for item, answer in found[0]}
        assert len(given) == len(twice)
        assert all(given[item.benchmark, item.index] == given[item.benchmark, f"{item.index}-again"] for item in items)


@pytest.mark.parametrize("anyres", [False, True])
def test_batches_are_sorted_by_the_tokens_that_the_model_reads(tiny_models, asked, tmp_path, anyres):
    """Tiled pictures have unlike numbers of tokens, which prompts do not tell; the longest come first."""
    from PIL import Image

    from dpa.model import load_tower
    from dpa.processing import build_processor

    processor = build_processor(
        AutoTokenizer.from_pretrained(tiny_models["llm"]), load_tower(str(tiny_models["tower"])), anyres=anyres
    )
    items = []
    for number, (width, height) in enumerate([(24, 24), (90, 30), (30, 90), (100, 100), (50, 40)]):
        Image.new("RGB", (width, height)).save(tmp_path / f"{number}.png")
        items.append(replace(asked[0][3 * number], image=f"{number}.png"))
    read = []

    class Model:
        device = "cpu"

        def generate(self, input_ids, attention_mask, **_):
            read.append(int(attention_mask.sum()))
            return input_ids

    for blind in (False, True):
        read.clear()
        list(predict.answers(Model(), processor, items, tmp_path, blind=blind, batch_size=1))
        assert read == sorted(read, reverse=True) and len(read) == len({item.prompt for item in items}) == 5
        assert read == sorted(predict._num_tokens(processor, items, tmp_path, blind), reverse=True)


def test_a_missing_picture_is_named_before_anything_is_asked(loaded, asked, monkeypatch):
    model, processor = loaded
    monkeypatch.setattr(model, "generate", lambda **_: pytest.fail("asked first"))
    items = [*asked[0], replace(asked[0][0], prompt="gem", image="no.png", index="lost")]  # its turn comes last
    with pytest.raises(InputError, match=r"CVBench-2D item lost: .*no\.png does not exist"):
        list(predict.answers(model, processor, items, asked[1], batch_size=1))


def test_answers_before_a_broken_picture_are_kept(checkpoint, asked, tmp_path):
    """Its header can be read, so it is found when its batch's turn comes; the others need not be asked again."""
    items, pictures = asked[0][:3], asked[1]
    for item in items:
        (tmp_path / item.image).write_bytes((pictures / item.image).read_bytes())
    (tmp_path / "cut.png").write_bytes((pictures / items[0].image).read_bytes()[:120])
    items = [*items, replace(items[0], prompt="gem", image="cut.png", index="cut")]
    with pytest.raises(InputError, match=r"CVBench-2D item cut: .*cut\.png is broken"):
        predict.predict(str(checkpoint), items, tmp_path, tmp_path / "p.jsonl", batch_size=1, max_new_tokens=2)
    assert {index for _, index in predict.read_predictions(tmp_path / "p.jsonl")} == {i.index for i in items[:3]}


def test_no_items_no_answers(loaded, tmp_path):
    assert list(predict.answers(*loaded, [], tmp_path)) == []


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
    from analysis.scoring import text_scores
    from dpa.model import load_llm

    tokenizer = AutoTokenizer.from_pretrained(tiny_models["llm"])
    model = load_llm(str(tiny_models["llm"]))
    model.lm_head.weight.data.zero_()
    texts = ["a red ball", "x", "", "🙂 and more words than the others, by far"]
    for text, (nats, tokens, size) in zip(texts, text_scores(model, tokenizer, texts, budget=16), strict=True):
        assert tokens == len(tokenizer(text + "\n").input_ids) - 1  # all but the start token
        assert nats == pytest.approx(tokens * math.log(len(tokenizer)), rel=1e-5)
        assert size == len((text + "\n").encode())


def test_perplexity_does_not_depend_on_the_batch(tiny_models):
    from analysis.scoring import text_scores
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
