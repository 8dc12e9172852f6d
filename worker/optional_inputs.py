"""Inputs that requests may leave out, since their model has defaults for them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from multitower.spec import TensorReport, TowerReport

from .formats.model import Array, Arrays, Model
from .model_errors import LoadError


def row_defaults(model: Model) -> dict[str, Array]:
    """The defaults that are repeated for each row of a batch: those of inputs with a batch dimension."""
    return {
        tensor.name: model.defaults[tensor.name]
        for tensor in model.inputs or ()
        if tensor.optional and tensor.batched_without and tensor.has_rows
    }


def fill_rows(inputs: Arrays, defaults: Mapping[str, Array]) -> Arrays:
    """The inputs of a batch, with defaults for missing ones.

    Args:
        inputs: at least one, each with the rows of the batch.
        defaults: values of one row, by name.
    """
    rows = len(next(iter(inputs.values())))
    missing = {
        name: np.broadcast_to(value, (rows, *value.shape[1:])) for name, value in defaults.items() if name not in inputs
    }
    return {**inputs, **missing}


class BatchedModel:
    """A model as batches call it: without the optional inputs that have no batch dimension.

    Args:
        model: the model. It takes its own defaults for inputs that are missing.

    Attributes:
        inputs: the inputs that requests in a batch may have.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self.volatile = model.volatile
        self.version = model.version
        self.outputs = model.outputs
        self.signature = model.signature
        self.other_signatures: Mapping[str, Model | LoadError] = model.other_signatures
        self.defaults = model.defaults
        self.signature_definitions = model.signature_definitions
        self.inputs: tuple[TensorReport, ...] | None = None
        if model.inputs is not None:
            self.inputs = tuple(tensor for tensor in model.inputs if tensor.has_rows or not tensor.optional)

    @property
    def tower(self) -> TowerReport | None:
        """See `Model`."""
        return self._model.tower

    def infer(self, inputs: Arrays) -> Arrays:
        """See `Model`."""
        return self._model.infer(inputs)

    def try_out(self, inputs: Arrays) -> Arrays:
        """See `Model`."""
        return self._model.try_out(inputs)

    def close(self) -> None:
        """See `Model`."""
        self._model.close()
