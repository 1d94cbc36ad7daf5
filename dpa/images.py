"""Pictures of records: found under their folder, bounded, fully decoded or an error; never another in their place.

Reference: the released code lifts PIL's limit on pixels and, after three failed reads, silently trains on the next record.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from dpa.errors import InputError

MAX_PIXELS = 64_000_000  # a picture with more is refused: a decompression bomb, or a mistake
MAX_BYTES = 256_000_000  # likewise a file with more
MAX_SIDE, MAX_RATIO = 12_000, 100  # what padding to a square, or scaling the short side up, may make of a picture
GREY_BITS = {"I;16": 8, "I;16L": 8, "I;16B": 8}  # bits to drop of 16-bit grey, which PIL would clip to white
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # others run programs or have no use here


def image_path(root: Path, name: str, where: str) -> Path:
    """The path of an image, which must exist and stay under `root` (symbolic links followed)."""
    path = root / name
    if any(len(part.encode()) > 255 for part in path.parts):
        raise InputError(f"{where}: image path {name[:80]!r}... is longer than a file name can be; mend it")
    inside = "\0" not in name and os.path.realpath(path).startswith(_real(root))
    if not inside:
        raise InputError(f"{where}: image path {name!r} leads out of {root}; paths are relative to the image folder")
    if not path.is_file():
        raise InputError(f"{where}: image {path} does not exist; is --images (or --instruct-images) the right folder?")
    return path


@lru_cache(maxsize=64)
def _real(root: Path) -> str:
    return os.path.join(os.path.realpath(root), "")  # noqa: PTH118  ends in a separator, or /a would hold /ab


def open_image(root: Path, name: str, where: str) -> Image.Image:
    """The picture `name` under `root` as RGB, fully decoded. InputError for one that is missing, outside or broken."""
    return _read(root, name, where, _as_rgb)


def _as_rgb(image: Image.Image) -> Image.Image:
    """8-bit colours; transparency is dropped, as LLaVA does."""
    if image.mode in GREY_BITS:
        return image.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its values (mode {image.mode}) have no known range; store it with 8 bits a channel")
    return image.convert("RGB")


def image_size(root: Path, name: str, where: str) -> tuple[int, int]:
    """(width, height) in pixels from the picture's header, at least 3,000 a second. InputError as for `open_image`."""
    return _read(root, name, where, lambda image: image.size)


def _read(root: Path, name: str, where: str, use):
    path = image_path(root, name, where)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{where}: image {path} has more than {MAX_BYTES:,} bytes; scale it down")
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    f"{where}: image {path} has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}; scale it down"
                )
            longer, shorter = max(image.size), max(min(image.size), 1)
            if longer > MAX_SIDE or longer / shorter > MAX_RATIO:
                raise InputError(
                    f"{where}: image {path} has {image.width} x {image.height} pixels; a side may have {MAX_SIDE:,} and be {MAX_RATIO} times the other, scale it or take the record out"
                )
            return use(image)
    except UnidentifiedImageError:
        raise InputError(
            f"{where}: {path} is not an image that can be read; replace the file or take the record out"
        ) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{where}: image {path} is broken ({error}); replace the file or take the record out"
        ) from None
