"""Starts the guardian and keeps it running: the process that kills what workers started when the daemon is killed."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from pathlib import Path
from time import monotonic
from typing import Final

from multitower.process_title import extension_path

from ..loop.log import event
from . import guardian_process
from .bootstrap import ORIGIN

log = logging.getLogger("multitower.manager")

END_S: Final = 2.0
"""Seconds that the guardian gets to end once it has been told to."""

FIRST_RETRY_S: Final = 0.25
"""Seconds from one start to the next at least, if the first one failed or the guardian has ended; doubled each time."""

MAX_RETRY_S: Final = 60.0
"""Seconds from one start to the next at most, and a run after which the next start is not delayed."""


class Guardian:
    """The guardian of this process; it is started at once, and again by `tick` when it has ended or was stopped.

    A guardian that ends again and again is started less and less often, and each cause is logged once.

    Args:
        origin: the entry of the environment that shows that a process comes from a worker of this process.
        control_group: the folder of the control group that contains those of the workers, or None.

    Attributes:
        pid: the process id of the guardian; None while there is none.
    """

    def __init__(self, origin: str, control_group: Path | None = None) -> None:
        self._arguments = [origin, str(control_group or ""), extension_path() or ""]
        self._workers: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._descriptor = -1
        self._reported: str | None = None  # why there was no guardian, as logged last
        self._started_at = monotonic()
        self._retry_s = FIRST_RETRY_S
        self._start()

    @property
    def pid(self) -> int | None:
        """The process id of the guardian; None while there is none."""
        return self._process.pid if self._process is not None else None

    def add_worker(self, pid: int) -> None:
        """The guardian kills what is left of the process group of this worker, which has just been started."""
        self._workers.add(pid)
        self._send(f"+{pid}\n")

    def remove_worker(self, pid: int) -> None:
        """The worker has ended, and so has its process group."""
        self._workers.discard(pid)
        self._send(f"-{pid}\n")

    def tick(self) -> None:
        """Starts the guardian again if it has ended or could not be started, unless it is too early; see `MAX_RETRY_S`.

        Call it a few times a second.
        """
        now = monotonic()
        process = self._process
        if process is not None:
            code = process.poll()
            if code is None:
                state = guardian_process.read_process(process.pid)
                if state is not None and state.state == "T":
                    process.kill()  # a signal stopped it
                return
            if now - self._started_at >= MAX_RETRY_S:
                self._reported, self._retry_s = None, FIRST_RETRY_S
            if self._is_new(f"code {code}"):
                event(log, logging.WARNING, "the guardian has ended: starting it again", pid=process.pid, code=code)
            self._release()
        if now >= self._started_at + self._retry_s:
            self._started_at = now
            self._retry_s = min(2 * self._retry_s, MAX_RETRY_S)
            self._start()

    def close(self) -> None:
        """Lets the guardian look for what is left, and end; kills it if it takes longer than `END_S`."""
        process = self._process
        if process is None:
            return
        os.close(self._descriptor)
        self._descriptor = -1
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._process = None

    def _start(self) -> None:
        try:
            reading, self._descriptor = os.pipe()
        except OSError as error:
            self._report(error)
            return
        try:
            os.set_blocking(self._descriptor, False)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(guardian_process.__file__)), *self._arguments],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # signals of a terminal and of process groups do not reach it
                env={name: value for name, value in os.environ.items() if name != ORIGIN},
            )
        except OSError as error:
            self._release()
            self._report(error)
            return
        finally:
            os.close(reading)
        self._send("".join(f"+{pid}\n" for pid in sorted(self._workers)))

    def _report(self, error: OSError) -> None:
        if self._is_new(str(error)):
            event(log, logging.ERROR, "the guardian could not be started: it is tried again", cause=error)

    def _is_new(self, cause: str) -> bool:
        """Whether the reason why there is no guardian is not the one that was logged last; remembers it."""
        new, self._reported = cause != self._reported, cause
        return new

    def _send(self, lines: str) -> None:
        if self._process is None:
            return
        try:
            os.write(self._descriptor, lines.encode())
        except BrokenPipeError:
            return  # it has ended: `tick` starts another one
        except BlockingIOError:
            self._process.kill()  # it does not read, as when somebody stopped it; likewise

    def _release(self) -> None:
        self._process = None
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
        self._descriptor = -1
