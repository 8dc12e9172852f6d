"""The first runs of a model, before it is ready: they pay for tracing, and show whether requests can be joined."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np

from multitower import tensors
from multitower.spec import ModelSpec
from multitower.worker.model import Array, Arrays, Model, why_unbatchable

log = logging.getLogger("multitower.worker")


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


def warm_up(model: Model, spec: ModelSpec, *, signature: str = "") -> Findings:
    """Runs a model on inputs of ones, in every size that batches will have, where it declares its inputs.

    A handler is not run: its `load` can do that, and only its author knows what inputs are harmless.

    Args:
        model: it.
        spec: its batch sizes.
        signature: the name of one that is not the model's default; it is run in two sizes.
    """
    reason = why_unbatchable(model) if spec.max_batch_size else None
    if model.platform == "python" or model.inputs is None:
        return Findings(reason)
    joined = spec.max_batch_size > 0 and reason is None
    shown = 0
    wanted = sizes(spec)[: 2 if signature else None] if joined else [1]
    for size in wanted:
        try:
            outputs = model.infer(_ones(model, size))
        except Exception as error:  # noqa: BLE001  a model may refuse made-up inputs, and serve real ones
            told = " ".join(str(error).split())[:500]
            name = f"{spec.name} ({signature})" if signature else spec.name
            # Signatures that parse a format of their own refuse what is made up, and are rarely the ones in use.
            level = logging.INFO if signature else logging.WARNING
            log.log(level, "%s: no warm-up with %d made-up rows: %s: %s", name, size, type(error).__name__, told)
            break
        for name, array in outputs.items() if joined else ():
            if array.ndim == 0 or len(array) != size:
                return Findings(f"{size} rows gave the output {name!r} the shape {list(array.shape)}")
        shown += 1
    return Findings(reason, proven=joined and shown > 1)


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
