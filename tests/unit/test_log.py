"""Entries of the daemon's log: for people on a terminal, in a file and in systemd's journal, and as JSON."""

from __future__ import annotations

import errno
import io
import json
import logging
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, TextIO

import pytest

from multitower.standard_streams import LossyStream
from multitower.supervisor.loop.log import (
    HumanFormatter,
    JsonFormatter,
    LogWriter,
    OutputHandler,
    Stamp,
    event,
    stamp_for,
)


def formatted(formatter: logging.Formatter, message: str = "worker died\nbadly", **fields: object) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.Logger("multitower.manager", logging.INFO)
    logger.addHandler(handler)
    event(logger, logging.WARNING, message, **(fields or {"slot": 1, "cause": "killed by SIGKILL (9)", "left": None}))
    return stream.getvalue()


def test_an_event_is_one_line_in_the_human_format() -> None:
    line = formatted(HumanFormatter(colour=False))
    assert line.endswith('WARNING worker died\\nbadly slot=1 cause="killed by SIGKILL (9)"\n')
    assert line.count("\n") == 1


def test_an_event_is_one_object_as_json() -> None:
    entry = json.loads(formatted(JsonFormatter()))
    assert entry["time"].endswith("Z")
    del entry["time"]
    assert entry == {
        "level": "warning",
        "logger": "multitower.manager",
        "message": "worker died\nbadly",
        "slot": 1,
        "cause": "killed by SIGKILL (9)",
    }


HOSTILE = "\x1b[2J\x1b]0;title\x07 \x9b31m \x7f \u202e\u2066 \udcff\ttab\u2028"
"""Commands for a terminal, in 7 and 8 bits; marks that reverse text; half a surrogate pair; an end of a line."""


def is_harmless(text: str) -> bool:
    return all(character.isprintable() or character == "\t" for character in text)


@pytest.mark.parametrize("where", ["message", "cause", "short"])
def test_control_characters_do_not_reach_the_operators_terminal(where: str) -> None:
    values = {"message": HOSTILE, "cause": f"{HOSTILE} and more", "short": HOSTILE.replace(" ", "")}
    message = HOSTILE if where == "message" else "worker died"
    line = formatted(HumanFormatter(colour=False), message, **{where: values[where]} if where != "message" else {})
    assert is_harmless(line.removesuffix("\n")), ascii(line)
    assert "1b[2J" in line, "what it was can still be read"
    line.encode()  # so that it can be written


def test_json_lines_have_control_characters_escaped_and_unchanged_when_read() -> None:
    line = formatted(JsonFormatter(), HOSTILE, cause=HOSTILE)
    assert is_harmless(line.removesuffix("\n")), ascii(line)
    line.encode()
    entry = json.loads(line)
    assert (entry["message"], entry["cause"]) == (HOSTILE, HOSTILE)


TRACEBACK = 'Traceback (most recent call last):\n  File "a.py", line 1\nValueError: \x1b[2J\n\nmore'


def worker_entry(formatter: logging.Formatter, message: str, **fields: Any) -> str:
    record = logging.LogRecord("multitower.worker", logging.WARNING, "", 0, "%s", (message,), None)
    record.fields = {"slot": 1, **fields}
    return formatter.format(record)


def test_a_traceback_follows_its_line_indented_and_harmless() -> None:
    first, *rest = worker_entry(HumanFormatter(colour=False), "raised", traceback=TRACEBACK).split("\n")
    assert first.endswith("WARNING | raised slot=1")
    assert rest == [
        "    Traceback (most recent call last):",
        '      File "a.py", line 1',
        "    ValueError: \\x1b[2J",
        "    more",
    ]


def test_further_lines_of_a_workers_message_cannot_look_like_entries() -> None:
    text = worker_entry(HumanFormatter(colour=False), "one\n12:00:00.000 ERROR   worker died slot=0")
    assert text.split("\n")[1:] == ["    12:00:00.000 ERROR   worker died slot=0"]


def test_an_entry_of_several_lines_is_one_line_as_json() -> None:
    text = worker_entry(JsonFormatter(), "one\ntwo", traceback=TRACEBACK)
    assert "\n" not in text
    entry = json.loads(text)
    assert (entry["message"], entry["traceback"]) == ("one\ntwo", TRACEBACK)


def test_an_exception_of_the_daemon_itself_follows_its_line() -> None:
    try:
        raise ZeroDivisionError("an injected defect")
    except ZeroDivisionError:
        record = logging.LogRecord("multitower.daemon", logging.ERROR, "", 0, "internal error", (), sys.exc_info())
    first, *rest = HumanFormatter(colour=False).format(record).split("\n")
    assert first.endswith("ERROR   internal error")
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-1] == "    ZeroDivisionError: an injected defect"


@pytest.fixture
def _zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as context:
        context.setenv("TZ", "Asia/Kolkata")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("_zone")
def test_entries_in_a_file_have_the_date_and_the_zone() -> None:
    record = logging.LogRecord("multitower.daemon", logging.INFO, "", 0, "daemon started", (), None)
    record.created = 0.25
    line = HumanFormatter(colour=False, stamp=Stamp.DATE).format(record)
    assert line == "1970-01-01T05:30:00.250+05:30 INFO    daemon started"
    assert HumanFormatter(colour=False).format(record) == "05:30:00.250 INFO    daemon started"


def test_entries_in_the_journal_have_a_priority_on_each_line_and_no_time() -> None:
    formatter = HumanFormatter(colour=False, stamp=Stamp.PRIORITY)
    assert worker_entry(formatter, "one\ntwo") == "<4>WARNING | one slot=1\n<4>    two"


@pytest.mark.parametrize(
    ("level", "priority"), [("DEBUG", 7), ("INFO", 6), ("WARNING", 4), ("ERROR", 3), ("CRITICAL", 2)]
)
def test_the_priority_is_that_of_syslog(level: str, priority: int) -> None:
    record = logging.LogRecord("multitower.daemon", logging.getLevelNamesMapping()[level], "", 0, "x", (), None)
    assert HumanFormatter(colour=False, stamp=Stamp.PRIORITY).format(record).startswith(f"<{priority}>")


@pytest.fixture
def file() -> Iterator[TextIO]:
    with tempfile.TemporaryFile("w+") as opened:
        yield opened


def test_the_journal_is_recognised_by_its_stream_alone(file: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    assert stamp_for(file) is Stamp.DATE
    status = os.fstat(file.fileno())
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    assert stamp_for(file) is Stamp.PRIORITY
    with tempfile.TemporaryFile("w+") as redirected:
        assert stamp_for(redirected) is Stamp.DATE
    assert stamp_for(io.StringIO()) is Stamp.DATE, "it is no file"


class Disk(io.RawIOBase):
    """A file on a disk that may be full."""

    def __init__(self) -> None:
        self.full = False
        self.room = math.inf  # for so many writes
        self.written = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        if self.full or not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= 1
        self.written += bytes(data)
        return len(data)


def _entry(message: str) -> logging.LogRecord:
    return logging.LogRecord("multitower.daemon", logging.INFO, "", 0, message, (), None)


@pytest.mark.parametrize("buffered", [False, True])
def test_a_log_that_could_not_be_written_says_how_many_lines_may_be_missing(buffered: bool) -> None:
    disk = Disk()
    file: Any = io.BufferedWriter(disk, 64) if buffered else disk
    handler = OutputHandler(LossyStream(file, "utf-8", line_buffering=buffered, write_through=not buffered))
    handler.setFormatter(JsonFormatter())
    handler.handle(_entry("before"))
    for _ in range(2):
        disk.full = True
        for number in range(3):
            handler.handle(_entry(f"lost {number}"))
        disk.full = False
        handler.handle(_entry("after"))
    handler.handle(_entry("later"))
    entries = [json.loads(line) for line in disk.written.splitlines()]
    messages = [entry["message"] for entry in entries if not entry["message"].startswith("lost")]
    notice = "log could not be written: lines above may be missing"
    assert messages == ["before", "after", notice, "after", notice, "later"]
    assert [entry["lines"] for entry in entries if entry["message"] == notice] == [3, 3]


def test_lines_stay_counted_until_the_notice_about_them_is_written() -> None:
    disk = Disk()
    file: Any = disk
    handler = OutputHandler(LossyStream(file, "utf-8", write_through=True))
    handler.setFormatter(JsonFormatter())
    for room in (0, 0, 1, 2):  # in entries
        disk.room = room
        handler.handle(_entry("entry"))
    entries = [json.loads(line) for line in disk.written.splitlines()]
    assert [entry.get("lines") for entry in entries] == [None, None, 2]


def test_a_writer_that_is_closed_leaves_logging_as_it_was() -> None:
    root = logging.getLogger("multitower")
    before = root.level, root.propagate, list(root.handlers)
    LogWriter("human", "DEBUG", io.StringIO()).close()
    assert (root.level, root.propagate, root.handlers) == before


@pytest.mark.parametrize(
    ("variable", "value", "coloured"), [("X", "", True), ("NO_COLOR", "1", False), ("TERM", "dumb", False)]
)
def test_a_terminal_gets_colours_unless_they_are_refused(
    variable: str, value: str, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    controller, terminal = os.openpty()
    try:
        with open(terminal, "w", closefd=False) as stream:
            writer = LogWriter("human", "INFO", stream)
            try:
                event(logging.getLogger("multitower.daemon"), logging.WARNING, "worker died", slot=1)
            finally:
                writer.close()
        line = os.read(controller, 4096).decode()
    finally:
        os.close(terminal)
        os.close(controller)
    assert ("\x1b[" in line) == coloured
    assert re.search(r"\d\d:\d\d:\d\d\.\d{3} WARNING worker died slot=1", line)
