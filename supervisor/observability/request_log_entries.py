"""The lines of the request log: what is noted of a request in the event loop, and the JSON made of it elsewhere.

Noting copies a bounded part of tensors, and formats nothing.
"""

from __future__ import annotations

import base64
import functools
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from multitower import tensors
from multitower.errors import MultitowerError

from ..scheduling.open_requests import Answer
from ..scheduling.request import Frame, Request
from ..scheduling.shared_memory_areas import OpenArea

MAX_VALUES: Final = 256
"""Values of one tensor that a line has at most, the first ones in row-major order."""

MAX_TENSORS: Final = 32
"""Inputs, and outputs, whose values a line has at most."""

MAX_TEXT_BYTES: Final = 4096
"""Bytes of one BYTES tensor that are noted; elements beyond them are left out."""

ENTRY_BYTES: Final = 600
"""Memory of an entry without its tensors, about."""

_encode_json: Final = json.JSONEncoder(separators=(",", ":")).encode
_NOTED_BYTES: Final = max(MAX_TEXT_BYTES, MAX_VALUES * max(tensors.ITEM_SIZE.values()))


@dataclass(frozen=True, slots=True)
class Noted:
    """The beginning of a tensor.

    Attributes:
        name: of the input or output.
        datatype: its datatype.
        shape: its shape.
        data: its first bytes; None where they are not there.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    data: bytes | None


@dataclass(slots=True)  # making a frozen one takes three times as long
class Entry:
    """What a line says about a request.

    Attributes:
        date: when it was answered, in seconds since 1970.
        id: the request's id.
        fields: the rest of the line but its tensors.
        inputs: its inputs, where they are logged.
        answer: the header of its reply and the beginnings of its outputs, where they are logged.
        header: of a request that was refused before its header was read; b"" otherwise.
    """

    date: float
    id: bytes
    fields: Mapping[str, Any]
    inputs: Sequence[Noted] = ()
    answer: Sequence[bytes] = ()
    header: bytes = b""

    @property
    def size(self) -> int:
        """Bytes that it holds in memory, about."""
        size = ENTRY_BYTES + len(self.header)
        for each in self.inputs:
            size += len(each.data or b"")
        for frame in self.answer:
            size += len(frame)
        return size


def note_inputs(request: Request, described: Sequence[tuple[str, str, Sequence[int]]]) -> tuple[Noted, ...]:
    """Copies the beginnings of a request's inputs.

    Args:
        request: which has just been accepted.
        described: name, datatype and shape of each input.
    """
    pairs = zip(described[:MAX_TENSORS], request.frames, strict=False)
    return tuple(Noted(name, datatype, shape, _beginning(frame)) for (name, datatype, shape), frame in pairs)


def note_answer(answer: Answer) -> tuple[bytes, ...]:
    """Copies the header of a reply and the beginnings of its outputs; nothing of an error."""
    if isinstance(answer, MultitowerError):
        return ()
    return (
        bytes(memoryview(_bytes_of(answer[0]))),
        *(_beginning(frame) or b"" for frame in answer[1 : 1 + MAX_TENSORS]),
    )


def _bytes_of(frame: Frame) -> Any:
    assert type(frame) is not OpenArea  # a header comes in a frame
    return frame


def _beginning(frame: Frame) -> bytes | None:
    """The first bytes of a tensor, copied; None if its shared memory cannot be read."""
    if type(frame) is OpenArea:
        try:
            return frame[:_NOTED_BYTES].read()
        except OSError:
            return None
    return bytes(memoryview(frame)[:_NOTED_BYTES])


def describe_request(request: Request, answer: Answer, now: float) -> dict[str, Any]:
    """The fields of a request that has been answered.

    Args:
        request: the request; its `runs` have the batches that it was in.
        answer: its answer.
        now: when the answer was sent, in monotonic seconds.
    """
    runs = request.runs
    waited_until, compute_ns, batch_rows = now, 0, 0
    for run in runs:
        waited_until = min(waited_until, run.started)
        compute_ns += run.compute_ns
        batch_rows = max(batch_rows, run.rows)
    fields: dict[str, Any] = {
        "model": request.plan.model,
        "version": request.version or request.plan.key.version or None,
        "outcome": str(answer.reason) if isinstance(answer, MultitowerError) else "ok",
        "queue_ms": _milliseconds(waited_until - request.received),
        "compute_ms": _milliseconds(compute_ns / 1e9) if runs else None,
        "total_ms": _milliseconds(now - request.received),
        "rows": request.rows,
        "batch_rows": batch_rows if runs else None,
        "slot": runs[-1].slot if runs else None,
        "device": runs[-1].device if runs else None,
    }
    if len(runs) > 1:
        fields["batches"] = len(runs)
    trace = request.plan.trace
    if trace is not None:
        fields["trace_id"] = f"{trace.trace_id:032x}"
    return fields


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3) if seconds > 0 else 0.0


def format_entry(entry: Entry) -> bytes:
    """The line of an entry: one JSON object in ASCII, and the end of the line."""
    second, milliseconds = divmod(int(entry.date * 1000), 1000)
    line: dict[str, Any] = {
        "time": f"{_date(second)}.{milliseconds:03d}Z",
        "id": entry.id.decode("utf-8", "backslashreplace"),
    }
    if entry.header:
        line |= _named_in(entry.header)
    line |= entry.fields
    if entry.inputs:
        line["inputs"] = [_format_tensor(each) for each in entry.inputs]
    if entry.answer:
        line["outputs"] = [_format_tensor(each) for each in _outputs(entry.answer)]
    return _encode_json(line).encode() + b"\n"


@functools.lru_cache(maxsize=1)
def _date(second: int) -> str:
    """Date and time in UTC. Neighbouring lines mostly are of the same second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _named_in(header: bytes) -> dict[str, Any]:
    """The model and the version named in a header; the header may be malformed."""
    try:
        value = json.loads(header)
    except (ValueError, RecursionError):
        return {"model": None, "version": None}
    named = value if isinstance(value, dict) else {}
    return {
        key: named[name][:128] if isinstance(named.get(name), str) else None
        for key, name in (("model", "model_name"), ("version", "model_version"))
    }


def _outputs(answer: Sequence[bytes]) -> list[Noted]:
    """The outputs of a reply; those in shared memory have no frame."""
    frames = iter(answer[1:])
    return [
        Noted(
            output["name"],
            output["datatype"],
            output["shape"],
            None if "parameters" in output else next(frames, None),
        )
        for output in json.loads(answer[0])["outputs"][:MAX_TENSORS]
    ]


def _format_tensor(noted: Noted) -> dict[str, Any]:
    count = tensors.element_count(noted.shape)
    formatted: dict[str, Any] = {"name": noted.name, "datatype": noted.datatype, "shape": list(noted.shape)}
    if noted.data is None:
        return formatted
    if noted.datatype == tensors.BYTES:
        values: list[Any] = [_text(element) for element in _elements(noted.data, min(count, MAX_VALUES))]
    else:
        values = _numbers(noted.datatype, noted.data, min(count, MAX_VALUES))
    formatted["data"] = values
    if len(values) < count:
        formatted["truncated"] = True
    return formatted


def _numbers(datatype: str, data: bytes, count: int) -> list[Any]:
    size = tensors.ITEM_SIZE[datatype]
    count = min(count, len(data) // size)
    array = tensors.decode(datatype, (count,), data[: count * size])
    if datatype == tensors.BF16:
        array = array.astype("float32")
    return [_json_number(value) for value in array.tolist()]


def _json_number(value: Any) -> Any:
    """A number as JSON has it: text for NaN and infinities, and both parts of a complex number."""
    if isinstance(value, complex):
        return [_json_number(value.real), _json_number(value.imag)]
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _elements(data: bytes, count: int) -> list[bytes]:
    """The first elements of a BYTES tensor of which only the beginning may be there."""
    elements: list[bytes] = []
    position = 0
    while len(elements) < count and position + 4 <= len(data):
        end = position + 4 + int.from_bytes(data[position : position + 4], "little")
        if end > len(data):
            break
        elements.append(data[position + 4 : end])
        position = end
    return elements


def _text(element: bytes) -> Any:
    """Text if it is UTF-8, otherwise an object with base64, as in TensorFlow Serving's REST interface."""
    try:
        return element.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(element).decode()}
