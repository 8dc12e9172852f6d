"""Which modules are compiled to C, and whether this installation is: `setup.py` compiles what is listed here.

Only what every request passes through is listed; docs/performance.md has what compiling gains. A module that is added
to one of the packages is compiled from then on.
"""

from __future__ import annotations

import functools
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from typing import Final

PACKAGES: Final = (
    "multitower.supervisor.routing",
    "multitower.supervisor.scheduling",
)
"""All of their modules, except:"""

EXCEPTIONS: Final = (
    "multitower.supervisor.scheduling.shared_memory_region",  # a compiled class cannot be referred to weakly
)

MODULES: Final = (
    "multitower.batch_results",
    "multitower.buffers",
    "multitower.frames",
    "multitower.message_stream",
    "multitower.supervisor.loop.reactor",
    "multitower.supervisor.security.authorisation",
    "multitower.supervisor.security.entrance",
    "multitower.supervisor.security.peers",
    "multitower.worker.batch_inputs",
    "multitower.worker.bound_socket",
    "multitower.worker.executor",
    "multitower.worker.formats.handler",
    "multitower.worker.inbox",
    "multitower.worker.model_caller",
    "multitower.worker.replies",
    "multitower.worker.service",
    "multitower.worker.shared_memory.mappings",
    "multitower.worker.shared_memory.regions",
    "multitower.worker_wire",
    "multitower.zmtp",
)
"""Modules beside them."""

BY_HAND: Final = "multitower._frames"
"""The extension that is written in C: a whole message of libzmq in one call."""


def modules(root: Path) -> list[str]:
    """The names of all modules that are compiled.

    Args:
        root: the folder of the installed package `multitower`, or a tree of sources that is laid out like it.
    """
    found = [
        f"{package}.{path.stem}"
        for package in PACKAGES
        for path in sorted(root.joinpath(*package.split(".")[1:]).glob("*.py"))
        if path.stem != "__init__"
    ]
    return sorted({*MODULES, *found}.difference(EXCEPTIONS))


@functools.cache
def not_compiled() -> tuple[str, ...]:
    """The modules of this installation that Python interprets although they could be compiled; none where all are.

    Looks at files, so the first call belongs into a program's start.
    """
    root = Path(__file__).parent
    interpreted = [
        name
        for name in modules(root)
        if not any(root.joinpath(*name.split(".")[1:]).with_suffix(suffix).exists() for suffix in EXTENSION_SUFFIXES)
    ]
    if not _loads(BY_HAND):
        interpreted.append(BY_HAND)
    return tuple(interpreted)


def _loads(name: str) -> bool:
    """Whether the extension is there and can be used: it needs a pyzmq whose libzmq can be found."""
    if find_spec(name) is None:
        return False
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def compiled() -> bool:
    """Whether all modules that every request passes through are compiled."""
    return not not_compiled()


def describe(is_compiled: bool) -> str:
    """The word that stands behind the version in `--version` and `status`."""
    return "compiled" if is_compiled else "interpreted"
