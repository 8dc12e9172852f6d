"""The private messages between router and worker. They may change with any release: both sides come from one package.

A batch is one message in each direction. It names its key (the model, and its inputs' names, datatypes and dimensions)
by a number. The description of a key travels with the first batch that uses it. Where there are too many keys, both
sides forget all of them by the same rule.

    router to worker:   ASSIGN | Assignment (JSON)
                        BATCH head | description of the key (JSON), unless it is known | frames
                        SHARED head | description, likewise | table | frames of the inputs not in shared memory
                        TOWER | BATCH or SHARED as above, for a worker of several towers
                        STOP
    worker to router:   REPORT | WorkerReport (JSON)
                        RESULT head | frames; see `batch_results`
                        MEMORY | MemoryReport (JSON): memory did not suffice for a batch
                        BATCHING | BatchingReport (JSON): what batches have shown about whether requests may share them

The frames of small tensors travel *joined*: one frame an input, or output, with the rows of the whole batch. That frame
is the array that the model is called with. A frame costs a microsecond on each side of each socket, and a batch has
many. Tensors with rows of `tensors.BULKY_BYTES` or more travel in frames of their own, entry by entry in the key's
order, so that nobody has to copy them. So do BYTES, whose elements differ in length, and padded tensors. In a RESULT,
entry by entry, each answer is a reply header and its outputs, or the header of an error; joined, the head contains the
reply headers, one for each number of rows.
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
BATCHING: Final = b"U"

BEGUN: Final = "@Q"
"""The format of the id of the batch that a tower began last. Each tower stores it into memory that it shares with the
supervisor: a worker may have two batches, and what its socket holds when it dies is lost."""

BEGUN_BYTES: Final = 4096
"""The size of that memory, for more towers than any machine has devices."""

SIZES: Final = ""
"""The name of the input that contains the sizes of an entry's variable dimensions, as INT64. No real input has it."""

# A client that sends a new shape with each request makes a new key each time; each side remembers this many.
MAX_KEYS: Final = 4096
MAX_KEY_BYTES: Final = 16 << 20

_TOWER_HEAD: Final = struct.Struct("<cH")
# A heartbeat: the number of towers; then u64 calls, one a tower.
_HEARTBEAT_HEAD: Final = struct.Struct("<H")
# BATCH, batch id, key id, whether the description follows, joined, entries; then u32 rows, one an entry.
_BATCH_HEAD: Final = struct.Struct("<cQQ??I")


@dataclass(frozen=True, slots=True)
class KeySpec:
    """What all requests of a batch have in common.

    Attributes:
        model: the model's name.
        inputs: (name, datatype, dims) in the order of the frames; dims are the dimensions but the first if `batched`,
            and the whole shape otherwise. Where entries differ in some of them (-1), the last input is `SIZES`: the
            sizes of these dimensions, in this order, of each entry.
        outputs: the names of the wanted outputs, in their order; None for all.
        batched: whether entries are joined along dimension 0. Otherwise the model is called for each separately.
        signature: the model's signature; "" for the default one.
        version: the model's version; "" for the newest that the worker has.
    """

    model: str
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[str, ...] | None
    batched: bool
    signature: str = ""
    version: str = ""

    @property
    def padded(self) -> bool:
        """Whether entries differ in size, and are padded to one."""
        return bool(self.inputs) and self.inputs[-1][0] == SIZES

    def to_json(self) -> bytes:
        """The description that travels with the first batch of this key."""
        return json.dumps([self.model, self.inputs, self.outputs, self.batched, self.signature, self.version]).encode()

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
    """The frame in front of a batch for this tower."""
    return _TOWER_HEAD.pack(TOWER, tower)


def read_tower_head(head: bytes) -> int:
    """Reads what `tower_head` wrote."""
    tower: int = _TOWER_HEAD.unpack(head)[1]
    return tower


def heartbeat(calls: Sequence[int]) -> bytes:
    """A heartbeat, which goes through a pipe of its own: the number of calls of models that each tower has begun."""
    return _HEARTBEAT_HEAD.pack(len(calls)) + struct.pack(f"<{len(calls)}Q", *calls)


def last_heartbeat(data: bytes) -> tuple[int, ...] | None:
    """Reads heartbeats that were written one after the other; returns the last complete one, or None."""
    position, last = 0, None
    while position + _HEARTBEAT_HEAD.size <= len(data):
        (count,) = _HEARTBEAT_HEAD.unpack_from(data, position)
        position += _HEARTBEAT_HEAD.size
        if position + 8 * count > len(data):
            break
        last = struct.unpack_from(f"<{count}Q", data, position)
        position += 8 * count
    return last


def travels_joined(key: KeySpec) -> bool:
    """Whether the inputs of a batch travel joined."""
    return (
        key.batched
        and not key.padded
        and all(
            datatype != tensors.BYTES and tensors.byte_size(datatype, dims) < tensors.BULKY_BYTES
            for _, datatype, dims in key.inputs
        )
    )


def join_frames(entries: Sequence[Sequence[Any]]) -> list[Any]:
    """Joins the frames of entries: one frame an input, in order."""
    if len(entries) == 1:
        return list(entries[0])
    return [b"".join(parts) for parts in zip(*entries, strict=True)]


def batch_head(batch_id: int, key_id: int, rows: Sequence[int], *, joined: bool, described: bool) -> bytes:
    """The head of a BATCH message.

    Args:
        batch_id: a number that the answers carry.
        key_id: the number of the key.
        rows: the number of rows of each entry.
        joined: whether the frames are joined.
        described: whether the description of the key follows.
    """
    return struct.pack(f"<cQQ??I{len(rows)}I", BATCH, batch_id, key_id, described, joined, len(rows), *rows)


class BatchHead:
    """The arguments of `batch_head`."""

    __slots__ = ("batch_id", "described", "joined", "key_id", "rows")

    def __init__(self, batch_id: int, key_id: int, described: bool, joined: bool, rows: tuple[int, ...]) -> None:
        self.batch_id = batch_id
        self.key_id = key_id
        self.described = described
        self.joined = joined
        self.rows = rows


def read_batch_head(head: bytes) -> BatchHead:
    """Reads what `batch_head` wrote."""
    _, batch_id, key_id, described, joined, count = _BATCH_HEAD.unpack_from(head)
    return BatchHead(batch_id, key_id, described, joined, struct.unpack_from(f"<{count}I", head, _BATCH_HEAD.size))


def shared_head(head: bytes) -> bytes:
    """The head of a batch with tensors in shared memory, made of its `batch_head`."""
    return SHARED + head[len(BATCH) :]


class WorkerArea(NamedTuple):
    """An area of shared memory for one tensor, as a worker accesses it.

    Attributes:
        entry: the index of the entry in the batch.
        tensor: the index of an input in the key, or the name of an output.
        region: the name of the region, for the reply.
        descriptor: the region's descriptor in the supervisor.
        device: the region's device number, and `inode` its inode: they show that the descriptor is still the region's.
        inode: see `device`.
        offset: where the area begins, in bytes.
        size: its size in bytes.
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
    """The tensors of a batch in shared memory: inputs to read, and areas to which outputs may be written."""

    inputs: list[WorkerArea]
    outputs: list[WorkerArea]

    def pack(self) -> bytes:
        """The frame of the table."""
        rows = [
            [packed_area(area.entry, area.tensor, packed_region(*area[2:6]), *area[6:]) for area in areas]
            for areas in self
        ]
        return packed_table(*rows)

    @classmethod
    def unpack(cls, frame: bytes) -> Table:
        """Reads what `pack` wrote. The table is shared, and must not be changed."""
        return _unpacked(frame)


@functools.lru_cache(maxsize=256)
def _unpacked(frame: bytes) -> Table:
    # Clients use the same areas again and again.
    inputs, outputs = json.loads(frame)
    return Table([WorkerArea(*area) for area in inputs], [WorkerArea(*area) for area in outputs])


def packed_region(name: str, descriptor: int, device: int, inode: int) -> str:
    """What the rows of a table say of a region; the arguments are those of `WorkerArea`."""
    return f"{json.dumps(name)},{descriptor},{device},{inode}"


def packed_area(entry: int, tensor: int | str, region: str, offset: int, size: int) -> str:
    """A row of a table, in JSON, which is written by hand since each request has two of them.

    Args:
        entry: as in `WorkerArea`; so are `tensor`, `offset` and `size`.
        tensor: see `entry`.
        region: made by `packed_region`.
        offset: see `entry`.
        size: see `entry`.
    """
    return f"[{entry},{_quoted(tensor) if isinstance(tensor, str) else tensor},{region},{offset},{size}]"


def packed_table(inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """The frame of a table with these rows."""
    return f"[[{','.join(inputs)}],[{','.join(outputs)}]]".encode()


@functools.lru_cache(maxsize=256)
def _quoted(name: str) -> str:
    return json.dumps(name)


class KeyMemory:
    """The keys that one side of a connection remembers; both sides `put` the same keys in the same order."""

    def __init__(self) -> None:
        self._known: dict[int, Any] = {}
        self._bytes = 0

    def get(self, key_id: int) -> Any | None:
        """The value of a key; None if it is unknown, and then it is unknown to the other side as well."""
        return self._known.get(key_id)

    def put(self, key_id: int, value: Any, size: int) -> None:
        """Remembers a key. If there are too many, all others are forgotten first.

        Args:
            key_id: the number of the key.
            value: what this side needs of it.
            size: the bytes of its description.
        """
        if len(self._known) >= MAX_KEYS or self._bytes + size > MAX_KEY_BYTES:
            self._known.clear()
            self._bytes = 0
        self._known[key_id] = value
        self._bytes += size
