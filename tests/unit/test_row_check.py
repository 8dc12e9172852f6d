"""Whether rows of a batch influence each other, as the values of a model's outputs show."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from multitower.spec import ModelSpec, TensorReport
from multitower.worker.formats.model import Arrays
from multitower.worker.warmup.row_check import NO_INPUTS, TRUSTED, VARYING, RowFindings, check_rows
from multitower.worker.warmup.warmup import Findings, Sample

Function = Callable[[Any], Any]

FLOATS = TensorReport(name="x", datatype="FP32", shape=(-1, 3))
COLUMN = TensorReport(name="x", datatype="FP32", shape=(-1,))
OPEN = TensorReport(name="x", datatype="FP32", shape=(-1, -1))
IDS = TensorReport(name="x", datatype="INT64", shape=(-1, 2))
TEXT = TensorReport(name="x", datatype="BYTES", shape=(-1,))

BATCHES = [
    {"max_batch_size": 32},
    {"max_batch_size": 2},
    {"max_batch_size": 3},
    {"max_batch_size": 8, "allowed_batch_sizes": (8,)},
    {"max_batch_size": 8, "allowed_batch_sizes": (2, 8)},
]


class Model:
    """A model with the input x and the output y, made of a function of x; it keeps its calls."""

    volatile = False

    def __init__(self, function: Function, x: TensorReport = FLOATS) -> None:
        self._function = function
        self.inputs: tuple[TensorReport, ...] | None = (x,)
        self.calls: list[Any] = []

    def infer(self, inputs: Arrays) -> Arrays:
        self.calls.append(inputs["x"])
        return {"y": np.asarray(self._function(inputs["x"]))}


def check(model: Any, *samples: Sample, signature: str = "", largest: int = 0, **spec: Any) -> RowFindings:
    findings = Findings(largest=largest)
    return check_rows(
        model, ModelSpec(name="m", **{"max_batch_size": 8, **spec}), findings, samples, signature=signature
    )


def sample(*rows: Any, signature: str = "") -> Sample:
    return Sample(signature, {"x": np.array(rows, np.float32)}, "file.npz")


def softmax(x: Any) -> Any:
    powers = np.exp(x)
    return powers / powers.sum(axis=0)


def neighbours(x: Any) -> Any:
    """Each row and the next one: `a b` of `a`, `b`."""
    return np.array([first + second for first, second in zip(x, np.roll(x, -1), strict=True)], object)


MIXING: dict[str, tuple[Function, TensorReport]] = {
    "sums of the rows before": (lambda x: np.cumsum(x, axis=0), FLOATS),
    "sums of the rows behind": (lambda x: np.cumsum(x[::-1], axis=0)[::-1], FLOATS),
    "a share of the maximum": (lambda x: x / x.max(), FLOATS),
    "a softmax over the rows": (softmax, FLOATS),
    "a softmax over the rows of one column": (softmax, COLUMN),
    "a softmax over the rows of open columns": (softmax, OPEN),
    "statistics of the batch": (lambda x: (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-3), FLOATS),
    "a small part of another row": (lambda x: x + 1e-3 * np.roll(x, 1, axis=0), FLOATS),
    "the first row": (lambda x: x - x[0], FLOATS),
    "the last row": (lambda x: x - x[-1], FLOATS),
    "rows in reverse": (lambda x: x[::-1], FLOATS),
    "the number of rows": (lambda x: x / len(x), FLOATS),
    "the position of the row": (lambda x: x + np.arange(len(x), dtype=np.float32)[:, None], FLOATS),
    "the rank among the rows": (lambda x: np.argsort(np.argsort(x)), COLUMN),
    "sums of integers": (lambda x: np.cumsum(x, axis=0), IDS),
    "rows as often as they ask for": (lambda x: np.repeat(x, x[:, 0], axis=0), IDS),
    "text of the next row": (neighbours, TEXT),
    "half types": (lambda x: x.astype(ml_dtypes.bfloat16) / x.max().astype(ml_dtypes.bfloat16), FLOATS),
}


@pytest.mark.parametrize("batches", BATCHES, ids=str)
@pytest.mark.parametrize("name", MIXING)
def test_a_model_whose_rows_influence_each_other_runs_unbatched(name: str, batches: dict[str, Any]) -> None:
    function, x = MIXING[name]
    model = Model(function, x)
    found = check(model, **batches)
    assert found.unbatched_because is not None
    assert "'y'" in found.unbatched_because
    assert len(model.calls) < 20


def scaled(x: Any) -> Any:
    return x.astype(np.float32) / x.max()


def lengths(x: Any) -> Any:
    return (x != 0).sum(axis=1)


def of_kind(datatype: str, *dims: int) -> TensorReport:
    return TensorReport(name="x", datatype=datatype, shape=(-1, *dims))


SCALED_BY_THE_BATCH: dict[str, tuple[Function, TensorReport]] = {
    "images by their maximum": (scaled, of_kind("UINT8", 32, 32, 3)),
    "images from their minimum": (lambda x: x - x.min(), of_kind("UINT8", 32, 32, 3)),
    "long rows of integers": (scaled, of_kind("INT32", 128)),
    "rows of integers": (scaled, of_kind("INT64", 16)),
    "one integer a row": (scaled, of_kind("INT64")),
    "the range of many numbers": (lambda x: (x - x.min()) / (x.max() - x.min()), of_kind("FP32", 500)),
    "the minimum of numbers": (lambda x: x - x.min(), of_kind("FP32")),
    "a gate on any large number": (lambda x: x * (x > 0.99).any(), of_kind("FP32", 3)),
    "a gate on any small integer": (lambda x: x + (x == 0).any(), of_kind("INT32", 64)),
    "a flag that any row has": (lambda x: x ^ x.any(), of_kind("BOOL", 2)),
    "a flag that all rows have": (lambda x: x & x.all(), of_kind("BOOL", 40)),
    "the length of the longest row": (lambda x: x / lengths(x).max(), of_kind("INT64", 16)),
    "the length of the shortest row": (lambda x: x - lengths(x).min(), of_kind("INT64", 16)),
}


@pytest.mark.parametrize("batches", BATCHES, ids=str)
@pytest.mark.parametrize("name", SCALED_BY_THE_BATCH)
def test_rows_differ_in_their_range_so_that_a_common_scale_shows(name: str, batches: dict[str, Any]) -> None:
    function, x = SCALED_BY_THE_BATCH[name]
    assert check(Model(function, x), **batches).unbatched_because is not None


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32])
def test_variants_of_one_recorded_row_differ_in_their_range(kind: Any) -> None:
    row = np.random.default_rng(3).integers(0, 200, (1, 64)).astype(kind)
    x = of_kind({"uint8": "UINT8", "int64": "INT64", "float32": "FP32"}[row.dtype.name], 64)
    recorded = Sample("", {"x": row}, "file.npz")
    assert check(Model(scaled, x), recorded).unbatched_because is not None
    assert check(Model(lambda x: np.arange(200)[x.astype(int) % 200], x), recorded) == RowFindings()


def limited_experts(x: Any) -> Any:
    """Each of two experts takes the first 8 rows that ask for it."""
    asks = x[:, 0] > x[:, 1]
    taken = np.where(asks, np.cumsum(asks), np.cumsum(~asks)) <= 8
    return x * taken[:, None]


def groups_of_8(x: Any) -> Any:
    if len(x) < 8:
        return x
    return np.concatenate([x[start : start + 8] - x[start : start + 8].mean(0) for start in range(0, len(x), 8)])


@pytest.mark.parametrize("function", [limited_experts, groups_of_8])
@pytest.mark.parametrize("batches", [{}, {"allowed_batch_sizes": (4, 64)}], ids=str)
def test_rows_that_influence_each_other_in_large_batches_only_are_found(
    function: Function, batches: dict[str, Any]
) -> None:
    found = check(Model(function), max_batch_size=64, largest=64, **batches)
    assert found.unbatched_because is not None
    assert "'y'" in found.unbatched_because


def test_the_largest_size_that_ran_is_compared() -> None:
    model = Model(np.tanh)
    assert check(model, max_batch_size=100, largest=64) == RowFindings()
    assert [len(call) for call in model.calls] == [4, 4, 1, 1, 64, 64]


def test_missing_memory_for_the_largest_size_leaves_what_smaller_ones_showed() -> None:
    def small(x: Any) -> Any:
        if len(x) > 8:
            raise MemoryError
        return x

    assert check(Model(small), max_batch_size=64, largest=64) == RowFindings()


def without_zero(x: Any) -> Any:
    if (x == 0).any():
        raise ZeroDivisionError
    return x


INDEPENDENT: dict[str, tuple[Function, TensorReport]] = {
    "a function of each row": (lambda x: np.tanh(x) * 3, FLOATS),
    "open dimensions": (lambda x: x / x.sum(axis=-1, keepdims=True), OPEN),
    "a table with two entries": (lambda x: np.float32([[1, 2], [3, 5]])[x], IDS),
    "a table without an entry for 0": (lambda x: np.float32([1, 2, 5])[x] / without_zero(x), IDS),
    "text": (lambda x: np.array([text * 2 for text in x], object), TEXT),
    "numbers as text": (lambda x: np.array([int(text) for text in x]), TEXT),
    "NaN": (lambda x: np.where(x > 0.3, x, np.nan), FLOATS),
    "infinities": (lambda x: np.where(x > 0.3, x, -np.inf), FLOATS),
    "complex numbers": (lambda x: x * 1j, TensorReport(name="x", datatype="COMPLEX64", shape=(-1, 2))),
    "booleans": (lambda x: ~x, TensorReport(name="x", datatype="BOOL", shape=(-1, 4))),
    "bytes": (lambda x: x + 1, TensorReport(name="x", datatype="UINT8", shape=(-1, 2, 2, 3))),
    "bfloat16": (lambda x: x + x, TensorReport(name="x", datatype="BF16", shape=(-1, 4))),
}


@pytest.mark.parametrize("batches", BATCHES, ids=str)
@pytest.mark.parametrize("name", INDEPENDENT)
def test_a_model_whose_rows_are_independent_stays_batched(name: str, batches: dict[str, Any]) -> None:
    function, x = INDEPENDENT[name]
    assert check(Model(function, x), **batches) == RowFindings()


def test_few_calls_of_small_sizes_do_for_an_independent_model() -> None:
    model = Model(np.tanh)
    check(model, max_batch_size=1000)
    assert [len(call) for call in model.calls] == [4, 4, 1, 1, 4, 4]


def noisy(scale: float, per_size: bool = False) -> Function:
    """A model with noise: from run to run, or one that depends on the number of rows alone."""
    counter = itertools.count()

    def function(x: Any) -> Any:
        rng = np.random.default_rng(len(x) if per_size else next(counter))
        return x * (1 + scale * rng.uniform(-1, 1, x.shape).astype(np.float32))

    return function


@pytest.mark.parametrize("function", [noisy(1e-6, per_size=True), noisy(3e-3, per_size=True), noisy(1e-6)])
def test_noise_of_floating_point_arithmetic_is_no_influence(function: Function) -> None:
    found = check(Model(function))
    assert found == RowFindings()


def test_rows_that_influence_each_other_are_found_through_noise() -> None:
    shaken = noisy(1e-6)
    assert check(Model(lambda x: shaken(softmax(x)))).unbatched_because is not None


@pytest.mark.parametrize("batches", BATCHES, ids=str)
def test_a_model_with_random_numbers_stays_batched_unverified(batches: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    dropout = Model(lambda x: x * rng.integers(0, 2, x.shape) * 2)
    assert check(dropout, **batches) == RowFindings(None, VARYING)


def test_a_model_that_counts_its_calls_stays_batched_unverified() -> None:
    counter = itertools.count()
    assert check(Model(lambda x: x + next(counter))) == RowFindings(None, VARYING)


def test_order_that_roundings_decide_is_no_influence() -> None:
    """As in the list of the best of many values that are nearly equal."""
    weights = np.random.default_rng(2).uniform(0.999, 1.001, (3, 1000)).astype(np.float32)
    noise = noisy(1e-4, per_size=True)
    model = Model(lambda x: np.argsort(noise(x @ weights), axis=1)[:, :100])
    assert check(model) == RowFindings()


def test_values_are_not_compared_where_the_configuration_insists() -> None:
    model = Model(softmax)
    assert check(model, trust_batching=True) == RowFindings(None, TRUSTED)
    assert not model.calls


@pytest.mark.parametrize("batches", [{"max_batch_size": 0}, {"max_batch_size": 1}])
def test_values_are_not_compared_without_batches_of_several_rows(batches: dict[str, Any]) -> None:
    model = Model(softmax)
    assert check(model, **batches) == RowFindings()
    assert not model.calls


def test_values_are_not_compared_where_two_rows_have_ended_a_worker() -> None:
    model = Model(softmax)
    assert check(model, safe_rows=1) == RowFindings()
    assert not model.calls


@pytest.mark.parametrize("safe_rows", [2, 3, 4, 9])
def test_comparisons_stay_within_the_rows_that_memory_suffices_for(safe_rows: int) -> None:
    model = Model(softmax)
    assert check(model, safe_rows=safe_rows, max_batch_size=64, largest=min(safe_rows, 8)).unbatched_because is not None
    assert max(len(call) for call in model.calls) <= safe_rows


def test_values_are_not_compared_if_shapes_prevent_batches() -> None:
    model = Model(softmax)
    spec = ModelSpec(name="m", max_batch_size=8)
    assert check_rows(model, spec, Findings("it has no inputs")) == RowFindings()  # type: ignore[arg-type]
    assert not model.calls


def test_a_constant_output_shows_nothing() -> None:
    found = check(Model(np.zeros_like))
    assert found.unbatched_because is None
    assert found.unverified_because == "its outputs are equal for all rows that were tried"


@pytest.mark.parametrize(("x", "calls"), [(FLOATS, 6), (OPEN, 12)])
def test_a_constant_output_takes_a_few_calls(x: TensorReport, calls: int) -> None:
    model = Model(np.zeros_like, x)
    check(model)
    assert len(model.calls) == calls


@pytest.mark.parametrize("kind", [ValueError, SystemExit, MemoryError])
def test_a_model_that_refuses_different_rows_stays_batched_unverified(kind: type[BaseException]) -> None:
    def refuse(x: Any) -> Any:
        if len(np.unique(x, axis=0)) > 1:
            raise kind
        return x

    found = check(Model(refuse))
    assert found.unbatched_because is None
    assert found.unverified_because == "it raised an exception for made-up inputs of different rows"


def test_a_model_that_refuses_single_rows_is_checked_in_batches() -> None:
    def pairs(x: Any) -> Any:
        if len(x) % 2:
            raise ValueError("pairs")
        return x

    assert check(Model(pairs)) == RowFindings()
    assert check(Model(lambda x: pairs(softmax(x)))).unbatched_because is not None


# Recorded requests.


def only(allowed: Any, function: Function = lambda x: x) -> Function:
    """A model that refuses rows other than some."""

    def limited(x: Any) -> Any:
        if not np.isin(x, allowed).all():
            raise ValueError("an unknown row")
        return function(x)

    return limited


@pytest.mark.parametrize("rows", [(7, 8), (7, 8, 9), (7, 7, 8, 8, 9)])
def test_recorded_rows_are_compared(rows: tuple[float, ...]) -> None:
    recorded = sample(*([row] * 3 for row in rows))
    assert check(Model(only(rows)), recorded) == RowFindings()
    assert check(Model(only(rows, softmax)), recorded).unbatched_because is not None


def test_rows_of_several_recorded_requests_are_compared() -> None:
    samples = [sample([row] * 3) for row in (7, 8, 9)]
    assert check(Model(only((7, 8, 9))), *samples) == RowFindings()
    assert check(Model(only((7, 8, 9), softmax)), *samples).unbatched_because is not None


def test_one_recorded_row_is_varied() -> None:
    model = Model(lambda x: softmax(x) if x.min() > 5 else np.float32("nan") * x)
    assert check(model, sample([20, 30, 40])).unbatched_because is not None


@pytest.mark.parametrize("declared", [True, False])
def test_a_handler_runs_on_recorded_rows_only(declared: bool) -> None:
    model = Model(softmax)
    if not declared:
        model.inputs = None
    assert check(model, handler="m:M") == RowFindings(None, NO_INPUTS)
    assert check(model, sample([7, 7, 7]), handler="m:M") == RowFindings(None, NO_INPUTS)
    assert not model.calls
    assert check(model, sample([7, 7, 7], [8, 8, 8]), handler="m:M").unbatched_because is not None


def test_another_signature_runs_on_recorded_rows_only() -> None:
    model = Model(softmax)
    recorded = sample([7, 7, 7], [8, 8, 8], signature="other")
    assert check(model, recorded, signature="train") == RowFindings(None, NO_INPUTS)
    assert not model.calls, "it might train the model"
    assert check(model, recorded, signature="other").unbatched_because is not None


def test_arrays_that_the_next_call_overwrites_are_kept() -> None:
    buffer = np.zeros((8, 3), np.float32)

    def overwrite(x: Any) -> Any:
        buffer[: len(x)] = x
        return buffer[: len(x)]

    assert check(Model(overwrite)) == RowFindings()


def test_xla_gets_the_sizes_of_the_warm_up_only() -> None:
    for allowed, sizes in (((2, 8), {2, 8}), ((4, 8), {4, 8}), ((8,), {1, 8})):
        model = Model(lambda x: x / len(x))
        found = check(model, max_batch_size=8, allowed_batch_sizes=allowed, jit_compile=True)
        assert found.unbatched_because is not None
        assert {len(call) for call in model.calls} == sizes
