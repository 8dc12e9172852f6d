r"""Protobuf's text format, as far as TensorFlow Serving's files use it, read without protobuf and without a schema.

    message = { field }
    field   = name [":"] block [sep]                 block = "{" message "}" | "<" message ">"
            | name ":" value [sep]                   sep   = "," | ";"
            | name ":" "[" [ value { "," value } ] "]" [sep]
    name    = word | "[" word { ("." | "/" | "-") word } "]"
    value   = block | string { string } | ["-"] number | ["-"] word

Words are letters, digits and `_`; numbers decimal, hexadecimal (`0x1f`), octal (`017`) or with a fraction; strings
stand between either quotes, with C's escapes, `\x`, octal digits, `\u` and `\U`, and those that follow each other are
one. `#` begins a comment. A list gives its field once for each of its values. The rules are those of
https://protobuf.dev/reference/protobuf/textformat-spec/; without a schema a word is an enum's, a bool's or `inf`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NoReturn

MAX_DEPTH: Final = 64
"""Blocks within blocks; protobuf itself gives up at a hundred."""


class TextFormatError(ValueError):
    """The text is not in the format.

    Attributes:
        line: where, from 1.
        column: where, from 1.
    """

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


class Word(str):
    """A value without quotes: of an enum, a bool, or `inf` and `nan`, with its sign."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Field:
    """A name, its value, and the line that it begins at."""

    name: str
    value: Value
    line: int


@dataclass(frozen=True, slots=True)
class Message:
    """The fields of a message, in their order."""

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
    """The message that the text holds.

    Raises:
        TextFormatError: it is not in the format.
    """
    return _Parser(text).whole()


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    start: int
    line: int


class _Parser:
    """One pass over the tokens, with the next one in `_next`."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._split()
        self._depth = 0
        self._next = next(self._tokens)

    def whole(self) -> Message:
        fields = tuple(self._fields(""))
        return Message(fields)

    def _split(self) -> Iterator[_Token]:
        position, line = 0, 1
        while position < len(self._text):
            match = _TOKEN.match(self._text, position)
            if match is None:
                self._fail(self._what_is_wrong_at(position), position)
            if match.lastgroup != "gap":
                assert match.lastgroup is not None  # one of the alternatives has matched
                yield _Token(match.lastgroup, match[0], position, line)
            line += match[0].count("\n")
            position = match.end()
        yield _Token("end", "", len(self._text), line)

    def _what_is_wrong_at(self, position: int) -> str:
        character = self._text[position]
        if character in "\"'":
            return "this string does not end on its line"
        if character.isdigit():
            return "this is no number"
        return f"unexpected {character!r}"

    def _fail(self, message: str, position: int) -> NoReturn:
        line = self._text.count("\n", 0, position) + 1
        raise TextFormatError(message, line, position - self._text.rfind("\n", 0, position))

    def _advance(self) -> str:
        """Takes the next token."""
        text = self._next.text
        if self._next.kind != "end":
            self._next = next(self._tokens)
        return text

    def _take(self, *texts: str) -> str | None:
        """Takes the next token if it is one of these marks."""
        if self._next.kind == "mark" and self._next.text in texts:
            return self._advance()
        return None

    def _need(self, text: str, what: str) -> None:
        if self._take(text) is None:
            self._unexpected(what)

    def _unexpected(self, wanted: str) -> NoReturn:
        found = "the end of the file" if self._next.kind == "end" else repr(self._next.text[:40])
        self._fail(f"{wanted} is expected, not {found}", self._next.start)

    def _fields(self, closing: str) -> Iterator[Field]:
        while True:
            if self._next.kind == "end" and not closing:
                return
            if closing and self._take(closing):
                return
            line = self._next.line
            name = self._name(closing)
            for value in self._values():
                yield Field(name, value, line)
            self._take(",", ";")

    def _name(self, closing: str) -> str:
        if self._next.kind == "word":
            return self._advance()
        if self._take("[") is None:
            self._unexpected(f"a field or {closing!r}" if closing else "a field")
        parts = ["["]
        while True:
            if self._next.kind not in ("word", "number"):
                self._unexpected("a name")
            parts.append(self._advance())
            mark = self._take(".", "/", "-", "]")
            if mark is None:
                self._unexpected("']'")
            parts.append(mark)
            if mark == "]":
                return "".join(parts)

    def _values(self) -> Iterator[Value]:
        colon = self._take(":")
        if self._next.text in _CLOSING and self._next.kind == "mark":
            yield self._block()
            return
        if self._take("[") is None:
            if colon is None:
                self._unexpected("':'")
            yield self._value()
            return
        if self._take("]"):
            return
        while True:
            value = self._value()
            if colon is None and not isinstance(value, Message):
                self._fail("a ':' is missing before this list", self._next.start)
            yield value
            if self._take(",") is None:
                break
        self._need("]", "',' or ']'")

    def _block(self) -> Message:
        start = self._next.start
        closing = _CLOSING[self._advance()]
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail(f"more than {MAX_DEPTH} blocks within each other", start)
        fields = tuple(self._fields(closing))
        self._depth -= 1
        return Message(fields)

    def _value(self) -> Value:
        if self._next.kind == "mark" and self._next.text in _CLOSING:
            return self._block()
        if self._next.kind == "string":
            return self._string()
        sign = self._take("-") or ""
        if self._next.kind == "number":
            return self._number(sign)
        if self._next.kind != "word":
            self._unexpected("a value")
        return Word(sign + self._advance())

    def _number(self, sign: str) -> int | float:
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

    def _string(self) -> str:
        start = self._next.start
        data = b""
        while self._next.kind == "string":
            position, text = self._next.start, self._advance()
            data += self._unescaped(text[1:-1], position + 1)
        try:
            return data.decode()
        except UnicodeDecodeError:
            self._fail("this string is not UTF-8", start)

    def _unescaped(self, text: str, start: int) -> bytes:
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
                self._fail(f"{match[0]} is no escape", start + match.start())
        parts.append(text[end:].encode())
        return b"".join(parts)
