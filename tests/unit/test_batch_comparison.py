"""Values are compared in batches of requests, for models whose warm-up could not compare any."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from multitower.worker.executor import Executor
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
