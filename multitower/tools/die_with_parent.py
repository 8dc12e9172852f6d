"""Runs a program that ends with its parent: python bound.py PARENT PROGRAM [ARGUMENT]...

`daemon` runs this file by its path. The kernel sends SIGTERM when the parent ends, however it ends; that order outlives
the exec, so a daemon drains and goes even when the bench was killed outright.
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
    # It may have ended before the order was given.
    if os.getppid() == int(parent):
        os.execv(program[0], program)
