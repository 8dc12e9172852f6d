"""Which files beside a configuration a handler is made of: its module, and what that imports from the same folder.

The files are found by reading their `import` statements; nothing is imported. A module that a handler imports by other
means (`importlib`, plugins), or from another folder, is not found.
"""

from __future__ import annotations

import ast
import functools
import os
from collections.abc import Iterator
from importlib.machinery import BYTECODE_SUFFIXES, EXTENSION_SUFFIXES, SOURCE_SUFFIXES
from typing import Final

_SUFFIXES: Final = (*SOURCE_SUFFIXES, *EXTENSION_SUFFIXES, *BYTECODE_SUFFIXES)
_CACHED_FILES: Final = 1024


def handler_files(folder: str, handler: str) -> list[str]:
    """Finds the files of a handler.

    Args:
        folder: the folder of the configuration.
        handler: `module:Class`.

    Returns:
        Paths relative to the folder, in alphabetical order; none for a handler that is installed elsewhere.
    """
    try:
        present: frozenset[str] | None = frozenset(os.listdir(folder))
    except OSError:
        present = None  # it may still be possible to open files in it
    found: set[str] = set()
    modules = [handler.partition(":")[0].partition(".")[0]]
    known = set(modules)
    while modules:
        module = modules.pop()
        # Most names are those of installed modules. Looking for each of their possible files would cost far more than
        # the list of what is in the folder.
        if present is not None and present.isdisjoint((module, *(module + suffix for suffix in _SUFFIXES))):
            continue
        for name in _files_of_module(folder, module):
            if name in found:
                continue
            found.add(name)
            new = _imports(os.path.join(folder, name)) - known
            known |= new
            modules += new
    return sorted(found)


def _files_of_module(folder: str, module: str) -> Iterator[str]:
    """Yields the files of a top-level module, or of a package with everything in it, relative to the folder.

    As for Python, a folder with `__init__.py` comes before a file of that name, and any other folder behind it.
    """
    if not any(os.path.isfile(os.path.join(folder, module, f"__init__{suffix}")) for suffix in _SUFFIXES):
        files = [module + suffix for suffix in _SUFFIXES if os.path.isfile(os.path.join(folder, module + suffix))]
        if files:
            yield from files
            return
    seen: set[tuple[int, int]] = set()
    for current, folders, names in os.walk(os.path.join(folder, module), followlinks=True):
        status = os.stat(current)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if name != "__pycache__"]
        yield from (os.path.relpath(os.path.join(current, name), folder) for name in names if name.endswith(_SUFFIXES))


def _imports(path: str) -> frozenset[str]:
    """Returns the top-level names that a file imports; none of a file that cannot be read or parsed."""
    if not path.endswith(tuple(SOURCE_SUFFIXES)):
        return frozenset()
    try:
        status = os.stat(path)
        return _parsed_imports(
            path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )
    except (OSError, SyntaxError, ValueError, RecursionError):
        return frozenset()  # importing it reports what is wrong


@functools.lru_cache(maxsize=_CACHED_FILES)
def _parsed_imports(path: str, *_status: int) -> frozenset[str]:
    with open(path, "rb") as file:
        tree = ast.parse(file.read())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            found.add(node.module.partition(".")[0])
    return frozenset(found)
