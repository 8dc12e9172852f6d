"""The daemon's log: one line an event, for people or as JSON, written by a thread of its own.

Call `event(logger, level, "what happened", slot=…, cause=…)`. The fields are printed as `key=value` behind the text, or
as members of the JSON object. A slow terminal or a full disk delays only the writer's thread: when its queue is full,
lines are dropped and counted. Control characters, which could be commands for the reader's terminal, are escaped.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import logging.handlers
import queue
import re
import sys
from typing import Any, TextIO

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


class HumanFormatter(logging.Formatter):
    """`12:00:01.123 WARNING message key=value …`, in local time."""

    def __init__(self, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        when = _when(record).astimezone().strftime("%H:%M:%S.%f")[:-3]
        pairs = "".join(f" {key}={_quoted(value)}" for key, value in _fields(record).items())
        source = "| " if record.name == "multitower.worker" else ""
        line = f"{when} {record.levelname:<7} {source}{escape_controls(record.getMessage())}{pairs}"
        if record.exc_info:
            line += f" traceback={_quoted(self.formatException(record.exc_info))}"
        colour = _COLOURS.get(record.levelname) if self._colour else None
        return f"{colour}{line}{_RESET}" if colour else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (UTC, ISO 8601), `level`, `logger`, `message`, and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry: dict[str, Any] = {
            "time": _when(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
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
                notice = logging.LogRecord("multitower", logging.WARNING, "", 0, "log lines dropped", (), None)
                notice.fields = {"lines": self._dropped}
                self.queue.put_nowait(notice)
                self._dropped = 0
            self.queue.put_nowait(record)
        except queue.Full:
            self._dropped += 1


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
        out = logging.StreamHandler(stream)
        out.setFormatter(JsonFormatter() if format == "json" else HumanFormatter(stream.isatty()))
        lines: queue.Queue[Any] = queue.Queue(QUEUED_LINES)
        self._handler = _DroppingHandler(lines)
        self._listener = _Listener(lines, out)
        root = logging.getLogger("multitower")
        root.setLevel(level)
        root.propagate = False
        root.addHandler(self._handler)
        self._listener.start()

    def close(self) -> None:
        """Writes what is queued and ends the thread."""
        logging.getLogger("multitower").removeHandler(self._handler)
        self._listener.stop()
