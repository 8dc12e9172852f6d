"""Contains errors in the event loop: an error costs the event or the chore that raised it, not the daemon.

An error that is contained is a defect of multitower. It is logged with its traceback, and what raised it is tried
again: a chore after a second, an event source at once, unless it raises so often that it would use up the loop's time.
`BaseException`s that are not `Exception`s pass: they end the daemon.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from math import inf
from types import MappingProxyType, TracebackType
from typing import Any, Final

from .reactor import Reactor

RETRY_S: Final = 1.0
"""Seconds until a chore that raised runs again, and until an event source that raises too often is watched again."""

MAX_ERRORS: Final = 20
"""Errors of one event source within `RETRY_S` after which it is not watched for that long."""

MIN_INTERVAL_S: Final = 0.001
"""Seconds from one run of a chore to the next at least, where the chore itself would run again at once."""

MAX_KNOWN: Final = 256
"""Errors that are known to have been logged, before those of more than `LOG_INTERVAL_S` ago are forgotten."""

LOG_INTERVAL_S: Final = 60.0
"""Seconds for which an error that has been logged is only counted."""


class ErrorLog:
    """Logs contained errors; the same error once a minute, with the number of times that it was raised since.

    Errors are the same when the same was being done, they have the same type and were raised at the same line.

    Args:
        logger: gets the lines.
        clock: returns monotonic seconds.
    """

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._suppressed: dict[tuple[Any, ...], int] = {}
        self._log_at: dict[tuple[Any, ...], float] = {}

    def add(self, doing: str, error: Exception, fields: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Logs an error with its traceback, or counts it.

        Args:
            doing: what was being done, as in "internal error while reading requests".
            error: what was raised.
            fields: more fields of the line.
        """
        now = self._clock()
        key = (doing, str(fields), type(error), *_raised_at(error.__traceback__))
        if now < self._log_at.get(key, -inf):
            self._suppressed[key] = self._suppressed.get(key, 0) + 1
            return
        if len(self._log_at) >= MAX_KNOWN:
            self._log_at = {key: log_at for key, log_at in self._log_at.items() if log_at > now}
            self._suppressed = {key: count for key, count in self._suppressed.items() if key in self._log_at}
        self._log_at[key] = now + LOG_INTERVAL_S
        repeated = self._suppressed.pop(key, 0)
        counted = {"repeated": repeated} if repeated else {}
        self._logger.error("internal error while %s", doing, exc_info=error, extra={"fields": {**fields, **counted}})


def _raised_at(traceback: TracebackType | None) -> tuple[str, int]:
    """Returns the file and the line that raised."""
    if traceback is None:
        return "", 0
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_code.co_filename, traceback.tb_lineno


class Chore:
    """Work that the loop does in each round, or when it is due.

    Args:
        name: what it does, as in `ErrorLog.add`.
        run: does the work; called with the time in monotonic seconds.
        next_wake: returns when `run` must be called at the latest, in monotonic seconds, or None for never; called
            likewise.
        errors: gets what `run` and `next_wake` raise.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[float], object],
        next_wake: Callable[[float], float | None],
        errors: ErrorLog,
    ) -> None:
        self._name = name
        self._run = run
        self._next_wake = next_wake
        self._errors = errors
        self._retry_at = -inf

    @classmethod
    def every(cls, interval_s: float, name: str, run: Callable[[float], object], errors: ErrorLog) -> Chore:
        """Returns a chore that runs once in each interval; see `Chore`."""
        due = -inf

        def run_if_due(now: float) -> None:
            nonlocal due
            if now >= due:
                due = now + interval_s
                run(now)

        return cls(name, run_if_due, lambda _: due, errors)

    def run(self, now: float) -> None:
        """Does the work; no-op for a second after it has raised."""
        if now < self._retry_at:
            return
        try:
            self._run(now)
        except Exception as error:  # noqa: BLE001  it is logged
            self._failed(error, now)

    def next_wake(self, now: float) -> float:
        """Returns when `run` must be called at the latest, in monotonic seconds; infinity for never."""
        if now < self._retry_at:
            return self._retry_at
        try:
            wake = self._next_wake(now)
        except Exception as error:  # noqa: BLE001  it is logged
            self._failed(error, now)
            return self._retry_at
        return inf if wake is None else max(wake, now + MIN_INTERVAL_S)

    def _failed(self, error: Exception, now: float) -> None:
        self._errors.add(self._name, error)
        self._retry_at = now + RETRY_S


class EventSources:
    """Descriptors and sockets of the daemon, watched by the reactor, whose callbacks may raise.

    Args:
        reactor: the daemon's.
        errors: gets what callbacks raise.
        clock: returns monotonic seconds.
    """

    def __init__(self, reactor: Reactor, errors: ErrorLog, clock: Callable[[], float] = time.monotonic) -> None:
        self._reactor = reactor
        self._errors = errors
        self._clock = clock
        self._paused: dict[_Source, float] = {}

    def add(self, name: str, descriptor: int, callback: Callable[[], object]) -> None:
        """Calls `callback` whenever the descriptor is readable.

        Args:
            name: what the callback does, as in `ErrorLog.add`.
            descriptor: an open file descriptor.
            callback: reads what has arrived.
        """
        source = _Source(name)
        on_error = functools.partial(self._on_error, source)
        source.watch = functools.partial(self._reactor.add, descriptor, callback, on_error)
        source.unwatch = functools.partial(self._reactor.remove, descriptor)
        source.watch()

    def add_source(
        self, name: str, descriptor: int, look: Callable[[], bool], callback: Callable[[], object]
    ) -> Callable[[], None]:
        """Calls `callback` when messages may have arrived; see `Reactor.add_source`.

        Returns:
            The source's `recheck`.
        """
        source = _Source(name)
        on_error = functools.partial(self._on_error, source)
        source.watch = functools.partial(self._reactor.add_source, descriptor, look, callback, on_error)
        source.unwatch = functools.partial(self._reactor.remove_source, descriptor)
        source.recheck = self._reactor.add_source(descriptor, look, callback, on_error)
        return source.recheck

    def _on_error(self, source: _Source, error: Exception) -> None:
        self._errors.add(source.name, error)
        now = self._clock()
        source.errors.append(now)
        if len(source.errors) == MAX_ERRORS and source.errors[0] > now - RETRY_S:
            source.unwatch()
            source.errors.clear()
            self._paused[source] = now + RETRY_S
        else:
            source.recheck()  # the callback may have left messages unread
        self._reactor.interrupt()

    def resume(self, now: float) -> None:
        """Watches sources again whose pause is over; call it at `next_wake` at the latest.

        Args:
            now: monotonic seconds.
        """
        for source in [source for source, until in self._paused.items() if until <= now]:
            del self._paused[source]
            source.watch()

    def next_wake(self, _now: float) -> float | None:
        """Returns when a pause is over, in monotonic seconds; None while no source is paused."""
        return min(self._paused.values(), default=None)


class _Source:
    """One descriptor or source of messages.

    Attributes:
        name: what its callback does, as in `ErrorLog.add`.
        watch, unwatch: add it to the reactor and remove it.
        recheck: asks the reactor to look once more; no-op for a descriptor that stays readable.
        errors: when its callback raised, the last times, in monotonic seconds.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.watch: Callable[[], object] = _nothing
        self.unwatch: Callable[[], object] = _nothing
        self.recheck: Callable[[], None] = _nothing
        self.errors: deque[float] = deque(maxlen=MAX_ERRORS)


def _nothing() -> None:
    """Does nothing."""
