"""Compares values of outputs in batches of requests, for models whose warm-up could not compare any.

Handlers without recorded requests are the most frequent ones: only their authors know which inputs do no harm, so that
real requests are the first inputs to compare. `warmup/row_check.py` describes the idea; here is what differs:

- The batch that answers the requests is one side of the comparison. For the other side each request but one is replaced
  by copies of that one, so that the model gets no row that no client has sent.
- Outputs of other sizes are compared for several requests, and differ only if they do for all of these: real inputs may
  lie where roundings decide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final, NamedTuple

import numpy as np

from multitower.worker_wire import KeySpec

from . import batch_inputs, replies
from .batch_inputs import Entry
from .formats.model import Array, Arrays
from .replies import Output
from .row_comparison import DEPEND_ON_OTHERS, DEPEND_ON_SIZE, RERUNS, Tolerance, differing_output

_SMALL_RUNS: Final = 3
"""Requests that are run without others."""

ModelCall = Callable[[KeySpec, Arrays], list[Output]]


class Verdict(Enum):
    """What a comparison has shown."""

    INDEPENDENT = 0  # requests may share batches
    DEPENDENT = 1  # they must not
    VARYING = 2  # outputs vary from run to run, and show nothing
    UNKNOWN = 3  # these requests show nothing: all are equal, or have equal outputs


class _SmallRun(NamedTuple):
    """A request that was run without others: the entry, its first row in the batch, and its outputs."""

    entry: Entry
    start: int
    outputs: Arrays


class Comparison(NamedTuple):
    """The result of a comparison.

    Attributes:
        verdict: see there.
        because: for people, where the verdict is `DEPENDENT`.
    """

    verdict: Verdict
    because: str = ""


def compare_batch(
    call: ModelCall, key: KeySpec, entries: Sequence[Entry], size: int, outputs: Sequence[Output]
) -> Comparison | None:
    """Compares a batch that has run with further calls of the model.

    Args:
        call: calls the model, without padding; it returns arrays that later calls do not change.
        key: of the batch.
        entries: of the batch.
        size: its rows, padding included.
        outputs: of the batch, each of `size` rows.

    Returns:
        What the comparison has shown; None if fewer than two entries have rows. Otherwise outputs of other sizes have
        as many rows as they should, unless the verdict is `DEPENDENT`.

    Raises:
        BaseException: whatever the model raises.
    """
    starts = [0]
    for entry in entries:
        starts.append(starts[-1] + entry.rows)
    filled = [number for number, entry in enumerate(entries) if entry.rows]
    if len(filled) < 2:
        return None
    inputs = batch_inputs.join_inputs([entry.arrays for entry in entries], size)
    expected = _by_name(outputs)
    # Not the first request: it has the same position in any size.
    small: list[_SmallRun] = []
    for number in filled[1 : 1 + _SMALL_RUNS]:
        entry = entries[number]
        small_outputs = call(key, entry.arrays)
        if not replies.have_rows(small_outputs, entry.rows):
            shapes = replies.describe_shapes(small_outputs)
            return Comparison(Verdict.DEPENDENT, f"{entry.rows} rows gave outputs of the shapes {shapes}")
        small.append(_SmallRun(entry, starts[number], _by_name(small_outputs)))
    # One between others shows the influence of those before it and behind it; but if its value is the largest, it may
    # be all that a row depends on.
    chosen = filled if len(filled) == 2 else [filled[len(filled) // 2], filled[-1 if len(filled) > 3 else 0]]
    is_informative = False
    for number in chosen:
        start, entry = starts[number], entries[number]
        others = _replaced_others(inputs, start, entry.rows, size)
        if all(_equal_inputs(inputs[name], array) for name, array in others.items()):
            continue  # all requests are equal
        found = _by_name(call(key, others))
        name = differing_output(_rows(expected, start, entry.rows), _rows(found, start, entry.rows), Tolerance.STRICT)
        if name is not None:
            return _examine(call, key, name, start, entry.rows, [(inputs, expected), (others, found)])
        is_informative = is_informative or differing_output(expected, found, Tolerance.STRICT) is not None
    of_sizes = _compare_sizes(call, key, small, inputs, expected)
    if of_sizes is not None:
        return of_sizes
    return Comparison(Verdict.INDEPENDENT if is_informative else Verdict.UNKNOWN)


def _examine(
    call: ModelCall, key: KeySpec, name: str, start: int, rows: int, runs: Sequence[tuple[Arrays, Arrays]]
) -> Comparison:
    """Repeats two batches in which the rows of one request had different values of an output."""
    is_exact = True
    for inputs, outputs in [*runs] * RERUNS:
        again = _by_name(call(key, inputs))
        if differing_output(outputs, again, Tolerance.WIDE) is not None:
            return Comparison(Verdict.VARYING)
        is_exact = is_exact and differing_output(outputs, again, Tolerance.STRICT) is None
    one, other = (_rows(outputs, start, rows) for _, outputs in runs)
    if not is_exact and differing_output(one, other, Tolerance.WIDE) is None:
        return Comparison(Verdict.INDEPENDENT)  # no more than from run to run
    return Comparison(Verdict.DEPENDENT, DEPEND_ON_OTHERS.format(name))


def _compare_sizes(
    call: ModelCall, key: KeySpec, small: Sequence[_SmallRun], inputs: Arrays, expected: Arrays
) -> Comparison | None:
    """Compares requests that were run without others with their rows in a batch; None if nothing was found.

    Args:
        call: see `compare_batch`.
        key: of the batch.
        small: the requests.
        inputs: of the batch.
        expected: its outputs.
    """
    different = [
        differing_output(_rows(expected, run.start, run.entry.rows), run.outputs, Tolerance.WIDE) for run in small
    ]
    name = different[0]
    if name is None or None in different or len(small) < 2:
        return None
    for _ in range(RERUNS):
        for run in small:
            if differing_output(run.outputs, _by_name(call(key, run.entry.arrays)), Tolerance.WIDE) is not None:
                return Comparison(Verdict.VARYING)
        if differing_output(expected, _by_name(call(key, inputs)), Tolerance.WIDE) is not None:
            return Comparison(Verdict.VARYING)
    size = len(next(iter(inputs.values())))
    return Comparison(Verdict.DEPENDENT, DEPEND_ON_SIZE.format(name, small[0].entry.rows, size))


def _replaced_others(inputs: Arrays, start: int, rows: int, size: int) -> Arrays:
    """The inputs of a batch in which all rows but those of one request are copies of these."""
    indices = start + (np.arange(size) - start) % rows
    copies = {name: array[indices] for name, array in inputs.items()}
    for array in copies.values():
        array.flags.writeable = False
    return copies


def _rows(outputs: Arrays, start: int, rows: int) -> Arrays:
    return {name: array[start : start + rows] for name, array in outputs.items()}


def _by_name(outputs: Sequence[Output]) -> Arrays:
    return {name: array for name, array, _ in outputs}


def _equal_inputs(one: Array, other: Array) -> bool:
    return one.tobytes() == other.tobytes() if one.dtype != object else bool(np.array_equal(one, other))
