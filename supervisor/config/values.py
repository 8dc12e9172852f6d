"""The values of a configuration that are more than a number or a word: endpoints, devices, memory, model paths.

Each function takes what YAML gave and returns what the daemon works with, or raises ValueError with one sentence
for the person who wrote it. `config` hangs them into its models.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

from multitower.spec import MODEL_SUFFIXES

from ..loop.runtime_dir import MAX_IPC_PATH
from .units import format_size, parse_size, shown
from .version_folders import SAVED_MODEL_FILES, is_saved_model, is_version

# What `runtime_dir` must leave of a socket's path for the names of the sockets in it.
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


@dataclass(frozen=True, slots=True)
class Memory:
    """How much of its device a worker may take; neither attribute is set for growth on demand.

    Attributes:
        size: bytes for each worker.
        fraction: a share of the device's memory, over 0 up to 1, divided among the device's workers.
    """

    size: int | None = None
    fraction: float | None = None

    def __str__(self) -> str:
        if self.fraction is not None:
            return f"{self.fraction * 100:g}%"
        return format_size(self.size) if self.size is not None else "growth"


def parse_memory(value: object) -> Memory:
    """The limit of `growth`, `6GiB` or `80%`; whether it fits a device is found out when there is one."""
    if value == "growth":
        return Memory()
    if isinstance(value, str) and value.endswith("%"):
        match = _PERCENTAGE.fullmatch(value)
        share = Fraction(match[1]) / 100 if match else Fraction(0)
        if not 0 < share <= 1:
            raise ValueError(f"{shown(value)} is not a percentage over 0% up to 100%")
        return Memory(fraction=float(share))
    if not isinstance(value, str):
        raise ValueError(f"must be growth, a size (6GiB) or a percentage (80%), not {shown(value)}")
    size = parse_size(value)
    if size == 0:
        raise ValueError("a worker cannot work without memory; growth takes what is needed")
    return Memory(size=size)


def parse_endpoint(value: object, folder: Path, *, insecure: bool | None) -> str:
    """A ZeroMQ endpoint that can be bound; a relative ipc path starts at `folder`.

    Args:
        value: `ipc://PATH` or `tcp://HOST:PORT`, the port possibly `*`.
        folder: the configuration file's.
        insecure: whether addresses that other machines reach are wanted; None where that setting is wrong itself.
    """
    if not isinstance(value, str):
        raise ValueError(f"must be an endpoint, as in tcp://127.0.0.1:5555, not {shown(value)}")
    if value.startswith("ipc://"):
        return _ipc(value, folder)
    if not value.startswith("tcp://"):
        raise ValueError(f"{shown(value)} is no endpoint: it must begin with ipc:// or tcp://")
    match = _TCP.fullmatch(value)
    if match is None:
        raise ValueError(f"{shown(value)} must be tcp://HOST:PORT, as in tcp://127.0.0.1:5555")
    host, port = match.groups()
    if port != "*" and not 1 <= int(port) <= 65535:
        raise ValueError(f"the port {port} must be 1 to 65535, or * for any free one")
    if insecure is False and not _is_loopback(host):
        raise ValueError(
            f"{host} can be reached from other machines, and nothing encrypts or authorises there; "
            "use 127.0.0.1, or set 'insecure: true' if that is what you want"
        )
    return value


def _ipc(value: str, folder: Path) -> str:
    name = value.removeprefix("ipc://")
    if name.startswith("@"):
        raise ValueError("abstract sockets have no permissions: any user of the machine could connect; name a file")
    if not name or name.startswith("*") or "\0" in name:
        raise ValueError(f"{shown(value)} must name a file, as in ipc:///run/multitower/front.sock")
    path = os.path.normpath(folder / name)
    if name.endswith("/") or os.path.isdir(path):
        raise ValueError(f"{path} is a folder; name the socket in it")
    _check_length(path, MAX_IPC_PATH)
    return f"ipc://{path}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def _check_length(path: str, limit: int) -> None:
    length = len(os.fsencode(path))
    if length > limit:
        raise ValueError(f"{path} has {length} bytes; {limit} is the most that a socket's address allows here")


def parse_name(value: object) -> str:
    """A model's name."""
    if not isinstance(value, str) or not re.fullmatch(NAME_PATTERN, value):
        raise ValueError(
            f"{shown(value)} is no name: 1 to 128 letters, digits, '_', '-' and '.', not beginning with '-' or '.'"
        )
    return value


def parse_handler(value: object) -> str:
    """The `module:Class` of a handler; whether it can be imported is the worker's to find out."""
    if not isinstance(value, str) or not re.fullmatch(HANDLER_PATTERN, value):
        raise ValueError(f"{shown(value)} is not module:Class, as in my_package.models:Thumbnailer")
    return value


def parse_runtime_dir(value: object, folder: Path) -> Path:
    """An absolute folder that leaves room for the names of the sockets in it."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"must be the path of a folder, not {shown(value)}")
    path = Path(os.path.normpath(folder / value))
    _check_length(str(path), MAX_IPC_PATH - RUNTIME_NAME_BYTES)
    if os.path.exists(path) and not os.path.isdir(path):  # unlike Path's, these raise nothing
        raise ValueError(f"{path} is not a folder")
    return path


def parse_device(value: object) -> int | str:
    """A device of a list: its index, (the beginning of) its UUID, or `cpu:N`. Text is never taken for a number."""
    if isinstance(value, list | tuple):
        raise ValueError("is a group within a group; a group lists devices")
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < 2**31:
            raise ValueError(f"{shown(value)} is no device index; they count from 0")
        return value
    if not isinstance(value, str):
        raise ValueError(f"must be an index (0) or a UUID (GPU-8f6c0d5a-...), not {shown(value)}")
    if value.isdecimal():
        raise ValueError(f"{shown(value)} is text; an index is written without quotes")
    if value.startswith("cpu"):
        if not is_cpu_device(value):
            raise ValueError(
                f"{shown(value)} is no CPU device: they are cpu:0 to cpu:255; {{cpu: N}} instead of the list gives "
                "N workers one each"
            )
    elif not re.fullmatch(UUID_PATTERN, value):
        raise ValueError(f"{shown(value)} is neither an index (0) nor a UUID (GPU-8f6c0d5a-...) nor a CPU device")
    return value


def is_slice(value: int | str) -> bool:
    """Whether an entry of a list is a MIG slice."""
    return isinstance(value, str) and value.upper().startswith("MIG-")


def is_cpu_device(value: int | str) -> bool:
    """Whether an entry of a list is a CPU device; the others are GPUs."""
    return isinstance(value, str) and re.fullmatch(CPU_DEVICE_PATTERN, value) is not None


def parse_model_path(value: object, folder: Path) -> Path:
    """The absolute path of a SavedModel, a folder of numbered versions, or a file of another format; it exists."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"must be the path of a model, not {shown(value)}")
    path = Path(os.path.normpath(folder / value))
    try:
        if path.is_dir():
            _check_model_folder(path)
        elif not path.exists():
            raise ValueError(_absent(path))
        elif path.name in SAVED_MODEL_FILES:
            raise ValueError(f"{path} is a file of a SavedModel; name the folder that holds it, {path.parent}")
        elif path.suffix not in MODEL_SUFFIXES:
            raise ValueError(f"{path} is a file; a model is a SavedModel folder or a file {', '.join(MODEL_SUFFIXES)}")
        elif not os.access(path, os.R_OK):
            raise ValueError(f"{path} cannot be read: permission denied")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    return path


def parse_file(value: object, folder: Path, suffix: str, what: str) -> Path:
    """The absolute path of a file with that suffix; it exists. `what` tells what it holds."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"must be the path of a {suffix} file with {what}, not {shown(value)}")
    path = Path(os.path.normpath(folder / value))
    try:
        if not path.exists():
            raise ValueError(_absent(path))
        if path.suffix != suffix or not path.is_file():
            raise ValueError(f"{path} is no {suffix} file")
        if not os.access(path, os.R_OK):
            raise ValueError(f"{path} cannot be read: permission denied")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    return path


def _check_model_folder(path: Path) -> None:
    entries = sorted(path.iterdir())
    if is_saved_model(path) or any(is_version(entry) and is_saved_model(entry) for entry in entries):
        return
    versions = [entry.name for entry in entries if is_version(entry)]
    if versions:
        found = f"its versions ({_some(versions)}) hold none"
    elif entries:
        found = f"it holds {_some([entry.name + ('/' if entry.is_dir() else '') for entry in entries])}"
    else:
        found = "it is empty"
    raise ValueError(f"{path} has no saved_model.pb, neither itself nor in a numbered version folder: {found}")


def _absent(path: Path) -> str:
    absent = [parent for parent in path.parents if not parent.exists()]
    nor = f", nor does {absent[-1]}" if absent else ""
    home = "; ~ is not expanded, write the whole path" if "~" in path.parts else ""
    return f"{path} does not exist{nor}{home}"


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
