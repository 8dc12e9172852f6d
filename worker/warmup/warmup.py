"""The first runs of a model, before it is ready: they trace its functions, and show whether requests can be joined."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from multitower import tensors
from multitower.spec import ModelSpec

from ..batch_inputs import padded_size
from ..formats.model import Array, Arrays, Model
from ..model_errors import LoadError, is_out_of_memory, one_line
from ..records import log_event
from ..unrunnable import classify


class Sample(NamedTuple):
    """A recorded request to warm a model up with.

    Attributes:
        signature: the signature that it is for; "" for the default one.
        inputs: its inputs, with the model's datatypes.
        origin: the file and the record, for people.
    """

    signature: str
    inputs: Arrays
    origin: str


class Findings(NamedTuple):
    """What a warm-up has shown.

    Attributes:
        unbatched_because: why requests cannot be joined along dimension 0 although batching is configured, or None.
        proven: whether batches of at least two sizes gave outputs of as many rows.
        largest: the largest number of rows that ran; 0 where no batch did.
    """

    unbatched_because: str | None = None
    proven: bool = False
    largest: int = 0


def warmup_sizes(spec: ModelSpec) -> list[int]:
    """The batch sizes to run: the allowed ones, else the powers of two up to the largest size, and that size.

    There are at least two: an output of a constant 8 rows looks right in a batch of 8. Sizes over `safe_rows` are left
    out, as far as there are others; where it is 1 and batches are not padded, 1 is the only size.
    """
    if spec.allowed_batch_sizes:
        sizes = list(spec.allowed_batch_sizes)
    else:
        powers = [1 << exponent for exponent in range(spec.max_batch_size.bit_length())]
        sizes = sorted({*powers, spec.max_batch_size})
    if spec.safe_rows:
        sizes = [size for size in sizes if size <= spec.safe_rows] or sizes[:1]
    if spec.safe_rows == 1 and sizes == [1]:
        return sizes  # two rows have ended a worker
    # The second size comes last, since no request will have it.
    return sizes if len(sizes) > 1 else [*sizes, 2 if sizes == [1] else 1]


def call_nothing(_rows: int) -> None:
    """Does nothing before a call."""


def warm_up(
    model: Model,
    spec: ModelSpec,
    samples: Sequence[Sample] = (),
    *,
    signature: str = "",
    before_call: Callable[[int], None] = call_nothing,
) -> Findings:
    """Runs a model in every size that batches will have, and then on every further sample.

    The sizes are made of the rows of the first sample, else of ones. Handlers are not run on ones: their `load` can run
    them, and only their authors know which inputs are harmless. Nor are signatures that are not the default one: they
    may train the model, or write files.

    Args:
        model: the model, or one of its signatures.
        spec: its batch sizes.
        samples: recorded requests; those for other signatures are ignored.
        signature: the name of the signature; "" for the default one.
        before_call: is called with the number of rows before each call of the model.

    Raises:
        UnrunnableError: no call of it can succeed in this process.
        LoadError: the model raises on a sample in its own size; or in any size, where XLA must compile it.
    """
    samples = [sample for sample in samples if sample.signature == signature]
    reason = declared_obstacle(model) if spec.max_batch_size else None
    if not samples and (signature or spec.handler is not None or model.inputs is None):
        return Findings(reason)
    is_joined = spec.max_batch_size > 0 and reason is None
    has_others = bool(signature or model.other_signatures)
    succeeded = largest = 0
    for size in warmup_sizes(spec) if is_joined else () if samples else [1]:
        try:
            before_call(size)
            outputs = model.try_out(_repeat(samples[0], size) if samples else _ones(model, size))
        except BaseException as error:
            if spec.jit_compile and not is_out_of_memory(error):
                raise LoadError(
                    "jit_compile: XLA cannot compile it, or it refuses made-up inputs (`warmup` can give it better "
                    f"ones): {one_line(error)}"
                ) from error
            if not succeeded and (unrunnable := classify(error, may_initialize=has_others)):
                raise unrunnable from error
            of_what = "rows of a sample" if samples else "made-up rows"
            message = f"no warm-up with {size} {of_what}"
            log_event(logging.WARNING, message, signature=signature or None, cause=one_line(error))
            break
        for name, array in outputs.items() if is_joined else ():
            if array.ndim == 0 or len(array) != size:
                return Findings(f"{size} rows gave the output {name!r} the shape {list(array.shape)}")
        succeeded += 1
        largest = max(largest, size)
    for sample in samples[1:] if succeeded else samples:
        rows_of_sample = _limit_rows(_row_count(sample), spec) if is_joined else 0
        try:
            if is_joined:
                rows = padded_size(rows_of_sample, spec.allowed_batch_sizes)
                before_call(rows)
                model.try_out(_repeat(sample, rows))
            else:
                before_call(1)
                model.try_out(sample.inputs)
        except BaseException as error:
            if not is_out_of_memory(error):
                raise LoadError(f"{sample.origin}: the model raised on it: {one_line(error)}") from error
    return Findings(reason, proven=is_joined and succeeded > 1, largest=largest if is_joined else 0)


def declared_obstacle(model: Model) -> str | None:
    """Why requests cannot be joined along dimension 0, according to the model's declaration; None if they can."""
    if model.inputs is None:
        return None
    if not model.inputs:
        return "it has no inputs"
    for tensor in model.inputs:
        if tensor.shape is None:
            return f"the rank of input {tensor.name!r} is unknown"
        if not tensor.shape:
            return f"the input {tensor.name!r} is a scalar"
        if tensor.shape[0] != -1:
            return f"dimension 0 of input {tensor.name!r} is fixed at {tensor.shape[0]}"
    for tensor in model.outputs or ():
        if tensor.shape is not None and (not tensor.shape or tensor.shape[0] != -1):
            return f"dimension 0 of output {tensor.name!r} is not the batch"
    return None


def _limit_rows(rows: int, spec: ModelSpec) -> int:
    """The rows of a sample that a call may have."""
    return min(rows, spec.max_batch_size, max(warmup_sizes(spec)) if spec.safe_rows else rows)


def _row_count(sample: Sample) -> int:
    """Dimension 0 of a sample's inputs.

    Raises:
        LoadError: they do not share it, or it is 0.
    """
    counts = {array.shape[:1] for array in sample.inputs.values()}
    if len(counts) != 1 or counts <= {(), (0,)}:
        raise LoadError(f"{sample.origin}: inputs of a batched model share dimension 0, and it is not 0")
    return int(counts.pop()[0])


def _repeat(sample: Sample, size: int) -> Arrays:
    """`size` rows of a sample, starting again with the first where it has fewer."""
    indices = np.arange(size) % _row_count(sample)
    return {name: array[indices] for name, array in sample.inputs.items()}


def _ones(model: Model, rows: int) -> Arrays:
    """Inputs of ones, or of empty strings, with the declared shapes; 1 for unknown dimensions."""
    arrays: Arrays = {}
    for tensor in model.inputs or ():
        dims = list(tensor.shape if tensor.shape is not None else (rows,))
        if dims and dims[0] == -1:
            dims[0] = rows
        arrays[tensor.name] = _filled(tensor.datatype, [1 if size == -1 else size for size in dims])
    return arrays


def _filled(datatype: str, shape: list[int]) -> Array:
    dtype = tensors.dtype_of(datatype)
    return np.full(shape, b"" if datatype == tensors.BYTES else 1, dtype)
