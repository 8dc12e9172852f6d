"""Models that crash a worker with each request: kept away for a time, so that they do not cost the others every slot.

Pure. Each new request of such a model costs its slot one restart of its budget before it is known to be to blame; a
handful of them, and all slots would be given up, with every other model. An answer of the model ends it.
"""

from __future__ import annotations

CRASHES = 3
"""Requests in a row, each of which crashed a worker alone, without an answer of their model in between."""


class CrashingModels:
    """Which models are kept away.

    Attributes:
        until: when each is let go, in monotonic seconds.
    """

    def __init__(self) -> None:
        self.until: dict[str, float] = {}
        self._in_a_row: dict[str, int] = {}

    @property
    def suspected(self) -> list[str]:
        """Models that have crashed with their last request at least."""
        return list(self._in_a_row)

    def crashed(self, model: str, now: float, seconds: float) -> bool:
        """A request has crashed its workers; returns whether its model is kept away for `seconds` from now on.

        Once it has been let go, one more such request brings it back. No time keeps nothing away.
        """
        self._in_a_row[model] = self._in_a_row.get(model, 0) + 1
        if seconds <= 0 or self._in_a_row[model] < CRASHES:
            return False
        self.until[model] = now + seconds
        return True

    def certain(self, model: str) -> bool:
        """It has crashed with so many that its suspects, of which some might be good, are not run any more either."""
        return self._in_a_row.get(model, 0) >= 2 * CRASHES

    def answered(self, model: str) -> None:
        """A worker has executed a request of it, and lives."""
        if self._in_a_row:
            self.forget(model)

    def expire(self, now: float) -> None:
        """Lets go those whose time is over."""
        if self.until:
            self.until = {model: until for model, until in self.until.items() if until > now}

    def forget(self, model: str) -> None:
        """Its cause has been seen to, or it is another model now, or no more: it has as many tries as at first."""
        self._in_a_row.pop(model, None)
        self.until.pop(model, None)

    def quarantined(self) -> dict[str, str]:
        """The models in quarantine, with the cause of each."""
        return {model: why for model in self.until if (why := self.why(model)) is not None}

    def why(self, model: str) -> str | None:
        """Why the model's requests are refused, or None."""
        if model not in self.until:
            return None
        return (
            f"{self._in_a_row[model]} requests in a row crashed their workers; it is tried again when its quarantine "
            "is over, or after `multitower restart SLOT`"
        )
