"""Writes the header and frames of requests, and reads replies into arrays. Both clients use it.

Headers are cached: equal requests get equal bytes, which the router's own cache relies on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from multitower import tensors, wire
from multitower.client.arguments import Names, Version, to_version
from multitower.client.shared_memory import ALIGNMENT, Allocation, Arena
from multitower.client.tracing import TraceHeaders
from multitower.errors import MultitowerError, Reason, from_wire, make
from multitower.infer_header import parse_area
from multitower.trace_context import add_to_header

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

MAX_CACHED = 1024
MAX_CACHED_BYTES = 8 << 20
"""Bounds of each cache; bytes are those of the headers."""

SHARED_BYTES = 64 << 10
"""From this size on a local client sends a tensor in shared memory: measured, see docs/performance.md."""

Frame: TypeAlias = bytes | memoryview


class InferRequest(NamedTuple):
    """What an application asks for; see `Client.infer`.

    Attributes:
        model: the model's name.
        inputs: array-likes by name.
        outputs: names of the outputs wanted; None or none of them for all.
        version: the model's version, as a string or a whole number; "" for the one that is served.
        priority: 0 or more.
        signature: the model's signature; "" for its default one.
        version_label: a label of the version, instead of `version`; or "".
        trace: that the request belongs to; None if that is not sampled.
    """

    model: str
    inputs: Mapping[str, Any]
    outputs: Names | None = None
    version: Version = ""
    priority: int = 0
    signature: str = ""
    version_label: str = ""
    trace: TraceHeaders | None = None


class EncodedRequest:
    """A request as it is sent.

    Attributes:
        header: its header frame.
        frames: its tensors that are not in shared memory, in input order.
        allocation: the area with its other tensors, and for its outputs; None without one.
        has_output_areas: a worker may write outputs to the area.
        without_shared_memory: encodes the same request without shared memory, as header and frames; None where it uses
            none.
        output_key: identifies requests with outputs of the same sizes; None where shared memory cannot be used.
    """

    __slots__ = ("allocation", "frames", "has_output_areas", "header", "output_key", "without_shared_memory")

    def __init__(self, header: bytes, frames: list[Frame], output_key: tuple[Any, ...] | None = None) -> None:
        self.header = header
        self.frames = frames
        self.allocation: Allocation | None = None
        self.has_output_areas = False
        self.without_shared_memory: Callable[[], tuple[bytes, list[Frame]]] | None = None
        self.output_key = output_key

    def add_trace(self, trace: TraceHeaders) -> None:
        """Adds the trace that the request belongs to."""
        self.header = add_to_header(self.header, trace.traceparent, trace.tracestate)
        encode_without = self.without_shared_memory
        if encode_without is not None:

            def without_shared_memory() -> tuple[bytes, list[Frame]]:
                header, frames = encode_without()
                return add_to_header(header, trace.traceparent, trace.tracestate), frames

            self.without_shared_memory = without_shared_memory


class _Output(NamedTuple):
    name: str
    datatype: str
    shape: list[int]
    area: wire.Area | None


_Sizes: TypeAlias = tuple[tuple[str, int], ...]
"""Names and bytes of the outputs that are large enough for shared memory."""


class Codec:
    """Writes requests and reads replies. Safe for use from many threads: its caches gain or lose whole entries only."""

    def __init__(self) -> None:
        self._headers: dict[tuple[Any, ...], bytes] = {}
        self._headers_bytes = 0
        self._replies_bytes = 0
        self._replies: dict[bytes, tuple[list[_Output], _Sizes]] = {}
        self._output_sizes: dict[tuple[Any, ...], _Sizes] = {}

    def encode(
        self, request: InferRequest, timeout: float, *, copy: bool, arena: Arena | None = None
    ) -> EncodedRequest:
        """Encodes an `MT1:infer` request.

        Args:
            request: what is asked for.
            timeout: seconds.
            copy: whether the frames must stay the same when the arrays change.
            arena: shared memory that the daemon can reach, or None.

        Raises:
            InvalidRequest: `datatype_mismatch` or `shape_invalid`, naming the input that cannot be sent;
                `malformed` for inputs without names, and for names and a priority that cannot be written.
        """
        frames: list[Frame] = []
        described: list[tuple[str, str, tuple[int, ...]]] = []
        large: list[tuple[int, Array]] = []
        try:
            items = request.inputs.items()
        except AttributeError:
            kind = type(request.inputs).__name__
            raise make(Reason.MALFORMED, f"inputs are arrays by name, as in {{'x': array}}, not {kind}") from None
        for name, value in items:
            try:
                if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
                    raise make(Reason.DATATYPE_MISMATCH, "the protocol has no masked elements; fill them first")
                array = np.asarray(value)
                if array.dtype.kind in "SU" and not isinstance(value, np.ndarray):
                    # numpy's string types drop zero bytes at the end, and turn numbers among the elements into text.
                    array = np.asarray(value, dtype=object)
                datatype = tensors.datatype_of(array)
                described.append((name, datatype, array.shape))
                if arena is not None and array.nbytes >= SHARED_BYTES and datatype != tensors.BYTES:
                    large.append((len(described) - 1, array))
                    continue
                frame = tensors.encode(array)
            except MultitowerError as error:
                raise make(Reason.DATATYPE_MISMATCH, f"input {name!r}: {error.message}", field=name) from None
            except (TypeError, ValueError) as error:
                message = f"input {name!r} is not an array: {tensors.no_array(error)}"
                raise make(Reason.SHAPE_INVALID, message, field=name) from None
            frames.append(_own(frame) if copy else frame)
        outputs = request.outputs
        if isinstance(outputs, str):
            raise make(Reason.MALFORMED, f"outputs is a list of names, as in [{outputs!r}]", field="outputs")
        # An empty list asks for all outputs, as in the protocol.
        wanted = (tuple(outputs) or None) if outputs is not None else None
        # At least 1: a time-out of 0 is not allowed in the protocol.
        microseconds = max(1, math.ceil(timeout * 1e6))
        output_key = (
            request.model,
            tuple(described),
            wanted,
            request.version if type(request.version) is str else to_version(request.version),
            request.signature,
            request.version_label,
        )
        # With the type of the priority: True equals 1, but is not valid.
        key = (output_key, microseconds, request.priority, type(request.priority))
        if arena is None:
            return EncodedRequest(self._header(key), frames)
        try:
            output_sizes = self._output_sizes.get(output_key, ())
        except TypeError:
            output_sizes = ()  # names that are not text: refused in `_header`
        if large or output_sizes:
            encoded = self._encode_shared(arena, key, large, frames, output_sizes)
            if encoded is not None:
                return encoded
            encoded_arrays = ((index, tensors.encode(array)) for index, array in large)
            frames = _merge(frames, ((index, _own(frame) if copy else frame) for index, frame in encoded_arrays))
        return EncodedRequest(self._header(key), frames, output_key)

    def _encode_shared(
        self,
        arena: Arena,
        key: tuple[Any, ...],
        large: list[tuple[int, Array]],
        frames: list[Frame],
        output_sizes: _Sizes,
    ) -> EncodedRequest | None:
        """Encodes a request with its large tensors in shared memory; None when there is no room.

        Args:
            arena: the client's.
            key: identifies the header.
            large: arrays for shared memory, with their positions among all inputs.
            frames: of the other inputs.
            output_sizes: outputs that need an area.
        """
        # Arrays of `Client.empty` are in shared memory already.
        located = [arena.locate(array) if _is_wire_layout(array) else None for _, array in large]
        sizes = [array.nbytes for (_, array), location in zip(large, located, strict=True) if location is None]
        total = sum(map(_aligned, sizes)) + sum(_aligned(size) for _, size in output_sizes)
        allocation = arena.allocate(total) if total else None
        if total and allocation is None:
            return None
        offset = 0 if allocation is None else allocation.offset
        areas: dict[int, wire.Area] = {}
        shared: list[tuple[int, Array]] = []
        for (index, array), location in zip(large, located, strict=True):
            if location is not None:
                region, array_offset = location
                areas[index] = wire.Area(region.name, array_offset, array.nbytes)
                shared.append((index, array))
                continue
            assert allocation is not None  # `total` includes this array
            view = allocation.region.view(offset, array.shape, array.dtype.newbyteorder("<"))
            np.copyto(view, array)
            areas[index] = wire.Area(allocation.region.name, offset, array.nbytes)
            shared.append((index, view))
            offset += _aligned(array.nbytes)
        output_areas: dict[str, wire.Area] = {}
        for name, size in output_sizes:
            assert allocation is not None  # `total` includes this output
            output_areas[name] = wire.Area(allocation.region.name, offset, size)
            offset += _aligned(size)

        def without_shared_memory() -> tuple[bytes, list[Frame]]:
            all_frames = _merge(frames, ((index, _own(tensors.encode(array))) for index, array in shared))
            return self._header(key), all_frames

        encoded = EncodedRequest(self._header(key, areas, output_areas), frames, key[0])
        encoded.allocation = allocation
        encoded.has_output_areas = bool(output_areas)
        encoded.without_shared_memory = without_shared_memory
        return encoded

    def _header(
        self,
        key: tuple[Any, ...],
        areas: Mapping[int, wire.Area] | None = None,
        output_areas: Mapping[str, wire.Area] | None = None,
    ) -> bytes:
        (model, described, wanted, version, signature, version_label), microseconds, priority, _ = key
        if areas is not None and output_areas is not None:
            key = (*key, tuple(areas.items()), tuple(output_areas.items()))
        try:
            header = self._headers.get(key)
            if header is None:
                areas = areas or {}
                header = wire.infer_header(
                    model,
                    [
                        wire.Tensor(name, datatype, shape, areas.get(index))
                        for index, (name, datatype, shape) in enumerate(described)
                    ],
                    model_version=version,
                    outputs=wanted,
                    timeout_us=microseconds,
                    priority=priority,
                    areas=output_areas,
                    signature=signature,
                    version_label=version_label,
                )
                self._headers_bytes += len(header)
                if len(self._headers) >= MAX_CACHED or self._headers_bytes > MAX_CACHED_BYTES:
                    self._headers.clear()
                    self._headers_bytes = len(header)
                self._headers[key] = header
        except (TypeError, ValueError) as error:
            # Names that are not text, or that UTF-8 cannot express; a priority that is a numpy integer.
            raise make(Reason.MALFORMED, f"the request cannot be written: {error}", field="header") from None
        return header

    def decode(self, header: bytes, frames: Sequence[Any], sent: EncodedRequest | None = None) -> dict[str, Array]:
        """The outputs of an `MT1:ok` reply to `MT1:infer`, by name: read-only views of frames and of shared memory.

        Args:
            header: the reply's header frame.
            frames: its tensor frames.
            sent: the request; None for one without shared memory.

        Raises:
            ModelError: `output_invalid`: the reply cannot be read.
        """
        try:
            described, sizes = self._replies.get(header) or self._read_reply(header)
            if sizes and sent is not None and sent.output_key is not None:
                self._note_output_sizes(sent.output_key, sizes)
            rest = iter(frames)
            outputs = {}
            for name, datatype, shape, area in described:
                if area is None:
                    outputs[name] = tensors.decode(datatype, shape, next(rest))
                else:
                    outputs[name] = _shared_output(datatype, shape, area, None if sent is None else sent.allocation)
            if next(rest, None) is not None:
                raise ValueError("more frames than outputs")
        except MultitowerError as error:
            raise make(Reason.OUTPUT_INVALID, f"the daemon's reply cannot be read: {error.message}") from error
        except (KeyError, TypeError, ValueError, OverflowError, StopIteration) as error:
            raise make(Reason.OUTPUT_INVALID, f"the daemon's reply cannot be read: {error!r}") from error
        else:
            return outputs

    def _note_output_sizes(self, key: tuple[Any, ...], sizes: _Sizes) -> None:
        """The next equal request allocates areas for these outputs."""
        if self._output_sizes.get(key) != sizes:
            if len(self._output_sizes) >= MAX_CACHED:
                self._output_sizes.clear()
            self._output_sizes[key] = sizes

    def _read_reply(self, header: bytes) -> tuple[list[_Output], _Sizes]:
        described = [
            _Output(output["name"], output["datatype"], output["shape"], parse_area(output, f"outputs[{index}]"))
            for index, output in enumerate(read_header(header)["outputs"])
        ]
        sizes = {
            output.name: tensors.byte_size(output.datatype, output.shape)
            for output in described
            if output.datatype != tensors.BYTES
        }
        large = tuple((name, size) for name, size in sizes.items() if size >= SHARED_BYTES)
        self._replies_bytes += len(header)
        if len(self._replies) >= MAX_CACHED or self._replies_bytes > MAX_CACHED_BYTES:
            self._replies.clear()
            self._replies_bytes = len(header)
        self._replies[header] = described, large
        return described, large


def _own(frame: Frame) -> bytes:
    """The frame, copied if it is a view of an array."""
    return frame if isinstance(frame, bytes) else bytes(frame)


def _merge(frames: Iterable[Frame], others: Iterable[tuple[int, Frame]]) -> list[Frame]:
    """`frames` with `others` inserted, each at its index in the result; the indices ascend."""
    rest = iter(frames)
    merged: list[Frame] = []
    for index, frame in others:
        merged.extend(islice(rest, index - len(merged)))
        merged.append(frame)
    merged.extend(rest)
    return merged


def _is_wire_layout(array: Array) -> bool:
    """Whether the array's memory is what the protocol transfers: contiguous, row-major, little-endian."""
    return array.flags.c_contiguous and array.dtype.newbyteorder("<") == array.dtype


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _shared_output(datatype: str, shape: Sequence[int], area: wire.Area, allocation: Allocation | None) -> Array:
    if allocation is None or not allocation.contains(area):
        raise ValueError(f"an output lies at {area}, outside this request's area")
    if area.size != tensors.byte_size(datatype, shape):
        raise ValueError(f"an output of shape {shape} lies at {area}")
    return allocation.array(area.offset, shape, tensors.dtype_of(datatype), writeable=False)


def read_header(header: bytes) -> dict[str, Any]:
    """Reads the header of a reply of any kind.

    Raises:
        ModelError: `output_invalid`: it is not a JSON object.
    """
    try:
        value = json.loads(header)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise make(Reason.OUTPUT_INVALID, "the reply's header is not a JSON object")
    return value


def error_of(header: bytes) -> MultitowerError:
    """The typed error of an `MT1:error` reply."""
    try:
        return from_wire(read_header(header))
    except MultitowerError as error:
        return error
