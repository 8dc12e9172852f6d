"""What the gateway writes to the daemon, and the versions that both must share."""

from __future__ import annotations

import json
import logging
import tomllib
from pathlib import Path
from typing import Any

import pytest

from multitower.supervisor.gateway.records import (
    MAX_RECORD,
    RecordError,
    RecordReader,
    decode_log_line,
    read_count,
    read_optional_count,
    read_statuses,
)
from multitower.supervisor.gateway.run import Counts

ROOT = Path(__file__).parents[2]


def test_records_are_complete_at_the_end_of_their_line() -> None:
    reader = RecordReader()
    assert reader.feed(b'{"record": "ready"}\n{"rec') == [{"record": "ready"}]
    assert reader.feed(b'ord": "statistics", "requests": 3}\n\n') == [{"record": "statistics", "requests": 3}]


@pytest.mark.parametrize(
    "line",
    [b"hello\n", b"[]\n", b'{"a": 1}\n', b'{"record": 1}\n', b"\xff\n", b"[" * 9999 + b"\n", b"x" * MAX_RECORD * 2],
)
def test_what_is_no_record_is_refused(line: bytes) -> None:
    with pytest.raises(RecordError):
        RecordReader().feed(line)


@pytest.mark.parametrize("value", [-1, 1.5, True, "1", None, 1 << 60])
def test_a_count_is_a_whole_number(value: Any) -> None:
    assert read_count({"requests": 7}, "requests") == 7
    assert read_count({}, "requests") == 0, "an older gateway does not count it"
    with pytest.raises(RecordError, match="which is not a count"):
        read_count({"requests": value}, "requests")


def test_a_time_may_be_unknown() -> None:
    name = "certificate_not_after"
    assert read_optional_count({name: 1_796_212_800}, name) == 1_796_212_800
    assert read_optional_count({name: None}, name) is read_optional_count({}, name) is None
    with pytest.raises(RecordError, match="which is not a count"):
        read_optional_count({name: -1}, name)


def test_requests_are_counted_by_interface_and_status() -> None:
    entries = [["open_inference_http", "200", 5], ["tensorflow_serving_grpc", "RESOURCE_EXHAUSTED", 1]]
    assert read_statuses({"by_status": entries}) == {
        ("open_inference_http", "200"): 5,
        ("tensorflow_serving_grpc", "RESOURCE_EXHAUSTED"): 1,
    }
    assert read_statuses({}) == {}, "an older gateway does not count them"
    twice = [["operations", "404", 5], ["operations", "404", 1]]
    assert read_statuses({"by_status": twice}) == {("operations", "404"): 6}, "over HTTP and over gRPC"


@pytest.mark.parametrize(
    "entries",
    [
        {},
        [1],
        [["open_inference_http", "200"]],
        [["open_inference_http", "200", -1]],
        [["open_inference_http", "200", True]],
        [["open_inference_http", 200, 1]],
        [["open_inference_http", "/a/path/of/a/client", 1]],
        [["made_up", "200", 1]],
        [[["list"], "200", 1]],
        [["operations", "200", 1]] * 501,
    ],
)
def test_no_label_of_a_metric_comes_from_a_wrong_record(entries: Any) -> None:
    with pytest.raises(RecordError, match="by_status"):
        read_statuses({"by_status": entries})


def test_counts_go_on_when_the_process_is_replaced() -> None:
    total = Counts()
    for _ in range(2):
        total.add_ended(Counts(3, 2, 10, 1, 1000, 2000, {("operations", "200"): 4}, 1_796_212_800))
    assert total == Counts(0, 0, 20, 2, 2000, 4000, {("operations", "200"): 8}), "what was open has ended"


@pytest.mark.parametrize(
    ("line", "level", "text", "fields"),
    [
        ({"level": "warning", "event": "slow", "fields": {"peer": "::1"}}, logging.WARNING, "slow", {"peer": "::1"}),
        ({"level": "error", "event": "x"}, logging.ERROR, "x", {}),
        ({"level": "unknown", "event": "x", "fields": {"bad name": 1, "none": None}}, logging.INFO, "x", {}),
        (
            b"thread 'main' panicked at src/main.rs:1:2:",
            logging.ERROR,
            "thread 'main' panicked at src/main.rs:1:2:",
            {},
        ),
        (
            b"thread 'loop-1' (77) panicked at x.rs:1:2:",
            logging.ERROR,
            "thread 'loop-1' (77) panicked at x.rs:1:2:",
            {},
        ),
    ],
)
def test_lines_of_the_log_keep_their_level_and_fields(line: Any, level: int, text: str, fields: Any) -> None:
    record = decode_log_line(line if isinstance(line, bytes) else json.dumps(line).encode())
    assert record is not None
    assert (record.level, record.text, dict(record.fields)) == (level, text, fields)


@pytest.mark.parametrize("line", [b"plain", b"{", b"{}", b'{"event": 1}', b'{"event": "x", "fields": []}x', b"\xff"])
def test_all_other_lines_are_plain_text(line: bytes) -> None:
    assert decode_log_line(line) is None


def test_the_daemon_and_the_gateway_have_one_version() -> None:
    project, wheel, crate = (
        tomllib.loads((ROOT / path).read_text())
        for path in ("pyproject.toml", "gateway/pyproject.toml", "gateway/Cargo.toml")
    )
    assert project["project"]["version"] == wheel["project"]["version"] == crate["package"]["version"]
    assert project["project"]["license"] == wheel["project"]["license"] == crate["package"]["license"]
