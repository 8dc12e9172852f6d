"""Makes entries of the log from the lines that a worker writes: their levels, and which lines belong together.

What a worker logs through Python's `logging` comes as a record (`multitower/worker_log.py`), with its level. Printed
and native lines keep the level that they name: one of Python's (`WARNING:root:…`, `2026-12-01 … - ERROR - …`), or the
letter of TensorFlow's, Abseil's and glog's lines. Of TensorFlow, information is DEBUG, and so are what it logs in every
process while it is imported and, on CPU workers, complaints about missing GPUs. All other lines are INFO.

A traceback is one entry, together with the line before it that has a level, and so are the stacks that a crash or a
hang dumps.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from multitower.worker_log import WorkerRecord, decode

Decode = Callable[[bytes], WorkerRecord | None]

MAX_LINE: Final = 8192
"""Bytes of a plain line; a longer one is cut."""

MAX_ENTRY: Final = 32 << 10
"""Characters of an entry that is made of several plain lines; what follows is another entry."""

# `I0000 00:00:1796114190.159745    7672 port.cc:153] ...`, of Abseil; before the first dot is the time.
# `2026-12-01 08:12:40.330123: I tensorflow/core/util/port.cc:153] ...`, of TensorFlow before 2.17.
_NATIVE_LINE: Final = re.compile(
    r"(?:([IWEF])\d{4} \d\d:\d\d:[\d.]+ +\d+ |\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: ([IWEF]) )([\w./-]+):\d+\] "
)
_LETTERS: Final = {"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}

_NOISE: Final = (
    # What Abseil writes before it is initialized, and the end of a line on CPU features.
    "WARNING: All log messages before absl::InitializeLog() is called",
    "To enable the following instructions: ",
    # Plugins of TensorFlow's libraries that register twice, without a consequence.
    "Unable to register cu",
    "computation placer already registered",
    "TF-TRT Warning: Could not find TensorRT",
)
"""Beginnings of lines, behind the place in TensorFlow's code, that it logs in every process while it is imported."""

_ABOUT_GPUS: Final = re.compile(r"gpu|nvidia|cuda|cuinit|cudnn|cublas|cufft|tensorrt|libcu|dso_loader", re.IGNORECASE)

# A level of Python's, alone or in brackets: at the beginning, behind a time, or behind a time and a logger's name.
# Neighbouring repetitions that share characters are possessive: otherwise a long line of `:` takes cubic time.
_PYTHON_LINE: Final = re.compile(
    r"(?:[\[(]?\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d[\d.,:+Z-]*+[\])]?+[ |:-]*+(?:[\w.:-]++ - )?)?"
    r"[\[(|]? ?(DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL|FATAL)\b[\])]?(?=[\s:|,-]|$)"
)
_WARNINGS: Final = re.compile(r"\S+:\d+: \w*Warning: ")
_LEVELS: Final = {**logging.getLevelNamesMapping(), "FATAL": logging.CRITICAL}

_TRACEBACK: Final = re.compile(r"\s*(?:\+ Exception Group )?Traceback \(most recent call last\):")
_CHAIN: Final = re.compile(
    r"During handling of the above exception, another exception occurred:"
    r"|The above exception was the direct cause of the following exception:"
)
_UNCAUGHT: Final = re.compile(r"Exception in thread |Exception ignored in|Unhandled exception|Process \S+:$")
_EXCEPTION: Final = re.compile(r"[A-Za-z_][\w.]*(?::\s.*|:)?$")
_STACKS: Final = re.compile(
    r"Fatal Python error: |Python runtime state: "
    r"|(?:Current thread|Thread) 0x[0-9a-f]++.*\(most recent call first\):|Stack \(most recent call first\):"
    r"|  <(?:no Python frame|tstate is freed)>"
)
_EXTENSION_MODULES: Final = "Extension modules: "
"""The end of what Python writes at a crash: a list of some kilobytes."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the log.

    Attributes:
        level: a level of `logging`.
        text: the message; it may have several lines.
        fields: what the worker knows of it, such as `model`, `version` and `traceback`.
    """

    level: int
    text: str
    fields: Mapping[str, object] = field(default_factory=dict)

    @property
    def whole_text(self) -> str:
        """The message with its traceback."""
        return "\n".join((self.text, *(str(self.fields[key]) for key in ("traceback",) if key in self.fields)))


class _Kind(Enum):
    LINE = auto()  # a line with a level, which a traceback or indented lines may follow
    TRACEBACK = auto()
    RAISED = auto()  # a traceback with its last line, which another one may follow
    STACKS = auto()


class EntryMaker:
    """Makes the entries of one worker.

    Args:
        shows_information: whether the user wants TensorFlow's information: it is INFO then, and not DEBUG.
        decode: reads a line without its end that is a record; returns None for plain text.
    """

    def __init__(self, *, shows_information: bool = False, decode: Decode = decode) -> None:
        self._decode = decode
        self._information = logging.INFO if shows_information else logging.DEBUG
        self._fields: Mapping[str, object] = {}
        self._kind: _Kind | None = None
        self._lines: list[str] = []
        self._size = 0
        self._level = logging.INFO
        self._group_fields: Mapping[str, object] = {}

    @property
    def is_open(self) -> bool:
        """Whether the next line may belong to an entry that has begun."""
        return self._kind is not None

    def add(self, line: bytes, *, on_cpu: bool) -> Iterator[Entry]:
        """Adds a line without its end; the entries that are complete now.

        Args:
            line: as the worker wrote it.
            on_cpu: whether the worker has CPU devices: what TensorFlow logs about missing GPUs is DEBUG then.
        """
        record = self._decode(line)
        if record is None:
            yield from self._add_text(_last_state(line).decode("utf-8", "backslashreplace"), self._fields, on_cpu)
        elif record.text is None:
            yield from self.finish()
            self._fields = record.fields
        elif record.level is None:
            yield from self._add_text(record.text, record.fields, on_cpu)
        else:
            yield from self.finish()
            yield Entry(record.level, record.text, record.fields)

    def finish(self) -> Iterator[Entry]:
        """The entry that has begun: no more lines belong to it."""
        kind, lines, fields = self._kind, self._lines, self._group_fields
        self._kind, self._lines, self._size = None, [], 0
        if kind is None:
            return
        if kind not in (_Kind.TRACEBACK, _Kind.RAISED):
            yield Entry(self._level, "\n".join(lines), fields)
            return
        start = next(number for number, line in enumerate(lines) if _TRACEBACK.match(line))
        message = "\n".join(lines[:start]) if start else lines[-1].strip()
        yield Entry(self._level, message, {**fields, "traceback": "\n".join(lines[start:])})

    def _add_text(self, text: str, fields: Mapping[str, object], on_cpu: bool) -> Iterator[Entry]:
        line = text.rstrip().rpartition("\r")[2]
        if not line or line.startswith(_EXTENSION_MODULES):
            return
        if self._kind is not None:
            following = self._kind_with(line) if fields == self._group_fields and self._size < MAX_ENTRY else None
            if following is not None:
                self._kind = following
                self._append(line)
                return
            yield from self.finish()
        level = self._level_of(line, on_cpu=on_cpu)
        kind = _first_kind(line, level)
        if kind is None:
            yield Entry(level, line, fields)
            return
        self._kind, self._group_fields = kind, fields
        self._level = level if kind is _Kind.LINE and not _UNCAUGHT.match(line) else logging.ERROR
        self._append(line)

    def _append(self, line: str) -> None:
        self._lines.append(line)
        self._size += len(line)

    def _kind_with(self, line: str) -> _Kind | None:
        """The kind of the entry that has begun, if a line belongs to it; else None."""
        if self._kind is _Kind.STACKS:
            return _Kind.STACKS if line[0].isspace() or _STACKS.match(line) else None
        if _TRACEBACK.match(line):
            return _kind_of_traceback(line)
        if line[0].isspace():
            return self._kind
        if self._kind is _Kind.TRACEBACK:
            return _Kind.RAISED if _EXCEPTION.match(line) else None
        return _Kind.RAISED if self._kind is _Kind.RAISED and _CHAIN.match(line) else None

    def _level_of(self, line: str, *, on_cpu: bool) -> int:
        match = _NATIVE_LINE.match(line)
        if line.startswith(_NOISE, match.end() if match is not None else 0):
            return logging.DEBUG
        if match is None:
            named = _PYTHON_LINE.match(line)
            if named is not None:
                return _LEVELS[named[1]]
            return logging.WARNING if _WARNINGS.match(line) else logging.INFO
        level = _LETTERS[match[1] or match[2]]
        if os.path.splitext(match[3])[1] == ".py":
            return level  # of absl-py, which programs use for lines of their own
        if on_cpu and _ABOUT_GPUS.search(line):
            return logging.DEBUG
        return self._information if level == logging.INFO else level


def _last_state(line: bytes) -> bytes:
    """What a terminal would show of a plain line, without what is too long: a carriage return begins the line again."""
    return line.rstrip().rpartition(b"\r")[2][:MAX_LINE]


def _first_kind(line: str, level: int) -> _Kind | None:
    """The kind of an entry that a line begins; None if no other line belongs to it."""
    if _TRACEBACK.match(line):
        return _kind_of_traceback(line)
    if _STACKS.match(line):
        return _Kind.STACKS
    return _Kind.LINE if level >= logging.WARNING or _UNCAUGHT.match(line) else None


def _kind_of_traceback(line: str) -> _Kind:
    """The kind of an entry with the first line of a traceback: that of an exception group is indented to its end."""
    return _Kind.RAISED if line[0].isspace() else _Kind.TRACEBACK
