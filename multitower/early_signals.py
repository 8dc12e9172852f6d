"""Signals that arrive before a command can handle them. Imports little: the command line calls it first."""

from __future__ import annotations

import os
import signal


def handle_early_stop() -> None:
    """Makes SIGTERM end the process at once if it is PID 1 of a container, until the daemon collects it.

    The system does so for any other process, but discards a signal to PID 1 that nothing handles. Call it before
    anything that takes long.
    """
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, _exit)


def die_of_ctrl_c() -> None:
    """Makes SIGINT end the process at once, without Python's traceback: for imports, and for the end of the process.

    No-op where SIGINT has another handler than Python's own, or is ignored, as in the background of a shell.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_on_ctrl_c() -> None:
    """Undoes `die_of_ctrl_c`: SIGINT raises KeyboardInterrupt, so that a command can end what it has started."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _exit(number: int, _frame: object) -> None:
    """Ends the process like the signal would. Nothing has been started that has to be ended first."""
    os._exit(128 + number)
