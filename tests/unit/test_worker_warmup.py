"""The warm-up: which sizes and samples are run, and what their outputs show."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from multitower.spec import ModelSpec, TensorReport
from multitower.worker.formats.model import Arrays
from multitower.worker.model_errors import LoadError
from multitower.worker.unrunnable import UnrunnableError
from multitower.worker.warmup.samples import load_samples
from multitower.worker.warmup.warmup import Sample, warm_up, warmup_sizes


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
def test_the_sizes_of_a_warm_up(largest: int, allowed: tuple[int, ...], wanted: list[int]) -> None:
    assert warmup_sizes(ModelSpec(name="m", max_batch_size=largest, allowed_batch_sizes=allowed)) == wanted


@pytest.mark.parametrize(
    ("safe_rows", "allowed", "wanted"),
    [(1, (), [1]), (1, (1, 8), [1]), (2, (), [1, 2]), (3, (), [1, 2]), (1, (8,), [8, 1]), (4, (4, 8), [4, 1])],
)
def test_sizes_that_have_ended_a_worker_are_not_run(
    safe_rows: int, allowed: tuple[int, ...], wanted: list[int]
) -> None:
    spec = ModelSpec(name="m", max_batch_size=8, allowed_batch_sizes=allowed, safe_rows=safe_rows)
    assert warmup_sizes(spec) == wanted


X = TensorReport(name="x", datatype="FP32", shape=(-1, 3))


def same(inputs: Arrays) -> Arrays:
    return {"y": inputs["x"]}


class Model:
    platform = "tensorflow_savedmodel"
    version = "1"
    other_signatures: Mapping[str, Any] = {}

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

    def try_out(self, inputs: Arrays) -> Arrays:
        self.calls.append(inputs)
        answer: Arrays = self._function(inputs)
        return answer

    def close(self) -> None:
        pass


BATCHED = ModelSpec(name="m", max_batch_size=4)


def test_every_size_is_run_on_made_up_inputs() -> None:
    inputs = [
        X,
        TensorReport(name="n", datatype="INT64", shape=(-1, -1)),
        TensorReport(name="s", datatype="BYTES", shape=(-1,)),
        TensorReport(name="h", datatype="BF16", shape=(-1, 2)),
    ]
    model = Model(same, *inputs)
    assert warm_up(model, BATCHED)[:2] == (None, True)
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
def test_inputs_that_cannot_be_joined_are_run_once(shape: Any, because: str) -> None:
    model = Model(same, TensorReport(name="x", datatype="FP32", shape=shape))
    assert warm_up(model, BATCHED)[:2] == (because, False)
    assert [call["x"].shape for call in model.calls] == [shape if shape is not None else (1,)]


def test_outputs_declared_without_the_batch_dimension_prevent_batching() -> None:
    assert warm_up(Model(y=(3,)), BATCHED)[:2] == ("dimension 0 of output 'y' is not the batch", False)


@pytest.mark.parametrize("rows", [0, 1, 2, 4])
@pytest.mark.parametrize("allowed", [(), (4,), (1, 4)])
def test_outputs_of_a_constant_size_prevent_batching(rows: int, allowed: tuple[int, ...]) -> None:
    spec = ModelSpec(name="m", max_batch_size=4, allowed_batch_sizes=allowed)
    because, proven, _ = warm_up(Model(lambda inputs: {"y": np.zeros((rows, 3), np.float32)}), spec)
    assert because is not None
    assert f"'y' the shape [{rows}, 3]" in because
    assert not proven


def test_another_signature_is_run_on_recorded_requests_only() -> None:
    model = Model()
    spec = ModelSpec(name="m", max_batch_size=2)
    assert warm_up(model, spec, [sample(7)], signature="train")[:2] == (None, False)
    assert not model.calls, "it might train the model"
    assert warm_up(Model(y=(3,)), spec, signature="mean")[:2] == ("dimension 0 of output 'y' is not the batch", False)
    assert warm_up(model, spec, [sample(7), sample(8, signature="other")], signature="other")[:2] == (None, True)
    assert first_columns(model) == [[8], [8, 8]]


def test_an_unbatched_model_runs_once() -> None:
    model = Model()
    assert warm_up(model, ModelSpec(name="m"))[:2] == (None, False)
    assert len(model.calls) == 1


def test_a_model_that_refuses_made_up_inputs_is_served_unproven(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(inputs: Arrays) -> Arrays:
        raise ValueError("no such word")

    with caplog.at_level(logging.WARNING):
        assert warm_up(Model(refuse), BATCHED)[:2] == (None, False)
    (record,) = caplog.records
    assert "no such word" in getattr(record, "fields", {})["cause"]


class FailedPreconditionError(Exception):
    """As TensorFlow's of that name."""

    __module__ = "tensorflow.python.framework.errors_impl"


@pytest.mark.parametrize("signatures", [{}, {"init": None}])
def test_a_missing_initialiser_fails_a_model_without_other_signatures(signatures: dict[str, Any]) -> None:
    def refuse(inputs: Arrays) -> Arrays:
        raise FailedPreconditionError("Table not initialized.")

    model = Model(refuse)
    model.other_signatures = signatures
    if signatures:
        assert warm_up(model, BATCHED)[:2] == (None, False), "a request to the other signature may initialise the table"
    else:
        with pytest.raises(UnrunnableError, match="a table or a variable that nothing initialises"):
            warm_up(model, BATCHED)


def test_an_error_with_the_words_of_tensorflow_alone_is_no_obstacle() -> None:
    def refuse(inputs: Arrays) -> Arrays:
        raise ValueError("Table not initialized.")

    assert warm_up(Model(refuse), BATCHED)[:2] == (None, False)


def test_a_model_that_fails_with_many_rows_is_proven_by_fewer() -> None:
    def small(inputs: Arrays) -> Arrays:
        if len(inputs["x"]) > 2:
            raise MemoryError
        return {"y": inputs["x"]}

    model = Model(small)
    assert warm_up(model, ModelSpec(name="m", max_batch_size=64))[:2] == (None, True)
    assert [len(call["x"]) for call in model.calls] == [1, 2, 4], "and is not tried with still more"


def test_handlers_are_not_run_on_made_up_inputs() -> None:
    model = Model()
    assert warm_up(model, replace(BATCHED, handler="m:M"))[:2] == (None, False)
    model.inputs = None
    assert warm_up(model, BATCHED)[:2] == (None, False)
    assert not model.calls


# Recorded requests.


def sample(*rows: float, signature: str = "") -> Sample:
    return Sample(signature, {"x": np.float32([[row] * 3 for row in rows])}, "file.npz")


def first_columns(model: Model) -> list[list[float]]:
    return [call["x"][:, 0].tolist() for call in model.calls]


def test_the_first_sample_is_run_in_every_size_and_the_others_once() -> None:
    model = Model()
    assert warm_up(model, BATCHED, [sample(7, 8), sample(5, 5, 5), sample(9, signature="other")])[:2] == (None, True)
    assert first_columns(model) == [[7], [7, 8], [7, 8, 7, 8], [5, 5, 5]]


def test_samples_are_padded_and_cut_as_batches_are() -> None:
    model = Model()
    spec = ModelSpec(name="m", max_batch_size=4, allowed_batch_sizes=(2, 4))
    assert warm_up(model, spec, [sample(1), sample(2), sample(*range(9))])[:2] == (None, True)
    assert first_columns(model) == [[1, 1], [1, 1, 1, 1], [2, 2], [0, 1, 2, 3]]


def test_an_unbatched_model_gets_the_samples_unchanged() -> None:
    model = Model()
    assert warm_up(model, ModelSpec(name="m"), [sample(1, 2, 3), sample(4)])[:2] == (None, False)
    assert first_columns(model) == [[1, 2, 3], [4]]


def test_a_handler_is_run_on_samples() -> None:
    model = Model()
    model.inputs = None
    assert warm_up(model, replace(BATCHED, handler="m:M"), [sample(7)])[:2] == (None, True)
    assert first_columns(model) == [[7], [7, 7], [7, 7, 7, 7]]


@pytest.mark.parametrize("spec", [BATCHED, ModelSpec(name="m")])
@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_a_model_that_raises_on_a_sample_fails(spec: ModelSpec, kind: type[BaseException]) -> None:
    def refuse(inputs: Arrays) -> Arrays:
        raise kind("no such word")

    with pytest.raises(LoadError, match=rf"^file\.npz: the model raised on it: {kind.__name__}: no such word$"):
        warm_up(Model(refuse), spec, [sample(1)])


def test_a_model_that_raises_in_other_sizes_of_a_sample_is_unproven() -> None:
    def only_three(inputs: Arrays) -> Arrays:
        if len(inputs["x"]) != 3:
            raise ValueError("three rows")
        return {"y": inputs["x"]}

    model = Model(only_three)
    assert warm_up(model, BATCHED, [sample(1, 2, 3)])[:2] == (None, False)
    assert first_columns(model) == [[1], [1, 2, 3]]


def test_missing_memory_for_a_large_batch_of_a_sample_fails_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def small(inputs: Arrays) -> Arrays:
        if len(inputs["x"]) > 2:
            raise MemoryError
        return {"y": inputs["x"]}

    with caplog.at_level(logging.WARNING):
        assert warm_up(Model(small), BATCHED, [sample(1), sample(2)])[:2] == (None, True)
    (record,) = caplog.records
    assert record.getMessage() == "no warm-up with 4 rows of a sample"
    assert getattr(record, "fields", {})["cause"].startswith("MemoryError")


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": np.float32(1)},
        {"x": np.zeros((0, 3), np.float32)},
        {"x": np.zeros((1, 3), np.float32), "y": np.zeros((2, 3), np.float32)},
        {},
    ],
)
def test_a_sample_without_rows_fails_a_batched_model(inputs: Arrays) -> None:
    with pytest.raises(LoadError, match=r"file\.npz: inputs of a batched model share dimension 0"):
        warm_up(Model(), BATCHED, [Sample("", inputs, "file.npz")])


def test_a_model_for_xla_fails_if_a_size_cannot_be_run() -> None:
    def refuse(inputs: Arrays) -> Arrays:
        raise ValueError("unsupported operations")

    with pytest.raises(LoadError, match=r"jit_compile: XLA cannot compile it.*unsupported operations"):
        warm_up(Model(refuse), ModelSpec(name="m", max_batch_size=4, jit_compile=True))


# Requests from a file of numpy's.

DECLARED = (
    X,
    TensorReport(name="s", datatype="BYTES", shape=(-1,)),
    TensorReport(name="h", datatype="BF16", shape=(-1,)),
)
GOOD: Arrays = {"x": np.ones((2, 3)), "s": np.array(["grün", ""]), "h": np.ones(2, ml_dtypes.bfloat16)}


def of_file(path: Path, inputs: tuple[TensorReport, ...] | None = DECLARED) -> list[Sample]:
    model = Model(same)
    model.inputs = inputs
    return load_samples(model, ModelSpec(name="m", handler="m:M", warmup=str(path)))


def test_arrays_of_a_file_are_converted_to_the_models_datatypes(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **GOOD)
    (found,) = of_file(tmp_path / "w.npz")
    assert {name: array.dtype.name for name, array in found.inputs.items()} == {
        "x": "float32",
        "s": "object",
        "h": "bfloat16",
    }
    assert found.inputs["s"].tolist() == ["grün".encode(), b""]
    assert found.inputs["h"].tolist() == [1, 1]
    (found,) = of_file(tmp_path / "w.npz", None)
    assert found.inputs["x"].dtype == np.float64, "as it is, where nothing is declared"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"x": np.ones((2, 4))}, r"the model takes the shape \[-1, 3\] .* for the input 'x'; the file has \[2, 4\]"),
        ({"x": np.ones((2, 3), "c8")}, "the model takes FP32 for the input 'x'; the file has complex64"),
        ({"x": np.array(["a"])}, "the model takes FP32 for the input 'x'; the file has object"),
        ({"s": np.ones(2)}, "the model takes BYTES for the input 's'; the file has float64"),
        ({"other": np.ones(2)}, "it has the inputs h, other, s, x, but the model takes h, s, x"),
        ({"x": np.array([[{}]])}, "cannot be read: Object arrays cannot be loaded"),
    ],
)
def test_the_error_names_a_file_with_the_wrong_arrays(changes: Arrays, told: str, tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    np.savez(path, **{**GOOD, **changes})
    with pytest.raises(LoadError, match=f"{re.escape(str(path))}:? {told}"):
        of_file(path)


@pytest.mark.parametrize("data", [b"", b"no", b"PK\x03\x04 cut off", b"\x93NUMPY"])
def test_the_error_names_a_file_that_is_not_of_numpy(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    path.write_bytes(data)
    with pytest.raises(LoadError, match=f"{re.escape(str(path))} cannot be read") as raised:
        of_file(path)
    assert "pickle" not in str(raised.value)


def test_a_file_with_an_unnamed_array_is_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", np.ones(3))
    with pytest.raises(LoadError, match="one array without a name"):
        of_file(tmp_path / "w.npy")


def test_a_model_without_recorded_requests_has_no_samples(tmp_path: Path) -> None:
    assert load_samples(Model(), ModelSpec(name="m", handler="m:M")) == []
    assert load_samples(Model(), ModelSpec(name="m", path=str(tmp_path))) == []
