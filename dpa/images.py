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
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # others run programs or have no use here


def image_path(root: Path, name: str, where: str) -> Path:
    """The path of an image, which must exist and stay under `root` (symbolic links followed)."""
    path = root / name
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
    return _read(root, name, where, lambda image: image.convert("RGB"))


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
