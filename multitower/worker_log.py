"""How a worker passes what it logs through the pipe of its output: one line a record, between lines of plain text.

What begins with `MARK` is a JSON object, up to the end of the line. Its `text` is what was logged or printed; `level`
is a level of `logging`, and absent where the text was printed; `fields` are fields of the entry in the log, such as
`model`, `version` and `traceback`. Without a `text` its fields are those of all plain text that follows. What libraries
and child processes write to the same pipe is plain text. They can write what looks like a record, so `decode` accepts
only what a record may hold. A record of more than 4096 bytes may be torn when another process writes at the same time:
its parts are plain text then.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

MARK: Final = b"\x1e"
"""The record separator of ASCII, as in JSON text sequences (RFC 7464)."""

MAX_TEXT: Final = 16 << 10
"""Characters of a text, and of each field; of longer ones, the middle is cut out."""

MAX_RECORD: Final = 256 << 10
"""Bytes of a line with a record; a longer one is read as plain text."""

MAX_FIELDS: Final = 30
"""Fields of a record; further ones are left out."""

_FIELD_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,40}")


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
        return MARK + json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def decode(line: bytes) -> WorkerRecord | None:
    """Reads a line without its end; None if it is plain text, also where that begins with `MARK`.

    Levels that `logging` does not have, and fields with other names than the log's, are left out.
    """
    if not line.startswith(MARK):
        return None
    try:
        record = json.loads(line[len(MARK) :])
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    return checked_record(record.get("text"), record.get("level"), record.get("fields"))


def checked_record(text: object, level: object, fields: object) -> WorkerRecord | None:
    """A record of what a process wrote, cut to what a record may hold; None if it is none. See `decode`."""
    if not (text is None or isinstance(text, str)) or not isinstance(fields, dict):
        return None
    if isinstance(level, bool) or not isinstance(level, int) or not 1 <= level <= logging.CRITICAL:
        level = None
    kept = {name: _cut(value) for name, value in fields.items() if value is not None and _FIELD_NAME.fullmatch(name)}
    return WorkerRecord(text and _cut(text), level, dict(list(kept.items())[:MAX_FIELDS]))


def _cut(value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return value
    text = str(value)
    if len(text) <= MAX_TEXT:
        return text
    # The last line of a traceback tells what happened.
    gap = "\n...\n" if "\n" in text else " ... "
    end = MAX_TEXT * 3 // 4
    return text[: MAX_TEXT - end - len(gap)] + gap + text[-end:]
