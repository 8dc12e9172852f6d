"""Texts of clients and handlers as UTF-8 can express them, for metrics, traces and the status."""

from __future__ import annotations


def encodable(text: str) -> str:
    """Returns a text with a question mark for each half of a surrogate pair; JSON and handlers may have such halves."""
    return text.encode("utf-8", "replace").decode()
