"""Models saved by Keras 3 as `.keras` files."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from multitower.spec import ModelSpec
from multitower.worker import tensorflow_setup as setup
from multitower.worker.model import Arrays, LoadError


class KerasModel:
    """A `.keras` file. Inputs and outputs have the names of the model's input and output layers.

    Args:
        spec: its `path`.

    Raises:
        LoadError: it has no fixed inputs and outputs.
        Exception: Keras cannot load it.
    """

    platform = "keras"
    version = "1"

    def __init__(self, spec: ModelSpec) -> None:
        self._model: Any = keras.saving.load_model(spec.path, compile=False)
        try:
            structure, symbolic = self._model.input, keras.tree.flatten(self._model.output)
        except AttributeError:
            raise LoadError(
                "the model was never built, or is a subclass without fixed inputs; export it as a SavedModel"
            ) from None
        flat = keras.tree.flatten(structure)
        names = [tensor.name for tensor in flat]
        specs = {
            tensor.name: tf.TensorSpec(tensor.shape, tf.as_dtype(tensor.dtype), name=tensor.name) for tensor in flat
        }
        self._dtypes = {name: tensor.dtype for name, tensor in specs.items()}
        self.inputs = setup.reports(specs.items())
        self._names = list(self._model.output_names)
        self.outputs = setup.reports(
            (name, tf.TensorSpec(tensor.shape, tf.as_dtype(tensor.dtype)))
            for name, tensor in zip(self._names, symbolic, strict=True)
        )

        @tf.function(input_signature=[[specs[name] for name in names]])  # type: ignore[untyped-decorator]
        def call(values: list[Any]) -> list[Any]:
            arguments = keras.tree.pack_sequence_as(structure, values)
            flat_outputs: list[Any] = keras.tree.flatten(self._model(arguments, training=False))
            return flat_outputs

        self._call = call

    def infer(self, inputs: Arrays) -> Arrays:
        """Calls the model."""
        values = [setup.to_tensor(inputs[name], dtype) for name, dtype in self._dtypes.items()]
        outputs = self._call(values)
        return {name: setup.to_array(value) for name, value in zip(self._names, outputs, strict=True)}

    def close(self) -> None:
        """Only the process's end gives device memory back."""
