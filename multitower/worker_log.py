"""How a worker passes what it logs through the pipe of its output: one line a record, between lines of plain text.

A line that begins with `MARK` is a JSON object. Its `text` is what was logged or printed; `level` is a level of
`logging`, and absent where the text was printed; `fields` are fields of the entry in the log, such as `model`,
`version` and `traceback`. Without a `text` its fields are those of all plain text that follows. What libraries and
child processes write to the same pipe is plain text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

MARK: Final = b"\x1e"
"""The record separator of ASCII, as in JSON text sequences (RFC 7464)."""

MAX_TEXT: Final = 16 << 10
"""Characters of a text, and of each field; longer ones are cut."""

MAX_RECORD: Final = 256 << 10
"""Bytes of a line with a record; a longer one is read as plain text."""


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """What a worker logged or printed at one time.

    Attributes:
        text: the message, which may have several lines; None for the fields of the plain text that follows.
        level: a level of `logging`; None for printed text.
        fields: the fields of the entry in the log that the worker knows.
    """

    text: str | None
    level: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The line for the pipe, with its end."""
        record: dict[str, Any] = {}
        if self.text is not None:
            record["text"] = _cut(self.text)
        if self.level is not None:
            record["level"] = self.level
        record["fields"] = {name: _cut(value) for name, value in self.fields.items() if value is not None}
        return MARK + json.dumps(record).encode("ascii") + b"\n"


def decode(line: bytes) -> WorkerRecord | None:
    """Reads a line without its end; None if it is plain text, also where that begins with `MARK`."""
    if not line.startswith(MARK):
        return None
    try:
        record = json.loads(line[len(MARK) :])
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    text, level, fields = record.get("text"), record.get("level"), record.get("fields")
    if not (text is None or isinstance(text, str)) or not isinstance(fields, dict):
        return None
    return WorkerRecord(text, level if isinstance(level, int) else None, fields)


def _cut(value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return value
    text = str(value)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} ..."
