"""A finding: what was seen, how bad that is, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How bad a finding is; in this order."""

    OK = "ok"  # as it should be
    NOTE = "note"  # good to know; nothing has to be done
    WARNING = "warning"  # it serves, but not as well as it could, or not for sure
    PROBLEM = "problem"  # it does not serve as configured


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was seen.

    Attributes:
        section: what it is about, such as `devices`.
        level: how bad it is.
        text: what was seen.
        advice: what to do about it; None where there is nothing to do.
    """

    section: str
    level: Level
    text: str
    advice: str | None = None

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def count(findings: Iterable[Finding]) -> dict[Level, int]:
    """How many there are of each level."""
    levels = [finding.level for finding in findings]
    return {level: levels.count(level) for level in Level}


def several(number: int, what: str) -> str:
    """As in `2 workers`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names for a sentence, the first ones when there are many."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
