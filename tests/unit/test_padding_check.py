"""A warning tells that padding of inputs of varying length changes values of a recorded request."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from multitower.spec import ModelSpec, TensorReport
from multitower.worker.formats.model import Arrays
from multitower.worker.warmup.padding_check import warn_of_padding
from multitower.worker.warmup.warmup import Sample

SPEC = ModelSpec(name="m", max_batch_size=8, pad_variable_length_inputs=True)
SAMPLE = Sample("", {"x": np.float32([[1, 5, 7], [2, 3, 4]]), "length": np.int32([3, 3])}, "w.npz")
DECLARED = (
    TensorReport(name="x", datatype="FP32", shape=(-1, -1)),
    TensorReport(name="length", datatype="INT32", shape=(-1,)),
)


class Model:
    """A model whose output y is a function of the inputs x and length."""

    volatile = False

    def __init__(self, function: Callable[[Any, Any], Any], *, declares: bool = True) -> None:
        self._function = function
        self.inputs = DECLARED if declares else None
        self.calls = 0

    def infer(self, inputs: Arrays) -> Arrays:
        self.calls += 1
        return {"y": np.asarray(self._function(inputs["x"], inputs["length"]))}


def masked_sum(x: Any, length: Any) -> Any:
    return np.where(np.arange(x.shape[1]) < length[:, None], x, 0).sum(axis=1)


@pytest.mark.parametrize("declares", [True, False])
@pytest.mark.parametrize(
    ("function", "warns"),
    [
        (masked_sum, False),
        (lambda x, _: x * 2, False),
        (lambda x, _: x.mean(axis=1), True),
        (lambda x, _: x / x.sum(axis=1, keepdims=True), True),
        (lambda x, _: x[:, ::-1], True),
        (lambda x, _: np.full(len(x), x.shape[1]), True),
    ],
)
def test_a_change_of_values_by_padding_is_logged(
    function: Any, warns: bool, declares: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_padding(Model(function, declares=declares), SPEC, [SAMPLE])
    if warns:
        (record,) = caplog.records
        assert "padding a row of a recorded request (w.npz) changes the values of output 'y'" in record.getMessage()
    else:
        assert not caplog.records


def test_a_model_whose_outputs_vary_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    counter = itertools.count()
    with caplog.at_level(logging.WARNING):
        warn_of_padding(Model(lambda x, _: x.mean(axis=1) + next(counter)), SPEC, [SAMPLE])
    assert not caplog.records


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_a_model_that_refuses_the_padded_row_is_not_warned_of(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(x: Any, _: Any) -> Any:
        if x.shape[1] != 3:
            raise kind
        return x

    with caplog.at_level(logging.WARNING):
        warn_of_padding(Model(refuse), SPEC, [SAMPLE])
    assert not caplog.records


def test_padding_is_tried_only_where_requests_are_padded_and_one_is_recorded() -> None:
    model = Model(masked_sum)
    warn_of_padding(model, SPEC, [])
    warn_of_padding(model, SPEC, [SAMPLE._replace(signature="other")])
    warn_of_padding(model, ModelSpec(name="m", max_batch_size=8), [SAMPLE])
    warn_of_padding(model, ModelSpec(name="m", pad_variable_length_inputs=True), [SAMPLE])
    assert not model.calls
    warn_of_padding(model, SPEC, [SAMPLE._replace(signature="other")], signature="other")
    assert model.calls == 2
