"""Durations in messages, the log and tables are in units that people read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from multitower.durations import exact_duration, measured_duration, rounded_duration

ROOT: Final = Path(__file__).parents[2]
PRODUCT: Final = ("multitower", "supervisor", "worker")
RAW_LIMIT: Final = re.compile(r":g\} ?s\b")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0 s"),
        (0.0003, "0.3 ms"),
        (0.05, "50 ms"),
        (0.5, "0.5 s"),
        (2.0000000001, "2 s"),
        (60.0, "60 s"),
        (90.0, "90 s"),
        (1800.0, "30 min"),
        (5400.0, "90 min"),
        (7200.0, "2 h"),
        (86_400.0, "24 h"),
        (172_800.0, "2 d"),
        (1_234_567.0, "1234567 s"),
    ],
)
def test_limits_are_shown_exactly_in_the_largest_unit(seconds: float, shown: str) -> None:
    assert exact_duration(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0 s"), (119.0, "119 s"), (120.0, "2 min"), (7199.0, "120 min"), (7200.0, "2 h"), (172_800.0, "2 d")],
)
def test_times_that_pass_are_rounded(seconds: float, shown: str) -> None:
    assert rounded_duration(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0 s"),
        (0.0421, "42 ms"),
        (0.0996, "0.1 s"),
        (0.412, "0.4 s"),
        (3.98, "4 s"),
        (4.12, "4.1 s"),
        (9.96, "10 s"),
        (12.3, "12 s"),
        (754.0, "13 min"),
    ],
)
def test_what_took_less_than_ten_seconds_is_shown_with_tenths(seconds: float, shown: str) -> None:
    assert measured_duration(seconds) == shown


def test_no_message_shows_a_limit_in_seconds_only() -> None:
    """`1800 s` is read twice; every limit is formatted by one function."""
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for folder in PRODUCT
        for path in sorted((ROOT / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if RAW_LIMIT.search(line)
    ]
    allowed = ("HANG_LIMIT_S", "request_timeout_s", "least_s")  # configurations that are written, and figures of a test
    assert [line for line in found if not any(word in line for word in allowed)] == []
