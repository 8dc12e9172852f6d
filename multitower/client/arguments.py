"""Arguments of the clients' methods that have more than one form."""

from __future__ import annotations

from datetime import timedelta
from numbers import Integral, Real
from typing import TypeAlias

from multitower.errors import Reason, make

Seconds: TypeAlias = float | timedelta
"""A time: a number of seconds, or a timedelta."""

Version: TypeAlias = str | int
"""The version of a model: its number, or "" for the one that is served."""

Names: TypeAlias = list[str] | tuple[str, ...]
"""Names of outputs. Not `Sequence[str]`, which a lone string is as well."""


def to_seconds(name: str, value: object) -> float:
    """The seconds of a time.

    Args:
        name: of the argument.
        value: a number of seconds, or a timedelta.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number of seconds or a timedelta, not {value!r}")
    return float(value)


def to_version(version: object) -> str:
    """The version as the protocol has it, a string.

    Raises:
        InvalidRequest: `malformed`: it is neither a string nor a whole number.
    """
    if isinstance(version, str):
        return version
    if isinstance(version, bool) or not isinstance(version, Integral):
        message = f"version must be the number of a version, as in 1 or '1', not {version!r}"
        raise make(Reason.MALFORMED, message, field="model_version")
    return str(int(version))


def refuse_pickling(client: object, endpoint: str) -> TypeError:
    """The error of copying or pickling a client, as for another process."""
    kind = type(client).__name__
    return TypeError(
        f"a {kind} cannot be copied or pickled: it holds a connection and a thread; make a new one in each process, "
        f"{kind}({endpoint!r})"
    )
