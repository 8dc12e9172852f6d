"""The titles of multitower's processes, as `ps` and `top` show them, such as `multitower: worker 3 GPU-8f3a1c20…`.

The package setproctitle sets them; where it is not installed, processes keep the command lines that started them. Only
the memory of the command line is overwritten. The environment behind it stays as it is, because the supervisor finds
what workers have started by a variable in `/proc/PID/environ`.
"""

from __future__ import annotations

import ctypes
import os
from importlib.util import find_spec
from typing import Final

PREFIX: Final = "multitower: "

_KEEP_ENVIRONMENT: Final = "SPT_NOENV"
"""The variable that tells setproctitle to leave the environment's memory alone; it is read at the first title."""

_PR_SET_NAME: Final = 15
_PR_GET_NAME: Final = 16
_NAME_BYTES: Final = 16


def set_title(title: str) -> None:
    """Sets the title of this process. Call it first before the process's first environment variable is changed.

    A title that is longer than the command line is cut off. The name of the process (`/proc/PID/comm`) stays.

    Args:
        title: what stands behind `PREFIX`.
    """
    try:
        import setproctitle
    except ImportError:
        return
    libc = ctypes.CDLL(None)
    name = ctypes.create_string_buffer(_NAME_BYTES)
    libc.prctl(_PR_GET_NAME, name, 0, 0, 0)
    known = os.environ.get(_KEEP_ENVIRONMENT)
    os.environ[_KEEP_ENVIRONMENT] = "1"
    try:
        setproctitle.setproctitle(PREFIX + title)
    finally:
        if known is None:
            del os.environ[_KEEP_ENVIRONMENT]  # what this process starts decides for itself
        else:
            os.environ[_KEEP_ENVIRONMENT] = known
    libc.prctl(_PR_SET_NAME, name, 0, 0, 0)


def extension_path() -> str | None:
    """Returns the path of setproctitle's extension, for a process without packages; None where it is not installed."""
    try:
        spec = find_spec("setproctitle._setproctitle")
    except ImportError:
        return None
    return spec.origin if spec is not None else None
