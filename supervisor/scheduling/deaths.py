"""How workers died that executed a request, in the words of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Death:
    """How a worker process ended.

    Attributes:
        cause: for people, as in `killed by SIGSEGV (11)`.
        hung: whether it was killed because it hung.
        limit_s: `max_execution_time` in seconds, if a call of the model took longer; else None.
    """

    cause: str
    hung: bool = False
    limit_s: float | None = None


def describe_deaths(deaths: Sequence[Death]) -> str:
    """The causes, each once, for people; empty if none is known."""
    return "; ".join(dict.fromkeys(death.cause for death in deaths))


def death_details(deaths: Sequence[Death], limit: str, value: float) -> dict[str, Any]:
    """The details of an answer that follows from deaths.

    Args:
        deaths: those that are known.
        limit: the limit that ended the request, unless a call of the model took longer than `max_execution_time`.
        value: of that limit.

    Returns:
        `cause`, `limit` and `limit_value`; a duration is in seconds.
    """
    overrun_s = deaths[-1].limit_s if deaths else None
    if overrun_s is not None:
        limit, value = "max_execution_time", overrun_s
    return {"cause": describe_deaths(deaths) or None, "limit": limit, "limit_value": value}
