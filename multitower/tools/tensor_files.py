"""Tensors in files: inputs from .npy, .npz and JSON, outputs as JSON or .npz. `infer` and bench use it."""

from __future__ import annotations

import base64
import binascii
import json
import math
import sys
import zipfile
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multitower import tensors
from multitower.errors import MultitowerError
from multitower.tools.errors import ToolError
from multitower.tools.replaced_file import check_replaceable, replaced_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

STDIN = "-"

_EXPECTED = 'what is expected is JSON such as {"x": [[1.5, 2]]}, with the names that `multitower models` shows'

BASE64 = "b64"
"""The key of bytes that are not text, as in TensorFlow Serving's JSON: `{"b64": "…"}`."""


class TensorFileError(ToolError):
    """Inputs cannot be read, or outputs cannot be written; the message tells the user why."""


def read_inputs(source: str | None, files: Sequence[str], declared: Mapping[str, str]) -> dict[str, Array]:
    """Reads the inputs of a request.

    Args:
        source: an .npz file, a JSON file, `-` for JSON on the standard input, or None.
        files: `NAME=FILE.npy`; they replace inputs of the same name in `source`.
        declared: the datatype of each input that the model declares. Numbers are converted to it if no value changes
            except in precision.

    Raises:
        TensorFileError: a file cannot be read, or its values do not fit the datatype.
    """
    found: dict[str, tuple[Any, str | None]] = {}
    if source is not None and source.endswith(".npz"):
        found.update((name, (array, declared.get(name))) for name, array in _load(source).items())
    elif source is not None:
        found.update(_read_json(source, declared))
    for entry in files:
        name, equals, path = entry.partition("=")
        if not (name and equals and path):
            raise TensorFileError(f"--input {entry!r} is not NAME=FILE.npy")
        array = _load(path)
        if isinstance(array, dict):
            raise TensorFileError(f"{path} holds several arrays: give it with --from")
        found[name] = (array, declared.get(name))
    return {name: _convert(name, value, datatype) for name, (value, datatype) in found.items()}


def _load(path: str) -> Any:
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except OSError as error:
        raise TensorFileError(f"{path}: {error.strerror or error}") from None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise TensorFileError(f"{path} is not a numpy file: {error}") from None


def _read_json(source: str, declared: Mapping[str, str]) -> dict[str, tuple[Any, str | None]]:
    where = "the standard input" if source == STDIN else source
    try:
        text = sys.stdin.buffer.read() if source == STDIN else Path(source).read_bytes()
        if not text.strip():
            raise TensorFileError(f"{where} is empty; {_EXPECTED}")
        values = json.loads(text, parse_float=_finite)
    except OSError as error:
        raise TensorFileError(f"{where}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise TensorFileError(f"{where} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise TensorFileError(f"{where}: the JSON is not an object of inputs by name; {_EXPECTED}")
    entries = values.get("inputs")
    if isinstance(entries, list) and all(isinstance(entry, dict) and "name" in entry for entry in entries):
        return {str(entry["name"]): _read_open_inference(entry, declared) for entry in entries}
    return {name: (_array(name, value), declared.get(name)) for name, value in values.items()}


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"no double holds {text[:40]}")
    return number


def _read_open_inference(entry: Mapping[str, Any], declared: Mapping[str, str]) -> tuple[Any, str | None]:
    """Reads an input in the form of the Open Inference Protocol, in which the data may be flat."""
    name = str(entry["name"])
    datatype = entry.get("datatype", declared.get(name))
    if datatype is not None and not isinstance(datatype, str):
        raise TensorFileError(f"input {name!r}: the datatype must be a name, not {json.dumps(datatype)[:80]}")
    array = _array(name, entry.get("data"))
    try:
        return array.reshape(entry.get("shape", array.shape)), datatype
    except (TypeError, ValueError) as error:
        raise TensorFileError(f"input {name!r}: {error}") from None


def _array(name: str, value: Any) -> Array:
    try:
        array = np.asarray(value)
        # Elements of other kinds become objects. Numpy would pad text and bytes, and turn numbers among them into text.
        return array if array.dtype.kind in "biuf" else np.asarray(_decode_base64(value), dtype=object)
    except (ValueError, OverflowError) as error:
        raise TensorFileError(f"input {name!r} is not an array: {tensors.no_array(error)}") from None


def _decode_base64(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode_base64(item) for item in value]
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
        dtype = tensors.dtype_of(datatype)
    except MultitowerError as error:
        raise TensorFileError(f"input {name!r}: {error.message}") from None
    if array.dtype == dtype:
        return array
    if array.dtype.kind not in "biufc":
        raise TensorFileError(f"input {name!r} is {datatype}, but its values are not all numbers")
    with np.errstate(all="ignore"):  # values that do not fit are reported below
        converted = array.astype(dtype)
        same = np.isfinite(converted) == np.isfinite(array) if dtype.kind not in "biu" else converted == array
    if (array.dtype.kind == "c" and dtype.kind != "c") or not same.all():
        raise TensorFileError(f"input {name!r} is {datatype}, which cannot represent all its values")
    return converted


class NonFinite(StrEnum):
    """How NaN and infinities are written, for which JSON has no numbers."""

    NULL = "null"
    STRING = "string"  # "NaN", "Infinity", "-Infinity"
    LITERAL = "literal"  # the same without quotes, which Python and TensorFlow Serving read; not JSON


def to_json(outputs: Mapping[str, Array], non_finite: NonFinite = NonFinite.NULL) -> str:
    """The outputs as one line of JSON: nested lists by name.

    Elements of BYTES are strings, or `{"b64": …}` if they are not UTF-8; complex numbers are `[real, imaginary]`.

    Args:
        outputs: arrays by name.
        non_finite: how NaN and infinities are written.
    """
    lists = {name: _to_lists(array, non_finite) for name, array in outputs.items()}
    return json.dumps(lists, ensure_ascii=False, allow_nan=non_finite is NonFinite.LITERAL)


def _to_lists(array: Array, non_finite: NonFinite) -> Any:
    if array.dtype == object:
        return _to_text(array.tolist())
    if array.dtype.kind == "c":
        return _to_lists(np.stack([array.real, array.imag], axis=-1), non_finite)
    if array.dtype.kind in "biu":
        return array.tolist()
    if array.dtype.itemsize == 8:
        lists = array.tolist()
    else:
        # The shortest digits that give the same float32 or float16 again: 0.1, not 0.10000000149011612.
        lists = np.array([float(str(value)) for value in array.ravel()]).reshape(array.shape).tolist()
    if non_finite is NonFinite.LITERAL or np.isfinite(array.astype(np.float64)).all():
        return lists
    return _without_non_finite(lists, non_finite)


def _without_non_finite(value: Any, non_finite: NonFinite) -> Any:
    if isinstance(value, list):
        return [_without_non_finite(item, non_finite) for item in value]
    if math.isfinite(value):
        return value
    # As json.dumps writes it, which is also the protocol buffers' JSON.
    return json.dumps(value) if non_finite is NonFinite.STRING else None


def _to_text(value: Any) -> Any:
    if isinstance(value, list):
        return [_to_text(item) for item in value]
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {BASE64: base64.b64encode(value).decode()}


def check_output(path: Path) -> None:
    """Checks that outputs can be written to a file, before the work that makes them.

    Raises:
        TensorFileError: they cannot.
    """
    try:
        check_replaceable(path)
    except OSError as error:
        raise TensorFileError(f"{path}: {error.strerror}") from None


def save_outputs(path: Path, outputs: Mapping[str, Array], non_finite: NonFinite = NonFinite.NULL) -> None:
    """Writes the outputs to an .npz file that numpy reads without pickle, or to a .json file.

    Args:
        path: the file.
        outputs: arrays by name.
        non_finite: how NaN and infinities are written as JSON.

    Raises:
        TensorFileError: the file cannot be written, or its format cannot hold an output.
    """
    try:
        if path.suffix == ".json":
            with replaced_file(path) as output:
                output.write(f"{to_json(outputs, non_finite)}\n".encode())
            return
        arrays = {name: _without_objects(name, array) for name, array in outputs.items()}
        # Like numpy.savez, but for any name: an output may be called `file`.
        with replaced_file(path) as output, zipfile.ZipFile(output, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
    except OSError as error:
        raise TensorFileError(f"{path}: {error.strerror}") from None


def _without_objects(name: str, array: Array) -> Array:
    if array.dtype == object:
        if any(element.endswith(b"\0") for element in array.ravel().tolist()):
            raise TensorFileError(
                f"output {name!r} has elements that end in a zero byte, which .npz loses: write .json"
            )
        return array.astype(np.bytes_)
    # Numpy's files have no bfloat16. Float32 represents all its values.
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
