"""The table of model formats: what the supervisor checks of each, and which file of `worker/formats` loads it.

A new format is an entry here and a file there: docs/adding-a-model-format.md shows both.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .file_contents import is_graph, is_keras_model


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFormat:
    """One model format.

    Attributes:
        name: the module in `worker/formats` that loads it.
        title: what messages call a model of it.
        platform: its name in metadata, as in the Open Inference Protocol.
        suffixes: the usual ones of its files; empty where it is not a file.
        is_in: whether a file's contents are of this format, whatever its name; it raises OSError for one that cannot be
            read. None where only the suffix tells.
        uses_tensorflow: whether TensorFlow runs its models. Workers then import it early, set it up for their devices,
            and ask it for the memory that a model takes.
        has_towers: whether a worker of several devices holds a replica on each: its module has `load_towers`.
        has_signatures: whether `signature` may be configured.
        names_tensors: whether `inputs` and `outputs` must be configured, since the model does not say what they are.
        can_compile: whether `jit_compile` may be configured.
        runs_model_code: whether loading a model runs Python code of the model, which then defines the Python functions
            that its graph calls.
    """

    name: str
    title: str
    platform: str
    suffixes: tuple[str, ...] = ()
    is_in: Callable[[str | os.PathLike[str]], bool] | None = None
    uses_tensorflow: bool = True
    has_towers: bool = True
    has_signatures: bool = False
    names_tensors: bool = False
    can_compile: bool = False
    runs_model_code: bool = False


SAVED_MODEL: Final = ModelFormat(
    name="saved_model",
    title="a SavedModel",
    platform="tensorflow_savedmodel",
    has_signatures=True,
    can_compile=True,
)

HANDLER: Final = ModelFormat(
    name="handler",
    title="a handler",
    platform="python",
    uses_tensorflow=False,
    has_towers=False,
    runs_model_code=True,
)

FILE_FORMATS: Final = (
    ModelFormat(
        name="keras_file",
        title="a file of Keras",
        platform="keras",
        suffixes=(".keras", ".h5", ".hdf5"),
        is_in=is_keras_model,
        can_compile=True,
        runs_model_code=True,
    ),
    ModelFormat(
        name="frozen_graph",
        title="a frozen graph",
        platform="tensorflow_graphdef",
        suffixes=(".pb", ".pbtxt"),
        is_in=is_graph,
        names_tensors=True,
    ),
)
"""The formats that are files."""

FORMATS: Final = (SAVED_MODEL, *FILE_FORMATS, HANDLER)

FILE_SUFFIXES: Final = tuple(suffix for each in FILE_FORMATS for suffix in each.suffixes)


def recognize(path: str | os.PathLike[str] | None) -> ModelFormat:
    """The format of a model, by what lies at its path. A file is opened: not for the daemon's event loop.

    Args:
        path: where it lies, or None for a handler. A folder is a SavedModel, or contains its versions. A file whose
            contents are of no known format, or cannot be read, has the format that its suffix promises; loading it
            tells what is wrong.
    """
    if path is None:
        return HANDLER
    if os.path.isdir(path):
        return SAVED_MODEL
    return recognize_contents(path) or expected_format(path)


def recognize_contents(path: str | os.PathLike[str]) -> ModelFormat | None:
    """The format of a file by its contents; None if it is of none that can be told from it, or cannot be read."""
    try:
        return next((each for each in FILE_FORMATS if each.is_in is not None and each.is_in(path)), None)
    except OSError:
        return None


def expected_format(path: str | os.PathLike[str] | None) -> ModelFormat:
    """The format of a model as its name suggests it; nothing is read. Where the name is misleading, `recognize` knows.

    Args:
        path: where it lies, or None for a handler.
    """
    if path is None:
        return HANDLER
    suffix = os.path.splitext(path)[1]
    return next((each for each in FILE_FORMATS if suffix in each.suffixes), SAVED_MODEL)
