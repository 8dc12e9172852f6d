"""Loads libraries of custom operations into the process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from ..model_errors import LoadError, one_line

_loaded: dict[bytes, str] = {}
"""The libraries of the process: their paths by the digests of their contents."""


def load_libraries(paths: Sequence[str]) -> None:
    """Loads libraries, in this order. One that the process has already is not loaded again, also from another path.

    TensorFlow would accept a second copy of a library, and from then on refuse to run the operations of both.

    Args:
        paths: of shared libraries that register operations when they are loaded.

    Raises:
        LoadError: one cannot be loaded; the message names it.
    """
    for path in paths:
        try:
            digest = hashlib.sha256(Path(path).read_bytes()).digest()
            if digest in _loaded:
                continue
            tf.load_op_library(path)
        except (OSError, RuntimeError, tf.errors.OpError) as error:
            raise LoadError(
                f"custom_ops: {path} cannot be loaded: {one_line(error)} (TensorFlow here is {tf.__version__}; a "
                "library must be built against this version, with the flags of tf.sysconfig.get_compile_flags())"
            ) from error
        _loaded[digest] = path
