from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from multitower.spec import ModelSpec, TensorReport
from multitower.worker.model import Arrays
from multitower.worker.warmup import sizes, warm_up


@pytest.mark.parametrize(
    ("largest", "allowed", "wanted"),
    [
        (1, (), [1, 2]),
        (2, (), [1, 2]),
        (6, (), [1, 2, 4, 6]),
        (8, (), [1, 2, 4, 8]),
        (8, (2, 8), [2, 8]),
        (8, (8,), [8, 1]),
        (1, (1,), [1, 2]),
    ],
)
def test_sizes(largest: int, allowed: tuple[int, ...], wanted: list[int]) -> None:
    assert sizes(ModelSpec(name="m", max_batch_size=largest, allowed_batch_sizes=allowed)) == wanted


X = TensorReport(name="x", datatype="FP32", shape=(-1, 3))


def same(inputs: Arrays) -> Arrays:
    return {"y": inputs["x"]}


class Model:
    platform = "tensorflow_savedmodel"
    version = "1"

    def __init__(
        self,
        function: Callable[[Arrays], Any] = lambda inputs: {"y": inputs["x"]},
        *inputs: TensorReport,
        y: Any = None,
    ) -> None:
        self._function = function
        self.inputs: tuple[TensorReport, ...] | None = inputs or (X,)
        self.outputs = (TensorReport(name="y", datatype="FP32", shape=y or (-1, 3)),)
        self.calls: list[Arrays] = []

    def infer(self, inputs: Arrays) -> Arrays:
        self.calls.append(inputs)
        answer: Arrays = self._function(inputs)
        return answer

    def close(self) -> None:
        pass


BATCHED = ModelSpec(name="m", max_batch_size=4)


def test_it_runs_every_size_on_made_up_inputs() -> None:
    inputs = [
        X,
        TensorReport(name="n", datatype="INT64", shape=(-1, -1)),
        TensorReport(name="s", datatype="BYTES", shape=(-1,)),
        TensorReport(name="h", datatype="BF16", shape=(-1, 2)),
    ]
    model = Model(same, *inputs)
    assert warm_up(model, BATCHED) == (None, True)
    assert [len(call["x"]) for call in model.calls] == [1, 2, 4]
    last = model.calls[-1]
    assert {name: (array.dtype.name, array.shape) for name, array in last.items()} == {
        "x": ("float32", (4, 3)),
        "n": ("int64", (4, 1)),
        "s": ("object", (4,)),
        "h": ("bfloat16", (4, 2)),
    }
    assert last["x"].min() == last["x"].max() == 1
    assert last["s"].tolist() == [b""] * 4


@pytest.mark.parametrize(
    ("shape", "because"),
    [
        (None, "the rank of input 'x' is unknown"),
        ((), "the input 'x' is a scalar"),
        ((2, 3), "dimension 0 of input 'x' is fixed at 2"),
    ],
)
def test_inputs_that_cannot_be_joined_are_run_once_as_they_are(shape: Any, because: str) -> None:
    model = Model(same, TensorReport(name="x", datatype="FP32", shape=shape))
    assert warm_up(model, BATCHED) == (because, False)
    assert [call["x"].shape for call in model.calls] == [shape if shape is not None else (1,)]


def test_outputs_declared_without_the_batch_cannot_be_sliced() -> None:
    assert warm_up(Model(y=(3,)), BATCHED) == ("dimension 0 of output 'y' is not the batch", False)


@pytest.mark.parametrize("rows", [0, 1, 2, 4])
@pytest.mark.parametrize("allowed", [(), (4,), (1, 4)])
def test_outputs_of_a_constant_size_are_found_out(rows: int, allowed: tuple[int, ...]) -> None:
    spec = ModelSpec(name="m", max_batch_size=4, allowed_batch_sizes=allowed)
    because, proven = warm_up(Model(lambda inputs: {"y": np.zeros((rows, 3), np.float32)}), spec)
    assert because is not None
    assert f"'y' the shape [{rows}, 3]" in because
    assert not proven


def test_a_signature_that_is_not_the_default_runs_in_two_sizes(caplog: pytest.LogCaptureFixture) -> None:
    model = Model()
    assert warm_up(model, ModelSpec(name="m", max_batch_size=64), signature="other") == (None, True)
    assert [len(call["x"]) for call in model.calls] == [1, 2]


def test_a_model_that_is_not_to_be_batched_runs_once() -> None:
    model = Model()
    assert warm_up(model, ModelSpec(name="m")) == (None, False)
    assert len(model.calls) == 1


def test_a_model_that_refuses_made_up_inputs_is_served_and_not_trusted(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(inputs: Arrays) -> Arrays:
        raise ValueError("no such word")

    with caplog.at_level(logging.WARNING):
        assert warm_up(Model(refuse), BATCHED) == (None, False)
    assert "no such word" in caplog.text


def test_a_model_that_fails_with_many_rows_has_been_proven_by_the_others() -> None:
    def small(inputs: Arrays) -> Arrays:
        if len(inputs["x"]) > 2:
            raise MemoryError
        return {"y": inputs["x"]}

    model = Model(small)
    assert warm_up(model, ModelSpec(name="m", max_batch_size=64)) == (None, True)
    assert [len(call["x"]) for call in model.calls] == [1, 2, 4], "and is not tried with still more"


def test_handlers_are_not_run() -> None:
    model = Model()
    model.platform = "python"
    assert warm_up(model, BATCHED) == (None, False)
    model.inputs = None
    assert warm_up(model, BATCHED) == (None, False)
    assert not model.calls
