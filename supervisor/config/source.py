"""Keys and values of a configuration with their positions, and problems that refer to these.

`yaml_reader.py` builds trees of `Node`, `overrides.py` combines those of the environment and of `--set` with the
file's, `config.py` validates the data, and reports each error as a `Problem` at the position of the key or value.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from multitower.account_names import user_name

from .units import printable, short_repr

MAX_FILE_BYTES: Final = 1 << 18
MAX_PROBLEMS: Final = 100  # reported at once

Location = tuple[str | int, ...]

_SIMPLE_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Position:
    """Where a key or value was written: a file's line and column (from 1), or the name of an override."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        source = printable(self.source)
        return f"{source}:{self.line}:{self.column}" if self.line else source


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a configuration.

    Attributes:
        position: where it was written.
        location: the keys and indices that lead to it; empty for the file as a whole.
        message: what is wrong and what would be right, for people.
        suggestion: the name that was probably meant, or None.
    """

    position: Position
    location: Location
    message: str
    suggestion: str | None = None

    def __str__(self) -> str:
        hint = f" (did you mean '{self.suggestion}'?)" if self.suggestion else ""
        path = f"{key_path(self.location)}: " if self.location else ""
        return printable(f"{self.position}: {path}{self.message}{hint}")


_WRONG_PATH: Final = frozenset(
    (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENXIO)
)
"""Errors of a path that is mistyped; ENOENT is up to the caller, since a folder may be made or come."""


class ConfigError(Exception):
    """The configuration cannot be used.

    Attributes:
        problems: all its problems, in the file's order.
        may_pass: whether the file is only unreadable now; see `may_pass`.
    """

    def __init__(self, problems: Sequence[Problem], *, may_pass: bool = False) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        self.may_pass = may_pass
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True, slots=True)
class Node:
    """A value and its position.

    Attributes:
        position: where the value was written.
        value: a scalar, a list of nodes, or a dict of keys to (position of the key, node of the value).
        size: the number of values in it, itself included; what aliases repeat counts each time.
    """

    position: Position
    value: Any
    size: int = 1

    def plain(self) -> Any:
        """The value without positions."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, (_, node) in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def find(self, location: Location, *, key: bool = False) -> Position:
        """The position of the value at `location`, or of the innermost value around it that exists.

        Args:
            location: keys and indices, from this node on.
            key: whether to return the position of the last key instead of its value's.
        """
        node, position = self, self.position
        for step in location:
            if isinstance(node.value, dict) and step in node.value:
                position, node = node.value[step]
            elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                position = node.position
            else:
                return node.position
        return position if key else node.position


# The keys that exist: a mapping of names to the trees below them, a list of one tree for a list of mappings, None for
# a value without known keys.
KeyTree = Mapping[str, Any]


def key_path(location: Location) -> str:
    """`("models", 0, "path")` as `models[0].path`; keys with unusual characters are quoted."""
    text = ""
    for step in location:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + (step if _SIMPLE_KEY.fullmatch(step) else short_repr(step))
    return text


def nearest(name: str, names: Sequence[str]) -> str | None:
    """The one of `names` that is most similar to `name`; None if none is similar."""
    close = difflib.get_close_matches(name[:128], names, n=1)
    return close[0] if close else None


def may_pass(error: OSError) -> bool:
    """Whether an error may pass although the path stays as it is: permissions, a file system, a lack of resources.

    It may not where the path itself is wrong, and for errors of multitower's own, which have no number.
    """
    return error.errno is not None and error.errno not in _WRONG_PATH


def read_file(path: Path) -> str:
    """Reads the file at `path`.

    Raises:
        ConfigError: it is missing, unreadable, too large or not UTF-8.
    """
    where = Position(str(path))
    try:
        # A pipe or a device may never end: no more is read than is accepted.
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError([_missing_file(path)]) from None
    except IsADirectoryError:
        raise ConfigError([Problem(where, (), "is a folder; name the YAML file")]) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, PermissionError):
            reason += f", for user {user_name(os.geteuid())}; its mode or that of a folder above it forbids it"
        temporary = isinstance(error, OSError) and may_pass(error)
        raise ConfigError([Problem(where, (), f"cannot be read: {reason}")], may_pass=temporary) from error
    if len(data) > MAX_FILE_BYTES:
        message = f"is over {MAX_FILE_BYTES >> 10} KiB, which no configuration needs"
        raise ConfigError([Problem(where, (), message)])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        position = Position(str(path), line, column)
        raise ConfigError(
            [Problem(position, (), f"is not UTF-8 (byte 0x{data[error.start]:02x}); save it as UTF-8")]
        ) from None


def _missing_file(path: Path) -> Problem:
    folder = path.absolute().parent
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml"))
    except OSError:
        return Problem(Position(str(path)), (), f"there is no such file, nor can the folder {folder} be read")
    return Problem(Position(str(path)), (), f"there is no such file in {folder}", nearest(path.name, names))
