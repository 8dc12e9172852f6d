"""Writes the output of workers to the log, entry by entry, with the worker's fields on each.

One thread reads the stdout and stderr of all workers. A worker that floods its output is read at a limited rate: it
waits on its own pipe, the log gets a limited number of entries a second and the number of those left out, and nothing
else is affected. What the log does not get, because of its level or of that limit, is kept for a while: when the worker
dies, the last of it is logged after all.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import logging
import os
import selectors
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from multitower.worker_log import MARK, MAX_RECORD, decode

from ..loop.log import WORKER_LOGGER
from ..machine.devices import CPU_PREFIX
from .output_entries import MAX_LINE, Decode, Entry, EntryMaker

log = logging.getLogger(WORKER_LOGGER)

CHUNK = 64 << 10
BYTES_A_SECOND = 1 << 20
ENTRIES_A_SECOND = 200

ERROR_PAUSE_S = 0.1
"""Seconds until the thread goes on after an internal error."""

GROUP_PAUSE_S = 0.1
"""Seconds without output after which no more lines are expected for an entry that has begun."""

MAX_HIDDEN = 100
"""Entries of a worker that are kept although the log does not get them."""

MAX_HIDDEN_SIZE = 16 << 10
"""Their characters."""

MAX_LATEST = 20
"""Entries of a worker that the status can show."""

MAX_LATEST_TEXT = 600
"""Characters of each of them; of a longer one, such as a traceback, the status shows the beginning and the end."""


class Messages(NamedTuple):
    """What is logged about the output of a process itself, beside its entries.

    Attributes:
        left_out: it writes too much.
        last_output: it has died.
    """

    left_out: str = "the worker writes too much: lines left out"
    last_output: str = "last output of a worker that died, which this log left out"


OF_WORKERS: Final = Messages()


class OutputLine(NamedTuple):
    """An entry of a worker's output, as the status shows it.

    Attributes:
        at: when it was read, in seconds since 1970.
        level: a level of `logging`.
        text: its text, or its beginning and its end.
    """

    at: float
    level: int
    text: str


@dataclass(slots=True)
class Source:
    """The pipe of one worker, and what was read from it in the current second. For `OutputReader` alone.

    Attributes:
        latest: its latest entries from INFO on, oldest first; any thread may read it, since it is replaced as a whole.
    """

    descriptor: int
    fields: dict[str, object]
    maker: EntryMaker
    logger: logging.Logger
    messages: Messages
    rest: bytes = b""
    second: float = 0.0
    read_at: float = 0.0
    bytes_read: int = 0
    entries: int = 0
    left_out: int = 0
    hidden: collections.deque[str] = field(default_factory=collections.deque)
    hidden_size: int = 0
    latest: tuple[OutputLine, ...] = ()
    death: str | None = None
    closed: bool = False


class OutputReader:
    """The thread that reads the output of workers. It starts on construction; `close` ends it."""

    def __init__(self) -> None:
        self._new: list[Source] = []
        self._ended: list[Source] = []
        self._paused: list[Source] = []
        self._grouping: list[Source] = []  # an entry of theirs has begun, and may have more lines
        self._shows_information = os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0"
        self._lock = threading.Lock()
        self._closing = False
        self._closed = False  # the thread ends: its descriptors are being closed, and others may get their numbers
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

    def add(
        self,
        descriptor: int,
        fields: dict[str, object],
        *,
        logger: logging.Logger = log,
        messages: Messages = OF_WORKERS,
        decode: Decode = decode,
    ) -> Source:
        """Reads a descriptor until its end, and closes it then, or at once if this raises.

        Args:
            descriptor: the reading end of a pipe; the reader owns it from now on, and closes it at once if the thread
                has ended.
            fields: the fields of each of its entries in the log; read again for each one, so it may change.
            logger: gets the entries.
            messages: about the output itself.
            decode: see `EntryMaker`.

        Returns:
            What `end` takes.
        """
        try:
            os.set_blocking(descriptor, False)
        except BaseException:
            os.close(descriptor)
            raise
        maker = EntryMaker(shows_information=self._shows_information, decode=decode)
        source = Source(descriptor, fields, maker, logger, messages)
        with self._lock:
            if self._closed:
                source.closed = True
                os.close(descriptor)
            else:
                self._new.append(source)
        self._wake()
        return source

    def end(self, source: Source, death: str | None = None) -> None:
        """Reads what a worker that has ended has left in its pipe, and closes it.

        Another process that the worker has started may still hold the other end open.

        Args:
            source: of the worker.
            death: how the worker ended, if it was to run on: then the last of its output that the log did not get is
                logged, at a level that the log shows.
        """
        if self._closing:
            return
        source.death = death
        with self._lock:
            self._ended.append(source)
        self._wake()

    def close(self, timeout_s: float = 2.0) -> None:
        """Reads what has been written, for at most `timeout_s`, and ends the thread. No-op if it has ended."""
        self._closing = True
        self._wake()
        self._thread.join(timeout_s)

    def _wake(self) -> None:
        with self._lock:
            if not self._closed:
                with contextlib.suppress(BlockingIOError):  # the pipe is full of wake-ups already
                    os.write(self._wake_in, b"\0")

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
        with self._lock:
            self._closed = True
            new, self._new = self._new, []
        for source in (*new, *self._paused):
            self._contain(source, self._finish, time.monotonic())
        for key in list(self._selector.get_map().values()):
            if key.data is not None:
                self._contain(key.data, self._end)
        self._close_descriptors()

    def _run_round(self) -> bool:
        """Waits for output, and reads it; returns whether there may be more."""
        timeout = 0.05 if self._paused or self._grouping or self._closing else None
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
        for source in list(self._grouping):
            if now - source.read_at >= GROUP_PAUSE_S:
                self._grouping.remove(source)
                self._contain(source, self._log_begun_entry)
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
        self._log_hidden(source)

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
        source.read_at = now
        # A record may follow an unfinished line, such as a progress bar.
        *lines, source.rest = (source.rest + data.replace(MARK, b"\n" + MARK)).split(b"\n")
        if len(source.rest) > (MAX_RECORD if source.rest.startswith(MARK) else MAX_LINE):
            lines.append(source.rest)
            source.rest = b""
        for line in lines:
            self._log_line(source, line)
        if source.maker.is_open and source not in self._grouping:
            self._grouping.append(source)
        return len(data)

    def _register(self, source: Source) -> None:
        self._selector.register(source.descriptor, selectors.EVENT_READ, source)

    def _begin_second(self, source: Source, now: float) -> None:
        if now - source.second >= 1.0:
            source.second, source.bytes_read, source.entries = now, 0, 0
            self._log_left_out(source)

    def _log_line(self, source: Source, line: bytes) -> None:
        on_cpu = str(source.fields.get("device", "")).startswith(CPU_PREFIX)
        for entry in source.maker.add(line, on_cpu=on_cpu):
            self._log_entry(source, entry)

    def _log_begun_entry(self, source: Source) -> None:
        for entry in source.maker.finish():
            self._log_entry(source, entry)

    def _log_entry(self, source: Source, entry: Entry) -> None:
        if entry.level >= logging.INFO:
            line = OutputLine(time.time(), entry.level, _shorten(entry.whole_text))
            source.latest = (*source.latest[1 - MAX_LATEST :], line)
        if not source.logger.isEnabledFor(entry.level):
            if entry.level >= logging.INFO:
                self._keep(source, entry)
            return
        source.entries += 1
        if source.entries > ENTRIES_A_SECOND:
            source.left_out += 1
            self._keep(source, entry)
        else:
            source.logger.log(entry.level, "%s", entry.text, extra={"fields": {**entry.fields, **source.fields}})

    def _keep(self, source: Source, entry: Entry) -> None:
        """Keeps an entry that the log does not get, as long as not many follow."""
        text = entry.whole_text[-MAX_HIDDEN_SIZE:]
        source.hidden.append(text)
        source.hidden_size += len(text)
        while len(source.hidden) > MAX_HIDDEN or source.hidden_size > MAX_HIDDEN_SIZE:
            source.hidden_size -= len(source.hidden.popleft())

    def _log_hidden(self, source: Source) -> None:
        """Logs the last output of a worker that has died which the log did not get."""
        if source.death is None or not source.hidden:
            return
        level = max(logging.WARNING, source.logger.getEffectiveLevel())
        fields = {**source.fields, "cause": source.death, "output": "\n".join(source.hidden)}
        source.logger.log(level, source.messages.last_output, extra={"fields": fields})

    def _log_left_out(self, source: Source) -> None:
        if source.left_out:
            source.logger.warning(
                source.messages.left_out,
                extra={"fields": {**source.fields, "lines": source.left_out}},
            )
            source.left_out = 0

    def _end(self, source: Source) -> None:
        if source.rest:
            self._log_line(source, source.rest)
        self._log_begun_entry(source)
        self._log_left_out(source)
        self._release(source)

    def _release(self, source: Source) -> None:
        """Closes a source; no-op if it is closed."""
        if source.closed:
            return
        source.closed = True
        if source in self._grouping:
            self._grouping.remove(source)
        try:
            if source.descriptor in self._selector.get_map():
                self._selector.unregister(source.descriptor)
        finally:
            os.close(source.descriptor)


def _shorten(text: str) -> str:
    """Returns a text of `MAX_LATEST_TEXT` characters at most. A crash names its cause first, a traceback last."""
    if len(text) <= MAX_LATEST_TEXT:
        return text
    end = MAX_LATEST_TEXT * 2 // 3
    return f"{text[: MAX_LATEST_TEXT - end - 3]}\n…\n{text[-end:]}"
