"""From the outputs of a model to one reply an entry."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from multitower.errors import ModelError, MultitowerError
from multitower.spec import TensorReport
from multitower.worker.replies import (
    JoinedReplies,
    ReplyBuilder,
    concatenate_outputs,
    declared_datatypes,
    select_outputs,
)


def floats(rows: int, first: float = 0) -> np.ndarray:
    return np.arange(first, first + rows * 2, dtype=np.float32).reshape(rows, 2)


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
def test_outputs_are_selected_in_the_order_asked_for(wanted: Any, declared: Any, names: list[str]) -> None:
    assert [name for name, _, _ in select_outputs(OUTPUTS, wanted, declared_datatypes(declared))] == names


@pytest.mark.parametrize(
    ("wanted", "declared", "reason", "message"),
    [
        (None, [tensor("c")], "output_invalid", "no output 'c', only 'a', 'b', 'odd'"),
        (["c"], None, "output_unknown", "no output 'c'"),
        (None, [tensor("a", "FP64")], "output_invalid", "'a' as FP32, but declares FP64"),
        (None, None, "output_invalid", "'odd': .*datetime64"),
    ],
)
def test_the_error_names_a_wrong_output(wanted: Any, declared: Any, reason: str, message: str) -> None:
    with pytest.raises(MultitowerError, match=message) as raised:
        select_outputs(OUTPUTS, wanted, declared_datatypes(declared))
    assert raised.value.reason == reason


def test_a_reply_is_a_header_and_the_rows_of_its_entry() -> None:
    builder = ReplyBuilder("m", "3")
    outputs = [("y", floats(4), "FP32"), ("w", np.array([b"a", b"bc", b"", b"d"], object), "BYTES")]
    header, y, w = builder.build(outputs, slice(1, 3))
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
    assert builder.build(outputs, slice(0, 2))[0] is header, "equal shapes share one header"
    assert json.loads(builder.build(outputs, None)[0])["outputs"][0]["shape"] == [4, 2]


@pytest.mark.parametrize("element", [3, None, "\ud800"])
def test_elements_that_cannot_be_sent_are_an_error_of_the_model(element: object) -> None:
    with pytest.raises(ModelError, match="'w'") as raised:
        ReplyBuilder("m", "1").build([("w", np.array([element], object), "BYTES")], None)
    assert raised.value.reason == "output_invalid"


@pytest.mark.parametrize("rows", [[1], [1, 2, 1], [2, 2]])
def test_joined_replies_are_those_that_are_built_one_by_one(rows: list[int]) -> None:
    outputs = [("y", floats(sum(rows) + 3), "FP32")]  # padded
    builder = ReplyBuilder("m", "1")
    joined = JoinedReplies(builder, outputs, rows)
    starts = [sum(rows[:index]) for index in range(len(rows))]
    expected = [builder.build(outputs, slice(start, start + count)) for start, count in zip(starts, rows, strict=True)]

    def content(replies: Any) -> list[tuple[bytes, bytes]]:
        return [(header, bytes(y)) for header, y in replies]

    assert content(joined) == content(expected)
    assert content([joined[index] for index in range(len(joined))]) == content(expected)
    assert [bytes(frame) for frame in joined.frames] == [floats(sum(rows)).tobytes()]


def test_parts_whose_outputs_do_not_fit_together_are_an_error_of_the_model() -> None:
    first, second = [("y", floats(2), "FP32")], [("y", np.zeros((2, 5), np.float32), "FP32")]
    assert len(concatenate_outputs([first, first])[0][1]) == 4
    with pytest.raises(ModelError, match="run in parts") as raised:
        concatenate_outputs([first, second])
    assert raised.value.reason == "output_invalid"


def test_headers_of_many_outputs_are_forgotten_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def reply_header(model: str, version: str, outputs: Any) -> bytes:
        made.append(outputs[0].shape[0])
        return b" " * 1000

    monkeypatch.setattr("multitower.worker.replies.wire.reply_header", reply_header)
    monkeypatch.setattr("multitower.worker.replies.MAX_HEADERS_BYTES", 3000)
    builder = ReplyBuilder("m", "1")
    for rows in (1, 2, 3, 3, 1, 4, 4, 1):
        builder.header([("y", floats(rows), "FP32")], rows)
    assert made == [1, 2, 3, 4, 1], "the fourth header forgot the others"
