"""What the system lacked when a process could not be started: nothing is wrong with the slot, and it may pass."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_TEMPORARY: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS))

FIRST_RETRY_S: Final = 0.5
"""Seconds from the first start that failed because a resource was short to the next try; doubled with each failure."""

MAX_RETRY_S: Final = 5.0
"""The most of these seconds."""

_ADVICE: Final = {
    errno.EMFILE: "raise LimitNOFILE= of the systemd unit, or ulimit -n",
    errno.ENFILE: "see /proc/sys/fs/file-nr: all processes of the machine have too many files open",
    errno.ENOMEM: "is memory short, for the machine or a control group?",
    errno.EAGAIN: "see pids.max of the control group, TasksMax= of the systemd unit, and ulimit -u",
}


class SpawnError(OSError):
    """A call failed that the start of a process needs. `strerror` names the call.

    Attributes:
        call: its name.
    """

    def __init__(self, call: str, number: int | None, why: str) -> None:
        super().__init__(number, f"{call}: {why}")
        self.call = call


@contextlib.contextmanager
def calling(call: str) -> Iterator[None]:
    """Names the system's call in an error that is raised inside.

    Raises:
        SpawnError: in place of the error of the system.
    """
    try:
        yield
    except SpawnError:
        raise
    except OSError as error:
        raise SpawnError(call, error.errno, error.strerror or str(error)) from error


@dataclass(frozen=True, slots=True)
class StartFailure:
    """A process could not be started.

    Attributes:
        cause: why, for people.
        temporary: a resource of the system was short. Then the slot's restart budget is not spent, and the start is
            tried again until it succeeds.
        check: what an operator should check, or None.
    """

    cause: str = "no process could be started"
    temporary: bool = False
    check: str | None = None


def failure_of(error: Exception) -> StartFailure:
    """What an error of a start means."""
    number = error.errno if isinstance(error, OSError) else None
    why = error.strerror if isinstance(error, OSError) else str(error)
    temporary = number in _TEMPORARY or isinstance(error, MemoryError)
    return StartFailure(f"no process could be started: {why or error}", temporary, _ADVICE.get(number or 0))
