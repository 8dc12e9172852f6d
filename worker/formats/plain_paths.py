"""Paths for libraries that see more in a path than a name.

TensorFlow takes some characters for a pattern of files: it restores `model[12]` from the files of `model1`, if those
exist. Keras goes by the suffix, whatever a file contains. The links given here have names without either meaning.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_PATTERN: Final = re.compile(r"[*?\[\\]")
"""What begins a pattern for TensorFlow, or takes the meaning of the next character away."""


def plain_folder(path: str) -> str:
    """A path of a folder that TensorFlow takes as it is.

    It is valid for as long as the process runs, since a model may read assets later: its descriptor stays open.

    Args:
        path: the folder's.

    Returns:
        The same path; or, where TensorFlow would take it for a pattern, or cannot encode it, one in `/proc`.

    Raises:
        OSError: the folder cannot be opened.
    """
    if _is_plain(path):
        return path
    return f"/proc/self/fd/{os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)}"


@contextlib.contextmanager
def with_suffix(path: str, suffix: str) -> Iterator[str]:
    """A path of a file that ends in a suffix, for as long as the context lasts.

    Args:
        path: the file's.
        suffix: what it must end in, as in `.keras`.

    Yields:
        The same path; or, where it ends in something else or TensorFlow would take it for a pattern, that of a link.
    """
    if path.endswith(suffix) and _is_plain(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="multitower-link-") as folder:
        link = Path(folder, f"model{suffix}")
        link.symlink_to(path)
        yield str(link)


def _is_plain(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8
        return False
    return _PATTERN.search(path) is None
