"""What the worker needs of a model, whatever its format; `load` picks the format."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from multitower.spec import GRAPH_SUFFIXES, ModelSpec, TensorReport, TowerReport

from ..model_errors import LoadError
from .towers import AS_SAVED, tower_placements

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]


class Model(Protocol):
    """A loaded model.

    Attributes:
        platform: `tensorflow_savedmodel`, `tensorflow_graphdef`, `keras` or `python`.
        volatile: what `infer` has returned may change when it is called again.
        version: the number of the version folder, "1" where there are none.
        inputs: what it takes, or None where it declares nothing and takes anything.
        outputs: what it gives, or None where it declares nothing.
    """

    @property
    def platform(self) -> str: ...  # noqa: D102
    @property
    def volatile(self) -> bool: ...  # noqa: D102
    @property
    def version(self) -> str: ...  # noqa: D102
    @property
    def inputs(self) -> tuple[TensorReport, ...] | None: ...  # noqa: D102
    @property
    def outputs(self) -> tuple[TensorReport, ...] | None: ...  # noqa: D102

    def infer(self, inputs: Arrays) -> Arrays:
        """Runs the model on arrays of the declared datatypes; BYTES are object arrays of `bytes`."""

    def try_out(self, inputs: Arrays) -> Arrays:
        """Runs the model as `infer` does, before it serves, and settles what can be settled only by running it."""

    def close(self) -> None:
        """Gives back what it holds beside memory; called once, before the process ends."""


def preload() -> None:
    """Imports TensorFlow, which takes seconds: a spare does it before it has work.

    Raises:
        Exception: TensorFlow is not installed, or its installation is broken.
    """
    import tensorflow  # noqa: F401  importing it is the purpose


def load(spec: ModelSpec, devices: Sequence[str]) -> Model:
    """Loads a model of any format.

    Args:
        spec: which.
        devices: names of the worker's devices, which a handler is told.

    Raises:
        LoadError: it cannot be served.
        Exception: whatever the format's own code raises.
    """
    if spec.handler is not None:
        from .handler import HandlerModel

        return HandlerModel(spec, devices)
    assert spec.path is not None  # the configuration sees to it that there is one of the two
    if spec.path.endswith(GRAPH_SUFFIXES):
        from .frozen_graph import GraphModel

        return GraphModel(spec)
    if os.path.isfile(spec.path):
        from .keras_files import load_keras_file

        return load_keras_file(spec)
    from .saved_model import SavedModel

    return SavedModel(spec)


def load_towers(spec: ModelSpec, devices: Sequence[str]) -> list[Model]:
    """Loads the replicas of a model that a worker of these devices has.

    A handler places itself, so that there is one of it. Files of Keras name no devices: with `as_saved` TensorFlow puts
    them where it wants to.

    Raises:
        LoadError: it cannot be served.
        Exception: whatever the format's own code raises.
    """
    if spec.path is None or (len(devices) == 1 and not spec.log_device_placement):
        return [load(spec, devices)]
    if spec.jit_compile:
        why = "log_device_placement looks at graphs" if len(devices) == 1 else "a worker of several devices runs graphs"
        raise LoadError(f"jit_compile: XLA compiles functions, but {why} in sessions")
    placements = tower_placements(devices, spec.placement, spec.name if spec.log_device_placement else "")
    if spec.path.endswith(GRAPH_SUFFIXES):
        from .frozen_graph import GraphModel

        return [GraphModel(spec, placement) for placement in placements]
    if os.path.isfile(spec.path):
        if spec.placement == AS_SAVED:
            return [load(spec, devices)]
        from .keras_towers import load_keras_towers

        return load_keras_towers(spec, placements)
    from .saved_model import SavedModel

    return [SavedModel(spec, placement) for placement in placements]


@runtime_checkable
class Placed(Protocol):
    """What a replica of a model has beside `Model`, where it may be one of several.

    Attributes:
        tower: where it is, and its nodes; None where that is not looked at.
    """

    @property
    def tower(self) -> TowerReport | None: ...  # noqa: D102


@runtime_checkable
class Signed(Protocol):
    """What a model has beside `Model` where it has signatures.

    Attributes:
        signature: the name of the one that the model itself is.
        others: the others by name; of one that cannot be served, why.
    """

    signature: str
    others: Mapping[str, Model | LoadError]


def why_unbatchable(model: Model) -> str | None:
    """Why requests to the model cannot be joined along dimension 0, as far as its declaration tells."""
    if model.inputs is None:
        return None
    if not model.inputs:
        return "it has no inputs"
    for tensor in model.inputs:
        if tensor.shape is None:
            return f"the rank of input {tensor.name!r} is unknown"
        if not tensor.shape:
            return f"the input {tensor.name!r} is a scalar"
        if tensor.shape[0] != -1:
            return f"dimension 0 of input {tensor.name!r} is fixed at {tensor.shape[0]}"
    for tensor in model.outputs or ():
        if tensor.shape is not None and (not tensor.shape or tensor.shape[0] != -1):
            return f"dimension 0 of output {tensor.name!r} is not the batch"
    return None
