"""A finding: what was found, how bad it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

INSTALL_TENSORFLOW: Final = "pip install tensorflow"
INSTALL_CUDA: Final = "pip install 'tensorflow[and-cuda]'"
"""Brings CUDA's libraries along."""


class Level(StrEnum):
    """How bad a finding is, in ascending order."""

    OK = "ok"  # as it should be
    NOTE = "note"  # for information; nothing has to be done
    WARNING = "warning"  # it serves, but less well than it could, or perhaps not at all
    PROBLEM = "problem"  # it does not serve as configured


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding.

    Attributes:
        section: the subject, such as `devices`.
        level: how bad it is.
        text: what was found.
        advice: what to do about it; None if nothing has to be done.
    """

    section: str
    level: Level
    text: str
    advice: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The finding as JSON."""
        return asdict(self)


def count_levels(findings: Iterable[Finding]) -> dict[Level, int]:
    """The number of findings of each level."""
    levels = [finding.level for finding in findings]
    return {level: levels.count(level) for level in Level}


def with_number(number: int, noun: str) -> str:
    """A number and a noun, as in `1 worker` and `2 workers`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def join_names(names: Iterable[str], most: int = 8) -> str:
    """Names joined for a sentence; of many, the first ones and how many more."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
