"""A request as the scheduler sees it: its plan, shared by all requests with the same header, and its own state."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, TypeAlias

from multitower import wire
from multitower.trace_context import TraceContext
from multitower.worker_wire import KeySpec

from .batch_run import BatchRun
from .shared_memory_areas import OpenArea


class Buffer(Protocol):
    """The bytes of a frame: `bytes`, `memoryview` or `zmq.Frame`."""

    def __len__(self) -> int:
        """The number of bytes."""

    def __buffer__(self, flags: int, /) -> memoryview:
        """Python's buffer protocol."""


Frame: TypeAlias = Buffer | OpenArea
"""One tensor of a request, or the header or one output of an answer."""

Sender: TypeAlias = tuple[Any, ...]
"""The sender of a request: the front socket and the address frames. The scheduler only compares and stores it."""

_key_ids = itertools.count(1)

NORMAL_PRIORITY = 2
"""The priority of a request that has none, or 0. As in Triton, a lower number is more urgent."""


@dataclass(slots=True, eq=False)
class BatchKey:
    """What requests must have in common to run in one batch. Each combination has one object, compared by identity.

    Attributes:
        spec: model, inputs and outputs, as sent to workers.
        max_batch_size: rows per batch; 0 if the model's requests run unbatched.
        interface: of the model that the requests were checked against; see `pool_worker.Served`.
        version: the only version that may run the requests, or "" for any with this interface.
        id: the number that stands for `spec` in messages to workers.
    """

    spec: KeySpec
    max_batch_size: int
    interface: int = 0
    version: str = ""
    id: int = field(default_factory=lambda: next(_key_ids))


@dataclass(frozen=True, slots=True)
class Shared:
    """The tensors of a request that are in shared memory.

    Attributes:
        inputs: for each input in the request's order its area; None for an input that comes in a frame.
        outputs: by name, the areas that outputs may be written to.
    """

    inputs: tuple[wire.Area | None, ...]
    outputs: Mapping[str, wire.Area]


@dataclass(slots=True, eq=False)
class Plan:
    """What follows from a request's header; made once per distinct header and cached.

    Attributes:
        key: its batch key.
        rows: dimension 0 of its inputs; 1 if it runs unbatched.
        order: for each input of the key, the index of its frame in the request.
        sizes: for each frame in the request's order its size in bytes; for BYTES the minimum.
        variable: for each frame whether `sizes` is only the minimum.
        names: for each frame the name of its input, for error messages.
        timeout_s: seconds from its receipt to its deadline.
        timeout_is_own: whether that is the request's own `timeout`, rather than the model's `queue.timeout`.
        priority: 1 or more; a lower number is more urgent.
        shared: its tensors in shared memory; None if it has none.
        sizes_frame: the last frame of each of its entries in a batch if its key pads inputs; else None.
        trace: that the request belongs to; None if it names none.
        model: the name of its model.
    """

    key: BatchKey
    rows: int
    order: tuple[int, ...]
    sizes: tuple[int, ...]
    variable: tuple[bool, ...]
    names: tuple[str, ...]
    timeout_s: float
    priority: int = NORMAL_PRIORITY
    shared: Shared | None = None
    sizes_frame: bytes | None = None
    timeout_is_own: bool = False
    trace: TraceContext | None = None
    model: str = field(init=False)

    def __post_init__(self) -> None:
        self.model = self.key.spec.model

    def with_trace(self, trace: TraceContext) -> Plan:
        """The plan of a request that differs in its trace alone."""
        return Plan(
            self.key,
            self.rows,
            self.order,
            self.sizes,
            self.variable,
            self.names,
            self.timeout_s,
            self.priority,
            self.shared,
            self.sizes_frame,
            self.timeout_is_own,
            trace,
        )


class Phase(Enum):
    """Where a request is."""

    WAITING = 1  # in its model's queue
    RUNNING = 2  # a worker has it, or all its parts
    DONE = 3  # it has its answer


class Request:
    """One request from its receipt to its answer, or one part of a request that was split.

    Args:
        sender: where the answer goes.
        id: the id frame, as the sender chose it.
        plan: see `Plan`.
        frames: its inputs in the order of `plan.key`.
        size: bytes of all its frames.
        now: monotonic seconds.

    Attributes:
        sender, id, plan, size: as given.
        rows: of this request or part.
        frames: its inputs, with `plan.sizes_frame` behind them if there is one; emptied once they are not needed.
        received: when it arrived, in monotonic seconds.
        deadline: when it must be answered, in monotonic seconds.
        sent: when it was last sent to a worker, in monotonic seconds.
        phase: see `Phase`.
        deaths: how many workers died while they executed it. Above 0 it is a suspect.
        avoid: the device of the last worker that died with it.
        split: the state of its parts, once some have been made.
        parent: for a part, the request that it belongs to.
        start: for a part, its first row in the parent.
        tick: used by `Deadlines`.
        observers: what gets the request once it has its answer; none for most. The scheduler only stores them.
        runs: the batches with the request or its parts that a worker has answered; recorded only if it has observers.
        version: of the model, as served by the worker that it was last sent to; "" before that.
        owner: the principal whose requests the router counts this one among, until its reply; None for none.
    """

    __slots__ = (
        "avoid",
        "deadline",
        "deaths",
        "frames",
        "id",
        "observers",
        "owner",
        "parent",
        "phase",
        "plan",
        "received",
        "rows",
        "runs",
        "sender",
        "sent",
        "size",
        "split",
        "start",
        "tick",
        "version",
    )

    shared = False
    """Whether any of its inputs, or room for its outputs, is in shared memory."""

    def __init__(self, sender: Sender, id: bytes, plan: Plan, frames: Sequence[Frame], size: int, now: float) -> None:
        self.sender = sender
        self.id = id
        self.plan = plan
        self.rows = plan.rows
        self.frames = frames if plan.sizes_frame is None else [*frames, plan.sizes_frame]
        self.size = size
        self.received = now
        self.deadline = now + plan.timeout_s
        self.sent = 0.0
        self.phase = Phase.WAITING
        self.deaths = 0
        self.avoid: str | None = None
        self.split: Split | None = None
        self.parent: Request | None = None
        self.start = 0
        self.tick = 0
        self.observers: tuple[Any, ...] = ()
        self.runs: tuple[BatchRun, ...] = ()
        self.version = ""
        self.owner: Any = None

    @property
    def whole(self) -> Request:
        """The request that the client sent: itself, or the parent of a part."""
        return self.parent or self

    @property
    def answered(self) -> bool:
        """Whether the client has its answer, or this part is done."""
        return self.phase is Phase.DONE or (self.parent is not None and self.parent.phase is Phase.DONE)

    def release_frames(self) -> None:
        """Frees the tensors of a request, and of its parent, if they are done and so will not run again."""
        if self.phase is Phase.DONE:
            self.frames = ()
        if self.parent is not None and self.parent.phase is Phase.DONE:
            self.parent.frames = ()


class SharedRequest(Request):
    """A request with tensors in shared memory: their frames are areas.

    Attributes:
        output_areas: by name, where outputs may be written.
    """

    __slots__ = ("output_areas",)
    shared = True

    def __init__(
        self,
        sender: Sender,
        id: bytes,
        plan: Plan,
        frames: Sequence[Frame],
        size: int,
        now: float,
        output_areas: Mapping[str, OpenArea],
    ) -> None:
        super().__init__(sender, id, plan, frames, size, now)
        self.output_areas = output_areas


class Split:
    """The state of a request with more rows than a batch has room for; `split_requests` has the rules.

    Args:
        request: the whole request.
        generation: of the model that all parts must run on; see `pool_worker.Served`.

    Attributes:
        generation: as given.
        rows_left: rows that no part has yet.
        parts: those made so far, in the order of their rows.
        offsets: for each frame where the next part begins, in bytes; elements of BYTES differ in length.
        answers: by their first row, the rows and frames of the parts answered so far.
    """

    __slots__ = ("answers", "generation", "offsets", "parts", "rows_left")

    def __init__(self, request: Request, generation: int = 0) -> None:
        self.generation = generation
        self.rows_left = request.rows
        self.parts: list[Request] = []
        self.offsets = [0] * len(request.frames)
        self.answers: dict[int, tuple[int, Sequence[Frame]]] = {}
