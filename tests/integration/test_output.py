"""Workers' output and the daemon's own lines, through real pipes and threads."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from multitower.supervisor.loop.log import HumanFormatter, JsonFormatter, event
from multitower.supervisor.workers.output import LINES_A_SECOND, MAX_LINE, OutputReader, level_of


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
        flooding.join(30)
        assert not flooding.is_alive(), "the pipe is closed"
        os.close(into)


def wait_until_closed(descriptor: int) -> None:
    until = time.monotonic() + 30
    while Path(f"/proc/self/fd/{descriptor}").exists():
        assert time.monotonic() < until
        time.sleep(0.01)


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


TENSORFLOW = [
    # As TensorFlow 2.21 writes them on a machine without GPUs.
    (b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR", "DEBUG", "DEBUG"),
    (b"I0000 00:00:1796114190.159745    7672 port.cc:153] oneDNN custom operations are on.", "DEBUG", "DEBUG"),
    (b"I0000 00:00:1796114190.162407 7672 cudart_stub.cc:31] Could not find cuda drivers", "DEBUG", "DEBUG"),
    (b"E0000 00:00:1796114197.613009    7672 cuda_platform.cc:52] failed call to cuInit: INTERNAL", "ERROR", "DEBUG"),
    (b"To enable the following instructions: AVX2 FMA, rebuild TensorFlow.", "DEBUG", "DEBUG"),
    # As other versions do, and with GPUs.
    (b"E0000 00:00:1731.5 7 cuda_dnn.cc:8310] Unable to register cuDNN factory: Attempting", "DEBUG", "DEBUG"),
    (b"W0000 00:00:1731.5 7 computation_placer.cc:177] computation placer already registered.", "DEBUG", "DEBUG"),
    (b"W0000 00:00:1731.5 7 gpu_device.cc:2344] Cannot dlopen some GPU libraries.", "WARNING", "DEBUG"),
    (b"E0000 00:00:1731.5 7 hlo_lexer.cc:443] Failed to parse int literal", "ERROR", "ERROR"),
    (b"W0000 00:00:1731.5 7 bfc_allocator.cc:501] Allocator ran out of memory", "WARNING", "WARNING"),
    (b"F0000 00:00:1731.5 7 tensor.cc:852] Check failed: dtype() == expected_dtype", "ERROR", "ERROR"),
    (b"2024-05-01 12:00:00.123456: I tensorflow/core/util/port.cc:113] oneDNN", "DEBUG", "DEBUG"),
    (b"2024-05-01 12:00:00.123456: W tensorflow/x/y.cc:38] TF-TRT Warning: Could not find TensorRT", "DEBUG", "DEBUG"),
    (b"2024-05-01 12:00:00.123456: E external/local_xla/xla/cuda_driver.cc:282] failed call", "ERROR", "DEBUG"),
    # Others' lines keep their level, whatever they are about.
    (b"I0000 the model's own line", "INFO", "INFO"),
    (b"the GPU is fine", "INFO", "INFO"),
    (b"WARNING batch: the model is slow", "INFO", "INFO"),
    (b"\xff\xfe", "INFO", "INFO"),
]


@pytest.mark.parametrize(("line", "on_gpu", "on_cpu"), TENSORFLOW)
def test_a_line_of_tensorflow_has_the_level_of_its_letter_unless_it_is_noise(
    line: bytes, on_gpu: str, on_cpu: str
) -> None:
    assert logging.getLevelName(level_of(line, on_cpu=False)) == on_gpu
    assert logging.getLevelName(level_of(line, on_cpu=True)) == on_cpu


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
    os.write(into, b"I0000 00:00:1.5 7 port.cc:1] x\n" * LINES_A_SECOND + b"the model's own line\n")
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
    assert failed.wait(20)
    os.write(into, b"one\n")
    os.close(into)
    reader.close()
    assert [text for text, _ in gathered.lines] == ["internal error while reading the output of workers", "one"]
