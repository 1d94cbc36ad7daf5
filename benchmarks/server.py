"""Answers of a model behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, `transformers serve`.

The engine of `benchmarks.predict --server URL --server-model NAME`. Pictures travel inside the request. A question that
fails is tried again with growing pauses; one that fails for good has no answer, never a made-up one, and is asked anew by
the next run. The key, if the server wants one, comes from OPENAI_API_KEY and is neither printed nor kept.
"""

from __future__ import annotations

import base64
import io
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from benchmarks.suites import Item
from dpa.errors import InputError, first_line

if TYPE_CHECKING:
    from openai import OpenAI

    from benchmarks.questions import How, Question

CONCURRENCY = 16
RETRIES = 5  # with pauses of half a second, one, two, ... eight
TIMEOUT = 600.0  # seconds that one answer may take; the first of a server that still compiles takes minutes
KEY = "OPENAI_API_KEY"
SENT_AS_THEY_ARE = ("JPEG", "PNG", "WEBP")  # what servers decode; in colours that they read as we do


def connect(address: str) -> OpenAI:
    """A client of the server; nothing is sent yet. InputError for an address that is none, or holds a password."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"--server should be an address such as http://localhost:8000/v1, got {address!r}")
    if parts.username or parts.password or parts.query:
        raise InputError(f"--server should hold no key, as it is kept with the results; put the key in {KEY}")
    try:
        from openai import OpenAI
    except ImportError:
        raise InputError("--server needs the package openai; install it, or this project's extra `server`") from None
    return OpenAI(base_url=address, api_key=os.environ.get(KEY) or "none", max_retries=RETRIES, timeout=TIMEOUT)


def served(client: OpenAI, model: str) -> dict[str, str]:
    """{"root": what the server says the model was made from}, {} if it does not say. InputError when it cannot be reached
    or has no such model.
    """
    from openai import APIConnectionError, APIStatusError, OpenAIError

    address = client.base_url
    try:
        models = {entry.id: entry for entry in client.models.list()}
    except APIConnectionError as error:
        raise InputError(
            f"{address}: no server answers there ({first_line(error)}); start it, or mend --server"
        ) from None
    except APIStatusError as error:
        if error.status_code in (401, 403):
            raise InputError(f"{address}: does not take the key (HTTP {error.status_code}); set {KEY}") from None
        if error.status_code in (404, 405, 501):  # it has no list of models
            return {}
        raise InputError(f"{address}: HTTP {error.status_code} for its list of models; is it up?") from None
    except (OpenAIError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{address}: is no OpenAI-compatible server ({first_line(error)}); mend --server") from None
    if not models:  # `transformers serve` lists what lies in the hub's cache, not what it was started with
        return {}
    if model not in models:
        raise InputError(f"{address}: has no model {model!r}; it has {', '.join(sorted(models))}")
    root = getattr(models[model], "root", None)
    return {"root": str(root)} if root else {}


def answers(
    client: OpenAI,
    model: str,
    asked: Mapping[Question, Sequence[Item]],
    images: Path,
    how: How,
    *,
    concurrency: int = CONCURRENCY,
) -> Iterator[list[tuple[Item, str, bool]]]:
    """(item, the model's answer, whether it was cut at `max_new_tokens`) of one question at a time, as they come.

    An answer without text is "". InputError for a picture that is missing or has no readable header before anything is
    asked; at the end, when questions were left without an answer; at once, when the server refuses all, or when more
    questions fail in a row than are asked at a time.
    """
    from dpa.images import image_size

    for question, same in asked.items():
        if isinstance(question.picture, str):
            image_size(images, question.picture, _where(same))
    stop = threading.Event()
    failed: list[str] = []
    in_a_row = 0
    with ThreadPoolExecutor(concurrency) as pool:
        try:
            futures = {
                pool.submit(_answer, client, model, question, images, how, _where(same), stop): same
                for question, same in asked.items()
            }
            for future in as_completed(futures):
                said = future.result()
                if isinstance(said, str):
                    failed.append(f"{_where(futures[future])}: {said}")
                    in_a_row += 1
                    if in_a_row > concurrency:
                        raise InputError(
                            f"{client.base_url}: {in_a_row} questions in a row got no answer (last: {failed[-1]}); see the server's log and run again, it continues"
                        )
                    continue
                in_a_row = 0
                text, cut = said
                yield [(item, text, cut) for item in futures[future]]
        finally:  # also when the caller ends first
            stop.set()
            pool.shutdown(cancel_futures=True)
    if failed:
        raise InputError(
            f"{client.base_url}: {len(failed)} of {len(asked)} questions got no answer (first: {failed[0]}); the others are kept, run again to ask these"
        )


def _answer(
    client: OpenAI, model: str, question: Question, images: Path, how: How, where: str, stop: threading.Event
) -> tuple[str, bool] | str:
    """(answer, whether it was cut), or why there is none. InputError for what would fail every question."""
    from openai import APIConnectionError, APIStatusError, OpenAIError

    if stop.is_set():
        return "not asked"
    content: list[dict[str, Any]] = [{"type": "text", "text": question.prompt}]
    if question.picture is not None:
        content.insert(0, {"type": "image_url", "image_url": {"url": data_url(question, images, where)}})
    request: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": content}]}
    request |= {"max_tokens": how.max_new_tokens, "temperature": how.temperature}
    if how.temperature:
        request["seed"] = how.seed
    try:
        reply = client.chat.completions.create(**request)
        choice = reply.choices[0]
        return choice.message.content or "", choice.finish_reason == "length"
    except APIStatusError as error:
        if error.status_code in (401, 403, 404):
            told = {404: f"it has no {model!r} to chat with"}.get(
                error.status_code, f"it does not take the key in {KEY}"
            )
            raise InputError(f"{client.base_url}: HTTP {error.status_code}, {told}") from None
        return f"HTTP {error.status_code}, {_message(error)}"
    except APIConnectionError as error:
        return first_line(error)
    except (OpenAIError, ValueError, TypeError, IndexError, AttributeError) as error:  # no JSON, or of another shape
        return f"a reply that is no chat completion ({first_line(error)})"


def _message(error) -> str:
    """What the server said, in one line."""
    body = error.body
    return first_line(ValueError(body.get("message", body) if isinstance(body, dict) else body or error))


def data_url(question: Question, images: Path, where: str) -> str:
    """The question's picture as a data URL: its file as it is if servers read that as we do, else as PNG.

    It is decoded first: a broken one is an InputError here, not a guess of the server's.
    """
    from PIL import Image

    from benchmarks.questions import shown_picture

    picture = shown_picture(question, images, where)
    if isinstance(question.picture, str):
        with Image.open(images / question.picture) as file:
            plain = file.format in SENT_AS_THEY_ARE and file.mode in ("RGB", "L") and not _turned(file)
            kind = f"image/{str(file.format).lower()}"
        if plain:
            return _url(kind, (images / question.picture).read_bytes())
    packed = io.BytesIO()
    picture.save(packed, "PNG")
    return _url("image/png", packed.getvalue())


def _turned(file) -> bool:
    """Whether a picture says that it lies on its side, which some servers heed; the engine here does not."""
    return file.getexif().get(0x0112, 1) != 1


def _url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _where(same: Sequence[Item]) -> str:
    return f"{same[0].benchmark} item {same[0].index}"
