"""Latencies, arrivals, tallies and inputs of `multitower bench`."""

from __future__ import annotations

import itertools
import json
import math
import random
from typing import Any

import numpy as np
import pytest

from multitower.tools.bench import inputs
from multitower.tools.bench.arrivals import Load, poisson
from multitower.tools.bench.histogram import Histogram
from multitower.tools.bench.inputs import InputsError, InputShape
from multitower.tools.bench.tally import Tally, total


def filled(*durations: int) -> Histogram:
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)
    return histogram


# Latencies.


def test_percentiles_are_at_most_a_128th_too_high() -> None:
    rng = random.Random(1)
    durations = [int(10 ** rng.uniform(0, 11)) for _ in range(5000)]
    histogram = filled(*durations)
    durations.sort()
    for percent in (0.01, 1, 10, 50, 90, 99, 99.9, 100):
        exact = durations[max(math.ceil(round(percent * 50, 6)), 1) - 1]
        assert exact <= histogram.percentile_ns(percent) <= exact * (1 + 1 / 128)
    assert histogram.max_ns == durations[-1]
    assert histogram.percentile_ns(100) == durations[-1]
    assert histogram.mean_ns == sum(durations) / len(durations)


@pytest.mark.parametrize(
    ("durations", "missing", "percent", "wanted"),
    [
        ([], 0, 50, math.nan),
        ([], 1, 50, math.inf),
        ([7], 0, 0.1, 7),
        ([7], 0, 100, 7),
        ([1, 2, 3, 4], 0, 50, 2),
        ([1, 2, 3, 4], 0, 51, 3),
        (range(100), 0, 7, 6),  # 0.07 * 100 is a little over 7
        (range(99), 1, 99, 98),  # one of a hundred requests may fail
        (range(98), 2, 99, math.inf),
        ([-5], 0, 50, 0),
    ],
)
def test_percentiles_of_few_durations(durations: Any, missing: int, percent: float, wanted: float) -> None:
    found = filled(*durations).percentile_ns(percent, missing)
    assert found == wanted or (math.isnan(found) and math.isnan(wanted))


def test_a_duration_beyond_the_last_bucket_counts_as_the_longest() -> None:
    histogram = filled(1 << 60)
    assert histogram.count == 1
    assert histogram.percentile_ns(50) == histogram.max_ns == (1 << 43) - 1


def test_merging_serialized_histograms_adds_their_counts() -> None:
    one, other = filled(1, 300, 10**9), filled(299, 5 * 10**12)
    whole = filled(1, 300, 10**9, 299, 5 * 10**12)
    one.merge(Histogram.from_json(json.loads(json.dumps(other.to_json()))))
    assert one.to_json() == whole.to_json()
    assert one.count == whole.count


# Load and arrivals.


@pytest.mark.parametrize(
    ("load", "processes", "parts"),
    [
        (Load("closed", 8), 3, [3, 3, 2]),
        (Load("closed", 2), 4, [1, 1]),
        (Load("closed", 1), 1, [1]),
        (Load("open", 300.0), 4, [75.0] * 4),
        (Load("open", 0.5), 2, [0.25, 0.25]),
    ],
)
def test_a_load_is_split_evenly_among_processes(load: Load, processes: int, parts: list[float]) -> None:
    assert load.split(processes) == [Load(load.loop, part) for part in parts]


def test_arrivals_have_exponential_gaps() -> None:
    times = np.array(list(itertools.islice(poisson(200.0, seed=3), 20_000)))
    gaps = np.diff(times, prepend=0.0)
    assert (gaps > 0).all()
    # Exponential gaps: mean and deviation are 1 / rate. Of 20,000 gaps, the mean is off by 3 % once in 20,000 runs.
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 200, rel=0.05)


def test_the_same_seed_gives_the_same_arrivals() -> None:
    first, again, other = (list(itertools.islice(poisson(10.0, seed), 5000)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


# Tallies.


def test_the_sum_of_serialized_tallies() -> None:
    one, other = Tally(answered=3, cpu=[0.5]), Tally(answered=4, cpu=[0.25])
    for duration in (1, 2, 3):
        one.latency.add(duration)
    other.latency.add(9)
    other.late.add(1)
    one.fail("queue_full", "full")
    other.fail("queue_full", "still full")
    other.fail("deadline", "too late", 2)
    whole = total(Tally.from_bytes(tally.to_bytes()) for tally in (one, other))
    assert (whole.answered, whole.latency.count, whole.late.count) == (7, 4, 1)
    assert (whole.refused, whole.failed, whole.due) == (2, 2, 8)
    assert whole.messages == {"queue_full": "full", "deadline": "too late"}
    assert whole.cpu == [0.5, 0.25]
    assert whole.percentile_s(50) == 9e-9
    assert whole.percentile_s(51) == math.inf


# Inputs.


@pytest.mark.parametrize(
    ("text", "name", "shape"),
    [
        ("x:1,224,224,3", "x", InputShape((1, 224, 224, 3), None)),
        ("x:8", "x", InputShape((8,), None)),
        ("x:", "x", InputShape((), None)),
        ("x:INT64:2,3", "x", InputShape((2, 3), "INT64")),
        ("x:0:2,3", "x:0", InputShape((2, 3), None)),
        ("x:0:BYTES:2", "x:0", InputShape((2,), "BYTES")),
        ("INT64:2", "INT64", InputShape((2,), None)),
    ],
)
def test_shape_options_are_parsed(text: str, name: str, shape: InputShape) -> None:
    assert inputs.parse_shape(text) == (name, shape)


@pytest.mark.parametrize("text", ["", "x", ":1", "x:a", "x:0", "x:1,,2", "x:-1,2", "x:1.5", "x:²"])
def test_an_invalid_shape_option_is_refused(text: str) -> None:
    with pytest.raises(InputsError, match="as in x:1,224,224,3"):
        inputs.parse_shape(text)


X = {"name": "x", "datatype": "FP32", "shape": [-1, 3]}
N = {"name": "n", "datatype": "INT64", "shape": [-1]}
FREE = {"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}
FIXED = {"name": "k", "datatype": "FP32", "shape": []}


@pytest.mark.parametrize(
    ("declared", "shapes", "rows", "wanted"),
    [
        ([X, N], {}, None, {"x": ("FP32", (1, 3)), "n": ("INT64", (1,))}),
        ([X, N, FIXED], {}, 4, {"x": ("FP32", (4, 3)), "n": ("INT64", (4,)), "k": ("FP32", ())}),
        ([FREE], {}, None, {"image": ("UINT8", (1, 1, 1, 3))}),
        ([FREE], {"image": InputShape((2, 9, 9, 3), None)}, None, {"image": ("UINT8", (2, 9, 9, 3))}),
        ([FREE], {"image": InputShape((2, 9, 9, 3), "UINT8")}, 5, {"image": ("UINT8", (5, 9, 9, 3))}),
        (
            [],
            {"a": InputShape((1, 4), None), "b": InputShape((2,), "BYTES")},
            None,
            {"a": ("FP32", (1, 4)), "b": ("BYTES", (2,))},
        ),
        ([], {"a": InputShape((1, 4), None)}, 7, {"a": ("FP32", (7, 4))}),
    ],
)
def test_inputs_have_the_declared_datatypes_and_shapes(
    declared: Any, shapes: Any, rows: int | None, wanted: Any
) -> None:
    assert inputs.resolve_inputs(declared, shapes, rows) == wanted
    for request in inputs.random_requests(wanted, seed=0):
        assert {name: array.shape for name, array in request.items()} == {
            name: each[1] for name, each in wanted.items()
        }


@pytest.mark.parametrize(
    ("declared", "shapes", "words"),
    [
        ([], {}, "declares no inputs"),
        ([X], {"y": InputShape((1,), None)}, "no input 'y', only 'x'"),
        ([X], {"x": InputShape((1, 4), None)}, r"takes the shape \[-1, 3\] for the input 'x'; --shape gives \[1, 4\]"),
        ([X], {"x": InputShape((3,), None)}, "takes the shape"),
        ([X], {"x": InputShape((1, 3), "FP64")}, "takes FP32 for the input 'x'; --shape gives FP64"),
    ],
)
def test_shapes_that_contradict_the_model_are_refused(declared: Any, shapes: Any, words: str) -> None:
    with pytest.raises(InputsError, match=words):
        inputs.resolve_inputs(declared, shapes, None)


@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "INT8", "UINT64", "INT32", "FP16", "FP64", "COMPLEX64", "BYTES"])
def test_the_same_seed_gives_the_same_random_values(datatype: str) -> None:
    wanted = {"x": (datatype, (2, 50))}
    one, again, other = (inputs.random_requests(wanted, seed)[0]["x"] for seed in (1, 1, 2))
    assert one.tolist() == again.tolist()
    assert one.tolist() != other.tolist()
    if datatype == "BYTES":
        assert all(len(word) == 8 and word.isalpha() for word in one.ravel())
    elif datatype in ("UINT64", "INT32"):
        assert set(one.ravel().tolist()) == {0, 1}
    elif datatype.startswith("FP"):
        assert ((one >= 0) & (one <= 1)).all()


def test_request_variants_differ_and_are_bounded_in_bytes() -> None:
    small = inputs.random_requests({"x": ("FP32", (1, 4))}, seed=0)
    assert len({request["x"].tobytes() for request in small}) == inputs.VARIANTS
    assert len(inputs.random_requests({"x": ("UINT8", (inputs.MAX_BYTES // 3,))}, seed=0)) == 3
    assert len(inputs.random_requests({"x": ("UINT8", (inputs.MAX_BYTES + 1,))}, seed=0)) == 1


def test_given_arrays_are_split_into_requests() -> None:
    arrays = {"x": np.arange(10).reshape(5, 2), "y": np.arange(5)}
    (whole,) = inputs.split_into_requests(arrays, None)
    assert whole["x"] is arrays["x"]
    first, second = inputs.split_into_requests(arrays, 2)
    assert (first["y"].tolist(), second["y"].tolist()) == ([0, 1], [2, 3])
    assert second["x"].tolist() == [[4, 5], [6, 7]]
    assert (inputs.row_count(second), inputs.byte_count(second)) == (2, 48)


@pytest.mark.parametrize(
    ("arrays", "rows", "words"),
    [
        ({}, None, "empty"),
        ({"x": np.zeros(3)}, 4, "requests of 4 rows"),
        ({"x": np.zeros(3), "y": np.zeros(2)}, 1, "'x' 3, 'y' 2"),
        ({"x": np.zeros(())}, 1, "'x' 0"),
    ],
)
def test_arrays_that_cannot_be_split_are_refused(arrays: Any, rows: int | None, words: str) -> None:
    with pytest.raises(InputsError, match=words):
        inputs.split_into_requests(arrays, rows)
