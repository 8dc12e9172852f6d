"""Models saved by Keras 3, as `.keras` or `.h5`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from multitower.file_contents import is_hdf5
from multitower.spec import ModelSpec

from ..model_errors import LoadError
from .function_call import FunctionCall
from .keras_model import KerasModel
from .plain_paths import with_suffix
from .tensorflow_types import declare


class Keras3Model(KerasModel):
    """A model of Keras 3. Inputs have the names of its input layers; for the outputs' see `_output_names`.

    Args:
        spec: its `path` and `jit_compile`.

    Raises:
        LoadError: it has no fixed inputs and outputs, or some that are not dense tensors; or Keras computes with a
            library other than TensorFlow.
        Exception: Keras cannot load it.
    """

    def __init__(self, spec: ModelSpec) -> None:
        if keras.backend.backend() != "tensorflow":
            message = f"Keras is set to {keras.backend.backend()}: set KERAS_BACKEND=tensorflow for the daemon"
            raise LoadError(message)
        path = str(spec.path)
        with with_suffix(path, ".h5" if is_hdf5(path) else ".keras") as readable:
            model = keras.saving.load_model(readable, compile=False, safe_mode=True)
        structure, symbolic = _structures(model)
        specs = [_dense_spec(tensor.name, tensor) for tensor in keras.tree.flatten(structure)]
        by_name = {tensor.name: tensor for tensor in specs}
        inputs = declare((tensor.name, tensor) for tensor in specs)
        names = _output_names(model, symbolic)
        outputs = declare(
            (name, _dense_spec(name, tensor)) for name, tensor in zip(names, keras.tree.flatten(symbolic), strict=True)
        )

        @tf.function(input_signature=[specs], jit_compile=spec.jit_compile or None)  # type: ignore[untyped-decorator]
        def call(values: list[Any]) -> list[Any]:
            arguments = keras.tree.pack_sequence_as(structure, values)
            flat_outputs: list[Any] = keras.tree.flatten(model(arguments, training=False))
            return flat_outputs

        function = FunctionCall(
            call.get_concrete_function(),
            by_name,
            lambda tensors: (([tensors[name] for name in by_name],), {}),
            lambda outputs: dict(zip(names, outputs, strict=True)),
        )
        super().__init__(model, function, inputs, outputs)

    def save(self, folder: str, serve: Callable[..., dict[str, Any]], inputs: list[Any]) -> None:
        """See `KerasModel`."""
        archive = keras.export.ExportArchive()
        archive.track(self.model)
        archive.add_endpoint("serving_default", serve, input_signature=inputs)
        archive.write_out(folder, verbose=False)


def _structures(model: Any) -> tuple[Any, Any]:
    """The model's inputs and outputs: symbolic tensors, or lists or dicts of them."""
    try:
        # A Sequential that only its input layer has built has no `input` yet.
        if isinstance(model, keras.Sequential):
            return model.inputs[0], model.outputs[0]
        return model.input, model.output
    except AttributeError:
        raise LoadError(
            "the model was never built, or is a subclass without fixed inputs; export it as a SavedModel"
        ) from None


def _output_names(model: Any, symbolic: Any) -> list[str]:
    """The keys, where the model returns a dict; else its output layers' names; `output_0` … where these repeat."""
    if isinstance(symbolic, dict) and all(isinstance(value, keras.KerasTensor) for value in symbolic.values()):
        return sorted(symbolic)  # the order of `keras.tree.flatten`
    if isinstance(model, keras.Sequential):
        return [model.layers[-1].name]
    names = list(model.output_names)
    return names if len(set(names)) == len(names) else [f"output_{index}" for index in range(len(names))]


def _dense_spec(name: str, tensor: Any) -> Any:
    if tensor.sparse or tensor.ragged:
        kind = "sparse" if tensor.sparse else "ragged"
        raise LoadError(f"{name!r} is {kind}; only dense tensors can be served: convert it inside the model")
    return tf.TensorSpec(tensor.shape, tf.as_dtype(tensor.dtype), name=name)
