"""What observes requests: traces and the request log. Where nothing does, a request costs one test of a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from multitower.errors import MultitowerError

from ..scheduling.batch_run import BatchRun
from ..scheduling.open_requests import Reply
from ..scheduling.worker import Batch
from .front_socket import FrontSocket


class RequestObserver(Protocol):
    """Gets each request for inference once it has its answer. It runs in the event loop, so it must be quick."""

    def observe_replies(self, replies: Sequence[Reply], now: float) -> None:
        """Gets requests whose replies have just been sent.

        `Request.runs` has the batches that a worker answered: none for a request that failed before, several for a
        request that was split. `Request.sender` begins with the front socket, and its `interface`.

        Args:
            replies: the requests and their answers.
            now: monotonic seconds.
        """

    def observe_refusal(self, front: FrontSocket, id: bytes, header: bytes, error: MultitowerError, now: float) -> None:
        """Gets a request that was refused without having been queued.

        Args:
            front: the socket that it came from.
            id: of the request.
            header: its header, which may be malformed; b"" for one that is larger than `wire.MAX_HEADER_BYTES`.
            error: its answer.
            now: monotonic seconds.
        """


def record_run(batch: Batch, ended: float, assemble_ns: int, compute_ns: int, slice_ns: int) -> None:
    """Adds a batch that its worker has answered to the `runs` of its requests.

    Args:
        batch: the batch.
        ended: when its result was received, in monotonic seconds.
        assemble_ns: see `BatchRun`, also for the others.
        compute_ns: see there.
        slice_ns: see there.
    """
    worker, requests = batch.worker, batch.requests
    run = BatchRun(
        batch.id,
        worker.slot,
        worker.device,
        len(requests),
        batch.rows,
        batch.size,
        batch.sent,
        batch.started,
        ended,
        assemble_ns,
        compute_ns,
        slice_ns,
    )
    for request in requests:
        whole = request.whole
        # Several parts of a request may be in one batch.
        if not whole.runs or whole.runs[-1] is not run:
            whole.runs = (*whole.runs, run)
