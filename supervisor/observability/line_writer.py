"""Writes entries as lines of a file in a separate thread, so that the event loop never waits for the disk.

The thread formats the entries as well. While its queue is full, or the file cannot be written, entries are dropped and
counted, and the log says so once a minute at most. Formatting holds up the event loop, since one thread of Python runs
at a time: the thread gives way soon, and rests for as long as it has computed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Final, Generic, TypeVar

from ..loop.containment import ErrorLog
from ..loop.log import event
from .rotated_file import RotatedFile
from .switch_interval import switch_interval

log = logging.getLogger("multitower.request_log")

MAX_QUEUED_BYTES: Final = 16 << 20
"""Bytes of entries that may wait for the thread."""

MAX_BATCH_BYTES: Final = 64 << 10
"""Bytes after which formatted lines are written, though more entries wait."""

REPORT_S: Final = 60.0
"""Seconds from one line of the log about dropped entries to the next, at least."""

CLOSE_S: Final = 2.0
"""Seconds that the last entries get to be written."""

Entry = TypeVar("Entry")


class LineWriter(Generic[Entry]):
    """The queue and the thread of one file.

    Args:
        file: gets the lines.
        path: of the file, for the log.
        format: makes the line of an entry, with the end of the line; called in the thread.
    """

    def __init__(self, file: RotatedFile, path: str, format: Callable[[Entry], bytes]) -> None:
        self._file = file
        self._path = path
        self._format = format
        self._errors = ErrorLog(log)
        self._entries: deque[tuple[Entry, int]] = deque()
        # Each of these has one thread that changes it, so that no lock is needed.
        self._queued_bytes = 0
        self._taken_bytes = 0
        self._dropped_from_queue = 0
        self._dropped_from_file = 0
        self._reopening = False
        self._ending = threading.Event()
        self._wake = threading.Event()
        self._reported = 0
        self._report_at = -inf
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="request log", daemon=True)
        self._thread.start()

    # For the thread of the event loop.

    def put(self, entry: Entry, size: int) -> None:
        """Queues an entry, or drops it if the queue is full. Never waits.

        Args:
            entry: what is to be written.
            size: bytes that it holds in memory, about.
        """
        if self._queued_bytes - self._taken_bytes + size > MAX_QUEUED_BYTES:
            self._dropped_from_queue += 1
            return
        self._queued_bytes += size
        self._entries.append((entry, size))
        if not self._wake.is_set():
            self._wake.set()

    def reopen(self) -> None:
        """Lets the next line go to the file that the path names then."""
        self._reopening = True
        self._wake.set()

    @property
    def dropped(self) -> int:
        """How many entries were not written."""
        return self._dropped_from_queue + self._dropped_from_file

    @property
    def failed_rotations(self) -> int:
        """How often the full file could not be replaced by another one."""
        return self._file.failed_rotations

    @property
    def ended(self) -> bool:
        """Whether the thread has ended."""
        return not self._thread.is_alive()

    def end(self) -> None:
        """Ends the thread once it has written what is queued. Never waits."""
        self._ending.set()
        self._wake.set()

    def join(self) -> None:
        """Waits until the thread has ended, for `CLOSE_S` at most."""
        self._thread.join(CLOSE_S)

    # The thread.

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            ending = self._ending.is_set()  # read first: what was queued before the end is written
            try:
                if self._reopening:
                    self._reopening = False
                    self._file.close()
                while self._entries:
                    began = time.thread_time()
                    with switch_interval.short():
                        self._write_some()
                    # At most half of the time is for lines, however many wait: the event loop needs the rest.
                    self._ending.wait(time.thread_time() - began)
                self._report(time.monotonic())
            except Exception as error:  # noqa: BLE001  it is logged
                self._errors.add("writing the request log", error)
            if ending:
                self._file.close()
                return

    def _write_some(self) -> None:
        lines: list[bytes] = []
        size = 0
        while self._entries and size < MAX_BATCH_BYTES:
            entry, entry_size = self._entries.popleft()
            self._taken_bytes += entry_size
            try:
                line = self._format(entry)
            except Exception as error:  # noqa: BLE001  it is logged
                self._dropped_from_file += 1
                self._errors.add("formatting an entry of the request log", error)
                continue
            lines.append(line)
            size += len(line)
        try:
            self._file.write(b"".join(lines))
        except OSError as error:
            self._dropped_from_file += len(lines)
            self._failed(error)
        else:
            if self._failing:
                self._failing = False
                self._report_at = -inf
                event(log, logging.INFO, "request log can be written again", path=self._path)

    def _failed(self, error: OSError) -> None:
        now = time.monotonic()
        if not self._failing or now >= self._report_at:
            self._failing = True
            dropped, self._reported = self.dropped - self._reported, self.dropped
            cause = error.strerror or str(error)
            event(log, logging.WARNING, "request log cannot be written", path=self._path, cause=cause, dropped=dropped)
            self._report_at = now + REPORT_S

    def _report(self, now: float) -> None:
        """Logs how many entries were dropped since the last report, if it is time to."""
        dropped = self.dropped - self._reported
        if dropped and not self._failing and now >= self._report_at:
            self._reported += dropped
            self._report_at = now + REPORT_S
            event(log, logging.WARNING, "entries of the request log dropped", path=self._path, dropped=dropped)
