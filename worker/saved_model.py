"""SavedModels of TensorFlow 1 and 2, through one of their signatures."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import tensorflow as tf

from multitower.spec import ModelSpec
from multitower.worker import tensorflow_setup as setup
from multitower.worker.model import Arrays, LoadError

log = logging.getLogger("multitower.worker")

SIGNATURES = ("serving_default", "serve")
"""Where none is configured: TensorFlow Serving's, then what Keras's `export` writes."""


class SavedModel:
    """A SavedModel.

    Args:
        spec: its `path`, `version` and `signature`.

    Raises:
        LoadError: it has no such signature, or one that cannot be served.
        Exception: TensorFlow cannot load it.
    """

    platform = "tensorflow_savedmodel"

    def __init__(self, spec: ModelSpec) -> None:
        assert spec.path is not None  # `load` picked this format for that
        self.version = spec.version or "1"
        folder = Path(spec.path, spec.version) if spec.version is not None else Path(spec.path)
        # Kept: the functions hold its variables only weakly.
        self._loaded = _load(str(folder))
        self._function = _pick(self._loaded.signatures, spec.signature)
        wanted = self._function.structured_input_signature[1]
        self._dtypes = {name: tensor.dtype for name, tensor in wanted.items()}
        self.inputs = setup.reports(sorted(wanted.items()))
        given = self._function.structured_outputs
        if not isinstance(given, dict):
            raise LoadError(f"the signature gives a {type(given).__name__}, but a dict of tensors by name is needed")
        self.outputs = setup.reports(sorted(given.items()))

    def infer(self, inputs: Arrays) -> Arrays:
        """Calls the signature."""
        arguments = {name: setup.to_tensor(array, self._dtypes[name]) for name, array in inputs.items()}
        return {name: setup.to_array(value) for name, value in self._function(**arguments).items()}

    def close(self) -> None:
        """Only the process's end gives device memory back."""


def _load(folder: str) -> Any:
    try:
        return tf.saved_model.load(folder)
    except (AttributeError, ValueError) as error:
        # Optimizer state of another TensorFlow (tensorflow issue 52091); inference does not need it.
        if "add_slot" not in str(error):
            raise
        log.warning("%s: loading without what its checkpoint lacks (%s)", folder, error)
        return tf.saved_model.load(folder, options=tf.saved_model.LoadOptions(allow_partial_checkpoint=True))


def _pick(signatures: Any, wanted: str | None) -> Any:
    known = sorted(signatures)
    listed = ", ".join(known) or "none"
    if wanted is not None:
        if wanted not in signatures:
            raise LoadError(f"there is no signature {wanted!r}; the model has: {listed}")
        return signatures[wanted]
    for name in SIGNATURES:
        if name in signatures:
            return signatures[name]
    if len(known) == 1:
        return signatures[known[0]]
    raise LoadError(f"set `signature` to one of those that the model has: {listed}")
