"""Numbered version folders, as TensorFlow Serving lays them out: `MODEL/1`, `MODEL/2` and so on."""

from __future__ import annotations

from pathlib import Path
from typing import Final

SAVED_MODEL_FILES: Final = ("saved_model.pb", "saved_model.pbtxt")


def is_saved_model(folder: Path) -> bool:
    """The folder holds one SavedModel itself."""
    return any((folder / name).is_file() for name in SAVED_MODEL_FILES)


def is_version(entry: Path) -> bool:
    """The entry's name is a version: decimal digits and nothing else."""
    return entry.name.isascii() and entry.name.isdigit()


def latest_version(path: str | Path) -> str | None:
    """The highest version under a model's path that holds a SavedModel; None where there are no versions.

    Args:
        path: of a SavedModel, of a folder of numbered versions, or of a file.
    """
    path = Path(path)
    if not path.is_dir() or is_saved_model(path):
        return None
    versions = [entry.name for entry in path.iterdir() if is_version(entry) and is_saved_model(entry)]
    return max(versions, key=int, default=None)


def fingerprint(path: str | Path, version: str | None) -> str:
    """Differs when a model was written again in its place: from the time and the size of its main file."""
    path = Path(path) / version if version is not None else Path(path)
    files = [path] if path.is_file() else [path / name for name in SAVED_MODEL_FILES]
    found = [file.stat() for file in files if file.is_file()]
    return ",".join(f"{status.st_mtime_ns}-{status.st_size}" for status in found)
