"""Handlers: Python classes with `load` and `infer`, named `module:Class` in the configuration. See docs/handlers.md."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multitower import tensors
from multitower.errors import Reason, make
from multitower.import_path import find_clashes, searched_folders
from multitower.spec import ONLY_VERSION, ModelSpec, TensorReport, TowerReport
from multitower.wire import MAX_RANK

from ..model_errors import LoadError, one_line
from ..records import log_event
from .model import Array, Arrays, Model


def load(spec: ModelSpec, devices: Sequence[str]) -> Model:
    """See `loader`."""
    return HandlerModel(spec, devices)


class HandlerModel:
    """A model whose computation is a class of the user's.

    Args:
        spec: its `handler` is the class; its `parameters` go to the class's `load`.
        devices: names of the worker's devices, for the class's `load`.

    Raises:
        LoadError: the class does not exist, lacks a method, or declares its inputs or outputs wrongly.
        BaseException: whatever the class raises.
    """

    volatile = True
    version = ONLY_VERSION
    signature = ""
    other_signatures: Mapping[str, Model | LoadError] = {}
    defaults: Mapping[str, Array] = {}
    signature_definitions = b""
    tower: TowerReport | None = None

    def __init__(self, spec: ModelSpec, devices: Sequence[str]) -> None:
        assert spec.handler is not None  # the loader chose this format because of it
        _check_names(spec.handler, spec.module_folder)
        self._handler = _import_class(spec.handler, spec.module_folder)()
        self._handler.load(list(devices), dict(spec.parameters))
        # Not before `load`: they may depend on the parameters.
        self.inputs = _read_declaration(self._handler, "inputs")
        self.outputs = _read_declaration(self._handler, "outputs")

    def infer(self, inputs: Arrays) -> Arrays:
        """Calls the class's `infer`; returns its outputs as arrays, which the class may change at its next call.

        Raises:
            ModelError: `output_invalid`: it returned no dict of arrays by name, or not what it declares.
            BaseException: whatever the class raises.
        """
        returned = self._handler.infer(dict(inputs))
        if not isinstance(returned, dict):
            kind = type(returned).__name__
            raise make(Reason.OUTPUT_INVALID, f"infer returned {kind}, but a dict of arrays by name is needed")
        outputs = {_check_name(name): _to_array(name, value) for name, value in returned.items()}
        for tensor in self.outputs or ():
            _check_output(tensor, outputs)
        return outputs

    def try_out(self, inputs: Arrays) -> Arrays:
        """Calls the class's `infer`, as `infer` does."""
        return self.infer(inputs)

    def close(self) -> None:
        """Calls the class's `close`, where it has one."""
        close = getattr(self._handler, "close", None)
        if close is not None:
            close()


def _check_names(handler: str, folder: str | None) -> None:
    """Warns of modules beside the configuration that installed ones hide.

    Raises:
        LoadError: the handler's own module is one of them.
    """
    for clash in find_clashes(folder, handler) if folder is not None else ():
        if clash.module == handler.partition(":")[0].partition(".")[0]:
            raise LoadError(f"the handler's module cannot be imported: {clash}")
        log_event(logging.WARNING, str(clash))


def _import_class(name: str, folder: str | None) -> Any:
    module_name, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        what = f"cannot import {error.name!r} for the handler {name}"
        if error.name is None or "." in error.name:
            raise LoadError(f"{what}: {one_line(error)}") from error  # the package was found, or user code raised it
        searched = searched_folders(folder)
        raise LoadError(f"{what}: none of the folders that were searched has it: {searched}") from error
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


def _read_declaration(handler: Any, side: str) -> tuple[TensorReport, ...] | None:
    """The declared tensors of one side, `inputs` or `outputs`; None where the handler declares none."""
    declared = getattr(handler, side, None)
    if declared is None:
        return None
    reports: dict[str, TensorReport] = {}
    try:
        for entry in declared:
            name, datatype, shape = entry["name"], entry["datatype"], entry["shape"]
            if not isinstance(name, str) or not name:
                raise ValueError(f"{name!r} is no name")
            if datatype not in tensors.DATATYPES:
                raise ValueError(f"{datatype!r} is none of {', '.join(tensors.DATATYPES)}")
            if name in reports:
                raise ValueError(f"{name!r} is declared twice")
            dims = None if shape is None else tuple(map(int, shape))
            if dims is not None and min(dims, default=0) < -1:
                raise ValueError(f"a dimension is -1 or a size, not {min(dims)}")
            reports[name] = TensorReport(name=name, datatype=datatype, shape=dims)
    except (KeyError, TypeError, ValueError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise LoadError(
            f"{side} of the handler must be a list of name, datatype and shape, as in "
            f"[{{'name': 'x', 'datatype': 'FP32', 'shape': [-1, 64]}}]: {problem}"
        ) from error
    return tuple(reports.values())


def _check_name(name: Any) -> str:
    with contextlib.suppress(UnicodeEncodeError):  # half a surrogate pair, which a header in UTF-8 cannot carry
        if isinstance(name, str) and name.encode():
            return name
    raise make(Reason.OUTPUT_INVALID, f"infer returned an output of the name {name!r}; names are text")


def _to_array(name: str, value: Any) -> Array:
    try:
        # numpy's own arrays of strings drop zero bytes at the end of an element.
        return np.asarray(value, dtype=object if _is_text(value) else None)
    except Exception as error:
        # Sequences of unequal lengths, tensors of another library on another device, ...
        message = f"output {name!r} is no array: {one_line(error)}"
        raise make(Reason.OUTPUT_INVALID, message, field=name) from error


def _is_text(value: Any) -> bool:
    for _ in range(MAX_RANK):
        if not isinstance(value, list | tuple) or not value:
            break
        value = value[0]
    return isinstance(value, str | bytes)


def _check_output(declared: TensorReport, outputs: Arrays) -> None:
    """Checks that a declared output is there and has the declared shape.

    Raises:
        ModelError: `output_invalid`: it is missing, or has another shape.
    """
    array = outputs.get(declared.name)
    if array is None:
        known = ", ".join(map(repr, outputs)) or "none"
        message = f"infer returned no output {declared.name!r}, only {known}"
        raise make(Reason.OUTPUT_INVALID, message, field=declared.name)
    if declared.shape is None:
        return
    fits = array.ndim == len(declared.shape) and all(
        wanted in (-1, size) for wanted, size in zip(declared.shape, array.shape, strict=True)
    )
    if not fits:
        message = f"output {declared.name!r} has the shape {list(array.shape)}, but {list(declared.shape)} is declared"
        raise make(Reason.OUTPUT_INVALID, message, field=declared.name)
