"""The first runs of a model, before it is ready: they pay for tracing, and show whether requests can be joined."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from multitower import tensors
from multitower.spec import ModelSpec

from ..batch import padded_size
from ..formats.model import Array, Arrays, Model
from ..model_errors import LoadError, is_out_of_memory, one_line

log = logging.getLogger("multitower.worker")


class Sample(NamedTuple):
    """A recorded request to warm up with.

    Attributes:
        signature: of the model, "" for its default one.
        inputs: its inputs, as the model takes them.
        origin: where it was found, for people.
    """

    signature: str
    inputs: Arrays
    origin: str


class Findings(NamedTuple):
    """What a warm-up has shown.

    Attributes:
        unbatched_because: why requests to a model that was to be batched cannot be joined along dimension 0, or None.
        proven: batches of at least two sizes gave outputs of as many rows.
    """

    unbatched_because: str | None = None
    proven: bool = False


def sizes(spec: ModelSpec) -> list[int]:
    """The batch sizes to run: the allowed ones, else the powers of two up to the largest, and that itself.

    There are always two: an output of a constant 8 rows looks right in a batch of 8.
    """
    if spec.allowed_batch_sizes:
        wanted = list(spec.allowed_batch_sizes)
    else:
        powers = [1 << exponent for exponent in range(spec.max_batch_size.bit_length())]
        wanted = sorted({*powers, spec.max_batch_size})
    # Last, since it is not one that requests will have.
    return wanted if len(wanted) > 1 else [*wanted, 2 if wanted == [1] else 1]


def warm_up(model: Model, spec: ModelSpec, samples: Sequence[Sample] = (), *, signature: str = "") -> Findings:
    """Runs a model in every size that batches will have: on the first sample, else on ones where it declares inputs.

    Then it runs every further sample. A handler is not run on ones: its `load` can do that, and only its author knows
    what inputs are harmless. Nor is a signature that is not the default one: it may train the model, or write files.

    Args:
        model: it.
        spec: its batch sizes.
        samples: recorded requests; those of other signatures are left out.
        signature: the name of one that is not the model's default.

    Raises:
        LoadError: the model raises on a sample in its own size; or in any, where XLA has to compile it.
    """
    samples = [sample for sample in samples if sample.signature == signature]
    reason = why_unbatchable(model) if spec.max_batch_size else None
    if not samples and (signature or spec.handler is not None or model.inputs is None):
        return Findings(reason)
    joined = spec.max_batch_size > 0 and reason is None
    told = f"{spec.name} ({signature})" if signature else spec.name
    shown = 0
    for size in sizes(spec) if joined else () if samples else [1]:
        try:
            outputs = model.try_out(_repeated(samples[0], size) if samples else _ones(model, size))
        except Exception as error:
            if spec.jit_compile and not is_out_of_memory(error):
                raise LoadError(
                    "jit_compile: XLA cannot compile it, or it refuses made-up inputs (`warmup` can give it better "
                    f"ones): {one_line(error)}"
                ) from error
            made_up = "rows of a sample" if samples else "made-up rows"
            log.warning("%s: no warm-up with %d %s: %s", told, size, made_up, one_line(error))
            break
        for name, array in outputs.items() if joined else ():
            if array.ndim == 0 or len(array) != size:
                return Findings(f"{size} rows gave the output {name!r} the shape {list(array.shape)}")
        shown += 1
    for sample in samples[1:] if shown else samples:
        rows = min(_rows(sample), spec.max_batch_size) if joined else 0
        try:
            model.try_out(_repeated(sample, padded_size(rows, spec.allowed_batch_sizes)) if joined else sample.inputs)
        except Exception as error:
            if not is_out_of_memory(error):
                raise LoadError(f"{sample.origin}: the model raised on it: {one_line(error)}") from error
    return Findings(reason, proven=joined and shown > 1)


def _rows(sample: Sample) -> int:
    """Dimension 0 of its inputs.

    Raises:
        LoadError: they do not share it, or it is 0.
    """
    counts = {array.shape[:1] for array in sample.inputs.values()}
    if len(counts) != 1 or counts <= {(), (0,)}:
        raise LoadError(f"{sample.origin}: inputs of a batched model share dimension 0, and it is not 0")
    return int(counts.pop()[0])


def _repeated(sample: Sample, size: int) -> Arrays:
    """So many rows of a sample, from the first on, and again from the first."""
    indices = np.arange(size) % _rows(sample)
    return {name: array[indices] for name, array in sample.inputs.items()}


def _ones(model: Model, rows: int) -> Arrays:
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


def why_unbatchable(model: Model) -> str | None:
    """Why requests to the model cannot be joined along dimension 0, as far as its declaration tells."""
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
