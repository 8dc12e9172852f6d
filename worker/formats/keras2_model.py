"""Models saved by Keras 2, as `.h5` or `.keras`. tf-keras reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from multitower.file_contents import is_hdf5
from multitower.spec import ModelSpec

from ..model_errors import LoadError
from .function_call import FunctionCall
from .keras_model import KerasModel
from .plain_paths import with_suffix
from .tensorflow_types import declare


class Keras2Model(KerasModel):
    """A model of Keras 2. Inputs and outputs have the names of their layers.

    Args:
        spec: its `path` and `jit_compile`.
        keras: the module `tf_keras`.

    Raises:
        LoadError: it has no fixed inputs, or inputs that are not dense tensors.
        Exception: tf-keras cannot load it.
    """

    def __init__(self, spec: ModelSpec, keras: Any) -> None:
        path = str(spec.path)
        with with_suffix(path, ".h5" if is_hdf5(path) else ".keras") as readable:
            model = keras.models.load_model(readable, compile=False)
        if not model.inputs:
            raise LoadError("the model was never built; export it as a SavedModel")
        declared = {name: tensor.type_spec for name, tensor in zip(model.input_names, model.inputs, strict=True)}
        inputs = declare(declared.items())
        specs = {name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in declared.items()}
        single = isinstance(model, keras.Sequential)

        @tf.function(input_signature=[specs], jit_compile=spec.jit_compile or None)  # type: ignore[untyped-decorator]
        def call(values: dict[str, Any]) -> dict[str, Any]:
            # A functional model finds its inputs by the names of their layers, however it was nested.
            outputs = model(next(iter(values.values())) if single else values, training=False)
            if isinstance(outputs, dict):
                return outputs
            return dict(zip(model.output_names, tf.nest.flatten(outputs), strict=True))

        concrete = call.get_concrete_function()
        outputs = declare(concrete.structured_outputs.items())
        function = FunctionCall(concrete, specs, lambda tensors: ((tensors,), {}), lambda outputs: outputs)
        super().__init__(model, function, inputs, outputs)

    def save(self, folder: str, serve: Callable[..., dict[str, Any]], inputs: list[Any]) -> None:
        """See `KerasModel`."""
        signature = tf.function(serve, input_signature=inputs).get_concrete_function()
        tf.saved_model.save(self.model, folder, signatures={"serving_default": signature})
