"""The kernels of operations: on which kinds of devices this TensorFlow can run a node."""

from __future__ import annotations

from typing import Any

from tensorflow.python.framework import kernels

_ON_GPU = frozenset(("GPU", "DEFAULT"))
"""The device types of kernels that GPUs can run; kernels of DEFAULT run on any device."""


def device_types(node: Any) -> set[str] | None:
    """The device types of the kernels for a node, with its datatypes.

    Args:
        node: a NodeDef.

    Returns:
        For example `{"CPU", "GPU", "XLA_CPU_JIT"}`; None where the operation has no kernel at all, like the call of a
        function, which does not run by itself.
    """
    registered = kernels.get_registered_kernels_for_op(node.op).kernel
    if not registered:
        return None
    return {kernel.device_type for kernel in registered if not kernel.label and _accepts(kernel, node)}


def is_cpu_only(node: Any) -> bool:
    """Whether TensorFlow has a kernel for a node, with its datatypes, on the CPU and none on a GPU."""
    types = device_types(node) or set()
    return "CPU" in types and not types & _ON_GPU


def _accepts(kernel: Any, node: Any) -> bool:
    """Whether the node's types are among the kernel's. A type that the node does not state counts as accepted."""
    for constraint in kernel.constraint:
        attribute = node.attr.get(constraint.name)
        if attribute is None:
            continue
        kind = attribute.WhichOneof("value")
        types = [attribute.type] if kind == "type" else attribute.list.type if kind == "list" else []
        if not set(types) <= set(constraint.allowed_values.list.type):
            return False
    return True
