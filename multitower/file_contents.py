"""What a file holds, as far as its first bytes show: names of models and of their files prove nothing."""

from __future__ import annotations

import os
import re
import zipfile
from typing import Final

_HEAD_BYTES: Final = 4096
_HDF5_SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"
_HDF5_FIRST_BLOCK: Final = 512
"""A file of HDF5 may begin with a block of the user's own, of this size or any power of two times it."""

_KERAS_ENTRIES: Final = frozenset(("config.json", "metadata.json"))

_TEXT_GRAPH: Final = re.compile(rb"(?:\s|#[^\n]*\n)*(?:node|library|versions)\s*:?\s*[{<]")
_OPERATION: Final = re.compile(rb"[A-Za-z0-9_>]+")
_FIRST_FIELD: Final = 0x0A
"""The tag of field 1, with a length: a GraphDef's `node`, and a NodeDef's `name`."""
_SECOND_FIELD: Final = 0x12
"""The tag of field 2, with a length: a NodeDef's `op`, and a SavedModel's `meta_graphs`."""

_SAVED_MODEL: Final = re.compile(rb"\x08[\x00-\x7f]\x12")
_TEXT_SAVED_MODEL: Final = re.compile(rb"(?:\s|#[^\n]*\n)*(?:saved_model_schema_version\s*:|meta_graphs\s*:?\s*[{<])")


def is_hdf5(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one of HDF5.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = 0
        while start < size:
            file.seek(start)
            if file.read(len(_HDF5_SIGNATURE)) == _HDF5_SIGNATURE:
                return True
            start = 2 * start or _HDF5_FIRST_BLOCK
    return False


def is_keras_model(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a model of Keras: HDF5, or the archive that Keras 3 writes.

    Raises:
        OSError: it cannot be read.
    """
    return is_hdf5(path) or is_keras_archive(path)


def is_keras_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a file is the archive that Keras 3 writes.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _KERAS_ENTRIES.issubset(archive.namelist())
    except zipfile.BadZipFile:
        return False


def is_graph(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a GraphDef, in its binary form or as text.

    Raises:
        OSError: it cannot be read.
    """
    head = _read_head(path)
    return _is_binary_graph(head) or _TEXT_GRAPH.match(head) is not None


def is_text_graph(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a GraphDef as text.

    Raises:
        OSError: it cannot be read.
    """
    return _TEXT_GRAPH.match(_read_head(path)) is not None


def is_file_of_saved_model(path: str | os.PathLike[str]) -> bool:
    """Whether a file is the main file of a SavedModel, in its binary form or as text.

    Raises:
        OSError: it cannot be read.
    """
    head = _read_head(path)
    return (_SAVED_MODEL.match(head) or _TEXT_SAVED_MODEL.match(head)) is not None


def _read_head(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        return file.read(_HEAD_BYTES)


def _is_binary_graph(head: bytes) -> bool:
    """Whether bytes begin as a GraphDef does: with a node, which begins with its name and its operation."""
    if head[:1] != bytes((_FIRST_FIELD,)):
        return False
    size, position = _read_varint(head, 1)
    if not size or head[position : position + 1] != bytes((_FIRST_FIELD,)):
        return False
    length, position = _read_varint(head, position + 1)
    position += length
    if not length or head[position : position + 1] != bytes((_SECOND_FIELD,)):
        return False
    length, position = _read_varint(head, position + 1)
    return _OPERATION.fullmatch(head[position : position + length]) is not None


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """A number as protobuf writes it, and the position behind it; 0 if the data end within it."""
    number = 0
    for shift, byte in enumerate(data[position : position + 5]):
        number |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return number, position + shift + 1
    return 0, position
