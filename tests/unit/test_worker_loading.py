"""Signatures of a model are made ready: warmed up, and compared once for all replicas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from multitower.spec import ModelSpec, TensorReport
from multitower.worker.formats.model import Array, Arrays
from multitower.worker.heartbeat import CallCounter, LoadSteps
from multitower.worker.loading import load_other_signatures
from multitower.worker.warmup.row_check import RowFindings
from multitower.worker.warmup.warmup import Sample

SPEC = ModelSpec(name="m", handler="m:M", max_batch_size=4)
ROWS = TensorReport(name="x", datatype="FP32", shape=(-1, 3))
FACTOR = TensorReport(name="factor", datatype="FP32", shape=(), optional=True)


class Signature:
    """A signature with the input x, and the input `factor` that requests may leave out. It keeps its calls."""

    volatile = False
    version = "1"
    signature = ""
    tower = None
    inputs = (ROWS, FACTOR)
    outputs = (TensorReport(name="y", datatype="FP32", shape=(-1, 3)),)
    defaults: Mapping[str, Array] = {"factor": np.float32(1)}
    signature_definitions = b""
    other_signatures: Mapping[str, Any] = {}

    def __init__(self, function: Callable[[Any], Any] = np.tanh) -> None:
        self._function = function
        self.calls: list[Arrays] = []

    def infer(self, inputs: Arrays) -> Arrays:
        self.calls.append(inputs)
        return {"y": self._function(inputs["x"]) * inputs.get("factor", np.float32(1))}

    try_out = infer

    def close(self) -> None:
        pass


def load(signature: Signature, *samples: Arrays, compared: dict[str, RowFindings] | None = None) -> Any:
    """The report of the signature, which is the only one beside a default one."""
    model: Any = Signature()
    model.other_signatures = {"other": signature}
    recorded = [Sample("other", inputs, f"record {number}") for number, inputs in enumerate(samples, 1)]
    _, (report,) = load_other_signatures(model, SPEC, recorded, CallCounter(), LoadSteps(), compared=compared)
    return report


def rows(*values: float) -> Array:
    return np.repeat(np.float32(values)[:, None], 3, axis=1)


def test_recorded_requests_with_and_without_an_optional_input_are_all_run() -> None:
    signature = Signature()
    scaled = [{"x": rows(number), "factor": np.float32(number)} for number in (5, 6)]
    report = load(signature, *scaled, {"x": rows(1, 2)}, {"x": rows(3)})
    assert (report.unbatched_because, report.unverified_because) == (None, None)
    assert [float(call["factor"]) for call in signature.calls if "factor" in call] == [5, 6]


def test_values_are_compared_on_one_replica_for_all_of_them() -> None:
    first, second, mixing = Signature(), Signature(), Signature(lambda x: x / x.max())
    compared: dict[str, RowFindings] = {}
    for signature in (first, second):
        assert load(signature, {"x": rows(1, 2)}, compared=compared).unbatched_because is None
    assert [len(call["x"]) for call in second.calls] == [1, 2, 4], "the warm-up alone"
    assert len(first.calls) > 3
    compared.clear()
    wanted = load(mixing, {"x": rows(1, 2)}, compared=compared)
    assert "'y'" in wanted.unbatched_because
    assert load(Signature(), {"x": rows(1, 2)}, compared=compared) == wanted
