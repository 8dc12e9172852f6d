"""Recording of clients' requests, for `multitower record`: keeps the inputs of the next requests of a model.

Only requests that the model answers are kept, since a warm-up that contains a request which the model refuses fails
the model. What comes in frames is not copied: frames do not change. Inputs in shared memory are copied when the request
is accepted, since the client may change them after its reply.

While nothing is recorded, a request costs one check of a list when it is accepted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

from multitower import wire
from multitower.errors import MultitowerError, Reason, make

from ..loop.containment import ErrorLog
from ..loop.log import event
from ..routing.front_socket import FrontSocket
from ..routing.request_plans import whole_inputs
from ..routing.router import Router
from ..routing.sampler import Sampler
from ..scheduling.open_requests import Answer, Reply
from ..scheduling.request import Frame, Request
from ..scheduling.shared_memory_areas import OpenArea

log = logging.getLogger("multitower.recording")

MAX_RECORDINGS: Final = 8
"""Recordings that may be under way at one time."""

MAX_BYTES: Final = 256 << 20
"""Bytes that all recordings together may keep, with `INPUT_BYTES` for each input."""

INPUT_BYTES: Final = 1 << 10
"""What an input counts in addition to its own bytes: its frame and its description."""

RETRY_AFTER_MS: Final = 1000
"""When an operator whose recording was refused may try again."""


Done = Callable[[Sequence[Any]], None]
"""Takes the frames of the reply once a recording has ended: its header, with `model_name`, `recorded` (requests) and
`ended` (why no more were recorded); then for each request its description as JSON, and its inputs."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """A request that has been accepted: what it asks for, its inputs, and what it counts in bytes."""

    description: dict[str, Any]
    frames: tuple[Any, ...]
    size: int


@dataclass(slots=True, eq=False)
class _Recording:
    """One recording that is under way.

    Attributes:
        model: the name of the model.
        version: the version whose requests are recorded; "" for all versions.
        count: how many requests are wanted.
        ends_at: when it ends at the latest, in monotonic seconds.
        done: called at its end.
        unanswered: requests that have been accepted and have no answer yet.
        answered: requests that the model has answered, in the order of their answers.
        full: whether a request did not fit into `MAX_BYTES`; no more are kept then.
    """

    model: str
    version: str
    count: int
    ends_at: float
    done: Done
    unanswered: dict[Request, _Kept] = field(default_factory=dict)
    answered: list[_Kept] = field(default_factory=list)
    full: bool = False

    @property
    def size(self) -> int:
        """Bytes that it keeps."""
        return sum(kept.size for kept in (*self.unanswered.values(), *self.answered))


class Recorder:
    """The recordings that are under way.

    Args:
        router: whose requests are recorded.

    Attributes:
        sampler: chooses all requests.
    """

    def __init__(self, router: Router) -> None:
        self.sampler = Sampler(1.0)
        self._router = router
        self._errors = ErrorLog(log)
        self._recordings: list[_Recording] = []
        self._stopped = False
        self._bytes = 0

    @property
    def due(self) -> float:
        """When `tick` must be called at the latest, in monotonic seconds."""
        return min((recording.ends_at for recording in self._recordings), default=inf)

    def start(self, model: str, version: str, count: int, ends_at: float, done: Done) -> None:
        """Begins to record.

        Args:
            model: the name of a configured model.
            version: the only version whose requests are recorded; "" for all.
            count: how many requests are wanted.
            ends_at: when it ends at the latest, in monotonic seconds.
            done: called once, at the end.

        Raises:
            MultitowerError: `too_many_orders`, or `draining` after `end_all`.
        """
        if self._stopped:
            raise make(Reason.DRAINING, "the daemon is stopping")
        if len(self._recordings) >= MAX_RECORDINGS:
            message = f"{len(self._recordings)} recordings are under way; each ends with its last request or its time"
            raise make(Reason.TOO_MANY_ORDERS, message, retry_after_ms=RETRY_AFTER_MS)
        event(log, logging.INFO, "recording requests", model=model, version=version or None, count=count)
        self._recordings.append(_Recording(model, version, count, ends_at, done))
        if len(self._recordings) == 1:
            self._router.observers.append(self)

    def tick(self, now: float) -> None:
        """Ends the recordings whose time is over.

        Args:
            now: monotonic seconds.
        """
        for recording in [each for each in self._recordings if each.ends_at <= now]:
            self._end(recording, "timeout")

    def end_all(self) -> None:
        """Ends all recordings, since the daemon stops. No other one begins."""
        self._stopped = True
        for recording in tuple(self._recordings):
            self._end(recording, "draining")

    def observe_acceptance(self, request: Request) -> bool:
        """Keeps the inputs of a request where it is to be recorded. Never raises."""
        kept = False
        try:
            for recording in tuple(self._recordings):
                if recording.model == request.plan.model and self._keep(recording, request):
                    kept = True
        except Exception as error:  # noqa: BLE001  it is logged
            self._errors.add("recording a request", error, {"model": request.plan.model})
        return kept

    def _keep(self, recording: _Recording, request: Request) -> bool:
        version = request.plan.key.version
        if recording.version and version and version != recording.version:
            return False
        if recording.full or len(recording.unanswered) + len(recording.answered) >= recording.count:
            return False
        inputs = whole_inputs(request.plan)
        size = request.size + INPUT_BYTES * (1 + len(inputs))
        if self._bytes + size > MAX_BYTES:
            recording.full = True
            self._end_if_complete(recording)
            return False
        description = {
            "signature_name": request.plan.key.spec.signature,
            "outputs": request.plan.key.spec.outputs,
            "inputs": [{"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape in inputs],
        }
        # The sizes of padded inputs are behind the inputs.
        frames = tuple(_unchanging(frame) for frame in request.frames[: len(inputs)])
        recording.unanswered[request] = _Kept(description, frames, size)
        self._bytes += size
        return True

    def observe_refusal(self, front: FrontSocket, id: bytes, header: bytes, error: MultitowerError, now: float) -> None:
        """A request that was refused is not recorded; see `RequestObserver`."""

    def observe_replies(self, replies: Sequence[Reply], now: float) -> None:
        """Counts requests that the model has answered; forgets those that got an error."""
        for reply in replies:
            for recording in tuple(self._recordings):
                kept = recording.unanswered.pop(reply.request, None)
                if kept is not None:
                    self._settle(recording, kept, reply.request, reply.answer)

    def _settle(self, recording: _Recording, kept: _Kept, request: Request, answer: Answer) -> None:
        failed = isinstance(answer, MultitowerError)
        if failed or (recording.version and request.version != recording.version):
            self._bytes -= kept.size
        else:
            if not kept.description["signature_name"]:
                report = self._router.models.report(request.plan.model, request.version)
                kept.description["signature_name"] = report.signature if report is not None else ""
            recording.answered.append(kept)
        self._end_if_complete(recording)

    def _end_if_complete(self, recording: _Recording) -> None:
        if len(recording.answered) >= recording.count:
            self._end(recording, "complete")
        elif recording.full and not recording.unanswered:
            self._end(recording, "full")

    def _end(self, recording: _Recording, ended: str) -> None:
        self._recordings.remove(recording)
        self._bytes -= recording.size
        if not self._recordings:
            self._router.observers.remove(self)
        recorded = len(recording.answered)
        event(log, logging.INFO, "requests recorded", model=recording.model, count=recorded, ended=ended)
        frames: list[Any] = [
            wire.dump_json({"model_name": recording.model, "recorded": recorded, "ended": ended}),
        ]
        for kept in recording.answered:
            frames += (wire.dump_json(kept.description), *kept.frames)
        try:
            recording.done(frames)
        except Exception as error:  # noqa: BLE001  it is logged
            self._errors.add("answering an order to record", error, {"model": recording.model})


def _unchanging(frame: Frame) -> Any:
    """The bytes of an input as they are now: a frame itself, or a copy of an area of shared memory.

    Raises:
        OSError: the area cannot be read.
    """
    return frame.read() if type(frame) is OpenArea else frame
