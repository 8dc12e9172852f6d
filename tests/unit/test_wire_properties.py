"""Whatever arrives over the wire gives a valid result or an error of the protocol."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from multitower import InvalidRequest, ModelError, MultitowerError, Reason, tensors, wire
from multitower.client.codec import Codec, InferRequest, error_of
from multitower.errors import from_wire, make
from multitower.infer_header import parse_infer_header

# Text of JSON may hold half a surrogate pair, which UTF-8 cannot.
TEXT = st.text(st.characters(), max_size=8) | st.sampled_from(["", "\ud800", "\0", "é" * 2000, *tensors.DATATYPES])
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 2**31, 2**62, 2**63 - 1, 2**63, 10**40])
KEYS = st.sampled_from(
    ["model_name", "model_version", "inputs", "outputs", "parameters", "name", "datatype", "shape", "timeout", "data"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | TEXT, inner, max_size=4),
    max_leaves=8,
)
DIMENSIONS = st.integers(0, 4) | st.sampled_from([2**31, 2**32, 2**61, 2**62, 2**63 - 1])
ENTRIES = st.fixed_dictionaries(
    {"name": TEXT, "datatype": st.sampled_from(tensors.DATATYPES), "shape": st.lists(DIMENSIONS, max_size=4)},
    optional={"parameters": VALUES},
)
HEADERS = st.fixed_dictionaries(
    {"model_name": TEXT | VALUES, "inputs": st.lists(ENTRIES | VALUES, max_size=3)},
    optional={"model_version": TEXT | VALUES, "outputs": VALUES, "parameters": VALUES},
)


@st.composite
def damaged(draw: Callable[[Any], Any]) -> bytes:
    """A header that was right once: bytes replaced, cut out or put in."""
    data = bytearray(json.dumps(draw(HEADERS)).encode())
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 5)))
        data[start:end] = draw(st.binary(max_size=5))
    return bytes(data)


def refusal(function: Callable[..., object], *arguments: object) -> InvalidRequest | None:
    """The error of the protocol that it raises; any other exception fails the test."""
    try:
        function(*arguments)
    except InvalidRequest as error:
        return error
    return None


def refused(function: Callable[..., object], *arguments: object) -> bool:
    """It raises an error of the protocol, which can be sent."""
    error = refusal(function, *arguments)
    if error is None:
        return False
    assert json.loads(wire.dump_json(error.to_wire()))["error"]["reason"] == error.reason
    assert len(error.message) < 4096
    return True


@given(damaged() | st.binary(max_size=200))
def test_any_header_is_read_or_refused(data: bytes) -> None:
    if refused(wire.load_header, data):
        assert refused(parse_infer_header, data)
    else:
        wire.load_header(data)
        refused(parse_infer_header, data)


@given(HEADERS)
def test_a_header_that_was_read_is_the_same_when_written(value: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidRequest):
        header = parse_infer_header(json.dumps(value).encode())
        assert all(type(size) is int and size >= 0 for tensor in header.inputs for size in tensor.shape)
        assert all(tensor.datatype in tensors.DATATYPES for tensor in header.inputs)
        again = wire.infer_header(
            header.model_name,
            header.inputs,
            model_version=header.model_version,
            outputs=header.outputs,
            timeout_us=header.timeout_us,
            priority=header.priority,
        )
        assert parse_infer_header(again) == header


@given(st.text(max_size=20) | st.binary(max_size=20).map(lambda data: data.decode("latin-1")))
def test_json_beyond_the_standard_is_refused(text: str) -> None:
    """Where the standard library's reader is laxer than the protocol, the protocol refuses."""
    data = ('{"a":' + text + "}").encode("utf-8", "surrogatepass")
    if refused(wire.load_header, data):
        return
    value = wire.load_header(data)
    assert wire.load_header(wire.dump_json(value)) == value


@given(
    st.sampled_from(tensors.DATATYPES),
    st.lists(DIMENSIONS, max_size=5),
    st.binary(max_size=64),
)
@example("FP32", [2**62, 0], b"")  # no elements, and yet more than numpy can address
def test_any_frame_is_an_array_or_refused(datatype: str, shape: list[int], data: bytes) -> None:
    """With every shape that a header may have."""
    entry = {"name": "x", "datatype": datatype, "shape": shape}
    try:
        header = parse_infer_header(json.dumps({"model_name": "m", "inputs": [entry]}).encode())
    except InvalidRequest:
        return
    (tensor,) = header.inputs
    assert tensors.byte_size(tensor.datatype, tensor.shape) >= 0
    error = refusal(tensors.decode, tensor.datatype, tensor.shape, data)
    if error is not None:
        assert error.reason in (Reason.SIZE_MISMATCH, Reason.SHAPE_INVALID, Reason.DATATYPE_MISMATCH)
        return
    array = tensors.decode(tensor.datatype, tensor.shape, data)
    assert array.shape == tensor.shape
    assert bytes(tensors.encode(array)) == data


@st.composite
def arrays(draw: Callable[[Any], Any]) -> np.ndarray:
    """Arrays of every datatype, in every order of bytes and axes."""
    datatype = draw(st.sampled_from([name for name in tensors.DATATYPES if name != tensors.BF16]))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    count = tensors.element_count(shape)
    if datatype == tensors.BYTES:
        array = np.empty(count, object)
        array[:] = draw(st.lists(st.binary(max_size=6), min_size=count, max_size=count))
        return array.reshape(shape)
    dtype = tensors.dtype_of(datatype)
    data = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    array = np.frombuffer(data, np.uint8) % 2 == 1 if dtype.kind == "b" else np.frombuffer(data, dtype)
    array = array.reshape(shape)
    if draw(st.booleans()):
        array = array.astype(dtype.newbyteorder(">"))
    return array.T if draw(st.booleans()) else array


@given(st.lists(arrays(), min_size=1, max_size=3))
def test_arrays_are_the_same_after_a_request_and_a_reply(sent: Sequence[np.ndarray]) -> None:
    """Through a request's header and frames, and through a reply's."""
    codec = Codec()
    inputs = {f"x{index}": array for index, array in enumerate(sent)}
    encoded = codec.encode(InferRequest("m", inputs), 1.0, copy=True)
    header, frames = encoded.header, encoded.frames
    described = parse_infer_header(header).inputs
    received = [
        tensors.decode(tensor.datatype, tensor.shape, frame) for tensor, frame in zip(described, frames, strict=True)
    ]
    back = codec.decode(wire.reply_header("m", "1", described), frames)
    for array, decoded, returned in zip(sent, received, back.values(), strict=True):
        assert decoded.shape == returned.shape == array.shape
        little = array if array.dtype.kind == "O" else array.astype(array.dtype.newbyteorder("<"))
        assert decoded.tolist() == returned.tolist() == little.tolist() or decoded.tobytes() == little.tobytes()


@given(damaged() | VALUES.map(lambda value: json.dumps(value).encode()), st.lists(st.binary(max_size=16), max_size=3))
def test_any_reply_is_read_or_reported_as_invalid(header: bytes, frames: list[bytes]) -> None:
    """The client's side: a malformed reply must not raise an undocumented exception in an application."""
    try:
        outputs = Codec().decode(header, frames)
    except ModelError as error:
        reason = error.reason
    else:
        assert all(isinstance(array, np.ndarray) for array in outputs.values())
        return
    assert reason == Reason.OUTPUT_INVALID


@given(damaged() | st.dictionaries(st.just("error"), VALUES).map(lambda value: json.dumps(value).encode()))
def test_any_error_reply_becomes_an_error(header: bytes) -> None:
    error = error_of(header)
    assert isinstance(error, MultitowerError)
    assert str(error)
    assert from_wire(error.to_wire()).to_wire() == error.to_wire()


@given(st.sampled_from(Reason), TEXT, st.dictionaries(TEXT, TEXT | st.integers(), max_size=3))
def test_errors_are_the_same_after_the_wire(reason: Reason, message: str, details: dict[str, Any]) -> None:
    error = make(reason, message)
    error.details.update(details)
    received = error_of(wire.dump_json(error.to_wire()))
    assert type(received) is type(error)
    assert (received.code, received.reason, received.message, received.details) == (
        error.code,
        reason,
        message,
        details,
    )
