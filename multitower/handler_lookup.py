"""Finds out, without running code of the user's, that a handler's class or module does not exist.

`multitower check` uses it. What may exist counts as existing: only the worker, which imports it, knows.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import re
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from typing import Final

from .import_path import searched_folders

_DYNAMIC: Final = re.compile(
    r"import\s*\*|__getattr__|__dict__|f_globals|\b(?:globals|locals|vars|setattr|exec|eval|import_module|__import__|modules)\b"
)
"""What a module may define names with that its text does not contain."""


def why_missing(folder: str, handler: str) -> str | None:
    """Why a worker could not import a handler, as far as this can be known for certain.

    It depends on this process's import path: a daemon with another `PYTHONPATH` may find more.

    Args:
        folder: the folder of the configuration, in which modules are looked for last.
        handler: `module:Class`.

    Returns:
        That no folder has its module, that the module is no Python, or that it has no such class; otherwise None.
    """
    module, _, path = handler.partition(":")
    top, _, inner = module.partition(".")
    try:
        spec = _find(top, folder)
    except Exception:  # noqa: BLE001  hooks of other packages may raise anything
        return None
    if spec is None:
        searched = searched_folders(folder)
        return (
            f"there is no module {top!r} in the folders that were searched: {searched}. The daemon may find it if its "
            "PYTHONPATH names others: run check with the same PYTHONPATH"
        )
    # A package may import what its own text does not name: submodules become its attributes.
    if (
        inner
        or spec.submodule_search_locations is not None
        or type(spec.loader) is not SourceFileLoader
        or spec.origin is None
    ):
        return None
    return _why_no_class(Path(spec.origin), path.partition(".")[0])


def _find(module: str, folder: str) -> ModuleSpec | None:
    """Looks for a top-level module, which imports nothing: only a module within a package needs its package."""
    importlib.invalidate_caches()
    return importlib.util.find_spec(module) or PathFinder.find_spec(module, [folder])


def _why_no_class(file: Path, name: str) -> str | None:
    try:
        data = file.read_bytes()
        tree = ast.parse(data)
    except SyntaxError as error:
        where = f"{file}, line {error.lineno}," if error.lineno else str(file)
        return f"{where} is no Python: {error.msg}"
    except (OSError, ValueError, RecursionError, MemoryError):
        return None
    text = data.decode("utf-8", "replace")
    if not name.isascii() or re.search(rf"\b{re.escape(name)}\b", text) or _DYNAMIC.search(text):
        return None
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    close = difflib.get_close_matches(name, classes, 1)
    known = f" (did you mean {close[0]!r}?)" if close else f", only {', '.join(classes)}" if classes else ""
    return f"{file} has no class {name!r}{known}"
