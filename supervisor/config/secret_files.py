"""Files that decide who gets in: secret keys, and what lists who may do what. Their owners and modes are checked.

A file is opened once, and what is checked is what is read: a path that is replaced meanwhile changes nothing.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import zmq

from multitower.account_names import user_name
from multitower.curve_keys import KEY_CHARACTERS, is_key

from .access_lists import mode_for_others
from .units import printable

MAX_SECRET_BYTES: Final = 1 << 16
MAX_LIST_BYTES: Final = 1 << 22

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_CERTIFICATE_KEY: Final = re.compile(r'^\s*(public|secret)-key\s*=\s*"([^"]*)"\s*$', re.MULTILINE)


class GuardedFileError(ValueError):
    """A file that decides who gets in cannot be used; the message is for the user."""


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """A pair of CURVE keys, each in Z85; the secret one is not shown."""

    public: str
    secret: str = field(repr=False)


def read_secret(path: Path, what: str, made_by: str | None = None) -> str:
    """Reads a file that only its owner may read. It may block.

    Args:
        path: the file.
        what: it holds, for messages.
        made_by: the command that writes such a file, for messages.

    Raises:
        GuardedFileError: it is missing, unreadable or empty, is no regular file, belongs to another user than this
            process's or root, or other users may use it.
    """
    wanted = _wanted(what, made_by)
    text = _read(path, wanted, forbidden=_OTHERS, limit=MAX_SECRET_BYTES)
    if not text.strip():
        raise GuardedFileError(f"{printable(path)} is empty; it must hold {wanted}")
    return text


def read_list(path: Path, what: str, made_by: str | None = None) -> str:
    """Reads a file that only its owner may write. It may block.

    Args:
        path: the file.
        what: it holds, for messages.
        made_by: the command that writes such a file, for messages.

    Raises:
        GuardedFileError: as for `read_secret`, but others may read it, and it may be empty.
    """
    return _read(path, _wanted(what, made_by), forbidden=_WRITABLE_BY_OTHERS, limit=MAX_LIST_BYTES)


def _wanted(what: str, made_by: str | None) -> str:
    return what if made_by is None else f"{what}; `{made_by}` makes one"


def read_curve_keys(path: Path) -> CurveKeys:
    """Reads the secret half of a CURVE certificate, as `multitower keys new` writes it. It may block.

    Raises:
        GuardedFileError: see `read_secret`; or it is no such certificate.
    """
    if _is_public_half(path):
        raise GuardedFileError(
            f"{printable(path)} is a public key; the secret one is in the file NAME.key_secret beside it"
        )
    made_by = "multitower keys new NAME --server --out FOLDER"
    found = dict(_CERTIFICATE_KEY.findall(read_secret(path, "a CURVE secret key", made_by)))
    secret = found.get("secret")
    if secret is None:
        raise GuardedFileError(
            f'{printable(path)} has no line secret-key = "…"; `multitower keys new --server` writes such a file'
        )
    try:
        check_key(secret)
        public = zmq.curve_public(secret.encode()).decode()
    except (ValueError, zmq.ZMQError):
        # The message leaves the value out: it may be a secret.
        raise GuardedFileError(f"{printable(path)}: secret-key is no key of 40 characters in Z85") from None
    if found.get("public", public) != public:
        raise GuardedFileError(f"{printable(path)}: public-key and secret-key are no pair")
    return CurveKeys(public, secret)


def _is_public_half(path: Path) -> bool:
    """Whether a file holds a public key alone. Its mode is right for that, so the mode must not be what is reported."""
    try:
        found = dict(_CERTIFICATE_KEY.findall(_read(path, "", forbidden=0, limit=MAX_SECRET_BYTES)))
    except GuardedFileError:
        return False  # `read_secret` says why
    return "public" in found and "secret" not in found


def check_key(key: str) -> None:
    """Checks that a text is a CURVE key in Z85.

    Raises:
        ValueError: it is not.
    """
    if len(key) != KEY_CHARACTERS or not key.isascii():
        raise ValueError(f"must have {KEY_CHARACTERS} characters, not {len(key)}")
    if not is_key(key):
        raise ValueError("is not Z85")


def _read(path: Path, what: str, *, forbidden: int, limit: int) -> str:
    name = printable(path)
    try:
        # A named pipe would block the open until somebody writes.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise GuardedFileError(f"{name} does not exist; it must hold {what}") from None
    except PermissionError as error:
        raise GuardedFileError(f"{name} cannot be read{_why_not(path, error, forbidden)}") from None
    except (OSError, ValueError) as error:
        raise GuardedFileError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        _check_owner(descriptor, name, forbidden)
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise GuardedFileError(f"{name} cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise GuardedFileError(f"{name} is over {limit >> 10} KiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise GuardedFileError(f"{name} is not UTF-8") from None


def _why_not(path: Path, error: PermissionError, forbidden: int) -> str:
    """Says who owns a file that this process may not read, and what to do about it."""
    user = user_name(os.geteuid())
    try:
        status = path.stat()
    except OSError:
        return f" by user {user}: {error.strerror}, for one of the folders above it"
    belongs = f" by user {user} (it is {user_name(status.st_uid)}'s, mode {stat.S_IMODE(status.st_mode):04o})"
    return f"{belongs}: chown {user} {path}" if forbidden == _OTHERS else f"{belongs}: chmod 0644 {path}"


def _check_owner(descriptor: int, name: str, forbidden: int) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise GuardedFileError(f"{name} is not a regular file")
    if status.st_uid not in (0, os.geteuid()):
        wanted = f"user {os.geteuid()}, who runs this, or to root"
        raise GuardedFileError(f"{name} belongs to user {status.st_uid}; it must belong to {wanted}")
    if mode_for_others(descriptor, status) & forbidden:
        mode, better = stat.S_IMODE(status.st_mode), stat.S_IMODE(status.st_mode) & ~forbidden
        done = "use" if forbidden == _OTHERS else "write"
        raise GuardedFileError(f"others may {done} {name} (mode {mode:04o}): chmod {better:04o} {name}")
