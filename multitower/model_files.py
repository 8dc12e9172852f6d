"""Fingerprints of the files that a model is loaded from.

A worker reads them each time that it starts, and they may have changed since the other workers read them. Supervisor
and worker compare fingerprints to notice that.

A fingerprint has two parts, `KNOWN-METADATA`. KNOWN is a digest of what is known of the contents: names, sizes, and
the contents of small files. METADATA is a digest of what a file system changes when it replaces a file: device, inode,
size, times, and where links lead. So two fingerprints are equal only if nothing was written or replaced in between. If
only METADATA differs, the contents may still be equal, as after a `touch` or a copy to another disk: `content_digest`
tells.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from .handler_files import handler_files
from .spec import ModelSpec

SMALL_FILE: Final = 256 << 10
"""Bytes of a file whose contents are part of the fingerprint, at most."""

SMALL_FILES: Final = 1 << 20
"""Bytes of all these files of a model, at most."""

_CHUNK: Final = 1 << 20
_GRAPHS: Final = ("saved_model.pb", "saved_model.pbtxt")
_SAVED_MODEL: Final = ("assets", "assets.extra", "fingerprint.pb", "keras_metadata.pb", "saved_model.cpb", "variables")
"""What TensorFlow reads of a SavedModel, beside the graph: other files in its folder do not matter."""

_COMPLETE: Final = "c"
_PARTIAL: Final = "p"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file of a model.

    Attributes:
        name: its path, relative to the model.
        path: its absolute path.
        resolved: its absolute path without links.
        status: of the file itself, if the path is a link.
    """

    name: str
    path: str
    resolved: str
    status: os.stat_result


def model_files(spec: ModelSpec) -> list[ModelFile]:
    """Finds the files of a model and its `custom_ops`, in the order of their names; none where no model is found.

    Files that disappear meanwhile, and folders that must not be read, are left out.

    Raises:
        OSError: a file or folder cannot be read.
    """
    files = _own_files(spec)
    if not files:
        return []
    libraries = (_file(f"custom_ops/{index}", path) for index, path in enumerate(spec.custom_ops))
    return files + [file for file in libraries if file is not None]


def _own_files(spec: ModelSpec) -> list[ModelFile]:
    if spec.handler is not None:
        if spec.module_folder is None:
            return []
        found = (
            _file(name, os.path.join(spec.module_folder, name))
            for name in handler_files(spec.module_folder, spec.handler)
        )
        return [file for file in found if file is not None]
    assert spec.path is not None  # a model has a path or a handler
    root = spec.path if spec.version is None else os.path.join(spec.path, spec.version)
    if os.path.isfile(root):
        file = _file("", root)
        return [] if file is None else [file]
    if not any(os.path.isfile(os.path.join(root, name)) for name in _GRAPHS):
        return []
    files: list[ModelFile] = []
    for name in (*_GRAPHS, *_SAVED_MODEL):
        path = os.path.join(root, name)
        if os.path.isdir(path):
            files += _walk(path, name, frozenset())
        else:
            file = _file(name, path)
            files += [] if file is None else [file]
    return sorted(files, key=lambda file: file.name)


def _walk(folder: str, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[ModelFile]:
    try:
        status = os.stat(folder)
        names = os.listdir(folder)
    except (FileNotFoundError, PermissionError):
        return
    identity = status.st_dev, status.st_ino
    if identity in above:  # a link to a folder above
        return
    for name in names:
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            yield from _walk(path, f"{prefix}/{name}", above | {identity})
        elif (file := _file(f"{prefix}/{name}", path)) is not None:
            yield file


def _file(name: str, path: str) -> ModelFile | None:
    """Returns a regular file, or None for anything else."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    return ModelFile(name, path, os.path.realpath(path), status) if stat.S_ISREG(status.st_mode) else None


def fingerprint(spec: ModelSpec) -> str:
    """Returns the fingerprint of a model's files; "" where no model is found. It reads them, which may block.

    Raises:
        OSError: a file or folder cannot be read.
    """
    files = model_files(spec)
    if not files:
        return ""
    known, metadata = _new_digest(), _new_digest()
    complete, left = True, SMALL_FILES
    for file in files:
        size = file.status.st_size
        content: bytes | None = None
        if size <= min(SMALL_FILE, left):
            left -= size
            content = _read_small(file.path, size)
        complete = complete and content is not None
        _add(known, file.name, size, "" if content is None else hashlib.blake2b(content, digest_size=16).hexdigest())
        status = file.status
        times = status.st_mtime_ns, status.st_ctime_ns
        _add(metadata, file.name, file.resolved, status.st_dev, status.st_ino, size, *times)
    return f"{_COMPLETE if complete else _PARTIAL}{known.hexdigest()}-{metadata.hexdigest()}"


def _read_small(path: str, size: int) -> bytes | None:
    """Reads a small file; None if it has gone, or must not be read."""
    try:
        with open(path, "rb") as file:
            return file.read(size + 1)  # one more byte shows that it has grown
    except (FileNotFoundError, PermissionError):
        return None


def compare_fingerprints(one: str, other: str) -> bool | None:
    """Returns whether the contents are equal as far as two fingerprints tell; None if only `content_digest` does."""
    if one == other:
        return True
    known = one.partition("-")[0]
    if known != other.partition("-")[0]:
        return False
    return True if known.startswith(_COMPLETE) else None


def is_content_known(fingerprint: str) -> bool:
    """Whether the fingerprint covers all contents, so that `content_digest` adds nothing."""
    return not fingerprint.startswith(_PARTIAL)


def content_digest(spec: ModelSpec, hash_file: Callable[[ModelFile], str] | None = None) -> str:
    """Returns a digest of the names and contents of a model's files. It reads all of them, which may take long.

    Args:
        spec: the model.
        hash_file: returns the digest of one file; by default `hash_file` of this module.

    Raises:
        OSError: a file cannot be read.
    """
    digest = _new_digest()
    for file in model_files(spec):
        _add(digest, file.name, (hash_file or hash_whole_file)(file))
    return digest.hexdigest()


def hash_whole_file(file: ModelFile, pause: Callable[[int], None] | None = None) -> str:
    """Returns a digest of a file's contents.

    Args:
        file: the file.
        pause: called with the number of bytes after each part that was read; it may wait.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()  # on most CPUs the fastest one, since they have instructions for it
    with open(file.path, "rb", buffering=0) as opened:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
            if pause is not None:
                pause(len(chunk))
    return digest.hexdigest()


def _new_digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def _add(digest: hashlib.blake2b, *fields: object) -> None:
    """Adds fields to a digest. No two different sequences of fields add the same bytes."""
    digest.update(repr(fields).encode("utf-8", "surrogateescape") + b"\n")
