"""CURVE keys: their form, Z85, and the files that hold them, in libzmq's certificate format.

A key is 40 characters of Z85 (https://rfc.zeromq.org/spec/32). No message contains a text that was passed
as a secret key, nor a key in place of a path.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import zmq

KEY_CHARACTERS: Final = 40
KEY_FORM: Final = f"a key of {KEY_CHARACTERS} characters in Z85"

_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_VALUES: Final = {character: value for value, character in enumerate(_ALPHABET)}
_GROUP: Final = 5
"""Characters that stand for 32 bits."""

_MAX_BYTES: Final = 1 << 16
_LINE: Final = re.compile(r"""^\s*(public|secret)-key\s*=\s*["']?([^"'\s]*)["']?\s*$""", re.MULTILINE)


class KeyProblemError(ValueError):
    """A key, or the file that should hold it, cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A pair of CURVE keys, each in Z85. Its representation lacks the secret one."""

    public: str
    secret: str = field(repr=False)


def is_key(text: str) -> bool:
    """Whether a text is a CURVE key in Z85."""
    if len(text) != KEY_CHARACTERS or not all(character in _VALUES for character in text):
        return False
    return all(_value(text[start : start + _GROUP]) < 1 << 32 for start in range(0, KEY_CHARACTERS, _GROUP))


def _value(group: str) -> int:
    value = 0
    for character in group:
        value = value * len(_ALPHABET) + _VALUES[character]
    return value


def check_curve() -> None:
    """Checks that libzmq can use CURVE.

    Raises:
        KeyProblemError: it was built without.
    """
    if not zmq.has("curve"):
        raise KeyProblemError(
            f"libzmq {zmq.zmq_version()} was built without CURVE: install pyzmq from its wheel (pip install pyzmq)"
        )


def pair_of(secret: str) -> KeyPair:
    """The pair that a secret key belongs to.

    Raises:
        KeyProblemError: it is no key, or libzmq has no CURVE.
    """
    if not is_key(secret):
        raise KeyProblemError(f"it is not {KEY_FORM}")
    check_curve()
    return KeyPair(zmq.curve_public(secret.encode()).decode(), secret)


def new_pair() -> KeyPair:
    """A new pair of keys.

    Raises:
        KeyProblemError: libzmq has no CURVE.
    """
    check_curve()
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def certificate(public: str, secret: str | None = None) -> str:
    """A certificate in libzmq's format, of a public key alone or of a pair."""
    lines = ["metadata", "curve", f'    public-key = "{public}"']
    if secret is not None:
        lines.append(f'    secret-key = "{secret}"')
        lines.insert(0, "# A secret key of multitower: it admits everybody who has it. Only its owner may read it.")
    else:
        lines.insert(0, "# A public key of multitower.")
    return "\n".join(lines) + "\n"


def read_secret_file(path: str | os.PathLike[str]) -> KeyPair:
    """Reads a pair from the secret half of a certificate, or a file that holds a secret key alone.

    Others may neither read nor write the file; nor may its group, if it belongs to this process's user. Kubernetes
    gives a process its secrets as files of root's that a group may read.

    Raises:
        KeyProblemError: it is missing, unreadable or no regular file, admits others, or holds no secret key.
    """
    text, status = _read(path)
    shown = os.fspath(path)
    found = dict(_LINE.findall(text))
    if "public" in found and "secret" not in found:  # before its mode, which is right for a public key
        raise KeyProblemError(f"{shown} is a public key; the secret one is in the file NAME.key_secret beside it")
    if status.st_mode & (stat.S_IRWXO | (stat.S_IRWXG if status.st_uid == os.geteuid() else stat.S_IWGRP)):
        mode = stat.S_IMODE(status.st_mode)
        raise KeyProblemError(f"others may use the secret key {shown} (mode {mode:04o}): chmod 600 {shown}")
    secret = found.get("secret", text.strip())
    if not is_key(secret):
        raise KeyProblemError(f"{shown} holds no secret key; `multitower keys new NAME` writes NAME.key_secret")
    pair = pair_of(secret)
    if found.get("public", pair.public) != pair.public:
        raise KeyProblemError(f"the public and the secret key in {shown} are no pair")
    return pair


def read_public_file(path: str | os.PathLike[str]) -> str:
    """Reads the public key of a certificate, of either half, or of a file that holds a public key alone.

    Raises:
        KeyProblemError: it is missing, unreadable or no regular file, or holds no public key.
    """
    text, _ = _read(path)
    found = dict(_LINE.findall(text))
    public = found.get("public") or ("" if "secret" in found else text.strip())
    if not is_key(public):
        raise KeyProblemError(f"{os.fspath(path)} holds no public key; `multitower keys new NAME` writes NAME.key")
    return public


def _read(path: str | os.PathLike[str]) -> tuple[str, os.stat_result]:
    shown = os.fspath(path)
    try:
        # A named pipe would block the open until somebody writes.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KeyProblemError(f"{shown} is not a regular file")
            data = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, KeyProblemError):
            raise
        if isinstance(error, FileNotFoundError) and is_key(shown):
            raise KeyProblemError(
                "there is no file of the given name, which is not shown: it may be a key itself; name the file that "
                "holds it"
            ) from None
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise KeyProblemError(f"cannot read the key {shown}: {cause}") from None
    if len(data) > _MAX_BYTES:
        raise KeyProblemError(f"{shown} is too large for a key")
    return data.decode("utf-8-sig", "replace"), status


def exists(text: str) -> bool:
    """Whether a text is the path of something that exists."""
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):  # too long, or a zero byte
        return False
