"""Rows of a daemon's status."""

from __future__ import annotations

from typing import Any, Protocol


class HasStatus(Protocol):
    """A client, or a daemon that runs."""

    def status(self) -> dict[str, Any]:
        """The whole status."""
        ...


def model_row(asked: HasStatus, name: str) -> dict[str, Any]:
    """The row of a model."""
    (row,) = (row for row in asked.status()["models"] if row["name"] == name)
    return dict(row)
