"""What a worker prints and logs, as it arrives in the supervisor: whole, under the right model, and nothing forged."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from multitower.supervisor.loop.log import WORKER_LOGGER, HumanFormatter, JsonFormatter
from multitower.supervisor.workers.output import OutputReader
from multitower.worker_log import MARK, MAX_FIELDS, MAX_TEXT, WorkerRecord, decode

SET_UP = """
import logging, os, sys
from multitower.worker import records
records.set_up("INFO")
a, b = ("a", "1"), ("b", "1")
"""


def written(program: str) -> bytes:
    """What a worker writes that runs a program, in the order of writing."""
    done = subprocess.run(
        [sys.executable, "-c", SET_UP + program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        check=True,
    )
    return done.stdout


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    monkeypatch.setattr(logging.getLogger("multitower"), "propagate", True)
    with caplog.at_level(logging.DEBUG, WORKER_LOGGER):
        yield caplog


def read(output: bytes, logged: pytest.LogCaptureFixture) -> list[tuple[str, str, str | None]]:
    """The level, text and model of each entry that an output makes."""
    out, into = os.pipe()
    fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 1 << 20)
    os.write(into, output)
    os.close(into)
    reader = OutputReader()
    reader.end(reader.add(out, {"slot": 0, "device": "GPU-1", "pid": 7}))
    reader.close(60)
    assert all(entry.__dict__["fields"]["slot"] == 0 for entry in logged.records)
    return [(r.levelname, r.getMessage(), r.__dict__["fields"].get("model")) for r in logged.records]


def test_a_record_behind_a_progress_bar_keeps_its_level(logged: pytest.LogCaptureFixture) -> None:
    output = written(
        """
sys.stderr.write("\\r 41%|###\\r 42%|####"); sys.stderr.flush()
logging.getLogger("x").error("disk is full")
print("loading ...", end="", flush=True)
logging.getLogger("x").warning("slow")
"""
    )
    assert read(output, logged) == [
        ("INFO", " 42%|####", None),
        ("ERROR", "disk is full", None),
        ("INFO", "loading ...", None),
        ("WARNING", "slow", None),
    ]


def test_unfinished_lines_keep_their_model_and_none_is_lost_or_grows(logged: pytest.LogCaptureFixture) -> None:
    output = written(
        """
records.current.model = a
print("of a", end="")
records.current.model = b
print("of b")
print("flushed", end="", flush=True)
records.current.model = None
print("of none")
records.current.model = a
for number in range(20_000):
    print(".", end="")
assert sum(len(text) for _, text in records.current.partial.values()) <= records.MAX_PARTIAL
for number in range(20_000):
    sys.stdout.write(f"\\r{number}")
    sys.stdout.flush()
assert sum(len(text) for _, text in records.current.partial.values()) <= records.MAX_PARTIAL
print()
"""
    )
    found = read(output, logged)
    assert found[:4] == [
        ("INFO", "of a", "a"),
        ("INFO", "of b", "b"),
        ("INFO", "flushed", "b"),
        ("INFO", "of none", None),
    ]
    assert found[-1] == ("INFO", "19999", "a")
    assert {set(text).pop() for _, text, _ in found[4:-1]} == {"."}
    assert len(found) < 10


def test_a_printed_text_cannot_be_a_record(logged: pytest.LogCaptureFixture) -> None:
    forged = WorkerRecord("shutting down", logging.CRITICAL, {"slot": 5}).encode().decode()
    for model in ("None", "a"):
        logged.clear()
        ((level, text, _),) = read(
            written(f"records.current.model = {model}\nprint({forged.rstrip(chr(10))!r})"), logged
        )
        assert (level, text.startswith(("\\x1e{", "\x1e{"))) == ("INFO", True)


def test_a_forged_record_overwrites_no_field_of_the_daemon(logged: pytest.LogCaptureFixture) -> None:
    fields = {"slot": 5, "time": "1999", "level": "x", "logger": "y", "message": "z", "\x1b[2J\nERROR": 1, "kept": "k"}
    forged = MARK + json.dumps({"text": "real", "level": 40, "fields": fields}).encode() + b"\n"
    assert read(forged, logged) == [("ERROR", "real", None)]
    (record,) = logged.records
    entry = json.loads(JsonFormatter().format(record))
    assert (entry["level"], entry["logger"], entry["message"], entry["slot"]) == ("error", WORKER_LOGGER, "real", 0)
    assert entry["kept"] == "k"
    assert entry["time"] > "2020"
    line = HumanFormatter(colour=False).format(record)
    assert "\x1b" not in line
    assert "\n" not in line


@pytest.mark.parametrize("level", [True, 0, -1, 51, 1e9, "40"])
def test_levels_that_logging_does_not_have_are_left_out(level: object) -> None:
    record = decode(MARK + json.dumps({"text": "t", "level": level, "fields": {}}).encode())
    assert record == WorkerRecord("t", None, {})


def test_a_record_has_a_limited_number_of_fields_of_limited_length() -> None:
    fields = {f"f{number}": [["x"] * MAX_TEXT] for number in range(2 * MAX_FIELDS)}
    record = decode(MARK + json.dumps({"text": "t" * 10 * MAX_TEXT, "fields": fields}).encode())
    assert record is not None
    assert record.text is not None
    assert len(record.text) == MAX_TEXT
    assert [len(value) for value in record.fields.values()] == [MAX_TEXT] * MAX_FIELDS


def test_keys_with_control_characters_are_escaped_for_people() -> None:
    record = logging.LogRecord("multitower", logging.INFO, "", 0, "text", (), None)
    record.fields = {"a\x1b[2J\nb": 1}
    assert "\x1b" not in HumanFormatter(colour=False).format(record)
    assert "\n" not in HumanFormatter(colour=False).format(record)


def test_the_end_of_a_long_traceback_is_kept() -> None:
    text = "Traceback\n" + "  frame\n" * MAX_TEXT + "ValueError: the cause"
    record = decode(WorkerRecord("t", 40, {"traceback": text}).encode().strip())
    assert record is not None
    assert record.fields["traceback"].startswith("Traceback\n")
    assert record.fields["traceback"].endswith("\nValueError: the cause")
    assert len(record.fields["traceback"]) == MAX_TEXT


@pytest.mark.parametrize("text", ["ü", "\ud800", "\x1e", "\r\n\0", "日本\u2028"])
def test_any_text_passes_as_it_is(text: str) -> None:
    line = WorkerRecord(text, 20, {"x": text}).encode()
    assert line.count(MARK) == line.count(b"\n") == 1
    assert decode(line.removesuffix(b"\n")) == WorkerRecord(text, 20, {"x": text})


def test_a_record_is_written_whole_to_a_pipe_that_does_not_block() -> None:
    output = written(
        """
os.set_blocking(2, False)
for _ in range(50):
    logging.getLogger("x").error("y" * 16000)
"""
    )
    records = [decode(line) for line in output.splitlines()]
    assert [record.text if record is not None else None for record in records] == ["y" * 16000] * 50
