"""What workers write to stdout and stderr goes to the log, line by line, with the worker's name on it.

One thread reads all pipes. A worker that floods its output is read at a capped rate: it waits on its own pipe, the
log keeps a bounded number of lines a second and says how many it left out, and nobody else notices.
"""

from __future__ import annotations

import logging
import os
import selectors
import threading
import time
from dataclasses import dataclass

log = logging.getLogger("multitower.worker")

MAX_LINE = 8192
CHUNK = 64 << 10
BYTES_A_SECOND = 1 << 20
LINES_A_SECOND = 200


@dataclass(slots=True)
class _Source:
    """One worker's pipe."""

    descriptor: int
    fields: dict[str, object]
    rest: bytes = b""
    window: float = 0.0
    bytes_read: int = 0
    lines: int = 0
    left_out: int = 0


class OutputReader:
    """The thread that reads the workers' output. Started on construction; `close` ends it."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_in, False)
        self._selector.register(self._wake_out, selectors.EVENT_READ, None)
        self._new: list[_Source] = []
        self._paused: list[_Source] = []
        self._lock = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="worker-output", daemon=True)
        self._thread.start()

    def add(self, descriptor: int, fields: dict[str, object]) -> None:
        """Reads this descriptor until its end, and closes it then.

        Args:
            descriptor: the reading end of a pipe; the reader owns it from now on.
            fields: what stands on each of its lines in the log; read anew for each line, so it may change.
        """
        os.set_blocking(descriptor, False)
        source = _Source(descriptor, fields)
        with self._lock:
            self._new.append(source)
        self._wake()

    def close(self, timeout_s: float = 2.0) -> None:
        """Reads what has been written, for at most `timeout_s`, and ends the thread."""
        self._closing = True
        self._wake()
        self._thread.join(timeout_s)

    def _wake(self) -> None:
        try:
            os.write(self._wake_in, b"\0")
        except BlockingIOError:
            return  # the pipe is full of wake-ups already

    def _run(self) -> None:
        while True:
            timeout = 0.05 if self._paused or self._closing else None
            ready = self._selector.select(timeout)
            now = time.monotonic()
            for key, _ in ready:
                if key.data is None:
                    os.read(self._wake_out, 4096)
                else:
                    self._read(key.data, now)
            self._resume(now)
            with self._lock:
                new, self._new = self._new, []
            for source in new:
                self._selector.register(source.descriptor, selectors.EVENT_READ, source)
            if self._closing and not ready and not self._paused:
                break
        for key in list(self._selector.get_map().values()):
            if key.data is not None:
                self._end(key.data)
        self._selector.close()
        os.close(self._wake_out)
        os.close(self._wake_in)

    def _read(self, source: _Source, now: float) -> None:
        self._roll(source, now)
        try:
            data = os.read(source.descriptor, CHUNK)
        except OSError:
            data = b""
        if not data:
            self._end(source)
            return
        source.bytes_read += len(data)
        *lines, source.rest = (source.rest + data).split(b"\n")
        if len(source.rest) > MAX_LINE:
            lines.append(source.rest)
            source.rest = b""
        for line in lines:
            self._emit(source, line)
        if source.bytes_read >= BYTES_A_SECOND and not self._closing:
            self._selector.unregister(source.descriptor)
            self._paused.append(source)

    def _resume(self, now: float) -> None:
        for source in list(self._paused):
            if now - source.window >= 1.0 or self._closing:
                self._paused.remove(source)
                self._selector.register(source.descriptor, selectors.EVENT_READ, source)

    def _roll(self, source: _Source, now: float) -> None:
        if now - source.window >= 1.0:
            source.window, source.bytes_read, source.lines = now, 0, 0
            self._tell_left_out(source)

    def _emit(self, source: _Source, line: bytes) -> None:
        if not line.strip():
            return
        source.lines += 1
        if source.lines > LINES_A_SECOND:
            source.left_out += 1
        else:
            text = line[:MAX_LINE].decode("utf-8", "backslashreplace").rstrip()
            log.info("%s", text, extra={"fields": dict(source.fields)})

    def _tell_left_out(self, source: _Source) -> None:
        if source.left_out:
            log.warning(
                "the worker writes too much: lines left out",
                extra={"fields": {**source.fields, "lines": source.left_out}},
            )
            source.left_out = 0

    def _end(self, source: _Source) -> None:
        if source.rest:
            self._emit(source, source.rest)
        self._tell_left_out(source)
        self._selector.unregister(source.descriptor)
        os.close(source.descriptor)
