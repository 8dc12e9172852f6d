"""Imports the modules beside the configuration from their sources, never from bytecode that Python has cached.

Python takes cached bytecode for that of a source of the same size that was modified in the same second. After a module
was replaced by such a one, new workers would run its former code.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable
from importlib.abc import PathEntryFinder
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from typing import Any, Final, NoReturn

_LIBRARIES: Final = tuple(os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "platstdlib"))
_INSTALLED: Final = {"site-packages", "dist-packages"}


class _UncachedLoader(SourceFileLoader):
    """Neither reads nor writes bytecode."""

    def path_stats(self, path: Any) -> NoReturn:
        """Raises `OSError`: where the time of a source is unknown, Python does not use bytecode."""
        raise OSError(f"bytecode of {path} is not used")


def import_from_sources(folders: Iterable[str]) -> None:
    """Imports modules in these folders, and in folders within them, from their sources from now on.

    Installed packages and Python's own library within them keep their bytecode: they do not change while it runs.
    """
    roots = tuple(os.path.join(folder, "") for folder in folders)
    find = FileFinder.path_hook(
        (ExtensionFileLoader, EXTENSION_SUFFIXES),
        (_UncachedLoader, SOURCE_SUFFIXES),
        (SourcelessFileLoader, BYTECODE_SUFFIXES),
    )

    def is_within(path: str) -> bool:
        folder = os.path.join(path, "")
        return (
            folder.startswith(roots)
            and not folder.startswith(_LIBRARIES)
            and _INSTALLED.isdisjoint(folder.split(os.sep))
        )

    def hook(path: str) -> PathEntryFinder:
        if not is_within(path):
            raise ImportError(f"{path} is not beside the configuration")
        return find(path)

    sys.path_hooks.insert(0, hook)
    for path in list(filter(is_within, sys.path_importer_cache)):
        del sys.path_importer_cache[path]
