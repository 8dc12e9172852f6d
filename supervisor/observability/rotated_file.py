"""A file to which lines are appended, whole or not at all, and which is replaced by a new one when it is full."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

_MODE: Final = 0o600  # lines have clients' data
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


class RotatedFile:
    """A file of lines, used by one thread. It is opened by the first `write`.

    A file that does not exist is made with the mode 0600; an existing one keeps its mode. A symbolic link is not
    followed.

    Args:
        path: the file.
        max_size: bytes after which the file is renamed to PATH.1, PATH.1 to PATH.2 and so on, and another one is made.
        keep: how many renamed files are kept.

    Attributes:
        failed_rotations: how often the full file could not be replaced by another one.
    """

    def __init__(self, path: Path, max_size: int, keep: int) -> None:
        self._path = path
        self._max_size = max_size
        self._keep = keep
        self.failed_rotations = 0
        self._descriptor: int | None = None
        self._size = 0

    def write(self, lines: bytes) -> None:
        """Appends lines: all of them, or none if it raises.

        Raises:
            OSError: they cannot be written, or the file is a symbolic link or no regular file.
        """
        descriptor = self._descriptor
        if descriptor is None:
            descriptor = self._open()
        if self._size and self._size + len(lines) > self._max_size:
            try:
                self._rotate()
                descriptor = self._open()
            except OSError:
                self.failed_rotations += 1
                raise
        left = memoryview(lines)
        try:
            while left:
                left = left[os.write(descriptor, left) :]
        except OSError:
            # A full disk may have taken a part. Others may have shortened the file meanwhile.
            with contextlib.suppress(OSError):
                taken = len(lines) - len(left)
                os.ftruncate(descriptor, max(0, os.fstat(descriptor).st_size - taken))
            self.close()
            raise
        self._size += len(lines)

    def _open(self) -> int:
        try:
            descriptor = os.open(self._path, _FLAGS, _MODE)
            status = os.fstat(descriptor)
        except OSError as error:
            error.filename = str(self._path)
            raise
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise OSError(f"{self._path} is no regular file")
        self._descriptor, self._size = descriptor, status.st_size
        return descriptor

    def _rotate(self) -> None:
        """Renames the file, and those that were renamed before; the oldest one is overwritten."""
        self.close()
        for number in range(self._keep, 0, -1):
            source = self._renamed(number - 1) if number > 1 else self._path
            with contextlib.suppress(FileNotFoundError):
                os.replace(source, self._renamed(number))

    def _renamed(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def close(self) -> None:
        """Closes the file; the next `write` opens the one that the path names then."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
