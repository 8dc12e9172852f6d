"""What the gateway writes: records for the daemon on stdout, and lines for its log on stderr. Pure.

Both are JSON objects, one a line. A line of stderr that is none, such as a panic's message, is plain text.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any, Final

from multitower.worker_log import WorkerRecord, checked_record

MAX_RECORD: Final = 64 << 10
"""Bytes of a record; what is longer is no record."""

MAX_COUNT: Final = 1 << 53

INTERFACES: Final = frozenset(
    ("tensorflow_serving_rest", "tensorflow_serving_grpc", "open_inference_http", "open_inference_grpc", "operations")
)
"""The interfaces by which the gateway counts requests; `operations` is what operators and load balancers ask."""

_STATUS: Final = re.compile(r"[0-9]{3}|[A-Z][A-Z_]{0,31}", re.ASCII)
"""A status code of HTTP, or the name of one of gRPC."""

_MAX_STATUSES: Final = 500

_LEVELS: Final = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}

_PANIC: Final = re.compile(rb"thread '.*' (?:\(\d+\) )?panicked at ")


class RecordError(ValueError):
    """What the gateway wrote to stdout is no record."""


class RecordReader:
    """Splits what the gateway writes to stdout into records."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Mapping[str, Any]]:
        """Returns the records that are complete now.

        Args:
            data: what was read.

        Raises:
            RecordError: a line is no record.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_RECORD:
            raise RecordError(f"a line has more than {MAX_RECORD} bytes")
        return [_decode_record(line) for line in lines if line]


def _decode_record(line: bytes) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("record"), str):
        raise RecordError(f"not a record: {line[:100]!r}")
    return record


def read_count(record: Mapping[str, Any], name: str) -> int:
    """A count in a record; 0 where it has none.

    Raises:
        RecordError: it is no count.
    """
    value = record.get(name, 0)
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise RecordError(f"{name} is {value!r}, which is not a count")
    return value


def read_optional_count(record: Mapping[str, Any], name: str) -> int | None:
    """A count in a record, or a time in seconds; None where it has none.

    Raises:
        RecordError: it is no count.
    """
    return None if record.get(name) is None else read_count(record, name)


def read_statuses(record: Mapping[str, Any]) -> dict[tuple[str, str], int]:
    """The counts of requests by interface and status in a record, `by_status`; empty where it has none.

    Raises:
        RecordError: it is no list of `[interface, status, count]`.
    """
    entries = record.get("by_status", [])
    if not isinstance(entries, list) or len(entries) > _MAX_STATUSES:
        raise RecordError("by_status is no list, or too long")
    found: dict[tuple[str, str], int] = {}
    for entry in entries:
        interface, status, count = entry if isinstance(entry, list) and len(entry) == 3 else ("", "", None)
        texts = isinstance(interface, str) and isinstance(status, str)
        known = texts and interface in INTERFACES and _STATUS.fullmatch(status)
        if not known or type(count) is not int or not 0 <= count <= MAX_COUNT:
            raise RecordError(f"by_status has {str(entry)[:100]}, which is not an interface, a status and a count")
        # An older gateway has two entries for a status of operators: over HTTP and over gRPC.
        found[interface, status] = found.get((interface, status), 0) + count
    return found


def decode_log_line(line: bytes) -> WorkerRecord | None:
    """Reads a line of stderr without its end; None if it is plain text."""
    if _PANIC.match(line):
        return WorkerRecord(line.decode("utf-8", "backslashreplace"), logging.ERROR)
    if not line.startswith(b"{"):
        return None
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("event"), str):
        return None
    level = _LEVELS.get(str(entry.get("level")), logging.INFO)
    return checked_record(entry["event"], level, entry.get("fields") or {})
