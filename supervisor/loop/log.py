"""The daemon's log: one entry an event, for people or as JSON, written by a thread of its own.

Call `event(logger, level, "what happened", slot=…, cause=…)`. The fields are printed as `key=value` behind the text, or
as members of the JSON object. An entry for people is one line; a traceback and the further lines of a worker's message
follow it, indented. As JSON each entry is one line. A slow terminal or a full disk delays only the writer's thread:
when its queue is full, or they cannot be written, entries are dropped and counted. Control characters, which could be
commands for the reader's terminal, are escaped.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import logging.handlers
import os
import queue
import re
import sys
from enum import Enum, auto
from typing import Any, Final, TextIO

from multitower.standard_streams import LossyStream

WORKER_LOGGER: Final = "multitower.worker"
"""The logger of what workers write."""

GATEWAY_LOGGER: Final = "multitower.gateway"
"""The logger of what the gateway writes."""

QUEUED_LINES = 10_000
CLOSE_S = 2.0

_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m", "DEBUG": "\x1b[2m"}
_RESET = "\x1b[0m"

# Control characters but the tab, ends of lines, marks that reverse the direction of text, and half surrogate pairs, as
# in file names that are not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = {"\n": "\\n", "\r": "\\r"}


def event(logger: logging.Logger, level: int, message: str, **fields: Any) -> None:
    """Logs one event with its fields; fields that are None are omitted."""
    if logger.isEnabledFor(level):
        kept = {key: value for key, value in fields.items() if value is not None}
        logger.log(level, "%s", message, extra={"fields": kept})


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


def _when(record: logging.LogRecord) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(record.created, datetime.UTC)


class Stamp(Enum):
    """How an entry for people begins."""

    TIME = auto()  # on a terminal: the time of day is enough
    DATE = auto()  # in a file or a pipe: with the date and the offset from UTC
    PRIORITY = auto()  # in systemd's journal: it has the time itself, and takes the priority from `<N>` (sd-daemon(3))


def stamp_for(stream: TextIO) -> Stamp:
    """How entries for people begin that are written to a stream."""
    if _is_journal(stream):
        return Stamp.PRIORITY
    return Stamp.TIME if stream.isatty() else Stamp.DATE


def _is_journal(stream: TextIO) -> bool:
    """Whether a stream leads to systemd's journal: JOURNAL_STREAM has its device and inode then (systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False  # it is closed, or is no file
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _wants_colour(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


_INDENT: Final = "    "
_BLOCKS: Final = ("traceback", "output")
"""Fields of several lines: for people they follow the line."""


class HumanFormatter(logging.Formatter):
    """`TIME LEVEL message key=value …`, in local time; further lines are indented.

    Args:
        colour: whether to colour entries by their levels.
        stamp: how each entry begins.
    """

    def __init__(self, colour: bool, stamp: Stamp = Stamp.TIME) -> None:
        super().__init__()
        self._colour = colour
        self._stamp = stamp

    def format(self, record: logging.LogRecord) -> str:
        """One entry, without the end of its last line."""
        message, fields = record.getMessage(), _fields(record)
        source, block = "", []
        if record.name in (WORKER_LOGGER, GATEWAY_LOGGER):
            source = "| "
            message, *block = message.split("\n")
        pairs = "".join(
            f" {escape_controls(key)}={_quoted(value)}" for key, value in fields.items() if key not in _BLOCKS
        )
        block += [line for key in _BLOCKS if key in fields for line in str(fields[key]).split("\n")]
        if record.exc_info:
            block += self.formatException(record.exc_info).split("\n")
        head = f"{self._when(record)}{record.levelname:<7} {source}{escape_controls(message)}{pairs}"
        lines = [head, *(f"{_INDENT}{escape_controls(line)}" for line in block if line)]
        if self._stamp is Stamp.PRIORITY:
            # The journal makes an entry of each line.
            lines = [f"<{_priority(record.levelno)}>{line}" for line in lines]
        entry = "\n".join(lines)
        colour = _COLOURS.get(record.levelname) if self._colour else None
        return f"{colour}{entry}{_RESET}" if colour else entry

    def _when(self, record: logging.LogRecord) -> str:
        if self._stamp is Stamp.PRIORITY:
            return ""
        when = _when(record).astimezone()
        if self._stamp is Stamp.DATE:
            return f"{when.isoformat(timespec='milliseconds')} "
        return f"{when.strftime('%H:%M:%S.%f')[:-3]} "


def _priority(level: int) -> int:
    """The priority of syslog(3) for a level of `logging`."""
    return next((priority for least, priority in _PRIORITIES if level >= least), 7)


_PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (UTC, ISO 8601), `level`, `logger`, `message`, and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry: dict[str, Any] = {
            "time": _when(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {key: value for key, value in _fields(record).items() if key not in entry}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        # JSON escapes control characters below 0x20 itself.
        return _UNPRINTABLE.sub(_json_escape, json.dumps(entry, default=str, ensure_ascii=False))


def escape_controls(text: str, *, keep_lines: bool = False) -> str:
    """Escapes characters that could be commands for a terminal, or that it cannot show.

    Args:
        text: of unknown origin, such as a model's error or a worker's output.
        keep_lines: leave ends of lines as they are.
    """
    if keep_lines:
        return "\n".join(map(escape_controls, text.split("\n")))
    return _UNPRINTABLE.sub(_human_escape, text)


def _human_escape(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def _json_escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def _quoted(value: Any) -> str:
    text = str(value)
    return escape_controls(json.dumps(text, ensure_ascii=False) if not text or " " in text or '"' in text else text)


class _DroppingHandler(logging.handlers.QueueHandler):
    """Passes records to the writer's thread; never waits."""

    def __init__(self, lines: queue.Queue[Any]) -> None:
        super().__init__(lines)
        self._dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Returns the record as it is: the writer runs in this process, and needs the fields and the exception."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queues a record; counts it as dropped if the queue is full."""
        try:
            if self._dropped:
                self.queue.put_nowait(_notice("log lines dropped", self._dropped))
                self._dropped = 0
            self.queue.put_nowait(record)
        except queue.Full:
            self._dropped += 1


def _notice(message: str, lines: int) -> logging.LogRecord:
    notice = logging.LogRecord("multitower", logging.WARNING, "", 0, message, (), None)
    notice.fields = {"lines": lines}
    return notice


class OutputHandler(logging.StreamHandler[TextIO]):
    """Writes entries. Once they can be written again, a line says how many could not."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._failed = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Writes an entry."""
        before = self._failures()
        super().emit(record)
        if self._failures() != before:
            self._failed += 1
        elif self._failed:
            # Not before the entry: a buffer would come to hold many of them, in place of entries.
            super().emit(_notice("log could not be written: lines above may be missing", self._failed))
            if self._failures() == before:
                self._failed = 0

    def _failures(self) -> int:
        return self.stream.failures if isinstance(self.stream, LossyStream) else 0


class _Listener(logging.handlers.QueueListener):
    """The writer's thread."""

    queue: queue.Queue[Any]

    def stop(self) -> None:
        """Writes what is queued and ends the thread; drops lines that cannot be written within `CLOSE_S`."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with contextlib.suppress(queue.Full):
            self.queue.put(None, timeout=CLOSE_S)
        thread.join(CLOSE_S)


class LogWriter:
    """Sets up logging under `multitower` and owns the writer's thread.

    Args:
        format: `human` or `json`; None is `human`.
        level: a name of `logging`, such as `INFO`.
        stream: where lines go; standard error by default.
    """

    def __init__(self, format: str | None = None, level: str = "INFO", stream: TextIO | None = None) -> None:
        stream = stream if stream is not None else sys.stderr
        out = OutputHandler(stream)
        human = HumanFormatter(_wants_colour(stream), stamp_for(stream))
        out.setFormatter(JsonFormatter() if format == "json" else human)
        lines: queue.Queue[Any] = queue.Queue(QUEUED_LINES)
        self._handler = _DroppingHandler(lines)
        self._listener = _Listener(lines, out)
        root = logging.getLogger("multitower")
        self._before = root.level, root.propagate
        root.setLevel(level)
        root.propagate = False
        root.addHandler(self._handler)
        self._listener.start()

    def close(self) -> None:
        """Writes what is queued, ends the thread, and sets up logging under `multitower` as it was before."""
        root = logging.getLogger("multitower")
        root.removeHandler(self._handler)
        level, root.propagate = self._before
        root.setLevel(level)
        self._listener.stop()
