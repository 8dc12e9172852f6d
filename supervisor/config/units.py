"""Durations and sizes with units, such as `50ms` and `4GiB`.

The configuration parses them with `parse_duration` and `parse_size`; messages contain them as `format_duration` and
`format_size` write them. Numbers without a unit are refused, since readers could not know which is meant.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Final

DURATION_UNITS: Final[Mapping[str, Fraction]] = {
    "us": Fraction(1, 1_000_000),
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
}
SIZE_UNITS: Final[Mapping[str, int]] = {
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
}

# epoll takes its time-out in milliseconds as a signed int: at most 596 hours.
MAX_DURATION_S: Final = 500 * 3600.0
MAX_SIZE: Final = 2**63 - 1

# Limited digits: hostile numbers cost nothing, and every duration can be formatted exactly.
_NUMBER: Final = r"[0-9]{1,19}(?:\.[0-9]{1,9})?"
DURATION_PATTERN: Final = rf"^{_NUMBER}(?:{'|'.join(DURATION_UNITS)})$"
SIZE_PATTERN: Final = rf"^{_NUMBER}(?:{'|'.join(SIZE_UNITS)})$"

_QUANTITY: Final = re.compile(rf"({_NUMBER})([^0-9.].*)?", re.DOTALL)


_SHORT: Final = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def short_repr(value: object) -> str:
    """The value's repr, abbreviated for a message."""
    return _SHORT.repr(value)


def printable(text: object) -> str:
    r"""The text with bytes that are not UTF-8, as in file names, written as `\xff`."""
    return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def parse_duration(value: object) -> float:
    """Parses `50us`, `500ms`, `30s`, `1.5m` or `2h`; returns seconds.

    Raises:
        ValueError: no unit, an unknown unit, or longer than `MAX_DURATION_S`.
    """
    number, unit = _split(value, "duration", "s", DURATION_UNITS)
    seconds = float(number * DURATION_UNITS[unit])
    if seconds > MAX_DURATION_S:
        raise ValueError(f"{value} is longer than {MAX_DURATION_S / 3600:.0f}h, the longest duration")
    return seconds


def parse_size(value: object) -> int:
    """Parses `64MiB`, `1.5GB` or `512B`; returns bytes.

    Raises:
        ValueError: no unit, an unknown unit, not a whole number of bytes, or over `MAX_SIZE`.
    """
    number, unit = _split(value, "size", "MiB", SIZE_UNITS)
    size = number * SIZE_UNITS[unit]
    if size.denominator != 1:
        raise ValueError(f"{value} is not a whole number of bytes")
    if size > MAX_SIZE:
        raise ValueError(f"{value} is larger than any memory (2^63 - 1 bytes)")
    return size.numerator


def format_duration(seconds: float) -> str:
    """`seconds` in its shortest decimal form: `ms` below a second, `m` and `h` for whole minutes and hours, else `s`.

    A duration of less than two minutes is in seconds.
    """
    if seconds >= 120 and seconds % 60 == 0:
        return f"{seconds / 3600:.0f}h" if seconds % 3600 == 0 else f"{seconds / 60:.0f}m"
    # From the decimal digits of repr, without binary rounding: 0.0003 s is "0.3ms".
    exact = Decimal(repr(float(seconds)))
    return f"{_plain(exact * 1000)}ms" if exact < 1 else f"{_plain(exact)}s"


def format_size(size: int) -> str:
    """`size` bytes in the largest binary unit that divides it evenly."""
    for unit in ("GiB", "MiB", "KiB"):
        if size and size % SIZE_UNITS[unit] == 0:
            return f"{size // SIZE_UNITS[unit]}{unit}"
    return f"{size}B"


def _plain(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _split(value: object, kind: str, example: str, units: Mapping[str, object]) -> tuple[Fraction, str]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f"a {kind} needs its unit: write {short_repr(value)}{example}, or another of {_list(units)}")
    if not isinstance(value, str):
        raise ValueError(f"must be a {kind}, as in 30{example}")
    match = _QUANTITY.fullmatch(value)
    if match is None:
        raise ValueError(f"{short_repr(value)} is not a {kind}: a number and its unit are expected, as in 30{example}")
    number, unit = match.groups()
    if unit is None:
        raise ValueError(f"a {kind} needs its unit: write {number}{example}, or another of {_list(units)}")
    if unit not in units:
        raise ValueError(
            f"{short_repr(value)} has an unknown unit; the units are {_list(units)}{_hint(number, unit, units)}"
        )
    return Fraction(number), unit


def _hint(number: str, unit: str, units: Mapping[str, object]) -> str:
    stripped = unit.strip()
    folded = {known.casefold(): known for known in units}
    nearest = folded.get(stripped.casefold())
    if nearest is None:
        close = difflib.get_close_matches(stripped[:16].casefold(), folded, n=1)
        nearest = folded[close[0]] if close else None
    return f" (did you mean '{number}{nearest}'?)" if nearest else ""


def _list(units: Mapping[str, object]) -> str:
    return ", ".join(units)
