from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multitower.supervisor.config.units import (
    DURATION_PATTERN,
    MAX_DURATION_S,
    MAX_SIZE,
    SIZE_PATTERN,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
    short_repr,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0ms", 0.0),
        ("0.3ms", 0.0003),
        ("500ms", 0.5),
        ("30s", 30.0),
        ("1.5m", 90.0),
        ("2h", 7200.0),
        ("500h", MAX_DURATION_S),
    ],
)
def test_durations_are_parsed_to_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert re.search(DURATION_PATTERN, text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0B", 0),
        ("512B", 512),
        ("64KiB", 65536),
        ("1.5MiB", 1572864),
        ("4GiB", 4294967296),
        ("1KB", 1000),
        ("1.5MB", 1500000),
        ("6GB", 6000000000),
        ("9223372036854775807B", MAX_SIZE),
    ],
)
def test_sizes_are_parsed_to_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert re.search(SIZE_PATTERN, text)


@pytest.mark.parametrize(
    ("parse", "value", "words"),
    [
        (parse_duration, "30", "write 30s"),
        (parse_duration, 30, "write 30s"),
        (parse_duration, 0.5, "write 0.5s"),
        (parse_duration, "30 s", "did you mean '30s'"),
        (parse_duration, "30S", "did you mean '30s'"),
        (parse_duration, "30sec", "unknown unit"),
        (parse_duration, "1d", "the units are us, ms, s, m, h"),
        (parse_duration, "-1s", "is not a duration"),
        (parse_duration, "1e3s", "unknown unit"),
        (parse_duration, "s", "is not a duration"),
        (parse_duration, "", "is not a duration"),
        (parse_duration, "1s2s", "unknown unit"),
        (parse_duration, "30s\n", "unknown unit"),
        (parse_duration, "٣s", "is not a duration"),
        (parse_duration, True, "must be a duration"),
        (parse_duration, None, "must be a duration"),
        (parse_duration, [1], "must be a duration"),
        (parse_duration, "501h", "longer than 500h"),
        (parse_duration, "9" * 400 + "s", "is not a duration|unknown unit"),
        (parse_size, "64", "write 64MiB"),
        (parse_size, 64, "write 64MiB"),
        (parse_size, "64mb", "did you mean '64MB'"),
        (parse_size, "64mib", "did you mean '64MiB'"),
        (parse_size, "64M", "unknown unit"),
        (parse_size, "0.5B", "not a whole number of bytes"),
        (parse_size, "9223372036854775808B", "larger than any memory"),
        (parse_size, False, "must be a size"),
    ],
)
def test_other_values_are_refused_with_advice(parse: Callable[[object], object], value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        parse(value)
    assert len(str(caught.value)) < 300


@given(st.integers(0, MAX_SIZE))
def test_a_formatted_size_is_parsed_to_the_same_size(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.one_of(st.integers(0, int(MAX_DURATION_S)), st.integers(0, 10**9).map(lambda number: number / 10**6)))
def test_a_formatted_duration_is_parsed_to_the_same_duration(seconds: float) -> None:
    text = format_duration(seconds)
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-12, abs=1e-15)
    assert "e" not in text


@given(st.from_regex(DURATION_PATTERN.replace("$", r"\Z"), alphabet=st.characters(codec="ascii")))
def test_durations_that_match_the_schema_can_be_parsed(text: str) -> None:
    try:
        assert 0 <= parse_duration(text) <= MAX_DURATION_S
    except ValueError as error:
        assert "longer than" in str(error)  # noqa: PT017  the only rule that a pattern cannot express


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0B"), (1023, "1023B"), (65536, "64KiB"), (3 << 29, "1536MiB"), (4 << 30, "4GiB")]
)
def test_sizes_are_formatted_in_the_largest_unit_that_divides_them(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.0003, "0.3ms"),
        (0.5, "500ms"),
        (1, "1s"),
        (60, "60s"),
        (90.5, "90.5s"),
        (1800, "30m"),
        (86400, "24h"),
    ],
)
def test_durations_are_formatted_without_superfluous_digits(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize("value", ["x" * 10_000, ["x" * 10_000] * 1000, {"x" * 1000: ["y" * 1000] * 1000}, 10**90])
def test_values_in_messages_are_short(value: object) -> None:
    assert len(short_repr(value)) < 600
