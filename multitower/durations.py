"""How messages, the log and the tables of commands show durations: `0.5 s`, `90 s`, `30 min`, `2 h`.

The configuration has another notation, without the space: `supervisor.config.units`.
"""

from __future__ import annotations

from typing import Final

_UNITS: Final = (("d", 86400), ("h", 3600), ("min", 60))


def exact_duration(seconds: float) -> str:
    """A limit, in the largest unit of which it is a whole number of at least two; otherwise in seconds.

    Milliseconds are for less than a tenth of a second. Digits beyond a microsecond are left out.
    """
    if 0 < seconds < 0.1:
        return f"{_plain(seconds * 1000, 3)} ms"
    for unit, length in _UNITS:
        if seconds >= 2 * length and seconds % length == 0:
            return f"{seconds / length:.0f} {unit}"
    return f"{_plain(seconds, 6)} s"


def rounded_duration(seconds: float) -> str:
    """A time that has passed or is left, rounded: `3 s`, `12 min`, `3 h`, `2 d`."""
    for unit, length in _UNITS:
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def measured_duration(seconds: float) -> str:
    """How long something took: as `rounded_duration`, but with tenths below 10 s, and milliseconds below 0.1 s."""
    if seconds < 10:
        return exact_duration(round(seconds, 3 if seconds < 0.1 else 1))
    return rounded_duration(seconds)


def _plain(number: float, digits: int) -> str:
    text = f"{number:.{digits}f}"
    return text.rstrip("0").rstrip(".")
