"""TensorFlow's settings for this process, and its types in the protocol's words; imported where a model needs it.

Everything here must happen before the first device query, which fixes devices, memory and threads for good.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from multitower import tensors
from multitower.spec import Assignment, TensorReport

from ..model_errors import LoadError
from .model import Array

MIB = 1 << 20

_DATATYPES: Mapping[Any, str] = {
    tf.string: tensors.BYTES,
    tf.bfloat16: tensors.BF16,
    **{
        tf.as_dtype(tensors.dtype_of(name)): name
        for name in tensors.DATATYPES
        if name not in (tensors.BYTES, tensors.BF16)
    },
}


def configure(assignment: Assignment) -> None:
    """Sets threads, device memory, and as many logical CPU devices as the slot has CPU devices.

    Raises:
        LoadError: the slot's devices are GPUs, and TensorFlow does not see all of them.
    """
    tf.config.threading.set_intra_op_parallelism_threads(assignment.intra_op_threads)
    tf.config.threading.set_inter_op_parallelism_threads(assignment.inter_op_threads)
    if all(device.startswith("cpu") for device in assignment.devices):
        if len(assignment.devices) > 1:
            cpus = [tf.config.LogicalDeviceConfiguration() for _ in assignment.devices]
            tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], cpus)
        return
    gpus = tf.config.list_physical_devices("GPU")
    if len(gpus) < len(assignment.devices):
        # Serving on the CPU, or on some of them, instead would look like very slow GPUs.
        hint = "" if tf.test.is_built_with_cuda() else ": this TensorFlow is built without CUDA"
        seen = f"only {len(gpus)} of {len(assignment.devices)} GPUs" if gpus else "no GPU"
        visible = f"{', '.join(assignment.devices)} {'is' if len(assignment.devices) == 1 else 'are'} visible to it"
        raise LoadError(
            f"TensorFlow sees {seen} although {visible}{hint}; is it still "
            "there (`multitower devices`), are CUDA's libraries installed (pip install 'tensorflow[and-cuda]'), and is "
            "the driver new enough?"
        )
    for gpu in gpus:
        if assignment.memory_limit_bytes is None:
            tf.config.experimental.set_memory_growth(gpu, True)
        else:
            limit = tf.config.LogicalDeviceConfiguration(memory_limit=assignment.memory_limit_bytes // MIB)
            tf.config.set_logical_device_configuration(gpu, [limit])


def report(name: str, spec: Any) -> TensorReport:
    """An input or output as the protocol declares it.

    Raises:
        LoadError: it is ragged or sparse, or of a datatype that the protocol does not carry.
    """
    # Signatures of TensorFlow 1 show their graph's tensors.
    if not isinstance(spec, tf.TensorSpec | tf.Tensor):
        kind = type(spec).__name__.removesuffix("Spec")
        raise LoadError(f"{name!r} is a {kind}; only dense tensors can be served: convert it inside the model")
    datatype = _DATATYPES.get(spec.dtype)
    if datatype is None:
        raise LoadError(f"{name!r} is {spec.dtype.name}, which cannot be served: cast it inside the model")
    shape = None if spec.shape.rank is None else tuple(-1 if size is None else size for size in spec.shape)
    return TensorReport(name=name, datatype=datatype, shape=shape)


def reports(specs: Iterable[tuple[str, Any]]) -> tuple[TensorReport, ...]:
    """All inputs or outputs."""
    return tuple(report(name, spec) for name, spec in specs)


def to_tensor(array: Array, dtype: Any) -> Any:
    """A tensor of an array; object arrays of `bytes` become strings."""
    return tf.constant(array, dtype=dtype)


def to_array(value: Any) -> Array:
    """An array of a tensor; strings become an object array of `bytes`."""
    return plain(value.numpy())


def plain(value: Any) -> Array:
    """An array of what TensorFlow gives for one: a scalar string comes as Python's own `bytes`."""
    return value if isinstance(value, np.ndarray) else np.asarray(value, object if isinstance(value, bytes) else None)
