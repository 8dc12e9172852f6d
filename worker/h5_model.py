"""Models saved as HDF5 (`.h5`), the format of Keras 2: read by Keras 3 where it can, else by tf-keras."""

from __future__ import annotations

import importlib
import json
from typing import Any

import h5py
import tensorflow as tf

from multitower.spec import ModelSpec
from multitower.worker import tensorflow_setup as setup
from multitower.worker.function_call import FunctionCall
from multitower.worker.keras_model import KerasModel
from multitower.worker.model import Arrays, LoadError, Model


def load_h5(spec: ModelSpec) -> Model:
    """Loads an `.h5` file.

    Raises:
        LoadError: it holds no whole model, or one that cannot be served, or tf-keras is needed and not installed.
        Exception: tf-keras cannot load it either.
    """
    _refuse_what_no_reader_takes(str(spec.path))
    try:
        return KerasModel(spec)
    except LoadError:
        raise
    except Exception as error:  # noqa: BLE001  whatever Keras 3 raises of a layer that it has no more, or knows otherwise
        try:
            legacy = importlib.import_module("tf_keras")
        except ModuleNotFoundError:
            told = " ".join(str(error).split())[:300]
            raise LoadError(
                f"Keras 3 cannot read it, as is the rule with models of Keras 2: pip install tf-keras, which can; or "
                f"export it as a SavedModel ({type(error).__name__}: {told})"
            ) from error
    return LegacyKerasModel(spec, legacy)


def _refuse_what_no_reader_takes(path: str) -> None:
    try:
        with h5py.File(path, "r") as file:
            text = file.attrs.get("model_config")
    except OSError as error:
        raise LoadError(f"{path} is no HDF5 file: {error}") from None
    if text is None:
        raise LoadError(f"{path} holds weights alone; save the whole model (model.save), not its weights")
    # Keras 3 refuses it by itself; tf-keras would run what the file brings.
    if _has_lambda(json.loads(text)):
        raise LoadError("it has a Lambda layer, which is Python code inside the file; export it as a SavedModel")


def _has_lambda(config: Any) -> bool:
    if isinstance(config, dict):
        return config.get("class_name") == "Lambda" or any(map(_has_lambda, config.values()))
    return isinstance(config, list) and any(map(_has_lambda, config))


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
        self._call = FunctionCall(spec.name, function, specs, lambda tensors: ((tensors,), {}), lambda outputs: outputs)
        # The function holds the model's variables only weakly.
        self._model = model

    def infer(self, inputs: Arrays) -> Arrays:
        """Calls the model."""
        return self._call(inputs)

    def try_out(self, inputs: Arrays) -> Arrays:
        """Calls the model, and finds out whether it can be called in a quicker way."""
        return self._call.try_out(inputs)

    @property
    def graph(self) -> Any:
        """What a call runs: a GraphDef, with the functions that it calls."""
        return self._call.graph

    def close(self) -> None:
        """Only the process's end gives device memory back."""
