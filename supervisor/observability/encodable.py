"""Texts of clients and handlers as UTF-8 can express them, for metrics and traces."""

from __future__ import annotations


def encodable(text: str) -> str:
    """Returns a text that UTF-8 can express: JSON and handlers may have halves of surrogate pairs in theirs."""
    return text.encode("utf-8", "replace").decode()
