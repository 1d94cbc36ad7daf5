"""What made a result: fingerprints of models and data, versions, command, commit, hardware.

`lineage.json` is written last into every finished stage: a folder that has one is complete. No environment variable is
recorded, and no value of a flag that holds a token.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from dpa.errors import InputError

LINEAGE = "lineage.json"
# weights (.bin for the CLIP towers that have no other; transformers loads it with weights_only), settings, tokenizer
HUB_FILES = ["*.safetensors", "pytorch_model*.bin", "*.json", "*.jinja", "tokenizer.model", "merges.txt"]
MODEL_FILES = ("*.safetensors", "*.bin", "*config.json", "tokenizer.json", "tokenizer.model", "*.jinja")
SECRET = re.compile(r"--.*(token|key|secret|password)", re.IGNORECASE)  # a flag whose value is one
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "deepspeed",
    "flash-attn",
    "tokenizers",
    "safetensors",
    "numpy",
    "pillow",
)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal; a file that has not been touched since is not read again."""
    status = path.stat()
    return _file_hash(path, status.st_size, status.st_mtime_ns, status.st_ino)


@lru_cache(maxsize=4096)
def _file_hash(path: Path, *status: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_hash(folder: Path) -> str:
    """One SHA-256 over the names and contents of the files of a model folder that decide what it computes.

    Weights, configurations, tokenizer, processor and chat template; not the card, the lineage or the log.
    """
    digest = hashlib.sha256()
    files = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)})
    if not files:
        raise InputError(f"{folder}: no model files here; give the folder that holds config.json")
    for path in files:
        digest.update(f"{path.name} {file_hash(path)}\n".encode())
    return digest.hexdigest()


def tokenizer_hash(folder: Path) -> str:
    """SHA-256 of what decides a model folder's token ids: its tokenizer, whatever else the folder holds."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("tokenizer*")) + sorted(folder.glob("merges.txt")) + sorted(folder.glob("*.jinja")):
        digest.update(f"{path.name} {file_hash(path)}\n".encode())
    return digest.hexdigest()


def local_model(name: str, kind: str = "llm") -> Path:
    """The folder of a model: the lab's shipped `kind` (llm, tower) for the name `lab`, a folder as it is, else a hub id,
    fetched to the local cache first, so that one name means one set of files throughout a run.
    """
    if name == "lab":
        return Path(__file__).parent / "lab" / "foundations" / kind
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(name, allow_patterns=HUB_FILES))
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            reason = str(error).strip().splitlines()[0][:160]
            raise InputError(
                f"{name}: no such folder, and no hub id that can be fetched ({reason}); check the name"
            ) from None
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise InputError(
            f"{name}: no model files here (*.safetensors); give the folder that holds config.json and weights"
        )
    return folder


def commit() -> str | None:
    """The commit of the source tree that this package runs from, with `+` if it has changes; None outside a checkout."""
    root = Path(__file__).parents[1]
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "--", "*.py", "pyproject.toml"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if dirty else "")


def provenance() -> dict:
    """Command, commit, time, versions and hardware of the running process."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "command": " ".join([f"python -m {_module()}", *without_secrets(sys.argv[1:])]),
        "commit": commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions,
        "hardware": _hardware(),
    }


def without_secrets(arguments: list[str]) -> list[str]:
    """A command line with the values of flags that hold a token, key or password left out (`--text-tokens` holds a count)."""
    kept: list[str] = []
    hide = False
    for argument in arguments:
        flag, equals, _ = argument.partition("=")
        secret = bool(SECRET.fullmatch(flag))
        kept.append("..." if hide else f"{flag}=..." if secret and equals else argument)
        hide = secret and not equals
    return kept


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec is not None else Path(sys.argv[0]).name


def _hardware() -> dict:
    hardware: dict = {"machine": platform.machine(), "cpus": os.cpu_count()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        hardware["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return hardware


def write_json(path: Path, value) -> None:
    """Write JSON so that a reader sees all of it or none: temporary name, fsync, rename."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def flush(folder: Path) -> None:
    """Have the disk take all files of a folder, so that a power cut behind a rename finds them whole."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def is_complete(folder: Path) -> bool:
    """Whether a stage folder was finished: its lineage is written last."""
    return (folder / LINEAGE).is_file()


def read_lineage(folder: Path) -> dict:
    """The lineage of a finished folder; InputError when it is not finished or its lineage cannot be read."""
    try:
        lineage = json.loads((folder / LINEAGE).read_text(encoding="utf-8"))
        if not isinstance(lineage, dict):
            raise ValueError("it is no object")
        return lineage
    except FileNotFoundError:
        raise InputError(
            f"{folder}: no {LINEAGE}, so this is not a finished stage; run the stage that makes it"
        ) from None
    except ValueError as error:  # json's and the encoding's errors are ValueErrors
        raise InputError(f"{folder / LINEAGE}: not readable as JSON ({error}); run the stage again") from None
