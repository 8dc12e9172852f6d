"""The messages between router and worker are read as they were written, joined or entry by entry."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multitower import batch_results, tensors, worker_wire
from multitower.batch_results import Timing
from multitower.worker_wire import KeySpec, Table, WorkerArea

TIMING = Timing(1, 2, 3)


def times_of(timing: Timing) -> tuple[int, int, int]:
    return timing.assemble_ns, timing.compute_ns, timing.slice_ns


def key(*inputs: tuple[str, str, tuple[int, ...]], batched: bool = True) -> KeySpec:
    return KeySpec("m", inputs, None, batched)


BULKY = tensors.BULKY_BYTES


def test_a_key_is_read_as_it_was_written() -> None:
    spec = KeySpec("m", (("x", "FP32", (16, 2)), ("y", "INT8", ())), ("z",), True, "classify")
    assert KeySpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("name", ["y", "", 'a"b', "back\\slash", "line\nbreak", "größe/0:1", "\ud800"])
def test_a_table_is_read_as_it_was_written(name: str) -> None:
    inputs = [WorkerArea(0, 1, "mt-1-2-3", 7, 1, 99, 4096, 10), WorkerArea(3, 0, "mt-1-2-3", 7, 1, 99, 1 << 40, 1)]
    for table in (Table([], []), Table(inputs, []), Table(inputs, [WorkerArea(2, name, "mt-4-5-6", 8, 1, 98, 0, 5)])):
        assert Table.unpack(table.pack()) == table


@pytest.mark.parametrize(
    ("spec", "joined"),
    [
        pytest.param(key(("x", "FP32", (16,))), True, id="small numbers"),
        pytest.param(key(("x", "FP32", (16,)), ("y", "INT8", ())), True, id="two inputs"),
        pytest.param(key(("x", "INT8", (BULKY - 1,))), True, id="just small"),
        pytest.param(key(("x", "INT8", (BULKY,))), False, id="just bulky"),
        pytest.param(key(("x", "INT8", (1,)), ("y", "INT8", (BULKY,))), False, id="one of two is bulky"),
        pytest.param(key(("x", "BYTES", (1,))), False, id="elements of unequal lengths"),
        pytest.param(key(("x", "INT8", (1,)), batched=False), False, id="runs singly"),
        pytest.param(key(("x", "INT8", (-1,)), ("", "INT64", (1,))), False, id="to be padded"),
    ],
)
def test_small_inputs_of_one_size_travel_joined(spec: KeySpec, joined: bool) -> None:
    assert worker_wire.travels_joined(spec) is joined


NUMBERS = st.integers(0, 2**64 - 1)


@given(NUMBERS, NUMBERS, st.lists(st.integers(1, 2**32 - 1)), st.booleans(), st.booleans())
def test_the_head_of_a_batch_is_read_as_it_was_written(
    batch_id: int, key_id: int, rows: list[int], joined: bool, described: bool
) -> None:
    head = worker_wire.batch_head(batch_id, key_id, rows, joined=joined, described=described)
    assert head[:1] == worker_wire.BATCH
    read = worker_wire.read_batch_head(head)
    assert (read.batch_id, read.key_id, read.rows) == (batch_id, key_id, tuple(rows))
    assert (read.described, read.joined) == (described, joined)


def test_inputs_are_joined_in_the_order_of_the_entries() -> None:
    entries: list[list[Any]] = [[b"ab", b"1"], [memoryview(b"cdef"), bytearray(b"23")]]
    assert worker_wire.join_frames(entries) == [b"abcdef", b"123"]


def test_the_frames_of_a_single_entry_are_not_copied() -> None:
    frame = bytes(100)
    assert worker_wire.join_frames([[frame]])[0] is frame


answers = st.one_of(st.binary(min_size=1), st.lists(st.binary(), min_size=1, max_size=5))


@given(st.integers(0, 2**64 - 1), st.lists(answers, min_size=1, max_size=20))
def test_a_result_entry_by_entry_is_read_as_it_was_written(batch_id: int, answers: list[list[bytes] | bytes]) -> None:
    message = batch_results.result(batch_id, answers, TIMING)
    assert message[0][:1] == worker_wire.RESULT
    result = batch_results.read_result(message)
    assert (result.batch_id, result.answers) == (batch_id, answers)
    assert times_of(result.timing) == (1, 2, 3)


def test_an_entry_may_have_more_outputs_than_a_short_number_counts() -> None:
    answers: list[list[Any] | bytes] = [[b"header", *[b""] * 70_000], b"error"]
    assert batch_results.read_result(batch_results.result(1, answers, TIMING)).answers == answers


@given(st.lists(st.integers(1, 5), min_size=1, max_size=20), st.lists(st.integers(0, 3), max_size=3))
def test_a_joined_result_is_split_into_its_entries(rows: list[int], widths: list[int]) -> None:
    headers = {count: b"header of %d" % count for count in dict.fromkeys(rows)}
    # The bytes of each row show its entry.
    outputs = [b"".join(bytes([number]) * (count * width) for number, count in enumerate(rows, 1)) for width in widths]
    result = batch_results.read_result(batch_results.joined_result(9, headers, rows, outputs, TIMING))
    assert result.batch_id == 9
    assert times_of(result.timing) == (1, 2, 3)
    assert result.answers == [
        [headers[count], *(bytes([number]) * (count * width) for width in widths)]
        for number, count in enumerate(rows, 1)
    ]


def test_slices_of_a_large_frame_are_not_copied() -> None:
    large = memoryview(np.arange(BULKY, dtype=np.uint8))
    message = batch_results.joined_result(1, {1: b"h"}, [1, 1], [large], TIMING)
    for number, answer in enumerate(batch_results.read_result(message).answers):
        assert isinstance(answer[1], memoryview)
        assert answer[1].obj is large.obj
        assert answer[1] == large[number * BULKY // 2 : (number + 1) * BULKY // 2]
