from __future__ import annotations

import json
import struct
import sys
from typing import Any

import numpy as np
import pytest

from multitower.errors import InvalidRequest, ModelError, MultitowerError
from multitower.spec import TensorReport
from multitower.worker import batch
from multitower.worker_wire import KeySpec

X = ("x", "FP32", (2,))


def key(*inputs: tuple[str, str, tuple[int, ...]], batched: bool = True) -> KeySpec:
    return KeySpec("m", inputs, None, batched)


def floats(rows: int, first: float = 0) -> np.ndarray:
    return np.arange(first, first + rows * 2, dtype=np.float32).reshape(rows, 2)


def test_numbers_are_views_of_their_frame() -> None:
    frame = bytearray(floats(3).tobytes())
    array = batch.decode(key(X), 3, [frame])["x"]
    assert array.tolist() == floats(3).tolist()
    frame[:4] = struct.pack("<f", 9.0)
    assert array[0, 0] == 9.0


def test_the_shape_of_an_unbatched_key_is_whole() -> None:
    assert batch.decode(key(("x", "INT8", (2, 3)), batched=False), 1, [bytes(6)])["x"].shape == (2, 3)
    assert batch.decode(key(("x", "INT8", ()), batched=False), 1, [b"\7"])["x"].item() == 7


def test_a_frame_that_lies_askew_in_memory_is_copied_to_where_it_may_be_read_fast() -> None:
    askew = memoryview(bytes(1) + floats(1).tobytes())[1:]
    array = batch.decode(key(X), 1, [askew])["x"]
    assert array.flags.aligned
    assert array.tolist() == floats(1).tolist()


@pytest.mark.parametrize("entries", [1, 2])
@pytest.mark.parametrize("size", [4, 5])
def test_inputs_are_read_only_whatever_else_is_in_the_batch(entries: int, size: int) -> None:
    decoded = [batch.decode(key(X), 4 // entries, [bytearray(floats(4 // entries).tobytes())]) for _ in range(entries)]
    assert not batch.join(decoded, size)["x"].flags.writeable


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
def test_elements_that_do_not_fill_a_frame_are_refused(frame: bytes, rows: int) -> None:
    with pytest.raises(InvalidRequest, match="'words'") as raised:
        batch.decode(key(("words", "BYTES", ())), rows, [frame])
    assert raised.value.reason == "size_mismatch"
    assert raised.value.details == {"field": "words"}


def test_bf16_without_its_package_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(InvalidRequest, match=r"'h': .*pip install ml_dtypes") as raised:
        batch.decode(key(("h", "BF16", ())), 1, [bytes(2)])
    assert raised.value.reason == "datatype_mismatch"


def test_joined_entries_stand_in_order_and_the_last_row_is_repeated() -> None:
    words = np.empty(1, object)
    words[0] = b"w"
    entries = [{"x": floats(1), "w": words}, {"x": floats(2, 10), "w": np.array([b"", b"\0"], object)}]
    joined = batch.join(entries, 5)
    assert joined["x"].tolist() == [[0, 1], [10, 11], [12, 13], [12, 13], [12, 13]]
    assert joined["w"].tolist() == [b"w", b"", b"\0", b"\0", b"\0"]
    assert joined["x"].flags.c_contiguous


def test_a_single_entry_is_not_copied() -> None:
    array = floats(3)
    assert batch.join([{"x": array}], 3)["x"] is array


@pytest.mark.parametrize(
    ("rows", "allowed", "size"),
    [(1, (), 1), (7, (), 7), (1, (1, 4, 8), 1), (2, (1, 4, 8), 4), (4, (1, 4, 8), 4), (5, (1, 4, 8), 8), (9, (8,), 9)],
)
def test_padded(rows: int, allowed: tuple[int, ...], size: int) -> None:
    assert batch.padded(rows, allowed) == size


def tensor(name: str, datatype: str = "FP32") -> TensorReport:
    return TensorReport(name=name, datatype=datatype, shape=(-1, 2))


OUTPUTS = {"a": floats(1), "b": np.zeros((1, 2), np.int64), "odd": np.zeros(1, "M8[s]")}


@pytest.mark.parametrize(
    ("wanted", "declared", "names"),
    [
        (None, [tensor("b", "INT64"), tensor("a")], ["b", "a"]),
        (["a"], [tensor("b", "INT64"), tensor("a")], ["a"]),
        (["b", "a"], None, ["b", "a"]),
    ],
)
def test_outputs_come_as_asked_for(wanted: Any, declared: Any, names: list[str]) -> None:
    assert [name for name, _, _ in batch.check(OUTPUTS, wanted, declared)] == names


@pytest.mark.parametrize(
    ("wanted", "declared", "reason", "message"),
    [
        (None, [tensor("c")], "output_invalid", "no output 'c', only 'a', 'b', 'odd'"),
        (["c"], None, "output_unknown", "no output 'c'"),
        (None, [tensor("a", "FP64")], "output_invalid", "'a' as FP32, but declares FP64"),
        (None, None, "output_invalid", "'odd': .*datetime64"),
    ],
)
def test_outputs_that_are_wrong_are_named(wanted: Any, declared: Any, reason: str, message: str) -> None:
    with pytest.raises(MultitowerError, match=message) as raised:
        batch.check(OUTPUTS, wanted, declared)
    assert raised.value.reason == reason


def test_an_answer_is_a_header_and_these_rows() -> None:
    answers = batch.Answers("m", "3")
    checked = [("y", floats(4), "FP32"), ("w", np.array([b"a", b"bc", b"", b"d"], object), "BYTES")]
    header, y, w = answers.make(checked, slice(1, 3))
    assert json.loads(header) == {
        "model_name": "m",
        "model_version": "3",
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [2, 2]},
            {"name": "w", "datatype": "BYTES", "shape": [2]},
        ],
    }
    assert bytes(y) == floats(4)[1:3].tobytes()
    assert w == b"\2\0\0\0bc\0\0\0\0"
    assert answers.make(checked, slice(0, 2))[0] is header, "equal shapes share one header"
    assert json.loads(answers.make(checked, None)[0])["outputs"][0]["shape"] == [4, 2]


@pytest.mark.parametrize("element", [3, None, "\ud800"])
def test_elements_that_cannot_be_sent_are_the_models_error(element: object) -> None:
    with pytest.raises(ModelError, match="'w'") as raised:
        batch.Answers("m", "1").make([("w", np.array([element], object), "BYTES")], None)
    assert raised.value.reason == "output_invalid"
