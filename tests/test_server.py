"""Asking a model behind an OpenAI-compatible server: a small one in a thread, which can be slow, fail, refuse or talk nonsense."""

import base64
import io
import json
import threading
import time
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from benchmarks import predict, predictions, server
from benchmarks.questions import MODES, How
from benchmarks.suites import Item
from dpa.errors import InputError

pytest.importorskip("openai")


class Server:
    """Answers a prompt by its words turned round and its picture's size; `script` says how each request goes first.

    script: {prompt: [what to do on the first, second, ... request]}: an HTTP status, or the body of a reply.
    """

    def __init__(self, models=("tiny",), root="made/of/this"):
        self.models, self.root, self.script, self.key = models, root, {}, None
        self.requests: list[dict] = []
        self.keys: list[str] = []
        self.at_a_time, self.most, self.pause = 0, 0, 0.0
        self.lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def reply(self, status, body):
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Retry-After-Ms", "1")  # so that the tests need not wait
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self):
                if owner.models is None:
                    return self.reply(404, {"error": {"message": "no such page"}})
                rows = [{"id": name, "object": "model", "created": 0, "owned_by": "us"} for name in owner.models]
                rows = [row | ({"root": owner.root} if owner.root else {}) for row in rows]
                return self.reply(200, {"object": "list", "data": rows})

            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner.lock:
                    owner.requests.append(request)
                    owner.keys.append(self.headers["Authorization"])
                    owner.at_a_time += 1
                    owner.most = max(owner.most, owner.at_a_time)
                    steps = owner.script.get(prompt_of(request), [])
                    step = steps.pop(0) if steps else None
                time.sleep(owner.pause)
                with owner.lock:
                    owner.at_a_time -= 1
                if owner.key and self.headers["Authorization"] != f"Bearer {owner.key}":
                    return self.reply(401, {"error": {"message": f"bad key {self.headers['Authorization']}"}})
                if step == "hang up":
                    self.close_connection = True
                    return None
                if isinstance(step, int):
                    return self.reply(step, {"error": {"message": f"the server says\n{step}"}})
                return self.reply(200, step if step is not None else completion(answer_to(request)))

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def close(self):
        self.http.shutdown()
        self.http.server_close()


def prompt_of(request):
    return request["messages"][0]["content"][-1]["text"]


def picture_of(request):
    """(format, picture) in a request, None without one."""
    parts = request["messages"][0]["content"]
    if len(parts) == 1:
        return None
    head, data = parts[0]["image_url"]["url"].split(",", 1)
    raw = base64.b64decode(data)
    return head, Image.open(io.BytesIO(raw)), raw


def answer_to(request):
    picture = picture_of(request)
    return f"{prompt_of(request)[::-1]} {picture and picture[1].size}"


def completion(text, finish="stop"):
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "tiny", "choices": [choice]}


@pytest.fixture
def running(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    found = Server()
    yield found
    found.close()


@pytest.fixture
def asked(tmp_path):
    """(items, folder): twelve questions about four pictures, one of them asked twice."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (10 + number, 8), (60 * number, 0, 0)).save(folder / f"{number}.png")
    items = [
        Item("POPE", str(n), f"{n % 4}.png", f"question {n}", "yes", ("yes", "no"), unit=str(n), task="")
        for n in range(12)
    ]
    return [*items, replace(items[3], index="again", unit="again")], folder


def expected(items, folder):
    return {(i.benchmark, i.index): f"{i.prompt[::-1]} {Image.open(folder / i.image).size}" for i in items}


def ask(running, asked, out, how=None, model="tiny", **more):
    how = how or How(max_new_tokens=9)
    predict.predict(model, *asked, out, replace(how, server=running.url), **more)
    return predictions.read_predictions(out)


def test_a_server_is_asked_each_question_once_and_greedily(running, asked, tmp_path):
    out = tmp_path / "p.jsonl"
    assert ask(running, asked, out) == expected(*asked)
    assert Counter(map(prompt_of, running.requests)) == {f"question {n}": 1 for n in range(12)}
    assert all((r["temperature"], r["max_tokens"], r["model"]) == (0, 9, "tiny") for r in running.requests)
    assert all("seed" not in r for r in running.requests) and set(running.keys) == {"Bearer none"}
    made = json.loads(out.read_text().split("\n")[0])["settings"]
    assert (made["engine"], made["checkpoint"], made["root"]) == ("server", "tiny", "made/of/this")
    assert running.url not in json.dumps(made), "the same model on another port is the same model"
    ask(running, asked, out)
    assert len(running.requests) == 12, "what is answered is not asked again"


def test_pictures_travel_as_they_are_or_as_png(running, tmp_path):
    """JPEG and PNG files keep their bytes; what servers may read otherwise arrives as the RGB picture that we would show."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture = Image.new("RGB", (20, 10), (200, 30, 40))
    picture.putpixel((3, 3), (1, 2, 3))
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds = {
        "plain.jpg": (picture, {}),
        "plain.png": (picture, {}),
        "grey.png": (picture.convert("L"), {}),
        "plain.webp": (picture, {"lossless": True}),
        "pixels.bmp": (picture, {}),
        "see-through.png": (picture.convert("RGBA"), {}),
        "palette.png": (picture.convert("P"), {}),
        "cmyk.jpg": (picture.convert("CMYK"), {}),
        "turned.jpg": (picture, {"exif": turned}),
    }
    items = []
    for name, (image, more) in kinds.items():
        image.save(folder / name, **more)
        items.append(Item("POPE", name, name, name, "yes", ("yes", "no"), unit=name, task=""))
    ask(running, (items, folder), tmp_path / "p.jsonl")
    for request in running.requests:
        name = prompt_of(request)
        head, sent, raw = picture_of(request)
        same = raw == (folder / name).read_bytes()
        assert same == (name.startswith("plain") or name == "grey.png"), name
        suffix = {"jpg": "jpeg"}.get(name.split(".")[1], name.split(".")[1]) if same else "png"
        assert head == f"data:image/{suffix};base64"
        assert sent.convert("RGB").tobytes() == Image.open(folder / name).convert("RGB").tobytes(), name


def test_what_the_modes_send(running, asked, tmp_path):
    for mode in MODES:
        running.requests.clear()
        items, folder = asked
        ask(running, asked, tmp_path / f"{mode}.jsonl", How(mode))
        for request in running.requests:
            own = Image.open(folder / next(i.image for i in items if i.prompt == prompt_of(request)))
            found = picture_of(request)
            if mode == "blind":
                assert found is None
                continue
            kind, content = request["messages"][0]["content"][0]["type"], found[1]
            assert kind == "image_url", "the picture comes first, as in training"
            if mode == "blank":
                assert content.size == own.size and set(content.getdata()) == {(128, 128, 128)}
            else:
                assert (content.tobytes() == own.tobytes()) == (mode == "seen")


def test_passing_failures_are_tried_again(running, asked, tmp_path):
    running.script = {
        "question 1": [429],
        "question 2": [500, 503],
        "question 4": ["hang up"],
        "question 5": [500, "hang up", 429],
    }
    assert ask(running, asked, tmp_path / "p.jsonl") == expected(*asked)
    counts = Counter(map(prompt_of, running.requests))
    assert [counts[f"question {n}"] for n in (0, 1, 2, 4, 5)] == [1, 2, 3, 2, 4]


def test_a_failed_answer_is_never_written(running, asked, tmp_path, capsys, monkeypatch):
    """One line, an error status; the others are kept, and the next run asks the failed ones alone."""
    monkeypatch.setattr(server, "RETRIES", 1)
    items, folder = asked
    predict.write_items(tmp_path / "items.jsonl", items)
    out = tmp_path / "p.jsonl"
    about = ["--items", str(tmp_path / "items.jsonl"), "--images", str(folder), "--seen", str(out)]
    about += ["--server", running.url, "--server-model", "tiny"]
    running.script = {
        "question 3": [400],
        "question 5": [500, 500],
        "question 6": [b"<html>gateway</html>"],
        "question 7": [{"choices": []}],
        "question 8": [{"what": "ever"}],
        "question 9": [b""],
    }
    assert predict.main(about) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "6 of 12 questions got no answer (first: POPE item " in error
    given = predictions.read_predictions(out)
    bad = {"3", "5", "6", "7", "8", "9", "again"}  # "again" asks question 3 too
    assert {index for _, index in given} == {i.index for i in items} - bad
    assert given.items() <= expected(*asked).items()
    running.requests.clear()
    assert predict.main(about) == 0
    assert predictions.read_predictions(out) == expected(*asked)
    assert sorted(map(prompt_of, running.requests)) == [f"question {n}" for n in (3, 5, 6, 7, 8, 9)]


def test_odd_answers_keep_their_text(running, asked, tmp_path):
    """An empty answer, or none at all, is an answer; so are the texts that readers like to turn into something else."""
    odd = {0: "", 1: None, 2: "None", 4: "NA", 5: "007", 6: "x" * 200_000, 7: "a\nb\t\u2028c", 8: " A "}
    running.script = {f"question {n}": [completion(text, "length" if n == 6 else "stop")] for n, text in odd.items()}
    out = tmp_path / "p.jsonl"
    given = ask(running, asked, out)
    assert {n: given["POPE", str(n)] for n in odd} == odd | {1: ""}
    assert predictions.read_truncated(out) == {("POPE", "6")}


def test_a_dead_server_is_told_soon(running, asked, tmp_path, monkeypatch):
    """It dies in the midst of a run: not every question is tried to the end."""
    monkeypatch.setattr(server, "RETRIES", 0)
    running.script = {f"question {n}": [500] * 9 for n in range(2, 12)}
    with pytest.raises(InputError, match=r"3 questions in a row got no answer .*run again, it continues"):
        ask(running, asked, tmp_path / "p.jsonl", concurrency=2)
    assert len(running.requests) < 9
    assert len(predictions.read_predictions(tmp_path / "p.jsonl")) == 2


def test_failures_here_and_there_stop_nothing(running, asked, tmp_path, monkeypatch):
    """More of them than questions at a time, but not in a row."""
    monkeypatch.setattr(server, "RETRIES", 0)
    running.script = {f"question {n}": [500] for n in (1, 4, 7, 10)}
    running.pause = 0.02
    with pytest.raises(InputError, match="4 of 12 questions got no answer"):
        ask(running, asked, tmp_path / "p.jsonl", concurrency=2)
    assert len(predictions.read_predictions(tmp_path / "p.jsonl")) == 9


def test_so_many_questions_at_a_time(running, asked, tmp_path):
    running.pause = 0.05
    ask(running, asked, tmp_path / "p.jsonl", concurrency=4)
    assert running.most == 4
    running.most = 0
    ask(running, asked, tmp_path / "q.jsonl", concurrency=1)
    assert running.most == 1


def test_the_same_model_elsewhere_continues_and_another_does_not(running, asked, tmp_path):
    out = tmp_path / "p.jsonl"
    items, folder = asked
    ask(running, asked, out, limit=5)
    elsewhere, other, names = Server(), Server(root="made/of/that"), Server(models=("small", "large"))
    try:
        with pytest.raises(InputError, match=r"another root .'made/of/this'. than asked for now .'made/of/that'."):
            ask(other, asked, out)
        with pytest.raises(InputError, match="has no model 'tiny'; it has large, small"):
            ask(names, asked, out)
        with pytest.raises(InputError, match="another checkpoint"):
            ask(names, asked, out, model="small")
        assert not other.requests and not names.requests
        assert ask(elsewhere, asked, out) == expected(*asked)
        assert len(elsewhere.requests) == 8, "question 3 anew, for its second item"
    finally:
        for one in (elsewhere, other, names):
            one.close()
    wanted = predict.settings("tiny", items, folder, How(max_new_tokens=9, server=elsewhere.url))
    assert predictions.read_predictions(out, wanted), "kept answers are read without asking a server that may be gone"


@pytest.mark.parametrize("models", [None, ()])
def test_a_server_without_a_list_of_models(running, asked, tmp_path, models):
    running.models = models
    assert ask(running, asked, tmp_path / "p.jsonl") == expected(*asked)


def test_the_key_is_sent_and_never_told(running, asked, tmp_path, monkeypatch, capsys):
    running.key = "sk-very-secret"
    with pytest.raises(InputError, match="HTTP 401, it does not take the key in OPENAI_API_KEY") as told:
        ask(running, asked, tmp_path / "p.jsonl")
    assert len(running.requests) <= server.CONCURRENCY, "no use in asking on"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    assert ask(running, asked, tmp_path / "p.jsonl") == expected(*asked)
    assert set(running.keys[-12:]) == {"Bearer sk-very-secret"}
    shown = capsys.readouterr()
    text = (tmp_path / "p.jsonl").read_text() + shown.out + shown.err + str(told.value)
    assert "secret" not in text


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("localhost:8000", "should be an address such as"),
        ("ftp://localhost", "should be an address such as"),
        ("http://me:pw@localhost/v1", "should hold no key"),
        ("http://localhost/v1?key=secret", "should hold no key"),
        ("http://127.0.0.1:9/v1", "no server answers there"),
    ],
)
def test_an_address_that_is_none_is_one_line(asked, tmp_path, capsys, monkeypatch, address, message):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(server, "RETRIES", 0)
    items, folder = asked
    predict.write_items(tmp_path / "items.jsonl", items)
    about = ["--items", str(tmp_path / "items.jsonl"), "--images", str(folder), "--seen", str(tmp_path / "p.jsonl")]
    assert predict.main([*about, "--server", address, "--server-model", "tiny"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "secret" not in error and not (tmp_path / "p.jsonl").exists()


def test_a_missing_or_broken_picture_is_named(running, asked, tmp_path):
    items, folder = asked
    lost = [*items, replace(items[0], prompt="x", index="lost", image="no.png")]
    with pytest.raises(InputError, match=r"POPE item lost: .*no\.png does not exist"):
        ask(running, (lost, folder), tmp_path / "p.jsonl")
    assert not running.requests
    data = (folder / "1.png").read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) - 20])
    cut = [*items, replace(items[0], prompt="x", index="cut", image="cut.png")]
    with pytest.raises(InputError, match=r"POPE item cut: .*cut\.png is broken"):
        ask(running, (cut, folder), tmp_path / "q.jsonl")


def test_without_the_package_the_extra_is_named(asked, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(InputError, match="extra `server`"):
        server.connect("http://localhost:1/v1")


def test_sampling_sends_temperature_and_seed(running, asked, tmp_path):
    ask(running, asked, tmp_path / "p.jsonl", How(temperature=0.7, seed=5))
    assert all((r["temperature"], r["seed"]) == (0.7, 5) for r in running.requests)
