"""A model whose calls a test writes and counts, and what an executor answers with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from multitower import wire
from multitower.errors import MultitowerError
from multitower.spec import TensorReport
from multitower.worker.executor import Executor
from multitower.worker.formats.model import Arrays
from multitower.worker_wire import KeySpec

KEY = KeySpec("m", (("x", "INT64", ()),), None, True)
BAD = -1


class Scripted:
    """A model that is one function; it records the rows of each call."""

    platform = "python"
    volatile = True
    version = "1"
    inputs = None

    def __init__(self, function: Callable[[np.ndarray], Arrays], outputs: tuple[TensorReport, ...] | None = None):
        self._function = function
        self.outputs = outputs
        self.calls: list[list[int]] = []

    def infer(self, inputs: Arrays) -> Arrays:
        self.calls.append(inputs["x"].tolist())
        return self._function(inputs["x"])

    def close(self) -> None:
        pass


def square(x: np.ndarray) -> Arrays:
    return {"y": x * x}


def picky(x: np.ndarray) -> Arrays:
    if (x == BAD).any():
        raise ValueError(f"{BAD} among {len(x)}")
    return square(x)


def run(executor: Executor, *entries: Sequence[int], key: KeySpec = KEY) -> list[Any]:
    """The answer to each entry: its `y`, or the reason of its error."""
    frames = [np.array(entry, np.int64).tobytes() for entry in entries]
    answers, timing = executor.run(executor.prepare(key, [len(entry) for entry in entries], frames))
    assert min(timing.assemble_ns, timing.compute_ns, timing.slice_ns) >= 0
    read = []
    for answer in answers:
        if isinstance(answer, MultitowerError):
            wire.dump_json(answer.to_wire())
            read.append(answer.reason)
            continue
        (described,) = json.loads(answer[0])["outputs"]
        read.append(np.frombuffer(answer[1], np.int64).reshape(described["shape"]).tolist())
    return read
