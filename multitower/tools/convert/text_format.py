r"""A parser of protobuf's text format, as far as TensorFlow Serving's files use it, without protobuf and schema.

    message = { field }
    field   = name [":"] block [sep]                 block = "{" message "}" | "<" message ">"
            | name ":" value [sep]                   sep   = "," | ";"
            | name ":" "[" [ value { "," value } ] "]" [sep]
    name    = word | "[" word { ("." | "/" | "-") word } "]"
    value   = block | string { string } | ["-"] number | ["-"] word

Words consist of letters, digits and `_`. Numbers are decimal, hexadecimal (`0x1f`), octal (`017`) or have a fraction.
Strings are quoted by `"` or `'`, have C's escapes and `\x`, octal digits, `\u` and `\U`; adjacent strings are joined.
`#` begins a comment. A list yields its field once for each value. The rules are those of
https://protobuf.dev/reference/protobuf/textformat-spec/. Without a schema, a word may be an enum value, a bool or
`inf`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NoReturn

MAX_DEPTH: Final = 64
"""The most nested blocks; protobuf allows a hundred."""


class TextFormatError(ValueError):
    """The text is not in the format.

    Attributes:
        line: the line of the mistake, from 1.
        column: its column, from 1.
    """

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


class Word(str):
    """A value without quotes: of an enum or a bool, or `inf` or `nan`, with its sign."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Field:
    """A field: its name, its value, and the line that it begins on."""

    name: str
    value: Value
    line: int


@dataclass(frozen=True, slots=True)
class Message:
    """A message: its fields in order."""

    fields: tuple[Field, ...]


Value = str | int | float | Message
"""A string, a `Word`, a number, or a message."""

_TOKEN: Final = re.compile(
    r"""
    (?P<gap>(?:\s|\#[^\n]*)+)
    |(?P<string>"(?:[^"\\\n]|\\[^\n])*"|'(?:[^'\\\n]|\\[^\n])*')
    |(?P<number>(?:0[xX][0-9a-fA-F]+|(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[fF]?)(?![A-Za-z0-9_.]))
    |(?P<word>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<mark>[{}<>\[\]:;,./-])
    """,
    re.VERBOSE | re.ASCII,
)
_ESCAPE: Final = re.compile(r"\\(?:[xX]([0-9a-fA-F]{1,2})|([0-7]{1,3})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.S)
_SHORT: Final = {"n": 10, "r": 13, "t": 9, "a": 7, "b": 8, "f": 12, "v": 11, "\\": 92, "'": 39, '"': 34, "?": 63}
_CLOSING: Final = {"{": "}", "<": ">"}


def parse(text: str) -> Message:
    """Parses a text.

    Raises:
        TextFormatError: it is not in the format.
    """
    return _Parser(text).parse_message()


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    start: int
    line: int


class _Parser:
    """A recursive descent parser with one token of lookahead, `_next`."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._tokenize()
        self._depth = 0
        self._next = next(self._tokens)

    def parse_message(self) -> Message:
        fields = tuple(self._parse_fields(""))
        return Message(fields)

    def _tokenize(self) -> Iterator[_Token]:
        position, line = 0, 1
        while position < len(self._text):
            match = _TOKEN.match(self._text, position)
            if match is None:
                self._fail(self._describe_bad_character(position), position)
            if match.lastgroup != "gap":
                assert match.lastgroup is not None  # one of the alternatives has matched
                yield _Token(match.lastgroup, match[0], position, line)
            line += match[0].count("\n")
            position = match.end()
        yield _Token("end", "", len(self._text), line)

    def _describe_bad_character(self, position: int) -> str:
        character = self._text[position]
        if character in "\"'":
            return "this string does not end on its line"
        if character.isdigit():
            return "this is not a number"
        return f"unexpected {character!r}"

    def _fail(self, message: str, position: int) -> NoReturn:
        line = self._text.count("\n", 0, position) + 1
        raise TextFormatError(message, line, position - self._text.rfind("\n", 0, position))

    def _advance(self) -> str:
        """Consumes the next token and returns its text."""
        text = self._next.text
        if self._next.kind != "end":
            self._next = next(self._tokens)
        return text

    def _accept(self, *texts: str) -> str | None:
        """Consumes the next token if it is one of these marks, and returns it."""
        if self._next.kind == "mark" and self._next.text in texts:
            return self._advance()
        return None

    def _expect(self, text: str, what: str) -> None:
        if self._accept(text) is None:
            self._fail_expecting(what)

    def _fail_expecting(self, wanted: str) -> NoReturn:
        found = "the end of the file" if self._next.kind == "end" else repr(self._next.text[:40])
        self._fail(f"{wanted} is expected, not {found}", self._next.start)

    def _parse_fields(self, closing: str) -> Iterator[Field]:
        while True:
            if self._next.kind == "end" and not closing:
                return
            if closing and self._accept(closing):
                return
            line = self._next.line
            name = self._parse_name(closing)
            for value in self._parse_values():
                yield Field(name, value, line)
            self._accept(",", ";")

    def _parse_name(self, closing: str) -> str:
        if self._next.kind == "word":
            return self._advance()
        if self._accept("[") is None:
            self._fail_expecting(f"a field or {closing!r}" if closing else "a field")
        parts = ["["]
        while True:
            if self._next.kind not in ("word", "number"):
                self._fail_expecting("a name")
            parts.append(self._advance())
            mark = self._accept(".", "/", "-", "]")
            if mark is None:
                self._fail_expecting("']'")
            parts.append(mark)
            if mark == "]":
                return "".join(parts)

    def _parse_values(self) -> Iterator[Value]:
        colon = self._accept(":")
        if self._next.text in _CLOSING and self._next.kind == "mark":
            yield self._parse_block()
            return
        if self._accept("[") is None:
            if colon is None:
                self._fail_expecting("':'")
            yield self._parse_value()
            return
        if self._accept("]"):
            return
        while True:
            value = self._parse_value()
            if colon is None and not isinstance(value, Message):
                self._fail("a ':' is missing before this list", self._next.start)
            yield value
            if self._accept(",") is None:
                break
        self._expect("]", "',' or ']'")

    def _parse_block(self) -> Message:
        start = self._next.start
        closing = _CLOSING[self._advance()]
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail(f"more than {MAX_DEPTH} blocks within each other", start)
        fields = tuple(self._parse_fields(closing))
        self._depth -= 1
        return Message(fields)

    def _parse_value(self) -> Value:
        if self._next.kind == "mark" and self._next.text in _CLOSING:
            return self._parse_block()
        if self._next.kind == "string":
            return self._parse_string()
        sign = self._accept("-") or ""
        if self._next.kind == "number":
            return self._parse_number(sign)
        if self._next.kind != "word":
            self._fail_expecting("a value")
        return Word(sign + self._advance())

    def _parse_number(self, sign: str) -> int | float:
        start, text = self._next.start, self._advance()
        if len(text) > 400:
            self._fail("a number of more than 400 digits", start)
        if text[:2] in ("0x", "0X"):
            return int(sign + text, 16)
        if text.isdigit():
            if text[0] == "0" and len(text) > 1:
                if not set(text) <= set("01234567"):
                    self._fail("a number that begins with 0 is octal, and has digits up to 7", start)
                return int(sign + text, 8)
            return int(sign + text)
        return float(sign + text.rstrip("fF"))

    def _parse_string(self) -> str:
        start = self._next.start
        data = b""
        while self._next.kind == "string":
            position, text = self._next.start, self._advance()
            data += self._unescape(text[1:-1], position + 1)
        try:
            return data.decode()
        except UnicodeDecodeError:
            self._fail("this string is not UTF-8", start)

    def _unescape(self, text: str, start: int) -> bytes:
        parts: list[bytes] = []
        end = 0
        for match in _ESCAPE.finditer(text):
            parts.append(text[end : match.start()].encode())
            end = match.end()
            hexadecimal, octal, short_code, long_code, letter = match.groups()
            try:
                if letter is not None:
                    parts.append(bytes([_SHORT[letter]]))
                elif hexadecimal is not None:
                    parts.append(bytes([int(hexadecimal, 16)]))
                elif octal is not None:
                    parts.append(bytes([int(octal, 8)]))
                else:
                    parts.append(chr(int(short_code or long_code, 16)).encode())
            except (KeyError, ValueError, OverflowError):
                self._fail(f"{match[0]} is not an escape", start + match.start())
        parts.append(text[end:].encode())
        return b"".join(parts)
