"""Arrays to frames and back, for each datatype, byte by byte."""

from __future__ import annotations

import contextlib
import struct
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multitower import InvalidRequest, tensors

LAYOUT: dict[str, tuple[Any, bytes]] = {
    # values, bytes
    "BOOL": ([True, False], b"\1\0"),
    "UINT8": ([1, 255], b"\x01\xff"),
    "UINT16": ([1, 65535], b"\x01\0\xff\xff"),
    "UINT32": ([1, 2**32 - 1], b"\x01\0\0\0\xff\xff\xff\xff"),
    "UINT64": ([1, 2**64 - 1], b"\x01" + b"\0" * 7 + b"\xff" * 8),
    "INT8": ([1, -2], b"\x01\xfe"),
    "INT16": ([1, -2], b"\x01\0\xfe\xff"),
    "INT32": ([1, -2], b"\x01\0\0\0\xfe\xff\xff\xff"),
    "INT64": ([1, -2], b"\x01" + b"\0" * 7 + b"\xfe" + b"\xff" * 7),
    "FP16": ([1.0, -2.0], b"\0\x3c\0\xc0"),
    "FP32": ([1.0, -2.0], b"\0\0\x80\x3f\0\0\0\xc0"),
    "FP64": ([1.0, -2.0], b"\0\0\0\0\0\0\xf0\x3f\0\0\0\0\0\0\0\xc0"),
    "COMPLEX64": ([1 - 2j], b"\0\0\x80\x3f\0\0\0\xc0"),
    "COMPLEX128": ([1 - 2j], b"\0\0\0\0\0\0\xf0\x3f\0\0\0\0\0\0\0\xc0"),
    "BYTES": ([b"ab", b""], b"\x02\0\0\0ab\0\0\0\0"),
}
NUMBERS = [datatype for datatype in LAYOUT if datatype != "BYTES"]


def test_the_table_of_this_test_has_every_datatype() -> None:
    assert {*LAYOUT, "BF16"} == set(tensors.DATATYPES)


@pytest.mark.parametrize("datatype", LAYOUT)
def test_each_datatype_has_its_layout(datatype: str) -> None:
    values, layout = LAYOUT[datatype]
    array = np.array(values, tensors.dtype_of(datatype))
    assert tensors.datatype_of(array) == datatype
    assert bytes(tensors.encode(array)) == layout
    decoded = tensors.decode(datatype, [len(values)], layout)
    assert decoded.dtype == array.dtype
    assert decoded.tolist() == values
    assert tensors.byte_size(datatype, [len(values)]) <= len(layout)
    if datatype != "BYTES":
        assert tensors.byte_size(datatype, [len(values)]) == len(layout)


def test_bf16_has_its_layout() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.array([1.0, -2.0], ml_dtypes.bfloat16)
    assert tensors.datatype_of(array) == "BF16"
    assert bytes(tensors.encode(array)) == b"\x80\x3f\0\xc0"
    assert tensors.decode("BF16", [2], b"\x80\x3f\0\xc0").tolist() == [1.0, -2.0]


def test_bf16_without_ml_dtypes_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(InvalidRequest, match="pip install ml_dtypes") as error:
        tensors.dtype_of("BF16")
    assert error.value.reason == "datatype_mismatch"


@pytest.mark.parametrize("datatype", NUMBERS)
@pytest.mark.parametrize("order", ["big-endian", "every second", "transposed", "read-only"])
def test_frames_are_little_endian_and_row_major_whatever_the_array(datatype: str, order: str) -> None:
    plain = np.arange(12).reshape(3, 4).astype(tensors.dtype_of(datatype))
    if order == "big-endian":
        array = plain.astype(plain.dtype.newbyteorder(">"))
    elif order == "every second":
        plain = np.ascontiguousarray(plain[:, ::2])
        array = np.repeat(plain, 2, axis=1)[:, ::2]
    elif order == "transposed":
        array = np.ascontiguousarray(plain.T).T
    else:
        array = plain.copy()
        array.flags.writeable = False
    assert tensors.datatype_of(array) == datatype
    assert bytes(tensors.encode(array)) == plain.tobytes()


def test_contiguous_numbers_are_not_copied() -> None:
    array = np.zeros((2, 3), np.float32)
    frame = tensors.encode(array)
    array[0, 0] = 1.0
    assert bytes(frame) == array.tobytes()


def test_decoded_numbers_are_views_as_writable_as_the_frame() -> None:
    frame = bytearray(8)
    array = tensors.decode("FP32", [2], memoryview(frame))
    frame[3] = 0x40
    assert array[0] == 2.0
    assert array.flags.writeable
    assert not tensors.decode("FP32", [2], bytes(8)).flags.writeable


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0, 2), (1, 1, 1)])
@pytest.mark.parametrize("datatype", LAYOUT)
def test_scalars_and_empty_tensors_are_encoded_and_decoded(datatype: str, shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, tensors.dtype_of(datatype))
    if datatype == "BYTES":
        array.fill(b"a")
    decoded = tensors.decode(datatype, shape, tensors.encode(array))
    assert (decoded.dtype, decoded.shape) == (array.dtype, shape)
    assert decoded.tolist() == array.tolist()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(1, "datetime64[s]"),
        np.zeros(1, "timedelta64[s]"),
        np.zeros(1, [("a", "i4"), ("b", "f4")]),
        np.zeros(1, "V3"),
        np.zeros(1, np.longdouble),
        np.zeros(1, np.clongdouble),
    ],
    ids=lambda array: str(array.dtype),
)
def test_other_dtypes_are_refused(array: np.ndarray) -> None:
    for refuse in (tensors.datatype_of, tensors.encode):
        with pytest.raises(InvalidRequest) as error:
            refuse(array)
        assert error.value.reason == "datatype_mismatch"


@pytest.mark.parametrize("datatype", ["FP13", "", "fp32", "STRING"])
def test_other_datatypes_are_refused(datatype: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        tensors.dtype_of(datatype)
    assert error.value.reason == "datatype_mismatch"


# BYTES.


@pytest.mark.parametrize(
    "array",
    [np.array(["ä", "b"]), np.array(["ä".encode(), b"b"]), np.array(["ä", b"b"], object)],
    ids=["U", "S", "O"],
)
def test_text_is_sent_as_utf_8(array: np.ndarray) -> None:
    assert tensors.datatype_of(array) == "BYTES"
    assert tensors.encode(array) == b"\x02\0\0\0\xc3\xa4\x01\0\0\0b"


def test_bytes_like_elements_are_sent_as_bytes() -> None:
    array = np.empty(3, object)
    array[:] = [bytearray(b"a"), memoryview(b"b"), np.bytes_(b"c")]
    assert tensors.split_bytes(bytes(tensors.encode(array)), 3) == [b"a", b"b", b"c"]


@pytest.mark.parametrize("element", [1, None, 1.5, ["a"], "\ud800"], ids=repr)
def test_other_elements_are_refused(element: object) -> None:
    array = np.empty(1, object)
    array[0] = element
    with pytest.raises(InvalidRequest) as error:
        tensors.encode(array)
    assert error.value.reason == "datatype_mismatch"


BAD_FRAMES: dict[str, tuple[str, list[int], bytes]] = {
    "too few bytes": ("FP32", [2], bytes(7)),
    "too many bytes": ("FP32", [2], bytes(9)),
    "bytes for nothing": ("FP32", [0], bytes(1)),
    "none for a scalar": ("FP32", [], b""),
    "an element missing": ("BYTES", [2], b"\1\0\0\0a"),
    "an element too many": ("BYTES", [1], b"\1\0\0\0a\0\0\0\0"),
    "an element cut short": ("BYTES", [1], b"\5\0\0\0a"),
    "a length cut short": ("BYTES", [2], b"\1\0\0\0a\1\0"),
    "a length beyond all bounds": ("BYTES", [1], b"\xff\xff\xff\xff"),
    "more elements than there is memory for": ("BYTES", [10**9, 10**9], b"\1\0\0\0a"),
    "elements of nothing": ("BYTES", [0], b"\0\0\0\0"),
}


@pytest.mark.parametrize("case", BAD_FRAMES)
def test_frames_that_do_not_match_their_shape_are_refused(case: str) -> None:
    datatype, shape, frame = BAD_FRAMES[case]
    with pytest.raises(InvalidRequest) as error:
        tensors.decode(datatype, shape, frame)
    assert error.value.reason == "size_mismatch"


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_bytes_elements_are_the_same_after_decoding(elements: list[bytes]) -> None:
    frame = tensors.encode_bytes(elements)
    assert frame == b"".join(struct.pack("<I", len(element)) + element for element in elements)
    assert tensors.split_bytes(frame, len(elements)) == elements
    assert tensors.skip_bytes(frame, 0, len(elements)) == len(frame)
    for count in range(len(elements)):
        assert tensors.skip_bytes(frame, 0, count) == len(tensors.encode_bytes(elements[:count]))


@given(st.binary(max_size=40), st.integers(0, 6))
def test_any_frame_is_split_or_refused(frame: bytes, count: int) -> None:
    with contextlib.suppress(InvalidRequest):
        assert tensors.encode_bytes(tensors.split_bytes(frame, count)) == frame
    with contextlib.suppress(InvalidRequest):
        assert tensors.skip_bytes(frame, 0, count) <= len(frame)


@pytest.mark.skipif(np.__version__ < "2", reason="they came with numpy 2")
def test_strings_of_numpy_are_sent_as_bytes() -> None:
    array = np.array(["ä", "b"], np.dtypes.StringDType())
    assert tensors.datatype_of(array) == "BYTES"
    assert tensors.encode(array) == b"\x02\0\0\0\xc3\xa4\x01\0\0\0b"


@pytest.mark.parametrize("datatype", ["BYTES", "FP32"])
def test_an_empty_shape_beyond_numpy_is_refused(datatype: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        tensors.decode(datatype, (0, 1 << 31, 1 << 31), b"")
    assert raised.value.reason == "shape_invalid"


def test_each_datatype_has_a_name_for_programs_with_numpy() -> None:
    for datatype in set(tensors.DATATYPES) - {"BYTES", "BF16"}:
        named = getattr(np, tensors.numpy_name(datatype).removeprefix("np."))
        assert np.dtype(named) == tensors.dtype_of(datatype)
    assert tensors.numpy_name("BF16") == "ml_dtypes.bfloat16"
    assert tensors.numpy_name("BYTES") == "bytes or str"
