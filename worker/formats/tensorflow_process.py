"""TensorFlow's settings for this process, and the device memory that it uses."""

from __future__ import annotations

import tensorflow as tf

from multitower.spec import Assignment

from ..model_errors import LoadError

MIB = 1 << 20


def configure(assignment: Assignment) -> None:
    """Sets threads, device memory, and as many logical CPU devices as the slot has CPU devices.

    To be called before anything asks TensorFlow for devices, which settles devices, memory and threads for good.

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
        # Serving on the CPU instead, or on some of the GPUs, would look like very slow GPUs.
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


def device_memory(*, reset_peak: bool) -> tuple[int, int] | None:
    """The bytes that TensorFlow's allocators use on all GPUs.

    Args:
        reset_peak: whether the peak is counted from now on, starting with what is in use.

    Returns:
        Bytes in use, and their peak since the last reset; None where TensorFlow sees no GPU.
    """
    names = [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices("GPU")]
    if reset_peak:
        for name in names:
            tf.config.experimental.reset_memory_stats(name)
    found = [tf.config.experimental.get_memory_info(name) for name in names]
    return (sum(each["current"] for each in found), sum(each["peak"] for each in found)) if found else None
