"""The first runs of a model, before it is ready: they pay for tracing, and show whether requests can be joined."""

from __future__ import annotations

import logging

import numpy as np

from multitower import tensors
from multitower.spec import ModelSpec
from multitower.worker.model import Array, Arrays, Model, why_unbatchable

log = logging.getLogger("multitower.worker")


def sizes(spec: ModelSpec) -> list[int]:
    """The batch sizes to run: the allowed ones, else the powers of two up to the largest, and that itself."""
    if spec.allowed_batch_sizes:
        return list(spec.allowed_batch_sizes)
    powers = [1 << exponent for exponent in range(spec.max_batch_size.bit_length())]
    return sorted({*powers, spec.max_batch_size})


def warm_up(model: Model, spec: ModelSpec) -> str | None:
    """Runs a model on inputs of ones, in every size that batches will have, where it declares its inputs.

    A handler is not run: its `load` can do that, and only its author knows what inputs are harmless.

    Returns:
        Why requests cannot be joined along dimension 0, or None.
    """
    batched = spec.max_batch_size > 0
    reason = why_unbatchable(model) if batched else None
    if model.platform == "python" or model.inputs is None:
        return reason
    for size in sizes(spec) if batched and reason is None else [1]:
        try:
            outputs = model.infer(_ones(model, size))
        except Exception as error:  # noqa: BLE001  a model may refuse made-up inputs, and serve real ones
            log.warning("%s: no warm-up with made-up inputs: %s: %s", spec.name, type(error).__name__, error)
            return reason
        if not batched or reason is not None:
            continue
        for name, array in outputs.items():
            if array.ndim == 0 or len(array) != size:
                reason = f"{size} rows gave the output {name!r} the shape {list(array.shape)}"
                break
        if reason is not None:
            return reason
    return reason


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
