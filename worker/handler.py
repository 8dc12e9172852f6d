"""Handlers: any Python class with `load` and `infer`, named `module:Class` in the configuration."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from multitower import tensors
from multitower.errors import Reason, make
from multitower.spec import ModelSpec, TensorReport
from multitower.worker.model import Arrays, LoadError


class HandlerModel:
    """A model made of a user's class. docs/models.md is the contract.

    Args:
        spec: its `parameters` go to the class's `load` by name.

    Raises:
        LoadError: there is no such class, or it lacks a method, or its declarations are wrong.
    """

    platform = "python"
    version = "1"

    def __init__(self, spec: ModelSpec) -> None:
        assert spec.handler is not None  # `load` picked this format for that
        self._handler = _class_of(spec.handler)()
        self.inputs = _declared(self._handler, "inputs")
        self.outputs = _declared(self._handler, "outputs")
        self._handler.load(**spec.parameters)

    def infer(self, inputs: Arrays) -> Arrays:
        """What the class's `infer` returns, as arrays.

        Raises:
            ModelError: `output_invalid` when that is not a dict of arrays by name.
        """
        outputs = self._handler.infer(inputs)
        if not isinstance(outputs, dict) or not all(isinstance(name, str) for name in outputs):
            kind = type(outputs).__name__
            raise make(Reason.OUTPUT_INVALID, f"infer returned {kind}, but a dict of arrays by name is needed")
        return {name: np.asarray(value) for name, value in outputs.items()}

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
    reports = []
    try:
        for name, (datatype, shape) in declared.items():
            if datatype not in tensors.DATATYPES:
                raise ValueError(f"{datatype!r} is none of {', '.join(tensors.DATATYPES)}")
            dims = None if shape is None else tuple(map(int, shape))
            reports.append(TensorReport(name=name, datatype=datatype, shape=dims))
    except (AttributeError, TypeError, ValueError) as error:
        raise LoadError(
            f"{side} of the handler must be a dict of name to (datatype, shape), as in "
            f"{{'x': ('FP32', (-1, 64))}}: {error}"
        ) from error
    return tuple(reports)
