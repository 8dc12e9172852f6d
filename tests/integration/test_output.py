"""Workers' output and the daemon's own lines, through real pipes and threads."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator

import pytest

from multitower.supervisor.loop.log import HumanFormatter, JsonFormatter, event
from multitower.supervisor.workers.output import LINES_A_SECOND, MAX_LINE, OutputReader


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


def test_lines_come_with_the_fields_of_the_moment_and_the_last_words_too(gathered: Gathered) -> None:
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


def test_a_flood_is_capped_and_counted(gathered: Gathered) -> None:
    reader = OutputReader()
    out, into = os.pipe()
    reader.add(out, {"slot": 0})
    for _ in range(20):
        os.write(into, b"x\n" * 100)
    os.close(into)
    reader.close()
    told = [fields for text, fields in gathered.lines if "lines left out" in text]
    kept = [text for text, _ in gathered.lines if text == "x"]
    assert len(kept) + sum(int(str(fields["lines"])) for fields in told) == 2000
    # Two windows of a second at the most, should the clock turn in between.
    assert LINES_A_SECOND <= len(kept) <= 2 * LINES_A_SECOND


def test_a_line_without_end_is_cut(gathered: Gathered) -> None:
    reader = OutputReader()
    out, into = os.pipe()
    reader.add(out, {})
    os.write(into, b"y" * (MAX_LINE + 1000))
    os.close(into)
    reader.close()
    assert [set(text) for text, _ in gathered.lines] == [{"y"}]
    assert len(gathered.lines[0][0]) == MAX_LINE


def formatted(formatter: logging.Formatter) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.Logger("multitower.fleet", logging.INFO)
    logger.addHandler(handler)
    event(logger, logging.WARNING, "worker died\nbadly", slot=1, cause="killed by SIGKILL (9)", left=None)
    return stream.getvalue()


def test_an_event_is_one_line_for_people() -> None:
    line = formatted(HumanFormatter(colour=False))
    assert line.endswith('WARNING worker died\\nbadly slot=1 cause="killed by SIGKILL (9)"\n')
    assert line.count("\n") == 1


def test_an_event_is_one_object_as_json() -> None:
    entry = json.loads(formatted(JsonFormatter()))
    assert entry["time"].endswith("Z")
    del entry["time"]
    assert entry == {
        "level": "warning",
        "logger": "multitower.fleet",
        "message": "worker died\nbadly",
        "slot": 1,
        "cause": "killed by SIGKILL (9)",
    }
