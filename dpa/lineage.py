"""What made a result: fingerprints of models and data, versions, command, commit, hardware.

`lineage.json` is written last into every finished stage: a folder that has one is complete. No environment variable is
recorded, so that no key or token can be.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from dpa.errors import InputError

LINEAGE = "lineage.json"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy", "pillow")


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_hash(
    folder: Path,
    patterns: tuple[str, ...] = ("*.safetensors", "*.bin", "config.json", "tokenizer.json", "tokenizer.model"),
) -> str:
    """One SHA-256 over the names and contents of the files of a model folder that decide what it computes."""
    digest = hashlib.sha256()
    files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if not files:
        raise InputError(
            f"{folder}: no model files here (looked for {', '.join(patterns)}); give the folder that holds config.json"
        )
    for path in files:
        digest.update(f"{path.name} {file_hash(path)}\n".encode())
    return digest.hexdigest()


def model_fingerprint(path_or_id: str) -> str:
    """What identifies a model: the hash of a local folder, or a hub id with the commit that is in the local cache."""
    if Path(path_or_id).is_dir():
        return folder_hash(Path(path_or_id))
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(path_or_id, "config.json")
    return f"{path_or_id}@{Path(cached).parent.name}" if isinstance(cached, str) else path_or_id


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
        "command": " ".join([f"python -m {_module()}", *sys.argv[1:]]),
        "commit": commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions,
        "hardware": _hardware(),
    }


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
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def is_complete(folder: Path) -> bool:
    """Whether a stage folder was finished: its lineage is written last."""
    return (folder / LINEAGE).is_file()


def read_lineage(folder: Path) -> dict:
    """The lineage of a finished folder; InputError when it is not finished or its lineage cannot be read."""
    try:
        return json.loads((folder / LINEAGE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{folder}: no {LINEAGE}, so this is not a finished stage; run the stage that makes it"
        ) from None
    except json.JSONDecodeError as error:
        raise InputError(f"{folder / LINEAGE}: not readable as JSON ({error}); run the stage again") from None
