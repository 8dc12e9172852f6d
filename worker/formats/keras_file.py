"""Files of Keras. Each is read by the Keras that saved it, since 2 and 3 use one name for different computations.

On several devices, a file is written once as a SavedModel, whose graph each tower then loads.
"""

from __future__ import annotations

import gc
import importlib
import json
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import h5py
import tensorflow as tf

from multitower.spec import ModelSpec, TensorReport, TowerReport

from ..model_errors import LoadError
from .keras_model import KerasModel
from .model import Arrays, CallableModel, Model, ModelCall
from .saved_model import SavedModel
from .towers import TowerPlacement


def load(spec: ModelSpec, _devices: Sequence[str] = ()) -> KerasModel:
    """Loads a `.keras` or `.h5` file.

    Keras 3 would read many files of Keras 2 without complaint and compute something else: its `hard_sigmoid` is another
    function, for example, and so is the default inside an LSTM that names none.

    Raises:
        LoadError: it contains no whole model, or one that cannot be served, or tf-keras is needed and not installed.
        Exception: Keras, or tf-keras, cannot load it.
    """
    saved = _inspect(str(spec.path))
    if saved.by_keras_3:
        from .keras3_model import Keras3Model

        return Keras3Model(spec)
    _refuse_foreign_code(saved.config)
    try:
        tf_keras = importlib.import_module("tf_keras")
    except ModuleNotFoundError:
        raise LoadError(
            f"it was saved by Keras {saved.version or '2 or older'}, which computes some layers in another way than "
            "Keras 3: pip install tf-keras, which reads it as it was meant; or export it as a SavedModel"
        ) from None
    from .keras2_model import Keras2Model

    return Keras2Model(spec, tf_keras)


def load_towers(spec: ModelSpec, placements: Sequence[TowerPlacement]) -> list[Model]:
    """Loads a `.keras` or `.h5` file for each placement.

    Such files name no devices: one that is to keep its own (`as_saved`) is loaded as on one device, and TensorFlow
    decides.

    Raises:
        LoadError: it cannot be served.
        Exception: Keras, or tf-keras, cannot load it.
    """
    if placements[0].device is None:
        return [load(spec)]
    with tempfile.TemporaryDirectory(prefix="multitower-keras-") as folder:
        inputs, outputs = _export(spec, folder)
        gc.collect()  # what was only needed for the export
        saved = replace(spec, path=folder, version=None)
        return [_load_tower(saved, placement, inputs, outputs) for placement in placements]


class _Saved(NamedTuple):
    version: str  # of the Keras that saved the file; empty where the file does not say
    config: Any  # the model's: nested dicts and lists

    @property
    def by_keras_3(self) -> bool:
        major = self.version.partition(".")[0]
        return major.isdigit() and int(major) >= 3


def _inspect(path: str) -> _Saved:
    # By its content: Keras 2 has also written HDF5 to names that end in `.keras`.
    if h5py.is_hdf5(path):
        with h5py.File(path, "r") as file:
            version, config = (file.attrs.get(name) for name in ("keras_version", "model_config"))
        if config is None:
            raise LoadError(f"{path} holds weights alone; save the whole model (model.save), not its weights")
        return _Saved(version.decode() if isinstance(version, bytes) else version or "", json.loads(config))
    try:
        with zipfile.ZipFile(path) as archive:
            metadata, config = (json.loads(archive.read(name)) for name in ("metadata.json", "config.json"))
    except (zipfile.BadZipFile, KeyError) as error:
        raise LoadError(f"{path} is no HDF5 file, nor a .keras file: {error}") from None
    return _Saved(str(metadata.get("keras_version") or ""), config)


def _refuse_foreign_code(config: Any) -> None:
    """Refuses what tf-keras would run or import because the file says so. Keras 3 does that itself."""
    if isinstance(config, dict):
        name, module = config.get("class_name"), config.get("module")
        if name in ("Lambda", "__lambda__"):
            raise LoadError("it has a Lambda layer, which is Python code inside the file; export it as a SavedModel")
        if name and module and not _is_class_of_keras(str(config.get("spec_name") or name), str(module)):
            raise LoadError(f"it needs {name!r} of {module!r}, which is no layer of Keras: export it as a SavedModel")
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            _refuse_foreign_code(part)


def _is_class_of_keras(name: str, module: str) -> bool:
    # Neither a function nor what a module of Keras has itself imported (`os.popen`) passes.
    return name.isidentifier() and name[0].isupper() and module.partition(".")[0] in ("keras", "tf_keras")


class _RenamedCall:
    """A call whose inputs and outputs have other names.

    Args:
        call: the call.
        inputs: the call's own name of each input.
        outputs: the name of each of the call's outputs.
    """

    def __init__(self, call: ModelCall, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
        self._call = call
        self._inputs = inputs
        self._outputs = outputs

    def __call__(self, arrays: Arrays) -> Arrays:
        return self._restore(self._call(self._translate(arrays)))

    def try_out(self, arrays: Arrays) -> Arrays:
        return self._restore(self._call.try_out(self._translate(arrays)))

    @property
    def graph(self) -> Any:
        return self._call.graph

    @property
    def fetched(self) -> tuple[str, ...]:
        return self._call.fetched

    @property
    def tower(self) -> TowerReport | None:
        return self._call.tower

    def _translate(self, arrays: Arrays) -> Arrays:
        return {self._inputs[name]: array for name, array in arrays.items()}

    def _restore(self, arrays: Arrays) -> Arrays:
        return {self._outputs[name]: array for name, array in arrays.items()}


def _load_tower(
    saved: ModelSpec, placement: TowerPlacement, inputs: tuple[TensorReport, ...], outputs: tuple[TensorReport, ...]
) -> CallableModel:
    """Loads a replica from the SavedModel that `_export` has written, with the names of the file."""
    call = _RenamedCall(
        SavedModel(saved, placement).call,
        {tensor.name: _input_name(index) for index, tensor in enumerate(inputs)},
        {_output_name(index): tensor.name for index, tensor in enumerate(outputs)},
    )
    return CallableModel(call, inputs, outputs)


def _export(spec: ModelSpec, folder: str) -> tuple[tuple[TensorReport, ...], tuple[TensorReport, ...]]:
    """Writes a file as a SavedModel; returns its inputs and outputs.

    The SavedModel's have numbers, since the name of a layer may be none that an argument can have.
    """
    # In the host's memory: each tower has its copy on its own device, and the first device must not have two.
    with tf.device("/device:CPU:0"):
        model = load(spec)
        inputs, outputs, specs = model.inputs, model.outputs, model.function.specs

        def serve(*values: Any) -> dict[str, Any]:
            given = {tensor.name: value for tensor, value in zip(inputs, values, strict=True)}
            named = model.function.output_tensors(given)
            return {_output_name(index): named[tensor.name] for index, tensor in enumerate(outputs)}

        numbered = [
            tf.TensorSpec(specs[tensor.name].shape, specs[tensor.name].dtype, _input_name(index))
            for index, tensor in enumerate(inputs)
        ]
        model.save(folder, serve, numbered)
    return inputs, outputs


def _input_name(index: int) -> str:
    return f"input_{index}"


def _output_name(index: int) -> str:
    return f"output_{index}"
