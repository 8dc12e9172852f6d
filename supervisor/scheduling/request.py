"""What the router knows of a request: its plan (shared by all requests with equal headers) and its own state."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from multitower import wire
from multitower.worker_wire import KeySpec

if TYPE_CHECKING:
    from .areas import OpenArea
    from .split_requests import Join

Frame = Any
"""One frame of a message (`bytes`, `memoryview`, `zmq.Frame`); the pure core only counts and forwards them."""

_key_ids = itertools.count(1)

NORMAL_PRIORITY = 2
"""What a request without a priority, or of priority 0, counts as. As in Triton, less is more urgent."""


@dataclass(slots=True, eq=False)
class BatchKey:
    """What requests must have in common to be run as one batch; one object for each such combination.

    Attributes:
        spec: what the worker is told.
        id: the number that stands for `spec` in the batches' heads.
        max_batch_size: rows a batch; 0 where requests run singly.
        interface: what it was checked against; see `serving.Served`.
        version: the only version that may run it, or "" for any of the contract.
    """

    spec: KeySpec
    max_batch_size: int
    interface: int = 0
    version: str = ""
    id: int = field(default_factory=lambda: next(_key_ids))


@dataclass(frozen=True, slots=True)
class Shared:
    """What of a request lies in shared memory.

    Attributes:
        inputs: for each input in the request's order, where it lies; None where it has a frame.
        outputs: by name, where outputs may be written.
    """

    inputs: tuple[wire.Area | None, ...]
    outputs: Mapping[str, wire.Area]


@dataclass(slots=True, eq=False)
class Plan:
    """All that follows from a request's header: made once for each distinct header, and cached.

    Attributes:
        key: its batch key; `model`: the name of the model, from there.
        rows: dimension 0 of its inputs; 1 where requests run singly.
        order: for each input of the key, the index of its frame in the request.
        sizes: for each frame in the request's order, the bytes it must have; for BYTES the least.
        variable: for each frame whether `sizes` is only the least.
        names: for each frame the input's name, for messages.
        timeout_s: the request's effective time.
        priority: 1 or more; less is more urgent.
        shared: what lies in shared memory; None for nothing.
        sizes_frame: of a key whose requests are padded: the last frame of each entry; None for all other keys.
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
    model: str = field(init=False)

    def __post_init__(self) -> None:
        self.model = self.key.spec.model


class Phase(Enum):
    """Where a request stands."""

    WAITING = 1
    RUNNING = 2
    DONE = 3  # it has its one answer


class Request:
    """One request between its receipt and its one answer; also one part of a request that was split.

    Attributes:
        sender: where the answer goes: whatever identifies the front socket, and the envelope's frames.
        id: the id frame, as the sender wrote it.
        plan: see `Plan`.
        rows: of this request or part.
        frames: its inputs in the key's order; emptied when it is done.
        size: bytes over all frames.
        received: when the router got it; `deadline`: when it must be answered; `sent`: when a worker got it last
            (monotonic seconds).
        phase: see `Phase`.
        deaths: how many workers died while they executed it.
        avoid: the device whose worker died with it last.
        join: of a request larger than a batch, the state of its parts; None otherwise.
        parent: of a part, the request it belongs to; None otherwise. `start`: its first row there.
        tick: the deadline wheel's.
        version: of the model that it was given to last, "" before that.
    """

    __slots__ = (
        "avoid",
        "deadline",
        "deaths",
        "frames",
        "id",
        "join",
        "parent",
        "phase",
        "plan",
        "received",
        "rows",
        "sender",
        "sent",
        "size",
        "start",
        "tick",
        "version",
    )

    shared = False
    """Some of its frames are areas of shared memory, or some of its outputs may be written there."""

    def __init__(
        self, sender: tuple[Any, ...], id: bytes, plan: Plan, frames: Sequence[Frame], size: int, now: float
    ) -> None:
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
        self.join: Join | None = None
        self.parent: Request | None = None
        self.start = 0
        self.tick = 0
        self.version = ""

    @property
    def over(self) -> bool:
        """Nobody waits for it any more."""
        return self.phase is Phase.DONE or (self.parent is not None and self.parent.phase is Phase.DONE)


class SharedRequest(Request):
    """A request of which something lies in shared memory: frames are `regions.Piece`s there.

    Attributes:
        output_areas: by name, where outputs may be written.
    """

    __slots__ = ("output_areas",)
    shared = True

    def __init__(
        self,
        sender: tuple[Any, ...],
        id: bytes,
        plan: Plan,
        frames: Sequence[Frame],
        size: int,
        now: float,
        output_areas: Mapping[str, OpenArea],
    ) -> None:
        super().__init__(sender, id, plan, frames, size, now)
        self.output_areas = output_areas
