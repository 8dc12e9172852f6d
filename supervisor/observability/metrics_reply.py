"""Answers `MT1:metrics`: takes a snapshot in the event loop, and writes it as text in a background job."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from multitower import wire
from multitower.errors import MultitowerError, Reason, make

from ..loop.background import BackgroundJobs
from ..loop.containment import ErrorLog
from ..routing.front_socket import internal_error
from .compatibility import compatible_families
from .exposition import CONTENT_TYPES, Exposition
from .metric_families import families
from .process_metrics import process_families
from .snapshot import Snapshot, SnapshotReader

log = logging.getLogger("multitower.metrics")

MAX_WAITING: Final = 64
"""Requests for metrics that may wait for the one that is being answered."""

Done: TypeAlias = Callable[[Sequence[bytes] | MultitowerError], None]
"""Takes the frames of a reply, from its header on, or an error."""


class Metrics:
    """Answers requests for metrics. For the loop's thread.

    One snapshot is written at a time. Requests that arrive meanwhile share the next one, so that each reply has what
    was counted until its request arrived.

    Args:
        snapshots: takes the snapshots.
        background: runs what writes them.
    """

    def __init__(self, snapshots: SnapshotReader, background: BackgroundJobs) -> None:
        self._snapshots = snapshots
        self._background = background
        self._errors = ErrorLog(log)
        self._expositions = {format: Exposition(format) for format in wire.METRICS_FORMATS}
        self._waiting: list[tuple[str, Done]] = []
        self._writing = False

    def answer(self, header: Mapping[str, Any], done: Done) -> None:
        """Answers a request.

        Args:
            header: of the request; its `format` is one of `wire.METRICS_FORMATS`, the first one by default.
            done: called once, with the reply's header and the text, or with an error.

        Raises:
            MultitowerError: the format is unknown, or too many requests wait; `done` is never called then.
        """
        format = header.get(wire.FORMAT, wire.PROMETHEUS)
        if format not in wire.METRICS_FORMATS:
            raise make(Reason.MALFORMED, f"format must be {' or '.join(wire.METRICS_FORMATS)}", field=wire.FORMAT)
        if len(self._waiting) >= MAX_WAITING:
            message = f"{MAX_WAITING} requests for metrics wait already, which is the limit"
            raise make(Reason.QUEUE_FULL, message, queue_depth=MAX_WAITING, retry_after_ms=1000)
        self._waiting.append((format, done))
        if not self._writing:
            self._start()

    def _start(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            snapshot = self._snapshots.take(time.monotonic())
        except Exception as error:  # noqa: BLE001  it is logged
            self._finish(waiting, error)
            return
        formats = {format for format, _ in waiting}
        self._writing = True
        self._background.run(
            functools.partial(self._write, snapshot, formats), functools.partial(self._finish, waiting)
        )

    def _write(self, snapshot: Snapshot, formats: set[str]) -> dict[str, bytes]:
        """Writes a snapshot. In a thread, and never in two at a time."""
        found = [*families(snapshot), *process_families(), *compatible_families(snapshot)]
        return {format: self._expositions[format].write(found) for format in formats}

    def _finish(self, waiting: Sequence[tuple[str, Done]], outcome: dict[str, bytes] | Exception) -> None:
        self._writing = False
        if isinstance(outcome, Exception):
            self._errors.add("collecting metrics", outcome)
            for _, done in waiting:
                done(internal_error())
        else:
            headers = {format: wire.dump_json({wire.CONTENT_TYPE: CONTENT_TYPES[format]}) for format in outcome}
            for format, done in waiting:
                done((headers[format], outcome[format]))
        if self._waiting:
            self._start()
