"""Values of a configuration with a syntax of their own: endpoints, devices, memory, model paths.

Each function takes a value from YAML and returns the one that the daemon uses, or raises ValueError with a message for
the user. `config.py` and `models.py` use them as validators.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from multitower.file_contents import is_file_of_saved_model
from multitower.format_registry import FILE_SUFFIXES, recognize_contents
from multitower.handler_lookup import why_missing

from ..loop.bounded_call import call_all_within, call_within
from ..loop.runtime_dir import MAX_IPC_PATH
from .units import format_size, parse_size, printable, short_repr
from .version_folders import SAVED_MODEL_FILES, is_version, list_versions

# Bytes that `runtime_dir` must leave for the names of the sockets in it.
RUNTIME_NAME_BYTES: Final = 32

MEMORY_PATTERN: Final = r"^(?:growth|[0-9]{1,3}(?:\.[0-9]{1,3})?%|[0-9.]+(?:B|KiB|MiB|GiB|KB|MB|GB))$"
ENDPOINT_PATTERN: Final = r"^(?:ipc://.+|tcp://.+:(?:\*|[0-9]+))$"
_DOTTED: Final = r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*"
HANDLER_PATTERN: Final = rf"^{_DOTTED}:{_DOTTED}$"
NAME_PATTERN: Final = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$"
# Before R470 a MIG slice was called MIG-GPU-<UUID>/<instance>/<instance>.
UUID_PATTERN: Final = r"^(?:[Gg][Pp][Uu]-[0-9A-Za-z-]+|[Mm][Ii][Gg]-[0-9A-Za-z/-]+)$"

CPU_DEVICE_PATTERN: Final = r"^cpu:(?:0|[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5])$"

_TCP: Final = re.compile(r"tcp://(\[[^\[\]\s]+\]|[^:\[\]\s]+):(\*|[0-9]{1,5})")
_PERCENTAGE: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)%")


class NotYetError(ValueError):
    """The value is possible, but what it names is not on this machine, or cannot be read now. That may change.

    Attributes:
        path: the path that the value names.
    """

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """How much device memory a worker may use; without either attribute it grows on demand.

    Attributes:
        size: bytes for each worker.
        fraction: share of the device's memory, above 0 and up to 1, divided among the device's workers.
    """

    size: int | None = None
    fraction: float | None = None

    def __str__(self) -> str:
        if self.fraction is not None:
            return f"{self.fraction * 100:g}%"
        return format_size(self.size) if self.size is not None else "growth"


def parse_memory(value: object) -> MemoryLimit:
    """Parses `growth`, `6GiB` or `80%`. Whether a device has that much is checked when devices are known."""
    if value == "growth":
        return MemoryLimit()
    if isinstance(value, str) and value.endswith("%"):
        match = _PERCENTAGE.fullmatch(value)
        share = Fraction(match[1]) / 100 if match else Fraction(0)
        if not 0 < share <= 1:
            raise ValueError(f"{short_repr(value)} is not a percentage above 0% and up to 100%")
        return MemoryLimit(fraction=float(share))
    if not isinstance(value, str):
        raise ValueError(f"must be growth, a size (6GiB) or a percentage (80%), not {short_repr(value)}")
    size = parse_size(value)
    if size == 0:
        raise ValueError("a worker needs memory; growth takes what is needed")
    return MemoryLimit(size=size)


def either(one: bool | None, other: bool | None) -> bool | None:
    """Whether one of two settings is true; None if that cannot be known, as one of them is wrong itself."""
    if one or other:
        return True
    return None if one is None or other is None else False


def both(one: bool | None, other: bool | None) -> bool | None:
    """Whether both of two settings are true; None if that cannot be known, as one of them is wrong itself."""
    if one is False or other is False:
        return False
    return None if one is None or other is None else True


class Lacking(NamedTuple):
    """What an address lacks, and the settings that give it."""

    what: str
    settings: str


CURVE: Final = Lacking("encryption or authorisation", "security.curve")


def parse_endpoint(value: object, folder: Path, *, guarded: bool | None, lacks: Lacking = CURVE) -> str:
    """Parses a ZeroMQ endpoint to bind.

    Args:
        value: `ipc://PATH` or `tcp://HOST:PORT`; the port may be `*`.
        folder: the configuration file's, where relative ipc paths start.
        guarded: whether addresses that other machines can reach are allowed, by `security` or by `insecure`; None if a
            setting that decides it is wrong itself.
        lacks: what addresses that other machines can reach lack if they are not guarded.
    """
    if not isinstance(value, str):
        raise ValueError(f"must be an endpoint, as in tcp://127.0.0.1:5555, not {short_repr(value)}")
    if value.startswith("ipc://"):
        return _parse_ipc(value, folder)
    if not value.startswith("tcp://"):
        raise ValueError(f"{short_repr(value)} is not an endpoint: it must begin with ipc:// or tcp://")
    match = _TCP.fullmatch(value)
    if match is None:
        raise ValueError(f"{short_repr(value)} must be tcp://HOST:PORT, as in tcp://127.0.0.1:5555")
    host, port = match.groups()
    if port != "*" and not 1 <= int(port) <= 65535:
        raise ValueError(f"the port {port} must be 1 to 65535, or * for any free one")
    if guarded is False and not is_loopback(host):
        raise ValueError(
            f"{host} can be reached from other machines, without {lacks.what}; "
            f"use 127.0.0.1, add {lacks.settings}, or set 'insecure: true' to allow it"
        )
    return value


def _parse_ipc(value: str, folder: Path) -> str:
    name = value.removeprefix("ipc://")
    if name.startswith("@"):
        raise ValueError("abstract sockets have no permissions: any user of the machine could connect; name a file")
    if not name or name.startswith("*") or "\0" in name:
        raise ValueError(f"{short_repr(value)} must name a file, as in ipc:///run/multitower/front.sock")
    path = os.path.normpath(folder / name)
    if name.endswith("/") or os.path.isdir(path):
        raise ValueError(f"{printable(path)} is a folder; name the socket in it")
    _check_socket_path(path, MAX_IPC_PATH)
    return f"ipc://{path}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host: `localhost`, or an IP address, with or without brackets."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def _check_socket_path(path: str, limit: int) -> None:
    if printable(path) != path:
        raise ValueError(f"{printable(path)} is not UTF-8, as ZeroMQ needs a socket's path to be")
    length = len(path.encode())
    if length > limit:
        raise ValueError(f"{path} has {length} bytes; a socket's address allows {limit} here")


def parse_name(value: object) -> str:
    """Parses a model's name."""
    if not isinstance(value, str) or not re.fullmatch(NAME_PATTERN, value):
        raise ValueError(
            f"{short_repr(value)} is not a name: 1 to 128 letters, digits, '_', '-' and '.', not beginning with - or ."
        )
    return value


def parse_handler(value: object) -> str:
    """Parses the `module:Class` of a handler. Workers find out whether it can be imported."""
    if not isinstance(value, str) or not re.fullmatch(HANDLER_PATTERN, value):
        raise ValueError(f"{short_repr(value)} is not module:Class, as in my_package.models:Thumbnailer")
    return value


def parse_runtime_dir(value: object, folder: Path) -> Path:
    """Parses a path of a folder; it must be short enough for the names of the sockets in it."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"must be the path of a folder, not {short_repr(value)}")
    path = Path(os.path.normpath(folder / value))
    _check_socket_path(str(path), MAX_IPC_PATH - RUNTIME_NAME_BYTES)
    if os.path.exists(path) and not os.path.isdir(path):  # unlike Path's methods, these do not raise
        raise ValueError(f"{printable(path)} is not a folder")
    return path


def parse_device(value: object) -> int | str:
    """Parses an item of a list of devices: an index, a UUID or its beginning, or `cpu:N`."""
    if isinstance(value, list | tuple):
        raise ValueError("is a group within a group; a group lists devices")
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < 2**31:
            raise ValueError(f"{short_repr(value)} is not a device index; indices count from 0")
        return value
    if not isinstance(value, str):
        raise ValueError(f"must be an index (0) or a UUID (GPU-8f6c0d5a-...), not {short_repr(value)}")
    if value.isdecimal():
        raise ValueError(f"{short_repr(value)} is text; an index is written without quotes")
    if value.startswith("cpu"):
        if not is_cpu_device(value):
            raise ValueError(
                f"{short_repr(value)} is not a CPU device: these are cpu:0 to cpu:255; "
                "{cpu: N} instead of the list is N of them"
            )
    elif not re.fullmatch(UUID_PATTERN, value):
        raise ValueError(f"{short_repr(value)} is neither an index (0) nor a UUID (GPU-8f6c0d5a-...) nor a CPU device")
    return value


def is_slice(value: int | str) -> bool:
    """Whether an item of a list of devices is a MIG slice."""
    return isinstance(value, str) and value.upper().startswith("MIG-")


def is_cpu_device(value: int | str) -> bool:
    """Whether an item of a list of devices is a CPU device."""
    return isinstance(value, str) and re.fullmatch(CPU_DEVICE_PATTERN, value) is not None


class UnansweredError(NotYetError):
    """Its file system does not answer."""


ANSWER_S: Final = 5.0
"""Seconds that a file system gets to answer when a configuration is read; what does not answer is not there yet."""


class FileSystems:
    """Waits for file systems for `ANSWER_S` at most.

    Args:
        folder: where relative paths start.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unanswered: dict[Path, Exception] = {}

    def look_at(self, values: Iterable[str]) -> None:
        """Looks at paths at the same time, so that many that do not answer take no longer than one."""
        paths = list({self._path(value) for value in values if "\0" not in value})
        outcomes = call_all_within(ANSWER_S, [partial(os.path.exists, path) for path in paths])
        self._unanswered.update(
            (path, outcome) for path, outcome in zip(paths, outcomes, strict=True) if isinstance(outcome, TimeoutError)
        )

    def parse_model_path(self, value: object) -> Path:
        """Does what `parse_model_path` does; raises `UnansweredError` if the file system does not answer."""
        return self._answered(partial(parse_model_path, value, self._folder), value)

    def parse_file(self, value: object, suffix: str, what: str) -> Path:
        """Does what `parse_file` does; raises `UnansweredError` if the file system does not answer."""
        return self._answered(partial(parse_file, value, self._folder, suffix, what), value)

    def why_handler_missing(self, handler: str) -> str | None:
        """Does what `why_missing` does; None if the file system does not answer."""
        try:
            return call_within(ANSWER_S, partial(why_missing, str(self._folder), handler))
        except TimeoutError:
            return None

    def _path(self, value: object) -> Path:
        return Path(os.path.normpath(self._folder / str(value)))

    def _answered(self, parse: Callable[[], Path], value: object) -> Path:
        path = self._path(value)
        error = self._unanswered.get(path)
        if error is None:
            try:
                return call_within(ANSWER_S, parse)
            except TimeoutError as late:
                error = late
        raise UnansweredError(path, f"{printable(path)} cannot be read: its file system gave {error}") from error


def parse_model_path(value: object, folder: Path) -> Path:
    """Parses the path of a SavedModel, a folder of numbered versions, or a model file. It may block.

    Raises:
        NotYetError: there is no model, or it cannot be read.
        ValueError: it is no model.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"must be the path of a model, not {short_repr(value)}")
    path = Path(os.path.normpath(folder / value))
    try:
        if path.is_dir():
            _check_model_folder(path)
        elif not path.exists():
            raise NotYetError(path, _describe_missing(path))
        elif not os.access(path, os.R_OK):
            raise NotYetError(path, f"{printable(path)} cannot be read: permission denied")
        elif recognize_contents(path) is None:
            _check_unknown_file(path)
    except OSError as error:
        raise NotYetError(path, f"{printable(path)} cannot be read: {error.strerror}") from error
    return path


def _check_unknown_file(path: Path) -> None:
    """Refuses a file whose contents are of no known format, unless its suffix is: it may still be written."""
    if path.name in SAVED_MODEL_FILES or is_file_of_saved_model(path):
        raise ValueError(
            f"{printable(path)} is a file of a SavedModel; name the folder that holds it, {printable(path.parent)}, "
            f"where it must be called {' or '.join(SAVED_MODEL_FILES)}"
        )
    if path.suffix not in FILE_SUFFIXES:
        raise ValueError(
            f"{printable(path)} is neither a model of Keras nor a frozen graph, by its contents; a model is a "
            f"SavedModel folder or a file, usually {', '.join(FILE_SUFFIXES)}"
        )


def parse_file(value: object, folder: Path, suffix: str, what: str) -> Path:
    """Parses the path of a file. It may block.

    Args:
        value: the path.
        folder: the configuration file's, where relative paths start.
        suffix: the suffix that it must have.
        what: its contents, for messages.

    Raises:
        NotYetError: it does not exist, or cannot be read.
        ValueError: it is no such file.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"must be the path of a {suffix} file with {what}, not {short_repr(value)}")
    path = Path(os.path.normpath(folder / value))
    try:
        if not path.exists():
            raise NotYetError(path, _describe_missing(path))
        if path.suffix != suffix or not path.is_file():
            raise ValueError(f"{printable(path)} is not a {suffix} file")
        if not os.access(path, os.R_OK):
            raise NotYetError(path, f"{printable(path)} cannot be read: permission denied")
    except OSError as error:
        raise NotYetError(path, f"{printable(path)} cannot be read: {error.strerror}") from error
    return path


def _check_model_folder(path: Path) -> None:
    entries = sorted(path.iterdir())
    versions_found = list_versions(path)
    if versions_found is None or versions_found.found:
        return
    versions = [entry.name for entry in entries if is_version(entry)]
    if versions:
        causes = {f"; {version}: {cause}" for version, cause in versions_found.unreadable.items()}
        found = f"its versions ({_first_of(versions)}) hold none{''.join(sorted(causes))}"
    elif entries:
        found = f"it holds {_first_of([entry.name + ('/' if entry.is_dir() else '') for entry in entries])}"
    else:
        found = "it is empty"
    message = f"{printable(path)} has no saved_model.pb, neither itself nor in a numbered version folder: {found}"
    raise NotYetError(path, message)


def _describe_missing(path: Path) -> str:
    missing = [parent for parent in path.parents if not parent.exists()]
    nor = f", nor does {missing[-1]}" if missing else ""
    home = "; ~ is not expanded, write the whole path" if "~" in path.parts else ""
    return f"{printable(path)} does not exist{printable(nor)}{home}"


def _first_of(names: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return printable(", ".join(names[:limit])) + more
