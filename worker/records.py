"""Passes what this process logs and prints to the supervisor, with its level and the model that it concerns.

`multitower/worker_log.py` has the form of a record. Lines of several models are told apart by what runs when they are
written: models are loaded one after the other, and a thread runs batches of one model at a time.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import select
import sys
import threading
import traceback
from collections.abc import Mapping
from typing import Any, Final

from multitower.worker_log import WorkerRecord

log = logging.getLogger("multitower.worker")

MAX_PARTIAL: Final = 8192
"""Characters that are kept of a printed line until its end; a longer one is passed in parts."""


class _Current(threading.local):
    """What the present thread runs.

    Attributes:
        model: the name and the version of the model; None outside of batches.
        partial: what was printed since the last end of a line, and with which model, by descriptor.
    """

    def __init__(self) -> None:
        self.model: tuple[str, str] | None = None
        self.partial: dict[int, tuple[tuple[str, str], str]] = {}


current = _Current()
"""The worker sets `current.model` before it runs a batch."""


class _Announced:
    """The model that all plain text concerns, as the supervisor knows it: the one that is loaded, or the only one."""

    model: tuple[str, str] | None = None


_announced = _Announced()


def announce(model: tuple[str, str] | None) -> None:
    """Tells the supervisor which model all output concerns from now on, unless a thread runs a batch of another one.

    Args:
        model: its name and version; None if the output may concern any model.
    """
    if model != _announced.model:
        _announced.model = model
        _write(WorkerRecord(None, None, _fields_of(model)))


def log_event(level: int, message: str, **fields: Any) -> None:
    """Logs one event of this worker with its fields; fields that are None are omitted."""
    log.log(level, "%s", message, extra={"fields": fields})


def set_up(level: str) -> None:
    """Sets up Python's logging, warnings and printing; call it once.

    Args:
        level: the daemon's. With `DEBUG` the worker's own lines of that level are passed as well.
    """
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.addHandler(RecordHandler())
    logging.captureWarnings(True)
    # What a higher level of the daemon leaves out, the daemon keeps in case that this process dies.
    log.setLevel(logging.DEBUG if level == "DEBUG" else logging.INFO)
    sys.stdout, sys.stderr = PrintStream(1), PrintStream(2)


class RecordHandler(logging.Handler):
    """Passes log records of this process to the supervisor."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record. An exception of its own is printed, as other handlers of `logging` do."""
        try:
            fields = {**_fields_of(current.model or _announced.model), **getattr(record, "fields", {})}
            if record.exc_info and record.exc_info[0] is not None:
                fields["traceback"] = "".join(traceback.format_exception(*record.exc_info)).rstrip()
            elif record.stack_info:
                fields["traceback"] = record.stack_info
            _write(WorkerRecord(record.getMessage().rstrip(), record.levelno, fields))
        except Exception:  # noqa: BLE001  arguments of the user's own may raise anything
            self.handleError(record)


class PrintStream(io.TextIOWrapper):
    """`sys.stdout` or `sys.stderr`: passes lines that are printed while a batch runs with the batch's model.

    Args:
        descriptor: 1 or 2; it stays open.
    """

    def __init__(self, descriptor: int) -> None:
        raw = open(descriptor, "wb", closefd=False)  # noqa: SIM115  for as long as the process runs
        super().__init__(raw, "utf-8", "backslashreplace", line_buffering=True)
        self._descriptor = descriptor

    def write(self, text: str, /) -> int:
        """Writes text; see `io.TextIOBase`."""
        model = current.model
        if self._descriptor in current.partial and current.partial[self._descriptor][0] != model:
            self._pass_partial()
        if model is None or model == _announced.model:
            # A client's text that is printed must not be taken for a record.
            super().write(text.replace("\x1e", "\\x1e"))
            return len(text)
        _, partial = current.partial.pop(self._descriptor, (model, ""))
        *lines, partial = (partial + text).split("\n")
        if lines:
            super().flush()
        for line in lines:
            _write(WorkerRecord(line, None, _fields_of(model)))
        # Of a progress bar, which goes back to the beginning of the line each time, only the last state counts.
        partial = partial[max(0, partial.rstrip("\r").rfind("\r")) :]
        if partial:
            current.partial[self._descriptor] = (model, partial)
        if len(partial) > MAX_PARTIAL:
            self._pass_partial()
        return len(text)

    def flush(self) -> None:
        """Passes what was printed without the end of a line, except a progress bar, whose next state replaces it."""
        if self._descriptor in current.partial and "\r" not in current.partial[self._descriptor][1]:
            self._pass_partial()
        super().flush()

    def _pass_partial(self) -> None:
        model, text = current.partial.pop(self._descriptor)
        super().flush()
        _write(WorkerRecord(text, None, _fields_of(model)))


def _fields_of(model: tuple[str, str] | None) -> Mapping[str, Any]:
    return {} if model is None else {"model": model[0], "version": model[1]}


def _write(record: WorkerRecord) -> None:
    """Writes a record to the output. It waits while the supervisor does not read; without a supervisor it is lost."""
    rest = record.encode()
    with contextlib.suppress(OSError):
        while rest:
            try:
                rest = rest[os.write(2, rest) :]
            except BlockingIOError:  # a library made the pipe non-blocking
                select.select([], [2], [])
