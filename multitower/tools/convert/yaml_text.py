"""Scalars and comments in YAML; `serving` lays out the file."""

from __future__ import annotations

import re
from typing import Final

# Every YAML 1.2 parser reads these as text. Numbers begin with a digit and are quoted.
_PLAIN: Final = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")
_WORDS: Final = frozenset(("true", "false", "null", "yes", "no", "on", "off", "y", "n"))
_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def text(value: str) -> str:
    """A string as a YAML scalar: plain if it can only be read as text, otherwise in double quotes."""
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return quoted(value)


def quoted(value: str) -> str:
    """A string as a YAML scalar in double quotes."""
    return '"' + "".join(map(_character, value)) + '"'


def _character(character: str) -> str:
    code = ord(character)
    if character in _ESCAPES:
        return _ESCAPES[character]
    # Characters that YAML forbids and line breaks beyond ASCII are not printable in Unicode's sense.
    if character == " " or character.isprintable():
        return character
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def comment(value: str) -> str:
    """The text as one comment line; characters that are not printable become spaces."""
    return "# " + "".join(character if character.isprintable() else " " for character in value)
