"""Signatures of SavedModels as the file defines them, for clients of TensorFlow Serving."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from multitower.spec import TensorReport

from ..records import log_event
from .signature_defaults import argument_names

MAX_BYTES: Final = 1 << 20
"""The largest serialized SignatureDefMap that a worker reports. A usual one has less than 10 KiB."""

# Tags of protobuf's wire format: fields 1 and 2 of the wire type LEN.
_FIRST_FIELD: Final = b"\x0a"
_SECOND_FIELD: Final = b"\x12"


def serialize_definitions(meta_graph: Any) -> bytes:
    """Returns the signatures of a MetaGraphDef as a serialized `tensorflow.serving.SignatureDefMap`.

    TensorFlow does not contain this message. Its only field is `map<string, SignatureDef> signature_def = 1`.
    If the message has more than `MAX_BYTES`, the defaults of inputs are left out. If it still has more, nothing is
    returned. Both are logged.

    Args:
        meta_graph: the MetaGraph that is served, with all of its signatures.
    """
    definitions = b"".join(_entries(meta_graph))
    if len(definitions) <= MAX_BYTES:
        return definitions
    fields = {"bytes": len(definitions), "limit_bytes": MAX_BYTES}
    definitions = b"".join(_entries(meta_graph, defaults=False))
    if len(definitions) <= MAX_BYTES:
        log_event(
            logging.WARNING, "SignatureDefs reported without the defaults of inputs, which are too large", **fields
        )
        return definitions
    log_event(logging.WARNING, "SignatureDefs not reported, since they are too large", **fields)
    return b""


def _entries(meta_graph: Any, *, defaults: bool = True) -> Iterator[bytes]:
    """Yields each entry of the map, in wire format."""
    for name, definition in sorted(meta_graph.signature_def.items()):
        if not defaults:
            copied = type(definition)()
            copied.CopyFrom(definition)
            copied.ClearField("defaults")
            definition = copied
        value = definition.SerializeToString(deterministic=True)
        yield _field(_FIRST_FIELD, _field(_FIRST_FIELD, name.encode()) + _field(_SECOND_FIELD, value))


def _field(tag: bytes, value: bytes) -> bytes:
    """A field of the wire type LEN: its tag, the number of bytes as a varint, and the bytes."""
    length, size = bytearray(), len(value)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return tag + bytes(length) + value


def read_keys(meta_graph: Any) -> dict[str, dict[str, str]]:
    """The inputs whose name for clients is not their key in the signature, as in `my_input` for `my-input`.

    Returns:
        For each signature that has such inputs, their keys by name.
    """
    renamed = argument_names(meta_graph)
    keys = {
        signature: {renamed(key): key for key in definition.inputs if renamed(key) != key}
        for signature, definition in meta_graph.signature_def.items()
    }
    return {signature: of_signature for signature, of_signature in keys.items() if of_signature}


def mark_keys(inputs: tuple[TensorReport, ...], keys: Mapping[str, str]) -> tuple[TensorReport, ...]:
    """The declared inputs, with their keys in the signature where these differ from their names.

    Args:
        inputs: the inputs.
        keys: as `read_keys` returns them for a signature.
    """
    return tuple(
        replace(tensor, signature_key=keys[tensor.name]) if tensor.name in keys else tensor for tensor in inputs
    )
