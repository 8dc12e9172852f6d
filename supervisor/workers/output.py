"""Writes the output of workers to the log, line by line, with the worker's fields on each line.

One thread reads the stdout and stderr of all workers. A worker that floods its output is read at a limited rate: it
waits on its own pipe, the log gets a limited number of lines a second and the number of lines left out, and nothing
else is affected.

A line of TensorFlow's own C++ logging gets the level that its letter says: warnings and errors as such, information as
DEBUG. What TensorFlow logs in every process while it is imported is DEBUG as well, and so are complaints of CPU workers
about missing GPUs.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import selectors
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..machine.devices import CPU_PREFIX

log = logging.getLogger("multitower.worker")

MAX_LINE = 8192
"""Bytes of a line; a longer one is cut."""

CHUNK = 64 << 10
BYTES_A_SECOND = 1 << 20
LINES_A_SECOND = 200

ERROR_PAUSE_S = 0.1
"""Seconds until the thread goes on after an internal error."""

# `I0000 00:00:1796114190.159745    7672 port.cc:153] ...`, of Abseil; before the first dot is the time.
# `2026-12-01 08:12:40.330123: I tensorflow/core/util/port.cc:153] ...`, of TensorFlow before 2.17.
_TENSORFLOW_LINE = re.compile(
    rb"(?:([IWEF])\d{4} \d\d:\d\d:[\d.]+ +\d+ |\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: ([IWEF]) )[\w./-]+:\d+\] "
)
_LEVELS = {b"I": logging.DEBUG, b"W": logging.WARNING, b"E": logging.ERROR, b"F": logging.ERROR}

_NOISE = (
    # What Abseil writes before it is initialized, and the end of a line on CPU features.
    b"WARNING: All log messages before absl::InitializeLog() is called",
    b"To enable the following instructions: ",
    # Plugins of TensorFlow's libraries that register twice, without a consequence.
    b"Unable to register cu",
    b"computation placer already registered",
    b"TF-TRT Warning: Could not find TensorRT",
)
"""Beginnings of lines, behind the place in TensorFlow's code, that it logs in every process while it is imported."""

_ABOUT_GPUS = re.compile(rb"gpu|nvidia|cuda|cuinit|cudnn|cublas|cufft|tensorrt|libcu|dso_loader", re.IGNORECASE)


def level_of(line: bytes, *, on_cpu: bool) -> int:
    """The level of the log that a line of a worker's output gets.

    Args:
        line: without its end.
        on_cpu: whether the worker has CPU devices: what TensorFlow logs about missing GPUs is DEBUG then.
    """
    match = _TENSORFLOW_LINE.match(line)
    if line.startswith(_NOISE, match.end() if match is not None else 0):
        return logging.DEBUG
    if match is None:
        return logging.INFO
    if on_cpu and _ABOUT_GPUS.search(line):
        return logging.DEBUG
    return _LEVELS[match[1] or match[2]]


@dataclass(slots=True)
class Source:
    """The pipe of one worker, and what was read from it in the current second. For `OutputReader` alone."""

    descriptor: int
    fields: dict[str, object]
    rest: bytes = b""
    second: float = 0.0
    bytes_read: int = 0
    lines: int = 0
    left_out: int = 0
    closed: bool = False


class OutputReader:
    """The thread that reads the output of workers. It starts on construction; `close` ends it."""

    def __init__(self) -> None:
        self._new: list[Source] = []
        self._ended: list[Source] = []
        self._paused: list[Source] = []
        self._lock = threading.Lock()
        self._closing = False
        self._failed = False
        self._selector = selectors.DefaultSelector()
        try:
            self._wake_out, self._wake_in = os.pipe()
        except BaseException:
            self._selector.close()
            raise
        try:
            os.set_blocking(self._wake_in, False)
            self._selector.register(self._wake_out, selectors.EVENT_READ, None)
            self._thread = threading.Thread(target=self._run, name="worker-output", daemon=True)
            self._thread.start()
        except BaseException:
            self._close_descriptors()
            raise

    def add(self, descriptor: int, fields: dict[str, object]) -> Source:
        """Reads a descriptor until its end, and closes it then, or at once if this raises.

        Args:
            descriptor: the reading end of a pipe; the reader owns it from now on.
            fields: the fields of each of its lines in the log; read again for each line, so it may change.

        Returns:
            What `end` takes.
        """
        try:
            os.set_blocking(descriptor, False)
        except BaseException:
            os.close(descriptor)
            raise
        source = Source(descriptor, fields)
        with self._lock:
            self._new.append(source)
        self._wake()
        return source

    def end(self, source: Source) -> None:
        """Reads what a worker that has ended has left in its pipe, and closes it.

        Another process that the worker has started may still hold the other end open.
        """
        if self._closing:
            return
        with self._lock:
            self._ended.append(source)
        self._wake()

    def close(self, timeout_s: float = 2.0) -> None:
        """Reads what has been written, for at most `timeout_s`, and ends the thread. No-op if it has ended."""
        self._closing = True
        if self._thread.is_alive():
            self._wake()
            self._thread.join(timeout_s)

    def _wake(self) -> None:
        try:
            os.write(self._wake_in, b"\0")
        except BlockingIOError:
            return  # the pipe is full of wake-ups already

    def _run(self) -> None:
        while True:
            try:
                if not self._run_round():
                    break
            except Exception:  # noqa: BLE001  the daemon must not lose the output of all workers
                if not self._failed:
                    self._log_error("internal error while reading the output of workers", {})
                self._failed = True
                if self._closing:
                    break
                time.sleep(ERROR_PAUSE_S)
        for key in list(self._selector.get_map().values()):
            if key.data is not None:
                self._contain(key.data, self._end)
        self._close_descriptors()

    def _run_round(self) -> bool:
        """Waits for output, and reads it; returns whether there may be more."""
        timeout = 0.05 if self._paused or self._closing else None
        ready = self._selector.select(timeout)
        now = time.monotonic()
        for key, _ in ready:
            if key.data is None:
                os.read(self._wake_out, 4096)
            else:
                self._contain(key.data, self._read, now)
        for source in list(self._paused):
            if now - source.second >= 1.0 or self._closing:
                self._paused.remove(source)
                self._contain(source, self._register)
        with self._lock:
            new, self._new = self._new, []
            ended, self._ended = self._ended, []
        for source in new:
            self._contain(source, self._register)
        for source in ended:
            self._contain(source, self._finish, now)
        return not self._closing or bool(ready) or bool(self._paused)

    def _contain(self, source: Source, step: Callable[..., None], *arguments: object) -> None:
        """Takes a step for a source. An internal error costs the rest of the output of this source only."""
        try:
            step(source, *arguments)
        except Exception:  # noqa: BLE001  whatever it is, it concerns one worker
            self._log_error("internal error while reading a worker's output: it is not read any more", source.fields)
            with contextlib.suppress(Exception):  # it may be that which failed
                self._release(source)

    def _log_error(self, message: str, fields: dict[str, object]) -> None:
        with contextlib.suppress(Exception):  # logging may be what failed
            log.exception(message, extra={"fields": dict(fields)})

    def _close_descriptors(self) -> None:
        self._selector.close()
        os.close(self._wake_out)
        os.close(self._wake_in)

    def _read(self, source: Source, now: float) -> None:
        self._read_chunk(source, now)
        if not source.closed and source.bytes_read >= BYTES_A_SECOND and not self._closing:
            self._selector.unregister(source.descriptor)
            self._paused.append(source)

    def _finish(self, source: Source, now: float) -> None:
        """Reads what is in the pipe, and closes it: more than it can hold is not the worker's."""
        if source in self._paused:
            self._paused.remove(source)
        left = 0 if source.closed else fcntl.fcntl(source.descriptor, fcntl.F_GETPIPE_SZ)
        while left > 0 and not source.closed:
            left -= self._read_chunk(source, now)
        if not source.closed:
            self._end(source)

    def _read_chunk(self, source: Source, now: float) -> int:
        """Logs what can be read at once, and returns the number of bytes; ends the source if there are none."""
        self._begin_second(source, now)
        try:
            data = os.read(source.descriptor, CHUNK)
        except OSError:
            data = b""
        if not data:
            self._end(source)
            return 0
        source.bytes_read += len(data)
        *lines, source.rest = (source.rest + data).split(b"\n")
        if len(source.rest) > MAX_LINE:
            lines.append(source.rest)
            source.rest = b""
        for line in lines:
            self._log_line(source, line)
        return len(data)

    def _register(self, source: Source) -> None:
        self._selector.register(source.descriptor, selectors.EVENT_READ, source)

    def _begin_second(self, source: Source, now: float) -> None:
        if now - source.second >= 1.0:
            source.second, source.bytes_read, source.lines = now, 0, 0
            self._log_left_out(source)

    def _log_line(self, source: Source, line: bytes) -> None:
        if not line.strip():
            return
        line = line[:MAX_LINE]
        level = level_of(line, on_cpu=str(source.fields.get("device", "")).startswith(CPU_PREFIX))
        if not log.isEnabledFor(level):
            return
        source.lines += 1
        if source.lines > LINES_A_SECOND:
            source.left_out += 1
        else:
            text = line.decode("utf-8", "backslashreplace").rstrip()
            log.log(level, "%s", text, extra={"fields": dict(source.fields)})

    def _log_left_out(self, source: Source) -> None:
        if source.left_out:
            log.warning(
                "the worker writes too much: lines left out",
                extra={"fields": {**source.fields, "lines": source.left_out}},
            )
            source.left_out = 0

    def _end(self, source: Source) -> None:
        if source.rest:
            self._log_line(source, source.rest)
        self._log_left_out(source)
        self._release(source)

    def _release(self, source: Source) -> None:
        """Closes a source; no-op if it is closed."""
        if source.closed:
            return
        source.closed = True
        try:
            if source.descriptor in self._selector.get_map():
                self._selector.unregister(source.descriptor)
        finally:
            os.close(source.descriptor)
