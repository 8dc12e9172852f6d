"""A stop that is asked for before the daemon can drain. Imports little: the command line calls it first."""

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


def _exit(number: int, _frame: object) -> None:
    """Ends the process like the signal would. Nothing has been started that has to be ended first."""
    os._exit(128 + number)
