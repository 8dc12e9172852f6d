"""Files that are written as a whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for writing that replaces another one once everything is written.

    If writing fails, the file at `path` stays as it was. Symbolic links are followed, and the mode of an existing file
    is kept. A file of another kind, such as a pipe or /dev/stdout, is written to directly.

    Args:
        path: the file.

    Raises:
        OSError: the file, or a temporary one beside it, cannot be written.
    """
    path = Path(os.path.realpath(path))
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        mode = stat.S_IFREG | (0o666 & ~umask)
    if not stat.S_ISREG(mode):
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
            os.fchmod(file.fileno(), stat.S_IMODE(mode))
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
