"""The inputs of a batch: frames decoded, joined and padded."""

from __future__ import annotations

import struct
import sys

import numpy as np
import pytest

from multitower.errors import InvalidRequest
from multitower.worker import batch_inputs
from multitower.worker_wire import KeySpec

X = ("x", "FP32", (2,))


def key(*inputs: tuple[str, str, tuple[int, ...]], batched: bool = True) -> KeySpec:
    return KeySpec("m", inputs, None, batched)


def floats(rows: int, first: float = 0) -> np.ndarray:
    return np.arange(first, first + rows * 2, dtype=np.float32).reshape(rows, 2)


def test_numbers_are_views_of_their_frame() -> None:
    frame = bytearray(floats(3).tobytes())
    array = batch_inputs.decode_inputs(key(X), 3, [frame])["x"]
    assert array.tolist() == floats(3).tolist()
    frame[:4] = struct.pack("<f", 9.0)
    assert array[0, 0] == 9.0


def test_an_unbatched_key_has_the_whole_shape() -> None:
    assert batch_inputs.decode_inputs(key(("x", "INT8", (2, 3)), batched=False), 1, [bytes(6)])["x"].shape == (2, 3)
    assert batch_inputs.decode_inputs(key(("x", "INT8", ()), batched=False), 1, [b"\7"])["x"].item() == 7


def test_an_unaligned_frame_is_copied() -> None:
    askew = memoryview(bytes(1) + floats(1).tobytes())[1:]
    array = batch_inputs.decode_inputs(key(X), 1, [askew])["x"]
    assert array.flags.aligned
    assert array.tolist() == floats(1).tolist()


@pytest.mark.parametrize("entries", [1, 2])
@pytest.mark.parametrize("size", [4, 5])
def test_inputs_are_read_only_in_every_batch(entries: int, size: int) -> None:
    decoded = [
        batch_inputs.decode_inputs(key(X), 4 // entries, [bytearray(floats(4 // entries).tobytes())])
        for _ in range(entries)
    ]
    assert not batch_inputs.join_inputs(decoded, size)["x"].flags.writeable


@pytest.mark.parametrize(
    ("frame", "rows"),
    [
        pytest.param(b"\x01\0\0\0a", 2, id="an element is missing"),
        pytest.param(b"\x01\0\0\0a" * 3, 2, id="one too many"),
        pytest.param(b"\x09\0\0\0a\0\0\0\0", 2, id="a length beyond the end"),
        pytest.param(b"\xff\xff\xff\xff" * 2, 2, id="the largest length"),
        pytest.param(b"\0\0\0\0\0\0\0", 2, id="half a length"),
    ],
)
def test_a_frame_with_missing_or_extra_elements_is_refused(frame: bytes, rows: int) -> None:
    with pytest.raises(InvalidRequest, match="'words'") as raised:
        batch_inputs.decode_inputs(key(("words", "BYTES", ())), rows, [frame])
    assert raised.value.reason == "size_mismatch"
    assert raised.value.details == {"field": "words"}


def test_bf16_without_ml_dtypes_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(InvalidRequest, match=r"'h': .*pip install ml_dtypes") as raised:
        batch_inputs.decode_inputs(key(("h", "BF16", ())), 1, [bytes(2)])
    assert raised.value.reason == "datatype_mismatch"


def test_entries_are_joined_in_order_and_the_last_row_is_repeated() -> None:
    words = np.empty(1, object)
    words[0] = b"w"
    entries = [{"x": floats(1), "w": words}, {"x": floats(2, 10), "w": np.array([b"", b"\0"], object)}]
    joined = batch_inputs.join_inputs(entries, 5)
    assert joined["x"].tolist() == [[0, 1], [10, 11], [12, 13], [12, 13], [12, 13]]
    assert joined["w"].tolist() == [b"w", b"", b"\0", b"\0", b"\0"]
    assert joined["x"].flags.c_contiguous


def test_a_single_entry_is_not_copied() -> None:
    array = floats(3)
    assert batch_inputs.join_inputs([{"x": array}], 3)["x"] is array


@pytest.mark.parametrize(
    ("rows", "allowed", "size"),
    [(1, (), 1), (7, (), 7), (1, (1, 4, 8), 1), (2, (1, 4, 8), 4), (4, (1, 4, 8), 4), (5, (1, 4, 8), 8), (9, (8,), 9)],
)
def test_the_padded_size_is_the_smallest_allowed_one(rows: int, allowed: tuple[int, ...], size: int) -> None:
    assert batch_inputs.padded_size(rows, allowed) == size
