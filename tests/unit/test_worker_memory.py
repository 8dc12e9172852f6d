"""Batches that do not fit into memory are run in parts, and the answers do not differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from multitower.errors import MultitowerError
from multitower.worker import batch_inputs
from multitower.worker.executor import Executor
from multitower.worker.formats.model import Arrays
from multitower.worker_wire import KeySpec

KEY = KeySpec("m", (("x", "INT64", ()),), None, True)


class Limited:
    """A model with memory for `room` rows that may accept only some sizes; it reuses its output array."""

    platform = "python"
    volatile = True
    version = "1"
    inputs = None
    outputs = None

    def __init__(self, room: int, sizes: Sequence[int] = ()) -> None:
        self.calls: list[int] = []
        self._room = room
        self._sizes = sizes
        self._place = np.zeros(100, np.int64)

    def infer(self, inputs: Arrays) -> Arrays:
        rows = len(inputs["x"])
        self.calls.append(rows)
        if rows > self._room:
            raise MemoryError(f"no room for {rows}")
        if self._sizes and rows not in self._sizes:
            raise ValueError(f"compiled for {self._sizes}, not for {rows}")
        self._place[:rows] = inputs["x"] * 10
        return {"y": self._place[:rows]}

    def close(self) -> None:
        pass


def run(executor: Executor, *entries: Sequence[int]) -> list[Any]:
    """The answer to each entry: its `y`, or the reason of its error."""
    joined = np.concatenate([np.array(entry, np.int64) for entry in entries]).tobytes()
    answers, _ = executor.run(executor.prepare(KEY, [len(entry) for entry in entries], [joined], joined=True))
    return [
        answer.reason if isinstance(answer, MultitowerError) else np.frombuffer(answer[1], np.int64).tolist()
        for answer in answers
    ]


SPLITS = [
    pytest.param((), 4, 0, [10, 5, 2, 2, 1, 2, 2, 1], 2, id="any size: halves"),
    pytest.param((4, 10), 4, 0, [10, 4, 4, 4], 4, id="the rest is padded"),
    pytest.param((2, 4, 10), 3, 0, [10, 4, 2, 2, 2, 2, 2], 2, id="not even a part fits"),
    pytest.param((6, 10), 6, 0, [10, 6, 6], 6, id="no allowed size is as small as the half"),
    pytest.param((4, 10), 4, 3, [4, 4, 4], 3, id="an earlier process had other sizes"),
    pytest.param((4, 10), 4, 9, [4, 4, 4], 9, id="nor is what it had one of them"),
]


@pytest.mark.parametrize(("allowed", "room", "safe", "calls", "safe_then"), SPLITS)
def test_parts_have_allowed_sizes(
    allowed: tuple[int, ...], room: int, safe: int, calls: list[int], safe_then: int
) -> None:
    model = Limited(room, allowed)
    executor = Executor("m", model, allowed, proven=True, safe_rows=safe)
    assert run(executor, [1, 2, 3], [4, 5, 6, 7], [8, 9, 10]) == [[10, 20, 30], [40, 50, 60, 70], [80, 90, 100]]
    assert (model.calls, executor.safe_rows) == (calls, safe_then)


def test_a_smallest_allowed_size_that_is_too_large_is_an_error() -> None:
    model = Limited(5, (6, 10))
    assert run(Executor("m", model, (6, 10), proven=True), range(10)) == ["model_error"]
    assert model.calls == [10, 6]
    model = Limited(5, (6,))
    assert run(Executor("m", model, (6,), proven=True), [1], [2]) == ["model_error", "model_error"]
    assert model.calls == [6, 6, 6], "together, then each"


def test_a_part_with_missing_rows_is_an_error_although_the_sum_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts give 4, 4 and 2 rows, the last one instead of 4. The sum is the batch's 10, but rows are missing."""
    model = Limited(4)
    infer: Callable[[Arrays], Arrays] = model.infer
    monkeypatch.setattr(model, "infer", lambda inputs: {"y": np.unique(infer(inputs)["y"])})
    assert run(Executor("m", model, (4, 10), proven=True), range(10)) == ["output_invalid"]


def test_outputs_are_copied_after_joining_the_inputs_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    join, failed = batch_inputs.join_inputs, []

    def without_room_at_first(parts: Sequence[Arrays], size: int) -> Arrays:
        if not failed:
            failed.append(size)
            raise MemoryError("no room for the padding")
        return join(parts, size)

    monkeypatch.setattr(batch_inputs, "join_inputs", without_room_at_first)
    assert run(Executor("m", Limited(8), (8,), proven=True), [1], [2], [3], [4]) == [[10], [20], [30], [40]]
    assert failed == [8]
