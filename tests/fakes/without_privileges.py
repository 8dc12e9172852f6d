"""Runs programs to which the permissions of files apply, also where the tests run as root."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

WAIT_S = 60.0
NOBODY = 65534
GROUP = 65533
"""A group that no process has. 65534 stands for groups that a container does not know."""

_PR_CAPBSET_DROP = 24
_CAP_DAC_OVERRIDE = 1
_CAP_DAC_READ_SEARCH = 2


def _drop_capabilities() -> None:
    """Called in the child. The program then has the rights of root's user and group, and no more."""
    libc = ctypes.CDLL(None)
    for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
        if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            os._exit(99)


def run(arguments: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with arguments."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        env={**os.environ, "NO_COLOR": "1", **environment},
        preexec_fn=_drop_capabilities if os.geteuid() == 0 else None,
    )


def give_away(path: Path, mode: int) -> int:
    """Makes a path one to which `run` has no access; returns the mode that it has now.

    Args:
        path: a socket or a folder.
        mode: its mode if it can be given to another user, which only root can do.
    """
    if os.geteuid() == 0:
        os.chown(path, NOBODY, GROUP)
    else:
        mode = 0
    path.chmod(mode)
    return mode
