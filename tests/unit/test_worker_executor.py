"""No request gets another's rows, or pays for another's error, whatever the model does."""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_model import BAD, KEY, Scripted, picky, run, square

from multitower.errors import MultitowerError
from multitower.worker.executor import Executor
from multitower.worker.formats.model import Arrays
from multitower.worker_wire import KeySpec


def test_a_batch_is_one_call_and_each_entry_gets_its_rows() -> None:
    model = Scripted(square)
    assert run(Executor("m", model, (), proven=True), [1, 2], [3], [4]) == [[1, 4], [9], [16]]
    assert model.calls == [[1, 2, 3, 4]]


def test_padding_repeats_the_last_row_and_is_removed_from_outputs() -> None:
    model = Scripted(square)
    assert run(Executor("m", model, (4, 8), proven=True), [1, 2], [3]) == [[1, 4], [9]]
    assert model.calls == [[1, 2, 3, 3]]


@pytest.mark.parametrize("options", [{"proven": True}, {}, {"unbatched": True}], ids=str)
@pytest.mark.parametrize("last", [3, BAD])
def test_inputs_that_are_padded_already_are_used_as_they_are(last: int, options: dict[str, Any]) -> None:
    model = Scripted(picky)
    executor = Executor("m", model, (4, 8), **options)
    frame = np.array([1, 2, last, last], np.int64)
    prepared = executor.prepare(KEY, [1, 2], [frame.tobytes()], joined=True, padded=True)
    if options.get("proven"):
        assert prepared.model_inputs is prepared.joined
    answers, _ = executor.run(prepared)
    assert np.frombuffer(answers[0][1], np.int64).tolist() == [1]
    if last == BAD:
        assert isinstance(answers[1], MultitowerError)
    else:
        assert np.frombuffer(answers[1][1], np.int64).tolist() == [4, 9]
    if options.get("proven") and last != BAD:
        assert model.calls == [[1, 2, 3, 3]]


def test_each_row_of_a_batch_gets_the_default_of_a_missing_input() -> None:
    model = Scripted(square)
    given: list[dict[str, list[int]]] = []

    def infer(inputs: Arrays) -> Arrays:
        given.append({name: array.tolist() for name, array in inputs.items()})
        return {"y": inputs["x"] * inputs.get("factor", 0)}

    model.infer = infer  # type: ignore[method-assign]
    executor = Executor("m", model, (4,), proven=True, row_defaults={"factor": np.array([5])})
    assert run(executor, [1, 2], [3]) == [[5, 10], [15]]
    whole = KeySpec("m", (("x", "INT64", (2,)),), None, False)
    assert run(executor, [7, 8], key=whole) == [[0, 0]]
    assert given == [{"x": [1, 2, 3, 3], "factor": [5] * 4}, {"x": [7, 8]}], "unbatched, the model takes its default"


def test_the_timing_of_a_batch_is_reported() -> None:
    executor = Executor("m", Scripted(square), (), proven=True)
    _, timing = executor.run(executor.prepare(KEY, [1, 1], [bytes(8), bytes(8)]))
    assert min(timing.assemble_ns, timing.compute_ns, timing.slice_ns) > 0


@pytest.mark.parametrize("proven", [True, False])
@pytest.mark.parametrize("entries", range(1, 10))
def test_only_the_entry_that_raises_gets_the_error(entries: int, proven: bool) -> None:
    for culprit in range(entries):
        model = Scripted(picky)
        batch = [[BAD if number == culprit else number + 10] for number in range(entries)]
        wanted = [["model_error"] if x == BAD else [x * x] for (x,) in batch]
        assert [
            a if isinstance(a, list) else [a] for a in run(Executor("m", model, (), proven=proven), *batch)
        ] == wanted


def test_finding_the_entry_that_raises_takes_logarithmically_many_calls() -> None:
    model = Scripted(picky)
    run(Executor("m", model, (), proven=True), *([number] for number in [*range(31), BAD]))
    assert len(model.calls) == 1 + 2 * 5


@given(
    st.lists(st.lists(st.integers(-1, 5), min_size=1, max_size=4), min_size=1, max_size=12),
    st.sampled_from([(), (1, 4, 48), (48,)]),
    st.booleans(),
)
def test_joined_answers_equal_those_of_separate_calls(
    entries: list[list[int]], allowed: tuple[int, ...], proven: bool
) -> None:
    wanted = ["model_error" if BAD in entry else [x * x for x in entry] for entry in entries]
    assert run(Executor("m", Scripted(picky), allowed, proven=proven), *entries) == wanted


UNBATCHABLE: dict[str, Callable[[np.ndarray], Arrays]] = {
    "a scalar": lambda x: {"y": x.sum()},
    "one row": lambda x: {"y": x.sum(keepdims=True)},
    "as many rows as the batch has at first": lambda x: {"y": np.full(4, x.sum())},
    "as many rows as the first entry": lambda x: {"y": np.full(2, x.sum())},
    "as many rows as the others": lambda x: {"y": np.full(3, x.sum())},
    "rows left out": lambda x: {"y": x[x != C]},
    "a row more": lambda x: {"y": np.append(x, x.sum())},
}


# Each row is a different hexadecimal digit, so that a sum shows which rows it consists of.
A, B, C, D = 0x1, 0x10, 0x100, 0x1000


@pytest.mark.parametrize("entries", [[[A, B], [C], [D]], [[C], [A], [B], [D]], [[A, B], [D, C]], [[A], [C]]])
@pytest.mark.parametrize("shape", UNBATCHABLE)
def test_outputs_without_the_batch_dimension_are_never_shared(shape: str, entries: list[list[int]]) -> None:
    executor = Executor("m", Scripted(UNBATCHABLE[shape]), ())
    for batch in (entries, entries[::-1]):
        assert run(executor, *batch) == [UNBATCHABLE[shape](np.array(entry))["y"].tolist() for entry in batch]


def test_the_reason_for_running_unbatched_is_known_after_the_batch() -> None:
    executor = Executor("m", Scripted(UNBATCHABLE["a scalar"]), ())
    assert executor.unbatched_because is None
    run(executor, [A, B], [C])
    assert executor.unbatched_because == "2 rows gave outputs of the shapes 'y' []"


@pytest.mark.parametrize("allowed", [(4,), (1, 4), (2, 4, 8)])
@pytest.mark.parametrize("entries", [[[A, B], [C], [D]], [[C], [A], [B], [D]], [[A, B], [D, C]], [[A], [C]]])
@pytest.mark.parametrize("shape", UNBATCHABLE)
def test_outputs_without_the_batch_dimension_are_not_shared_when_padded(
    shape: str, entries: list[list[int]], allowed: tuple[int, ...]
) -> None:
    executor = Executor("m", Scripted(UNBATCHABLE[shape]), allowed)
    for batch in (entries, entries[::-1]):
        for entry, answer in zip(batch, run(executor, *batch), strict=True):
            for number in np.ravel(answer).tolist():
                assert all(number >> 4 * digit & 0xF == 0 or 0x10**digit in entry for digit in range(4)), (
                    entry,
                    answer,
                )


def raising(shape: str) -> Callable[[np.ndarray], Arrays]:
    def function(x: np.ndarray) -> Arrays:
        if (x == BAD).any():
            raise ValueError
        return UNBATCHABLE[shape](x)

    return function


@pytest.mark.parametrize(
    ("shape", "entries", "proven"),
    [
        pytest.param("as many rows as the others", [[BAD], [A], [B], [C]], False, id="the first shows nothing"),
        pytest.param("as many rows as the first entry", [[A, B], [C], [D], [A], [BAD]], False, id="nor do halves"),
        pytest.param("as many rows as the first entry", [[A], [B], [C], [D], [A], [BAD]], True, id="found out amid it"),
    ],
)
def test_outputs_without_the_batch_dimension_are_not_shared_if_others_raise(
    shape: str, entries: list[list[int]], proven: bool
) -> None:
    wanted = ["model_error" if BAD in entry else UNBATCHABLE[shape](np.array(entry))["y"].tolist() for entry in entries]
    assert run(Executor("m", Scripted(raising(shape)), (), proven=proven), *entries) == wanted


@pytest.mark.parametrize("allowed", [(4,), (2, 4)])
def test_a_key_is_proven_with_allowed_sizes_only(allowed: tuple[int, ...]) -> None:
    model = Scripted(square)
    executor = Executor("m", model, allowed)
    for _ in range(2):
        assert run(executor, [1], [2], [3]) == [[1], [4], [9]]
    assert {len(call) for call in model.calls} == set(allowed)


def test_requests_run_unbatched_once_outputs_lack_the_batch_dimension(caplog: pytest.LogCaptureFixture) -> None:
    model = Scripted(UNBATCHABLE["one row"])
    executor = Executor("m", model, ())
    with caplog.at_level(logging.WARNING):
        assert run(executor, [1, 2], [3, 4], [5, 6]) == [[3], [7], [11]]
    (record,) = caplog.records
    assert "'y' [1]" in getattr(record, "fields", {})["cause"]
    model.calls.clear()
    assert run(executor, [1, 2], [3, 4]) == [[3], [7]]
    assert model.calls == [[1, 2], [3, 4]]


def test_outputs_of_proven_models_are_checked_in_every_batch() -> None:
    model = Scripted(UNBATCHABLE["rows left out"])
    executor = Executor("m", model, (), proven=True)
    assert run(executor, [1], [2]) == [[1], [2]]
    assert run(executor, [1], [C], [2]) == [[1], [], [2]]


def test_a_padded_first_entry_runs_again_if_the_others_disprove_it() -> None:
    executor = Executor("m", Scripted(UNBATCHABLE["as many rows as the batch has at first"]), (1, 4, 8))
    assert run(executor, [A, B], [C, D, D]) == [[A + B] * 4, [C + D + D] * 4]


def test_two_sizes_prove_a_key_without_running_any_row_twice() -> None:
    model = Scripted(square)
    executor = Executor("m", model, ())
    assert run(executor, [1], [2], [3]) == [[1], [4], [9]]
    assert model.calls == [[1], [2, 3]]
    assert run(executor, [1], [2], [3]) == [[1], [4], [9]]
    assert model.calls[2:] == [[1, 2, 3]]


def test_two_equal_entries_prove_a_key_by_padding() -> None:
    model = Scripted(square)
    executor = Executor("m", model, ())
    assert run(executor, [1], [2]) == [[1], [4]]
    assert model.calls == [[1], [2, 2]]
    assert run(executor, [1], [2]) == [[1], [4]]
    assert model.calls[2:] == [[1, 2]]


def test_a_proof_counts_for_its_own_key_only() -> None:
    def both(x: np.ndarray) -> Arrays:
        return {"y": x * x, "total": np.full(3, x.sum())}

    chosen = KeySpec("m", KEY.inputs, ("y",), True)
    total = KeySpec("m", KEY.inputs, ("total",), True)
    executor = Executor("m", Scripted(both), ())
    assert run(executor, [1], [2], [3], key=chosen) == [[1], [4], [9]]
    assert run(executor, [1], [2], [3], key=total) == [[1] * 3, [2] * 3, [3] * 3]


def test_a_single_entry_runs_once() -> None:
    model = Scripted(UNBATCHABLE["a scalar"])
    assert run(Executor("m", model, ()), [1, 2]) == [3]
    assert model.calls == [[1, 2]]


def test_an_unbatched_key_runs_as_it_is() -> None:
    model = Scripted(UNBATCHABLE["a scalar"])
    key = KeySpec("m", (("x", "INT64", (2,)),), None, False)
    executor = Executor("m", model, (8,), unbatched=True)
    answers, _ = executor.run(executor.prepare(key, [1], [np.array([1, 2]).tobytes()]))
    assert json.loads(answers[0][0])["outputs"] == [{"name": "y", "datatype": "INT64", "shape": []}]
    assert model.calls == [[1, 2]]


# Inputs of varying length.

PADDED = KeySpec("m", (("n", "INT64", ()), ("x", "INT64", (-1, -1)), ("", "INT64", (2,))), None, True)


class Masked:
    """Sums the first `n` columns of each row, which padding must not change; also returns the padded rows."""

    platform = "python"
    volatile = True
    version = "1"
    inputs = None
    outputs = None

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def infer(self, inputs: Arrays) -> Arrays:
        x, n = inputs["x"], inputs["n"]
        self.shapes.append(x.shape)
        if (n < 0).any():
            raise ValueError
        mask = np.arange(x.shape[2]) < n[:, None, None]
        return {"sum": np.where(mask, x, 0)[:, 0].sum(axis=1), "x": x}

    def close(self) -> None:
        pass


def run_padded(executor: Executor, *entries: np.ndarray, lengths: Sequence[int] | None = None) -> list[Any]:
    """For each entry its sums and its padded rows, or the reason of its error."""
    frames: list[bytes] = []
    for index, entry in enumerate(entries):
        n = entry.shape[2] if lengths is None else lengths[index]
        frames += [np.full(len(entry), n).tobytes(), entry.tobytes(), np.array(entry.shape[1:], np.int64).tobytes()]
    answers, _ = executor.run(executor.prepare(PADDED, [len(entry) for entry in entries], frames))
    told: list[Any] = []
    for answer in answers:
        if isinstance(answer, MultitowerError):
            told.append(answer.reason)
            continue
        shapes = {output["name"]: output["shape"] for output in json.loads(answer[0])["outputs"]}
        sums, x = (np.frombuffer(frame, np.int64) for frame in answer[1:])
        told.append((sums.tolist(), x.reshape(shapes["x"])))
    return told


def test_entries_are_padded_with_their_own_first_element() -> None:
    first, second = np.array([[[1, 2]], [[3, 4]]]), np.array([[[5, 6, 7], [8, 9, 10]]])
    (sums, x), (other_sums, other) = run_padded(Executor("m", Masked(), (), proven=True), first, second)
    assert (sums, other_sums) == ([3, 7], [18])
    assert x.tolist() == [[[1, 2, 1], [1, 1, 1]], [[3, 4, 1], [1, 1, 1]]]
    assert other.tolist() == second.tolist()


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5)), min_size=1, max_size=8),
    st.sampled_from([(), (1, 4, 24), (24,)]),
    st.booleans(),
)
def test_padded_answers_equal_those_of_separate_calls(
    shapes: list[tuple[int, ...]], allowed: tuple[int, ...], proven: bool
) -> None:
    entries = [np.arange(np.prod(shape), dtype=np.int64).reshape(shape) + 7 for shape in shapes]
    told = run_padded(Executor("m", Masked(), allowed, proven=proven), *entries)
    for entry, (sums, _) in zip(entries, told, strict=True):
        assert sums == entry[:, 0].sum(axis=1).tolist()


def test_only_the_padded_entry_that_raises_gets_the_error() -> None:
    entries = [np.ones((1, 1, width), np.int64) for width in range(1, 7)]
    told = run_padded(Executor("m", Masked(), (), proven=True), *entries, lengths=[1, 2, 3, -1, 5, 6])
    assert told.pop(3) == "model_error"
    assert [sums for sums, _ in told] == [[1], [2], [3], [5], [6]]


def test_a_batch_that_would_be_mostly_padding_runs_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multitower.worker.batch_inputs.LARGE_INPUT", 1000)
    model = Masked()
    entries = [np.ones((1, 1, 50), np.int64), np.ones((1, 50, 1), np.int64), np.ones((1, 1, 49), np.int64)]
    told = run_padded(Executor("m", model, (), proven=True), *entries)
    assert [sums for sums, _ in told] == [[50], [1], [49]]
    assert max(np.prod(shape) for shape in model.shapes) <= 2 * 50 * 50 / 8


def test_text_is_padded() -> None:
    key = KeySpec("m", (("x", "BYTES", (-1,)), ("", "INT64", (1,))), None, True)
    model = Scripted(lambda x: {"y": x})
    frames = [b"\x01\0\0\0a", struct.pack("<q", 1), b"\x01\0\0\0b\0\0\0\0", struct.pack("<q", 2)]
    executor = Executor("m", model, (), proven=True)
    (first, second), _ = executor.run(executor.prepare(key, [1, 1], frames))
    assert first[1] == b"\x01\0\0\0a\x01\0\0\0a"  # type: ignore[index]
    assert second[1] == frames[2]  # type: ignore[index]
