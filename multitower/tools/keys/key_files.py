"""Writes keys and tokens into files that only their owner may read, from the moment they exist."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final, NamedTuple

from multitower.curve_keys import KeyProblemError, certificate, new_pair
from multitower.tools.errors import ToolError
from multitower.tools.replaced_file import replaced_file

SECRET_MODE: Final = 0o600
PUBLIC_MODE: Final = 0o644
FOLDER_MODE: Final = 0o700
"""Of a folder that is made."""


class WrittenPair(NamedTuple):
    """A new pair of keys.

    Attributes:
        public: the public key, in Z85.
        secret_file: holds both keys.
        public_file: holds the public key.
    """

    public: str
    secret_file: Path
    public_file: Path


def write_pair(name: str, folder: Path, *, replace: bool) -> WrittenPair:
    """Makes a pair of CURVE keys and writes NAME.key_secret and NAME.key, in libzmq's format.

    Args:
        name: of the files.
        folder: where they are written. It is made if it does not exist, for this user only.
        replace: whether files that exist are replaced.

    Raises:
        ToolError: a file exists already or cannot be written, or libzmq has no CURVE. Then no file has changed.
    """
    secret_file, public_file = folder / f"{name}.key_secret", folder / f"{name}.key"
    try:
        pair = new_pair()
    except KeyProblemError as error:
        raise ToolError(str(error)) from None
    if not replace:
        _refuse_existing(secret_file, public_file)
    _make(folder)
    _write(public_file, certificate(pair.public), PUBLIC_MODE, replace=replace)
    try:
        _write(secret_file, certificate(pair.public, pair.secret), SECRET_MODE, replace=replace)
    except ToolError:
        if not replace:
            public_file.unlink()
        raise
    return WrittenPair(pair.public, secret_file, public_file)


def write_token(name: str, folder: Path, token: str, *, replace: bool) -> Path:
    """Writes a bearer token into NAME.token, and returns its path. The folder is made as by `write_pair`.

    Raises:
        ToolError: the file exists already, or cannot be written.
    """
    path = folder / f"{name}.token"
    if not replace:
        _refuse_existing(path)
    _make(folder)
    _write(path, f"{token}\n", SECRET_MODE, replace=replace)
    return path


def _refuse_existing(*paths: Path) -> None:
    for path in paths:
        if os.path.lexists(path):
            raise ToolError(
                f"{path} exists already: write a new one into another folder with --out, or pass --force, which "
                "destroys this one"
            )


def _make(folder: Path) -> None:
    try:
        if not folder.is_dir():
            folder.mkdir(FOLDER_MODE, parents=True)
            folder.chmod(FOLDER_MODE)  # whatever the umask is
    except OSError as error:
        raise ToolError(f"cannot make the folder {folder}: {error.strerror or error}") from None


def _write(path: Path, text: str, mode: int, *, replace: bool) -> None:
    try:
        if replace:
            with replaced_file(path, mode) as file:  # 0600 while it is written
                file.write(text.encode())
            return
        # Never with other permissions, not even for a moment; and never through a link that was put there.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, SECRET_MODE)
        try:
            with open(descriptor, "w", encoding="ascii") as new:
                os.fchmod(descriptor, mode)
                new.write(text)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            raise
    except OSError as error:
        raise ToolError(f"cannot write {path}: {error.strerror or error}") from None
