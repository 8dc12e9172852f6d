"""References to the documentation, which an installation does not contain."""

from __future__ import annotations


def page(title: str) -> str:
    """Names a page by its title."""
    return f"the page '{title}' of multitower's documentation"
