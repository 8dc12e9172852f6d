"""From what an application passes to the frames of a request, and from the frames of a reply to arrays.

Both clients use it. Headers are cached by what they say, since equal bytes are what the router's own cache lives on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from multitower import tensors, wire
from multitower.errors import MultitowerError, Reason, from_wire, make

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

MAX_CACHED = 1024


class Codec:
    """Writes requests and reads replies. Safe from many threads: its caches only ever gain or lose whole entries."""

    def __init__(self) -> None:
        self._headers: dict[tuple[Any, ...], bytes] = {}
        self._replies: dict[bytes, list[tuple[str, str, list[int]]]] = {}

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
        signature: str = "",
    ) -> tuple[bytes, list[bytes | memoryview]]:
        """The header and the frames of an `MT1:infer` request.

        Args:
            model: its name.
            inputs: array-likes by name.
            outputs: names wanted, or None for all.
            version: the model's version, or "" for the one that is served.
            timeout: seconds.
            priority: 0 or more.
            copy: the frames must stay as they are when the arrays change.
            signature: the model's signature, or "" for the one that it has by default.

        Raises:
            InvalidRequest: `datatype_mismatch` or `shape_invalid`, naming the input that cannot be sent;
                `malformed` for names and a priority that cannot be written.
        """
        frames: list[bytes | memoryview] = []
        described: list[tuple[str, str, tuple[int, ...]]] = []
        for name, value in inputs.items():
            try:
                if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
                    raise make(Reason.DATATYPE_MISMATCH, "the protocol has no masked elements; fill them first")
                array = np.asarray(value)
                if array.dtype.kind in "SU" and not isinstance(value, np.ndarray):
                    # numpy's strings lose the zeros at their ends, and mix numbers in as text.
                    array = np.asarray(value, dtype=object)
                described.append((name, tensors.datatype_of(array), array.shape))
                frame = tensors.encode(array)
            except MultitowerError as error:
                raise make(Reason.DATATYPE_MISMATCH, f"input {name!r}: {error.message}", field=name) from None
            except (TypeError, ValueError) as error:
                # numpy's own words about rows of unequal length and the like.
                raise make(Reason.SHAPE_INVALID, f"input {name!r} is no array: {error}", field=name) from None
            frames.append(bytes(frame) if copy and isinstance(frame, memoryview) else frame)
        if isinstance(outputs, str):
            raise make(Reason.MALFORMED, f"outputs is a list of names, not {outputs!r}", field="outputs")
        wanted = None if outputs is None else tuple(outputs)
        # A whole number of microseconds, and never none: 0 is no time-out the protocol knows. True equals 1 as a key.
        microseconds = max(1, math.ceil(timeout * 1e6))
        key = (model, tuple(described), wanted, version, microseconds, priority, type(priority), signature)
        try:
            header = self._headers.get(key)
            if header is None:
                header = wire.infer_header(
                    model,
                    [wire.Tensor(*tensor) for tensor in described],
                    model_version=version,
                    outputs=wanted,
                    timeout_us=microseconds,
                    priority=priority,
                    signature=signature,
                )
                if len(self._headers) >= MAX_CACHED:
                    self._headers.clear()
                self._headers[key] = header
        except (TypeError, ValueError) as error:
            # Names that are no text, or that UTF-8 cannot hold; a priority of numpy's.
            raise make(Reason.MALFORMED, f"the request cannot be written: {error}", field="header") from None
        return header, frames

    def decode(self, header: bytes, frames: Sequence[Any]) -> dict[str, Array]:
        """The outputs of an `MT1:ok` reply to `MT1:infer`, by name; read-only views of the frames.

        Raises:
            ModelError: `output_invalid`: the reply cannot be read.
        """
        try:
            described = self._replies.get(header)
            if described is None:
                described = [
                    (output["name"], output["datatype"], output["shape"]) for output in read_header(header)["outputs"]
                ]
                if len(self._replies) >= MAX_CACHED:
                    self._replies.clear()
                self._replies[header] = described
            return {
                name: tensors.decode(datatype, shape, frame)
                for (name, datatype, shape), frame in zip(described, frames, strict=True)
            }
        except MultitowerError as error:
            raise make(Reason.OUTPUT_INVALID, f"the daemon's reply cannot be read: {error.message}") from error
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise make(Reason.OUTPUT_INVALID, f"the daemon's reply cannot be read: {error!r}") from error


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
