"""The request log: a line of JSON for each sampled request, as `request_log` in the configuration asks for it.

It observes the router where `request_log` is configured. The event loop notes what a line needs; a thread formats and
writes it (`line_writer`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from multitower.errors import MultitowerError

from ..config.request_log import RequestLogConfig
from ..loop.containment import ErrorLog
from ..loop.log import event
from ..routing.front_socket import FrontSocket
from ..routing.request_plans import whole_inputs
from ..routing.router import Router
from ..routing.sampler import Sampler
from ..scheduling.open_requests import Reply
from ..scheduling.request import Request
from ..settings import ActiveSettings
from .line_writer import LineWriter
from .request_log_entries import Entry, Noted, describe_request, format_entry, note_answer, note_inputs
from .rotated_file import RotatedFile

log = logging.getLogger("multitower.request_log")


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
        self._former: list[LineWriter[Entry]] = []  # that write their last entries
        self._dropped_before = self._failed_rotations_before = 0  # by writers that have ended
        self.tick()

    def tick(self, _now: float = 0.0) -> None:
        """Applies the configuration in force, if it has changed. Call it about once a second."""
        for writer in [writer for writer in self._former if writer.ended]:
            self._former.remove(writer)
            self._dropped_before += writer.dropped
            self._failed_rotations_before += writer.failed_rotations
        wanted = self._settings.current.config.request_log
        if wanted == self._config:
            return
        if wanted is None:
            self._end()
            self._config = None
            event(log, logging.INFO, "requests are not logged any more")
            return
        if self._observer is not None:
            self._end_writer(self._observer)
        self._config = None  # if the thread cannot be started, the next call tries again
        file = RotatedFile(wanted.path, wanted.max_size, wanted.keep)
        writer = LineWriter[Entry](file, str(wanted.path), format_entry)
        if self._observer is None:
            self._observer = _Observer(writer, wanted.sample, wanted.tensors, self._errors)
            self._router.observers.append(self._observer)
        else:
            # The same one goes on, so that requests that have been accepted are logged, too.
            self._observer.change(writer, wanted.sample, wanted.tensors)
        self._config = wanted
        event(log, logging.INFO, "logging requests", path=wanted.path, sample=wanted.sample, tensors=wanted.tensors)

    def reopen(self) -> None:
        """Lets the next line go to the file that the configured path names then, as after a rotation by others."""
        if self._observer is not None:
            self._observer.writer.reopen()

    @property
    def dropped(self) -> int:
        """Lines that were not written since the daemon started: too many waited, or the file could not be written."""
        return self._dropped_before + sum([writer.dropped for writer in self._writers])

    @property
    def failed_rotations(self) -> int:
        """How often a full file could not be replaced by another one since the daemon started."""
        return self._failed_rotations_before + sum([writer.failed_rotations for writer in self._writers])

    @property
    def _writers(self) -> list[LineWriter[Entry]]:
        current = self._observer.writer if self._observer is not None else None
        return self._former if current is None or current in self._former else [*self._former, current]

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
        self._end_writer(observer)
        return observer.writer

    def _end_writer(self, observer: _Observer) -> None:
        observer.writer.end()
        if observer.writer not in self._former:  # a former try may have ended it
            self._former.append(observer.writer)


class _Observer:
    """Notes sampled requests for one file; see `RequestObserver`.

    Args:
        writer: gets the entries.
        sample: the share of requests that are logged.
        tensors: whether inputs and outputs are logged.
        errors: gets what noting inputs raises.

    Attributes:
        writer: as given.
        sampler: chooses the requests.
    """

    def __init__(self, writer: LineWriter[Entry], sample: float, tensors: bool, errors: ErrorLog) -> None:
        self.writer = writer
        self.sampler = Sampler(sample)
        self._tensors = tensors
        self._errors = errors
        # Of sampled requests without an answer, where tensors are logged.
        self._inputs: dict[Request, Sequence[Noted]] = {}

    def change(self, writer: LineWriter[Entry], sample: float, tensors: bool) -> None:
        """Changes what it was constructed with; see there."""
        self.writer = writer
        self.sampler.change(sample)
        self._tensors = tensors

    def observe_acceptance(self, request: Request) -> bool:
        """Notes the inputs of a sampled request before they are released, where tensors are logged."""
        if not self._tensors:
            return True
        self._inputs[request] = ()
        try:
            self._inputs[request] = note_inputs(request, whole_inputs(request.plan))
        except Exception as error:  # noqa: BLE001  it is logged
            self._errors.add("noting the inputs of a request", error, {"model": request.plan.model})
        return True

    def observe_replies(self, replies: Sequence[Reply], now: float) -> None:
        """Queues the entries of sampled requests that have been answered."""
        date = time.time()
        for reply in replies:
            request = reply.request
            inputs = self._inputs.pop(request, ())
            fields = describe_request(request, reply.answer, now)
            front: FrontSocket = request.sender[0]
            fields["interface"] = front.interface
            entry = Entry(date, request.id, fields, inputs, note_answer(reply.answer) if self._tensors else ())
            self.writer.put(entry, entry.size)

    def observe_refusal(self, front: FrontSocket, id: bytes, header: bytes, error: MultitowerError, now: float) -> None:
        """Queues the entry of a request that was refused without having been queued, if it is sampled."""
        if not self.sampler.chooses_next(now):
            return
        fields = {"outcome": str(error.reason), "interface": front.interface}
        entry = Entry(time.time(), id, fields, header=header or b"{}")
        self.writer.put(entry, entry.size)
