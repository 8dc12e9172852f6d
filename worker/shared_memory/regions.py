"""The tensors of a batch in shared memory: inputs are read into the batch's arrays, outputs are written back.

The worker accesses a client's memory through the descriptor that the supervisor holds: missing memory makes a read
fail, and never causes a signal. A descriptor is open for one batch only, which costs 5 us. Areas that are used again
are copied from and to a mapping (`mappings.py`), which costs a third.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from multitower import tensors, wire
from multitower.buffers import Buffers
from multitower.errors import MultitowerError, Reason, make
from multitower.worker_wire import KeySpec, Table, WorkerArea

from .mappings import Mappings

MAX_HEADERS = 1024

LONG_COPY = 1 << 20
"""Bytes from which on a copy lets other threads run. Waiting to go on afterwards may cost more than a shorter copy."""


class Regions:
    """The regions of one batch; a context manager that closes the descriptors it has opened.

    Args:
        supervisor: the supervisor's pid.
        mappings: of regions that were used before.
    """

    def __init__(self, supervisor: int, mappings: Mappings) -> None:
        self._supervisor = supervisor
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
        """Reads an area into a buffer of its size.

        Raises:
            OSError: the region is gone, or ends before the area does.
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
        self._mappings.record_use(area, descriptor)

    def write(self, area: WorkerArea, data: memoryview) -> None:
        """Writes data to the beginning of an area, which must be large enough.

        Raises:
            OSError: the region is gone, or there is no memory for it.
        """
        mapped = self._mappings.find(area)
        if mapped is not None:
            _copy(mapped[: len(data)], data)
            return
        descriptor = self._descriptor(area)
        done = 0
        while done < len(data):
            done += os.pwritev(descriptor, [data[done:]], area.offset + done)
        self._mappings.record_use(area, descriptor)

    def _descriptor(self, area: WorkerArea) -> int:
        identity = area.descriptor, area.device, area.inode
        descriptor = self._open.get(identity)
        if descriptor is None:
            path = f"/proc/{self._supervisor}/fd/{area.descriptor}"
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            status = os.fstat(descriptor)
            if (status.st_dev, status.st_ino) != (area.device, area.inode):
                # The request is over: the supervisor has closed the region, and the descriptor is another file's.
                os.close(descriptor)
                raise OSError("the region is not open any more")
            self._open[identity] = descriptor
        return descriptor


def _copy(target: memoryview, source: memoryview) -> None:
    if len(source) < LONG_COPY:
        target[:] = source
    else:
        np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))


class SharedInputs:
    """Reads the inputs of a batch, as `Executor.prepare` takes them.

    Args:
        key: of the batch.
        rows: the number of rows of each entry.
        table: the inputs that lie in shared memory.
        frames: the other inputs, entry by entry.
        regions: to read from.
        buffers: memory to read into.
        padded_size: the number of rows to pad joined inputs to, given the number of rows of the batch.

    Attributes:
        rows: the number of rows of each entry that can be run.
        frames: the inputs of these entries.
        joined: whether `frames` are joined: one an input, with all rows, and padded.
        errors: the answers of the other entries, by their index.
    """

    def __init__(
        self,
        key: KeySpec,
        rows: Sequence[int],
        table: Table,
        frames: Sequence[Any],
        regions: Regions,
        buffers: Buffers,
        padded_size: Callable[[int], int],
    ) -> None:
        self.errors: dict[int, MultitowerError] = {}
        width = len(key.inputs)
        areas = {(area.entry, area.tensor): area for area in table.inputs}
        rest = iter(frames)
        sources: list[list[Any]] = [
            [areas.get((entry, index)) or next(rest) for index in range(width)] for entry in range(len(rows))
        ]
        same_size = key.batched and not key.padded
        self.joined = same_size and all(datatype != tensors.BYTES for _, datatype, _ in key.inputs)
        self.frames: list[Any]
        if self.joined:
            widths = [tensors.byte_size(datatype, dims) for _, datatype, dims in key.inputs]
            try:
                self.frames = self._read_joined(widths, rows, sources, regions, buffers, padded_size)
            except MemoryError as error:
                self.errors = dict.fromkeys(range(len(rows)), _read_error(error))
                self.frames = [b""] * width
        else:
            self.frames = self._read_entries(sources, regions, buffers)
        self.rows = [count for entry, count in enumerate(rows) if entry not in self.errors]

    def _read_joined(
        self,
        widths: Sequence[int],
        rows: Sequence[int],
        sources: Sequence[Sequence[Any]],
        regions: Regions,
        buffers: Buffers,
        padded_size: Callable[[int], int],
    ) -> list[Any]:
        """Reads all entries into one buffer an input, and repeats the last row up to the padded size.

        Args:
            widths: bytes of a row of each input.
            rows: the number of rows of each entry.
            sources: for each entry the area or the frame of each input.
            regions: to read from.
            buffers: memory to read into.
            padded_size: as above.
        """
        size = padded_size(sum(rows))
        wholes = [buffers.allocate(size * width) for width in widths]
        start = 0
        for entry, count in enumerate(rows):
            try:
                for whole, width, source in zip(wholes, widths, sources[entry], strict=True):
                    _fill(whole[start * width : (start + count) * width], source, regions)
            except OSError as error:
                self.errors[entry] = _read_error(error)
                continue  # the next entry takes its rows
            start += count
        size = padded_size(start) if start else 0
        for whole, width in zip(wholes, widths, strict=True):
            for row in range(start, size):
                # Not zeros: a row that the model can compute cannot raise where real ones would not.
                whole[row * width : (row + 1) * width] = whole[(start - 1) * width : start * width]
        return [whole[: size * width] for whole, width in zip(wholes, widths, strict=True)]

    def _read_entries(self, sources: Sequence[Sequence[Any]], regions: Regions, buffers: Buffers) -> list[Any]:
        """Reads each entry into buffers of its own."""
        read: list[Any] = []
        for entry, sources_of_entry in enumerate(sources):
            try:
                read.extend([_read(source, regions, buffers) for source in sources_of_entry])
            except (OSError, MemoryError) as error:
                self.errors[entry] = _read_error(error)
        return read


def _fill(buffer: memoryview, source: Any, regions: Regions) -> None:
    if type(source) is WorkerArea:
        regions.read(source, buffer)
    else:
        buffer[:] = source


def _read(source: Any, regions: Regions, buffers: Buffers) -> Any:
    if type(source) is not WorkerArea:
        return source
    buffer = buffers.allocate(source.size)
    regions.read(source, buffer)
    return buffer


def _read_error(error: OSError | MemoryError) -> MultitowerError:
    """The answer to a request whose inputs cannot be read. Where frames would help, the client sends it again so."""
    if isinstance(error, MemoryError):
        return make(Reason.MODEL_ERROR, "the worker has no memory for the inputs of the batch")
    where = f"inputs.parameters.{wire.SHARED_MEMORY_REGION}"
    message = f"{where}: the worker cannot read this shared memory: {error.strerror or error}"
    return make(Reason.MALFORMED, message, field=where)


class OutputWriter:
    """Writes outputs to shared memory. Headers of equal replies are made once."""

    def __init__(self) -> None:
        self._headers: dict[tuple[Any, ...], tuple[bytes, dict[int, str]]] = {}

    def write(self, answer: list[Any], areas: Mapping[str, WorkerArea], regions: Regions) -> list[Any]:
        """Writes outputs to the areas that the request has for them; returns the answer without their frames.

        Outputs that do not fit, or cannot be written, stay frames.

        Args:
            answer: the header of a reply, and its outputs.
            areas: by the outputs' names.
            regions: to write to.
        """
        identity = answer[0], *[(name, area.region, area.offset, area.size) for name, area in areas.items()]
        made = self._headers.get(identity)
        if made is None:
            if len(self._headers) >= MAX_HEADERS:
                self._headers.clear()
            made = self._headers[identity] = _add_areas(answer[0], areas)
        header, written = made
        try:
            for index, name in written.items():
                regions.write(areas[name], memoryview(answer[1 + index]).cast("B"))
        except OSError:
            return answer  # the request is over, or there is no memory left
        if not written:
            return answer
        if len(written) == len(answer) - 1:
            return [header]
        return [header, *[frame for index, frame in enumerate(answer[1:]) if index not in written]]


def _add_areas(header: bytes, areas: Mapping[str, WorkerArea]) -> tuple[bytes, dict[int, str]]:
    """Adds areas to a reply's header, for the outputs that fit into theirs; also returns these by index and name."""
    reply = json.loads(header)
    written: dict[int, str] = {}
    for index, output in enumerate(reply["outputs"]):
        area = areas.get(output["name"])
        if area is None or output["datatype"] == tensors.BYTES:
            continue
        size = tensors.byte_size(output["datatype"], output["shape"])
        if 0 < size <= area.size:
            output["parameters"] = wire.Area(area.region, area.offset, size).parameters()
            written[index] = output["name"]
    return wire.dump_json(reply), written
