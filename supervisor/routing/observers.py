"""What observes requests: traces, the request log and recordings.

Where nothing does, a request costs one test of a list. Which requests are observed is decided when they are accepted;
for all others nothing is noted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from multitower.errors import MultitowerError

from ..scheduling.batch_run import BatchRun
from ..scheduling.open_requests import Reply
from ..scheduling.pool_worker import Batch
from ..scheduling.request import Request
from .front_socket import FrontSocket
from .sampler import Sampler

MAX_READ_BYTES: Final = 64 << 10
"""The header of a refused request is passed to observers up to this size. Parsing a larger one takes milliseconds."""


class RequestObserver(Protocol):
    """Gets requests for inference that it has chosen. It runs in the event loop, so it must be quick.

    Attributes:
        sampler: chooses the requests that it gets.
    """

    @property
    def sampler(self) -> Sampler:
        """See the attributes."""

    def observe_acceptance(self, request: Request) -> bool:
        """Gets a chosen request that has just been accepted, while its inputs are there.

        Returns:
            Whether it wants the answer too.
        """

    def observe_replies(self, replies: Sequence[Reply], now: float) -> None:
        """Gets requests whose replies have just been sent, of those that it wanted the answer of.

        `Request.runs` has the batches that a worker answered: none for a request that failed before, several for a
        request that was split. `Request.sender` begins with the front socket, and its `interface`.

        Args:
            replies: the requests and their answers.
            now: monotonic seconds.
        """

    def observe_refusal(self, front: FrontSocket, id: bytes, header: bytes, error: MultitowerError, now: float) -> None:
        """Gets any request that was refused without having been queued; it decides itself what it makes of it.

        Args:
            front: the socket that it came from.
            id: of the request.
            header: its header, which may be malformed; b"" for one that is larger than `MAX_READ_BYTES`.
            error: its answer.
            now: monotonic seconds.
        """


def record_run(batch: Batch, ended: float, assemble_ns: int, compute_ns: int, slice_ns: int) -> None:
    """Adds a batch that its worker has answered to the `runs` of those of its requests that are observed.

    Args:
        batch: the batch.
        ended: when its result was received, in monotonic seconds.
        assemble_ns: see `BatchRun`, also for the others.
        compute_ns: see there.
        slice_ns: see there.
    """
    run: BatchRun | None = None
    for request in batch.requests:
        whole = request.whole
        if not whole.observers:
            continue
        if run is None:
            run = _run_of(batch, ended, assemble_ns, compute_ns, slice_ns)
        # Several parts of a request may be in one batch.
        if not whole.runs or whole.runs[-1] is not run:
            whole.runs = (*whole.runs, run)


def _run_of(batch: Batch, ended: float, assemble_ns: int, compute_ns: int, slice_ns: int) -> BatchRun:
    worker = batch.worker
    return BatchRun(
        batch.id,
        worker.slot,
        worker.device,
        len(batch.requests),
        batch.rows,
        batch.size,
        batch.sent,
        batch.started,
        ended,
        assemble_ns,
        compute_ns,
        slice_ns,
    )
