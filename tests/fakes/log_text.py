"""The captured log with the fields of its lines, which `caplog.text` leaves out."""

from __future__ import annotations

import pytest


def log_text(caplog: pytest.LogCaptureFixture) -> str:
    """A line for each record: its message, and its fields as `name=value`."""
    lines = []
    for record in caplog.records:
        fields = getattr(record, "fields", {})
        lines.append(" ".join([record.getMessage(), *(f"{name}={value}" for name, value in fields.items())]))
    return "\n".join(lines)
