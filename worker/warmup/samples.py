"""Recorded requests that a model is warmed up with, from a file of numpy's or of TensorFlow Serving's."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from multitower import tensors
from multitower.spec import ModelSpec, TensorReport

from ..formats.model import Array, Arrays, Model
from ..model_errors import LoadError
from .warmup import Sample

SERVING_FILE = Path("assets.extra", "tf_serving_warmup_requests")
"""Where TensorFlow Serving looks for it, in the folder of a SavedModel."""


def load_samples(model: Model, spec: ModelSpec) -> list[Sample]:
    """The requests to warm a model up with; empty where none were recorded.

    A file that the configuration names is used instead of TensorFlow Serving's.

    Args:
        model: the loaded model.
        spec: its `warmup`, and its folder.

    Raises:
        LoadError: a file cannot be read, or contains what the model does not accept; the message names the file.
    """
    if spec.warmup is not None:
        return [Sample("", _convert(_read_npz(spec.warmup), model.inputs, spec.warmup), spec.warmup)]
    if spec.path is None or not Path(spec.path).is_dir():
        return []
    file = Path(spec.path, spec.version or "", SERVING_FILE)
    return _load_recorded(model, file) if file.is_file() else []


def _load_recorded(model: Model, file: Path) -> list[Sample]:
    """The requests of a file of TensorFlow Serving's."""
    from .serving_warmup import read_requests

    signatures: dict[str, Model | LoadError] = {"": model}
    if model.signature:
        signatures |= {model.signature: model, **model.other_signatures}
    samples: list[Sample] = []
    for number, request in enumerate(read_requests(file), 1):
        origin = f"{file}, record {number}"
        signature = signatures.get(request.signature)
        if signature is None:
            known = ", ".join(sorted(filter(None, signatures))) or "none"
            raise LoadError(f"{origin}: there is no signature {request.signature!r}; the model has: {known}")
        if isinstance(signature, LoadError):
            continue  # it cannot be served, so it need not be warmed up
        inputs = request.inputs
        if request.examples is not None:
            inputs = {_only_input(signature, origin): np.array(request.examples, object)}
        name = "" if signature is model else request.signature
        samples.append(Sample(name, _convert(inputs, signature.inputs, origin), origin))
    return samples


def _only_input(signature: Model, origin: str) -> str:
    names = [tensor.name for tensor in signature.inputs or ()]
    if len(names) != 1:
        raise LoadError(f"{origin}: it has examples, but the signature has the inputs {', '.join(names) or 'none'}")
    return names[0]


def _read_npz(path: str) -> Arrays:
    try:
        with open(path, "rb") as stream:  # numpy leaves it open if the file is damaged
            # numpy would take any other file for a pickle, and suggest to load that.
            if not stream.read(6).startswith((b"PK", b"\x93NUMPY")):
                raise LoadError(
                    f"{path} cannot be read: it is no file of numpy's; numpy.savez(file, NAME=array) writes one"
                )
            stream.seek(0)
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise LoadError(f"{path} holds one array without a name; write it with numpy.savez(file, NAME=array)")
            return dict(file)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise LoadError(f"{path} cannot be read: {error}") from error


def _convert(inputs: Mapping[str, Array], declared: tuple[TensorReport, ...] | None, origin: str) -> Arrays:
    """The inputs with the declared datatypes; as they are, where nothing is declared.

    Raises:
        LoadError: they do not fit the declaration.
    """
    if declared is None:
        return {name: _text_as_bytes(array) for name, array in inputs.items()}
    wanted = {tensor.name: tensor for tensor in declared}
    required = {tensor.name for tensor in declared if not tensor.optional}
    if not required <= inputs.keys() <= wanted.keys():
        raise LoadError(
            f"{origin}: it has the inputs {', '.join(sorted(inputs)) or 'none'}, but the model takes "
            f"{', '.join(sorted(wanted)) or 'none'}"
        )
    return {name: _convert_one(inputs[name], tensor, origin) for name, tensor in wanted.items() if name in inputs}


def _convert_one(array: Array, tensor: TensorReport, origin: str) -> Array:
    dtype = tensors.dtype_of(tensor.datatype)
    array = _text_as_bytes(array)
    if array.dtype.kind == "V" and tensor.datatype == tensors.BF16 and array.itemsize == dtype.itemsize:
        array = array.view(dtype)  # .npz files have no bfloat16
    # Numbers may be wider, as numpy makes them, but not of another kind.
    if (array.dtype.kind == "O") != (tensor.datatype == tensors.BYTES) or not np.can_cast(
        array.dtype, dtype, "same_kind"
    ):
        raise LoadError(
            f"{origin}: the model takes {tensor.datatype} for the input {tensor.name!r}; the file has {array.dtype}"
        )
    fits = tensor.shape is None or (
        array.ndim == len(tensor.shape)
        and all(size in (-1, given) for size, given in zip(tensor.shape, array.shape, strict=True))
    )
    if not fits:
        raise LoadError(
            f"{origin}: the model takes the shape {list(tensor.shape or ())} (-1: any size) for the input "
            f"{tensor.name!r}; the file has {list(array.shape)}"
        )
    return array.astype(dtype, copy=False)


def _text_as_bytes(array: Array) -> Array:
    if array.dtype.kind == "U":
        array = np.char.encode(array, "utf-8")
    return array.astype(object) if array.dtype.kind == "S" else array
