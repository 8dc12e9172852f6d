"""What is known of a batch once its worker has answered it, for those who observe requests."""

from __future__ import annotations


class BatchRun:
    """A batch that a worker has answered. Its requests share it.

    Args:
        id: of the batch.
        slot: of the worker.
        device: of the worker.
        requests: how many entries the batch had.
        rows: of all entries.
        size: rows that were executed, padding included.
        sent: when it was sent to the worker, in monotonic seconds.
        started: when the worker could start it, in monotonic seconds: later than `sent` if it had another batch.
        ended: when its result was received, in monotonic seconds.
        assemble_ns: how long the worker took to assemble the inputs.
        compute_ns: how long the model took.
        slice_ns: how long the worker took to divide the outputs among the requests.

    Attributes:
        id, slot, device, requests, rows, size, sent, started, ended, assemble_ns, compute_ns, slice_ns: as given.
    """

    __slots__ = (
        "assemble_ns",
        "compute_ns",
        "device",
        "ended",
        "id",
        "requests",
        "rows",
        "sent",
        "size",
        "slice_ns",
        "slot",
        "started",
    )

    def __init__(
        self,
        id: int,
        slot: int,
        device: str,
        requests: int,
        rows: int,
        size: int,
        sent: float,
        started: float,
        ended: float,
        assemble_ns: int,
        compute_ns: int,
        slice_ns: int,
    ) -> None:
        self.id = id
        self.slot = slot
        self.device = device
        self.requests = requests
        self.rows = rows
        self.size = size
        self.sent = sent
        self.started = started
        self.ended = ended
        self.assemble_ns = assemble_ns
        self.compute_ns = compute_ns
        self.slice_ns = slice_ns
