"""The environment variables that show a process its GPUs and no others; they must be set before it touches a device.

The process counts the GPUs in the order of `CUDA_VISIBLE_DEVICES`
(https://docs.nvidia.com/cuda/cuda-c-programming-guide/#env-vars).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

# PCI_BUS_ID although UUIDs are unambiguous: CUDA numbers GPUs by speed otherwise, and the numbers in a worker's log
# would differ from those of nvidia-smi.
_ORDER: Final = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def cuda_environment(uuids: Sequence[str]) -> dict[str, str]:
    """The variables of a process that sees these GPUs.

    Args:
        uuids: of GPUs or MIG slices, at least one.
    """
    # Dedicated threads launch kernels: otherwise these wait behind operations on the host.
    return {**_ORDER, "CUDA_VISIBLE_DEVICES": ",".join(uuids), "TF_GPU_THREAD_MODE": "gpu_private"}


def no_gpu_environment() -> dict[str, str]:
    """The variables of a process that sees no GPU."""
    # An empty value would have the same effect, but looks like a mistake.
    return {**_ORDER, "CUDA_VISIBLE_DEVICES": "-1"}
