"""What a request costs in the worker grows with its size, not with the square of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from multitower.spec import ModelSpec
from multitower.worker.executor import Executor
from multitower.worker.formats.handler import HandlerModel
from multitower.worker.formats.model import Arrays
from multitower.worker.replies import JoinedReplies, ReplyBuilder
from multitower.worker_wire import KeySpec

FACTOR = 8
BOUND = 3 * FACTOR
"""Linear costs give a ratio of about `FACTOR`, quadratic ones of its square."""


class Echo:
    """Declares `count` inputs, and the same outputs."""

    def load(self, devices: object, parameters: Any) -> None:
        self.inputs = [
            {"name": f"t{number}", "datatype": "INT8", "shape": [-1]} for number in range(parameters["count"])
        ]
        self.outputs = self.inputs if parameters["declared"] else None

    def infer(self, inputs: Arrays) -> Arrays:
        return inputs


def handler(count: int, *, declared: bool = True) -> HandlerModel:
    spec = ModelSpec(name="m", handler=f"{__name__}:Echo", parameters={"count": count, "declared": declared})
    return HandlerModel(spec, ["cpu:0"])


def run_request(count: int, *, declared: bool, chosen: bool) -> Callable[[], object]:
    """A request with so many inputs and outputs."""
    names = [f"t{number}" for number in range(count)]
    key = KeySpec("m", tuple((name, "INT8", ()) for name in names), tuple(reversed(names)) if chosen else None, True)
    executor = Executor("m", handler(count, declared=declared), (), proven=True)
    frames = [b"x"] * count

    def run() -> object:
        answers, _ = executor.run(executor.prepare(key, [1], frames))
        assert isinstance(answers[0], list)
        return answers

    return run


def iterate_replies(count: int) -> Callable[[], object]:
    """The replies of a batch of so many entries."""
    outputs = [("y", np.zeros((count, 2), np.float32), "FP32")]
    return lambda: list(JoinedReplies(ReplyBuilder("m", "1"), outputs, [1] * count))


def run_batch(count: int) -> Callable[[], object]:
    """A batch of so many entries whose outputs are BYTES, and so do not travel joined."""
    key = KeySpec("m", (("t0", "BYTES", ()),), None, True)
    model: Any = handler(1, declared=False)
    executor = Executor("m", model, (), proven=True)
    frames = [b"\1\0\0\0a"] * count
    return lambda: executor.run(executor.prepare(key, [1] * count, frames))


def seconds(run: Callable[[], object]) -> float:
    """The CPU time of the fastest of a few runs."""
    times = []
    for _ in range(5):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    return min(times)


@pytest.mark.parametrize(
    ("make", "small"),
    [
        pytest.param(lambda count: lambda: handler(count), 250, id="loading a handler by its declared inputs"),
        pytest.param(lambda count: run_request(count, declared=True, chosen=False), 250, id="declared outputs"),
        pytest.param(lambda count: run_request(count, declared=True, chosen=True), 250, id="chosen outputs"),
        pytest.param(lambda count: run_request(count, declared=False, chosen=True), 250, id="undeclared outputs"),
        pytest.param(iterate_replies, 1000, id="entries of joined replies"),
        pytest.param(run_batch, 1000, id="entries of a batch"),
    ],
)
def test_the_cost_is_linear(make: Callable[[int], Callable[[], object]], small: int) -> None:
    ratio = seconds(make(FACTOR * small)) / seconds(make(small))
    assert ratio < BOUND, f"{FACTOR} times as much costs {ratio:.0f} times as much"
