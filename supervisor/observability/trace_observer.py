"""Chooses the requests that are traced, and passes them on. It runs in the event loop, for each request.

A request whose client is traced itself is traced if the client's span is sampled. Of the others, the share `sample` is
traced, at most `max_per_second`: making and sending the spans of a request takes about 0.2 ms of CPU time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

from multitower import wire
from multitower.errors import MultitowerError
from multitower.trace_context import TRACEPARENT, TraceContext, read_parameters

from ..routing.front_socket import FrontSocket
from ..scheduling.open_requests import Reply
from .encodable import encodable
from .traced_request import TracedRequest

MAX_READ_BYTES: Final = 64 << 10
"""The header of a refused request is read for its spans up to this size."""

_TRACEPARENT: Final = TRACEPARENT.encode()


class TraceObserver:
    """Observes the requests of a router; see `RequestObserver`.

    Args:
        sample: the share of requests that are traced, from 0 to 1.
        max_per_second: requests a second that are traced at most, not counting those whose clients are traced.
        put: takes sampled requests.

    Attributes:
        sample: as given; it may change.
        max_per_second: likewise.
    """

    def __init__(self, sample: float, max_per_second: int, put: Callable[[list[TracedRequest]], None]) -> None:
        self.sample = sample
        self.max_per_second = max_per_second
        self._put = put
        self._left = float(max_per_second)  # requests that may be traced at once
        self._refilled_at = 0.0
        self._random = random.Random()

    def observe_replies(self, replies: Sequence[Reply], now: float) -> None:
        """Passes the sampled ones of these requests on."""
        traced: list[TracedRequest] = []
        for reply in replies:
            trace = reply.request.plan.trace
            if trace.sampled if trace is not None else self._random.random() < self.sample and self._has_room(now):
                traced.append(_answered(reply, now))
        if traced:
            self._put(traced)

    def observe_refusal(self, front: FrontSocket, id: bytes, header: bytes, error: MultitowerError, now: float) -> None:
        """Passes a refused request on if it is sampled."""
        chosen = self._random.random() < self.sample and self._has_room(now)
        if not chosen and _TRACEPARENT not in header:
            return
        model, trace = _read(header)
        if trace.sampled if trace is not None else chosen:
            code, reason = str(error.code), str(error.reason)
            self._put([TracedRequest(trace, id, front.interface, model, "", 0, 0, now, None, now, code, reason, ())])

    def _has_room(self, now: float) -> bool:
        """Whether one more request may be traced now; then it counts as traced."""
        limit = self.max_per_second
        self._left = min(self._left + (now - self._refilled_at) * limit, limit)
        self._refilled_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _answered(reply: Reply, now: float) -> TracedRequest:
    request, answer = reply.request, reply.answer
    error = answer if isinstance(answer, MultitowerError) else None
    return TracedRequest(
        trace=request.plan.trace,
        id=request.id,
        interface=request.sender[0].interface,
        model=request.plan.model,
        version=request.version,
        rows=request.rows,
        deaths=request.deaths,
        received=request.received,
        sent=request.sent or None,
        answered=now,
        code="" if error is None else str(error.code),
        reason="" if error is None else encodable(str(error.reason)),
        runs=request.runs,
    )


def _read(header: bytes) -> tuple[str, TraceContext | None]:
    """The name of the model and the trace in the header of a refused request; "" and None where it is malformed."""
    if len(header) > MAX_READ_BYTES:
        return "", None
    try:
        fields = wire.load_header(header)
    except MultitowerError:
        return "", None
    model, parameters = fields.get("model_name"), fields.get("parameters")
    return (
        encodable(model[: wire.MAX_NAME_BYTES]) if isinstance(model, str) else "",
        read_parameters(parameters) if isinstance(parameters, dict) else None,
    )
