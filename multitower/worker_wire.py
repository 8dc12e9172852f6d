"""The private messages between router and worker. They change with any release; both sides come from one wheel.

One message a batch in both directions. A batch names its key (model, inputs' names, datatypes and dimensions)
by number; the key's description travels with the first batch that uses it, and both sides forget all keys by the
same rule when there are too many.

    router to worker:   ASSIGN | Assignment (JSON)
                        BATCH head | key (JSON, or empty when known) | frames, entry by entry, in the key's order
                        STOP
    worker to router:   REPORT | WorkerReport (JSON)
                        RESULT head | frames, entry by entry: header and outputs, or one error header
                        MEMORY | MemoryReport (JSON): the device's memory did not suffice
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

ASSIGN: Final = b"A"
BATCH: Final = b"B"
STOP: Final = b"S"
REPORT: Final = b"P"
RESULT: Final = b"R"
MEMORY: Final = b"M"

HEARTBEAT: Final = "<Q"
"""A heartbeat, on a pipe of its own: the number of calls of models that the worker has begun."""

# A client that sends ever new shapes makes ever new keys; this many are remembered on each side.
MAX_KEYS: Final = 4096
MAX_KEY_BYTES: Final = 16 << 20

_BATCH_HEAD: Final = struct.Struct("<cQQI")  # BATCH, batch id, key id, entries; then u32 rows an entry
_RESULT_HEAD: Final = struct.Struct("<cQIQQQ")  # RESULT, batch id, entries, ns: assemble, compute, slice


@dataclass(frozen=True, slots=True)
class KeySpec:
    """What all requests of a batch have in common.

    Attributes:
        model: the model's name.
        inputs: (name, datatype, dims) in the order of the frames; dims exclude the batch dimension when
            `batched`, and are the whole shape otherwise.
        outputs: names wanted, in their order, or None for all.
        batched: entries are joined along dimension 0. Otherwise a batch has exactly one entry.
    """

    model: str
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[str, ...] | None
    batched: bool

    def to_json(self) -> bytes:
        """The description that travels with the first batch of this key."""
        return json.dumps([self.model, self.inputs, self.outputs, self.batched]).encode()

    @classmethod
    def from_json(cls, text: bytes) -> KeySpec:
        """Reads what `to_json` wrote."""
        model, inputs, outputs, batched = json.loads(text)
        return cls(
            model=model,
            inputs=tuple((name, datatype, tuple(dims)) for name, datatype, dims in inputs),
            outputs=None if outputs is None else tuple(outputs),
            batched=batched,
        )


def batch_head(batch_id: int, key_id: int, rows: Sequence[int]) -> bytes:
    """The head of a BATCH message; `rows` has an item an entry."""
    return _BATCH_HEAD.pack(BATCH, batch_id, key_id, len(rows)) + struct.pack(f"<{len(rows)}I", *rows)


def read_batch_head(head: bytes) -> tuple[int, int, tuple[int, ...]]:
    """(batch id, key id, rows an entry) of a BATCH head."""
    _, batch_id, key_id, count = _BATCH_HEAD.unpack_from(head)
    return batch_id, key_id, struct.unpack_from(f"<{count}I", head, _BATCH_HEAD.size)


@dataclass(frozen=True, slots=True)
class Timing:
    """Nanoseconds that a batch took in its worker: assembling inputs, computing, slicing outputs."""

    assemble_ns: int
    compute_ns: int
    slice_ns: int


def result_head(batch_id: int, frames: Sequence[int], timing: Timing) -> bytes:
    """The head of a RESULT message.

    Args:
        batch_id: of the batch that is answered.
        frames: for each entry in order, how many frames its answer has (a reply header and its outputs), or 0
            for an error, which has one frame: the JSON header of an `MT1:error` reply.
        timing: where the time went.
    """
    head = _RESULT_HEAD.pack(RESULT, batch_id, len(frames), timing.assemble_ns, timing.compute_ns, timing.slice_ns)
    return head + struct.pack(f"<{len(frames)}H", *frames)


def read_result_head(head: bytes) -> tuple[int, tuple[int, ...], Timing]:
    """(batch id, frames an entry, timing) of a RESULT head."""
    _, batch_id, count, *times = _RESULT_HEAD.unpack_from(head)
    return batch_id, struct.unpack_from(f"<{count}H", head, _RESULT_HEAD.size), Timing(*times)


class KeyMemory:
    """The keys that one side of one connection remembers. Router and worker apply the same rule in step."""

    def __init__(self) -> None:
        self._known: dict[int, Any] = {}
        self._bytes = 0

    def get(self, key_id: int) -> Any | None:
        """What was put under `key_id`, or None when the other side does not know it either."""
        return self._known.get(key_id)

    def put(self, key_id: int, value: Any, size: int) -> None:
        """Remembers a key whose description has `size` bytes; forgets all others first where there are too many."""
        if len(self._known) >= MAX_KEYS or self._bytes + size > MAX_KEY_BYTES:
            self._known.clear()
            self._bytes = 0
        self._known[key_id] = value
        self._bytes += size
