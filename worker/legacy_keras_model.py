"""Models saved by Keras 2, as `.h5` or `.keras`, which tf-keras reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from multitower.spec import ModelSpec
from multitower.worker import tensorflow_setup as setup
from multitower.worker.function_call import FunctionCall
from multitower.worker.model import Arrays, LoadError


class LegacyKerasModel:
    """A model that tf-keras, which is Keras 2, has read. Inputs and outputs have the names of their layers.

    Args:
        spec: its `path`.
        keras: the module `tf_keras`.

    Raises:
        LoadError: it has no fixed inputs, or some that are not dense tensors.
        Exception: tf-keras cannot load it.
    """

    platform = "keras"
    volatile = False
    version = "1"

    def __init__(self, spec: ModelSpec, keras: Any) -> None:
        model = keras.models.load_model(spec.path, compile=False)
        if not model.inputs:
            raise LoadError("the model was never built; export it as a SavedModel")
        declared = {name: tensor.type_spec for name, tensor in zip(model.input_names, model.inputs, strict=True)}
        self.inputs = setup.reports(declared.items())
        specs = {name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in declared.items()}
        single = isinstance(model, keras.Sequential)

        @tf.function(input_signature=[specs], jit_compile=spec.jit_compile or None)  # type: ignore[untyped-decorator]
        def call(values: dict[str, Any]) -> dict[str, Any]:
            # A functional model finds its inputs by their layers' names, however it was nested.
            outputs = model(next(iter(values.values())) if single else values, training=False)
            if isinstance(outputs, dict):
                return outputs
            return dict(zip(model.output_names, tf.nest.flatten(outputs), strict=True))

        function = call.get_concrete_function()
        self.outputs = setup.reports(function.structured_outputs.items())
        self.call = FunctionCall(spec.name, function, specs, lambda tensors: ((tensors,), {}), lambda outputs: outputs)
        # The function holds the model's variables only weakly.
        self.model = model

    def infer(self, inputs: Arrays) -> Arrays:
        """Calls the model."""
        return self.call(inputs)

    def try_out(self, inputs: Arrays) -> Arrays:
        """Calls the model, and finds out whether it can be called in a quicker way."""
        return self.call.try_out(inputs)

    def save(self, folder: str, serve: Callable[..., dict[str, Any]], inputs: list[Any]) -> None:
        """Writes a SavedModel whose signature is this function, made of the model, for these TensorSpecs."""
        signature = tf.function(serve, input_signature=inputs).get_concrete_function()
        tf.saved_model.save(self.model, folder, signatures={"serving_default": signature})

    @property
    def graph(self) -> Any:
        """What a call runs: a GraphDef, with the functions that it calls."""
        return self.call.graph

    def close(self) -> None:
        """Only the process's end gives device memory back."""
