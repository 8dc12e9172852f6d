"""Handlers: any Python class with `load` and `infer`, named `module:Class` in the configuration."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from multitower import tensors
from multitower.errors import Reason, make
from multitower.spec import ModelSpec, TensorReport

from ..model_errors import LoadError
from .model import Array, Arrays


class HandlerModel:
    """A model made of a user's class. docs/handlers.md is the contract.

    Args:
        spec: its `parameters` go to the class's `load`.
        devices: names of the worker's devices, for the class's `load`.

    Raises:
        LoadError: there is no such class, or it lacks a method, or its declarations are wrong.
    """

    platform = "python"
    volatile = True
    version = "1"

    def __init__(self, spec: ModelSpec, devices: Sequence[str]) -> None:
        assert spec.handler is not None  # `load` picked this format for that
        self._handler = _class_of(spec.handler)()
        self._handler.load(list(devices), dict(spec.parameters))
        # Only now: what they are may depend on the parameters.
        self.inputs = _declared(self._handler, "inputs")
        self.outputs = _declared(self._handler, "outputs")

    def infer(self, inputs: Arrays) -> Arrays:
        """What the class's `infer` returns, as arrays; the class may change them at its next call.

        Raises:
            ModelError: `output_invalid` when that is not a dict of arrays by name, or not what it declares.
        """
        returned = self._handler.infer(dict(inputs))
        if not isinstance(returned, dict):
            kind = type(returned).__name__
            raise make(Reason.OUTPUT_INVALID, f"infer returned {kind}, but a dict of arrays by name is needed")
        outputs = {_checked_name(name): _to_array(name, value) for name, value in returned.items()}
        for tensor in self.outputs or ():
            _check_declared(tensor, outputs)
        return outputs

    def try_out(self, inputs: Arrays) -> Arrays:
        """As `infer`; a warm-up leaves handlers alone."""
        return self.infer(inputs)

    def close(self) -> None:
        """Calls the class's `close`, where it has one."""
        close = getattr(self._handler, "close", None)
        if close is not None:
            close()


def _class_of(name: str) -> Any:
    module_name, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise LoadError(f"cannot import {error.name!r} for the handler {name}") from error
    for part in path.split("."):
        found = getattr(found, part, None)
        if found is None:
            raise LoadError(f"the module {module_name} has no {path}")
    if not isinstance(found, type):
        raise LoadError(f"{name} is no class")
    for method in ("load", "infer"):
        if not callable(getattr(found, method, None)):
            raise LoadError(f"the handler {name} has no method {method}")
    return found


def _declared(handler: Any, side: str) -> tuple[TensorReport, ...] | None:
    declared = getattr(handler, side, None)
    if declared is None:
        return None
    reports: list[TensorReport] = []
    try:
        for entry in declared:
            name, datatype, shape = entry["name"], entry["datatype"], entry["shape"]
            if not isinstance(name, str) or not name:
                raise ValueError(f"{name!r} is no name")
            if datatype not in tensors.DATATYPES:
                raise ValueError(f"{datatype!r} is none of {', '.join(tensors.DATATYPES)}")
            if name in [report.name for report in reports]:
                raise ValueError(f"{name!r} is declared twice")
            dims = None if shape is None else tuple(map(int, shape))
            if dims is not None and min(dims, default=0) < -1:
                raise ValueError(f"a dimension is -1 or a size, not {min(dims)}")
            reports.append(TensorReport(name=name, datatype=datatype, shape=dims))
    except (KeyError, TypeError, ValueError) as error:
        told = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise LoadError(
            f"{side} of the handler must be a list of name, datatype and shape, as in "
            f"[{{'name': 'x', 'datatype': 'FP32', 'shape': [-1, 64]}}]: {told}"
        ) from error
    return tuple(reports)


def _checked_name(name: Any) -> str:
    try:
        if isinstance(name, str) and name.encode():
            return name
    except UnicodeEncodeError:
        pass  # half a surrogate pair: the header is UTF-8
    raise make(Reason.OUTPUT_INVALID, f"infer returned an output of the name {name!r}; names are text")


def _to_array(name: str, value: Any) -> Array:
    try:
        # numpy's own arrays of strings lose zero bytes at the end of an element.
        return np.asarray(value, dtype=object if _is_text(value) else None)
    except Exception as error:
        # Sequences of unequal lengths, tensors of another library on another device, ...
        kind = type(error).__name__
        raise make(Reason.OUTPUT_INVALID, f"output {name!r} is no array: {kind}: {error}", field=name) from error


def _is_text(value: Any) -> bool:
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return isinstance(value, str | bytes)


def _check_declared(tensor: TensorReport, outputs: Arrays) -> None:
    array = outputs.get(tensor.name)
    if array is None:
        known = ", ".join(map(repr, outputs)) or "none"
        message = f"infer returned no output {tensor.name!r}, only {known}"
        raise make(Reason.OUTPUT_INVALID, message, field=tensor.name)
    if tensor.shape is None:
        return
    fits = array.ndim == len(tensor.shape) and all(
        wanted in (-1, size) for wanted, size in zip(tensor.shape, array.shape, strict=True)
    )
    if not fits:
        message = f"output {tensor.name!r} has the shape {list(array.shape)}, but {list(tensor.shape)} is declared"
        raise make(Reason.OUTPUT_INVALID, message, field=tensor.name)
