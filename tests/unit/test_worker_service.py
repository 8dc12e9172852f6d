"""Answers do not change after they are made, and each batch runs on the version that it names."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest

from multitower import batch_results, tensors, worker_wire
from multitower.worker.executor import Executor
from multitower.worker.formats.model import Arrays
from multitower.worker.service import _Service
from multitower.worker_wire import KeySpec, WorkerArea


class Reusing:
    """A model that returns the same buffer from each call."""

    platform = "python"
    version = "1"
    inputs = None
    outputs = None

    def __init__(self, volatile: bool) -> None:
        self.volatile = volatile
        self.buffer = np.zeros((8, tensors.BULKY_BYTES), np.uint8)
        self.calls = 0

    def infer(self, inputs: Arrays) -> Arrays:
        self.calls += 1
        x = inputs["x"]
        self.buffer[: len(x), : x.shape[1]] = x
        return {"y": self.buffer[: len(x), : x.shape[1]]}

    def try_out(self, inputs: Arrays) -> Arrays:
        return self.infer(inputs)

    def close(self) -> None:
        pass


class Scene:
    """The service of a worker without a socket, with that model."""

    def __init__(self, *, volatile: bool = True, **options: Any) -> None:
        self.model = Reusing(volatile)
        executor = Executor("m", self.model, (), **options)
        self._service = _Service({("m", "1"): {"": executor}}, lambda _: None)
        self._ids = itertools.count(1)

    def ask(self, width: int, *values: int) -> list[Any]:
        """The frames of the answer to a batch with one row for each value."""
        key = KeySpec("m", (("x", "UINT8", (width,)),), None, True)
        rows = [bytes([value]) * width for value in values]
        joined = worker_wire.travels_joined(key)
        number = next(self._ids)
        head = worker_wire.batch_head(number, number, [1] * len(values), joined=joined, described=True)
        return self._answer([head, key.to_json(), *([b"".join(rows)] if joined else rows)])

    def ask_unreadable(self, entries: int, *, text: bool) -> list[Any]:
        """The frames of the answer to a batch whose entries name missing shared memory."""
        inputs = (("x", "UINT8", (4,)), *((("t", "BYTES", ()),) if text else ()))
        key = KeySpec("m", inputs, None, True)
        number = next(self._ids)
        head = worker_wire.batch_head(number, number, [1] * entries, joined=False, described=True)
        areas = [WorkerArea(entry, 0, "mt-gone", 2**31 - 1, 0, 0, 4096, 4) for entry in range(entries)]
        frames = [b"\1\0\0\0a"] * entries if text else []
        table = worker_wire.Table(areas, [])
        return self._answer([worker_wire.shared_head(head), key.to_json(), table.pack(), *frames])

    def ask_for_areas(self, *values: int) -> list[Any]:
        """The frames of the answer to a batch of which each entry has an area for its output; they do not exist."""
        key = KeySpec("m", (("x", "UINT8", (4,)),), None, True)
        number = next(self._ids)
        head = worker_wire.batch_head(number, number, [1] * len(values), joined=False, described=True)
        areas = [WorkerArea(entry, "y", "mt-gone", 2**31 - 1, 0, 0, 4096, 4) for entry in range(len(values))]
        table = worker_wire.Table([], areas)
        frames = [bytes([value]) * 4 for value in values]
        return self._answer([worker_wire.shared_head(head), key.to_json(), table.pack(), *frames])

    def ask_in_parts(self, *values: int) -> list[Any]:
        """The frames of the answer to a batch that is run entry by entry, as for a model without batching."""
        key = KeySpec("m", (("x", "UINT8", (1, 4)),), None, False)
        number = next(self._ids)
        head = worker_wire.batch_head(number, number, [1] * len(values), joined=False, described=True)
        frames = [bytes([value]) * 4 for value in values]
        return self._answer([worker_wire.shared_head(head), key.to_json(), worker_wire.Table([], []).pack(), *frames])

    def _answer(self, message: list[Any]) -> list[Any]:
        job = self._service.open_message(message)
        assert job is not None
        return self._service.run(job)


def told(message: list[Any]) -> list[int]:
    """The first byte of each entry's output; every byte of it must be the same."""
    first = []
    for answer in batch_results.read_result([bytes(frame) for frame in message]).answers:
        assert isinstance(answer, list)
        assert len(set(bytes(answer[1]))) == 1
        first.append(answer[1][0])
    return first


@pytest.mark.parametrize("width", [10, tensors.BULKY_BYTES // 4, tensors.BULKY_BYTES])
@pytest.mark.parametrize(
    "options", [{"proven": True}, {}, {"unbatched": True}, {"proven": True, "safe_rows": 1}], ids=str
)
def test_outputs_do_not_change_when_the_model_is_called_again(options: dict[str, Any], width: int) -> None:
    scene = Scene(**options)
    # Each answer is sent before the next batch is run.
    assert told(scene.ask(width, 1)) == [1]
    assert told(scene.ask(width, 2, 3, 4, 5)) == [2, 3, 4, 5]


def test_outputs_of_a_part_do_not_change_when_the_next_part_runs() -> None:
    """A client that used shared memory got the outputs of another request, if the model used its memory again."""
    assert told(Scene().ask_in_parts(1, 2, 3)) == [1, 2, 3]


@pytest.mark.parametrize("volatile", [False, True])
def test_outputs_of_one_call_are_not_copied(volatile: bool) -> None:
    scene = Scene(volatile=volatile, proven=True)
    message = scene.ask(tensors.BULKY_BYTES, 1)
    scene.ask(tensors.BULKY_BYTES, 9)
    assert told(message) == [9]


@pytest.mark.parametrize(
    "options", [{}, {"proven": True}, {"unbatched": True}, {"proven": True, "safe_rows": 1}], ids=str
)
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("entries", [1, 3])
def test_a_batch_without_readable_entries_is_answered_without_a_call(
    entries: int, text: bool, options: dict[str, Any]
) -> None:
    scene = Scene(**options)
    message = scene.ask_unreadable(entries, text=text)
    answers = [answer for answer in batch_results.read_result(message).answers if isinstance(answer, bytes)]
    assert [json.loads(answer)["error"]["reason"] for answer in answers] == ["malformed"] * entries
    assert scene.model.calls == 0
    assert told(scene.ask(10, 1, 2)) == [1, 2], "the worker lives on"


def test_a_batch_runs_on_the_version_that_it_names_or_on_the_newest() -> None:
    executors = {}
    for number in ("9", "10"):
        model = Reusing(False)
        model.version = number
        executors["m", number] = {"": Executor("m", model, ())}
    service = _Service(executors, lambda _: None)

    def answered_by(version: str) -> str:
        key = KeySpec("m", (("x", "UINT8", (1,)),), None, True, version=version)
        number = int(version or 0)
        head = worker_wire.batch_head(number, number, [1], joined=worker_wire.travels_joined(key), described=True)
        job = service.open_message([head, key.to_json(), b"x"])
        assert job is not None
        answers = batch_results.read_result(service.run(job)).answers
        header, _ = answers[0]
        told: str = json.loads(bytes(header))["model_version"]
        return told

    assert [answered_by(version) for version in ("", "9", "10")] == ["10", "9", "10"]


def test_a_defect_in_writing_the_outputs_of_an_entry_costs_no_entry_of_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene()
    written: list[Any] = []

    def write(answer: list[Any], *_: object) -> list[Any]:
        written.append(answer)
        if len(written) == 2:
            raise ZeroDivisionError("an injected defect")
        return answer

    monkeypatch.setattr(scene._service._outputs, "write", write)
    assert told(scene.ask_for_areas(1, 2, 3)) == [1, 2, 3]
    assert len(written) == 3
