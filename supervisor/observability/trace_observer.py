"""Chooses the requests that are traced, and passes them on.

A request whose client is traced itself is traced if the client's span is sampled. Of the others, the share `sample` is
traced, at most `max_per_second`: making and sending the spans of a request takes about 0.2 ms of CPU time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from multitower import wire
from multitower.errors import MultitowerError
from multitower.trace_context import TRACEPARENT, TraceContext, read_parameters

from ..loop.encodable import encodable
from ..routing.front_socket import FrontSocket
from ..routing.sampler import Sampler
from ..scheduling.open_requests import Reply
from ..scheduling.request import Request
from .traced_request import TracedRequest

_TRACEPARENT: Final = TRACEPARENT.encode()


class TraceObserver:
    """Observes the requests of a router; see `RequestObserver`.

    Args:
        sample: the share of requests that are traced, from 0 to 1.
        max_per_second: requests a second that are traced at most, not counting those whose clients are traced.
        put: takes sampled requests.

    Attributes:
        sampler: chooses them.
    """

    def __init__(self, sample: float, max_per_second: int, put: Callable[[list[TracedRequest]], None]) -> None:
        self.sampler = Sampler(sample, max_per_second, follows_traces=True)
        self._put = put

    def observe_acceptance(self, request: Request) -> bool:
        """Wants the answer of each chosen request."""
        return True

    def observe_replies(self, replies: Sequence[Reply], now: float) -> None:
        """Passes requests on."""
        self._put([_answered(reply, now) for reply in replies])

    def observe_refusal(self, front: FrontSocket, id: bytes, header: bytes, error: MultitowerError, now: float) -> None:
        """Passes a refused request on if it is sampled."""
        chosen = self.sampler.chooses_next(now)
        if not chosen and _TRACEPARENT not in header:
            return
        model, trace = _read(header)
        if trace.sampled if trace is not None else chosen:
            code, reason = str(error.code), str(error.reason)
            self._put([TracedRequest(trace, id, front.interface, model, "", 0, 0, now, None, now, code, reason, ())])


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
    try:
        fields = wire.load_header(header)
    except MultitowerError:
        return "", None
    model, parameters = fields.get("model_name"), fields.get("parameters")
    return (
        encodable(model[: wire.MAX_NAME_BYTES]) if isinstance(model, str) else "",
        read_parameters(parameters) if isinstance(parameters, dict) else None,
    )
