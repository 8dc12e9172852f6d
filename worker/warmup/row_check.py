"""Finds out whether the rows of a batch influence each other, by comparing the values of outputs.

Requests may share a batch only if row *i* of the outputs depends on row *i* of the inputs alone. Shapes cannot show
that: a softmax over the rows has as many rows as it should. So the model runs on different rows:

- twice in batches of the same size, of which only one row is the same. It has the same position in both, so the same
  instructions compute it, and its outputs must be equal to the last bits. Padding is part of the comparison where
  batches are padded.
- that row without others. Its outputs must be equal as far as other sizes allow: libraries choose other algorithms for
  them. This finds outputs that depend on the position of a row, or on the number of rows.

A difference counts only if it can be repeated: outputs of a model with random numbers, or with a state, vary from run
to run, and show nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from multitower.spec import ModelSpec

from ..batch import padded_size
from ..formats.model import Arrays, Model
from ..model_errors import one_line
from ..row_comparison import DEPEND_ON_OTHERS, DEPEND_ON_SIZE, RERUNS, VARYING, Tolerance, differing_output
from .row_inputs import candidates, distinct_rows, nudged
from .warmup import Findings, Sample, call_nothing, warmup_sizes

log = logging.getLogger("multitower.worker")

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
    # With one row a batch, no request shares a call.
    if spec.max_batch_size < 2 or findings.unbatched_because is not None:
        return RowFindings()
    if spec.trust_batching:
        return RowFindings(unverified_because=TRUSTED)
    samples = [sample for sample in samples if sample.signature == signature]
    may_make_up = not signature and spec.handler is None and model.inputs is not None
    check = _RowCheck(model, spec, before_call)
    unverified = REFUSED if may_make_up else NO_INPUTS
    for inputs in candidates(
        model.inputs or (),
        samples,
        make_up=may_make_up,
        # XLA compiles each shape by itself, so it gets those of the warm-up only.
        open_dimensions=_OPEN_DIMENSIONS[-1:] if spec.jit_compile else _OPEN_DIMENSIONS,
    ):
        try:
            found = check.run(inputs)
        except BaseException as error:  # noqa: BLE001  a model may raise anything, sys.exit included
            log.debug("%s: values of rows could not be compared: %s", spec.name, one_line(error))
            continue
        if found.unbatched_because is not None or found.unverified_because is None:
            return found
        unverified = found.unverified_because
        if unverified is VARYING:
            break
    return RowFindings(unverified_because=unverified)


class _RowCheck:
    """Compares outputs of one model.

    Args:
        model: the model.
        spec: its batch sizes.
        before_call: is called with the number of rows before each call.
    """

    def __init__(self, model: Model, spec: ModelSpec, before_call: Callable[[int], None]) -> None:
        self._model = model
        self._before_call = before_call
        sizes = sorted(warmup_sizes(spec))
        # XLA compiles each size by itself, so it gets those of the warm-up only.
        self._fixed_sizes = sizes if spec.jit_compile else []
        usable = [size for size in sizes if size <= spec.max_batch_size]
        self._size = next((size for size in usable if size >= ROWS), usable[-1])
        self._rows = min(self._size, ROWS)

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

    def _compare_company(self, inputs: Arrays, rows: Sequence[int], position: int) -> RowFindings:
        """Runs one row in two batches whose other rows differ, and then without them."""
        constant, *others = rows
        first = self._batch(inputs, constant, position, others[::2])
        second = self._batch(inputs, constant, position, others[1::2] or [constant])
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
                log.debug("a row could not be run without others: %s", one_line(error))
                break
            if findings != RowFindings():
                return findings
        return RowFindings()

    def _batch(self, inputs: Arrays, constant: int, position: int, others: Sequence[int]) -> Arrays:
        """A batch with one row that is the same in all of them; padded as batches are."""
        rows = [others[number % len(others)] for number in range(self._rows - 1)]
        rows.insert(position, constant)
        return _take(inputs, rows, self._size)

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

        Args:
            batch: the inputs of the batch.
            expected: its outputs.
            position: of the row, 0 or 1.
        """
        in_batch = _row(expected, position)
        smallest, small = self._usable_size(1), self._usable_size(2)
        if smallest == self._size:
            return RowFindings()
        alone = _take(batch, [position], smallest)
        found = self._call(alone)
        name = differing_output(in_batch, _row(found, 0), Tolerance.WIDE)
        if name is None:
            return RowFindings()
        if small not in (smallest, self._size):
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
        return RowFindings(DEPEND_ON_SIZE.format(name, smallest, self._size))

    def _usable_size(self, rows: int) -> int:
        return padded_size(rows, self._fixed_sizes)


def _row(outputs: Arrays, position: int) -> Arrays:
    return {name: array[position : position + 1] for name, array in outputs.items()}


def _take(inputs: Arrays, rows: Sequence[int], size: int) -> Arrays:
    """Rows of the inputs, padded with the last of them."""
    indices = [*rows, *[rows[-1]] * (size - len(rows))]
    return {name: array[indices] for name, array in inputs.items()}
