"""Scalars and comments as YAML; the file as a whole is laid out by `serving`."""

from __future__ import annotations

import re
from typing import Final

# What no YAML 1.2 reader takes for anything but text. Numbers begin with a digit, and are quoted.
_PLAIN: Final = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")
_WORDS: Final = frozenset(("true", "false", "null", "yes", "no", "on", "off", "y", "n"))
_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def text(value: str) -> str:
    """A string as a YAML scalar: plain where nobody can take it for anything else, else in double quotes."""
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return '"' + "".join(map(_character, value)) + '"'


def _character(character: str) -> str:
    code = ord(character)
    if character in _ESCAPES:
        return _ESCAPES[character]
    # Printable in Unicode's sense leaves out all that YAML forbids, and the line breaks beyond ASCII.
    if character == " " or character.isprintable():
        return character
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def comment(value: str) -> str:
    """One line of comment, whatever stands in the text."""
    return "# " + "".join(character if character.isprintable() else " " for character in value)
