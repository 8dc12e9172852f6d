"""Checks whether a loaded model can run at all: whether the operations of its graph have implementations here."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final

import tensorflow as tf

from multitower.spec import ModelSpec

from ..unrunnable import UnrunnableError, without_kernel
from .graph_nodes import certain_nodes
from .kernels import device_types
from .model import CallableModel, Model

PYTHON_FUNCTIONS: Final = frozenset(("EagerPyFunc", "PyFunc", "PyFuncStateless"))
"""The operations of `tf.py_function` and `tf.numpy_function`."""


def check_runnable(model: Model, spec: ModelSpec) -> None:
    """Checks the operations that nearly every call of a model, or of one of its signatures, runs.

    Operations under a condition are not checked, nor those in functions that XLA compiles. A model that is not one call
    is not checked at all.

    Raises:
        UnrunnableError: one of them cannot run in this process.
    """
    if not isinstance(model, CallableModel):
        return
    here = {device.device_type for device in tf.config.list_logical_devices()}
    nodes = certain_nodes(model.graph, model.call.fetched)
    check_nodes(nodes, here, runs_model_code=spec.format.runs_model_code, compiled=spec.jit_compile)


def check_nodes(nodes: Iterable[Any], here: Collection[str], *, runs_model_code: bool, compiled: bool) -> None:
    """Checks nodes of a graph.

    Args:
        nodes: NodeDefs.
        here: the types of the devices, as in `{"CPU", "GPU"}`.
        runs_model_code: see `ModelFormat`.
        compiled: whether XLA compiles all of them.

    Raises:
        UnrunnableError: one of them cannot run.
    """
    for node in nodes:
        if node.op in PYTHON_FUNCTIONS and not runs_model_code:
            raise _python_function(node)
        if not compiled:
            _check_kernel(node, here)


def _python_function(node: Any) -> UnrunnableError:
    """The error for a node that calls a Python function."""
    return UnrunnableError(
        f"it calls a Python function, at the node {node.name!r} ({node.op}): tf.py_function and tf.numpy_function are "
        "not saved with a model, only in the process that built it; export the model without them, or serve it with a "
        "handler"
    )


def _check_kernel(node: Any, here: Collection[str]) -> None:
    types = device_types(node)
    # An operation without any kernel is no obstacle: TensorFlow replaces some before it runs a graph.
    if types is None or "DEFAULT" in types or types & set(here):
        return
    raise without_kernel(node.op, needs_gpu="GPU" in types)
