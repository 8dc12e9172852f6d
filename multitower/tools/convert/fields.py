"""Reads fields of TensorFlow Serving's messages, and notes what was not carried over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from multitower.tools.convert.text_format import Field, Message

AddNote = Callable[[Field | None, str], None]
"""Adds a note on a field, or with None on the whole message."""


@dataclass(frozen=True, slots=True)
class Note:
    """A note on a field that was not carried over, or was changed.

    Attributes:
        file: the name of the file with the field.
        line: the field's line, from 1.
        text: what happened to the field, and what to do about it.
    """

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


def effective_fields(config: Message, repeated: str, note: AddNote) -> list[Field]:
    """The fields that take effect: of each name the last one, but all of `repeated`. Others get a note."""
    last = {part.name: part for part in config.fields}
    for part in config.fields:
        if part.name != repeated and last[part.name] is not part:
            note(part, f"{part.name} is ignored: it is set again later")
    return [part for part in config.fields if part.name == repeated or last[part.name] is part]


def note_unknown_fields(message: Message, parent: Field, known: Sequence[str], note: AddNote) -> None:
    """Adds a note on each field of a message that is unknown."""
    for part in message.fields:
        if part.name not in known:
            note(part, f"{part.name} in {parent.name} was not carried over: an unknown field")


def unwrap(value: object) -> object:
    """The value in a wrapper such as `Int64Value`; None for an empty one, whose zero no field here accepts."""
    if isinstance(value, Message):
        return last_value(value, "value") if all(part.name == "value" for part in value.fields) else value
    return value


def last_value(message: Message, name: str) -> object:
    """The value of the last field of that name, which is the one that counts in protobuf; None without one."""
    values: Sequence[object] = [part.value for part in message.fields if part.name == name]
    return values[-1] if values else None
