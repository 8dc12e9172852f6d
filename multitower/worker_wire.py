"""The private messages between router and worker. They change with any release; both sides come from one wheel.

One message a batch in both directions. A batch names its key (model, inputs' names, datatypes and dimensions)
by number; the key's description travels with the first batch that uses it, and both sides forget all keys by the
same rule when there are too many.

    router to worker:   ASSIGN | Assignment (JSON)
                        BATCH head | key (JSON), unless it is known | frames
                        SHARED head | key, likewise | table | frames of the inputs that are not in shared memory
                        TOWER | BATCH or SHARED as above, for a worker of several towers
                        STOP
    worker to router:   REPORT | WorkerReport (JSON)
                        RESULT head | frames
                        MEMORY | MemoryReport (JSON): the device's memory did not suffice
                        UNBATCHED | UnbatchedReport (JSON): the model's outputs do not have the batch's dimension

The frames of small tensors travel *joined*: one frame an input (or output) of the whole batch, row after row, which is
the array that the model is called with. A frame costs a microsecond on each side of each socket, and a batch has many.
Rows of `tensors.BULKY_BYTES` or more have frames of their own, entry by entry in the key's order, which nobody has to
copy; and so has BYTES, whose elements differ in length, and what is padded. In a RESULT, entry by entry, each answer is
a reply header and its outputs, or the header of an error; joined, the reply headers stand in the head, one for each
number of rows.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from multitower import tensors

ASSIGN: Final = b"A"
BATCH: Final = b"B"
SHARED: Final = b"H"
STOP: Final = b"S"
TOWER: Final = b"T"
REPORT: Final = b"P"
RESULT: Final = b"R"
MEMORY: Final = b"M"
UNBATCHED: Final = b"U"

BEGUN: Final = "@Q"
"""What each tower of a worker writes, in one store, into the memory that it shares with the supervisor: the id of the
batch that it began last. It may have a second one, and what its socket held at its death is lost."""

BEGUN_BYTES: Final = 4096
"""Of that memory: room for more towers than a machine has devices."""

SIZES: Final = ""
"""In place of an input's name: the sizes of an entry's variable dimensions, INT64. No input is named so."""

# A client that sends ever new shapes makes ever new keys; this many are remembered on each side.
MAX_KEYS: Final = 4096
MAX_KEY_BYTES: Final = 16 << 20

_TOWER_HEAD: Final = struct.Struct("<cH")
# A heartbeat: towers, then u64 calls a tower.
_HEARTBEAT_HEAD: Final = struct.Struct("<H")
# BATCH, batch id, key id, whether the key follows, joined, entries; then u32 rows an entry.
_BATCH_HEAD: Final = struct.Struct("<cQQ??I")
# RESULT, batch id, entries, ns: assemble, compute, slice; then the number of reply headers, 0 for entry by entry.
_RESULT_HEAD: Final = struct.Struct("<cQIQQQI")
# Entry by entry then u16 frames an entry. Joined u32 rows an entry, u32 rows a header, u32 bytes a header, the headers.


@dataclass(frozen=True, slots=True)
class KeySpec:
    """What all requests of a batch have in common.

    Attributes:
        model: the model's name.
        inputs: (name, datatype, dims) in the order of the frames; dims exclude the batch dimension when
            `batched`, and are the whole shape otherwise. Where entries differ in some dims (-1), the last input is
            `SIZES`: what these are, in this order, in each entry.
        outputs: names wanted, in their order, or None for all.
        batched: entries are joined along dimension 0. Otherwise each is run alone.
        signature: the model's, "" for the one that it has by default.
        version: the model's, "" for the newest that the worker has.
    """

    model: str
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[str, ...] | None
    batched: bool
    signature: str = ""
    version: str = ""

    @property
    def padded(self) -> bool:
        """Entries are padded to one size."""
        return bool(self.inputs) and self.inputs[-1][0] == SIZES

    def to_json(self) -> bytes:
        """The description that travels with the first batch of this key."""
        told = [self.model, self.inputs, self.outputs, self.batched, self.signature, self.version]
        return json.dumps(told).encode()

    @classmethod
    def from_json(cls, text: bytes) -> KeySpec:
        """Reads what `to_json` wrote."""
        model, inputs, outputs, batched, signature, version = json.loads(text)
        return cls(
            model=model,
            inputs=tuple((name, datatype, tuple(dims)) for name, datatype, dims in inputs),
            outputs=None if outputs is None else tuple(outputs),
            batched=batched,
            signature=signature,
            version=version,
        )


def tower_head(tower: int) -> bytes:
    """The frame in front of a batch that is for this tower."""
    return _TOWER_HEAD.pack(TOWER, tower)


def read_tower_head(head: bytes) -> int:
    """Reads what `tower_head` wrote."""
    tower: int = _TOWER_HEAD.unpack(head)[1]
    return tower


def heartbeat(calls: Sequence[int]) -> bytes:
    """A heartbeat, on a pipe of its own: the number of calls of models that each tower has begun."""
    return _HEARTBEAT_HEAD.pack(len(calls)) + struct.pack(f"<{len(calls)}Q", *calls)


def last_heartbeat(data: bytes) -> tuple[int, ...] | None:
    """The last one of these that were written one after the other; None when there is no whole one."""
    area, last = 0, None
    while area + _HEARTBEAT_HEAD.size <= len(data):
        (count,) = _HEARTBEAT_HEAD.unpack_from(data, area)
        area += _HEARTBEAT_HEAD.size
        if area + 8 * count > len(data):
            break
        last = struct.unpack_from(f"<{count}Q", data, area)
        area += 8 * count
    return last


def joinable(key: KeySpec) -> bool:
    """Whether the inputs of a batch travel joined."""
    return (
        key.batched
        and not key.padded
        and all(
            datatype != tensors.BYTES and tensors.byte_size(datatype, dims) < tensors.BULKY_BYTES
            for _, datatype, dims in key.inputs
        )
    )


def join(entries: Sequence[Sequence[Any]]) -> list[Any]:
    """One frame an input, of the entries' frames in order."""
    if len(entries) == 1:
        return list(entries[0])
    return [b"".join(parts) for parts in zip(*entries, strict=True)]


def batch_head(batch_id: int, key_id: int, rows: Sequence[int], *, joined: bool, described: bool) -> bytes:
    """The head of a BATCH message; `rows` has an item an entry, `described` says that the key's description follows."""
    return struct.pack(f"<cQQ??I{len(rows)}I", BATCH, batch_id, key_id, described, joined, len(rows), *rows)


class BatchHead(NamedTuple):
    """What `batch_head` was given."""

    batch_id: int
    key_id: int
    described: bool
    joined: bool
    rows: tuple[int, ...]


def read_batch_head(head: bytes) -> BatchHead:
    """Reads what `batch_head` wrote."""
    _, batch_id, key_id, described, joined, count = _BATCH_HEAD.unpack_from(head)
    return BatchHead(batch_id, key_id, described, joined, struct.unpack_from(f"<{count}I", head, _BATCH_HEAD.size))


def shared_head(head: bytes) -> bytes:
    """The head of a batch of which some tensors lie in shared memory."""
    return SHARED + head[len(BATCH) :]


class WorkerArea(NamedTuple):
    """A part of a region of shared memory, as a worker finds it.

    Attributes:
        entry: of the batch.
        tensor: an input's number in the key's order, or an output's name.
        region: the region's name, which replies tell.
        descriptor: the region's in the parent; `device` and `inode` tell that it still is.
        offset: in bytes, and `size` likewise.
    """

    entry: int
    tensor: int | str
    region: str
    descriptor: int
    device: int
    inode: int
    offset: int
    size: int


class Table(NamedTuple):
    """Which tensors of a batch lie in shared memory: inputs to be read, and places where outputs may be written."""

    inputs: list[WorkerArea]
    outputs: list[WorkerArea]

    def pack(self) -> bytes:
        """The table's frame."""
        return json.dumps(self, separators=(",", ":")).encode()

    @classmethod
    def unpack(cls, frame: bytes) -> Table:
        """Reads what `pack` wrote; the table is not to be changed."""
        return _unpacked(frame)


@functools.lru_cache(maxsize=256)
def _unpacked(frame: bytes) -> Table:
    # Clients use the same places again and again.
    inputs, outputs = json.loads(frame)
    return Table([WorkerArea(*area) for area in inputs], [WorkerArea(*area) for area in outputs])


class Timing(NamedTuple):
    """Nanoseconds that a batch took in its worker: assembling inputs, computing, slicing outputs."""

    assemble_ns: int
    compute_ns: int
    slice_ns: int


def result(batch_id: int, answers: Sequence[list[Any] | bytes], timing: Timing) -> list[Any]:
    """A RESULT message, entry by entry.

    Args:
        batch_id: of the batch that is answered.
        answers: for each entry in order a reply header and its outputs; or, for an error, the header of the
            `MT1:error` reply.
        timing: where the time went.
    """
    counts = [0 if isinstance(answer, bytes) else len(answer) for answer in answers]
    head = _RESULT_HEAD.pack(RESULT, batch_id, len(answers), *timing, 0)
    message: list[Any] = [head + struct.pack(f"<{len(counts)}H", *counts)]
    for answer in answers:
        if isinstance(answer, bytes):
            message.append(answer)
        else:
            message.extend(answer)
    return message


def joined_result(
    batch_id: int, headers: dict[int, bytes], rows: Sequence[int], outputs: Sequence[Any], timing: Timing
) -> list[Any]:
    """A RESULT message, joined: no entry has an error.

    Args:
        batch_id: of the batch that is answered.
        headers: the reply header of an entry with so many rows, for each number that there is.
        rows: of each entry.
        outputs: one frame an output, of all rows.
        timing: where the time went.
    """
    sizes = [len(header) for header in headers.values()]
    head = _RESULT_HEAD.pack(RESULT, batch_id, len(rows), *timing, len(headers))
    layout = struct.pack(f"<{len(rows)}I{len(headers)}I{len(headers)}I", *rows, *headers, *sizes)
    return [b"".join((head, layout, *headers.values())), *outputs]


class Result(NamedTuple):
    """A RESULT as the router reads it: for each entry the header and outputs of its reply, or an error's header."""

    batch_id: int
    answers: list[list[Any] | bytes]
    timing: Timing


def read_result(message: Sequence[Any]) -> Result:
    """Reads what `result` or `joined_result` wrote."""
    head = bytes(message[0])
    _, batch_id, count, assemble_ns, compute_ns, slice_ns, headers = _RESULT_HEAD.unpack_from(head)
    timing = Timing(assemble_ns, compute_ns, slice_ns)
    answers: list[list[Any] | bytes]
    if headers:
        numbers = struct.unpack_from(f"<{count + 2 * headers}I", head, _RESULT_HEAD.size)
        rows = numbers[:count]
        end = len(head)
        by_rows: dict[int, bytes] = {}
        # From the last on: the headers end with the frame.
        for index in range(headers - 1, -1, -1):
            start = end - numbers[count + headers + index]
            by_rows[numbers[count + index]] = head[start:end]
            end = start
        answers = _cut(by_rows, rows, message[1:])
    else:
        answers = []
        start = 1
        for frames in struct.unpack_from(f"<{count}H", head, _RESULT_HEAD.size):
            answers.append(list(message[start : start + frames]) if frames else bytes(message[start]))
            start += frames or 1
    return Result(batch_id, answers, timing)


def _cut(headers: dict[int, bytes], rows: Sequence[int], outputs: Sequence[Any]) -> list[list[Any] | bytes]:
    """An answer an entry, of outputs that are joined."""
    if len(rows) == 1:
        return [[headers[rows[0]], *outputs]]
    total = sum(rows)
    answers: list[list[Any] | bytes] = [[headers[count]] for count in rows]
    for frame in outputs:
        # What is large is libzmq's buffer; its slices are copied when they are sent.
        data = frame if type(frame) is bytes else frame.buffer
        width = len(data) // total
        start = 0
        for answer, count in zip(answers, rows, strict=True):
            end = start + count * width
            answer.append(data[start:end])  # type: ignore[union-attr]
            start = end
    return answers


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
