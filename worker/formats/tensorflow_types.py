"""TensorFlow's tensors in the protocol's terms: declarations, and arrays to tensors and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from multitower import tensors
from multitower.spec import TensorReport

from ..model_errors import LoadError
from .model import Array

_DATATYPES: Mapping[Any, str] = {
    tf.string: tensors.BYTES,
    tf.bfloat16: tensors.BF16,
    **{
        tf.as_dtype(tensors.dtype_of(name)): name
        for name in tensors.DATATYPES
        if name not in (tensors.BYTES, tensors.BF16)
    },
}


def declare(specs: Iterable[tuple[str, Any]]) -> tuple[TensorReport, ...]:
    """Inputs or outputs as the protocol declares them.

    Args:
        specs: a name, and a TensorSpec or a tensor of a graph, for each.

    Raises:
        LoadError: one is ragged or sparse, or of a datatype that the protocol does not carry.
    """
    return tuple(_declare_one(name, spec) for name, spec in specs)


def _declare_one(name: str, spec: Any) -> TensorReport:
    # Signatures of TensorFlow 1 contain tensors of their graph.
    if not isinstance(spec, tf.TensorSpec | tf.Tensor):
        kind = type(spec).__name__.removesuffix("Spec")
        raise LoadError(f"{name!r} is a {kind}; only dense tensors can be served: convert it inside the model")
    datatype = _DATATYPES.get(spec.dtype)
    if datatype is None:
        raise LoadError(f"{name!r} is {spec.dtype.name}, which cannot be served: cast it inside the model")
    shape = None if spec.shape.rank is None else tuple(-1 if size is None else size for size in spec.shape)
    return TensorReport(name=name, datatype=datatype, shape=shape)


def to_tensor(array: Array, dtype: Any) -> Any:
    """A tensor of an array; object arrays of `bytes` become strings."""
    return tf.constant(array, dtype=dtype)


def to_array(tensor: Any) -> Array:
    """An array of a tensor; strings become an object array of `bytes`."""
    return as_array(tensor.numpy())


def as_array(value: Any) -> Array:
    """An array of what TensorFlow returns in place of one: a scalar string comes as Python's own `bytes`."""
    return value if isinstance(value, np.ndarray) else np.asarray(value, object if isinstance(value, bytes) else None)
