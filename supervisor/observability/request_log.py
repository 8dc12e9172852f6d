"""The request log: a line of JSON for each sampled request, as `request_log` in the configuration asks for it.

It observes the router where `request_log` is configured. The event loop notes what a line needs; a thread formats and
writes it (`line_writer`).
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from typing import Final

from multitower.errors import MultitowerError

from ..config.request_log import RequestLogConfig
from ..loop.containment import ErrorLog
from ..loop.log import event
from ..routing.front_socket import FrontSocket
from ..routing.request_plans import whole_inputs
from ..routing.router import Router
from ..scheduling.open_requests import Reply
from ..scheduling.request import Request
from ..settings import ActiveSettings
from .line_writer import LineWriter
from .request_entries import Entry, Noted, describe_request, format_entry, note_answer, note_inputs
from .rotated_file import RotatedFile

log = logging.getLogger("multitower.request_log")

MAX_HEADER_BYTES: Final = 64 << 10
"""Bytes of the header of a refused request from which the names of its model and version are taken, at most."""


class RequestLog:
    """The request log of a daemon.

    Args:
        router: whose requests are logged.
        settings: the settings in force.
    """

    def __init__(self, router: Router, settings: ActiveSettings) -> None:
        self._router = router
        self._settings = settings
        self._errors = ErrorLog(log)
        self._config: RequestLogConfig | None = None
        self._observer: _Observer | None = None
        self.tick()

    def tick(self, _now: float = 0.0) -> None:
        """Applies the configuration in force, if it has changed."""
        wanted = self._settings.current.config.request_log
        if wanted == self._config:
            return
        self._end()
        self._config = None  # if the thread cannot be started, the next call tries again
        if wanted is None:
            event(log, logging.INFO, "requests are not logged any more")
            return
        file = RotatedFile(wanted.path, wanted.max_size, wanted.keep)
        writer = LineWriter[Entry](file, str(wanted.path), format_entry)
        self._observer = _Observer(writer, wanted.sample, wanted.tensors, self._errors)
        self._router.observers.append(self._observer)
        if wanted.tensors:
            self._router.on_accepted.append(self._observer.on_accepted)
        self._config = wanted
        event(log, logging.INFO, "logging requests", path=wanted.path, sample=wanted.sample, tensors=wanted.tensors)

    def reopen(self) -> None:
        """Lets the next line go to the file that the configured path names then, as after a rotation by others."""
        if self._observer is not None:
            self._observer.writer.reopen()

    def close(self) -> None:
        """Writes what is queued, for a short time, and ends the thread."""
        writer = self._end()
        if writer is not None:
            writer.join()

    def _end(self) -> LineWriter[Entry] | None:
        """Ends the logging of requests; returns the writer, which may have entries to write."""
        observer, self._observer = self._observer, None
        if observer is None:
            return None
        self._router.observers.remove(observer)
        if observer.on_accepted in self._router.on_accepted:
            self._router.on_accepted.remove(observer.on_accepted)
        observer.writer.end()
        return observer.writer


class _Observer:
    """Notes sampled requests for one file; see `RequestObserver`.

    Args:
        writer: gets the entries.
        sample: the share of requests that are logged.
        tensors: whether inputs and outputs are logged.
        errors: gets what noting inputs raises.
    """

    def __init__(self, writer: LineWriter[Entry], sample: float, tensors: bool, errors: ErrorLog) -> None:
        self.writer = writer
        self._sample = sample
        self._tensors = tensors
        self._errors = errors
        # Of sampled requests without an answer, where tensors are logged.
        self._inputs: dict[Request, Sequence[Noted]] = {}

    def on_accepted(self, request: Request) -> None:
        """Notes the inputs of a sampled request before they are released. Never raises."""
        if self._sample < 1 and random.random() >= self._sample:
            return
        self._inputs[request] = ()
        try:
            self._inputs[request] = note_inputs(request, whole_inputs(request.plan))
        except Exception as error:  # noqa: BLE001  it is logged
            self._errors.add("noting the inputs of a request", error, {"model": request.plan.model})

    def observe_replies(self, replies: Sequence[Reply], now: float) -> None:
        """Queues the entries of sampled requests that have been answered."""
        date = time.time()
        for reply in replies:
            request = reply.request
            if self._tensors:
                inputs = self._inputs.pop(request, None)
                if inputs is None:
                    continue
            elif self._sample < 1 and random.random() >= self._sample:
                continue
            else:
                inputs = ()
            fields = describe_request(request, reply.answer, now)
            front: FrontSocket = request.sender[0]
            fields["interface"] = front.interface
            entry = Entry(date, request.id, fields, inputs, note_answer(reply.answer) if self._tensors else ())
            self.writer.put(entry, entry.size)

    def observe_refusal(self, front: FrontSocket, id: bytes, header: bytes, error: MultitowerError, now: float) -> None:
        """Queues the entry of a request that was refused without having been queued, if it is sampled."""
        if self._sample < 1 and random.random() >= self._sample:
            return
        fields = {"outcome": str(error.reason), "interface": front.interface}
        # A larger header may take milliseconds to parse.
        entry = Entry(time.time(), id, fields, header=header if 0 < len(header) <= MAX_HEADER_BYTES else b"{}")
        self.writer.put(entry, entry.size)
