"""Fetch the pictures of records that give them by address (PixMo-Cap), once, before training; nothing else opens a socket.

    python -m dpa.fetch --data pixmo_cap.parquet --images DIR [--jobs 32]

A picture is stored under the SHA-256 of its address, which is where the readers look for it. What is there is not fetched
again, so the command continues where it stopped. What could not be had is named in DIR/not_fetched.jsonl; addresses die,
so give training `--max-bad-samples` for them.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from dpa.errors import InputError, command
from dpa.images import MAX_BYTES, open_image
from dpa.readers import addresses, picture_name

TIMEOUT = 20  # seconds without an answer
NOT_FETCHED = "not_fetched.jsonl"


def fetch(address: str, folder: Path, where: str) -> None:
    """Store one picture. InputError when it cannot be had, is too large, or is no picture."""
    target = folder / picture_name(address)
    if target.is_file():
        return
    if not address.lower().startswith(("http://", "https://")):
        raise InputError(f"{where}: {address[:120]!r} is no web address")
    partial = target.with_name(f"{target.name}.{threading.get_ident()}.part")
    try:
        request = urllib.request.Request(_quoted(address), headers={"User-Agent": "dpa-fetch"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            content = answer.read(MAX_BYTES + 1)
            promised = answer.headers.get("Content-Length", "")
        if len(content) > MAX_BYTES:
            raise InputError(f"{where}: {address[:120]} has more than {MAX_BYTES:,} bytes")
        if promised.isdigit() and len(content) < int(promised):
            raise ValueError(f"{len(content)} of {promised} bytes came")
        partial.write_bytes(content)
        open_image(folder, partial.name, where)
        os.replace(partial, target)
    except InputError:
        raise
    except (OSError, ValueError, HTTPException) as error:  # urllib's errors are OSErrors
        raise InputError(f"{where}: {address[:120]!r} cannot be had ({error!r:.160})") from None
    finally:
        partial.unlink(missing_ok=True)


def _quoted(address: str) -> str:
    """The address with what is no ASCII, or a space, written as it travels."""
    return urllib.parse.quote(address, safe="%/:=&?~#+!$,;'@()*[]")


def fetch_all(sources: list[str], folder: Path, jobs: int) -> dict[str, int]:
    """{"there": pictures in the folder, "failed": not to be had}, over the distinct addresses of the sources."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {address: where for source in sources for where, address in addresses(source)}
    if not wanted:
        raise InputError(f"{', '.join(sources)}: no record gives its picture by address (image_url, url)")
    failed: dict[str, str] = {}

    def one(item: tuple[str, str]) -> None:
        try:
            fetch(item[0], folder, item[1])
        except InputError as error:
            failed[item[0]] = str(error)

    with ThreadPoolExecutor(jobs) as pool:
        for _ in tqdm(pool.map(one, wanted.items()), total=len(wanted), desc="fetching", unit="img", delay=2):
            pass
    lines = [json.dumps({"address": address, "reason": reason}) for address, reason in sorted(failed.items())]
    (folder / NOT_FETCHED).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return {"there": len(wanted) - len(failed), "failed": len(failed)}


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dpa.fetch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", nargs="+", required=True, help="parquet, JSON lines or hub:NAME with image_url or url"
    )
    parser.add_argument("--images", type=Path, required=True, help="folder to store the pictures in")
    parser.add_argument("--jobs", type=int, default=32, help="pictures at a time")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        raise InputError(f"--jobs should be at least 1, got {options.jobs}")
    counts = fetch_all(options.data, options.images, options.jobs)
    print(f"{counts['there']:,} pictures are in {options.images}, {counts['failed']:,} could not be had")
    if counts["failed"]:
        print(f"they are named in {options.images / NOT_FETCHED}")
    return int(counts["there"] == 0)


if __name__ == "__main__":
    raise SystemExit(main())
