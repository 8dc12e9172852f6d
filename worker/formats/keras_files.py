"""Files of Keras: each is read by the Keras that saved it, since 2 and 3 call different computations by one name."""

from __future__ import annotations

import importlib
import json
import zipfile
from typing import Any, NamedTuple

import h5py

from multitower.spec import ModelSpec

from ..model_errors import LoadError
from .keras_base import KerasBase


class _Saved(NamedTuple):
    version: str  # of the Keras that did; empty where the file does not tell
    config: Any  # the model's, nested dicts and lists

    @property
    def by_keras_3(self) -> bool:
        major = self.version.partition(".")[0]
        return major.isdigit() and int(major) >= 3


def load_keras_file(spec: ModelSpec) -> KerasBase:
    """Loads a `.keras` or `.h5` file.

    Keras 3 would read many a file of Keras 2 without a word and compute something else: its `hard_sigmoid` is another
    function, and so is the default inside an LSTM that does not name one.

    Raises:
        LoadError: it holds no whole model, or one that cannot be served, or tf-keras is needed and not installed.
        Exception: Keras, or tf-keras, cannot load it.
    """
    saved = _look_into(str(spec.path))
    if saved.by_keras_3:
        from .keras3_model import KerasModel

        return KerasModel(spec)
    _refuse_foreign_code(saved.config)
    try:
        legacy = importlib.import_module("tf_keras")
    except ModuleNotFoundError:
        raise LoadError(
            f"it was saved by Keras {saved.version or '2 or older'}, which computes some layers in another way than "
            "Keras 3: pip install tf-keras, which reads it as it was meant; or export it as a SavedModel"
        ) from None
    from .keras2_model import LegacyKerasModel

    return LegacyKerasModel(spec, legacy)


def _look_into(path: str) -> _Saved:
    # By what it is: Keras 2 has also written HDF5 to names that end in `.keras`.
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
    """Keras 3 does that by itself; tf-keras would run what the file brings, and import what it names."""
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
    # A function, or what a module of Keras has itself imported (`os.popen`), is none.
    return name.isidentifier() and name[0].isupper() and module.partition(".")[0] in ("keras", "tf_keras")
