"""Values are compared in batches of requests, for models whose warm-up could not compare any."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from multitower.worker.executor import MAX_VARIANTS, Executor
from multitower.worker.formats.model import Arrays
from multitower.worker.row_comparison import VARYING
from multitower.worker_wire import KeySpec

KEY = KeySpec("m", (("x", "FP32", ()),), None, True)
UNVERIFIED = "no recorded requests"
BATCH = [[1.0, 5.0], [3.0], [2.0], [4.0, 6.0]]


class Model:
    """A handler that declares nothing: the output y is a function of the input x. It keeps its calls."""

    version = "1"
    inputs = outputs = None
    volatile = True

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function
        self.calls: list[Any] = []

    def infer(self, inputs: Arrays) -> Arrays:
        self.calls.append(inputs["x"])
        assert not inputs["x"].flags.writeable
        return {"y": np.asarray(self._function(inputs["x"]), np.float32)}


def executor(model: Any, allowed: tuple[int, ...] = (), **more: Any) -> Executor:
    return Executor("m", model, allowed, **{"unverified_because": UNVERIFIED, "comparisons": 8, **more})


def run(executor: Executor, *entries: Sequence[float], joined: bool = False) -> list[Any]:
    frames = [np.float32(entry).tobytes() for entry in entries]
    if joined:
        frames = [b"".join(frames)]
    prepared = executor.prepare(KEY, [len(entry) for entry in entries], frames, joined=joined)
    answers, _ = executor.run(prepared)
    return [np.frombuffer(answer[1], np.float32).tolist() if isinstance(answer, list) else answer for answer in answers]


MIXING: dict[str, Callable[[Any], Any]] = {
    "sums of the rows before": np.cumsum,
    "sums of the rows behind": lambda x: np.cumsum(x[::-1])[::-1],
    "a share of the maximum": lambda x: x / x.max(),
    "a softmax over the rows": lambda x: np.exp(x) / np.exp(x).sum(),
    "the number of rows": lambda x: x / len(x),
    "the position of the row": lambda x: x + np.arange(len(x)),
    "rows as often as they ask for": lambda x: np.repeat(x, x.astype(int))[: len(x)],
}


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("allowed", [(), (8,)])
@pytest.mark.parametrize("name", MIXING)
def test_requests_get_what_they_would_get_without_others(name: str, allowed: tuple[int, ...], joined: bool) -> None:
    function = MIXING[name]
    made = executor(Model(function), allowed)
    wanted = [np.asarray(function(np.float32(entry)), np.float32).tolist() for entry in BATCH]
    assert run(made, *BATCH, joined=joined) == wanted
    assert "'y'" in str(made.unbatched_because)
    assert made.unverified_because is None
    assert run(made, *BATCH, joined=joined) == wanted


@pytest.mark.parametrize("name", ["sums of the rows before", "sums of the rows behind", "a share of the maximum"])
def test_two_requests_do(name: str) -> None:
    made = executor(Model(MIXING[name]))
    run(made, [1.0, 7.0], [3.0])
    assert made.unbatched_because is not None


@pytest.mark.parametrize("allowed", [(), (8,)])
@pytest.mark.parametrize("joined", [True, False])
def test_an_independent_model_is_verified_by_one_batch(allowed: tuple[int, ...], joined: bool) -> None:
    model = Model(lambda x: x * 2)
    made = executor(model, allowed)
    assert run(made, [9.0], joined=joined) == [[18.0]]
    assert made.unverified_because == UNVERIFIED, "one request shows nothing"
    assert run(made, *BATCH, joined=joined) == [[2 * each for each in entry] for entry in BATCH]
    assert (made.unverified_because, made.unbatched_because) == (None, None)
    size = 8 if allowed else 6
    assert [len(call) for call in model.calls[1:]] == [size, 1, 1, 2, size, size]
    model.calls.clear()
    run(made, *BATCH, joined=joined)
    assert [len(call) for call in model.calls] == [size], "nothing is compared any more"


@pytest.mark.parametrize("joined", [True, False])
def test_rows_of_one_request_are_compared(joined: bool) -> None:
    """Parts of a request that was split are such requests, and would be joined again."""
    mixing = executor(Model(lambda x: x / x.max()), (8,))
    assert run(mixing, [1.0, 4.0, 2.0], joined=joined) == [[0.25, 1.0, 0.5]]
    assert mixing.unbatched_because is not None
    independent = executor(Model(lambda x: x + 1), (8,))
    assert run(independent, [1.0, 4.0, 2.0], joined=joined) == [[2.0, 5.0, 3.0]]
    assert (independent.unbatched_because, independent.unverified_because) == (None, None)


def test_equal_requests_show_nothing_and_the_next_batch_is_compared() -> None:
    made = executor(Model(lambda x: x / x.max()))
    run(made, [3.0], [3.0], [3.0])
    assert (made.unverified_because, made.unbatched_because) == (UNVERIFIED, None)
    assert run(made, [3.0], [4.0]) == [[1.0], [1.0]]
    assert made.unbatched_because is not None


def test_a_constant_output_is_compared_in_the_first_batches_only() -> None:
    model = Model(np.zeros_like)
    made = executor(model, comparisons=2)
    for calls in (6, 6, 1):
        model.calls.clear()
        run(made, *BATCH)
        assert len(model.calls) == calls
    assert made.unverified_because == UNVERIFIED


def test_a_model_with_random_numbers_stays_batched() -> None:
    rng = np.random.default_rng(1)
    made = executor(Model(lambda x: x + rng.normal(size=x.shape)))
    run(made, *BATCH)
    assert (made.unbatched_because, made.unverified_because) == (None, VARYING)


def test_noise_of_other_sizes_is_no_influence() -> None:
    made = executor(Model(lambda x: x * (1 + 1e-3 * np.random.default_rng(len(x)).uniform(size=x.shape))))
    run(made, *BATCH)
    assert (made.unbatched_because, made.unverified_because) == (None, None)


def test_one_request_whose_value_roundings_decide_is_no_influence() -> None:
    made = executor(Model(lambda x: np.where((x == 2) & (len(x) > 1), 100.0, x)))
    run(made, *BATCH)
    assert (made.unbatched_because, made.unverified_because) == (None, None)


@pytest.mark.parametrize("kind", [ValueError, SystemExit, MemoryError])
def test_an_error_in_a_comparison_costs_no_request(kind: type[BaseException]) -> None:
    counter = itertools.count()

    def function(x: Any) -> Any:
        if next(counter) == 1:
            raise kind
        return x

    made = executor(Model(function), proven=True)
    assert run(made, *BATCH) == BATCH
    assert (made.unbatched_because, made.unverified_because) == (None, UNVERIFIED)


def test_an_output_of_a_constant_size_is_found() -> None:
    made = executor(Model(lambda x: np.full(6, x.sum())))
    run(made, *BATCH)
    assert made.unbatched_because == "1 rows gave outputs of the shapes 'y' [6]"


def test_a_request_that_raises_gets_its_error_and_no_other_does() -> None:
    def function(x: Any) -> Any:
        if (x == 3).any():
            raise ValueError("three")
        return x

    answers = run(executor(Model(function)), *BATCH)
    assert [isinstance(answer, list) for answer in answers] == [True, False, True, True]


class TwoOutputs(Model):
    """Rows of the output a are independent; those of b are not. With an input z, those of a are not, either."""

    def infer(self, inputs: Arrays) -> Arrays:
        self.calls.append(inputs["x"])
        x = inputs["x"]
        return {"a": x / x.max() if "z" in inputs else x * 2, "b": x / x.max()}


def run_choice(made: Executor, outputs: tuple[str, ...] | None, names: tuple[str, ...] = ("x",)) -> list[list[float]]:
    """Runs the rows 1, 2 and 4 as three requests; the values of the first output of each."""
    key = KeySpec("m", tuple((name, "FP32", ()) for name in names), outputs, True)
    frames = [np.float32([row]).tobytes() for row in (1, 2, 4) for _ in names]
    answers, _ = made.run(made.prepare(key, [1, 1, 1], frames))
    return [np.frombuffer(answer[1], np.float32).tolist() for answer in answers if isinstance(answer, list)]


@pytest.mark.parametrize("outputs", [("b",), ("b", "a"), None])
def test_outputs_that_a_comparison_did_not_have_are_compared_later(outputs: tuple[str, ...] | None) -> None:
    made = executor(TwoOutputs(np.tanh))
    assert run_choice(made, ("a",)) == [[2], [4], [8]]
    assert made.unbatched_because is None
    run_choice(made, outputs)
    assert "'b'" in str(made.unbatched_because)
    assert run_choice(made, ("b",)) == [[1], [1], [1]]


def test_inputs_that_a_comparison_did_not_have_are_compared_later() -> None:
    made = executor(TwoOutputs(np.tanh))
    assert run_choice(made, ("a",)) == [[2], [4], [8]]
    assert run_choice(made, ("a",), ("x", "z")) == [[1], [1], [1]]
    assert "'a'" in str(made.unbatched_because)


def test_each_choice_of_inputs_and_outputs_is_compared_once_and_few_are() -> None:
    model = Model(lambda x: x + 1)
    made = executor(model)
    calls = []
    for number in range(MAX_VARIANTS + 1):
        for _ in range(2):
            model.calls.clear()
            run_choice(made, None, ("x", f"z{number}"))
            calls.append(len(model.calls))
    assert calls[0] > 3
    assert calls[2 : 2 * MAX_VARIANTS : 2] == calls[:1] * (MAX_VARIANTS - 1)
    assert set(calls[1::2]) == {1}
    assert calls[-2] == 2, "one request, and the others, whose sizes show what outputs are like"


@pytest.mark.parametrize("joined", [True, False])
def test_batches_of_more_rows_than_memory_suffices_for_are_not_compared(joined: bool) -> None:
    model = Model(lambda x: x * 2)
    made = executor(model, proven=True, safe_rows=4)
    run(made, *[[float(row)] for row in range(8)], joined=joined)
    assert [len(call) for call in model.calls] == [4, 4]
    assert made.unverified_because == UNVERIFIED
    run(made, [1.0], [2.0], joined=joined)
    assert made.unverified_because is None, "a smaller batch is compared"


def test_a_batch_that_memory_did_not_suffice_for_is_not_compared() -> None:
    def limited(x: Any) -> Any:
        if len(x) > 4:
            raise MemoryError
        return x

    model = Model(limited)
    made = executor(model, proven=True)
    entries = [[float(row)] for row in range(8)]
    assert run(made, *entries) == entries
    assert [len(call) for call in model.calls] == [8, 4, 4]
