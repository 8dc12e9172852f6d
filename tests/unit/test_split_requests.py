"""Requests larger than a batch: the joining of their parts' answers."""

from __future__ import annotations

import pytest

from multitower import ModelError, wire
from multitower.supervisor.scheduling.request import BatchKey, Plan, Request, Split
from multitower.supervisor.scheduling.split_requests import add_answer, cut_part, join_answers
from multitower.worker_wire import KeySpec


def whole(rows: int = 4) -> Request:
    spec = KeySpec(model="m", inputs=(("x", "UINT8", ()),), outputs=None, batched=True)
    plan = Plan(BatchKey(spec, 2), rows, (0,), (rows,), (False,), ("x",), 30.0)
    return Request(("front",), b"id", plan, [bytes(range(rows))], rows, 0.0)


def answer(*outputs: tuple[str, str, int]) -> list[bytes]:
    described = [wire.Tensor(name, datatype, (rows,)) for name, datatype, rows in outputs]
    return [wire.reply_header("m", "1", described), *(name.encode() * rows for name, _, rows in outputs)]


def test_parts_are_joined_in_the_order_of_their_rows() -> None:
    request = whole(5)
    split = Split(request)
    parts = [cut_part(request, split, rows) for rows in (2, 2, 1)]
    assert [bytes(part.frames[0]) for part in parts] == [b"\0\1", b"\2\3", b"\4"]
    assert not add_answer(request, split, parts[2], answer(("c", "UINT8", 1)))
    assert not add_answer(request, split, parts[0], answer(("c", "UINT8", 2)))
    assert add_answer(request, split, parts[1], answer(("c", "UINT8", 2)))
    header, frame = join_answers(request, split)
    assert header == answer(("c", "UINT8", 5))[0]
    assert frame == b"ccccc"


@pytest.mark.parametrize(
    "second",
    [
        [("a", "UINT8", 2)],
        [("b", "UINT8", 2), ("a", "UINT8", 2)],
        [("a", "UINT8", 2), ("b", "UINT8", 2), ("c", "UINT8", 2)],
        [("a", "INT8", 2), ("b", "UINT8", 2)],
        [("a", "UINT8", 1), ("b", "UINT8", 2)],
    ],
    ids=["fewer", "other order", "more", "other datatype", "other rows"],
)
def test_parts_with_different_outputs_are_an_error(second: list[tuple[str, str, int]]) -> None:
    request = whole()
    split = Split(request)
    first_part, second_part = cut_part(request, split, 2), cut_part(request, split, 2)
    add_answer(request, split, first_part, answer(("a", "UINT8", 2), ("b", "UINT8", 2)))
    assert add_answer(request, split, second_part, answer(*second))
    with pytest.raises(ModelError, match="was split") as raised:
        join_answers(request, split)
    assert raised.value.reason == "output_invalid"
