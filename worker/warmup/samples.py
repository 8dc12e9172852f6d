"""Recorded requests that a model is warmed up with: a file of numpy's, or TensorFlow Serving's."""

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
"""In the folder of a SavedModel, where TensorFlow Serving looks for it."""


def samples_of(model: Model, spec: ModelSpec) -> list[Sample]:
    """The requests to warm a model up with; none where nobody gave any.

    The configuration's own file comes first, and alone.

    Args:
        model: it, loaded.
        spec: its `warmup`, and where it lies.

    Raises:
        LoadError: a file cannot be read, or holds what the model does not take; names the file.
    """
    if spec.warmup is not None:
        return [Sample("", _checked(_read_npz(spec.warmup), model.inputs, spec.warmup), spec.warmup)]
    if spec.path is None or not Path(spec.path).is_dir():
        return []
    file = Path(spec.path, spec.version or "", SERVING_FILE)
    if not file.is_file():
        return []
    from .serving_warmup import read

    signed: dict[str, Model | LoadError] = {"": model}
    if model.signature:
        signed |= {model.signature: model, **model.other_signatures}
    samples: list[Sample] = []
    for number, request in enumerate(read(file), 1):
        origin = f"{file}, record {number}"
        signature = signed.get(request.signature)
        if signature is None:
            known = ", ".join(sorted(filter(None, signed))) or "none"
            raise LoadError(f"{origin}: there is no signature {request.signature!r}; the model has: {known}")
        if isinstance(signature, LoadError):
            continue  # what cannot be served need not be warm
        inputs = request.inputs
        if request.examples is not None:
            inputs = {_only_input(signature, origin): np.array(request.examples, object)}
        name = "" if signature is model else request.signature
        samples.append(Sample(name, _checked(inputs, signature.inputs, origin), origin))
    return samples


def _only_input(signature: Model, origin: str) -> str:
    names = [tensor.name for tensor in signature.inputs or ()]
    if len(names) != 1:
        raise LoadError(f"{origin}: it has examples, but the signature has the inputs {', '.join(names) or 'none'}")
    return names[0]


def _read_npz(path: str) -> Arrays:
    try:
        with open(path, "rb") as stream:  # which numpy leaves open where the file is damaged
            # numpy would take anything else for a pickle, and say how to load one.
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


def _checked(inputs: Mapping[str, Array], declared: tuple[TensorReport, ...] | None, origin: str) -> Arrays:
    """The inputs as the model takes them."""
    if declared is None:
        return {name: _text_as_bytes(array) for name, array in inputs.items()}
    wanted = {tensor.name: tensor for tensor in declared}
    if set(inputs) != set(wanted):
        raise LoadError(
            f"{origin}: it has the inputs {', '.join(sorted(inputs)) or 'none'}, but the model takes "
            f"{', '.join(sorted(wanted)) or 'none'}"
        )
    return {name: _fitted(inputs[name], tensor, origin) for name, tensor in wanted.items()}


def _fitted(array: Array, tensor: TensorReport, origin: str) -> Array:
    dtype = tensors.dtype_of(tensor.datatype)
    array = _text_as_bytes(array)
    if array.dtype.kind == "V" and tensor.datatype == tensors.BF16 and array.itemsize == dtype.itemsize:
        array = array.view(dtype)  # an .npz file knows no bfloat16
    # Numbers may be wider, as numpy makes them, but not of another kind.
    if (array.dtype.kind == "O") != (tensor.datatype == tensors.BYTES) or not np.can_cast(
        array.dtype, dtype, "same_kind"
    ):
        raise LoadError(f"{origin}: the input {tensor.name!r} is {array.dtype}, not {tensor.datatype}")
    fits = tensor.shape is None or (
        array.ndim == len(tensor.shape)
        and all(size in (-1, given) for size, given in zip(tensor.shape, array.shape, strict=True))
    )
    if not fits:
        raise LoadError(
            f"{origin}: the input {tensor.name!r} has the shape {list(array.shape)}, not {list(tensor.shape or ())}"
        )
    return array.astype(dtype, copy=False)


def _text_as_bytes(array: Array) -> Array:
    if array.dtype.kind == "U":
        array = np.char.encode(array, "utf-8")
    return array.astype(object) if array.dtype.kind == "S" else array
