"""Reads YAML into nodes with positions; `config.py` reads the file with it, `overrides.py` each override.

The tree is built from the parser's events rather than by a loader. So every key has a position; duplicate keys, tags
and keys that are not text are reported together with all other problems; depth and aliases are bounded. Plain scalars
follow YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema): `no` is text, and `0777` is 777.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from .source import ConfigError, Location, Node, Position, Problem
from .units import short_repr
from .yaml_errors import explain

MAX_DEPTH: Final = 64  # of nesting: pydantic recurses, and so does the encoding of messages to workers
MAX_NODES: Final = 100_000  # values; what aliases repeat counts each time

MERGE: Final = "<<"  # of YAML 1.1, but still widely used: https://yaml.org/type/merge.html

_MAX_DIGITS: Final = 100
_INTEGER: Final = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_WORDS: Final[Mapping[str, bool | float | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **{sign + word: math.inf for sign in ("", "+") for word in (".inf", ".Inf", ".INF")},
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}


Entries = dict[str, tuple[Position, Node]]


@dataclass(slots=True)
class Reader:
    """Reads one YAML text into nodes.

    Attributes:
        source: the file's name, or the override's.
        positions: whether to record lines and columns; they mean nothing in an override.
        problems: what was wrong, but did not prevent reading: duplicate keys, tags, keys that are not text.
    """

    source: str
    positions: bool = True
    problems: list[Problem] = field(default_factory=list)
    _anchors: dict[str, Node] = field(default_factory=dict)
    _nodes: int = 0

    def read(self, text: str, location: Location = ()) -> Node:
        """Reads `text`.

        Args:
            text: YAML.
            location: where the value belongs in the configuration.

        Returns:
            Its tree; the value None for an empty text.

        Raises:
            ConfigError: it is not YAML, or exceeds the limits of nesting or size.
        """
        self._anchors.clear()
        self._nodes = 0
        return self._document(self._events(text, location), location)

    def _events(self, text: str, location: Location) -> Iterator[Event]:
        try:
            yield from YAML(typ="safe", pure=True).parse(text)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            position = self._position(mark.line, mark.column) if mark is not None else self._position(0, 0)
            self._stop(position, location, f"is not valid YAML: {explain(error, positions=self.positions)}")
        except ReaderError as error:
            line = text.count("\n", 0, error.position)
            column = error.position - text.rfind("\n", 0, error.position) - 1
            code = ord(error.character) if isinstance(error.character, str) else error.character
            self._stop(
                self._position(line, column), location, f"holds the character U+{code:04X}, which YAML does not allow"
            )
        except Exception as error:  # noqa: BLE001 - the parser's own defects, such as OverflowError for "\Uffffffff"
            self._stop(self._position(0, 0), location, f"is not valid YAML: {_one_line(str(error))}")

    def _document(self, events: Iterator[Event], location: Location) -> Node:
        root: Node | None = None
        for event in events:
            if isinstance(event, DocumentStartEvent):
                position = self._position(event.start_mark.line, event.start_mark.column)
                if root is not None:
                    self._stop(position, location, "holds a second YAML document; only one is read")
                if event.version is not None and tuple(event.version) != (1, 2):
                    self._stop(position, location, "asks for another YAML than 1.2, which is what is read")
                root = self._node(next(events), events, location, 0)
        return root if root is not None else Node(self._position(0, 0), None)

    def _node(self, event: Any, events: Iterator[Event], location: Location, depth: int) -> Node:
        position = self._position(event.start_mark.line, event.start_mark.column)
        if isinstance(event, AliasEvent):
            target = self._anchors.get(event.anchor)
            if target is None:
                self._stop(
                    position,
                    location,
                    f"{short_repr('*' + event.anchor)} names no anchor that is complete at this point",
                )
            self._count(target.size, position, location)
            return target
        self._count(1, position, location)
        if depth > MAX_DEPTH:
            self._stop(position, location, f"is nested more than {MAX_DEPTH} deep")
        if event.tag is not None:
            self.problems.append(
                Problem(position, location, f"has the tag {short_repr(event.tag)}; tags are not supported")
            )
        before, value = self._nodes, None
        if isinstance(event, ScalarEvent):
            value = self._scalar(event, position, location)
        elif isinstance(event, SequenceStartEvent):
            value = self._sequence(events, location, depth)
        elif isinstance(event, MappingStartEvent):
            value = self._mapping(events, location, depth)
        node = Node(position, value, 1 + self._nodes - before)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _sequence(self, events: Iterator[Event], location: Location, depth: int) -> list[Node]:
        items: list[Node] = []
        for event in events:
            if isinstance(event, SequenceEndEvent):
                break
            items.append(self._node(event, events, (*location, len(items)), depth + 1))
        return items

    def _mapping(self, events: Iterator[Event], location: Location, depth: int) -> Entries:
        entries: Entries = {}
        for event in events:
            if isinstance(event, MappingEndEvent):
                break
            key_node = self._node(event, events, location, depth + 1)
            key, position = key_node.value, key_node.position
            inner = (*location, key) if isinstance(key, str) else location
            value = self._node(next(events), events, inner, depth + 1)
            if not isinstance(key, str):
                what = "a list or mapping" if isinstance(key, list | dict) else short_repr(key)
                message = f"a key must be text, and {what} is not; put it in quotes if it is meant as text"
                self.problems.append(Problem(position, location, message))
            elif key in entries:
                first = entries[key][0]
                where = f"; the first is on line {first.line}" if first.line else ""
                self.problems.append(Problem(position, inner, f"is given twice{where}"))
            else:
                entries[key] = (position, value)
        # A quoted "<<" would be an ordinary key; here it is not distinguished, since no key has that name.
        if MERGE in entries:
            self._merge(entries, *entries.pop(MERGE), location)
        return entries

    def _merge(self, entries: Entries, position: Position, source: Node, location: Location) -> None:
        """Adds the entries of the mappings that `<<` names, unless the mapping or an earlier one has the key."""
        for node in source.value if isinstance(source.value, list) else [source]:
            if isinstance(node.value, dict):
                for key, entry in node.value.items():
                    entries.setdefault(key, entry)
            else:
                self.problems.append(Problem(position, location, f"{MERGE} takes a mapping, or a list of mappings"))

    def _scalar(self, event: ScalarEvent, position: Position, location: Location) -> Any:
        text: str = event.value
        try:
            text.encode()
        except UnicodeEncodeError:
            self.problems.append(Problem(position, location, "holds half a surrogate pair, which is not a character"))
            return text.encode("ascii", "backslashreplace").decode()
        if event.style is not None or event.tag is not None:
            return text
        if text in _WORDS:
            return _WORDS[text]
        number: int | float
        if _INTEGER.fullmatch(text):
            # Python refuses to format integers of thousands of digits, even for a message.
            number = math.inf if len(text) > _MAX_DIGITS else int(text, 0 if text[:2] in ("0o", "0x") else 10)
        elif _FLOAT.fullmatch(text):
            number = float(text)
        else:
            return text
        if math.isinf(number):
            self.problems.append(Problem(position, location, f"{short_repr(text)} is too large for a number"))
        return number

    def _count(self, size: int, position: Position, location: Location) -> None:
        self._nodes += size
        if self._nodes > MAX_NODES:
            self._stop(position, location, f"holds more than {MAX_NODES} values, aliases written out")

    def _position(self, line: int, column: int) -> Position:
        return Position(self.source, line + 1, column + 1) if self.positions else Position(self.source)

    def _stop(self, position: Position, location: Location, message: str) -> NoReturn:
        raise ConfigError([Problem(position, location, message)])


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
