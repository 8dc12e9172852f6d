"""What the spans of a request are made of.

The event loop creates a `TracedRequest` for each sampled request; a thread turns it into spans.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from multitower.trace_context import TraceContext

from ..scheduling.batch_run import BatchRun

SPANS_OF_A_REQUEST: Final = 2
"""The request itself and its time in the queue."""

SPANS_OF_A_BATCH: Final = 2
"""The batch and the computation in it."""


class TracedRequest(NamedTuple):
    """A sampled request that has its answer. Times are in monotonic seconds.

    Attributes:
        trace: the trace that its client named; None for a new one.
        id: of the request, as its client chose it.
        interface: how it came: `mt1` or `gateway`.
        model: the model's name; "" where it could not be read.
        version: of the model that ran it; "" if none did.
        rows: of the request; 0 where they could not be read.
        deaths: how many workers died while they executed it.
        received: when it was received.
        sent: when it was last sent to a worker; None if it never was.
        answered: when its reply was sent.
        code: of the error that it got; "" for none.
        reason: of that error.
        runs: the batches that it was in.
    """

    trace: TraceContext | None
    id: bytes
    interface: str
    model: str
    version: str
    rows: int
    deaths: int
    received: float
    sent: float | None
    answered: float
    code: str
    reason: str
    runs: tuple[BatchRun, ...]

    @property
    def spans(self) -> int:
        """How many spans it has at most."""
        return SPANS_OF_A_REQUEST + SPANS_OF_A_BATCH * max(1, len(self.runs))
