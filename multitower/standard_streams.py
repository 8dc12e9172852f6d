"""Standard streams that are closed, or whose other end is lost: a program must not fail on them.

A descriptor from 0 to 2 that is closed is given to the next file that is opened, such as an eventfd, and what the
program or a library prints then goes there.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Final, TextIO

_replaced: Final[list[TextIO]] = []  # a stream that is no longer referred to closes its descriptor


class LossyStream(io.TextIOWrapper):
    """A text stream that drops what cannot be written, as when a terminal has been closed or a disk is full.

    Attributes:
        failures: how often something could not be written. A buffer may hold it, and write it later.
    """

    failures: int = 0

    def write(self, text: str, /) -> int:
        """Writes a text, or drops it; returns its length."""
        try:
            super().write(text)
        except OSError:
            self.failures += 1
        return len(text)

    def flush(self) -> None:
        """Writes what is buffered, as far as it can be written."""
        try:
            super().flush()
        except OSError:
            self.failures += 1


def open_standard_streams() -> None:
    """Opens /dev/null in place of each standard stream that is closed; call it before anything else is opened.

    Messages to standard error that cannot be written are dropped from then on.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
    # Python sets them to None where the descriptor is closed.
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)
    if type(sys.stderr) is io.TextIOWrapper:
        _replaced.append(sys.stderr)
        sys.stderr = _lossy(sys.stderr)


def discard_output() -> None:
    """Lets standard output go to /dev/null: what is still buffered could not be written at the exit either."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.close(descriptor)


def _lossy(stream: io.TextIOWrapper) -> TextIO:
    return LossyStream(
        stream.buffer,
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
