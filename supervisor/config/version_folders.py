"""Numbered version folders as in TensorFlow Serving, `MODEL/1` and so on, and which of them are served."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

SAVED_MODEL_FILES: Final = ("saved_model.pb", "saved_model.pbtxt")


@dataclass(frozen=True, slots=True)
class Policy:
    """Which versions of a model are served, as in TensorFlow Serving's `model_version_policy`.

    Attributes:
        kind: `latest` for the `count` highest, `all`, or `specific` for those in `listed`.
        count: how many, for `latest`.
        listed: version numbers, for `specific`.
    """

    kind: Literal["latest", "all", "specific"] = "latest"
    count: int = 1
    listed: tuple[int, ...] = ()

    def choose(self, existing: Iterable[str]) -> tuple[str, ...]:
        """The versions to serve of those that exist, ascending."""
        ordered = sorted(existing, key=int)
        if self.kind == "latest":
            return tuple(ordered[-self.count :])
        return tuple(version for version in ordered if self.kind == "all" or int(version) in self.listed)


def is_saved_model(folder: Path) -> bool:
    """Whether the folder is a SavedModel."""
    return any((folder / name).is_file() for name in SAVED_MODEL_FILES)


def is_version(entry: Path) -> bool:
    """Whether the entry's name is a version: decimal digits only."""
    return entry.name.isascii() and entry.name.isdigit()


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions in a folder.

    Attributes:
        found: those that hold a SavedModel, ascending.
        unreadable: why others cannot be read, by version.
    """

    found: tuple[str, ...]
    unreadable: Mapping[str, str]


def list_versions(path: str | Path) -> Versions | None:
    """Lists the versions in a folder; None if the path is not a folder of versions.

    A version that cannot be read, such as the folder of another user, does not prevent others from being found.

    Args:
        path: a SavedModel, a folder of numbered versions, or a file.

    Raises:
        OSError: the folder cannot be read.
    """
    path = Path(path)
    if path.is_file() or is_saved_model(path):
        return None
    found: dict[int, str] = {}
    unreadable: dict[str, str] = {}
    for entry in path.iterdir():
        if not is_version(entry):
            continue
        try:
            if is_saved_model(entry):
                found[int(entry.name)] = entry.name  # `1` and `01` are the same version: one of them counts
        except OSError as error:
            unreadable[entry.name] = f"it cannot be read: {error.strerror}"
    return Versions(tuple(found[number] for number in sorted(found)), unreadable)


def versions_of(path: str | Path) -> tuple[str, ...] | None:
    """The versions that `list_versions` finds; None if the path is not a folder of versions.

    Raises:
        OSError: the folder cannot be read.
    """
    versions = list_versions(path)
    return None if versions is None else versions.found


def chosen_versions(path: str | Path, policy: Policy) -> tuple[str | None, ...]:
    """The versions that a daemon would load now; None stands for the path itself.

    If no listed version exists, all listed ones are returned: loading them reports what is missing.
    """
    existing = versions_of(path)
    if existing is None:
        return (None,)
    return policy.choose(existing) or tuple(map(str, policy.listed)) or (None,)
