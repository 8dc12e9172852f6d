"""Finds out whether padding of inputs of varying length changes values, where there is a recorded request to try.

With `pad_variable_length_inputs` requests are padded in other dimensions than the first, each with its own first
element. Only the author of a model knows how it recognises the padding, by a length or by a value, so made-up inputs
would show nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import numpy as np

from multitower.spec import ModelSpec

from ..formats.model import Arrays, Model
from ..model_errors import one_line
from ..records import log_event
from ..row_comparison import RERUNS, Tolerance, differing_output
from .warmup import Sample

_MORE: Final = 2
"""By how much each open dimension is padded."""


def warn_of_padding(model: Model, spec: ModelSpec, samples: Sequence[Sample], *, signature: str = "") -> None:
    """Logs a warning if padding changes the outputs of the first recorded request.

    Args:
        model: the model, or one of its signatures, after its warm-up.
        spec: as configured.
        samples: recorded requests; those for other signatures are ignored.
        signature: the name of the signature; "" for the default one.
    """
    recorded = next((sample for sample in samples if sample.signature == signature), None)
    # XLA would compile the padded shape.
    if recorded is None or not spec.pad_variable_length_inputs or spec.max_batch_size < 2 or spec.jit_compile:
        return
    row = {name: array[:1] for name, array in recorded.inputs.items()}
    try:
        name = _changed_output(model, row, _padded(model, row))
    except BaseException as error:  # noqa: BLE001  a model may raise anything, sys.exit included
        log_event(logging.DEBUG, "padding could not be tried", cause=one_line(error))
        return
    if name is not None:
        log_event(
            logging.WARNING,
            f"pad_variable_length_inputs: padding a row of a recorded request ({recorded.origin}) changes the values "
            f"of output {name!r}, so that answers depend on the lengths of other requests",
        )


def _changed_output(model: Model, row: Arrays, padded: Arrays) -> str | None:
    """The output that differs between a row and the same row padded, every time that it is run; or None."""
    if all(padded[name].shape == array.shape for name, array in row.items()):
        return None
    expected = _copy(model.infer(row))
    found = _without_padding(_copy(model.infer(padded)), expected)
    name = differing_output(expected, found, Tolerance.WIDE)
    for _ in range(RERUNS if name is not None else 0):
        if differing_output(expected, _copy(model.infer(row)), Tolerance.WIDE) is not None:
            return None  # it varies from run to run
    return name


def _padded(model: Model, row: Arrays) -> Arrays:
    """The row, larger in every dimension that the model leaves open, as a batch with longer requests would have it."""
    declared = {tensor.name: tensor.shape for tensor in model.inputs or ()}
    padded: Arrays = {}
    for name, array in row.items():
        shape = declared.get(name)
        sizes = [
            size + _MORE if index and (shape is None or shape[index] == -1) else size
            for index, size in enumerate(array.shape)
        ]
        padded[name] = np.full(sizes, array.flat[0] if array.size else 0, array.dtype)
        padded[name][tuple(map(slice, array.shape))] = array
    return padded


def _without_padding(outputs: Arrays, expected: Arrays) -> Arrays:
    """The outputs cut to the sizes that they have without padding."""
    return {
        name: array[tuple(map(slice, expected[name].shape))]
        if name in expected and array.ndim == expected[name].ndim
        else array
        for name, array in outputs.items()
    }


def _copy(outputs: Arrays) -> Arrays:
    # The next call may change arrays that this one returns.
    return {name: np.array(array) for name, array in outputs.items()}
