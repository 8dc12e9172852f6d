"""From what an application passes to the frames of a request, and from the frames of a reply to arrays.

Both clients use it. Headers are cached by what they say, since equal bytes are what the router's own cache lives on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from multitower import tensors, wire
from multitower.client.shared_memory import ALIGNMENT, Arena, Lease
from multitower.errors import MultitowerError, Reason, from_wire, make
from multitower.infer_header import parse_area

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

MAX_CACHED = 1024


SHARED_BYTES = 64 << 10
"""From this size on a tensor of a local client travels in shared memory: measured, see docs/performance.md."""


class Encoded:
    """A request as it is sent.

    Attributes:
        header: its header.
        frames: its tensors that are not in shared memory.
        lease: the area that its other tensors lie in, and where its outputs may be written; None without one.
        writes: outputs may be written there.
        again: makes header and frames of the same request without shared memory; None where it uses none.
        asked: what outputs are known by, or None where shared memory cannot be used.
    """

    __slots__ = ("again", "asked", "frames", "header", "lease", "writes")

    def __init__(self, header: bytes, frames: list[bytes | memoryview], asked: tuple[Any, ...] | None = None) -> None:
        self.header = header
        self.frames = frames
        self.lease: Lease | None = None
        self.writes = False
        self.again: Callable[[], tuple[bytes, list[bytes | memoryview]]] | None = None
        self.asked = asked


class _Output(NamedTuple):
    name: str
    datatype: str
    shape: list[int]
    area: wire.Area | None


class Codec:
    """Writes requests and reads replies. Safe from many threads: its caches only ever gain or lose whole entries."""

    def __init__(self) -> None:
        self._headers: dict[tuple[Any, ...], bytes] = {}
        self._replies: dict[bytes, tuple[list[_Output], tuple[tuple[str, int], ...]]] = {}
        self._outputs: dict[tuple[Any, ...], tuple[tuple[str, int], ...]] = {}

    def encode(
        self,
        model: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str] | None,
        version: str,
        timeout: float,
        priority: int,
        *,
        copy: bool,
        arena: Arena | None = None,
        signature: str = "",
        version_label: str = "",
    ) -> Encoded:
        """An `MT1:infer` request.

        Args:
            model: its name.
            inputs: array-likes by name.
            outputs: names wanted; None or none of them for all.
            version: the model's version, or "" for the one that is served.
            timeout: seconds.
            priority: 0 or more.
            copy: the frames must stay as they are when the arrays change.
            arena: shared memory that the daemon takes, or None.
            signature: the model's signature, or "" for the one that it has by default.
            version_label: the label of the version, in place of `version`, or "".

        Raises:
            InvalidRequest: `datatype_mismatch` or `shape_invalid`, naming the input that cannot be sent;
                `malformed` for inputs without names, and for names and a priority that cannot be written.
        """
        frames: list[bytes | memoryview] = []
        described: list[tuple[str, str, tuple[int, ...]]] = []
        large: list[tuple[int, Array]] = []
        try:
            items = inputs.items()
        except AttributeError:
            kind = type(inputs).__name__
            raise make(Reason.MALFORMED, f"inputs are arrays by name, as in {{'x': array}}, not {kind}") from None
        for name, value in items:
            try:
                if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
                    raise make(Reason.DATATYPE_MISMATCH, "the protocol has no masked elements; fill them first")
                array = np.asarray(value)
                if array.dtype.kind in "SU" and not isinstance(value, np.ndarray):
                    # numpy's strings lose the zeros at their ends, and mix numbers in as text.
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
                # numpy's own words about rows of unequal length and the like.
                raise make(Reason.SHAPE_INVALID, f"input {name!r} is no array: {error}", field=name) from None
            frames.append(_kept(frame) if copy else frame)
        if isinstance(outputs, str):
            raise make(Reason.MALFORMED, f"outputs is a list of names, not {outputs!r}", field="outputs")
        # An empty list asks for all outputs, as in the protocol; they then have their places in shared memory too.
        wanted = (tuple(outputs) or None) if outputs is not None else None
        # A whole number of microseconds, and never none: 0 is no time-out the protocol knows. True equals 1 as a key.
        microseconds = max(1, math.ceil(timeout * 1e6))
        key = (
            model,
            tuple(described),
            wanted,
            version,
            signature,
            version_label,
            microseconds,
            priority,
            type(priority),
        )
        if arena is None:
            return Encoded(self._header(key), frames)
        asked = key[:6]
        try:
            known_outputs = self._outputs.get(asked, ())
        except TypeError:
            known_outputs = ()  # names that are no text: refused below
        if large or known_outputs:
            encoded = self._share(arena, key, large, frames, known_outputs)
            if encoded is not None:
                return encoded
            for index, array in large:
                frame = tensors.encode(array)
                frames.insert(index, _kept(frame) if copy else frame)
        return Encoded(self._header(key), frames, asked)

    def _share(
        self,
        arena: Arena,
        key: tuple[Any, ...],
        large: list[tuple[int, Array]],
        frames: list[bytes | memoryview],
        outputs: tuple[tuple[str, int], ...],
    ) -> Encoded | None:
        """The request with its large tensors in shared memory; None when there is no room."""
        located = [arena.locate(array) if _as_sent(array) else None for _, array in large]
        sizes = [array.nbytes for (_, array), location in zip(large, located, strict=True) if location is None]
        total = sum(map(_aligned, sizes)) + sum(_aligned(size) for _, size in outputs)
        lease = arena.lease(total) if total else None
        if total and lease is None:
            return None
        offset = 0 if lease is None else lease.offset
        areas: dict[int, wire.Area] = {}
        sent: list[tuple[int, Array]] = []
        for (index, array), location in zip(large, located, strict=True):
            if location is not None:
                region, where = location
                areas[index] = wire.Area(region.name, where, array.nbytes)
                sent.append((index, array))
                continue
            assert lease is not None  # it was counted
            view = lease.region.view(offset, array.shape, array.dtype.newbyteorder("<"))
            np.copyto(view, array)
            areas[index] = wire.Area(lease.region.name, offset, array.nbytes)
            sent.append((index, view))
            offset += _aligned(array.nbytes)
        output_areas: dict[str, wire.Area] = {}
        for name, size in outputs:
            assert lease is not None  # it was counted
            output_areas[name] = wire.Area(lease.region.name, offset, size)
            offset += _aligned(size)

        def again() -> tuple[bytes, list[bytes | memoryview]]:
            plain = list(frames)
            for index, array in sent:
                plain.insert(index, _kept(tensors.encode(array)))
            return self._header(key), plain

        encoded = Encoded(self._header(key, areas, output_areas), frames, key[:6])
        encoded.lease, encoded.writes, encoded.again = lease, bool(output_areas), again
        return encoded

    def _header(
        self,
        key: tuple[Any, ...],
        areas: Mapping[int, wire.Area] | None = None,
        output_areas: Mapping[str, wire.Area] | None = None,
    ) -> bytes:
        model, described, wanted, version, signature, version_label, microseconds, priority, _ = key
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
                if len(self._headers) >= MAX_CACHED:
                    self._headers.clear()
                self._headers[key] = header
        except (TypeError, ValueError) as error:
            # Names that are no text, or that UTF-8 cannot hold; a priority of numpy's.
            raise make(Reason.MALFORMED, f"the request cannot be written: {error}", field="header") from None
        return header

    def decode(self, header: bytes, frames: Sequence[Any], sent: Encoded | None = None) -> dict[str, Array]:
        """The outputs of an `MT1:ok` reply to `MT1:infer`, by name; read-only views of frames and of shared memory.

        Raises:
            ModelError: `output_invalid`: the reply cannot be read.
        """
        try:
            described, large = self._replies.get(header) or self._read(header)
            if large and sent is not None and sent.asked is not None and self._outputs.get(sent.asked) != large:
                if len(self._outputs) >= MAX_CACHED:
                    self._outputs.clear()
                self._outputs[sent.asked] = large
            rest = iter(frames)
            outputs = {}
            for name, datatype, shape, area in described:
                if area is None:
                    outputs[name] = tensors.decode(datatype, shape, next(rest))
                else:
                    outputs[name] = _shared(datatype, shape, area, None if sent is None else sent.lease)
            if next(rest, None) is not None:
                raise ValueError("more frames than outputs")
        except MultitowerError as error:
            raise make(Reason.OUTPUT_INVALID, f"the daemon's reply cannot be read: {error.message}") from error
        except (KeyError, TypeError, ValueError, OverflowError, StopIteration) as error:
            raise make(Reason.OUTPUT_INVALID, f"the daemon's reply cannot be read: {error!r}") from error
        else:
            return outputs

    def _read(self, header: bytes) -> tuple[list[_Output], tuple[tuple[str, int], ...]]:
        """The outputs of a reply, and the names and sizes of those that shared memory is for."""
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
        if len(self._replies) >= MAX_CACHED:
            self._replies.clear()
        self._replies[header] = described, large
        return described, large


def _kept(frame: bytes | memoryview) -> bytes:
    return frame if isinstance(frame, bytes) else bytes(frame)


def _as_sent(array: Array) -> bool:
    """Its bytes are those that the protocol wants, in their order."""
    return array.flags.c_contiguous and array.dtype.newbyteorder("<") == array.dtype


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _shared(datatype: str, shape: Sequence[int], area: wire.Area, lease: Lease | None) -> Array:
    if lease is None or not lease.holds(area):
        raise ValueError(f"an output lies at {area}, which is not this request's")
    if area.size != tensors.byte_size(datatype, shape):
        raise ValueError(f"an output of shape {shape} lies at {area}")
    return lease.array(area.offset, shape, tensors.dtype_of(datatype), writeable=False)


def read_header(header: bytes) -> dict[str, Any]:
    """The header of a reply, whatever it is: a JSON object.

    Raises:
        ModelError: `output_invalid`: it is none.
    """
    try:
        value = json.loads(header)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise make(Reason.OUTPUT_INVALID, "the reply's header is no JSON object")
    return value


def error_of(header: bytes) -> MultitowerError:
    """The typed error of an `MT1:error` reply."""
    try:
        return from_wire(read_header(header))
    except MultitowerError as error:
        return error
