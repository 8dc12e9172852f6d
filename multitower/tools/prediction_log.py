"""Recorded requests as `PredictionLog` messages of TensorFlow Serving, of which a warm-up file consists.

The messages are defined in the package tensorflow-serving-api. The few fields below are encoded here
(https://protobuf.dev/programming-guides/encoding), so that neither that package nor TensorFlow is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from multitower import tensors, wire
from multitower.errors import Reason, make

WARMUP_FILE: Final = "tf_serving_warmup_requests"
"""The name of the file, in the folder `assets.extra` of a SavedModel."""

_DATATYPES: Final = {
    "FP32": 1,
    "FP64": 2,
    "INT32": 3,
    "UINT8": 4,
    "INT16": 5,
    "INT8": 6,
    tensors.BYTES: 7,
    "COMPLEX64": 8,
    "INT64": 9,
    "BOOL": 10,
    tensors.BF16: 14,
    "UINT16": 17,
    "COMPLEX128": 18,
    "FP16": 19,
    "UINT32": 22,
    "UINT64": 23,
}
"""TensorFlow's numbers of the datatypes (`DataType` in tensorflow/core/framework/types.proto)."""

# Field numbers. Of PredictionLog, PredictLog, PredictRequest, ModelSpec, an entry of the map of inputs, TensorProto,
# TensorShapeProto and its Dim.
_PREDICT_LOG: Final = 6
_REQUEST: Final = 1
_MODEL_SPEC, _INPUTS, _OUTPUT_FILTER = 1, 2, 3
_MODEL_NAME, _SIGNATURE_NAME = 1, 3
_KEY, _VALUE = 1, 2
_DTYPE, _SHAPE, _CONTENT, _STRING_VALUES = 1, 2, 4, 8
_DIM: Final = 2
_DIM_SIZE: Final = 1


class Input(NamedTuple):
    """One input of a recorded request: its name, datatype and shape, and the bytes of its frame."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


class RecordedRequest(NamedTuple):
    """A request that a model has answered.

    Attributes:
        signature: the signature that it named; "" for the default one.
        outputs: the outputs that it asked for; empty for all.
        inputs: its inputs.
    """

    signature: str
    outputs: tuple[str, ...]
    inputs: tuple[Input, ...]


def read_recorded(frames: Sequence[Any]) -> list[RecordedRequest]:
    """Reads the frames of a reply to `MT1:record`: for each request its description as JSON, then its inputs.

    Raises:
        MultitowerError: the reply is malformed.
    """
    try:
        return list(_iterate_recorded(frames))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise make(Reason.OUTPUT_INVALID, f"the recorded requests cannot be read: {error!r}") from error


def _iterate_recorded(frames: Sequence[Any]) -> Iterator[RecordedRequest]:
    left = iter(frames)
    for frame in left:
        description = wire.load_header(bytes(frame))
        inputs = tuple(
            Input(each["name"], each["datatype"], tuple(each["shape"]), next(left)) for each in description["inputs"]
        )
        yield RecordedRequest(description["signature_name"], tuple(description["outputs"] or ()), inputs)


def encode_prediction_log(model: str, request: RecordedRequest) -> bytes:
    """The message of a request.

    Args:
        model: the name of its model.
        request: the request.

    Raises:
        InvalidRequest: `size_mismatch`: a BYTES input does not have as many elements as its shape.
    """
    model_spec = _text(_MODEL_NAME, model)
    if request.signature:
        model_spec += _text(_SIGNATURE_NAME, request.signature)
    parts = [_field(_MODEL_SPEC, model_spec)]
    for each in request.inputs:
        entry = _text(_KEY, each.name) + _field(_VALUE, encode_tensor(each.datatype, each.shape, each.data))
        parts.append(_field(_INPUTS, entry))
    parts += [_text(_OUTPUT_FILTER, name) for name in request.outputs]
    return _field(_PREDICT_LOG, _field(_REQUEST, b"".join(parts)))


def encode_tensor(datatype: str, shape: Sequence[int], data: bytes | memoryview) -> bytes:
    """The `TensorProto` of a frame.

    Args:
        datatype: the tensor's.
        shape: the tensor's.
        data: the frame.

    Raises:
        InvalidRequest: `size_mismatch`: a frame of BYTES does not have as many elements as the shape.
    """
    dims = b"".join(_field(_DIM, _number(_DIM_SIZE, size) if size else b"") for size in shape)
    parts = [_number(_DTYPE, _DATATYPES[datatype]), _field(_SHAPE, dims)]
    if datatype == tensors.BYTES:
        elements = tensors.split_bytes(data, tensors.element_count(shape))
        parts += [_field(_STRING_VALUES, element) for element in elements]
    elif len(data):
        # TensorFlow's own bytes are those of a frame: little-endian and row-major.
        parts.append(_field(_CONTENT, data))
    return b"".join(parts)


def _text(number: int, value: str) -> bytes:
    return _field(number, value.encode())


def _field(number: int, value: bytes | memoryview) -> bytes:
    """A field of bytes, text or a message."""
    return b"".join((_varint(number << 3 | 2), _varint(len(value)), value))


def _number(number: int, value: int) -> bytes:
    """A field of a number of 0 or more."""
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
