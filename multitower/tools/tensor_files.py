"""The tensors of `multitower infer`: inputs from .npy, .npz and JSON, outputs as JSON or .npz. `query` calls it."""

from __future__ import annotations

import base64
import binascii
import json
import math
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multitower import tensors
from multitower.errors import MultitowerError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

STDIN = "-"
BASE64 = "b64"
"""The key of bytes that are no text, as TensorFlow Serving writes them in JSON: `{"b64": "…"}`."""


class ValuesError(Exception):
    """Inputs that cannot be read, or outputs that cannot be written; the message is for people."""


def read(source: str | None, files: Sequence[str], declared: Mapping[str, str]) -> dict[str, Array]:
    """The inputs of a request.

    Args:
        source: an .npz file, a file of JSON, `-` for JSON on the standard input, or None.
        files: `NAME=FILE.npy`; they go before what `source` has.
        declared: the datatype of each input that the model declares. Numbers are converted to it where no value
            changes but in precision.

    Raises:
        ValuesError: a file cannot be read, or does not hold what the model takes.
    """
    found: dict[str, tuple[Any, str | None]] = {}
    if source is not None and source.endswith(".npz"):
        found.update((name, (array, declared.get(name))) for name, array in _load(source).items())
    elif source is not None:
        found.update(_read_json(source, declared))
    for entry in files:
        name, equals, path = entry.partition("=")
        if not (name and equals and path):
            raise ValuesError(f"--input {entry!r} is not NAME=FILE.npy")
        array = _load(path)
        if isinstance(array, dict):
            raise ValuesError(f"{path} holds several arrays: give it with --from")
        found[name] = (array, declared.get(name))
    return {name: _convert(name, value, datatype) for name, (value, datatype) in found.items()}


def _load(path: str) -> Any:
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except OSError as error:
        raise ValuesError(f"{path}: {error.strerror or error}") from None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValuesError(f"{path} is no file of numpy's: {error}") from None


def _read_json(source: str, declared: Mapping[str, str]) -> dict[str, tuple[Any, str | None]]:
    where = "the standard input" if source == STDIN else source
    try:
        text = sys.stdin.buffer.read() if source == STDIN else Path(source).read_bytes()
        values = json.loads(text, parse_float=_finite)
    except OSError as error:
        raise ValuesError(f"{where}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValuesError(f"{where} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValuesError(f"{where}: the JSON is not an object of inputs by name")
    entries = values.get("inputs")
    if isinstance(entries, list) and all(isinstance(entry, dict) and "name" in entry for entry in entries):
        return {str(entry["name"]): _open_inference(entry, declared) for entry in entries}
    return {name: (_array(name, value), declared.get(name)) for name, value in values.items()}


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"no double holds {text[:40]}")
    return number


def _open_inference(entry: Mapping[str, Any], declared: Mapping[str, str]) -> tuple[Any, str | None]:
    """An input as the Open Inference Protocol writes it: its data may be flat."""
    name = str(entry["name"])
    datatype = entry.get("datatype", declared.get(name))
    if datatype is not None and not isinstance(datatype, str):
        raise ValuesError(f"input {name!r}: the datatype is a name, not {json.dumps(datatype)[:80]}")
    array = _array(name, entry.get("data"))
    try:
        return array.reshape(entry.get("shape", array.shape)), datatype
    except (TypeError, ValueError) as error:
        raise ValuesError(f"input {name!r}: {error}") from None


def _array(name: str, value: Any) -> Array:
    try:
        array = np.asarray(value)
        # Text and bytes keep their own lengths; also what numpy would have made text of, as numbers among words.
        return array if array.dtype.kind in "biuf" else np.asarray(_with_bytes(value), dtype=object)
    except (ValueError, OverflowError) as error:
        raise ValuesError(f"input {name!r} is no array: {error}") from None


def _with_bytes(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_bytes(item) for item in value]
    if isinstance(value, dict) and value.keys() == {BASE64} and isinstance(value[BASE64], str):
        try:
            return base64.b64decode(value[BASE64], validate=True)
        except binascii.Error as error:
            raise ValueError(f"{BASE64}: {error}") from None
    return value


def _convert(name: str, array: Array, datatype: str | None) -> Array:
    if datatype is None or datatype == tensors.BYTES:
        return array
    try:
        wanted = tensors.dtype_of(datatype)
    except MultitowerError as error:
        raise ValuesError(f"input {name!r}: {error.message}") from None
    if array.dtype == wanted:
        return array
    if array.dtype.kind not in "biufc":
        raise ValuesError(f"input {name!r} is {datatype}, but its values are not all numbers")
    with np.errstate(all="ignore"):  # told below, by name
        converted = array.astype(wanted)
        same = np.isfinite(converted) == np.isfinite(array) if wanted.kind not in "biu" else converted == array
    if (array.dtype.kind == "c" and wanted.kind != "c") or not same.all():
        raise ValuesError(f"input {name!r} is {datatype}, which does not hold all its values")
    return converted


def to_json(outputs: Mapping[str, Array]) -> str:
    """The outputs as one line of JSON: nested lists by name.

    BYTES are text, or `{"b64": …}` where they are not UTF-8; complex numbers are `[real, imaginary]`. NaN and the
    infinities are written as `NaN` and `Infinity`, which Python and TensorFlow Serving read, and strict JSON does not.
    """
    return json.dumps({name: _plain(array) for name, array in outputs.items()}, ensure_ascii=False)


def _plain(array: Array) -> Any:
    if array.dtype == object:
        return _text(array.tolist())
    if array.dtype.kind == "c":
        return _plain(np.stack([array.real, array.imag], axis=-1))
    if array.dtype.kind in "biu" or array.dtype.itemsize == 8:
        return array.tolist()
    # The shortest digits that give the same narrow float again: 0.1, not 0.10000000149011612.
    return np.array([float(str(value)) for value in array.ravel()]).reshape(array.shape).tolist()


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(item) for item in value]
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {BASE64: base64.b64encode(value).decode()}


def save(path: Path, outputs: Mapping[str, Array]) -> None:
    """Writes the outputs to an .npz file, which numpy reads without pickle, or a .json file.

    Raises:
        ValuesError: the file cannot be written, or cannot hold an output.
    """
    try:
        if path.suffix == ".json":
            path.write_text(to_json(outputs) + "\n")
            return
        plain = {name: _without_objects(name, array) for name, array in outputs.items()}
        # As numpy.savez does, but with any name: an output may be called `file`.
        with zipfile.ZipFile(path, "w") as archive:
            for name, array in plain.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
    except OSError as error:
        raise ValuesError(f"{path}: {error.strerror}") from None


def _without_objects(name: str, array: Array) -> Array:
    if array.dtype == object:
        if any(element.endswith(b"\0") for element in array.ravel().tolist()):
            raise ValuesError(f"output {name!r} has elements that end in a zero byte, which .npz loses: write .json")
        return array.astype(np.bytes_)
    # numpy's files know no bfloat16; every one of its values is a float32.
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
