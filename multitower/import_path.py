"""Where Python looks for modules: folders of the user's own come last, so that their modules replace no library's.

Otherwise a file `six.py` or a folder `tensorflow/` beside a configuration would be what every library imports by that
name.
"""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path
from typing import Final

from .handler_files import handler_files

_SAFE_PATH: Final = "PYTHONSAFEPATH"
_OURS: Final = "multitower"
"""The value of `PYTHONSAFEPATH` that `without_working_directory` sets. Any value has the same effect."""


@dataclass(frozen=True, slots=True)
class Clash:
    """A module of a handler that has the name of an installed one, and is therefore not imported.

    Attributes:
        module: the name.
        own: the path of its file or package, beside the configuration.
        installed: the path of the module that is imported instead; `Python itself` for one without a file.
    """

    module: str
    own: str
    installed: str

    def __str__(self) -> str:
        return (
            f"{self.own} is not imported, since the name {self.module!r} belongs to an installed module, "
            f"{self.installed}: rename yours"
        )


def put_last(folders: Sequence[str]) -> None:
    """Makes folders the last ones on the import path of this process, in their order."""
    last = {os.path.realpath(folder) for folder in folders}
    # Links are kept: where they lead elsewhere by now, the modules of that folder are imported.
    sys.path[:] = [*(folder for folder in sys.path if os.path.realpath(folder) not in last), *folders]


def searched_folders(own: str | None) -> str:
    """The folders and archives in which modules are looked for, for messages.

    Args:
        own: the folder of the configuration, which is named first although it is searched last; None without one.
    """
    others = [each for each in sys.path if os.path.exists(each) and (own is None or not _is_same(each, own))]
    return ", ".join([f"{own} (the configuration's)"] * (own is not None) + others)


def _is_same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def find_clashes(folder: str, handler: str) -> list[Clash]:
    """Finds modules of a handler that installed modules hide.

    Args:
        folder: the folder of the configuration, which is the last one on the import path.
        handler: `module:Class`.

    Returns:
        The clashes by name, of the handler's own module and of those beside it that it imports.
    """
    own = {name.partition(os.sep)[0]: name for name in handler_files(folder, handler)}
    modules = {entry.partition(".")[0]: entry for entry in own}
    others = [each for each in sys.path if os.path.realpath(each) != os.path.realpath(folder)]
    return [
        Clash(module, os.path.join(folder, entry), installed)
        for module, entry in sorted(modules.items())
        if (installed := _find_installed(module, others)) is not None
    ]


def _find_installed(module: str, path: Sequence[str]) -> str | None:
    """Where a module is found on an import path; None if it is not. Nothing is imported."""
    if any(importer.find_spec(module) is not None for importer in (BuiltinImporter, FrozenImporter)):
        return "Python itself"
    spec = PathFinder.find_spec(module, path)
    # A folder without `__init__.py` hides nothing behind it.
    return spec.origin or "Python itself" if spec is not None and spec.loader is not None else None


@contextlib.contextmanager
def without_working_directory() -> Iterator[None]:
    """Lets Python processes that are started meanwhile not look for modules in their working directory first.

    Such a process must call `restore_environment`, for the programs that it starts itself.
    """
    if _SAFE_PATH in os.environ:
        yield
        return
    os.environ[_SAFE_PATH] = _OURS
    try:
        yield
    finally:
        del os.environ[_SAFE_PATH]


def restore_environment() -> None:
    """Undoes what `without_working_directory` did to the environment that this process inherited."""
    if os.environ.get(_SAFE_PATH) == _OURS:
        del os.environ[_SAFE_PATH]


def module_command(module: str) -> list[str]:
    """The command line that runs a module of this package as a program; the working directory is not searched."""
    return [sys.executable, "-P", "-m", module]


def module_environment() -> Mapping[str, str]:
    """The environment for `module_command`, in which this package is found."""
    root = str(Path(__file__).parents[1])
    if root in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        return os.environ
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), root)))}
