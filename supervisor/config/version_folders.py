"""Numbered version folders as TensorFlow Serving lays them out, `MODEL/1` and so on, and which of them are served."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

SAVED_MODEL_FILES: Final = ("saved_model.pb", "saved_model.pbtxt")


@dataclass(frozen=True, slots=True)
class Policy:
    """Which versions of a model are served; the words are those of TensorFlow Serving's `model_version_policy`.

    Attributes:
        kind: the `count` highest, all there are, or those that are listed.
        count: of `latest`.
        listed: of `specific`, the numbers.
    """

    kind: Literal["latest", "all", "specific"] = "latest"
    count: int = 1
    listed: tuple[int, ...] = ()

    def choose(self, there: Iterable[str]) -> tuple[str, ...]:
        """Those of the versions that are there which are to be served, ascending."""
        ordered = sorted(there, key=int)
        if self.kind == "latest":
            return tuple(ordered[-self.count :])
        return tuple(version for version in ordered if self.kind == "all" or int(version) in self.listed)


def is_saved_model(folder: Path) -> bool:
    """The folder holds one SavedModel itself."""
    return any((folder / name).is_file() for name in SAVED_MODEL_FILES)


def is_version(entry: Path) -> bool:
    """The entry's name is a version: decimal digits and nothing else."""
    return entry.name.isascii() and entry.name.isdigit()


def versions_of(path: str | Path) -> tuple[str, ...] | None:
    """The versions under a model's path that hold a SavedModel, ascending; None where it is no folder of versions.

    Args:
        path: of a SavedModel, of a folder of numbered versions, or of a file.

    Raises:
        OSError: the folder cannot be read.
    """
    path = Path(path)
    if path.is_file() or is_saved_model(path):
        return None
    # Of `1` and `01` one: they are the same number.
    found = {int(entry.name): entry.name for entry in path.iterdir() if is_version(entry) and is_saved_model(entry)}
    return tuple(found[number] for number in sorted(found))


def chosen_versions(path: str | Path, policy: Policy) -> tuple[str | None, ...]:
    """The versions that a daemon started now would load; None alone stands for the path itself.

    A listed version that is not there is among them where none is: its worker then tells what is missing.
    """
    there = versions_of(path)
    if there is None:
        return (None,)
    return policy.choose(there) or tuple(map(str, policy.listed)) or (None,)


def fingerprint(path: str | Path, version: str | None) -> str:
    """Differs when a model was written again in its place: from the names, sizes and times of all its files.

    Raises:
        OSError: something in it cannot be read; what vanishes meanwhile is left out.
    """
    root = Path(path) / version if version is not None else Path(path)
    if root.is_file():
        return _digest([_line(root, root.name)])
    return _digest(_lines(root)) if is_saved_model(root) else ""


def _lines(root: Path) -> list[str]:
    found: list[str] = []

    def failed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for folder, _, names in os.walk(root, onerror=failed, followlinks=True):
        for name in names:
            file = os.path.join(folder, name)
            try:
                found.append(_line(file, os.path.relpath(file, root)))
            except FileNotFoundError:
                continue
    return sorted(found)


def _line(file: str | Path, name: str) -> str:
    status = os.stat(file)
    return f"{name}\0{status.st_size}\0{status.st_mtime_ns}"


def _digest(lines: list[str]) -> str:
    return hashlib.blake2b("\n".join(lines).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
