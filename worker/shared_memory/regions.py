"""The tensors of a batch that lie in shared memory: inputs read into the batch's arrays, outputs written back.

The worker reaches a client's memory through the descriptor that its parent holds: what is not there is an error of a
read, never a signal. A descriptor is open for one batch only, which costs 5 us. Places that are used again are copied
from and to a mapping (`mappings.py`), which costs a third.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from multitower import tensors, wire
from multitower.errors import MultitowerError, Reason, make

from ...worker_wire import KeySpec, Table, WorkerArea
from .buffers import Buffers
from .mappings import Mappings

MAX_HEADERS = 1024

LONG_COPY = 1 << 20
"""Bytes from which on other threads may run during a copy. To wait for their leave to go on may cost more than it."""


class Regions:
    """The regions that one batch names; a context manager that closes the descriptors again that were needed for it.

    Args:
        parent: its pid.
        mappings: of regions that were named before.
    """

    def __init__(self, parent: int, mappings: Mappings) -> None:
        self._parent = parent
        self._mappings = mappings
        self._open: dict[tuple[int, int, int], int] = {}

    def __enter__(self) -> Regions:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the descriptors."""
        while self._open:
            os.close(self._open.popitem()[1])

    def read(self, area: WorkerArea, buffer: memoryview) -> None:
        """Fills a buffer of the place's size.

        Raises:
            OSError: the region is not there any more, or ends early.
        """
        mapped = self._mappings.find(area)
        if mapped is not None:
            _copy(buffer, mapped)
            return
        descriptor = self._descriptor(area)
        done = 0
        while done < len(buffer):
            count = os.preadv(descriptor, [buffer[done:]], area.offset + done)
            if not count:
                raise OSError(f"the region ends at byte {area.offset + done}")
            done += count
        self._mappings.learn(area, descriptor)

    def write(self, area: WorkerArea, data: memoryview) -> None:
        """Writes data to the beginning of a place, which must be large enough.

        Raises:
            OSError: the region is not there any more, or there is no memory for it.
        """
        mapped = self._mappings.find(area)
        if mapped is not None:
            _copy(mapped[: len(data)], data)
            return
        descriptor = self._descriptor(area)
        done = 0
        while done < len(data):
            done += os.pwritev(descriptor, [data[done:]], area.offset + done)
        self._mappings.learn(area, descriptor)

    def _descriptor(self, area: WorkerArea) -> int:
        identity = area.descriptor, area.device, area.inode
        descriptor = self._open.get(identity)
        if descriptor is None:
            path = f"/proc/{self._parent}/fd/{area.descriptor}"
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            status = os.fstat(descriptor)
            if (status.st_dev, status.st_ino) != (area.device, area.inode):
                # The request is over: the parent has closed it, and the number is another file's.
                os.close(descriptor)
                raise OSError("the region is not open any more")
            self._open[identity] = descriptor
        return descriptor


def _copy(target: memoryview, source: memoryview) -> None:
    if len(source) < LONG_COPY:
        target[:] = source
    else:
        np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))


class Inputs:
    """The inputs of a batch, as `executor.Executor.run` takes them.

    Attributes:
        rows: of each entry that can be run.
        frames: of these entries, joined where `joined`.
        joined: one frame an input, of all rows, padded like a batch.
        errors: the answers of the other entries, by their number.
    """

    def __init__(
        self,
        key: KeySpec,
        rows: Sequence[int],
        table: Table,
        frames: Sequence[Any],
        regions: Regions,
        buffers: Buffers,
        padded: Callable[[int], int],
    ) -> None:
        self.errors: dict[int, MultitowerError] = {}
        width = len(key.inputs)
        areas = {(area.entry, area.tensor): area for area in table.inputs}
        rest = iter(frames)
        sources: list[list[Any]] = [
            [areas.get((entry, index)) or next(rest) for index in range(width)] for entry in range(len(rows))
        ]
        plain = key.batched and not key.padded
        self.joined = plain and all(datatype != tensors.BYTES for _, datatype, _ in key.inputs)
        self.frames: list[Any]
        if self.joined:
            widths = [tensors.byte_size(datatype, dims) for _, datatype, dims in key.inputs]
            try:
                self.frames = self._join(widths, rows, sources, regions, buffers, padded)
            except MemoryError as error:
                self.errors = dict.fromkeys(range(len(rows)), _unreadable(error))
                self.frames = [b""] * width
        else:
            self.frames = self._each(sources, regions, buffers)
        self.rows = [count for entry, count in enumerate(rows) if entry not in self.errors]

    def _join(
        self,
        widths: Sequence[int],
        rows: Sequence[int],
        sources: Sequence[Sequence[Any]],
        regions: Regions,
        buffers: Buffers,
        padded: Callable[[int], int],
    ) -> list[Any]:
        size = padded(sum(rows))
        wholes = [buffers.take(size * width) for width in widths]
        start = 0
        for entry, count in enumerate(rows):
            try:
                for whole, width, source in zip(wholes, widths, sources[entry], strict=True):
                    _fill(whole[start * width : (start + count) * width], source, regions)
            except OSError as error:
                self.errors[entry] = _unreadable(error)
                continue  # the next one takes its rows
            start += count
        size = padded(start) if start else 0
        for whole, width in zip(wholes, widths, strict=True):
            for row in range(start, size):
                # Not zeros: a row that the model can compute cannot raise where real ones would not.
                whole[row * width : (row + 1) * width] = whole[(start - 1) * width : start * width]
        return [whole[: size * width] for whole, width in zip(wholes, widths, strict=True)]

    def _each(self, sources: Sequence[Sequence[Any]], regions: Regions, buffers: Buffers) -> list[Any]:
        read: list[Any] = []
        for entry, sources_of_it in enumerate(sources):
            try:
                read.extend([_read(source, regions, buffers) for source in sources_of_it])
            except (OSError, MemoryError) as error:
                self.errors[entry] = _unreadable(error)
        return read


def _fill(buffer: memoryview, source: Any, regions: Regions) -> None:
    if type(source) is WorkerArea:
        regions.read(source, buffer)
    else:
        buffer[:] = source


def _read(source: Any, regions: Regions, buffers: Buffers) -> Any:
    if type(source) is not WorkerArea:
        return source
    buffer = buffers.take(source.size)
    regions.read(source, buffer)
    return buffer


def _unreadable(error: OSError | MemoryError) -> MultitowerError:
    """The answer to a request that has not run; one that makes the client send it again in frames where that helps."""
    if isinstance(error, MemoryError):
        return make(Reason.MODEL_ERROR, "the worker has no memory for the inputs of the batch")
    where = f"inputs.parameters.{wire.SHARED_MEMORY_REGION}"
    message = f"{where}: the worker cannot read this shared memory: {error.strerror or error}"
    return make(Reason.MALFORMED, message, field=where)


class Outputs:
    """Writes outputs where requests want them; headers of equal replies are made once."""

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], tuple[bytes, dict[int, str]]] = {}

    def write(self, answer: list[Any], areas: Mapping[str, WorkerArea], regions: Regions) -> list[Any]:
        """The answer that tells which of its outputs lie in shared memory, without their frames.

        What does not fit, or cannot be written, stays a frame.

        Args:
            answer: a reply's header and its outputs.
            areas: by the outputs' names.
            regions: to write to.
        """
        named = {name: wire.Area(area.region, area.offset, area.size) for name, area in areas.items()}
        identity = answer[0], tuple(named.items())
        made = self._made.get(identity)
        if made is None:
            if len(self._made) >= MAX_HEADERS:
                self._made.clear()
            made = self._made[identity] = _located(answer[0], named)
        header, written = made
        try:
            for index, name in written.items():
                regions.write(areas[name], memoryview(answer[1 + index]).cast("B"))
        except OSError:
            return answer  # the request is over, or no memory is left
        frames = [frame for index, frame in enumerate(answer[1:]) if index not in written]
        return [header, *frames] if written else answer


def _located(header: bytes, areas: Mapping[str, wire.Area]) -> tuple[bytes, dict[int, str]]:
    """A reply's header with the places of those outputs that fit into them, and their numbers and names."""
    reply = json.loads(header)
    written: dict[int, str] = {}
    for index, output in enumerate(reply["outputs"]):
        area = areas.get(output["name"])
        if area is None or output["datatype"] == tensors.BYTES:
            continue
        size = tensors.byte_size(output["datatype"], output["shape"])
        if 0 < size <= area.size:
            output["parameters"] = area._replace(size=size).parameters()
            written[index] = output["name"]
    return wire.dump_json(reply), written
