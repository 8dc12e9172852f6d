"""Runs a program that ends when its parent ends: python die_with_parent.py PARENT_PID PROGRAM [ARGUMENT]...

`tools.daemon` runs this file by its path. The kernel sends SIGTERM to the program when the parent ends, even by
SIGKILL. The setting survives exec, so the daemon drains and exits when the tool that started it is gone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent, *program = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    # The parent may have ended before the call above; then no signal will come.
    if os.getppid() == int(parent):
        os.execv(program[0], program)
