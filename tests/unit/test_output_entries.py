"""Entries that are made of the lines of a worker: their levels, and which lines belong together."""

from __future__ import annotations

import logging
import time
import traceback
import warnings

import pytest

from multitower.supervisor.workers.output_entries import MAX_ENTRY, Entry, EntryMaker
from multitower.worker_log import MARK, WorkerRecord, decode


def entries(*lines: str | bytes, on_cpu: bool = False, shows_information: bool = False) -> list[Entry]:
    maker = EntryMaker(shows_information=shows_information)
    found: list[Entry] = []
    for line in lines:
        found += maker.add(line.encode() if isinstance(line, str) else line, on_cpu=on_cpu)
    return [*found, *maker.finish()]


def level(line: str, *, on_cpu: bool = False) -> str:
    (entry,) = entries(line, on_cpu=on_cpu)
    return logging.getLevelName(entry.level)


NATIVE = [
    # As TensorFlow 2.21 writes them on a machine without GPUs.
    ("WARNING: All log messages before absl::InitializeLog() is called are written to STDERR", "DEBUG", "DEBUG"),
    ("I0000 00:00:1796114190.159745    7672 port.cc:153] oneDNN custom operations are on.", "DEBUG", "DEBUG"),
    ("I0000 00:00:1796114190.162407 7672 cudart_stub.cc:31] Could not find cuda drivers", "DEBUG", "DEBUG"),
    ("E0000 00:00:1796114197.613009    7672 cuda_platform.cc:52] failed call to cuInit: INTERNAL", "ERROR", "DEBUG"),
    ("To enable the following instructions: AVX2 FMA, rebuild TensorFlow.", "DEBUG", "DEBUG"),
    # As other versions do, and with GPUs.
    ("E0000 00:00:1731.5 7 cuda_dnn.cc:8310] Unable to register cuDNN factory: Attempting", "DEBUG", "DEBUG"),
    ("W0000 00:00:1731.5 7 computation_placer.cc:177] computation placer already registered.", "DEBUG", "DEBUG"),
    ("W0000 00:00:1731.5 7 gpu_device.cc:2344] Cannot dlopen some GPU libraries.", "WARNING", "DEBUG"),
    ("E0000 00:00:1731.5 7 hlo_lexer.cc:443] Failed to parse int literal", "ERROR", "ERROR"),
    ("W0000 00:00:1731.5 7 bfc_allocator.cc:501] Allocator ran out of memory", "WARNING", "WARNING"),
    ("F0000 00:00:1731.5 7 tensor.cc:852] Check failed: dtype() == expected_dtype", "CRITICAL", "CRITICAL"),
    ("2024-05-01 12:00:00.123456: I tensorflow/core/util/port.cc:113] oneDNN", "DEBUG", "DEBUG"),
    ("2024-05-01 12:00:00.123456: W tensorflow/x/y.cc:38] TF-TRT Warning: Could not find TensorRT", "DEBUG", "DEBUG"),
    ("2024-05-01 12:00:00.123456: E external/local_xla/xla/cuda_driver.cc:282] failed call", "ERROR", "DEBUG"),
    # Programs write lines of their own through absl-py.
    ("I1201 13:56:28.548123 140 serve.py:12] the GPU is used", "INFO", "INFO"),
    ("W1201 13:56:28.548123 140 serve.py:12] the GPU is hot", "WARNING", "WARNING"),
    # Others' lines.
    ("I0000 the model's own line", "INFO", "INFO"),
    ("the GPU is fine", "INFO", "INFO"),
]


@pytest.mark.parametrize(("line", "on_gpu", "on_cpu"), NATIVE)
def test_a_native_line_has_the_level_of_its_letter_unless_it_is_noise(line: str, on_gpu: str, on_cpu: str) -> None:
    assert level(line) == on_gpu
    assert level(line, on_cpu=True) == on_cpu


def test_information_of_tensorflow_is_shown_to_users_who_ask_for_it() -> None:
    line = "I0000 00:00:1731.5 7 gpu_device.cc:2020] Created device"
    assert [entry.level for entry in entries(line, shows_information=True)] == [logging.INFO]


PYTHON = [
    ("WARNING:tensorflow:From a.py:1: x is deprecated", "WARNING"),
    ("ERROR:root:no weights", "ERROR"),
    ("CRITICAL - all is lost", "CRITICAL"),
    ("[WARN] slow", "WARNING"),
    ("DEBUG x", "DEBUG"),
    ("2026-12-01 12:00:00,123 - my.handler - ERROR - no weights", "ERROR"),
    ("2026-12-01 12:00:00,123 WARNING my.handler: odd weights", "WARNING"),
    ("2026-12-01T12:00:00.123+01:00 [ERROR] no weights", "ERROR"),
    ("[2026-12-01 12:00:00,123] WARNING in app: odd", "WARNING"),
    ("2026-12-01 12:00:00.123 | WARNING  | handler:load:12 - odd", "WARNING"),
    ("/srv/models/a.py:6: FutureWarning: use b", "WARNING"),
    # The level is not where a level stands.
    ("no ERROR here", "INFO"),
    ("ERRORS: 0", "INFO"),
    ("WARNINGS are off", "INFO"),
    ("{'level': 'ERROR'}", "INFO"),
]


@pytest.mark.parametrize(("line", "wanted"), PYTHON)
def test_a_printed_line_has_the_level_that_it_names(line: str, wanted: str) -> None:
    assert level(line) == wanted


def test_bytes_that_are_no_text_are_shown() -> None:
    assert entries(b"\xff\xfe") == [Entry(logging.INFO, "\\xff\\xfe")]


def dumped() -> list[str]:
    try:
        raise KeyError("k")
    except KeyError:
        return traceback.format_exc().splitlines()


def chained() -> list[str]:
    try:
        try:
            int("x")
        except ValueError as error:
            raise KeyError("k") from error
    except KeyError:
        return traceback.format_exc().splitlines()


def test_a_traceback_is_one_entry_with_what_was_raised_as_its_message() -> None:
    lines = dumped()
    (before, entry, after) = entries("before", *lines, "after")
    assert (before.text, after.text) == ("before", "after")
    assert (entry.level, entry.text) == (logging.ERROR, "KeyError: 'k'")
    assert entry.fields["traceback"] == "\n".join(lines)


def test_the_traceback_of_a_cause_belongs_to_the_same_entry() -> None:
    lines = chained()
    (entry, after) = entries(*lines, "after")
    assert entry.text == "KeyError: 'k'"
    assert str(entry.fields["traceback"]).split("\n") == [line for line in lines if line]
    assert after.text == "after"


def test_an_exception_group_is_one_entry() -> None:
    try:
        raise ExceptionGroup("several", [ValueError("a"), KeyError("b")])
    except ExceptionGroup:
        lines = traceback.format_exc().splitlines()
    (entry, after) = entries(*lines, "after")
    assert after.text == "after"
    assert "ValueError: a" in str(entry.fields["traceback"])


@pytest.mark.parametrize(
    ("first", "wanted"), [("WARNING:root:could not", "WARNING"), ("Exception in thread Thread-1 (run):", "ERROR")]
)
def test_a_traceback_belongs_to_the_line_with_a_level_before_it(first: str, wanted: str) -> None:
    (entry,) = entries(first, *dumped())
    assert (logging.getLevelName(entry.level), entry.text) == (wanted, first)
    assert "KeyError: 'k'" in str(entry.fields["traceback"])


def test_indented_lines_belong_to_a_warning_and_not_to_information() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("odd", UserWarning, stacklevel=1)
    first, second = warnings.formatwarning(
        caught[0].message, caught[0].category, caught[0].filename, caught[0].lineno, "warn()"
    ).splitlines()
    assert [entry.text for entry in entries(first, second)] == [f"{first}\n{second}"]
    assert [entry.text for entry in entries("a table", "  a row")] == ["a table", "  a row"]


STACKS = [
    "Fatal Python error: Aborted",
    "",
    "Thread 0x00007f26e5fff6c0 (most recent call first):",
    '  File "a.py", line 331 in wait',
    "",
    "Current thread 0x00007f26f1a93b80 [worker] (most recent call first):",
    '  File "b.py", line 15 in infer',
    "",
    "Extension modules: numpy._core._multiarray_umath (total: 1)",
]


def test_the_stacks_of_a_crash_are_one_entry_without_the_list_of_modules() -> None:
    (before, stacks, after) = entries("about to abort", *STACKS, "after")
    assert (before.level, before.text, after.text) == (logging.INFO, "about to abort", "after")
    assert (stacks.level, stacks.text.split("\n")) == (logging.ERROR, [line for line in STACKS[:-1] if line])


def test_the_stacks_of_a_hang_are_shown_as_an_error() -> None:
    (stacks,) = entries(*STACKS[2:])
    assert stacks.level == logging.ERROR


def test_an_endless_entry_is_cut() -> None:
    found = entries("Traceback (most recent call last):", *["  x" * 100] * 1000)
    assert all(len(entry.whole_text) < 2 * MAX_ENTRY for entry in found)


# Records.


def test_a_record_keeps_its_level_its_lines_and_its_fields() -> None:
    record = WorkerRecord("one\ntwo \x1e\u2028 ü", logging.ERROR, {"model": "m", "repeated": 4, "gone": None})
    (entry,) = entries(record.encode().removesuffix(b"\n"))
    assert entry == Entry(logging.ERROR, record.text or "", {"model": "m", "repeated": 4})


def test_plain_text_has_the_fields_that_were_announced() -> None:
    announced = WorkerRecord(None, None, {"model": "m"}).encode().removesuffix(b"\n")
    over = WorkerRecord(None, None, {}).encode().removesuffix(b"\n")
    printed = WorkerRecord("c", None, {"model": "n"}).encode().removesuffix(b"\n")
    found = entries("a", announced, "b", printed, over, "d")
    assert [(entry.text, entry.fields) for entry in found] == [
        ("a", {}),
        ("b", {"model": "m"}),
        ("c", {"model": "n"}),
        ("d", {}),
    ]


def test_a_printed_record_has_the_level_that_it_names() -> None:
    printed = WorkerRecord("ERROR: no weights", None, {"model": "n"}).encode().removesuffix(b"\n")
    assert [entry.level for entry in entries(printed)] == [logging.ERROR]


@pytest.mark.parametrize("rest", [b"x", b"{}", b"[]", b'{"text": 1, "fields": {}}', b"{" * 100_000, b'{"a": 1'])
def test_text_that_only_begins_like_a_record_is_text(rest: bytes) -> None:
    assert decode(MARK + rest) is None
    (entry,) = entries(MARK + rest)
    assert entry.level == logging.INFO


def test_a_record_is_one_line_however_long_its_text_is() -> None:
    line = WorkerRecord("ü\n" * 100_000, logging.INFO, {"traceback": "y" * 1_000_000}).encode()
    assert line.count(b"\n") == 1
    assert len(line) < 256 << 10


DATE = "2026-12-01 08:12:40"


@pytest.mark.parametrize(
    "repeated",
    [
        # A beginning that a pattern matches, and what it repeats.
        *((DATE, text) for text in ("-", ":", "1", "+Z", " ", " |", "a.:-", "-a:")),
        *((f"{DATE} - ", text) for text in ("a", "a.", "-", ": ")),
        *((f"{DATE}.1: I ", text) for text in ("a", "a/", "a:1")),
        *(("I0000 00:00:1", text) for text in ("1", ".1", " ", " 1")),
        *(("I0000 00:00:1.1 1 ", text) for text in ("1", "a/", "a.c:1", "gpu", "cud")),
        *(("", text) for text in ("a", ":1", "a:1:", "1:1: ", "\x1e", "[", "| ")),
        ("a:1: ", "Warning"),
        *(("Thread 0x", text) for text in ("f", "f (most recent call first", " (")),
        *(("Current thread 0x1", text) for text in ("1", "(")),
        *((" ", text) for text in (" ", "+ ", "Traceback ")),
        *(("Process ", text) for text in ("a", ":")),
        *(("A", text) for text in (".", "a", ": ", ":")),
    ],
)
@pytest.mark.parametrize("before", ["plain", "Traceback (most recent call last):", "Stack (most recent call first):"])
def test_a_line_takes_time_in_proportion_to_its_length(repeated: tuple[str, str], before: str) -> None:
    def seconds(length: int) -> float:
        beginning, text = repeated
        line = f"{beginning}{text * length}"[:length].encode() + b"!"
        times = []
        for _ in range(7):
            started = time.thread_time()
            entries(before, line)
            times.append(time.thread_time() - started)
        return min(times)

    # Eight times the length is 8 times the work, and 64 times if it were quadratic.
    assert seconds(2400) < 24 * seconds(300)
