"""Fetching pictures by address, from a small server of our own."""

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from dpa import fetch
from dpa.corpus import open_corpus
from dpa.images import open_image
from dpa.readers import picture_name


@pytest.fixture
def server():
    picture = io.BytesIO()
    Image.new("RGB", (6, 4), "red").save(picture, "PNG")
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            whole = picture.getvalue()
            content = {"/good.png": whole, "/page.png": b"<html>gone</html>", "/cut.png": whole[:40]}.get(self.path)
            self.send_response(200 if content else 404)
            if self.path == "/cut.png":
                self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_):
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}", asked
    served.shutdown()


def test_pictures_are_fetched_once_and_found_by_the_reader(server, tmp_path, capsys):
    root, asked = server
    urls = [f"{root}/good.png", f"{root}/page.png", f"{root}/gone.png", "file:///etc/passwd", f"{root}/cut.png"]
    urls += ["http://127.0.0.1:port/x.png", f"{root}/with a blank.png", f"{root}/good.png"]
    rows = [{"image_url": url, "caption": f"caption {number}"} for number, url in enumerate(urls)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "pixmo.parquet")
    arguments = ["--data", str(tmp_path / "pixmo.parquet"), "--images", str(tmp_path / "images"), "--jobs", "2"]
    assert fetch.main(arguments) == 0
    assert "1 pictures are in" in capsys.readouterr().out and asked.count("/good.png") == 1
    failed = [json.loads(line) for line in (tmp_path / "images" / "not_fetched.jsonl").read_text().splitlines()]
    assert {row["address"] for row in failed} == set(urls[1:7])
    reasons = {row["address"]: row["reason"] for row in failed}
    assert "row 2" in reasons[urls[1]] and "not an image" in reasons[urls[1]]
    assert "404" in reasons[urls[2]] and "is no web address" in reasons[urls[3]]
    assert "bytes came" in reasons[urls[4]] and "404" in reasons[urls[6]]
    assert {path.name for path in (tmp_path / "images").iterdir()} == {picture_name(urls[0]), "not_fetched.jsonl"}
    assert fetch.main(arguments) == 0 and asked.count("/good.png") == 1  # what is there is not fetched again
    corpus = open_corpus([str(tmp_path / "pixmo.parquet")], "pair", images=[tmp_path / "images"], cache=tmp_path)
    assert open_image(corpus[7].images, corpus[7].image, corpus[7].where).size == (6, 4)


def test_a_set_without_addresses_is_named(tmp_path, capsys):
    (tmp_path / "d.json").write_text(json.dumps([{"image": "a.png", "caption": "x"}]))
    assert fetch.main(["--data", str(tmp_path / "d.json"), "--images", str(tmp_path / "i")]) == 2
    assert "no record gives its picture by address" in capsys.readouterr().err
