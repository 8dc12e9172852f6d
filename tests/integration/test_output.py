"""Workers' output, through real pipes and threads."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from multitower.supervisor.workers.output import (
    ENTRIES_A_SECOND,
    MAX_HIDDEN,
    MAX_LATEST,
    MAX_LATEST_TEXT,
    OutputReader,
)
from multitower.supervisor.workers.output_entries import MAX_LINE
from multitower.worker_log import WorkerRecord


class Gathered(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, dict[str, object]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.getMessage(), getattr(record, "fields", {})))


@pytest.fixture
def gathered() -> Iterator[Gathered]:
    handler = Gathered()
    log = logging.getLogger("multitower.worker")
    former, log.propagate = log.propagate, False
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)
    log.propagate = former


def test_lines_have_the_current_fields_and_an_unfinished_last_line_is_kept(gathered: Gathered) -> None:
    reader = OutputReader()
    out, into = os.pipe()
    fields: dict[str, object] = {"slot": 3}
    reader.add(out, fields)
    os.write(into, b"one\ntwo \xff\n\nlast words")
    os.close(into)
    reader.close()
    assert gathered.lines == [("one", {"slot": 3}), ("two \\xff", {"slot": 3}), ("last words", {"slot": 3})]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(out)


def test_the_latest_entries_are_kept_for_the_status(gathered: Gathered) -> None:
    reader = OutputReader()
    out, into = os.pipe()
    source = reader.add(out, {})
    with os.fdopen(into, "wb") as pipe:
        pipe.write(b"I0000 00:00:1796114190.159745    7672 port.cc:153] oneDNN is on\n")
        pipe.writelines(b"line %d\n" % number for number in range(MAX_LATEST + 5))
        pipe.write(b"ERROR: " + b"x" * MAX_LATEST_TEXT + b"end\n")
    reader.close()
    texts = [line.text for line in source.latest]
    assert texts[:-1] == [f"line {number}" for number in range(6, MAX_LATEST + 5)]
    assert (len(texts), len(texts[-1])) == (MAX_LATEST, MAX_LATEST_TEXT)
    assert texts[-1].startswith("ERROR: x")
    assert "x\n…\nx" in texts[-1]
    assert texts[-1].endswith("xend")
    assert [line.level for line in source.latest[-2:]] == [logging.INFO, logging.ERROR]


def test_what_is_added_after_the_end_is_closed_and_nothing_else_is_written_to(gathered: Gathered) -> None:
    reader = OutputReader()
    reader.close()
    # These get the numbers that the reader's pipe had.
    pipes = [os.pipe() for _ in range(4)]
    out, into = os.pipe()
    source = reader.add(out, {})
    reader.end(source)
    reader.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(out)
    for other_out, other_in in pipes:
        os.close(other_in)
        assert os.read(other_out, 1) == b"", "somebody has written to it"
        os.close(other_out)
    os.close(into)
    assert gathered.lines == []


def test_what_a_worker_has_left_is_read_although_another_process_holds_its_pipe(gathered: Gathered) -> None:
    with closing(OutputReader()) as reader:
        out, into = os.pipe()
        source = reader.add(out, {"slot": 0})
        os.write(into, b"last words")
        reader.end(source)
        wait_until_closed(out)
        assert [line for line, _ in gathered.lines] == ["last words"]
        os.close(into)


def test_a_process_that_floods_the_pipe_of_a_worker_that_has_ended_is_not_read(gathered: Gathered) -> None:
    with closing(OutputReader()) as reader:
        out, into = os.pipe()
        source = reader.add(out, {"slot": 0})

        def flood() -> None:
            with contextlib.suppress(BrokenPipeError):
                while True:
                    os.write(into, b"x\n" * 2048)

        flooding = threading.Thread(target=flood)
        flooding.start()
        reader.end(source)
        flooding.join(60)
        assert not flooding.is_alive(), "the pipe is closed"
        os.close(into)


def wait_until_closed(descriptor: int) -> None:
    wait_until(lambda: not Path(f"/proc/self/fd/{descriptor}").exists())


def test_a_flood_is_limited_and_counted(gathered: Gathered) -> None:
    reader = OutputReader()
    out, into = os.pipe()
    reader.add(out, {"slot": 0})
    for _ in range(20):
        os.write(into, b"x\n" * 100)
    os.close(into)
    reader.close()
    notices = [fields for text, fields in gathered.lines if "lines left out" in text]
    kept = [text for text, _ in gathered.lines if text == "x"]
    assert len(kept) + sum(int(str(fields["lines"])) for fields in notices) == 2000
    # Two windows of a second at the most, should the clock turn in between.
    assert ENTRIES_A_SECOND <= len(kept) <= 2 * ENTRIES_A_SECOND


def test_a_line_without_end_is_cut(gathered: Gathered) -> None:
    reader = OutputReader()
    out, into = os.pipe()
    reader.add(out, {})
    os.write(into, b"y" * (MAX_LINE + 1000))
    os.close(into)
    reader.close()
    assert [set(text) for text, _ in gathered.lines] == [{"y"}]
    assert len(gathered.lines[0][0]) == MAX_LINE


def test_the_device_of_the_worker_decides_what_is_an_error(gathered: Gathered) -> None:
    reader = OutputReader()
    for fields in ({"device": "cpu:0,cpu:1"}, {"device": "GPU-1"}, {"spare": True}):
        out, into = os.pipe()
        reader.add(out, dict(fields))
        os.write(into, b"E0000 00:00:1.5 7 cuda_platform.cc:52] failed call to cuInit\n")
        os.close(into)
    reader.close()
    assert [fields for _, fields in gathered.lines] == [{"device": "GPU-1"}, {"spare": True}]


def test_lines_that_are_not_logged_do_not_count(gathered: Gathered) -> None:
    reader = OutputReader()
    out, into = os.pipe()
    reader.add(out, {"slot": 0})
    os.write(into, b"I0000 00:00:1.5 7 port.cc:1] x\n" * ENTRIES_A_SECOND + b"the model's own line\n")
    os.close(into)
    reader.close()
    assert [text for text, _ in gathered.lines] == ["the model's own line"]


def test_a_descriptor_that_cannot_be_read_is_closed(gathered: Gathered, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = OutputReader()
    out, into = os.pipe()

    def fail(_descriptor: int, _blocking: bool) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "set_blocking", fail)
    with pytest.raises(OSError, match="no"):
        reader.add(out, {})
    monkeypatch.undo()
    reader.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(out)
    os.close(into)


def written(gathered: Gathered, level: int, *lines: bytes, death: str | None) -> list[tuple[str, dict[str, object]]]:
    """What the log has of the lines of a worker that ended, or died, at a level of the log."""
    logging.getLogger("multitower.worker").setLevel(level)
    reader = OutputReader()
    out, into = os.pipe()
    source = reader.add(out, {"slot": 0})
    os.write(into, b"".join(lines))
    os.close(into)
    reader.end(source, death)
    reader.close()
    return gathered.lines


@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR])
def test_the_last_output_of_a_worker_that_died_is_logged_at_every_level(gathered: Gathered, level: int) -> None:
    record = WorkerRecord("loading weights", logging.INFO, {"model": "m"}).encode()
    lines = written(gathered, level, record, b"terminate called: no memory\n", death="killed by SIGABRT (6)")
    (entry,) = lines
    assert entry[0] == "last output of a worker that died, which this log left out"
    assert entry[1] == {
        "slot": 0,
        "cause": "killed by SIGABRT (6)",
        "output": "loading weights\nterminate called: no memory",
    }


def test_nothing_is_repeated_of_a_worker_that_was_told_to_end(gathered: Gathered) -> None:
    assert written(gathered, logging.WARNING, b"bye\n", death=None) == []


def test_what_the_log_shows_is_not_repeated_when_a_worker_dies(gathered: Gathered) -> None:
    lines = written(gathered, logging.INFO, b"one\n", b"ERROR two\n", death="exited with code 3")
    assert [text for text, _ in lines] == ["one", "ERROR two"]


def test_the_last_words_of_a_worker_that_floods_the_log_are_logged(gathered: Gathered) -> None:
    lines = written(gathered, logging.INFO, b"x\n" * 3 * ENTRIES_A_SECOND, b"last words\n", death="exited with code 3")
    kept = str(lines[-1][1]["output"]).split("\n")
    assert (kept[-1], len(kept)) == ("last words", MAX_HIDDEN)


def test_a_begun_entry_is_logged_though_no_other_line_follows(gathered: Gathered) -> None:
    with closing(OutputReader()) as reader:
        out, into = os.pipe()
        reader.add(out, {"slot": 0})
        os.write(into, b"WARNING:root:the last line\n")
        until = time.monotonic() + 60
        while not gathered.lines:
            assert time.monotonic() < until
            time.sleep(0.01)
        os.close(into)
    assert [text for text, _ in gathered.lines] == ["WARNING:root:the last line"]


def test_an_error_with_the_output_of_one_worker_does_not_end_that_of_others(
    gathered: Gathered, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = OutputReader()
    log_line = reader._log_line

    def fail_for_one(source: Any, line: bytes) -> None:
        if source.fields["slot"] == 0:
            raise ZeroDivisionError("an injected defect")
        log_line(source, line)

    monkeypatch.setattr(reader, "_log_line", fail_for_one)
    (bad, bad_in), (good, good_in) = os.pipe(), os.pipe()
    reader.add(bad, {"slot": 0})
    os.write(bad_in, b"one\ntwo\n")
    reader.add(good, {"slot": 1})
    os.write(good_in, b"three\n")
    os.close(good_in)
    reader.close()
    errors = [fields for text, fields in gathered.lines if text.startswith("internal error")]
    assert errors == [{"slot": 0}]
    assert ("three", {"slot": 1}) in gathered.lines
    with pytest.raises(BrokenPipeError):  # it is closed: the worker does not wait for it
        os.write(bad_in, b"x")
    os.close(bad_in)


def test_an_error_of_the_thread_does_not_end_the_reading(gathered: Gathered, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = OutputReader()
    select, failures, failed = reader._selector.select, [OSError("an injected defect")] * 2, threading.Event()

    def fail_twice(timeout: float | None = None) -> Any:
        if failures:
            raise failures.pop()
        failed.set()
        return select(timeout)

    monkeypatch.setattr(reader._selector, "select", fail_twice)
    out, into = os.pipe()
    reader.add(out, {"slot": 0})
    assert failed.wait(60)
    os.write(into, b"one\n")
    os.close(into)
    reader.close()
    assert [text for text, _ in gathered.lines] == ["internal error while reading the output of workers", "one"]
