"""Files of Keras on several devices: written once as a SavedModel, whose graph each tower then has."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import tensorflow as tf

from multitower.spec import ModelSpec, TensorReport, TowerReport

from .keras_files import load_keras_file
from .model import Arrays, Model
from .saved_model import SavedModel
from .towers import TowerPlacement


class KerasTower:
    """A replica of a file of Keras, with the file's own names.

    Args:
        saved: the SavedModel's replica.
        inputs: as the file's model declares them.
        outputs: likewise.
    """

    platform = "keras"
    volatile = False
    version = "1"

    def __init__(self, saved: SavedModel, inputs: tuple[TensorReport, ...], outputs: tuple[TensorReport, ...]) -> None:
        self._saved = saved
        self.inputs = inputs
        self.outputs = outputs
        self._to = {tensor.name: f"input_{index}" for index, tensor in enumerate(inputs)}
        self._back = {f"output_{index}": tensor.name for index, tensor in enumerate(outputs)}

    def infer(self, inputs: Arrays) -> Arrays:
        """Calls the replica."""
        return self._named(self._saved.infer(self._numbered(inputs)))

    def try_out(self, inputs: Arrays) -> Arrays:
        """As `infer`, and notes where the nodes are."""
        return self._named(self._saved.try_out(self._numbered(inputs)))

    def _numbered(self, arrays: Arrays) -> Arrays:
        return {self._to[name]: array for name, array in arrays.items()}

    def _named(self, arrays: Arrays) -> Arrays:
        return {self._back[name]: array for name, array in arrays.items()}

    @property
    def tower(self) -> TowerReport | None:
        """Where it is."""
        return self._saved.tower

    def close(self) -> None:
        """Only the process's end gives device memory back."""


def load_keras_towers(spec: ModelSpec, tower_placements: Sequence[TowerPlacement]) -> list[Model]:
    """Loads a `.keras` or `.h5` file on each of these sites.

    Raises:
        LoadError: it cannot be served.
        Exception: Keras, or tf-keras, cannot load it.
    """
    with tempfile.TemporaryDirectory(prefix="multitower-keras-") as folder:
        inputs, outputs = _export(spec, folder)
        # What was only needed to write it.
        gc.collect()
        saved = replace(spec, path=folder, version=None)
        return [KerasTower(SavedModel(saved, placement), inputs, outputs) for placement in tower_placements]


def _export(spec: ModelSpec, folder: str) -> tuple[tuple[TensorReport, ...], tuple[TensorReport, ...]]:
    """Writes it with numbers for names, since a layer's name need not be one that an argument may have."""
    # The host's memory: each tower is to have its own on its device, and the first no second one.
    with tf.device("/device:CPU:0"):
        loaded = load_keras_file(spec)
        inputs, outputs, specs = loaded.inputs, loaded.outputs, loaded.call.specs

        def serve(*values: Any) -> dict[str, Any]:
            given = {tensor.name: value for tensor, value in zip(inputs, values, strict=True)}
            named = loaded.call.outputs(given)
            return {f"output_{index}": named[tensor.name] for index, tensor in enumerate(outputs)}

        numbered = [
            tf.TensorSpec(specs[tensor.name].shape, specs[tensor.name].dtype, f"input_{index}")
            for index, tensor in enumerate(inputs)
        ]
        loaded.save(folder, serve, numbered)
    return inputs, outputs
