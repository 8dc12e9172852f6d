"""Files that are written as a whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def check_replaceable(path: Path) -> None:
    """Checks that `replaced_file` can write a file; the file stays as it is, and none is left.

    Args:
        path: the file.

    Raises:
        OSError: it is a folder, its folder does not exist, or no file can be made there.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        return  # a pipe or a terminal
    try:
        tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:64]}.").close()
    except OSError as error:
        error.filename = str(path)
        raise


@contextlib.contextmanager
def replaced_file(path: Path, mode: int | None = None) -> Iterator[IO[bytes]]:
    """Opens a file for writing that replaces another one once everything is written.

    If writing fails, the file at `path` stays as it was. Symbolic links are followed. A file of another kind, such as a
    pipe or /dev/stdout, is written to directly.

    Args:
        path: the file.
        mode: its permissions from now on; None for those of an existing file, and for a new one those that the umask
            leaves.

    Raises:
        OSError: the file, or a temporary one beside it, cannot be written.
    """
    path = Path(os.path.realpath(path))
    try:
        present = path.stat().st_mode
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        present = stat.S_IFREG | (0o666 & ~umask)
    if not stat.S_ISREG(present):
        with path.open("wb") as file:
            yield file
        return
    try:
        temporary = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:64]}.", delete=False)  # noqa: SIM115
    except OSError as error:
        error.filename = str(path)  # the user knows this name, not that of the temporary file
        raise
    with temporary as file:
        try:
            yield file
            file.flush()
            os.fchmod(file.fileno(), stat.S_IMODE(present) if mode is None else mode)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
