"""TensorFlow Serving's `tf_serving_warmup_requests`: a TFRecord file of `PredictionLog` messages.

The messages are defined in the package tensorflow-serving-api. Only the few fields below are needed, so they are
decoded here (https://protobuf.dev/programming-guides/encoding), and the tensors by TensorFlow.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf
from google.protobuf.message import DecodeError

from ..formats.model import Arrays
from ..model_errors import LoadError
from ..records import log_event

MAX_RECORDS = 1000
"""TensorFlow Serving's limit."""

# Field numbers. Of PredictionLog: classify_log, regress_log, predict_log; each has its request at 1.
_CLASSIFY, _REGRESS, _PREDICT = 2, 3, 6
# Of a request: model_spec at 1; inputs (a map of TensorProto), or input, at 2. Of ModelSpec: signature_name at 3.
_MODEL_SPEC, _INPUTS, _SIGNATURE_NAME = 1, 2, 3

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


_TensorProto = type(tf.make_tensor_proto(0))  # the class has no public name


class Request(NamedTuple):
    """A recorded request.

    Attributes:
        signature: the signature that it names; "" for the default one.
        inputs: the inputs of a Predict request.
        examples: the serialised examples of a Classify or Regress request; None otherwise.
    """

    signature: str
    inputs: Arrays
    examples: list[bytes] | None = None


def read_requests(file: Path) -> list[Request]:
    """Reads the Predict, Classify and Regress requests of a file. Others are skipped, and the log says so.

    Raises:
        LoadError: the file is damaged; the message names the file and the record.
    """
    records = tf.data.TFRecordDataset(os.fsencode(file)).as_numpy_iterator()
    requests: list[Request] = []
    skipped = 0
    for number in itertools.count(1):
        try:
            record = next(records, None)
            if record is None:
                break
            if number > MAX_RECORDS:
                log_event(logging.WARNING, f"{file}: only its first {MAX_RECORDS} records are run")
                break
            request = _decode_record(record)
        except (tf.errors.OpError, DecodeError, MemoryError, TypeError, ValueError) as error:
            raise LoadError(
                f"{file}, record {number}: it cannot be read: {' '.join(str(error).split())[:300]}"
            ) from error
        if request is None:
            skipped += 1
        else:
            requests.append(request)
    if skipped:
        message = f"{file}: {skipped} records are of other kinds than Predict, Classify and Regress: not run"
        log_event(logging.WARNING, message)
    return requests


def _decode_record(record: bytes) -> Request | None:
    for kind, message in _fields(record):
        if kind in (_CLASSIFY, _REGRESS, _PREDICT) and isinstance(message, bytes):
            fields = _fields(_submessage(message, 1))
            return _decode_predict(fields) if kind == _PREDICT else _decode_classify(fields)
    return None


def _decode_predict(fields: list[tuple[int, bytes | int]]) -> Request:
    signature, inputs = "", {}
    for number, value in fields:
        if number == _MODEL_SPEC:
            signature = _signature_of(value)
        elif number == _INPUTS:
            name = _submessage(value, 1).decode()
            inputs[name] = tf.make_ndarray(_TensorProto.FromString(_submessage(value, 2)))
    return Request(signature, inputs)


def _decode_classify(fields: list[tuple[int, bytes | int]]) -> Request:
    signature, examples = "", []
    for number, value in fields:
        if number == _MODEL_SPEC:
            signature = _signature_of(value)
        elif number == _INPUTS:
            # Of Input: example_list at 1, example_list_with_context at 2; both have their examples at 1.
            for kind, listed in _fields(value):
                context = _submessage(listed, 2) if kind == 2 else b""
                # Concatenated messages are merged.
                examples += [context + _as_bytes(example) for position, example in _fields(listed) if position == 1]
    return Request(signature, {}, examples)


def _signature_of(model_spec: bytes | int) -> str:
    return _submessage(model_spec, _SIGNATURE_NAME).decode()


def _submessage(message: bytes | int, wanted: int) -> bytes:
    """The last field with a number; empty where there is none."""
    found = [value for number, value in _fields(message) if number == wanted]
    return _as_bytes(found[-1]) if found else b""


def _as_bytes(value: bytes | int) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a field holds a number where a message is due")
    return value


def _fields(message: bytes | int) -> list[tuple[int, bytes | int]]:
    """The number and the value of each field, in order.

    Raises:
        ValueError: it is no message.
    """
    return list(_iterate_fields(_as_bytes(message)))


def _iterate_fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, position = _read_varint(data, position)
            yield number, value
            continue
        if kind == _BYTES:
            size, position = _read_varint(data, position)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field has the unknown wire type {kind}")
        if position + size > len(data):
            raise ValueError("a field is longer than its message")
        yield number, data[position : position + size]
        position += size


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("a number is cut off")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number has more than 64 bits")
