"""Datatypes of the protocol, and the conversion of arrays to frames and back.

The names are those of the Open Inference Protocol, with COMPLEX64 and COMPLEX128 added. A frame holds one tensor:
little-endian, row-major, unpadded. An element of BYTES is a 4-byte little-endian length, followed by that many bytes.
The clients, the router and the workers use it. It needs numpy only, and ml_dtypes for BF16 arrays.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from multitower.errors import Reason, make

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

BYTES: Final = "BYTES"
BF16: Final = "BF16"

# Bytes per element; 0 where it varies.
ITEM_SIZE: Final[dict[str, int]] = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
    "COMPLEX64": 8,
    "COMPLEX128": 16,
    "BYTES": 0,
}
DATATYPES: Final = tuple(ITEM_SIZE)

BULKY_BYTES: Final = 64 << 10
"""From this size on a frame is not copied; below it, a copy takes less time than sharing the memory with libzmq."""

_DTYPE: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "COMPLEX64": np.dtype("<c8"),
    "COMPLEX128": np.dtype("<c16"),
}
_NAME: Final = {dtype: name for name, dtype in _DTYPE.items()}
_LENGTH: Final = struct.Struct("<I")


def _bf16() -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ImportError:
        raise make(
            Reason.DATATYPE_MISMATCH,
            "a BF16 tensor needs the package ml_dtypes: pip install ml_dtypes",
        ) from None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def dtype_of(datatype: str) -> np.dtype[Any]:
    """The numpy dtype of a datatype; object for BYTES, whose elements are `bytes`.

    Raises:
        InvalidRequest: `datatype_mismatch` for an unknown name, and for BF16 without ml_dtypes.
    """
    if datatype == BYTES:
        return np.dtype(object)
    if datatype == BF16:
        return _bf16()
    try:
        return _DTYPE[datatype]
    except KeyError:
        raise make(Reason.DATATYPE_MISMATCH, f"unknown datatype {datatype!r}") from None


def datatype_of(array: Array) -> str:
    """The datatype of an array; BYTES for object, str and bytes arrays.

    Raises:
        InvalidRequest: `datatype_mismatch` for a dtype that the protocol does not support.
    """
    dtype = array.dtype
    name = _NAME.get(dtype)
    if name is not None:
        return name
    if dtype.kind in "OSUT":
        return BYTES
    name = _NAME.get(dtype.newbyteorder("<"))
    if name is not None:
        return name
    if dtype.name == "bfloat16":
        return BF16
    raise make(Reason.DATATYPE_MISMATCH, f"arrays of dtype {dtype} cannot be sent")


def numpy_name(datatype: str) -> str:
    """How programs with numpy write the dtype of a datatype of the protocol, for messages."""
    if datatype == BYTES:
        return "bytes or str"
    return "ml_dtypes.bfloat16" if datatype == BF16 else f"np.{_DTYPE[datatype].type.__name__}"


def no_array(error: Exception) -> str:
    """Why numpy made no array of lists.

    Args:
        error: what numpy raised.

    Returns:
        Plain words for the most frequent cause; otherwise numpy's own.
    """
    if "inhomogeneous" in str(error):
        return "its lists have different lengths; all rows of an array have the same shape"
    return str(error)


def element_count(shape: Sequence[int]) -> int:
    """The number of elements of a shape; 1 for a scalar."""
    return math.prod(shape)


def byte_size(datatype: str, shape: Sequence[int]) -> int:
    """The bytes of a tensor; for BYTES the minimum: one length per element."""
    return element_count(shape) * (ITEM_SIZE[datatype] or _LENGTH.size)


def encode(array: Array) -> bytes | memoryview:
    """The frame of an array.

    Numbers that are little-endian and row-major are not copied: the result is a view of `array`, which must not change
    before the frame is sent. Elements of BYTES may be `bytes` or `str` (sent as UTF-8).

    Raises:
        InvalidRequest: `datatype_mismatch` for a dtype or an element that the protocol does not support.
    """
    datatype = datatype_of(array)
    if datatype == BYTES:
        return encode_bytes(array.ravel().tolist())
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
        array = array.astype(array.dtype.newbyteorder("<"))
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    if not array.size:
        return b""
    # As unsigned bytes: memoryview does not support bfloat16, and zmq needs a format of single bytes.
    return array.reshape(-1).view(np.uint8).data


def encode_bytes(elements: Sequence[Any]) -> bytes:
    """The frame of a BYTES tensor from its elements in row-major order.

    Raises:
        InvalidRequest: `datatype_mismatch` for an element that is neither `bytes` nor `str`.
    """
    parts: list[bytes] = []
    for element in elements:
        try:
            data = element.encode() if isinstance(element, str) else element
        except UnicodeEncodeError as error:
            raise make(Reason.DATATYPE_MISMATCH, f"an element of a BYTES tensor is not valid text: {error}") from None
        if not isinstance(data, bytes | bytearray | memoryview | np.bytes_):
            raise make(
                Reason.DATATYPE_MISMATCH,
                f"an element of a BYTES tensor is {type(element).__name__}, not bytes or str",
            )
        parts.append(_LENGTH.pack(len(data)))
        parts.append(bytes(data))
    return b"".join(parts)


def split_bytes(data: bytes | memoryview, count: int) -> list[bytes]:
    """The `count` elements of a BYTES frame.

    Raises:
        InvalidRequest: `size_mismatch` when the frame does not hold exactly `count` elements.
    """
    elements: list[bytes] = []
    position, end = 0, len(data)
    for _ in range(count):
        start = position + _LENGTH.size
        if start > end:
            break
        position = start + _LENGTH.unpack_from(data, position)[0]
        if position > end:
            break
        elements.append(bytes(data[start:position]))
    if len(elements) != count or position != end:
        raise make(Reason.SIZE_MISMATCH, f"the BYTES frame of {end} bytes does not hold exactly {count} elements")
    return elements


def skip_bytes(data: bytes | memoryview, position: int, count: int) -> int:
    """The offset after the `count` elements of a BYTES frame that begin at offset `position`.

    Raises:
        InvalidRequest: `size_mismatch` when the frame ends earlier.
    """
    end = len(data)
    for _ in range(count):
        if position + _LENGTH.size > end:
            position = end + 1
            break
        position += _LENGTH.size + _LENGTH.unpack_from(data, position)[0]
    if position > end:
        raise make(Reason.SIZE_MISMATCH, f"a BYTES frame of {end} bytes ends inside an element")
    return position


def decode(datatype: str, shape: Sequence[int], data: bytes | memoryview) -> Array:
    """The array of a frame.

    Args:
        datatype: the tensor's.
        shape: the tensor's.
        data: the frame.

    Returns:
        Numbers as a view of `data`, read-only if `data` is; BYTES as an object array of `bytes`.

    Raises:
        InvalidRequest: `size_mismatch` when the bytes do not match the shape; `shape_invalid` when numpy has no empty
            array of that shape; `datatype_mismatch` for BF16 without ml_dtypes.
    """
    count = element_count(shape)
    if datatype == BYTES:
        elements = split_bytes(data, count)  # before the allocation: refuses a count that the frame cannot hold
        if not count:
            return _empty(shape, np.dtype(object))
        array = np.empty(count, dtype=object)
        array[:] = elements
        return array.reshape(shape)
    dtype = dtype_of(datatype)
    if len(data) != count * dtype.itemsize:
        raise make(
            Reason.SIZE_MISMATCH,
            f"{len(data)} bytes, but {datatype} of shape {list(shape)} takes {count * dtype.itemsize}",
        )
    if not count:
        return _empty(shape, dtype)
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _empty(shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    try:
        return np.empty(shape, dtype)
    except ValueError:
        # An array without elements may have a dimension that numpy cannot represent.
        raise make(Reason.SHAPE_INVALID, f"the shape {list(shape)} is larger than any array") from None
