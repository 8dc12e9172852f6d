"""The error that ends a tool."""

from __future__ import annotations


class ToolError(Exception):
    """The tool cannot continue. The message tells the user why, in one or several lines."""
