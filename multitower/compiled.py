"""Whether this installation's data path is machine code: `setup.py` says how that is made, docs/performance.md why."""

from __future__ import annotations

from multitower import frames


def compiled() -> bool:
    """The modules that every request passes through were compiled; otherwise Python interprets them."""
    return not str(frames.__file__).endswith(".py")


def told(is_compiled: bool) -> str:
    """The same for people, behind the version."""
    return "compiled" if is_compiled else "interpreted"
