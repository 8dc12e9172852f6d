"""Finds out whether the rows of a batch influence each other, by comparing the values of outputs.

Requests may share a batch only if row *i* of the outputs depends on row *i* of the inputs alone. Shapes cannot show
that: a softmax over the rows has as many rows as it should. So the model runs on different rows:

- twice in batches of the same size, of which only one row is the same. It has the same position in both, so the same
  instructions compute it, and its outputs must be equal to the last bits. Padding is part of the comparison where
  batches are padded.
- that row without others. Its outputs must be equal as far as other sizes allow: libraries choose other algorithms for
  them. This finds outputs that depend on the position of a row, or on the number of rows.
- twice in batches of the largest size that the warm-up has run, as the first time. All copies of a row must have equal
  outputs there, as far as other positions allow. This finds outputs that depend on other rows of a large batch only.

A difference counts only if it can be repeated: outputs of a model with random numbers, or with a state, vary from run
to run, and show nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from multitower.spec import ModelSpec

from ..batch_inputs import padded_size
from ..formats.model import Arrays, Model
from ..model_errors import one_line
from ..records import log_event
from ..row_comparison import (
    DEPEND_ON_OTHERS,
    DEPEND_ON_POSITION,
    DEPEND_ON_SIZE,
    RERUNS,
    VARYING,
    Tolerance,
    differing_output,
)
from .row_inputs import Candidate, candidates, distinct_rows, nudged
from .warmup import Findings, Sample, call_nothing, warmup_sizes

ROWS: Final = 4
"""Different rows of a batch, where batches have that many."""

_OPEN_DIMENSIONS: Final = (3, 1)
"""Sizes of dimensions that the model leaves open. With 1 much is constant, such as a softmax over the dimension."""

TRUSTED: Final = "batching.trust is set, so values were not compared"
NO_INPUTS: Final = "there are no recorded requests with different rows; the first batches of requests are compared"
REFUSED: Final = "it raised an exception for made-up inputs of different rows"
INSENSITIVE: Final = "its outputs are equal for all rows that were tried"


class RowFindings(NamedTuple):
    """What comparing values has shown.

    Attributes:
        unbatched_because: why requests must not share batches, or None.
        unverified_because: why values could not show that they may, or None.
    """

    unbatched_because: str | None = None
    unverified_because: str | None = None


def check_rows(
    model: Model,
    spec: ModelSpec,
    findings: Findings,
    samples: Sequence[Sample] = (),
    *,
    signature: str = "",
    before_call: Callable[[int], None] = call_nothing,
) -> RowFindings:
    """Compares values of outputs of the same row in different batches.

    Args:
        model: the model, or one of its signatures, after its warm-up.
        spec: as configured.
        findings: of the warm-up; values are not compared where shapes have shown that there are no batches.
        samples: recorded requests; those for other signatures are ignored.
        signature: the name of the signature; "" for the default one.
        before_call: is called with the number of rows before each call of the model.
    """
    # With one row a call, no request shares one.
    if spec.max_batch_size < 2 or warmup_sizes(spec) == [1] or findings.unbatched_because is not None:
        return RowFindings()
    if spec.trust_batching:
        return RowFindings(unverified_because=TRUSTED)
    samples = [sample for sample in samples if sample.signature == signature]
    may_make_up = not signature and spec.handler is None and model.inputs is not None
    check = _RowCheck(model, spec, findings.largest, before_call)
    unverified = REFUSED if may_make_up else NO_INPUTS
    for candidate in candidates(
        model.inputs or (),
        samples,
        make_up=may_make_up,
        # XLA compiles each shape by itself, so it gets those of the warm-up only.
        open_dimensions=_OPEN_DIMENSIONS[-1:] if spec.jit_compile else _OPEN_DIMENSIONS,
    ):
        try:
            found = check.run(candidate.rows)
        except BaseException as error:  # noqa: BLE001  a model may raise anything, sys.exit included
            log_event(logging.DEBUG, "values of rows could not be compared", cause=one_line(error))
            continue
        if found.unbatched_because is not None:
            return found
        if found.unverified_because is None:
            return _check_largest(check, candidate)
        unverified = found.unverified_because
        if unverified is VARYING:
            break
    return RowFindings(unverified_because=unverified)


def _check_largest(check: _RowCheck, candidate: Candidate) -> RowFindings:
    """Compares outputs in the largest batches, after those in smaller ones have been equal."""
    for inputs in (candidate.more, candidate.rows):
        try:
            return check.run_largest(inputs)
        except BaseException as error:  # noqa: BLE001  a model may raise anything, sys.exit included
            log_event(logging.DEBUG, "values of rows of large batches could not be compared", cause=one_line(error))
    return RowFindings()


class _RowCheck:
    """Compares outputs of one model.

    Args:
        model: the model.
        spec: its batch sizes.
        largest: rows of the largest batch that it has run; 0 where there is none.
        before_call: is called with the number of rows before each call.
    """

    def __init__(self, model: Model, spec: ModelSpec, largest: int, before_call: Callable[[int], None]) -> None:
        self._model = model
        self._before_call = before_call
        sizes = sorted(warmup_sizes(spec))
        # XLA compiles each size by itself, so it gets those of the warm-up only.
        self._fixed_sizes = sizes if spec.jit_compile else []
        usable = [size for size in sizes if size <= spec.max_batch_size]
        self._size = next((size for size in usable if size >= ROWS), usable[-1])
        self._rows = min(self._size, ROWS)
        self._largest = max(self._size, min(largest, spec.max_batch_size))

    def run(self, inputs: Arrays) -> RowFindings:
        """Runs the model on different rows.

        Args:
            inputs: of several rows.

        Raises:
            BaseException: whatever the model raises.
        """
        rows = distinct_rows(inputs)
        if len(rows) < 2:
            return RowFindings(unverified_because=NO_INPUTS)
        # A row between others shows the influence of those before it and behind it; in a batch of two there is none.
        findings = RowFindings()
        for position in (1,) if self._rows > 2 else (0, 1):
            findings = self._compare_company(inputs, rows, position)
            if findings != RowFindings():
                break
        return findings

    def run_largest(self, inputs: Arrays) -> RowFindings:
        """Runs the model on different rows in its largest batches.

        Args:
            inputs: of several rows.

        Raises:
            BaseException: whatever the model raises.
        """
        rows = distinct_rows(inputs)
        if len(rows) < 2:
            return RowFindings()
        size, position = self._largest, self._largest // 2
        chosen, others = (_fill(rows[0], position, company, size) for company in _companies(rows))
        first, second = _take(inputs, chosen, size), _take(inputs, others, size)
        expected, found = self._call(first), self._call(second)
        for outputs in (expected, found):
            for name, array in outputs.items():
                if array.ndim == 0 or len(array) != size:
                    return RowFindings(f"{size} rows gave the output {name!r} the shape {list(array.shape)}")
        differing = differing_output(_row(expected, position), _row(found, position), Tolerance.STRICT)
        if differing is not None:
            return self._examine_difference(differing, position, (first, expected), (second, found))
        earliest = [chosen.index(row) for row in chosen]
        copies = {name: array[earliest] for name, array in expected.items()}
        misplaced = differing_output(copies, expected, Tolerance.WIDE)
        if misplaced is None:
            return RowFindings()
        for _ in range(RERUNS):
            if differing_output(expected, self._call(first), Tolerance.WIDE) is not None:
                return RowFindings(unverified_because=VARYING)
        if differing_output(expected, self._call(nudged(first)), Tolerance.WIDE) is not None:
            return RowFindings()  # roundings decide what it returns
        return RowFindings(DEPEND_ON_POSITION.format(misplaced, size))

    def _compare_company(self, inputs: Arrays, rows: Sequence[int], position: int) -> RowFindings:
        """Runs one row in two batches whose other rows differ, and then without them."""
        # In batches of two rows, each position of the row is compared in the company of another one.
        shift = position if self._rows == 2 else 0
        first, second = (
            _take(inputs, _fill(rows[0], position, [*company[shift:], *company[:shift]], self._rows), self._size)
            for company in _companies(rows)
        )
        expected, found = self._call(first), self._call(second)
        for outputs in (expected, found):
            for name, array in outputs.items():
                if array.ndim == 0 or len(array) != self._size:
                    return RowFindings(f"{self._size} rows gave the output {name!r} the shape {list(array.shape)}")
        differing = differing_output(_row(expected, position), _row(found, position), Tolerance.STRICT)
        if differing is not None:
            return self._examine_difference(differing, position, (first, expected), (second, found))
        if differing_output(_row(expected, 0), _row(expected, 1), Tolerance.STRICT) is None:
            return RowFindings(unverified_because=INSENSITIVE)
        # Two rows, since one may be all that the model depends on: the largest, where it divides by the maximum.
        for each in (0, 1):
            try:
                findings = self._compare_sizes(first, expected, each)
            except Exception as error:  # noqa: BLE001  the same rows have just been run in a batch
                log_event(logging.DEBUG, "a row could not be run without others", cause=one_line(error))
                break
            if findings != RowFindings():
                return findings
        return RowFindings()

    def _call(self, inputs: Arrays) -> Arrays:
        self._before_call(len(next(iter(inputs.values()))))
        # The next call may change arrays that this one returns.
        return {name: array.copy() for name, array in self._model.infer(inputs).items()}

    def _examine_difference(
        self, name: str, position: int, first: tuple[Arrays, Arrays], second: tuple[Arrays, Arrays]
    ) -> RowFindings:
        """Repeats two batches, after the row that they share had different values of an output.

        Args:
            name: of the output.
            position: of the row.
            first: the inputs and outputs of one batch.
            second: those of the other one.
        """
        is_exact = True
        for inputs, outputs in (first, second) * RERUNS:
            again = self._call(inputs)
            if differing_output(outputs, again, Tolerance.WIDE) is not None:
                return RowFindings(unverified_because=VARYING)
            is_exact = is_exact and differing_output(outputs, again, Tolerance.STRICT) is None
        wide = differing_output(_row(first[1], position), _row(second[1], position), Tolerance.WIDE)
        if wide is None and not is_exact:
            return RowFindings()  # no more than from run to run
        return RowFindings(DEPEND_ON_OTHERS.format(name))

    def _compare_sizes(self, batch: Arrays, expected: Arrays, position: int) -> RowFindings:
        """Runs a row of a batch without others, or with as few as there may be, and compares its outputs.

        Where the batch is the smallest that XLA has compiled, the row runs in the next larger one.

        Args:
            batch: the inputs of the batch.
            expected: its outputs.
            position: of the row, 0 or 1.
        """
        in_batch = _row(expected, position)
        other, small = self._usable_size(1), self._usable_size(2)
        if other == self._size:
            other = next(size for size in self._fixed_sizes if size > self._size)  # a warm-up has two sizes at least
        alone = _take(batch, [position], other)
        found = self._call(alone)
        name = differing_output(in_batch, _row(found, 0), Tolerance.WIDE)
        if name is None:
            return RowFindings()
        if small not in (other, self._size):
            # One row may have an algorithm of its own.
            pair = self._call(_take(batch, [position, 1 - position], small))
            if differing_output(in_batch, _row(pair, 0), Tolerance.WIDE) is None:
                return RowFindings()
        for _ in range(RERUNS):
            for arrays, outputs in ((alone, found), (batch, expected)):
                if differing_output(outputs, self._call(arrays), Tolerance.WIDE) is not None:
                    return RowFindings(unverified_because=VARYING)
        if differing_output(found, self._call(nudged(alone)), Tolerance.WIDE) is not None:
            return RowFindings()  # roundings decide what it returns, as where it sorts values that are nearly equal
        return RowFindings(DEPEND_ON_SIZE.format(name, *sorted((other, self._size))))

    def _usable_size(self, rows: int) -> int:
        return padded_size(rows, self._fixed_sizes)


def _companies(rows: Sequence[int]) -> tuple[list[int], list[int]]:
    """The other rows of two batches that have the first of these rows in common: odd ones, and even ones."""
    odd, even = ([row for row in rows[1:] if row % 2 == parity] for parity in (1, 0))
    if not odd:
        return even, [rows[0]]
    return odd, even or [rows[0]]


def _fill(constant: int, position: int, company: Sequence[int], size: int) -> list[int]:
    """The rows of a batch: others, repeated as needed, and one at a position that all of these batches have it at."""
    rows = [company[number % len(company)] for number in range(size - 1)]
    rows.insert(position, constant)
    return rows


def _row(outputs: Arrays, position: int) -> Arrays:
    return {name: array[position : position + 1] for name, array in outputs.items()}


def _take(inputs: Arrays, rows: Sequence[int], size: int) -> Arrays:
    """Rows of the inputs, padded with the last of them."""
    indices = [*rows, *[rows[-1]] * (size - len(rows))]
    return {name: array[indices] for name, array in inputs.items()}
